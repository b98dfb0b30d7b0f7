"""train_lib's file format: ``IV(16) ‖ AES-256-CBC(PKCS#7(plaintext))``, each file on its own (PHT interop 7.6).

The format has no authentication. Nothing here may be believed before the hash over all plaintext has been compared;
so a padding error is kept back and told as the same error as a wrong hash (W19: no padding oracle), and plaintext is
produced a second time for writing only after the first pass was found right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from dtrain.crypto.secret import Secret

BLOCK = 16  # bytes
CHUNK = 2**20  # bytes


class Source(Protocol):
    """What ciphertext or plaintext is read from."""

    def read(self, size: int, /) -> bytes: ...


def sealed_size(size: int) -> int:
    """Return the size in bytes of the encrypted form of ``size`` bytes."""
    return BLOCK + (size // BLOCK + 1) * BLOCK


def is_sealed_size(size: int) -> bool:
    """Return whether an encrypted file can have ``size`` bytes; the empty plaintext makes 32."""
    return size >= 2 * BLOCK and size % BLOCK == 0


def encrypt(plaintext: Iterable[bytes], key: Secret[bytes]) -> Iterator[bytes]:
    """Yield the encrypted form of the chunks of ``plaintext``, under an IV of its own (W20)."""
    iv = os.urandom(BLOCK)
    encryptor = Cipher(algorithms.AES(key.reveal()), modes.CBC(iv)).encryptor()
    padder = PKCS7(BLOCK * 8).padder()
    yield iv
    for chunk in plaintext:
        yield encryptor.update(padder.update(chunk))
    yield encryptor.update(padder.finalize()) + encryptor.finalize()


class PaddingProblem(Exception):
    """The last block is not padded. For the caller to turn into its one error for padding and hash."""


def decrypt(sealed: Source, key: Secret[bytes]) -> Iterator[bytes]:
    """Yield the plaintext of one encrypted file, unauthenticated.

    Raises:
        PaddingProblem: at the end, when the padding or the length is wrong.
    """
    iv = sealed.read(BLOCK)
    if len(iv) != BLOCK:
        raise PaddingProblem
    decryptor = Cipher(algorithms.AES(key.reveal()), modes.CBC(iv)).decryptor()
    unpadder = PKCS7(BLOCK * 8).unpadder()
    try:
        while chunk := sealed.read(CHUNK):
            yield unpadder.update(decryptor.update(chunk))
        yield unpadder.update(decryptor.finalize()) + unpadder.finalize()
    except ValueError:
        raise PaddingProblem from None
