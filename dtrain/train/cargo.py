"""Opening a train: unwrap the file key, and believe the plaintext only after all of it has been hashed.

The plaintext passes twice. The first pass hashes and forgets, so that nothing unverified is ever written anywhere; the
second one, from the same local spool, is for whoever writes the files. AES is an order of magnitude faster than
SHA-512, so the second pass costs little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dtrain.crypto.cbc import PaddingProblem, decrypt
from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import DigestMismatch, WrongKey
from dtrain.oci.layer import Entry, Kind
from dtrain.train import paths, pht
from dtrain.train.config import TrainConfig
from dtrain.train.pin import TrainPin, check_pinned_files
from dtrain.train.plain import PlainEntry, PlainFile, PlainFolder
from dtrain.train.sealed import SealedTrain, listed_files

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedCargo:
    """A train whose file key is known, and nothing more."""

    sealed: SealedTrain
    file_key: Secret[bytes]

    def plaintext(self, entry: Entry) -> Iterator[bytes]:
        """Yield the plaintext of one file."""
        with self.sealed.tree.read(entry) as stream:
            yield from decrypt(stream, self.file_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCode:
    """Code and query of a train, checked against everything that signs them; its results are not looked at."""

    config: TrainConfig
    cargo: UnverifiedCargo = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    """The size in bytes of each plaintext file, by its path in the image."""
    digests: Mapping[str, str] = field(repr=False)
    """The hex sha256 of each plaintext file below ``/opt/pht_train``."""

    def files(self) -> Iterator[PlainFile]:
        """Yield the immutable files in ``file_list`` order."""
        for path in listed_files(self.config):
            yield _plain(self.cargo, path, self.cargo.sealed.code[path], self.sizes)

    def query(self) -> PlainFile | None:
        """Return the query, if the train has one."""
        entry = self.cargo.sealed.query
        return None if entry is None else _plain(self.cargo, paths.QUERY, entry, self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTrain:
    """A train whose code, query and results have been checked against everything that signs them."""

    code: VerifiedCode
    result_sizes: Mapping[str, int] = field(repr=False)

    @property
    def config(self) -> TrainConfig:
        """The train's configuration."""
        return self.code.config

    @property
    def sealed(self) -> SealedTrain:
        """The train as it stands in the image."""
        return self.code.cargo.sealed

    def results(self) -> Iterator[PlainEntry]:
        """Yield files and folders of the results in the order of the walk."""
        for path, entry in self.sealed.results.items():
            if entry.kind is Kind.DIRECTORY:
                yield PlainFolder(path=path, mode=entry.mode & 0o777)
            else:
                yield _plain(self.code.cargo, path, entry, self.result_sizes)


def _plain(cargo: UnverifiedCargo, path: str, entry: Entry, sizes: Mapping[str, int]) -> PlainFile:
    return PlainFile(path=path, size=sizes[entry.path], mode=entry.mode & 0o777,
                     chunks=lambda: cargo.plaintext(entry))


def open_cargo(sealed: SealedTrain, key: PrivateKey, *, wrapped: bytes | None, of: str) -> UnverifiedCargo:
    """Return the train with its file key unwrapped.

    Args:
        sealed: the train, whose keyless checks have passed.
        key: the private key of the station or creator.
        wrapped: the file key as wrapped for it.
        of: whose wrapped key it is, for messages.

    Raises:
        WrongKey: it was not wrapped for this key.
    """
    if wrapped is None:
        raise WrongKey(f"{of}: expected a wrapped file key in train_config.json, got none")
    return UnverifiedCargo(sealed=sealed, file_key=key.unwrap(wrapped, of=of))


def verify_code(cargo: UnverifiedCargo, pin: TrainPin | None) -> VerifiedCode:
    """Return code and query after hashing all of their plaintext (PHT interop 7.4).

    Raises:
        DigestMismatch: they are not what the creator signed, or not what is pinned.
    """
    sealed, config = cargo.sealed, cargo.sealed.config
    code, pass_ = pht.code_hash(config.creator.id), _Pass(cargo)
    digests = {path: pass_.feed(sealed.code[path], code) for path in listed_files(config)}
    code.update(config.session_id)
    if sealed.query is not None:
        digests[paths.QUERY] = pass_.feed(sealed.query, code)
    if code.digest() != config.hash or not pass_.padded:
        raise DigestMismatch("immutable files: expected those that the creator signed, got others",
                             hint="files, query or session were changed; do not run this train")
    if pin is not None:
        check_pinned_files(pin, digests)
    return VerifiedCode(config=config, cargo=cargo, sizes=pass_.sizes, digests=digests)


def verify_cargo(cargo: UnverifiedCargo, pin: TrainPin | None) -> VerifiedTrain:
    """Return the train after hashing all of its plaintext (PHT interop 7.4, 7.8).

    Raises:
        DigestMismatch: code, query or results are not what was signed, or not what is pinned.
    """
    code = verify_code(cargo, pin)
    results, pass_ = pht.results_hash(), _Pass(cargo)
    if code.config.result_hash is not None:
        for entry in cargo.sealed.result_files.values():
            pass_.feed(entry, results)
        results.update(code.config.session_id)
        if results.digest() != code.config.result_hash or not pass_.padded:
            raise DigestMismatch("results: expected those that the previous station signed, got others",
                                 hint="do not run this train; ask the previous station to push again")
    return VerifiedTrain(code=code, result_sizes=pass_.sizes)


class _Pass:
    """One pass over encrypted files. A padding error is kept for the end, to be told as a wrong hash is (W19)."""

    def __init__(self, cargo: UnverifiedCargo) -> None:
        self._cargo = cargo
        self.sizes: dict[str, int] = {}
        self.padded = True

    def feed(self, entry: Entry, total: _Hash) -> str:
        """Feed the plaintext of one file to ``total``; return its own hex sha256."""
        own, size = hashlib.sha256(), 0
        is_code = entry.path.startswith(paths.CODE)  # results are many and large, and nobody pins their digests
        try:
            for chunk in self._cargo.plaintext(entry):
                total.update(chunk)
                size += len(chunk)
                if is_code:
                    own.update(chunk)
        except PaddingProblem:
            self.padded = False
        self.sizes[entry.path] = size
        return own.hexdigest()
