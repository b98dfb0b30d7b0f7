"""Moving trains: ``forward``, ``bundle`` and ``unbundle``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtrain.cli.options import Believing, Ref, Surroundings, expanded

if TYPE_CHECKING:
    from dtrain.flow.forward import Forwarded
    from dtrain.trust.anchor import Anchor, EmbeddedKeys

Target = Annotated[str, typer.Argument(metavar="DST", help="Repository or layout to copy to, without a tag.")]
Unverified = Annotated[bool, typer.Option("--unverified", help="Copy without verifying; whoever receives it will.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("forward")(expanded(forward))
    app.command("bundle")(expanded(bundle))
    app.command("unbundle")(expanded(unbundle))


def forward(*, ref: Ref, target: Target, unverified: Unverified = False, believing: Believing,
            around: Surroundings) -> None:
    """Copy the train at REF to DST with its base image's tag, its hops and its metadata; verify it before and after.

    The tag of REF is put last, as routers rely on. Within one registry no bytes move. Prints the pinned reference.
    """
    from dtrain.flow.forward import forward as flow

    _tell(around, flow(around.reference(ref), around.reference(target), trust=_trust(believing, unverified),
                       context=around.context(believing)))


def bundle(*, ref: Ref, file: Annotated[Path, typer.Argument(metavar="FILE", help="Tar file to make.")],
           unverified: Unverified = False, believing: Believing, around: Surroundings) -> None:
    """Write the train at REF with all that belongs to it into one file, to be carried where there is no network."""
    from dtrain.flow.forward import bundle as flow

    _tell(around, flow(around.reference(ref), file, trust=_trust(believing, unverified),
                       context=around.context(believing)))


def unbundle(*, file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by bundle.")], target: Target,
             unverified: Unverified = False, believing: Believing, around: Surroundings) -> None:
    """Publish the train in FILE at DST; verify it before and after."""
    from dtrain.flow.forward import unbundle as flow

    _tell(around, flow(file, around.reference(target), trust=_trust(believing, unverified),
                       context=around.context(believing)))


def _trust(believing: Believing, unverified: bool) -> Anchor | EmbeddedKeys | None:
    return None if unverified else believing.trust()


def _tell(around: Surroundings, moved: Forwarded) -> None:
    around.note(f"copied {len(moved.tags)} tags, the last one is {moved.tags[-1]}")
    around.result(str(moved.reference), "dtrain/forward/v1", {
        "reference": str(moved.reference), "digest": str(moved.reference.digest), "tags": list(moved.tags)})
