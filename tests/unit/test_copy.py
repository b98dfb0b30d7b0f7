"""Copying between two places, here layouts: everything arrives unchanged, or nothing becomes visible."""

from __future__ import annotations

import json
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest

from dtrain.errors import AccessDenied, DigestMismatch, DtrainError, MalformedInput, NotFound, TransportError
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, RawManifest, make_manifest, parse_manifest
from dtrain.oci.reference import Reference
from dtrain.oci.verified import VerifiedReader
from dtrain.transport.connect import connect, connect_layout, connect_registry
from dtrain.transport.copy import WORKERS, copy_blobs, copy_image
from dtrain.transport.layout import Layout
from dtrain.transport.protocol import Opener
from dtrain.transport.registry import Registry
from dtrain.transport.wire import RegistrySettings


class Watched(Layout):
    """A layout that writes down what is asked of it."""

    def __init__(self, directory: Path, *, mounts: bool = False) -> None:
        super().__init__(directory)
        self.calls: list[str] = []
        self.mounts = mounts

    def open_blob(self, want: Descriptor) -> VerifiedReader:
        self.calls.append(f"open {want.digest.short}")
        return super().open_blob(want)

    def mount_blob(self, want: Descriptor, source: str) -> bool:
        self.calls.append(f"mount {want.digest.short} from {source}")
        return self.mounts

    def put_blob(self, want: Descriptor, content: Opener) -> None:
        super().put_blob(want, content)
        self.calls.append(f"blob {want.digest.short}")

    def put_manifest(self, manifest: Manifest | Index) -> None:
        super().put_manifest(manifest)
        self.calls.append(f"manifest {manifest.digest.short}")

    def put_tag(self, tag: str, manifest: Manifest | Index) -> None:
        super().put_tag(tag, manifest)
        self.calls.append(f"tag {tag}")


@pytest.fixture
def source(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "target")


def blob(place: Layout, data: bytes, media_type: str = media_types.OCI_LAYER) -> Descriptor:
    want = Descriptor.of(data, media_type)
    place.put_blob(want, lambda: BytesIO(data))
    return want


def image(place: Layout, *layers: bytes, tag: str | None = "t", docker: bool = False) -> Manifest:
    manifest = make_manifest(
        media_type=media_types.DOCKER_MANIFEST if docker else media_types.OCI_MANIFEST,
        config=blob(place, b"{}" + b"".join(layers), media_types.OCI_CONFIG),
        layers=[blob(place, data) for data in layers])
    place.put_manifest(manifest) if tag is None else place.put_tag(tag, manifest)
    return manifest


def index(place: Layout, *images: Manifest) -> Index:
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [
        {**image.descriptor.to_json(), "platform": {"os": "linux", "architecture": f"a{position}"}}
        for position, image in enumerate(images)]}, indent=3).encode()
    made = parse_manifest(RawManifest(raw=raw, media_type=None, digest=Digest.of(raw)))
    assert isinstance(made, Index)
    place.put_tag("all", made)
    return made


@pytest.mark.parametrize("docker", [False, True])
def test_an_image_arrives_unchanged(source: Watched, target: Watched, docker: bool) -> None:
    manifest = image(source, b"one", b"two", b"one", docker=docker)
    assert copy_image(source, "t", target, ["a", "b"]) == manifest.digest
    assert target.tags() == ("a", "b")
    for tag in ("a", "b"):
        fetched = target.fetch_manifest(tag)
        assert (fetched.raw, fetched.media_type) == (manifest.raw, manifest.media_type)
    for want in (*manifest.layers, manifest.config):
        assert target.open_blob(want).read() == source.open_blob(want).read()


def test_what_makes_it_visible_comes_last(source: Watched, target: Watched) -> None:
    manifest = image(source, b"one", b"two")
    copy_image(source, manifest.digest, target, ["a", "b"])
    one, two = (layer.digest.short for layer in manifest.layers)
    assert sorted(target.calls[:2]) == sorted([f"blob {one}", f"blob {two}"])
    assert target.calls[2:] == [f"blob {manifest.config.digest.short}", f"manifest {manifest.digest.short}",
                                "tag a", "tag b"]


def test_an_index_arrives_with_all_its_images(source: Watched, target: Watched) -> None:
    images = [image(source, b"one", b"two", tag=None), image(source, b"one", b"three", tag=None)]
    made = index(source, *images)
    assert copy_image(source, "all", target, ["all"]) == made.digest
    assert target.fetch_manifest("all").raw == made.raw
    for manifest in images:
        assert target.fetch_manifest(manifest.digest).raw == manifest.raw
    assert target.tags() == ("all",)
    assert len(json.loads((Path(target.place.removeprefix("oci:")) / "index.json").read_bytes())["manifests"]) == 1


def test_without_tags_the_digest_is_enough(source: Watched, target: Watched) -> None:
    manifest = image(source, b"one")
    copy_image(source, "t", target, [])
    assert target.tags() == ()
    assert target.fetch_manifest(manifest.digest).raw == manifest.raw


def test_blobs_that_are_there_are_not_read(source: Watched, target: Watched) -> None:
    manifest = image(source, b"one", b"two")
    blob(target, b"one")
    source.calls.clear()
    copy_image(source, "t", target, ["t"])
    assert sorted(source.calls) == sorted(f"open {want.digest.short}"
                                          for want in (manifest.layers[1], manifest.config))
    source.calls.clear()
    copy_image(source, "t", target, ["t"])
    assert source.calls == []


