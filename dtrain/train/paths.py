"""Where a train keeps its parts inside the image (PHT interop 7.1, 7.12)."""

from __future__ import annotations

OPT = "opt"
CODE = "opt/pht_train"
RESULTS = "opt/pht_results"
CONFIG = "opt/train_config.json"
USER_KEY = "opt/user_sym_key.key"
QUERY = "query.json"  # relative to CODE, and only there

_TOP = (CODE, RESULTS, CONFIG, USER_KEY)
_TREES = (CODE + "/", RESULTS + "/")


def is_train_path(path: str) -> bool:
    """Return whether ``path`` is a place of the train's own: all that a hop may change."""
    return path in _TOP or path.startswith(_TREES)


def decides_train(path: str) -> bool:
    """Return whether an entry at ``path`` has a say in what the train is.

    That is the train's own places, and their parent: a link in place of ``/opt``, or a whiteout of it, changes all
    that is below. The empty path stands for an opaque marker of the root.
    """
    return path in ("", OPT) or is_train_path(path)
