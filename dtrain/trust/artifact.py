"""One state of a train's TUF metadata as one OCI artifact: a manifest with a layer for each metadata file.

The tag ``tuf`` names the newest state. Each state also has a tag of its own, ``tuf-<timestamp version>-<12 hex digits
of its digest>``, put before ``tuf`` moves: it keeps the state from garbage collection and makes two states with the
same version visible. What the files say, and whether it is true, is the business of :mod:`dtrain.trust.client`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO

from dtrain.errors import DigestMismatch, MalformedInput, NotFound
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest, make_manifest, parse_manifest
from dtrain.transport.protocol import Transport

HEAD = "tuf"
ARTIFACT_TYPE = "application/vnd.tuf.repository.v1+json"
METADATA_TYPE = "application/vnd.tuf.metadata+json"
NAME, TITLE = "tuf.io/filename", "org.opencontainers.image.title"
FILE_MAX = 5_000_000  # bytes; python-tuf's own bound for targets
FILES_MAX = 1024
_INLINE_FILE, _INLINE_ALL = 16 * 2**10, 512 * 2**10  # bytes; a manifest may have 4 MiB
_FILE = re.compile(r"(?:(?P<version>[1-9][0-9]{0,9})\.)?(?P<role>[A-Za-z0-9][A-Za-z0-9._-]{0,200})\.json")
_COMMIT = re.compile(rf"{HEAD}-(?P<version>[1-9][0-9]{{0,9}})-(?P<digest>[0-9a-f]{{12}})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A state's manifest, and the descriptor of each file by its name. None of it is believed."""

    manifest: Manifest
    files: Mapping[str, Descriptor] = field(repr=False, hash=False)

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return self.manifest.digest


class StoredFiles(Mapping[str, bytes]):
    """The files of a stored state by name, each fetched when it is asked for and checked against the manifest."""

    def __init__(self, transport: Transport, artifact: Artifact) -> None:
        self._transport = transport
        self._artifact = artifact
        self._fetched: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        """Return one file.

        Raises:
            KeyError: the state has no such file.
            DigestMismatch: other bytes than the manifest says.
        """
        if name not in self._fetched:
            self._fetched[name] = self._fetch(name, self._artifact.files[name])
        return self._fetched[name]

    def _fetch(self, name: str, want: Descriptor) -> bytes:
        if want.data is None:
            with self._transport.open_blob(want) as blob:
                return blob.read()
        if Digest.of(want.data) != want.digest:
            raise DigestMismatch(f"{self._transport.place}: {name}: expected {want.digest}, "
                                 f"got {Digest.of(want.data)}")
        return want.data

    def __iter__(self) -> Iterator[str]:
        return iter(self._artifact.files)

    def __len__(self) -> int:
        return len(self._artifact.files)


def parse_name(name: str) -> tuple[str, int | None] | None:
    """Return the role and version that a file's name spells, or ``None`` if it is no metadata file's name."""
    match = _FILE.fullmatch(name)
    return None if match is None else (match["role"], None if match["version"] is None else int(match["version"]))


def file_name(role: str, version: int) -> str:
    """Return the name of a role's file (TUF 3.1, consistent snapshots)."""
    return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"


def commit_tag(version: int, digest: Digest) -> str:
    """Return the tag that a state keeps for ever."""
    return f"{HEAD}-{version}-{digest.short}"


def parse_commit_tag(tag: str) -> tuple[int, str] | None:
    """Return the timestamp version and digest prefix of a state's own tag, or ``None`` if it is no such tag."""
    match = _COMMIT.fullmatch(tag)
    return None if match is None else (int(match["version"]), match["digest"])


def fetch_artifact(transport: Transport, selector: str | Digest = HEAD) -> Artifact | None:
    """Return the state that a tag or digest names, or ``None`` when there is none.

    Raises:
        MalformedInput: it is no artifact of TUF metadata.
    """
    try:
        fetched = transport.fetch_manifest(selector)
    except NotFound:
        return None
    manifest = parse_manifest(fetched)
    what = f"{transport.place}: {selector}"
    if not isinstance(manifest, Manifest) or manifest.artifact_type != ARTIFACT_TYPE:
        raise MalformedInput(f"{what}: expected an artifact of {ARTIFACT_TYPE}, got another manifest")
    if len(manifest.layers) > FILES_MAX:
        raise MalformedInput(f"{what}: expected at most {FILES_MAX} metadata files, got {len(manifest.layers)}")
    files: dict[str, Descriptor] = {}
    for layer in manifest.layers:
        name = layer.annotations.get(NAME, "")
        if parse_name(name) is None or name in files or layer.size > FILE_MAX:
            raise MalformedInput(f"{what}: expected metadata files of at most {FILE_MAX} bytes, each name once, "
                                 f"got {name[:80]!r} of {layer.size} bytes")
        files[name] = layer
    _check_names(files, what)
    return Artifact(manifest=manifest, files=files)


def _check_names(files: Collection[str], what: str) -> None:
    """Check that a state has each role once, and its roots without a gap: there is one way to read it."""
    roles: dict[str, list[int | None]] = {}
    for name in files:
        role, version = parse_name(name) or ("", None)
        roles.setdefault(role, []).append(version)
    for role, versions in roles.items():
        numbers = sorted(version for version in versions if version is not None)
        once = [None] if role == "timestamp" else numbers
        if (versions != once and sorted(map(str, versions)) != sorted(map(str, once))) or (
            role != "root" and len(versions) > 1
        ) or (role == "root" and numbers != list(range(numbers[0], numbers[0] + len(numbers)))):
            raise MalformedInput(f"{what}: expected each role once, and roots without a gap, got {len(versions)} files "
                                 f"of {role[:80]!r}")


def make_artifact(files: Mapping[str, bytes], *, subject: Descriptor) -> Artifact:
    """Return the artifact of a state.

    Args:
        files: metadata by file name.
        subject: the image of the newest hop, so that the state is one of its referrers (image-spec: ``subject``).
    """
    room = _INLINE_ALL
    described = {}
    for name in sorted(files):
        one = replace(Descriptor.of(files[name], METADATA_TYPE), annotations={NAME: name, TITLE: name})
        if one.size <= min(_INLINE_FILE, room):
            room -= one.size
            one = replace(one, data=files[name])
        described[name] = one
    empty = replace(Descriptor.of(b"{}", media_types.OCI_EMPTY), data=b"{}")
    manifest = make_manifest(media_type=media_types.OCI_MANIFEST, artifact_type=ARTIFACT_TYPE, config=empty,
                             layers=tuple(described.values()), subject=subject)
    return Artifact(manifest=manifest, files=described)


def store_artifact(
    transport: Transport, artifact: Artifact, files: Mapping[str, bytes], *, known: Collection[Digest] = ()
) -> None:
    """Store a state's files, those that are inlined too, and its manifest by digest; no tag changes.

    Args:
        transport: where to.
        artifact: the state.
        files: its files by name.
        known: digests that are stored there already.
    """
    blobs = [(layer, files[name]) for name, layer in artifact.files.items()] + [(artifact.manifest.config, b"{}")]
    for descriptor, raw in blobs:
        if descriptor.digest not in known:
            transport.put_blob(descriptor, partial(BytesIO, raw))
    transport.put_manifest(artifact.manifest)
