"""Whose turn it is: the route's form, and where on it the train stands (PHT interop 7.9, 7.14)."""

from __future__ import annotations

import re
from collections import Counter

from dtrain.errors import MalformedInput, RouteProblem
from dtrain.oci.reference import check_tag
from dtrain.train.config import Stop, TrainConfig

_HOP_TAG = re.compile(r"hop-(?P<number>[0-9]{2,})(?:-(?P<station>.+))?")


def visited(config: TrainConfig) -> int:
    """Return how many stops have run the train, after checking that the route can be believed to say so.

    train_lib asks only whether ``result_hash`` is null (W05); here every trace that a hop leaves has to agree.

    Raises:
        RouteProblem: indices with a gap, a station twice, links that are no unbroken start of the route, or results
            that are signed where no stop has run, or the reverse.
    """
    route = config.route
    if not route:
        raise RouteProblem("route: expected at least one stop, got none")
    indices = [stop.index for stop in route]
    if indices != list(range(len(route))):
        raise RouteProblem(f"route: expected the indices 0 to {len(route) - 1}, each once, got {indices[:20]}")
    stations = [str(stop.station) for stop in route]
    if len(set(stations)) != len(stations):
        twice = next(name for name, times in Counter(stations).items() if times > 1)
        raise RouteProblem(f"route: expected each station once, got {twice!r} more than once")
    done = sum(1 for stop in route if stop.link is not None)
    for stop in route[:done]:
        if stop.link is None:
            raise RouteProblem(f"{stop}: expected the signature of a stop that was passed, got none")
    for name, value in (("result_hash", config.result_hash), ("result_signature", config.result_signature)):
        if (value is not None) != (done > 0):
            raise RouteProblem(
                f"{name}: expected {'one' if done else 'none'} after {done} of {len(route)} stops, "
                f"got {'one' if value is not None else 'none'}",
                hint="someone edited train_config.json; do not run this train",
            )
    return done


def stop_of(config: TrainConfig, station: str) -> Stop:
    """Return the stop of ``station``.

    Raises:
        RouteProblem: it is not on the route.
    """
    for stop in config.route:
        if str(stop.station) == station:
            return stop
    names = ", ".join(str(stop.station) for stop in config.route)
    raise RouteProblem(f"route: expected station {station!r} on it, got {names}",
                       hint="check --station or STATION_ID")


def check_turn(config: TrainConfig, station: str) -> Stop:
    """Return the stop of ``station``, whose turn it has to be.

    Raises:
        RouteProblem: another station's turn, this stop has run already, or the train has finished.
    """
    stop = stop_of(config, station)
    done = visited(config)
    if done == len(config.route):
        raise RouteProblem(f"route: expected a turn of station {station!r}, got a train that has passed all "
                           f"{done} stops", hint="the creator can open it with: dtrain results")
    if stop.index < done:
        raise RouteProblem(f"route: expected a turn of station {station!r}, got a train that it has already run",
                           hint=f"the next stop is {config.route[done].station!r}")
    if stop.index > done:
        raise RouteProblem(f"route: expected a turn of station {station!r}, got that of {config.route[done].station!r}",
                           hint="wait until the stations before you have run the train")
    return stop


def hop_tag(number: int, station: str | None = None) -> str:
    """Return the tag that keeps the image of hop ``number``: ``hop-<NN>-<station>``, or ``hop-00`` for the new train.

    The station can be read back: :func:`parse_hop_tag`.

    Raises:
        MalformedInput: the station's id is too long for a tag.
    """
    if station is None:
        return f"hop-{number:02}"
    tag = f"hop-{number:02}-{encode_name(station)}"
    check_tag(tag)
    return tag


def encode_name(name: str) -> str:
    """Return an id as tags and metadata paths spell it: other bytes than letters, digits, ``_`` and ``-`` are
    written as ``.`` and two hex digits."""
    return "".join(
        chr(byte) if re.fullmatch(r"[A-Za-z0-9_-]", chr(byte)) else f".{byte:02x}" for byte in name.encode()
    )


def parse_hop_tag(tag: str) -> tuple[int, str | None] | None:
    """Return the hop's number and station that ``tag`` spells, or ``None`` if it is no hop's tag."""
    match = _HOP_TAG.fullmatch(tag)
    if match is None:
        return None
    station = match["station"]
    if station is None:
        return int(match["number"]), None
    try:
        raw = re.sub(r"\.([0-9a-f]{2})", lambda escape: chr(int(escape[1], 16)), station).encode("latin-1")
        return int(match["number"]), raw.decode()
    except UnicodeError:
        raise MalformedInput(f"tag: expected an encoded station id, got {tag!r}") from None
