"""dtrain: Personal Health Train images without a Docker daemon.

The public API, and nothing else. Names are loaded when they are first used, so ``import dtrain`` costs nothing.

>>> from dtrain import Station
>>> station = Station("station_1", key="station_1.pem", anchor="anchor.toml")  # doctest: +SKIP
>>> hop = station.pull_verify("registry.example/station_1/7f3a:latest", "work")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.errors import DtrainError
    from dtrain.flow.build import NewTrain
    from dtrain.flow.open_results import OpenedResults
    from dtrain.flow.pull_verify import VerifiedHop
    from dtrain.flow.push_results import Published
    from dtrain.flow.station import Station, TrainBuilder
    from dtrain.flow.verify import Verified
    from dtrain.oci.reference import Reference
    from dtrain.version import VERSION as __version__

_HOMES = {
    "DtrainError": "dtrain.errors",
    "NewTrain": "dtrain.flow.build",
    "OpenedResults": "dtrain.flow.open_results",
    "Published": "dtrain.flow.push_results",
    "Reference": "dtrain.oci.reference",
    "Station": "dtrain.flow.station",
    "TrainBuilder": "dtrain.flow.station",
    "Verified": "dtrain.flow.verify",
    "VerifiedHop": "dtrain.flow.pull_verify",
}

__all__ = [
    "DtrainError", "NewTrain", "OpenedResults", "Published", "Reference", "Station", "TrainBuilder", "Verified",
    "VerifiedHop", "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("dtrain.version").VERSION
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
