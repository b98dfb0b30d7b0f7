"""An OCI image layout in a folder as a :class:`~dtrain.transport.protocol.Transport` (image-spec: image-layout.md).

Below the layout's folder no symbolic link is followed. Content is written beside its place, checked, made durable and
then renamed, so half a blob is never seen under its name. ``index.json`` changes under a lock, so several processes of
dtrain lose nothing of each other; readers take no lock, and other tools know nothing of it.

Manifests without a tag get an entry without a name, and an entry that loses its tag stays: ``umoci gc`` and others
remove what no entry reaches, and a digest that was pinned has to stay good. (skopeo writes its entries so, too.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from dtrain.errors import Conflict, MalformedInput, NotFound, StorageProblem
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import MANIFEST_MAX, Index, Manifest, RawManifest
from dtrain.oci.reference import check_tag
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.oci.verified import CHUNK, ByteSource, VerifiedReader, read_verified
from dtrain.transport.protocol import Opener

REF_NAME = "org.opencontainers.image.ref.name"
INDEX_MAX = 16 * 2**20  # bytes of index.json; some 50,000 tags
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_OURS = ".dtrain"  # what the names of the files start with that only dtrain has a use for
_LOCK = _OURS + ".lock"
_PART = ".part"


class Layout:
    """An OCI image layout; threads and processes may share it. The first write creates it.

    Args:
        directory: the folder of the layout.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready = False

    def __repr__(self) -> str:
        return f"<Layout {self.place}>"

    def __enter__(self) -> Layout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open between calls."""

    @property
    def place(self) -> str:
        """``oci:DIR``, as in the reference."""
        return f"oci:{self._directory}"

    def fetch_manifest(self, selector: str | Digest) -> RawManifest:
        """Return the manifest or index that a tag or digest names, at most 4 MiB.

        Asked by digest, there is no media type but the one in the document.

        Raises:
            NotFound: there is none.
            DigestMismatch: the stored bytes are others.
            MalformedInput: several manifests have the tag, or the layout is none.
        """
        if isinstance(selector, Digest):
            return RawManifest(raw=self._manifest(selector, size=None), media_type=None, digest=selector)
        check_tag(selector)
        entry = self._tagged(selector)
        if entry is None:
            known = ", ".join(self.tags()[:10])
            raise NotFound(f"{self.place}: expected the tag {selector}, got none",
                           hint=f"tags there: {known}" if known else None)
        return RawManifest(raw=self._manifest(entry.digest, size=entry.size), media_type=entry.media_type,
                           digest=entry.digest)

    def resolve(self, tag: str) -> Digest | None:
        """Return the digest that ``tag`` names now, or ``None`` when there is no such tag or no layout yet.

        Raises:
            MalformedInput: several manifests have the tag, or the layout is none.
        """
        check_tag(tag)
        try:
            entry = self._tagged(tag)
        except NotFound:
            return None
        return None if entry is None else entry.digest

    def open_blob(self, want: Descriptor) -> VerifiedReader:
        """Return a reader of the blob that checks every byte against ``want``.

        Raises:
            NotFound: there is none.
            MalformedInput: a link or something else is in its place.
        """
        return VerifiedReader(self._open(want.digest), want)

    def has_blob(self, want: Descriptor) -> bool:
        """Return whether the blob is stored here with the right length; its bytes are checked when they are read."""
        try:
            with contextlib.closing(self._open(want.digest)) as blob:
                return blob.size == want.size
        except NotFound:
            return False

    def mount_blob(self, want: Descriptor, source: str) -> bool:
        """Return ``False``: another layout shares no blobs with this one."""
        return False

    def put_blob(self, want: Descriptor, content: Opener) -> None:
        """Store the blob, unless it is here already.

        Raises:
            DigestMismatch: ``content`` is not what ``want`` describes; nothing is stored.
            StorageProblem: the disk refuses.
        """
        self._make()
        if not self.has_blob(want):
            self._store(want, content())

    def put_manifest(self, manifest: Manifest | Index) -> None:
        """Store the manifest under its digest; no tag changes.

        Raises:
            NotFound: something that it names is not here; a registry refuses that, too.
            StorageProblem: the disk refuses.
        """
        self._put(manifest, tag=None)

    def put_tag(self, tag: str, manifest: Manifest | Index, *, replacing: Digest | None = None) -> None:
        """Store the manifest, let ``tag`` name it, and read that back; ``replacing`` is held against under a lock.

        Raises:
            Conflict: the tag names something else, before or right afterwards.
            NotFound: something that the manifest names is not here.
            StorageProblem: the disk refuses.
        """
        check_tag(tag)
        self._put(manifest, tag, replacing)
        got = self.resolve(tag)
        if got != manifest.digest:
            raise Conflict(f"{self.place}: tag {tag}: expected {manifest.digest}, got {got or 'no such tag'}",
                           hint="someone else wrote at the same moment; look at what is there now")

    def tags(self) -> tuple[str, ...]:
        """Return all tags in ascending order; other tools' names that are no tags are left out."""
        names = {_name(entry) for entry in self._index()["manifests"]}
        return tuple(sorted(name for name in names if name is not None and _is_tag(name)))

    # Reading

    def _manifest(self, digest: Digest, *, size: int | None) -> bytes:
        blob = self._open(digest)
        with contextlib.closing(blob):
            if blob.size > MANIFEST_MAX:
                raise MalformedInput(f"{self.place}: manifest {digest.short}: expected at most {MANIFEST_MAX} bytes, "
                                     f"got {blob.size}")
            want = Descriptor(media_type="", digest=digest, size=blob.size if size is None else size)
            return read_verified(blob, want)

    def _tagged(self, tag: str) -> Descriptor | None:
        """Return the descriptor that has the name ``tag``; two different ones are one too many to choose from."""
        found = {}
        for position, entry in enumerate(self._index()["manifests"]):
            if _name(entry) == tag:
                descriptor = Descriptor.parse(Fields(entry, f"{self.place}: index.json: manifests[{position}]"))
                found[descriptor.digest] = descriptor
        if len(found) > 1:
            raise MalformedInput(f"{self.place}: tag {tag}: expected one manifest, got {len(found)}",
                                 hint="ask for the digest, or put the tag again")
        return next(iter(found.values()), None)

    def _index(self) -> dict[str, Any]:
        """Return the members of index.json, of which ``manifests`` is a list of objects."""
        with self._root() as root:
            self._check_version(root)
            what = f"{self.place}: index.json"
            raw = self._small_file(root, "index.json", INDEX_MAX)
        if raw is None:
            return {"schemaVersion": 2, "manifests": []}  # killed while creating the layout
        fields = Fields(parse_json(raw, what=what), what)
        if (version := fields.required("schemaVersion", int)) != 2:
            raise MalformedInput(f"{fields.path('schemaVersion')}: expected 2, got {version}")
        entries = tuple(fields.objects("manifests"))
        for entry in entries:
            entry.string_map("annotations")
        return {**fields.raw, "manifests": [entry.raw for entry in entries]}

    def _check_version(self, root: int) -> None:
        raw = self._small_file(root, "oci-layout", 4096)
        if raw is None:
            raise self._missing()
        what = f"{self.place}: oci-layout"
        version = Fields(parse_json(raw, what=what), what).required("imageLayoutVersion", str)
        if version != "1.0.0":
            raise MalformedInput(f"{what}: imageLayoutVersion: expected 1.0.0, got {version[:40]!r}")

    def _small_file(self, root: int, name: str, limit: int) -> bytes | None:
        path = self._directory / name
        try:
            with contextlib.closing(_File(root, name, path)) as file:
                raw = file.read(min(file.size, limit) + 1)
        except FileNotFoundError:
            return None
        if len(raw) > limit:
            raise MalformedInput(f"{path}: expected at most {limit} bytes, got more")
        return raw

    def _open(self, digest: Digest) -> _File:
        try:
            with self._root() as root, self._folder(root, "blobs", digest.algorithm) as folder:
                return _File(folder, digest.hex, self._directory / "blobs" / digest.algorithm / digest.hex)
        except FileNotFoundError:
            raise NotFound(f"{self.place}: expected the content {digest}, got none") from None

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        """Open the layout's folder."""
        try:
            with _disk(self._directory, passing=(FileNotFoundError, NotADirectoryError)):
                root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing() from None
        try:
            yield root
        finally:
            os.close(root)

    def _missing(self) -> NotFound:
        return NotFound(f"{self.place}: expected an OCI image layout, got none",
                        hint="check the path: a layout is a folder that holds the files oci-layout and index.json")

    @contextlib.contextmanager
    def _folder(self, root: int, *names: str, make: bool = False) -> Iterator[int]:
        """Open a folder below ``root``, one step at a time and through no link."""
        with contextlib.ExitStack() as opened:
            path, folder = self._directory, root
            for name in names:
                path /= name
                with _disk(path, passing=() if make else (FileNotFoundError,)):
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(name, dir_fd=folder)
                            _sync_folder(folder)
                    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                opened.callback(os.close, folder)
            yield folder

    # Writing

    def _make(self) -> None:
        """Create the layout if there is none, and remove what killed processes left.

        ``oci-layout`` comes first, so that the work can be taken up after a crash at any line.
        """
        if self._ready:
            return
        try:
            with _disk(self._directory, passing=(FileExistsError, NotADirectoryError)):
                self._directory.mkdir(parents=True, exist_ok=True)
                foreign = any(not path.name.startswith(_OURS) for path in self._directory.iterdir())
                foreign = foreign and not (self._directory / "oci-layout").exists()  # in this order: others write, too
        except (FileExistsError, NotADirectoryError):
            foreign = True
        if foreign:
            raise StorageProblem(f"{self._directory}: expected an OCI image layout or an empty folder, "
                                 "got something else", hint="name a new folder")
        with self._root() as root, self._locked(root):
            self._sweep(root)
            for name, content in (("oci-layout", _VERSION), ("index.json", b'{"schemaVersion":2,"manifests":[]}')):
                if self._small_file(root, name, INDEX_MAX) is None:
                    self._replace(root, name, content)
            self._check_version(root)
            with self._folder(root, "blobs", "sha256", make=True):
                pass
        self._ready = True

    def _sweep(self, root: int) -> None:
        """Remove files of writers that live no more: nobody holds their lock."""
        for name in os.listdir(root):
            if name.startswith(_OURS) and name.endswith(_PART):
                with contextlib.suppress(OSError), open(
                    name, "rb", opener=lambda path, _: os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root)
                ) as part:
                    fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=root)

    @contextlib.contextmanager
    def _locked(self, root: int) -> Iterator[None]:
        """Keep other writers of the index, threads and processes, out."""
        with _disk(self._directory / _LOCK):
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=root)
        try:
            with _disk(self._directory / _LOCK):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _store(self, want: Descriptor, content: ByteSource) -> None:
        with VerifiedReader(content, want) as reader, self._root() as root:
            with self._locked(root):  # against _sweep, until the part has its own lock
                part = _Part(root, self._directory)
            with part:
                while data := reader.read(CHUNK):  # ends when all of it is verified
                    part.write(data)
                with self._folder(root, "blobs", want.digest.algorithm, make=True) as folder:
                    part.publish(folder, want.digest.hex)

    def _replace(self, root: int, name: str, content: bytes) -> None:
        """Write a file of the layout's own; the lock is held."""
        with _Part(root, self._directory) as part:
            part.write(content)
            part.publish(root, name)

    def _put(self, manifest: Manifest | Index, tag: str | None, replacing: Digest | None = None) -> None:
        self._make()
        self._check_complete(manifest)
        self._store(manifest.descriptor, BytesIO(manifest.raw))
        with self._root() as root, self._locked(root):
            if tag is not None and replacing is not None and self.resolve(tag) != replacing:
                raise Conflict(f"{self.place}: tag {tag}: expected it unchanged, got a new one",
                               hint="someone else wrote at the same moment; look at what is there now")
            members = self._index()
            entries = _with_entry(members["manifests"], manifest, tag)
            if entries == members["manifests"]:
                return
            raw = json.dumps({**members, "manifests": entries}, separators=(",", ":")).encode()
            if len(raw) > INDEX_MAX:
                raise StorageProblem(f"{self.place}: index.json: expected at most {INDEX_MAX} bytes, got {len(raw)}",
                                     hint="use another layout")
            self._replace(root, "index.json", raw)

    def _check_complete(self, manifest: Manifest | Index) -> None:
        """Check that everything the manifest names is here, so that what a tag shows can be read."""
        parts = manifest.manifests if isinstance(manifest, Index) else (*manifest.layers, manifest.config)
        for part in parts:
            if not self.has_blob(part):
                raise NotFound(f"{self.place}: manifest {manifest.digest.short}: expected the content {part.digest} "
                               "to be stored before it, got none")


