"""From a train's metadata, as it is stored, to what can be believed about the train."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from dtrain.errors import BadSignature, DigestMismatch, MalformedInput, MissingEvidence, NotFound, Rollback
from dtrain.oci.digest import Digest
from dtrain.train.route import encode_name
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, PinnedRoot
from dtrain.trust.artifact import StoredFiles, fetch_artifact
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.client import Client, tuf_errors
from dtrain.trust.editor import Files, parsed
from dtrain.trust.forks import check_forks
from dtrain.trust.root import check_pinned, parse_root
from dtrain.trust.rules import Expected, attested_train
from dtrain.trust.statements import TrainDescriptor
from dtrain.trust.store import TrustStore

_TRAIN_PATH = re.compile(r"((?:[A-Za-z0-9_-]|\.[0-9a-f]{2})+)/train")
_BASE = "tuf:/"


def fetch_attested(
    place: Transport, anchor: Anchor, expected: Expected, *, store: TrustStore, now: datetime,
    max_stale: timedelta = timedelta(0), warn: Callable[[str], None] = lambda text: None,
    station: str | None = None, look_around: bool = True,
) -> AttestedTrain:
    """Return the train whose metadata is at ``place``, after everything that can be checked of metadata.

    One request for the state and one for the tags, where small files are inlined and nobody published in parallel.

    Args:
        place: where metadata is kept.
        anchor: names the root.
        expected: which train is meant.
        store: what was seen before.
        now: what time it is.
        max_stale: how long past their date the online roles may be.
        warn: told about states that were begun and not finished.
        station: who is about to run the train.
        look_around: whether to look for other states; a publisher does so himself.

    Raises:
        MissingEvidence: there is no metadata, or it leaves something out.
        VerificationFailed: one of its kinds, for the first check that does not hold.
    """
    head = fetch_artifact(place)
    if head is None:
        raise MissingEvidence(f"{place.place}: expected signed metadata under the tag tuf, got none",
                              hint="check the name and the trust repository; a copy needs the tags tuf and tuf-*; a "
                                   "new train may wait for: dtrain trust cosign; the creator of a plain PHT train can "
                                   "add metadata with: dtrain trust adopt")
    files = StoredFiles(place, head)

    def forks(vouch: Callable[[], None]) -> None:
        for text in check_forks(place, head, files, station=station, vouch=vouch):
            warn(text)

    return check_state(files, head.digest, anchor, expected, store=store, now=now, max_stale=max_stale,
                       forks=forks if look_around else lambda vouch: None)


def check_state(
    files: Files, digest: Digest, anchor: Anchor, expected: Expected, *, store: TrustStore, now: datetime,
    max_stale: timedelta = timedelta(0), forks: Callable[[Callable[[], None]], None] = lambda vouch: None,
    remember: bool = True, whole: bool = False,
) -> AttestedTrain:
    """Return the train that a state describes, after TUF's checks and ours; what was seen is remembered.

    Args:
        files: the state.
        digest: its artifact's digest.
        anchor: names the root.
        expected: which train is meant.
        store: what was seen before.
        now: what time it is.
        max_stale: how long past their date the online roles may be.
        forks: the last check, of other states at the same place.
        whole: whether every file has to be one that signed metadata vouches for, those too that were known before.
        remember: whether others can see the state, so that an older one is a rollback from now on.

    Raises:
        VerificationFailed: one of its kinds; nothing was remembered.
    """
    if anchor.root is None:
        raise RuntimeError("an anchor with a root, please")
    claimed = _claimed_train(files)
    with store.open(claimed, keep=remember) as folder:
        seen = {place.name: place.read_bytes() for place in folder.glob("*.json") if not place.is_symlink()}
        client = Client(folder, _source(files), now=now, metadata_url=_BASE, max_stale=max_stale,
                        bootstrap=_trusted_root(files, folder, anchor.root, anchor.source))
        client.refresh()
        _check_same(files, seen)
        _check_roots(files, folder)
        found = attested_train(client, digest, anchor, expected, now=now)
        if encode_name(found.descriptor.train) != claimed:
            raise MalformedInput(f"metadata targets: expected the train {found.descriptor.train!r}, got {claimed!r}")
        _check_same_train(found, seen)
        if whole:
            _check_roles(files, client)
        forks(lambda: _check_roles(files, client))
    return found


def _claimed_train(files: Files) -> str:
    """Return the id that an unverified state claims, as spelled in paths: only to find what was seen before."""
    targets = getattr(parsed(files, "targets").signed, "targets", {})
    found = [match[1] for path in targets if (match := _TRAIN_PATH.fullmatch(path)) is not None]
    if len(found) != 1:
        raise MalformedInput(f"metadata targets: expected one train, got {len(found)}")
    return found[0]


def _source(files: Files) -> Callable[[str], Iterator[bytes]]:
    def fetch(url: str) -> Iterator[bytes]:
        try:
            return iter((files[url.removeprefix(_BASE).lstrip("/")],))
        except KeyError:
            raise NotFound(f"{url.removeprefix(_BASE)}: not in this state") from None

    return fetch


def _trusted_root(files: Files, folder: Path, pinned: PinnedRoot, source: str) -> bytes:
    """Return the root to start from: the anchor's, or the oldest one that enough pinned keys have signed.

    The one that was seen before comes first: else a key holder whose key has been revoked since could start anew.

    Raises:
        BadSignature: too few have signed it.
        MissingEvidence: the state has no root.
    """
    if pinned.document is not None:
        return pinned.document
    remembered = sorted(folder.glob("root_history/*.root.json"), key=lambda place: int(place.name.split(".")[0]))
    for raw in (place.read_bytes() for place in remembered[:1]):
        with contextlib.suppress(BadSignature):  # another anchor was in use then
            check_pinned(parse_root(raw, what="root"), pinned.keys, pinned.threshold, source=source)
            return raw
    names = sorted((name for name in files if name.endswith(".root.json")), key=lambda name: int(name.split(".")[0]))
    if not names:
        raise MissingEvidence("metadata: expected a root, got none")
    check_pinned(parse_root(files[names[0]], what=names[0]), pinned.keys, pinned.threshold, source=source)
    return files[names[0]]


def _check_same(files: Files, seen: Files) -> None:
    """Check that a timestamp of the version that was seen before is the one that was seen (a client sees no fork).

    Raises:
        Rollback: it is another one.
    """
    if "timestamp.json" not in seen:
        return
    old, new = parsed(seen, "timestamp"), parsed(files, "timestamp")
    if old.signed.version == new.signed.version and old.signed_bytes != new.signed_bytes:
        raise Rollback(f"metadata timestamp {new.signed.version}: expected the one that was seen before, got another",
                       hint="two states of the same version were published; the creator can join them with: "
                            "dtrain trust refresh")




def _check_same_train(found: AttestedTrain, seen: Files) -> None:
    """Check that the train is the one of that id that was seen before, not one that another creator put in its place.

    Raises:
        Rollback: it is another one.
    """
    targets = parsed({"1.targets.json": seen["targets.json"]}, "targets").signed if "targets.json" in seen else None
    for path, target in {} if targets is None else targets.targets.items():
        old = TrainDescriptor.parse(target.custom, what=path)
        if old != found.descriptor:
            raise Rollback(f"metadata: expected the train of {old.creator!r} that was seen before, got another one of "
                           f"the same id by {found.descriptor.creator!r}",
                           hint="do not run this train; ask its creator: what he signed about a train never changes")


def _check_roots(files: Files, folder: Path) -> None:
    """Check that the state's roots are those that were verified: one that was known before is not fetched again.

    Raises:
        BadSignature: another root of the same number.
    """
    trusted = {place.name: place.read_bytes() for place in folder.glob("root_history/*.root.json")}
    oldest = min(int(name.split(".")[0]) for name in trusted)
    for name in files:
        if name.endswith(".root.json") and int(name.split(".")[0]) >= oldest and files[name] != trusted.get(name):
            raise BadSignature(f"metadata {name}: expected the root that its key holders signed, got another")


def _check_roles(files: Files, client: Client) -> None:
    """Check the content of every other file against what signed metadata says of it.

    Raises:
        DigestMismatch: another content.
        MalformedInput: a file that signed metadata does not name.
    """
    named = {f"{meta.version}.{name}": meta for name, meta in client.snapshot.meta.items()}
    snapshot = f"{client.snapshot.version}.snapshot.json"
    for name in files:
        if name in named:
            with tuf_errors():
                named[name].verify_length_and_hashes(files[name])
        elif name == snapshot:
            if Digest.of(parsed(files, "snapshot").signed_bytes).hex != client.signed_digest("snapshot"):
                raise DigestMismatch(f"metadata {name}: expected what the timestamp names, got another content")
        elif name != "timestamp.json" and not name.endswith(".root.json"):
            raise MalformedInput(f"metadata: expected files that the snapshot names, got {name[:80]!r}")
