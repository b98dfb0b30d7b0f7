"""Moving trains with all that belongs to them, and going on where they arrive."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_servers import registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attacks"))

from forge_metadata import STATIONS, Signed, make_signed

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.errors import Conflict, MalformedInput, NotFound, Rollback, UsageProblem
from dtrain.flow.forward import bundle, forward, unbundle
from dtrain.oci.reference import Reference
from dtrain.transport.wire import Session

pytestmark = pytest.mark.registry


@pytest.fixture(scope="module")
def rsa() -> dict[str, PrivateKey]:
    return {name: PrivateKey.generate(2048) for name in ("alice", *STATIONS)}


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {name: SigningKey.generate() for name in ("alice", "bob", *STATIONS)}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    with registry("plain") as one, registry("plain") as other:
        yield one.host, other.host


@pytest.fixture
def train(hosts: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest, rsa: Any, keys: Any) -> Signed:
    made = make_signed(f"{hosts[0]}/{abs(hash(request.node.nodeid)):x}/", tmp_path, rsa, keys, name="train-b")
    made.hop("aachen")
    return made


def moved(train: Signed, place: str) -> Signed:
    target = replace(train, place=place)
    forward(train.train, target.train, trust=train.anchor(), context=train.context("router"))
    return target


def test_between_registries_and_back_through_a_layout(train: Signed, hosts: tuple[str, str], tmp_path: Path) -> None:
    one = moved(train, f"{hosts[1]}/station-tue/")
    assert set(one.tags()) == set(train.tags())
    one.hop("tue")
    (tmp_path / "usb").mkdir()
    two = moved(one, f"oci:{tmp_path}/usb/")
    two.hop("leipzig")
    three = moved(two, f"{hosts[0]}/outgoing-{tmp_path.name.lower().replace('_', '')}/")
    found = three.verify(every_image=True)
    assert (found.done, found.images_checked) == (3, (0, 1, 2, 3))


def test_order_is_the_one_that_routers_rely_on(train: Signed, hosts: tuple[str, str]) -> None:
    done = forward(train.train, Reference.parse(f"{hosts[1]}/ordered/train-b"), trust=train.anchor(),
                   context=train.context("router"))
    assert done.tags[-3:] == ("tuf", "base", "latest")
    assert done.tags[:2] == ("hop-00", "hop-01-aachen")


def test_within_one_registry_no_bytes_move(
    train: Signed, hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    send, uploads = Session.send, []

    def watching(session: Session, request: Any, **options: Any) -> Any:
        if request.method in ("PATCH", "PUT") and "/blobs/uploads/" in request.url:
            uploads.append(request.url)
        return send(session, request, **options)

    monkeypatch.setattr(Session, "send", watching)
    forward(train.train, Reference.parse(f"{hosts[0]}/mounted/train-b"), trust=train.anchor(),
            context=train.context("router"))
    assert uploads == []


def test_again_and_further(train: Signed, hosts: tuple[str, str]) -> None:
    target = moved(train, f"{hosts[1]}/again/")
    moved(train, f"{hosts[1]}/again/")
    train.hop("tue")
    moved(train, f"{hosts[1]}/again/")  # an earlier hop is there
    assert target.verify().done == 2
    target.hop("leipzig")
    before = target.tags()
    with pytest.raises(Conflict, match="expected nothing there or an earlier hop"):
        moved(train, f"{hosts[1]}/again/")
    assert target.tags() == before
    assert target.verify().done == 3


def test_tampered_train_is_not_forwarded(train: Signed, hosts: tuple[str, str]) -> None:
    train.point("tuf", next(tag for tag in train.tags() if tag.startswith("tuf-1-")))
    target = replace(train, place=f"{hosts[1]}/tampered/")
    with pytest.raises(Rollback):
        forward(train.train, target.train, trust=train.anchor(), context=seen(train))
    with pytest.raises(NotFound):
        target.tags()


def seen(train: Signed) -> Any:
    return train.context("aachen")  # has published the hop that is hidden


def test_renamed_repository_needs_the_train_named(train: Signed, hosts: tuple[str, str]) -> None:
    target = Reference.parse(f"{hosts[1]}/renamed/other")
    with pytest.raises(Rollback, match="expected that of the name"):
        forward(train.train, target, trust=train.anchor(), context=train.context("router"))
    forward(train.train, target, trust=train.anchor(), context=replace(train.context("router"), train="train-b"))


def test_bundle_is_one_file_for_a_hospital_without_network(
    train: Signed, hosts: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "train.tar"
    made = bundle(train.train, file, trust=train.anchor(), context=train.context("router"))
    assert made.reference.digest == train.image("latest").digest
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".dtrain-bundle")]
    inside = replace(train, place=f"oci:{tmp_path}/hospital/")
    (tmp_path / "hospital").mkdir()
    unbundle(file, inside.train, trust=train.anchor(), context=inside.context("tue"))
    inside.hop("tue")
    bundle(inside.train, tmp_path / "back.tar", trust=train.anchor(), context=inside.context("tue"))
    unbundle(tmp_path / "back.tar", train.train, trust=train.anchor(), context=train.context("router"))
    assert train.verify().done == 2
    with pytest.raises(UsageProblem, match="expected no file there"):
        bundle(train.train, file, trust=train.anchor(), context=train.context("router"))


def test_file_that_is_no_bundle(train: Signed, tmp_path: Path) -> None:
    target = Reference.parse(f"oci:{tmp_path}/target")
    (tmp_path / "x.tar").write_bytes(b"nothing")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        tar.add(tmp_path / "x.tar", arcname="train/file")
    with tarfile.open(tmp_path / "z.tar", "w") as tar:
        tar.add(tmp_path / "x.tar", arcname="../../escaped")
    for name in ("x.tar", "y.tar", "z.tar", "none.tar"):
        with pytest.raises(MalformedInput, match="expected"):
            unbundle(tmp_path / name, target, trust=train.anchor(), context=train.context("router"))
    assert not (tmp_path / "target").exists()
