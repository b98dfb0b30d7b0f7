"""The README's tour, executed as it stands, and the claims of its tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from dtrain import errors

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.rst").read_text()


def test_tour_of_the_readme_works_as_printed(tmp_path: Path) -> None:
    block = re.search(r"\.\. code-block:: sh\n\n((?:    .*\n|\n)+)", README)
    assert block is not None
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", textwrap.dedent(block[1])], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("one more visit\none more visit\n")
    assert (tmp_path / "tour/results/visits.txt").read_text() == "one more visit\n" * 2


def test_readme_lists_the_exit_status_of_every_error() -> None:
    table = README[README.index("Exit status\n-----------"):README.index("Threats in ten lines")]
    listed = {int(number) for number in re.findall(r"\b\d{1,2}\b", table)}
    classes = [value for value in vars(errors).values() if isinstance(value, type)
               and issubclass(value, errors.DtrainError)]
    assert {one.exit_status for one in classes} <= listed
    assert listed - {0} <= {one.exit_status for one in classes} | {10, 30, 40}


def test_files_that_the_readme_names_exist() -> None:
    for path in re.findall(r"`[^`<]+ <([^>]+)>`_", README):
        assert (ROOT / path).exists(), path
