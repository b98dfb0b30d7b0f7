"""Reading a layer tar from an untrusted stream (image-spec: layer.md), keeping only what is wanted.

``tarfile`` decodes each header. The walk over them is ours, because its stream reader takes extended headers of any
size into memory, ends silently at a header that it does not understand, and keeps every member. Where tar readers
disagree, this one does as Go's ``archive/tar``, which the container runtimes share, or refuses.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import BinaryIO

from dtrain.errors import UnsafeArchive
from dtrain.oci.compression import open_layer_stream
from dtrain.oci.digest import Digest
from dtrain.oci.verified import VerifiedReader

PAX_MAX = 2**20  # bytes of one extended header
LONG_NAME_MAX = 2**16  # bytes of one GNU long name
PATH_MAX, COMPONENT_MAX = 4096, 255  # bytes; what Linux accepts
_BLOCK = 512  # bytes
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    DEVICE = "device"
    FIFO = "pipe"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque whiteout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of a layer.

    ``path`` has no leading or trailing slash; of a whiteout it is the hidden path, of an opaque marker the folder
    whose lower content is hidden. ``link`` is a link's target. A kept file's bytes stand in ``spool`` at ``offset``.
    """

    path: str
    kind: Kind
    mode: int = 0o644
    size: int = 0
    link: str = ""
    offset: int = -1
    spool: BinaryIO | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerContents:
    """What a layer was found to hold: its wanted entries in archive order, and the first path that was not wanted."""

    diff_id: Digest
    entries: tuple[Entry, ...]
    first_other: str | None


def read_layer(
    blob: VerifiedReader, media_type: str, *, wanted: Callable[[str], bool], spool: BinaryIO
) -> LayerContents:
    """Return the wanted entries of the layer in ``blob``, reading and verifying it to its end.

    Args:
        blob: the layer, compressed or not.
        media_type: of the blob.
        wanted: says of a path whether its entry matters.
        spool: bytes of wanted regular files are appended to it.

    Raises:
        UnsafeArchive: a wanted entry that must not be unpacked, or a tar that two readers could read differently.
        DigestMismatch: the blob is not what its descriptor says.
    """
    tar = _Tar(open_layer_stream(blob, media_type))
    entries, first_other, offset = [], None, spool.seek(0, 2)
    while (member := tar.next_member()) is not None:
        path = _path(member.name, wanted)
        if path is None or not _is_wanted(path, wanted):
            if first_other is None:
                first_other = member.name[:PATH_MAX]
            tar.skip(member.size)
            continue
        entry = _entry(path, member)
        if entry is None:
            tar.skip(member.size)
            continue
        if entry.kind is Kind.FILE:
            entry = replace(entry, spool=spool, offset=offset)
            tar.copy(member.size, spool)
            offset += member.size
        else:
            tar.skip(member.size)
        entries.append(entry)
    tar.finish()
    blob.verify()
    spool.flush()  # readers go past the buffer
    return LayerContents(diff_id=tar.digest(), entries=tuple(entries), first_other=first_other)


def _is_wanted(path: str, wanted: Callable[[str], bool]) -> bool:
    """Say whether the entry matters: of a whiteout, what it hides does."""
    folder, _, name = path.rpartition("/")
    if name == _OPAQUE:
        return wanted(folder)
    if name.startswith(_WHITEOUT):
        return wanted(f"{folder}/{name[len(_WHITEOUT):]}" if folder else name[len(_WHITEOUT):])
    return wanted(path)


def _path(name: str, wanted: Callable[[str], bool]) -> str | None:
    """Return ``name`` as every runtime reads it; ``None`` for one that climbs and is not wanted wherever it ends."""
    path = _normal(name)
    if path is None and _is_wanted(posixpath.normpath("/" + name).lstrip("/"), wanted):
        raise UnsafeArchive(f"{name[:80]!r}: expected a plain name for a path of the train, got one with ..")
    return path


def _normal(name: str) -> str | None:
    """Return ``name`` without empty and ``.`` components, or ``None`` when it holds ``..``."""
    path = "/".join(part for part in name.split("/") if part not in ("", "."))
    return None if ".." in path.split("/") else path


