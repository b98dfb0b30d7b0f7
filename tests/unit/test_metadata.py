"""Roots, statements, artifacts and the memory of what was seen, without a registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dtrain.crypto.signing import SigningKey
from dtrain.errors import BadSignature, MalformedInput, NotFound, StorageProblem, UsageProblem, WrongKey
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.media_types import OCI_MANIFEST
from dtrain.transport.layout import Layout
from dtrain.trust.anchor import parse_anchor
from dtrain.trust.artifact import (
    ARTIFACT_TYPE,
    HEAD,
    StoredFiles,
    commit_tag,
    fetch_artifact,
    file_name,
    make_artifact,
    parse_commit_tag,
    parse_name,
    store_artifact,
)  # fmt: skip
from dtrain.trust.base_image import ApprovedBase
from dtrain.trust.root import (
    Consortium,
    Profile,
    check_pinned,
    draft_root,
    missing_signatures,
    parse_root,
    read_consortium,
    sign_root,
)  # fmt: skip
from dtrain.trust.statements import HopStatement, SignedFile, TrainDescriptor, Unattested, hop_path, train_path
from dtrain.trust.store import TrustStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IMAGE = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"image"), size=5)


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {name: SigningKey.generate() for name in ("ada", "bea", "alice", "bob", "router", "aachen", "tue")}


def consortium(keys: dict[str, SigningKey], **changes: Any) -> Consortium:
    made = Consortium(keyholders={name: keys[name].public for name in ("ada", "bea")}, threshold=2,
                      creators={"alice": keys["alice"].public}, builders={"bob": keys["bob"].public},
                      routers={"r": keys["router"].public},
                      stations={name: keys[name].public for name in ("aachen", "tue")})
    return replace(made, **changes)


@pytest.mark.parametrize("profile", list(Profile))
def test_consortium_is_read_back_from_its_root(keys: dict[str, SigningKey], profile: Profile) -> None:
    made = consortium(keys, profile=profile)
    root = draft_root(made, version=3, expires=NOW)
    assert read_consortium(parse_root(root.to_bytes(), what="root").signed) == made


def test_root_goes_from_hand_to_hand(keys: dict[str, SigningKey]) -> None:
    raw, missing = draft_root(consortium(keys), version=1, expires=NOW).to_bytes(), []
    for name in ("ada", "bea"):
        root = parse_root(raw, what="root")
        sign_root(root, keys[name], None)
        raw = root.to_bytes()
        missing.append(missing_signatures(root, None))
    assert missing == [1, 0]
    with pytest.raises(WrongKey, match="expected the key of one of its key holders"):
        sign_root(root, keys["alice"], None)
    pins = [keys[name].public.fingerprint for name in ("ada", "bea")]
    check_pinned(root, pins, 2, source="anchor")
    with pytest.raises(BadSignature, match="expected signatures of 2 keys"):
        check_pinned(root, [pins[0], keys["alice"].public.fingerprint], 2, source="anchor")


def test_next_root_needs_the_old_holders_too(keys: dict[str, SigningKey]) -> None:
    first = draft_root(consortium(keys), version=1, expires=NOW).signed
    changed = consortium(keys).with_member("keyholders", "bea", keys["router"].public)
    second = draft_root(changed, version=2, expires=NOW)
    for name, missing in (("ada", 1), ("router", 1), ("bea", 0)):
        sign_root(second, keys[name], first)
        assert missing_signatures(second, first) == missing


@pytest.mark.parametrize("change", [{"threshold": 3}, {"threshold": 0}, {"creators": {}}])
def test_root_that_nobody_could_use(keys: dict[str, SigningKey], change: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        draft_root(consortium(keys, **change), version=1, expires=NOW)


@pytest.mark.parametrize("change", [
    lambda signed: signed.pop("dtrain"),
    lambda signed: signed["dtrain"].update(profile="other"),
    lambda signed: signed["dtrain"]["stations"].update(evil="00" * 32),
    lambda signed: signed["dtrain"]["creators"].clear(),
    lambda signed: signed["roles"]["snapshot"].update(threshold=2),
    lambda signed: signed["roles"]["timestamp"]["keyids"].pop(),
    lambda signed: signed["dtrain"].update(stations=[]),
    lambda signed: next(iter(signed["keys"].values())).update(keytype="strange"),
])
def test_root_whose_members_and_roles_disagree(
    keys: dict[str, SigningKey], change: Callable[[Any], object]
) -> None:
    document = json.loads(draft_root(consortium(keys), version=1, expires=NOW).to_bytes())
    change(document["signed"])
    with pytest.raises(MalformedInput):
        read_consortium(parse_root(json.dumps(document).encode(), what="root").signed)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"signed": {"_type": "targets"}}', b"\xff"])
def test_file_that_is_no_root(raw: bytes) -> None:
    with pytest.raises(MalformedInput):
        parse_root(raw, what="root")


DESCRIPTOR = TrainDescriptor(
    train="t/1", name="t", proposal="p", session="00ff", source="s:1", creator="alice", creator_key="sha256:1",
    builder_key="sha256:2", route=(("aachen", "sha256:3"), ("tü*", "sha256:4")),
    files={"a b.py": SignedFile(size=1, mode=0o644, sha256="00")}, deadline=NOW, dwell_days=35,
    base=ApprovedBase(name="b", layers=((Digest.of(b"a"), Digest.of(b"b")),), os="linux", architecture="amd64",
                      runtime={"Cmd": ["python"]}))
STATEMENT = HopStatement(
    train="t/1", number=2, station="tü*", parent=Digest.of(b"p"), metadata=Digest.of(b"m"), config="aa",
    result_hash="bb", chain="cc", result_files=1, result_bytes=32, tool="dtrain", issued=NOW,
    unattested=(Unattested(number=1, station="aachen", chain="dd"),))


def test_statements_are_read_back() -> None:
    for one in (DESCRIPTOR, replace(DESCRIPTOR, files=None, base=None, visited=1)):
        assert TrainDescriptor.parse(json.loads(json.dumps(one.to_custom())), what="t") == one
    assert HopStatement.parse(json.loads(json.dumps(STATEMENT.to_custom())), what="h") == STATEMENT


def test_ids_cannot_reach_other_paths() -> None:
    """A station called ``*`` is not trusted for every path."""
    assert train_path("t/1") == "t.2f1/train"
    assert hop_path("t/1", "tü*", 2) == "t.2f1/hops/t.c3.bc.2a/02"


@pytest.mark.parametrize(("path", "values"), [
    ("schema", (None, 7, "zz")), ("train", (None, 7.5, [])),
    ("route", (7.5, {}, "zz", [7], [{"station": 7}], [{"station": "a", "key": "k"}, {"station": "a", "key": "k"}])),
    ("creator", (None, 7.5, [], {}, "zz")), ("builder", (None, 7.5, [], {}, "zz")), ("source", (None, 7, {})),
    ("deadline", (None, 7.5, "zz", "")), ("dwell_days", (None, 7.5, "35", True, {}, 0, -1, 10**12)),
    ("session", (None, 7, "zz")),
    ("visited", (None, 7.5, "1", -1, 3)), ("files", (7, [], {"a": 7}, {"a": {}})), ("base", (7, [], {"name": "b"})),
])
def test_descriptor_of_wrong_form(path: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(MalformedInput):
            TrainDescriptor.parse({**DESCRIPTOR.to_custom(), path: value}, what="t")


@pytest.mark.parametrize("custom", [None, [], "text", {"schema": "other"}, {}])
def test_statement_of_wrong_form(custom: object) -> None:
    with pytest.raises(MalformedInput):
        HopStatement.parse(custom, what="h")


def test_names_and_tags() -> None:
    assert parse_name("12.hop-a.2fb.json") == ("hop-a.2fb", 12)
    assert parse_name("timestamp.json") == ("timestamp", None)
    for name in ("", "a", "../x.json", "0.a.json", "1.json/", "/a.json", "-1.a.json", "12345678901.a.json"):
        found = parse_name(name)
        assert found is None or found[1] is None or found[1] < 10**10
        assert name not in ("", "a", "../x.json", "/a.json", "-1.a.json") or found is None
    tag = commit_tag(7, IMAGE.digest)
    assert parse_commit_tag(tag) == (7, IMAGE.digest.short)
    assert [parse_commit_tag(tag) for tag in ("tuf", "tuf-1-00", "tuf-0-0123456789ab", "tuf-prop-x")] == [None] * 4
    assert (file_name("root", 2), file_name("timestamp", 9)) == ("2.root.json", "timestamp.json")


def test_artifact_inlines_small_files_and_stores_all(tmp_path: Path) -> None:
    files = {"timestamp.json": b"{}", "1.targets.json": b"x" * 20_000, "1.root.json": b"r" * 16_384}
    artifact = make_artifact(files, subject=IMAGE)
    inlined = {name for name, one in artifact.files.items() if one.data is not None}
    assert inlined == {"timestamp.json", "1.root.json"}
    assert (artifact.manifest.artifact_type, artifact.manifest.subject) == (ARTIFACT_TYPE, IMAGE)
    with Layout(tmp_path / "layout") as place:
        store_artifact(place, artifact, files)
        place.put_tag(HEAD, artifact.manifest)
        assert all(place.has_blob(one) for one in artifact.files.values())
        found = fetch_artifact(place)
        assert found is not None
        assert dict(StoredFiles(place, found)) == files
        assert fetch_artifact(place, "nothing") is None


def test_inlining_stops_before_the_manifest_is_too_large() -> None:
    files = {f"{number}.root.json": b"r" * 16_000 for number in range(1, 100)}
    assert len(make_artifact(files, subject=IMAGE).manifest.raw) < 2**20


def test_memory_is_kept_when_the_block_ends_well(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    with store.open("a/b") as folder:
        (folder / "timestamp.json").write_text("1")

    def refuse(folder: Path) -> None:
        (folder / "timestamp.json").write_text("2")
        raise NotFound("refused")

    with pytest.raises(NotFound), store.open("a/b") as folder:
        refuse(folder)
    with store.open("a/b", keep=False) as folder:
        assert (folder / "timestamp.json").read_text() == "1"
        (folder / "timestamp.json").write_text("3")
    with store.open("a/b") as folder:
        assert (folder / "timestamp.json").read_text() == "1"
    assert [place.name for place in tmp_path.iterdir()] == ["a.2fb"]
    assert len(list(tmp_path.glob("a.2fb/state-*"))) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageProblem, match="expected to keep metadata"), \
            TrustStore(tmp_path / "file").open("a"):
        pass


def anchor(root: dict[str, Any], folder: Path, **more: Any) -> Any:
    return parse_anchor({"version": 1, "root": root, **more}, source="a.toml", folder=folder)


def test_anchor_with_a_root(tmp_path: Path, keys: dict[str, SigningKey]) -> None:
    (tmp_path / "ada.pem").write_bytes(keys["ada"].public.pem())
    pins = {"ada": {"file": "ada.pem"}, "bea": {"fingerprint": keys["bea"].public.fingerprint}}
    found = anchor({"threshold": 2, "keys": pins, "repository": "r.example/trust"}, tmp_path,
                   policy={"unattested_hops": ["tue"]})
    assert found.root.keys == tuple(keys[name].public.fingerprint for name in ("ada", "bea"))
    assert (found.root.threshold, found.root.repository, found.unattested) == (2, "r.example/trust", {"tue"})
    (tmp_path / "root.json").write_bytes(b"{}")
    assert anchor({"file": "root.json"}, tmp_path).root.document == b"{}"
    for wrong in ({}, {"file": "root.json", "keys": pins}, {"keys": pins}, {"keys": pins, "threshold": 3},
                  {"keys": {}, "threshold": 1}, {"file": "root.json", "threshold": 1}, {"file": "root.json", "x": 1}):
        with pytest.raises(MalformedInput):
            anchor(wrong, tmp_path)


