"""``dtrain forward``: move a train with all that belongs to it between repositories, registries and layouts.

What makes it visible goes last: the images of hops, states of the metadata, the newest state, ``base``, and at the end
the train's own tag, on which PHT routers act. Within one registry no bytes move.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dtrain.errors import Conflict, MalformedInput, NotFound, StorageProblem, UsageProblem
from dtrain.flow.build import BASE_TAG
from dtrain.flow.context import Context
from dtrain.flow.verify import verify
from dtrain.oci.digest import Digest
from dtrain.oci.reference import DEFAULT_TAG, Reference
from dtrain.train.route import parse_hop_tag
from dtrain.transport.copy import copy_image
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.trust.artifact import HEAD, parse_commit_tag

_REFERRERS = re.compile(r"(sha256)-([0-9a-f]{64})")  # distribution-spec: referrers tag schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """A train at its new place."""

    reference: Reference
    """Pinned."""
    tags: tuple[str, ...]
    """What was copied, in that order."""


def forward(
    source: Reference, target: Reference, *, trust: Anchor | EmbeddedKeys | None, context: Context
) -> Forwarded:
    """Copy the train at ``source``, its hops and its metadata to ``target``; verify it before and after.

    Args:
        source: the train; its tag is the one that is put last.
        target: the repository or layout to copy to, without a tag.
        trust: what is trusted from outside; ``None`` copies without verifying.
        context: the surroundings.

    Raises:
        Conflict: another train, or a later hop of this one, is at ``target``.
        VerificationFailed: the train does not hold, and nothing was copied; or it does not hold at ``target``.
        TransportError: a place refuses or cannot be reached; repeating the call goes on.
    """
    if target.tag is not None or target.digest is not None or source.digest is not None:
        raise UsageProblem(f"{source}, {target}: expected a train by its tag and a place without tag, got others")
    apart = context.trust_repository or (trust.root.repository if isinstance(trust, Anchor) and trust.root else None)
    if apart is not None:
        context.warn(f"the train's metadata stays in {apart}: whoever gets the copy has to reach it there")
    if trust is not None:
        verify(source, trust=trust, context=context)
    last = source.tag or DEFAULT_TAG
    with context.connect(source) as here, context.connect(target) as there:
        tags = _in_order(here.tags(), last)
        digests = {tag: digest for tag in tags if (digest := here.resolve(tag)) is not None}
        _check_vacant(there, target, last, digests)
        mount = source.repository if source.host and source.host == target.host else None
        for tag in tags:
            copy_image(here, tag, there, [tag], mount_from=mount)
    moved = replace(target, tag=last)
    if trust is not None:
        verify(moved, trust=trust, context=context)
    return Forwarded(reference=moved.pinned(digests[last]), tags=tags)


def bundle(
    source: Reference, file: Path, *, trust: Anchor | EmbeddedKeys | None, context: Context
) -> Forwarded:
    """Write the train at ``source`` with all that belongs to it into one tar file: an OCI layout, to be carried.

    Raises:
        UsageProblem: the file is there already.
        StorageProblem: it cannot be written.
        DtrainError: as :func:`forward` raises.
    """
    if file.exists():
        raise UsageProblem(f"{file}: expected no file there, got one", hint="choose another name")
    with TemporaryDirectory(prefix=".dtrain-bundle-", dir=file.absolute().parent) as name:
        layout = Reference(layout=Path(name) / source.name)
        made = forward(source, layout, trust=None, context=context)
        if trust is not None:
            verify(replace(layout, tag=made.reference.tag), trust=trust, context=context)
        draft = Path(name) / "bundle.tar"
        try:
            with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
                tar.add(Path(name) / source.name, arcname=source.name, filter=_anonymous)
            draft.rename(file)
        except OSError as error:
            raise StorageProblem(f"{file}: expected to write it, got: {error.strerror}") from error
    return replace(made, reference=source.with_tag(made.reference.tag or DEFAULT_TAG).pinned(
        made.reference.digest or Digest.of(b"")))


def unbundle(
    file: Path, target: Reference, *, trust: Anchor | EmbeddedKeys | None, context: Context
) -> Forwarded:
    """Publish the train in a file of :func:`bundle` at ``target``; verify it before and after.

    Raises:
        MalformedInput: the file is no bundle.
        DtrainError: as :func:`forward` raises.
    """
    with TemporaryDirectory(prefix="dtrain-bundle-") as name:
        try:
            with tarfile.open(file, "r:") as tar:
                tar.extractall(name, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise MalformedInput(f"{file}: expected a bundle, got an error: {error}") from None
        layouts = [entry for entry in Path(name).iterdir() if (entry / "oci-layout").is_file()]
        if len(layouts) != 1:
            raise MalformedInput(f"{file}: expected one OCI layout in it, got {len(layouts)}",
                                 hint="make one with: dtrain bundle REF FILE")
        return forward(Reference(layout=layouts[0]), target, trust=trust, context=context)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _in_order(tags: Sequence[str], last: str) -> tuple[str, ...]:
    """Return the train's tags as they are to be put."""
    if last not in tags:
        raise NotFound(f"tag {last}: expected a train under it, got none")
    hops = [tag for tag in tags if parse_hop_tag(tag) is not None]
    commits = sorted((tag for tag in tags if parse_commit_tag(tag) is not None),
                     key=lambda tag: parse_commit_tag(tag) or (0, ""))
    others = [tag for tag in tags if tag.startswith(f"{HEAD}-prop-") or _REFERRERS.fullmatch(tag)]
    ends = [tag for tag in (HEAD, BASE_TAG) if tag in tags]
    ordered = [*hops, *commits, *others, *ends, last]
    return (*dict.fromkeys(tag for tag in ordered if tag != last), last)


def _check_vacant(there: Transport, target: Reference, last: str, known: dict[str, Digest]) -> None:
    """Check that nothing at the target would be lost: what its tag names has to be a hop that is here too."""
    try:
        present = {tag: there.resolve(tag) for tag in (last, HEAD)}
    except NotFound:
        return
    for tag, digest in present.items():
        if digest is not None and digest not in known.values():
            raise Conflict(f"{target}:{tag}: expected nothing there or an earlier hop of this train, got {digest}",
                           hint="another train is there, or this one has gone further there")
