"""scripts/tuf-conformance-client against repositories that python-tuf signs, over http, request by request."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "scripts" / "tuf-conformance-client"
EXPIRES = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
FIRST = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
TARGET = b"model weights"
DELEGATED = "hop-aachen"


class Repository:
    """A TUF repository with consistent snapshots and one key for each role.

    Attributes:
        files: what the server has, by path.
        requests: method and path of each request that arrived.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.statuses: dict[str, int] = {}
        self.signers = {role: CryptoSigner.generate_ed25519() for role in
                        ("root", "timestamp", "snapshot", "targets", DELEGATED)}
        self.root = Root(expires=EXPIRES, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            self.root.add_key(self.signers[role].public_key, role)
        self.timestamp = Timestamp(expires=EXPIRES)
        self.snapshot = Snapshot(expires=EXPIRES)
        self.targets = Targets(expires=EXPIRES)
        self.put("metadata/1.root.json", self.root, "root")
        self.publish()

    @property
    def asked(self) -> list[str]:
        """The paths of all requests since this was last read; each was a GET."""
        requests, self.requests = self.requests, []
        assert {method for method, _ in requests} <= {"GET"}
        return [path.removeprefix("metadata/") for _, path in requests]

    def put(self, path: str, signed: Signed, *roles: str) -> None:
        metadata: Metadata[Any] = Metadata(signed)
        for role in roles:
            metadata.sign(self.signers[role], append=True)
        self.files[path] = metadata.to_bytes()

    def publish(self) -> None:
        """Sign targets, snapshot and timestamp as they stand."""
        self.put(f"metadata/{self.targets.version}.targets.json", self.targets, "targets")
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        self.put(f"metadata/{self.snapshot.version}.snapshot.json", self.snapshot, "snapshot")
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.put("metadata/timestamp.json", self.timestamp, "timestamp")

    def bump(self) -> None:
        """Publish the next version of the three roles."""
        for signed in (self.targets, self.snapshot, self.timestamp):
            signed.version += 1
        self.publish()

    def add_target(self, name: str, data: bytes, *, to: Targets | None = None) -> str:
        """List a target, store its content, and return where that is."""
        (to or self.targets).targets[name] = TargetFile.from_data(name, data, ["sha256"])
        folder, slash, base = name.rpartition("/")
        path = quote(f"targets/{folder}{slash}{hashlib.sha256(data).hexdigest()}.{base}")
        self.files[path] = data
        return path


@pytest.fixture
def repository() -> Iterator[Repository]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def handle_any(self) -> None:
            path = self.path.removeprefix("/")
            found.requests.append((self.command, path))
            body = found.files.get(path)
            self.send_response(found.statuses.get(path, 404 if body is None else 200))
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body or b"")

        do_GET = do_HEAD = do_POST = handle_any

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Repository(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


class Driver:
    """Calls the executable, with the folders of one client."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.metadata = folder / "metadata"
        self.targets = folder / "targets"
        self.trusted_root = folder / "trusted.json"
        self.trusted_root.write_bytes(repository.files["metadata/1.root.json"])
        self.urls = ("--metadata-url", f"{repository.url}/metadata")
        self.error = ""

    def call(self, *arguments: str | Path) -> int:
        done = subprocess.run([sys.executable, CLIENT, *arguments], check=False, capture_output=True, text=True,
                              timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.error = done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.returncode

    def init(self) -> int:
        return self.call("--metadata-dir", self.metadata, "init", self.trusted_root)

    def refresh(self) -> int:
        return self.call(*self.urls, "--metadata-dir", self.metadata, "refresh")

    def download(self, *names: str) -> int:
        wanted = [argument for name in names for argument in ("--target-name", name)]
        return self.call(*self.urls, "--metadata-dir", self.metadata, *wanted, "--target-dir", self.targets,
                         "--target-base-url", f"{self.repository.url}/targets", "download")

    @property
    def trusted(self) -> dict[str, bytes]:
        """The metadata that the client believes, by file name."""
        return {file.name: file.read_bytes() for file in self.metadata.glob("*.json")}

    @property
    def stored(self) -> dict[str, bytes]:
        """The targets that the client has, by file name; hidden files and folders count."""
        return {file.name: file.read_bytes() for file in self.targets.iterdir()} if self.targets.exists() else {}


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> Driver:
    driver = Driver(repository, tmp_path)
    assert driver.init() == 0, driver.error
    assert repository.asked == []
    return driver


@pytest.fixture
def refreshed(client: Driver) -> Driver:
    assert client.refresh() == 0, client.error
    assert client.repository.asked == FIRST
    return client


def test_refresh_asks_for_four_files_and_keeps_what_they_held(repository: Repository, refreshed: Driver) -> None:
    assert refreshed.trusted == {
        "root.json": repository.files["metadata/1.root.json"],
        "timestamp.json": repository.files["metadata/timestamp.json"],
        "snapshot.json": repository.files["metadata/1.snapshot.json"],
        "targets.json": repository.files["metadata/1.targets.json"],
    }


def test_refresh_without_news_asks_for_root_and_timestamp_alone(repository: Repository, refreshed: Driver) -> None:
    assert refreshed.refresh() == 0
    assert repository.asked == ["2.root.json", "timestamp.json"]


def test_options_may_stand_after_the_command(repository: Repository, client: Driver) -> None:
    assert client.call("refresh", "--metadata-dir", client.metadata, *client.urls) == 0, client.error
    assert repository.asked == FIRST
    assert client.call("init", "--metadata-dir", client.metadata, client.trusted_root) == 0, client.error


@pytest.mark.parametrize("arguments", [
    ["refresh"], ["init"], ["--metadata-dir", "x", "init"], ["destroy"], [],
    ["--metadata-dir", "x", "--metadata-url", "http://127.0.0.1:1", "download"],
])
def test_missing_options_are_exit_1(client: Driver, arguments: list[str]) -> None:
    assert client.call(*arguments) == 1
    assert client.error.startswith("tuf-conformance-client: error: ")


def test_refresh_without_init_is_refused(repository: Repository, tmp_path: Path) -> None:
    assert Driver(repository, tmp_path).refresh() == 1
    assert repository.asked == []


@pytest.mark.parametrize("root", [b"{}", b'{"signed": 1', b""])
def test_init_refuses_what_is_no_root(repository: Repository, tmp_path: Path, root: bytes) -> None:
    driver = Driver(repository, tmp_path)
    driver.trusted_root.write_bytes(root)
    assert driver.init() == 1
    assert driver.refresh() == 1
    assert repository.asked == []


def test_rollback_of_the_timestamp_is_refused(repository: Repository, client: Driver) -> None:
    old = repository.files["metadata/timestamp.json"]
    repository.bump()
    assert client.refresh() == 0
    before = client.trusted
    repository.files["metadata/timestamp.json"] = old
    assert client.refresh() == 1
    assert "expected no older version" in client.error
    assert client.trusted == before


def test_rollback_of_the_snapshot_is_refused(repository: Repository, client: Driver) -> None:
    repository.bump()
    assert client.refresh() == 0
    before = client.trusted
    repository.timestamp.version, repository.snapshot.version = 3, 1
    repository.publish()
    assert client.refresh() == 1
    assert "expected no older version" in client.error
    assert client.trusted == before


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_by_the_clock_of_this_machine(
    repository: Repository, client: Driver, role: str
) -> None:
    signed: Signed = getattr(repository, role)
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
    if role == "root":
        repository.root.version = 2
        repository.put("metadata/2.root.json", repository.root, "root")
    repository.publish()
    assert client.refresh() == 1
    assert "expected one that is still valid" in client.error
    assert "targets.json" not in client.trusted


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_bad_signature_is_refused_and_changes_nothing(repository: Repository, refreshed: Driver, role: str) -> None:
    before = refreshed.trusted
    repository.signers[role] = CryptoSigner.generate_ed25519()
    repository.bump()
    assert refreshed.refresh() == 1
    assert "expected signatures of the trusted keys" in refreshed.error
    assert refreshed.trusted[f"{role}.json"] == before[f"{role}.json"]
    if role == "timestamp":
        assert refreshed.trusted == before


def rotate(repository: Repository, *signing: str) -> None:
    """Put new keys of root and timestamp into root 2."""
    for role in ("root", "timestamp"):
        repository.root.revoke_key(repository.signers[role].public_key.keyid, role)
        repository.signers[f"old {role}"], repository.signers[role] = (
            repository.signers[role], CryptoSigner.generate_ed25519())
        repository.root.add_key(repository.signers[role].public_key, role)
    repository.root.version = 2
    repository.put("metadata/2.root.json", repository.root, *signing)
    repository.bump()


def test_root_rotation_is_followed(repository: Repository, refreshed: Driver) -> None:
    rotate(repository, "root", "old root")
    repository.root.version = 3
    repository.put("metadata/3.root.json", repository.root, "root")
    assert refreshed.refresh() == 0, refreshed.error
    assert repository.asked == ["2.root.json", "3.root.json", "4.root.json", "timestamp.json", "2.snapshot.json",
                                "2.targets.json"]
    assert refreshed.trusted["root.json"] == repository.files["metadata/3.root.json"]
    assert refreshed.refresh() == 0
    assert repository.asked == ["4.root.json", "timestamp.json"]


@pytest.mark.parametrize("signing", ["root", "old root"])
def test_root_rotation_without_both_signatures_is_refused(
    repository: Repository, refreshed: Driver, signing: str
) -> None:
    before = refreshed.trusted
    rotate(repository, signing)
    assert refreshed.refresh() == 1
    assert "expected signatures of the trusted keys" in refreshed.error
    assert repository.asked == ["2.root.json"]
    assert refreshed.trusted == before


@pytest.mark.parametrize(("status", "exit_status", "asked"), [
    (403, 0, FIRST), (404, 0, FIRST), (500, 1, FIRST[:1]), (503, 1, FIRST[:1]),
])
def test_only_a_missing_root_ends_the_walk(
    repository: Repository, client: Driver, status: int, exit_status: int, asked: list[str]
) -> None:
    repository.statuses["metadata/2.root.json"] = status
    assert client.refresh() == exit_status
    assert repository.asked == asked


@pytest.mark.parametrize("name", FIRST[1:])
def test_missing_metadata_is_exit_1(repository: Repository, client: Driver, name: str) -> None:
    del repository.files[f"metadata/{name}"]
    assert client.refresh() == 1
    assert repository.asked == FIRST[:FIRST.index(name) + 1]


def test_download_refreshes_first_and_stores_the_target(repository: Repository, client: Driver) -> None:
    path = repository.add_target("some/dir/model file", TARGET)
    repository.publish()
    assert client.download("some/dir/model file") == 0, client.error
    assert repository.asked == [*FIRST, path]
    assert client.stored == {"some%2Fdir%2Fmodel%20file": TARGET}


def delegate(repository: Repository, paths: list[str]) -> Targets:
    role = DelegatedRole(DELEGATED, [], 1, True, paths=paths)
    repository.targets.delegations = Delegations({}, roles={DELEGATED: role})
    repository.targets.add_key(repository.signers[DELEGATED].public_key, DELEGATED)
    repository.snapshot.meta[f"{DELEGATED}.json"] = MetaFile(1)
    return Targets(expires=EXPIRES)


def test_delegated_target_is_downloaded(repository: Repository, client: Driver) -> None:
    hop = delegate(repository, ["t1/hops/aachen/*"])
    path = repository.add_target("t1/hops/aachen/01-image", TARGET, to=hop)
    repository.put(f"metadata/1.{DELEGATED}.json", hop, DELEGATED)
    repository.bump()
    assert client.download("t1/hops/aachen/01-image") == 0, client.error
    assert repository.asked == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json",
                                f"1.{DELEGATED}.json", path]
    assert client.trusted[f"{DELEGATED}.json"] == repository.files[f"metadata/1.{DELEGATED}.json"]
    assert client.stored == {"t1%2Fhops%2Faachen%2F01-image": TARGET}


@pytest.mark.parametrize("name", ["?", "#", "/hop", "../hop", "hop aachen"])
def test_unusual_role_names_are_quoted_in_urls_and_file_names(
    repository: Repository, client: Driver, name: str
) -> None:
    repository.targets.delegations = Delegations({}, roles={name: DelegatedRole(name, [], 1, True, paths=["*"])})
    repository.targets.add_key(repository.signers[DELEGATED].public_key, name)
    repository.snapshot.meta[f"{name}.json"] = MetaFile(1)
    file = f"1.{quote(name, safe='')}.json"
    repository.put(f"metadata/{file}", Targets(expires=EXPIRES), DELEGATED)
    repository.publish()
    assert client.download("nothing") == 1
    assert repository.asked == [*FIRST, file]
    assert len(client.trusted) == 5


@pytest.mark.parametrize(("paths", "signer"), [(["t1/hops/aachen/*"], "targets"), (["t1/hops/bonn/*"], DELEGATED)])
def test_delegation_holds_for_its_key_and_its_paths_alone(
    repository: Repository, client: Driver, paths: list[str], signer: str
) -> None:
    hop = delegate(repository, paths)
    repository.add_target("t1/hops/aachen/01-image", TARGET, to=hop)
    repository.put(f"metadata/1.{DELEGATED}.json", hop, signer)
    repository.publish()
    assert client.download("t1/hops/aachen/01-image") == 1
    assert client.stored == {}
    assert f"{DELEGATED}.json" not in client.trusted


def test_target_that_is_there_already_is_not_asked_for(repository: Repository, client: Driver) -> None:
    old = repository.add_target("model", TARGET)
    repository.publish()
    assert client.download("model") == 0
    assert repository.asked == [*FIRST, old]
    assert client.download("model") == 0
    assert repository.asked == ["2.root.json", "timestamp.json"]
    new = repository.add_target("model", b"newer weights")
    repository.bump()
    assert client.download("model") == 0
    assert repository.asked == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json", new]
    assert client.stored == {"model": b"newer weights"}


@pytest.mark.parametrize("other", [TARGET[:-1], b"x" + TARGET[1:], TARGET + b"x", b"x" * 2**20, b""])
def test_target_with_other_content_is_refused_and_leaves_nothing(
    repository: Repository, client: Driver, other: bytes
) -> None:
    path = repository.add_target("model", TARGET)
    repository.publish()
    repository.files[path] = other
    assert client.download("model") == 1
    assert repository.asked == [*FIRST, path]
    assert client.stored == {}


def test_refused_target_leaves_the_one_before(repository: Repository, client: Driver) -> None:
    repository.add_target("model", TARGET)
    repository.publish()
    assert client.download("model") == 0
    path = repository.add_target("model", b"newer weights")
    repository.bump()
    repository.files[path] = b"other weights"
    assert client.download("model") == 1
    assert client.stored == {"model": TARGET}


def test_unknown_target_is_refused_after_the_refresh(repository: Repository, client: Driver) -> None:
    assert client.download("nothing") == 1
    assert "target 'nothing': expected one that signed metadata names" in client.error
    assert repository.asked == FIRST
    assert client.stored == {}


def test_several_targets_are_one_refresh_and_stop_at_the_first_failure(
    repository: Repository, client: Driver
) -> None:
    paths = [repository.add_target(name, name.encode()) for name in ("one", "two", "three", "four")]
    repository.publish()
    assert client.download("one", "two") == 0, client.error
    assert repository.asked == [*FIRST, *paths[:2]]
    del repository.files[paths[2]]
    assert client.download("one", "three", "four") == 1
    assert repository.asked == ["2.root.json", "timestamp.json", paths[2]]
    assert client.stored == {"one": b"one", "two": b"two"}


@pytest.mark.parametrize("name", ["..", ".", "../escaped", "/escaped"])
def test_target_stays_in_its_folder(repository: Repository, client: Driver, name: str, tmp_path: Path) -> None:
    repository.targets.targets[name] = TargetFile.from_data(name, TARGET, ["sha256"])
    repository.publish()
    served = f"{hashlib.sha256(TARGET).hexdigest()}.{name.rpartition('/')[2]}"
    repository.files.update({folder + served: TARGET for folder in ("", "targets/", "targets//")})
    before = set(tmp_path.iterdir())
    client.download(name)
    assert set(tmp_path.iterdir()) - before <= {client.targets}
    assert set(client.stored) <= {"..%2Fescaped", "%2Fescaped"}


@pytest.mark.skipif(os.name != "posix", reason="shebang")
def test_interpreter_without_dtrain_hands_over_to_the_one_in_venv(
    repository: Repository, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    driver = Driver(repository, tmp_path)
    checkout = tmp_path_factory.mktemp("checkout")
    script = checkout / "scripts" / CLIENT.name
    script.parent.mkdir()
    shutil.copy(CLIENT, script)
    assert os.access(script, os.X_OK)
    command = [sys.executable, "-I", "-S", script, "--metadata-dir", driver.metadata, "init", driver.trusted_root]
    alone = subprocess.run(command, check=False, capture_output=True, text=True)
    assert alone.returncode == 1
    assert "No module named" in alone.stderr
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert subprocess.run(command, check=False).returncode == 0
    assert set(driver.trusted) == {"root.json"}
