"""Looking without a private key: ``verify`` and ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    PlainHttp,
    Progress,
    ProgressMode,
    Quiet,
    Ref,
    StateDir,
    Surroundings,
)  # fmt: skip

if TYPE_CHECKING:
    from dtrain.train.config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("verify")(verify)
    app.command("inspect")(inspect)


def verify(
    ref: Ref, anchor: AnchorFile = None, trust_embedded_keys: Embedded = False, state_dir: StateDir = None,
    registry: Host = None, plain_http: PlainHttp = False, ca_file: CaFile = None, client_cert: ClientCert = None,
    client_key: ClientKey = None, json: Json = False, quiet: Quiet = False, progress: ProgressMode = Progress.AUTO,
) -> None:
    """Check all that needs no private key: keys, route, every signature, the file set, and what the image changed.

    Prints the pinned reference. Plaintext is not looked at: that takes a station's or the creator's key.
    """
    from dtrain.flow.verify import verify as flow

    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    found = flow(around.reference(ref), trust=options.trust(anchor, trust_embedded_keys), context=around.context())
    if not quiet:
        for line in _route_lines(found.config):
            output.note(line)
        if not found.base_checked:
            output.warn("the image was not held against an approved base image")
    output.result(str(found.reference), as_json=json, schema="dtrain/verify/v1", members={
        "reference": str(found.reference), "digest": str(found.reference.digest), "trust": found.trust,
        "base_checked": found.base_checked, **_train_members(found.config),
    })


def inspect(
    ref: Ref, state_dir: StateDir = None, registry: Host = None, plain_http: PlainHttp = False, ca_file: CaFile = None,
    client_cert: ClientCert = None, client_key: ClientKey = None, json: Json = False, quiet: Quiet = False,
    progress: ProgressMode = Progress.AUTO,
) -> None:
    """Show what the train at REF, or the working folder REF, says of itself. Nothing is verified."""
    from dtrain.flow.inspect import inspect as flow
    from dtrain.flow.workdir import RECORD, read_record

    if (Path(ref) / RECORD).is_file():
        record = read_record(Path(ref))
        output.result(record.to_bytes().decode().rstrip(), as_json=False, schema="", members={})
        return
    around = Surroundings(registry=registry, plain_http=plain_http, ca_file=ca_file, client_cert=client_cert,
                          client_key=client_key, state_dir=state_dir, json=json, quiet=quiet, progress=progress)
    found = flow(around.reference(ref), context=around.context())
    manifest, train = found.image.manifest, found.train
    members: dict[str, Any] = {
        "reference": str(found.reference), "digest": str(manifest.digest), "verified": False,
        "media_type": manifest.media_type, "layers": len(manifest.layers),
        "image_bytes": sum(layer.size for layer in manifest.layers),
        **_train_members(train.config),
        "files": list(train.config.file_list), "query": train.query is not None,
        "results": {path: entry.size for path, entry in train.result_files.items()},
        "hops": list(found.hops),
    }
    lines = [
        f"{found.reference}  (not verified)",
        f"train     {train.config.id}, proposal {train.config.proposal_id}",
        f"creator   {train.config.creator.id}  {train.config.creator.key.fingerprint}",
        f"builder   {train.config.build.key.fingerprint}",
        f"source    {train.config.source.address}",
        f"code      {len(train.config.file_list)} files{', and a query' if train.query else ''}",
        f"results   {len(train.result_files)} files, encrypted {sum(members['results'].values())} bytes",
        f"image     {manifest.media_type}, {len(manifest.layers)} layers, {members['image_bytes']} bytes",
        *_route_lines(train.config),
        *(f"hop tag   {tag}" for tag in found.hops),
    ]
    output.result(output.shown("\n".join(lines)), as_json=json, schema="dtrain/inspect/v1", members=members)


def _route_lines(config: TrainConfig) -> list[str]:
    return [
        f"stop {stop.index + 1:>3}  {stop.station}  {stop.key.fingerprint}  "
        f"{'has signed' if stop.link is not None else 'to come'}"
        for stop in config.route
    ]


def _train_members(config: TrainConfig) -> dict[str, Any]:
    return {
        "train": config.id, "proposal": config.proposal_id,
        "creator": {"id": config.creator.id, "key": config.creator.key.fingerprint},
        "builder": {"key": config.build.key.fingerprint},
        "route": [{"station": stop.station, "key": stop.key.fingerprint, "visited": stop.link is not None}
                  for stop in config.route],
        "visited": sum(stop.link is not None for stop in config.route),
        "session": config.session_id.hex(),
    }
