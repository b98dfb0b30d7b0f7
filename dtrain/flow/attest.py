"""Publishing signed metadata of a new train or a hop; each state is checked as its readers will before they see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import Conflict, Expired, MissingEvidence, WrongKey
from dtrain.flow.believe import metadata_place
from dtrain.flow.context import Context
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest
from dtrain.oci.media_types import OCI_MANIFEST
from dtrain.oci.reference import Reference
from dtrain.train.route import encode_name
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor
from dtrain.trust.artifact import HEAD, file_name
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.editor import Files, Made, finished, newest, parsed, with_hop, with_train
from dtrain.trust.publish import Basis, PublishedState, publish
from dtrain.trust.root import parse_root
from dtrain.trust.rules import Expected
from dtrain.trust.statements import HopStatement, TrainDescriptor, hop_path, hop_role, train_path
from dtrain.trust.verify import check_state

FOREVER = timedelta(days=36500)


def publish_train(
    target: Reference, transport: Transport, manifest: Manifest, descriptor: TrainDescriptor, *,
    roots: Sequence[bytes], stations: Mapping[str, VerifyKey], signing: Sequence[SigningKey], anchor: Anchor,
    context: Context,
) -> PublishedState:
    """Publish the metadata of a train that has none yet: targets by the creator, snapshot and timestamp.

    Args:
        target: where the train is.
        transport: its place.
        manifest: the image that hop 0 is.
        descriptor: what the creator says about the train.
        roots: the root metadata in ascending versions.
        stations: the key that each station signs metadata with.
        signing: the creator's key, and the builder's where the root names builders.
        anchor: has to accept the result.
        context: the surroundings.

    Raises:
        Conflict: there is metadata already.
        VerificationFailed: the anchor would not accept it.
    """
    def check_vacant(files: Files, digest: Digest) -> None:
        there = parsed(files, "targets").signed.targets.get(train_path(descriptor.train))
        if there is None or there.hashes.get("sha256") != manifest.digest.hex:
            raise Conflict(f"{target.name}: expected no metadata of a train of that name, got some",
                           hint="choose another repository, or another trust repository")

    def make(basis: Basis) -> Made | None:
        if basis.head is not None:
            return None if not basis.joined else finish(
                basis.files, basis, descriptor=descriptor, signing=signing, context=context)
        files = {file_name("root", parse_root(raw, what="root").signed.version): raw for raw in roots}
        state = with_train(files, descriptor, digest=manifest.digest, size=len(manifest.raw), stations=stations,
                           signing=signing)
        return finish(state, basis, descriptor=descriptor, signing=signing, context=context)

    return publish_checked(target, transport, make, anchor=anchor, descriptor=descriptor, context=context,
                           image=manifest.descriptor, proposal=proposal_tag(descriptor.creator), verify=check_vacant)


def publish_hop(
    place: Reference, transport: Transport, manifest: Manifest, statement: HopStatement, attested: AttestedTrain, *,
    signing: SigningKey, context: Context,
) -> PublishedState:
    """Publish a station's statement on its hop, with a new snapshot and timestamp.

    Where the root asks for more signatures than the station's, the state waits as a proposal under ``tuf-prop-…``.

    Raises:
        Conflict: the hop was published with another image.
        VerificationFailed: the new state would not be accepted.
    """
    role = hop_role(statement.station)
    path = hop_path(statement.train, statement.station, statement.number)

    def make(basis: Basis) -> Made | None:
        found = parsed(basis.files, role).signed.targets.get(path) if newest(basis.files, role) is not None else None
        if found is not None and not basis.joined:
            return None  # published before, by this call's predecessor or by a rival
        state = basis.files if found is not None else with_hop(
            basis.files, statement, digest=manifest.digest, size=len(manifest.raw),
            expires=attested.descriptor.deadline, signing=signing)
        return finish(state, basis, descriptor=attested.descriptor, signing=[signing], context=context)

    published = publish_checked(
        place, transport, make, anchor=attested.anchor, descriptor=attested.descriptor, context=context,
        proposal=proposal_tag(statement.station), image=manifest.descriptor)
    got = parsed(published.files, role).signed.targets[path].hashes["sha256"]
    if got != manifest.digest.hex:
        raise Conflict(f"hop {statement.number}: expected to publish {manifest.digest}, got metadata of sha256:{got}: "
                       "this hop was published already", hint="the other one stands; look at it with: dtrain inspect")
    return published


def proposal_tag(party: str) -> str:
    """Return the tag under which a party's state waits for further signatures."""
    return f"{HEAD}-prop-{encode_name(party)}"


