"""The one place that chooses between a registry and a layout.

A registry's libraries take a while to load; a layout does without them, so they are imported here, when needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.errors import UsageProblem
from dtrain.oci.reference import Reference
from dtrain.transport.layout import Layout
from dtrain.version import VERSION

if TYPE_CHECKING:
    from dtrain.transport.registry import Registry
    from dtrain.transport.wire import RegistrySettings


def connect(reference: Reference, settings: RegistrySettings) -> Layout | Registry:
    """Return the place of ``reference``, to be used in a ``with`` block; no request is made yet.

    Args:
        reference: names the place; its tag and digest are not used.
        settings: how to talk to a registry.
    """
    if reference.layout is not None:
        return connect_layout(reference)
    from dtrain.transport.registry import Registry

    return Registry(reference, settings)


def connect_layout(reference: Reference) -> Layout:
    """Return the layout of ``reference``; for callers that have no settings for registries."""
    if reference.layout is None:
        raise RuntimeError("a reference to a layout, please")
    return Layout(reference.layout)


def connect_registry(
    reference: Reference, *, plain_http: bool = False, ca_file: Path | None = None,
    client_cert: tuple[Path, Path] | None = None, username: str | None = None, password: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Registry:
    """Return the registry of ``reference``, with the credentials that podman and docker would use.

    Args: as :class:`~dtrain.transport.wire.RegistrySettings`; a user name and password win over stored credentials.

    Raises:
        UsageProblem: a user name without a password, or the reverse.
    """
    from dtrain.transport.credentials import Credential, CredentialStore
    from dtrain.transport.registry import Registry
    from dtrain.transport.wire import RegistrySettings

    if (username is None) != (password is None):
        raise UsageProblem("registry: expected a user name and a password, got one of them")
    explicit = None if username is None or password is None else Credential(username, password)
    return Registry(reference, RegistrySettings(
        plain_http=plain_http, ca_file=ca_file, client_cert=client_cert, user_agent=f"dtrain/{VERSION}",
        credentials=CredentialStore(os.environ, explicit), progress=progress,
    ))
