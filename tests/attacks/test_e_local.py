"""Group E on the station's own machine: crashes, full and forbidden disks, keys, and plaintext where it must not be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from forge import CODE, STATIONS, World, make_world

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import (
    Conflict,
    DtrainError,
    KeyNotFound,
    MalformedInput,
    StorageProblem,
    UnsafeArchive,
    UsageProblem,
    WrongKey,
)  # fmt: skip
from dtrain.flow import workdir
from dtrain.flow.pull_verify import VerifiedHop
from dtrain.flow.push_results import Published, push_results
from dtrain.keystore.pem import read_private_key, write_key_pair
from dtrain.train.config import parse_train_config

MARKER = b"PLAINTEXT-OF-A-PATIENT"


@pytest.fixture(scope="session")
def keys() -> dict[str, PrivateKey]:
    return {name: PrivateKey.generate(2048) for name in ("alice", "bob", *STATIONS)}


@pytest.fixture
def world(keys: dict[str, PrivateKey], tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return make_world(tmp_path / "w", keys, signed=getattr(request, "param", False))


BOTH = pytest.mark.parametrize("world", [False, True], indirect=True, ids=["plain", "signed"])


def push(world: World, hop: VerifiedHop, station: str = "aachen") -> Published:
    return push_results(hop.folder, key=world.keys[station], trust=world.anchor(), context=world.context)


def index(world: World) -> bytes:
    return (world.folder / "train" / "index.json").read_bytes()


KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def die(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.chmod", "os.rmdir", "os.truncate", "fcntl.flock"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from dtrain.cli.main import main
sys.argv = ["dtrain", *sys.argv[2:]]
sys.addaudithook(die)
main()
"""


def killed_at(step: int, *arguments: str | Path) -> int:
    """Run a command that is killed at its ``step``-th file operation; return its status."""
    return subprocess.run([sys.executable, "-c", KILLED, str(step), *map(str, arguments)], capture_output=True,
                          check=False).returncode


@pytest.fixture
def command(world: World) -> list[str | Path]:
    anchor = world.anchor_file()
    for name in ("aachen",):
        write_key_pair(world.keys[name], world.folder / f"{name}.pem", password=None)
    return ["--key", world.folder / "aachen.pem", "--anchor", anchor, "--state-dir", world.folder / "state"]


def steps() -> Iterator[int]:
    """Give steps that become rarer: the first ones are imports."""
    yield from range(1, 2000, 23)


@BOTH
def test_e2_killed_pull_verify_leaves_no_folder_or_a_whole_one(world: World, command: list[str | Path]) -> None:
    work, seen = world.folder / "work", set()
    low, high = 1, 4096
    while low < high:  # find how many file operations a whole run has
        middle = (low + high) // 2
        shutil.rmtree(work, ignore_errors=True)
        if killed_at(middle, "pull-verify", str(world.train), work, "--station", "aachen", *command) == 0:
            high = middle
        else:
            low = middle + 1
    for step in range(max(1, low - 60), low, 3):
        shutil.rmtree(work, ignore_errors=True)
        status = killed_at(step, "pull-verify", str(world.train), work, "--station", "aachen", *command)
        assert status == -signal.SIGKILL
        seen.add(work.exists())
        if work.exists():
            assert workdir.read_record(work).hop == 1
            assert (work / "opt/pht_train/lib/a.py").read_bytes() == CODE["lib/a.py"]
    shutil.rmtree(work, ignore_errors=True)
    assert killed_at(10**6, "pull-verify", str(world.train), work, "--station", "aachen", *command) == 0
    assert not [path for path in world.folder.iterdir() if path.name.startswith(".work")]  # the leftovers are gone
    assert False in seen


@BOTH
def test_e3_killed_push_results_is_completed_by_the_next_call(world: World, command: list[str | Path]) -> None:
    hop = world.pull("aachen")
    (hop.results_dir / "out").write_bytes(b"1")
    pristine = world.folder / "pristine"
    for name in ("train", "state"):
        shutil.copytree(world.folder / name, pristine / name, symlinks=True)

    def reset() -> None:
        shutil.rmtree(hop.folder / "outbox", ignore_errors=True)
        for name in ("train", "state"):
            shutil.rmtree(world.folder / name)
            shutil.copytree(pristine / name, world.folder / name, symlinks=True)

    whole = 1
    while killed_at(whole, "push-results", hop.folder, *command) != 0:
        whole += 40
        assert whole < 20_000
        reset()
    for step in range(max(1, whole - (320 if world.signed else 120)), whole, 7):
        reset()
        killed_at(step, "push-results", hop.folder, *command)
        assert world.image().manifest.layers  # whatever the tag names is a whole image
        published = push(world, hop)
        assert published.reference.digest == world.image().manifest.digest
        assert push(world, hop).already
    world.hop("leipzig", {"out": b"12"})  # and the next station can go on


