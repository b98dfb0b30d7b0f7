"""A whole route through the command line, on every kind of place: registries with each way to log in, and a layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest
from registry_servers import registry

from dtrain.flow.context import Context
from dtrain.flow.demo import make_base
from dtrain.flow.station import connector
from dtrain.oci.manifest import Manifest, parse_manifest
from dtrain.oci.reference import Reference
from dtrain.trust.state import State

Kind = Literal["layout", "plain", "htpasswd", "tls", "token"]
ALGORITHM = """\
import pathlib, sys
file = pathlib.Path(sys.argv[1], "sub", "visits.txt")
file.parent.mkdir(exist_ok=True)
file.write_text((file.read_text() if file.exists() else "") + sys.argv[2] + "\\n")
"""
STATIONS = ("aachen", "leipzig", "tübingen/1")  # the last one is no valid tag text


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trains live, and what the command line has to know to get there."""

    base: str
    train: str
    environment: dict[str, str]
    context: Context

    def dtrain(self, *arguments: str | Path, status: int = 0, inside: Path | None = None) -> dict[str, object]:
        """Run a command with ``--json`` and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "dtrain", *map(str, arguments), "--json"], env=self.environment,
            capture_output=True, text=True, check=False, cwd=inside)
        assert done.returncode == status, done.stderr
        printed: dict[str, object] = json.loads(done.stdout)
        return printed


@contextmanager
def place(kind: Kind, folder: Path) -> Iterator[Place]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DTRAIN_STATE_DIR": str(folder / "state")}
    if kind == "layout":
        yield Place(base=f"oci:{folder}/base:3", train=f"oci:{folder}/train", environment=environment,
                    context=Context(connect=connector(), state=State(folder / "own")))
        return
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    with registry(kind) as server:
        if server.username is not None:
            environment |= {"DTRAIN_USERNAME": server.username, "DTRAIN_PASSWORD": str(server.password)}
        if server.ca_file is not None:
            environment |= {"DTRAIN_CA_FILE": str(server.ca_file)}
        connect = connector(ca_file=server.ca_file, username=server.username, password=server.password)
        yield Place(base=f"{server.host}/master/python:3", train=f"{server.host}/project/train",
                    environment=environment, context=Context(connect=connect, state=State(folder / "own")))


def manifest(where: Place, tag: str) -> Manifest:
    reference = Reference.parse(where.train)
    with where.context.connect(reference) as transport:
        found = parse_manifest(transport.fetch_manifest(tag))
    assert isinstance(found, Manifest)
    return found


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind == "layout" else pytest.mark.registry)
                                  for kind in get_args(Kind)])
def test_a_route_is_travelled(kind: Kind, tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "lib").mkdir(parents=True)
    (code / "entrypoint.py").write_text(ALGORITHM)
    (code / "lib" / "empty.py").touch()
    (tmp_path / "query.json").write_text('{"query": "all"}')
    with place(kind, tmp_path) as here:
        make_base(Reference.parse(here.base), here.context)
        files = {name: tmp_path / f"{number}.pem" for number, name in enumerate(("alice", *STATIONS))}
        for file in files.values():
            here.dtrain("key", "new", file, "--bits", "2048")
        stops = [f"--stop={name}={str(files[name]).removesuffix('.pem')}.pub.pem" for name in STATIONS]
        anchor = tmp_path / "anchor.toml"
        here.dtrain("build", code, "--base", here.base, "--to", here.train, "--creator", "alice", "--key",
                    files["alice"], "--query", tmp_path / "query.json", "--anchor-out", anchor, *stops)
        built = manifest(here, "latest")
        assert manifest(here, "hop-00").digest == built.digest != manifest(here, "base").digest
        for number, station in enumerate(STATIONS, start=1):
            work, own = tmp_path / f"work-{number}", ("--key", files[station], "--anchor", anchor)
            pulled = here.dtrain("pull-verify", here.train, work, "--station", station, *own)
            assert (pulled["hop"], pulled["stops"]) == (number, 3)
            assert (work / "opt/pht_train/query.json").read_text() == '{"query": "all"}'
            subprocess.run([sys.executable, work / "opt/pht_train/entrypoint.py", work / "opt/pht_results", station],
                           check=True)
            pushed = here.dtrain("push-results", *own, inside=work)  # stands in the working folder
            assert pushed["already"] is False
            again = here.dtrain("push-results", work, *own)
            assert again["already"] is True
            assert again["digest"] == pushed["digest"] == str(manifest(here, str(pushed["tag"])).digest)
        last = manifest(here, "latest")
        assert str(last.digest) == pushed["digest"]
        assert [layer.digest for layer in last.layers[:-1]] == [layer.digest for layer in built.layers[:-1]]
        assert here.dtrain("verify", here.train, "--anchor", anchor)["visited"] == 3
        assert here.dtrain("inspect", here.train)["hops"] == [
            "hop-00", "hop-01-aachen", "hop-02-leipzig", "hop-03-t.c3.bcbingen.2f1"]
        here.dtrain("pull-verify", here.train, tmp_path / "late", "--station", "aachen", "--key", files["aachen"],
                    "--anchor", anchor, status=16)
        opened = here.dtrain("results", here.train, tmp_path / "results", "--key", files["alice"], "--anchor", anchor)
    assert opened["files"] == 1
    assert (tmp_path / "results/sub/visits.txt").read_text() == "".join(f"{name}\n" for name in STATIONS)
