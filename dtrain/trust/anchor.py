"""``anchor.toml``: the keys and images that a station trusts, from outside every train (docs/anchor.rst).

Keys are pinned by fingerprint, by file or as PEM text. A train's config carries keys too; they have to be these.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.crypto.rsa import PublicKey
from dtrain.crypto.signing import VerifyKey
from dtrain.errors import BadSignature, KeyNotFound, MalformedInput, MissingEvidence
from dtrain.oci.digest import Digest
from dtrain.oci.strict_json import Fields
from dtrain.train.config import TrainConfig
from dtrain.train.pin import TrainPin

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_TABLES = ("version", "root", "creators", "builders", "stations", "base_images", "trains", "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """An approved base image: ``digest`` pins it, ``reference`` says where its manifest can be fetched.

    ``command`` is the start of ``Cmd`` that trains on it have, before the path of their entry point; ``None`` leaves
    the rule of :func:`dtrain.trust.base_image.check_runtime`.
    """

    reference: str
    digest: Digest
    command: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedRoot:
    """The root of signed metadata: the document itself, or the keys of which a number has to have signed it."""

    document: bytes | None = field(default=None, repr=False)
    keys: tuple[str, ...] = ()
    """Fingerprints."""
    threshold: int = 1
    repository: str | None = None
    """Where metadata is kept, as the start of a reference that the train's name is added to; ``None``: beside the
    train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The trusted keys by id, the approved base images, the trains that are known, and the root of metadata."""

    source: str
    creators: Mapping[str, str]
    builders: Mapping[str, str]
    stations: Mapping[str, str]
    base_images: tuple[BaseImage, ...] = ()
    trains: Mapping[str, TrainPin] | None = None
    any_builder: bool = False
    """Whether builders are not pinned: the central builder makes a new key for each train (W02)."""
    any_base: bool = field(default=False)
    """Whether base images are not pinned."""
    root: PinnedRoot | None = None
    """With it, every train needs signed metadata, and the tables of keys need not be complete."""
    unattested: frozenset[str] = frozenset()
    """Stations whose hops may lack metadata."""

    def check_unattested(self, stations: Iterable[str]) -> None:
        """Check that these stations' hops may lack metadata.

        Raises:
            MissingEvidence: one must not.
        """
        for station in stations:
            if station not in self.unattested:
                raise MissingEvidence(f"hop of station {station!r}: expected signed metadata, got none",
                                      hint="the hop may wait for dtrain trust cosign, or the station used an anchor "
                                           "without a root; only if it runs train_lib, and you accept hops that nobody "
                                           f"attests, name it in {self.source}: policy.unattested_hops")

    def check_keys(self, config: TrainConfig) -> None:
        """Check that every key in the config is the pinned one.

        Raises:
            MissingEvidence: an id that the anchor does not name.
            BadSignature: another key than the pinned one.
        """
        self._check("creator", self.creators, str(config.creator.id), config.creator.key)
        for stop in config.route:
            self._check("station", self.stations, str(stop.station), stop.key)
        builder = config.build.key.fingerprint
        if self.root is not None and not self.builders:
            return
        if not self.any_builder and builder not in self.builders.values():
            raise BadSignature(f"builder: expected a key pinned by {self.source}, got {builder}",
                               hint="the train was signed by an unknown builder; if your builder makes a new key for "
                                    "each train, set policy.any_builder = true in the anchor")

    def _check(self, role: str, pinned: Mapping[str, str], name: str, key: PublicKey) -> None:
        expected = pinned.get(name)
        if expected is None and self.root is not None:
            return  # the creator signed which key it is
        if expected is None:
            raise MissingEvidence(f"{role} {name!r}: expected a key pinned by {self.source}, got none",
                                  hint=f"if this {role} is known to you, add its public key to the anchor, "
                                       "obtained on another way than from the train")
        if expected != key.fingerprint:
            raise BadSignature(f"{role} {name!r}: expected key {expected}, got {key.fingerprint}",
                               hint="the train carries another key than the one you trust; do not run it")

    def pin(self, config: TrainConfig) -> TrainPin | None:
        """Return what the anchor says about this train; with a ``trains`` table, each train has to be in it.

        Raises:
            MissingEvidence: it is not.
        """
        if self.trains is None:
            return None
        pin = self.trains.get(config.id)
        if pin is None:
            raise MissingEvidence(f"train {config.id!r}: expected one listed by {self.source}, got none of them",
                                  hint="add the train to the anchor, or remove its trains table to accept any train "
                                       "by the pinned creators")
        return pin


def read_anchor(path: Path) -> Anchor:
    """Return the anchor in the file ``path``; key files in it are relative to its folder.

    Raises:
        KeyNotFound: the file, or a key file that it names, is not there.
        MalformedInput: wrong form.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise KeyNotFound(f"anchor {path}: expected a readable file, got: {error.strerror}",
                          hint="give --anchor FILE or DTRAIN_ANCHOR") from None
    try:
        document = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MalformedInput(f"anchor {path}: expected TOML, got an error: {error}") from None
    return parse_anchor(document, source=str(path), folder=path.parent)


