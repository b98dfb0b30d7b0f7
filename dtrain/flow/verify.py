"""``dtrain verify``: all that needs no private key, for auditors and CI gates."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.errors import NotFound
from dtrain.flow.believe import Believed, believe
from dtrain.flow.context import Context
from dtrain.flow.fetch import Pinned, fetch_image
from dtrain.flow.pull_verify import check_train
from dtrain.oci.reference import Reference
from dtrain.train.checks import CheckedTrain
from dtrain.train.config import TrainConfig
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.trust.attested import AttestedHop, AttestedTrain
from dtrain.trust.statements import Unattested


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A train that passed every check that needs no private key. Plaintext has not been looked at."""

    reference: Reference
    """Pinned."""
    config: TrainConfig
    done: int
    """How many stops have run it."""
    trust: str
    """What was believed."""
    base_checked: bool
    """Whether it was held against an approved base image."""
    attested: AttestedTrain | None = None
    """What signed metadata says, where the anchor names a root."""
    unattested: tuple[Unattested, ...] = ()
    """The hops beyond the newest with metadata, which the anchor lets pass without."""
    images_checked: tuple[int, ...] = ()
    """The hops whose images were fetched and checked, not their metadata alone."""
    images_gone: tuple[int, ...] = ()
    """The hops whose images are not there any more; their metadata was checked."""


def verify(
    reference: Reference, *, trust: Anchor | EmbeddedKeys, context: Context, every_image: bool = False
) -> Verified:
    """Check the train at ``reference``: metadata of every hop, keys, route, every signature, the file set, and that
    only ``/opt`` changed.

    Args:
        reference: the train, or one of its hops.
        trust: what is trusted from outside.
        context: the surroundings.
        every_image: check the images of earlier hops too, as far as they are there.

    Raises:
        VerificationFailed: one of its kinds, for the first check that does not hold.
        TransportError: the image cannot be had.
    """
    with context.connect(reference) as transport:
        believed = believe(reference, transport, trust, context)
        pinned, checked, gap = _check(transport, believed, context)
        attested, seen = believed.attested, [checked.done]
        earlier = () if attested is None or not every_image else attested.hops
        gone = _check_earlier(transport, attested, [hop for hop in earlier if hop.number != checked.done], context)
        seen += [hop.number for hop in earlier if hop.number not in (*gone, checked.done)]
    return Verified(
        reference=reference.pinned(pinned.image.manifest.digest), config=checked.config, done=checked.done,
        trust=believed.trust.source, attested=attested, unattested=gap, images_checked=tuple(sorted(seen)),
        images_gone=gone, base_checked=not trust.any_base or bool(trust.base_images) or attested is not None)


def _check(
    transport: Transport, believed: Believed, context: Context
) -> tuple[Pinned, CheckedTrain, tuple[Unattested, ...]]:
    with context.spool() as spool:
        pinned = fetch_image(transport, believed.selector, context)
        checked, _ = check_train(transport, pinned, believed.trust, spool, context)
        return pinned, checked, believed.check_image(checked, pinned.image.manifest)


def _check_earlier(
    transport: Transport, attested: AttestedTrain | None, hops: list[AttestedHop], context: Context
) -> tuple[int, ...]:
    """Check the images of these hops; return the numbers of those that are gone."""
    gone = []
    for hop in hops:
        assert attested is not None  # noqa: S101  without metadata there are no hops
        try:
            _check(transport, Believed(selector=hop.digest, trust=attested, hop=hop, attested=attested), context)
        except NotFound:
            gone.append(hop.number)
    return tuple(gone)