def _entry(path: str, member: tarfile.TarInfo) -> Entry | None:
    """Return the entry of a wanted member; ``None`` for a union file system's own bookkeeping."""
    _check_name(member.name, path)
    folder, _, name = path.rpartition("/")
    if name == _OPAQUE:
        return Entry(path=folder, kind=Kind.OPAQUE)
    if name.startswith(_WHITEOUT + _WHITEOUT):
        return None
    if name.startswith(_WHITEOUT):
        hidden = name[len(_WHITEOUT):]
        return Entry(path=f"{folder}/{hidden}" if folder else hidden, kind=Kind.WHITEOUT)
    kinds = {
        tarfile.REGTYPE: Kind.FILE, tarfile.AREGTYPE: Kind.FILE,
        tarfile.DIRTYPE: Kind.DIRECTORY, tarfile.SYMTYPE: Kind.SYMLINK, tarfile.LNKTYPE: Kind.HARDLINK,
        tarfile.CHRTYPE: Kind.DEVICE, tarfile.BLKTYPE: Kind.DEVICE, tarfile.FIFOTYPE: Kind.FIFO,
    }
    kind = kinds.get(member.type)
    if kind is None:
        raise UnsafeArchive(f"{path}: expected a file or folder, got the member type {member.type!r}")
    if kind is Kind.FILE and member.name.endswith("/"):
        raise UnsafeArchive(f"{path}: expected a name without a slash at its end for a file, got one with it")
    if kind is not Kind.FILE and member.size:
        raise UnsafeArchive(f"{path}: expected no content for a {kind.value}, got {member.size} bytes")
    link = member.linkname
    if kind is Kind.HARDLINK:
        target = _normal(link)
        if target is None:
            raise UnsafeArchive(f"{path}: expected a hard link inside the image, got one to {link!r}")
        link = target
    return Entry(path=path, kind=kind, mode=member.mode & 0o7777, size=member.size, link=link)


def _check_name(name: str, path: str) -> None:
    problem = None
    if "\0" in name or "\\" in name:
        problem = "a NUL byte or backslash"
    elif any("\udc80" <= char <= "\udcff" for char in name):
        problem = "bytes that are not UTF-8"
    elif len(path.encode("utf-8", "surrogateescape")) > PATH_MAX:
        problem = f"more than {PATH_MAX} bytes"
    elif any(len(part.encode("utf-8", "surrogateescape")) > COMPONENT_MAX for part in path.split("/")):
        problem = f"a component of more than {COMPONENT_MAX} bytes"
    if problem:
        raise UnsafeArchive(f"{path[:80]!r}: expected a plain name, got one with {problem}")


