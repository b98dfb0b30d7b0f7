"""``dtrain trust`` from the first root to a train that was adopted, as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain.flow.context import Context
from dtrain.flow.demo import make_base
from dtrain.flow.station import connector
from dtrain.oci.reference import Reference
from dtrain.trust.state import State

PARTIES = ("ada", "bea", "alice", "router", "aachen", "leipzig", "spare")


class Desk:
    """A folder with everybody's keys, a base image, and a way to type commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_base(Reference.parse(f"oci:{folder}/base:3"),
                  Context(connect=connector(), state=State(folder / "own")))
        (folder / "code").mkdir()
        (folder / "code" / "entrypoint.py").write_text("pass\n")
        for name in PARTIES:
            self.run("key", "new", f"{name}.pem", "--bits", "2048")

    def run(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dtrain", *words], cwd=self.folder, capture_output=True, text=True, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)})
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    def build(self, *words: str) -> None:
        self.run("build", "code", "--base", "oci:base:3", "--to", "oci:train", "--creator", "alice", "--key",
                 "alice.pem", "--stop", "aachen=aachen.pub.pem", "--stop", "leipzig=leipzig.pub.pem",
                 "--anchor-out", "anchor.toml", *words)

    def hop(self, station: str, *words: str) -> dict[str, Any]:
        common = ("--key", f"{station}.pem", "--anchor", "anchor.toml", "--json")
        self.run("pull-verify", "oci:train", f"at-{station}", "--station", station, *common, *words)
        found: dict[str, Any] = json.loads(self.run("push-results", f"at-{station}", *common, *words))
        return found

    def audit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("verify", "oci:train", "--anchor", "anchor.toml", "--json"))
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_consortium_from_its_first_root_to_its_second(desk: Desk) -> None:
    desk.run("trust", "init", "1.root.json", "--holder", "ada=ada.pub.pem", "--holder", "bea=bea.pub.pem",
             "--threshold", "2", "--creator", "alice=alice.pub.pem", "--router", "r=router.pub.pem",
             "--station", "aachen=aachen.pub.pem", "--station", "leipzig=leipzig.pub.pem")
    assert "1 more signatures needed" in desk.run("trust", "sign", "1.root.json", "--key", "ada.pem")
    assert "expected the key of one of its key holders" in desk.run(
        "trust", "sign", "1.root.json", "--key", "alice.pem", status=42)
    assert ": signed" in desk.run("trust", "sign", "1.root.json", "--key", "bea.pem")
    assert "router     r  sha256:" in desk.run("trust", "show", "1.root.json")
    assert "expected to make this file" in desk.run("trust", "init", "1.root.json", "--holder", "a=ada.pub.pem",
                                                    "--creator", "a=ada.pub.pem", status=1)
    desk.build("--root", "1.root.json")
    desk.hop("aachen")
    common = ("--anchor", "anchor.toml", "--key", "alice.pem")
    told = desk.run("trust", "rotate", "oci:train", "leipzig=spare.pub.pem", *common, status=2)
    assert "expected a new version without the old key" in told
    desk.run("trust", "add-key", "1.root.json", "station", "leipzig=spare.pub.pem", "--out", "2.root.json")
    for holder in ("ada", "bea"):
        desk.run("trust", "sign", "2.root.json", "--previous", "1.root.json", "--key", f"{holder}.pem")
    desk.run("trust", "rotate", "oci:train", "leipzig=spare.pub.pem", "--root", "2.root.json", *common)
    assert "expected the key that signs its metadata" in desk.run(
        "pull-verify", "oci:train", "w", "--station", "leipzig", "--key", "leipzig.pem", "--anchor", "anchor.toml",
        status=42)
    pushed = desk.hop("leipzig", "--signing-key", "spare.pem")
    assert pushed["metadata"]["complete"] is True
    found = desk.audit()
    assert found["schema"] == "dtrain/verify/v1"
    assert found["metadata"]["root_version"] == 2
    assert [(hop["hop"], hop["station"], hop["signers"], hop["image"]) for hop in found["hops"]] == [
        (0, None, ["creator alice"], "not looked at"), (1, "aachen", ["station aachen"], "not looked at"),
        (2, "leipzig", ["station leipzig"], "checked")]
    assert json.loads(desk.run("verify", "oci:train", "--anchor", "anchor.toml", "--every-image", "--json"))[
        "hops"][0]["image"] == "checked"
    assert json.loads(desk.run("inspect", "oci:train", "--json"))["metadata"]["hop-aachen"] == 1
    told = desk.run("trust", "refresh", "oci:train", "--anchor", "anchor.toml", "--key", "aachen.pem", status=12)
    assert "expected a signature of a creator, a router" in told
    refreshed = json.loads(desk.run("trust", "refresh", "oci:train", "--anchor", "anchor.toml", "--key", "router.pem",
                                    "--json"))
    assert refreshed["version"] == found["metadata"]["version"] + 1


