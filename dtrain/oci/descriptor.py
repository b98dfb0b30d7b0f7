"""Content descriptors (image-spec: descriptor.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtrain.errors import MalformedInput
from dtrain.oci.digest import Digest
from dtrain.oci.strict_json import Fields

_MEMBERS = ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
MAX_SIZE = 2**63 - 1  # bytes; image-spec: int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The ``platform`` of an index entry; ``variant`` is empty where there is none."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What names some content: its media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str | None = None
    urls: tuple[str, ...] = ()
    data: bytes | None = field(default=None, repr=False)
    """The content itself, of that size; its digest is checked by whoever uses it."""

    @classmethod
    def parse(cls, fields: Fields) -> Descriptor:
        """Return the descriptor that a JSON object spells.

        Raises:
            MalformedInput: a member is missing, of the wrong type, or out of range.
        """
        fields.check_spelling(*_MEMBERS)
        size = fields.required("size", int)
        if not 0 <= size <= MAX_SIZE:
            raise MalformedInput(f"{fields.path('size')}: expected 0 to {MAX_SIZE}, got {size}")
        platform = fields.optional_object("platform")
        if platform is not None:
            platform.check_spelling("os", "architecture", "variant")
        return cls(
            media_type=fields.required("mediaType", str),
            digest=Digest.parse(fields.required("digest", str), what=fields.path("digest")),
            size=size,
            annotations=fields.string_map("annotations"),
            platform=None if platform is None else Platform(
                os=platform.required("os", str),
                architecture=platform.required("architecture", str),
                variant=platform.optional("variant", str) or "",
            ),
            artifact_type=fields.optional("artifactType", str),
            urls=fields.strings("urls"),
            data=_embedded(fields, size),
        )

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Descriptor:
        """Return the descriptor of the bytes ``data``."""
        return cls(media_type=media_type, digest=Digest.of(data), size=len(data))

    def to_json(self) -> dict[str, Any]:
        """Return the members that go on the wire."""
        members: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            members["annotations"] = dict(self.annotations)
        if self.platform is not None:
            members["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
            if self.platform.variant:
                members["platform"]["variant"] = self.platform.variant
        if self.artifact_type is not None:
            members["artifactType"] = self.artifact_type
        if self.data is not None:
            members["data"] = base64.b64encode(self.data).decode("ascii")
        return members


def _embedded(fields: Fields, size: int) -> bytes | None:
    text = fields.optional("data", str)
    try:
        data = None if text is None else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedInput(f"{fields.path('data')}: expected base64, got something else") from None
    if data is not None and len(data) != size:
        raise MalformedInput(f"{fields.path('data')}: expected {size} bytes, got {len(data)}")
    return data
