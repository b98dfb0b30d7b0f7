"""Moving one blob: a download that goes on after a dropped connection, and an upload that starts again as a whole.

Knows ranges and upload sessions (distribution-spec: "Pulling blobs", "Pushing blobs"). It checks no digest of a
download; :class:`dtrain.oci.verified.VerifiedReader` on top does.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import urllib3

from dtrain.errors import DigestMismatch, DtrainError, NotFound, StorageProblem, TransportError, Unreachable
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.verified import CHUNK
from dtrain.transport.client import PUSH, Call, RegistryClient
from dtrain.transport.failures import MayPass
from dtrain.transport.hosts import follow
from dtrain.transport.protocol import Opener

if TYPE_CHECKING:
    import requests

CHUNK_MAX = 64 * 2**20  # bytes of one PATCH, whatever OCI-Chunk-Min-Length asks for
STALL_WINDOW = 60.0  # seconds
STALL_BYTES = 2**16  # bytes that a connection has to bring in each window
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)")  # RFC 9110, 14.4
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")  # distribution-spec: end-1, inclusive


class Download:
    """The bytes of a blob from the registry, asked for again from where a connection dropped.

    Raises (from the constructor):
        NotFound: there is no such blob.
        DigestMismatch: the registry announces another length.
    """

    def __init__(self, client: RegistryClient, want: Descriptor) -> None:
        self._client = client
        self._want = want
        self._what = f"blob {want.digest.short}"
        self._offset = 0
        self._settled = 0  # the offset at which the last series of failures began
        self._waits = client.waits()
        self._response: requests.Response | None = client.call(self._call())
        self._start_window()
        self._check_length(self._response)

    def read(self, size: int = -1, /) -> bytes:
        """Return at least one byte, at most ``size``; nothing at the end."""
        size = CHUNK if size < 0 else size
        while True:
            if self._response is None:
                self._reopen()
            data = self._read_once(size)
            if data is not None:
                self._offset += len(data)
                if data and self._client.settings.progress is not None:
                    self._client.settings.progress(len(data))
                return data
            self.close()

    def close(self) -> None:
        """Leave the connection to the next request if the body was read to its end, else close it."""
        if self._response is not None:
            if self._offset == self._want.size:
                self._response.raw.release_conn()
            self._response.close()
            self._response = None

    def _call(self, *, offset: int = 0) -> Call:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return Call(method="GET", path=f"blobs/{self._want.digest}", what=self._what, headers=headers, stream=True,
                    accept=frozenset({200, 206, 416}) if offset else frozenset({200}))

    def _read_once(self, size: int) -> bytes | None:
        """Return the next bytes, or ``None`` when the connection dropped or hardly moves."""
        if self._response is None:
            return None
        raw: urllib3.BaseHTTPResponse = self._response.raw
        try:
            data = raw.read1(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return None
        now = time.monotonic()
        self._window_bytes += len(data)
        if now > self._window_end:
            if self._window_bytes < STALL_BYTES:
                return None
            self._start_window()
        if not data and self._offset < self._want.size:
            return None
        return data

    def _start_window(self) -> None:
        self._window_end = time.monotonic() + STALL_WINDOW
        self._window_bytes = 0

    def _reopen(self) -> None:
        """Ask for the rest, after a wait; bytes that make up less than a chunk do not buy new attempts."""
        if self._offset - self._settled >= CHUNK:
            self._waits = self._client.waits()
        self._settled = self._offset
        wait = next(self._waits, None)
        if wait is None:
            raise Unreachable(f"{self._client.origin.netloc}: {self._what}: expected {self._want.size} bytes, "
                              f"got {self._offset} before the connection dropped once too often",
                              hint="check the network, then run the same command again")
        self._client.sleep(wait)
        response = self._client.call(self._call(offset=self._offset))
        self._start_window()
        self._response = response
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self._offset:
                self.close()
                raise TransportError(f"{self._what}: expected the range from {self._offset}, got another one")
        elif response.status_code == 416:  # the registry has no byte there: it holds a shorter blob
            self.close()
            raise DigestMismatch(f"{self._what}: expected {self._want.size} bytes, got {self._offset}")
        else:
            self._check_length(response)
            self._skip(self._offset)

    def _skip(self, left: int) -> None:
        """Read over what is here already, for a registry that ignores ``Range``."""
        while left:
            data = self._read_once(min(left, CHUNK))
            if not data:
                self.close()
                return
            left -= len(data)

    def _check_length(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != self._want.size:
            self.close()
            raise DigestMismatch(f"{self._what}: expected {self._want.size} bytes, got {int(length)}")


class _Sized:
    """A request body of exactly the wanted size, front to back, in the form that requests streams."""

    def __init__(self, client: RegistryClient, want: Descriptor, content: Opener) -> None:
        self._stream = content()
        self._want = want
        self._left = want.size
        self._progress = client.settings.progress

    def __len__(self) -> int:
        return self._want.size

    def __iter__(self) -> Iterator[bytes]:
        raise RuntimeError("read by blocks")  # requests takes what has __iter__ as a stream, and then uses read

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._stream.read(self._left if size < 0 else min(size, self._left))
        except OSError as error:  # ours at once, or the HTTP library takes it for a dropped connection
            raise StorageProblem(f"content {self._want.digest.short}: expected to read it, got {error.strerror}"
                                 ) from error
        if not data and self._left:
            raise DigestMismatch(f"content {self._want.digest.short}: expected {self._want.size} bytes to send, "
                                 f"got {self._want.size - self._left}")
        self._left -= len(data)
        if data and self._progress is not None:
            self._progress(len(data))
        return data

    def close(self) -> None:
        self._stream.close()


def upload(client: RegistryClient, want: Descriptor, content: Opener) -> None:
    """Store a blob: one PUT, or chunks where the registry finds that too large; all again after a failure.

    Raises:
        DigestMismatch: the registry stored other bytes, or ``content`` is not as long as ``want`` says.
    """
    def attempt() -> None:
        if not _put_whole(client, want, content):
            _put_chunks(client, want, content)

    client.attempts(attempt)


def cancel(client: RegistryClient, session: str) -> None:
    """End an upload session that is of no use; a registry that cannot will purge it some day."""
    with contextlib.suppress(MayPass, DtrainError):
        client.once(Call(method="DELETE", path=session, what="upload session", actions=PUSH,
                         accept=frozenset({200, 202, 204, 404})))


def session_of(client: RegistryClient, response: requests.Response, url: str | None = None) -> str:
    """Return the absolute URL of the upload session that an answer names.

    Raises:
        TransportError: it names none, or one that must not be followed.
    """
    location = response.headers.get("Location")
    if location is None:
        raise TransportError(f"{client.origin.netloc}: expected the Location of an upload session, got none")
    return follow(str(url or response.url), location, client.origin)


def check_stored(response: requests.Response, want: Digest, *, what: str) -> None:
    """Check the digest that a registry claims to have stored, if it claims one of the same algorithm."""
    claimed = response.headers.get("Docker-Content-Digest")
    if claimed is None:
        return
    got = Digest.parse(claimed, what="Docker-Content-Digest")
    if got.algorithm == want.algorithm and got != want:
        raise DigestMismatch(f"{what}: expected the registry to store {want}, got {got}")


def _start(client: RegistryClient) -> tuple[str, int]:
    """Return a new upload session and the size of chunks it asks for."""
    response = client.once(Call(method="POST", path="blobs/uploads/", what="new upload", actions=PUSH,
                                accept=frozenset({202})))
    asked = response.headers.get("OCI-Chunk-Min-Length", "")  # distribution-spec: "Pushing a blob in chunks"
    return session_of(client, response), min(max(CHUNK, int(asked) if asked.isdecimal() else 0), CHUNK_MAX)


def _put_whole(client: RegistryClient, want: Descriptor, content: Opener) -> bool:
    """Store the blob with one PUT; ``False`` when the registry finds it too large for that."""
    session, _ = _start(client)
    with _cancelled_on_failure(client, session):
        response = client.once(Call(
            method="PUT", path=_with_digest(session, want.digest), what=f"upload of {want.digest.short}", actions=PUSH,
            headers={"Content-Type": "application/octet-stream"}, commits=True, accept=frozenset({201, 204, 413}),
            body=(lambda: _Sized(client, want, content)) if want.size else b""))
    if response.status_code == 413:
        cancel(client, session)
        return False
    check_stored(response, want.digest, what=f"upload of {want.digest.short}")
    return True


def _put_chunks(client: RegistryClient, want: Descriptor, content: Opener) -> None:
    """Store the blob with one PATCH per chunk; Content-Range is ignored by some, so their Range is checked."""
    what = f"upload of {want.digest.short}"
    session, chunk_size = _start(client)
    body = _Sized(client, want, content)
    with contextlib.closing(body), _cancelled_on_failure(client, session):
        offset = 0
        while offset < want.size:
            chunk = b""
            while len(chunk) < min(chunk_size, want.size - offset):
                chunk += body.read(min(chunk_size, want.size - offset) - len(chunk))
            response = client.once(Call(
                method="PATCH", path=session, what=what, actions=PUSH, body=chunk, accept=frozenset({202}),
                headers={"Content-Type": "application/octet-stream",
                         "Content-Range": f"{offset}-{offset + len(chunk) - 1}"}))
            offset += len(chunk)
            stored = _RANGE.fullmatch(response.headers.get("Range", ""))
            if stored is None or int(stored[1]) != offset - 1:
                raise MayPass(TransportError(f"{what}: expected the range 0-{offset - 1} to be stored, got another"))
            session = session_of(client, response, session)
        response = client.once(Call(method="PUT", path=_with_digest(session, want.digest), what=what, actions=PUSH,
                                    commits=True, accept=frozenset({201, 204})))
        check_stored(response, want.digest, what=what)


@contextlib.contextmanager
def _cancelled_on_failure(client: RegistryClient, session: str) -> Iterator[None]:
    """Cancel the session when the block fails; a lost session (404) is worth a new one."""
    try:
        yield
    except NotFound as error:
        raise MayPass(error) from None
    except (MayPass, DtrainError, OSError):
        cancel(client, session)
        raise


def _with_digest(session: str, digest: Digest) -> str:
    return f"{session}{'&' if '?' in session else '?'}digest={quote(str(digest), safe='')}"