@BOTH
def test_e3_tag_that_moved_meanwhile(world: World) -> None:
    one = world.pull("aachen")
    other = replace(world)
    shutil.copytree(one.folder, world.folder / "twin")
    (one.results_dir / "out").write_bytes(b"1")
    (world.folder / "twin/opt/pht_results/out").write_bytes(b"2")
    push(world, one)
    before = index(world)
    with pytest.raises(Conflict, match="the image that was verified") as told:
        push(other, replace(one, folder=world.folder / "twin"))
    assert told.value.exit_status == 34
    assert index(world) == before


@BOTH
def test_e3_results_changed_after_publication(world: World) -> None:
    hop = world.pull("aachen")
    (hop.results_dir / "out").write_bytes(b"1")
    push(world, hop)
    before = index(world)
    (hop.results_dir / "out").write_bytes(b"2")
    with pytest.raises(Conflict, match="published"):
        push(world, hop)
    assert index(world) == before


def test_e4_folder_there_already(world: World) -> None:
    work = world.folder / "work-aachen"
    work.mkdir()
    (work / "mine").write_text("keep")
    with pytest.raises(UsageProblem, match="got one with content"):
        world.pull("aachen")
    assert (work / "mine").read_text() == "keep"


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_e4_link_in_place_of_the_folder(world: World, target: str) -> None:
    (world.folder / "elsewhere").mkdir()
    (world.folder / "work-aachen").symlink_to(world.folder / target)
    with pytest.raises(UsageProblem, match="got a link or file"):
        world.pull("aachen")
    assert not any((world.folder / "elsewhere").iterdir())


def test_e4_link_in_place_of_the_hidden_folder(world: World) -> None:
    (world.folder / "elsewhere").mkdir()
    (world.folder / ".work-aachen.dtrain-partial").symlink_to(world.folder / "elsewhere")
    with pytest.raises(StorageProblem):
        world.pull("aachen")
    assert not any((world.folder / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_e4_full_disk(world: World, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], check=False).returncode:
        pytest.skip("no mounting here")
    try:
        from dtrain.flow.pull_verify import pull_verify

        with pytest.raises(StorageProblem, match="No space left"):
            pull_verify(world.train, disk / "work", station="aachen", key=world.keys["aachen"], trust=world.anchor(),
                        context=world.context)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_e4_no_permission(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o755)
    code = f"""
import os
from pathlib import Path
from dtrain.errors import StorageProblem
from dtrain.flow.workdir import new_folder
os.setuid(65534)
try:
    with new_folder(Path({str(place)!r}, "work")): pass
except StorageProblem as problem: print(problem)
"""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent.name.startswith(("pytest-", "test_")):
            parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "expected to read and write there, got: Permission denied" in done.stdout, done.stderr
    assert list(place.iterdir()) == []


def private_pem(key: object, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined,no-any-return]


def test_e6_encrypted_key(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(rsa.generate_private_key(65537, 2048), b"right"))
    path.chmod(0o600)
    assert read_private_key(path, password=Secret("right")).public.bits == 2048
    with pytest.raises(WrongKey, match="expected a password, got none"):
        read_private_key(path)
    with pytest.raises(WrongKey, match="got a wrong one") as told:
        read_private_key(path, password=Secret("wrong"))
    assert told.value.exit_status == 42
    assert "wrong" not in repr(told.value).replace("got a wrong one", "")


def test_e6_other_kinds_and_sizes(tmp_path: Path) -> None:
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate(),
                rsa.generate_private_key(65537, 1024)):
        path = tmp_path / "key.pem"
        path.write_bytes(private_pem(key))
        with pytest.raises(WrongKey, match="expected an RSA key"):
            read_private_key(path)
    path.write_bytes(b"no key at all")
    with pytest.raises(MalformedInput):
        read_private_key(path)
    with pytest.raises(KeyNotFound) as told:
        read_private_key(tmp_path / "none.pem")
    assert told.value.exit_status == 41


