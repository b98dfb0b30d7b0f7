"""One hop of a three-stop train over Debian's docker-registry, whole processes, bytes counted by a proxy between."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "registry-test"))

from registry_servers import registry  # noqa: E402

from dtrain.crypto.rsa import PrivateKey  # noqa: E402
from dtrain.flow.build import TrainPlan, build  # noqa: E402
from dtrain.flow.context import Context  # noqa: E402
from dtrain.flow.demo import ALGORITHM  # noqa: E402
from dtrain.flow.station import connector  # noqa: E402
from dtrain.keystore.pem import write_key_pair  # noqa: E402
from dtrain.oci import media_types  # noqa: E402
from dtrain.oci.descriptor import Descriptor  # noqa: E402
from dtrain.oci.layer_writer import LayerWriter  # noqa: E402
from dtrain.oci.manifest import make_manifest  # noqa: E402
from dtrain.oci.reference import Reference  # noqa: E402
from dtrain.trust.state import State  # noqa: E402

MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command: what it moved and what it took."""

    base_mb: int
    results_mb: int
    command: str
    seconds: float
    peak_mb: float
    received: int
    sent: int


class CountingProxy:
    """Passes connections on to the registry and counts the bytes both ways."""

    def __init__(self, host: str) -> None:
        name, _, port = host.partition(":")
        self._target = (name, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            for source, sink, name in ((client, server, "sent"), (server, client, "received")):
                threading.Thread(target=self._pump, args=(source, sink, name), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**18):
                setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def put_base(context: Context, reference: Reference, size: int) -> None:
    """Publish a base image with one layer of ``size`` bytes that do not compress."""
    with tempfile.NamedTemporaryFile(prefix="bench-") as tar:
        with open(tar.name, "wb") as out:
            writer = LayerWriter(out, mtime=0)
            writer.directory("opt")
            noise = random.Random(size)
            writer.file("usr/lib/padding", (noise.randbytes(MB) for _ in range(size // MB)), size=size // MB * MB)
            digest, length = writer.finish()
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["python"]},
                             "rootfs": {"type": "layers", "diff_ids": [str(digest)]},
                             "history": [{"created_by": "bench"}]}).encode()
        manifest = make_manifest(
            media_type=media_types.OCI_MANIFEST, config=Descriptor.of(config, media_types.OCI_CONFIG),
            layers=[Descriptor(media_type=media_types.OCI_LAYER, digest=digest, size=length)])
        with context.connect(reference) as place:
            place.put_blob(manifest.layers[0], partial(open, tar.name, "rb"))
            place.put_blob(manifest.config, lambda: BytesIO(config))
            place.put_manifest(manifest)
            place.put_tag("latest", manifest)


def measured(command: list[str], proxy: CountingProxy, base_mb: int, results_mb: int) -> Run:
    """Run one dtrain command as a process of its own."""
    received, sent, start = proxy.received, proxy.sent, time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "dtrain", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"bench: dtrain {command[0]} ended with {child.returncode}")
    return Run(base_mb=base_mb, results_mb=results_mb, command=command[0], seconds=time.perf_counter() - start,
               peak_mb=usage.ru_maxrss / 1024, received=proxy.received - received, sent=proxy.sent - sent)


def route(host: str, folder: Path, base_mb: int, results_mb: int) -> Iterator[Run]:
    """Build a train, let the first station make results, and measure what the second one does."""
    proxy = CountingProxy(host)
    context = Context(connect=connector(), state=State(folder / "creator-state"))
    base = Reference.parse(f"{host}/master/bench-{base_mb}")
    put_base(context, base, base_mb * MB)
    keys = {name: PrivateKey.generate(2048) for name in ("creator", "one", "two", "three")}
    for name, key in keys.items():
        write_key_pair(key, folder / f"{name}.pem", password=None)
    (folder / "code").mkdir()
    (folder / "code" / "entrypoint.py").write_text(ALGORITHM)
    plan = TrainPlan(id="bench", proposal="bench", creator="creator", creator_key=keys["creator"], builder="creator",
                     builder_key=keys["creator"], code=folder / "code",
                     route=[(name, keys[name].public) for name in ("one", "two", "three")])
    made = build(plan, base, Reference.parse(f"{host}/trains/bench-{base_mb}"), context=context)
    anchor = folder / "anchor.toml"
    anchor.write_text(made.anchor)
    train = f"{proxy.host}/trains/bench-{base_mb}"
    noise = random.Random(1)
    for station in ("one", "two"):
        work = folder / station
        common = ["--key", str(folder / f"{station}.pem"), "--anchor", str(anchor), "--quiet",
                  "--state-dir", str(folder / f"state-{station}")]
        pull = measured(["pull-verify", train, str(work), "--station", station, *common], proxy, base_mb, results_mb)
        with open(work / "opt/pht_results/result.bin", "wb") as out:
            for _ in range(results_mb):
                out.write(noise.randbytes(MB))
        push = measured(["push-results", str(work), *common], proxy, base_mb, results_mb)
        if station == "two":
            yield pull
            yield push
        shutil.rmtree(work)


def main() -> None:
    """Print a table, and the ratio between the largest and the smallest base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", default="150,1200", help="sizes of the base image in MB")
    parser.add_argument("--results", type=int, default=500, help="size of the results in MB")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    runs = []

    print(f"{'base MB':>8} {'results MB':>11} {'command':<13} {'seconds':>8} {'peak MB':>8} "
          f"{'received':>13} {'sent':>13}")
    with registry("plain") as server:
        for base_mb in (int(size) for size in options.bases.split(",")):
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                for run in route(server.host, Path(folder), base_mb, options.results):
                    runs.append(run)
                    print(f"{run.base_mb:>8} {run.results_mb:>11} {run.command:<13} {run.seconds:>8.2f} "
                          f"{run.peak_mb:>8.1f} {run.received:>13,} {run.sent:>13,}", flush=True)
    pulls = [run.received for run in runs if run.command == "pull-verify"]
    print(f"pull-verify: bytes received with the largest base / with the smallest: {pulls[-1] / pulls[0]:.5f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=2))


if __name__ == "__main__":
    main()
