"""Group B: what an attacker with access to the registry, or a station, can do with signed metadata; at a real registry.

Every refusal is told by its class, and nothing may have changed: no working folder, no tag, no memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from forge_metadata import (
    START,
    STATIONS,
    Signed,
    add_target,
    make_signed,
    replaced,
    sign,
)  # fmt: skip
from registry_servers import registry
from tuf.api.metadata import DelegatedRole, Delegations

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.errors import (
    BadSignature,
    Conflict,
    DigestMismatch,
    DtrainError,
    Expired,
    MalformedInput,
    MissingEvidence,
    Rollback,
    RouteProblem,
    VerificationFailed,
    WrongKey,
)  # fmt: skip
from dtrain.flow import tend
from dtrain.flow.context import Context
from dtrain.flow.pull_verify import pull_verify
from dtrain.flow.push_results import push_results
from dtrain.flow.station import connector
from dtrain.oci.reference import Reference
from dtrain.transport.copy import copy_image
from dtrain.trust.editor import parsed, with_hop, with_role
from dtrain.trust.root import Consortium, Profile, draft_root, sign_root
from dtrain.trust.signers import tuf_key
from dtrain.trust.statements import HopStatement, hop_path

pytestmark = pytest.mark.registry
PARTIES = ("alice", "bob", "router", "mallory", *STATIONS)


@pytest.fixture(scope="module")
def rsa() -> dict[str, PrivateKey]:
    return {name: PrivateKey.generate(2048) for name in ("alice", *STATIONS)}


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {name: SigningKey.generate() for name in PARTIES}


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with registry("plain") as server:
        yield server.host


@pytest.fixture
def place(host: str, request: pytest.FixtureRequest) -> str:
    return f"{host}/{abs(hash(request.node.nodeid)):x}/"


@pytest.fixture
def train(place: str, tmp_path: Path, rsa: dict[str, PrivateKey], keys: dict[str, SigningKey]) -> Signed:
    """A new train."""
    return make_signed(place, tmp_path, rsa, keys, name="train-b")


@pytest.fixture
def travelled(train: Signed) -> Signed:
    """A train after two hops; leipzig is next."""
    train.hop("aachen")
    train.hop("tue")
    return train


def consortium(keys: dict[str, SigningKey], **changes: Any) -> Consortium:
    return Consortium(**{
        "keyholders": {"ada": keys["bob"].public}, "creators": {"alice": keys["alice"].public},
        "stations": {name: keys[name].public for name in STATIONS}, **changes})


def root(keys: dict[str, SigningKey], *signers: str, version: int = 1, **changes: Any) -> bytes:
    metadata = draft_root(consortium(keys, **changes), version=version, expires=START + timedelta(days=300))
    for name in signers or ("bob",):
        sign_root(metadata, keys[name], None)
    return metadata.to_bytes()


def refused(train: Signed, error: type[DtrainError], match: str | None = None, *, context: Context | None = None,
            status: int | None = None, valid: bool = False) -> DtrainError:
    """Check that nobody accepts the train, and that the attempt changed nothing; metadata that is ``valid`` in itself,
    where only the image is not what it says, is remembered."""
    before, folder = train.tags(), sorted(train.folder.iterdir())
    who = context or train.fresh()
    memory = snapshot(who)
    with pytest.raises(error, match=match) as told:
        train.verify(who)
    assert type(told.value) is error
    assert status is None or told.value.exit_status == status
    assert (train.tags(), sorted(train.folder.iterdir())) == (before, folder)
    assert valid or snapshot(who) == memory
    return told.value


def snapshot(who: Context) -> dict[str, bytes]:
    """Return what somebody remembers."""
    top = who.state.folder / "trains"
    current = next(top.glob("*/current"), None)
    return {} if current is None else {file.name: file.read_bytes() for file in current.glob("*.json")}


def seen(train: Signed, who: str = "cached") -> Context:
    """Return somebody who has verified the train as it is."""
    context = train.context(who)
    train.verify(context)
    return context


# --- honest trains -----------------------------------------------------------------------------------------------


def test_route_is_audited_without_a_private_key(travelled: Signed) -> None:
    found = travelled.verify()
    assert found.attested is not None
    assert [(hop.number, hop.station, hop.signers) for hop in found.attested.hops] == [
        (0, None, ("creator alice",)), (1, "aachen", ("station aachen",)), (2, "tue", ("station tue",))]
    assert [hop.digest for hop in found.attested.hops] == [
        travelled.image(tag).digest for tag in ("hop-00", "hop-01-aachen", "hop-02-tue")]
    statement = found.attested.newest.statement
    assert statement is not None
    assert statement.parent == found.attested.hops[1].digest
    assert statement.result_files == 1
    assert (found.attested.version, found.attested.root_version) == (3, 1)
    assert travelled.warnings == []


def test_state_is_one_artifact_that_others_can_find(travelled: Signed) -> None:
    manifest = travelled.image("tuf")
    assert manifest.artifact_type == "application/vnd.tuf.repository.v1+json"
    assert manifest.subject == travelled.image("latest").descriptor
    names = {layer.annotations["tuf.io/filename"] for layer in manifest.layers}
    assert names == {layer.annotations["org.opencontainers.image.title"] for layer in manifest.layers}
    assert names == {"1.root.json", "1.targets.json", "1.hop-aachen.json", "1.hop-tue.json", "3.snapshot.json",
                     "timestamp.json"}
    assert {tag for tag in travelled.tags() if tag.startswith("tuf")} >= {"tuf", f"tuf-3-{manifest.digest.short}"}
    assert f"sha256-{travelled.image('latest').digest.hex}" in travelled.tags()  # referrers tag schema


def test_tag_is_never_trusted_a4_a5_a7(travelled: Signed) -> None:
    """A4, A5, A7: whatever the tag names, the station gets what metadata names."""
    expected = travelled.image("latest").digest
    for tag in ("hop-00", "hop-01-aachen", "base"):
        travelled.point("latest", tag)
        assert travelled.pull("leipzig").record.digest == str(expected)


def test_wrong_turn_and_second_run_a9(train: Signed) -> None:
    with pytest.raises(RouteProblem, match="got that of 'aachen'"):
        train.pull("tue")
    train.hop("aachen")
    with pytest.raises(RouteProblem, match="already run"):
        train.pull("aachen")
    assert not list(train.folder.glob("work-tue*"))


def test_other_signing_key_is_told_at_once(train: Signed) -> None:
    other = replace(train, keys={**train.keys, "aachen": train.keys["mallory"]})
    with pytest.raises(WrongKey, match="the key that signs its metadata"):
        other.pull("aachen")
    assert not list(train.folder.glob("work-aachen*"))


# --- B1 to B4: states put back, held back, mixed and exchanged ----------------------------------------------------


def commit(train: Signed, version: int) -> str:
    return next(tag for tag in train.tags() if tag.startswith(f"tuf-{version}-"))


def test_b1_rollback_cached(travelled: Signed) -> None:
    who = seen(travelled)
    for version in (1, 2):
        travelled.point("tuf", commit(travelled, version))
        refused(travelled, Rollback, context=who, status=14)


def test_b1_rollback_fresh(travelled: Signed) -> None:
    travelled.point("tuf", commit(travelled, 1))
    refused(travelled, Rollback, "got an older one", status=14)
    with pytest.raises(Rollback):
        travelled.pull("aachen", context=travelled.fresh())


def test_b1_rollback_by_one_state_fresh(travelled: Signed) -> None:
    """A state that was begun and not finished looks the same, so it is the image that tells (R1)."""
    travelled.point("tuf", commit(travelled, 2))
    with pytest.raises(MissingEvidence, match="hop of station 'tue': expected signed metadata"):
        travelled.pull("leipzig", context=travelled.fresh())
    assert "begun and not finished" in travelled.warnings[-1]


def test_b2_freeze(travelled: Signed) -> None:
    late = travelled.later(days=36)
    refused(late, Expired, "expired", status=13)
    with pytest.raises(Expired):
        late.pull("leipzig")


def test_b2_max_stale_is_shown(travelled: Signed) -> None:
    late = replace(travelled.later(days=36), max_stale=timedelta(days=7))
    found = late.verify()
    assert found.attested is not None
    assert found.attested.stale == timedelta(days=1)
    assert "withholding" in late.warnings[-1]
    refused(late.later(days=8), Expired)


def test_b2_max_stale_does_not_outlast_the_deadline(travelled: Signed) -> None:
    refused(replace(travelled.later(days=366), max_stale=timedelta(days=400)), Expired, status=13)


def test_b2_clock_set_back(travelled: Signed) -> None:
    refused(travelled.later(minutes=-6), Expired, "clock: expected a time after", status=13)
    travelled.later(minutes=-4).verify()


def test_run_that_outlasts_the_metadata_can_still_be_published(train: Signed) -> None:
    hop = train.pull("aachen")
    late = train.later(days=40)
    late.push(hop)
    assert late.verify().done == 1


def test_b2_extended_by_the_creator(travelled: Signed) -> None:
    late = travelled.later(days=36)
    who = late.context("cached")
    tend.refresh(late.train, anchor=late.anchor(), signing=late.keys["alice"], context=late.context("alice"))
    assert late.verify(who).done == 2
    late.hop("leipzig")
    assert late.verify(who).done == 3


def test_extension_by_a_station_that_has_passed_the_train_on(travelled: Signed) -> None:
    with pytest.raises(BadSignature, match="the station of the newest hop"):
        tend.refresh(travelled.train, anchor=travelled.anchor(), signing=travelled.keys["aachen"],
                     context=travelled.context("aachen"))
    with pytest.raises(WrongKey):
        tend.refresh(travelled.train, anchor=travelled.anchor(), signing=travelled.keys["mallory"],
                     context=travelled.context("mallory"))
    tend.refresh(travelled.train, anchor=travelled.anchor(), signing=travelled.keys["tue"],
                 context=travelled.context("tue"))
    assert travelled.verify().done == 2


def test_b3_hop_metadata_of_another_state(travelled: Signed) -> None:
    """Signed by the same key, with the same version and length, and not what the snapshot names."""
    files = travelled.files()
    targets = parsed(files, "hop-tue").signed
    custom = targets.targets[hop_path("train-b", "tue", 2)].unrecognized_fields["custom"]
    custom["tool"] = custom["tool"].swapcase()
    other = sign(targets, [travelled.keys["tue"]])
    assert len(other) == len(files["1.hop-tue.json"])
    travelled.put({**files, "1.hop-tue.json": other}, commit=False)
    refused(travelled, DigestMismatch, status=11)
    travelled.put({**files, "1.hop-tue.json": files["1.hop-aachen.json"] + b" " * 100}, commit=False)
    refused(travelled, MalformedInput)


def test_b3_snapshot_of_another_state(travelled: Signed) -> None:
    old = travelled.files(commit(travelled, 2))
    travelled.put(replaced(travelled.files(), "snapshot", old), commit=False)
    refused(travelled, Rollback, status=14)


def test_b3_snapshot_that_hides_a_hop(travelled: Signed) -> None:
    """By the key of aachen, which may sign as long as its hop is the newest: a cached client sees that one is gone,
    a fresh one that the image has been further."""
    who = seen(travelled)
    files = {name: raw for name, raw in travelled.files().items() if "hop-tue" not in name}
    travelled.put(travelled.finish(files, "aachen"))
    refused(travelled, MissingEvidence, context=who, status=15)
    with pytest.raises(MissingEvidence, match="hop of station 'tue'") as told:
        travelled.pull("leipzig", context=travelled.fresh())
    assert told.value.exit_status == 15


def test_b3_hop_missing_in_the_middle(travelled: Signed) -> None:
    files = {name: raw for name, raw in travelled.files().items() if "hop-aachen" not in name}
    travelled.put(travelled.finish(files, "tue"))
    refused(travelled, MissingEvidence, "no metadata of: aachen", status=15)


def test_b3_hop_that_builds_on_another_image(travelled: Signed) -> None:
    files = travelled.files()
    path = hop_path("train-b", "tue", 2)

    def change(targets: Any) -> None:
        targets.targets[path].unrecognized_fields["custom"]["parent"] = str(travelled.image("hop-00").digest)

    travelled.put(travelled.finish(travelled.edit(files, "hop-tue", change, "tue"), "tue"))
    refused(travelled, VerificationFailed, "expected that it builds on")


def test_b4_metadata_of_another_train(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    """The same root and the same keys: only what the metadata says of its train tells (R3)."""
    roots = (root(keys),)
    one = make_signed(place, tmp_path / "a", rsa, keys, name="train-a", roots=roots)
    other = make_signed(place, tmp_path / "b", rsa, keys, name="train-b", roots=roots)
    who = seen(other)
    other.put(one.files(), commit=False)
    for context in (who, other.fresh()):
        refused(other, Rollback, "expected that of the name 'train-b', got that of 'train-a'", context=context,
                status=14)
    with pytest.raises(Rollback, match="of the train 'train-b', got that of 'train-a'"):
        other.verify(replace(other.fresh(), train="train-b"))


def test_b1_station_whose_hop_is_hidden_does_not_run_again(train: Signed) -> None:
    """Put back by one state, on a machine that has seen nothing: the station's own statement is evidence."""
    train.hop("aachen")
    train.point("tuf", commit(train, 1))
    train.point("latest", "hop-00")
    with pytest.raises(Rollback, match="expected no hop of station 'aachen' yet") as told:
        train.pull("aachen", context=train.fresh())
    assert told.value.exit_status == 14
    assert not list(train.folder.glob(".work*"))


