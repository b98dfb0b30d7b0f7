"""``/opt/train_config.json``: read strictly, written exactly as train_lib 2.0.5 writes it (PHT interop 7.2, 7.3).

The document carries keys. They are parsed here and believed nowhere: :mod:`dtrain.train.checks` compares them with
what the caller trusts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dtrain.crypto.rsa import PublicKey
from dtrain.errors import MalformedInput
from dtrain.oci.strict_json import Fields, kind_of, parse_json

CONFIG_MAX = 16 * 2**20  # bytes; a route of a thousand stops with 4096-bit keys is below 6 MiB
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_ECOSYSTEMS = ("tue", "padme")
_SOURCES = ("docker_repository", "git_repository")

Ident = int | str
"""An id as train_lib holds it: a string that Python's ``int()`` accepts has become a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What one stop added to the route's chain: ``digest`` as stored, and the stop's signature over it (7.9)."""

    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One entry of the route. ``link`` is set once the station has run the train."""

    station: Ident
    eco_system: str
    index: int
    key: PublicKey
    key_pem: bytes = field(repr=False)
    link: Link | None = field(default=None, repr=False)
    encrypted_key: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"stop {self.index + 1} (station {self.station})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Creator:
    """Who made the train and may read its results."""

    id: Ident
    key: PublicKey
    key_pem: bytes = field(repr=False)
    paillier_public_key: str | int | None = field(default=None, repr=False)
    encrypted_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the train's base image is said to come from."""

    type: str
    address: str
    tag: str | None = None
    branch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The builder's signature, and the key that it claims."""

    signature: bytes = field(repr=False)
    key: PublicKey
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A train's configuration; ``route`` is in ascending order of ``index``."""

    source: Source
    creator: Creator
    proposal_id: Ident
    id: str
    context: Mapping[str, Any] | None = field(default=None, hash=False)
    session_id: bytes
    route: tuple[Stop, ...]
    file_list: tuple[str, ...]
    hash: bytes
    signature: bytes = field(repr=False)
    build: Build
    result_hash: bytes | None = None
    result_signature: bytes | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        """Return the document as train_lib 2.0.5 writes it: JSON, indent 2, ASCII, nulls kept, no final newline."""
        return json.dumps(self._members(), indent=2).encode("ascii")

    def to_compact_bytes(self) -> bytes:
        """Return the document as the central builder writes it: compact JSON."""
        return json.dumps(self._members(), separators=(",", ":")).encode("ascii")

    def _members(self) -> dict[str, Any]:
        return {
            "source": {"type": self.source.type, "address": self.source.address, "tag": self.source.tag,
                       "branch": self.source.branch},
            "creator": {"id": self.creator.id, "rsa_public_key": self.creator.key_pem.hex(),
                        "paillier_public_key": self.creator.paillier_public_key,
                        "encrypted_key": _hex(self.creator.encrypted_key)},
            "proposal_id": self.proposal_id,
            "@id": self.id,
            "@context": self.context,
            "session_id": self.session_id.hex(),
            "route": [
                {"station": stop.station, "eco_system": stop.eco_system, "rsa_public_key": stop.key_pem.hex(),
                 "index": stop.index,
                 "signature": None if stop.link is None else {"digest": stop.link.digest.hex(),
                                                              "signature": stop.link.signature.hex()},
                 "encrypted_key": _hex(stop.encrypted_key)}
                for stop in self.route
            ],
            "file_list": list(self.file_list),
            "hash": self.hash.hex(),
            "signature": self.signature.hex(),
            "build": {"signature": self.build.signature.hex(), "rsa_public_key": self.build.key_pem.hex()},
            "result_hash": _hex(self.result_hash),
            "result_signature": _hex(self.result_signature),
        }

    def with_stop(self, stop: Stop) -> TrainConfig:
        """Return the config with the route's entry of the same index replaced."""
        return replace(self, route=tuple(stop if old.index == stop.index else old for old in self.route))


