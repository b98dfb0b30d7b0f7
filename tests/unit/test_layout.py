"""An OCI image layout: what is written, what is refused, and what survives other writers and crashes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from dtrain.errors import Conflict, DigestMismatch, MalformedInput, NotFound, StorageProblem
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import MANIFEST_MAX, Index, Manifest, RawManifest, make_manifest, parse_manifest
from dtrain.transport.layout import REF_NAME, Layout

LAYER = Descriptor.of(b"layer", media_types.OCI_LAYER)
CONFIG = Descriptor.of(b"{}", media_types.OCI_CONFIG)


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def image(place: Layout, name: str = "image") -> Manifest:
    """Store the blobs of a small image; its manifest is for the caller to put."""
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    place.put_blob(CONFIG, lambda: BytesIO(b"{}"))
    return make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER],
                         annotations={"name": name})


def index_of(*images: Manifest) -> Index:
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX,
                      "manifests": [image.descriptor.to_json() for image in images]}).encode()
    made = parse_manifest(RawManifest(raw=raw, media_type=None, digest=Digest.of(raw)))
    assert isinstance(made, Index)
    return made


def entries(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "index.json").read_bytes())["manifests"]
    return found


def named(folder: Path) -> list[tuple[str | None, str]]:
    return [(entry.get("annotations", {}).get(REF_NAME), entry["digest"]) for entry in entries(folder)]


def blob_path(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / digest.algorithm / digest.hex


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".dtrain.lock"}


# Blobs and manifests


def test_first_write_creates_the_layout(place: Layout, folder: Path) -> None:
    assert not place.has_blob(LAYER)
    assert place.resolve("t") is None
    assert not folder.exists()
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((folder / "index.json").read_bytes()) == {"schemaVersion": 2, "manifests": []}
    assert visible(folder) == {"oci-layout", "index.json", "blobs"}
    assert place.has_blob(LAYER)
    with place.open_blob(LAYER) as blob:
        assert blob.read() == b"layer"


def test_put_blob_does_not_read_what_is_here_already(place: Layout) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))

    def content() -> BytesIO:
        raise AssertionError("read again")

    place.put_blob(LAYER, content)


@pytest.mark.parametrize("data", [b"Layer", b"laye", b"layers"])
def test_put_blob_refuses_other_bytes_and_leaves_nothing(place: Layout, folder: Path, data: bytes) -> None:
    with pytest.raises(DigestMismatch):
        place.put_blob(LAYER, lambda: BytesIO(data))
    assert not place.has_blob(LAYER)
    assert visible(folder) == {"oci-layout", "index.json", "blobs"}


def test_put_blob_closes_the_content(place: Layout) -> None:
    content = BytesIO(b"layer")
    place.put_blob(LAYER, lambda: content)
    assert content.closed


def test_open_blob_refuses_altered_bytes(place: Layout, folder: Path) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    blob_path(folder, LAYER.digest).write_bytes(b"Layer")
    with pytest.raises(DigestMismatch), place.open_blob(LAYER):
        pass


def test_a_blob_of_another_length_is_stored_again(place: Layout, folder: Path) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    blob_path(folder, LAYER.digest).write_bytes(b"lay")
    assert not place.has_blob(LAYER)
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    assert place.open_blob(LAYER).read() == b"layer"


def test_mount_blob_is_not_for_layouts(place: Layout) -> None:
    assert not place.mount_blob(LAYER, "elsewhere")


def test_a_manifest_is_had_by_digest_and_by_tag(place: Layout) -> None:
    manifest = image(place)
    place.put_manifest(manifest)
    assert place.tags() == ()
    assert place.fetch_manifest(manifest.digest) == RawManifest(raw=manifest.raw, media_type=None,
                                                                digest=manifest.digest)
    place.put_tag("t", manifest)
    assert place.fetch_manifest("t") == RawManifest(raw=manifest.raw, media_type=media_types.OCI_MANIFEST,
                                                    digest=manifest.digest)
    assert place.resolve("t") == manifest.digest
    assert place.resolve("u") is None


def test_put_manifest_heals_altered_bytes(place: Layout, folder: Path) -> None:
    manifest = image(place)
    place.put_tag("t", manifest)
    blob_path(folder, manifest.digest).write_bytes(manifest.raw[::-1])
    with pytest.raises(DigestMismatch):
        place.fetch_manifest("t")
    with pytest.raises(DigestMismatch):
        place.fetch_manifest(manifest.digest)
    place.put_manifest(manifest)
    assert place.fetch_manifest("t").raw == manifest.raw


def test_put_manifest_refuses_what_is_not_complete(place: Layout, folder: Path) -> None:
    manifest = image(place)
    blob_path(folder, LAYER.digest).unlink()
    with pytest.raises(NotFound, match="to be stored before it"):
        place.put_tag("t", manifest)
    assert entries(folder) == []
    with pytest.raises(NotFound, match="to be stored before it"):
        place.put_manifest(index_of(manifest))


def test_fetch_refuses_more_than_4_mib(place: Layout) -> None:
    raw = b" " * (MANIFEST_MAX + 1)
    want = Descriptor.of(raw, media_types.OCI_MANIFEST)
    place.put_blob(want, lambda: BytesIO(raw))
    with pytest.raises(MalformedInput, match="at most 4194304 bytes"):
        place.fetch_manifest(want.digest)


def test_fetch_of_what_is_not_there(place: Layout, folder: Path, tmp_path: Path) -> None:
    for call in (lambda: place.fetch_manifest("t"), lambda: place.fetch_manifest(LAYER.digest),
                 lambda: place.open_blob(LAYER), place.tags):
        with pytest.raises(NotFound, match="expected an OCI image layout") as caught:
            call()
        assert caught.value.hint
    place.put_tag("t", image(place))
    with pytest.raises(NotFound, match="expected the tag u") as caught:
        place.fetch_manifest("u")
    assert caught.value.hint == "tags there: t"
    with pytest.raises(NotFound, match="expected the content"):
        place.fetch_manifest(Digest.of(b"other"))
    with pytest.raises(NotFound, match="expected an OCI image layout"):
        Layout(folder / "index.json").tags()
    with pytest.raises(MalformedInput):
        place.fetch_manifest("../t")


# Tags


def test_two_tags_name_one_digest_and_retagging_moves_one_entry(place: Layout, folder: Path) -> None:
    first, second = image(place, "first"), image(place, "second")
    place.put_tag("a", first)
    place.put_tag("b", first)
    assert named(folder) == [("a", str(first.digest)), ("b", str(first.digest))]
    place.put_tag("b", second)
    assert named(folder) == [("a", str(first.digest)), ("b", str(second.digest))]
    assert place.tags() == ("a", "b")


def test_an_image_that_lost_its_tag_stays_reachable_for_other_tools(place: Layout, folder: Path) -> None:
    first, second = image(place, "first"), image(place, "second")
    place.put_tag("t", first)
    place.put_tag("t", second)
    assert named(folder) == [(None, str(first.digest)), ("t", str(second.digest))]
    assert place.fetch_manifest(first.digest).raw == first.raw
    place.put_tag("t", first)
    assert named(folder) == [(None, str(second.digest)), ("t", str(first.digest))]


def test_a_manifest_without_a_tag_has_an_entry_until_a_tag_reaches_it(place: Layout, folder: Path) -> None:
    manifest = image(place)
    place.put_manifest(manifest)
    place.put_manifest(manifest)
    assert entries(folder) == [manifest.descriptor.to_json()]
    place.put_tag("t", manifest)
    place.put_manifest(manifest)
    assert named(folder) == [("t", str(manifest.digest))]


def test_images_of_an_index_have_no_entries_of_their_own(place: Layout, folder: Path) -> None:
    first, second = image(place, "first"), image(place, "second")
    index = index_of(first, second)
    place.put_tag("first", first)
    place.put_manifest(first)
    place.put_manifest(second)
    place.put_manifest(index)
    assert named(folder) == [("first", str(first.digest)), (None, str(index.digest))]
    place.put_tag("all", index)
    assert named(folder) == [("first", str(first.digest)), ("all", str(index.digest))]
    assert place.fetch_manifest("all").media_type == media_types.OCI_INDEX


def test_putting_the_same_tag_again_writes_nothing(place: Layout, folder: Path) -> None:
    manifest = image(place)
    place.put_tag("t", manifest)
    before = (folder / "index.json").stat().st_ino
    place.put_tag("t", manifest)
    assert (folder / "index.json").stat().st_ino == before


def test_what_other_tools_wrote_stays(place: Layout, folder: Path) -> None:
    manifest = image(place)
    place.put_tag("t", manifest)
    document = json.loads((folder / "index.json").read_bytes())
    foreign = [
        {"mediaType": "application/x", "digest": "blake3:00", "size": 1, "data": "eA==", "annotations": None},
        {**manifest.descriptor.to_json(), "platform": {"os": "linux", "architecture": "arm", "os.version": "1"}},
        {**manifest.descriptor.to_json(), "annotations": {REF_NAME: "docker.io/library/x:1", "é": "ü"}},
    ]
    document |= {"manifests": foreign + document["manifests"], "annotations": {"a": "b"}, "x-other": 1.5}
    (folder / "index.json").write_text(json.dumps(document))
    assert place.tags() == ("t",)
    place.put_tag("u", image(place, "other"))
    after = json.loads((folder / "index.json").read_bytes())
    assert after["manifests"][:4] == document["manifests"]
    assert (after["annotations"], after["x-other"]) == ({"a": "b"}, 1.5)


def test_a_tag_that_two_manifests_have_is_refused_until_it_is_put_again(place: Layout, folder: Path) -> None:
    first, second = image(place, "first"), image(place, "second")
    place.put_tag("t", first)
    place.put_tag("u", second)
    document = json.loads((folder / "index.json").read_bytes())
    document["manifests"][1]["annotations"][REF_NAME] = "t"
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(MalformedInput, match="tag t: expected one manifest, got 2"):
        place.fetch_manifest("t")
    with pytest.raises(MalformedInput, match="tag t: expected one manifest, got 2"):
        place.resolve("t")
    place.put_tag("t", second)
    assert place.resolve("t") == second.digest
    assert named(folder) == [(None, str(first.digest)), ("t", str(second.digest))]


def test_a_tag_that_one_manifest_has_twice_is_read(place: Layout, folder: Path) -> None:
    manifest = image(place)
    place.put_tag("t", manifest)
    document = json.loads((folder / "index.json").read_bytes())
    document["manifests"] *= 2
    (folder / "index.json").write_text(json.dumps(document))
    assert place.resolve("t") == manifest.digest
    place.put_tag("t", manifest)
    assert named(folder) == [("t", str(manifest.digest))]


def test_put_tag_tells_when_someone_else_was_faster(place: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = image(place)
    monkeypatch.setattr(Layout, "resolve", lambda self, tag: LAYER.digest)
    with pytest.raises(Conflict, match=f"expected {manifest.digest}, got {LAYER.digest}"):
        place.put_tag("t", manifest)


def test_put_tag_refuses_what_is_no_tag(place: Layout, folder: Path) -> None:
    with pytest.raises(MalformedInput):
        place.put_tag("a/b", image(place))
    assert entries(folder) == []


# Hostile layouts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("oci-layout", b"{}", "imageLayoutVersion: expected a string"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "expected 1.0.0, got '2.0.0'"),
        ("oci-layout", b" " * 5000, "expected at most 4096 bytes"),
        ("index.json", b"", "expected JSON"),
        ("index.json", b"[]", "expected an object"),
        ("index.json", b'{"schemaVersion":1}', "schemaVersion: expected 2, got 1"),
        ("index.json", b'{"schemaVersion":2,"manifests":[7]}', r"manifests\[0\]: expected an object"),
        ("index.json", b'{"schemaVersion":2,"manifests":[{"annotations":{"a":7}}]}', "expected a string"),
        ("index.json", b'{"schemaVersion":2,"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"t"}}]}',
         "size: expected an integer, got nothing"),
    ],
)
def test_a_broken_layout_is_refused(place: Layout, folder: Path, name: str, content: bytes, words: str) -> None:
    place.put_tag("t", image(place))
    (folder / name).write_bytes(content)
    with pytest.raises(MalformedInput, match=words):
        place.fetch_manifest("t")


def test_a_tag_whose_entry_lies_about_the_size_is_refused(place: Layout, folder: Path) -> None:
    place.put_tag("t", image(place))
    document = json.loads((folder / "index.json").read_bytes())
    document["manifests"][0]["size"] -= 1
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(DigestMismatch):
        place.fetch_manifest("t")


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "blobs", "blobs/sha256", "blob"])
def test_links_inside_a_layout_are_not_followed(place: Layout, folder: Path, tmp_path: Path, name: str) -> None:
    manifest = image(place)
    place.put_tag("t", manifest)
    path = blob_path(folder, manifest.digest) if name == "blob" else folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MalformedInput, match="expected a plain file or folder, got a link"):
        place.fetch_manifest("t")


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_e4_links_in_a_layout_are_not_written_through(place: Layout, folder: Path, tmp_path: Path, name: str) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(MalformedInput, match="got a link"):
        Layout(folder).put_blob(CONFIG, lambda: BytesIO(b"{}"))
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_a_linked_lock_is_not_followed(place: Layout, folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / ".dtrain.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MalformedInput, match="got a link"):
        place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_fifo_or_folder_for_a_blob_is_refused(place: Layout, folder: Path, make: Callable[[Path], None]) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    path = blob_path(folder, LAYER.digest)
    path.unlink()
    make(path)
    with pytest.raises(MalformedInput, match="got a link or something else"):
        place.open_blob(LAYER)


def test_the_layout_itself_may_be_a_link(place: Layout, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    place.put_tag("t", image(place))
    assert Layout(tmp_path / "real").tags() == ("t",)


# Disks, crashes, other writers


def test_e4_a_folder_with_other_things_is_left_alone(place: Layout, folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(StorageProblem, match="expected an OCI image layout or an empty folder"):
        place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    assert visible(folder) == {"thesis.tex"}
    assert not (folder / ".dtrain.lock").exists()


@pytest.mark.parametrize("inner", ["", "below"])
def test_e4_a_file_in_the_way_is_left_alone(folder: Path, inner: str) -> None:
    folder.write_text("mine")
    with pytest.raises(StorageProblem, match="got something else"):
        Layout(folder / inner).put_blob(LAYER, lambda: BytesIO(b"layer"))
    assert folder.read_text() == "mine"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_e4_a_disk_that_refuses_is_named_and_nothing_is_left(
    place: Layout, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    place.put_tag("t", image(place))
    before, index = visible(folder), (folder / "index.json").read_bytes()
    data = b"results" * 1000

    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(StorageProblem, match=os.strerror(code)) as caught:
            place.put_blob(Descriptor.of(data, ""), lambda: BytesIO(data))
        assert str(folder) in str(caught.value)
        assert (caught.value.hint is not None) == (code == errno.ENOSPC)
        with pytest.raises(StorageProblem):
            place.put_tag("t", image(place, "other"))
    assert visible(folder) == before
    assert (folder / "index.json").read_bytes() == index
    assert not place.has_blob(Descriptor.of(data, ""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_e4_a_folder_without_permission_is_named(place: Layout, folder: Path) -> None:
    place.put_tag("t", image(place))
    folder.chmod(0)
    try:
        with pytest.raises(StorageProblem, match="Permission denied"):
            place.tags()
    finally:
        folder.chmod(0o700)


def test_a_crash_while_creating_is_made_good(folder: Path) -> None:
    folder.mkdir()
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    assert Layout(folder).tags() == ()
    place = Layout(folder)
    place.put_tag("t", image(place))
    assert Layout(folder).tags() == ("t",)


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_not_disturbed(place: Layout, folder: Path) -> None:
    place.put_blob(LAYER, lambda: BytesIO(b"layer"))
    (folder / ".dtrain-dead.part").write_bytes(b"half a blob")

    class Alive(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            Layout(folder).put_blob(CONFIG, lambda: BytesIO(b"{}"))  # the first write of another process
            assert len({name for name in visible(folder) if name.startswith(".dtrain-")}) == 1
            return super().read(size)

    data = b"a long transfer"
    place.put_blob(Descriptor.of(data, ""), lambda: Alive(data))
    assert place.has_blob(Descriptor.of(data, ""))
    assert visible(folder) == {"oci-layout", "index.json", "blobs"}


def test_files_have_the_permissions_of_the_umask(place: Layout, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        place.put_tag("t", image(place))
    finally:
        os.umask(before)
    for path in (folder / "index.json", blob_path(folder, LAYER.digest)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def _tag_many(folder: Path, worker: int, start: Any) -> None:
    start.wait()
    place = Layout(folder)
    manifest = image(place, f"image {worker}")
    for number in range(6):
        place.put_tag(f"w{worker}-{number}", manifest)


def test_e3_four_processes_lose_no_tag(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [context.Process(target=_tag_many, args=(folder, worker, start)) for worker in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert Layout(folder).tags() == tuple(f"w{worker}-{number}" for worker in range(4) for number in range(6))
    assert visible(folder) == {"oci-layout", "index.json", "blobs"}
    for tag in Layout(folder).tags():
        assert Layout(folder).fetch_manifest(tag)
