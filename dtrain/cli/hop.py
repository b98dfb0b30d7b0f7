"""What a station does: ``pull-verify`` and ``push-results``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtrain.cli.options import Believing, Keys, Ref, StationId, Surroundings, expanded, require_station

if TYPE_CHECKING:
    from dtrain.compat import SecurityProtocol


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pull-verify")(expanded(pull_verify))
    app.command("push-results")(expanded(push_results))
    app.command("pre-run")(pre_run)
    app.command("post-run")(post_run)


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


Image = Annotated[str, typer.Argument(metavar="IMAGE", help="Reference of the train.")]


def pre_run(image: Image) -> None:
    """What train_lib's container does before a run, with its environment: STATION_ID, PRIVATE_KEY_PATH,
    PRIVATE_KEY_PASSWORD; and DTRAIN_ANCHOR. Prints the working folder (DTRAIN_WORK_DIR, or the repository's name)."""
    print(_protocol(image).pre_run_protocol(image))


def post_run(
    image: Image,
    rebase: Annotated[bool, typer.Option("--rebase", help="Taken for train_lib's sake: it is always done.")] = False,
) -> None:
    """What train_lib's container does after a run, and the push. Prints the pinned reference."""
    print(_protocol(image).post_run_protocol(image, rebase=rebase))


def _protocol(image: str) -> SecurityProtocol:
    from dtrain.compat import SecurityProtocol, extract_train_config

    return SecurityProtocol(require_station(os.environ.get("STATION_ID")), extract_train_config(image))
