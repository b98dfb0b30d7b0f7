"""Hop tags: readable where they can be, reversible always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.errors import MalformedInput
from dtrain.oci.reference import check_tag
from dtrain.train.route import hop_tag, parse_hop_tag


@pytest.mark.parametrize(("number", "station", "tag"), [
    (0, None, "hop-00"), (1, "station_1", "hop-01-station_1"), (12, "a.b", "hop-12-a.2eb"),
    (3, "Tübingen/2", "hop-03-T.c3.bcbingen.2f2"), (100, "x-y", "hop-100-x-y"),
])
def test_hop_tag(number: int, station: str | None, tag: str) -> None:
    assert hop_tag(number, station) == tag
    assert parse_hop_tag(tag) == (number, station)


@given(st.integers(1, 999), st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_hop_tag_is_reversible_and_a_tag(number: int, station: str) -> None:
    tag = hop_tag(number, station)
    check_tag(tag)
    assert parse_hop_tag(tag) == (number, station)


def test_station_too_long_for_a_tag() -> None:
    with pytest.raises(MalformedInput):
        hop_tag(1, "x" * 130)


@pytest.mark.parametrize("tag", ["latest", "base", "hop-1", "hop-xx-a", "hop-01x"])
def test_other_tags_are_no_hop_tags(tag: str) -> None:
    assert parse_hop_tag(tag) is None
