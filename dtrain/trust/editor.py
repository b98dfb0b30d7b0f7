"""Making a new state of a train's metadata out of an older one. Who may is checked by whoever reads it.

A state is its files by name. Files that do not change keep their bytes. Versions only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)  # fmt: skip

from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import MalformedInput, MissingEvidence
from dtrain.oci.digest import Digest
from dtrain.trust.artifact import file_name, parse_name
from dtrain.trust.client import tuf_errors
from dtrain.trust.root import MEMBER, ONLINE
from dtrain.trust.signers import keyid_of, signer, tuf_key
from dtrain.trust.statements import HopStatement, TrainDescriptor, hop_path, hop_pattern, hop_role, train_path

Files = Mapping[str, bytes]
"""A state: metadata by file name."""

SNAPSHOT_LIFE = timedelta(days=90)
_KINDS = {"root": Root, "snapshot": Snapshot, "timestamp": Timestamp}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new state, and whether enough keys have signed its online roles for others to accept it."""

    files: Files = field(repr=False)
    complete: bool


def newest(files: Files, role: str) -> tuple[int, bytes] | None:
    """Return the newest version of a role and its bytes, or ``None`` when there is none."""
    found = [(named[1] or 0, name) for name in files
             if (named := parse_name(name)) is not None and named[0] == role]
    version, name = max(found, default=(0, ""))
    return (version, files[name]) if name else None


def parsed(files: Files, role: str) -> Metadata[Any]:
    """Return the newest metadata of a role.

    Raises:
        MissingEvidence: there is none.
        MalformedInput: it is no metadata.
    """
    found = newest(files, role)
    if found is None:
        raise MissingEvidence(f"metadata: expected the role {role}, got none")
    with tuf_errors():
        metadata: Metadata[Any] = Metadata.from_bytes(found[1])
    if not isinstance(metadata.signed, _KINDS.get(role, Targets)):
        raise MalformedInput(f"metadata {role}: expected metadata of that role, got {metadata.signed.type}")
    return metadata


def with_role(files: Files, role: str, raw: bytes, version: int) -> dict[str, bytes]:
    """Return the state with a role's new version in place of its older ones; roots are all kept (TUF 5.3.3)."""
    kept = {name: data for name, data in files.items()
            if role == "root" or (parse_name(name) or ("", None))[0] != role}
    return {**kept, file_name(role, version): raw}


def with_train(
    files: Files, descriptor: TrainDescriptor, *, digest: Digest, size: int, stations: Mapping[str, VerifyKey],
    signing: Sequence[SigningKey],
) -> dict[str, bytes]:
    """Return the state with the creator's targets: the new train's image, and a delegation for each stop.

    Args:
        files: the older state.
        descriptor: what the creator says about the train.
        digest: of the new train's image manifest.
        size: of the new train's image manifest, in bytes.
        stations: the key that each station signs metadata with.
        signing: the creator's key, and the builder's where the consortium has builders.
    """
    before = newest(files, "targets")
    keys: dict[str, Key] = {keyid_of(key): tuf_key(key) for key in stations.values()}
    roles = {hop_role(station): DelegatedRole(
        hop_role(station), [keyid_of(stations[station])], 1, True, [hop_pattern(descriptor.train, station)])
        for station in descriptor.stations}
    path = train_path(descriptor.train)
    targets = Targets(
        version=1 if before is None else before[0] + 1, expires=descriptor.deadline,
        targets={path: _target(path, digest, size, descriptor.to_custom())}, delegations=Delegations(keys, roles))
    return with_role(files, "targets", _sign(targets, signing), targets.version)


def with_delegation(
    files: Files, descriptor: TrainDescriptor, station: str, keys: Sequence[VerifyKey],
    signing: Sequence[SigningKey],
) -> dict[str, bytes]:
    """Return the state with a station's role delegated to other keys; the rest of the targets stays.

    Args:
        files: the older state.
        descriptor: of the train.
        station: whose role.
        keys: who may sign it now.
        signing: the creator's key, and the builder's where the consortium has builders.
    """
    targets: Targets = parsed(files, "targets").signed
    role = hop_role(station)
    if targets.delegations is None or targets.delegations.roles is None or role not in targets.delegations.roles:
        raise MissingEvidence(f"metadata targets: expected a delegation for station {station!r}, got none")
    for keyid in list(targets.delegations.roles[role].keyids):
        targets.revoke_key(keyid, role)
    for key in keys:
        targets.add_key(tuf_key(key), role)
    targets.version += 1
    return with_role(files, "targets", _sign(targets, signing), targets.version)


