"""Publishing metadata on a real registry: at the same time, killed at every request, collected, copied by others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_servers import RegistryServer, garbage_collect, registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attacks"))

from forge_metadata import START, STATIONS, Signed, make_signed

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.errors import Conflict, DtrainError, RouteProblem
from dtrain.flow.believe import resolve
from dtrain.flow.station import connector
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.media_types import OCI_MANIFEST
from dtrain.oci.reference import Reference
from dtrain.transport.copy import copy_image
from dtrain.transport.wire import Session
from dtrain.trust.editor import Made, finished, newest, parsed, with_hop, with_train
from dtrain.trust.publish import Basis, publish
from dtrain.trust.root import Consortium, draft_root, sign_root
from dtrain.trust.statements import HopStatement, TrainDescriptor, hop_role

pytestmark = pytest.mark.registry
WRITERS, ROUNDS = 6, 3
IMAGE = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"image"), size=5)


@pytest.fixture(scope="module")
def rsa() -> dict[str, PrivateKey]:
    return {name: PrivateKey.generate(2048) for name in ("alice", *STATIONS)}


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {name: SigningKey.generate() for name in ("alice", "bob", *STATIONS)}


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with registry("plain") as running:
        yield running


@pytest.mark.parametrize("kind", ["registry", "layout"])
def test_publishers_at_the_same_time_lose_nothing_e3(kind: str, server: RegistryServer, tmp_path: Path) -> None:
    """E3, spec 5.4: six writers, three rounds, eighteen updates in the final state."""
    names = [f"s{number}" for number in range(WRITERS)]
    keys = {name: SigningKey.generate() for name in ("creator", *names)}
    place = f"oci:{tmp_path}/raced" if kind == "layout" else f"{server.host}/raced/train"
    root = draft_root(Consortium(keyholders={"c": keys["creator"].public}, creators={"c": keys["creator"].public},
                                 stations={name: keys[name].public for name in names}),
                      version=1, expires=START + timedelta(days=300))
    sign_root(root, keys["creator"], None)
    descriptor = TrainDescriptor(
        train="t", name="train", proposal="p", session="00", source="s", creator="c", creator_key="k", builder_key="k",
        route=tuple((name, "k") for name in names), files={}, base=None, deadline=START + timedelta(days=300),
        dwell_days=35)

    def finish(files: Any, basis: Basis, who: str) -> Made:
        return finished(files, train="t", signing=[keys[who]], now=START, expires=START + timedelta(days=35),
                        built_on=basis.head, merged=basis.joined, floor=basis.floor)

    def begin(basis: Basis) -> Made:
        return finish(with_train({"1.root.json": root.to_bytes()}, descriptor, digest=IMAGE.digest, size=IMAGE.size,
                                 stations={name: keys[name].public for name in names}, signing=[keys["creator"]]),
                      basis, "creator")

    def write(name: str) -> None:
        with connector()(Reference.parse(place)) as transport:
            for number in range(1, ROUNDS + 1):
                statement = HopStatement(
                    train="t", number=names.index(name) + 1, station=name, parent=IMAGE.digest, metadata=IMAGE.digest,
                    config="00", result_hash="00", chain="00", result_files=number, result_bytes=0, tool="t",
                    issued=START)

                def make(basis: Basis, statement: HopStatement = statement, number: int = number) -> Made | None:
                    before = newest(basis.files, hop_role(name))
                    if before is not None and before[0] >= number:
                        return finish(basis.files, basis, name) if basis.joined else None
                    return finish(with_hop(basis.files, statement, digest=IMAGE.digest, size=IMAGE.size,
                                           expires=START + timedelta(days=300), signing=keys[name]), basis, name)

                publish(transport, make, subject=lambda files, known: IMAGE)

    with connector()(Reference.parse(place)) as transport:
        publish(transport, begin, subject=lambda files, known: IMAGE)
    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(write, name) for name in names]:
            done.result()
    train = Signed(place.removesuffix("raced") if kind == "layout" else f"{server.host}/raced/", tmp_path, {}, keys,
                   name="raced" if kind == "layout" else "train")
    files = train.files()
    versions = {name: parsed(files, hop_role(name)).signed.version for name in names}
    assert versions == dict.fromkeys(names, ROUNDS)


class Killed(BaseException):
    """The process is gone."""


def test_push_results_killed_at_every_request_e1(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hop before stays valid for every kind of station, and the next call completes the hop exactly once."""
    send, left = Session.send, [0]

    def dying(session: Session, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return send(session, *arguments, **options)

    whole, outcomes = False, set()
    for step in range(1, 200):
        folder = tmp_path / str(step)
        train = make_signed(f"{server.host}/killed-{step}/", folder, rsa, keys, name="train-b")
        hop = train.pull("aachen")
        monkeypatch.setattr(Session, "send", dying)
        left[0] = step
        try:
            train.push(hop)
            whole = True
        except Killed:
            pass
        monkeypatch.setattr(Session, "send", send)
        if whole:
            break
        try:  # for stations with dtrain: either before or after the hop
            outcomes.add(train.pull("tue").record.hop)
        except RouteProblem:
            outcomes.add(1)
        plain = train.verify(root=None)  # for those that know the tag and the train's own signatures only
        assert plain.done in (0, 1)
        train.push(hop)
        found = train.verify()
        assert found.done == 1
        assert found.reference.digest == train.image("latest").digest == train.image("hop-01-aachen").digest
        if not step % 9:
            train.hop("tue")
    assert whole
    assert step > 20
    assert outcomes == {1, 2}


def test_two_pushes_of_one_hop_at_once_e3(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey]
) -> None:
    """One wins, the other is told, and the train goes on."""
    for number in range(3):
        train = make_signed(f"{server.host}/twice-{number}/", tmp_path / str(number), rsa, keys, name="train-b")
        hops = [train.pull("aachen"), train.pull("aachen", context=train.context("twin"))]

        def push(pair: Any, train: Signed = train) -> DtrainError | Digest | None:
            position, hop = pair
            own = replace(train, folder=train.folder / str(position))
            try:
                return own.push(hop, str(position).encode()).reference.digest
            except DtrainError as problem:
                return problem

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(push, enumerate(hops)))
        won = [result for result in results if not isinstance(result, Exception)]
        lost = [result for result in results if isinstance(result, Exception)]
        assert all(isinstance(error, Conflict) for error in lost), lost
        assert len(won) <= 1
        for position, hop in enumerate(hops):  # who was told so by chance, both of them, tries again
            if not won and isinstance(push((position, hop)), Digest):
                break
        found = train.verify()
        assert found.done == 1
        train.hop("tue")


