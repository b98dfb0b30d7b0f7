"""Sealing: hash, sign, chain, encrypt under a fresh key, wrap it, and write the one ``/opt`` layer (PHT interop 7.11).

Plaintext is read once: it is hashed while it is encrypted, and ``train_config.json``, which needs the hash, is the
last member of the layer. What the layer replaces is hidden by opaque markers, so that it holds whatever lies below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from dtrain.crypto.cbc import encrypt, sealed_size
from dtrain.crypto.rsa import FILE_KEY_BYTES, PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.oci.digest import Digest
from dtrain.oci.layer_writer import LayerWriter
from dtrain.train import paths, pht
from dtrain.train.cargo import VerifiedCode
from dtrain.train.config import Stop, TrainConfig
from dtrain.train.plain import PlainEntry, PlainFile, hashed

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHop:
    """A sealed train: its new config, and the digest and size in bytes of its layer (a plain tar)."""

    config: TrainConfig
    config_digest: Digest
    """Of ``train_config.json``."""
    layer: Digest
    size: int
    result_files: int
    result_bytes: int
    """Encrypted."""


def seal_hop(
    train: VerifiedCode, stop: Stop, key: PrivateKey, results: Iterable[PlainEntry], *, out: BinaryIO, mtime: int
) -> SealedHop:
    """Write the layer of the hop that ``stop`` has just run.

    The code is that of the verified train, never what a run left behind (W29).

    Args:
        train: the code as it came in.
        stop: whose hop it is.
        key: the station's private key.
        results: the plaintext results in the order of the walk.
        out: where the layer goes.
        mtime: seconds since 1970 for all members.
    """
    file_key = Secret(os.urandom(FILE_KEY_BYTES))
    wrapped = train.config.creator.key.wrap(file_key)
    layer = _Layer(out, file_key, mtime)
    layer.code(train.files(), train.query(), pht.code_hash(train.config.creator.id), train.config.session_id)
    result_hash = layer.results(results, train.config.session_id)
    config = replace(
        train.config,
        result_hash=result_hash,
        result_signature=key.sign_pss(result_hash),
        creator=replace(train.config.creator, encrypted_key=wrapped),
        route=tuple(replace(other, encrypted_key=other.key.wrap(file_key)) for other in train.config.route),
    )
    own = config.route[stop.index]
    config = config.with_stop(replace(own, link=pht.make_link(config, stop.index, result_hash, key)))
    return layer.finish(config, config.to_bytes(), user_key=wrapped)


def seal_new(
    draft: TrainConfig, code: Iterable[PlainFile], query: PlainFile | None, *,
    creator_key: PrivateKey, builder_key: PrivateKey, out: BinaryIO, mtime: int,
) -> SealedHop:
    """Write the layer of a new train.

    Args:
        draft: the config; its hash, signatures and wrapped keys are still to be filled in.
        code: the files in ``file_list`` order.
        query: the query, if there is one.
        creator_key: signs the hash of code and query.
        builder_key: signs hash and creator's signature.
        out: where the layer goes.
        mtime: seconds since 1970 for all members.
    """
    file_key = Secret(os.urandom(FILE_KEY_BYTES))
    layer = _Layer(out, file_key, mtime)
    code_hash = layer.code(code, query, pht.code_hash(draft.creator.id), draft.session_id)
    layer.results((), draft.session_id)
    signature = pht.sign_code(creator_key, code_hash)
    config = replace(
        draft,
        hash=code_hash,
        signature=signature,
        build=replace(draft.build, signature=pht.sign_build(builder_key, code_hash, signature)),
    )
    first = config.route[0]
    config = config.with_stop(replace(first, encrypted_key=first.key.wrap(file_key)))  # only the first stop's (7.7)
    return layer.finish(config, config.to_compact_bytes(), user_key=None)


class _Layer:
    """The members of the layer in their order, and what is hashed while they pass."""

    def __init__(self, out: BinaryIO, file_key: Secret[bytes], mtime: int) -> None:
        self._writer = LayerWriter(out, mtime=mtime)
        self._file_key = file_key
        self._folders: set[str] = set()
        self._result_files = self._result_bytes = 0
        self._writer.directory(paths.OPT)

    def code(self, files: Iterable[PlainFile], query: PlainFile | None, code_hash: _Hash, session: bytes) -> bytes:
        """Write the immutable files and the query; return their hash."""
        self._top(paths.CODE)
        for file in files:
            self._sealed(paths.CODE, file, code_hash)
        code_hash.update(session)
        if query is not None:
            self._sealed(paths.CODE, query, code_hash)
        return code_hash.digest()

    def results(self, entries: Iterable[PlainEntry], session: bytes) -> bytes:
        """Write the results; return their hash."""
        self._top(paths.RESULTS)
        result_hash = pht.results_hash()
        for entry in entries:
            if isinstance(entry, PlainFile):
                self._sealed(paths.RESULTS, entry, result_hash)
                self._result_files += 1
                self._result_bytes += sealed_size(entry.size)
            else:
                self._writer.directory(f"{paths.RESULTS}/{entry.path}", mode=entry.mode)
        result_hash.update(session)
        return result_hash.digest()

    def finish(self, config: TrainConfig, document: bytes, *, user_key: bytes | None) -> SealedHop:
        """Write what needed the hashes, and end the layer."""
        if user_key is not None:
            self._writer.file(paths.USER_KEY, (user_key,), size=len(user_key), mode=0o644)
        self._writer.file(paths.CONFIG, (document,), size=len(document), mode=0o644)
        digest, size = self._writer.finish()
        return SealedHop(config=config, config_digest=Digest.of(document), layer=digest, size=size,
                         result_files=self._result_files, result_bytes=self._result_bytes)

    def _top(self, folder: str) -> None:
        self._writer.directory(folder)
        self._writer.opaque(folder)

    def _sealed(self, top: str, file: PlainFile, total: _Hash) -> None:
        if top == paths.CODE:  # results come with their folders; code is listed by files alone
            self._parents(top, file.path)
        self._writer.file(f"{top}/{file.path}", encrypt(hashed(file.chunks(), total), self._file_key),
                          size=sealed_size(file.size), mode=file.mode)

    def _parents(self, top: str, path: str) -> None:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join([top, *parts[:depth]])
            if folder not in self._folders:
                self._folders.add(folder)
                self._writer.directory(folder)
