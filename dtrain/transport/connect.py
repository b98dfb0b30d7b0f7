"""The one place that chooses between a registry and an OCI layout. What is not chosen is not imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from dtrain.errors import UsageProblem
from dtrain.oci.reference import Reference
from dtrain.transport.protocol import Transport


def connect_layout(reference: Reference) -> AbstractContextManager[Transport]:
    """Return the OCI image layout that ``reference`` names."""
    from dtrain.transport.layout import Layout

    if reference.layout is None:
        raise TypeError("a reference to a layout")
    return Layout(reference.layout)


def connect_registry(
    reference: Reference, *, plain_http: bool = False, ca_file: Path | None = None,
    client_cert: tuple[Path, Path] | None = None, username: str | None = None, password: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> AbstractContextManager[Transport]:
    """Return the repository that ``reference`` names; without a user name the usual credential files are read."""
    from dtrain.transport.credentials import Credential, CredentialStore
    from dtrain.transport.registry import Registry
    from dtrain.transport.wire import RegistrySettings
    from dtrain.version import VERSION

    if (username is None) != (password is None):
        raise UsageProblem("registry: expected user name and password, got one of them",
                           hint="set both DTRAIN_USERNAME and DTRAIN_PASSWORD")
    explicit = Credential(username, password) if username is not None and password is not None else None
    return Registry(reference, RegistrySettings(
        plain_http=plain_http, ca_file=ca_file, client_cert=client_cert, progress=progress,
        credentials=CredentialStore(environ=os.environ, explicit=explicit), user_agent=f"dtrain/{VERSION}",
    ))