def check_signing_key(signing: SigningKey, attested: AttestedTrain | None, station: str) -> None:
    """Check that the station's signing key is the one that its role is delegated to, where there is metadata.

    Raises:
        WrongKey: it is another one.
    """
    if attested is None:
        return
    delegated = attested.delegated[station]
    if signing.public.fingerprint not in delegated:
        raise WrongKey(f"station {station!r}: expected the key that signs its metadata, "
                       f"{', '.join(sorted(delegated))}, got {signing.public.fingerprint}",
                       hint="check --key and --signing-key")


def finish(
    state: Files, basis: Basis, *, descriptor: TrainDescriptor, signing: Sequence[SigningKey], context: Context
) -> Made:
    """Return the state with a new snapshot and timestamp, good until the next station must have started."""
    now = context.now()
    return finished(state, train=descriptor.train, signing=signing, now=now, expires=_handover(descriptor, now),
                    built_on=basis.head, merged=basis.joined, floor=basis.floor)


def _handover(descriptor: TrainDescriptor, now: datetime) -> datetime:
    return min(now + timedelta(days=descriptor.dwell_days), descriptor.deadline)


def publish_checked(
    place: Reference, transport: Transport, make: Callable[[Basis], Made | None], *, anchor: Anchor,
    descriptor: TrainDescriptor, context: Context, image: Descriptor | None = None, proposal: str | None = None,
    start: str | None = None, meant: Expected | None = None, verify: Callable[[Files, Digest], None] | None = None,
) -> PublishedState:
    """Publish what ``make`` gives, each attempt after the checks that a reader will make; then remember it as seen.

    Args:
        place: where the train is.
        transport: its place.
        make: gives the state, as :func:`dtrain.trust.publish.publish` asks.
        anchor: has to accept the state.
        descriptor: of the train.
        context: the surroundings.
        image: the new hop's image.
        proposal: the tag for a state that needs further signatures.
        start: the tag of the state to build on instead of the head.
        meant: which train it has to be, where ``descriptor`` comes from a state that nobody has verified.
        verify: checks the state to build on; by default all that a reader checks.
    """
    def check(files: Files, digest: Digest, *, remember: bool, max_stale: timedelta = timedelta(0)) -> None:
        check_state(files, digest, anchor, meant or Expected(train=descriptor.train), store=context.store,
                    now=context.now(), max_stale=max_stale, remember=remember, whole=True)

    def check_basis(files: Files, digest: Digest) -> None:
        check(files, digest, remember=False, max_stale=FOREVER)  # what has expired may be signed anew

    def checked(basis: Basis) -> Made | None:
        made = make(basis)
        if made is not None and made.complete:
            check(made.files, Digest.of(b"not stored yet"), remember=False)
        return made

    if context.now() >= descriptor.deadline:
        raise Expired(f"train {descriptor.train!r}: expected a deadline to come, got {descriptor.deadline}",
                      hint="the train's time is over; its creator can build it again")
    with metadata_place(place, transport, anchor, context) as trusted:
        published = publish(trusted, checked, proposal=proposal, start=start, verify=verify or check_basis,
                            subject=lambda files, known: _newest_image(files, descriptor, (image, *known)))
    if published.complete:
        check(published.files, published.artifact.digest, remember=True)
    return published


def _newest_image(files: Files, descriptor: TrainDescriptor, known: Iterable[Descriptor | None]) -> Descriptor:
    """Return the descriptor of the newest hop's image: the artifact's subject."""
    last = parsed(files, "targets").signed.targets.get(train_path(descriptor.train))
    if last is None:
        raise MissingEvidence(f"metadata targets: expected the train {descriptor.train!r}, got another")
    for number, station in enumerate(descriptor.stations, start=1):
        if newest(files, hop_role(station)) is not None:
            path = hop_path(descriptor.train, station, number)
            last = parsed(files, hop_role(station)).signed.targets.get(path, last)
    digest = Digest.parse(f"sha256:{last.hashes.get('sha256')}", what=last.path)
    for image in known:
        if image is not None and image.digest == digest:
            return image
    return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=last.length)
