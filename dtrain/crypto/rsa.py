"""RSA identities of creators, builders and stations, and the schemes that PHT uses with them.

Scheme names and parameters: PHT interop specification 7.3 (keys), 7.5 (creator and builder), 7.7 (key wrapping),
7.8 (stations). What is signed and in which order is the business of :mod:`dtrain.train.pht`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from dtrain.crypto.secret import Secret
from dtrain.errors import BadSignature, MalformedInput, WrongKey

MIN_BITS = 2048  # what stations and creators register
MAX_BITS = 4096  # larger keys only cost time; a hostile config must not make us compute with a megabit modulus
FILE_KEY_BYTES = 32  # AES-256
PEM_MAX = 16 * 1024  # bytes

_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA512()), algorithm=hashes.SHA512(), label=None)
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=padding.PSS.MAX_LENGTH)
_PREHASHED = utils.Prehashed(hashes.SHA512())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An RSA public key; equality is equality of the key, not of its spelling."""

    fingerprint: str
    """``sha256:`` and the hex digest of the DER SubjectPublicKeyInfo."""
    _key: rsa.RSAPublicKey = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes, *, of: str) -> PublicKey:
        """Return the key of a SPKI (``PUBLIC KEY``) or PKCS#1 (``RSA PUBLIC KEY``) PEM text.

        Args:
            pem: the text.
            of: whose key it is, for messages.

        Raises:
            MalformedInput: no public key in it.
            WrongKey: a key of another kind, or of a size outside 2048 to 4096 bits.
        """
        if len(pem) > PEM_MAX:
            raise MalformedInput(f"public key of {of}: expected at most {PEM_MAX} bytes, got {len(pem)}")
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise MalformedInput(f"public key of {of}: expected a PEM public key, got something else") from None
        if not isinstance(key, rsa.RSAPublicKey):
            raise WrongKey(f"public key of {of}: expected RSA, got {type(key).__name__.strip('_')}")
        return cls.of(key, of=of)

    @classmethod
    def of(cls, key: rsa.RSAPublicKey, *, of: str) -> PublicKey:
        """Return the identity of ``key``; raises as :meth:`from_pem` does."""
        check_size(key.key_size, of)
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(f"sha256:{hashlib.sha256(der).hexdigest()}", key)

    @property
    def bits(self) -> int:
        """The size of the modulus."""
        return self._key.key_size

    def pem(self) -> bytes:
        """Return the SPKI PEM text."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def verify_pkcs1(self, signature: bytes, message: bytes, *, of: str) -> None:
        """Check an RSASSA-PKCS1-v1_5 signature with SHA-512 over ``message``.

        Raises:
            BadSignature: it is not one of this key.
        """
        try:
            self._key.verify(signature, message, padding.PKCS1v15(), hashes.SHA512())
        except InvalidSignature:
            raise self._bad(of) from None

    def verify_pss(self, signature: bytes, digest: bytes, *, of: str) -> None:
        """Check an RSASSA-PSS signature (MGF1-SHA-512, salt of maximum length) of a 64-byte ``digest``.

        Raises:
            BadSignature: it is not one of this key.
        """
        if len(digest) != 64:
            raise BadSignature(f"{of}: expected a signed digest of 64 bytes, got {len(digest)}")
        try:
            self._key.verify(signature, digest, _PSS, _PREHASHED)
        except InvalidSignature:
            raise self._bad(of) from None

    def _bad(self, of: str) -> BadSignature:
        return BadSignature(f"{of}: expected a signature by key {self.fingerprint[:19]}, got one that does not verify")

    def wrap(self, file_key: Secret[bytes]) -> bytes:
        """Return ``file_key`` encrypted with RSA-OAEP (SHA-512, MGF1-SHA-512, empty label)."""
        return self._key.encrypt(file_key.reveal(), _OAEP)


class PrivateKey:
    """An RSA private key; never shown, never written."""

    __slots__ = ("handle", "public")

    def __init__(self, key: rsa.RSAPrivateKey, *, of: str) -> None:
        self.handle = key
        self.public = PublicKey.of(key.public_key(), of=of)

    @classmethod
    def from_pem(cls, pem: bytes, *, password: Secret[str] | None, of: str) -> PrivateKey:
        """Return the key of a PKCS#8 or traditional PEM text, encrypted or not.

        Raises:
            WrongKey: the password is missing, superfluous or wrong, or the key is not RSA of 2048 to 4096 bits.
            MalformedInput: no private key in it.
        """
        key = load_private(pem, password=password, of=of)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise WrongKey(f"{of}: expected an RSA key, got {type(key).__name__.strip('_')}",
                           hint="PHT trains need RSA keys of 2048 to 4096 bits; make one with: dtrain key new")
        return cls(key, of=of)

    @classmethod
    def generate(cls, bits: int) -> PrivateKey:
        """Return a new key of ``bits`` bits."""
        check_size(bits, "the new key")
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=bits), of="the new key")

    def sign_pkcs1(self, message: bytes) -> bytes:
        """Return the RSASSA-PKCS1-v1_5 signature with SHA-512 over ``message``."""
        return self.handle.sign(message, padding.PKCS1v15(), hashes.SHA512())

    def sign_pss(self, digest: bytes) -> bytes:
        """Return the RSASSA-PSS signature of the 64-byte ``digest``, with a salt of maximum length."""
        return self.handle.sign(digest, _PSS, _PREHASHED)

    def unwrap(self, wrapped: bytes, *, of: str) -> Secret[bytes]:
        """Return the file key that was wrapped for this key.

        Raises:
            WrongKey: it was wrapped for another key, or what is inside is no AES-256 key.
        """
        try:
            file_key = self.handle.decrypt(wrapped, _OAEP)
        except ValueError:
            raise WrongKey(f"{of}: expected a key wrapped for {self.public.fingerprint[:19]}, "
                           "got one that it does not open") from None
        if len(file_key) != FILE_KEY_BYTES:
            raise WrongKey(f"{of}: expected a key of {FILE_KEY_BYTES} bytes, got {len(file_key)}")
        return Secret(file_key)

    def pem(self, password: Secret[str] | None) -> Secret[bytes]:
        """Return the PKCS#8 PEM text, encrypted when there is a password."""
        return private_pem(self.handle, password)

    def __repr__(self) -> str:
        return f"PrivateKey(… of {self.public.fingerprint})"

    def __reduce__(self) -> str:
        raise TypeError("a PrivateKey is not pickled")


