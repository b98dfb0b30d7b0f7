"""What signed metadata costs: verifying that of a three-hop train, and publishing it with a hop, on a real registry."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "registry-test"), str(ROOT / "tests" / "attacks")]

from forge_metadata import STATIONS, Signed, make_signed  # noqa: E402
from registry_servers import registry  # noqa: E402

from dtrain.crypto.rsa import PrivateKey  # noqa: E402
from dtrain.crypto.signing import SigningKey  # noqa: E402
from dtrain.flow.believe import resolve  # noqa: E402
from dtrain.flow.context import Context  # noqa: E402
from dtrain.transport.wire import Session  # noqa: E402


def timed(action: Callable[[], object]) -> tuple[float, int]:
    """Return milliseconds and requests."""
    send, count = Session.send, 0

    def counting(session: Session, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return send(session, *arguments, **options)

    Session.send = counting  # type: ignore[method-assign]
    start = time.perf_counter()
    try:
        action()
    finally:
        Session.send = send  # type: ignore[method-assign]
    return (time.perf_counter() - start) * 1000, count


def verified(train: Signed, context: Context) -> Callable[[], object]:
    """Return what verifies the train's metadata and fetches the manifest that it names."""
    def run() -> None:
        with context.connect(train.train) as transport:
            attested = resolve(train.train, transport, train.anchor(), context)
            transport.fetch_manifest(attested.newest.digest)

    return run


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rsa = {name: PrivateKey.generate(2048) for name in ("alice", *STATIONS)}
    keys = {name: SigningKey.generate() for name in ("alice", "bob", *STATIONS)}
    figures: dict[str, list[tuple[float, int]]] = {"verify, first time": [], "verify, again": [], "push-results": [],
                                                  "push-results, no metadata": []}
    with registry("plain") as server, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, now = Path(name), datetime.now(UTC).replace(microsecond=0)
        train = make_signed(f"{server.host}/verified/", folder / "v", rsa, keys, name="train", now=now)
        for station in STATIONS:
            train.hop(station)
        cached = train.context("cached")
        verified(train, cached)()
        for _ in range(options.runs):
            figures["verify, first time"].append(timed(verified(train, train.fresh())))
            figures["verify, again"].append(timed(verified(train, cached)))
        for number in range(options.runs):
            for label, changes in pair(number):
                own = f"{number}-{'plain' if changes else 'signed'}"
                made = make_signed(f"{server.host}/{own}/", folder / own, rsa, keys, name="train", now=now)
                hop = made.pull("aachen", **changes)
                figures[label].append(timed(lambda made=made, hop=hop, changes=changes: made.push(hop, **changes)))
    print(f"{'in process, loopback':<28} {'median ms':>10} {'min':>7} {'max':>7} {'requests':>9}")
    for label, found in figures.items():
        times = [milliseconds for milliseconds, _ in found]
        print(f"{label:<28} {statistics.median(times):>10.1f} {min(times):>7.1f} {max(times):>7.1f} "
              f"{statistics.median(count for _, count in found):>9.0f}")
    added = statistics.median(one[0] - other[0] for one, other in zip(
        figures["push-results"], figures["push-results, no metadata"], strict=True))
    print(f"metadata adds to push-results, median of pairs: {added:.1f} ms")
    if options.json:
        options.json.write_text(json.dumps({**figures, "added_ms": added}, indent=2))


def pair(number: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Return both ways to push, in turns."""
    both: list[tuple[str, Mapping[str, Any]]] = [("push-results", {}), ("push-results, no metadata", {"root": None})]
    return both[::-1] if number % 2 else both


if __name__ == "__main__":
    main()
