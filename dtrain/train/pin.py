"""What a train has to be, told from outside it.

PHT signs no names, no file boundaries, no route, no ids (W03, W04, W11). Who knows them from another source states
them in a pin, and the train is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from dtrain.errors import DigestMismatch, RouteProblem, VerificationFailed
from dtrain.train.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPin:
    """The facts about one train; what is ``None`` is not pinned."""

    id: str
    creator: str | None = None
    proposal: str | None = None
    session: bytes | None = None
    source: str | None = None
    """``address:tag``."""
    route: tuple[str, ...] | None = None
    """The stations in order."""
    files: Mapping[str, str] | None = field(default=None, hash=False)
    """The hex sha256 of each plaintext file below ``/opt/pht_train``, the query included."""

    def check_agrees(self, other: TrainPin) -> None:
        """Check that nothing pinned here is pinned otherwise there.

        Raises:
            VerificationFailed: something is.
        """
        for name in (member.name for member in fields(self)):
            own, theirs = getattr(self, name), getattr(other, name)
            if own is not None and theirs is not None and own != theirs:
                raise VerificationFailed(f"train {self.id!r}: {name}: expected what the anchor says, "
                                         "got something else in signed metadata")


def source_of(config: TrainConfig) -> str:
    """Return the source as a pin spells it."""
    return config.source.address + (f":{config.source.tag}" if config.source.tag else "")


def check_pin(pin: TrainPin, config: TrainConfig) -> None:
    """Check all that the pin says about the config.

    Raises:
        RouteProblem: another route.
        VerificationFailed: another id, creator, proposal, session or source.
    """
    for name, expected, got in (
        ("@id", pin.id, config.id),
        ("creator.id", pin.creator, str(config.creator.id)),
        ("proposal_id", pin.proposal, str(config.proposal_id)),
        ("session_id", pin.session and pin.session.hex(), config.session_id.hex()),
        ("source", pin.source, source_of(config)),
    ):
        if expected is not None and expected != got:
            raise VerificationFailed(f"{name}: expected {expected!r}, got {got!r}",
                                     hint="train_config.json differs from what the anchor says about this train")
    route = tuple(str(stop.station) for stop in config.route)
    if pin.route is not None and pin.route != route:
        raise RouteProblem(f"route: expected {' → '.join(pin.route)}, got {' → '.join(route)}")


def check_pinned_files(pin: TrainPin, got: Mapping[str, str]) -> None:
    """Check the decrypted files against the pin.

    Args:
        pin: the pin.
        got: the hex sha256 of each decrypted file, by its path below ``/opt/pht_train``.

    Raises:
        DigestMismatch: a file was changed, added, removed, renamed, or a boundary between two was moved.
    """
    if pin.files is None:
        return
    for path in sorted({*pin.files, *got}):
        if pin.files.get(path) != got.get(path):
            what = "nothing" if path not in got else f"sha256:{got[path]}" if path in pin.files else "a file"
            expected = f"sha256:{pin.files[path]}" if path in pin.files else "no such file"
            raise DigestMismatch(f"/opt/pht_train/{path}: expected {expected}, got {what}")
