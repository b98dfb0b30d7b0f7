"""Image references: ``[host[:port]/]repository[:tag][@digest]`` and ``oci:DIR[:tag][@digest]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.errors import MalformedInput, UsageProblem
from dtrain.oci.digest import Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"  # distribution-spec: <name>
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")  # distribution-spec: <reference> as a tag
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]{1,5}))?")
NAME_MAX = 255  # characters of host and repository; the usual limit of clients
DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an image is: in ``repository`` at the registry ``host``, or in the OCI layout ``layout``.

    ``tag`` and ``digest`` say which image; with neither the tag ``latest`` is meant.
    """

    host: str = ""
    repository: str = ""
    layout: Path | None = None
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str, *, default_host: str | None = None) -> Reference:
        """Return the reference that ``text`` spells.

        Args:
            text: the reference; its first part is a host when it holds ``.`` or ``:`` or is ``localhost``.
            default_host: the registry where ``text`` names none.

        Raises:
            MalformedInput: the grammar is broken.
            UsageProblem: no host, and no default.
        """
        name, digest = text, None
        if "@" in text:
            name, _, encoded = text.rpartition("@")
            digest = Digest.parse(encoded, what=f"reference {text!r}")
        if name.startswith("oci:"):
            return cls._layout(text, name.removeprefix("oci:"), digest)
        name, tag = _split_tag(name)
        first, slash, rest = name.partition("/")
        if slash and _is_host(first):
            host, repository = first, rest
        elif default_host:
            if not _is_host(default_host):
                raise MalformedInput(f"default registry: expected HOST.DOMAIN, HOST:PORT or localhost, "
                                     f"got {default_host!r}", hint=f"add the port, as in {default_host}:443")
            host, repository = default_host, name
        else:
            raise UsageProblem(f"reference {text!r}: expected a registry host, got none",
                               hint="write HOST/REPOSITORY:TAG, or set --registry or DTRAIN_REGISTRY, "
                                    "or use oci:DIR:TAG for an OCI image layout")
        if not (found := _HOST.fullmatch(host)) or not 0 < int(found["port"] or 443) < 2**16:
            raise MalformedInput(f"reference {text!r}: expected a host name and perhaps a port, got {host!r}")
        if not _REPOSITORY.fullmatch(repository) or len(host) + len(repository) > NAME_MAX:
            raise MalformedInput(f"reference {text!r}: expected a repository name in lower case, got {repository!r}")
        if tag is not None and not _TAG.fullmatch(tag):
            raise MalformedInput(f"reference {text!r}: expected a tag, got {tag!r}")
        return cls(host=host, repository=repository, tag=tag, digest=digest)

    @classmethod
    def _layout(cls, text: str, name: str, digest: Digest | None) -> Reference:
        directory, tag = _split_tag(name)
        if not directory or "\0" in directory:
            raise MalformedInput(f"reference {text!r}: expected oci:DIR[:TAG], got no directory")
        if ":" in directory or "@" in directory:  # else a reference written down would name another place
            raise MalformedInput(f"reference {text!r}: expected a folder without ':' and '@', got {directory!r}",
                                 hint="link to the folder under another name")
        if tag is not None and not _TAG.fullmatch(tag):
            raise MalformedInput(f"reference {text!r}: expected a tag, got {tag!r}")
        return cls(layout=Path(directory), tag=tag, digest=digest)

    @property
    def place(self) -> str:
        """The repository or layout, without tag and digest."""
        return f"oci:{self.layout}" if self.layout is not None else f"{self.host}/{self.repository}"

    @property
    def name(self) -> str:
        """The last part of the repository's or layout's name."""
        return self.layout.resolve().name if self.layout is not None else self.repository.rpartition("/")[2]

    @property
    def selector(self) -> str | Digest:
        """What picks the image: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def below(self, name: str) -> Reference:
        """Return the repository or layout ``name`` below this one, with neither tag nor digest."""
        if self.layout is not None:
            return Reference(layout=self.layout / name)
        return Reference(host=self.host, repository=f"{self.repository}/{name}")

    def with_tag(self, tag: str) -> Reference:
        """Return the same place with another tag and no digest."""
        return replace(self, tag=tag, digest=None)

    def pinned(self, digest: Digest) -> Reference:
        """Return the same reference, pinned to ``digest``."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.place}{tag}{digest}"


def check_tag(tag: str) -> None:
    """Check that ``tag`` is a tag by distribution-spec.

    Raises:
        MalformedInput: it is not.
    """
    if not _TAG.fullmatch(tag):
        raise MalformedInput(f"tag: expected 1 to 128 of [A-Za-z0-9_.-], got {tag[:140]!r}")


def _is_host(first: str) -> bool:
    """Whether the first part of a reference is a host rather than a part of a repository's name."""
    return first == "localhost" or "." in first or ":" in first or first.startswith("[")


def _split_tag(name: str) -> tuple[str, str | None]:
    head, colon, tail = name.rpartition(":")
    if colon and "/" not in tail:
        return head, tail
    return name, None
