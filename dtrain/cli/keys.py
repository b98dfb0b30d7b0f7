"""``dtrain key new`` and ``dtrain key show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import options, output
from dtrain.cli.options import Json, PasswordFile
from dtrain.errors import MalformedInput, UsageProblem

app = typer.Typer(help="Keys of stations and creators.", no_args_is_help=True, rich_markup_mode=None)


@app.command("new")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key.")],
    bits: Annotated[int, typer.Option("--bits", help="Size of the RSA key: 2048 to 4096.")] = 3072,
    key_password_file: PasswordFile = None, json: Json = False,
) -> None:
    """Make an RSA key pair: FILE (mode 0600) and, beside it, NAME.pub.pem.

    Prints the fingerprint. The private key is encrypted when there is a password.
    """
    from dtrain.crypto.rsa import PrivateKey
    from dtrain.keystore.pem import write_key_pair

    key = PrivateKey.generate(bits)
    public = write_key_pair(key, file, password=options.key_password(key_password_file))
    output.result(key.public.fingerprint, as_json=json, schema="dtrain/key/v1", members={
        "fingerprint": key.public.fingerprint, "bits": bits, "private": str(file), "public": str(public)})


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private or public key, PEM.")],
    public: Annotated[bool, typer.Option("--public", help="Print the public key, PEM, instead.")] = False,
    key_password_file: PasswordFile = None, json: Json = False,
) -> None:
    """Print the fingerprint of a key, as an anchor pins it."""
    from dtrain.keystore.pem import read_private_key, read_public_key

    if public and json:
        raise UsageProblem("--public and --json: expected one of them, got both")
    try:
        key = read_public_key(file, of="key")
    except (UsageProblem, MalformedInput):
        key = read_private_key(file, password=options.key_password(key_password_file), warn=output.warn).public
    text = key.pem().decode().rstrip() if public else f"{key.fingerprint}  RSA {key.bits}"
    output.result(text, as_json=json, schema="dtrain/key/v1",
                  members={"fingerprint": key.fingerprint, "bits": key.bits})
