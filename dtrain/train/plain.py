"""Plaintext on its way in or out: files and folders as a stream of entries, never as one piece of memory.

A results folder is read in the order in which train_lib hashes it: depth first, the entries of each folder in byte
order of their names (PHT interop 7.8). What is no regular file is refused with its name (W14): a link would leave the
station in clear, or carry the station's own files out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.errors import MalformedInput, StorageProblem, UnsafeArchive

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 2**20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFile:
    """One file: its path relative to the folder it belongs to, and its bytes each time they are asked for."""

    path: str
    size: int
    mode: int
    chunks: Callable[[], Iterable[bytes]] = field(repr=False, compare=False)

    def sha256(self) -> str:
        """Return the hex sha256 of the content, which is read once."""
        own = hashlib.sha256()
        for chunk in self.chunks():
            own.update(chunk)
        return own.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFolder:
    """One folder below the one it belongs to."""

    path: str
    mode: int


PlainEntry = PlainFile | PlainFolder


def hashed(chunks: Iterable[bytes], *hashes: _Hash) -> Iterator[bytes]:
    """Yield ``chunks`` while feeding them to ``hashes``."""
    for chunk in chunks:
        for one in hashes:
            one.update(chunk)
        yield chunk


def from_bytes(path: str, data: bytes, *, mode: int = 0o644) -> PlainFile:
    """Return a file of the bytes ``data``."""
    return PlainFile(path=path, size=len(data), mode=mode, chunks=lambda: (data,))


def read_folder(folder: Path) -> Iterator[PlainEntry]:
    """Yield what is below ``folder``, in the order of the walk.

    Raises:
        UnsafeArchive: a link, device, pipe or socket.
        MalformedInput: a name that an image layer cannot carry.
        StorageProblem: it cannot be read.
    """
    yield from _walk(folder, "")


def _walk(folder: Path, prefix: str) -> Iterator[PlainEntry]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise StorageProblem(f"{folder}: expected a readable folder, got: {error.strerror}") from None
    for entry in entries:
        path = prefix + entry.name
        _check_name(entry.name, path)
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield PlainFolder(path=path, mode=stat.S_IMODE(status.st_mode) & 0o777)
            yield from _walk(folder / entry.name, path + "/")
        elif stat.S_ISREG(status.st_mode):
            yield PlainFile(path=path, size=status.st_size, mode=stat.S_IMODE(status.st_mode) & 0o777,
                            chunks=lambda file=folder / entry.name, size=status.st_size:  # type: ignore[misc]
                            _read_file(file, size))
        else:
            raise UnsafeArchive(f"{path}: expected a regular file or a folder, got {_kind(status.st_mode)}",
                                hint="remove it, or let the algorithm write a copy of the file instead")


def _read_file(file: Path, size: int) -> Iterator[bytes]:
    """Yield the bytes of a regular file that has to keep the size it was listed with."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise StorageProblem(f"{file}: expected a readable file, got: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafeArchive(f"{file}: expected a regular file, got something else in its place")
        left = size
        while chunk := stream.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise StorageProblem(f"{file}: expected {size} bytes, got another size: it changed while it was read",
                             hint="make sure that the algorithm has ended, then try again")


def _check_name(name: str, path: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedInput(f"{path!r}: expected a file name in UTF-8, got other bytes") from None
    if name.startswith(".wh.") or "\\" in name:
        raise MalformedInput(f"{path!r}: expected a name that an image layer can carry, got one with "
                             f"{'a backslash' if chr(92) in name else 'the prefix .wh.'}", hint="rename the file")
    if len(name.encode()) > 255 or len(path.encode()) > 4000:
        raise MalformedInput(f"{path[:80]!r}…: expected a shorter path")


def _kind(mode: int) -> str:
    for test, name in ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")):
        if test(mode):
            return name
    return "a device"
