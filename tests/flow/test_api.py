"""The public API, as docs/api.rst shows it, on an OCI layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dtrain
from dtrain import DtrainError, Station, TrainBuilder
from dtrain.errors import MissingEvidence
from dtrain.flow.demo import demo


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A finished demo: keys, a base image, an algorithm."""
    demo(tmp_path / "demo", tell=lambda text: None)
    return tmp_path / "demo"


def test_a_train_is_built_run_and_opened_with_the_public_api(world: Path) -> None:
    keys = world / "keys"
    made = TrainBuilder("alice", key=keys / "creator.pem", state_dir=world / "state").build(
        world / "algorithm", base=f"oci:{world}/registry:python-base", to=f"oci:{world}/mine",
        route={"aachen": keys / "aachen.pub.pem"}, query=b'{"q": 1}')
    anchor = world / "mine.toml"
    anchor.write_text(made.anchor)
    station = Station("aachen", key=str(keys / "aachen.pem"), anchor=str(anchor), state_dir=world / "state")
    hop = station.pull_verify(f"oci:{world}/mine", world / "work")
    assert (hop.code_dir / "query.json").read_bytes() == b'{"q": 1}'
    (hop.results_dir / "out.txt").write_text("42")
    published = station.push_results(station.resume(world / "work"))
    assert (published.hop, published.tag, published.already) == (1, "hop-01-aachen", False)
    assert station.push_results(hop).already
    creator = Station("alice", key=keys / "creator.pem", anchor=anchor, state_dir=world / "state")
    assert creator.verify(str(published.reference)).done == 1
    opened = creator.results(f"oci:{world}/mine", world / "opened")
    assert {file.name: file.read_text() for file in opened.folder.iterdir()} == {"out.txt": "42"}


def test_a_station_without_anchor_is_refused_unless_it_says_so(world: Path) -> None:
    with pytest.raises(MissingEvidence) as refused:
        Station("aachen", key=world / "keys/aachen.pem")
    assert refused.value.exit_status == 15
    with pytest.warns(UserWarning, match="train itself carries"):
        Station("aachen", key=world / "keys/aachen.pem", trust_embedded_keys=True)


def test_every_public_name_is_there_and_importing_the_package_loads_nothing() -> None:
    assert all(getattr(dtrain, name) for name in dtrain.__all__)
    assert issubclass(MissingEvidence, DtrainError)
    code = "import sys, dtrain; print(sorted(m for m in sys.modules if m.startswith(('dtrain', 'requests', 'typer'))))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "['dtrain']"
