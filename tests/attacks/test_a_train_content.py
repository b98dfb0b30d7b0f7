"""Group A: whoever can write to the registry changes the train. Each attack is refused by the check that is meant to
refuse it, and nothing is written or published."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import (
    CODE,
    QUERY,
    STATIONS,
    World,
    make_world,
    opened,
    renamed,
    sealed,
    tar_of,
    with_file,
    without,
)  # fmt: skip

from dtrain.crypto.rsa import PrivateKey
from dtrain.errors import (
    BadSignature,
    DigestMismatch,
    DtrainError,
    MissingEvidence,
    RouteProblem,
    UnsafeArchive,
    VerificationFailed,
)  # fmt: skip
from dtrain.flow.open_results import open_results
from dtrain.flow.verify import verify
from dtrain.oci.descriptor import Descriptor
from dtrain.train.config import parse_train_config

RESULTS = "opt/pht_results/sum.txt"


@pytest.fixture(scope="session")
def keys() -> dict[str, PrivateKey]:
    return {name: PrivateKey.generate(2048) for name in ("alice", "bob", "mallory", *STATIONS)}


@pytest.fixture(scope="session")
def stages(keys: dict[str, PrivateKey], tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    """The same train before its first stop, after one stop, after two, and at the end."""
    top = tmp_path_factory.mktemp("stages")
    worlds = [make_world(top / "0", keys)]
    for number, station in enumerate(STATIONS, start=1):
        world = worlds[-1].copy(top / str(number))
        world.hop(station, {"sum.txt": b"%d" % number * 40, f"d/{station}.txt": b"z"})
        shutil.rmtree(world.folder / f"work-{station}")
        worlds.append(world)
    return worlds


def snapshot(world: World) -> tuple[list[str], bytes]:
    index = world.folder / "train" / "index.json"
    return sorted(path.name for path in world.folder.iterdir() if path.name != "state"), index.read_bytes()


def refused(world: World, station: str, error: type[DtrainError], text: str, *, pins: bool = True) -> None:
    """Check that the train is refused with this error, and that nothing was left behind."""
    before = snapshot(world)
    with pytest.raises(error, match=text) as told:
        world.pull(station, pins=pins)
    assert type(told.value) is error
    assert 10 <= told.value.exit_status <= 17
    assert snapshot(world) == before


Change = Callable[[Any], object]


def test_honest_train_passes_all_the_way(stages: list[World], tmp_path: Path) -> None:
    """The counter-test: without an attack every stage is accepted, with and without pins."""
    for number, station in enumerate(STATIONS):
        for pins in (True, False):
            world = stages[number].copy(tmp_path / f"{number}-{pins}")
            hop = world.pull(station, pins=pins)
            assert {str(file.relative_to(hop.code_dir)): file.read_bytes() for file in hop.code_dir.rglob("*")
                    if file.is_file()} == CODE | {"query.json": QUERY}
    last = stages[3].copy(tmp_path / "last")
    opened_results = open_results(last.train, tmp_path / "results", key=last.keys["alice"], trust=last.anchor(),
                                  context=last.context)
    assert opened_results.files == 4
    assert (tmp_path / "results/sum.txt").read_bytes() == b"3" * 40


@pytest.mark.parametrize(("name", "error", "text"), [
    ("changed", DigestMismatch, "immutable files"),
    ("emptied", DigestMismatch, "encrypted file"),
    ("removed", VerificationFailed, "missing 'lib/a.py'"),
    ("added", VerificationFailed, "unlisted 'json.py'"),
    ("renamed", VerificationFailed, "missing 'lib/a.py'; unlisted 'lib/c.py'"),
    ("moved", VerificationFailed, "missing 'lib/a.py'; unlisted 'a.py'"),
])
@pytest.mark.parametrize("pins", [True, False])
def test_a1_immutable_file(stages: list[World], tmp_path: Path, name: str, error: type[DtrainError], text: str,
                           pins: bool) -> None:
    world = stages[1].copy(tmp_path / "w")
    path = "opt/pht_train/lib/a.py"
    blob = world.members()[path][1]
    world.edit_members(lambda members: {
        "changed": lambda: with_file(members, path, blob[:16] + bytes([blob[16] ^ 1]) + blob[17:]),
        "emptied": lambda: with_file(members, path, b""),
        "removed": lambda: without(members, path),
        "added": lambda: with_file(members, "opt/pht_train/json.py", blob),
        "renamed": lambda: renamed(members, path, "opt/pht_train/lib/c.py"),
        "moved": lambda: renamed(members, path, "opt/pht_train/a.py"),
    }[name]())
    refused(world, "leipzig", error, text, pins=pins)


def test_a1_boundary_between_two_files_shifted_by_an_insider(stages: list[World], tmp_path: Path) -> None:
    """PHT's hash is of the concatenation (W11): only the pin sees it, and says which file."""
    world = stages[1].copy(tmp_path / "w")
    key = world.file_key("aachen")
    world.edit_members(lambda members: with_file(with_file(
        members, "opt/pht_train/lib/a.py", sealed(b"alpha\nbe", key)), "opt/pht_train/lib/b.py", sealed(b"ta\n", key)))
    refused(world, "leipzig", DigestMismatch, r"lib/a\.py: expected sha256")
    assert world.pull("leipzig", pins=False).record.hop == 2  # what the README says of trains that are not pinned


