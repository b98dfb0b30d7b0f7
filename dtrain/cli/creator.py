"""What a creator does: ``build`` and ``results``."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli.options import Believing, Keys, Ref, Surroundings, TrustRepository, expanded, key_password
from dtrain.errors import StorageProblem, UsageProblem

if TYPE_CHECKING:
    from dtrain.crypto.rsa import PublicKey
    from dtrain.crypto.signing import VerifyKey


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("build")(expanded(build))
    app.command("results")(expanded(results))


def build(
    *, folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the algorithm.")],
    base: Annotated[str, typer.Option("--base", metavar="REF", help="Base image that the train is built on.")],
    to: Annotated[str, typer.Option("--to", metavar="REF", help="Repository or layout to publish the train in.")],
    stop: Annotated[list[str], typer.Option("--stop", metavar="ID=FILE",
                                            help="A station and its public keys; once for each stop, in order.")],
    creator: Annotated[str, typer.Option("--creator", metavar="ID", help="Your id.", envvar="DTRAIN_CREATOR")],
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
    root: Annotated[list[Path] | None, typer.Option(
        "--root", metavar="FILE", help="Root metadata of your consortium, each version from the first; default: a root "
                                       "of your own.")] = None,
    deadline: Annotated[datetime | None, typer.Option(
        "--deadline", formats=["%Y-%m-%d"], help="When every signature of the train ends; default: in a year.")] = None,
    dwell_days: Annotated[int, typer.Option(
        "--dwell-days", min=1, max=3650, help="How long the train may wait for a station to start.")] = 35,
    no_metadata: Annotated[bool, typer.Option(
        "--no-metadata", help="Make a plain PHT train, without signed metadata.")] = False,
    anchor_out: Annotated[Path | None, typer.Option(
        "--anchor-out", metavar="FILE", help="Write an anchor file for the stations of the route.")] = None,
    trust_repository: TrustRepository = None, keys: Keys, around: Surroundings,
) -> None:
    """Make a train from the files in DIR, signed by you and the builder, and publish it (hop 0).

    Prints the pinned reference.
    """
    from dtrain.flow.build import SignedPlan, TrainPlan
    from dtrain.flow.build import build as flow
    from dtrain.keystore.pem import read_private_key, read_signing_key

    if anchor_out is not None and anchor_out.exists():
        raise UsageProblem(f"{anchor_out}: expected no file there, got one", hint="choose another --anchor-out")
    creator_key, password = keys.private(around), key_password(keys.key_password_file)
    stops = [_stop(text) for text in stop]
    signed = None if no_metadata else SignedPlan(
        creator_key=keys.signing(), station_keys={station: signing for station, _, signing in stops},
        builder_key=None if builder_key is None else read_signing_key(builder_key, password=password),
        roots=tuple(filter(None, map(_read, root or ()))),
        deadline=None if deadline is None else deadline.replace(tzinfo=UTC), dwell_days=dwell_days)
    plan = TrainPlan(
        id=train_id or str(uuid.uuid4()), proposal=proposal, creator=creator, creator_key=creator_key,
        builder=builder, code=folder, query=_read(query), entrypoint=entrypoint, command=tuple(command.split()),
        builder_key=creator_key if builder_key is None else read_private_key(builder_key, password=password,
                                                                             warn=around.warn),
        route=[(station, public) for station, public, _ in stops], signed=signed,
    )
    made = flow(plan, around.reference(base), around.reference(to),
                context=around.context(Believing(trust_repository=trust_repository)))
    if anchor_out is not None:
        anchor_out.write_text(made.anchor)
    if not made.complete:
        around.note(f"its metadata needs another signature: ask the router for: dtrain trust cosign {to} {creator}")
    around.note(f"train {made.train}: published with {len(stop)} stops; the first is {plan.route[0][0]!r}")
    around.result(str(made.reference), "dtrain/build/v1", {
        "reference": str(made.reference), "digest": str(made.reference.digest), "base": str(made.base),
        "train": made.train, "anchor": None if anchor_out is None else str(anchor_out),
        "metadata": not no_metadata, "complete": made.complete,
    })


def _stop(text: str) -> tuple[str, PublicKey, VerifyKey]:
    from dtrain.keystore.pem import read_public_key, read_verify_key

    station, equals, path = text.partition("=")
    if not equals or not station or not path:
        raise UsageProblem(f"--stop: expected ID=FILE, got {text!r}")
    of = f"station {station}"
    return station, read_public_key(Path(path), of=of), read_verify_key(Path(path), of=of)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise StorageProblem(f"{path}: expected a readable file, got: {error.strerror}") from None


def results(
    *, ref: Ref, folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make for the results.")],
    keys: Keys, believing: Believing, around: Surroundings,
) -> None:
    """Verify the train at REF and write its decrypted results into DIR; for the creator.

    Prints DIR. Works for the image of any hop: give its tag.
    """
    from dtrain.flow.open_results import open_results as flow

    opened = flow(around.reference(ref), folder, key=keys.private(around), trust=believing.trust(),
                  context=around.context(believing))
    around.note(f"train {opened.train}: {opened.files} result files after {opened.done} of {opened.stops} stops")
    around.result(str(opened.folder), "dtrain/results/v1", {
        "reference": str(opened.reference), "digest": str(opened.reference.digest), "train": opened.train,
        "folder": str(opened.folder), "files": opened.files, "visited": opened.done, "stops": opened.stops,
    })