def test_b3_snapshots_of_one_version_mixed(train: Signed) -> None:
    """Two states that differ in their snapshots alone have timestamps that look alike, but for its digest."""
    train.hop("aachen")
    other = train.finish(train.files(commit(train, 1)), "alice", version=2)
    train.put({**other, "timestamp.json": train.files()["timestamp.json"]}, commit=False)
    refused(train, Rollback, "expected the content that the timestamp names", status=14)


def test_b4_creator_does_not_extend_another_train_than_he_means(place: str, tmp_path: Path, rsa: Any,
                                                                keys: dict[str, SigningKey]) -> None:
    """Else an old state of that other train would get a new date."""
    roots = (root(keys),)
    one = make_signed(place, tmp_path / "a", rsa, keys, name="train-a", roots=roots)
    other = make_signed(place, tmp_path / "b", rsa, keys, name="train-b", roots=roots)
    other.put(one.files())
    before = other.tags()
    with pytest.raises(Rollback, match="expected that of the name 'train-b'"):
        tend.refresh(other.train, anchor=other.anchor(), signing=keys["alice"], context=other.fresh())
    assert other.tags() == before


@pytest.mark.parametrize("who", ["fresh", "cached"])
def test_b5_creator_signs_nothing_that_he_has_not_verified(train: Signed, who: str) -> None:
    """Targets that nobody signed, in the place of his own: neither rotation nor extension gives them a signature."""
    context = train.context("alice") if who == "cached" else train.fresh()

    def change(targets: Any) -> None:
        targets.version -= 1
        custom = targets.targets["train-b/train"].unrecognized_fields["custom"]
        custom["files"]["entrypoint.py"]["sha256"] = "00" * 32

    train.put(train.edit(train.files(), "targets", change), commit=False)
    before = train.tags()
    for station in ("tue", "aachen"):
        with pytest.raises(VerificationFailed):
            tend.exchange_key(train.train, station, train.keys["router"].public, anchor=train.anchor(),
                              signing=train.keys["alice"], context=context)
    with pytest.raises(VerificationFailed):
        tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=context)
    assert train.tags() == before


