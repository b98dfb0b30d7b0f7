"""The snippets of train_lib's README, with other imports and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dtrain.compat import SecurityProtocol, extract_train_config
from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import MissingEvidence, RouteProblem, UsageProblem
from dtrain.flow.build import TrainPlan, build
from dtrain.flow.context import Context
from dtrain.flow.demo import make_base
from dtrain.flow.station import connector
from dtrain.flow.verify import verify
from dtrain.keystore.pem import write_key_pair
from dtrain.oci.reference import Reference
from dtrain.trust.anchor import read_anchor
from dtrain.trust.state import State

SCRIPT = """
from dtrain.compat import SecurityProtocol
from dtrain.compat import extract_train_config

image_name = 'oci:train:latest'
station_id = 'aachen'

# Get the train configuration from the image
config = extract_train_config(image_name)
# Initialize the protocol with the extracted config and station_id
protocol = SecurityProtocol(station_id=station_id, config=config)

# execute one of the protocol steps
protocol.{step}_protocol(image_name, private_key_path='aachen.pem')
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A train for two stations, in the folder that we stand in."""
    monkeypatch.chdir(tmp_path)
    for name in ("DTRAIN_ANCHOR", "DTRAIN_WORK_DIR", "PRIVATE_KEY_PATH", "PRIVATE_KEY_PASSWORD", "STATION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DTRAIN_STATE_DIR", str(tmp_path / "state"))
    keys = {name: PrivateKey.generate(2048) for name in ("alice", "aachen", "leipzig")}
    for name, key in keys.items():
        write_key_pair(key, tmp_path / f"{name}.pem", password=Secret("word") if name == "leipzig" else None)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/entrypoint.py").write_text("pass\n")
    context = Context(connect=connector(), state=State(tmp_path / "own"))
    make_base(Reference.parse("oci:base:3"), context)
    made = build(TrainPlan(
        id="t", proposal="p", creator="alice", creator_key=keys["alice"], builder="b", builder_key=keys["alice"],
        code=tmp_path / "code", route=[(name, keys[name].public) for name in ("aachen", "leipzig")],
    ), Reference.parse("oci:base:3"), Reference.parse("oci:train"), context=context)
    (tmp_path / "anchor.toml").write_text(made.anchor)
    return tmp_path


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True,
                          check=False, env={**os.environ, **environment})


def test_snippet_of_the_readme(folder: Path) -> None:
    done = run(SCRIPT.format(step="pre_run"), folder, DTRAIN_ANCHOR="anchor.toml", DTRAIN_WORK_DIR="work")
    assert done.returncode == 0, done.stderr
    assert (folder / "work/opt/pht_train/entrypoint.py").read_text() == "pass\n"
    (folder / "work/opt/pht_results/out").write_text("1")
    done = run(SCRIPT.format(step="post_run"), folder, DTRAIN_ANCHOR="anchor.toml", DTRAIN_WORK_DIR="work")
    assert done.returncode == 0, done.stderr
    found = verify(Reference.parse("oci:train"), trust=read_anchor(folder / "anchor.toml"),
                   context=Context(connect=connector(), state=State(folder / "own")))
    assert found.done == 1


def test_commands_of_the_container(folder: Path) -> None:
    def dtrain(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dtrain", *words], cwd=folder, capture_output=True, text=True,
                              check=False, env={**os.environ, "DTRAIN_ANCHOR": "anchor.toml", **environment})

    for station, more in (("aachen", {}), ("leipzig", {"PRIVATE_KEY_PASSWORD": "word"})):
        environment = {"STATION_ID": station, "PRIVATE_KEY_PATH": f"{station}.pem", "DTRAIN_WORK_DIR": station, **more}
        before = dtrain("pre-run", "oci:train:latest", **environment)
        assert (before.returncode, before.stdout) == (0, f"{station}\n"), before.stderr
        after = dtrain("post-run", "oci:train:latest", "--rebase", **environment)
        assert after.returncode == 0, after.stderr
        assert "/train:latest@sha256:" in after.stdout
    late = dtrain("pre-run", "oci:train:latest", **{**environment, "DTRAIN_WORK_DIR": "late"})
    assert late.returncode == 16  # the route is finished
    assert dtrain("pre-run", "oci:train:latest").returncode == 2  # nobody said which station


def test_nothing_is_believed_without_an_anchor(folder: Path) -> None:
    protocol = SecurityProtocol(station_id="aachen", config=extract_train_config("oci:train"))
    with pytest.raises(MissingEvidence, match="anchor"):
        protocol.pre_run_protocol("oci:train", private_key_path="aachen.pem")
    assert not (folder / "train/hop.json").exists()


def test_misuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = extract_train_config("oci:train")
    with pytest.raises(RouteProblem, match="expected station 'nobody'"):
        SecurityProtocol("nobody", config)
    monkeypatch.setenv("DTRAIN_ANCHOR", "anchor.toml")
    with pytest.raises(UsageProblem, match="expected the working folder"):
        SecurityProtocol("aachen", config).post_run_protocol("oci:train", "aachen.pem")
    with pytest.raises(UsageProblem, match="private_key_path"):
        SecurityProtocol("aachen", config).pre_run_protocol("oci:train")
    with pytest.raises(UsageProblem, match="folders that PHT uses"):
        SecurityProtocol("aachen", config).pre_run_protocol("oci:train", "aachen.pem", mutable_dir="/elsewhere")
