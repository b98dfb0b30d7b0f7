"""Which host is meant: the registry's own, one beside it, or one that must not be asked.

Knows URLs and addresses, not HTTP. A registry may name other hosts (upload ``Location``, redirects); they get no
credentials and have to be public, so that a hostile registry cannot point this station at its neighbours (SSRF).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urljoin

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from dtrain.errors import TransportError

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the low 32 bits
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io"})

BESIDE_HINT = "if this host belongs to the registry, name it as a trusted host"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port; two URLs of one origin share credentials."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of ``url``, parsed as the HTTP library parses it.

        Raises:
            TransportError: not an http(s) URL with a host and without a user name.
        """
        try:
            parsed = parse_url(url)
        except LocationParseError:
            raise TransportError("URL from the registry: expected scheme://host/path, got something else") from None
        if parsed.scheme not in _PORTS or not parsed.host or parsed.auth is not None:
            raise TransportError("URL from the registry: expected http or https and a host without a user name, "
                                 f"got scheme {parsed.scheme!r}")
        return cls(parsed.scheme, parsed.host.lower(), parsed.port or _PORTS[parsed.scheme])

    @property
    def netloc(self) -> str:
        """Host and port as in a reference; a default port is left out."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def registry_origin(host: str, *, plain_http: bool, private_tls: bool) -> Origin:
    """Return where the registry ``host`` of a reference answers.

    The rule: https, except that ``plain_http`` asks for http, and that a loopback host is spoken to over http unless
    a CA or client certificate was given for it or its port is 443. No scheme is ever tried out.
    """
    if host in _DOCKER_HUB:
        host = "registry-1.docker.io"
    origin = Origin.of(f"https://{host}")
    if plain_http or (is_loopback(origin.host) and not private_tls and origin.port != 443):
        return Origin.of(f"http://{host}")
    return origin


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is ``localhost``, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def follow(url: str, target: str, own: Origin) -> str:
    """Return the absolute URL of ``target``, a ``Location`` in the answer to ``url``.

    A registry behind a TLS proxy often writes ``http://`` and its own host; its own scheme is put back.

    Raises:
        TransportError: not a URL, or from https down to http.
    """
    try:
        parsed = parse_url(urljoin(url, target))
    except (LocationParseError, ValueError):
        raise TransportError(f"{own.netloc}: expected a URL to go to, got something else") from None
    absolute = parsed.url  # normal form: no second parser reads another host in it
    origin = Origin.of(absolute)
    if origin.host == own.host and origin.scheme != own.scheme and (
        origin.port == own.port or origin.port == _PORTS[origin.scheme]
    ):
        return f"{own}{parsed.request_uri}"
    if origin.scheme == "http" and Origin.of(url).scheme == "https":
        raise TransportError(f"{own.netloc}: expected to stay on https, got sent to {origin}")
    return absolute


def check_public(host: str, *, named: str) -> None:
    """Check that ``host``, if it is an address, is a public one; names are checked again once connected.

    Raises:
        TransportError: loopback, private, link-local, multicast or otherwise not public.
    """
    if host != "localhost":
        try:
            address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        except ValueError:
            return  # a name: the address that answers is checked by the connection
        if isinstance(address, ipaddress.IPv6Address):
            if address in _NAT64:
                address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            else:
                address = address.ipv4_mapped or address.sixtofour or address
        if address.is_global and not address.is_multicast:
            return
    raise TransportError(f"{named}: expected a public address for a host other than the registry, got {host}",
                         hint=BESIDE_HINT)