def test_blobs_are_mounted_where_that_works(source: Watched, target: Watched) -> None:
    layers = image(source, b"one", b"two").layers
    blob(target, b"one")
    source.calls.clear()
    target.calls.clear()
    target.mounts = True
    copy_blobs(source, target, layers, mount_from="trains/7f3a")
    assert target.calls == [f"mount {layers[1].digest.short} from trains/7f3a"]
    assert source.calls == []
    target.mounts = False
    copy_blobs(source, target, layers, mount_from="trains/7f3a")
    assert target.has_blob(layers[1])


def test_no_more_blobs_at_a_time_than_said(source: Watched, tmp_path: Path) -> None:
    barrier = threading.Barrier(WORKERS)  # breaks when fewer come at once
    now, most, lock = 0, 0, threading.Lock()

    class Slow(Layout):
        def put_blob(self, want: Descriptor, content: Opener) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            barrier.wait(5)
            super().put_blob(want, content)
            with lock:
                now -= 1

    wanted = [blob(source, b"%d" % number) for number in range(2 * WORKERS)]
    copy_blobs(source, Slow(tmp_path / "slow"), wanted)
    assert most == WORKERS
    assert all(Layout(tmp_path / "slow").has_blob(want) for want in wanted)


def test_the_first_error_ends_the_others_and_is_raised(source: Watched, tmp_path: Path) -> None:
    begun: list[Descriptor] = []
    stopped: list[Descriptor] = []

    class Failing(Layout):
        def put_blob(self, want: Descriptor, content: Opener) -> None:
            begun.append(want)
            if want == wanted[0]:
                raise AccessDenied("r.example/a: expected the right to push, got none")
            with content() as stream:
                try:
                    for _ in range(200):  # a transfer of an hour, if nobody stops it
                        stream.read(0)
                        time.sleep(0.01)
                except Exception:
                    stopped.append(want)
                    raise

    wanted = [blob(source, b"%d" % number) for number in range(40)]
    with pytest.raises(AccessDenied):
        copy_blobs(source, Failing(tmp_path / "failing"), wanted)
    assert len(begun) < len(wanted)
    assert len(stopped) == len(begun) - 1


@pytest.mark.parametrize("which", ["layer", "config"])
def test_altered_blobs_are_refused_and_nothing_becomes_visible(
    source: Watched, target: Watched, tmp_path: Path, which: str
) -> None:
    manifest = image(source, b"one", b"two")
    want = manifest.layers[1] if which == "layer" else manifest.config
    (tmp_path / "source/blobs/sha256" / want.digest.hex).write_bytes(b"x" * want.size)
    with pytest.raises(DigestMismatch):
        copy_image(source, "t", target, ["t"])
    assert target.tags() == ()
    assert not target.has_blob(want)
    with pytest.raises(NotFound):
        target.fetch_manifest(manifest.digest)


def test_a_missing_blob_is_told(source: Watched, target: Watched, tmp_path: Path) -> None:
    manifest = image(source, b"one")
    (tmp_path / "source/blobs/sha256" / manifest.layers[0].digest.hex).unlink()
    with pytest.raises(NotFound, match=str(manifest.layers[0].digest)):
        copy_image(source, "t", target, ["t"])
    assert target.tags() == ()


@pytest.mark.parametrize(
    ("change", "error"),
    [({"size": 7}, DigestMismatch), ({"mediaType": media_types.DOCKER_MANIFEST}, MalformedInput),
     ({"mediaType": media_types.OCI_LAYER}, MalformedInput), ({"digest": "sha256:" + "ab" * 32}, NotFound)],
)
def test_an_index_whose_entry_lies_is_refused(
    source: Watched, tmp_path: Path, change: dict[str, object], error: type[DtrainError]
) -> None:
    entry = {**image(source, b"one").descriptor.to_json(), **change}
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry]}).encode()
    with pytest.raises(error):
        copy_image(source, blob(source, raw).digest, Layout(tmp_path / "new"), ["t"])
    assert not (tmp_path / "new").exists()


def test_a_bad_tag_is_refused_before_any_work(source: Watched, tmp_path: Path) -> None:
    image(source, b"one")
    source.calls.clear()
    with pytest.raises(MalformedInput):
        copy_image(source, "t", Layout(tmp_path / "new"), ["good", "a/b"])
    assert source.calls == []
    assert not (tmp_path / "new").exists()


def test_nothing_to_copy_is_no_work(source: Watched, tmp_path: Path) -> None:
    copy_blobs(source, Layout(tmp_path / "new"), [])
    assert not (tmp_path / "new").exists()


def test_connect_chooses_by_the_reference(tmp_path: Path) -> None:
    settings = RegistrySettings()
    with connect(Reference.parse(f"oci:{tmp_path}/layout:t"), settings) as place:
        assert isinstance(place, Layout)
        assert place.place == f"oci:{tmp_path}/layout"
    with connect(Reference.parse("r.example/a:t"), settings) as place:
        assert isinstance(place, Registry)
        assert place.place == "r.example/a"
    with connect_registry(Reference.parse("r.example/a:t"), username="u", password="p") as registry:
        assert isinstance(registry, Registry)
    with pytest.raises(DtrainError, match="got one of them") as caught:
        connect_registry(Reference.parse("r.example/a:t"), username="u")
    assert not isinstance(caught.value, TransportError)
    with pytest.raises(RuntimeError):
        connect_layout(Reference.parse("r.example/a:t"))
