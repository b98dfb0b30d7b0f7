"""Reading an untrusted stream against the descriptor that named it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from dtrain.errors import DigestMismatch

if TYPE_CHECKING:
    from types import TracebackType

    from dtrain.oci.descriptor import Descriptor

CHUNK = 2**20  # bytes; larger chunks gain nothing on either side of a connection (docs/measurements)


class ByteSource(Protocol):
    """Something that bytes can be read from, once, front to back."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


class VerifiedReader(io.RawIOBase):
    """The bytes of ``source``, which have to be exactly those that ``want`` describes.

    The size is capped while reading, the digest is compared when the end is reached, and leaving a ``with`` block
    without an exception reads on to the end, so that a block left normally means: verified.

    Raises (from ``read``, ``verify`` and the end of the block):
        DigestMismatch: too long, too short, or other bytes.
    """

    def __init__(self, source: ByteSource, want: Descriptor) -> None:
        super().__init__()
        self._source = source
        self._want = want
        self._hash = want.digest.hasher()
        self._got = 0
        self._verified = False
        self._failure: DigestMismatch | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        if size is None or size < 0:
            parts = []
            while part := self.read(CHUNK):
                parts.append(part)
            return b"".join(parts)
        if self._failure is not None:
            raise self._failure  # whoever tries again gets no other answer
        try:
            return self._read(size)
        except DigestMismatch as error:
            self._failure = error
            raise

    def _read(self, size: int) -> bytes:
        if self._verified or size == 0:
            return b""
        data = self._source.read(size)
        if not data:
            self._finish()
            return b""
        self._got += len(data)
        if self._got > self._want.size:
            raise DigestMismatch(f"{self._name}: expected {self._want.size} bytes, got more")
        self._hash.update(data)
        if self._got == self._want.size:
            self._finish()
        return data

    def verify(self) -> None:
        """Read what is left and check it all."""
        while not self._verified:
            self.read(CHUNK)

    def _finish(self) -> None:
        if self._got != self._want.size:
            raise DigestMismatch(f"{self._name}: expected {self._want.size} bytes, got {self._got}")
        got = self._hash.hexdigest()
        if got != self._want.digest.hex:
            raise DigestMismatch(f"{self._name}: expected {self._want.digest}, got {self._want.digest.algorithm}:{got}",
                                 hint="the content was altered in storage or on the way; do not use it")
        if self._source.read(1):
            raise DigestMismatch(f"{self._name}: expected {self._want.size} bytes, got more")
        self._verified = True

    @property
    def _name(self) -> str:
        return f"content {self._want.digest.short}"

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def __enter__(self) -> VerifiedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.verify()
        finally:
            self.close()


def read_verified(source: ByteSource, want: Descriptor) -> bytes:
    """Return all bytes of ``source`` after checking them; for small content only."""
    with VerifiedReader(source, want) as reader:
        return reader.read()
