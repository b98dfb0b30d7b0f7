"""``dtrain push-results``: from a working folder to a published hop. The order of the steps is the crash safety."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.errors import Conflict, UsageProblem
from dtrain.flow import outbox, workdir
from dtrain.flow.attest import check_signing_key, publish_hop
from dtrain.flow.believe import metadata_place, resolve
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
from dtrain.transport.copy import copy_blobs, copy_image
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.trust.artifact import HEAD, fetch_artifact
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.publish import PublishedState
from dtrain.trust.statements import HopStatement, Unattested
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
    metadata: PublishedState | None = None
    """The signed metadata that was published with it, where the anchor names a root."""
    already: bool = False
    """Whether an earlier call had published it."""


def push_results(
    folder: Path, *, key: PrivateKey, trust: Anchor | EmbeddedKeys, context: Context, target: Reference | None = None,
    signing_key: SigningKey | None = None,
) -> Published:
    """Seal the results in the working folder ``folder`` and publish the hop.

    The parent is the digest that was verified. What was sealed waits in the folder's outbox until it is published, so
    a call after a crash sends the same bytes, and a call after success changes nothing.

    Args:
        folder: the working folder of a verified hop.
        key: the station's RSA key.
        trust: what is trusted from outside.
        context: the surroundings.
        target: where to publish, if not where the train was pulled from.
        signing_key: the key that the station signs metadata with; by default ``key``.

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
        signing, metadata = signing_key or SigningKey.of_rsa(key), None
        if hop is None or not hop.published:  # a published hop may have gone further, and its repository with it
            attested = _attested(record, source, parent_place, trust, context)
            train, stop = _verified(folder, record, key, attested or trust, spool)
            check_signing_key(signing, attested, record.station)
            parent = fetch_image(parent_place, Digest.parse(record.digest), context).image
            hop = hop or _seal(folder, record, parent, train, stop, key, context)
            if not hop.facts.result_files:
                context.warn(f"{folder / paths.RESULTS} holds no files: an empty hop is published")
            _check_unchanged_tag(transport, place, record, hop, attested)
            copy_blobs(parent_place, transport, hop.image.manifest.layers[:-1],
                       mount_from=source.repository if source.host == place.host else None)
            _upload(transport, folder, hop)  # nothing is visible yet
            _claim(transport, place, record, hop, attested)  # the hop's own tag
            _bring_metadata(parent_place, source, transport, place, attested, context)
            metadata = _attest(transport, place, record, hop, attested, signing, context)
            _publish(transport, place, record, hop, attested)  # the train's tag, on which routers act
            outbox.mark_published(folder, str(place), proposed=metadata is not None and not metadata.complete)
        elif hop.published != str(place):
            raise Conflict(
                f"{folder}: expected a hop that goes to {place}, got one that was published at {hop.published}",
                hint="a hop is published once; copy it with: skopeo copy --preserve-digests")
        elif hop.proposed:  # may have been overtaken, and has to be proposed again
            attested = _attested(record, place, transport, trust, context)
            metadata = _attest(transport, place, record, hop, attested, signing, context)
    return Published(reference=place.pinned(hop.image.manifest.digest), hop=record.hop,
                     tag=hop_tag(record.hop, record.station), train=record.train, metadata=metadata,
                     already=hop.published is not None)


def _attested(
    record: workdir.HopRecord, source: Reference, transport: Transport, trust: Anchor | EmbeddedKeys, context: Context
) -> AttestedTrain | None:
    """Return what signed metadata says of the train now, where the anchor names a root.

    Its dates have been checked when the train was pulled; a run may take longer than the metadata is valid.

    Raises:
        VerificationFailed: the metadata does not hold any more.
        UsageProblem: the train was verified without metadata.
    """
    if not isinstance(trust, Anchor) or trust.root is None:
        if record.metadata:
            raise UsageProblem("anchor: expected the one with a root that the train was verified with, got another",
                               hint="else the next stations would find a hop without signed metadata")
        return None
    if not record.metadata:
        raise UsageProblem("working folder: expected a train that was verified with signed metadata, got one without",
                           hint="pull it again with this anchor")
    since = context.now() - datetime.fromisoformat(record.verified_at)
    running = replace(context, train=record.train, max_stale=max(since, context.max_stale), warn=lambda text: None)
    return resolve(source, transport, trust, running, look_around=False)


def _verified(
    folder: Path, record: workdir.HopRecord, key: PrivateKey, trust: Anchor | EmbeddedKeys | AttestedTrain,
    spool: BinaryIO,
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
        lambda out: seal_hop(train, stop, key, results, out=out, mtime=int(now.timestamp())), make_image, now=now,
    )


