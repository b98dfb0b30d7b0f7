"""Registry credentials: explicit ones, else the files and helpers of podman and docker (containers-auth.json(5)).

Reads files and starts credential helpers; opens no connection. The environment is an argument.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dtrain.errors import AccessDenied, MalformedInput
from dtrain.oci.strict_json import Fields, parse_json

IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  docker-credential-helpers: the secret is then an identity token
HELPER_TIMEOUT = 30.0  # seconds; a helper may ask the user to unlock a key ring
FILE_MAX = 2**20  # bytes
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOCKER_HUB = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_NOT_FOUND = "credentials not found"  # docker-credential-helpers: ErrCredentialsNotFound

PLACES = "$REGISTRY_AUTH_FILE, containers/auth.json, ~/.docker/config.json and their credential helpers"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password, or (user name ``<token>``) an identity token."""

    username: str
    password: str = field(repr=False)

    @property
    def is_identity_token(self) -> bool:
        """Whether the password is an OAuth2 refresh token rather than a password."""
        return self.username == IDENTITY_TOKEN_USER

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header; a secret."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


CredentialSource = Callable[[str], Credential | None]
"""Looks up the credential for ``host/repository``, spelt as in a reference."""


def no_credentials(place: str) -> Credential | None:
    """Return no credential: the registry is used anonymously."""
    return None


@dataclass(frozen=True, slots=True)
class CredentialStore:
    """The usual order of places, as a :data:`CredentialSource`.

    Args:
        environ: the environment that names the files; helpers run in it.
        explicit: what the user gave; it wins over everything else, for every host.
    """

    environ: Mapping[str, str] = field(repr=False)
    explicit: Credential | None = None

    def __call__(self, place: str) -> Credential | None:
        """Return the credential for ``place`` (``host/repository``), or ``None``.

        Raises:
            AccessDenied: a configured helper is missing or fails.
            MalformedInput: a file is not what containers-auth.json(5) describes.
        """
        if self.explicit is not None:
            return self.explicit
        for path in _files(self.environ):
            if (fields := _read(path)) is not None:
                found = _in_file(fields, place, self.environ)
                if found is not None:
                    return found
        return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files in the order of podman, then docker's."""
    home = environ.get("HOME")
    if environ.get("REGISTRY_AUTH_FILE"):
        yield Path(environ["REGISTRY_AUTH_FILE"])
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json")
    if environ.get("XDG_CONFIG_HOME"):
        yield Path(environ["XDG_CONFIG_HOME"], "containers", "auth.json")
    elif home:
        yield Path(home, ".config", "containers", "auth.json")
    if environ.get("DOCKER_CONFIG"):
        yield Path(environ["DOCKER_CONFIG"], "config.json")
    elif home:
        yield Path(home, ".docker", "config.json")


def _read(path: Path) -> Fields | None:
    try:
        with path.open("rb") as stream:
            raw = stream.read(FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AccessDenied(f"{path}: expected a readable file of credentials, got {error.strerror}") from error
    if len(raw) > FILE_MAX:
        raise MalformedInput(f"{path}: expected at most {FILE_MAX} bytes, got more")
    return Fields(parse_json(raw or b"{}", what=str(path)), str(path))


def _in_file(fields: Fields, place: str, environ: Mapping[str, str]) -> Credential | None:
    """Look in one file: credHelpers, then auths, then credsStore, each by the most specific name first."""
    names = tuple(_names(place))
    helpers = fields.string_map("credHelpers")
    for name in names:
        if helpers.get(name):
            return _ask_helper(helpers[name], name, environ)
    auths = fields.optional_object("auths")
    if auths is not None:
        entries = {_normal(key): key for key in reversed(list(auths.raw))}
        for name in names:
            key = entries.get(_normal(name))
            if key is None:
                continue
            if not isinstance(auths.raw[key], dict):  # not in Fields' words: they would quote a secret
                raise MalformedInput(f"{auths.path(key)}: expected an object, got something else")
            if (found := _entry(auths.object(key))) is not None:
                return found
    store = fields.optional("credsStore", str)
    if store:
        for name in names[-2 if names[-1] == _DOCKER_HUB else -1:]:  # helpers know hosts, not repositories
            if (found := _ask_helper(store, name, environ)) is not None:
                return found
    return None


def _names(place: str) -> Iterator[str]:
    """Yield ``host/ns/repo``, ``host/ns``, ``host`` and for Docker Hub its old address."""
    name = place
    while "/" in name:
        yield name
        name = name.rpartition("/")[0]
    yield name
    if name in _DOCKER_HUB_HOSTS:
        if name != "docker.io":
            yield "docker.io"
        yield _DOCKER_HUB


def _normal(name: str) -> str:
    """Return a key of ``auths`` without the scheme and API path that old versions of docker wrote."""
    for scheme in ("https://", "http://"):
        if name.startswith(scheme):
            host = name.removeprefix(scheme).partition("/")[0]
            return "docker.io" if host in _DOCKER_HUB_HOSTS else host
    name = name.rstrip("/")
    return "docker.io" if name in _DOCKER_HUB_HOSTS else name


def _entry(fields: Fields) -> Credential | None:
    token = fields.optional("identitytoken", str)
    if token:
        return Credential(IDENTITY_TOKEN_USER, token)
    auth = fields.optional("auth", str)
    if auth:
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except ValueError:
            username = colon = password = ""
        if not colon:
            raise MalformedInput(f"{fields.path('auth')}: expected base64 of user:password, got something else")
        return Credential(username, password.rstrip("\0"))
    username, password = fields.optional("username", str) or "", fields.optional("password", str) or ""
    return Credential(username, password) if username and password else None


def _ask_helper(helper: str, server: str, environ: Mapping[str, str]) -> Credential | None:
    """Return what ``docker-credential-HELPER get`` knows of ``server``."""
    if not _HELPER_NAME.fullmatch(helper):
        raise MalformedInput(f"credential helper: expected a plain name, got {helper[:40]!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=server.encode(), capture_output=True, check=False,
                              timeout=HELPER_TIMEOUT, env=dict(environ))
    except FileNotFoundError:
        raise AccessDenied(f"{server}: expected the credential helper {program}, got no such program",
                           hint=f"install {program}, or remove it from the credential file") from None
    except subprocess.TimeoutExpired:
        raise AccessDenied(f"{server}: expected an answer of {program} in {HELPER_TIMEOUT:g} s, got none") from None
    except OSError as error:
        raise AccessDenied(f"{server}: expected to start {program}, got {error.strerror}") from error
    if done.returncode != 0:
        if _NOT_FOUND in (done.stdout + done.stderr).decode(errors="replace").lower():
            return None
        raise AccessDenied(f"{server}: expected a credential of {program}, got exit status {done.returncode}",
                           hint=f"try: echo {server} | {program} get")
    answer = Fields(_parse_answer(done.stdout, program), program)
    username, secret = answer.optional("Username", str) or "", answer.optional("Secret", str) or ""
    return Credential(username, secret) if secret else None


def _parse_answer(raw: bytes, program: str) -> object:
    try:
        return json.loads(raw[:FILE_MAX])
    except ValueError:  # not the parser's own words: they may quote the secret
        raise MalformedInput(f"{program}: expected a JSON object, got something else") from None


__all__ = ["PLACES", "Credential", "CredentialSource", "CredentialStore", "no_credentials"]
