"""Trains on routes where some stations run train_lib and some run dtrain.

Registry, podman service and train_lib are the real ones. A train_lib hop does what existing stations do with their
daemon; a dtrain hop uses the public API, its keys and base image pinned by an anchor. Whoever comes next has to take
what the other made, and the creator has to get exactly what the algorithm wrote.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever import mode pytest was told to use

import peers

from dtrain.crypto.rsa import PublicKey
from dtrain.errors import MissingEvidence
from dtrain.flow.pull_verify import VerifiedHop
from dtrain.flow.station import Station
from dtrain.oci import media_types
from dtrain.oci.digest import Digest
from dtrain.trust.anchor import BaseImage, render_anchor

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(peers.missing_tools()), reason=f"missing: {', '.join(peers.missing_tools())}"),
]

STATIONS = ("s1", "s2", "s3")
PASSWORDS = {"s1": "geheim", "s2": None, "s3": None, "creator": "Schlüssel", "builder": "Schlüssel"}
SCRIPT = """set -e
cd "${RESULTS_DIR:-/opt/pht_results}"
mkdir -p d/deep für/leer
echo run >> runs.txt
n=$(wc -l < runs.txt)
echo $n > d/z.txt
echo x > d.txt
[ $n = 1 ] || rm -rf old
: > empty
rm -f d/deep/hop-*
: > d/deep/hop-$n
head -c 5000 /dev/zero >> für/long.bin
""".encode()
FILES = {"entrypoint.sh": SCRIPT, "lib/sub/größe.py": b"x = 1\n", "lib/a.py": b"y" * 5000, "empty.py": b""}
QUERY = b'{"query": {"resource": "Patient"}}'


@dataclass(frozen=True)
class Party:
    """One key pair, in the forms in which the two sides want it."""

    key_file: Path
    private: str
    public_hex: str
    public_file: Path
    password: str | None

    @property
    def public(self) -> PublicKey:
        return PublicKey.from_pem(bytes.fromhex(self.public_hex), of=self.key_file.name)


@dataclass(frozen=True)
class Yard:
    """One registry, one podman, the parties, and a master image in each format."""

    registry: peers.RegistryServer
    podman: peers.PodmanService
    parties: Mapping[str, Party]
    plain_parties: Mapping[str, Party]

    def master(self, form: str) -> str:
        return f"{self.registry.host}/master/{form}:latest"

    def shape(self, image: str) -> peers.Shape:
        return peers.shape(f"docker://{image}", server=self.registry)

    def digest(self, image: str) -> Digest:
        return Digest.parse(peers.skopeo("inspect", "--tls-verify=false", "--format={{.Digest}}", f"docker://{image}")
                            .strip())


@dataclass(frozen=True)
class Train:
    """A train on its way, and what its stations trust."""

    repository: str
    anchor: Path
    creator: Party
    master: str
    query: bytes | None

    @property
    def image(self) -> str:
        return f"{self.repository}:latest"

    @property
    def code(self) -> dict[str, bytes]:
        return {**FILES, **({} if self.query is None else {"query.json": self.query})}


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    home = tmp_path_factory.mktemp("parties")
    parties = {
        "s1": _party(home, "s1"),
        "s2": _party(home, "s2", bits=4096, pkcs1=True),
        "s3": _party(home, "s3"),
        "creator": _party(home, "creator"),
        "builder": _party(home, "builder"),
    }
    # the central builder takes no password, and carries the creator's key as the desktop app writes it
    plain = {name: _party(home, f"plain-{name}", pkcs1=name == "creator") for name in ("creator", "builder")}
    with peers.registry("plain") as registry, peers.podman_service(insecure=[registry.host]) as podman:
        yard = Yard(registry, podman, parties, plain)
        base = peers.make_base_image(tmp_path_factory.mktemp("base") / "layout")
        for form in get_args(peers.Format):
            peers.copy_image(base, f"docker://{yard.master(form)}", format=form, server=registry)
            podman.run("pull", "--quiet", yard.master(form))
        yield yard


ROUTES = [
    # builder, format of the base image, who runs each stop, query
    pytest.param("oracle", "v2s2", "train_lib dtrain train_lib", True, id="oracle-v2s2-LDL-query"),
    pytest.param("oracle", "oci", "dtrain train_lib dtrain", False, id="oracle-oci-DLD"),
    pytest.param("dtrain", "oci", "train_lib dtrain train_lib", False, id="dtrain-oci-LDL"),
    pytest.param("dtrain", "v2s2", "dtrain train_lib dtrain", True, id="dtrain-v2s2-DLD-query"),
    pytest.param("oracle", "v2s2", "dtrain dtrain dtrain", True, id="oracle-v2s2-DDD-query"),
    pytest.param("dtrain", "oci", "dtrain dtrain dtrain", True, id="dtrain-oci-DDD-query"),
]


@pytest.mark.parametrize(("builder", "form", "route", "query"), ROUTES)
def test_train_passes_mixed_route(
    yard: Yard, tmp_path: Path, request: pytest.FixtureRequest, builder: str, form: str, route: str, query: bool
) -> None:
    name = request.node.callspec.id.lower()
    build = {"oracle": _build_by_oracle, "dtrain": _build_by_dtrain}[builder]
    train = build(yard, tmp_path, form, f"incoming/{name}", QUERY if query else None)
    base, bottom = yard.shape(f"{train.repository}:base"), yard.shape(train.master)
    for number, (station, side) in enumerate(zip(STATIONS, route.split(), strict=True), start=1):
        if side == "dtrain":
            _hop_by_dtrain(yard, train, station, tmp_path / station)
            below = bottom
        else:
            _hop_by_train_lib(yard, train, station, tmp_path)
            below = base
        _check_grown(below, yard.shape(train.image))
        assert sorted(_paths(yard.shape(train.image))) == _expected_paths(train, number)

    _check_by_creator(yard, train, tmp_path)
    _check_by_train_lib(yard, train)
    _check_by_other_tools(yard, train, tmp_path)


def test_what_the_base_image_has_below_results_does_not_shine_through(yard: Yard, tmp_path: Path) -> None:
    """Layers of the base stay as they are, so what the run removed is hidden by the hop's own layer."""
    (tmp_path / "pht_results/old").mkdir(parents=True)
    (tmp_path / "pht_results/old/left.txt").write_text("left")
    container = yard.podman.run("create", yard.master("v2s2")).strip()
    yard.podman.run("cp", str(tmp_path / "pht_results"), f"{container}:/opt/")
    yard.podman.run("commit", "--quiet", "--format", "docker", container, yard.master("old"))
    yard.podman.run("push", "--quiet", yard.master("old"))
    train = _build_by_oracle(yard, tmp_path, "old", "incoming/old", None)
    _hop_by_train_lib(yard, train, "s1", tmp_path)
    assert "opt/pht_results/old/left.txt" in _paths(yard.shape(train.image))

    _hop_by_dtrain(yard, train, "s2", tmp_path / "s2")  # the algorithm removes it at the second stop
    layout = tmp_path / train.repository.rpartition("/")[2]  # what stands before the name may change
    peers.copy_image(f"docker://{train.image}", f"oci:{layout}:latest", server=yard.registry)
    _check_unpacked(yard, train, layout, 2)


