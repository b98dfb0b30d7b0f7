"""What was seen of each train's metadata: the memory that makes rollbacks visible (TUF 5.1; docs/trust.rst).

Each train has a folder. A check works on a copy of it, which takes its place when every rule has been found to hold;
a state that was refused leaves no memory behind. One process at a time uses a train's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dtrain.errors import StorageProblem
from dtrain.train.route import encode_name

_CURRENT = "current"


class TrustStore:
    """The folder of all trains' metadata."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def open(self, train: str, *, keep: bool = True) -> Iterator[Path]:
        """Give a copy of what is known of ``train``, to be kept when the block ends well, or to be dropped.

        Raises:
            StorageProblem: the folder cannot be written.
        """
        place = self._folder / encode_name(train)
        with self._storage(place):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with self._storage(place):
                fcntl.flock(lock, fcntl.LOCK_EX)
                copy = Path(tempfile.mkdtemp(prefix="state-", dir=place))
            try:
                with self._storage(place):
                    _copy(place / _CURRENT, copy)
                yield copy
                with self._storage(place):
                    if keep:
                        _replace(place, copy)
            finally:
                _drop_others(place)
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _storage(self, place: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageProblem(f"{error.filename or place}: expected to keep metadata there, "
                                 f"got: {error.strerror or error}",
                                 hint="check free space and permissions, or give --state-dir DIR") from error


def _copy(current: Path, copy: Path) -> None:
    if current.is_dir():
        shutil.copytree(current, copy, symlinks=True, dirs_exist_ok=True)


def _replace(place: Path, copy: Path) -> None:
    """Let ``current`` name the copy: a link is replaced as a whole."""
    timestamp = copy / "timestamp.json"
    if timestamp.exists():
        with timestamp.open("rb") as written:
            os.fsync(written.fileno())  # the memory of what was seen; everything else can be fetched again
    link = place / "next"
    link.unlink(missing_ok=True)
    link.symlink_to(copy.name)
    if (place / _CURRENT).is_dir() and not (place / _CURRENT).is_symlink():
        shutil.rmtree(place / _CURRENT)  # a copy of the folder by a tool that follows links
    link.replace(place / _CURRENT)


def _drop_others(place: Path) -> None:
    """Remove every copy but the current one, those of killed processes too; the caller holds the lock."""
    with contextlib.suppress(OSError):
        kept = (place / _CURRENT).readlink().name if (place / _CURRENT).is_symlink() else None
        for old in place.glob("state-*"):
            if old.name != kept:
                shutil.rmtree(old, ignore_errors=True)