def test_b5_revocation_does_not_sign_a_hop_that_the_station_has_not(train: Signed) -> None:
    train.hop("aachen")

    def change(targets: Any) -> None:
        targets.version -= 1
        targets.targets[hop_path("train-b", "aachen", 1)].unrecognized_fields["custom"]["chain"] = "00" * 64

    train.put(train.edit(train.files(), "hop-aachen", change, "mallory"), commit=False)
    before = train.tags()
    with pytest.raises(VerificationFailed):
        tend.exchange_key(train.train, "aachen", None, anchor=train.anchor(), signing=train.keys["alice"],
                          context=train.fresh())
    assert train.tags() == before


def test_b3_cosigning_signs_no_state_that_hides_a_hop(travelled: Signed) -> None:
    """The bytes of a proposal are not signed unless they say what everybody else has said."""
    hidden = {name: raw for name, raw in travelled.files().items() if "hop-tue" not in name}
    proposed = travelled.put(travelled.finish(hidden, "mallory", version=50), commit=False, head=False)
    with connector()(travelled.train) as place:
        place.put_tag("tuf-prop-aachen", proposed.manifest)
    before = blobs(travelled)
    with pytest.raises(Conflict, match="without hop-tue"):
        tend.cosign(travelled.train, "aachen", anchor=travelled.anchor(), signing=travelled.keys["alice"],
                    context=travelled.context("alice"))
    fake = {**hidden, **{name: raw for name, raw in with_root(travelled, 2, threshold=2, keyholders={
        "a": travelled.keys["alice"].public, "m": travelled.keys["mallory"].public}).items() if "root" in name}}
    proposed = travelled.put(travelled.finish(fake, version=50), commit=False, head=False)
    with connector()(travelled.train) as place:
        place.put_tag("tuf-prop-aachen", proposed.manifest)
    with pytest.raises(DtrainError):
        tend.cosign(travelled.train, "aachen", anchor=travelled.anchor(), signing=travelled.keys["alice"],
                    context=travelled.context("alice"))
    assert before == blobs(travelled)
    assert travelled.verify().done == 2


def blobs(train: Signed) -> dict[str, str]:
    """Return what every tag names, but for those of proposals."""
    return {tag: str(train.image(tag).digest) for tag in train.tags()
            if not tag.startswith(("tuf-prop", "sha256-"))}


@pytest.mark.parametrize("name", ["9.targets.json", "9.timestamp.json", "9999.root.json", "hop-a.root.json",
                                  "9.snapshot.json", "9.hop-aachen.json"])
def test_b1_junk_file_does_not_turn_the_memory_off(travelled: Signed, name: str) -> None:
    """There is one way to read a state: each role once, roots without a gap."""
    who, old = seen(travelled), travelled.files(commit(travelled, 1))
    junk = b'{"signatures": [], "signed": {"_type": "targets", "expires": "2027-01-01T00:00:00Z", ' \
           b'"spec_version": "1.0.31", "targets": {"zzz/train": {"length": 1, "hashes": {"sha256": "00"}}}, ' \
           b'"version": 9}}'
    travelled.put({**old, name: junk}, commit=False)
    for context in (who, travelled.fresh()):
        with pytest.raises(DtrainError) as told:
            travelled.verify(context)
        assert told.value.exit_status in (14, 15, 20)
    with pytest.raises(DtrainError):
        tend.refresh(travelled.train, anchor=travelled.anchor(), signing=travelled.keys["alice"],
                     context=travelled.context("alice"))


def float_in_timestamp(train: Signed) -> dict[str, bytes]:
    files = train.files()
    document = json.loads(files["timestamp.json"])
    document["signed"]["dtrain"]["odd"] = 1.5
    return {**files, "timestamp.json": json.dumps(document).encode()}


def test_b9_junk_tag_with_numbers_that_json_can_hold_and_tuf_cannot(train: Signed) -> None:
    made = train.put(float_in_timestamp(train), commit=False, head=False)
    with connector()(train.train) as place:
        place.put_tag(f"tuf-1-{made.digest.short}", made.manifest)
    assert train.verify().done == 0
    train.hop("aachen")
    train.put(float_in_timestamp(train), commit=False)
    with pytest.raises(DtrainError):
        train.verify()


@pytest.mark.parametrize("note", ["abc", 5, [], {"train": "train-b"}, None])
def test_b9_odd_note_in_the_timestamp(train: Signed, note: object) -> None:
    train.hop("aachen")
    files = train.files()
    signed = parsed(files, "timestamp").signed
    signed.unrecognized_fields["dtrain"] = note
    signed.version += 1
    train.put(with_role(files, "timestamp", sign(signed, [train.keys["aachen"]]), signed.version))
    refused(train, MalformedInput)
    tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"),
                 start=commit(train, 2))
    assert train.verify().done == 1