def test_a1_contents_of_two_files_swapped_by_an_insider(stages: list[World], tmp_path: Path) -> None:
    world = stages[1].copy(tmp_path / "w")
    members = world.members()
    a, b = "opt/pht_train/lib/a.py", "opt/pht_train/lib/b.py"
    world.put(with_file(with_file(members, a, members[b][1]), b, members[a][1]))

    def swap(document: Any) -> None:
        names = document["file_list"]
        one, two = names.index("lib/a.py"), names.index("lib/b.py")
        names[one], names[two] = names[two], names[one]

    world.edit_config(swap)
    refused(world, "leipzig", DigestMismatch, r"lib/a\.py: expected sha256")


@pytest.mark.parametrize(("change", "error", "text"), [
    (lambda d: d["file_list"].reverse(), DigestMismatch, "immutable files"),
    (lambda d: d["file_list"].append("entrypoint.py"), VerificationFailed, "each file once"),
    (lambda d: d["file_list"].pop(), VerificationFailed, "unlisted"),
    (lambda d: d.update(session_id="00" * 64), DigestMismatch, "chain digest"),
    (lambda d: d.update(session_id=d["session_id"] + QUERY.hex()), VerificationFailed, "expected 64 bytes"),
    (lambda d: d["creator"].update(id="eve"), MissingEvidence, "creator 'eve'"),
    (lambda d: d.update(hash="00" * 64), BadSignature, "creator"),
    (lambda d: d.update(signature="00" * 256), BadSignature, "creator"),
    (lambda d: d["build"].update(signature="00" * 256), BadSignature, "builder"),
])
@pytest.mark.parametrize("pins", [False])
def test_a2_signed_config(stages: list[World], tmp_path: Path, change: Change, error: type[DtrainError], text: str,
                          pins: bool) -> None:
    world = stages[1].copy(tmp_path / "w")
    world.edit_config(change)
    refused(world, "leipzig", error, text, pins=pins)


@pytest.mark.parametrize(("change", "error", "text"), [
    (lambda d: d.update(proposal_id="p-2"), VerificationFailed, "proposal_id: expected 'p-1', got 'p-2'"),
    (lambda d: d.update({"@id": "train-2"}), MissingEvidence, "train 'train-2'"),
    (lambda d: d["source"].update(address="evil/base"), VerificationFailed, "source"),
    (lambda d: d.update(session_id="00" * 64), VerificationFailed, "session_id"),
])
def test_a2_unsigned_config_against_the_pin(stages: list[World], tmp_path: Path, change: Change,
                                            error: type[DtrainError], text: str) -> None:
    world = stages[1].copy(tmp_path / "w")
    world.edit_config(change)
    refused(world, "leipzig", error, text)


