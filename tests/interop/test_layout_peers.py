"""Our layouts in the hands of skopeo and umoci, and theirs in ours."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever import mode pytest was told to use

import peers

from dtrain.oci import media_types
from dtrain.oci.config import parse_config
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, RawManifest, make_manifest, parse_manifest
from dtrain.transport.copy import copy_image
from dtrain.transport.layout import Layout

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not all(map(shutil.which, ("skopeo", "umoci", "busybox"))),
                       reason="missing: skopeo, umoci or busybox"),
]


@dataclass(frozen=True)
class Made:
    """An image of busybox in one plain tar layer."""

    manifest: Manifest
    config: bytes
    layer: bytes

    def put(self, place: Layout) -> None:
        place.put_blob(self.manifest.layers[0], lambda: io.BytesIO(self.layer))
        place.put_blob(self.manifest.config, lambda: io.BytesIO(self.config))


def make_image(word: str) -> Made:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("bin/busybox", Path(shutil.which("busybox") or "").read_bytes()),
                           ("opt/word", word.encode())):
            folder = tarfile.TarInfo(name.partition("/")[0])
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    layer = buffer.getvalue()
    want = Descriptor.of(layer, media_types.OCI_LAYER)
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/busybox", "sh"]},
                         "rootfs": {"type": "layers", "diff_ids": [str(want.digest)]},
                         "history": [{"created_by": "dtrain test"}]}).encode()
    manifest = make_manifest(media_type=media_types.OCI_MANIFEST, layers=[want],
                             config=Descriptor.of(config, media_types.OCI_CONFIG))
    return Made(manifest, config, layer)


@pytest.fixture(scope="module")
def made() -> Made:
    return make_image("train")


@pytest.fixture
def place(tmp_path: Path, made: Made) -> Layout:
    place = Layout(tmp_path / "ours")
    made.put(place)
    place.put_tag("latest", made.manifest)
    return place


def index_of(*images: Manifest) -> Index:
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [
        {**image.descriptor.to_json(), "platform": {"os": "linux", "architecture": architecture}}
        for image, architecture in zip(images, ("amd64", "arm64"), strict=True)]}).encode()
    index = parse_manifest(RawManifest(raw=raw, media_type=None, digest=Digest.of(raw)))
    assert isinstance(index, Index)
    return index


def skopeo_copy(*args: str) -> None:
    peers.skopeo("copy", "--quiet", "--preserve-digests", *args)  # else it compresses plain layers


def test_skopeo_copies_out_of_our_layout(place: Layout, made: Made, tmp_path: Path) -> None:
    assert peers.skopeo("inspect", "--raw", f"{place.place}:latest").encode() == made.manifest.raw
    peers.copy_image(f"{place.place}:latest", f"dir:{tmp_path}/out")
    assert (tmp_path / "out/manifest.json").read_bytes() == made.manifest.raw
    assert (tmp_path / "out" / made.manifest.layers[0].digest.hex).read_bytes() == made.layer


def test_skopeo_copies_into_our_layout(place: Layout, made: Made, tmp_path: Path) -> None:
    other = make_image("base")
    source = Layout(tmp_path / "other")
    other.put(source)
    source.put_tag("t", other.manifest)
    skopeo_copy(f"{source.place}:t", f"{place.place}:base")
    assert place.tags() == ("base", "latest")
    assert place.fetch_manifest("latest").raw == made.manifest.raw
    found = parse_manifest(place.fetch_manifest("base"))
    assert isinstance(found, Manifest)
    parse_config(place.open_blob(found.config).read(), found)
    assert found.digest == other.manifest.digest


def test_we_read_and_go_on_with_a_layout_of_skopeo(place: Layout, made: Made, tmp_path: Path) -> None:
    theirs = Layout(tmp_path / "theirs")
    skopeo_copy(f"{place.place}:latest", f"{theirs.place}:latest")
    assert theirs.resolve("latest") == made.manifest.digest
    other = make_image("hop 1")
    other.put(theirs)
    theirs.put_tag("latest", other.manifest)
    assert peers.skopeo("inspect", "--raw", f"{theirs.place}:latest").encode() == other.manifest.raw
    target = Layout(tmp_path / "target")
    assert copy_image(theirs, made.manifest.digest, target, ["t"]) == made.manifest.digest
    assert peers.skopeo("inspect", "--raw", f"{target.place}:t").encode() == made.manifest.raw


def test_skopeo_copies_an_index_of_ours_with_all_its_images(place: Layout, made: Made, tmp_path: Path) -> None:
    other = make_image("arm")
    other.put(place)
    place.put_manifest(other.manifest)
    index = index_of(made.manifest, other.manifest)
    place.put_tag("all", index)
    skopeo_copy("--all", f"{place.place}:all", f"oci:{tmp_path}/theirs:all")
    theirs = Layout(tmp_path / "theirs")
    assert theirs.fetch_manifest("all").raw == index.raw
    assert copy_image(theirs, "all", Layout(tmp_path / "back"), ["all"]) == index.digest


def test_umoci_unpacks_our_image(place: Layout, tmp_path: Path) -> None:
    peers.umoci("unpack", "--rootless", "--image", f"{place.place.removeprefix('oci:')}:latest", f"{tmp_path}/bundle")
    assert (tmp_path / "bundle/rootfs/opt/word").read_text() == "train"
    assert os.access(tmp_path / "bundle/rootfs/bin/busybox", os.X_OK)
    config = json.loads((tmp_path / "bundle/config.json").read_bytes())
    assert config["process"]["args"] == ["/bin/busybox", "sh"]


def test_garbage_collection_by_umoci_keeps_images_that_have_or_had_no_tag(place: Layout, made: Made) -> None:
    folder = Path(place.place.removeprefix("oci:"))
    untagged, later = make_image("untagged"), make_image("later")
    for image in (untagged, later):
        image.put(place)
    place.put_manifest(untagged.manifest)
    place.put_tag("latest", later.manifest)
    orphan = Descriptor.of(b"orphan", "")
    place.put_blob(orphan, lambda: io.BytesIO(b"orphan"))
    peers.umoci("gc", "--layout", str(folder))
    assert not place.has_blob(orphan)
    for image in (made, untagged, later):
        assert place.fetch_manifest(image.manifest.digest).raw == image.manifest.raw
        assert place.has_blob(image.manifest.layers[0])
        assert place.has_blob(image.manifest.config)


def test_umoci_tags_and_we_see_it(place: Layout, made: Made) -> None:
    folder = place.place.removeprefix("oci:")
    peers.umoci("tag", "--image", f"{folder}:latest", "hop-1")
    assert place.tags() == ("hop-1", "latest")
    place.put_tag("hop-2", made.manifest)
    assert sorted(peers.umoci("list", "--layout", folder).split()) == ["hop-1", "hop-2", "latest"]
