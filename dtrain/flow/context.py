"""What every flow needs from its caller: how to reach images, what was learned before, the clock, a way to warn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import BinaryIO

from dtrain.oci.descriptor import Platform
from dtrain.oci.reference import Reference
from dtrain.transport.protocol import Transport
from dtrain.trust.state import State

DEFAULT_PLATFORM = Platform(os="linux", architecture="amd64")  # what the central builder makes


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The surroundings of a flow."""

    connect: Callable[[Reference], AbstractContextManager[Transport]]
    state: State
    platform: Platform = DEFAULT_PLATFORM
    now: Callable[[], datetime] = _now
    warn: Callable[[str], None] = field(default=lambda text: None)

    def spool(self) -> BinaryIO:
        """Return an unnamed temporary file for ciphertext; it is gone when it is closed, however that comes about."""
        return tempfile.TemporaryFile(prefix="dtrain-")
