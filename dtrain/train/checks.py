"""All that can be checked of a sealed train without a private key, in one place and in one order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dtrain.train import pht
from dtrain.train.config import TrainConfig
from dtrain.train.pin import TrainPin, check_pin
from dtrain.train.route import visited
from dtrain.train.sealed import SealedTrain, check_files


class Trust(Protocol):
    """Who is believed, told from outside the train. The anchor is one; TUF metadata will be another."""

    @property
    def source(self) -> str:
        """Where the trust comes from, for the record of the hop."""

    def check_keys(self, config: TrainConfig) -> None:
        """Check that every key in the config is the trusted one for its id.

        Raises:
            MissingEvidence: nobody vouches for a key.
            BadSignature: another key than the trusted one.
        """

    def pin(self, config: TrainConfig) -> TrainPin | None:
        """Return what is known about this train from outside.

        Raises:
            MissingEvidence: trains have to be known, and this one is not.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTrain:
    """A sealed train whose keys, route and signatures have been checked; its plaintext has not."""

    sealed: SealedTrain
    done: int
    """How many stops have run it."""
    pin: TrainPin | None

    @property
    def config(self) -> TrainConfig:
        """The train's configuration."""
        return self.sealed.config


def check_sealed(sealed: SealedTrain, trust: Trust) -> CheckedTrain:
    """Return the train after every check that needs no private key.

    Raises:
        VerificationFailed: one of its kinds, for the first check that does not hold.
    """
    config = sealed.config
    trust.check_keys(config)  # first: every check below uses the keys that the config carries
    pin = trust.pin(config)
    if pin is not None:
        check_pin(pin, config)
    done = visited(config)
    pht.check_signatures(config, done)
    check_files(sealed, done=done)
    return CheckedTrain(sealed=sealed, done=done, pin=pin)