class _Tar:
    """The members of a tar stream, one after the other, hashed on the way."""

    def __init__(self, stream: object) -> None:
        self._read_some = stream.read  # type: ignore[attr-defined]
        self._hash = hashlib.sha256()
        self._buffer = memoryview(b"")

    def digest(self) -> Digest:
        """Return the sha256 of the uncompressed tar."""
        return Digest("sha256", self._hash.hexdigest())

    def next_member(self) -> tarfile.TarInfo | None:
        """Return the next member with its extended headers applied, or ``None`` at the end.

        Readers disagree on several extended headers of one kind, on PAX against GNU names, and on global names; a
        train must not be one thing here and another in the runtime, so all of that is refused.
        """
        extended: dict[str, str] | None = None
        long_name = long_link = None
        while True:
            member = self._header()
            pending = extended is not None or long_name is not None or long_link is not None
            if member is None:
                if pending:
                    raise UnsafeArchive("layer: expected a member behind its extended header, got the end")
                return None
            if member.type == tarfile.XHDTYPE and extended is None:
                extended = self._pax(member)
            elif member.type == tarfile.GNUTYPE_LONGNAME and long_name is None:
                long_name = self._long(member)
            elif member.type == tarfile.GNUTYPE_LONGLINK and long_link is None:
                long_link = self._long(member)
            elif member.type == tarfile.XGLTYPE and not pending:
                _refuse(self._pax(member), "a global extended header", "path", "linkpath", "size")
            elif member.type in _EXTENDED:
                raise UnsafeArchive("layer: expected one extended header of a kind before a member, got another one")
            else:
                break
        headers = {key: value for key, value in (extended or {}).items() if value}
        _refuse(headers, "an extended header beside a GNU name", *(["path"] if long_name is not None else []),
                *(["linkpath"] if long_link is not None else []))
        member.name = headers.get("path") or long_name or member.name
        member.linkname = headers.get("linkpath") or long_link or member.linkname
        if "size" in headers:
            member.size = _pax_size(headers["size"])
        if member.type == tarfile.AREGTYPE and member.name.endswith("/"):
            member.type = tarfile.DIRTYPE  # the oldest format has no folders of their own
        if member.type in _WITHOUT_CONTENT:
            member.size = 0
        return member

    def skip(self, size: int) -> None:
        """Pass over the content of a member."""
        self._content(size, None)

    def copy(self, size: int, out: BinaryIO) -> None:
        """Append the content of a member to ``out``."""
        self._content(size, out)

    def finish(self) -> None:
        """Check that nothing but zero bytes follows the end."""
        while self._fill():
            if any(self._buffer):
                raise UnsafeArchive("layer: expected nothing behind the end of the tar, got more bytes")
            self._buffer = memoryview(b"")

    def _header(self) -> tarfile.TarInfo | None:
        if not self._fill():
            return None  # the two zero blocks are missing, which every reader accepts
        block = self._take(_BLOCK)
        if not any(block):
            if self._fill() and any(self._take(_BLOCK)):
                raise UnsafeArchive("layer: expected two zero blocks at the end of the tar, got one")
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise UnsafeArchive(f"layer: expected a tar header, got an error: {error}") from None
        member.type, member.name = block[156:157], _header_name(block)  # tarfile guesses where runtimes do not
        if member.size < 0:
            raise UnsafeArchive(f"{member.name[:80]!r}: expected a size, got {member.size}")
        if member.type == tarfile.GNUTYPE_SPARSE:
            more = block[482]
            while more:  # the map of an old GNU sparse file goes on in blocks of its own
                more = self._take(_BLOCK)[504]
        return member

    def _pax(self, member: tarfile.TarInfo) -> dict[str, str]:
        """Return the records of an extended header (POSIX pax)."""
        raw, records, start = self._payload(member, PAX_MAX), {}, 0
        while start < len(raw):
            space = raw.find(b" ", start, start + 20)
            length = raw[start:space]
            if space < 0 or not length.isdigit() or int(length) <= space + 1 - start:
                raise UnsafeArchive("layer: expected records in an extended header, got something else")
            end = start + int(length)
            key, equals, value = raw[space + 1:end - 1].partition(b"=")
            if end > len(raw) or raw[end - 1:end] != b"\n" or not equals:
                raise UnsafeArchive("layer: expected records in an extended header, got a broken one")
            records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
            start = end
        _refuse(records, "an extended header", *(key for key in records if key.startswith("GNU.sparse")))
        if any("\0" in records.get(key, "") for key in ("path", "linkpath")):
            raise UnsafeArchive("layer: expected a name in an extended header, got one with a NUL byte")
        return records

    def _long(self, member: tarfile.TarInfo) -> str:
        return self._payload(member, LONG_NAME_MAX).partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def _payload(self, member: tarfile.TarInfo, limit: int) -> bytes:
        if member.size > limit:
            raise UnsafeArchive(f"layer: expected an extended header of at most {limit} bytes, got {member.size}")
        raw = self._take(member.size)
        self._take(-member.size % _BLOCK)
        return raw

    def _content(self, size: int, out: BinaryIO | None) -> None:
        left = size
        while left:
            if not self._fill():
                raise UnsafeArchive("layer: expected the content of a member, got the end of the tar")
            part, self._buffer = self._buffer[:left], self._buffer[left:]
            if out is not None:
                out.write(part)
            left -= len(part)
        self._take(-size % _BLOCK)

    def _take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        if len(self._buffer) >= size:
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            return bytes(part)
        parts = []
        while size:
            if not self._fill():
                raise UnsafeArchive("layer: expected a whole tar, got a truncated one")
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            parts.append(bytes(part))
            size -= len(part)
        return b"".join(parts)

    def _fill(self) -> bool:
        """Have something in the buffer; ``False`` at the end of the stream."""
        if not self._buffer:
            data = self._read_some(2**20)
            self._hash.update(data)
            self._buffer = memoryview(data)
        return bool(self._buffer)


_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
                    tarfile.DIRTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _header_name(block: bytes) -> str:
    """Return the name that a header block itself states: only POSIX headers have a prefix, star's is shorter."""
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:476 if block[508:512] == b"tar\0" else 500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape")


def _refuse(records: dict[str, str], what: str, *keys: str) -> None:
    for key in keys:
        if key in records:
            raise UnsafeArchive(f"layer: expected no {key} in {what}, got {records[key][:80]!r}")


def _pax_size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise UnsafeArchive(f"layer: expected a size in an extended header, got {text[:40]!r}")
    return int(text)
