"""The public API's face: a station or a creator, with its key, its anchor, and how it reaches images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import MissingEvidence
from dtrain.flow import push_results, workdir
from dtrain.flow.context import Context
from dtrain.flow.open_results import OpenedResults, open_results
from dtrain.flow.pull_verify import VerifiedHop, pull_verify
from dtrain.flow.push_results import Published
from dtrain.flow.verify import Verified, verify
from dtrain.keystore.pem import read_private_key
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


class Station:
    """A station on the route, or a creator: an id, a private key, and what it trusts.

    Args:
        station: the id on the route, or the creator's id.
        key: the private key, or a PEM file of it.
        anchor: what is trusted, or an ``anchor.toml``.
        password: opens the key file.
        trust_embedded_keys: without an anchor, believe the keys that the train carries.
        registry: the registry of references that name none.
        plain_http: use http although the registry is not on this machine.
        ca_file: PEM file of the CAs that may vouch for the registry.
        username: for the registry; else the usual credential files are read.
        password_for_registry: for the registry.
        state_dir: where learned facts are kept; by default the user's state folder.
        progress: called with each number of bytes moved.
        warn: called with a text for each warning; by default :func:`warnings.warn`.

    Raises:
        MissingEvidence: neither an anchor nor ``trust_embedded_keys``.
        KeyProblem: the key cannot be used.
    """

    def __init__(
        self, station: str, *, key: PrivateKey | Path | str, anchor: Anchor | Path | str | None = None,
        password: str | None = None, trust_embedded_keys: bool = False, registry: str | None = None,
        plain_http: bool = False, ca_file: Path | str | None = None, username: str | None = None,
        password_for_registry: str | None = None, state_dir: Path | str | None = None,
        progress: Callable[[int], None] | None = None, warn: Callable[[str], None] | None = None,
    ) -> None:
        warn = warn or (lambda text: warnings.warn(text, stacklevel=3))
        self.station = station
        self._registry = registry
        self._trust = choose_trust(anchor, trust_embedded_keys=trust_embedded_keys)
        if isinstance(self._trust, EmbeddedKeys):
            warn("trusting the keys that the train itself carries: whoever can write to the registry can be anyone")
        self._key = key if isinstance(key, PrivateKey) else read_private_key(
            Path(key), password=None if password is None else Secret(password), warn=warn)
        folder = Path(state_dir) if state_dir is not None else State.default_folder(os.environ)
        self._context = Context(
            connect=connector(plain_http=plain_http, ca_file=None if ca_file is None else Path(ca_file),
                              username=username, password=password_for_registry, progress=progress),
            state=State(folder), warn=warn,
        )

    def pull_verify(self, reference: str | Reference, folder: Path | str | None = None) -> VerifiedHop:
        """Verify the train at ``reference`` and decrypt it into ``folder`` (default: the repository's last part).

        Raises: as :func:`dtrain.flow.pull_verify.pull_verify`.
        """
        place = self._reference(reference)
        return pull_verify(place, Path(folder or place.name), station=self.station, key=self._key, trust=self._trust,
                           context=self._context)

    def push_results(self, hop: VerifiedHop | Path | str, *, target: str | Reference | None = None) -> Published:
        """Seal, sign and publish the results of ``hop`` or of the working folder of that name.

        Raises: as :func:`dtrain.flow.push_results.push_results`.
        """
        folder = hop.folder if isinstance(hop, VerifiedHop) else Path(hop)
        return push_results.push_results(folder, key=self._key, trust=self._trust, context=self._context,
                                         target=None if target is None else self._reference(target))

    def verify(self, reference: str | Reference) -> Verified:
        """Check the train at ``reference`` as far as no private key is needed.

        Raises: as :func:`dtrain.flow.verify.verify`.
        """
        return verify(self._reference(reference), trust=self._trust, context=self._context)

    def results(self, reference: str | Reference, folder: Path | str) -> OpenedResults:
        """Verify the train and write the decrypted results into ``folder``; for the creator.

        Raises: as :func:`dtrain.flow.open_results.open_results`.
        """
        return open_results(self._reference(reference), Path(folder), key=self._key, trust=self._trust,
                            context=self._context)

    def resume(self, folder: Path | str) -> VerifiedHop:
        """Return the verified hop of an existing working folder.

        Raises:
            UsageProblem: it is none.
        """
        return VerifiedHop(folder=Path(folder), record=workdir.read_record(Path(folder)))

    def _reference(self, reference: str | Reference) -> Reference:
        if isinstance(reference, Reference):
            return reference
        return Reference.parse(reference, default_host=self._registry or os.environ.get("DTRAIN_REGISTRY"))


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
