"""States that were published side by side: found by their tags, compared by what is signed in them (R4).

Every publisher puts his state's own tag before ``tuf`` moves. So a state that lost a race, or that somebody hides by
moving ``tuf`` back, can still be found, for as long as its tag is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from dtrain.errors import DtrainError, Rollback
from dtrain.transport.protocol import Transport
from dtrain.trust.artifact import Artifact, StoredFiles, fetch_artifact, file_name, parse_commit_tag, parse_name
from dtrain.trust.editor import Files, newest, parsed, with_role
from dtrain.trust.root import MEMBER, parse_root
from dtrain.trust.statements import hop_role

OTHERS_MAX = 64  # states looked at beside the head


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A state that stands beside the head, or beyond it."""

    artifact: Artifact
    files: Files = field(repr=False)
    version: int
    built_on: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What another state has that ours lacks, each piece with a signature that verifies."""

    newer: Mapping[str, tuple[int, bytes]]
    """Roles of which it has a newer version."""
    contradicting: tuple[str, ...]
    """Roles of which it has the same version with another content."""


def timestamp_note(files: Files) -> Mapping[str, Any]:
    """Return what dtrain wrote into the timestamp: issued, prev, merged, train."""
    note = parsed(files, "timestamp").signed.unrecognized_fields.get(MEMBER)
    return note if isinstance(note, dict) else {}


def others(transport: Transport, head: Artifact, files: Files, tags: Iterable[str]) -> list[Other]:
    """Return the states of the head's version and later ones that are not merged into it.

    Those that are no states, or that nobody who may publish has signed, are passed over: anyone with access to the
    registry could put them there.
    """
    root: Root = parsed(files, "root").signed
    version, train = parsed(files, "timestamp").signed.version, timestamp_note(files).get("train")
    joined = timestamp_note(files).get("merged")
    known = {head.digest.short, *(map(str, joined) if isinstance(joined, list) else ())}
    found = []
    candidates = sorted((commit, tag) for tag in tags if (commit := parse_commit_tag(tag)) is not None
                        and commit[0] >= version and commit[1] not in known)
    if len(candidates) > OTHERS_MAX:
        raise Rollback(f"{transport.place}: expected at most {OTHERS_MAX} states of metadata beside the newest, "
                       f"got {len(candidates)}", hint="someone hides something among them, or is in the way; remove "
                                                      "the tags tuf-… that nobody published")
    for (number, short), tag in candidates:
        try:
            artifact = fetch_artifact(transport, tag)
            if artifact is None or artifact.digest.short != short:
                continue
            theirs = StoredFiles(transport, artifact)
            timestamp = parsed(theirs, "timestamp")
            signed = any(root.get_verification_result("timestamp", timestamp.signed_bytes, timestamp.signatures).signed)
        except (DtrainError, RepositoryError, ValueError):
            continue
        if signed and timestamp.signed.version == number and timestamp_note(theirs).get("train") == train:
            prev = timestamp_note(theirs).get("prev")
            found.append(Other(artifact=artifact, files=theirs, version=number,
                               built_on=prev if isinstance(prev, str) else None))
    return found


def difference(ours: Files, theirs: Files) -> Difference:
    """Return what ``theirs`` has that ``ours`` lacks; only what verifies with our root and targets counts."""
    newer: dict[str, tuple[int, bytes]] = {}
    contradicting = []
    root: Root = parsed(ours, "root").signed
    targets: Targets = parsed(ours, "targets").signed
    delegated = {} if targets.delegations is None else targets.delegations.roles or {}
    for role in sorted({named[0] for name in theirs if (named := parse_name(name)) is not None}):
        if role != "targets" and role not in delegated:
            continue  # not fetched: nobody may sign it
        own, other = newest(ours, role), newest(theirs, role)
        if other is None or (own is not None and own[0] > other[0]):
            continue
        try:
            metadata: Metadata[Any] = parsed(theirs, role)
            (root if role == "targets" else targets).verify_delegate(
                role, metadata.signed_bytes, metadata.signatures)
        except (DtrainError, RepositoryError, ValueError):
            continue  # not signed by who may: it is nobody's state
        if metadata.signed.version != other[0] or (role == "targets" and set(metadata.signed.targets) != set(
                targets.targets)):
            continue
        if own is None or own[0] < other[0]:
            newer[role] = other
        elif (metadata.signed.targets, metadata.signed.delegations) != (
            (mine := parsed(ours, role).signed).targets, mine.delegations
        ):
            contradicting.append(role)
    return Difference(newer=newer, contradicting=tuple(contradicting))


def check_forks(transport: Transport, head: Artifact, files: Files, *, station: str | None,
                vouch: Callable[[], None]) -> list[str]:
    """Check that no other state contradicts the head, and that nobody moved ``tuf`` back (R4).

    A state whose content is all in the head tells nothing, whatever its number: any station's key can sign one.

    A state that was begun and not finished looks like a newest state that somebody hides. For everyone but the station
    whose hop is in it that makes no difference: it is not their turn.

    Args:
        transport: where metadata is kept.
        head: the state that ``tuf`` names.
        files: its files.
        station: who is about to run the train.
        vouch: checks the files before they are compared with others.

    Returns:
        Warnings about states that were begun and not finished.

    Raises:
        Rollback: two states of one version that differ, later states than the head, or a hop of ``station`` in one.
    """
    warnings: list[str] = []
    found_others = others(transport, head, files, transport.tags())
    if found_others:
        vouch()
    for other in found_others:
        found = difference(files, other.files)
        what = f"{transport.place}: metadata state {other.version} ({other.artifact.digest.short})"
        if station is not None and hop_role(station) in found.newer:
            raise Rollback(f"{what}: expected no hop of station {station!r} yet, got one that is signed",
                           hint="if your push-results was interrupted, repeat it; else someone moved the tag tuf back")
        if not found.newer and not found.contradicting:
            continue
        if other.version > parsed(files, "timestamp").signed.version and other.built_on == str(head.digest):
            warnings.append(f"{what} was begun and not finished: its publisher should repeat the command")
        elif other.version > parsed(files, "timestamp").signed.version:
            raise Rollback(f"{what}: expected it, or a later one, under the tag tuf, got an older one",
                           hint="someone moved the tag back; do not run this train")
        else:
            raise Rollback(
                f"{what}: expected one state of this version, got two that differ in "
                f"{', '.join((*found.newer, *found.contradicting))}",
                hint="two parties published at the same moment; one of them, or the creator, can join both with: "
                     "dtrain trust refresh")
    return warnings


def merged(ours: Files, theirs: Files) -> Files:
    """Return our state with every newer role of theirs; where both have a version of a role, ours stays."""
    ours = _with_newer_roots(ours, theirs)
    found = difference(ours, theirs).newer
    if "targets" in found:
        ours = with_role(ours, "targets", found["targets"][1], found["targets"][0])
        found = difference(ours, theirs).newer  # other delegations may hold now
    for role, (version, raw) in found.items():
        ours = with_role(ours, role, raw, version)
    return ours


def _with_newer_roots(ours: Files, theirs: Files) -> Files:
    """Return our state with every newer root of theirs that the one before it vouches for (TUF 5.3)."""
    while True:
        root: Root = parsed(ours, "root").signed
        raw = theirs.get(file_name("root", root.version + 1))
        if raw is None:
            return ours
        try:
            following = parse_root(raw, what="root")
            root.verify_delegate("root", following.signed_bytes, following.signatures)
            following.signed.verify_delegate("root", following.signed_bytes, following.signatures)
        except (DtrainError, RepositoryError, ValueError):
            return ours
        if following.signed.version != root.version + 1:
            return ours
        ours = with_role(ours, "root", raw, following.signed.version)
