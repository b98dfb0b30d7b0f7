"""That only the train's places differ from an approved base image, from manifests and configs alone (PHT D7).

An image stands on a base when its diff_ids begin with those of the base; the layers above may hold the train's own
paths and nothing else (:mod:`dtrain.flow.fetch` looks into them), and what a runtime would do with the image has to be
what it would do with the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtrain.errors import MissingEvidence, VerificationFailed
from dtrain.oci.config import ImageConfig
from dtrain.oci.digest import Digest
from dtrain.oci.edit import Image
from dtrain.oci.strict_json import Fields
from dtrain.train import paths

_COMPARED = ("Env", "Entrypoint", "User", "WorkingDir", "Volumes", "ExposedPorts", "StopSignal", "Shell",
             "Healthcheck", "OnBuild", "Labels", "NetworkDisabled", "ArgsEscaped")
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_ADDED_BY_COMMIT = {"TERM=xterm", "container=podman", "container=oci"}  # podman's commit adds these, in any order


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedBase:
    """What trains may stand on: the layers of an approved image, and what a runtime would do with it."""

    name: str
    layers: tuple[tuple[Digest, Digest], ...]
    """Digest and diff_id of each layer."""
    os: str
    architecture: str
    runtime: Mapping[str, Any] = field(hash=False)
    """The image config's ``config`` member."""
    command: tuple[str, ...] | None = None
    """The start of ``Cmd`` that trains on it have, before the path of their entry point."""

    @classmethod
    def of(
        cls, image: Image, *, name: str, command: tuple[str, ...] | None = None, layers: int | None = None
    ) -> ApprovedBase:
        """Return the image, approved.

        Args:
            image: the image.
            name: what people call it.
            command: the start of ``Cmd``.
            layers: how many of its layers count, from the lowest; by default all.
        """
        return cls(
            name=name, command=command, os=image.config.os, architecture=image.config.architecture,
            runtime=image.config.runtime,
            layers=tuple((layer.digest, diff_id) for layer, diff_id in
                         zip(image.manifest.layers, image.config.diff_ids, strict=True))[:layers])

    def carries(self, image: ImageConfig) -> bool:
        """Return whether ``image`` stands on this base."""
        return image.diff_ids[: len(self.layers)] == tuple(diff_id for _, diff_id in self.layers)


def check_runtime(image: ImageConfig, base: ApprovedBase, files: frozenset[str]) -> None:
    """Check that the image's configuration is that of its base, but for the command that starts the train.

    ``Cmd`` may name the train's entry point: after the words that the anchor pins as ``command``, or, where it pins
    none, after a single word without a slash.

    Args:
        image: the train's configuration.
        base: what it stands on.
        files: the train's immutable files.

    Raises:
        VerificationFailed: something that a runtime acts on differs (W41).
    """
    if (image.os, image.architecture) != (base.os, base.architecture):
        raise VerificationFailed(f"image config: expected {base.os}/{base.architecture}, "
                                 f"got {image.os}/{image.architecture}")
    Fields(dict(image.runtime), "image config").check_spelling(*_COMPARED, "Cmd")
    for member in _COMPARED:
        expected, got = base.runtime.get(member), image.runtime.get(member)
        if member == "Env":
            expected, got = _environment(expected), _environment(got)
        if expected != got and not (expected in _EMPTY and got in _EMPTY):
            raise VerificationFailed(f"image config: {member}: expected {expected!r} as in the base image, got {got!r}",
                                     hint="someone changed how the image starts; do not run this train")
    expected, got = base.runtime.get("Cmd") or [], image.runtime.get("Cmd") or []
    if got == expected:
        return
    words = [word for word in got if isinstance(word, str)] if isinstance(got, list) else []
    entry = words[-1].removeprefix(f"/{paths.CODE}/") if words and words == got else ""
    pinned = base.command
    words_fit = len(words) == 2 and "/" not in words[0] if pinned is None else tuple(words[:-1]) == pinned
    if not words_fit or entry not in files or entry == words[-1]:
        wanted = "the name of a program" if pinned is None else repr(list(pinned))
        raise VerificationFailed(
            f"image config: Cmd: expected that of the base image, or {wanted} and a file of /{paths.CODE}, got {got!r}",
            hint="if this command is right, pin its first words as command in the anchor's base_images",
        )


def _environment(words: object) -> list[str]:
    """Return Env as it acts: the order says nothing where each name stands once, which is checked by comparing."""
    return sorted({str(word) for word in words} - _ADDED_BY_COMMIT) if isinstance(words, list) else []


def no_base(source: str) -> MissingEvidence:
    """Return the error for an image that stands on no approved base."""
    return MissingEvidence(f"base image: expected one that {source} approves, got another one",
                           hint="add the base image's reference and digest to base_images in the anchor, after "
                                "reviewing it; policy.any_base_image = true accepts any")