def _check_unchanged_tag(
    transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting,
    attested: AttestedTrain | None,
) -> Digest | None:
    """Check that the tag still names what was verified, or already this hop, or another hop that has metadata: it may
    lag behind the metadata when a station was stopped between the two. Return what it names.

    Raises:
        Conflict: someone else pushed in the meantime.
    """
    current = transport.resolve(place.tag or DEFAULT_TAG)
    expected = {record.resolved, record.digest, str(hop.image.manifest.digest)}
    elsewhere = place.place != Reference.parse(record.reference).place
    if current is None and elsewhere:
        return None  # the first image at a new place
    if attested is not None:
        expected |= {str(one.digest) for one in attested.hops}
        for one in attested.hops:
            if one.number == record.hop and one.digest != hop.image.manifest.digest:
                raise Conflict(f"{place}: expected to publish hop {record.hop}, the image that was verified has one: "
                               f"{one.digest}", hint="the other one stands; look at it with: dtrain inspect")
    if str(current) not in expected:
        raise Conflict(f"{place}: expected {record.resolved}, the image that was verified, got {current}",
                       hint="someone else pushed in the meantime; nothing was published. "
                            "Look at it with: dtrain inspect")
    return current


def _upload(transport: Transport, folder: Path, hop: outbox.Waiting) -> None:
    manifest = hop.image.manifest
    transport.put_blob(manifest.layers[-1], lambda: outbox.open_layer(folder))
    transport.put_blob(manifest.config, lambda: BytesIO(hop.image.config.raw))
    transport.put_manifest(manifest)


def _claim(
    transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting,
    attested: AttestedTrain | None,
) -> None:
    """Let the hop's own tag name the image, unless another one has it.

    Registries have no compare-and-swap for tags. All who publish this hop put the same hop tag, so whoever finds
    another image under it has lost the race and is told so.

    Raises:
        Conflict: someone else pushed in the meantime.
    """
    tag, digest = hop_tag(record.hop, record.station), hop.image.manifest.digest
    transport.put_tag(tag, hop.image.manifest)
    _check_unchanged_tag(transport, place, record, hop, attested)
    _check_claim(transport, place.with_tag(tag), digest)


def _bring_metadata(
    parent_place: Transport, source: Reference, transport: Transport, place: Reference,
    attested: AttestedTrain | None, context: Context,
) -> None:
    """Copy the state that the train was verified with to a place that has none yet, when a hop is published there."""
    if attested is None or place.place == source.place:
        return
    with (metadata_place(source, parent_place, attested.anchor, context) as here,
          metadata_place(place, transport, attested.anchor, context) as there):
        if fetch_artifact(there) is None:
            copy_image(here, attested.metadata, there, [HEAD])


def _attest(
    transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting,
    attested: AttestedTrain | None, signing: SigningKey, context: Context,
) -> PublishedState | None:
    """Publish the station's statement on the hop, where there is metadata: other stations act on it."""
    if attested is None:
        return None
    facts = hop.facts
    statement = HopStatement(
        train=record.train, number=record.hop, station=record.station, parent=Digest.parse(record.digest),
        metadata=Digest.parse(record.metadata), config=facts.config, result_hash=facts.result_hash, chain=facts.chain,
        result_files=facts.result_files, result_bytes=facts.result_bytes, tool=f"dtrain {VERSION}",
        issued=datetime.fromisoformat(facts.sealed_at),
        unattested=tuple(Unattested(number=gap["hop"], station=gap["station"], chain=gap["chain"])
                         for gap in record.unattested),
    )
    return publish_hop(place, transport, hop.image.manifest, statement, attested, signing=signing, context=context)


def _publish(
    transport: Transport, place: Reference, record: workdir.HopRecord, hop: outbox.Waiting,
    attested: AttestedTrain | None,
) -> None:
    """Let the train's tag name the hop: the commit point, on which routers act.

    With metadata the hop stands already, and who comes later finds that; the tag is not moved back to it.

    Raises:
        Conflict: someone else pushed in the meantime.
    """
    claim, digest = place.with_tag(hop_tag(record.hop, record.station)), hop.image.manifest.digest
    current = _check_unchanged_tag(transport, place, record, hop, attested)
    further = None if attested is None or current is None else attested.by_digest(current)
    if further is None or further.number < record.hop:
        transport.put_tag(place.tag or DEFAULT_TAG, hop.image.manifest)
    if attested is not None and transport.resolve(claim.tag or DEFAULT_TAG) != digest:
        transport.put_tag(claim.tag or DEFAULT_TAG, hop.image.manifest)  # a rival who lost had put it
    _check_claim(transport, claim, digest)


def _check_claim(transport: Transport, claim: Reference, digest: Digest) -> None:
    if (current := transport.resolve(claim.tag or DEFAULT_TAG)) != digest:
        raise Conflict(f"{claim}: expected {digest}, got {current}: this hop was published twice at once",
                       hint="the other one stands; look at it with: dtrain inspect")
