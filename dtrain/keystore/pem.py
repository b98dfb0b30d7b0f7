"""Private keys in PEM files, their passwords in files or the environment; never in an argument."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from dtrain.crypto.rsa import PrivateKey, PublicKey
from dtrain.crypto.secret import Secret
from dtrain.errors import KeyNotFound, MalformedInput, StorageProblem, UsageProblem

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
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        warn(f"key {path} can be read by other users; run: chmod 600 {path}")
    return PrivateKey.from_pem(raw, password=password, of=f"key {path}")


def read_public_key(path: Path, *, of: str) -> PublicKey:
    """Return the public key in the file ``path``.

    Raises:
        KeyNotFound: no such file, or it cannot be read.
        MalformedInput: no public key in it.
        WrongKey: not RSA of 2048 to 4096 bits.
    """
    raw = _read(path, f"public key {path}")
    if b"PRIVATE KEY" in raw:
        raise UsageProblem(f"public key of {of}: expected a public key, got the private key {path}",
                           hint=f"make its public half with: dtrain key show --public {path}")
    return PublicKey.from_pem(raw, of=f"{of} ({path})")


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


def write_key_pair(key: PrivateKey, path: Path, *, password: Secret[str] | None) -> Path:
    """Write the private key to ``path`` (mode 0600) and the public one beside it; return the path of the latter.

    Raises:
        StorageProblem: one of the files exists, or cannot be written.
    """
    public = path.with_name(path.name.removesuffix(".pem") + ".pub.pem")
    for place in (path, public):
        if place.exists() or place.is_symlink():
            raise StorageProblem(f"{place}: expected no file there, got one", hint="choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, key.pem(password).reveal(), 0o600)
        _write_new(public, key.public.pem(), 0o644)
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
