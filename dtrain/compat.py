"""For scripts written for train_lib: the same names and calls, on registry references instead of a daemon's images.

The pre-run protocol decrypts into a working folder instead of into the image; the algorithm runs on that folder, and
the post-run protocol seals and publishes what it left there. What is trusted comes from outside the train, from the
environment: ``DTRAIN_ANCHOR`` names the anchor. Without one the calls end with
:class:`~dtrain.errors.MissingEvidence`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import UsageProblem
from dtrain.flow.context import Context
from dtrain.flow.inspect import inspect
from dtrain.flow.pull_verify import pull_verify
from dtrain.flow.push_results import push_results
from dtrain.flow.station import choose_trust, connector
from dtrain.flow.workdir import RECORD
from dtrain.keystore.pem import read_private_key, read_signing_key
from dtrain.oci.reference import Reference
from dtrain.train.config import TrainConfig
from dtrain.train.route import stop_of
from dtrain.trust.state import State


def extract_train_config(img: str) -> TrainConfig:
    """Return the configuration that the train at ``img`` carries. Nothing about it is verified.

    Args:
        img: a reference to a registry or ``oci:`` layout.

    Raises:
        MalformedInput: it is no train.
        TransportError: it cannot be had.
    """
    return inspect(_reference(img), context=_context()).train.config


class SecurityProtocol:
    """The two steps of a station.

    Args:
        station_id: the station's id on the route.
        config: what :func:`extract_train_config` gave; it is held against the route and not used for anything else,
            because it comes from the train that is to be checked.
        results_dir, train_dir, docker_client: taken and not used.

    Raises:
        RouteProblem: the station is not on the route.
    """

    def __init__(
        self, station_id: str, config: TrainConfig, results_dir: str | None = None, train_dir: str | None = None,
        docker_client: Any = None,
    ) -> None:
        stop_of(config, station_id)
        self.station_id = station_id
        self.config = config
        self.folder: Path | None = None
        """The working folder, once the pre-run protocol has made it."""

    def pre_run_protocol(
        self, img: str, private_key_path: str | None = None, private_key_password: str | None = None,
        immutable_dir: str = "/opt/pht_train", mutable_dir: str = "/opt/pht_results",
    ) -> Path:
        """Verify the train and decrypt it into a working folder; return the folder.

        It is ``DTRAIN_WORK_DIR``, else the last part of the repository's name in the current folder, and has
        ``opt/pht_train`` and ``opt/pht_results`` as the image has them.

        Raises: as :func:`dtrain.flow.pull_verify.pull_verify`.
        """
        if (immutable_dir, mutable_dir) != ("/opt/pht_train", "/opt/pht_results"):
            raise UsageProblem("immutable_dir, mutable_dir: expected the folders that PHT uses, got others")
        reference, key_file, password = _reference(img), _key_file(private_key_path), _password(private_key_password)
        context = _context()
        hop = pull_verify(
            reference, _folder(reference), station=self.station_id, context=context,
            key=_private_key(key_file, password, context), signing_key=read_signing_key(key_file, password=password),
            trust=choose_trust(os.environ.get("DTRAIN_ANCHOR"), trust_embedded_keys=False))
        self.folder = hop.folder
        return hop.folder

    def post_run_protocol(
        self, img: str, private_key_path: str | None = None, private_key_password: str | None = None,
        rebase: bool = True,
    ) -> str:
        """Seal and publish what the run left in the working folder; return the pinned reference.

        train_lib leaves the pushing to another step; here it is this one. The image always stands on the base image,
        so ``rebase`` changes nothing.

        Raises:
            RouteProblem: the working folder is another station's.
            UsageProblem: there is no working folder of this image.
            DtrainError: as :func:`dtrain.flow.push_results.push_results` raises.
        """
        reference, key_file, password = _reference(img), _key_file(private_key_path), _password(private_key_password)
        folder, context = self.folder or _folder(reference), _context()
        if not (folder / RECORD).is_file():
            raise UsageProblem(f"{folder}: expected the working folder of {img}, got none",
                               hint="run the pre-run protocol first, with the same DTRAIN_WORK_DIR")
        published = push_results(
            folder, context=context, key=_private_key(key_file, password, context),
            signing_key=read_signing_key(key_file, password=password),
            trust=choose_trust(os.environ.get("DTRAIN_ANCHOR"), trust_embedded_keys=False))
        return str(published.reference)


def _reference(img: str) -> Reference:
    return Reference.parse(img, default_host=os.environ.get("DTRAIN_REGISTRY"))


def _folder(reference: Reference) -> Path:
    return Path(os.environ.get("DTRAIN_WORK_DIR") or reference.name)


def _key_file(path: str | None) -> Path:
    chosen = path or os.environ.get("PRIVATE_KEY_PATH")
    if not chosen:
        raise UsageProblem("private_key_path: expected a file, got none", hint="give it, or set PRIVATE_KEY_PATH")
    return Path(chosen)


def _password(text: str | None) -> Secret[str] | None:
    chosen = text or os.environ.get("PRIVATE_KEY_PASSWORD")
    return Secret(chosen) if chosen else None


def _private_key(path: Path, password: Secret[str] | None, context: Context) -> PrivateKey:
    return read_private_key(path, password=password, warn=context.warn)


def _context() -> Context:
    ca_file = os.environ.get("DTRAIN_CA_FILE")
    return Context(
        connect=connector(
            plain_http=os.environ.get("DTRAIN_PLAIN_HTTP", "").lower() in ("1", "true", "yes"),
            ca_file=Path(ca_file) if ca_file else None, username=os.environ.get("DTRAIN_USERNAME"),
            password=os.environ.get("DTRAIN_PASSWORD")),
        state=State(Path(os.environ["DTRAIN_STATE_DIR"]) if os.environ.get("DTRAIN_STATE_DIR")
                    else State.default_folder(os.environ)),
        train=os.environ.get("DTRAIN_TRAIN"), trust_repository=os.environ.get("DTRAIN_TRUST_REPOSITORY"))


