"""Tending a train's metadata while it travels: extend it, exchange or take away keys, sign what stations propose.

The state that a change starts from is checked first, as its readers check it; only what has expired is let pass. The
result is checked in the same way before anything of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import Conflict, NotFound, RouteProblem, UsageProblem, WrongKey
from dtrain.flow.attest import finish, proposal_tag, publish_checked, publish_train
from dtrain.flow.believe import expected, metadata_place
from dtrain.flow.build import ROOT_LIFE, TRAIN_LIFE, own_root, pinned_root
from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image, find_bases
from dtrain.flow.pull_verify import check_train
from dtrain.oci.digest import Digest
from dtrain.oci.reference import Reference
from dtrain.train import paths
from dtrain.train.plain import PlainFile, read_folder
from dtrain.trust.anchor import Anchor, render_anchor
from dtrain.trust.artifact import HEAD, StoredFiles, fetch_artifact
from dtrain.trust.editor import Files, Made, cosigned, newest, parsed, with_delegation, with_hop, with_role
from dtrain.trust.forks import difference, merged, timestamp_note
from dtrain.trust.publish import Basis, PublishedState
from dtrain.trust.root import Consortium, Profile, draft_root, parse_root, read_consortium, sign_root
from dtrain.trust.statements import (
    HopStatement,
    SignedFile,
    TrainDescriptor,
    describe,
    hop_path,
    hop_role,
    train_path,
)  # fmt: skip

Change = Callable[[Files, TrainDescriptor], Files]


def refresh(
    reference: Reference, *, anchor: Anchor, signing: SigningKey, context: Context, start: str | None = None,
    roots: Sequence[bytes] = (),
) -> PublishedState:
    """Publish a new snapshot and timestamp: more time for the next station, forks joined, a newer root made known.

    Args:
        reference: the train.
        anchor: names the root.
        signing: the key of a creator, a router, or the newest hop's station.
        context: the surroundings.
        start: the tag of an earlier state to go back to, when the newest is not valid.
        roots: newer versions of the root.

    Raises:
        WrongKey: the key may not sign these roles.
        VerificationFailed: the result would not be accepted.
    """
    return _tend(reference, lambda files, descriptor: _with_roots(files, roots), anchor=anchor, signing=signing,
                 context=context, start=start)


def exchange_key(
    reference: Reference, station: str, key: VerifyKey | None, *, anchor: Anchor, signing: SigningKey,
    context: Context, start: str | None = None, roots: Sequence[bytes] = (), builder: SigningKey | None = None,
) -> PublishedState:
    """Give a station another key to sign its metadata with, or none.

    Where the station has run the train already, the creator signs its statement anew, so that the chain holds
    without the old key; the audit then shows the creator as signer. Where the anchor's root is the creator's own, a new
    version of it is made here; else the consortium's new root has to be given if it names the station.

    Args:
        reference: the train.
        station: whose key.
        key: the new one; with ``None`` the station signs nothing any more.
        anchor: names the root.
        signing: the creator's key.
        context: the surroundings.
        start: the tag of an earlier state to go back to.
        roots: newer versions of the root, if the consortium's key holders have made them.
        builder: the builder's key, where the root names builders.

    Raises:
        RouteProblem: the station is not on the route.
        UsageProblem: a new root is needed and was not given.
        VerificationFailed: the result would not be accepted.
    """
    def change(files: Files, descriptor: TrainDescriptor) -> Files:
        if station not in descriptor.stations:
            raise RouteProblem(f"route: expected station {station!r} on it, got {', '.join(descriptor.stations)}")
        state = _with_roots(files, roots or _own_next_root(files, station, key, signing, context))
        number = descriptor.stations.index(station) + 1
        hop = _hop(state, descriptor, station, number)
        keys = [one for one in (key, None if hop is None and key is not None else signing.public) if one is not None]
        state = with_delegation(state, descriptor, station, keys, [signing, *([] if builder is None else [builder])])
        if hop is None:
            return state
        statement, digest, size = hop
        return with_hop(state, statement, digest=digest, size=size, expires=descriptor.deadline, signing=signing)

    return _tend(reference, change, anchor=anchor, signing=signing, context=context, start=start)


def cosign(
    reference: Reference, station: str, *, anchor: Anchor, signing: SigningKey, context: Context
) -> PublishedState:
    """Sign and publish what a station or creator proposed, where the root asks for more than his own signature.

    Args:
        reference: the train.
        station: who proposed, a creator by his id too.
        anchor: names the root.
        signing: the key of a router or creator.
        context: the surroundings.

    Raises:
        NotFound: the station has proposed nothing.
        Conflict: others published since, and the station has to propose again.
        VerificationFailed: the proposal is not valid.
    """
    with context.connect(reference) as transport, metadata_place(reference, transport, anchor, context) as place:
        tag = proposal_tag(station)
        proposal = fetch_artifact(place, tag)
        if proposal is None:
            raise NotFound(f"{place.place}: {tag}: expected a proposal of station {station!r}, got none")
        proposed = StoredFiles(place, proposal)
        descriptor = _descriptor(proposed)

        def make(basis: Basis) -> Made | None:
            if basis.head is not None:
                joined = merged(basis.files, proposed)
                older = parsed(proposed, "timestamp").signed.version <= parsed(joined, "timestamp").signed.version
                if joined == basis.files and older and not basis.joined:
                    return None  # published already
                if read_consortium(parsed(joined, "root").signed).profile is Profile.ROUTER:
                    return finish(joined, basis, descriptor=descriptor, signing=[signing], context=context)
                lost = difference(proposed, basis.files)
                if lost.newer or lost.contradicting or basis.joined:
                    raise Conflict(f"{place.place}: {tag}: expected a proposal with all that others published, got one "
                                   f"without {', '.join((*lost.newer, *lost.contradicting)) or 'some of it'}",
                                   hint="the station can propose again with: dtrain push-results")
            if timestamp_note(proposed).get("prev") != (None if basis.head is None else str(basis.head)):
                raise Conflict(f"{place.place}: {tag}: expected a proposal on the newest state, got an older one",
                               hint="the station can propose again with: dtrain push-results")
            if read_consortium(parsed(proposed, "root").signed).profile is not Profile.COSIGN:
                raise UsageProblem("cosign: expected a root that asks for two signatures, got another")
            return cosigned(proposed, signing)

        return publish_checked(reference, transport, make, anchor=anchor, descriptor=descriptor, context=context,
                               image=proposal.manifest.subject, meant=expected(reference, context))


def adopt(
    reference: Reference, *, anchor: Anchor, signing: SigningKey, stations: Mapping[str, VerifyKey], context: Context,
    roots: Sequence[bytes] = (), code: Path | None = None, query: bytes | None = None, deadline: datetime | None = None,
    dwell_days: int = 35, builder: SigningKey | None = None,
) -> tuple[PublishedState, str]:
    """Add signed metadata to a plain PHT train, new or on its way, and return an anchor for its stations.

    The train is checked as far as its own signatures go, against the keys that ``anchor`` pins; from here on metadata
    vouches for the rest.

    Args:
        reference: the train.
        anchor: the keys of its creator, builder and stations, and its base image; no root.
        signing: the creator's key.
        stations: the key that each station signs metadata with; by default its RSA key.
        context: the surroundings.
        roots: the consortium's root, each version from the first; by default one of the creator's own.
        code: folder of the algorithm's plaintext, so that each file is signed; without it they are not.
        query: the plaintext query.
        deadline: when every signature ends; by default in a year.
        dwell_days: how long the train may wait for a station to start.
        builder: the builder's key, where the root names builders.

    Raises:
        VerificationFailed: the train does not hold against the anchor.
        Conflict: there is metadata already.
    """
    now = context.now()
    with context.connect(reference) as transport, context.spool() as spool:
        pinned = fetch_image(transport, reference.selector, context)
        checked, _ = check_train(transport, pinned, anchor, spool, context)
        config, bases = checked.config, find_bases(pinned.image, anchor, context)
        keys = {str(stop.station): stations.get(str(stop.station)) or VerifyKey.of_rsa(stop.key)
                for stop in config.route}
        roots = tuple(roots) or (own_root(str(config.creator.id), signing, keys, now),)
        runtime = pinned.image.config.runtime
        descriptor = describe(
            config, name=reference.name, files=None if code is None else signed_files(code, query),
            base=replace(bases[0], runtime=runtime) if bases else None, deadline=deadline or now + TRAIN_LIFE,
            dwell_days=dwell_days, visited=checked.done)
        root = pinned_root(roots, context)
        rooted = replace(anchor, root=replace(root, document=roots[0]), trains=None)
        published = publish_train(reference, transport, pinned.image.manifest, descriptor, roots=roots, stations=keys,
                                  signing=[signing, *([] if builder is None else [builder])], anchor=rooted,
                                  context=replace(context, train=descriptor.train))
    text = render_anchor(
        creators={descriptor.creator: config.creator.key}, builders={"builder": config.build.key}, trains=(),
        stations={str(stop.station): stop.key for stop in config.route}, base_images=anchor.base_images, root=root)
    return published, text


def signed_files(code: Path, query: bytes | None) -> dict[str, SignedFile]:
    """Return what a descriptor says of the plaintext files in ``code`` and of the query."""
    files = [entry for entry in read_folder(code) if isinstance(entry, PlainFile)]
    found = {file.path: SignedFile(size=file.size, mode=file.mode & 0o777, sha256=file.sha256()) for file in files}
    if query is not None:
        found[paths.QUERY] = SignedFile(size=len(query), mode=0o644, sha256=Digest.of(query).hex)
    return found


def _tend(
    reference: Reference, change: Change, *, anchor: Anchor, signing: SigningKey, context: Context, start: str | None
) -> PublishedState:
    with context.connect(reference) as transport, metadata_place(reference, transport, anchor, context) as place:
        artifact = fetch_artifact(place, start or HEAD)
        if artifact is None:
            raise NotFound(f"{place.place}: expected signed metadata under the tag {start or HEAD}, got none")
        descriptor = _descriptor(StoredFiles(place, artifact))

        def make(basis: Basis) -> Made:
            made = finish(change(basis.files, descriptor), basis, descriptor=descriptor, signing=[signing],
                          context=context)
            if not parsed(made.files, "timestamp").signatures:
                raise WrongKey("metadata: expected a key that may sign snapshot and timestamp, got "
                               f"{signing.public.fingerprint}",
                               hint="creators and routers may, and the station of the newest hop")
            return made

        return publish_checked(reference, transport, make, anchor=anchor, descriptor=descriptor, context=context,
                               start=start, meant=expected(reference, context),
                               proposal=proposal_tag(signing.public.fingerprint[7:19]))


def _descriptor(files: Files) -> TrainDescriptor:
    """Return what a state that nobody has verified says about its train."""
    targets = parsed(files, "targets").signed.targets
    found = [TrainDescriptor.parse(target.custom, what=path)
             for path, target in targets.items() if path.endswith("/train")]
    if len(found) != 1 or train_path(found[0].train) not in targets:
        raise UsageProblem("metadata targets: expected one train, got none or several")
    return found[0]


def _hop(
    files: Files, descriptor: TrainDescriptor, station: str, number: int
) -> tuple[HopStatement, Digest, int] | None:
    role, path = hop_role(station), hop_path(descriptor.train, station, number)
    target = None if newest(files, role) is None else parsed(files, role).signed.targets.get(path)
    if target is None:
        return None
    return (HopStatement.parse(target.custom, what=path), Digest("sha256", target.hashes["sha256"]), target.length)


def _with_roots(files: Files, roots: Sequence[bytes]) -> Files:
    for raw in roots:
        files = with_role(files, "root", raw, parse_root(raw, what="root").signed.version)
    return files


def _own_next_root(
    files: Files, station: str, key: VerifyKey | None, signing: SigningKey, context: Context
) -> tuple[bytes, ...]:
    """Return the next root where ``signing`` alone may sign it; none where the root does not name the station."""
    current = parsed(files, "root").signed
    consortium = read_consortium(current)
    if station not in consortium.stations:
        return ()
    holders = {holder.fingerprint for holder in consortium.keyholders.values()}
    if consortium.threshold > 1 or signing.public.fingerprint not in holders:
        raise UsageProblem(f"root: expected a new version without the old key of station {station!r}, got none",
                           hint="let the key holders make one with dtrain trust add-key or revoke-key and dtrain "
                                "trust sign, then give --root FILE")
    changed: Consortium = consortium.with_member("stations", station, key)
    root = draft_root(changed, version=current.version + 1, expires=context.now() + ROOT_LIFE)
    sign_root(root, signing, current)
    return (root.to_bytes(),)

