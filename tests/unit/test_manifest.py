"""Manifests, indexes and configs that are as they should be; the others are in tests/attacks/test_manifests.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dtrain.errors import NotFound
from dtrain.oci import media_types
from dtrain.oci.config import parse_config
from dtrain.oci.descriptor import Descriptor, Platform
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Index, Manifest, RawManifest, make_manifest, parse_manifest

CONFIG = Descriptor.of(b"{}", media_types.OCI_CONFIG)
LAYER = Descriptor.of(b"layer", media_types.OCI_LAYER)
AMD64 = Platform(os="linux", architecture="amd64")


def parsed(document: object, media_type: str | None = None) -> Manifest | Index:
    raw = json.dumps(document).encode()
    return parse_manifest(RawManifest(raw=raw, media_type=media_type, digest=Digest.of(raw)))


def index(*entries: dict[str, Any]) -> Index:
    made = parsed({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries})
    assert isinstance(made, Index)
    return made


def entry(name: bytes, **more: Any) -> dict[str, Any]:
    return {**Descriptor.of(name, media_types.OCI_MANIFEST).to_json(), **more}


def test_a_made_manifest_is_read_again_as_it_was() -> None:
    made = make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER], annotations={"a": "b"})
    assert parse_manifest(RawManifest(raw=made.raw, media_type=None, digest=made.digest)) == made
    assert made.descriptor == Descriptor.of(made.raw, media_types.OCI_MANIFEST)


@pytest.mark.parametrize(
    ("stated", "served", "expected"),
    [
        (media_types.DOCKER_MANIFEST, None, media_types.DOCKER_MANIFEST),
        (media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST),
        (media_types.OCI_MANIFEST, "application/octet-stream", media_types.OCI_MANIFEST),
        (None, media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST),
        (None, "text/html", media_types.OCI_MANIFEST),
        (None, None, media_types.OCI_MANIFEST),
    ],
)
def test_the_media_type_is_the_stated_one_then_the_served_one(stated: str | None, served: str | None, expected: str
                                                              ) -> None:
    document = {"schemaVersion": 2, "mediaType": stated, "config": CONFIG.to_json(), "layers": [LAYER.to_json()]}
    found = parsed(document, served)
    assert isinstance(found, Manifest)
    assert found.media_type == expected
    assert found.is_docker == (expected == media_types.DOCKER_MANIFEST)
    assert found.layers == (LAYER,)


def test_an_artifact_keeps_its_type_and_subject() -> None:
    found = parsed({"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "artifactType": "application/x",
                    "config": CONFIG.to_json(), "layers": [], "subject": LAYER.to_json(), "annotations": {"a": "b"}})
    assert isinstance(found, Manifest)
    assert (found.artifact_type, found.subject, found.annotations) == ("application/x", LAYER, {"a": "b"})


def test_select_takes_the_image_of_the_platform_and_no_attestation() -> None:
    amd64 = {"os": "linux", "architecture": "amd64"}
    found = index(
        entry(b"attestation", platform={"os": "unknown", "architecture": "unknown"}),
        entry(b"sbom", platform=amd64, artifactType="application/spdx+json"),
        entry(b"buildkit", platform=amd64, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        entry(b"arm", platform={"os": "linux", "architecture": "arm64", "variant": "v8"}),
        entry(b"amd", platform=amd64),
    )
    assert found.select(AMD64).digest == Digest.of(b"amd")
    with pytest.raises(NotFound, match=r"expected an image for linux/s390x, got linux/arm64/v8, linux/amd64"):
        found.select(Platform(os="linux", architecture="s390x"))


def test_select_takes_a_single_image_that_states_no_platform() -> None:
    assert index(entry(b"one")).select(AMD64).digest == Digest.of(b"one")
    with pytest.raises(NotFound):
        index(entry(b"one"), entry(b"two")).select(AMD64)
    with pytest.raises(NotFound, match="got no image at all"):
        index().select(AMD64)


def test_config_gives_what_dtrain_reads_and_keeps_the_rest() -> None:
    manifest = make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER])
    raw = json.dumps({
        "os": "linux", "architecture": "amd64", "docker_version": "20", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [str(LAYER.digest)]},
        "history": [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}],
    }).encode()
    config = parse_config(raw, manifest)
    assert config.raw == raw
    assert (config.os, config.architecture, config.diff_ids) == ("linux", "amd64", (LAYER.digest,))
    assert config.runtime == {"Cmd": ["sh"]}
    assert config.members["docker_version"] == "20"
    assert [item["created_by"] for item in config.history] == ["a", "b"]


def test_descriptor_is_written_as_it_was_read() -> None:
    document = entry(b"x", platform={"os": "linux", "architecture": "arm", "variant": "v7"}, annotations={"a": "b"},
                     artifactType="application/x")
    assert index(document).manifests[0].to_json() == document
