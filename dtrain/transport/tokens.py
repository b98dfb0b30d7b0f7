"""The ``Authorization`` header for a registry: basic, or bearer tokens by scope (distribution: spec/auth/token.md).

Knows challenges, scopes, expiry and where a credential may be sent; how a token request travels is an argument.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import www_authenticate
from urllib3.util import parse_url

from dtrain.errors import AccessDenied, MalformedInput, TransportError
from dtrain.oci.strict_json import Fields, parse_json
from dtrain.transport.credentials import PLACES, Credential
from dtrain.transport.hosts import Origin, is_loopback

CHALLENGE_MAX = 8192  # characters
EXPIRES_DEFAULT = 60  # seconds; token.md, "expires_in"
EXPIRES_MAX = 86400  # seconds; beyond that a registry's word is not worth a cache
CLIENT_ID = "dtrain"
LOGIN_HINT = f"credentials are looked for in DTRAIN_USERNAME and DTRAIN_PASSWORD, {PLACES}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One request to a token realm; its headers and form are secret."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    expires: float  # on the clock of the Authorizer


@dataclass(frozen=True, slots=True)
class _Realm:
    url: str
    service: str | None


class Authorizer:
    """What to say to one registry, shared by all threads of one client.

    Args:
        own: the origin of the registry.
        repository: the repository's name as the registry's scopes spell it.
        find: looks up the credential; called at most once.
        fetch: sends a token request and returns the body of its good answer.
        clock: monotonic seconds.
    """

    def __init__(
        self, own: Origin, repository: str, *, find: Callable[[], Credential | None],
        fetch: Callable[[TokenRequest], bytes], clock: Callable[[], float],
    ) -> None:
        self._own = own
        self._repository = repository
        self._find = find
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.RLock()
        self._found: tuple[Credential | None] | None = None
        self._basic: str | None = None
        self._realm: _Realm | None = None
        self._tokens: dict[frozenset[str], _Token] = {}

    def header(self, scopes: frozenset[str]) -> str | None:
        """Return the header to send now for ``scopes``, or ``None`` before the first challenge."""
        with self._lock:
            if self._basic is not None:
                return self._basic
            token = self._tokens.get(scopes)
            if token is not None and self._clock() < token.expires:
                return token.header
            return None if self._realm is None else self._new_token(scopes, scopes)

    def answer(self, challenge: str | None, scopes: frozenset[str], *, rejected: str | None) -> str:
        """Return a new header after a 401 with ``challenge`` to a request that carried ``rejected``.

        Raises:
            AccessDenied: no credential, a refused one, or one that must not be sent there.
        """
        parsed = self._parse(challenge)
        with self._lock:
            if isinstance(bearer := parsed.get("bearer"), Mapping):
                known = self._tokens.get(scopes)
                if known is not None and known.header != rejected and self._clock() < known.expires:
                    return known.header  # another thread was faster
                self._realm = self._checked_realm(bearer)
                # only this repository's scopes: the registry must not collect tokens for others
                mine = {scope for scope in str(bearer.get("scope", "")).split()
                        if scope.startswith(f"repository:{self._repository}:")}
                return self._new_token(scopes, scopes | mine)
            if "basic" in parsed:
                return self._new_basic(rejected)
        raise AccessDenied(f"{self._own.netloc}: expected a Basic or Bearer challenge, got another", hint=LOGIN_HINT)

    def _parse(self, challenge: str | None) -> Mapping[str, object]:
        try:
            if not challenge or len(challenge) > CHALLENGE_MAX:
                raise ValueError
            return {str(name).lower(): value for name, value in www_authenticate.parse(challenge).items()}
        except ValueError:
            raise AccessDenied(f"{self._own.netloc}: expected a WWW-Authenticate challenge with status 401, got none "
                               "that can be read", hint=LOGIN_HINT) from None

    def _credential(self) -> Credential | None:
        if self._found is None:
            self._found = (self._find(),)
        return self._found[0]

    def _new_basic(self, rejected: str | None) -> str:
        credential = self._credential()
        if credential is None:
            raise AccessDenied(f"{self._own.netloc}: expected a user name and password, got none", hint=LOGIN_HINT)
        if rejected is not None:
            raise AccessDenied(f"{self._own.netloc}: the user name or password was refused", hint=LOGIN_HINT)
        if credential.is_identity_token:
            raise AccessDenied(f"{self._own.netloc}: expected a user name and password, got an identity token",
                               hint=LOGIN_HINT)
        if self._own.scheme != "https" and not is_loopback(self._own.host):
            raise AccessDenied(f"{self._own.netloc}: expected https for a password, got plain http beyond loopback",
                               hint="use https, or a repository that needs no password")
        self._basic = credential.basic
        return self._basic

    def _checked_realm(self, bearer: Mapping[str, object]) -> _Realm:
        """Return the realm if a client may talk to it: https, or the http of a registry at the same place."""
        url = str(bearer.get("realm", ""))
        try:
            origin = Origin.of(url)
        except TransportError:
            raise AccessDenied(f"{self._own.netloc}: expected the URL of a token realm, got something else") from None
        same_place = origin.host == self._own.host or (is_loopback(origin.host) and is_loopback(self._own.host))
        if origin.scheme != "https" and not (self._own.scheme == "http" and same_place):
            raise AccessDenied(f"{self._own.netloc}: expected a token realm with https, got {origin}")
        service = bearer.get("service")
        return _Realm(parse_url(url).url, None if service is None else str(service))

    def _new_token(self, key: frozenset[str], scopes: frozenset[str]) -> str:
        realm = self._realm
        if realm is None:
            raise RuntimeError("no realm yet")
        origin = Origin.of(realm.url)
        credential = self._credential()
        if origin.scheme != "https" and not is_loopback(origin.host):
            credential = None  # anonymous only: a password never travels in the clear
        what = f"token realm {origin.netloc}"
        answer = Fields(parse_json(self._fetch(_request(realm, sorted(scopes), credential)), what=what), what)
        token = answer.raw.get("access_token") or answer.raw.get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise MalformedInput(f"{what}: expected a token, got none that can be sent")
        seconds = answer.raw.get("expires_in")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0:
            seconds = EXPIRES_DEFAULT
        # a tenth early, so that it does not run out on the way
        self._tokens[key] = _Token(f"Bearer {token}", self._clock() + 0.9 * min(seconds, EXPIRES_MAX))
        return self._tokens[key].header


def _request(realm: _Realm, scopes: list[str], credential: Credential | None) -> TokenRequest:
    fields = [] if realm.service is None else [("service", realm.service)]
    if credential is not None and credential.is_identity_token:  # spec/auth/oauth.md
        form = dict(fields, grant_type="refresh_token", client_id=CLIENT_ID, scope=" ".join(scopes),
                    refresh_token=credential.password)
        return TokenRequest(url=realm.url, form=form)
    parts = urlsplit(realm.url)
    fields = parse_qsl(parts.query, keep_blank_values=True) + fields + [("scope", scope) for scope in scopes]
    headers = {} if credential is None else {"Authorization": credential.basic}
    if credential is not None:
        fields.append(("account", credential.username))
    return TokenRequest(url=urlunsplit(parts._replace(query=urlencode(fields), fragment="")), headers=headers)
