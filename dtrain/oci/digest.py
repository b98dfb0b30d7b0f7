"""Content digests (image-spec: descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtrain.errors import MalformedInput

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha512": 128}  # the two registered algorithms
_PATTERN = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[.+_-][a-z0-9]+)*):(?P<encoded>[a-zA-Z0-9=_-]+)")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest such as ``sha256:…``; ``str()`` gives the wire form."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str, *, what: str = "digest") -> Digest:
        """Return the digest that ``text`` spells.

        Raises:
            MalformedInput: the grammar is broken, or the algorithm is neither sha256 nor sha512.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise MalformedInput(f"{what}: expected <algorithm>:<hex>, got {text[:80]!r}")
        algorithm, encoded = match["algorithm"], match["encoded"]
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise MalformedInput(f"{what}: expected sha256 or sha512, got {algorithm!r}")
        if len(encoded) != length or not re.fullmatch(r"[0-9a-f]+", encoded):
            raise MalformedInput(f"{what}: expected {length} lower-case hex digits, got {encoded[:80]!r}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the sha256 digest of ``data``."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> _Hash:
        """Return a fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
