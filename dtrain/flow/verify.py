"""``dtrain verify``: all that needs no private key, for auditors and CI gates."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image
from dtrain.flow.pull_verify import check_train
from dtrain.oci.reference import Reference
from dtrain.train.config import TrainConfig
from dtrain.trust.anchor import Anchor, EmbeddedKeys


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


def verify(reference: Reference, *, trust: Anchor | EmbeddedKeys, context: Context) -> Verified:
    """Check the train at ``reference``: keys, route, every signature, the file set, and that only ``/opt`` changed.

    Raises:
        VerificationFailed: one of its kinds, for the first check that does not hold.
        TransportError: the image cannot be had.
    """
    with context.connect(reference) as transport, context.spool() as spool:
        pinned = fetch_image(transport, reference.selector, context)
        checked, _ = check_train(transport, pinned, trust, spool, context)
    return Verified(reference=reference.pinned(pinned.image.manifest.digest), config=checked.config,
                    done=checked.done, trust=trust.source, base_checked=not trust.any_base or bool(trust.base_images))
