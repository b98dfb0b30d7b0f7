"""The file format and the RSA schemes, against known answers and against misuse."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from dtrain.crypto.cbc import PaddingProblem, decrypt, encrypt, is_sealed_size, sealed_size
from dtrain.crypto.rsa import PrivateKey, PublicKey
from dtrain.crypto.secret import Secret
from dtrain.errors import BadSignature, StorageProblem, UsageProblem, WrongKey
from dtrain.keystore.pem import read_public_key, write_key_pair

KEY = Secret(bytes(range(32)))


@pytest.fixture(scope="module")
def raw() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@given(st.lists(st.binary(max_size=70), max_size=5))
def test_file_round_trip_and_size(chunks: list[bytes]) -> None:
    plain = b"".join(chunks)
    sealed = b"".join(encrypt(chunks, KEY))
    assert len(sealed) == sealed_size(len(plain))
    assert is_sealed_size(len(sealed))
    assert b"".join(decrypt(io.BytesIO(sealed), KEY)) == plain


def test_empty_file_takes_32_bytes_and_each_file_its_own_iv() -> None:
    one, two = (b"".join(encrypt([], KEY)) for _ in range(2))
    assert len(one) == 32
    assert one[:16] != two[:16]


def test_file_as_the_format_describes_it() -> None:
    iv, plain = bytes(16), b"sixteen bytes!!!"
    encryptor = Cipher(algorithms.AES(KEY.reveal()), modes.CBC(iv)).encryptor()
    sealed = iv + encryptor.update(plain + b"\x10" * 16) + encryptor.finalize()
    assert b"".join(decrypt(io.BytesIO(sealed), KEY)) == plain


@pytest.mark.parametrize("sealed", [b"", b"x" * 15, b"x" * 16, b"x" * 33, bytes(48)])
def test_what_is_no_encrypted_file(sealed: bytes) -> None:
    with pytest.raises(PaddingProblem):
        list(decrypt(io.BytesIO(sealed), KEY))


def test_pkcs1_and_spki_spell_the_same_key(raw: rsa.RSAPrivateKey) -> None:
    forms = [raw.public_key().public_bytes(Encoding.PEM, form)
             for form in (PublicFormat.PKCS1, PublicFormat.SubjectPublicKeyInfo)]
    assert forms[0] != forms[1]
    one, two = (PublicKey.from_pem(pem, of="test") for pem in forms)
    assert one == two
    assert one.fingerprint == two.fingerprint


def test_traditional_private_key(raw: rsa.RSAPrivateKey) -> None:
    pem = raw.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert PrivateKey.from_pem(pem, password=None, of="test").public.bits == 2048
    assert PrivateKey.from_pem(pem, password=Secret("superfluous"), of="test").public.bits == 2048


def test_signatures_verify_and_others_do_not(raw: rsa.RSAPrivateKey) -> None:
    key, other = PrivateKey(raw, of="test"), PrivateKey.generate(2048)
    digest = bytes(64)
    key.public.verify_pss(key.sign_pss(digest), digest, of="test")
    key.public.verify_pkcs1(key.sign_pkcs1(b"m"), b"m", of="test")
    for check in (
        lambda: other.public.verify_pss(key.sign_pss(digest), digest, of="test"),
        lambda: key.public.verify_pss(key.sign_pss(digest), b"\1" * 64, of="test"),
        lambda: key.public.verify_pss(key.sign_pss(digest), b"short", of="test"),
        lambda: key.public.verify_pss(b"", digest, of="test"),
        lambda: key.public.verify_pkcs1(key.sign_pkcs1(b"m"), b"n", of="test"),
    ):
        with pytest.raises(BadSignature):
            check()


def test_wrapped_keys_open_for_their_owner_only(raw: rsa.RSAPrivateKey) -> None:
    key, other = PrivateKey(raw, of="test"), PrivateKey.generate(2048)
    assert key.unwrap(key.public.wrap(KEY), of="test").reveal() == KEY.reveal()
    for wrapped in (other.public.wrap(KEY), b"", key.public.wrap(Secret(b"short"))):
        with pytest.raises(WrongKey):
            key.unwrap(wrapped, of="test")


def test_key_files_are_private_and_never_overwritten(raw: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    key = PrivateKey(raw, of="test")
    public = write_key_pair(key, tmp_path / "a.pem", password=None)
    assert (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600
    assert read_public_key(public, of="test") == key.public
    with pytest.raises(StorageProblem):
        write_key_pair(key, tmp_path / "a.pem", password=None)
    with pytest.raises(UsageProblem, match="got the private key"):
        read_public_key(tmp_path / "a.pem", of="test")
