"""``dtrain demo``: a real train along a route of three stations, on an OCI layout, with no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli import output
from dtrain.cli.options import Json


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to make.")] = Path("demo"),
    json: Json = False,
) -> None:
    """Carry a train along three stations in DIR: build, verify, run, seal and, at the end, open the results.

    The algorithm sums a column over each station's own CSV file. It is run by this Python, without isolation: the
    demo shows the way of a train, not how to run a stranger's code.
    """
    from dtrain.flow.demo import demo as flow

    shown = flow(folder, tell=output.note)
    output.result(f"results: {shown.results}\ntotal:   {shown.total}", as_json=json, schema="dtrain/demo/v1", members={
        "folder": str(folder), "results": str(shown.results), "total": shown.total, "reference": str(shown.reference)})