def test_station_is_revoked_by_a_creator_with_a_root_of_his_own(desk: Desk) -> None:
    desk.build()
    desk.hop("aachen")
    desk.run("trust", "revoke", "oci:train", "aachen", "--anchor", "anchor.toml", "--key", "alice.pem")
    assert desk.audit()["hops"][1]["signers"] == ["creator alice"]
    assert "expected station 'nobody' on it" in desk.run(
        "trust", "revoke", "oci:train", "nobody", "--anchor", "anchor.toml", "--key", "alice.pem", status=16)
    desk.hop("leipzig")
    assert desk.audit()["visited"] == 2


def test_router_cosigns(desk: Desk) -> None:
    desk.run("trust", "init", "1.root.json", "--holder", "ada=ada.pub.pem", "--creator", "alice=alice.pub.pem",
             "--router", "r=router.pub.pem", "--station", "aachen=aachen.pub.pem", "--station",
             "leipzig=leipzig.pub.pem", "--profile", "router")
    desk.run("trust", "sign", "1.root.json", "--key", "ada.pem")
    desk.build("--root", "1.root.json")
    assert desk.hop("aachen")["metadata"]["complete"] is False
    desk.run("trust", "cosign", "oci:train", "aachen", "--anchor", "anchor.toml", "--key", "router.pem")
    assert desk.audit()["visited"] == 1
    assert "expected a proposal of station 'leipzig'" in desk.run(
        "trust", "cosign", "oci:train", "leipzig", "--anchor", "anchor.toml", "--key", "router.pem", status=31)


def test_plain_train_is_adopted(desk: Desk) -> None:
    desk.build("--no-metadata")
    desk.hop("aachen")
    (desk.folder / "anchor.toml").rename(desk.folder / "plain.toml")
    words = ("trust", "adopt", "oci:train", "--key", "alice.pem", "--code", "code", "--station",
             "leipzig=leipzig.pub.pem", "--anchor-out", "anchor.toml")
    desk.run(*words, "--anchor", "plain.toml")
    assert desk.audit()["hops"][0]["hop"] == 1
    desk.hop("leipzig")
    assert desk.audit()["visited"] == 2
    told = desk.run(*words, "--anchor", "anchor.toml", status=2)
    assert "expected one that pins the train's keys and no root" in told


@pytest.mark.parametrize("words", [
    ("trust", "add-key", "none.json", "station", "a=ada.pub.pem", "--out", "x"),
    ("trust", "show", "ada.pem"), ("trust", "show", "none.json"),
    ("trust", "refresh", "oci:nothing", "--key", "alice.pem", "--anchor", "none.toml"),
    ("trust", "init", "x", "--holder", "ada", "--creator", "a=ada.pub.pem"),
    ("trust", "init", "x", "--holder", "a=ada.pub.pem", "--creator", "a=ada.pub.pem", "--profile", "none"),
    ("verify", "oci:train", "--anchor", "none.toml", "--max-stale", "soon"),
])
def test_clear_errors(desk: Desk, words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "dtrain", *words], cwd=desk.folder, capture_output=True, text=True,
                          check=False)
    assert done.returncode not in (0, 3)
    assert "Traceback" not in done.stderr
    assert "expected" in done.stderr


def test_settings_file_serves_the_commands_of_groups(desk: Desk) -> None:
    desk.build()
    (desk.folder / "dtrain.toml").write_text('anchor = "anchor.toml"\nkey = "alice.pem"\n')
    desk.run("trust", "refresh", "oci:train")
