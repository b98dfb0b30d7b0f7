"""References: grammar, defaults, and that what is written down is read again as the same place."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.errors import DtrainError, MalformedInput, UsageProblem
from dtrain.oci.digest import Digest
from dtrain.oci.reference import Reference, check_tag

HEX = "ab" * 32
DIGEST = Digest("sha256", HEX)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registry.example/train", Reference(host="registry.example", repository="train")),
        ("localhost/a/b:1.0", Reference(host="localhost", repository="a/b", tag="1.0")),
        ("localhost:5000/a", Reference(host="localhost:5000", repository="a")),
        ("registry:5000/a__b/c-d:x", Reference(host="registry:5000", repository="a__b/c-d", tag="x")),
        ("[::1]:5000/a:t", Reference(host="[::1]:5000", repository="a", tag="t")),
        (f"r.example/a@sha256:{HEX}", Reference(host="r.example", repository="a", digest=DIGEST)),
        (f"r.example/a:t@sha256:{HEX}", Reference(host="r.example", repository="a", tag="t", digest=DIGEST)),
        ("oci:train", Reference(layout=Path("train"))),
        ("oci:/srv/trains/7f3a:base", Reference(layout=Path("/srv/trains/7f3a"), tag="base")),
        (f"oci:a/b:t@sha256:{HEX}", Reference(layout=Path("a/b"), tag="t", digest=DIGEST)),
    ],
)
def test_parse_reads_and_str_writes_the_same(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["a/b:t", "train"])
def test_the_default_registry_serves_references_without_a_host(text: str) -> None:
    reference = Reference.parse(text, default_host="registry.example")
    assert reference.host == "registry.example"
    assert Reference.parse(str(reference)) == reference
    with pytest.raises(UsageProblem, match="expected a registry host"):
        Reference.parse(text)


def test_a_default_registry_that_could_not_be_told_from_a_repository_is_refused() -> None:
    with pytest.raises(MalformedInput, match="default registry") as caught:
        Reference.parse("a/b", default_host="registry")
    assert "registry:443" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "/",
        "@",
        "r.example/",
        "r.example/A",
        "r.example/a//b",
        "r.example/../b",
        "r.example/a:",
        "r.example/a:-x",
        "r.example/a:" + "t" * 129,
        "r.example/" + "a" * 255,
        "r.example:0/a",
        "r.example:99999/a",
        "r.example:/a",
        "-r.example/a",
        "user@r.example/a",
        "https://r.example/a",
        "r.example/a b",
        "r.example/a\n",
        "r.example/a:t\n",
        "r.example/a@sha256:" + "AB" * 32,
        "r.example/a@sha256:abc",
        "r.example/a@md5:" + "ab" * 16,
        f"r.example/a@sha256:{HEX}@sha256:{HEX}",
        "oci:",
        "oci::t",
        "oci:a:",
        "oci:a\0b",
        "oci:a:b:t",
        "oci:a:b/",
        "oci:a@b/c",
        f"oci:a@sha256:{HEX}@sha256:{HEX}",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(DtrainError) as caught:
        Reference.parse(text)
    assert isinstance(caught.value, MalformedInput | UsageProblem)


def test_selector_is_digest_then_tag_then_latest() -> None:
    reference = Reference.parse("r.example/a")
    assert reference.selector == "latest"
    assert reference.with_tag("t").selector == "t"
    assert reference.with_tag("t").pinned(DIGEST).selector == DIGEST
    assert reference.pinned(DIGEST).with_tag("t") == reference.with_tag("t")


def test_place_and_name() -> None:
    assert Reference.parse("r.example/a/b:t").place == "r.example/a/b"
    assert Reference.parse("r.example/a/b:t").name == "b"
    assert Reference.parse("oci:a/b/:t").place == "oci:a/b"
    assert Reference.parse("oci:a/b").name == "b"


def test_check_tag() -> None:
    check_tag("v1.0_x-Y")
    for tag in ("", ".x", "-x", "a/b", "a:b", "a\n", "t" * 129, "ä"):
        with pytest.raises(MalformedInput):
            check_tag(tag)
