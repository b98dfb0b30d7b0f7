"""What a train is, told by signed metadata that has been verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dtrain.crypto.rsa import PublicKey
from dtrain.errors import BadSignature, DigestMismatch, MissingEvidence, RouteProblem, VerificationFailed
from dtrain.oci.digest import Digest
from dtrain.train.config import TrainConfig
from dtrain.train.pin import TrainPin
from dtrain.trust.anchor import Anchor, BaseImage
from dtrain.trust.base_image import ApprovedBase
from dtrain.trust.root import Consortium
from dtrain.trust.statements import HopStatement, TrainDescriptor, Unattested


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedHop:
    """One hop that signed metadata vouches for; the first is the train as its creator described it, number 0 if new."""

    number: int
    station: str | None
    digest: Digest
    """Of the image manifest."""
    size: int
    """Of the image manifest, in bytes."""
    signers: tuple[str, ...]
    """Whose keys signed it, for people."""
    keys: tuple[str, ...]
    """Their fingerprints."""
    statement: HopStatement | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedTrain:
    """A train's verified metadata. It is a :class:`~dtrain.train.checks.Trust`."""

    anchor: Anchor
    consortium: Consortium = field(repr=False)
    descriptor: TrainDescriptor = field(repr=False)
    hops: tuple[AttestedHop, ...]
    """The hops that have metadata, in order, the new train first."""
    metadata: Digest
    """The state of the metadata, an artifact's digest."""
    delegated: Mapping[str, frozenset[str]] = field(repr=False, hash=False)
    """The fingerprints of the keys that each station's role is delegated to."""
    root_version: int
    version: int
    """Of the timestamp."""
    issued: datetime
    expires: datetime
    stale: timedelta | None
    """How long ago it expired, where ``--max-stale`` let it pass."""

    @property
    def newest(self) -> AttestedHop:
        """The last hop that has metadata."""
        return self.hops[-1]

    @property
    def source(self) -> str:
        """Where the trust comes from, for the record of the hop."""
        return f"{self.anchor.source}, metadata version {self.version}"

    @property
    def base(self) -> ApprovedBase | None:
        """The base image that the creator signed."""
        return self.descriptor.base

    @property
    def base_images(self) -> tuple[BaseImage, ...]:
        """The base images that the anchor approves."""
        return self.anchor.base_images

    @property
    def any_base(self) -> bool:
        """Whether the anchor leaves the base image to the creator."""
        return self.anchor.any_base or not self.anchor.base_images

    def by_digest(self, digest: Digest) -> AttestedHop | None:
        """Return the hop whose image has that digest."""
        return next((hop for hop in self.hops if hop.digest == digest), None)

    def by_number(self, number: int) -> AttestedHop:
        """Return the hop of that number.

        Raises:
            MissingEvidence: no metadata vouches for it.
        """
        for hop in self.hops:
            if hop.number == number:
                return hop
        raise MissingEvidence(f"hop {number}: expected signed metadata, got none")

    def unattested(self) -> tuple[Unattested, ...]:
        """Return the hops without metadata that later stations found and vouch for, in order."""
        return tuple(gap for hop in self.hops if hop.statement is not None for gap in hop.statement.unattested)

    def check_keys(self, config: TrainConfig) -> None:
        """Check that every key in the config is the one in signed metadata, and that the anchor agrees.

        Raises:
            BadSignature: another key.
            VerificationFailed: another creator.
        """
        told = self.descriptor
        if str(config.creator.id) != told.creator:
            raise VerificationFailed(f"creator.id: expected {told.creator!r}, got {str(config.creator.id)!r}")
        _check_key(f"creator {told.creator!r}", told.creator_key, config.creator.key)
        _check_key("builder", told.builder_key, config.build.key)
        expected = dict(told.route)
        for stop in config.route:
            if str(stop.station) in expected:  # another route is refused as such, against the pin
                _check_key(f"station {str(stop.station)!r}", expected[str(stop.station)], stop.key)
        self.anchor.check_keys(config)

    def pin(self, config: TrainConfig) -> TrainPin | None:
        """Return what the creator signed about the train; what the anchor says of it has to agree.

        Raises:
            VerificationFailed: it does not.
        """
        signed, own = self.descriptor.pin(), self.anchor.pin(config)
        if own is not None:
            own.check_agrees(signed)
        return signed

    def check_statement(self, hop: AttestedHop, config: TrainConfig, raw_config: bytes, done: int) -> None:
        """Check that the image of a hop says what its station signed (B11).

        Raises:
            RouteProblem: another number of visited stops.
            DigestMismatch: another config, results or chain.
        """
        what = f"hop {hop.number}"
        if done != hop.number:
            raise RouteProblem(f"{what}: expected a train that {hop.number} stops have run, got one that "
                               f"{done} have", hint="signed metadata and image disagree; do not run this train")
        self.check_chain(config, upto=hop.number)
        if hop.statement is None:
            return
        link = config.route[done - 1].link
        for name, expected, got in (
            ("train_config.json", hop.statement.config, Digest.of(raw_config).hex),
            ("result_hash", hop.statement.result_hash, (config.result_hash or b"").hex()),
            ("chain digest", hop.statement.chain, "" if link is None else link.digest.hex()),
        ):
            if expected != got:
                raise DigestMismatch(f"{what}: {name}: expected {expected}, got {got}",
                                     hint="signed metadata and image disagree; do not run this train")


    def check_chain(self, config: TrainConfig, *, upto: int) -> None:
        """Check that the image continues the hops that metadata knows of, those without metadata of their own too.

        Raises:
            DigestMismatch: the chain of the route has another digest for one of them.
        """
        known = [(hop.number, hop.statement.chain) for hop in self.hops if hop.statement is not None]
        known += [(gap.number, gap.chain) for gap in self.unattested()]
        for number, chain in known:
            link = config.route[number - 1].link
            if number <= upto and (link is None or link.digest.hex() != chain):
                raise DigestMismatch(f"hop {number}: expected the chain digest {chain}, got "
                                     f"{'none' if link is None else link.digest.hex()}",
                                     hint="the image does not continue the hops that have metadata; do not run it")


def _check_key(who: str, expected: str, key: PublicKey) -> None:
    if key.fingerprint != expected:
        raise BadSignature(f"{who}: expected key {expected}, which the creator signed, got {key.fingerprint}",
                           hint="the train carries another key than the signed metadata; do not run it")