@pytest.mark.parametrize("who", ["creator", "builder", "station"])
def test_a3_key_swapped_and_everything_signed_again(stages: list[World], tmp_path: Path, who: str) -> None:
    world = stages[0].copy(tmp_path / "w")
    mallory = world.keys["mallory"]

    def forge(document: Any) -> None:
        pem = mallory.public.pem().hex()
        code = bytes.fromhex(document["hash"])
        if who == "creator":
            document["creator"]["rsa_public_key"] = pem
            document["signature"] = mallory.sign_pkcs1(code).hex()
        if who in ("creator", "builder"):
            document["build"]["rsa_public_key"] = pem
            document["build"]["signature"] = mallory.sign_pkcs1(code + bytes.fromhex(document["signature"])).hex()
        if who == "station":
            document["route"][1]["rsa_public_key"] = pem
            document["route"][1]["encrypted_key"] = mallory.public.wrap(world.file_key("aachen")).hex()

    world.edit_config(forge)
    refused(world, "aachen", BadSignature, f"^{who}.*expected (a )?key", pins=False)


def _insert_mallory(document: Any, world: World) -> None:
    pem = world.keys["mallory"].public.pem().hex()
    document["route"].append({**document["route"][-1], "station": "mallory", "index": 3, "rsa_public_key": pem})


@pytest.mark.parametrize(("change", "error", "text", "pins"), [
    (lambda d: d["route"][1].update(index=2) or d["route"][2].update(index=1), RouteProblem, "route: expected", True),
    (lambda d: d["route"].pop(), RouteProblem, "route: expected", True),
    (lambda d: d["route"][2].update(index=7), RouteProblem, "indices 0 to 2", False),
    (lambda d: d["route"][2].update(index=1), RouteProblem, "indices 0 to 2", False),
    (lambda d: d["route"].append({**d["route"][2], "index": 3}), RouteProblem, "each station once", False),
    (lambda d: d.update(route=[]), RouteProblem, "at least one stop", False),
])
def test_a4_route(stages: list[World], tmp_path: Path, change: Change, error: type[DtrainError], text: str,
                  pins: bool) -> None:
    world = stages[0].copy(tmp_path / "w")
    world.edit_config(change)
    refused(world, "aachen", error, text, pins=pins)


def test_a4_attacker_appends_himself(stages: list[World], tmp_path: Path) -> None:
    """W04: the next post-run would wrap the file key for him."""
    world = stages[0].copy(tmp_path / "w")
    world.edit_config(lambda document: _insert_mallory(document, world))
    refused(world, "aachen", MissingEvidence, "station 'mallory'", pins=False)


@pytest.mark.parametrize("change", [
    lambda d: d.update(result_hash=None),
    lambda d: d.update(result_hash=None, result_signature=None),
    lambda d: d.pop("result_hash"),
    lambda d: d.update(result_signature=None),
])
def test_a5_result_hash_removed_so_that_a_station_takes_itself_for_the_first(
    stages: list[World], tmp_path: Path, change: Change
) -> None:
    world = stages[1].copy(tmp_path / "w")
    world.edit_config(change)
    refused(world, "leipzig", RouteProblem, "expected one after 1 of 3 stops, got none", pins=False)


def test_a5_results_slipped_into_a_new_train(stages: list[World], tmp_path: Path) -> None:
    world = stages[0].copy(tmp_path / "w")
    world.edit_members(lambda members: with_file(members, RESULTS, sealed(b"poison", world.file_key("aachen"))))
    refused(world, "aachen", VerificationFailed, "no files before the first stop", pins=False)


