"""train_lib without us: the oracle works, and what images the other side makes.

These facts are what our own images are held against, so they are asserted and not only written down.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever import mode pytest was told to use

import peers

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(peers.missing_tools()), reason=f"missing: {', '.join(peers.missing_tools())}"),
]

DOCKER_V2S2 = "application/vnd.docker.distribution.manifest.v2+json"
SCRIPT = b"""set -e
mkdir -p /opt/pht_results/d/deep
cd /opt/pht_results
echo run >> runs.txt
echo z > d/z.txt
echo x > d.txt
: > empty
: > d/deep/hop-$(wc -l < runs.txt)
"""
FILES = {"entrypoint.sh": SCRIPT, "lib/sub/x.py": b"x = 1\n", "empty.py": b""}
QUERY = b'{"query": {"resource": "Patient"}}'
PASSWORDS = {"s1": None, "s2": "geheim", "s3": None}


@dataclass(frozen=True)
class Yard:
    """One registry, one podman, one master image."""

    registry: peers.RegistryServer
    podman: peers.PodmanService
    master: str

    def pull(self, image: str) -> peers.Shape:
        return peers.shape(f"docker://{image}", server=self.registry)


@pytest.fixture(scope="module", params=["v2s2", "oci"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with peers.registry("plain") as registry, peers.podman_service(insecure=[registry.host]) as podman:
        base = peers.make_base_image(tmp_path_factory.mktemp("base") / "layout")
        master = f"{registry.host}/master/busybox:latest"
        peers.copy_image(base, f"docker://{master}", format=request.param, server=registry)
        podman.run("pull", "--quiet", master)
        yield Yard(registry, podman, master)


def test_train_passes_three_stations(yard: Yard, tmp_path: Path) -> None:
    keys = {name: peers.rsa_pair(password=password) for name, password in PASSWORDS.items()}
    keys["s3"] = peers.rsa_pair(bits=4096, pkcs1=True)
    repository = f"{yard.registry.host}/incoming/train-1"
    image = f"{repository}:latest"
    built = yard.podman.oracle_json("build", str(_order(yard, repository, keys, tmp_path)))
    assert built["latest"] != built["base"]
    for tag in ("base", "latest"):
        yard.podman.run("push", "--quiet", f"{repository}:{tag}")
    master, base = yard.pull(yard.master), yard.pull(f"{repository}:base")
    _check_grown(master, base, layers=2)

    for hop, (station, password) in enumerate(PASSWORDS.items(), start=1):
        key = tmp_path / station
        key.write_text(keys[station][0])
        config = tmp_path / f"{station}.json"
        config.write_bytes(yard.podman.oracle("extract-config", image))
        secrets = [str(key), *([password] if password else []), "--config", str(config)]
        yard.podman.oracle_json("validate", yard.master, image)
        yard.podman.oracle_json("pre-run", image, station, *secrets)
        ran = yard.podman.oracle_json("run", image)
        assert ran["status"] == 0, ran["output"]
        yard.podman.oracle_json("post-run", image, station, *secrets)
        yard.podman.oracle_json("validate", yard.master, image)
        yard.podman.run("push", "--quiet", image)
        yard.podman.run("rmi", "--force", image)
        yard.podman.run("pull", "--quiet", image)
        _check_grown(base, latest := yard.pull(image), layers=1)
        assert latest.names(-1) == _expected_names(hop)
        assert all(member.isdir() or member.isreg() for member in latest.layers[-1])
        encrypted = {m.size for m in latest.layers[-1] if m.isreg() and m.name.startswith("opt/pht_results/")}
        assert encrypted == {32}  # IV and one block: also empty files grew

    config_left = json.loads(yard.podman.oracle("extract-config", image))
    assert config_left["route"][2]["signature"] and config_left["creator"]["encrypted_key"]


def test_pre_run_refuses_another_key(yard: Yard, tmp_path: Path) -> None:
    keys = {"s1": peers.rsa_pair()}
    repository = f"{yard.registry.host}/incoming/train-2"
    yard.podman.oracle_json("build", str(_order(yard, repository, keys, tmp_path)))
    key = tmp_path / "other"
    key.write_text(peers.rsa_pair()[0])
    with pytest.raises(peers.OracleRefused, match="ValueError"):
        yard.podman.oracle_json("pre-run", f"{repository}:latest", "s1", str(key))


@pytest.mark.parametrize("path", ["/etc/added", "/bin/busybox", "/opt/dtrain.json"])
def test_validate_refuses_other_files(yard: Yard, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"other")
    container = yard.podman.run("create", yard.master).strip()
    yard.podman.run("cp", str(tmp_path / "file"), f"{container}:{path}")
    yard.podman.run("commit", "--quiet", "--format", "docker", container, "localhost/changed:latest")
    yard.podman.run("rm", container)
    with pytest.raises(peers.OracleRefused, match="Hashed file system comparison"):
        yard.podman.oracle_json("validate", yard.master, "localhost/changed:latest")


def test_commit_of_a_container_that_ran_adds_paths_outside_opt(yard: Yard) -> None:
    """Why stations copy results into a container of `base` that never ran."""
    container = yard.podman.run("run", "--detach", yard.master, "sh", "-c", "echo 1 > /opt/x; rm /etc/group").strip()
    yard.podman.run("wait", container)
    image = f"{yard.registry.host}/other/ran:latest"
    yard.podman.run("commit", "--quiet", "--format", "docker", container, image)
    yard.podman.run("rm", container)
    yard.podman.run("push", "--quiet", image)
    names = set(yard.pull(image).names(-1))
    assert {"etc/hosts", "etc/hostname", "etc/mtab", "etc/.wh.group", "run/.containerenv", "opt/x"} <= names


def test_train_lib_hashes_without_separators() -> None:
    one, two = (
        peers.oracle_json(
            "hash-immutable",
            ask={
                "user_id": "u",
                "session_id": "00" * 64,
                "query": None,
                "file_list": ["a", "./b"],
                "files": [["b", _b64(second)], ["a", _b64(first)]],
            },
        )
        for first, second in ((b"ab", b"c"), (b"a", b"bc"))
    )
    assert one == two
    assert peers.oracle_json("hash-results", ask={"session_id": "00", "files": [_b64(b"a")]})["hash"]


def test_train_lib_encryption_round_trip(tmp_path: Path) -> None:
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(b"")
    key = "11" * 32
    peers.oracle_json("encrypt", ask={"key": key, "in": str(plain), "out": str(sealed)})
    assert len(sealed.read_bytes()) == 32
    peers.oracle_json("decrypt", ask={"key": key, "in": str(sealed), "out": str(opened)})
    assert opened.read_bytes() == b""


def test_train_lib_writes_its_own_config_back_unchanged() -> None:
    config = {
        "source": {"type": "docker_repository", "address": "m/é"},
        "creator": {"id": "007", "rsa_public_key": "00"},
        "proposal_id": 1,
        "@id": "t",
        "session_id": "00",
        "route": [],
        "file_list": ["./a"],
        "unknown": 1,
        "hash": "00",
        "signature": "00",
        "build": {"signature": "00", "rsa_public_key": "00"},
    }
    once = peers.oracle("parse-config", stdin=json.dumps(config).encode())
    assert peers.oracle("parse-config", stdin=once) == once
    assert json.dumps(json.loads(once), indent=2).encode() == once
    assert json.loads(once)["creator"]["id"] == 7 and b"unknown" not in once


@pytest.mark.parametrize("kind", ["plain", "htpasswd", "tls", "token"])
@pytest.mark.parametrize("form", ["v2s2", "oci"])
def test_each_registry_takes_and_gives_an_image(kind: Any, form: Any, tmp_path: Path) -> None:
    base = peers.make_base_image(tmp_path / "layout", size_mb=1)
    with peers.registry(kind) as server:
        there = f"docker://{server.host}/some/image:1"
        peers.copy_image(base, there, format=form, server=server)
        back = peers.shape(there, server=server)
        assert (back.media_type == DOCKER_V2S2) == (form == "v2s2")
        assert back.names(1) == ["usr/share/padding"]
        peers.garbage_collect(server)
        assert peers.shape(there, server=server).manifest == back.manifest
    assert not server.storage.exists()


def _check_grown(before: peers.Shape, after: peers.Shape, *, layers: int) -> None:
    """`after` is `before` plus `layers` layers made by commits of containers that never ran."""
    assert after.media_type == DOCKER_V2S2  # also when the master is OCI
    known = len(before.layers)
    assert len(after.layers) == known + layers
    assert [layer["digest"] for layer in after.manifest["layers"][:known]] == [
        layer["digest"] for layer in before.manifest["layers"]
    ]
    for layer in after.layers[known:]:
        assert all(member.name == "opt" or member.name.startswith("opt/") for member in layer)
        assert not any(member.pax_headers for member in layer)
    old, new = before.config["config"], after.config["config"]
    assert set(new["Env"]) == {*old["Env"], "TERM=xterm", "container=podman"}  # podman's own, in any order
    assert new["Labels"] == old["Labels"] and new["WorkingDir"] == old["WorkingDir"]
    history = before.config["history"]
    assert after.config["history"][: len(history)] == history
    added = after.config["history"][len(history) :]
    assert len(added) == layers and not any(entry.get("empty_layer") for entry in added)


def _expected_names(hop: int) -> list[str]:
    return [
        "opt",
        "opt/pht_results",
        "opt/pht_results/d",
        "opt/pht_results/d/deep",
        *[f"opt/pht_results/d/deep/hop-{number}" for number in range(1, hop + 1)],
        "opt/pht_results/d/z.txt",  # depth first: before d.txt
        "opt/pht_results/d.txt",
        "opt/pht_results/empty",
        "opt/pht_results/runs.txt",
        "opt/pht_train",
        "opt/pht_train/empty.py",
        "opt/pht_train/entrypoint.sh",
        "opt/pht_train/lib",
        "opt/pht_train/lib/sub",
        "opt/pht_train/lib/sub/x.py",
        "opt/pht_train/query.json",
        "opt/train_config.json",
        "opt/user_sym_key.key",
    ]


def _order(yard: Yard, repository: str, keys: dict[str, tuple[str, str]], tmp_path: Path) -> Path:
    path = tmp_path / "order.json"
    order = {
        "repository": repository,
        "base_image": yard.master,
        "cmd": ["/bin/sh", "/opt/pht_train/entrypoint.sh"],
        "train_id": repository.rpartition("/")[2],
        "user": {"id": "user-1", "private_key": peers.rsa_pair()[0]},
        "builder_private_key": peers.rsa_pair()[0],
        "route": [{"station": name, "public_key": public} for name, (_, public) in keys.items()],
        "files": [{"path": name, "data": _b64(data)} for name, data in FILES.items()],
        "query": _b64(QUERY),
    }
    path.write_text(json.dumps(order))
    return path


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
