"""What trains ask for beyond TUF, each rule a function with its own error (docs/trust.rst has them in plain words).

R1 the chain of hops is complete and each builds on the one before. R2 whoever signed snapshot and timestamp may do so
now. R3 the metadata is of this train. R4 nobody published two states at once (:mod:`dtrain.trust.forks`). R5 a role
that is not in the snapshot is a stop that has not been visited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuf.api.metadata import TargetFile, Targets

from dtrain.errors import BadSignature, Expired, MalformedInput, MissingEvidence, Rollback, VerificationFailed
from dtrain.oci.digest import Digest
from dtrain.oci.strict_json import Fields
from dtrain.trust.anchor import Anchor
from dtrain.trust.attested import AttestedHop, AttestedTrain
from dtrain.trust.client import Client
from dtrain.trust.root import MEMBER, ONLINE, Consortium, Profile, read_consortium
from dtrain.trust.signers import fingerprint_of
from dtrain.trust.statements import (
    HopStatement,
    TrainDescriptor,
    hop_path,
    hop_pattern,
    hop_role,
    train_path,
)  # fmt: skip

CLOCK_SLACK = timedelta(minutes=5)
VERSIONS_PER_ROOT = 1_000_000  # states that a train has, between two roots; a busy one has some hundreds


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Which train the caller means: what is ``None`` is not known."""

    train: str | None = None
    name: str | None = None
    """The last part of the repository's name."""


def attested_train(
    client: Client, metadata: Digest, anchor: Anchor, expected: Expected, *, now: datetime
) -> AttestedTrain:
    """Return the train that refreshed metadata describes, after the rules R1, R2, R3 and R5.

    Raises:
        VerificationFailed: one of its kinds, for the first rule that does not hold.
    """
    consortium = read_consortium(client.root)
    new, descriptor = _new_train(client, consortium, expected)  # R3
    issued = _issued(client, descriptor, now)
    _check_versions(client)
    delegated = _delegations(client.targets, descriptor, consortium)
    hops = _hops(client, descriptor, new, anchor, consortium)  # R5, R1
    _check_online_signers(client, consortium, hops[-1])  # R2
    return AttestedTrain(
        anchor=anchor, consortium=consortium, descriptor=descriptor, hops=hops, metadata=metadata,
        delegated=delegated, root_version=client.root.version, version=client.timestamp.version, issued=issued,
        expires=client.timestamp.expires,
        stale=now - client.timestamp.expires if client.timestamp.is_expired(now) else None,
    )


def _new_train(client: Client, consortium: Consortium, expected: Expected) -> tuple[AttestedHop, TrainDescriptor]:
    """Return the train as its creator described it, and what he signed about it (R3)."""
    paths = [path for path in client.targets.targets if path.endswith("/train")]
    if len(paths) != 1:
        raise MissingEvidence(f"metadata: expected one train, got {len(paths)}")
    target = client.targets.targets[paths[0]]
    descriptor = TrainDescriptor.parse(target.custom, what=paths[0])
    if train_path(descriptor.train) != paths[0]:
        raise VerificationFailed(f"metadata: expected the train {descriptor.train!r} at its own path, got {paths[0]!r}")
    for what, want, got in (("train", expected.train, descriptor.train), ("name", expected.name, descriptor.name)):
        if want is not None and want != got:
            raise Rollback(
                f"metadata: expected that of the {what} {want!r}, got that of {got!r}",
                hint="someone exchanged trains, or the repository was renamed; if this is the train that you mean, "
                     f"say so with: --train {descriptor.train}")
    signers = _signers(client, "targets")
    creator = consortium.creators.get(descriptor.creator)
    if creator is None or creator.fingerprint not in signers:
        raise BadSignature(f"metadata targets: expected a signature of creator {descriptor.creator!r}, got that of "
                           f"{', '.join(map(consortium.holder, signers))}")
    builders = {key.fingerprint for key in consortium.builders.values()}
    if builders and not builders & set(signers):
        raise BadSignature("metadata targets: expected a signature of a builder beside the creator's, got none")
    return AttestedHop(number=descriptor.visited, station=None, digest=_digest(target), size=target.length,
                       statement=None, signers=tuple(map(consortium.holder, signers)), keys=signers), descriptor


def _issued(client: Client, descriptor: TrainDescriptor, now: datetime) -> datetime:
    """Return when the timestamp was signed, in a past that the clock here agrees with."""
    fields = Fields(client.timestamp.unrecognized_fields.get(MEMBER), f"metadata timestamp: {MEMBER}")
    if fields.required("train", str) != descriptor.train:
        raise Rollback(f"metadata timestamp: expected that of train {descriptor.train!r}, "
                       f"got that of {fields.required('train', str)!r}")
    if fields.required("snapshot", str) != client.signed_digest("snapshot"):
        raise Rollback(f"metadata snapshot {client.snapshot.version}: expected the content that the timestamp names, "
                       "got another", hint="two states of the same version were mixed; do not run this train")
    try:
        issued = datetime.fromisoformat(fields.required("issued", str))
        behind = now + CLOCK_SLACK < issued
        longer = client.timestamp.expires - issued - timedelta(days=descriptor.dwell_days)
    except (ValueError, TypeError):
        raise MalformedInput(f"{fields.path('issued')}: expected a date with its zone, got something else") from None
    if behind:
        raise Expired(f"clock: expected a time after {issued:%Y-%m-%d %H:%M} UTC, when the metadata was signed, "
                      f"got {now:%Y-%m-%d %H:%M} UTC", hint="set this machine's clock")
    if longer > timedelta(0):
        raise VerificationFailed(f"metadata timestamp: expected to expire within {descriptor.dwell_days} days, which "
                                 f"the creator allows, got {longer} more")
    return issued


