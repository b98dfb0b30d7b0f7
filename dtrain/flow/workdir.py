"""The working folder of a hop: ``hop.json``, ``sealed.tar`` and ``opt/…`` as in the image.

It appears whole or not at all: everything is written into a hidden folder beside it, ``hop.json`` last, and renamed.
``sealed.tar`` holds the verified code and config in their encrypted form, so that ``push-results`` seals what was
verified and not what a run left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from dtrain.errors import MalformedInput, StorageProblem, UsageProblem
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.layer import read_layer
from dtrain.oci.layer_writer import LayerWriter
from dtrain.oci.media_types import OCI_LAYER
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.oci.tree import merge
from dtrain.oci.verified import VerifiedReader
from dtrain.train import paths
from dtrain.train.plain import PlainEntry, PlainFile
from dtrain.train.sealed import SealedTrain, read_train

SCHEMA = "dtrain/hop/v1"
RECORD = "hop.json"
SEALED = "sealed.tar"
OUTBOX = "outbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class HopRecord:
    """What ``hop.json`` says: which image was verified, by whom, and what is needed to seal the next one."""

    reference: str
    resolved: str
    """Digest that the tag named."""
    digest: str
    """Digest of the image manifest that was verified."""
    train: str
    station: str
    hop: int
    """Number of the hop that this station is about to make; the new train was hop 0."""
    stops: int
    keep_layers: tuple[int, ...]
    sealed_digest: str
    sealed_size: int
    verified_at: str
    trust: str
    metadata: str = ""
    """The state of the signed metadata that named the image, an artifact's digest; empty without metadata."""
    unattested: tuple[Mapping[str, Any], ...] = ()
    """Hops without metadata since the last one with: hop, station, chain."""

    def to_bytes(self) -> bytes:
        """Return the document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes, *, what: str) -> HopRecord:
        """Return the record that ``raw`` spells.

        Raises:
            MalformedInput: wrong form, or another version of it.
        """
        found = Fields(parse_json(raw, what=what), what)
        if found.required("schema", str) != SCHEMA:
            raise MalformedInput(f"{what}: expected the schema {SCHEMA}, got {found.required('schema', str)!r}")
        numbers = {"hop", "stops", "sealed_size"}
        values: dict[str, Any] = {
            field.name: found.required(field.name, int if field.name in numbers else str)
            for field in fields(cls) if field.name not in ("keep_layers", "metadata", "unattested")
        }
        return cls(**values, keep_layers=tuple(int(position) for position in found.required("keep_layers", list)),
                   metadata=found.optional("metadata", str) or "",
                   unattested=tuple(hop.raw for hop in found.objects("unattested")))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``folder`` to write into; it takes that name when the block ends well.

    What an earlier call left half-written, having been killed, is removed first. Nothing stays after an error.

    Raises:
        UsageProblem: ``folder`` is there and not empty, or is a link.
        StorageProblem: it cannot be written, or another process is writing it.
    """
    check_free(folder)
    staging = folder.parent / f".{folder.name}.dtrain-partial"
    with storage(staging):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(handle, folder)
        with storage(staging):
            _empty(staging)
            yield staging
            check_free(folder)
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def check_free(folder: Path) -> None:
    """Check that ``folder`` can be made; called before any work as well.

    Raises:
        UsageProblem: something is there.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageProblem(f"{folder}: expected a free name for a folder, got a link or file of that name")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageProblem(f"{folder}: expected no folder there or an empty one, got one with content",
                           hint="name another folder, or remove this one when its hop is done")


def write_entries(folder: Path, entries: Iterable[PlainEntry], *, writable: bool) -> None:
    """Write plaintext files and folders below ``folder``, for the owner only where they are read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        place = folder / entry.path
        if isinstance(entry, PlainFile):
            place.parent.mkdir(parents=True, exist_ok=True)
            mode = (entry.mode & 0o777) | 0o600 if writable else (entry.mode & 0o111) | 0o444
            handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb", buffering=0) as out:
                for chunk in entry.chunks():
                    _write_all(out, chunk)
                os.fchmod(out.fileno(), mode)
        else:
            place.mkdir(parents=True, exist_ok=True)


def _write_all(out: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[out.write(view):]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from sealing or publishing this working folder at the same time.

    Raises:
        StorageProblem: one is doing so.
    """
    with storage(folder), (folder / RECORD).open("rb") as record:
        _lock(record.fileno(), folder)
        yield


def write_sealed(place: Path, sealed: SealedTrain) -> tuple[Digest, int]:
    """Write the encrypted code, query and config of ``sealed`` as a tar; return its digest and size."""
    query = () if sealed.query is None else (sealed.query,)
    with place.open("xb") as out:
        writer = LayerWriter(out, mtime=0)
        for entry in (*sealed.code.values(), *query, sealed.tree.get(paths.CONFIG)):
            assert entry is not None  # noqa: S101  read_train has found it
            with sealed.tree.read(entry) as stream:
                writer.file(entry.path, iter(lambda: stream.read(2**20), b""), size=entry.size, mode=entry.mode)
        return writer.finish()


def write_record(folder: Path, record: HopRecord) -> None:
    """Write ``hop.json``: what makes a folder the working folder of a verified hop."""
    with (folder / RECORD).open("xb") as out:
        out.write(record.to_bytes())
        out.flush()
        os.fsync(out.fileno())


def read_record(folder: Path) -> HopRecord:
    """Return the record of the working folder.

    Raises:
        UsageProblem: it is none.
        MalformedInput: a record of wrong form.
    """
    place = folder / RECORD
    try:
        raw = place.read_bytes()
    except OSError:
        raise UsageProblem(f"{folder}: expected the working folder of a verified hop, got one without {RECORD}",
                           hint="make one with: dtrain pull-verify REF DIR") from None
    return HopRecord.parse(raw, what=str(place))


def read_sealed(folder: Path, record: HopRecord, spool: BinaryIO) -> SealedTrain:
    """Return the encrypted train that was verified, without its results.

    Raises:
        DigestMismatch: ``sealed.tar`` is not the one that ``hop.json`` names.
    """
    digest = Digest.parse(record.sealed_digest)
    want = Descriptor(media_type=OCI_LAYER, digest=digest, size=record.sealed_size)
    with storage(folder / SEALED), VerifiedReader((folder / SEALED).open("rb"), want) as tar:
        return read_train(merge([read_layer(tar, OCI_LAYER, wanted=paths.is_train_path, spool=spool)]))


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StorageProblem(f"{folder}: expected to write it alone, got another process that is writing it") from None


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def storage(place: Path) -> Iterator[None]:
    """Turn the disk's refusals into one error that names the place."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        raise StorageProblem(f"{where}: expected to read and write there, got: {error.strerror or error}",
                             hint="check free space and permissions") from error
