"""What PHT hashes, signs and chains, bit for bit as train_lib 2.0.5 does (PHT interop 7.4, 7.5, 7.8, 7.9).

Concatenations without lengths or names are train_lib's, and a weakness (W11); :mod:`dtrain.train.pin` closes it from
outside. Nothing of these formats is known anywhere else but in this room.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from dtrain.crypto.rsa import PrivateKey
from dtrain.errors import DigestMismatch, MissingEvidence, VerificationFailed
from dtrain.train.config import Ident, Link, Stop, TrainConfig

if TYPE_CHECKING:
    from hashlib import _Hash

SESSION_BYTES = 64
HASH_BYTES = 64  # SHA-512


def code_hash(creator: Ident) -> _Hash:
    """Return the hash of the immutable files, begun (7.4): feed it the files in ``file_list`` order, the session id,
    then the query."""
    return hashlib.sha512(str(creator).encode())


def results_hash() -> _Hash:
    """Return the hash of results, begun (7.8): feed it the files in the order of the walk, then the session id."""
    return hashlib.sha512()


def sign_code(key: PrivateKey, code: bytes) -> bytes:
    """Return the creator's signature over the 64 bytes of the immutable files' hash (7.5)."""
    return key.sign_pkcs1(code)


def sign_build(key: PrivateKey, code: bytes, creator_signature: bytes) -> bytes:
    """Return the builder's signature over hash and creator's signature (7.5)."""
    return key.sign_pkcs1(code + creator_signature)


def link_digest(config: TrainConfig, index: int, result_hash: bytes) -> bytes:
    """Return the digest that the stop ``index`` signs: what came before, then its result hash (7.9)."""
    before = [link.digest for stop in config.route[:index] if (link := stop.link) is not None]
    return hashlib.sha512(b"".join(before or [config.session_id]) + result_hash).digest()


def make_link(config: TrainConfig, index: int, result_hash: bytes, key: PrivateKey) -> Link:
    """Return what the stop ``index`` adds to the chain."""
    digest = link_digest(config, index, result_hash)
    return Link(digest=digest, signature=key.sign_pss(digest))


def check_signatures(config: TrainConfig, done: int) -> None:
    """Check every signature that the config carries, with the keys it carries; no plaintext is needed.

    The keys are those of the config: the caller has compared them with the trusted ones before
    (:func:`dtrain.train.checks.check_keys`). Earlier result hashes are not stored, so of the chain only the last link
    can be recomputed; its digest covers all earlier digests.

    Args:
        config: the config.
        done: how many stops have run, from :func:`dtrain.train.route.visited`.

    Raises:
        VerificationFailed: the session id or a hash is not 64 bytes long.
        BadSignature: one does not verify.
        DigestMismatch: the last link is not that of these results.
    """
    for name, value in (("session_id", config.session_id), ("hash", config.hash)):
        _check_length(name, value)  # W13: a session id of another length hides bytes of the query
    config.creator.key.verify_pkcs1(config.signature, config.hash, of="signature of the creator")
    config.build.key.verify_pkcs1(config.build.signature, config.hash + config.signature, of="signature of the builder")
    for stop in config.route[:done]:
        link = _link_of(stop)
        stop.key.verify_pss(link.signature, link.digest, of=f"{stop}: signature of the route")
    if done:
        last = config.route[done - 1]
        result_hash = config.result_hash or b""
        _check_length("result_hash", result_hash)
        if link_digest(config, done - 1, result_hash) != _link_of(last).digest:
            raise DigestMismatch(f"{last}: expected the chain digest of these results, got another one",
                                 hint="results, session or an earlier stop were exchanged; do not run this train")
        last.key.verify_pss(config.result_signature or b"", result_hash, of=f"{last}: signature of the results")


def _link_of(stop: Stop) -> Link:
    if stop.link is None:
        raise MissingEvidence(f"{stop}: expected a signature, got none")
    _check_length(f"{stop}: digest", stop.link.digest)
    return stop.link


def _check_length(name: str, value: bytes) -> None:
    if len(value) != HASH_BYTES:
        raise VerificationFailed(f"{name}: expected {HASH_BYTES} bytes, got {len(value)}")

