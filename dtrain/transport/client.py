"""dxf with the behaviour of a careful client underneath: one place that sends every request to a registry.

Decides about credentials, redirects, retries and size caps. It does not know what manifests and blobs are; that is
:mod:`.registry` and :mod:`.blobs`. What a failure means is in :mod:`.failures`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin

import dxf
import requests
import urllib3

from dtrain.errors import AccessDenied, MalformedInput, NotFound, TransportError, Unreachable
from dtrain.oci.manifest import MANIFEST_MAX
from dtrain.oci.reference import Reference
from dtrain.oci.verified import CHUNK, ByteSource
from dtrain.transport.failures import MayPass, our_errors, retry_after
from dtrain.transport.hosts import Origin, follow, registry_origin
from dtrain.transport.tokens import LOGIN_HINT, Authorizer, TokenRequest
from dtrain.transport.wire import RegistrySettings, Session, proxies_for

T = TypeVar("T")
Body = bytes | Callable[[], ByteSource]
"""A request body: bytes, or what makes it afresh each time that it has to be sent."""

ANSWER_MAX = MANIFEST_MAX  # bytes of any answer that is not streamed
TOKEN_MAX = 2**20  # bytes of a token answer
DRAIN_MAX = 2**16  # bytes read of an answer that is thrown away, to keep its connection
ANSWER_TIME = 300.0  # seconds for such an answer in all, however it drips
REDIRECTS_MAX = 5
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 30.0  # seconds
_PASSING = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
PULL, PUSH, DELETE = "pull", "pull,push", "delete,pull,push"  # distribution: spec/auth/scope.md
_CODE = re.compile(r"[A-Z][A-Z_]{2,39}")  # distribution-spec: error codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to make.

    Attributes:
        path: below the repository, or an absolute URL that :func:`.hosts.follow` gave.
        what: how messages call it.
        actions: what the token has to allow.
        accept: the statuses that are an answer.
        stream: leave the body to the caller, who has to close it.
        commits: whether the registry may work long before it answers.
        source: another repository that has to be readable too.
    """

    method: str
    path: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = field(default=None, repr=False)
    actions: str = PULL
    accept: frozenset[int] = frozenset({200})
    stream: bool = False
    commits: bool = False
    source: str | None = None


