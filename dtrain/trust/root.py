"""The root of trust: who belongs to a consortium, and which keys may sign what (TUF 4.3; docs/trust.rst).

A :class:`Consortium` is rendered into root metadata and read back from it. Its members' names stand in the signed
member ``dtrain`` of the root, beside the roles that TUF itself knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Role, Root
from tuf.api.serialization import DeserializationError, SerializationError

from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import BadSignature, MalformedInput, UsageProblem, WrongKey
from dtrain.oci.strict_json import Fields
from dtrain.trust.signers import fingerprint_of, keyid_of, signer, tuf_key, verify_key

ONLINE = ("snapshot", "timestamp")
MEMBER = "dtrain"
GROUPS = ("keyholders", "creators", "builders", "routers", "stations")


class Profile(StrEnum):
    """Who signs snapshot and timestamp."""

    SHARED = "shared"
    """Creators, routers or stations, one signature."""
    ROUTER = "router"
    """Creators or routers, one signature; stations propose."""
    COSIGN = "cosign"
    """Two of creators, routers and stations; a station's hop needs a second signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """The members by kind and name, each with the key that it signs metadata with."""

    keyholders: Mapping[str, VerifyKey] = field(hash=False)
    """Who signs the root."""
    threshold: int = 1
    """How many of them have to."""
    creators: Mapping[str, VerifyKey] = field(hash=False)
    builders: Mapping[str, VerifyKey] = field(default_factory=dict, hash=False)
    """When there are any, one of them has to sign each train beside its creator."""
    routers: Mapping[str, VerifyKey] = field(default_factory=dict, hash=False)
    stations: Mapping[str, VerifyKey] = field(default_factory=dict, hash=False)
    profile: Profile = Profile.SHARED

    def group(self, name: str) -> Mapping[str, VerifyKey]:
        """Return the members of one kind."""
        members: Mapping[str, VerifyKey] = getattr(self, name)
        return members

    def holder(self, fingerprint: str) -> str:
        """Return whose key that is, for people: ``station aachen``."""
        for group in ("creators", "builders", "routers", "stations", "keyholders"):
            for name, key in self.group(group).items():
                if key.fingerprint == fingerprint:
                    return f"{group.removesuffix('s')} {name}"
        return f"key {fingerprint[:19]}"

    def may_publish(self, fingerprint: str) -> bool:
        """Return whether the key may sign the online roles at any time, not only after its own hop."""
        return any(key.fingerprint == fingerprint for key in (*self.creators.values(), *self.routers.values()))

    def with_member(self, group: str, name: str, key: VerifyKey | None) -> Consortium:
        """Return the consortium with a member's key set, or the member removed.

        Raises:
            UsageProblem: there is no such member to remove.
        """
        members = dict(self.group(group))
        if key is None and name not in members:
            raise UsageProblem(f"{group}: expected a member {name!r} to remove, got none of that name")
        members.pop(name, None)
        changed: dict[str, Any] = {group: members if key is None else {**members, name: key}}
        return replace(self, **changed)


def draft_root(consortium: Consortium, *, version: int, expires: datetime) -> Metadata[Root]:
    """Return unsigned root metadata.

    Raises:
        UsageProblem: no creator, or a threshold that cannot be met.
    """
    if not consortium.creators:
        raise UsageProblem("root: expected at least one creator, got none")
    if not 1 <= consortium.threshold <= len({key.fingerprint for key in consortium.keyholders.values()}):
        raise UsageProblem(f"root: expected a threshold from 1 to {len(consortium.keyholders)}, the number of its "
                           f"keys, got {consortium.threshold}")
    publishers = [*consortium.creators.values(), *consortium.routers.values()]
    if consortium.profile is not Profile.ROUTER:
        publishers += consortium.stations.values()
    root = Root(version=version, expires=expires, consistent_snapshot=True)
    signing = [*consortium.creators.values(), *consortium.builders.values()]
    online = 2 if consortium.profile is Profile.COSIGN else 1
    for role, keys, threshold in (
        ("root", consortium.keyholders.values(), consortium.threshold),
        ("targets", signing, 2 if consortium.builders else 1),
        *((role, publishers, online) for role in ONLINE),
    ):
        for key in keys:
            root.add_key(tuf_key(key), role)
        root.roles[role].threshold = threshold
    listed = {group: {name: keyid_of(key) for name, key in consortium.group(group).items()} for group in GROUPS}
    for keyid, key in {keyid_of(key): key for group in GROUPS for key in consortium.group(group).values()}.items():
        root.keys.setdefault(keyid, tuf_key(key))  # stations of the router profile: named, without a role
    root.unrecognized_fields[MEMBER] = {**listed, "profile": str(consortium.profile)}
    return Metadata(root)


