"""From a reference to the sealed train in it: documents by digest, and of the layers only those with a say in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from dtrain.errors import DigestMismatch, MalformedInput, TransportError, VerificationFailed
from dtrain.flow.context import Context
from dtrain.oci.config import CONFIG_MAX, parse_config
from dtrain.oci.descriptor import Descriptor, Platform
from dtrain.oci.digest import Digest
from dtrain.oci.edit import Image
from dtrain.oci.layer import Entry, Kind, LayerContents, read_layer
from dtrain.oci.manifest import Index, Manifest, RawManifest, parse_manifest
from dtrain.oci.reference import Reference
from dtrain.oci.tree import Tree, merge
from dtrain.train import paths
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, BaseImage, EmbeddedKeys
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.base_image import ApprovedBase, no_base
from dtrain.trust.state import LayerVerdict, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """An image that has been resolved: from here on nobody reads the tag again."""

    image: Image
    resolved: Digest
    """What the tag named: the image manifest, or the index around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLayers:
    """What an image's layers hold of a train, and which of them belong to what it stands on."""

    tree: Tree
    keep: tuple[int, ...]
    """Positions of the layers that stay when the train's layer is replaced."""


def fetch_image(transport: Transport, selector: str | Digest, context: Context) -> Pinned:
    """Return the image that a tag or digest names; an index gives its image for the context's platform.

    Raises:
        NotFound: no such tag or digest, or no image for the platform.
        DigestMismatch: other bytes than the digest says.
        MalformedInput: no image manifest or config.
    """
    fetched = transport.fetch_manifest(selector)
    manifest = _image_manifest(transport, parse_manifest(fetched), context.platform)
    return Pinned(image=_with_config(transport, manifest), resolved=fetched.digest)


def _image_manifest(transport: Transport, found: Manifest | Index, platform: Platform) -> Manifest:
    if isinstance(found, Manifest):
        return found
    inner = parse_manifest(transport.fetch_manifest(found.select(platform).digest))
    if isinstance(inner, Index):
        raise MalformedInput(f"index {found.digest.short}: expected an image for {platform}, got another index")
    return inner


def _with_config(transport: Transport, manifest: Manifest) -> Image:
    if manifest.config.size > CONFIG_MAX:
        raise MalformedInput(f"image config: expected at most {CONFIG_MAX} bytes, got {manifest.config.size}")
    with transport.open_blob(manifest.config) as blob:
        raw = blob.read()
    return Image(manifest=manifest, config=parse_config(raw, manifest))


def find_bases(
    image: Image, trust: Anchor | EmbeddedKeys | AttestedTrain, context: Context
) -> tuple[ApprovedBase, ...]:
    """Return the bases that the image stands on: the anchor's and the one that the creator signed, the longest first.

    Raises:
        MissingEvidence: it does not stand on one that it has to.
        TransportError: it may stand on one whose documents could not be fetched.
    """
    approved = _find_base(image, trust.base_images, any_base=trust.any_base, source=trust.source, context=context)
    signed = trust.base if isinstance(trust, AttestedTrain) else None
    if signed is not None and not signed.carries(image.config):
        raise no_base("the creator")
    return tuple(sorted((base for base in (approved, signed) if base is not None),
                        key=lambda base: len(base.layers), reverse=True))


def _find_base(image: Image, approved: Sequence[BaseImage], *, any_base: bool, source: str, context: Context
               ) -> ApprovedBase | None:
    """Return the approved base that the image stands on, or ``None`` when none is asked for.

    The longest base wins, so that an approved image built on another approved one is found as itself.
    """
    bases, problem = [], None
    for approval in approved:
        try:
            bases.append(_fetch_base(approval, context))
        except TransportError as error:
            problem = problem or error
    carrying = [base for base in bases if base.carries(image.config)]
    if carrying:
        return max(carrying, key=lambda base: len(base.layers))
    if any_base:
        return None
    raise problem or no_base(source)


def _fetch_base(approval: BaseImage, context: Context) -> ApprovedBase:
    """Return the base with its documents, from the local state when they are known."""
    known = context.state.document(approval.digest)
    if known is not None:
        manifest = parse_manifest(RawManifest(raw=known, media_type=None, digest=approval.digest))
        if isinstance(manifest, Manifest) and (raw := context.state.document(manifest.config.digest)) is not None:
            image = Image(manifest=manifest, config=parse_config(raw, manifest))
            return ApprovedBase.of(image, name=approval.reference, command=approval.command)
    with context.connect(Reference.parse(approval.reference)) as transport:
        pinned = fetch_image(transport, approval.digest, context)
    image = pinned.image
    if image.manifest.digest == approval.digest:  # an index is resolved again: which image it gives depends on us
        context.state.keep_document(approval.digest, image.manifest.raw)
        context.state.keep_document(image.manifest.config.digest, image.config.raw)
    return ApprovedBase.of(image, name=approval.reference, command=approval.command)


def read_layers(transport: Transport, image: Image, base: ApprovedBase | None, *, state: State, spool: BinaryIO
                ) -> FoundLayers:
    """Return what the image's layers hold of a train.

    Layers of the approved base are not fetched, nor are those known from before to have no say in any train. Every
    other one is streamed once: its diff_id is checked, the train's own files go to ``spool`` as they are, encrypted.

    Raises:
        VerificationFailed: a layer above the approved base holds other paths than the train's.
        UnsafeArchive: a layer holds something that must not be unpacked.
        DigestMismatch: a layer's content is not what its digest or diff_id says.
    """
    approved = {} if base is None else dict(base.layers)
    below = 0 if base is None else len(base.layers)
    contents, keep = [], []
    for position, (layer, diff_id) in enumerate(zip(image.manifest.layers, image.config.diff_ids, strict=True)):
        verdict = state.verdict(layer.digest)
        known = approved.get(layer.digest) if position < below else None
        known = known or (None if verdict is None else verdict.diff_id)
        if known is None:
            found = _read_layer(transport, layer, spool)
            contents.append(found)
            other, known = _other_path(found), found.diff_id
            if not found.entries and other is not None:
                state.keep_verdict(layer.digest, LayerVerdict(diff_id=found.diff_id))
        else:
            other = "content that is not the train's"
        if known != diff_id:
            raise DigestMismatch(f"layer {position}: expected the diff_id {diff_id}, got {known}")
        if base is not None and position >= below and other is not None:
            raise VerificationFailed(
                f"layer {position}: expected only the train's own paths above the base image "
                f"{base.name}, got {other}", hint="something outside /opt was changed; do not run it")
        if position < below or other is not None:
            keep.append(position)
    return FoundLayers(tree=merge(contents), keep=tuple(keep))


def _read_layer(transport: Transport, layer: Descriptor, spool: BinaryIO) -> LayerContents:
    with transport.open_blob(layer) as blob:
        return read_layer(blob, layer.media_type, wanted=paths.decides_train, spool=spool)


def _other_path(found: LayerContents) -> str | None:
    """Return the first path that is not the train's own; the plain parent folder is nobody's."""
    for entry in found.entries:
        if not paths.is_train_path(entry.path) and not _is_parent(entry):
            return f"/{entry.path} ({entry.kind.name.lower()})"
    return None if found.first_other is None else f"/{found.first_other}"


def _is_parent(entry: Entry) -> bool:
    return entry.path == paths.OPT and entry.kind is Kind.DIRECTORY