def test_b7_junk_tag_burns_no_versions(train: Signed) -> None:
    train.hop("aachen")
    for number in (999_999, 1_000_000):
        train.point(f"tuf-{number}-{'0' * 12}", "hop-00")
    tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"),
                 start=commit(train, 2))
    found = train.verify()
    assert found.attested is not None
    assert found.attested.version == 3


def test_b9_root_file_that_holds_targets(train: Signed) -> None:
    files = train.files()
    train.put({**files, "2.root.json": files["1.targets.json"]}, commit=False)
    before = train.tags()
    with pytest.raises(MissingEvidence, match="Expected 'root', got 'targets'"):
        tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"))
    assert train.tags() == before


def test_b4_state_of_another_train_beside_ours(place: str, tmp_path: Path, rsa: Any,
                                               keys: dict[str, SigningKey]) -> None:
    """One tag copied from a train under the same root is no fork of ours, and is never joined."""
    roots = (root(keys),)
    one = make_signed(place, tmp_path / "a", rsa, keys, name="train-a", roots=roots)
    other = make_signed(place, tmp_path / "b", rsa, keys, name="train-b", roots=roots)
    one.hop("aachen")
    with connector()(one.train) as source, connector()(other.train) as target:
        for version in (1, 2):
            copy_image(source, commit(one, version), target, [commit(one, version)])
    other.verify()
    other.hop("aachen")
    assert other.verify().done == 1


def test_b4_train_of_the_same_id_by_another_creator(place: str, tmp_path: Path, rsa: Any,
                                                    keys: dict[str, SigningKey]) -> None:
    roots = (root(keys, creators={"alice": keys["alice"].public, "carol": keys["mallory"].public}),)
    one = make_signed(place, tmp_path / "a", rsa, keys, name="train-b", roots=roots)
    twin = make_signed(f"{place}twin/", tmp_path / "b", rsa, {**keys, "alice": keys["alice"]}, name="train-b",
                       roots=roots)
    who = seen(one)
    files = twin.files()
    files = twin.edit(files, "targets", lambda targets: None, "alice")
    one.put(twin.finish(files, "alice", version=5))
    refused(one, Rollback, "expected the train of 'alice' that was seen before", context=who, status=14)


def test_b4_what_the_creator_signed_about_a_train_never_changes(train: Signed) -> None:
    """Not even by his own key: whoever has seen the train keeps to what it was."""
    who = seen(train)
    files = train.edit(train.files(), "targets", lambda targets: targets.targets["train-b/train"].unrecognized_fields[
        "custom"].update(source="elsewhere"), "alice")
    train.put(train.finish(files, "alice"))
    refused(train, Rollback, "that was seen before", context=who, status=14)


def test_older_hop_is_not_pulled(travelled: Signed) -> None:
    older = replace(travelled.train, tag="hop-00")
    with pytest.raises(RouteProblem, match="expected the newest hop, 2, got 0"):
        pull_verify(older, travelled.folder / "w", station="aachen", key=travelled.rsa["aachen"],
                    signing_key=travelled.keys["aachen"], trust=travelled.anchor(), context=travelled.fresh())


def test_timestamp_that_outlives_what_the_creator_allows(train: Signed) -> None:
    """A station cannot make the window longer in which somebody can hold the metadata back."""
    train.hop("aachen")
    train.put(train.finish(train.files(), "aachen", days=200))
    refused(train, VerificationFailed, "expected to expire within 35 days")


def test_junk_tags_hide_nothing_and_stop_nobody(train: Signed) -> None:
    train.hop("aachen")
    train.point(f"tuf-9999999999-{'0' * 12}", "hop-00")
    train.verify()
    train.hop("tue")
    tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"))
    for number in range(70):
        train.point(f"tuf-99999999{number:02}-{'0' * 12}", "hop-00")
    refused(train, Rollback, "at most 64 states of metadata beside the newest", status=14)


def test_b7_past_station_with_a_high_number_stops_nobody(travelled: Signed) -> None:
    """Its key may sign, and its own hop is in the state: nothing in it is news."""
    old = travelled.files(commit(travelled, 2))
    travelled.put(travelled.finish(old, "aachen", version=900_000), head=False)
    travelled.verify()
    travelled.hop("leipzig")
    found = travelled.verify()
    assert found.attested is not None
    assert (found.done, found.attested.version) == (3, 4)


# --- B5 to B7: keys ---------------------------------------------------------------------------------------------


def test_b5_station_signs_for_another_one(travelled: Signed) -> None:
    def change(targets: Any) -> None:
        targets.targets[hop_path("train-b", "tue", 2)].hashes["sha256"] = travelled.image("hop-00").digest.hex

    travelled.put(travelled.finish(travelled.edit(travelled.files(), "hop-tue", change, "aachen"), "tue"))
    refused(travelled, BadSignature, status=12)


def test_b5_target_outside_its_paths_is_ignored(travelled: Signed) -> None:
    expected = travelled.image("hop-02-tue").digest
    own, foreign = hop_path("train-b", "aachen", 1), hop_path("train-b", "tue", 2)
    files = travelled.edit(travelled.files(), "hop-aachen", lambda targets: add_target(targets, foreign, own), "aachen")
    travelled.put(travelled.finish(files, "tue"))
    found = travelled.verify()
    assert found.attested is not None
    assert found.attested.newest.digest == expected
    assert found.attested.newest.signers == ("station tue",)


def test_b5_delegation_of_its_own_is_ignored(travelled: Signed) -> None:
    mallory = tuf_key(travelled.keys["mallory"].public)

    def change(targets: Any) -> None:
        targets.delegations = Delegations({mallory.keyid: mallory}, {
            "evil": DelegatedRole("evil", [mallory.keyid], 1, False, ["*/hops/*/*", "*/train"])})

    travelled.put(travelled.finish(travelled.edit(travelled.files(), "hop-aachen", change, "aachen"), "tue"))
    assert travelled.verify().done == 2


def test_b5_what_a_station_delegates_further_does_not_count(train: Signed) -> None:
    train.hop("aachen")
    mallory = tuf_key(train.keys["mallory"].public)
    path, files = hop_path("train-b", "aachen", 1), train.files()
    statement = parsed(files, "hop-aachen").signed

    def change(targets: Any) -> None:
        targets.targets.clear()
        targets.delegations = Delegations({mallory.keyid: mallory}, {
            "evil": DelegatedRole("evil", [mallory.keyid], 1, False, [path])})

    files = with_role(files, "evil", sign(statement, [train.keys["mallory"]]), 1)
    train.put(train.finish(train.edit(files, "hop-aachen", change, "aachen"), "aachen"))
    refused(train, MissingEvidence, "expected the target", status=15)