def read_consortium(root: Root) -> Consortium:
    """Return the consortium that trusted root metadata describes.

    Raises:
        MalformedInput: it has no such description, or one that its keys and roles do not bear out.
    """
    fields = Fields(root.unrecognized_fields.get(MEMBER), f"root {root.version}: {MEMBER}")
    groups: dict[str, Any] = {}
    for group in GROUPS:
        groups[group] = {name: _member(root, keyid, fields.path(group))
                         for name, keyid in fields.string_map(group).items()}
    profile = fields.required("profile", str)
    if profile not in list(Profile):
        raise MalformedInput(f"{fields.path('profile')}: expected one of {', '.join(Profile)}, got {profile[:40]!r}")
    for role in root.roles.values():
        if not set(role.keyids) <= set(root.keys):
            raise MalformedInput(f"root {root.version}: expected keys with the ids that its roles name, got none")
        keys = [fingerprint_of(root.keys[keyid]) for keyid in role.keyids]
        if len(set(keys)) != len(keys):  # else one key could meet a threshold of two
            raise MalformedInput(f"root {root.version}: expected each key once in a role, got one twice")
    found = Consortium(**groups, threshold=root.roles["root"].threshold, profile=Profile(profile))
    try:
        expected = draft_root(found, version=root.version, expires=root.expires).signed
    except UsageProblem as error:
        raise MalformedInput(f"root {root.version}: {error}") from None
    for name in ("root", "targets", *ONLINE):
        wanted, got = expected.roles[name], root.roles[name]
        if (_keys(expected, wanted), wanted.threshold) != (_keys(root, got), got.threshold):
            raise MalformedInput(f"root {root.version}: role {name}: expected the keys of the members it names, "
                                 "got others")
    return found


def _member(root: Root, keyid: str, path: str) -> VerifyKey:
    key = root.keys.get(keyid)
    if key is None:
        raise MalformedInput(f"{path}: expected ids of keys in the root, got {keyid[:40]!r}")
    return verify_key(key)


def _keys(root: Root, role: Role) -> set[str]:
    return {fingerprint_of(root.keys[keyid]) for keyid in role.keyids}


def parse_root(raw: bytes, *, what: str) -> Metadata[Root]:
    """Return root metadata; nothing about it is checked.

    Raises:
        MalformedInput: it is none.
    """
    try:
        parsed: Metadata[Root] = Metadata.from_bytes(raw)
    except DeserializationError as error:
        raise MalformedInput(f"{what}: expected TUF root metadata, got: {error}") from None
    if not isinstance(parsed.signed, Root):
        raise MalformedInput(f"{what}: expected TUF root metadata, got {parsed.signed.type}")
    return parsed


def sign_root(metadata: Metadata[Root], key: SigningKey, previous: Root | None) -> None:
    """Add a key holder's signature.

    Args:
        metadata: the root.
        key: the private key.
        previous: the root before, whose key holders have to sign as well.

    Raises:
        WrongKey: not the key of a key holder.
    """
    holders = _keys(metadata.signed, metadata.signed.roles["root"])
    if previous is not None:
        holders |= _keys(previous, previous.roles["root"])
    if key.public.fingerprint not in holders:
        raise WrongKey(f"root {metadata.signed.version}: expected the key of one of its key holders, "
                       f"got {key.public.fingerprint}")
    metadata.sign(signer(key), append=True)


def missing_signatures(metadata: Metadata[Root], previous: Root | None) -> int:
    """Return how many signatures the root still lacks, by its own threshold and by that of the one before."""
    result = metadata.signed.get_root_verification_result(previous, metadata.signed_bytes, metadata.signatures)
    return max(result.first.missing, result.second.missing)


def check_pinned(metadata: Metadata[Root], pinned: Iterable[str], threshold: int, *, source: str) -> None:
    """Check that enough of the pinned keys have signed the root.

    Args:
        metadata: the root, from a place that nobody trusts.
        pinned: fingerprints.
        threshold: how many of them have to sign.
        source: who pins them, for messages.

    Raises:
        BadSignature: too few have.
    """
    wanted, found = set(pinned), set()
    try:
        signed = metadata.signed_bytes
    except SerializationError:
        raise MalformedInput(f"root {metadata.signed.version}: expected canonical JSON, got numbers that it has not"
                             ) from None
    for keyid, signature in metadata.signatures.items():
        key: Key | None = metadata.signed.keys.get(keyid)
        if key is not None and (fingerprint := fingerprint_of(key)) in wanted:
            try:
                key.verify_signature(signature, signed)
            except UnverifiedSignatureError:
                continue
            found.add(fingerprint)
    if len(found) < threshold:
        raise BadSignature(f"root {metadata.signed.version}: expected signatures of {threshold} keys pinned by "
                           f"{source}, got {len(found)}", hint="the metadata belongs to another consortium")
