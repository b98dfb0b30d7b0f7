"""What a failed request means: ours for foreign errors, and whether it may pass. The one place that wraps them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NoReturn

from requests import exceptions
from urllib3.exceptions import NameResolutionError, NewConnectionError

from dtrain.errors import DtrainError, TransportError, Unreachable

RETRY_AFTER_MAX = 60.0  # seconds


class MayPass(Exception):
    """A failure that may be gone the next time; ``error`` is what to raise when it is not.

    It never leaves the transport.
    """

    def __init__(self, error: DtrainError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait  # seconds that the registry asked for


@contextlib.contextmanager
def our_errors(name: str) -> Iterator[None]:
    """Turn the errors of requests inside the block into ours.

    Raises:
        MayPass: a dropped connection, or no answer in time.
        Unreachable: no connection, or no TLS that can be trusted.
    """
    try:
        yield
    except exceptions.RequestException as error:
        _refuse(name, error)


def _refuse(name: str, error: exceptions.RequestException) -> NoReturn:
    """Raise ours; not chained, because foreign messages hold URLs, and those may hold signatures."""
    chain = tuple(_chain(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Unreachable(f"{name}: expected a certificate that can be trusted, got: "
                              f"{cause.verify_message or 'an untrusted one'}",
                              hint="name the CA of the registry with --ca-file; this check cannot be skipped") from None
    if any(isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER" for cause in chain):
        raise Unreachable(f"{name}: expected TLS, got something else",
                          hint="a registry without TLS needs --plain-http") from None
    reason = next((cause.strerror for cause in chain if isinstance(cause, OSError) and cause.strerror), None)
    if isinstance(error, exceptions.SSLError):
        raise Unreachable(f"{name}: expected a TLS connection, got: {reason or 'a TLS error'}",
                          hint="check --ca-file and the client certificate") from None
    if any(isinstance(cause, NameResolutionError) for cause in chain):
        raise Unreachable(f"{name}: expected an address for the host name, got: {reason or 'none'}",
                          hint="check the name of the registry") from None
    if isinstance(error, (exceptions.ProxyError, exceptions.ConnectTimeout)) or any(
        isinstance(cause, NewConnectionError) for cause in chain
    ):
        raise Unreachable(f"{name}: expected a connection, got: {reason or 'no answer in time'}",
                          hint="check the name and port of the registry, and the proxy variables") from None
    if isinstance(error, (exceptions.ConnectionError, exceptions.ReadTimeout, exceptions.ChunkedEncodingError)):
        raise MayPass(Unreachable(f"{name}: expected an answer, got: {reason or 'a dropped connection'}")) from None
    raise TransportError(f"{name}: expected a request that can be made, got {type(error).__name__}") from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what caused it, through the wrappers of requests and urllib3."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        item = todo.pop(0)
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            todo += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]


def retry_after(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header (RFC 9110, 10.2.3), at most RETRY_AFTER_MAX."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(min(int(text.strip()[:12]), RETRY_AFTER_MAX))
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max((when - datetime.now(UTC)).total_seconds(), 0.0), RETRY_AFTER_MAX)