def test_b5_delegation_to_a_key_that_the_root_does_not_name(travelled: Signed) -> None:
    """A creator cannot put a key of his own choice in place of a station's, unless he vouches himself."""
    mallory = tuf_key(travelled.keys["mallory"].public)

    def change(targets: Any) -> None:
        targets.add_key(mallory, "hop-leipzig")

    travelled.put(travelled.finish(travelled.edit(travelled.files(), "targets", change, "alice"), "alice"))
    refused(travelled, BadSignature, "expected the key that the root names", status=12)


def test_online_roles_by_a_station_that_has_passed_the_train_on(travelled: Signed) -> None:
    """R2: the root allows aachen's key, but its time is over."""
    travelled.put(travelled.finish(travelled.files(), "aachen"))
    refused(travelled, BadSignature, "expected a signature of a creator, a router or the station", status=12)


@pytest.mark.parametrize("signers", [("mallory",), ()])
def test_b6_targets_by_nobody_who_may(travelled: Signed, signers: tuple[str, ...]) -> None:
    files = travelled.edit(travelled.files(), "targets", lambda targets: None, *signers)
    travelled.put(travelled.finish(files, "alice"))
    refused(travelled, BadSignature, status=12)


def with_root(train: Signed, version: int, *signers: str, **changes: Any) -> dict[str, bytes]:
    """Return the state with a root whose key holder is alice, as the creator's own root has it."""
    keys = {name: train.keys[name] for name in PARTIES}
    made = draft_root(consortium(keys, **{"keyholders": {"alice": keys["alice"].public}, **changes}), version=version,
                      expires=START + timedelta(days=300))
    return with_role(train.files(), "root", sign(made.signed, [keys[name] for name in signers]), version)


def test_b6_root_rotation(travelled: Signed) -> None:
    who = seen(travelled)
    files = with_root(travelled, 2, "alice", routers={"r": travelled.keys["router"].public})
    travelled.put(travelled.finish(files, "router"))
    for context in (who, travelled.fresh()):
        found = travelled.verify(context)
        assert found.attested is not None
        assert found.attested.root_version == 2


def test_b6_root_version_missing(travelled: Signed) -> None:
    files = with_root(travelled, 3, "alice", routers={"r": travelled.keys["router"].public})
    travelled.put(travelled.finish(files, "router"))
    refused(travelled, MalformedInput, "roots without a gap", status=20)


def test_b6_root_below_threshold(travelled: Signed) -> None:
    files = with_root(travelled, 2, "mallory", routers={"m": travelled.keys["mallory"].public})
    travelled.put(travelled.finish(files, "mallory"))
    refused(travelled, BadSignature, status=12)
    refused(travelled, BadSignature, context=seen_before(travelled), status=12)


def seen_before(train: Signed) -> Context:
    """Return somebody who verified the train before the last state was put."""
    context = train.context("before")
    head = train.image("tuf")
    train.point("tuf", commit(train, 3))
    train.verify(context)
    train.point("tuf", f"tuf-{parsed(train.files(), 'timestamp').signed.version + 1}-{head.digest.short}")
    return context


def test_b6_root_of_another_consortium(travelled: Signed, rsa: Any, keys: dict[str, SigningKey]) -> None:
    strange = replace(travelled, document={**travelled.document, "root": {
        "threshold": 1, "keys": {"m": {"fingerprint": keys["mallory"].public.fingerprint}}}})
    told = refused(strange, BadSignature, "expected signatures of 1 keys pinned by", status=12)
    assert "another consortium" in str(told.hint)


def test_b6_one_key_twice_does_not_meet_a_threshold(keys: dict[str, SigningKey], place: str, tmp_path: Path,
                                                    rsa: Any) -> None:
    made = draft_root(consortium(keys), version=1, expires=START + timedelta(days=300))
    twin = tuf_key(keys["alice"].public)
    twin.keyid = "00" * 32
    made.signed.add_key(twin, "targets")
    sign_root(made, keys["bob"], None)
    with pytest.raises(MalformedInput, match="expected each key once in a role"):
        make_signed(place, tmp_path, rsa, keys, name="t", roots=(made.to_bytes(),))


def test_b6_compromised_station_is_removed_and_its_hop_signed_anew(travelled: Signed) -> None:
    who = seen(travelled)
    bad = travelled.put(travelled.finish(travelled.files(), "aachen"), head=False)
    tend.exchange_key(travelled.train, "aachen", None, anchor=travelled.anchor(), signing=travelled.keys["alice"],
                      context=travelled.context("alice"))
    for context in (who, travelled.fresh()):
        found = travelled.verify(context)
        assert found.attested is not None
        assert found.attested.hops[1].signers == ("creator alice",)
        assert found.attested.root_version == 2
    travelled.point("tuf", f"tuf-4-{bad.digest.short}")
    refused(travelled, BadSignature)
    travelled.point("tuf", commit(travelled, 5))
    travelled.hop("leipzig")
    assert travelled.verify(who).done == 3


def test_b6_revoked_key_signs_no_more(train: Signed) -> None:
    hop = train.pull("aachen")
    tend.exchange_key(train.train, "aachen", None, anchor=train.anchor(), signing=train.keys["alice"],
                      context=train.context("alice"))
    with pytest.raises(WrongKey, match="the key that signs its metadata"):
        train.push(hop)
    assert train.verify().done == 0


def test_station_gets_a_new_key_in_the_middle_of_the_route(travelled: Signed) -> None:
    who = seen(travelled)
    for station in ("tue", "leipzig"):  # one has run it, the other is next
        tend.exchange_key(travelled.train, station, travelled.keys["router"].public, anchor=travelled.anchor(),
                          signing=travelled.keys["alice"], context=travelled.context("alice"))
    with pytest.raises(WrongKey):
        travelled.pull("leipzig")
    rotated = replace(travelled, keys={**travelled.keys, "leipzig": travelled.keys["router"]})
    rotated.hop("leipzig")
    assert rotated.verify(who).done == 3
    found = rotated.verify()
    assert found.attested is not None
    assert [hop.signers for hop in found.attested.hops[1:]] == [
        ("station aachen",), ("creator alice",), ("station leipzig",)]


def test_b6_revoked_key_holder_cannot_start_a_new_chain(travelled: Signed) -> None:
    """The anchor pins keys; whoever has seen a newer root keeps to it."""
    who = seen(travelled)
    keys = travelled.keys
    holders = {"alice": keys["bob"].public}  # the creator's key is no key holder's any more
    good = with_root(travelled, 2, "alice", "bob", keyholders=holders)
    travelled.put(travelled.finish(good, "alice"))
    travelled.verify(who)
    start = {name: raw for name, raw in travelled.files(commit(travelled, 1)).items() if "root" not in name}
    made = draft_root(consortium(dict(keys), keyholders={"alice": keys["alice"].public}), version=5,
                      expires=START + timedelta(days=300))
    evil = with_role(start, "root", sign(made.signed, [keys["alice"]]), 5)
    travelled.put(travelled.finish(evil, "alice", version=1), commit=False)
    with pytest.raises(VerificationFailed):
        travelled.verify(who)


