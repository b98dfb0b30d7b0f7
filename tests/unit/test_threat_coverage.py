"""Each line of the threat list that this version answers has a test that names its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ANSWERED = [
    *(f"A{number}" for number in range(1, 11)), *(f"B{number}" for number in range(1, 12)),
    *(f"C{number}" for number in range(1, 8)), *(f"D{number}" for number in range(1, 9)),
    "E1", "E2", "E3", "E4", "E6", "E7",
]


@pytest.fixture(scope="module")
def named() -> set[str]:
    """The numbers that stand in names or docstrings of tests."""
    found: set[str] = set()
    for file in TESTS.rglob("test_*.py"):
        if file != Path(__file__):
            text = file.read_text()
            found |= {number.upper() for number in re.findall(r"def test_(?:\w*_)?([a-eA-E]\d{1,2})(?=_|\()", text)}
            for docstring in re.findall(r'"""(.*?)"""', text, re.DOTALL):
                found |= set(re.findall(r"\b([A-E]\d{1,2})\b", docstring))
    return found


@pytest.mark.parametrize("number", ANSWERED)
def test_threat_has_a_test(number: str, named: set[str]) -> None:
    assert number in named
