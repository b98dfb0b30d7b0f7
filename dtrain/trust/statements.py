"""What signed metadata says about trains: the descriptor of a new train, and each station's statement on its hop.

Both are the ``custom`` member of a TUF target, and the target is the image manifest itself: its sha256 is the image's
digest. Paths: ``<train>/train`` for the new train, ``<train>/hops/<station>/<NN>`` for the hop of a stop. Ids are
spelled as in tags, so that none of them holds a slash or a wildcard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dtrain.errors import MalformedInput
from dtrain.oci.digest import Digest
from dtrain.oci.strict_json import Fields
from dtrain.train.config import TrainConfig
from dtrain.train.pin import TrainPin, source_of
from dtrain.train.route import encode_name
from dtrain.trust.base_image import ApprovedBase

TRAIN_SCHEMA, HOP_SCHEMA = "dtrain/train/v1", "dtrain/hop-statement/v1"
DWELL_MAX = 3650  # days


def train_path(train: str) -> str:
    """Return the target path of a new train."""
    return f"{encode_name(train)}/train"


def hop_path(train: str, station: str, number: int) -> str:
    """Return the target path of a hop."""
    return f"{encode_name(train)}/hops/{encode_name(station)}/{number:02}"


def hop_role(station: str) -> str:
    """Return the name of a station's role."""
    return f"hop-{encode_name(station)}"