def with_hop(
    files: Files, statement: HopStatement, *, digest: Digest, size: int, expires: datetime, signing: SigningKey
) -> dict[str, bytes]:
    """Return the state with a station's statement on its hop.

    Args:
        files: the older state.
        statement: what the station says.
        digest: of the hop's image manifest.
        size: of the hop's image manifest, in bytes.
        expires: the train's deadline.
        signing: the station's key.
    """
    role = hop_role(statement.station)
    before = newest(files, role)
    path = hop_path(statement.train, statement.station, statement.number)
    targets = Targets(version=1 if before is None else before[0] + 1, expires=expires,
                      targets={path: _target(path, digest, size, statement.to_custom())})
    return with_role(files, role, _sign(targets, [signing]), targets.version)


def finished(
    files: Files, *, train: str, signing: Sequence[SigningKey], now: datetime, expires: datetime,
    built_on: Digest | None, merged: Iterable[str], floor: int,
) -> Made:
    """Return the state with a new snapshot and timestamp over all of its roles.

    Args:
        files: the state.
        train: the train's id.
        signing: who signs; keys that the root does not name for these roles are left out.
        now: when.
        expires: when the next station must have taken the train.
        built_on: the state before.
        merged: digests, shortened as in commit tags, of states of the same version whose content is in this one.
        floor: a version that the new ones have to exceed.
    """
    root: Root = parsed(files, "root").signed
    targets = {role: raw for role in _target_roles(files) if (raw := newest(files, role)) is not None}
    older = newest(files, "snapshot")
    version = max(floor, 0 if older is None else older[0]) + 1
    snapshot = Snapshot(version=version, expires=max(now + SNAPSHOT_LIFE, expires), meta={
        f"{role}.json": _meta(*found) for role, found in targets.items()})
    state = with_role(files, "snapshot", _sign(snapshot, _allowed(root, "snapshot", signing)), version)
    before = newest(files, "timestamp")
    number = max(floor, 0 if before is None else parsed(files, "timestamp").signed.version) + 1
    timestamp = Timestamp(version=number, expires=expires, snapshot_meta=MetaFile(version), unrecognized_fields={
        MEMBER: {"train": train, "issued": now.isoformat(), "prev": None if built_on is None else str(built_on),
                 "merged": sorted(merged), "snapshot": Digest.of(Metadata(snapshot).signed_bytes).hex}})
    state = with_role(state, "timestamp", _sign(timestamp, _allowed(root, "timestamp", signing)), number)
    return Made(files=state, complete=is_complete(state))


def cosigned(files: Files, signing: SigningKey) -> Made:
    """Return a proposed state with one more signature under its snapshot and timestamp.

    A signature changes the snapshot's bytes; that is why timestamps name its content, not its file.
    """
    state = dict(files)
    for role in ONLINE:
        metadata = parsed(state, role)
        metadata.sign(signer(signing), append=True)
        state = with_role(state, role, metadata.to_bytes(), metadata.signed.version)
    return Made(files=state, complete=is_complete(state))


def is_complete(files: Files) -> bool:
    """Return whether enough keys have signed the online roles."""
    root: Root = parsed(files, "root").signed
    for role in ONLINE:
        metadata = parsed(files, role)
        if not root.get_verification_result(role, metadata.signed_bytes, metadata.signatures).verified:
            return False
    return True


def _target_roles(files: Files) -> list[str]:
    return sorted({named[0] for name in files if (named := parse_name(name)) is not None
                   and named[0] not in ("root", *ONLINE)})


def _allowed(root: Root, role: str, signing: Sequence[SigningKey]) -> list[SigningKey]:
    return [key for key in signing if keyid_of(key.public) in root.roles[role].keyids]


def _sign(signed: Any, signing: Sequence[SigningKey]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for key in signing:
        metadata.sign(signer(key), append=True)
    return metadata.to_bytes()


def _target(path: str, digest: Digest, size: int, custom: Mapping[str, Any]) -> TargetFile:
    return TargetFile(length=size, hashes={"sha256": digest.hex}, path=path,
                      unrecognized_fields={"custom": dict(custom)})


def _meta(version: int, raw: bytes) -> MetaFile:
    return MetaFile(version=version, length=len(raw), hashes={"sha256": Digest.of(raw).hex})