def parse_anchor(document: Mapping[str, Any], *, source: str, folder: Path) -> Anchor:
    """Return the anchor that the TOML ``document`` spells; raises as :func:`read_anchor` does."""
    fields = Fields(dict(document), f"anchor {source}")
    version = fields.required("version", int)
    if version != 1:
        raise MalformedInput(f"{fields.path('version')}: expected 1, got {version}")
    _only(fields, *_TABLES)
    policy = fields.optional_object("policy")
    if policy is not None:
        _only(policy, "any_builder", "any_base_image", "unattested_hops")
    return Anchor(
        source=source,
        creators=_keys(fields, "creators", folder),
        builders=_keys(fields, "builders", folder),
        stations=_keys(fields, "stations", folder),
        base_images=tuple(_base(entry) for entry in fields.objects("base_images")),
        trains=_trains(fields) if "trains" in fields else None,
        any_builder=bool(policy and policy.optional("any_builder", bool)),
        any_base=bool(policy and policy.optional("any_base_image", bool)),
        root=_root(fields.object("root"), folder) if "root" in fields else None,
        unattested=frozenset(policy.strings("unattested_hops") if policy is not None else ()),
    )


def _root(fields: Fields, folder: Path) -> PinnedRoot:
    _only(fields, "file", "keys", "threshold", "repository")
    if ("file" in fields) == ("keys" in fields):
        raise MalformedInput(f"{fields.path('file')}: expected either file or keys, got both or none")
    repository = fields.optional("repository", str)
    if "file" in fields and "threshold" in fields:
        raise MalformedInput(f"{fields.path('threshold')}: expected none beside file, which has its own, got one")
    if "file" in fields:
        place = folder / fields.required("file", str)
        return PinnedRoot(document=_read_file(place, fields.path("file")), repository=repository)
    keys = tuple(_fingerprint(entry, name, folder, any_kind=True)
                 for name in fields.required("keys", dict) for entry in (fields.object("keys").object(name),))
    threshold = fields.required("threshold", int)
    if not 1 <= threshold <= len(set(keys)):
        raise MalformedInput(f"{fields.path('threshold')}: expected 1 to {len(set(keys))}, the number of keys, "
                             f"got {threshold}")
    return PinnedRoot(keys=keys, threshold=threshold, repository=repository)


def _read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyNotFound(f"{what}: expected a readable file, got {path}: {error.strerror}") from None


def _only(fields: Fields, *known: str) -> None:
    """Check that there is no other member: a misspelled one must not silently trust more, or less."""
    for name in fields.raw:
        if name not in known:
            raise MalformedInput(f"{fields.path(name)}: expected one of {', '.join(known)}, got {name!r}")


def _keys(fields: Fields, role: str, folder: Path) -> dict[str, str]:
    table = fields.optional_object(role)
    return {} if table is None else {name: _fingerprint(table.object(name), name, folder) for name in table.raw}


def _fingerprint(entry: Fields, name: str, folder: Path, *, any_kind: bool = False) -> str:
    given = [key for key in ("fingerprint", "pem", "file") if key in entry]
    if len(given) != 1 or len(entry.raw) != 1:
        raise MalformedInput(f"{entry.path('')[:-1]}: expected one of fingerprint, pem and file, "
                             f"got {', '.join(entry.raw) or 'none'}")
    if given == ["fingerprint"]:
        fingerprint = entry.required("fingerprint", str)
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise MalformedInput(f"{entry.path('fingerprint')}: expected sha256: and 64 hex digits, "
                                 f"got {fingerprint[:80]!r}", hint="print it with: dtrain key show FILE")
        return fingerprint
    path = folder / entry.required("file", str) if given == ["file"] else None
    pem = entry.required("pem", str).encode() if path is None else _read_file(path, entry.path("file"))
    of = name if path is None else f"{name} ({path})"
    return VerifyKey.of_file(pem, of=of).fingerprint if any_kind else PublicKey.from_pem(pem, of=of).fingerprint


