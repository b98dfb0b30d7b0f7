"""A registry in this process that behaves until it is told not to.

It stores blobs, manifests and upload sessions in memory and keeps every request for assertions. ``misbehave`` puts
an :class:`Answer` in the place of the next matching requests.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import re
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Answer:
    """What to do instead of answering properly.

    Attributes:
        body: bytes, or what yields them without end.
        length: the Content-Length to claim; ``None`` for the true one, -1 for none.
        cut: close the connection after so many bytes of the body.
        reset: read so many bytes of the request's body, then reset the connection without an answer.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Callable[[], Iterator[bytes]] = b""
    length: int | None = None
    cut: int | None = None
    reset: int | None = None


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class _Fault:
    method: str
    path: re.Pattern[str]
    answer: Answer | Callable[[Seen], Answer]
    left: int


class HostileRegistry:
    """The server; ``host`` is what a reference names.

    Attributes:
        blobs, manifests: what is stored, by digest, and by digest and tag.
        uploads: the open sessions.
        authorization: the header that requests under /v2/ have to carry, or ``None``.
        challenge: what a 401 says.
        issue: the tokens that /token hands out, in order; each becomes ``authorization``.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[Seen] = []
        self.authorization: str | None = None
        self.challenge = 'Basic realm="test"'
        self.issue: list[str] = []
        self.expires_in = 300
        self._faults: list[_Fault] = []
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler, self)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True,
                                                      do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def misbehave(self, method: str, path: str, answer: Answer | Callable[[Seen], Answer], *, times: int = 1) -> None:
        """Give ``answer`` to the next ``times`` requests whose path matches."""
        self._faults.append(_Fault(method, re.compile(path), answer, times))

    def store_blob(self, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def asked(self, method: str, path: str = "") -> list[Seen]:
        """Return the requests of ``method`` whose path matches."""
        return [seen for seen in self.requests if seen.method == method and re.search(path, seen.path)]

    def require_bearer(self, *tokens: str) -> None:
        """Ask for the first token, which /token hands out, and so on each time."""
        self.issue = list(tokens)
        self.authorization = "Bearer nobody has this"
        self.challenge = f'Bearer realm="http://{self.host}/token",service="test"'

    def fault_for(self, method: str, path: str) -> Answer | Callable[[Seen], Answer] | None:
        with self.lock:
            for fault in self._faults:
                if fault.left and fault.method == method and fault.path.search(path):
                    fault.left -= 1
                    return fault.answer
        return None


@contextlib.contextmanager
def hostile_registry(context: ssl.SSLContext | None = None) -> Iterator[HostileRegistry]:
    server = HostileRegistry(context)
    try:
        yield server
    finally:
        server.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler], registry: HostileRegistry) -> None:
        super().__init__(address, handler)
        self.registry = registry

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients break off in these tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 10.0
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _handle(self) -> None:
        registry = self.server.registry
        fault = registry.fault_for(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if isinstance(fault, Answer) and fault.reset is not None:
            self.rfile.read(min(fault.reset, length))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionAbortedError
        seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self.rfile.read(length))
        with registry.lock:
            registry.requests.append(seen)
            if callable(fault):
                fault = fault(seen)
            answer = fault or self._proper(registry, seen)
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        endless = callable(answer.body)
        if answer.length != -1 and not endless:
            self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        if endless or answer.cut is not None or answer.length is not None:
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for part in answer.body() if callable(answer.body) else (answer.body[:answer.cut],):
            self.wfile.write(part)

    def _proper(self, registry: HostileRegistry, seen: Seen) -> Answer:
        url = urllib.parse.urlsplit(seen.path)
        query = urllib.parse.parse_qs(url.query)
        if url.path == "/token":
            token = registry.issue.pop(0)
            registry.authorization = f"Bearer {token}"
            return Answer(body=json.dumps({"token": token, "expires_in": registry.expires_in}).encode())
        if registry.authorization is not None and seen.headers.get("authorization") != registry.authorization:
            return Answer(401, {"WWW-Authenticate": registry.challenge})
        kind, name = re.fullmatch(r"/v2/.+?/(manifests|blobs/uploads|blobs|tags)/(.*)", url.path).groups()
        if kind == "tags":
            tags = sorted(tag for tag in registry.manifests if ":" not in tag)
            return Answer(body=json.dumps({"name": "r", "tags": tags}).encode())
        if kind == "manifests":
            return self._manifest(registry, seen, name)
        if kind == "blobs/uploads":
            return self._upload(registry, seen, name, query)
        return self._blob(registry, seen, name)

    def _manifest(self, registry: HostileRegistry, seen: Seen, name: str) -> Answer:
        if seen.method == "PUT":
            digest = "sha256:" + hashlib.sha256(seen.body).hexdigest()
            for key in (name, digest):
                registry.manifests[key] = (seen.headers["content-type"], seen.body)
            return Answer(201, {"Docker-Content-Digest": digest})
        if name not in registry.manifests:
            return Answer(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}')
        media_type, raw = registry.manifests[name]
        return Answer(200, {"Content-Type": media_type,
                            "Docker-Content-Digest": "sha256:" + hashlib.sha256(raw).hexdigest()}, raw)

    def _blob(self, registry: HostileRegistry, seen: Seen, digest: str) -> Answer:
        data = registry.blobs.get(digest)
        if data is None:
            return Answer(404, body=b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        found = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
        if found is None:
            return Answer(200, {}, data)
        start = int(found[1])
        if start >= len(data):
            return Answer(416)
        return Answer(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])

    def _upload(self, registry: HostileRegistry, seen: Seen, name: str, query: dict[str, list[str]]) -> Answer:
        if seen.method == "POST":
            if "mount" in query and query["mount"][0] in registry.blobs:
                return Answer(201, {"Docker-Content-Digest": query["mount"][0]})
            name = f"session{len(registry.requests)}"
            registry.uploads[name] = bytearray()
            return Answer(202, {"Location": f"/v2/r/blobs/uploads/{name}?state=a%2Bb"})
        if name not in registry.uploads:
            return Answer(404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        if seen.method == "DELETE":
            del registry.uploads[name]
            return Answer(204)
        registry.uploads[name] += seen.body
        if seen.method == "PATCH":
            return Answer(202, {"Location": seen.path, "Range": f"0-{len(registry.uploads[name]) - 1}"})
        data, digest = bytes(registry.uploads.pop(name)), query["digest"][0]
        if digest != "sha256:" + hashlib.sha256(data).hexdigest():
            return Answer(400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        registry.blobs[digest] = data
        return Answer(201, {"Docker-Content-Digest": digest})


def self_signed(folder: Path, *, name: str = "127.0.0.1", expired: bool = False) -> tuple[Path, ssl.SSLContext]:
    """Return the PEM file of a self-signed certificate for ``name`` and a server context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hostile registry")])
    now = datetime.datetime.now(datetime.UTC)
    try:
        names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        names = x509.DNSName(name)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=-1 if expired else 1))
        .add_extension(x509.SubjectAlternativeName([names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / "server.pem", folder / "server.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    return pem, context
