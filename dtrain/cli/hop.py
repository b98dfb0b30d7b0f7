"""What a station does: ``pull-verify`` and ``push-results``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    StationId,
    Surroundings,
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pull-verify")(pull_verify)
    app.command("push-results")(push_results)


def pull_verify(
    ref: Ref,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Working folder to make.")] = None,
    station: StationId = None, key: KeyFile = None, key_password_file: PasswordFile = None,
    anchor: AnchorFile = None, trust_embedded_keys: Embedded = False, state_dir: StateDir = None,
    registry: Host = None, plain_http: PlainHttp = False, ca_file: CaFile = None, client_cert: ClientCert = None,
    client_key: ClientKey = None, json: Json = False, quiet: Quiet = False, progress: ProgressMode = Progress.AUTO,
) -> None:
    """Verify the train at REF and decrypt it into DIR (default: the last part of the repository's name).

    Prints the pinned reference. Nothing is written unless every check holds.
    """
    from dtrain.flow.pull_verify import pull_verify as flow
    from dtrain.oci.digest import Digest

    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    reference = around.reference(ref)
    hop = flow(reference, folder or Path(reference.name), station=options.require_station(station),
               key=options.private_key(key, key_password_file, around),
               trust=options.trust(anchor, trust_embedded_keys), context=around.context())
    record = hop.record
    pinned = str(reference.pinned(Digest.parse(record.digest)))
    if not quiet:
        output.note(f"train {record.train}: verified, stop {record.hop} of {record.stops}; "
                    f"run {hop.code_dir} on {hop.results_dir}, then: dtrain push-results {hop.folder}")
    output.result(pinned, as_json=json, schema="dtrain/pull-verify/v1", members={
        "reference": pinned, "digest": record.digest, "train": record.train, "station": record.station,
        "hop": record.hop, "stops": record.stops, "folder": str(hop.folder), "trust": record.trust,
    })


def push_results(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Working folder of pull-verify.")] = Path(),
    to: Annotated[str | None, typer.Option("--to", metavar="REF", help="Publish at another place.")] = None,
    key: KeyFile = None, key_password_file: PasswordFile = None,
    anchor: AnchorFile = None, trust_embedded_keys: Embedded = False, state_dir: StateDir = None,
    registry: Host = None, plain_http: PlainHttp = False, ca_file: CaFile = None, client_cert: ClientCert = None,
    client_key: ClientKey = None, json: Json = False, quiet: Quiet = False, progress: ProgressMode = Progress.AUTO,
) -> None:
    """Seal, sign and publish the results in DIR (default: the folder you stand in).

    Prints the pinned reference. Repeating it is harmless. If someone else pushed since pull-verify: exit 34.
    """
    from dtrain.flow.push_results import push_results as flow

    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    published = flow(folder, key=options.private_key(key, key_password_file, around),
                     trust=options.trust(anchor, trust_embedded_keys), context=around.context(),
                     target=None if to is None else around.reference(to))
    if not quiet:
        output.note(f"train {published.train}: hop {published.hop} "
                    f"{'had been published already' if published.already else 'published'} as {published.tag}")
    output.result(str(published.reference), as_json=json, schema="dtrain/push-results/v1", members={
        "reference": str(published.reference), "digest": str(published.reference.digest), "train": published.train,
        "hop": published.hop, "tag": published.tag, "already": published.already,
    })
