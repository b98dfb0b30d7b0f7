"""A signed train at a registry, and what whoever can write there, or holds a station's key, does to its metadata."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Targets

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.flow.build import SignedPlan, TrainPlan, build
from dtrain.flow.context import Context
from dtrain.flow.demo import make_base
from dtrain.flow.pull_verify import VerifiedHop, pull_verify
from dtrain.flow.push_results import Published, push_results
from dtrain.flow.station import connector
from dtrain.flow.verify import Verified, verify
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest, parse_manifest
from dtrain.oci.reference import Reference
from dtrain.trust.anchor import Anchor, parse_anchor
from dtrain.trust.artifact import (
    HEAD,
    Artifact,
    StoredFiles,
    commit_tag,
    fetch_artifact,
    file_name,
    make_artifact,
    store_artifact,
)  # fmt: skip
from dtrain.trust.editor import Files, finished, newest, parsed, with_role
from dtrain.trust.signers import signer
from dtrain.trust.state import State

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "registry-test"))

STATIONS = ("aachen", "tue", "leipzig")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_numbers = itertools.count()


@dataclass(frozen=True)
class Signed:
    """A train with metadata, everybody's keys, and a clock that the test sets."""

    place: str
    """Where repositories and layouts are: ``HOST/`` or ``oci:DIR/``."""
    folder: Path
    rsa: Mapping[str, PrivateKey]
    keys: Mapping[str, SigningKey]
    name: str = "train-b"
    document: Mapping[str, Any] = field(default_factory=dict)
    now: datetime = START
    max_stale: timedelta = timedelta(0)
    warnings: list[str] = field(default_factory=list)

    @property
    def train(self) -> Reference:
        return Reference.parse(f"{self.place}{self.name}")

    def context(self, who: str) -> Context:
        """Return the surroundings of somebody with a memory of his own."""
        return Context(connect=connector(), state=State(self.folder / "state" / who), now=lambda: self.now,
                       warn=self.warnings.append, max_stale=self.max_stale)

    def fresh(self) -> Context:
        """Return the surroundings of somebody who has seen nothing."""
        return self.context(f"fresh-{next(_numbers)}")

    def later(self, **time: float) -> Signed:
        return replace(self, now=self.now + timedelta(**time))

    def anchor(self, **changes: Any) -> Anchor:
        return replace(parse_anchor(self.document, source="anchor.toml", folder=self.folder), **changes)

    def pull(self, station: str, *, context: Context | None = None, **changes: Any) -> VerifiedHop:
        return pull_verify(
            self.train, self.folder / f"work-{station}-{next(_numbers)}", station=station, key=self.rsa[station],
            signing_key=self.keys[station], trust=self.anchor(**changes), context=context or self.context(station))

    def push(self, hop: VerifiedHop, results: bytes | None = None, **changes: Any) -> Published:
        station = hop.record.station
        (hop.results_dir / "out").write_bytes(results or station.encode())
        return push_results(hop.folder, key=self.rsa[station], signing_key=self.keys[station],
                            trust=self.anchor(**changes), context=self.context(station))

    def hop(self, station: str) -> Published:
        return self.push(self.pull(station))

    def verify(
        self, who: Context | None = None, reference: str = "", *, every_image: bool = False, **changes: Any
    ) -> Verified:
        """Verify as somebody who has seen nothing, or as ``who``."""
        return verify(Reference.parse(reference) if reference else self.train, trust=self.anchor(**changes),
                      context=who or self.fresh(), every_image=every_image)

    # what an attacker does

    def files(self, tag: str = HEAD) -> dict[str, bytes]:
        with connector()(self.train) as place:
            artifact = fetch_artifact(place, tag)
            assert artifact is not None
            return dict(StoredFiles(place, artifact))

    def head(self) -> Digest | None:
        with connector()(self.train) as place:
            return place.resolve(HEAD)

    def image(self, tag: str) -> Manifest:
        with connector()(self.train) as place:
            found = parse_manifest(place.fetch_manifest(tag))
        assert isinstance(found, Manifest)
        return found

    def tags(self) -> tuple[str, ...]:
        with connector()(self.train) as place:
            return place.tags()

    def point(self, tag: str, at: str) -> None:
        """Let a tag name what another tag names."""
        with connector()(self.train) as place:
            place.put_tag(tag, parse_manifest(place.fetch_manifest(at)))

    def put(self, files: Files, *, commit: bool = True, head: bool = True) -> Artifact:
        """Publish a state as it is."""
        artifact = make_artifact(files, subject=self.image("latest").descriptor)
        with connector()(self.train) as place:
            store_artifact(place, artifact, files)
            if commit:
                version = parsed(files, "timestamp").signed.version
                place.put_tag(commit_tag(version, artifact.digest), artifact.manifest)
            if head:
                place.put_tag(HEAD, artifact.manifest)
        return artifact

    def finish(self, files: Files, *who: str, version: int = 0, now: datetime | None = None, **life: float) -> Files:
        """Return the state with a new snapshot and timestamp, signed by whom the test says."""
        when = now or self.now
        return finished(
            files, train=self.name, signing=[self.keys[name] for name in who], now=when, merged=(),
            expires=when + timedelta(**(life or {"days": 35})), built_on=self.head(), floor=max(version - 1, 0)).files

    def edit(self, files: Files, role: str, change: Callable[[Any], object], *who: str) -> dict[str, bytes]:
        """Return the state with a role's content changed, its version raised, and signed by whom the test says."""
        signed = parsed(files, role).signed
        signed.version += 1
        change(signed)
        return with_role(files, role, sign(signed, [self.keys[name] for name in who]), signed.version)


def sign(signed: Any, keys: Sequence[SigningKey]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for key in keys:
        metadata.sign(signer(key), append=True)
    return metadata.to_bytes()


def replaced(files: Files, role: str, other: Files) -> dict[str, bytes]:
    """Return the state with a role's file taken from another one, under our file's name."""
    own, theirs = newest(files, role), newest(other, role)
    assert own is not None
    assert theirs is not None
    return {**files, file_name(role, own[0]): theirs[1]}


def add_target(targets: Targets, path: str, like: str) -> None:
    """Let targets name another path with the content of one that they have."""
    target = targets.targets[like]
    targets.targets[path] = type(target)(target.length, dict(target.hashes), path,
                                         unrecognized_fields=dict(target.unrecognized_fields))


def make_signed(
    place: str, folder: Path, rsa: Mapping[str, PrivateKey], keys: Mapping[str, SigningKey], *, name: str,
    roots: tuple[bytes, ...] = (), metadata: bool = True, now: datetime = START,
) -> Signed:
    """Build a train for three stations, whose creator is alice."""
    import tomllib

    made = Signed(place, folder, rsa, keys, name=name, now=now)
    code = folder / "code"
    code.mkdir(parents=True, exist_ok=True)
    (code / "entrypoint.py").write_text("print('go')\n")
    base = Reference.parse(f"{place}base:3")
    context = made.context("alice")
    make_base(base, context)
    plan = TrainPlan(
        id=name, proposal="p-1", creator="alice", creator_key=rsa["alice"], builder="bob", builder_key=rsa["alice"],
        code=code, route=[(station, rsa[station].public) for station in STATIONS],
        signed=SignedPlan(creator_key=keys["alice"], builder_key=keys["bob"], roots=roots,
                          station_keys={station: keys[station].public for station in STATIONS}) if metadata else None)
    built = build(plan, base, made.train, context=context)
    return replace(made, document=tomllib.loads(built.anchor))
