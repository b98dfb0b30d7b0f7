"""What a place of images can do. Two places exist: :mod:`.registry` and :mod:`.layout`."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol

from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, RawManifest
from dtrain.oci.verified import VerifiedReader

Opener = Callable[[], BinaryIO]
"""Opens content from its start; called again when an upload has to be repeated."""


class Transport(Protocol):
    """One repository at a registry, or one OCI image layout."""

    @property
    def place(self) -> str:
        """The name of the place as in a reference, for messages."""

    def fetch_manifest(self, selector: str | Digest) -> RawManifest:
        """Return the manifest or index that a tag or digest names; asked by digest, the bytes have that digest.

        Raises:
            NotFound: there is none.
            DigestMismatch: other bytes came back.
        """

    def resolve(self, tag: str) -> Digest | None:
        """Return the digest that ``tag`` names now, or ``None`` when there is no such tag."""

    def open_blob(self, want: Descriptor) -> VerifiedReader:
        """Return a reader of the blob that checks every byte against ``want``.

        Raises:
            NotFound: there is none.
        """

    def has_blob(self, want: Descriptor) -> bool:
        """Return whether the blob is stored here."""

    def mount_blob(self, want: Descriptor, source: str) -> bool:
        """Make the blob of the repository ``source`` at the same place available here; ``False`` if that cannot be."""

    def put_blob(self, want: Descriptor, content: Opener) -> None:
        """Store the blob, unless it is here already."""

    def put_manifest(self, manifest: Manifest | Index) -> None:
        """Store the manifest under its digest; no tag changes."""

    def put_tag(self, tag: str, manifest: Manifest | Index, *, replacing: Digest | None = None) -> None:
        """Let ``tag`` name the manifest, and read it back.

        Args:
            tag: the tag.
            manifest: what it shall name.
            replacing: what it names now, as far as the caller knows; places that can hold the tag against it do.

        Raises:
            Conflict: the tag names something else, before or right afterwards.
        """

    def tags(self) -> tuple[str, ...]:
        """Return all tags in ascending order."""