def _base(entry: Fields) -> BaseImage:
    _only(entry, "reference", "digest", "command")
    return BaseImage(
        reference=entry.required("reference", str),
        digest=Digest.parse(entry.required("digest", str), what=entry.path("digest")),
        command=entry.strings("command") if "command" in entry else None,
    )


def _trains(fields: Fields) -> dict[str, TrainPin]:
    table = fields.object("trains")
    pins = {}
    for name in table.raw:
        entry = table.object(name)
        _only(entry, "creator", "proposal", "source", "session", "route", "files")
        session = entry.optional("session", str)
        try:
            session_id = None if session is None else bytes.fromhex(session)
        except ValueError:
            raise MalformedInput(f"{entry.path('session')}: expected hex digits, got {session!r}") from None
        pins[name] = TrainPin(
            id=name,
            creator=entry.optional("creator", str),
            proposal=entry.optional("proposal", str),
            session=session_id,
            source=entry.optional("source", str),
            route=entry.strings("route") if "route" in entry else None,
            files=entry.string_map("files") if "files" in entry else None,
        )
    return pins


@dataclass(frozen=True, slots=True)
class EmbeddedKeys:
    """Trust in whatever keys the train itself carries: what train_lib does, and no protection (W01)."""

    source: str = "the train's own keys (--trust-embedded-keys)"
    base_images: tuple[BaseImage, ...] = ()
    any_base: bool = True

    def check_keys(self, config: TrainConfig) -> None:
        """Check nothing: whoever could write to the registry could have exchanged every key."""

    def pin(self, config: TrainConfig) -> TrainPin | None:
        """Return ``None``: nothing is known from outside."""
        return None


def render_anchor(
    *, creators: Mapping[str, PublicKey], builders: Mapping[str, PublicKey], stations: Mapping[str, PublicKey],
    base_images: tuple[BaseImage, ...], trains: tuple[TrainPin, ...], root: PinnedRoot | None = None,
) -> str:
    """Return the text of an anchor file that pins what is given; of a root, its keys."""
    lines = ["# What stations of this train trust. Hand it over on another way than the train.", "version = 1"]
    if root is not None:
        lines += ["\n[root]  # whose signed metadata every train needs", f"threshold = {root.threshold}"]
        lines += [] if root.repository is None else [f"repository = {_quoted(root.repository)}"]
        lines += [f'keys.holder-{number} = {{ fingerprint = "{key}" }}'
                  for number, key in enumerate(root.keys, start=1)]
    for role, keys in (("creators", creators), ("builders", builders), ("stations", stations)):
        lines += [f"\n[{role}]"]
        lines += [f'{_quoted(name)} = {{ fingerprint = "{key.fingerprint}" }}' for name, key in keys.items()]
    for base in base_images:
        lines += ["\n[[base_images]]", f"reference = {_quoted(base.reference)}", f'digest = "{base.digest}"']
        if base.command is not None:
            lines += [f"command = [{', '.join(_quoted(word) for word in base.command)}]"]
    for pin in trains:
        lines += [f"\n[trains.{_quoted(pin.id)}]"]
        lines += [f"{name} = {_quoted(value)}" for name, value in
                  (("creator", pin.creator), ("proposal", pin.proposal), ("source", pin.source),
                   ("session", None if pin.session is None else pin.session.hex())) if value is not None]
        if pin.route is not None:
            lines += [f"route = [{', '.join(_quoted(name) for name in pin.route)}]"]
        if pin.files is not None:
            lines += [f"\n[trains.{_quoted(pin.id)}.files]"]
            lines += [f'{_quoted(path)} = "{digest}"' for path, digest in pin.files.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a TOML basic string."""
    escaped = "".join(f"\\u{ord(char):04x}" if ord(char) < 0x20 or char in '"\\\x7f' else char for char in text)
    return f'"{escaped}"'
