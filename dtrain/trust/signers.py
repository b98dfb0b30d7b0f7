"""Between dtrain's keys and those of python-tuf. A key's id in metadata is the fingerprint that ``key show`` prints."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from dtrain.crypto.signing import SigningKey, VerifyKey
from dtrain.errors import MalformedInput


def tuf_key(key: VerifyKey) -> SSlibKey:
    """Return the key as metadata holds it."""
    return SSlibKey.from_crypto(key.handle, keyid=key.fingerprint.removeprefix("sha256:"))


def signer(key: SigningKey) -> CryptoSigner:
    """Return what signs metadata with the key."""
    return CryptoSigner(key.handle, tuf_key(key.public))


def keyid_of(key: VerifyKey) -> str:
    """Return the id that the key has in metadata made by dtrain."""
    return key.fingerprint.removeprefix("sha256:")


def fingerprint_of(key: Key) -> str:
    """Return the fingerprint of a key found in metadata, from the key itself: its id is only a name.

    Raises:
        MalformedInput: it is no key that dtrain knows.
    """
    return verify_key(key).fingerprint


def verify_key(key: Key) -> VerifyKey:
    """Return the public key that stands in metadata; raises as :func:`fingerprint_of` does."""
    of = f"metadata key {key.keyid[:12]}"
    try:
        public = str(key.keyval["public"])
        handle = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)) if key.keytype == "ed25519" else None
        pem = public.encode()
    except (ValueError, KeyError):
        raise MalformedInput(f"{of}: expected Ed25519, ECDSA or RSA, got {key.keytype[:20]!r}") from None
    return VerifyKey.of(handle, of=of) if handle else VerifyKey.from_pem(pem, of=of)