def test_metadata_costs_three_requests(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state, the tags, and the image's manifest."""
    train = make_signed(f"{server.host}/counted/", tmp_path, rsa, keys, name="train-b")
    for station in STATIONS:
        train.hop(station)
    send, seen = Session.send, []

    def counting(session: Session, request: Any, **options: Any) -> Any:
        seen.append(f"{request.method} {request.url}")
        return send(session, request, **options)

    monkeypatch.setattr(Session, "send", counting)
    for context in (train.fresh(), train.context("alice")):
        seen.clear()
        with context.connect(train.train) as transport:
            attested = resolve(train.train, transport, train.anchor(), context)
            transport.fetch_manifest(attested.newest.digest)
        assert len(attested.hops) == 4
        assert len(seen) <= 3, seen


def test_garbage_collection_leaves_every_state_e_d7(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey]
) -> None:
    """D7: a registry without the referrers API that drops untagged manifests."""
    train = make_signed(f"{server.host}/collected/", tmp_path, rsa, keys, name="train-b")
    train.hop("aachen")
    train.hop("tue")
    before = {tag: train.files(tag) for tag in train.tags() if tag.startswith("tuf")}
    garbage_collect(server, delete_untagged=True)
    assert {tag: train.files(tag) for tag in before} == before
    assert train.verify(every_image=True).images_checked == (0, 1, 2)
    train.hop("leipzig")


@pytest.mark.interop
def test_moved_by_skopeo_into_a_layout_and_back(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey]
) -> None:
    """The way of a train to a hospital without a network: image and state are two tags to copy."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    train = make_signed(f"{server.host}/moved/", tmp_path, rsa, keys, name="train-b")
    train.hop("aachen")
    carried = replace(train, place=f"oci:{tmp_path}/usb/")
    (tmp_path / "usb").mkdir()

    def copy(source: str, target: str, *tags: str) -> None:
        for tag in tags:
            subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests",
                            "--src-tls-verify=false", "--dest-tls-verify=false", f"{source}:{tag}", f"{target}:{tag}"],
                           check=True)

    registry_name, layout = f"docker://{train.train}", f"oci:{tmp_path}/usb/train-b"
    copy(registry_name, layout, "latest", "tuf")
    carried.hop("tue")
    assert carried.verify().done == 2
    copy(layout, registry_name, "hop-02-tue", "tuf", "latest")
    train.hop("leipzig")
    assert train.verify().done == 3
    subprocess.run(["skopeo", "--insecure-policy", "sync", "--src", "docker", "--dest", "dir", "--src-tls-verify=false",
                    str(train.train), str(tmp_path / "synced")], check=True, capture_output=True)
    synced = next((tmp_path / "synced").rglob("train-b:tuf"))
    assert Digest.of((synced / "manifest.json").read_bytes()) == train.image("tuf").digest


def test_moved_between_registry_and_layout_by_ourselves(
    server: RegistryServer, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey]
) -> None:
    train = make_signed(f"{server.host}/forwarded/", tmp_path, rsa, keys, name="train-b")
    train.hop("aachen")
    target = replace(train, place=f"{server.host}/forwarded-on/")
    with connector()(train.train) as source, connector()(target.train) as place:
        for tag in ("tuf", "latest"):
            copy_image(source, tag, place, [tag], mount_from=train.train.repository)
    target.hop("tue")
    assert target.verify().done == 2
