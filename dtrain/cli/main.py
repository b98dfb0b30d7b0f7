"""The entry point: the list of commands, and how errors become exit statuses."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from dtrain.cli import creator, demo, hop, keys, look, move, options, output, trust
from dtrain.errors import DtrainError
from dtrain.version import VERSION

app = typer.Typer(
    name="dtrain", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Personal Health Train images without a Docker daemon: verify, decrypt, seal and pass on.",
    epilog="Exit status: 0 done, 2 usage, 10-17 verification failed, 20 malformed input, 30-34 transport, 40-42 keys.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dtrain {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version,
                                               is_eager=True)] = False,
) -> None:
    """Nothing to do before a command."""


@app.command("version")
def version() -> None:
    """Print the version."""
    _print_version(True)


for group in (hop, look, creator, move, demo):
    group.add_to(app)
app.add_typer(keys.app, name="key")
app.add_typer(trust.app, name="trust")


def _defaults(command: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` for each command, those of groups too."""
    commands = getattr(command, "commands", None)
    if commands is None:
        return settings
    return {name: _defaults(one, settings) for name, one in commands.items()}


def main() -> None:
    """Run the command line and exit with the status of what happened."""
    try:
        command = typer.main.get_command(app)
        command.main(prog_name="dtrain", default_map=_defaults(command, options.from_files()))
    except DtrainError as problem:
        output.error(problem, as_json="--json" in sys.argv)
        sys.exit(problem.exit_status)


if __name__ == "__main__":
    main()
