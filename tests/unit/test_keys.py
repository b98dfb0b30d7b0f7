"""Key files with one key or two, in any order, encrypted or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.crypto.signing import SigningKey, VerifyKey, pem_blocks
from dtrain.errors import MalformedInput, UsageProblem, WrongKey
from dtrain.keystore.pem import (
    read_all_public,
    read_private_key,
    read_public_key,
    read_signing_key,
    read_verify_key,
    write_key_pair,
)  # fmt: skip


@pytest.fixture(scope="module")
def rsa() -> PrivateKey:
    return PrivateKey.generate(2048)


@pytest.mark.parametrize("password", [None, Secret("pass word")])
def test_file_with_both_keys(tmp_path: Path, rsa: PrivateKey, password: Secret[str] | None) -> None:
    signing = SigningKey.generate()
    public = write_key_pair(rsa, tmp_path / "k.pem", password=password, signing=signing)
    assert read_private_key(tmp_path / "k.pem", password=password).public == rsa.public
    assert read_signing_key(tmp_path / "k.pem", password=password).public == signing.public
    assert read_public_key(public, of="k") == rsa.public
    assert read_verify_key(public, of="k") == signing.public
    both = [rsa.public.fingerprint, signing.public.fingerprint]
    assert [key.fingerprint for key in read_all_public(public)] == both
    assert [key.fingerprint for key in read_all_public(tmp_path / "k.pem", password=password)] == both
    assert serialization.load_pem_private_key(  # tools that know of one key read the first
        (tmp_path / "k.pem").read_bytes(), None if password is None else password.reveal().encode()).key_size == 2048
    if password is not None:
        for read in (read_private_key, read_signing_key):
            with pytest.raises(WrongKey):
                read(tmp_path / "k.pem", password=Secret("another"))


def test_order_does_not_matter(tmp_path: Path, rsa: PrivateKey) -> None:
    signing = SigningKey.generate()
    path = tmp_path / "k.pem"
    path.write_bytes(signing.pem(None).reveal() + rsa.pem(None).reveal())
    path.chmod(0o600)
    assert read_private_key(path).public == rsa.public
    assert read_signing_key(path).public == signing.public
    path.write_bytes(signing.public.pem() + rsa.public.pem())
    assert read_public_key(path, of="k") == rsa.public
    assert read_verify_key(path, of="k") == signing.public


def test_blocks_that_are_no_keys_are_passed_over(tmp_path: Path, rsa: PrivateKey) -> None:
    """openssl writes EC PARAMETERS before a key, others a certificate."""
    path, other = tmp_path / "k.pem", b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    signing = SigningKey(ec.generate_private_key(ec.SECP256R1()), of="k")
    path.write_bytes(other + signing.pem(None).reveal() + rsa.pem(None).reveal())
    path.chmod(0o600)
    assert read_private_key(path).public == rsa.public
    assert read_signing_key(path).public == signing.public
    assert len(read_all_public(path)) == 2


def test_rsa_serves_where_there_is_no_other(tmp_path: Path, rsa: PrivateKey) -> None:
    public = write_key_pair(rsa, tmp_path / "k.pem", password=None)
    fingerprint = rsa.public.fingerprint
    assert read_signing_key(tmp_path / "k.pem").public.fingerprint == fingerprint
    assert read_verify_key(public, of="k").fingerprint == fingerprint
    assert VerifyKey.of_rsa(rsa.public) == SigningKey.of_rsa(rsa).public


@pytest.mark.parametrize(("curve", "kind"), [(ec.SECP256R1(), "P-256"), (ec.SECP384R1(), "P-384")])
def test_curves(curve: ec.EllipticCurve, kind: str) -> None:
    key = SigningKey(ec.generate_private_key(curve), of="k")
    assert key.public.kind == kind
    assert SigningKey.from_pem(key.pem(None).reveal(), password=None, of="k").public == key.public


def test_other_curves_and_no_keys(tmp_path: Path) -> None:
    with pytest.raises(WrongKey, match="expected an Ed25519, ECDSA"):
        SigningKey(ec.generate_private_key(ec.SECP521R1()), of="k")
    for raw in (b"", b"nothing", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(MalformedInput):
            VerifyKey.of_file(raw, of="k")
    (tmp_path / "k").write_bytes(b"nothing")
    with pytest.raises(MalformedInput):
        read_signing_key(tmp_path / "k")


def test_private_key_is_not_taken_for_a_public_one(tmp_path: Path, rsa: PrivateKey) -> None:
    write_key_pair(rsa, tmp_path / "k.pem", password=None, signing=SigningKey.generate())
    for read in (read_public_key, read_verify_key):
        with pytest.raises(UsageProblem, match="got the private key"):
            read(tmp_path / "k.pem", of="k")


def test_keys_do_not_show_themselves() -> None:
    key = SigningKey.generate()
    text = key.pem(None).reveal().decode().splitlines()[1]
    assert text not in repr(key)
    assert len(pem_blocks(key.pem(None).reveal(), b"PRIVATE KEY")) == 1