def test_b7_fast_forward_is_refused_and_not_remembered(train: Signed) -> None:
    train.hop("aachen")
    who = seen(train)
    train.put(train.finish(train.files(), "aachen", version=2**31 - 2))
    for context in (who, train.fresh()):
        refused(train, Rollback, "expected a version of at most 1000000", context=context, status=14)
    good = commit(train, 2)
    tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"),
                 start=good)
    for context in (who, train.fresh()):
        assert train.verify(context).done == 1


def test_b7_fast_forward_within_the_limit_and_recovery_by_a_new_root(train: Signed) -> None:
    train.hop("aachen")
    train.put(train.finish(train.files(), "aachen", version=1_000_000))
    who = seen(train)
    with pytest.raises(Rollback):
        train.hop("tue")  # there is no version left
    tend.exchange_key(train.train, "aachen", None, anchor=train.anchor(), signing=train.keys["alice"],
                      context=train.context("alice"))
    train.hop("tue")
    for context in (who, train.fresh()):
        found = train.verify(context)
        assert found.done == 2
        assert found.attested is not None
        assert found.attested.root_version == 2


# --- B8 to B11 ----------------------------------------------------------------------------------------------------


def equivocate(train: Signed) -> None:
    """Let aachen publish a second statement on its hop, in a state of the same version."""
    before, files = train.files(commit(train, 1)), train.files()
    statement = HopStatement.parse(
        parsed(files, "hop-aachen").signed.targets[hop_path("train-b", "aachen", 1)].custom, what="hop")
    other = with_hop(before, replace(statement, tool="another"), digest=train.image("hop-00").digest,
                     size=len(train.image("hop-00").raw), expires=START + timedelta(days=300),
                     signing=train.keys["aachen"])
    train.put(train.finish(other, "aachen"), head=False)


def test_b8_fork_fresh_and_joined_by_the_creator(train: Signed) -> None:
    train.hop("aachen")
    equivocate(train)
    refused(train, Rollback, "got two that differ in hop-aachen", status=14)
    tend.refresh(train.train, anchor=train.anchor(), signing=train.keys["alice"], context=train.context("alice"))
    assert train.verify().done == 1
    train.hop("tue")


def test_b8_fork_cached(train: Signed) -> None:
    train.hop("aachen")
    who, own = seen(train), train.image("tuf").digest.short
    equivocate(train)
    train.point("tuf", next(tag for tag in train.tags() if tag.startswith("tuf-2-") and not tag.endswith(own)))
    refused(train, Rollback, "expected the one that was seen before", context=who, status=14)


def test_b8_tag_by_somebody_without_a_key_is_no_fork(train: Signed) -> None:
    train.hop("aachen")
    train.point(f"tuf-2-{'0' * 12}", "tuf-1-" + commit(train, 1).rpartition("-")[2])
    train.put(train.finish(train.files(commit(train, 1)), "mallory"), head=False)
    assert train.verify().done == 1


def deep(train: Signed) -> dict[str, bytes]:
    return {**train.files(), "timestamp.json": b'{"signed":' * 50_000 + b"1" + b"}" * 50_000}


def thousands_of_signatures(train: Signed) -> dict[str, bytes]:
    files = train.files()
    document = json.loads(files["timestamp.json"])
    document["signatures"] += [{"keyid": f"{number:064x}", "sig": "00" * 64} for number in range(5000)]
    return {**files, "timestamp.json": json.dumps(document).encode()}


def duplicate_keyids(train: Signed) -> dict[str, bytes]:
    files = train.files()
    document = json.loads(files["timestamp.json"])
    document["signatures"] *= 2
    return {**files, "timestamp.json": json.dumps(document).encode()}


def oversized_timestamp(train: Signed) -> dict[str, bytes]:
    return {**train.files(), "timestamp.json": train.files()["timestamp.json"] + b" " * 20_000}


def not_json(train: Signed) -> dict[str, bytes]:
    return {**train.files(), "timestamp.json": b"\xff\x00"}


def wrong_type(train: Signed) -> dict[str, bytes]:
    return {**train.files(), "timestamp.json": b'{"signed": [], "signatures": {}}'}


@pytest.mark.parametrize("make", [deep, thousands_of_signatures, duplicate_keyids, oversized_timestamp, not_json,
                                  wrong_type])
def test_b9_hostile_timestamp(train: Signed, make: Callable[[Signed], dict[str, bytes]]) -> None:
    who = seen(train)
    train.put(make(train), commit=False)
    for context in (who, train.fresh()):
        told = refused(train, MalformedInput, context=context)
        assert len(str(told)) < 1000


def test_b9_metadata_of_another_role(train: Signed) -> None:
    train.put({**train.files(), "timestamp.json": train.files()["1.root.json"]}, commit=False)
    refused(train, MissingEvidence)


def test_b9_oversized_files_and_too_many(train: Signed) -> None:
    files = train.files()
    train.put({**files, "1.targets.json": b" " * 5_000_001}, commit=False)
    refused(train, MalformedInput, "at most 5000000 bytes")
    train.put({**files, **{f"1.hop-{number}.json": b"{}" for number in range(1025)}}, commit=False)
    refused(train, MalformedInput)


def test_b9_deep_delegation_costs_nothing(travelled: Signed) -> None:
    """Delegations below a station's role are never followed."""
    keys, files = travelled.keys, travelled.files()
    key = tuf_key(keys["aachen"].public)
    for depth in range(40):
        def change(targets: Any, depth: int = depth) -> None:
            targets.delegations = Delegations({key.keyid: key}, {
                f"d{depth}": DelegatedRole(f"d{depth}", [key.keyid], 1, False, ["train-b/hops/aachen/*"])})

        role = "hop-aachen" if depth == 0 else f"d{depth - 1}"
        if depth:
            files = with_role(files, role, sign(type(parsed(files, "hop-aachen").signed)(
                version=1, expires=START + timedelta(days=300)), [keys["aachen"]]), 1)
        files = travelled.edit(files, role, change, "aachen")
    travelled.put(travelled.finish(files, "tue"))
    assert travelled.verify().done == 2


def test_b10_no_metadata_at_all(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey],
                                train: Signed) -> None:
    plain = make_signed(f"{place}plain/", tmp_path / "plain", rsa, keys, name="train-b", metadata=False)
    downgraded = replace(plain, document={**plain.document, "root": train.document["root"]})
    told = refused(downgraded, MissingEvidence, "expected signed metadata under the tag tuf", status=15)
    assert "dtrain trust adopt" in str(told.hint)
    with pytest.raises(MissingEvidence):
        downgraded.pull("aachen")