def check_size(bits: int, of: str) -> None:
    """Check the size of a modulus.

    Raises:
        WrongKey: it is outside 2048 to 4096 bits.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise WrongKey(f"key of {of}: expected an RSA key of {MIN_BITS} to {MAX_BITS} bits, got {bits}")


def load_private(pem: bytes, *, password: Secret[str] | None, of: str) -> PrivateKeyTypes:
    """Return the private key, of whatever kind, of a PKCS#8 or traditional PEM text, encrypted or not.

    Raises:
        WrongKey: the password is missing or wrong.
        MalformedInput: no private key in it.
    """
    try:
        return serialization.load_pem_private_key(pem, None if password is None else password.reveal().encode())
    except TypeError:
        if password is None:
            raise WrongKey(f"{of}: expected a password, got none: the key is encrypted",
                           hint="give --key-password-file or PRIVATE_KEY_PASSWORD") from None
        # train_lib's stations have a password in their environment even for keys without one
        return load_private(pem, password=None, of=of)
    except (ValueError, UnsupportedAlgorithm):
        if b"ENCRYPTED" in pem and password is not None:
            raise WrongKey(f"{of}: expected the password of this key, got a wrong one") from None
        raise MalformedInput(f"{of}: expected a PEM private key, got something else") from None


def private_pem(key: PrivateKeyTypes, password: Secret[str] | None) -> Secret[bytes]:
    """Return the PKCS#8 PEM text of a private key, encrypted when there is a password."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption() if password is None
        else serialization.BestAvailableEncryption(password.reveal().encode())
    )
    form = serialization.PrivateFormat.PKCS8
    return Secret(key.private_bytes(serialization.Encoding.PEM, form, encryption))
