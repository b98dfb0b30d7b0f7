"""An OCI image layout on disk (image-spec: image-layout.md): the embedded registry, and the way across an air gap.

Content is written beside its place, hashed, synced and renamed; ``index.json`` changes as a whole, under a lock, so
that two processes lose nothing of each other. A manifest without a tag gets an index entry without a name, because
that is what keeps it through the garbage collection of other tools.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dtrain.errors import Conflict, DigestMismatch, MalformedInput, NotFound, StorageProblem
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import MANIFEST_MAX, Index, Manifest, RawManifest
from dtrain.oci.reference import check_tag
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.oci.verified import CHUNK, VerifiedReader

if TYPE_CHECKING:
    from dtrain.transport.protocol import Opener

_REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX_MAX = 64 * 2**20  # bytes; an index of a hundred thousand tags is below


class Layout:
    """An OCI image layout as a :class:`~dtrain.transport.protocol.Transport`; made when something is first put."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index = directory / "index.json"

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""

    @property
    def place(self) -> str:
        """The name of the place as in a reference."""
        return f"oci:{self._directory}"

    def fetch_manifest(self, selector: str | Digest) -> RawManifest:
        """Return the manifest or index that a tag or digest names."""
        if isinstance(selector, Digest):
            media_type, digest = None, selector
        else:
            entry = self._entry(selector)
            if entry is None:
                raise NotFound(f"{self.place}: expected the tag {selector!r}, got {_some(self.tags())}")
            media_type, digest = entry.media_type, entry.digest
        with self._open(digest) as stream:
            raw = stream.read(MANIFEST_MAX + 1)
        if len(raw) > MANIFEST_MAX:
            raise MalformedInput(f"manifest {digest.short}: expected at most {MANIFEST_MAX} bytes, got more")
        want = digest.hasher()
        want.update(raw)
        if want.hexdigest() != digest.hex:
            raise DigestMismatch(f"manifest {digest.short}: expected {digest}, got other bytes",
                                 hint="the content was altered in storage; do not use it")
        return RawManifest(raw=raw, media_type=media_type, digest=digest)

    def resolve(self, tag: str) -> Digest | None:
        """Return the digest that ``tag`` names, or ``None``."""
        entry = self._entry(tag)
        return None if entry is None else entry.digest

    def open_blob(self, want: Descriptor) -> VerifiedReader:
        """Return a reader of the blob that checks every byte."""
        return VerifiedReader(self._open(want.digest), want)

    def has_blob(self, want: Descriptor) -> bool:
        """Return whether the blob is stored here with the size that its descriptor states."""
        try:
            return self._blob(want.digest).lstat().st_size == want.size
        except OSError:
            return False

    def mount_blob(self, want: Descriptor, source: str) -> bool:
        """Return ``False``: a layout holds one repository."""
        return False

    def put_blob(self, want: Descriptor, content: Opener) -> None:
        """Store the blob, unless it is here already."""
        if self.has_blob(want):
            return
        self._make()

        def write(out: BinaryIO) -> None:
            with content() as source, VerifiedReader(source, want) as reader:
                while chunk := reader.read(CHUNK):
                    out.write(chunk)

        self._write(self._blob(want.digest), write)

    def put_manifest(self, manifest: Manifest | Index) -> None:
        """Store the manifest under its digest; no tag changes."""
        self._make()
        self._write(self._blob(manifest.digest), lambda out: out.write(manifest.raw))
        with self._changing() as entries:
            if not any(entry.get("digest") == str(manifest.digest) for entry in entries):
                entries.append(manifest.descriptor.to_json())

    def put_tag(self, tag: str, manifest: Manifest | Index) -> None:
        """Let ``tag`` name the manifest."""
        check_tag(tag)
        self._make()
        with self._changing() as entries:
            kept = [entry for entry in entries if _ref_name(entry) != tag and not (
                entry.get("digest") == str(manifest.digest) and _ref_name(entry) is None)]
            moved = [entry for entry in entries if _ref_name(entry) == tag]
            entries[:] = [*kept, {**manifest.descriptor.to_json(), "annotations": {_REF_NAME: tag}}]
            for old in moved:  # what the tag named stays, without a name, unless another entry keeps it
                if not any(entry.get("digest") == old.get("digest") for entry in entries):
                    annotations = {key: value for key, value in old.get("annotations", {}).items() if key != _REF_NAME}
                    rest = {key: value for key, value in old.items() if key != "annotations"}
                    entries.append({**rest, "annotations": annotations} if annotations else rest)
        if (got := self.resolve(tag)) != manifest.digest:
            raise Conflict(f"{self.place}:{tag}: expected {manifest.digest}, got {got}")

    def tags(self) -> tuple[str, ...]:
        """Return all tags in ascending order."""
        if not self._index.exists():
            return ()
        return tuple(sorted({tag for entry in self._entries() if (tag := _ref_name(entry)) is not None}))

    def _entry(self, tag: str) -> Descriptor | None:
        if not self._index.exists():
            return None
        found = [entry for entry in self._entries() if _ref_name(entry) == tag]
        if len({str(entry.get("digest")) for entry in found}) > 1:
            raise MalformedInput(f"{self.place}: expected the tag {tag!r} once, got it for several digests")
        return Descriptor.parse(Fields(found[0], "index.json")) if found else None

    def _entries(self) -> list[dict[str, Any]]:
        with self._storage():
            if self._index.stat().st_size > _INDEX_MAX:
                raise MalformedInput(f"{self._index}: expected at most {_INDEX_MAX} bytes, got more")
            raw = self._index.read_bytes()
        fields = Fields(parse_json(raw, what=str(self._index)), str(self._index))
        return [dict(entry.raw) for entry in fields.objects("manifests")]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[dict[str, Any]]]:
        """Give the index's entries to change, alone, and write them when the block ends well."""
        with self._storage(), (self._directory / ".index.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document: dict[str, Any] = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
            if self._index.exists():
                document = dict(Fields(parse_json(self._index.read_bytes(), what=str(self._index)), "index.json").raw)
            entries = self._entries() if self._index.exists() else []
            before = json.dumps(entries)
            yield entries
            if json.dumps(entries) != before or not self._index.exists():
                raw = json.dumps({**document, "manifests": entries}, indent=2).encode()
                self._write(self._index, lambda out: out.write(raw))

    def _make(self) -> None:
        marker = self._directory / "oci-layout"
        with self._storage():
            if marker.exists():
                return
            if self._directory.is_dir() and any(self._directory.iterdir()):
                raise StorageProblem(f"{self._directory}: expected an OCI image layout or an empty folder, got neither")
            self._directory.mkdir(parents=True, exist_ok=True)
            self._write(marker, lambda out: out.write(_LAYOUT))

    def _blob(self, digest: Digest) -> Path:
        return self._directory / "blobs" / digest.algorithm / digest.hex

    def _open(self, digest: Digest) -> BinaryIO:
        place = self._blob(digest)
        try:
            return os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0)
        except FileNotFoundError:
            hint = None if (self._directory / "oci-layout").exists() else "there is no OCI image layout at this place"
            raise NotFound(f"{self.place}: expected the content {digest}, got none", hint=hint) from None
        except OSError as error:
            raise StorageProblem(f"{place}: expected a readable file, got: {error.strerror}") from None

    def _write(self, place: Path, write: Callable[[BinaryIO], object]) -> None:
        """Let ``place`` appear whole or not at all."""
        with self._storage():
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=place.parent, prefix=".partial-")
            try:
                with os.fdopen(handle, "wb") as out:
                    write(out)
                    out.flush()
                    os.fsync(out.fileno())
                Path(draft).chmod(0o644)
                Path(draft).replace(place)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._directory
            raise StorageProblem(f"{where}: expected to read and write there, got: {error.strerror or error}",
                                 hint="check free space and permissions") from None


def _ref_name(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get(_REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _some(tags: tuple[str, ...]) -> str:
    return ", ".join(tags[:8]) or "no tags"
