"""Writing a layer: a plain tar whose bytes depend on its members alone (image-spec: layer.md).

Ustar, with a PAX header only where a name or size needs one; owner 0:0, no user names, one modification time.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable
from typing import BinaryIO

from dtrain.oci.digest import Digest

_BLOCK = 512  # bytes


class LayerWriter:
    """Writes members to ``out`` in the order of the calls, hashing on the way.

    Args:
        out: where the tar goes.
        mtime: seconds since 1970 for every member.
    """

    def __init__(self, out: BinaryIO, *, mtime: int) -> None:
        self._out = out
        self._mtime = mtime
        self._hash = hashlib.sha256()
        self._size = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Write a folder."""
        self._header(path, tarfile.DIRTYPE, 0, mode)

    def opaque(self, directory: str) -> None:
        """Write the marker that hides what lower layers have below ``directory`` (image-spec: opaque whiteout)."""
        self._header(f"{directory}/.wh..wh..opq", tarfile.REGTYPE, 0, 0o644)

    def file(self, path: str, chunks: Iterable[bytes], *, size: int, mode: int = 0o644) -> None:
        """Write a file of ``size`` bytes.

        Raises:
            RuntimeError: the chunks add up to another size.
        """
        self._header(path, tarfile.REGTYPE, size, mode)
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            self._write(chunk)
        if left:
            raise RuntimeError(f"{path}: expected {size} bytes, got {'more' if left < 0 else size - left}")
        self._write(b"\0" * (-size % _BLOCK))

    def finish(self) -> tuple[Digest, int]:
        """End the tar; return the sha256 of all bytes and their number."""
        self._write(b"\0" * 2 * _BLOCK)
        return Digest("sha256", self._hash.hexdigest()), self._size

    def _header(self, path: str, kind: bytes, size: int, mode: int) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.size, member.mode, member.mtime = kind, size, mode, self._mtime
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._out.write(view):]
        self._hash.update(data)
        self._size += len(data)
