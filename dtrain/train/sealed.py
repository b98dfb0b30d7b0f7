"""A train as it stands in the image: encrypted, and nothing of it believed yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtrain.crypto.cbc import is_sealed_size
from dtrain.errors import DigestMismatch, MalformedInput, UnsafeArchive, VerificationFailed
from dtrain.oci.layer import Entry, Kind
from dtrain.oci.tree import Tree
from dtrain.train import paths
from dtrain.train.config import CONFIG_MAX, TrainConfig, parse_train_config


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTrain:
    """The parts of an encrypted train, found in the merged ``/opt`` of an image.

    ``code`` and ``results`` map paths relative to their folder to entries; results are in the order of the walk,
    folders included.
    """

    config: TrainConfig
    raw_config: bytes = field(repr=False)
    """The document as it stands in the image."""
    tree: Tree = field(repr=False)
    code: Mapping[str, Entry] = field(repr=False)
    query: Entry | None = field(repr=False)
    results: Mapping[str, Entry] = field(repr=False)

    @property
    def result_files(self) -> Mapping[str, Entry]:
        """The result files without the folders."""
        return {path: entry for path, entry in self.results.items() if entry.kind is Kind.FILE}


def read_train(tree: Tree) -> SealedTrain:
    """Return the train that the merged tree holds.

    Raises:
        UnsafeArchive: a link or special file inside the train.
        MalformedInput: no train, or a train_config.json that is none.
    """
    code = _files_below(tree, paths.CODE)
    query = code.pop(paths.QUERY, None)
    raw = _read_config(tree)
    return SealedTrain(
        config=parse_train_config(raw),
        raw_config=raw,
        tree=tree,
        code={path: entry for path, entry in code.items() if entry.kind is Kind.FILE},
        query=query,
        results=_files_below(tree, paths.RESULTS),
    )


def _read_config(tree: Tree) -> bytes:
    entry = tree.get(paths.CONFIG)
    if entry is None:
        raise MalformedInput(f"image: expected /{paths.CONFIG}, got none", hint="this image is not a train")
    if entry.kind is not Kind.FILE:
        raise UnsafeArchive(f"/{paths.CONFIG}: expected a regular file, got a {entry.kind.name.lower()}")
    if entry.size > CONFIG_MAX:
        raise MalformedInput(f"/{paths.CONFIG}: expected at most {CONFIG_MAX} bytes, got {entry.size}")
    with tree.read(entry) as stream:
        return stream.read()


def _files_below(tree: Tree, folder: str) -> dict[str, Entry]:
    top = tree.get(folder)
    if top is not None and top.kind is not Kind.DIRECTORY:
        raise UnsafeArchive(f"/{folder}: expected a folder, got a {top.kind.name.lower()}")
    found = {}
    for entry in tree.walk(folder):
        if entry.kind not in (Kind.FILE, Kind.DIRECTORY):
            raise UnsafeArchive(f"/{entry.path}: expected a regular file or a folder, got a {entry.kind.name.lower()}",
                                hint="links and special files are neither encrypted nor signed; do not run this train")
        found[entry.path[len(folder) + 1:]] = entry
    return found


def listed_files(config: TrainConfig) -> tuple[str, ...]:
    """Return ``file_list`` in its order, without the ``./`` that one entry may start with (PHT interop 7.2).

    Raises:
        VerificationFailed: a name twice, or the query among the files.
    """
    names = tuple(name.removeprefix("./") for name in config.file_list)
    if len(set(names)) != len(names):
        raise VerificationFailed("file_list: expected each file once, got one twice")
    if paths.QUERY in names:
        raise VerificationFailed(f"file_list: expected no {paths.QUERY} in it, got one",
                                 hint="the query is signed apart from the files; do not run this train")
    if not names:
        raise VerificationFailed("file_list: expected at least one file, got none")
    return names


def check_files(sealed: SealedTrain, *, done: int) -> None:
    """Check that exactly the listed files are there, and that all can be encrypted ones.

    Args:
        sealed: the train.
        done: how many stops have run; before the first there are no results (W05).

    Raises:
        VerificationFailed: files missing or too many.
        DigestMismatch: the size of a file is none that an encrypted file has.
    """
    listed, present = set(listed_files(sealed.config)), set(sealed.code)
    if listed != present:
        raise VerificationFailed(
            f"/{paths.CODE}: expected the {len(listed)} files of file_list, got "
            + "; ".join(f"{word} {_some(names)}" for word, names in
                        (("missing", listed - present), ("unlisted", present - listed)) if names),
            hint="someone added, removed or renamed files; do not run this train",
        )
    if not done and sealed.result_files:
        raise VerificationFailed(f"/{paths.RESULTS}: expected no files before the first stop has run, got "
                                 f"{_some(set(sealed.result_files))}")
    query = {paths.QUERY: sealed.query} if sealed.query is not None else {}
    for folder, entries in ((paths.CODE, {**sealed.code, **query}), (paths.RESULTS, sealed.result_files)):
        for path, entry in entries.items():
            if entry.kind is not Kind.FILE:
                raise UnsafeArchive(f"/{folder}/{path}: expected a regular file, got a {entry.kind.name.lower()}")
            if not is_sealed_size(entry.size):
                raise DigestMismatch(f"/{folder}/{path}: expected an encrypted file, got {entry.size} bytes")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(repr(name) for name in first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
