"""Private keys in PEM files, their passwords in files or the environment; never in an argument.

A file holds one key, or two: the RSA key that PHT asks for, first, and the key that signs metadata. Tools that know of
one key only read the first.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from dtrain.crypto.rsa import PrivateKey, PublicKey, load_private
from dtrain.crypto.secret import Secret
from dtrain.crypto.signing import SigningKey, VerifyKey, pem_blocks
from dtrain.errors import KeyNotFound, MalformedInput, StorageProblem, UsageProblem, WrongKey

_PEM_MAX = 64 * 1024  # bytes


def read_private_key(
    path: Path, *, password: Secret[str] | None = None, warn: Callable[[str], None] = lambda text: None
) -> PrivateKey:
    """Return the private key in the file ``path``.

    Args:
        path: a PEM file, PKCS#8 or traditional, encrypted or not.
        password: what opens it.
        warn: called with a text when others than the owner can read the file.

    Raises:
        KeyNotFound: no such file, or it cannot be read.
        WrongKey: the password is missing or wrong, or the key is not RSA of 2048 to 4096 bits.
        MalformedInput: no private key in it.
    """
    raw = _read(path, f"key {path}")
    _check_mode(path, warn)
    return PrivateKey.from_pem(_first_rsa(raw, password, f"key {path}"), password=password, of=f"key {path}")


def read_signing_key(path: Path, *, password: Secret[str] | None = None) -> SigningKey:
    """Return the key in the file ``path`` that signs metadata: the first that is not RSA, else the RSA key.

    Raises: as :func:`read_private_key`.
    """
    of = f"key {path}"
    blocks = pem_blocks(_read(path, of), b"PRIVATE KEY") or (b"",)
    keys = [SigningKey.from_pem(block, password=password, of=of) for block in blocks]
    return next((key for key in keys if not key.public.is_rsa), keys[0])


def read_verify_key(path: Path, *, of: str) -> VerifyKey:
    """Return the public key in the file ``path`` that metadata is checked with: the first that is not RSA, else RSA.

    Raises: as :func:`read_public_key`.
    """
    return VerifyKey.of_file(b"".join(_public_blocks(path, of)), of=f"{of} ({path})")


def read_public_key(path: Path, *, of: str) -> PublicKey:
    """Return the public key in the file ``path``.

    Raises:
        KeyNotFound: no such file, or it cannot be read.
        MalformedInput: no public key in it.
        WrongKey: not RSA of 2048 to 4096 bits.
    """
    blocks = _public_blocks(path, of)
    for block in blocks:
        with contextlib.suppress(WrongKey):
            return PublicKey.from_pem(block, of=f"{of} ({path})")
    return PublicKey.from_pem(blocks[0], of=f"{of} ({path})")


def _public_blocks(path: Path, of: str) -> tuple[bytes, ...]:
    raw = _read(path, f"public key {path}")
    if b"PRIVATE KEY" in raw:
        raise UsageProblem(f"public key of {of}: expected a public key, got the private key {path}",
                           hint=f"make its public half with: dtrain key show --public {path}")
    return pem_blocks(raw, b"PUBLIC KEY") or (raw,)


def _first_rsa(raw: bytes, password: Secret[str] | None, of: str) -> bytes:
    blocks = pem_blocks(raw, b"PRIVATE KEY")
    if len(blocks) < 2:
        return raw
    return next((block for block in blocks
                 if isinstance(load_private(block, password=password, of=of), RSAPrivateKey)), blocks[0])


def read_all_public(
    path: Path, *, password: Secret[str] | None = None, warn: Callable[[str], None] = lambda text: None
) -> tuple[VerifyKey, ...]:
    """Return the public keys of a file of private or public keys, in their order.

    Raises: as :func:`read_private_key`.
    """
    of = f"key {path}"
    raw = _read(path, of)
    private = pem_blocks(raw, b"PRIVATE KEY")
    if not private:
        return tuple(VerifyKey.from_pem(block, of=of) for block in pem_blocks(raw, b"PUBLIC KEY") or (raw,))
    _check_mode(path, warn)
    return tuple(SigningKey.from_pem(block, password=password, of=of).public for block in private)


def _check_mode(path: Path, warn: Callable[[str], None]) -> None:
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        warn(f"key {path} can be read by other users; run: chmod 600 {path}")


def read_password(path: Path) -> Secret[str]:
    """Return the first line of the file ``path``.

    Raises:
        KeyNotFound: no such file, or it cannot be read.
        MalformedInput: it is not UTF-8.
    """
    try:
        return Secret(_read(path, f"password file {path}").decode().partition("\n")[0].rstrip("\r"))
    except UnicodeDecodeError:
        raise MalformedInput(f"password file {path}: expected UTF-8, got other bytes") from None


def write_key_pair(
    key: PrivateKey | None, path: Path, *, password: Secret[str] | None, signing: SigningKey | None = None
) -> Path:
    """Write the private keys to ``path`` (mode 0600) and the public ones beside it; return the path of the latter.

    Args:
        key: the RSA key that PHT asks for.
        path: where to write.
        password: encrypts the private keys.
        signing: the key that signs metadata.

    Raises:
        StorageProblem: one of the files exists, or cannot be written.
    """
    public = path.with_name(path.name.removesuffix(".pem") + ".pub.pem")
    for place in (path, public):
        if place.exists() or place.is_symlink():
            raise StorageProblem(f"{place}: expected no file there, got one", hint="choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = [one for one in (key, signing) if one is not None]
        _write_new(path, b"".join(one.pem(password).reveal() for one in keys), 0o600)
        _write_new(public, b"".join(one.public.pem() for one in keys), 0o644)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise StorageProblem(f"{path}: expected to write a key, got: {error.strerror}") from None
    return public


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as out:
        out.write(data)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_PEM_MAX + 1)
    except OSError as error:
        raise KeyNotFound(f"{what}: expected a readable file, got: {error.strerror}") from None
    if len(raw) > _PEM_MAX:
        raise MalformedInput(f"{what}: expected at most {_PEM_MAX} bytes, got more")
    return raw
