"""Copying images between any two places, bytes and media types unchanged.

What is copied is checked on the way. The order makes a copy safe to interrupt and to repeat: layers, configs,
manifests by digest, the index around them, tags.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import BinaryIO, cast

from dtrain.errors import DigestMismatch, MalformedInput
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, parse_manifest
from dtrain.oci.reference import check_tag
from dtrain.oci.verified import VerifiedReader
from dtrain.transport.protocol import Transport

WORKERS = 6  # blobs at a time


def copy_image(
    source: Transport, selector: str | Digest, target: Transport, tags: Sequence[str], *, mount_from: str | None = None
) -> Digest:
    """Copy an image, or an index with all its images, and return its digest.

    Args:
        source: where it is.
        selector: the tag or digest that names it there.
        target: where it shall be.
        tags: what it is called there; with none it can be had by its digest.
        mount_from: the repository of ``source``, if ``target`` is another one at the same registry.

    Raises:
        NotFound: it is not there.
        DigestMismatch: other bytes came than a digest said.
        MalformedInput: an index inside an index, a layer that lives elsewhere, or no image at all.
        Conflict: a tag names something else right after it was put.
    """
    for tag in tags:
        check_tag(tag)
    document = parse_manifest(source.fetch_manifest(selector))
    images = [document] if isinstance(document, Manifest) else _images(source, document)
    copy_blobs(source, target, [layer for image in images for layer in image.layers], mount_from=mount_from)
    copy_blobs(source, target, [image.config for image in images], mount_from=mount_from)
    if isinstance(document, Index):
        for image in images:
            target.put_manifest(image)
    target.put_manifest(document)
    for tag in tags:
        target.put_tag(tag, document)
    return document.digest


def copy_blobs(
    source: Transport, target: Transport, blobs: Iterable[Descriptor], *, mount_from: str | None = None
) -> None:
    """Make blobs of ``source`` available at ``target``: those it lacks, by mounting where that works.

    The first error ends the transfers that are under way and is raised.

    Raises:
        MalformedInput: a blob lives at addresses of its own; nothing was copied.
        NotFound: ``source`` lacks one.
        DigestMismatch: other bytes came than the digest says.
    """
    wanted = tuple({(blob.digest, blob.size): blob for blob in blobs}.values())
    for blob in wanted:
        if blob.urls:
            raise MalformedInput(f"layer {blob.digest.short}: expected content in {source.place}, "
                                 f"got {len(blob.urls)} foreign URLs",
                                 hint="push the image again with its foreign layers (docker, podman: "
                                      "allow-nondistributable-artifacts)")
    if not wanted:
        return
    stop = threading.Event()

    def copy(blob: Descriptor) -> None:
        if mount_from and (target.has_blob(blob) or target.mount_blob(blob, mount_from)):
            return
        target.put_blob(blob, lambda: cast(BinaryIO, _Stoppable(source.open_blob(blob), stop)))

    with ThreadPoolExecutor(max_workers=min(WORKERS, len(wanted)), thread_name_prefix="dtrain-copy") as workers:
        try:
            for done in as_completed([workers.submit(copy, blob) for blob in wanted]):
                done.result()
        except BaseException:  # an interrupt by the user, too
            stop.set()
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def _images(source: Transport, index: Index) -> list[Manifest]:
    """Return the images of an index, each as its entry describes it."""
    images = {}
    for position, entry in enumerate(index.manifests):
        what = f"index {index.digest.short}: manifests[{position}]"
        if entry.media_type not in media_types.MANIFESTS:
            raise MalformedInput(f"{what}: expected an image, got {entry.media_type[:80]!r}")
        image = parse_manifest(source.fetch_manifest(entry.digest))
        if isinstance(image, Index):
            raise MalformedInput(f"{what}: expected an image, got another index")
        if len(image.raw) != entry.size:
            raise DigestMismatch(f"{what}: expected {entry.size} bytes, got {len(image.raw)}")
        if image.media_type != entry.media_type:
            raise MalformedInput(f"{what}: expected {entry.media_type}, got {image.media_type}")
        images[image.digest] = image
    return list(images.values())


class _Stopped(Exception):
    """Ends a transfer because another one failed, whose error is under way to the caller."""


class _Stoppable(io.RawIOBase):
    """A verified stream that ends early when another transfer failed."""

    def __init__(self, stream: VerifiedReader, stop: threading.Event) -> None:
        super().__init__()
        self._stream = stream
        self._stop = stop

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._stop.is_set():
            raise _Stopped
        return self._stream.read(size)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
