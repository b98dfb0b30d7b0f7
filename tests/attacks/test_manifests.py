"""C6, and C7 for configs: documents of a hostile registry that have to be refused, each with the class asserted."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from dtrain.errors import DigestMismatch, DtrainError, MalformedInput, NotFound
from dtrain.oci import media_types
from dtrain.oci.config import CONFIG_MAX, parse_config
from dtrain.oci.descriptor import Descriptor, Platform
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import LAYERS_MAX, MANIFEST_MAX, Index, RawManifest, make_manifest, parse_manifest
from dtrain.transport.copy import copy_image
from dtrain.transport.layout import Layout

CONFIG = Descriptor.of(b"{}", media_types.OCI_CONFIG)
LAYER = Descriptor.of(b"layer", media_types.OCI_LAYER)
GOOD: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": CONFIG.to_json(),
                        "layers": [LAYER.to_json()]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}


def refused(raw: bytes | dict[str, Any], words: str, *, served: str | None = None,
            error: type[DtrainError] = MalformedInput) -> None:
    if isinstance(raw, dict):
        raw = json.dumps(raw).encode()
    with pytest.raises(error, match=words):
        parse_manifest(RawManifest(raw=raw, media_type=served, digest=Digest.of(raw)))


def layer(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "layers": [{**LAYER.to_json(), **changes}]}


def test_c6_more_than_4_mib() -> None:
    refused(json.dumps(GOOD).encode().ljust(MANIFEST_MAX + 1), "expected at most 4194304 bytes, got 4194305")


def test_c6_deep_json() -> None:
    refused(b'{"schemaVersion":2,"config":' + b"[" * 2_000_000, "levels of nesting")


def test_c6_duplicate_keys() -> None:
    refused(json.dumps(GOOD).encode()[:-1] + b',"layers":[]}', "expected each key once, got 'layers' twice")


def test_c6_a_key_that_other_readers_take_for_the_same() -> None:
    refused({**GOOD, "Layers": []}, "expected the spelling 'layers', got 'Layers'")
    refused(layer(Digest=str(CONFIG.digest)), r"layers\[0\]\.Digest: expected the spelling 'digest'")


def test_c6_nan() -> None:
    refused(b'{"schemaVersion":NaN}', "got the number NaN")


@pytest.mark.parametrize("key", ["schemaVersion", "mediaType", "config", "layers", "annotations", "subject"])
@pytest.mark.parametrize("value", [True, 1.5, "x", ["x"]])
def test_c6_wrong_types(key: str, value: object) -> None:
    refused({**GOOD, key: value}, "expected")


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"2", b'"x"', b"<html></html>", b"{}", b"\x1f\x8b\x08"])
def test_c6_no_manifest_at_all(raw: bytes) -> None:
    refused(raw, "expected")


def test_c6_no_media_type_and_members_of_both_kinds() -> None:
    refused({**GOOD, "mediaType": None, "manifests": []}, "got members of both")


def test_c6_a_media_type_that_does_not_fit_the_members() -> None:
    refused({**GOOD, "mediaType": media_types.OCI_INDEX}, "expected the members of")
    refused({**INDEX, "mediaType": media_types.OCI_MANIFEST}, "expected the members of")
    refused({**GOOD, "mediaType": "application/json"}, "mediaType: expected an image manifest or index")


def test_c6_a_media_type_other_than_the_served_one() -> None:
    refused(GOOD, "got it served as", served=media_types.DOCKER_MANIFEST)


def test_c6_schema_1() -> None:
    refused({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": []}, "schemaVersion: expected 2, got 1")


@pytest.mark.parametrize("size", [-1, 2**63, 10**30])
def test_c6_negative_or_huge_size(size: int) -> None:
    refused(layer(size=size), r"layers\[0\]\.size: expected 0 to")


def test_c6_sha512_is_read_and_checked(tmp_path: Path) -> None:
    digest = Digest("sha512", hashlib.sha512(b"layer").hexdigest())
    parse_manifest(RawManifest(raw=json.dumps(layer(digest=str(digest))).encode(), media_type=None, digest=digest))
    want = Descriptor(media_type=media_types.OCI_LAYER, digest=digest, size=5)
    place = Layout(tmp_path / "layout")
    with pytest.raises(DigestMismatch):
        place.put_blob(want, lambda: BytesIO(b"Layer"))
    place.put_blob(want, lambda: BytesIO(b"layer"))
    assert place.open_blob(want).read() == b"layer"
    refused(layer(digest="sha512:" + "ab" * 32), "expected 128 lower-case hex digits")


@pytest.mark.parametrize("digest", ["md5:" + "ab" * 16, "sha256:" + "AB" * 32, "sha256:../../etc/passwd", "sha256",
                                    "sha256:" + "ab" * 32 + "\n"])
def test_c6_unknown_algorithm_or_broken_digest(digest: str) -> None:
    refused(layer(digest=digest), r"layers\[0\]\.digest: expected")


def test_c6_index_inside_index(tmp_path: Path) -> None:
    inner, outer = stored_index(tmp_path, {**INDEX}), tmp_path / "target"
    document = {**INDEX, "manifests": [inner.descriptor.to_json()]}
    assert_not_copied(tmp_path, document, outer, "expected an image, got 'application/vnd.oci.image.index")
    document["manifests"][0]["mediaType"] = media_types.OCI_MANIFEST  # the entry lies about it
    assert_not_copied(tmp_path, document, outer, "expected an image, got another index")


def test_c6_platform_missing() -> None:
    entries = [{**LAYER.to_json(), "mediaType": media_types.OCI_MANIFEST} for _ in range(2)]
    raw = json.dumps({**INDEX, "manifests": entries}).encode()
    found = parse_manifest(RawManifest(raw=raw, media_type=None, digest=Digest.of(raw)))
    assert isinstance(found, Index)
    with pytest.raises(NotFound):
        found.select(Platform(os="linux", architecture="amd64"))
    refused({**INDEX, "manifests": [{**entries[0], "platform": {"os": "linux"}}]}, r"platform\.architecture: expected")


def test_c6_foreign_layer_urls(tmp_path: Path) -> None:
    source = Layout(tmp_path / "source")
    source.put_blob(LAYER, lambda: BytesIO(b"layer"))
    source.put_blob(CONFIG, lambda: BytesIO(b"{}"))
    raw = json.dumps(layer(urls=["http://169.254.169.254/"], mediaType=media_types.DOCKER_FOREIGN_LAYER)).encode()
    manifest = parse_manifest(RawManifest(raw=raw, media_type=None, digest=Digest.of(raw)))
    source.put_tag("t", manifest)
    with pytest.raises(MalformedInput, match="got 1 foreign URLs"):
        copy_image(source, "t", Layout(tmp_path / "target"), ["t"])
    assert not (tmp_path / "target").exists()


def test_c6_layer_count_over_the_cap() -> None:
    refused({**GOOD, "layers": [LAYER.to_json()] * (LAYERS_MAX + 1)}, "layers: expected at most 1024, got 1025")


@pytest.mark.parametrize("count", [0, 2])
def test_c6_diff_ids_that_disagree_in_number(count: int) -> None:
    config_refused({"rootfs": {"type": "layers", "diff_ids": [str(LAYER.digest)] * count}},
                   f"rootfs.diff_ids: expected 1, one for each layer, got {count}")


@pytest.mark.parametrize("history", [[{}, {}], [{"empty_layer": True}]])
def test_c6_history_that_disagrees_with_the_layers(history: list[dict[str, Any]]) -> None:
    config_refused({"history": history}, "history: expected 1 entries with a layer")


def test_c7_config_not_utf8() -> None:
    config_refused(b'{"os": "\xff"}', "expected UTF-8")


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\0" * 512])
def test_c7_config_empty_or_something_else(raw: bytes) -> None:
    config_refused(raw, "expected")


def test_c7_config_of_a_gigabyte() -> None:
    config_refused(b"{}".ljust(CONFIG_MAX + 1), "expected at most 8388608 bytes, got 8388609")


@pytest.mark.parametrize(
    "change",
    [{"os": 7}, {"architecture": None}, {"rootfs": []}, {"rootfs": {"diff_ids": [7]}}, {"history": [7]},
     {"history": [{"empty_layer": "no"}]}, {"config": []}, {"RootFS": {}},
     {"rootfs": {"diff_ids": ["sha256:x"]}}, {"rootfs": {"Diff_IDs": []}}],
)
def test_c7_config_with_members_of_another_kind(change: dict[str, Any]) -> None:
    config_refused(change, "expected")


def test_c7_config_that_could_not_be_written_again() -> None:
    config_refused(b'{"os": "\\ud800"}', "half a character")
    config_refused(b'{"os": 1e999}', "the number 1e999")


def config_refused(config: bytes | dict[str, Any], words: str) -> None:
    manifest = make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER])
    good = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [str(LAYER.digest)]}}
    parse_config(json.dumps(good).encode(), manifest)
    raw = config if isinstance(config, bytes) else json.dumps({**good, **config}).encode()
    with pytest.raises(MalformedInput, match=words):
        parse_config(raw, manifest)


def stored_index(folder: Path, document: dict[str, Any]) -> Index:
    """Put an index into the source layout as a registry that checks nothing would."""
    raw = json.dumps(document).encode()
    digest = Digest.of(raw)
    Layout(folder / "source").put_blob(Descriptor(media_type="", digest=digest, size=len(raw)), lambda: BytesIO(raw))
    found = parse_manifest(RawManifest(raw=raw, media_type=None, digest=digest))
    assert isinstance(found, Index)
    return found


def assert_not_copied(folder: Path, document: dict[str, Any], target: Path, words: str) -> None:
    index = stored_index(folder, document)
    with pytest.raises(MalformedInput, match=words):
        copy_image(Layout(folder / "source"), index.digest, Layout(target), ["t"])
    assert not target.exists()