def parse_train_config(raw: bytes) -> TrainConfig:
    """Return the configuration that ``raw`` spells, in any JSON layout.

    Unknown members are dropped, as train_lib drops them: nothing signs them, so nothing may come to rely on them.

    Raises:
        MalformedInput: wrong form, a member of the wrong type, or a key that is no public key.
        WrongKey: a public key that is not RSA of 2048 to 4096 bits.
    """
    if len(raw) > CONFIG_MAX:
        raise MalformedInput(f"train_config.json: expected at most {CONFIG_MAX} bytes, got {len(raw)}")
    fields = Fields(parse_json(raw, what="train_config.json"), "train_config.json")
    creator, build, source = fields.object("creator"), fields.object("build"), fields.object("source")
    creator_pem, build_pem = _required_hex(creator, "rsa_public_key"), _required_hex(build, "rsa_public_key")
    context = fields.optional_object("@context")
    return TrainConfig(
        source=Source(type=_one_of(source, "type", _SOURCES), address=source.required("address", str),
                      tag=source.optional("tag", str), branch=source.optional("branch", str)),
        creator=Creator(id=_ident(creator, "id"), key=PublicKey.from_pem(creator_pem, of="the creator"),
                        key_pem=creator_pem, paillier_public_key=_paillier(creator),
                        encrypted_key=_optional_hex(creator, "encrypted_key")),
        proposal_id=_ident(fields, "proposal_id"),
        id=fields.required("@id", str),
        context=context.raw if context else None,
        session_id=_required_hex(fields, "session_id"),
        route=tuple(sorted((_stop(entry) for entry in fields.objects("route")), key=lambda stop: stop.index)),
        file_list=fields.strings("file_list"),
        hash=_required_hex(fields, "hash"),
        signature=_required_hex(fields, "signature"),
        build=Build(signature=_required_hex(build, "signature"), key_pem=build_pem,
                    key=PublicKey.from_pem(build_pem, of="the builder")),
        result_hash=_optional_hex(fields, "result_hash"),
        result_signature=_optional_hex(fields, "result_signature"),
    )


def _stop(fields: Fields) -> Stop:
    station = _ident(fields, "station")
    pem = _required_hex(fields, "rsa_public_key")
    link = fields.optional_object("signature")
    return Stop(
        station=station,
        eco_system=_one_of(fields, "eco_system", _ECOSYSTEMS),
        index=fields.required("index", int),
        key=PublicKey.from_pem(pem, of=f"station {station}"),
        key_pem=pem,
        link=None if link is None else Link(digest=_required_hex(link, "digest"),
                                            signature=_required_hex(link, "signature")),
        encrypted_key=_optional_hex(fields, "encrypted_key"),
    )


def as_ident(text: str) -> Ident:
    """Return how train_lib holds an id that JSON spells as ``text`` (pydantic 1, ``Union[int, str]``)."""
    try:
        return int(text)
    except ValueError:
        return text


def _ident(fields: Fields, key: str) -> Ident:
    value = fields.raw.get(key)
    if isinstance(value, str):
        return as_ident(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise MalformedInput(f"{fields.path(key)}: expected a string or an integer, got {kind_of(value)}")


def _paillier(fields: Fields) -> str | int | None:
    return None if fields.raw.get("paillier_public_key") is None else (
        fields.required("paillier_public_key", int)
        if isinstance(fields.raw["paillier_public_key"], int) else fields.required("paillier_public_key", str)
    )


def _one_of(fields: Fields, key: str, known: tuple[str, ...]) -> str:
    value = fields.required(key, str)
    if value not in known:
        raise MalformedInput(f"{fields.path(key)}: expected {' or '.join(known)}, got {value[:80]!r}")
    return value


def _required_hex(fields: Fields, key: str) -> bytes:
    text = fields.required(key, str)
    if not _HEX.fullmatch(text):
        raise MalformedInput(f"{fields.path(key)}: expected hex digits, got {text[:40]!r}")
    return bytes.fromhex(text)


def _optional_hex(fields: Fields, key: str) -> bytes | None:
    return _required_hex(fields, key) if key in fields else None


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()
