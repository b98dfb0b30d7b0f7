"""Content by URL from plain web servers: TUF repositories and their targets.

Knows no registry and checks no content; :mod:`dtrain.trust.client` does, which takes a :class:`WebSource` as its
source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urljoin

import requests
import urllib3

from dtrain.errors import NotFound, TransportError, Unreachable
from dtrain.oci.verified import CHUNK
from dtrain.transport.blobs import STALL_BYTES, STALL_WINDOW
from dtrain.transport.client import REDIRECTS_MAX
from dtrain.transport.failures import MayPass, our_errors
from dtrain.transport.hosts import Origin
from dtrain.transport.wire import RegistrySettings, Session, proxies_for


class WebSource:
    """Gives the bytes behind http and https URLs, each asked for once and without credentials.

    Args:
        settings: time-outs and TLS; a client certificate in it is shown to every server.
    """

    def __init__(self, settings: RegistrySettings | None = None) -> None:
        self._settings = settings or RegistrySettings()
        self._sessions: dict[Origin, Session] = {}

    def __enter__(self) -> WebSource:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            session.close()

    def __call__(self, url: str) -> Iterator[bytes]:
        """Return the body behind ``url`` in parts; the status is known when this returns.

        Redirects are followed within the origin of ``url``.

        Raises:
            NotFound: status 404, or 403, with which many object stores say the same.
            Unreachable: no answer or, from the iterator, not the whole body.
            TransportError: another status, another origin, or encoded content.
        """
        origin = Origin.of(url)
        name = f"{origin.netloc}{urllib3.util.parse_url(url).path or '/'}"  # a query may hold a signature
        for _ in range(REDIRECTS_MAX + 1):
            response = self._get(name, origin, url)
            if not response.is_redirect:
                return _body(name, _checked(name, response))
            response.close()
            url = _target(name, origin, url, response.headers["Location"])
        raise TransportError(f"{name}: expected at most {REDIRECTS_MAX} redirects, got more")

    def _get(self, name: str, origin: Origin, url: str) -> requests.Response:
        if origin not in self._sessions:
            self._sessions[origin] = Session(self._settings, origin)
        session = self._sessions[origin]
        try:
            with our_errors(name):
                request = session.prepare_request(requests.Request("GET", url))
                return session.send(request, stream=True, proxies=proxies_for(url),
                                    timeout=(self._settings.connect_timeout, self._settings.read_timeout))
        except MayPass as failure:
            raise failure.error from None  # no repetition: a refresh as a whole can be repeated


def _target(name: str, origin: Origin, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
    except ValueError:
        raise TransportError(f"{name}: expected a URL to go to, got something else") from None
    if (found := Origin.of(target)) != origin:
        raise TransportError(f"{name}: expected to stay on {origin}, got sent to {found}")
    return target


def _checked(name: str, response: requests.Response) -> requests.Response:
    status = response.status_code
    if status == HTTPStatus.OK and response.headers.get("Content-Encoding", "identity").lower() == "identity":
        return response
    response.close()
    if status == HTTPStatus.OK:
        raise TransportError(f"{name}: expected the bytes as stored, got a Content-Encoding")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
        raise NotFound(f"{name}: expected it to exist, got {status}")
    raise TransportError(f"{name}: expected 200, got {status}")


def _body(name: str, response: requests.Response) -> Iterator[bytes]:
    """Yield the body; urllib3 holds it against Content-Length."""
    raw: urllib3.BaseHTTPResponse = response.raw
    window_end, window_bytes = time.monotonic() + STALL_WINDOW, 0
    try:
        while part := raw.read1(CHUNK, decode_content=False):
            window_bytes += len(part)
            if time.monotonic() > window_end:
                if window_bytes < STALL_BYTES:
                    raise Unreachable(f"{name}: expected {STALL_BYTES} bytes in {STALL_WINDOW:g} s, got {window_bytes}")
                window_end, window_bytes = time.monotonic() + STALL_WINDOW, 0
            yield part
        raw.release_conn()
    except (urllib3.exceptions.HTTPError, OSError):
        raise Unreachable(f"{name}: expected the whole content, got a part of it") from None
    finally:
        response.close()
