"""JSON from a hostile sender, read once at the edge.

Duplicate keys, NaN, numbers out of range, bytes and escapes that are no Unicode, and nesting beyond
:data:`MAX_DEPTH` are refused, because two readers that disagree about such a document see two documents.
:class:`Fields` reads members with their types and names the place in the error:
``route[2].station: expected a string, got 7``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from dtrain.errors import MalformedInput

T = TypeVar("T")

MAX_DEPTH = 64  # levels; the deepest document of the formats that we read has about six
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)|[][{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(raw: bytes, *, what: str) -> Any:
    """Return the value of the UTF-8 JSON text ``raw``.

    Raises:
        MalformedInput: not UTF-8, not JSON, a key twice in one object, a number that JSON does not have, too deep.
    """
    def refuse_constant(text: str) -> NoReturn:
        raise MalformedInput(f"{what}: expected JSON, got the number {text[:40]}")

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            refuse_constant(text)
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise MalformedInput(f"{what}: expected each key once, got {twice[:80]!r} twice")
        return members

    _check_depth(raw, what)
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse_constant,
                           parse_float=finite)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair cannot be encoded
        return value
    except UnicodeDecodeError as error:
        raise MalformedInput(f"{what}: expected UTF-8, got byte {raw[error.start]:#04x} at {error.start}") from None
    except UnicodeEncodeError:
        raise MalformedInput(f"{what}: expected Unicode text, got an escape of half a character") from None
    except (ValueError, RecursionError) as error:  # ValueError: also integers of more digits than Python converts
        raise MalformedInput(f"{what}: expected JSON, got an error: {error}") from None


def _check_depth(raw: bytes, what: str) -> None:
    """Bound the nesting before the parser recurses."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(raw):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedInput(f"{what}: expected at most {MAX_DEPTH} levels of nesting, got more")
        elif token[0] in (b"]", b"}"):
            depth -= 1


_KINDS = {str: "a string", int: "an integer", bool: "a boolean", list: "a list", dict: "an object"}


def kind_of(value: object) -> str:
    """Return how a person calls the JSON type of ``value``, with small values themselves."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    return _KINDS.get(type(value), type(value).__name__)


class Fields:
    """The members of one JSON object, read with their types."""

    __slots__ = ("_members", "_path")

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise MalformedInput(f"{path}: expected an object, got {kind_of(value)}")
        self._members: dict[str, Any] = value
        self._path = path

    def path(self, key: str) -> str:
        """Return where ``key`` stands, for error messages."""
        return f"{self._path}.{key}" if self._path else key

    @property
    def raw(self) -> Mapping[str, Any]:
        """All members as parsed."""
        return self._members

    def check_spelling(self, *names: str) -> None:
        """Check that no member is one of ``names`` but for the case of letters.

        Go's reader takes such a member for the real one, so docker and podman would see another document than we do.

        Raises:
            MalformedInput: there is one.
        """
        known = {name.casefold(): name for name in names}
        for key in self._members:
            name = known.get(key.casefold(), key)
            if name != key:
                raise MalformedInput(f"{self.path(key[:80])}: expected the spelling {name!r}, got {key[:80]!r}")

    def __contains__(self, key: str) -> bool:
        return self._members.get(key) is not None

    def required(self, key: str, kind: type[T]) -> T:
        """Return the member ``key``, which has to be there and of type ``kind``."""
        if key not in self._members:
            raise MalformedInput(f"{self.path(key)}: expected {_KINDS[kind]}, got nothing")
        return self._typed(key, kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return the member ``key``, or ``None`` when it is absent or null."""
        return None if self._members.get(key) is None else self._typed(key, kind)

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self._members[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise MalformedInput(f"{self.path(key)}: expected {_KINDS[kind]}, got {kind_of(value)}")
        return value

    def object(self, key: str) -> Fields:
        """Return the object ``key``, which has to be there."""
        return Fields(self.required(key, dict), self.path(key))

    def optional_object(self, key: str) -> Fields | None:
        """Return the object ``key``, or ``None`` when it is absent or null."""
        return self.object(key) if key in self else None

    def objects(self, key: str) -> Iterator[Fields]:
        """Yield the objects of the list ``key``; an absent or null list is empty."""
        for position, item in enumerate(self.optional(key, list) or ()):
            yield Fields(item, f"{self.path(key)}[{position}]")

    def strings(self, key: str) -> tuple[str, ...]:
        """Return the strings of the list ``key``; an absent or null list is empty."""
        items = self.optional(key, list) or []
        for position, item in enumerate(items):
            if not isinstance(item, str):
                raise MalformedInput(f"{self.path(key)}[{position}]: expected a string, got {kind_of(item)}")
        return tuple(items)

    def string_map(self, key: str) -> Mapping[str, str]:
        """Return the object ``key`` whose members are all strings; absent or null is empty."""
        members = self.optional(key, dict) or {}
        for name, item in members.items():
            if not isinstance(item, str):
                raise MalformedInput(f"{self.path(key)}[{name!r}]: expected a string, got {kind_of(item)}")
        return members