class RegistryClient(dxf.DXF):
    """A :class:`dxf.DXF` whose requests all go through :meth:`call`."""

    def __init__(self, reference: Reference, settings: RegistrySettings) -> None:
        self.settings = settings
        self.origin = registry_origin(reference.host, plain_http=settings.plain_http,
                                      private_tls=settings.ca_file is not None or settings.client_cert is not None)
        super().__init__(self.origin.netloc, reference.repository, insecure=self.origin.scheme == "http")
        self.repository = self.path_of(reference.repository)
        self.session = Session(settings, self.origin)
        self._sessions.insert(0, self.session)
        self._authorizer = Authorizer(self.origin, self.repository, clock=time.monotonic, fetch=self._fetch_token,
                                      find=lambda: settings.credentials(f"{reference.host}/{reference.repository}"))

    def __repr__(self) -> str:
        return f"<RegistryClient {self.origin.netloc}/{self.repository}>"

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.session.close()

    def path_of(self, repository: str) -> str:
        """Return how the registry spells ``repository``: Docker Hub keeps names of one part under ``library/``."""
        return str(self._get_repo_path(repository, suffix=""))  # type: ignore[no-untyped-call]

    def call(self, call: Call) -> requests.Response:
        """Return the answer to an idempotent call, repeated as long as a failure may pass."""
        return self.attempts(lambda: self.once(call))

    def attempts(self, action: Callable[[], T]) -> T:
        """Return what ``action`` gives, calling it again after each :class:`MayPass` as often as settings say."""
        for wait in self.waits():
            try:
                return action()
            except MayPass as failure:
                if wait is None:
                    raise failure.error from None
                self.sleep(wait if failure.wait is None else failure.wait)
        raise RuntimeError("unreachable: the last wait is None")

    def waits(self) -> Iterator[float | None]:
        """Yield a jittered back-off in seconds before each repetition, then ``None``."""
        for number in range(self.settings.retries):
            yield min(BACKOFF_MAX, BACKOFF_FIRST * 2**number) * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        yield None

    def sleep(self, seconds: float) -> None:
        """Wait, as settings say."""
        (self.settings.wait or time.sleep)(seconds)

    def once(self, call: Call) -> requests.Response:
        """Return the answer to ``call``, sent once.

        Raises:
            MayPass: it may work the next time.
            NotFound, AccessDenied, Unreachable, TransportError: it will not.
        """
        url = urljoin(self._base_url, urljoin(self._repo_path, call.path))
        scopes = self._scopes(call)
        renewed = False
        for _ in range(REDIRECTS_MAX + 2):
            own = Origin.of(url) == self.origin
            authorization = self._authorizer.header(scopes) if own else None
            response = self._send(call, url, authorization)
            status = response.status_code
            if status == HTTPStatus.UNAUTHORIZED and own and not renewed:
                renewed = True
                self._drop(response)
                self._authorizer.answer(response.headers.get("WWW-Authenticate"), scopes, rejected=authorization)
            elif status in _REDIRECTS and status not in call.accept and "Location" in response.headers:
                self._drop(response)
                if call.method not in ("GET", "HEAD") and status not in (307, 308):
                    raise TransportError(f"{self._name(call)}: expected {_spell(call.accept)}, got a redirect {status}")
                url = follow(url, response.headers["Location"], self.origin)
            else:
                return self._checked(call, response)
        raise TransportError(f"{self._name(call)}: expected at most {REDIRECTS_MAX} redirects, got more")

    def _base_request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Serve dxf's own methods (seam of DXFBase) by :meth:`call`."""
        query = urlencode({key: value for key, value in (kwargs.get("params") or {}).items() if value is not None})
        call = Call(
            method=method.upper(), path=urljoin(self._base_url, path) + (f"?{query}" if query else ""), what="request",
            headers=kwargs.get("headers") or {}, body=kwargs.get("data"), stream=bool(kwargs.get("stream")),
            actions={"GET": PULL, "HEAD": PULL, "DELETE": DELETE}.get(method.upper(), PUSH),
            accept=frozenset(range(200, 300)))
        try:
            return self.call(call) if call.method in _IDEMPOTENT and not callable(call.body) else self.once(call)
        except MayPass as failure:
            raise failure.error from None

    def _scopes(self, call: Call) -> frozenset[str]:
        scopes = {f"repository:{self.repository}:{call.actions}"}
        if call.source is not None:
            scopes.add(f"repository:{call.source}:pull")
        return frozenset(scopes)

    def _name(self, call: Call) -> str:
        return f"{self.origin.netloc}/{self.repository}: {call.what}"

    def _send(self, call: Call, url: str, authorization: str | None) -> requests.Response:
        headers = dict(call.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        body: Any = call.body() if callable(call.body) else call.body
        read = self.settings.commit_timeout if call.commits else self.settings.read_timeout
        try:
            with our_errors(self._name(call)):
                request = self.session.prepare_request(requests.Request(call.method, url, headers=headers, data=body))
                return self.session.send(request, stream=True, timeout=(self.settings.connect_timeout, read),
                                         proxies=proxies_for(url))
        finally:
            if body is not None and not isinstance(body, (bytes, str)):
                body.close()

    def _checked(self, call: Call, response: requests.Response) -> requests.Response:
        status = response.status_code
        if status in call.accept:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                response.close()
                raise TransportError(f"{self._name(call)}: expected the bytes as stored, got a Content-Encoding")
            if not call.stream:
                self.read_answer(self._name(call), response, ANSWER_MAX)
            return response
        code = self._code(response)
        message = f"{self._name(call)}: expected {_spell(call.accept)}, got {status}{code}"
        if status == HTTPStatus.NOT_FOUND:
            raise NotFound(f"{self._name(call)}: expected it to exist, got {status}{code}")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise AccessDenied(message, hint=LOGIN_HINT)
        if status in _PASSING or (code == " DIGEST_INVALID" and _names_tag(call)):
            raise MayPass(TransportError(message), retry_after(response.headers.get("Retry-After")))
        raise TransportError(message)

    def read_answer(self, name: str, response: requests.Response, limit: int) -> bytes:
        """Return the whole body of at most ``limit`` bytes, and leave it in ``response.content``.

        Raises:
            MalformedInput: more than that.
            MayPass: it broke off, or dripped.
        """
        end = time.monotonic() + ANSWER_TIME
        parts: list[bytes] = []
        size = 0
        raw: urllib3.BaseHTTPResponse = response.raw
        try:
            while part := raw.read1(min(CHUNK, limit + 1 - size), decode_content=False):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise MalformedInput(f"{name}: expected at most {limit} bytes, got more")
                if time.monotonic() > end:
                    raise MayPass(Unreachable(f"{name}: expected the whole answer in {ANSWER_TIME:g} s, got a part"))
            expected = response.headers.get("Content-Length", "")
            if response.request.method != "HEAD" and expected.isdecimal() and int(expected) != size:
                raise MayPass(Unreachable(f"{name}: expected {int(expected)} bytes, got {size}"))
            raw.release_conn()
        except (urllib3.exceptions.HTTPError, OSError):
            response.close()
            raise MayPass(Unreachable(f"{name}: expected the whole answer, got a dropped connection")) from None
        except BaseException:
            response.close()
            raise
        response._content = b"".join(parts)
        response._content_consumed = True  # type: ignore[attr-defined]
        return response._content

    def _drop(self, response: requests.Response) -> None:
        """Throw a body away, and the connection too unless the body is small."""
        length = response.headers.get("Content-Length", "")
        if response.request.method != "HEAD" and not (length.isdecimal() and int(length) <= DRAIN_MAX):
            response.close()
            return
        try:
            self.read_answer("", response, DRAIN_MAX)
        except (MayPass, MalformedInput):
            response.close()

    def _code(self, response: requests.Response) -> str:
        """Return the registry's own error code; its free text is left out, it could hold anything."""
        try:
            body = json.loads(self.read_answer("", response, DRAIN_MAX))
            code = body["errors"][0]["code"]
        except (MayPass, MalformedInput, ValueError, LookupError, TypeError, RecursionError):
            return ""
        return f" {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""

    def _fetch_token(self, wanted: TokenRequest) -> bytes:
        """Return the answer of a token realm; redirects are not followed."""
        name = f"token realm {Origin.of(wanted.url).netloc}"

        def fetch() -> bytes:
            with our_errors(name):
                request = self.session.prepare_request(requests.Request(
                    "GET" if wanted.form is None else "POST", wanted.url, headers=dict(wanted.headers),
                    data=wanted.form))
                response = self.session.send_to_realm(
                    request, stream=True, proxies=proxies_for(wanted.url),
                    timeout=(self.settings.connect_timeout, self.settings.read_timeout))
            status = response.status_code
            if status == HTTPStatus.OK:
                return self.read_answer(name, response, TOKEN_MAX)
            self._drop(response)
            if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise AccessDenied(f"{name}: expected a token for {self.repository}, got {status}", hint=LOGIN_HINT)
            error = TransportError(f"{name}: expected 200, got {status}")
            raise MayPass(error, retry_after(response.headers.get("Retry-After"))) if status in _PASSING else error

        return self.attempts(fetch)


def _names_tag(call: Call) -> bool:
    """Return whether the call is about a manifest by its tag: docker-registry then says so when it reads the tag while
    another client writes it, since there is no digest in such a call that could be invalid."""
    return call.path.startswith("manifests/") and ":" not in call.path


def _spell(statuses: frozenset[int]) -> str:
    return "a 2xx status" if len(statuses) > 5 else " or ".join(str(status) for status in sorted(statuses))
