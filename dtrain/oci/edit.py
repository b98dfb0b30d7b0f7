"""Making a new image out of a known one: other layers on top, everything else as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dtrain.oci import media_types
from dtrain.oci.config import ImageConfig, parse_config
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest, make_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image's two documents, which belong together."""

    manifest: Manifest
    config: ImageConfig


def plain_layer(image: Image, digest: Digest, size: int) -> Descriptor:
    """Return the descriptor of an uncompressed tar layer, in the family of ``image``."""
    media_type = media_types.DOCKER_LAYER if image.manifest.is_docker else media_types.OCI_LAYER
    return Descriptor(media_type=media_type, digest=digest, size=size)


def replace_layers(
    image: Image, *, keep: Sequence[int], layer: Descriptor, created: datetime, created_by: str,
    runtime: Mapping[str, Any] | None = None,
) -> Image:
    """Return ``image`` with the layers at the positions ``keep`` and, above them, one new uncompressed layer.

    Kept layers are the same blobs; history entries stay verbatim, those of dropped layers go (the validator of
    train_lib looks for the base image's entries). The manifest's family stays.

    Args:
        image: the image to start from.
        keep: positions of the layers to keep, ascending.
        layer: the new layer, a plain tar, so that its digest is its diff_id.
        created: when, for the config.
        created_by: by what, for the history.
        runtime: replaces the ``config`` member, when given.
    """
    kept = set(keep)
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    members = dict(image.config.members)
    members["created"] = stamp
    members["rootfs"] = {
        **members["rootfs"],
        "diff_ids": [str(image.config.diff_ids[position]) for position in keep] + [str(layer.digest)],
    }
    if runtime is not None:
        members["config"] = dict(runtime)
    if image.config.history or not image.config.diff_ids:
        members["history"] = [*_kept_history(image.config, kept), {"created": stamp, "created_by": created_by}]
    raw = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
    manifest = make_manifest(
        media_type=image.manifest.media_type,
        config=Descriptor.of(raw, image.manifest.config.media_type),
        layers=[*(image.manifest.layers[position] for position in keep), layer],
        annotations=image.manifest.annotations,
    )
    return Image(manifest=manifest, config=parse_config(raw, manifest))


def _kept_history(config: ImageConfig, kept: set[int]) -> list[Mapping[str, Any]]:
    entries, position = [], 0
    for entry in config.history:
        if entry.get("empty_layer"):
            entries.append(entry)
            continue
        if position in kept:
            entries.append(entry)
        position += 1
    return entries
