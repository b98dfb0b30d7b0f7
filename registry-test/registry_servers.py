"""Real registries on loopback for tests: Debian's docker-registry as a plain child process.

Knows how to configure, start and stop one registry of each kind of access control.  Knows nothing of images
or of dtrain; what the servers hold is the business of the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from token_server import TokenServer

Kind = Literal["plain", "htpasswd", "tls", "token"]
KINDS: tuple[str, ...] = get_args(Kind)

BINARY = "docker-registry"
USERNAME = "dtrain-test"
START_LIMIT = 20.0  # seconds until a registry must answer
STOP_LIMIT = 5.0  # seconds between the polite signal and the last one

_LISTENING = re.compile(r"listening on (?:\[::\]|127\.0\.0\.1):(\d+)")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: no dlopen between fork and exec


class RegistryFailed(RuntimeError):
    """The registry process did not start or a maintenance command failed."""


@dataclass(frozen=True)
class RegistryServer:
    """Where a running registry is and how to be let in."""

    host: str  # "127.0.0.1:PORT", as in an image reference
    scheme: Literal["http", "https"]
    ca_file: Path | None
    username: str | None
    password: str | None = field(repr=False)
    log: Path
    storage: Path
    config: Path
    token_server: TokenServer | None = None  # only kind "token"

    @property
    def url(self) -> str:
        """Base URL without a trailing slash."""
        return f"{self.scheme}://{self.host}"


@contextlib.contextmanager
def registry(kind: Kind, *, delete: bool = True, expires_in: int = 300) -> Iterator[RegistryServer]:
    """Run an empty registry while the block runs; nothing of it is left afterwards.

    Args:
        kind: "plain" http; "htpasswd" http with basic auth; "tls" https under a private CA with basic auth;
            "token" https with bearer tokens from a token server under the same CA.
        delete: whether the registry allows DELETE of manifests and blobs.
        expires_in: seconds a token stays good (kind "token" only).
    """
    if kind not in KINDS:
        raise ValueError(f"registry kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="dtrain-registry-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        storage, log, config = home / "storage", home / "registry.log", home / "config.yml"
        storage.mkdir()
        username, password = (None, None) if kind == "plain" else (USERNAME, secrets.token_urlsafe(12))
        users = {username: password} if username and password else {}
        ca_file = token_server = None
        settings: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            # no blob descriptor cache: garbage_collect() must be seen by the running server at once
            "storage": {
                "filesystem": {"rootdirectory": str(storage)},
                "delete": {"enabled": delete},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
        }
        # port 0: the kernel chooses and the log tells, so two tests can never race for one port
        http_settings: dict[str, object] = {"addr": "127.0.0.1:0", "secret": secrets.token_hex(16)}
        if kind in ("tls", "token"):
            from token_server import PrivateCA

            ca = PrivateCA.make(home)
            ca_file = ca.ca_file
            http_settings["tls"] = {"certificate": str(ca.cert_file), "key": str(ca.key_file)}
            if kind == "token":
                token_server = stack.enter_context(
                    ca.token_server(service="dtrain-test-registry", users=users, expires_in=expires_in)
                )
                settings["auth"] = {
                    "token": {
                        "realm": token_server.realm,
                        "service": token_server.service,
                        "issuer": token_server.issuer,
                        "rootcertbundle": str(ca.ca_file),
                    }
                }
        if kind in ("htpasswd", "tls"):
            settings["auth"] = {"htpasswd": {"realm": "dtrain-test", "path": str(_htpasswd(home, users))}}
        settings["http"] = http_settings
        config.write_text(json.dumps(settings, indent=1))  # JSON is YAML
        config.chmod(0o600)
        process = _start(config, log)
        stack.callback(_stop, process)
        host = f"127.0.0.1:{_port(process, log)}"
        server = RegistryServer(
            host=host,
            scheme="https" if ca_file else "http",
            ca_file=ca_file,
            username=username,
            password=password,
            log=log,
            storage=storage,
            config=config,
            token_server=token_server,
        )
        _wait_ready(server, process)
        yield server


def garbage_collect(server: RegistryServer, *, delete_untagged: bool = False) -> str:
    """Delete unreferenced blobs as an administrator would; return the tool's report.

    The server keeps running, so no upload may be under way.

    Args:
        delete_untagged: also delete manifests that no tag names.
    """
    # the tool fails when nothing was ever pushed
    for name in ("repositories", "blobs"):
        (server.storage / "docker/registry/v2" / name).mkdir(parents=True, exist_ok=True)
    flags = ["--delete-untagged=true"] if delete_untagged else []
    done = subprocess.run(
        [_binary(), "garbage-collect", *flags, str(server.config)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RegistryFailed(f"garbage-collect: exit status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def die_with_parent() -> None:
    """Ask the kernel to end this child when the thread that started it goes (for `preexec_fn`)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _binary() -> str:
    found = shutil.which(BINARY)
    if not found:
        raise RegistryFailed(f"{BINARY}: not found; install the Debian package docker-registry")
    return found


def _htpasswd(home: Path, users: Mapping[str, str]) -> Path:
    path = home / "htpasswd"
    with path.open("w") as out:
        for username, password in users.items():
            # bcrypt is the only form docker-registry reads; cost 4 because each request checks it again
            command = ["htpasswd", "-n", "-i", "-B", "-C", "4", username]
            line = subprocess.run(command, input=password, capture_output=True, text=True, check=True).stdout
            out.write(line.strip() + "\n")
    return path


def _start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [_binary(), "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            cwd=config.parent,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Port the registry says it listens on."""
    for _ in _until_alive(process, log):
        if found := _LISTENING.search(log.read_text(errors="replace")):
            return int(found[1])
    raise RegistryFailed(f"registry: no listening port in its log:\n{_tail(log)}")


def _wait_ready(server: RegistryServer, process: subprocess.Popen[bytes]) -> None:
    for _ in _until_alive(process, server.log):
        try:
            if _ping(server) in (200, 401):
                return
        except OSError:
            continue
    raise RegistryFailed(f"registry: no answer from {server.url}/v2/:\n{_tail(server.log)}")


def _ping(server: RegistryServer) -> int:
    connection: http.client.HTTPConnection
    if server.ca_file:
        context = ssl.create_default_context(cafile=str(server.ca_file))
        connection = http.client.HTTPSConnection(server.host, timeout=2.0, context=context)
    else:
        connection = http.client.HTTPConnection(server.host, timeout=2.0)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status
    finally:
        connection.close()


def _until_alive(process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Yield every 20 ms until START_LIMIT; raise as soon as the process is gone."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RegistryFailed(f"registry: ended with status {process.returncode}:\n{_tail(log)}")
        yield
        time.sleep(0.02)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
