"""Publishing a new state so that no other publisher's work is lost, on registries without compare-and-swap.

Everybody puts his state's own tag first, then moves ``tuf``, then lists the tags. Of two who publish at once, whoever
lists last sees the other's tag, because that was put before the other one listed; he joins both states and publishes
the result. Who is killed in between leaves his state under its own tag, and the next publisher joins it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tuf.api.metadata import Root

from dtrain.errors import Conflict, NotFound, WrongKey
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.transport.protocol import Transport
from dtrain.trust.artifact import (
    HEAD,
    Artifact,
    StoredFiles,
    commit_tag,
    fetch_artifact,
    make_artifact,
    parse_commit_tag,
    store_artifact,
)  # fmt: skip
from dtrain.trust.editor import Files, Made, parsed
from dtrain.trust.forks import Other, difference, merged, others
from dtrain.trust.rules import VERSIONS_PER_ROOT

ATTEMPTS = 30
BACKOFF = 0.05, 0.4  # seconds
JUMP_MAX = 100  # versions that states ahead of the head are followed without anything new in them


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a new state is built on."""

    files: Files = field(repr=False)
    """The head with everything joined; empty for the first state."""
    head: Digest | None
    joined: tuple[str, ...]
    """Shortened digests of the states that were joined."""
    seen: frozenset[str]
    """Shortened digests of all states that had a tag then: joined, older, or nobody's."""
    floor: int
    """The highest version that any of them has."""
    subjects: tuple[Descriptor, ...]
    """The images that these states are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedState:
    """A state that others can see."""

    artifact: Artifact
    files: Files = field(repr=False)
    version: int
    complete: bool
    """Whether enough keys have signed it; else it is a proposal under a tag of its own."""


def publish(
    transport: Transport, make: Callable[[Basis], Made | None], *,
    subject: Callable[[Files, Sequence[Descriptor]], Descriptor], proposal: str | None = None,
    start: str | None = None, verify: Callable[[Files, Digest], None] = lambda files, digest: None,
    wait: Callable[[float], None] = time.sleep,
) -> PublishedState:
    """Publish what ``make`` gives, made again on every new basis until nobody else's work would be lost.

    Args:
        transport: where metadata is kept.
        make: gives a new state, or ``None`` when the head holds the change already and nothing was joined.
        subject: gives the descriptor of the newest hop's image in a state, out of known ones if it is among them.
        proposal: the tag for a state that needs further signatures.
        start: the tag of the state to build on instead of the head, which is given up with all that is beside it.
        verify: checks the state to build on, before anything of it is signed anew.
        wait: sleeps for seconds.

    Raises:
        Conflict: others kept publishing, or ``make`` found that its change contradicts theirs.
    """
    for _ in range(ATTEMPTS):
        head = fetch_artifact(transport)
        basis = _basis(transport, head, verify) if start is None else _restart(transport, head, start, verify)
        made = make(basis)
        if made is None:
            if basis.joined or head is None:
                raise RuntimeError("make has to give a new state when there is none, or others were joined")
            return PublishedState(artifact=head, files=basis.files, version=_version(basis.files), complete=True)
        if not made.complete and proposal is None:
            raise WrongKey("metadata: expected a key that may sign snapshot and timestamp alone, got another",
                           hint="creators and routers may, and the station of the newest hop")
        artifact = make_artifact(made.files, subject=subject(made.files, basis.subjects))
        version = _version(made.files)
        known = frozenset() if head is None else frozenset(one.digest for one in head.files.values())
        store_artifact(transport, artifact, made.files, known=known)
        if not made.complete and proposal is not None:
            transport.put_tag(proposal, artifact.manifest)
            return PublishedState(artifact=artifact, files=made.files, version=version, complete=False)
        transport.put_tag(commit_tag(version, artifact.digest), artifact.manifest)
        if transport.resolve(HEAD) == basis.head and _moved(transport, artifact, basis) and not _rivals(
            transport, artifact, version, basis
        ):
            return PublishedState(artifact=artifact, files=made.files, version=version, complete=True)
        wait(random.uniform(*BACKOFF))  # noqa: S311  no secret
    raise Conflict(f"{transport.place}: expected to publish metadata, got other publishers {ATTEMPTS} times",
                   hint="nothing is lost; repeat the command")


def _moved(transport: Transport, artifact: Artifact, basis: Basis) -> bool:
    try:
        transport.put_tag(HEAD, artifact.manifest, replacing=basis.head)
    except Conflict:
        return False
    return True


def _rivals(transport: Transport, artifact: Artifact, version: int, basis: Basis) -> bool:
    """Return whether another state appeared that may have been built on the same basis."""
    return any(commit[0] >= version and commit[1] not in basis.seen and commit[1] != artifact.digest.short
               for tag in transport.tags() if (commit := parse_commit_tag(tag)) is not None)


def _basis(transport: Transport, head: Artifact | None, verify: Callable[[Files, Digest], None]) -> Basis:
    """Return the verified head with what others published beside it; of contradicting hops the head's stands."""
    try:
        tags = transport.tags()
    except NotFound:  # the place is made by what is put there first
        tags = ()
    seen = frozenset(commit[1] for tag in tags if (commit := parse_commit_tag(tag)) is not None)
    if head is None:
        return Basis(files={}, head=None, joined=(), seen=seen, floor=0, subjects=())
    files: Files = StoredFiles(transport, head)
    verify(files, head.digest)
    floor, joined, subjects = _version(files), [], [head.manifest.subject]
    for other in others(transport, head, files, tags):
        if _is_far(other, files, floor):
            continue
        files = merged(files, other.files)
        floor = max(floor, other.version)
        joined.append(other.artifact.digest.short)
        subjects.append(other.artifact.manifest.subject)
    return Basis(files=files, head=head.digest, joined=tuple(joined), seen=seen, floor=floor,
                 subjects=tuple(one for one in subjects if one is not None))


def _is_far(other: Other, files: Files, floor: int) -> bool:
    """Return whether nothing is new in a state but its number, which any station's key can choose."""
    return other.version > floor + JUMP_MAX and not difference(files, other.files).newer


def _restart(
    transport: Transport, head: Artifact | None, start: str, verify: Callable[[Files, Digest], None]
) -> Basis:
    """Return an earlier state, with everything later declared joined, so that nobody takes it for a fork.

    Raises:
        NotFound: there is no such state.
    """
    chosen = fetch_artifact(transport, start)
    if chosen is None or head is None:
        raise NotFound(f"{transport.place}: {start}: expected a state of metadata, got none",
                       hint="dtrain inspect lists them")
    files = StoredFiles(transport, chosen)
    verify(files, chosen.digest)
    root: Root = parsed(files, "root").signed
    tags, floor = transport.tags(), _version(files)
    commits = [commit for tag in tags if (commit := parse_commit_tag(tag)) is not None]
    for other in others(transport, chosen, files, tags):
        if other.version <= VERSIONS_PER_ROOT * root.version and not _is_far(other, files, floor):
            floor = max(floor, other.version)
    beyond = {short for number, short in commits if number > floor}  # those of the floor are older than what follows
    return Basis(files=files, head=head.digest, joined=tuple(beyond), floor=floor,
                 seen=frozenset(short for _, short in commits),
                 subjects=() if chosen.manifest.subject is None else (chosen.manifest.subject,))


def _version(files: Files) -> int:
    version: int = parsed(files, "timestamp").signed.version
    return version
