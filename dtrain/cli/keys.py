"""``dtrain key new`` and ``dtrain key show``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import options, output
from dtrain.cli.options import Json, PasswordFile
from dtrain.errors import UsageProblem

app = typer.Typer(help="Keys of stations and creators.", no_args_is_help=True, rich_markup_mode=None)


class KeyKind(StrEnum):
    """A kind of key."""

    RSA = "rsa"
    ED25519 = "ed25519"


@app.command("new")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key.")],
    bits: Annotated[int, typer.Option("--bits", help="Size of the RSA key: 2048 to 4096.")] = 3072,
    only: Annotated[KeyKind | None, typer.Option(
        "--only", help="Make one key: rsa, which PHT asks for, or ed25519, which signs metadata.")] = None,
    key_password_file: PasswordFile = None, json: Json = False,
) -> None:
    """Make the keys of a station or creator: FILE (mode 0600) and, beside it, NAME.pub.pem.

    Each file holds two keys: the RSA key that PHT asks for, and an Ed25519 key that signs metadata. Prints the
    fingerprint of the RSA key. Private keys are encrypted when there is a password.
    """
    from dtrain.crypto.rsa import PrivateKey
    from dtrain.crypto.signing import SigningKey
    from dtrain.keystore.pem import write_key_pair

    key = None if only is KeyKind.ED25519 else PrivateKey.generate(bits)
    signing = None if only is KeyKind.RSA else SigningKey.generate()
    public = write_key_pair(key, file, password=options.key_password(key_password_file), signing=signing)
    fingerprints = [one.public.fingerprint for one in (key, signing) if one is not None]
    output.result(fingerprints[0], as_json=json, schema="dtrain/key/v1", members={
        "fingerprint": fingerprints[0], "signing_fingerprint": fingerprints[-1],
        "bits": None if key is None else bits, "private": str(file), "public": str(public)})


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private or public key, PEM.")],
    public: Annotated[bool, typer.Option("--public", help="Print the public key, PEM, instead.")] = False,
    key_password_file: PasswordFile = None, json: Json = False,
) -> None:
    """Print the fingerprint of a key, as an anchor pins it."""
    from dtrain.keystore.pem import read_all_public

    if public and json:
        raise UsageProblem("--public and --json: expected one of them, got both")
    keys = read_all_public(file, password=options.key_password(key_password_file), warn=output.warn)
    shown = [f"{key.fingerprint}  {key.kind}" for key in keys]
    text = b"".join(key.pem() for key in keys).decode().rstrip() if public else "\n".join(shown)
    output.result(text, as_json=json, schema="dtrain/key/v1", members={
        "fingerprint": keys[0].fingerprint, "signing_fingerprint": next(
            (key for key in keys if not key.is_rsa), keys[0]).fingerprint, "kinds": [key.kind for key in keys]})
