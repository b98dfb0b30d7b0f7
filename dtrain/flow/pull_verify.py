"""``dtrain pull-verify``: from a reference to a verified, decrypted working folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.signing import SigningKey
from dtrain.errors import WrongKey
from dtrain.flow import workdir
from dtrain.flow.attest import check_signing_key
from dtrain.flow.believe import Believed, believe
from dtrain.flow.context import Context
from dtrain.flow.fetch import FoundLayers, Pinned, fetch_image, find_bases, read_layers
from dtrain.oci.reference import Reference
from dtrain.train import paths
from dtrain.train.cargo import VerifiedTrain, open_cargo, verify_cargo
from dtrain.train.checks import CheckedTrain, check_sealed
from dtrain.train.config import Stop
from dtrain.train.route import check_turn
from dtrain.train.sealed import read_train
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys
from dtrain.trust.attested import AttestedTrain
from dtrain.trust.base_image import check_runtime
from dtrain.trust.statements import Unattested


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedHop:
    """A train that was verified for this station and stands decrypted in ``folder``, ready to run."""

    folder: Path
    record: workdir.HopRecord

    @property
    def results_dir(self) -> Path:
        """Where the run finds the results so far and leaves its own."""
        return self.folder / paths.RESULTS

    @property
    def code_dir(self) -> Path:
        """Where the run finds its algorithm; it is read-only, and what changes there is not sent on."""
        return self.folder / paths.CODE


def pull_verify(
    reference: Reference, folder: Path, *, station: str, key: PrivateKey, trust: Anchor | EmbeddedKeys,
    context: Context, signing_key: SigningKey | None = None,
) -> VerifiedHop:
    """Verify the train at ``reference`` for ``station`` and decrypt it into ``folder``.

    Nothing is written to ``folder`` before everything has been verified, and then all of it at once.

    Args:
        reference: the train.
        folder: the working folder to make.
        station: the station's id on the route.
        key: its RSA key.
        trust: what is trusted from outside.
        context: the surroundings.
        signing_key: the key that it signs metadata with; by default ``key``.

    Raises:
        VerificationFailed: one of its kinds; the train must not be run.
        WrongKey: the private key is not that of the station.
        TransportError: the image cannot be had.
        UsageProblem: ``folder`` is there already.
        StorageProblem: it cannot be written.
    """
    workdir.check_free(folder)
    with context.connect(reference) as transport, context.spool() as spool:
        believed = believe(reference, transport, trust, context, station=station)  # signed metadata first
        pinned = fetch_image(transport, believed.selector, context)  # from here on the tag is never read again
        checked, layers = check_train(transport, pinned, believed.trust, spool, context)  # all that needs no key
        gap = believed.check_image(checked, pinned.image.manifest)
        stop = check_turn(checked.config, station)
        check_own_key(key, stop)
        check_signing_key(signing_key or SigningKey.of_rsa(key), believed.attested, station)
        cargo = open_cargo(checked.sealed, key, wrapped=stop.encrypted_key, of=f"file key for {stop}")
        train = verify_cargo(cargo, checked.pin)  # all that needs plaintext
        record = _record(train, stop, reference, pinned, layers, believed, gap, context)
        return _write(folder, train, record)


def check_train(
    transport: Transport, pinned: Pinned, trust: Anchor | EmbeddedKeys | AttestedTrain, spool: BinaryIO,
    context: Context,
) -> tuple[CheckedTrain, FoundLayers]:
    """Return the image's train after every check that needs no private key.

    Raises:
        VerificationFailed: one of its kinds, for the first check that does not hold.
    """
    image = pinned.image
    bases = find_bases(image, trust, context)
    layers = read_layers(transport, image, bases[0] if bases else None, state=context.state, spool=spool)
    checked = check_sealed(read_train(layers.tree), trust)
    for base in bases:
        check_runtime(image.config, base, frozenset(checked.sealed.code))
    return checked, layers


def check_own_key(key: PrivateKey, stop: Stop) -> None:
    """Check that the private key is the one that the route names for this stop.

    Raises:
        WrongKey: it is another one.
    """
    if key.public != stop.key:
        raise WrongKey(f"{stop}: expected the private key of {stop.key.fingerprint}, got that of "
                       f"{key.public.fingerprint}", hint="check --key and --station")


def _anywhere(reference: Reference) -> Reference:
    """Return the reference as it holds in every folder: push-results is called from inside the working folder."""
    return reference if reference.layout is None else replace(reference, layout=reference.layout.absolute())


def _record(
    train: VerifiedTrain, stop: Stop, reference: Reference, pinned: Pinned, layers: FoundLayers, believed: Believed,
    gap: tuple[Unattested, ...], context: Context,
) -> workdir.HopRecord:
    return workdir.HopRecord(
        reference=str(_anywhere(reference)), resolved=str(pinned.resolved),
        digest=str(pinned.image.manifest.digest), train=train.config.id, station=str(stop.station),
        hop=stop.index + 1, stops=len(train.config.route),
        keep_layers=layers.keep, sealed_digest="", sealed_size=0,  # known when they are written
        verified_at=context.now().isoformat(), trust=believed.trust.source,
        metadata="" if believed.attested is None else str(believed.attested.metadata),
        unattested=tuple(hop.to_custom() for hop in gap),
    )


def _write(folder: Path, train: VerifiedTrain, record: workdir.HopRecord) -> VerifiedHop:
    query = train.code.query()
    with workdir.new_folder(folder) as staging:
        digest, size = workdir.write_sealed(staging / workdir.SEALED, train.sealed)
        record = replace(record, sealed_digest=str(digest), sealed_size=size)
        workdir.write_entries(staging / paths.CODE, (*train.code.files(), *(() if query is None else (query,))),
                              writable=False)
        workdir.write_entries(staging / paths.RESULTS, train.results(), writable=True)
        config = staging / paths.CONFIG
        config.write_bytes(train.sealed.raw_config)
        config.chmod(0o444)
        workdir.write_record(staging, record)
    return VerifiedHop(folder=folder, record=record)