def _check_versions(client: Client) -> None:
    """Check that no role has run ahead: a station could let versions jump so far that no honest one can follow.

    Each version of the root raises the limit, so that a consortium can go on after it has removed such a station.

    Raises:
        Rollback: one has.
    """
    limit = VERSIONS_PER_ROOT * client.root.version
    versions = {"timestamp": client.timestamp.version, "snapshot": client.snapshot.version,
                **{name: meta.version for name, meta in client.snapshot.meta.items()}}
    for role, version in versions.items():
        if version > limit:
            raise Rollback(f"metadata {role}: expected a version of at most {limit}, got {version}",
                           hint="somebody made the versions jump; the consortium can remove him with: "
                                "dtrain trust revoke")


def _delegations(
    targets: Targets, descriptor: TrainDescriptor, consortium: Consortium
) -> Mapping[str, frozenset[str]]:
    """Return the keys of each stop's role; the consortium's root and the creator have to agree on them."""
    delegations, keys = targets.delegations, {}
    roles = {} if delegations is None or delegations.roles is None else delegations.roles
    for station in descriptor.stations:
        role = roles.get(hop_role(station))
        if role is None or role.paths != [hop_pattern(descriptor.train, station)] or not role.terminating:
            raise MissingEvidence(f"metadata targets: expected a terminating delegation for station {station!r} and "
                                  "its own paths, got none")
        assert delegations is not None  # noqa: S101  it has this role
        if not set(role.keyids) <= set(delegations.keys):
            raise MalformedInput(f"metadata targets: station {station!r}: expected keys with these ids, got none")
        found = frozenset(fingerprint_of(delegations.keys[keyid]) for keyid in role.keyids)
        known = consortium.stations.get(station)
        allowed = {key.fingerprint for key in (known, consortium.creators[descriptor.creator]) if key is not None}
        if known is not None and not found <= allowed:
            raise BadSignature(f"metadata targets: station {station!r}: expected the key that the root names, "
                               f"{known.fingerprint}, got {', '.join(sorted(found))}")
        keys[station] = found
    return keys


def _hops(
    client: Client, descriptor: TrainDescriptor, new: AttestedHop, anchor: Anchor, consortium: Consortium
) -> tuple[AttestedHop, ...]:
    """Return the new train and the hops that have metadata, each building on the one before (R1)."""
    hops = [new]
    for number, station in enumerate(descriptor.stations, start=1):
        role = hop_role(station)
        if number <= new.number or f"{role}.json" not in client.snapshot.meta:
            continue  # R5: not visited yet, or by a station without metadata, which a later statement has to name
        path = hop_path(descriptor.train, station, number)
        client.target(path)
        target = client.role(role).targets.get(path)  # its own word: what it delegates further does not count
        if target is None:
            raise MissingEvidence(f"metadata {role}: expected the target {path}, got none")
        statement = HopStatement.parse(target.custom, what=path)
        told, expected = (statement.train, statement.number, statement.station), (descriptor.train, number, station)
        if told != expected:
            raise VerificationFailed(f"{path}: expected a statement on {expected}, got one on {told}")
        _check_chain(statement, hops[-1], descriptor, anchor)
        keys = _signers(client, role)
        hops.append(AttestedHop(number=number, station=station, digest=_digest(target), size=target.length,
                                signers=tuple(map(consortium.holder, keys)), keys=keys, statement=statement))
    return tuple(hops)


def _check_chain(statement: HopStatement, before: AttestedHop, descriptor: TrainDescriptor, anchor: Anchor) -> None:
    """Check that the statement's hop follows the one before, over hops without metadata that the anchor allows (R1)."""
    what = f"hop {statement.number} (station {statement.station})"
    between = tuple(enumerate(descriptor.stations, start=1))[before.number:statement.number - 1]
    if tuple((gap.number, gap.station) for gap in statement.unattested) != between:
        missing = ", ".join(station for _, station in between) or "none"
        raise MissingEvidence(f"{what}: expected a chain of hops without a gap, got no metadata of: {missing}",
                              hint="someone hides a hop; do not run this train")
    anchor.check_unattested(station for _, station in between)
    if not between and statement.parent != before.digest:
        raise VerificationFailed(f"{what}: expected that it builds on {before.digest}, got {statement.parent}",
                                 hint="the station ran another image than the one before it published")


def _check_online_signers(client: Client, consortium: Consortium, newest: AttestedHop) -> None:
    """Check that snapshot and timestamp are signed by who may do so now (R2)."""
    for role in ONLINE:
        signers = _signers(client, role)
        publishers = {key for key in signers if consortium.may_publish(key)}
        allowed = publishers | (set(signers) & set(newest.keys))
        if len(allowed) < client.root.roles[role].threshold or (
            consortium.profile is Profile.COSIGN and not publishers
        ):
            raise BadSignature(
                f"metadata {role}: expected a signature of a creator, a router or the station of the newest hop "
                f"({newest.station or 'none yet'}), got that of {', '.join(map(consortium.holder, signers))}",
                hint="a station that has passed the train on may not change its metadata any more")


def _signers(client: Client, role: str) -> tuple[str, ...]:
    """Return the fingerprints of the keys whose signatures over a role verify."""
    delegator = client.root if role in client.root.roles else client.targets
    keys = delegator.delegations.keys if isinstance(delegator, Targets) and delegator.delegations else client.root.keys
    return tuple(sorted({fingerprint_of(keys[keyid]) for keyid in client.signers(role, delegator=delegator)}))


def _digest(target: TargetFile) -> Digest:
    if set(target.hashes) != {"sha256"}:
        raise MalformedInput(f"{target.path}: expected the sha256 of an image manifest, got {', '.join(target.hashes)}")
    return Digest.parse(f"sha256:{target.hashes['sha256']}", what=target.path)
