"""``dtrain build``: a new train from a folder, a base image, a route and the keys of creator and builder (hop 0)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dtrain.crypto.rsa import PrivateKey, PublicKey
from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import Conflict, StorageProblem, UsageProblem, WrongKey
from dtrain.flow.attest import publish_train
from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image, read_layers
from dtrain.oci.digest import Digest
from dtrain.oci.edit import Image, plain_layer, replace_layers
from dtrain.oci.layer_writer import LayerWriter
from dtrain.oci.reference import DEFAULT_TAG, Reference
from dtrain.train import paths, pht
from dtrain.train.config import Build, Creator, Source, Stop, TrainConfig, as_ident
from dtrain.train.pin import TrainPin, source_of
from dtrain.train.plain import PlainFile, from_bytes, read_folder
from dtrain.train.route import hop_tag, visited
from dtrain.train.seal import seal_new
from dtrain.transport.copy import copy_blobs
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, BaseImage, PinnedRoot, render_anchor
from dtrain.trust.base_image import ApprovedBase
from dtrain.trust.root import Consortium, Profile, draft_root, parse_root, read_consortium, sign_root
from dtrain.trust.statements import DWELL_MAX, SignedFile, describe
from dtrain.version import VERSION

BASE_TAG = "base"
TRAIN_LIFE = ROOT_LIFE = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """What the metadata of a train needs; what is left out is taken from the train's own keys.

    Args:
        creator_key: signs as creator.
        builder_key: signs as builder, where the root names builders.
        station_keys: what stations sign metadata with.
        roots: the consortium's root metadata in ascending versions; without it the creator is his own consortium.
        deadline: when every signature of the train ends.
        dwell_days: how long a station may leave the train before it starts.
    """

    creator_key: SigningKey | None = None
    builder_key: SigningKey | None = None
    station_keys: Mapping[str, VerifyKey] = field(default_factory=dict, hash=False)
    roots: tuple[bytes, ...] = ()
    deadline: datetime | None = None
    dwell_days: int = 35


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What a train is to be.

    Args:
        code: folder of the algorithm; a ``query.json`` at its top is refused, give it as ``query``.
        route: stations and their public keys, in order.
        command: the words before the path of the entry point in ``Cmd``.
        entrypoint: path of the file that starts the algorithm, relative to ``code``.
    """

    id: str
    proposal: str
    creator: str
    creator_key: PrivateKey
    builder: str
    builder_key: PrivateKey
    code: Path
    route: Sequence[tuple[str, PublicKey]]
    query: bytes | None = None
    command: tuple[str, ...] = ("python",)
    entrypoint: str = "entrypoint.py"
    eco_system: str = "tue"
    signed: SignedPlan | None = field(default_factory=SignedPlan)
    """How its metadata is signed; ``None`` makes a plain PHT train, which nobody with a root will accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTrain:
    """A train that was built and published."""

    reference: Reference
    """Pinned."""
    base: Reference
    """The tag ``base``, pinned."""
    train: str
    anchor: str
    """Text of an anchor file for the stations of the route."""
    complete: bool
    """Whether its metadata has all signatures; else it waits for ``dtrain trust cosign``."""


def build(plan: TrainPlan, base: Reference, target: Reference, *, context: Context) -> NewTrain:
    """Make the train that ``plan`` describes on the image ``base`` and publish it at ``target``.

    The tags ``base`` (the base image with the train's empty folders, what existing stations put their results on) and
    ``latest`` are two different digests, as PHT routers expect. ``latest`` is put last.

    Raises:
        UsageProblem: the plan contradicts itself or the code folder.
        Conflict: there is a train at ``target`` already.
        TransportError: the base image cannot be had, or the registry refuses.
    """
    files, now = _code(plan), context.now()
    _check_dates(plan, now)
    _check_members(plan, context)
    mtime = int(now.timestamp())
    with (context.connect(base) as base_place, context.connect(target) as transport,
          TemporaryDirectory(prefix="dtrain-") as folder):
        _check_vacant(transport, target)
        image = fetch_image(base_place, base.selector, context).image
        _check_base(base_place, image, context)
        empty, full = Path(folder, "base.tar"), Path(folder, "latest.tar")  # folders and ciphertext, no plaintext
        with empty.open("wb") as out:
            based = _on_base(image, plan, _seal_base(out, mtime), now)
        with full.open("wb") as out:
            hop = seal_new(_draft(plan, base), files, _query(plan), creator_key=plan.creator_key,
                           builder_key=plan.builder_key, out=out, mtime=mtime)
        latest = _on_base(image, plan, (hop.layer, hop.size), now)
        copy_blobs(base_place, transport, image.manifest.layers,
                   mount_from=base.repository if base.host == target.host else None)
        _put(transport, based, empty)
        _put(transport, latest, full)
        transport.put_tag(BASE_TAG, based.manifest)
        transport.put_tag(hop_tag(0), latest.manifest)
        root, complete = _attest(target, transport, plan, latest, hop.config, files, context)  # before the route starts
        transport.put_tag(DEFAULT_TAG, latest.manifest)
    source = base.with_tag(base.tag or DEFAULT_TAG)
    train = TrainPin(id=plan.id, creator=str(hop.config.creator.id), proposal=str(hop.config.proposal_id),
                     session=hop.config.session_id, source=source_of(hop.config),
                     route=tuple(station for station, _ in plan.route), files=_digests(plan, files))
    anchor = render_anchor(
        creators={plan.creator: plan.creator_key.public}, builders={plan.builder: plan.builder_key.public},
        stations=dict(plan.route), trains=(train,),
        base_images=(BaseImage(reference=str(source), digest=image.manifest.digest, command=plan.command),),
        root=root,
    )
    return NewTrain(reference=target.pinned(latest.manifest.digest), train=plan.id, anchor=anchor, complete=complete,
                    base=target.with_tag(BASE_TAG).pinned(based.manifest.digest))


def _check_dates(plan: TrainPlan, now: datetime) -> None:
    if plan.signed is not None and plan.signed.deadline is not None and plan.signed.deadline <= now:
        raise UsageProblem(f"deadline: expected a day to come, got {plan.signed.deadline:%Y-%m-%d}")
    if plan.signed is not None and not 1 <= plan.signed.dwell_days <= DWELL_MAX:
        raise UsageProblem(f"dwell_days: expected 1 to {DWELL_MAX}, got {plan.signed.dwell_days}")


def _check_members(plan: TrainPlan, context: Context) -> None:
    """Check before anything is stored that the root knows the creator and his key; warn of stations it does not know.

    Raises:
        WrongKey: it does not.
    """
    if plan.signed is None or not plan.signed.roots:
        return
    consortium = read_consortium(parse_root(plan.signed.roots[-1], what="root").signed)
    own = (plan.signed.creator_key or SigningKey.of_rsa(plan.creator_key)).public.fingerprint
    named = consortium.creators.get(plan.creator)
    if named is None or named.fingerprint != own:
        known = ", ".join(f"{name} {key.fingerprint}" for name, key in consortium.creators.items())
        raise WrongKey(f"creator {plan.creator!r}: expected one of the root's creators with his key ({known}), "
                       f"got {own}", hint="check --creator, --key and --signing-key")
    strangers = [station for station, _ in plan.route if station not in consortium.stations]
    if strangers and consortium.profile is not Profile.ROUTER:
        context.warn(f"the root does not name {', '.join(strangers)}: their hops will need dtrain trust cosign")


def _attest(
    target: Reference, transport: Transport, plan: TrainPlan, latest: Image, config: TrainConfig,
    files: Sequence[PlainFile], context: Context,
) -> tuple[PinnedRoot | None, bool]:
    """Publish the metadata of the new train; return the root that stations pin, and whether no signature is missing."""
    if plan.signed is None:
        return None, True
    signed, now = plan.signed, context.now()
    creator = signed.creator_key or SigningKey.of_rsa(plan.creator_key)
    stations = {station: signed.station_keys.get(station) or VerifyKey.of_rsa(key) for station, key in plan.route}
    roots = signed.roots or (own_root(plan.creator, creator, stations, now),)
    pinned = pinned_root(roots, context)
    builders = read_consortium(parse_root(roots[-1], what="root").signed).builders
    builder = [signed.builder_key or SigningKey.of_rsa(plan.builder_key)] if builders else []
    descriptor = describe(
        config, name=target.name, deadline=signed.deadline or now + TRAIN_LIFE, dwell_days=signed.dwell_days,
        files=_signed_files(plan, files), base=ApprovedBase.of(latest, name=config.source.address, layers=-1))
    anchor = Anchor(source="the new anchor", creators={}, builders={}, stations={},
                    root=replace(pinned, document=roots[0]))
    state = publish_train(target, transport, latest.manifest, descriptor, roots=roots, stations=stations,
                          signing=[creator, *builder], anchor=anchor, context=context)
    return pinned, state.complete


def pinned_root(roots: Sequence[bytes], context: Context) -> PinnedRoot:
    """Return what an anchor pins of a consortium: the key holders of its first root."""
    consortium = read_consortium(parse_root(roots[0], what="root").signed)
    return PinnedRoot(keys=tuple(key.fingerprint for key in consortium.keyholders.values()),
                      threshold=consortium.threshold, repository=context.trust_repository)


def own_root(name: str, creator: SigningKey, stations: Mapping[str, VerifyKey], now: datetime) -> bytes:
    """Return the root of a consortium that consists of the creator and the stations of the route."""
    consortium = Consortium(keyholders={name: creator.public}, creators={name: creator.public}, stations=stations)
    root = draft_root(consortium, version=1, expires=now + ROOT_LIFE)
    sign_root(root, creator, None)
    return root.to_bytes()


def _signed_files(plan: TrainPlan, files: Sequence[PlainFile]) -> dict[str, SignedFile]:
    digests = _digests(plan, files)
    return {file.path: SignedFile(size=file.size, mode=file.mode & 0o777, sha256=digests[file.path])
            for file in (*files, *filter(None, [_query(plan)]))}


def _code(plan: TrainPlan) -> tuple[PlainFile, ...]:
    """Return the code's files; every one of them is signed, hidden ones too."""
    if not plan.code.is_dir():
        raise StorageProblem(f"{plan.code}: expected the folder of the algorithm, got none")
    files = tuple(entry for entry in read_folder(plan.code) if isinstance(entry, PlainFile))
    names = {file.path for file in files}
    if paths.QUERY in names:
        raise UsageProblem(f"{plan.code}: expected no {paths.QUERY} at the top, got one",
                           hint="the query is signed apart from the files: move it elsewhere and give --query FILE")
    if plan.entrypoint not in names:
        raise UsageProblem(f"{plan.code}: expected the entry point {plan.entrypoint!r}, got none",
                           hint="give --entrypoint PATH, relative to the folder")
    return files


def _check_vacant(transport: Transport, target: Reference) -> None:
    if target.digest is not None or (target.tag or DEFAULT_TAG) != DEFAULT_TAG:
        raise UsageProblem(f"{target}: expected a repository or the tag {DEFAULT_TAG}, got another tag or a digest")
    if transport.resolve(DEFAULT_TAG) is not None:
        raise Conflict(f"{target}: expected no train there, got one", hint="choose another repository for --to")


def _check_base(transport: Transport, image: Image, context: Context) -> None:
    """Check that nothing of a train is in the base image: stations will not look into its layers again."""
    with context.spool() as spool:
        layers = read_layers(transport, image, None, state=context.state, spool=spool)
    found = [path for path in (paths.CODE, paths.RESULTS) if any(True for _ in layers.tree.walk(path))]
    if found or layers.tree.get(paths.CONFIG) is not None:
        raise UsageProblem(f"base image: expected nothing below /{paths.CODE} and /{paths.RESULTS}, got a train",
                           hint="give the image that trains are built on, not a train")


def _query(plan: TrainPlan) -> PlainFile | None:
    return None if plan.query is None else from_bytes(paths.QUERY, plan.query)


def _draft(plan: TrainPlan, base: Reference) -> TrainConfig:
    for name, _ in plan.route:
        if not isinstance(as_ident(name), str):
            raise UsageProblem(f"station {name!r}: expected an id that is not a number, got one",
                               hint="existing stations turn such ids into numbers and do not find themselves")
        hop_tag(len(plan.route), name)
    unsigned = b""
    draft = TrainConfig(
        source=Source(type="docker_repository", address=base.place, tag=base.tag or DEFAULT_TAG),
        creator=Creator(id=as_ident(plan.creator), key=plan.creator_key.public, key_pem=plan.creator_key.public.pem()),
        proposal_id=as_ident(plan.proposal), id=plan.id,
        session_id=os.urandom(pht.SESSION_BYTES),
        route=tuple(Stop(station=station, eco_system=plan.eco_system, index=index, key=key, key_pem=key.pem())
                    for index, (station, key) in enumerate(plan.route)),
        file_list=tuple(file.path for file in _code(plan)),
        hash=unsigned, signature=unsigned,
        build=Build(signature=unsigned, key=plan.builder_key.public, key_pem=plan.builder_key.public.pem()),
    )
    visited(draft)  # the route's own form
    return draft


def _digests(plan: TrainPlan, files: Sequence[PlainFile]) -> dict[str, str]:
    """Return the hex sha256 of each file, for the pin."""
    return {file.path: file.sha256() for file in (*files, *filter(None, [_query(plan)]))}


def _seal_base(out: BinaryIO, mtime: int) -> tuple[Digest, int]:
    """Write the layer of the tag ``base``: the train's empty folders, which stations without dtrain expect."""
    writer = LayerWriter(out, mtime=mtime)
    for folder in (paths.OPT, paths.CODE, paths.RESULTS):
        writer.directory(folder)
    return writer.finish()


def _on_base(image: Image, plan: TrainPlan, layer: tuple[Digest, int], now: datetime) -> Image:
    """Return the base image with one layer on top, and the command that starts the train."""
    command = [*plan.command, f"/{paths.CODE}/{plan.entrypoint}"]
    return replace_layers(image, keep=range(len(image.manifest.layers)), layer=plain_layer(image, *layer),
                          created=now, created_by=f"dtrain {VERSION} build",
                          runtime={**image.config.runtime, "Cmd": command})


def _put(transport: Transport, image: Image, layer: Path) -> None:
    transport.put_blob(image.manifest.layers[-1], lambda: layer.open("rb"))
    transport.put_blob(image.manifest.config, lambda: BytesIO(image.config.raw))
    transport.put_manifest(image.manifest)
