"""What every flow needs from its caller: how to reach images, what was learned before, the clock, a way to warn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from dtrain.oci.descriptor import Platform
from dtrain.oci.reference import Reference
from dtrain.transport.protocol import Transport
from dtrain.trust.state import State
from dtrain.trust.store import TrustStore

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
    train: str | None = None
    """The id of the train that is meant; by default the repository's name tells."""
    max_stale: timedelta = timedelta(0)
    """How long past their date snapshot and timestamp may be."""
    trust_repository: str | None = None
    """Where metadata is kept, instead of what the anchor says: the start of a reference; the train's name follows."""

    @property
    def store(self) -> TrustStore:
        """What was seen of each train's metadata."""
        return TrustStore(self.state.folder / "trains")

    def spool(self) -> BinaryIO:
        """Return an unnamed temporary file for ciphertext; it is gone when it is closed, however that comes about."""
        return tempfile.TemporaryFile(prefix="dtrain-")