# --- building --------------------------------------------------------------------------------------------------


def _build_by_oracle(yard: Yard, tmp_path: Path, form: str, place: str, query: bytes | None) -> Train:
    repository, master = f"{yard.registry.host}/{place}", yard.master(form)
    creator, builder = yard.plain_parties["creator"], yard.plain_parties["builder"]
    # without a pinned command the anchor takes the name of one program, as central builders write it
    command = None if form == "oci" else ("/bin/sh",)
    order = {
        "repository": repository,
        "base_image": master,
        "cmd": [*(command or ("sh",)), "/opt/pht_train/entrypoint.sh"],
        "train_id": place.rpartition("/")[2],
        "user": {"id": "user-1", "private_key": creator.private, "public_key": creator.public_hex},
        "builder_private_key": builder.private,
        "route": [{"station": name, "public_key": yard.parties[name].public_hex} for name in STATIONS],
        "files": [{"path": path, "data": _b64(data)} for path, data in FILES.items()],
        "query": None if query is None else _b64(query),
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    yard.podman.oracle_json("build", str(tmp_path / "order.json"))
    for tag in ("base", "latest"):
        yard.podman.run("push", "--quiet", f"{repository}:{tag}")
        yard.podman.run("rmi", "--force", f"{repository}:{tag}")
    anchor = tmp_path / "anchor.toml"
    anchor.write_text(render_anchor(
        creators={"user-1": creator.public}, builders={"central": builder.public},
        stations={name: yard.parties[name].public for name in STATIONS}, trains=(),
        base_images=(BaseImage(reference=master, digest=yard.digest(master), command=command),),
    ))
    anchor.write_text(anchor.read_text().replace("version = 1", "version = 1\npolicy = { any_builder = false }"))
    return Train(repository, anchor, creator, master, query)


def _build_by_dtrain(yard: Yard, tmp_path: Path, form: str, place: str, query: bytes | None) -> Train:
    repository, master, creator = f"{yard.registry.host}/{place}", yard.master(form), yard.parties["creator"]
    code, anchor, password = tmp_path / "code", tmp_path / "anchor.toml", tmp_path / "password"
    for path, data in FILES.items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_bytes(data)
    password.write_text(f"{creator.password}\n")
    if query is not None:
        (tmp_path / "query").write_bytes(query)
    stops = [word for name in STATIONS for word in ("--stop", f"{name}={yard.parties[name].public_file}")]
    # fmt: off
    made = subprocess.run(
        [sys.executable, "-m", "dtrain", "build", str(code), "--base", master, "--to", repository, *stops,
         "--creator", "user-1", "--key", str(creator.key_file), "--key-password-file", str(password),
         "--builder-key", str(yard.parties["builder"].key_file), "--entrypoint", "entrypoint.sh",
         "--command", "/bin/sh", "--proposal", "p-1", "--train-id", place.rpartition("/")[2],
         "--anchor-out", str(anchor), "--trust-repository", f"{yard.registry.host}/trust",
         "--state-dir", str(tmp_path / "state-builder"), "--json",
         *(() if query is None else ("--query", str(tmp_path / "query")))],
        capture_output=True, text=True, check=False,
    )
    # fmt: on
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["digest"] == str(yard.digest(f"{repository}:latest"))
    assert str(yard.digest(master)) in anchor.read_text()
    with anchor.open("a") as file:  # any of them may run train_lib, which publishes no metadata
        file.write(f"\n[policy]\nunattested_hops = {json.dumps(STATIONS)}\n")
    return Train(repository, anchor, creator, master, query)


# --- hops ------------------------------------------------------------------------------------------------------


def _hop_by_dtrain(yard: Yard, train: Train, name: str, home: Path) -> None:
    station = _station(yard, train, name, yard.parties[name], home)
    before = yard.shape(train.image).media_type
    hop = station.pull_verify(train.image, home / "work")
    assert _files(hop.code_dir) == train.code
    _run(hop)
    published = station.push_results(hop)
    assert published.hop == STATIONS.index(name) + 1
    assert published.reference.digest == yard.digest(train.image)
    assert yard.shape(train.image).media_type == before


def _run(hop: VerifiedHop) -> None:
    """Run the algorithm that came with the train; what it would do in a container it does in the working folder."""
    subprocess.run(
        ["/bin/sh", str(hop.code_dir / "entrypoint.sh")], check=True,
        env={"PATH": os.environ["PATH"], "RESULTS_DIR": str(hop.results_dir)},
    )  # fmt: skip


def _hop_by_train_lib(yard: Yard, train: Train, name: str, tmp_path: Path) -> None:
    podman, party, image = yard.podman, yard.parties[name], train.image
    for tag in ("base", "latest"):
        podman.run("pull", "--quiet", f"{train.repository}:{tag}")
    config = tmp_path / f"{name}.json"
    config.write_bytes(podman.oracle("extract-config", image))
    secrets = [str(party.key_file), *([party.password] if party.password else []), "--config", str(config)]
    podman.oracle_json("pre-run", image, name, *secrets)
    sums = podman.run("run", "--rm", image, "sh", "-c", "cd /opt/pht_train && find . -type f -exec sha256sum {} +")
    assert sorted(sums.splitlines()) == sorted(
        f"{hashlib.sha256(data).hexdigest()}  ./{path}" for path, data in train.code.items()
    )
    ran = podman.oracle_json("run", image)
    assert ran["status"] == 0, ran["output"]
    podman.oracle_json("post-run", image, name, *secrets)
    podman.run("push", "--quiet", image)
    for tag in ("base", "latest"):
        podman.run("rmi", "--force", f"{train.repository}:{tag}")


# --- what has to hold ------------------------------------------------------------------------------------------


def _check_grown(below: peers.Shape, image: peers.Shape) -> None:
    """`image` is `below` and one layer: nothing of earlier hops is left, and the blobs below are the same."""
    count = len(below.layers)
    assert len(image.layers) == count + 1
    assert image.config["rootfs"]["diff_ids"][:count] == below.config["rootfs"]["diff_ids"]
    assert [layer["digest"] for layer in image.manifest["layers"][:count]] == [
        layer["digest"] for layer in below.manifest["layers"]
    ]
    history = below.config["history"]
    assert image.config["history"][: len(history)] == history
    added = image.config["history"][len(history) :]
    assert len([entry for entry in added if not entry.get("empty_layer")]) == 1


def _check_by_creator(yard: Yard, train: Train, tmp_path: Path) -> None:
    creator = _station(yard, train, "creator", train.creator, tmp_path / "creator")
    verified = creator.verify(train.image)
    assert (verified.done, verified.base_checked) == (3, True)
    opened = creator.results(train.image, tmp_path / "results")
    assert _files(opened.folder) == _expected_results(3)
    assert (opened.folder / "für/leer").is_dir()


def _check_by_train_lib(yard: Yard, train: Train) -> None:
    yard.podman.run("pull", "--quiet", train.image)
    yard.podman.oracle_json("validate", train.master, train.image)


def _check_by_other_tools(yard: Yard, train: Train, tmp_path: Path) -> None:
    layout = tmp_path / train.repository.rpartition("/")[2]
    elsewhere = train.repository.replace("/incoming/", "/outgoing/") + ":latest"
    oci = yard.shape(train.image).media_type == media_types.OCI_MANIFEST
    peers.copy_image(f"docker://{train.image}", f"oci:{layout}:latest", server=yard.registry, preserve=oci)
    peers.skopeo("copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
                 f"docker://{train.image}", f"docker://{elsewhere}")  # fmt: skip
    creator = _station(yard, train, "creator", train.creator, tmp_path / "later")
    assert creator.verify(elsewhere).reference.digest == yard.digest(train.image)
    attested = "[root]" in train.anchor.read_text() and not creator.verify(train.image).unattested
    if oci or not attested:
        assert creator.verify(f"oci:{layout}:latest").done == 3
    else:  # a layout holds OCI manifests only, and the signed one is of Docker's family
        with pytest.raises(MissingEvidence, match="expected one with signed metadata"):
            creator.verify(f"oci:{layout}:latest")

    _check_unpacked(yard, train, layout, 3)


def _check_unpacked(yard: Yard, train: Train, layout: Path, hops: int) -> None:
    """What umoci unpacks and what podman runs is the train and nothing else."""
    bundle = layout.with_name("bundle")
    peers.umoci("unpack", "--image", f"{layout}:latest", str(bundle))
    found = [str(path.relative_to(bundle / "rootfs")) for path in (bundle / "rootfs/opt").rglob("*")]
    assert sorted(found) == _expected_paths(train, hops)
    yard.podman.run("pull", "--quiet", train.image)
    listed = yard.podman.run("run", "--rm", train.image, "sh", "-c", "ls -lR /opt >&2 && find /opt -mindepth 1")
    assert sorted(line.removeprefix("/") for line in listed.splitlines()) == _expected_paths(train, hops)
    yard.podman.run("rmi", "--force", train.image)


def _expected_results(hops: int) -> dict[str, bytes]:
    return {
        "runs.txt": b"run\n" * hops,
        "d/z.txt": b"%d\n" % hops,
        "d.txt": b"x\n",
        "empty": b"",
        f"d/deep/hop-{hops}": b"",
        "für/long.bin": bytes(5000 * hops),
    }


def _expected_paths(train: Train, hops: int) -> list[str]:
    files = [f"opt/pht_train/{path}" for path in train.code]
    files += [f"opt/pht_results/{path}" for path in (*_expected_results(hops), "für/leer/")]
    parents = {str(parent) for path in files for parent in Path(f"{path}x").parents} - {".", "opt"}
    return sorted({*(path for path in files if not path.endswith("/")), *parents,
                   "opt/train_config.json", "opt/user_sym_key.key"})  # fmt: skip


def _paths(image: peers.Shape) -> set[str]:
    """What the top layer holds below /opt, apart from markers and the folder itself."""
    return {
        member.name for member in image.layers[-1] if member.name != "opt" and "/.wh." not in member.name
    }


def _station(yard: Yard, train: Train, name: str, party: Party, home: Path) -> Station:
    return Station(name, key=party.key_file, password=party.password, anchor=train.anchor,
                   state_dir=home / "state", plain_http=True)  # fmt: skip


def _party(home: Path, name: str, *, bits: int = 2048, pkcs1: bool = False) -> Party:
    password = PASSWORDS.get(name)
    private, public_hex = peers.rsa_pair(bits=bits, password=password, pkcs1=pkcs1)
    key_file, public_file = home / name, home / f"{name}.pub"
    key_file.touch(mode=0o600)
    key_file.write_text(private)
    public_file.write_bytes(bytes.fromhex(public_hex))
    return Party(key_file, private, public_hex, public_file, password)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
