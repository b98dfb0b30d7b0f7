"""From a train's metadata, as it is stored, to what can be believed about the train."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from dtrain.errors import MalformedInput, MissingEvidence, NotFound, Rollback
from dtrain.oci.digest import Digest
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, PinnedRoot
from dtrain.trust.artifact import StoredFiles, fetch_artifact
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.client import Client
from dtrain.trust.editor import Files, parsed
from dtrain.trust.forks import check_forks
from dtrain.trust.root import check_pinned, parse_root
from dtrain.trust.rules import Expected, attested_train
from dtrain.trust.store import TrustStore

_TRAIN_PATH = re.compile(r"((?:[A-Za-z0-9_-]|\.[0-9a-f]{2})+)/train")
_BASE = "tuf:/"


def fetch_attested(
    place: Transport, anchor: Anchor, expected: Expected, *, store: TrustStore, now: datetime,
    max_stale: timedelta = timedelta(0), warn: Callable[[str], None] = lambda text: None,
) -> AttestedTrain:
    """Return the train whose metadata is at ``place``, after everything that can be checked of metadata.

    One request for the state and one for the tags, where small files are inlined and nobody published in parallel.

    Raises:
        MissingEvidence: there is no metadata, or it leaves something out.
        VerificationFailed: one of its kinds, for the first check that does not hold.
    """
    head = fetch_artifact(place)
    if head is None:
        raise MissingEvidence(f"{place.place}: expected signed metadata under the tag tuf, got none",
                              hint=f"{anchor.source} names a root, so trains without metadata are refused; the "
                                   "creator of a plain PHT train can add it with: dtrain trust adopt")
    files = StoredFiles(place, head)

    def forks() -> None:
        for text in check_forks(place, head, files):
            warn(text)

    return check_state(files, head.digest, anchor, expected, store=store, now=now, max_stale=max_stale, forks=forks)


def check_state(
    files: Files, digest: Digest, anchor: Anchor, expected: Expected, *, store: TrustStore, now: datetime,
    max_stale: timedelta = timedelta(0), forks: Callable[[], None] = lambda: None, remember: bool = True,
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
        remember: whether others can see the state, so that an older one is a rollback from now on.

    Raises:
        VerificationFailed: one of its kinds; nothing was remembered.
    """
    if anchor.root is None:
        raise RuntimeError("an anchor with a root, please")
    with store.open(_claimed_train(files), keep=remember) as folder:
        before = folder / "timestamp.json"
        seen = before.read_bytes() if before.exists() else None
        client = Client(folder, _source(files), now=now, bootstrap=_trusted_root(files, anchor.root, anchor.source),
                        metadata_url=_BASE, max_stale=max_stale)
        client.refresh()
        _check_same(files, seen)
        found = attested_train(client, digest, anchor, expected, now=now)
        forks()
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


def _trusted_root(files: Files, pinned: PinnedRoot, source: str) -> bytes:
    """Return the root to start from: the anchor's, or the oldest of the state that enough pinned keys have signed.

    Raises:
        BadSignature: too few have signed it.
        MissingEvidence: the state has no root.
    """
    if pinned.document is not None:
        return pinned.document
    names = sorted((name for name in files if name.endswith(".root.json")), key=lambda name: int(name.split(".")[0]))
    if not names:
        raise MissingEvidence("metadata: expected a root, got none")
    raw = files[names[0]]
    check_pinned(parse_root(raw, what=names[0]), pinned.keys, pinned.threshold, source=source)
    return raw


def _check_same(files: Files, seen: bytes | None) -> None:
    """Check that a timestamp of the version that was seen before is the one that was seen (a client sees no fork).

    Raises:
        Rollback: it is another one.
    """
    if seen is None:
        return
    old, new = parsed({"timestamp.json": seen}, "timestamp"), parsed(files, "timestamp")
    if old.signed.version == new.signed.version and old.signed_bytes != new.signed_bytes:
        raise Rollback(f"metadata timestamp {new.signed.version}: expected the one that was seen before, got another",
                       hint="two states of the same version were published; the creator can join them with: "
                            "dtrain trust refresh")


