"""Looking without a private key: ``verify`` and ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtrain.cli import output
from dtrain.cli.options import Believing, Ref, Surroundings, TrustRepository, expanded

if TYPE_CHECKING:
    from dtrain.flow.verify import Verified
    from dtrain.train.config import TrainConfig
    from dtrain.trust.attested import AttestedHop


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("verify")(expanded(verify))
    app.command("inspect")(expanded(inspect))


def verify(
    *, ref: Ref, every_image: Annotated[bool, typer.Option(
        "--every-image", help="Check the images of earlier hops too, not their metadata alone.")] = False,
    believing: Believing, around: Surroundings,
) -> None:
    """Check all that needs no private key: metadata of every hop, keys, route, signatures, the file set, and what the
    image changed.

    Prints the pinned reference. Plaintext is not looked at: that takes a station's or the creator's key.
    """
    from dtrain.flow.verify import verify as flow

    found = flow(around.reference(ref), trust=believing.trust(), context=around.context(believing),
                 every_image=every_image)
    attested = found.attested
    for line in _route_lines(found.config) if attested is None else _audit_lines(found):
        around.note(line)
    if not found.base_checked:
        around.warn("the image was not held against an approved base image")
    around.result(str(found.reference), "dtrain/verify/v1", {
        "reference": str(found.reference), "digest": str(found.reference.digest), "trust": found.trust,
        "base_checked": found.base_checked, **_train_members(found.config),
        "metadata": None if attested is None else {
            "digest": str(attested.metadata), "version": attested.version, "root_version": attested.root_version,
            "issued": attested.issued.isoformat(), "expires": attested.expires.isoformat(),
            "stale_seconds": None if attested.stale is None else int(attested.stale.total_seconds()),
            "deadline": attested.descriptor.deadline.isoformat()},
        "hops": [] if attested is None else [_hop_members(hop, found) for hop in attested.hops],
        "unattested": [] if attested is None else [gap.to_custom() for gap in (*attested.unattested(),
                                                                              *found.unattested)],
    })


def _hop_members(hop: AttestedHop, found: Verified) -> dict[str, Any]:
    statement = hop.statement
    return {
        "hop": hop.number, "station": hop.station, "digest": str(hop.digest), "signers": list(hop.signers),
        "keys": list(hop.keys), "issued": None if statement is None else statement.issued.isoformat(),
        "parent": None if statement is None else str(statement.parent),
        "results": None if statement is None else {"files": statement.result_files, "bytes": statement.result_bytes},
        "tool": None if statement is None else statement.tool,
        "image": "checked" if hop.number in found.images_checked
        else "gone" if hop.number in found.images_gone else "not looked at",
    }


def _audit_lines(found: Verified) -> list[str]:
    attested = found.attested
    if attested is None:
        return []
    lines = [f"metadata  version {attested.version} of {attested.issued:%Y-%m-%d %H:%M} UTC, "
             f"valid until {attested.expires:%Y-%m-%d %H:%M}; root {attested.root_version}"]
    before = None
    for hop in (one for one in attested.hops if one.number <= found.done):
        statement = hop.statement
        if statement is not None:
            lines += [f"hop {gap.number:>3}   {gap.station}  no metadata; received and vouched for by {hop.station}"
                      for gap in statement.unattested]
        what = "the new train" if statement is None else (
            f"{statement.issued:%Y-%m-%d %H:%M}  results: {statement.result_files} files, "
            f"{statement.result_bytes} bytes encrypted"
            + ("" if before is None else f" (before: {before.result_files}, {before.result_bytes})"))
        lines.append(f"hop {hop.number:>3}   {hop.station or found.config.creator.id}  {hop.digest}  "
                     f"signed by {', '.join(hop.signers)}  {what}")
        before = statement or before
    lines += [f"hop {gap.number:>3}   {gap.station}  no metadata; accepted as the anchor says"
              for gap in found.unattested]
    lines += [f"hop {hop.number:>3}   {hop.station}  later than the one that was asked for"
              for hop in attested.hops if hop.number > found.done]
    return lines + [f"stop {number:>2}   {station}  to come" for number, station in
                    enumerate(attested.descriptor.stations, start=1)
                    if number > max(found.done, attested.newest.number)]


def inspect(*, ref: Ref, trust_repository: TrustRepository = None, around: Surroundings) -> None:
    """Show what the train at REF, or the working folder REF, says of itself. Nothing is verified."""
    from dtrain.flow.inspect import inspect as flow
    from dtrain.flow.workdir import RECORD, read_record

    if (Path(ref) / RECORD).is_file():
        record = read_record(Path(ref))
        output.result(record.to_bytes().decode().rstrip(), as_json=False, schema="", members={})
        return
    found = flow(around.reference(ref), context=around.context(Believing(trust_repository=trust_repository)))
    manifest, train = found.image.manifest, found.train
    members: dict[str, Any] = {
        "reference": str(found.reference), "digest": str(manifest.digest), "verified": False,
        "media_type": manifest.media_type, "layers": len(manifest.layers),
        "image_bytes": sum(layer.size for layer in manifest.layers),
        **_train_members(train.config),
        "files": list(train.config.file_list), "query": train.query is not None,
        "results": {path: entry.size for path, entry in train.result_files.items()},
        "hops": list(found.hops), "metadata": dict(found.metadata),
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
        *(f"metadata  {name}, version {version}" for name, version in found.metadata.items()),
    ]
    around.result(output.shown("\n".join(lines)), "dtrain/inspect/v1", members)


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
