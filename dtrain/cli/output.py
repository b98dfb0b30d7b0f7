"""Rendering: stdout carries the result, or one JSON object; everything else goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.errors import DtrainError


def result(text: str, *, as_json: bool, schema: str, members: dict[str, Any]) -> None:
    """Print ``text``, or the JSON object of ``members`` with its schema."""
    print(json.dumps({"schema": schema, **members}, indent=2) if as_json else text)


def note(text: str) -> None:
    """Tell the operator something that is not the result."""
    print(_shown(text), file=sys.stderr)


def warn(text: str) -> None:
    """Warn the operator."""
    note(f"dtrain: warning: {text}")


def error(problem: DtrainError, *, as_json: bool) -> None:
    """Print what went wrong and what to do about it."""
    if as_json:
        members = {"kind": problem.kind, "exit_status": problem.exit_status, "message": str(problem),
                   "hint": problem.hint}
        print(json.dumps({"schema": "dtrain/error/v1", **members}, indent=2))
    note(f"dtrain: error: {problem}")
    if problem.hint:
        note(f"dtrain: hint: {problem.hint}")


def _shown(text: str) -> str:
    """Return ``text`` without control characters: names in hostile images must not drive the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


shown = _shown


def progress() -> Callable[[int], None]:
    """Return what shows the number of bytes moved so far on stderr."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TransferSpeedColumn

    bar = Progress(SpinnerColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True),
                   transient=True)
    task = bar.add_task("moved", total=None)
    started = False

    def advance(size: int) -> None:
        nonlocal started
        if not started:
            started = True
            bar.start()
        bar.advance(task, size)

    return advance
