"""``dtrain push-results``: from a working folder to a published hop. The order of the steps is the crash safety."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from dtrain.crypto.rsa import PrivateKey
from dtrain.errors import Conflict
from dtrain.flow import outbox, workdir
from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image
from dtrain.flow.pull_verify import check_own_key
from dtrain.oci.digest import Digest
from dtrain.oci.edit import Image, plain_layer, replace_layers
from dtrain.oci.reference import DEFAULT_TAG, Reference
from dtrain.train import paths
from dtrain.train.cargo import VerifiedCode, open_cargo, verify_code
from dtrain.train.checks import check_sealed
from dtrain.train.config import Stop
from dtrain.train.plain import read_folder
from dtrain.train.route import check_turn, hop_tag
from dtrain.train.seal import SealedHop, seal_hop
from dtrain.transport.copy import copy_blobs
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A hop that others can see."""

    reference: Reference
    """Pinned: the tag that moved, and the digest that it names now."""
    hop: int
    tag: str
    """The tag that keeps this hop's image."""
    train: str
    already: bool = False
    """Whether an earlier call had published it."""


def push_results(
    folder: Path, *, key: PrivateKey, trust: Anchor | EmbeddedKeys, context: Context, target: Reference | None = None
) -> Published:
    """Seal the results in the working folder ``folder`` and publish the hop.

    The parent is the digest that was verified. What was sealed waits in the folder's outbox until it is published, so
    a call after a crash sends the same bytes, and a call after success changes nothing.

    Raises:
        Conflict: the tag names neither the verified image nor this hop, or the hop was published with other results.
        UnsafeArchive: the results hold links or special files.
        VerificationFailed: the folder is not what was verified.
        TransportError: the registry refuses or cannot be reached; nothing became visible.
    """
    record = workdir.read_record(folder)
    source = Reference.parse(record.reference)
    place = target or source.with_tag(source.tag or DEFAULT_TAG)
    with (workdir.alone(folder), context.spool() as spool, context.connect(source) as parent_place,
          context.connect(place) as transport):
        hop = outbox.load(folder, record)
        if hop is None or not hop.published:  # a published hop may have gone further, and its repository with it
            train, stop = _verified(folder, record, key, trust, spool)
            parent = fetch_image(parent_place, Digest.parse(record.digest), context).image
            hop = hop or _seal(folder, record, parent, train, stop, key, context)
            _check_unchanged_tag(transport, place, record, hop)
            copy_blobs(parent_place, transport, hop.image.manifest.layers[:-1],
                       mount_from=source.repository if source.host == place.host else None)
            _upload(transport, folder, hop)  # nothing is visible yet
            _publish(transport, place, record, hop)
            outbox.mark_published(folder, str(place))
        elif hop.published != str(place):
            raise Conflict(f"{folder}: expected a hop that goes to {place}, got one that was published at "
                           f"{hop.published}", hint="a hop is published once; copy it with: skopeo copy")
    return Published(reference=place.pinned(hop.image.manifest.digest), hop=record.hop,
                     tag=hop_tag(record.hop, record.station), train=record.train, already=hop.published is not None)


def _verified(
    folder: Path, record: workdir.HopRecord, key: PrivateKey, trust: Anchor | EmbeddedKeys, spool: BinaryIO
) -> tuple[VerifiedCode, Stop]:
    """Return the train as it was verified, every check on code and config done again."""
    checked = check_sealed(workdir.read_sealed(folder, record, spool), trust)
    stop = check_turn(checked.config, record.station)
    check_own_key(key, stop)
    cargo = open_cargo(checked.sealed, key, wrapped=stop.encrypted_key, of=f"file key for {stop}")
    return verify_code(cargo, checked.pin), stop


def _seal(
    folder: Path, record: workdir.HopRecord, parent: Image, train: VerifiedCode, stop: Stop, key: PrivateKey,
    context: Context,
) -> outbox.Waiting:
    now = context.now()
    results = read_folder(folder / paths.RESULTS)

    def make_image(hop: SealedHop) -> Image:
        return replace_layers(parent, keep=record.keep_layers, layer=plain_layer(parent, hop.layer, hop.size),
                              created=now, created_by=f"dtrain {VERSION} hop {record.hop}")

    return outbox.seal_into(
        folder, record,
        lambda out: seal_hop(train, stop, key, results, out=out, mtime=int(now.timestamp())), make_image,
    )


def _check_unchanged_tag(
    transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting
) -> None:
    """Check that the tag still names what was verified, or already this hop.

    Raises:
        Conflict: someone else pushed in the meantime.
    """
    current = transport.resolve(place.tag or DEFAULT_TAG)
    expected = {record.resolved, record.digest, str(hop.image.manifest.digest)}
    elsewhere = place.place != Reference.parse(record.reference).place
    if current is None and elsewhere:
        return  # the first image at a new place
    if str(current) not in expected:
        raise Conflict(f"{place}: expected {record.resolved}, the image that was verified, got {current}",
                       hint="someone else pushed in the meantime; nothing was published. "
                            "Look at it with: dtrain inspect")


def _upload(transport: Transport, folder: Path, hop: outbox.Waiting) -> None:
    manifest = hop.image.manifest
    transport.put_blob(manifest.layers[-1], lambda: outbox.open_layer(folder))
    transport.put_blob(manifest.config, lambda: BytesIO(hop.image.config.raw))
    transport.put_manifest(manifest)


def _publish(transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting) -> None:
    """Let the tags name the hop; the last one is the commit point, on which routers act.

    Registries have no compare-and-swap for tags. All who publish this hop put the same hop tag, so whoever finds
    another image under it afterwards has lost the race and is told so.

    Raises:
        Conflict: someone else pushed in the meantime.
    """
    tag, digest = hop_tag(record.hop, record.station), hop.image.manifest.digest
    transport.put_tag(tag, hop.image.manifest)
    _check_unchanged_tag(transport, place, record, hop)
    transport.put_tag(place.tag or DEFAULT_TAG, hop.image.manifest)
    if (current := transport.resolve(tag)) != digest:
        raise Conflict(f"{place.with_tag(tag)}: expected {digest}, got {current}: this hop was published twice at once",
                       hint="the other one stands; look at it with: dtrain inspect")
