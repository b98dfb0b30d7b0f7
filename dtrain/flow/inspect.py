"""``dtrain inspect``: what an image or working folder says of itself. Nothing of it is verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dtrain.errors import MalformedInput
from dtrain.flow.believe import metadata_place
from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image
from dtrain.oci.edit import Image
from dtrain.oci.layer import LayerContents, read_layer
from dtrain.oci.reference import Reference
from dtrain.oci.tree import merge
from dtrain.train import paths
from dtrain.train.route import parse_hop_tag
from dtrain.train.sealed import SealedTrain, read_train
from dtrain.transport.protocol import Transport
from dtrain.trust.artifact import StoredFiles, fetch_artifact, parse_name
from dtrain.trust.editor import parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What an image claims to be."""

    reference: Reference
    """Pinned."""
    image: Image
    train: SealedTrain
    hops: tuple[str, ...]
    """Tags that keep the images of hops, in ascending order."""
    metadata: Mapping[str, int]
    """The version of each role of the signed metadata beside it; empty where there is none."""


def inspect(reference: Reference, *, context: Context) -> Inspected:
    """Return what the image at ``reference`` says of itself, unverified.

    Raises:
        MalformedInput: it is no train.
        TransportError: it cannot be had.
    """
    with context.connect(reference) as transport:
        pinned = fetch_image(transport, reference.selector, context)
        return Inspected(
            reference=reference.pinned(pinned.image.manifest.digest), image=pinned.image,
            train=_top_train(transport, pinned.image, context),
            hops=tuple(tag for tag in transport.tags() if parse_hop_tag(tag)),
            metadata=_metadata(reference, transport, context),
        )


def _metadata(reference: Reference, transport: Transport, context: Context) -> dict[str, int]:
    with metadata_place(reference, transport, None, context) as place:
        artifact = fetch_artifact(place)
        if artifact is None:
            return {}
        files = StoredFiles(place, artifact)
        roles = sorted({named[0] for name in files if (named := parse_name(name)) is not None})
        return {role: parsed(files, role).signed.version for role in roles}


def _top_train(transport: Transport, image: Image, context: Context) -> SealedTrain:
    """Return the train from as few layers as hold one, from the top down; the base below is not fetched."""
    contents: list[LayerContents] = []
    with context.spool() as spool:
        for layer in reversed(image.manifest.layers):
            with transport.open_blob(layer) as blob:
                contents.insert(0, read_layer(blob, layer.media_type, wanted=paths.is_train_path, spool=spool))
            tree = merge(contents)
            if tree.get(paths.CONFIG) is not None and any(True for _ in tree.walk(paths.CODE)):
                return read_train(tree)
    raise MalformedInput(f"image {image.manifest.digest.short}: expected /{paths.CONFIG} and /{paths.CODE}, got none",
                         hint="this image is not a train")
