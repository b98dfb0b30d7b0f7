"""What a station does: ``pull-verify`` and ``push-results``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dtrain.cli.options import Believing, Keys, Ref, StationId, Surroundings, expanded, require_station


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pull-verify")(expanded(pull_verify))
    app.command("push-results")(expanded(push_results))


def pull_verify(
    *, ref: Ref,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Working folder to make.")] = None,
    station: StationId = None, keys: Keys, believing: Believing, around: Surroundings,
) -> None:
    """Verify the train at REF and decrypt it into DIR (default: the last part of the repository's name).

    Prints the pinned reference. Nothing is written unless every check holds.
    """
    from dtrain.flow.pull_verify import pull_verify as flow
    from dtrain.oci.digest import Digest

    reference = around.reference(ref)
    hop = flow(reference, folder or Path(reference.name), station=require_station(station), key=keys.private(around),
               signing_key=keys.signing(), trust=believing.trust(), context=around.context(believing))
    record = hop.record
    pinned = str(reference.pinned(Digest.parse(record.digest)))
    around.note(f"train {record.train}: verified, stop {record.hop} of {record.stops}; "
                f"run {hop.code_dir} on {hop.results_dir}, then: dtrain push-results {hop.folder}")
    around.result(pinned, "dtrain/pull-verify/v1", {
        "reference": pinned, "digest": record.digest, "train": record.train, "station": record.station,
        "hop": record.hop, "stops": record.stops, "folder": str(hop.folder), "trust": record.trust,
        "metadata": record.metadata or None, "unattested": [dict(gap) for gap in record.unattested],
    })


def push_results(
    *, folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Working folder of pull-verify.")] = Path(),
    to: Annotated[str | None, typer.Option("--to", metavar="REF", help="Publish at another place.")] = None,
    keys: Keys, believing: Believing, around: Surroundings,
) -> None:
    """Seal, sign and publish the results in DIR (default: the folder you stand in).

    Prints the pinned reference. Repeating it is harmless. If someone else pushed since pull-verify: exit 34.
    """
    from dtrain.flow.push_results import push_results as flow

    published = flow(folder, key=keys.private(around), signing_key=keys.signing(), trust=believing.trust(),
                     context=around.context(believing), target=None if to is None else around.reference(to))
    state = published.metadata
    around.note(f"train {published.train}: hop {published.hop} "
                f"{'had been published already' if published.already else 'published'} as {published.tag}")
    if state is not None and not state.complete:
        around.note("its metadata needs another signature: ask the router for: dtrain trust cosign")
    metadata: dict[str, Any] | None = None if state is None else {
        "digest": str(state.artifact.digest), "version": state.version, "complete": state.complete}
    around.result(str(published.reference), "dtrain/push-results/v1", {
        "reference": str(published.reference), "digest": str(published.reference.digest), "train": published.train,
        "hop": published.hop, "tag": published.tag, "already": published.already, "metadata": metadata,
    })
