"""Sessions of requests as this package needs them: TLS, proxies, time-outs, and a guard on foreign addresses.

Knows nothing of registries. ``~/.netrc`` and cookies are ignored; proxies and CA bundles are read from the
environment here, explicitly, because ``trust_env`` would bring ``.netrc`` back.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import requests
from certifi import where as certifi_bundle
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from dtrain.errors import MalformedInput, StorageProblem, WrongKey
from dtrain.transport.credentials import CredentialSource, no_credentials
from dtrain.transport.hosts import Origin, check_public, is_loopback

if TYPE_CHECKING:
    import socket

WORKERS_MAX = 16  # connections kept; twice the eight workers that share a session
SEND_BLOCK = 2**18  # bytes per send; a slow link has SEND_TIMEOUT for each of them
SEND_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How to talk to a registry.

    Attributes:
        plain_http: use http although the host is not loopback.
        ca_file: PEM file of the only CAs that may vouch for the registry.
        client_cert: PEM files of a client certificate and its unencrypted key, shown to the registry only.
        credentials: looks up the credential for ``host/repository``.
        connect_timeout: seconds until a connection stands.
        read_timeout: seconds of silence from the registry.
        commit_timeout: seconds for the answer to a whole upload; object stores copy the blob before they answer.
        retries: how often a safe request is repeated, or an upload started again.
        wait: sleeps that many seconds; tests pass something else.
        progress: called with each number of content bytes moved, from any thread.
        trusted_hosts: other hosts (``host[:port]``) that may serve content although their address is private.
    """

    plain_http: bool = False
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    credentials: CredentialSource = field(default=no_credentials, repr=False)
    user_agent: str = "dtrain"
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    commit_timeout: float = 600.0
    retries: int = 5
    wait: Callable[[float], None] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)
    trusted_hosts: frozenset[str] = frozenset()


class Session(requests.Session):
    """A session without ``.netrc``, cookies and automatic redirects.

    Requests to ``own`` and to trusted hosts go out as configured; any other host is reached through the guard.
    """

    def __init__(self, settings: RegistrySettings, own: Origin) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers["User-Agent"] = settings.user_agent
        self.headers["Accept-Encoding"] = "identity"  # digests are of the bytes as stored
        del self.headers["Accept"]
        self._own = own
        self._trusted = settings.trusted_hosts
        self._settings = settings
        self._lock = threading.Lock()
        self._adapters: list[Adapter] = []
        self._direct = Adapter(_registry_context(settings) if own.scheme == "https" else None)

    def get_adapter(self, url: str) -> HTTPAdapter:
        origin = Origin.of(url)
        if origin == self._own:
            return self._direct
        if origin.netloc in self._trusted:
            return self._others()[0]
        check_public(origin.host, named=self._own.netloc)
        return self._others()[1]

    def _others(self) -> list[Adapter]:
        """The adapters for other hosts, open and guarded, made when first needed: CA bundles take a while to load."""
        with self._lock:
            if not self._adapters:
                context = _default_context()
                if self._settings.ca_file is not None:
                    _load_ca(context, self._settings.ca_file)  # a blob store often shares its registry's private CA
                self._adapters = [Adapter(context), Adapter(context, guarded=True)]
            return self._adapters

    def send_to_realm(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send to a token realm, which may be private: the caller has checked its scheme."""
        return self._others()[0].send(request, **options)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None  # redirects are followed one by one by the client, which decides about credentials

    def close(self) -> None:
        for adapter in (self._direct, *self._adapters):
            adapter.close()
        super().close()


def proxies_for(url: str) -> dict[str, str]:
    """Return the proxies that the environment names for ``url``; loopback is always reached directly."""
    if is_loopback(Origin.of(url).host):
        return {}
    return dict(get_environ_proxies(url, no_proxy=None))


class _SlowLink(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        sock.settimeout(SEND_TIMEOUT)  # urllib3 leaves the connect time-out, which then bounds every send
        return sock


class _Guarded(_SlowLink):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if self.proxy is None:  # a proxy resolves the name itself; then only literal addresses can be refused
            try:
                check_public(str(sock.getpeername()[0]), named=self.host)
            except BaseException:
                sock.close()
                raise
        return sock


class _SlowLinkTLS(_SlowLink, HTTPSConnection):
    pass


class _GuardedTLS(_Guarded, HTTPSConnection):
    pass


def _pools(
    plain: type[HTTPConnection], tls: type[HTTPSConnection]
) -> dict[str, type[HTTPConnectionPool]]:
    return {
        "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TLSPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }


_POOLS: Mapping[bool, dict[str, type[HTTPConnectionPool]]] = {
    False: _pools(_SlowLink, _SlowLinkTLS),
    True: _pools(_Guarded, _GuardedTLS),
}


class Adapter(HTTPAdapter):
    """An adapter with its own TLS context; ``guarded`` refuses peers whose address is not public."""

    def __init__(self, context: ssl.SSLContext | None, *, guarded: bool = False) -> None:
        self._context = context
        self._pool_classes = _POOLS[guarded]
        super().__init__(pool_maxsize=WORKERS_MAX)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._context,
                                 blocksize=SEND_BLOCK, **options)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        manager: PoolManager = super().proxy_manager_for(proxy, ssl_context=self._context, blocksize=SEND_BLOCK,
                                                         **options)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # the context holds the CAs already


def _default_context() -> ssl.SSLContext:
    """Return a context that trusts the bundle of the environment, else the system's store and certifi's."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_ca(context, Path(bundle))
        return context
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    if not os.environ.get("SSL_CERT_FILE"):
        context.load_verify_locations(certifi_bundle())
    return context


def _registry_context(settings: RegistrySettings) -> ssl.SSLContext:
    if settings.ca_file is None:
        context = _default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load_ca(context, settings.ca_file)
    if settings.client_cert is not None:
        certificate, key = settings.client_cert

        def refuse() -> NoReturn:
            raise WrongKey(f"{key}: expected an unencrypted client key, got an encrypted one")

        try:
            context.load_cert_chain(certificate, key, password=refuse)
        except ssl.SSLError:
            raise WrongKey(f"{certificate}: expected a PEM certificate with the key {key}, got others") from None
        except OSError as error:
            raise StorageProblem(f"{certificate}, {key}: expected readable files, got {error.strerror}") from error
    return context


def _load_ca(context: ssl.SSLContext, path: Path) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise MalformedInput(f"{path}: expected PEM certificates of CAs, got something else") from None
    except OSError as error:
        raise StorageProblem(f"{path}: expected a readable CA file, got {error.strerror}") from error
