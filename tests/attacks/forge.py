"""A train on a layout, and what an attacker who can write to the registry does to it."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dtrain.crypto.cbc import decrypt, encrypt
from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.flow.build import TrainPlan, build
from dtrain.flow.context import Context
from dtrain.flow.demo import make_base
from dtrain.flow.fetch import fetch_image
from dtrain.flow.pull_verify import VerifiedHop, pull_verify
from dtrain.flow.push_results import push_results
from dtrain.flow.station import connector
from dtrain.oci.config import parse_config
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.edit import Image
from dtrain.oci.manifest import make_manifest
from dtrain.oci.reference import Reference
from dtrain.trust.anchor import Anchor, parse_anchor
from dtrain.trust.state import State

STATIONS = ("aachen", "leipzig", "tuebingen")
CODE = {"entrypoint.py": b"print('go')\n", "lib/a.py": b"alpha\n", "lib/b.py": b"beta\n", "lib/empty.py": b""}
QUERY = b'{"query": "adults"}'

Members = dict[str, tuple[tarfile.TarInfo, bytes]]
"""A layer's members in order: name → header, content."""


@dataclass(frozen=True)
class World:
    """A layout with a base image and a train, the keys of everybody, and the anchor text that the build gave."""

    folder: Path
    keys: dict[str, PrivateKey]
    anchor_text: str
    signed: bool = False
    """Whether stations ask for signed metadata. Without it the checks are those of a plain PHT train; with it every
    change is one of the image's digest."""

    @property
    def train(self) -> Reference:
        return Reference.parse(f"oci:{self.folder / 'train'}")

    @property
    def context(self) -> Context:
        return Context(connect=connector(), state=State(self.folder / "state"))

    def anchor(self, *, pins: bool = True) -> Anchor:
        """Return the anchor, or one that knows keys and base image but not this train."""
        import tomllib

        document = tomllib.loads(self.anchor_text.replace("WORLD", str(self.folder)))
        if not pins:
            del document["trains"]
        if not self.signed:
            del document["root"]
        return parse_anchor(document, source="anchor.toml", folder=self.folder)

    def anchor_file(self) -> Path:
        """Write the anchor as a file."""
        file = self.folder / "anchor.toml"
        text = self.anchor_text.replace("WORLD", str(self.folder))
        file.write_text(text if self.signed else re.sub(r"\n\[root\][^\[]*", "\n", text, count=1))
        return file

    def copy(self, folder: Path) -> World:
        """Return a copy to be tampered with."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def pull(self, station: str, *, pins: bool = True) -> VerifiedHop:
        return pull_verify(self.train, self.folder / f"work-{station}", station=station, key=self.keys[station],
                           trust=self.anchor(pins=pins), context=self.context)

    def hop(self, station: str, results: dict[str, bytes]) -> None:
        """Run the train at a station whose algorithm leaves ``results``."""
        hop = self.pull(station)
        for name, data in results.items():
            (hop.results_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (hop.results_dir / name).write_bytes(data)
        push_results(hop.folder, key=self.keys[station], trust=self.anchor(), context=self.context)

    def image(self, selector: str = "latest") -> Image:
        with self.context.connect(self.train) as place:
            return fetch_image(place, selector, self.context).image

    def members(self, selector: str = "latest") -> Members:
        """Return the members of the train's own layer."""
        image = self.image(selector)
        with self.context.connect(self.train) as place, place.open_blob(image.manifest.layers[-1]) as blob:
            raw = blob.read()
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            return {member.name: (member, file.read() if (file := tar.extractfile(member)) else b"") for member in tar}

    def config(self, selector: str = "latest") -> Any:
        """Return train_config.json as a document."""
        return json.loads(self.members(selector)["opt/train_config.json"][1])

    def put(self, members: Members, *, extra: list[bytes] | None = None,
            runtime: Callable[[dict[str, Any]], object] = lambda members: None) -> None:
        """Let ``latest`` name an image with this layer, further layers (tars) and a changed ``config`` member."""
        image = self.image()
        tars = [_tar(members), *(extra or ())]
        layers = [Descriptor.of(tar, image.manifest.layers[-1].media_type) for tar in tars]
        document = json.loads(image.config.raw)
        document["rootfs"]["diff_ids"][-1:] = [str(layer.digest) for layer in layers]
        document["history"] += [{"created_by": "attacker"}] * (len(layers) - 1)
        runtime(document["config"])
        raw = json.dumps(document).encode()
        manifest = make_manifest(media_type=image.manifest.media_type,
                                 config=Descriptor.of(raw, image.manifest.config.media_type),
                                 layers=[*image.manifest.layers[:-1], *layers])
        parse_config(raw, manifest)
        with self.context.connect(self.train) as place:
            for layer, tar in zip(layers, tars, strict=True):
                place.put_blob(layer, partial(io.BytesIO, tar))
            place.put_blob(manifest.config, lambda: io.BytesIO(raw))
            place.put_manifest(manifest)
            place.put_tag("latest", manifest)

    def edit_config(self, change: Callable[[Any], object]) -> None:
        """Change train_config.json."""
        members, document = self.members(), self.config()
        change(document)
        self.put(with_file(members, "opt/train_config.json", json.dumps(document).encode()))

    def edit_members(self, change: Callable[[Members], Members]) -> None:
        self.put(change(self.members()))

    def file_key(self, station: str) -> Secret[bytes]:
        """Return the file key, which every station that the train was sealed for can know."""
        stop = next(stop for stop in self.config()["route"] if stop["station"] == station)
        return self.keys[station].unwrap(bytes.fromhex(stop["encrypted_key"]), of="insider")


def with_file(members: Members, name: str, data: bytes) -> Members:
    """Return the members with a file added or replaced."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return {**members, name: (header, data)}


def without(members: Members, name: str) -> Members:
    return {other: member for other, member in members.items() if other != name}


def renamed(members: Members, name: str, new: str) -> Members:
    return with_file(without(members, name), new, members[name][1])


def opened(sealed: bytes, key: Secret[bytes]) -> bytes:
    return b"".join(decrypt(io.BytesIO(sealed), key))


def sealed(plain: bytes, key: Secret[bytes]) -> bytes:
    return b"".join(encrypt([plain], key))


def tar_of(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """Return a tar of (name, type, content, link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, data, link in members:
            header = tarfile.TarInfo(name)
            header.type, header.size, header.linkname = kind, len(data), link
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def _tar(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (header, data) in members.items():
            header = tarfile.TarInfo.frombuf(header.tobuf(tarfile.PAX_FORMAT), "utf-8", "strict")
            header.name = name
            header.size = len(data) if header.isreg() else 0
            tar.addfile(header, io.BytesIO(data) if header.isreg() else None)
    return out.getvalue()


def make_world(
    folder: Path, keys: dict[str, PrivateKey], *, train_id: str = "train-1", signed: bool = False
) -> World:
    """Build a train for three stations."""
    for name, data in CODE.items():
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / name).write_bytes(data)
    context = Context(connect=connector(), state=State(folder / "state"))
    base, train = Reference.parse(f"oci:{folder}/base:3"), Reference.parse(f"oci:{folder}/train")
    make_base(base, context)
    plan = TrainPlan(id=train_id, proposal="p-1", creator="alice", creator_key=keys["alice"], builder="bob",
                     builder_key=keys["bob"], code=folder / "code", query=QUERY,
                     route=[(name, keys[name].public) for name in STATIONS])
    made = build(plan, base, train, context=context)
    return World(folder, keys, made.anchor.replace(f'reference = "oci:{folder}', 'reference = "oci:WORLD'), signed)
