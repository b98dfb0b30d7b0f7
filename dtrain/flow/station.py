"""The public API's face: a station or a creator, with its key, its anchor, and how it reaches images."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from dtrain.crypto.rsa import PrivateKey, PublicKey
from dtrain.crypto.secret import Secret
from dtrain.crypto.signing import SigningKey
from dtrain.errors import MissingEvidence
from dtrain.flow import push_results, workdir
from dtrain.flow.build import NewTrain, SignedPlan, TrainPlan, build
from dtrain.flow.context import Context
from dtrain.flow.open_results import OpenedResults, open_results
from dtrain.flow.pull_verify import VerifiedHop, pull_verify
from dtrain.flow.push_results import Published
from dtrain.flow.verify import Verified, verify
from dtrain.keystore.pem import read_private_key, read_public_key, read_signing_key, read_verify_key
from dtrain.oci.reference import Reference
from dtrain.transport.protocol import Transport
from dtrain.trust.anchor import Anchor, EmbeddedKeys, read_anchor
from dtrain.trust.state import State


def choose_trust(anchor: Anchor | Path | str | None, *, trust_embedded_keys: bool) -> Anchor | EmbeddedKeys:
    """Return what is to be believed.

    Raises:
        MissingEvidence: neither an anchor nor the explicit wish to do without.
        KeyNotFound: no such anchor file.
        MalformedInput: it is no anchor.
    """
    if anchor is not None:
        return anchor if isinstance(anchor, Anchor) else read_anchor(Path(anchor))
    if trust_embedded_keys:
        return EmbeddedKeys()
    raise MissingEvidence(
        "anchor: expected the keys that you trust, got none",
        hint="give --anchor FILE (docs/anchor.rst shows one), or accept with --trust-embedded-keys whatever keys the "
             "train itself carries, as train_lib does; then nobody vouches for them")


class _Party:
    """Somebody with a private key, who reaches images with certain settings."""

    def __init__(
        self, name: str, key: PrivateKey | Path | str, *, password: str | None, registry: str | None,
        plain_http: bool, ca_file: Path | str | None, username: str | None, password_for_registry: str | None,
        state_dir: Path | str | None, progress: Callable[[int], None] | None, warn: Callable[[str], None] | None,
        signing_key: SigningKey | Path | str | None = None, max_stale: timedelta = timedelta(0),
        trust_repository: str | None = None,
    ) -> None:
        self.name = name
        self._registry = registry
        self._warn = warn or (lambda text: warnings.warn(text, stacklevel=4))
        self._key = self._read_key(key, password)
        self._signing = self._read_signing(signing_key or key, password)
        self._context = Context(
            connect=connector(plain_http=plain_http, ca_file=None if ca_file is None else Path(ca_file),
                              username=username, password=password_for_registry, progress=progress),
            state=State(State.default_folder(os.environ) if state_dir is None else Path(state_dir)), warn=self._warn,
            max_stale=max_stale, trust_repository=trust_repository,
        )

    def _read_key(self, key: PrivateKey | Path | str, password: str | None) -> PrivateKey:
        if isinstance(key, PrivateKey):
            return key
        return read_private_key(Path(key), password=None if password is None else Secret(password), warn=self._warn)

    def _read_signing(self, key: SigningKey | PrivateKey | Path | str, password: str | None) -> SigningKey:
        if isinstance(key, SigningKey):
            return key
        if isinstance(key, PrivateKey):
            return SigningKey.of_rsa(key)
        return read_signing_key(Path(key), password=None if password is None else Secret(password))

    def _context_for(self, train: str | None) -> Context:
        return self._context if train is None else replace(self._context, train=train)

    def _reference(self, reference: str | Reference) -> Reference:
        if isinstance(reference, Reference):
            return reference
        return Reference.parse(reference, default_host=self._registry or os.environ.get("DTRAIN_REGISTRY"))


class Station(_Party):
    """A station on the route, or a creator who opens results: an id, a private key, and what it trusts.

    Args:
        station: the id on the route, or the creator's id.
        key: the private key, or a PEM file of it.
        anchor: what is trusted, or an ``anchor.toml``.
        trust_embedded_keys: without an anchor, believe the keys that the train carries.
        password: opens the key file.
        registry: the registry of references that name none.
        plain_http: use http although the registry is not on this machine.
        ca_file: PEM file of the CAs that may vouch for the registry.
        username: for the registry; else the usual credential files are read.
        password_for_registry: for the registry.
        state_dir: where learned facts are kept; by default the user's state folder.
        progress: called with each number of bytes moved.
        warn: called with a text for each warning; by default :func:`warnings.warn`.
        signing_key: the key that signs metadata, or a PEM file of it; by default the second key in the file of
            ``key``, else ``key`` itself.
        max_stale: how long past their date snapshot and timestamp may be.
        trust_repository: where signed metadata is kept, if not where the anchor says.

    Raises:
        MissingEvidence: neither an anchor nor ``trust_embedded_keys``.
        KeyProblem: the key cannot be used.
    """

    def __init__(
        self, station: str, *, key: PrivateKey | Path | str, anchor: Anchor | Path | str | None = None,
        trust_embedded_keys: bool = False, password: str | None = None, registry: str | None = None,
        plain_http: bool = False, ca_file: Path | str | None = None, username: str | None = None,
        password_for_registry: str | None = None, state_dir: Path | str | None = None,
        progress: Callable[[int], None] | None = None, warn: Callable[[str], None] | None = None,
        signing_key: SigningKey | Path | str | None = None, max_stale: timedelta = timedelta(0),
        trust_repository: str | None = None,
    ) -> None:
        super().__init__(
            station, key, password=password, registry=registry, plain_http=plain_http, ca_file=ca_file,
            username=username, password_for_registry=password_for_registry, state_dir=state_dir, progress=progress,
            warn=warn, signing_key=signing_key, max_stale=max_stale, trust_repository=trust_repository)
        self._trust = choose_trust(anchor, trust_embedded_keys=trust_embedded_keys)
        if isinstance(self._trust, EmbeddedKeys):
            self._warn("trusting the keys that the train itself carries: whoever can write to the registry can be "
                       "anyone")

    def pull_verify(
        self, reference: str | Reference, folder: Path | str | None = None, *, train: str | None = None
    ) -> VerifiedHop:
        """Verify the train at ``reference`` and decrypt it into ``folder`` (default: the repository's last part).

        ``train`` is the id of the train that is meant, where the repository's name does not tell.

        Raises: as :func:`dtrain.flow.pull_verify.pull_verify`.
        """
        place = self._reference(reference)
        return pull_verify(place, Path(folder or place.name), station=self.name, key=self._key, trust=self._trust,
                           context=self._context_for(train), signing_key=self._signing)

    def push_results(self, hop: VerifiedHop | Path | str, *, target: str | Reference | None = None) -> Published:
        """Seal, sign and publish the results of ``hop`` or of the working folder of that name.

        Raises: as :func:`dtrain.flow.push_results.push_results`.
        """
        folder = hop.folder if isinstance(hop, VerifiedHop) else Path(hop)
        return push_results.push_results(folder, key=self._key, trust=self._trust, context=self._context,
                                         signing_key=self._signing,
                                         target=None if target is None else self._reference(target))

    def verify(
        self, reference: str | Reference, *, train: str | None = None, every_image: bool = False
    ) -> Verified:
        """Check the train at ``reference`` as far as no private key is needed.

        Raises: as :func:`dtrain.flow.verify.verify`.
        """
        return verify(self._reference(reference), trust=self._trust, context=self._context_for(train),
                      every_image=every_image)

    def results(self, reference: str | Reference, folder: Path | str, *, train: str | None = None) -> OpenedResults:
        """Verify the train and write the decrypted results into ``folder``; for the creator.

        Raises: as :func:`dtrain.flow.open_results.open_results`.
        """
        return open_results(self._reference(reference), Path(folder), key=self._key, trust=self._trust,
                            context=self._context_for(train))

    def resume(self, folder: Path | str) -> VerifiedHop:
        """Return the verified hop of an existing working folder.

        Raises:
            UsageProblem: it is none.
        """
        return VerifiedHop(folder=Path(folder), record=workdir.read_record(Path(folder)))


class TrainBuilder(_Party):
    """A creator who makes trains.

    Args:
        creator: the creator's id.
        key: the creator's private key, or a PEM file of it.
        builder: the builder's id, for the anchor.
        builder_key: the builder's private key, or a PEM file of it; by default the creator's.
        password: opens the key files.

    The others, and what is raised, as for :class:`Station`.
    """

    def __init__(
        self, creator: str, *, key: PrivateKey | Path | str, builder: str = "builder",
        builder_key: PrivateKey | Path | str | None = None, password: str | None = None, registry: str | None = None,
        plain_http: bool = False, ca_file: Path | str | None = None, username: str | None = None,
        password_for_registry: str | None = None, state_dir: Path | str | None = None,
        progress: Callable[[int], None] | None = None, warn: Callable[[str], None] | None = None,
        signing_key: SigningKey | Path | str | None = None, trust_repository: str | None = None,
    ) -> None:
        super().__init__(
            creator, key, password=password, registry=registry, plain_http=plain_http, ca_file=ca_file,
            username=username, password_for_registry=password_for_registry, state_dir=state_dir, progress=progress,
            warn=warn, signing_key=signing_key, trust_repository=trust_repository)
        self._builder = builder
        self._builder_key = self._key if builder_key is None else self._read_key(builder_key, password)
        self._builder_signing = None if builder_key is None else self._read_signing(builder_key, password)

    def build(
        self, code: Path | str, *, base: str | Reference, to: str | Reference,
        route: Mapping[str, PublicKey | Path | str], train_id: str | None = None, proposal: str = "none",
        query: bytes | None = None, command: Sequence[str] = ("python",), entrypoint: str = "entrypoint.py",
        roots: Sequence[bytes] = (), deadline: datetime | None = None, dwell_days: int = 35, metadata: bool = True,
    ) -> NewTrain:
        """Make a train from the files in ``code`` on the image ``base`` and publish it at ``to``.

        Args:
            code: folder of the algorithm.
            base: the image that the train stands on.
            to: repository or layout; no train may be there.
            route: stations in order, each with its public key or a PEM file of it.
            train_id: by default a new UUID.
            proposal: id of the proposal.
            query: the content of ``query.json``.
            command: the words before the path of the entry point in ``Cmd``.
            entrypoint: the file in ``code`` that starts the algorithm.
            roots: the consortium's root metadata, each version from the first; by default a root of the creator's own.
            deadline: when every signature of the train ends; by default in a year.
            dwell_days: how long the train may wait for a station to start.
            metadata: whether to publish signed metadata; without, it is a plain PHT train.

        Raises: as :func:`dtrain.flow.build.build`.
        """
        plan = TrainPlan(
            id=train_id or str(uuid.uuid4()), proposal=proposal, creator=self.name, creator_key=self._key,
            builder=self._builder, builder_key=self._builder_key, code=Path(code), query=query,
            command=tuple(command), entrypoint=entrypoint,
            signed=SignedPlan(
                creator_key=self._signing, builder_key=self._builder_signing, roots=tuple(roots), deadline=deadline,
                dwell_days=dwell_days, station_keys={
                    station: read_verify_key(Path(key), of=f"station {station}")
                    for station, key in route.items() if not isinstance(key, PublicKey)}) if metadata else None,
            route=[(station, key if isinstance(key, PublicKey) else read_public_key(Path(key), of=f"station {station}"))
                   for station, key in route.items()],
        )
        return build(plan, self._reference(base), self._reference(to), context=self._context)


def connector(
    *, plain_http: bool = False, ca_file: Path | None = None, client_cert: tuple[Path, Path] | None = None,
    username: str | None = None, password: str | None = None, progress: Callable[[int], None] | None = None,
) -> Callable[[Reference], AbstractContextManager[Transport]]:
    """Return what opens the place of a reference, with these settings for registries."""

    def connect(reference: Reference) -> AbstractContextManager[Transport]:
        from dtrain.transport.connect import connect_layout, connect_registry

        if reference.layout is not None:
            return connect_layout(reference)
        return connect_registry(reference, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                                username=username, password=password, progress=progress)

    return connect
