"""Image manifests and indexes (image-spec: manifest.md, image-index.md; Docker image manifest v2, schema 2).

The raw bytes are kept beside the parsed form: a digest is of the bytes as they came, and what is pushed again is
those bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtrain.errors import MalformedInput, NotFound
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor, Platform
from dtrain.oci.digest import Digest
from dtrain.oci.strict_json import Fields, parse_json

MANIFEST_MAX = 4 * 2**20  # bytes; distribution-spec: what a registry has to accept, and no more than that
_MEMBERS = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations")
LAYERS_MAX = 1024  # layers; runtimes stop at 127 to 500, and E5 asks for a thousand


@dataclass(frozen=True, slots=True, kw_only=True)
class RawManifest:
    """A manifest or index as it was fetched: bytes whose digest has been checked, not yet parsed."""

    raw: bytes = field(repr=False)
    media_type: str | None
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An image manifest (or an artifact manifest of the same form)."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None
    subject: Descriptor | None = None

    @property
    def is_docker(self) -> bool:
        """Whether it is of Docker's family, which decides the media types of layers added to it."""
        return self.media_type == media_types.DOCKER_MANIFEST

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that names this manifest."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An image index or Docker manifest list."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that names this index."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))

    def select(self, platform: Platform) -> Descriptor:
        """Return the entry of an image for ``platform``.

        Attestation entries (``unknown/unknown``, artifacts, entries without a platform) are passed over; when a
        single image is left that states no platform, that one is meant.

        Raises:
            NotFound: no entry fits.
        """
        images = [
            entry for entry in self.manifests
            if entry.media_type in media_types.MANIFESTS
            and entry.artifact_type is None
            and "vnd.docker.reference.type" not in entry.annotations
            and (entry.platform is None or entry.platform.os != "unknown")
        ]
        for entry in images:
            if entry.platform is not None and (entry.platform.os, entry.platform.architecture) == (
                platform.os, platform.architecture
            ):
                return entry
        if len(images) == 1 and images[0].platform is None:
            return images[0]
        offered = ", ".join(str(entry.platform) for entry in images) or "no image at all"
        raise NotFound(f"index {self.digest.short}: expected an image for {platform}, got {offered}")


def parse_manifest(fetched: RawManifest) -> Manifest | Index:
    """Return what the fetched bytes spell.

    The family is told by the document's ``mediaType``, else by the transport's, else by the members present
    (image-spec: ``mediaType`` is optional). An index inside an index is left to the caller, who must not follow it.

    Raises:
        MalformedInput: not a manifest that image-spec or Docker schema 2 describes.
    """
    what = f"manifest {fetched.digest.short}"
    if len(fetched.raw) > MANIFEST_MAX:
        raise MalformedInput(f"{what}: expected at most {MANIFEST_MAX} bytes, got {len(fetched.raw)}")
    fields = Fields(parse_json(fetched.raw, what=what), "")
    fields.check_spelling(*_MEMBERS)
    version = fields.required("schemaVersion", int)
    if version != 2:
        raise MalformedInput(f"{what}: schemaVersion: expected 2, got {version}",
                             hint="schema 1 images are obsolete; push the image again with a current tool")
    media_type = _family(fields, fetched.media_type, what)
    if media_type in media_types.INDEXES:
        manifests = tuple(Descriptor.parse(entry) for entry in fields.objects("manifests"))
        return Index(raw=fetched.raw, media_type=media_type, digest=fetched.digest, manifests=manifests)
    layers = tuple(Descriptor.parse(entry) for entry in fields.objects("layers"))
    if len(layers) > LAYERS_MAX:
        raise MalformedInput(f"{what}: layers: expected at most {LAYERS_MAX}, got {len(layers)}")
    subject = fields.optional_object("subject")
    return Manifest(
        raw=fetched.raw,
        media_type=media_type,
        digest=fetched.digest,
        config=Descriptor.parse(fields.object("config")),
        layers=layers,
        annotations=fields.string_map("annotations"),
        artifact_type=fields.optional("artifactType", str),
        subject=None if subject is None else Descriptor.parse(subject),
    )


def _family(fields: Fields, transport_type: str | None, what: str) -> str:
    """Return the media type, refusing a document that could be read as two kinds (CVE-2021-41190)."""
    known = media_types.MANIFESTS | media_types.INDEXES
    has_index, has_image = "manifests" in fields, "config" in fields or "layers" in fields
    if has_index and has_image:
        raise MalformedInput(f"{what}: expected an image or an index, got members of both")
    guess = media_types.OCI_INDEX if has_index else media_types.OCI_MANIFEST
    media_type = fields.optional("mediaType", str) or (transport_type if transport_type in known else guess)
    if media_type not in known:
        raise MalformedInput(f"{what}: mediaType: expected an image manifest or index, got {media_type[:80]!r}")
    if transport_type in known and transport_type != media_type:
        raise MalformedInput(f"{what}: expected the media type {media_type} that it states, "
                             f"got it served as {transport_type}")
    if (media_type in media_types.INDEXES) != has_index:
        raise MalformedInput(f"{what}: expected the members of {media_type}, got those of another kind")
    return media_type


def make_manifest(
    *, media_type: str, config: Descriptor, layers: Sequence[Descriptor],
    annotations: Mapping[str, str] | None = None, artifact_type: str | None = None, subject: Descriptor | None = None,
) -> Manifest:
    """Return a new image manifest of the family ``media_type``, its bytes in canonical member order."""
    members: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        **({} if artifact_type is None else {"artifactType": artifact_type}),
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
        **({} if subject is None else {"subject": subject.to_json()}),
    }
    if annotations:
        members["annotations"] = dict(annotations)
    raw = json.dumps(members, separators=(",", ":")).encode()
    return Manifest(raw=raw, media_type=media_type, digest=Digest.of(raw), config=config, layers=tuple(layers),
                    annotations=annotations or {}, artifact_type=artifact_type, subject=subject)


def make_index(manifests: Sequence[Descriptor]) -> Index:
    """Return a new image index over ``manifests``."""
    members = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX,
               "manifests": [entry.to_json() for entry in manifests]}
    raw = json.dumps(members, separators=(",", ":")).encode()
    return Index(raw=raw, media_type=media_types.OCI_INDEX, digest=Digest.of(raw), manifests=tuple(manifests))
