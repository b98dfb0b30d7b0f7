"""Keys that sign metadata: Ed25519, ECDSA on P-256 or P-384, or the RSA key that a party has already.

Files may hold several PEM blocks: a station's key file holds its RSA key, which decrypts and signs as PHT asks, and
the key that signs its metadata. Where there is no such key, RSA serves for both.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from dtrain.crypto.rsa import PEM_MAX, PrivateKey, PublicKey, check_size, load_private, private_pem
from dtrain.crypto.secret import Secret
from dtrain.errors import MalformedInput, WrongKey

PublicHandle = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateHandle = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----\n?", re.DOTALL)  # RFC 7468


def pem_blocks(raw: bytes, kind: bytes) -> tuple[bytes, ...]:
    """Return the PEM blocks of a file whose label ends in ``kind``, in their order, each as a PEM text of its own."""
    return tuple(match[0] for match in _BLOCK.finditer(raw) if match[1].endswith(kind))


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key that signatures of metadata verify with; equality is equality of the key."""

    fingerprint: str
    """``sha256:`` and the hex digest of the DER SubjectPublicKeyInfo."""
    kind: str = field(compare=False)
    handle: PublicHandle = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes, *, of: str) -> VerifyKey:
        """Return the key of a PEM text.

        Raises:
            MalformedInput: no public key in it.
            WrongKey: a kind of key that signs no metadata.
        """
        if len(pem) > PEM_MAX:
            raise MalformedInput(f"public key of {of}: expected at most {PEM_MAX} bytes, got {len(pem)}")
        try:
            return cls.of(serialization.load_pem_public_key(pem), of=of)
        except (ValueError, UnsupportedAlgorithm):
            raise MalformedInput(f"public key of {of}: expected a PEM public key, got something else") from None

    @classmethod
    def of_file(cls, raw: bytes, *, of: str) -> VerifyKey:
        """Return the key of a file with one or more PEM blocks: the first that is not RSA, else the first.

        Raises: as :meth:`from_pem`.
        """
        keys = [cls.from_pem(block, of=of) for block in pem_blocks(raw, b"PUBLIC KEY") or (raw,)]
        return next((key for key in keys if not key.is_rsa), keys[0])

    @classmethod
    def of_rsa(cls, key: PublicKey) -> VerifyKey:
        """Return the RSA key of a party that has no other one to sign metadata with."""
        return cls.from_pem(key.pem(), of="metadata")

    @classmethod
    def of(cls, handle: object, *, of: str) -> VerifyKey:
        """Return the identity of a key; raises as :meth:`from_pem` does."""
        kind = _kind(handle, of)
        assert isinstance(handle, PublicHandle)  # noqa: S101  what _kind accepts
        der = handle.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(f"sha256:{hashlib.sha256(der).hexdigest()}", kind, handle)

    @property
    def is_rsa(self) -> bool:
        """Whether it is an RSA key, which serves where there is no other one."""
        return isinstance(self.handle, rsa.RSAPublicKey)

    def pem(self) -> bytes:
        """Return the SPKI PEM text."""
        return self.handle.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class SigningKey:
    """A private key that signs metadata; never shown."""

    __slots__ = ("handle", "public")

    def __init__(self, handle: PrivateHandle, *, of: str) -> None:
        self.handle = handle
        self.public = VerifyKey.of(handle.public_key(), of=of)

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new Ed25519 key."""
        return cls(ed25519.Ed25519PrivateKey.generate(), of="the new key")

    @classmethod
    def of_rsa(cls, key: PrivateKey) -> SigningKey:
        """Return the RSA key of a party that has no other one to sign metadata with."""
        return cls(key.handle, of="metadata")

    @classmethod
    def from_pem(cls, pem: bytes, *, password: Secret[str] | None, of: str) -> SigningKey:
        """Return the key of a PKCS#8 or traditional PEM text, encrypted or not.

        Raises:
            WrongKey: the password is missing or wrong, or a kind of key that signs no metadata.
            MalformedInput: no private key in it.
        """
        handle = load_private(pem, password=password, of=of)
        _kind(handle, of)
        assert isinstance(handle, PrivateHandle)  # noqa: S101  what _kind accepts
        return cls(handle, of=of)

    def pem(self, password: Secret[str] | None) -> Secret[bytes]:
        """Return the PKCS#8 PEM text, encrypted when there is a password."""
        return private_pem(self.handle, password)

    def __repr__(self) -> str:
        return f"SigningKey(… of {self.public.fingerprint})"

    def __reduce__(self) -> str:
        raise TypeError("a SigningKey is not pickled")


def _kind(handle: object, of: str) -> str:
    if isinstance(handle, (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey)):
        return "Ed25519"
    if isinstance(handle, (rsa.RSAPublicKey, rsa.RSAPrivateKey)):
        check_size(handle.key_size, of)
        return f"RSA {handle.key_size}"
    if isinstance(handle, (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)) and handle.curve.name in _CURVES:
        return _CURVES[handle.curve.name]
    raise WrongKey(f"{of}: expected an Ed25519, ECDSA (P-256, P-384) or RSA key, "
                   f"got {type(handle).__name__.strip('_')}")