def test_e6_wrong_key(world: World) -> None:
    stranger = World(world.folder, {**world.keys, "aachen": world.keys["leipzig"]}, world.anchor_text)
    with pytest.raises(WrongKey, match="expected the private key of sha256:"):
        stranger.pull("aachen")
    assert not (world.folder / "work-aachen").exists()


def test_e6_key_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(rsa.generate_private_key(65537, 2048)))
    path.chmod(0o644)
    warned: list[str] = []
    read_private_key(path, warn=warned.append)
    assert ["chmod 600" in text for text in warned] == [True]
    path.chmod(0o600)
    read_private_key(path, warn=warned.append)
    assert len(warned) == 1


@BOTH
def test_e7_no_plaintext_and_no_key_where_it_was_not_asked_for(world: World, command: list[str | Path]) -> None:
    """The temporary folder, the outbox, the registry and all output are searched."""
    temporary = world.folder / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    work = world.folder / "work"
    said = b""
    for arguments in (["pull-verify", str(world.train), work, "--station", "aachen"], ["push-results", work]):
        done = subprocess.run([sys.executable, "-X", "dev", "-m", "dtrain", *map(str, arguments), *map(str, command)],
                              env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
        (work / "opt/pht_results/patients.txt").write_bytes(MARKER * 100)
    secret = (world.folder / "aachen.pem").read_bytes().splitlines()[5]
    places = [world.folder / name for name in ("train", "state", "tmp", "work/outbox")]
    stored = b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())
    stored += (work / "sealed.tar").read_bytes()
    for where in (said, stored):
        assert MARKER not in where
        assert CODE["entrypoint.py"] not in where
        assert secret not in where
    assert list(temporary.iterdir()) == []


def test_e7_secrets_do_not_show_themselves(keys: dict[str, PrivateKey], world: World) -> None:
    text = repr(Secret("hunter2")) + str(Secret(b"hunter2")) + repr(keys["alice"]) + f"{Secret('hunter2')}"
    assert "hunter2" not in text
    config = parse_train_config(world.members()["opt/train_config.json"][1])
    assert config.route[0].encrypted_key is not None
    assert repr(config.route[0].encrypted_key) not in repr(config)


def make_fifo(place: Path) -> None:
    os.mkfifo(place)


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        inside = Path.cwd()
        os.chdir(place.parent)
        try:
            listener.bind(place.name)
        finally:
            os.chdir(inside)


@pytest.mark.parametrize(("name", "make", "error"), [
    ("link", lambda place: place.symlink_to("/etc/passwd"), UnsafeArchive),
    ("folder-link", lambda place: place.symlink_to("/etc"), UnsafeArchive),
    ("pipe", make_fifo, UnsafeArchive), ("socket", make_socket, UnsafeArchive),
    (".wh.out", Path.touch, MalformedInput), ("back\\slash", Path.touch, MalformedInput),
    (os.fsdecode(b"\xff\xfe"), Path.touch, MalformedInput),
])
def test_c2_results_that_cannot_travel(world: World, name: str, make: object, error: type[DtrainError]) -> None:
    hop = world.pull("aachen")
    make(hop.results_dir / name)  # type: ignore[operator]
    before = index(world)
    with pytest.raises(error):
        push(world, hop)
    assert index(world) == before


def test_a1_algorithm_that_rewrites_its_own_code_does_not_change_what_travels_on(world: World) -> None:
    """W29: code is taken from what was verified."""
    hop = world.pull("aachen")
    shutil.rmtree(hop.code_dir)
    hop.code_dir.mkdir()
    (hop.code_dir / "entrypoint.py").write_bytes(b"evil")
    (hop.folder / "opt/train_config.json").unlink()
    push(world, hop)
    after = world.pull("leipzig")
    assert (after.code_dir / "entrypoint.py").read_bytes() == CODE["entrypoint.py"]


def test_a1_sealed_code_exchanged_in_the_working_folder(world: World) -> None:
    hop = world.pull("aachen")
    place = hop.folder / "sealed.tar"
    raw = bytearray(place.read_bytes())
    raw[700] ^= 1
    place.write_bytes(raw)
    before = index(world)
    with pytest.raises(DtrainError) as told:
        push(world, hop)
    assert told.value.exit_status == 11
    assert index(world) == before