def test_a6_link_of_the_same_station_from_another_train(
    stages: list[World], keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    other = make_world(tmp_path / "other", keys, train_id="train-2")
    other.hop("aachen", {"sum.txt": b"1" * 40})
    world = stages[1].copy(tmp_path / "w")
    foreign = other.config()["route"][0]["signature"]
    world.edit_config(lambda document: document["route"][0].update(signature=foreign))
    refused(world, "leipzig", DigestMismatch, "chain digest", pins=False)


def test_a6_results_of_the_same_station_from_another_train(
    stages: list[World], keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    other = make_world(tmp_path / "other", keys, train_id="train-2")
    other.hop("aachen", {"sum.txt": b"1" * 40})
    foreign = other.config()
    world = stages[1].copy(tmp_path / "w")
    world.edit_config(lambda document: document.update(
        {name: foreign[name] for name in ("result_hash", "result_signature")}))
    refused(world, "leipzig", DigestMismatch, "chain digest", pins=False)


def test_a7_results_of_an_earlier_hop_with_their_valid_signature(stages: list[World], tmp_path: Path) -> None:
    world = stages[2].copy(tmp_path / "w")
    old = world.config("hop-01-aachen")
    world.edit_config(lambda document: document.update(
        {name: old[name] for name in ("result_hash", "result_signature")}))
    refused(world, "tuebingen", DigestMismatch, "chain digest", pins=False)


def test_a7_files_of_an_earlier_hop_sealed_again_by_an_insider(stages: list[World], tmp_path: Path) -> None:
    world = stages[2].copy(tmp_path / "w")
    key = world.file_key("aachen")
    world.edit_members(lambda members: with_file(members, RESULTS, sealed(b"1" * 40, key)))
    refused(world, "tuebingen", DigestMismatch, "^results: expected those that the previous station signed",
            pins=False)


@pytest.mark.parametrize("how", ["bit", "iv", "padding", "swap", "truncated", "added", "dropped", "reordered"])
def test_a8_results_tampered_with_give_one_uniform_error(stages: list[World], tmp_path: Path, how: str) -> None:
    """W19: padding and hash are told alike."""
    world = stages[2].copy(tmp_path / "w")
    members = world.members()
    blob, other = members[RESULTS][1], members["opt/pht_results/d/aachen.txt"][1]
    assert opened(blob, world.file_key("aachen")) == b"2" * 40
    blocks = [blob[start:start + 16] for start in range(0, len(blob), 16)]
    changed = {
        "bit": blob[:20] + bytes([blob[20] ^ 1]) + blob[21:],
        "iv": bytes([blob[0] ^ 1]) + blob[1:],
        "padding": blob[:-17] + bytes([blob[-17] ^ 1]) + blob[-16:],
        "swap": b"".join([blocks[0], blocks[2], blocks[1], *blocks[3:]]),
        "truncated": blob[:-16],
    }
    if how in changed:
        members = with_file(members, RESULTS, changed[how])
    elif how == "added":
        members = with_file(members, "opt/pht_results/more.txt", blob)
    elif how == "dropped":
        members = without(members, RESULTS)
    else:
        members = with_file(with_file(members, RESULTS, other), "opt/pht_results/d/aachen.txt", blob)
    world.put(members)
    refused(world, "tuebingen", DigestMismatch,
            "^results: expected those that the previous station signed, got others$", pins=False)


@pytest.mark.parametrize(("stage", "station", "text"), [
    (0, "leipzig", "got that of 'aachen'"), (1, "aachen", "already run"), (2, "leipzig", "already run"),
    (3, "tuebingen", "passed all 3 stops"),
])
def test_a9_wrong_turn(stages: list[World], tmp_path: Path, stage: int, station: str, text: str) -> None:
    refused(stages[stage].copy(tmp_path / "w"), station, RouteProblem, text)


def test_a9_station_that_is_not_on_the_route(stages: list[World], tmp_path: Path) -> None:
    refused(stages[0].copy(tmp_path / "w"), "mallory", RouteProblem, "expected station 'mallory' on it")


@pytest.mark.parametrize("how", ["removed", "changed", "listed", "emptied"])
def test_a10_query(stages: list[World], tmp_path: Path, how: str) -> None:
    world = stages[1].copy(tmp_path / "w")
    path = "opt/pht_train/query.json"
    blob = world.members()[path][1]
    if how == "listed":
        world.edit_config(lambda document: document["file_list"].append("query.json"))
        refused(world, "leipzig", VerificationFailed, "no query.json in it", pins=False)
        return
    world.edit_members(lambda members: without(members, path) if how == "removed" else with_file(
        members, path, b"" if how == "emptied" else blob[:20] + bytes([blob[20] ^ 1]) + blob[21:]))
    refused(world, "leipzig", DigestMismatch, "immutable files|encrypted file", pins=False)


def test_a10_query_added_to_a_train_without_one(stages: list[World], tmp_path: Path) -> None:
    """An insider moves the end of the last file's hash input into a query: the session id stands between them."""
    world = stages[1].copy(tmp_path / "w")
    key = world.file_key("aachen")
    world.edit_members(lambda members: with_file(members, "opt/pht_train/query.json", sealed(QUERY + b" ", key)))
    refused(world, "leipzig", DigestMismatch, "immutable files", pins=False)


REG, LNK, SYM = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


@pytest.mark.parametrize("layer", [
    [("usr/bin/python", REG, b"evil", "")],
    [("etc/.wh.motd", REG, b"", "")],
    [(".wh.etc", REG, b"", "")],
    [("opt/other", REG, b"", "")],
    [("opt/.wh..wh..opq", REG, b"", "")],
    [(".wh..wh..opq", REG, b"", "")],
    [("opt/.wh.other", REG, b"", "")],
    [("opt", SYM, b"", "etc")],
    [("opt/pht_train_evil/x", REG, b"", "")],
    [("opt/../usr/bin/python", REG, b"", "")],
    [("/etc/passwd", REG, b"x", "")],
])
def test_c4_layer_above_the_base_touches_what_is_not_the_trains(
    stages: list[World], tmp_path: Path, layer: list[tuple[str, bytes, bytes, str]]
) -> None:
    """D7 of the specification: only the train's own places may differ from the approved base image."""
    world = stages[1].copy(tmp_path / "w")
    world.put(world.members(), extra=[tar_of(*layer)])
    refused(world, "leipzig", VerificationFailed, "only the train's own paths above the base image")


@pytest.mark.parametrize("member", [
    ("opt/pht_train/lib/a.py", SYM, b"", "/etc/shadow"), ("opt/pht_results/x", SYM, b"", "../../etc/shadow"),
    ("opt/pht_results/x", LNK, b"", "etc/shadow"), ("opt/pht_results/x", tarfile.FIFOTYPE, b"", ""),
    ("opt/pht_results/x", tarfile.CHRTYPE, b"", ""), ("opt/train_config.json", SYM, b"", "/etc/passwd"),
    ("opt/pht_train", SYM, b"", "/etc"),
])
def test_c2_c3_links_and_special_files_in_the_train(
    stages: list[World], tmp_path: Path, member: tuple[str, bytes, bytes, str]
) -> None:
    world = stages[1].copy(tmp_path / "w")
    world.put(world.members(), extra=[tar_of(member)])
    refused(world, "leipzig", UnsafeArchive, "expected a (regular file|hard link|folder)")


@pytest.mark.parametrize(("change", "text"), [
    (lambda c: c["Env"].append("LD_PRELOAD=/opt/pht_results/x.so"), "Env"),
    (lambda c: c["Env"].append("PYTHONPATH=/opt/pht_results"), "Env"),
    (lambda c: c.update(env=["LD_PRELOAD=/opt/pht_results/x.so"]), "env"),
    (lambda c: c.update(Labels={"traefik.enable": "true"}), "Labels"),
    (lambda c: c.update(Cmd="sh -c evil"), "Cmd"),
    (lambda c: c.update(Entrypoint=["/bin/sh", "-c"]), "Entrypoint"),
    (lambda c: c.update(User="0"), "User"),
    (lambda c: c.update(WorkingDir="/opt/pht_results"), "WorkingDir"),
    (lambda c: c.update(Volumes={"/opt/pht_train": {}}), "Volumes"),
    (lambda c: c.update(Cmd=["sh", "-c", "evil", "/opt/pht_train/entrypoint.py"]), "Cmd"),
    (lambda c: c.update(Cmd=["python", "/opt/pht_results/x.py"]), "Cmd"),
    (lambda c: c.update(Cmd=["perl", "/opt/pht_train/entrypoint.py"]), "Cmd"),
])
def test_a1_image_config_that_starts_something_else(
    stages: list[World], tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    """W41: what a runtime acts on has to be the base image's."""
    world = stages[1].copy(tmp_path / "w")
    world.put(world.members(), runtime=change)
    before = snapshot(world)
    with pytest.raises(DtrainError, match=f"image config[.:] ?{text}") as told:
        world.pull("leipzig")
    assert told.value.exit_status in (10, 20)
    assert snapshot(world) == before


def test_a3_base_image_that_nobody_approved(stages: list[World], tmp_path: Path) -> None:
    world = stages[1].copy(tmp_path / "w")
    image = world.image()
    layer = tar_of(("usr/bin/python", REG, b"evil", ""))
    document = json.loads(image.config.raw)
    document["rootfs"]["diff_ids"][0] = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    _put_with_first_layer(world, document, layer)
    refused(world, "leipzig", MissingEvidence, "base image")


def test_a3_base_layer_exchanged_under_the_diff_id_of_the_approved_one(stages: list[World], tmp_path: Path) -> None:
    world = stages[1].copy(tmp_path / "w")
    _put_with_first_layer(world, json.loads(world.image().config.raw), tar_of(("usr/bin/python", REG, b"evil", "")))
    refused(world, "leipzig", DigestMismatch, "layer 0: expected the diff_id")


def _put_with_first_layer(world: World, document: Any, layer: bytes) -> None:
    import io

    from dtrain.oci.manifest import make_manifest

    image = world.image()
    raw = json.dumps(document).encode()
    first = Descriptor.of(layer, image.manifest.layers[0].media_type)
    manifest = make_manifest(media_type=image.manifest.media_type,
                             config=Descriptor.of(raw, image.manifest.config.media_type),
                             layers=[first, *image.manifest.layers[1:]])
    with world.context.connect(world.train) as place:
        place.put_blob(first, lambda: io.BytesIO(layer))
        place.put_blob(manifest.config, lambda: io.BytesIO(raw))
        place.put_manifest(manifest)
        place.put_tag("latest", manifest)


def test_a8_the_creator_is_told_too(stages: list[World], tmp_path: Path) -> None:
    world = stages[3].copy(tmp_path / "w")
    blob = world.members()[RESULTS][1]
    world.edit_members(lambda members: with_file(members, RESULTS, blob[:20] + bytes([blob[20] ^ 1]) + blob[21:]))
    assert verify(world.train, trust=world.anchor(), context=world.context).done == 3  # no plaintext without a key
    with pytest.raises(DigestMismatch, match="results"):
        open_results(world.train, tmp_path / "results", key=world.keys["alice"], trust=world.anchor(),
                     context=world.context)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b"{}", b'{"route": 1', b'{"route": [], "route": []}'])
def test_c7_config_that_is_none(stages: list[World], tmp_path: Path, raw: bytes) -> None:
    world = stages[1].copy(tmp_path / "w")
    world.edit_members(lambda members: with_file(members, "opt/train_config.json", raw))
    before = snapshot(world)
    with pytest.raises(DtrainError) as told:
        world.pull("leipzig")
    assert told.value.exit_status == 20
    assert snapshot(world) == before


def test_c7_config_of_a_gigabyte_is_refused_before_it_is_read(stages: list[World]) -> None:
    with pytest.raises(DtrainError) as told:
        parse_train_config(b" " * (17 * 2**20))
    assert told.value.exit_status == 20
