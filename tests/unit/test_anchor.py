"""anchor.toml: its forms, its refusals, and that what is written is read back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dtrain.crypto.rsa import PrivateKey
from dtrain.errors import DtrainError, KeyNotFound, MalformedInput
from dtrain.oci.digest import Digest
from dtrain.train.pin import TrainPin
from dtrain.trust.anchor import BaseImage, parse_anchor, read_anchor, render_anchor

FINGERPRINT = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return PrivateKey.generate(2048)


def test_three_forms_of_a_key_are_one_key(key: PrivateKey, tmp_path: Path) -> None:
    (tmp_path / "b.pem").write_bytes(key.public.pem())
    (tmp_path / "anchor.toml").write_text(
        f'version = 1\n[stations]\na = {{ fingerprint = "{key.public.fingerprint}" }}\nb = {{ file = "b.pem" }}\n'
        f'c = {{ pem = """{key.public.pem().decode()}""" }}\n')
    assert read_anchor(tmp_path / "anchor.toml").stations == dict.fromkeys("abc", key.public.fingerprint)


def test_what_is_rendered_is_read_back(key: PrivateKey, tmp_path: Path) -> None:
    base = BaseImage(reference="oci:/a \"b\"\\c:3", digest=Digest.of(b"x"), command=("python", "-I"))
    pin = TrainPin(id="t\n1.é", creator="alice", proposal="7", session=b"\1" * 64, source="x:y", route=("a", "b c"),
                   files={"lib/ä.py": "0" * 64})
    text = render_anchor(creators={"alice": key.public}, builders={"b": key.public}, stations={"a.b": key.public},
                         base_images=(base,), trains=(pin,))
    anchor = parse_anchor(tomllib.loads(text), source="test", folder=tmp_path)
    assert anchor.base_images == (base,)
    assert anchor.trains == {pin.id: pin}
    assert anchor.stations == {"a.b": key.public.fingerprint}
    assert (anchor.any_builder, anchor.any_base) == (False, False)


@pytest.mark.parametrize(("text", "error"), [
    ("", MalformedInput), ("version = 2", MalformedInput), ("version = 1\n[station]", MalformedInput),
    ("version = ", MalformedInput), ("version = 1\n[stations]\na = {}", MalformedInput),
    ('version = 1\n[stations]\na = { fingerprint = "abc" }', MalformedInput),
    (f'version = 1\n[stations]\na = {{ fingerprint = "{FINGERPRINT}", file = "x" }}', MalformedInput),
    ('version = 1\n[stations]\na = { file = "none.pem" }', KeyNotFound),
    ('version = 1\n[policy]\nany_bilder = true', MalformedInput),
    ('version = 1\n[[base_images]]\nreference = "a/b"\ndigest = "sha256:1"', MalformedInput),
    ('version = 1\n[trains.x]\nsession = "zz"', MalformedInput),
    ('version = 1\n[trains.x]\nruote = []', MalformedInput),
])
def test_what_is_no_anchor(text: str, error: type[DtrainError], tmp_path: Path) -> None:
    path = tmp_path / "anchor.toml"
    path.write_text(text)
    with pytest.raises(error):
        read_anchor(path)
