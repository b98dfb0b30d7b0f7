"""Any bytes, any text: a parser gives a value or says what is wrong, and nothing else happens."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.oci import media_types
from dtrain.oci.config import parse_config
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest, RawManifest, make_manifest, parse_manifest
from dtrain.oci.reference import Reference

settings.register_profile("parsers", deadline=None, max_examples=150, derandomize=True)
settings.load_profile("parsers")

LAYER = Descriptor.of(b"layer", media_types.OCI_LAYER)
CONFIG = Descriptor.of(b"{}", media_types.OCI_CONFIG)
MANIFEST = make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER])
KNOWN_TYPES = sorted(media_types.MANIFESTS | media_types.INDEXES)

hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    [*KNOWN_TYPES, str(LAYER.digest), "linux"])
NAMES = ("schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "subject", "artifactType", "os",
         "architecture", "rootfs", "diff_ids", "history", "empty_layer", "platform", "digest", "size", "urls")
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=5), max_leaves=12)
descriptors = st.fixed_dictionaries(
    {}, optional={"mediaType": scalars, "digest": scalars, "size": scalars, "platform": values, "urls": values,
                  "annotations": values}).map(lambda changes: {**LAYER.to_json(), **changes})
manifests = st.fixed_dictionaries(
    {"schemaVersion": st.just(2)},
    optional={"mediaType": st.sampled_from(KNOWN_TYPES), "config": descriptors | values, "subject": descriptors,
              "layers": st.lists(descriptors | values, max_size=3), "manifests": st.lists(descriptors, max_size=3),
              "annotations": values})
configs = st.fixed_dictionaries(
    {}, optional={"os": scalars, "architecture": scalars, "config": values, "history": st.lists(values, max_size=2),
                  "rootfs": values}).map(lambda changes: {
        "os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [str(LAYER.digest)]}, **changes})


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@given(raw=st.binary(max_size=200) | values.map(encoded) | manifests.map(encoded),
       served=st.none() | st.sampled_from(KNOWN_TYPES) | st.text(max_size=5))
def test_parse_manifest_raises_only_our_errors(raw: bytes, served: str | None) -> None:
    try:
        found = parse_manifest(RawManifest(raw=raw, media_type=served, digest=Digest.of(raw)))
    except DtrainError as error:
        str(error).encode()
        return
    assert found.raw == raw
    assert found.descriptor.size == len(raw)
    entries = found.layers if isinstance(found, Manifest) else found.manifests
    encoded([entry.to_json() for entry in entries])


@given(raw=st.binary(max_size=200) | values.map(encoded) | configs.map(encoded))
def test_parse_config_raises_only_our_errors(raw: bytes) -> None:
    try:
        found = parse_config(raw, MANIFEST)
    except DtrainError as error:
        str(error).encode()
        return
    again = json.dumps(dict(found.members), ensure_ascii=False, allow_nan=False).encode()  # as an edited image is
    assert parse_config(again, MANIFEST).diff_ids == found.diff_ids == (LAYER.digest,)


@given(text=st.text(max_size=100) | st.from_regex(r"[a-z0-9.+_-]{1,9}:[0-9a-fA-F=_-]{1,140}"))
def test_digest_parse_raises_only_our_errors(text: str) -> None:
    try:
        assert str(Digest.parse(text)) == text
    except DtrainError as error:
        str(error).encode()


@given(algorithm=st.sampled_from(["sha256", "sha512"]), half=hexes)
def test_digests_round_trip(algorithm: str, half: str) -> None:
    digest = Digest(algorithm, half if algorithm == "sha256" else half * 2)
    assert Digest.parse(str(digest)) == digest


parts = st.text("abAB09./:@-_[]~ \n\0é", max_size=12) | st.sampled_from(
    ["oci:", "localhost", "r.example", ":5000", "/", ":", "@", f"@{LAYER.digest}", "a/b", "..", "latest"])


@settings(max_examples=400)
@given(pieces=st.lists(parts, max_size=6), host=st.none() | st.sampled_from(["r.example", "r:5000", "r"]) | parts)
def test_references_round_trip_or_are_refused(pieces: list[str], host: str | None) -> None:
    try:
        found = Reference.parse("".join(pieces), default_host=host)
    except DtrainError as error:
        str(error).encode()
        return
    assert Reference.parse(str(found)) == found
    assert str(Reference.parse(str(found))) == str(found)


components = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True)


@given(host=st.sampled_from(["localhost", "r.example", "r:5000", "127.0.0.1:80", "[::1]:443"]),
       names=st.lists(components, min_size=1, max_size=4), tag=st.none() | tags, half=st.none() | hexes)
def test_every_good_reference_is_accepted(host: str, names: list[str], tag: str | None, half: str | None) -> None:
    digest = None if half is None else Digest("sha256", half)
    made = Reference(host=host, repository="/".join(names), tag=tag, digest=digest)
    assert Reference.parse(str(made)) == made
