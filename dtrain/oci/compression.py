"""Layer blobs in the clear: gzip, zstd or plain tar, told by their first bytes (image-spec: layer.md, media types).

Memory is bounded whatever the sender claims: at most a piece of either side is held at a time, and the zstd window is
capped. What a blob may expand to is bounded as well: see :data:`BOMB_RATIO`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from dtrain.errors import MalformedInput, UnsafeArchive
from dtrain.oci import media_types
from dtrain.oci.verified import CHUNK, ByteSource

BOMB_FREE = 64 * 2**20  # bytes that may come out whatever went in
BOMB_RATIO = 200  # beyond that, bytes out for each byte in; layers of programs and data stay below 20
ZSTD_WINDOW_MAX = 32 * 2**20  # bytes; the highest ordinary level, 19, uses 8 MiB

_GZIP_FEED = 2**15  # bytes; zlib copies what a member left over, so that a feed of tiny members costs its square
_STATED = {
    media_types.OCI_LAYER: "tar",
    media_types.OCI_LAYER_GZIP: "gzip",
    media_types.OCI_LAYER_ZSTD: "zstd",
    media_types.DOCKER_LAYER: "tar",
    media_types.DOCKER_LAYER_GZIP: "gzip",
    media_types.DOCKER_LAYER + ".zstd": "zstd",
}
_FOREIGN = (media_types.DOCKER_FOREIGN_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar")

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # behind a first byte of 0x50 to 0x5f (RFC 8878 3.1.2)
_ZSTD_DICTIONARY_FIELD = (0, 1, 2, 4)  # bytes, by flag
_ZSTD_SIZE_FIELD = (0, 2, 4, 8)  # bytes, by flag; one where a single segment states no other
_ZSTD_RLE, _ZSTD_RESERVED = 1, 3  # block types


class ExactReader:
    """Reads exact numbers of bytes from a source that gives as many as it likes."""

    __slots__ = ("_at", "_buffer", "_source", "consumed")

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = b""
        self._at = 0
        self.consumed = 0
        """Bytes given out so far."""

    def some(self, limit: int) -> bytes:
        """Return at least one and at most ``limit`` bytes, or nothing at the end."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._source.read(CHUNK), 0
        start, self._at = self._at, min(self._at + limit, len(self._buffer))
        self.consumed += self._at - start
        if start == 0 and self._at == len(self._buffer):
            return self._buffer
        return self._buffer[start:self._at]

    def up_to(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        data = self.some(size)
        if len(data) == size or not data:
            return data
        parts, got = [data], len(data)
        while got < size and (data := self.some(size - got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def exactly(self, size: int, what: str) -> bytes:
        """Return ``size`` bytes of ``what``.

        Raises:
            UnsafeArchive: the end comes first.
        """
        data = self.up_to(size) if size else b""
        if len(data) != size:
            raise UnsafeArchive(f"layer: expected {size} bytes of {what}, got {len(data)}: it was cut off")
        return data

    def peek(self, size: int) -> bytes:
        """Return the next ``size`` bytes without passing them, fewer only at the end."""
        while len(self._buffer) - self._at < size and (more := self._source.read(CHUNK)):
            self._buffer, self._at = self._buffer[self._at:] + more, 0
        return self._buffer[self._at:self._at + size]


class LayerStream:
    """The uncompressed bytes of a blob; whoever reads to their end has read the blob to its end."""

    def __init__(self, pieces: Iterator[bytes], blob: ByteSource) -> None:
        self._pieces = pieces
        self._blob = blob
        self._rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """Return at least one and at most ``size`` bytes, all by default; nothing at the end.

        Raises:
            UnsafeArchive: the compressed form is broken, cut off, followed by something else, or a bomb.
        """
        if size < 0:
            rest, self._rest = self._rest, memoryview(b"")
            return b"".join([rest, *self._pieces])
        if not self._rest:
            piece = next(self._pieces, b"")
            if len(piece) <= size:
                return piece
            self._rest = memoryview(piece)
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)

    def close(self) -> None:
        """Close the blob."""
        self._blob.close()


def open_layer_stream(blob: ByteSource, media_type: str) -> LayerStream:
    """Return the uncompressed bytes of ``blob``.

    Raises:
        MalformedInput: the media type is not a layer's.
        UnsafeArchive: the content is not of the form that the media type states, or is kept elsewhere.
    """
    if media_type.startswith(_FOREIGN):
        raise UnsafeArchive(f"layer: expected one that the registry keeps, got the media type {media_type}",
                            hint="push the image with its foreign layers included")
    stated = _STATED.get(media_type)
    if stated is None:
        raise MalformedInput(f"layer: expected the media type of a tar, gzip or zstd layer, got {media_type[:80]!r}")
    feed = ExactReader(blob)
    found = _form(feed.peek(4))
    if found != stated:
        raise UnsafeArchive(f"layer: expected {stated} as its media type states, got {found}")
    return LayerStream(_READERS[found](feed), blob)


def _form(head: bytes) -> str:
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head == _ZSTD or _is_skippable(head) else "tar"


def _is_skippable(magic: bytes) -> bool:
    return magic[1:] == _SKIPPABLE and 0x50 <= magic[0] <= 0x5F


def _plain(feed: ExactReader) -> Iterator[bytes]:
    while piece := feed.some(CHUNK):
        yield piece


def _gunzip(feed: ExactReader) -> Iterator[bytes]:
    """Yield the content of all gzip members (RFC 1952 2.2 allows several)."""
    out, pending = 0, feed.some(_GZIP_FEED)
    while pending:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            pending = pending or feed.some(_GZIP_FEED)
            if not pending:
                raise UnsafeArchive("layer: expected the end of its gzip stream, got none: it was cut off")
            try:
                piece = member.decompress(pending, CHUNK)
            except zlib.error as error:
                raise UnsafeArchive(f"layer: expected gzip, got an error: {error}") from None
            pending = member.unconsumed_tail
            if piece:
                out += len(piece)
                _check_ratio(out, feed.consumed - len(pending) - len(member.unused_data))
                yield piece
        pending = member.unused_data
        while len(pending) < len(_GZIP) and (more := feed.some(_GZIP_FEED)):  # the next magic may be split
            pending += more
        if pending and not pending.startswith(_GZIP):
            raise UnsafeArchive("layer: expected nothing behind its gzip stream, got more bytes")


def _unzstd(feed: ExactReader) -> Iterator[bytes]:
    """Yield the content of all zstd frames (RFC 8878).

    The blocks of a frame are told apart here and decompressed one by one: the library's own readers either hold all
    that a chunk of input expands to, or take a stream that was cut off for one that has ended.
    """
    from zstandard import ZstdDecompressor, ZstdError  # loaded only for the few images that need it

    out = 0
    decompressor = ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    while magic := feed.up_to(4):
        if _is_skippable(magic):
            _pass_over(feed, int.from_bytes(feed.exactly(4, "a zstd frame"), "little"))
            continue
        if magic != _ZSTD:
            raise UnsafeArchive("layer: expected nothing behind its zstd frames, got more bytes")
        frame = decompressor.decompressobj()
        try:
            for block in _zstd_blocks(feed):
                piece = frame.decompress(block)
                out += len(piece)
                _check_ratio(out, feed.consumed)
                if piece:
                    yield piece
        except ZstdError as error:
            raise UnsafeArchive(f"layer: expected zstd, got an error: {error}") from None
        if not frame.eof:
            raise UnsafeArchive("layer: expected the end of a zstd frame, got none")


def _zstd_blocks(feed: ExactReader) -> Iterator[bytes]:
    """Yield what follows a frame's magic, in parts that each expand to at most 128 KiB (RFC 8878 3.1.1)."""
    flags = feed.exactly(1, "a zstd frame")
    single_segment, checksum = flags[0] & 0x20, flags[0] & 0x04
    size_field = _ZSTD_SIZE_FIELD[flags[0] >> 6] or (1 if single_segment else 0)
    fields = (0 if single_segment else 1) + _ZSTD_DICTIONARY_FIELD[flags[0] & 3] + size_field
    yield _ZSTD + flags + feed.exactly(fields, "a zstd frame")
    last = False
    while not last:
        head = feed.exactly(3, "a zstd block")
        value = int.from_bytes(head, "little")
        last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
        if kind == _ZSTD_RESERVED:
            raise UnsafeArchive("layer: expected a zstd block, got one of the reserved type")
        yield head + feed.exactly(1 if kind == _ZSTD_RLE else size, "a zstd block")
    if checksum:
        yield feed.exactly(4, "a zstd checksum")


def _pass_over(feed: ExactReader, size: int) -> None:
    while size:
        passed = len(feed.some(size))
        if not passed:
            raise UnsafeArchive("layer: expected the end of a zstd frame, got none: it was cut off")
        size -= passed


_READERS = {"tar": _plain, "gzip": _gunzip, "zstd": _unzstd}


def _check_ratio(out: int, consumed: int) -> None:
    if out > BOMB_FREE and out > BOMB_RATIO * consumed:
        raise UnsafeArchive(f"layer: expected at most {BOMB_RATIO} bytes from each compressed byte, got {out} from "
                            f"{consumed}: a decompression bomb")
