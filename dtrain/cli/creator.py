"""What a creator does: ``build`` and ``results``."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli import options, output
from dtrain.cli.options import (
    AnchorFile,
    CaFile,
    ClientCert,
    ClientKey,
    Embedded,
    Host,
    Json,
    KeyFile,
    PasswordFile,
    PlainHttp,
    Progress,
    ProgressMode,
    Quiet,
    Ref,
    StateDir,
    Surroundings,
)  # fmt: skip
from dtrain.errors import StorageProblem, UsageProblem

if TYPE_CHECKING:
    from dtrain.crypto.rsa import PublicKey


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("build")(build)
    app.command("results")(results)


def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the algorithm.")],
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Base image that the train is built on.")],
    to: Annotated[str, typer.Option("--to", metavar="REF", help="Repository or layout to publish the train in.")],
    stop: Annotated[list[str], typer.Option("--stop", metavar="ID=FILE",
                                            help="A station and its public key; once for each stop, in order.")],
    creator: Annotated[str, typer.Option("--creator", metavar="ID", help="Your id.", envvar="DTRAIN_CREATOR")],
    key: KeyFile = None, key_password_file: PasswordFile = None,
    builder_key: Annotated[Path | None, typer.Option(
        "--builder-key", metavar="FILE", help="Private key of the builder, unencrypted or with the same password; "
                                              "default: your own.")] = None,
    builder: Annotated[str, typer.Option("--builder", metavar="ID", help="Its id, for the anchor.")] = "builder",
    query: Annotated[Path | None, typer.Option("--query", metavar="FILE", help="query.json of the train.")] = None,
    entrypoint: Annotated[str, typer.Option("--entrypoint", metavar="PATH",
                                            help="File in DIR that starts the algorithm.")] = "entrypoint.py",
    command: Annotated[str, typer.Option("--command", metavar="WORDS",
                                         help="What runs the entry point, split at spaces.")] = "python",
    train_id: Annotated[str | None, typer.Option("--train-id", metavar="ID", help="Default: a new UUID.")] = None,
    proposal: Annotated[str, typer.Option("--proposal", metavar="ID", help="Id of the proposal.")] = "none",
    anchor_out: Annotated[Path | None, typer.Option(
        "--anchor-out", metavar="FILE", help="Write an anchor file for the stations of the route.")] = None,
    state_dir: StateDir = None, registry: Host = None, plain_http: PlainHttp = False, ca_file: CaFile = None,
    client_cert: ClientCert = None, client_key: ClientKey = None, json: Json = False, quiet: Quiet = False,
    progress: ProgressMode = Progress.AUTO,
) -> None:
    """Make a train from the files in DIR, signed by you and the builder, and publish it (hop 0).

    Prints the pinned reference.
    """
    from dtrain.flow.build import TrainPlan
    from dtrain.flow.build import build as flow

    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    if anchor_out is not None and anchor_out.exists():
        raise UsageProblem(f"{anchor_out}: expected no file there, got one", hint="choose another --anchor-out")
    creator_key = options.private_key(key, key_password_file, around)
    plan = TrainPlan(
        id=train_id or str(uuid.uuid4()), proposal=proposal, creator=creator, creator_key=creator_key,
        builder=builder, code=folder, query=_read(query), entrypoint=entrypoint, command=tuple(command.split()),
        builder_key=creator_key if builder_key is None else options.private_key(builder_key, key_password_file, around),
        route=[_stop(text) for text in stop],
    )
    made = flow(plan, around.reference(base), around.reference(to), context=around.context())
    if anchor_out is not None:
        anchor_out.write_text(made.anchor)
    if not quiet:
        output.note(f"train {made.train}: published with {len(stop)} stops; the first is {plan.route[0][0]!r}")
    output.result(str(made.reference), as_json=json, schema="dtrain/build/v1", members={
        "reference": str(made.reference), "digest": str(made.reference.digest), "base": str(made.base),
        "train": made.train, "anchor": None if anchor_out is None else str(anchor_out),
    })


def _stop(text: str) -> tuple[str, PublicKey]:
    from dtrain.keystore.pem import read_public_key

    station, equals, path = text.partition("=")
    if not equals or not station or not path:
        raise UsageProblem(f"--stop: expected ID=FILE, got {text!r}")
    return station, read_public_key(Path(path), of=f"station {station}")


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise StorageProblem(f"{path}: expected a readable file, got: {error.strerror}") from None


def results(
    ref: Ref, folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make for the results.")],
    key: KeyFile = None, key_password_file: PasswordFile = None, anchor: AnchorFile = None,
    trust_embedded_keys: Embedded = False, state_dir: StateDir = None, registry: Host = None,
    plain_http: PlainHttp = False, ca_file: CaFile = None, client_cert: ClientCert = None,
    client_key: ClientKey = None, json: Json = False, quiet: Quiet = False, progress: ProgressMode = Progress.AUTO,
) -> None:
    """Verify the train at REF and write its decrypted results into DIR; for the creator.

    Prints DIR. Works for the image of any hop: give its tag.
    """
    from dtrain.flow.open_results import open_results as flow

    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    opened = flow(around.reference(ref), folder, key=options.private_key(key, key_password_file, around),
                  trust=options.trust(anchor, trust_embedded_keys), context=around.context())
    if not quiet:
        output.note(f"train {opened.train}: {opened.files} result files after {opened.done} of {opened.stops} stops")
    output.result(str(opened.folder), as_json=json, schema="dtrain/results/v1", members={
        "reference": str(opened.reference), "digest": str(opened.reference.digest), "train": opened.train,
        "folder": str(opened.folder), "files": opened.files, "visited": opened.done, "stops": opened.stops,
    })
