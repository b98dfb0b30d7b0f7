"""Image configurations (image-spec: config.md; Docker's differ only in members that we keep as they are)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtrain.errors import MalformedInput
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest
from dtrain.oci.strict_json import Fields, parse_json

CONFIG_MAX = 8 * 2**20  # bytes; the history of a thousand layers is well below


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """An image configuration: raw bytes, and the parts that dtrain reads."""

    raw: bytes = field(repr=False)
    os: str
    architecture: str
    diff_ids: tuple[Digest, ...]
    history: tuple[Mapping[str, Any], ...] = field(repr=False)
    runtime: Mapping[str, Any] = field(repr=False, hash=False)
    """The ``config`` member: Env, Entrypoint, Cmd, User, WorkingDir and so on."""
    members: Mapping[str, Any] = field(repr=False, hash=False)
    """The whole document."""


def parse_config(raw: bytes, manifest: Manifest) -> ImageConfig:
    """Return the configuration that ``raw`` spells, checked against its manifest.

    Raises:
        MalformedInput: wrong form, or the number of diff_ids or non-empty history entries is not that of the layers.
    """
    what = f"image config {manifest.config.digest.short}"
    if len(raw) > CONFIG_MAX:
        raise MalformedInput(f"{what}: expected at most {CONFIG_MAX} bytes, got {len(raw)}")
    fields = Fields(parse_json(raw, what=what), what)
    fields.check_spelling("os", "architecture", "config", "rootfs", "history")
    rootfs = fields.object("rootfs")
    rootfs.check_spelling("type", "diff_ids")
    diff_ids = tuple(
        Digest.parse(text, what=f"{rootfs.path('diff_ids')}[{position}]")
        for position, text in enumerate(rootfs.strings("diff_ids"))
    )
    if len(diff_ids) != len(manifest.layers):
        raise MalformedInput(f"{what}: rootfs.diff_ids: expected {len(manifest.layers)}, one for each layer, "
                             f"got {len(diff_ids)}")
    entries = tuple(fields.objects("history"))
    for entry in entries:
        entry.check_spelling("empty_layer")
    filled = sum(not entry.optional("empty_layer", bool) for entry in entries)
    history = tuple(entry.raw for entry in entries)
    if history and filled != len(diff_ids):
        raise MalformedInput(f"{what}: history: expected {len(diff_ids)} entries with a layer, got {filled}")
    runtime = fields.optional_object("config")
    return ImageConfig(
        raw=raw,
        os=fields.required("os", str),
        architecture=fields.required("architecture", str),
        diff_ids=diff_ids,
        history=history,
        runtime=runtime.raw if runtime else {},
        members=fields.raw,
    )
