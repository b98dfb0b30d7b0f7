"""The files that a stack of layers adds up to (image-spec: layer.md, "Applying changesets").

Only kept entries take part: the tree is of the paths that were wanted when the layers were read, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from dtrain.errors import UnsafeArchive
from dtrain.oci.layer import Entry, Kind, LayerContents


class EntryReader:
    """The bytes of one kept file; several may be open on one spool."""

    def __init__(self, entry: Entry) -> None:
        if entry.spool is None:
            raise RuntimeError(f"{entry.path}: its bytes were not kept")
        self._spool = entry.spool
        self._position = entry.offset
        self._end = entry.offset + entry.size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that is left by default."""
        left = self._end - self._position
        size = left if size < 0 else min(size, left)
        data = _read_at(self._spool, self._position, size)
        self._position += len(data)
        return data

    def __enter__(self) -> EntryReader:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: the spool belongs to the caller."""


def _read_at(spool: BinaryIO, position: int, size: int) -> bytes:
    parts = []
    while size:
        data = os.pread(spool.fileno(), size, position)
        if not data:
            raise RuntimeError("the spool ended before its entry")
        parts.append(data)
        position += len(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Tree:
    """Entries by path: files, folders and whatever else the layers hold there."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._children: dict[str, set[str]] = {}
        for path in entries:
            while path:
                folder, _, name = path.rpartition("/")
                names = self._children.setdefault(folder, set())
                if name in names:
                    break
                names.add(name)
                path = folder

    def get(self, path: str) -> Entry | None:
        """Return the entry at ``path``; a folder that only its content implies has none."""
        return self._entries.get(path)

    def walk(self, directory: str) -> Iterator[Entry]:
        """Yield what is below ``directory``: depth first, the names of each folder in byte order, folders before their
        content. That is the order in which Docker archives a folder."""
        for name in sorted(self._children.get(directory, ()), key=lambda text: text.encode("utf-8", "surrogateescape")):
            path = f"{directory}/{name}" if directory else name
            entry = self._entries.get(path)
            yield entry or Entry(path=path, kind=Kind.DIRECTORY, mode=0o755)
            if entry is None or entry.kind is Kind.DIRECTORY:
                yield from self.walk(path)

    def read(self, entry: Entry) -> EntryReader:
        """Return a reader of a file's bytes."""
        return EntryReader(entry)


def merge(layers: Sequence[LayerContents]) -> Tree:
    """Return the tree of ``layers``, from the bottom to the top.

    Raises:
        UnsafeArchive: a path twice in one layer, content below something that is no folder, or a hard link to
            something that is no kept file.
    """
    merged: dict[str, Entry] = {}
    for layer in layers:
        _hide(merged, layer)
        _add(merged, layer)
    return Tree(merged)


def _hide(merged: dict[str, Entry], layer: LayerContents) -> None:
    """Apply the layer's whiteouts to what lies below it, wherever they stand in its tar."""
    gone = {entry.path for entry in layer.entries if entry.kind is Kind.WHITEOUT}
    for entry in layer.entries if gone else ():
        if entry.kind not in (Kind.WHITEOUT, Kind.OPAQUE) and not gone.isdisjoint((entry.path, *_folders(entry.path))):
            # image-spec: only lower layers are meant; but runtimes apply it in the order of the tar
            raise UnsafeArchive(f"/{entry.path}: expected it or its whiteout in a layer, got both")
    emptied = {entry.path for entry in layer.entries if entry.kind is Kind.OPAQUE} | gone
    if emptied:
        for path in [path for path in merged if path in gone or not emptied.isdisjoint(_folders(path))]:
            del merged[path]


def _folders(path: str) -> Iterator[str]:
    """Yield the folders above ``path``, the root (the empty path) last."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _add(merged: dict[str, Entry], layer: LayerContents) -> None:
    own: dict[str, Entry] = {}
    parents: set[str] = set()
    for entry in layer.entries:
        if entry.kind in (Kind.WHITEOUT, Kind.OPAQUE):
            continue
        before = own.get(entry.path)
        if before is not None and not (before.kind is entry.kind is Kind.DIRECTORY):
            raise UnsafeArchive(f"/{entry.path}: expected it once in a layer, got it twice")
        if entry.kind is not Kind.DIRECTORY and entry.path in parents:
            raise UnsafeArchive(f"/{entry.path}: expected a folder, got a {entry.kind.value} with content below it")
        _check_parents(entry.path, own, merged, parents)
        if entry.kind is Kind.HARDLINK:
            entry = _resolve(entry, own, merged)
        below = merged.get(entry.path)
        if below is not None and below.kind is Kind.DIRECTORY and entry.kind is not Kind.DIRECTORY:
            for path in [path for path in merged if path.startswith(entry.path + "/")]:
                del merged[path]
        own[entry.path] = merged[entry.path] = entry


def _check_parents(path: str, own: Mapping[str, Entry], merged: Mapping[str, Entry], known: set[str]) -> None:
    """Check that all above ``path`` is folders; ``known`` are those that an earlier call has checked."""
    for folder in _folders(path):
        if folder in known:
            return
        parent = own.get(folder) or merged.get(folder)
        if parent is not None and parent.kind is not Kind.DIRECTORY:
            raise UnsafeArchive(f"/{path}: expected a folder above it, got the {parent.kind.value} /{folder}")
        known.add(folder)


def _resolve(entry: Entry, own: Mapping[str, Entry], merged: Mapping[str, Entry]) -> Entry:
    """Return the hard link as the file that it is another name of."""
    target = own.get(entry.link) or merged.get(entry.link)
    if target is None or target.kind is not Kind.FILE:
        raise UnsafeArchive(f"/{entry.path}: expected a hard link to a file of the train, got one to /{entry.link}")
    return replace(target, path=entry.path)
