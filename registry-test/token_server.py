"""A private CA and a token server for a registry with bearer authentication (tests only).

The token server follows distribution's "token authentication specification": it checks basic credentials and
signs a JWT (ES256) whose x5c header carries the certificate of its signing key, issued by the same private CA
that the registry takes as `rootcertbundle`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.server
import ipaddress
import json
import secrets
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

REGISTRY_LEEWAY = 60  # seconds docker-registry 2.8 still accepts a token after `exp`


@dataclass(frozen=True)
class PrivateCA:
    """Files of a throw-away CA with one server certificate (127.0.0.1, localhost) and one token signing key."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    token_cert_file: Path
    token_key_file: Path

    @classmethod
    def make(cls, home: Path) -> PrivateCA:
        """Create keys and certificates below `home`, valid for one day."""
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = _name("dtrain test CA")
        ca = (
            _builder(ca_name, ca_name, ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        made = cls(*(home / name for name in ("ca.pem", "server.pem", "server.key", "token.pem", "token.key")))
        made.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        for subject, cert_file, key_file in (
            ("localhost", made.cert_file, made.key_file),
            ("dtrain test token signer", made.token_cert_file, made.token_key_file),
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            cert = (
                _builder(_name(subject), ca_name, key.public_key())
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(_key_usage(sign_certificates=False), critical=True)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
                .add_extension(names, critical=False)
                .sign(ca_key, hashes.SHA256())
            )
            cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
            key_file.touch(mode=0o600)
            key_file.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        return made

    @contextlib.contextmanager
    def token_server(self, *, service: str, users: Mapping[str, str], expires_in: int) -> Iterator[TokenServer]:
        """Run a token server (https, own thread) while the block runs."""
        server = TokenServer(self, service=service, users=users, expires_in=expires_in)
        try:
            yield server
        finally:
            server.close()


@dataclass(frozen=True)
class TokenRequest:
    """What one client asked the token server for, for assertions."""

    username: str | None
    scopes: tuple[str, ...]
    status: int


class TokenServer:
    """Answers GET /token with a signed bearer token.

    Attributes:
        expires_in: seconds; may be changed while the server runs.
        requests: every request answered so far, in order.
    """

    issuer = "dtrain-test-issuer"

    def __init__(self, ca: PrivateCA, *, service: str, users: Mapping[str, str], expires_in: int) -> None:
        self.service = service
        self.expires_in = expires_in
        self.requests: list[TokenRequest] = []
        self._users = dict(users)
        cert = x509.load_pem_x509_certificate(ca.token_cert_file.read_bytes())
        key = serialization.load_pem_private_key(ca.token_key_file.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._header = {
            "typ": "JWT",
            "alg": "ES256",
            "kid": _libtrust_key_id(key.public_key()),
            "x5c": [base64.b64encode(cert.public_bytes(serialization.Encoding.DER)).decode()],
        }
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca.cert_file, ca.key_file)
        self._http = _HTTPSServer(("127.0.0.1", 0), _Handler, context, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def realm(self) -> str:
        """URL a registry names in its challenge."""
        return f"https://127.0.0.1:{self._http.server_address[1]}/token"

    def close(self) -> None:
        """Stop answering and free the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def authenticate(self, authorization: str | None) -> str | None:
        """User named by a basic `Authorization` header, or None."""
        method, _, value = (authorization or "").partition(" ")
        if method.lower() != "basic":
            return None
        try:
            username, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return None
        known = self._users.get(username)
        return username if known is not None and hmac.compare_digest(known.encode(), password.encode()) else None

    def token(self, username: str, scopes: tuple[str, ...]) -> dict[str, object]:
        """Body of a good answer: a token for everything asked for."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": username,
            "aud": self.service,
            # the registry adds its leeway, so take it off: "expires in 2 seconds" shall mean it
            "exp": now + self.expires_in - REGISTRY_LEEWAY,
            "nbf": now - REGISTRY_LEEWAY - 1,
            "iat": now,
            "jti": secrets.token_hex(16),
            "access": [_access(scope) for scope in scopes],
        }
        signed = _b64(json.dumps(self._header).encode()) + b"." + _b64(json.dumps(claims).encode())
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        token = (signed + b"." + _b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()
        issued = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"token": token, "access_token": token, "expires_in": self.expires_in, "issued_at": issued}


class _HTTPSServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[_Handler], context: ssl.SSLContext, tokens: TokenServer
    ) -> None:
        super().__init__(address, handler)
        self.tokens = tokens
        # the handshake happens on first read, in the connection's own thread, so a silent client blocks nobody
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off (say, because they do not trust the CA) are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _HTTPSServer
    timeout = 10.0  # seconds

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        # the specification repeats `scope`; some clients put several into one, separated by spaces
        scopes = tuple(one for value in query.get("scope", []) for one in value.split())
        tokens = self.server.tokens
        username = tokens.authenticate(self.headers.get("Authorization"))
        status: int
        body: dict[str, object]
        if url.path != "/token" or query.get("service", [tokens.service]) != [tokens.service]:
            status, body = 404, {"errors": [{"code": "NOT_FOUND", "message": "no such service"}]}
        elif username is None:
            status, body = 401, {"errors": [{"code": "UNAUTHORIZED", "message": "bad credentials"}]}
        elif any(scope.count(":") < 2 for scope in scopes):
            status, body = 400, {"errors": [{"code": "BAD_SCOPE", "message": "scope is type:name:actions"}]}
        else:
            status, body = 200, tokens.token(username, scopes)
        tokens.requests.append(TokenRequest(username, scopes, status))
        data = json.dumps(body).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="dtrain-test-tokens"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the requests are kept in `TokenServer.requests`."""


def _access(scope: str) -> dict[str, object]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")  # a name may hold a port
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _libtrust_key_id(key: ec.EllipticCurvePublicKey) -> str:
    # libtrust: base32 of the first 240 bits of SHA-256 over the DER SPKI, in groups of four
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[i : i + 4] for i in range(0, len(text), 4))


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
