"""The demo: everything a train meets on its way, in one folder and with throw-away keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from dtrain.crypto.rsa import PrivateKey
from dtrain.flow import workdir
from dtrain.flow.build import TrainPlan, build
from dtrain.flow.context import Context
from dtrain.flow.open_results import open_results
from dtrain.flow.pull_verify import VerifiedHop, pull_verify
from dtrain.flow.push_results import push_results
from dtrain.flow.station import connector
from dtrain.keystore.pem import write_key_pair
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.layer_writer import LayerWriter
from dtrain.oci.manifest import make_manifest
from dtrain.oci.reference import Reference
from dtrain.trust.anchor import read_anchor
from dtrain.trust.state import State

ALGORITHM = '''\
"""Add this station's number of patients and sum of ages to the results so far."""
import csv, json, os, pathlib

results = pathlib.Path(os.environ["RESULTS_DIR"], "ages.json")
so_far = json.loads(results.read_text()) if results.exists() else {"stations": 0, "patients": 0, "sum_of_ages": 0}
with open(os.environ["TRAIN_DATA_PATH"]) as table:
    ages = [int(row["age"]) for row in csv.DictReader(table)]
results.write_text(json.dumps({
    "stations": so_far["stations"] + 1,
    "patients": so_far["patients"] + len(ages),
    "sum_of_ages": so_far["sum_of_ages"] + sum(ages),
}))
'''

AGES = {"aachen": (34, 71, 52), "leipzig": (45, 63), "tuebingen": (29, 58, 80, 41)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Where the demo left its results."""

    results: Path
    total: str
    reference: Reference


def demo(folder: Path, *, tell: Callable[[str], None]) -> Shown:
    """Carry a train along three stations in ``folder``, telling each step.

    Raises:
        UsageProblem: ``folder`` is there already.
        DtrainError: whatever a step of a real train raises.
    """
    with workdir.new_folder(folder) as made:
        keys = _make_parties(made, tell)
    layout = folder / "registry"  # an OCI image layout stands in for a registry
    context = Context(connect=connector(), state=State(folder / "state"))
    base, train = Reference.parse(f"oci:{layout}:python-base"), Reference.parse(f"oci:{folder / 'train'}")
    make_base(base, context)
    plan = TrainPlan(id="demo-train", proposal="demo-proposal", creator="creator", creator_key=keys["creator"],
                     builder="builder", builder_key=keys["builder"], code=folder / "algorithm",
                     route=[(name, keys[name].public) for name in AGES])
    new = build(plan, base, train, context=context)
    anchor_file = folder / "anchor.toml"
    anchor_file.write_text(new.anchor)
    anchor = read_anchor(anchor_file)
    tell(f"creator    built {new.reference}")
    for name in AGES:
        hop = pull_verify(train, folder / "stations" / name / "work", station=name, key=keys[name], trust=anchor,
                          context=context)
        tell(f"{name:<10} verified stop {hop.record.hop} of {hop.record.stops}, decrypted into {hop.folder}")
        _run(hop, folder / "stations" / name / "patients.csv")
        published = push_results(hop.folder, key=keys[name], trust=anchor, context=context)
        tell(f"{name:<10} ran it, sealed and published {published.tag}  {published.reference.digest}")
    opened = open_results(train, folder / "results", key=keys["creator"], trust=anchor, context=context)
    total = (opened.folder / "ages.json").read_text()
    _check_total(total)
    tell(f"creator    verified {opened.done} of {opened.stops} stops and opened {opened.files} result file")
    return Shown(results=opened.folder, total=total, reference=opened.reference)


def _make_parties(folder: Path, tell: Callable[[str], None]) -> dict[str, PrivateKey]:
    """Give each station its key and its data, and the creator key and algorithm."""
    keys = {name: PrivateKey.generate(2048) for name in ("creator", "builder", *AGES)}
    for name, key in keys.items():
        write_key_pair(key, folder / "keys" / f"{name}.pem", password=None)
    for name, ages in AGES.items():
        place = folder / "stations" / name
        place.mkdir(parents=True)
        (place / "patients.csv").write_text("patient,age\n" + "".join(f"{name}-{n},{age}\n"
                                                                      for n, age in enumerate(ages)))
    (folder / "algorithm").mkdir()
    (folder / "algorithm" / "entrypoint.py").write_text(ALGORITHM)
    tell(f"parties    a creator, a builder and the stations {', '.join(AGES)}: keys, data and an algorithm")
    return keys


def make_base(base: Reference, context: Context) -> None:
    """Put a base image of one small layer into the layout: the demo runs no container, so it needs no Python."""
    layer = BytesIO()
    writer = LayerWriter(layer, mtime=0)
    writer.directory("opt")
    motd = b"base image of the dtrain demo\n"
    writer.directory("etc")
    writer.file("etc/motd", (motd,), size=len(motd), mode=0o644)
    digest, size = writer.finish()
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["python"]},
        "rootfs": {"type": "layers", "diff_ids": [str(digest)]}, "history": [{"created_by": "dtrain demo"}],
    }).encode()
    manifest = make_manifest(
        media_type=media_types.OCI_MANIFEST, config=Descriptor.of(config, media_types.OCI_CONFIG),
        layers=[Descriptor(media_type=media_types.OCI_LAYER, digest=digest, size=size)],
    )
    with context.connect(base) as place:
        place.put_blob(manifest.layers[0], lambda: BytesIO(layer.getvalue()))
        place.put_blob(manifest.config, lambda: BytesIO(config))
        place.put_manifest(manifest)
        place.put_tag(base.tag or "latest", manifest)


def _run(hop: VerifiedHop, data: Path) -> None:
    """Run the algorithm as this user; the command that runs it in isolation is another one's business."""
    subprocess.run(
        [sys.executable, "-I", str(hop.code_dir / "entrypoint.py")], check=True,
        env={**os.environ, "RESULTS_DIR": str(hop.results_dir), "TRAIN_DATA_PATH": str(data)},
    )


def _check_total(total: str) -> None:
    """Compare with the pooled computation, so that a demo that went wrong does not look right."""
    pooled = [age for ages in AGES.values() for age in ages]
    expected = {"stations": len(AGES), "patients": len(pooled), "sum_of_ages": sum(pooled)}
    if json.loads(total) != expected:
        raise RuntimeError(f"demo: expected {expected}, got {total}")