def test_b10_anchor_without_the_root_cannot_publish_a_hop_that_was_verified_with_it(train: Signed) -> None:
    hop, before = train.pull("aachen"), train.tags()
    with pytest.raises(DtrainError, match="expected the one with a root") as told:
        train.push(hop, root=None)
    assert told.value.exit_status == 2
    assert train.tags() == before


@pytest.mark.parametrize(("member", "value"), [("config", "00" * 32), ("result_hash", "00" * 64), ("chain", "00" * 64)])
def test_b11_statement_and_image_disagree(train: Signed, member: str, value: str) -> None:
    train.hop("aachen")

    def change(targets: Any) -> None:
        targets.targets[hop_path("train-b", "aachen", 1)].unrecognized_fields["custom"][member] = value

    train.put(train.finish(train.edit(train.files(), "hop-aachen", change, "aachen"), "aachen"))
    refused(train, DigestMismatch, "expected (the chain digest )?00", status=11, valid=True)
    with pytest.raises(DigestMismatch):
        train.pull("tue")


def test_b11_earlier_hop_that_the_image_does_not_continue(travelled: Signed) -> None:
    def change(targets: Any) -> None:
        targets.targets[hop_path("train-b", "aachen", 1)].unrecognized_fields["custom"]["chain"] = "00" * 64

    travelled.put(travelled.finish(travelled.edit(travelled.files(), "hop-aachen", change, "aachen"), "alice"))
    refused(travelled, DigestMismatch, "hop 1: expected the chain digest 00", status=11, valid=True)


def test_b11_hop_names_the_image_of_another_hop(train: Signed) -> None:
    train.hop("aachen")
    old = train.image("hop-00")
    train.point("latest", "hop-00")

    def change(targets: Any) -> None:
        target = targets.targets[hop_path("train-b", "aachen", 1)]
        target.hashes["sha256"], target.length = old.digest.hex, len(old.raw)

    train.put(train.finish(train.edit(train.files(), "hop-aachen", change, "aachen"), "aachen"))
    refused(train, RouteProblem, "expected a train that 1 stops have run", status=16, valid=True)


@pytest.mark.parametrize("change", [
    lambda custom: custom["route"][1].update(key="sha256:" + "0" * 64),
    lambda custom: custom["creator"].update(key="sha256:" + "0" * 64),
    lambda custom: custom["builder"].update(key="sha256:" + "0" * 64),
])
def test_b11_keys_of_the_config_are_not_the_signed_ones(train: Signed, change: Callable[[Any], None]) -> None:
    """A3 with metadata: the config's keys have to be those that the creator signed."""
    files = train.edit(train.files(), "targets", lambda targets: change(
        targets.targets["train-b/train"].unrecognized_fields["custom"]), "alice")
    train.put(train.finish(files, "alice"))
    refused(train, BadSignature, "which the creator signed", status=12, valid=True)


def without_pins(train: Signed) -> Signed:
    """Return the train as seen by who knows its root and nothing else."""
    return replace(train, document={"version": 1, "root": train.document["root"]})


def test_b11_route_of_the_config_is_not_the_signed_one(train: Signed) -> None:
    def change(targets: Any) -> None:
        custom = targets.targets["train-b/train"].unrecognized_fields["custom"]
        custom["route"][1], custom["route"][2] = custom["route"][2], custom["route"][1]

    train.put(train.finish(train.edit(train.files(), "targets", change, "alice"), "alice"))
    refused(without_pins(train), RouteProblem, "expected aachen → leipzig → tue", status=16, valid=True)


def test_b11_files_are_not_the_signed_ones(train: Signed) -> None:
    def change(targets: Any) -> None:
        targets.targets["train-b/train"].unrecognized_fields["custom"]["files"]["entrypoint.py"]["sha256"] = "00" * 32

    train.put(train.finish(train.edit(train.files(), "targets", change, "alice"), "alice"))
    with pytest.raises(DigestMismatch, match=r"entrypoint\.py"):
        without_pins(train).pull("aachen")
    assert not list(train.folder.glob("work-aachen*"))


def test_anchor_that_disagrees_with_the_metadata(train: Signed) -> None:
    other = replace(train, document={**train.document, "stations": {
        **train.document["stations"], "tue": {"fingerprint": "sha256:" + "0" * 64}}})
    refused(other, BadSignature, "station 'tue'", status=12, valid=True)
    other = replace(train, document={**train.document, "trains": {"train-b": {"route": ["tue"]}}})
    refused(other, VerificationFailed, "what the anchor says", valid=True)


# --- mixed routes, profiles, adoption ------------------------------------------------------------------------------


def test_hop_without_metadata_needs_the_anchor(train: Signed) -> None:
    hop = train.pull("aachen", root=None)
    train.push(hop, root=None)  # as a station with train_lib does
    with pytest.raises(MissingEvidence, match="hop of station 'aachen'"):
        train.pull("tue")
    refused(train, MissingEvidence, "hop of station 'aachen'", status=15, valid=True)
    allowed = frozenset({"aachen"})
    tue = train.pull("tue", unattested=allowed)
    assert [gap["station"] for gap in tue.record.unattested] == ["aachen"]
    train.push(tue, unattested=allowed)
    found = train.verify(unattested=allowed)
    assert found.attested is not None
    assert [gap.station for gap in found.attested.unattested()] == ["aachen"]
    with pytest.raises(MissingEvidence, match="hop of station 'aachen'"):
        train.pull("leipzig")
    train.push(train.pull("leipzig", unattested=allowed), unattested=allowed)
    assert train.verify(unattested=allowed).done == 3


def test_hop_without_metadata_that_forks_the_chain(travelled: Signed, tmp_path: Path) -> None:
    """An image that continues another first hop is refused, whatever the anchor allows."""
    latest = travelled.image("latest").digest
    travelled.point("latest", "hop-00")
    one = travelled.pull("aachen", root=None)
    travelled.push(one, b"other", root=None)
    two = travelled.pull("tue", root=None)
    travelled.push(two, root=None)
    three = travelled.pull("leipzig", root=None)
    travelled.push(three, root=None)
    allowed = frozenset(STATIONS)
    with pytest.raises(VerificationFailed, match="chain digest"):
        travelled.verify(unattested=allowed)
    assert travelled.pull("leipzig").record.digest == str(latest)


