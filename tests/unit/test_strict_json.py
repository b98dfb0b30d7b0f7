"""JSON from a hostile sender: what is read, what is refused, and in which words."""

from __future__ import annotations

import pytest

from dtrain.errors import MalformedInput
from dtrain.oci.strict_json import MAX_DEPTH, Fields, parse_json

DEEPEST = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": [1, 2.5, true, null, "\\u00e4"]}', {"a": [1, 2.5, True, None, "ä"]}),
        ('"träin"'.encode(), "träin"),
        (b'"\\ud83d\\ude82"', "\U0001f682"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'["' + b"[" * 500 + b'", 1]', ["[" * 500, 1]),
        (b'["\\"' + b"[" * 500 + b'"]', ['"' + "[" * 500]),
        (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
    ],
)
def test_parse_json_reads(raw: bytes, value: object) -> None:
    assert parse_json(raw, what="document") == value


def test_parse_json_reads_the_deepest_document() -> None:
    assert parse_json(DEEPEST, what="document") is not None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "expected JSON"),
        (b"{} {}", "expected JSON"),
        (b"\xff{}", "expected UTF-8, got byte 0xff at 0"),
        (b"\xef\xbb\xbf{}", "expected JSON"),
        ("{}".encode("utf-16"), "expected UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "expected each key once, got 'c' twice"),
        (b'{"a": 1, "\\u0061": 2}', "expected each key once, got 'a' twice"),
        (b"[NaN]", "the number NaN"),
        (b"[-Infinity]", "the number -Infinity"),
        (b"[1e999]", "the number 1e999"),
        (b"9" * 5000, "expected JSON"),
        (b'"\\ud800"', "half a character"),
        (b'{"\\uDFFF": 1}', "half a character"),
        (b"[" + DEEPEST + b"]", "at most 64 levels"),
        (b"[" * 2_000_000, "at most 64 levels"),
        (b'{"a":' * 2_000_000, "at most 64 levels"),
        (b'"' + b'\\"' * 1_000_000 + b"[" * 100, "expected JSON"),
    ],
)
def test_parse_json_refuses(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedInput, match=words) as caught:
        parse_json(raw, what="document")
    assert str(caught.value).startswith("document: ")


def test_fields_reads_members_with_their_types() -> None:
    fields = Fields({"s": "x", "n": 3, "o": {"k": "v"}, "l": [{"k": 1}], "ss": ["a"], "none": None}, "doc")
    assert fields.required("s", str) == "x"
    assert fields.required("n", int) == 3
    assert fields.object("o").required("k", str) == "v"
    assert [item.required("k", int) for item in fields.objects("l")] == [1]
    assert fields.strings("ss") == ("a",)
    assert fields.string_map("o") == {"k": "v"}
    assert "none" not in fields
    assert fields.optional("none", str) is None
    assert fields.optional_object("none") is None
    assert tuple(fields.objects("absent")) == fields.strings("absent") == ()
    assert fields.string_map("absent") == {}


def test_fields_names_the_place() -> None:
    fields = Fields({"route": [{"station": 7}], "n": True, "ss": ["a", None], "m": {"k": []}, "f": 1.5}, "")
    item = next(fields.objects("route"))
    with pytest.raises(MalformedInput, match=r"^route\[0\]\.station: expected a string, got 7$"):
        item.required("station", str)
    with pytest.raises(MalformedInput, match=r"^route\[0\]\.index: expected an integer, got nothing$"):
        item.required("index", int)
    with pytest.raises(MalformedInput, match=r"^n: expected an integer, got true$"):
        fields.required("n", int)
    with pytest.raises(MalformedInput, match=r"^f: expected an integer, got 1.5$"):
        fields.required("f", int)
    with pytest.raises(MalformedInput, match=r"^ss\[1\]: expected a string, got null$"):
        fields.strings("ss")
    with pytest.raises(MalformedInput, match=r"^m\['k'\]: expected a string, got a list$"):
        fields.string_map("m")
    with pytest.raises(MalformedInput, match="expected an object, got the string 'x'"):
        Fields("x", "doc")


@pytest.mark.parametrize("key", ["Layers", "LAYERS", "layer\u017f"])
def test_fields_refuses_what_other_readers_take_for_a_known_member(key: str) -> None:
    with pytest.raises(MalformedInput, match="expected the spelling 'layers'"):
        Fields({"layers": [], key: []}, "").check_spelling("layers", "config")
    Fields({"layers": [], "Extra": 1}, "").check_spelling("layers", "config")
