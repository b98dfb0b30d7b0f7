"""Copying content between any two places: blobs first, then manifests by digest, tags last."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast

from dtrain.errors import MalformedInput
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, parse_manifest
from dtrain.transport.protocol import Transport

WORKERS = 6  # blobs at a time; more gains little beyond 50 ms of latency


def copy_image(
    source: Transport, selector: str | Digest, target: Transport, tags: Sequence[str], *, mount_from: str | None = None
) -> Digest:
    """Copy an image, or an index with all that it names, and let ``tags`` name it; return its digest.

    Args:
        source: where it is.
        selector: its tag or digest there.
        target: where it goes; bytes and media types stay as they are.
        tags: put last, in this order.
        mount_from: name of the source's repository, when both places are at one registry.

    Raises:
        MalformedInput: an index inside an index, or layers that are stored elsewhere.
        TransportError: one of the places refuses.
    """
    top = parse_manifest(source.fetch_manifest(selector))
    images: list[Manifest] = []
    for entry in top.manifests if isinstance(top, Index) else ():
        inner = parse_manifest(source.fetch_manifest(entry.digest))
        if isinstance(inner, Index):
            raise MalformedInput(f"index {top.digest.short}: expected images in it, got another index")
        images.append(inner)
    if isinstance(top, Manifest):
        images.append(top)
    blobs = [blob for image in images for blob in (*image.layers, image.config)]
    copy_blobs(source, target, blobs, mount_from=mount_from)
    for image in images:
        target.put_manifest(image)
    if isinstance(top, Index):
        target.put_manifest(top)
    for tag in tags:
        target.put_tag(tag, top)
    return top.digest


def copy_blobs(
    source: Transport, target: Transport, blobs: Sequence[Descriptor], *, mount_from: str | None = None
) -> None:
    """Make ``blobs`` of ``source`` available at ``target``: what is there stays, what can be mounted is mounted.

    Raises:
        MalformedInput: a layer that is stored elsewhere.
        TransportError: one of the places refuses; the first error ends the rest.
    """
    if source.place == target.place:
        return
    wanted = list({blob.digest: blob for blob in blobs}.values())
    for blob in wanted:
        if blob.urls:
            raise MalformedInput(f"layer {blob.digest.short}: expected one that the registry stores, got a foreign one",
                                 hint="push the image with its foreign layers included")
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        pending = [pool.submit(_copy_blob, source, target, blob, mount_from) for blob in wanted]
        try:
            for one in pending:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy_blob(source: Transport, target: Transport, blob: Descriptor, mount_from: str | None) -> None:
    if target.has_blob(blob) or (mount_from is not None and target.mount_blob(blob, mount_from)):
        return
    target.put_blob(blob, lambda: cast(BinaryIO, source.open_blob(blob)))