def hop_pattern(train: str, station: str) -> str:
    """Return the paths that a station's role is trusted for; ``*`` does not cross a slash (TUF 4.5)."""
    return f"{encode_name(train)}/hops/{encode_name(station)}/*"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """A plaintext file of the algorithm. The mode is for people: stations with train_lib reset it."""

    size: int
    mode: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDescriptor:
    """What the creator signed about the train as a whole; keys are fingerprints of the RSA keys that PHT uses."""

    train: str
    name: str
    """The last part of the repository's name, which does not change when the train is moved."""
    proposal: str
    session: str
    """Hex."""
    source: str
    creator: str
    creator_key: str
    builder_key: str
    route: tuple[tuple[str, str], ...]
    """Station and key of each stop, in order."""
    files: Mapping[str, SignedFile] | None = field(hash=False)
    """By path below ``/opt/pht_train``, the query included; ``None`` for a train that was adopted unopened."""
    base: ApprovedBase | None
    deadline: datetime
    dwell_days: int
    visited: int = 0
    """How many stops had run the train when the creator described it: 0, unless it was adopted on its way."""

    @property
    def stations(self) -> tuple[str, ...]:
        """The stations in the order of the route."""
        return tuple(station for station, _ in self.route)

    def pin(self) -> TrainPin:
        """Return what the train has to be."""
        return TrainPin(
            id=self.train, creator=self.creator, proposal=self.proposal, session=bytes.fromhex(self.session),
            source=self.source, route=self.stations,
            files=None if self.files is None else {path: file.sha256 for path, file in self.files.items()},
        )

    def to_custom(self) -> dict[str, Any]:
        """Return the members that are signed."""
        return {
            "schema": TRAIN_SCHEMA, "train": self.train, "name": self.name, "proposal": self.proposal,
            "session": self.session, "source": self.source, "creator": {"id": self.creator, "key": self.creator_key},
            "builder": {"key": self.builder_key},
            "route": [{"station": station, "key": key} for station, key in self.route],
            "files": None if self.files is None else {
                path: {"size": file.size, "mode": file.mode, "sha256": file.sha256}
                for path, file in self.files.items()},
            "base": None if self.base is None else {
                "name": self.base.name, "os": self.base.os, "architecture": self.base.architecture,
                "config": dict(self.base.runtime),
                "layers": [{"digest": str(digest), "diff_id": str(diff_id)} for digest, diff_id in self.base.layers]},
            "deadline": self.deadline.isoformat(), "dwell_days": self.dwell_days,
            "visited": self.visited,
        }

    @classmethod
    def parse(cls, custom: object, *, what: str) -> TrainDescriptor:
        """Return the descriptor that the members of a target spell.

        Raises:
            MalformedInput: wrong form, or another version of it.
        """
        fields = _fields(custom, TRAIN_SCHEMA, what)
        creator, builder, base = fields.object("creator"), fields.object("builder"), fields.optional_object("base")
        files = fields.optional_object("files")
        route = tuple((stop.required("station", str), stop.required("key", str)) for stop in fields.objects("route"))
        if len(dict(route)) != len(route):
            raise MalformedInput(f"{fields.path('route')}: expected each station once, got one twice")
        return cls(
            train=fields.required("train", str), name=fields.required("name", str),
            proposal=fields.required("proposal", str), session=_hex(fields, "session"),
            source=fields.required("source", str), creator=creator.required("id", str),
            creator_key=creator.required("key", str), builder_key=builder.required("key", str), route=route,
            files=None if files is None else {path: _file(files.object(path)) for path in files.raw},
            base=None if base is None else _base(base),
            deadline=_date(fields, "deadline"), dwell_days=_number(fields, "dwell_days", 1, DWELL_MAX),
            visited=_number(fields, "visited", 0, len(route)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unattested:
    """A hop that a station without metadata made, as the next station found it."""

    number: int
    station: str
    chain: str
    """Hex of the digest that the station added to the route's chain (PHT interop 7.9)."""

    def to_custom(self) -> dict[str, Any]:
        """Return the members that are signed."""
        return {"hop": self.number, "station": self.station, "chain": self.chain}


@dataclass(frozen=True, slots=True, kw_only=True)
class HopStatement:
    """What a station signed about its hop, beside the digest of the image."""

    train: str
    number: int
    station: str
    parent: Digest
    """The image that the station verified."""
    metadata: Digest
    """The state of the metadata that it verified that image with."""
    config: str
    """Hex sha256 of the new ``train_config.json``."""
    result_hash: str
    chain: str
    """Hex of the digest that this hop added to the route's chain."""
    result_files: int
    result_bytes: int
    """Encrypted."""
    tool: str
    issued: datetime
    unattested: tuple[Unattested, ...] = ()
    """Hops without metadata between the parent of the last statement and this one."""

    def to_custom(self) -> dict[str, Any]:
        """Return the members that are signed."""
        return {
            "schema": HOP_SCHEMA, "train": self.train, "hop": self.number, "station": self.station,
            "parent": str(self.parent), "metadata": str(self.metadata), "config": self.config,
            "result_hash": self.result_hash, "chain": self.chain,
            "results": {"files": self.result_files, "bytes": self.result_bytes},
            "tool": self.tool, "issued": self.issued.isoformat(),
            "unattested": [hop.to_custom() for hop in self.unattested],
        }

    @classmethod
    def parse(cls, custom: object, *, what: str) -> HopStatement:
        """Return the statement that the members of a target spell.

        Raises:
            MalformedInput: wrong form, or another version of it.
        """
        fields = _fields(custom, HOP_SCHEMA, what)
        results = fields.object("results")
        return cls(
            train=fields.required("train", str), number=fields.required("hop", int),
            station=fields.required("station", str),
            parent=Digest.parse(fields.required("parent", str), what=fields.path("parent")),
            metadata=Digest.parse(fields.required("metadata", str), what=fields.path("metadata")),
            config=_hex(fields, "config"), result_hash=_hex(fields, "result_hash"), chain=_hex(fields, "chain"),
            result_files=results.required("files", int), result_bytes=results.required("bytes", int),
            tool=fields.required("tool", str), issued=_date(fields, "issued"),
            unattested=tuple(Unattested(number=hop.required("hop", int), station=hop.required("station", str),
                                        chain=_hex(hop, "chain")) for hop in fields.objects("unattested")),
        )


def describe(config: TrainConfig, *, name: str, files: Mapping[str, SignedFile] | None, base: ApprovedBase | None,
             deadline: datetime, dwell_days: int, visited: int = 0) -> TrainDescriptor:
    """Return the descriptor of the train with this configuration."""
    return TrainDescriptor(
        train=config.id, name=name, proposal=str(config.proposal_id), session=config.session_id.hex(),
        source=source_of(config), creator=str(config.creator.id), creator_key=config.creator.key.fingerprint,
        builder_key=config.build.key.fingerprint,
        route=tuple((str(stop.station), stop.key.fingerprint) for stop in config.route),
        files=files, base=base, deadline=deadline, dwell_days=dwell_days, visited=visited,
    )


def _fields(custom: object, schema: str, what: str) -> Fields:
    fields = Fields(custom, what)
    try:
        json.dumps(custom, ensure_ascii=False).encode()
    except ValueError:  # half a character, which cannot be spelled in a path
        raise MalformedInput(f"{what}: expected Unicode text, got something else") from None
    if fields.required("schema", str) != schema:
        raise MalformedInput(f"{what}: expected the schema {schema}, got {fields.required('schema', str)[:80]!r}")
    return fields


def _file(fields: Fields) -> SignedFile:
    return SignedFile(size=fields.required("size", int), mode=fields.required("mode", int),
                      sha256=_hex(fields, "sha256"))


def _base(fields: Fields) -> ApprovedBase:
    return ApprovedBase(
        name=fields.required("name", str), os=fields.required("os", str),
        architecture=fields.required("architecture", str), runtime=fields.required("config", dict),
        layers=tuple((Digest.parse(layer.required("digest", str), what=layer.path("digest")),
                      Digest.parse(layer.required("diff_id", str), what=layer.path("diff_id")))
                     for layer in fields.objects("layers")))


def _hex(fields: Fields, key: str) -> str:
    text = fields.required(key, str)
    try:
        return bytes.fromhex(text).hex()
    except ValueError:
        raise MalformedInput(f"{fields.path(key)}: expected hex digits, got {text[:80]!r}") from None


def _number(fields: Fields, key: str, least: int, most: int) -> int:
    number = fields.required(key, int)
    if not least <= number <= most:
        raise MalformedInput(f"{fields.path(key)}: expected {least} to {most}, got {number}")
    return number


def _date(fields: Fields, key: str) -> datetime:
    text = fields.required(key, str)
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedInput(f"{fields.path(key)}: expected a date, got {text[:40]!r}") from None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