class _File:
    """A regular file of a layout, opened without following a link."""

    def __init__(self, folder: int, name: str, path: Path) -> None:
        self._path = path
        with _disk(path, passing=(FileNotFoundError,)):
            self._file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        status = os.fstat(self._file)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise _not_plain(path)

    def read(self, size: int = -1, /) -> bytes:
        with _disk(self._path):
            return os.read(self._file, CHUNK if size < 0 else size)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class _Part:
    """A file that nobody looks at until it is published; one left without that is removed."""

    def __init__(self, root: int, directory: Path) -> None:
        self._root = root
        self._name: str | None = f"{_OURS}-{secrets.token_hex(8)}{_PART}"
        self._path = directory / self._name
        with _disk(self._path):
            self._file = os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=root)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, data: bytes) -> None:
        with _disk(self._path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view):]

    def publish(self, folder: int, name: str) -> None:
        """Make the content durable, then visible under its name."""
        if self._name is None:
            raise RuntimeError("published already")
        with _disk(self._path):
            os.fsync(self._file)
            os.replace(self._name, name, src_dir_fd=self._root, dst_dir_fd=folder)
            self._name = None
            _sync_folder(folder)

    def __enter__(self) -> _Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._name is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._root)
        os.close(self._file)


@contextlib.contextmanager
def _disk(path: Path, *, passing: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Let refusals of the operating system speak of ``path``, but for those that the caller understands."""
    try:
        yield
    except passing:
        raise
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise _not_plain(path) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageProblem(f"{path}: expected to read and write there, got: {error.strerror}",
                             hint="make room, then run the same command again" if full else None) from error


_NOT_PLAIN = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # of open(2) with O_NOFOLLOW: a link, no folder, a socket


def _not_plain(path: Path) -> MalformedInput:
    return MalformedInput(f"{path}: expected a plain file or folder, got a link or something else",
                          hint="an OCI image layout that came from elsewhere may be hostile; do not use it")


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise


def _is_tag(name: str) -> bool:
    try:
        check_tag(name)
    except MalformedInput:
        return False
    return True


# Entries of index.json, as plain JSON so that members which nobody here knows stay


def _name(entry: Mapping[str, Any]) -> str | None:
    return (entry.get("annotations") or {}).get(REF_NAME)


def _is_bare(entry: Mapping[str, Any]) -> bool:
    """Whether the entry does nothing but reach a manifest."""
    return entry.keys() == {"mediaType", "digest", "size"}


def _without_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in entry["annotations"].items() if name != REF_NAME}
    bare = {name: value for name, value in entry.items() if name != "annotations"}
    return {**bare, "annotations": rest} if rest else bare


def _with_entry(
    entries: Sequence[Mapping[str, Any]], manifest: Manifest | Index, tag: str | None
) -> list[Mapping[str, Any]]:
    """Return the entries after ``manifest`` came, under the name ``tag`` or none.

    Bare entries go when another one reaches the same manifest now.
    """
    new = manifest.descriptor.to_json()
    concerned = {new["digest"]}
    if tag is not None:
        new["annotations"] = {REF_NAME: tag}
        named = [entry for entry in entries if _name(entry) == tag]
        if [{**entry, "annotations": new["annotations"]} for entry in named] != [new]:
            concerned |= {entry.get("digest") for entry in named}
            entries = [_without_name(entry) if _name(entry) == tag else entry for entry in entries] + [new]
    elif all(entry.get("digest") != new["digest"] for entry in entries):
        entries = [*entries, new]
    reached = {str(child.digest) for child in manifest.manifests} if isinstance(manifest, Index) else set()
    held = {entry.get("digest") for entry in entries if not _is_bare(entry)} & concerned | reached
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        if not _is_bare(entry) or entry["digest"] not in held:
            kept.append(entry)
            if entry.get("digest") in concerned and _is_bare(entry):
                held.add(entry["digest"])  # once is enough
    return kept
