"""What was sealed and is on its way: the folder's outbox, so that a hop is sealed once however often it is pushed.

``outbox/hop.json`` is written last and names the rest by digest. The layer's tar is removed once it is published.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from dtrain.errors import Conflict
from dtrain.flow.workdir import OUTBOX, HopRecord, storage
from dtrain.oci.config import parse_config
from dtrain.oci.digest import Digest
from dtrain.oci.edit import Image
from dtrain.oci.manifest import Manifest, RawManifest, parse_manifest
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.train import paths, pht
from dtrain.train.plain import PlainFile, read_folder
from dtrain.train.seal import SealedHop

_RECORD = "hop.json"
_LAYER = "layer.tar"
_CONFIG = "config.json"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a station can state about a hop that it has sealed."""

    config: str
    """Hex sha256 of ``train_config.json``."""
    result_hash: str
    chain: str
    result_files: int
    result_bytes: int
    sealed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A sealed image that waits in the outbox, or has been published from it."""

    image: Image
    facts: Facts
    published: str | None
    """Where it was published, as a reference; ``None`` while it waits."""
    proposed: bool = False
    """Whether its metadata was published as a proposal, which others have to sign."""


def seal_into(
    folder: Path, record: HopRecord, seal: Callable[[BinaryIO], SealedHop], make_image: Callable[[SealedHop], Image],
    *, now: datetime,
) -> Waiting:
    """Seal the hop into the outbox of ``folder``; whatever was left there half-written is overwritten."""
    outbox = folder / OUTBOX
    with storage(outbox):
        outbox.mkdir(mode=0o700, exist_ok=True)
        with (outbox / _LAYER).open("wb") as out:
            hop = seal(out)
            out.flush()
            os.fsync(out.fileno())
        image = make_image(hop)
        (outbox / _CONFIG).write_bytes(image.config.raw)
        (outbox / _MANIFEST).write_bytes(image.manifest.raw)
        link = hop.config.route[record.hop - 1].link
        facts = Facts(config=hop.config_digest.hex, result_hash=(hop.config.result_hash or b"").hex(),
                      chain="" if link is None else link.digest.hex(), result_files=hop.result_files,
                      result_bytes=hop.result_bytes, sealed_at=now.isoformat())
        _replace(outbox / _RECORD, json.dumps({
            "parent": record.digest, "digest": str(image.manifest.digest), "session": hop.config.session_id.hex(),
            "published": None, **asdict(facts),
        }, indent=2).encode())
    return Waiting(image=image, facts=facts, published=None)


def load(folder: Path, record: HopRecord) -> Waiting | None:
    """Return what waits in the outbox for this hop, or ``None`` when there is nothing usable.

    Raises:
        Conflict: it was published, and the results in the folder are others now.
    """
    outbox = folder / OUTBOX
    try:
        raw = (outbox / _RECORD).read_bytes()
        config, manifest = (outbox / _CONFIG).read_bytes(), (outbox / _MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    found = Fields(parse_json(raw, what=str(outbox / _RECORD)), str(outbox / _RECORD))
    if found.required("parent", str) != record.digest:
        return None
    published = found.optional("published", str)
    if found.required("result_hash", str) != _hash_results(folder, bytes.fromhex(found.required("session", str))).hex():
        if published:
            raise Conflict(f"{folder}: expected the results that were published as {found.required('digest', str)}, "
                           "got others", hint="a hop is published once; its results cannot be replaced")
        return None
    digest = Digest.parse(found.required("digest", str))
    parsed = parse_manifest(RawManifest(raw=manifest, media_type=None, digest=digest))
    if Digest.of(manifest) != digest or not isinstance(parsed, Manifest) or Digest.of(config) != parsed.config.digest:
        return None
    facts = Facts(
        config=found.required("config", str), result_hash=found.required("result_hash", str),
        chain=found.required("chain", str), result_files=found.required("result_files", int),
        result_bytes=found.required("result_bytes", int), sealed_at=found.required("sealed_at", str))
    return Waiting(image=Image(manifest=parsed, config=parse_config(config, parsed)), facts=facts, published=published,
                   proposed=bool(found.optional("proposed", bool)))


def open_layer(folder: Path) -> BinaryIO:
    """Return the sealed layer from its start."""
    return (folder / OUTBOX / _LAYER).open("rb")


def mark_published(folder: Path, place: str, *, proposed: bool) -> None:
    """Note that others can see the hop, and drop its layer, which the registry has now."""
    outbox = folder / OUTBOX
    with storage(outbox):
        found = json.loads((outbox / _RECORD).read_bytes())
        _replace(outbox / _RECORD, json.dumps({**found, "published": place, "proposed": proposed}, indent=2).encode())
    with contextlib.suppress(OSError):
        (outbox / _LAYER).unlink()


def _hash_results(folder: Path, session: bytes) -> bytes:
    total = pht.results_hash()
    for entry in read_folder(folder / paths.RESULTS):
        if isinstance(entry, PlainFile):
            for chunk in entry.chunks():
                total.update(chunk)
    total.update(session)
    return total.digest()


def _replace(place: Path, data: bytes) -> None:
    """Write ``place`` whole or not at all."""
    draft = place.with_suffix(".partial")
    with draft.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(place)
