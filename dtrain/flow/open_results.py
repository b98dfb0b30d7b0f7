"""``dtrain results``: the creator verifies the whole train and opens the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtrain.crypto.rsa import PrivateKey
from dtrain.errors import RouteProblem, WrongKey
from dtrain.flow import workdir
from dtrain.flow.believe import believe
from dtrain.flow.context import Context
from dtrain.flow.fetch import fetch_image
from dtrain.flow.pull_verify import check_train
from dtrain.oci.reference import Reference
from dtrain.train.cargo import open_cargo, verify_cargo
from dtrain.train.plain import PlainFile
from dtrain.trust.anchor import Anchor, EmbeddedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedResults:
    """The creator's results, in the clear."""

    folder: Path
    reference: Reference
    """Pinned."""
    train: str
    done: int
    stops: int
    files: int


def open_results(
    reference: Reference, folder: Path, *, key: PrivateKey, trust: Anchor | EmbeddedKeys, context: Context
) -> OpenedResults:
    """Verify the train at ``reference`` and write its decrypted results below ``folder``, all at once or nothing.

    Raises:
        VerificationFailed: one of its kinds; nothing was written.
        RouteProblem: no stop has run the train yet.
        WrongKey: the key is not the creator's.
        TransportError: the image cannot be had.
    """
    workdir.check_free(folder)
    with context.connect(reference) as transport, context.spool() as spool:
        believed = believe(reference, transport, trust, context)
        pinned = fetch_image(transport, believed.selector, context)
        checked, _ = check_train(transport, pinned, believed.trust, spool, context)
        believed.check_image(checked, pinned.image.manifest)
        creator, stops = checked.config.creator, len(checked.config.route)
        if key.public != creator.key:
            raise WrongKey(f"creator {creator.id}: expected the private key of {creator.key.fingerprint}, got that of "
                           f"{key.public.fingerprint}", hint="check --key")
        if not checked.done:
            raise RouteProblem("results: expected a train that a station has run, got a new one")
        if checked.done < stops:
            context.warn(f"the train has passed {checked.done} of {stops} stops: these results are not the last")
        cargo = open_cargo(checked.sealed, key, wrapped=creator.encrypted_key, of="file key for the creator")
        train = verify_cargo(cargo, checked.pin)
        with workdir.new_folder(folder) as staging:
            workdir.write_entries(staging, train.results(), writable=True)
        files = sum(isinstance(entry, PlainFile) for entry in train.results())
    return OpenedResults(folder=folder, reference=reference.pinned(pinned.image.manifest.digest),
                         train=checked.config.id, done=checked.done, stops=stops, files=files)
