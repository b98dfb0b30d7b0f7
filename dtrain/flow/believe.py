"""Which image is the train, and who says so: signed metadata where the anchor names a root, else the anchor alone.

With metadata the tag decides nothing. It is looked at only to find a hop that a station without metadata made, and
then the image that it names has to pass every check that PHT allows, against the keys and the route that were signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from dtrain.errors import MissingEvidence, NotFound, RouteProblem, VerificationFailed
from dtrain.flow.context import Context
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest
from dtrain.oci.reference import DEFAULT_TAG, Reference
from dtrain.train.checks import CheckedTrain
from dtrain.train.route import parse_hop_tag
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.trust.artifact import HEAD
from dtrain.trust.attested import AttestedHop, AttestedTrain
from dtrain.trust.rules import Expected
from dtrain.trust.statements import Unattested
from dtrain.trust.verify import fetch_attested


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    """What to fetch, and what to hold it against."""

    selector: str | Digest
    trust: Anchor | EmbeddedKeys | AttestedTrain
    hop: AttestedHop | None = None
    """The hop whose image is to be fetched, where metadata vouches for it."""
    attested: AttestedTrain | None = field(default=None, repr=False)

    def check_image(self, checked: CheckedTrain, manifest: Manifest) -> tuple[Unattested, ...]:
        """Check the image's train against what metadata says of it, and return the hops that have no metadata.

        Raises:
            VerificationFailed: image and metadata disagree.
            MissingEvidence: hops without metadata that the anchor does not allow.
        """
        if self.attested is None:
            return ()
        if self.hop is not None:
            if len(manifest.raw) != self.hop.size:
                raise VerificationFailed(f"image manifest: expected {self.hop.size} bytes as signed, "
                                         f"got {len(manifest.raw)}")
            self.attested.check_statement(self.hop, checked.config, checked.sealed.raw_config, checked.done)
            return ()
        return _gap(self.attested, checked)


def believe(
    reference: Reference, transport: Transport, trust: Anchor | EmbeddedKeys, context: Context, *,
    station: str | None = None,
) -> Believed:
    """Return what to fetch for ``reference``.

    Args:
        reference: what the caller named.
        transport: its place.
        trust: what is trusted from outside.
        context: the surroundings.
        station: whose turn it has to be.

    Raises:
        VerificationFailed: metadata is missing or does not hold.
    """
    if not isinstance(trust, Anchor) or trust.root is None:
        if station is not None and transport.resolve(HEAD) is not None:
            context.warn("the train has signed metadata and your anchor names no root: you do not check it, and what "
                         "you publish will be refused by stations that do")
        return Believed(selector=reference.selector, trust=trust)
    attested = resolve(reference, transport, trust, context, station=station)
    found = _wanted(reference, transport, attested, station)
    if isinstance(found, Digest):
        return Believed(selector=found, trust=attested, attested=attested)
    return Believed(selector=found.digest, trust=attested, hop=found, attested=attested)


def resolve(
    reference: Reference, transport: Transport, anchor: Anchor, context: Context, *, station: str | None = None,
    look_around: bool = True,
) -> AttestedTrain:
    """Return what verified metadata says about the train at ``reference``.

    Args: as :func:`dtrain.trust.verify.fetch_attested`.
    """
    with metadata_place(reference, transport, anchor, context) as place:
        attested = fetch_attested(place, anchor, expected(reference, context), store=context.store,
                                  now=context.now(), max_stale=context.max_stale, warn=context.warn, station=station,
                                  look_around=look_around)
    if attested.stale is not None:
        context.warn(f"the metadata expired {attested.stale} ago and is accepted as --max-stale asks: someone may be "
                     "withholding newer metadata")
    return attested


def expected(reference: Reference, context: Context) -> Expected:
    """Return which train ``reference`` has to be: the one that the caller named, else that of the repository's name."""
    name = None if reference.layout is not None or context.train is not None else reference.name
    return Expected(train=context.train, name=name)


def metadata_place(
    reference: Reference, transport: Transport, anchor: Anchor | None, context: Context
) -> AbstractContextManager[Transport]:
    """Return where the train's metadata is: beside its images, or in a repository of its own."""
    start = context.trust_repository or (
        None if anchor is None or anchor.root is None else anchor.root.repository)
    if start is None:
        return contextlib.nullcontext(transport)
    return _opened(Reference.parse(start, default_host=reference.host or None).below(reference.name), context)


@contextlib.contextmanager
def _opened(reference: Reference, context: Context) -> Iterator[Transport]:
    with context.connect(reference) as place:
        yield place


def _wanted(
    reference: Reference, transport: Transport, attested: AttestedTrain, station: str | None
) -> AttestedHop | Digest:
    """Return the hop that is meant, or the digest of an image, named by the tag, that no metadata vouches for."""
    tag = reference.tag or DEFAULT_TAG
    numbered = parse_hop_tag(tag)
    if reference.digest is not None or numbered is not None:
        found = attested.by_digest(reference.digest) if reference.digest is not None else (
            None if numbered is None else attested.by_number(numbered[0]))
        if found is None:
            raise MissingEvidence(f"{reference}: expected a hop with signed metadata, got none of that digest")
        if station is not None and found != attested.newest:
            raise RouteProblem(f"{reference}: expected the newest hop, {attested.newest.number}, got {found.number}")
        return found
    stations = attested.descriptor.stations
    is_turn = attested.newest.number < len(stations) and stations[attested.newest.number] == station
    if is_turn and tag == DEFAULT_TAG and not attested.anchor.unattested:
        return attested.newest
    tagged = transport.resolve(tag)
    if tagged is None and tag != DEFAULT_TAG:
        raise NotFound(f"{reference}: expected it to exist, got no such tag")
    return attested.newest if tagged is None or attested.by_digest(tagged) is not None else tagged


def _gap(attested: AttestedTrain, checked: CheckedTrain) -> tuple[Unattested, ...]:
    """Return the hops beyond the newest one with metadata; every attested hop has to be in the image's chain."""
    newest, route = attested.newest, checked.config.route
    stations = tuple(enumerate(attested.descriptor.stations, start=1))[newest.number:checked.done]
    if not stations:
        raise MissingEvidence(f"image: expected one with signed metadata, got one of hop {checked.done} without",
                              hint="the tag names another image than the metadata; do not run it")
    attested.anchor.check_unattested(station for _, station in stations)
    attested.check_chain(checked.config, upto=newest.number)
    return tuple(Unattested(number=number, station=station, chain=link.digest.hex())
                 for number, station in stations if (link := route[number - 1].link) is not None)