def test_cosigned_profile(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    """The stricter profile: a hop counts when a router has signed beside the station."""
    roots = (root(keys, profile=Profile.COSIGN, routers={"r": keys["router"].public}),)
    train = make_signed(place, tmp_path, rsa, keys, name="t", roots=roots)

    def cosign(party: str, who: str = "router") -> None:
        tend.cosign(train.train, party, anchor=train.anchor(), signing=keys[who], context=train.context(who))

    with pytest.raises(MissingEvidence):
        train.pull("aachen")
    cosign("alice")
    hop = train.pull("aachen")
    first = train.push(hop)
    assert first.metadata is not None
    assert not first.metadata.complete
    with pytest.raises(MissingEvidence):
        train.pull("tue")
    with pytest.raises(BadSignature):
        cosign("aachen", "tue")  # a second station is no router
    cosign("aachen")
    cosign("aachen")
    assert train.verify().done == 1
    hop = train.pull("tue")
    train.push(hop)
    extended = tend.refresh(train.train, anchor=train.anchor(), signing=keys["router"],
                            context=train.context("router"))
    assert not extended.complete
    cosign(keys["router"].public.fingerprint[7:19], "alice")
    with pytest.raises(Conflict, match="got an older one"):
        cosign("tue")
    train.push(hop)  # proposes again
    cosign("tue")
    assert train.verify().done == 2


def test_router_profile(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    roots = (root(keys, profile=Profile.ROUTER, routers={"r": keys["router"].public}),)
    train = make_signed(place, tmp_path, rsa, keys, name="t", roots=roots)
    published = train.hop("aachen")
    assert published.metadata is not None
    assert not published.metadata.complete
    with pytest.raises(MissingEvidence):
        train.pull("tue")
    tend.cosign(train.train, "aachen", anchor=train.anchor(), signing=keys["router"], context=train.context("router"))
    tend.cosign(train.train, "aachen", anchor=train.anchor(), signing=keys["router"], context=train.context("router"))
    train.hop("tue")
    with pytest.raises(WrongKey):
        tend.cosign(train.train, "tue", anchor=train.anchor(), signing=keys["aachen"], context=train.context("x"))
    tend.cosign(train.train, "tue", anchor=train.anchor(), signing=keys["router"], context=train.context("router"))
    assert train.verify().done == 2


def test_builder_has_to_sign_where_the_root_names_one(place: str, tmp_path: Path, rsa: Any,
                                                      keys: dict[str, SigningKey]) -> None:
    roots = (root(keys, builders={"b": keys["bob"].public}),)
    train = make_signed(place, tmp_path, rsa, keys, name="t", roots=roots)
    found = train.verify()
    assert found.attested is not None
    assert set(found.attested.hops[0].signers) == {"creator alice", "builder b"}
    files = train.edit(train.files(), "targets", lambda targets: None, "alice")
    train.put(train.finish(files, "alice"))
    refused(train, BadSignature, status=12)


def test_consortium_of_several_holders(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    holders = {name: keys[name].public for name in ("bob", "router", "mallory")}
    enough = root(keys, "bob", "mallory", keyholders=holders, threshold=2)
    train = make_signed(place, tmp_path, rsa, keys, name="t", roots=(enough,))
    train.hop("aachen")
    assert train.verify().done == 1
    with pytest.raises(BadSignature):
        make_signed(place, tmp_path / "y", rsa, keys, name="u",
                    roots=(root(keys, "bob", keyholders=holders, threshold=2),))


def test_plain_train_on_its_way_is_adopted(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    import tomllib

    plain = make_signed(place, tmp_path, rsa, keys, name="train-b", metadata=False)
    plain.hop("aachen")
    _, text = tend.adopt(plain.train, anchor=plain.anchor(), signing=keys["alice"], context=plain.context("alice"),
                         stations={name: keys[name].public for name in STATIONS}, code=tmp_path / "code")
    train = replace(plain, document=tomllib.loads(text))
    found = train.verify()
    assert found.attested is not None
    assert (found.done, found.attested.hops[0].number) == (1, 1)
    train.hop("tue")
    train.hop("leipzig")
    assert train.verify().done == 3
    with pytest.raises(Conflict, match="expected no metadata of a train of that name"):
        tend.adopt(plain.train, anchor=plain.anchor(), signing=keys["alice"], context=plain.context("alice"),
                   stations={})


def test_separate_trust_repository(place: str, tmp_path: Path, rsa: Any, keys: dict[str, SigningKey]) -> None:
    """Routers that copy only latest and base leave the metadata where it is."""
    train = make_signed(place, tmp_path, rsa, keys, name="train-b")
    document = {**train.document, "root": {**train.document["root"], "repository": f"{place}trust"}}
    elsewhere = replace(train, place=f"{place}trust/")
    with connector()(train.train) as source, connector()(elsewhere.train) as target:
        copy_image(source, "tuf", target, ["tuf"])
    moved = replace(train, place=f"{place}station/", document=document)
    with connector()(train.train) as source, connector()(moved.train) as target:
        copy_image(source, "latest", target, ["latest"])
    moved.hop("aachen")
    assert moved.verify().done == 1
    assert "tuf" not in moved.tags()
    assert {tag for tag in elsewhere.tags() if tag.startswith("tuf-2-")}


def test_hop_published_at_another_place_takes_its_metadata_along(train: Signed, place: str) -> None:
    hop = train.pull("aachen")
    (hop.results_dir / "out").write_bytes(b"1")
    other = replace(train, place=f"{place}elsewhere/")
    push_results(hop.folder, key=train.rsa["aachen"], signing_key=train.keys["aachen"], trust=train.anchor(),
                 context=train.context("aachen"), target=other.train)
    assert other.verify().done == 1
    other.hop("tue")


def test_repeated_push_asks_nobody(train: Signed) -> None:
    """PHT routers delete the repository of a hop that has been published."""
    hop = train.pull("aachen")
    train.push(hop)

    nowhere = replace(train.context("aachen"), connect=lambda reference: nullcontext(None))  # type: ignore[arg-type]
    again = push_results(hop.folder, key=train.rsa["aachen"], signing_key=train.keys["aachen"], trust=train.anchor(),
                         context=nowhere)
    assert again.already


def test_memory_that_was_copied_by_a_tool_that_follows_links(travelled: Signed) -> None:
    who = seen(travelled)
    top = who.state.folder / "trains"
    shutil.copytree(top, top.with_name("copied"))
    shutil.rmtree(top)
    top.with_name("copied").rename(top)
    for _ in range(2):
        assert travelled.verify(who).done == 2
    travelled.point("tuf", commit(travelled, 1))
    refused(travelled, Rollback, context=who)


def test_hop_is_named_by_its_tag_or_digest(travelled: Signed) -> None:
    found = travelled.verify(reference=f"{travelled.train}:hop-01-aachen")
    assert found.done == 1
    pinned = travelled.train.pinned(travelled.image("hop-01-aachen").digest)
    assert travelled.verify(reference=str(pinned)).done == 1
    with pytest.raises(MissingEvidence, match="hop 3"):
        travelled.verify(reference=f"{travelled.train}:hop-03-leipzig")
    with pytest.raises(MissingEvidence, match="got none of that digest"):
        travelled.verify(reference=str(Reference.parse(str(travelled.train)).pinned(travelled.image("base").digest)))

