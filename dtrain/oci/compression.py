"""Layer blobs in the clear: gzip, zstd or plain tar, told by their first bytes (image-spec: layer.md, media types).

Memory is bounded whatever the sender claims. What a blob expands to is bounded as well: see :data:`BOMB_RATIO`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from dtrain.errors import UnsafeArchive
from dtrain.oci.verified import ByteSource

CHUNK = 2**18  # bytes read at a time
PIECE = 2**20  # bytes given out at a time
BOMB_FREE = 64 * 2**20  # bytes that may come out whatever went in
BOMB_RATIO = 200  # beyond that, bytes out for each byte in; sparse but honest layers stay below 100
ZSTD_WINDOW_MAX = 32 * 2**20  # bytes

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FOREIGN = ("nondistributable", "foreign")


class LayerStream:
    """The uncompressed bytes of a blob; reads the blob to its very end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, fewer only before the end; nothing at the end.

        Raises:
            UnsafeArchive: the compressed form is broken, truncated, followed by garbage, or a bomb.
        """
        if size < 0:
            return b"".join([self._take(), *self._pieces])
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _take(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    def close(self) -> None:
        """Nothing to close: the blob belongs to the caller."""


def open_layer_stream(blob: ByteSource, media_type: str) -> LayerStream:
    """Return the uncompressed bytes of ``blob``.

    Raises:
        UnsafeArchive: the content is not of the form that the media type states, or the layer is stored elsewhere.
    """
    if any(word in media_type for word in _FOREIGN):
        raise UnsafeArchive(f"layer: expected one that the registry stores, got the media type {media_type}",
                            hint="push the image with its foreign layers included")
    head = _read_exactly(blob, 4)
    kind = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else "tar"
    stated = "gzip" if media_type.endswith("gzip") else "zstd" if media_type.endswith("zstd") else "tar"
    if kind != stated:
        raise UnsafeArchive(f"layer: expected {stated} as its media type states, got {kind}")
    source = _Joined(head, blob)
    pieces = {"gzip": _gunzip, "zstd": _unzstd, "tar": _plain}[kind](source)
    return LayerStream(pieces)


class _Joined:
    """The blob with its first bytes put back, counting what goes in."""

    def __init__(self, head: bytes, blob: ByteSource) -> None:
        self._head = head
        self._blob = blob
        self.count = 0

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        data = head or self._blob.read(size)
        self.count += len(data)
        return data


def _plain(source: _Joined) -> Iterator[bytes]:
    while chunk := source.read(PIECE):
        yield chunk


def _gunzip(source: _Joined) -> Iterator[bytes]:
    """Yield the content of all gzip members (RFC 1952 allows several)."""
    out, pending = 0, source.read(CHUNK)
    while pending:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if not pending:
                pending = source.read(CHUNK)
                if not pending:
                    raise UnsafeArchive("layer: expected the end of its gzip stream, got a truncated one")
            try:
                piece = member.decompress(pending, PIECE)
            except zlib.error as error:
                raise UnsafeArchive(f"layer: expected gzip, got an error: {error}") from None
            pending = member.unconsumed_tail
            out += len(piece)
            _check_ratio(out, source.count)
            if piece:
                yield piece
        pending = member.unused_data or source.read(CHUNK)
        while pending and len(pending) < 2 and (more := source.read(CHUNK)):
            pending += more
        if pending and not pending.startswith(_GZIP):
            raise UnsafeArchive("layer: expected nothing behind its gzip stream, got more bytes")


def _unzstd(source: _Joined) -> Iterator[bytes]:
    """Yield the content of all zstd frames, skippable ones passed over (RFC 8878)."""
    import zstandard  # loaded only for the few images that need it

    out = 0
    raw: Any = source
    reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX).stream_reader(
        raw, read_size=CHUNK, read_across_frames=True)
    while True:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise UnsafeArchive(f"layer: expected zstd, got an error: {error}") from None
        if not piece:
            return
        out += len(piece)
        _check_ratio(out, source.count)
        yield piece


def _check_ratio(out: int, consumed: int) -> None:
    if out > BOMB_FREE and out > BOMB_RATIO * consumed:
        raise UnsafeArchive(f"layer: expected at most {BOMB_RATIO} bytes from each compressed byte, got {out} from "
                            f"{consumed}: a decompression bomb")


def _read_exactly(blob: ByteSource, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := blob.read(size - len(data))):
        data += more
    return data
