"""Another registry, and another client's idea of what belongs to an image: crane and regctl, built with Go."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attacks"))

from forge_metadata import STATIONS, make_signed

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey

pytestmark = pytest.mark.peers
MODULES = ("github.com/google/go-containerregistry/cmd/crane@v0.20.6",
           "github.com/regclient/regclient/cmd/regctl@v0.11.7")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both programs."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    folder = tmp_path_factory.mktemp("go")
    for module in MODULES:
        done = subprocess.run(["go", "install", module], env={**os.environ, "GOBIN": str(folder)}, capture_output=True,
                              text=True, check=False)
        if done.returncode:
            pytest.skip(f"{module} cannot be built here: {done.stderr[-200:]}")
    return folder


@pytest.fixture
def host(tools: Path, tmp_path: Path) -> Iterator[str]:
    """A registry that is not Debian's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    (tmp_path / "blobs").mkdir()
    server = subprocess.Popen([tools / "crane", "registry", "serve", "--address", address, "--disk",
                               tmp_path / "blobs"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))):
                    break
            time.sleep(0.05)
        yield address
    finally:
        server.kill()
        server.wait()


def test_train_on_another_registry_and_its_metadata_as_a_referrer(host: str, tools: Path, tmp_path: Path) -> None:
    rsa = {name: PrivateKey.generate(2048) for name in ("alice", *STATIONS)}
    keys = {name: SigningKey.generate() for name in ("alice", "bob", *STATIONS)}
    train = make_signed(f"{host}/project/", tmp_path / "w", rsa, keys, name="train")
    for station in STATIONS:
        train.hop(station)
    assert train.verify(every_image=True).images_checked == (0, 1, 2, 3)
    environment = {**os.environ, "HOME": str(tmp_path)}

    def regctl(*words: str) -> str:
        return subprocess.run([tools / "regctl", *words], env=environment, capture_output=True, text=True,
                              check=True).stdout

    regctl("registry", "set", host, "--tls", "disabled")
    form = "{{ range .Descriptors }}{{ .Digest }} {{ .ArtifactType }}{{ end }}"
    listed = regctl("artifact", "list", "--format", form, f"{train.train}:latest")
    assert listed.split() == [str(train.image("tuf").digest), "application/vnd.tuf.repository.v1+json"]
