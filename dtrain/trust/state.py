"""What was learned before and holds for ever, because it is named by digest: a cache that saves transfers.

Losing it costs time and nothing else. A layer's verdict says what its bytes, of that digest, were found to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtrain.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerVerdict:
    """What a layer was found to be: its diff_id, and that it has no say in any train."""

    diff_id: Digest


class State:
    """The folder of such facts; files in it are written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def default_folder(cls, environment: Mapping[str, str]) -> Path:
        """Return the folder by the XDG base directory specification."""
        base = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME") or "~").expanduser()
                                                        / ".local/state")
        return Path(base) / "dtrain"

    def document(self, digest: Digest) -> bytes | None:
        """Return the manifest or config of this digest if it is known; its bytes are checked again."""
        raw = self._read("documents", digest)
        if raw is None or digest.hasher().name != "sha256" or Digest.of(raw) != digest:
            return None
        return raw

    def keep_document(self, digest: Digest, raw: bytes) -> None:
        """Remember a manifest or config that has been checked."""
        self._write("documents", digest, raw)

    def verdict(self, layer: Digest) -> LayerVerdict | None:
        """Return what the layer of this digest was found to be, if it is known to have no say in any train."""
        raw = self._read("layers", layer)
        try:
            return None if raw is None else LayerVerdict(diff_id=Digest.parse(json.loads(raw)["diff_id"]))
        except Exception:
            return None

    def keep_verdict(self, layer: Digest, verdict: LayerVerdict) -> None:
        """Remember what the layer was found to be."""
        self._write("layers", layer, json.dumps({"diff_id": str(verdict.diff_id)}).encode())

    def _path(self, kind: str, digest: Digest) -> Path:
        return self.folder / kind / digest.algorithm / digest.hex

    def _read(self, kind: str, digest: Digest) -> bytes | None:
        try:
            return self._path(kind, digest).read_bytes()
        except OSError:
            return None

    def _write(self, kind: str, digest: Digest, raw: bytes) -> None:
        path = self._path(kind, digest)
        with contextlib.suppress(OSError):  # a cache on a full or read-only disk is no reason to stop
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as out:
                out.write(raw)
            Path(name).replace(path)
