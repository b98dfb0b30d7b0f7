"""Foreign tools for interop tests: train_lib in its own interpreter, podman's service, skopeo, umoci.

Everything runs on private directories and loopback and is taken down again; nothing here imports dtrain.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peers"
TRAIN_LIB = "pht-train-container-library==2.0.5"
TRAIN_LIB_ENV = "DTRAIN_TEST_TRAIN_LIB"
ORACLE = Path(__file__).with_name("oracle.py")
TOOLS = ("podman", "runc", "conmon", "skopeo", "umoci", "busybox", "docker-registry", "htpasswd")

sys.path.insert(0, str(ROOT / "registry-test"))
from registry_servers import RegistryServer, die_with_parent, garbage_collect, registry  # noqa: E402

__all__ = [
    "OracleRefused",
    "PeerFailed",
    "PodmanService",
    "RegistryServer",
    "Shape",
    "copy_image",
    "garbage_collect",
    "make_base_image",
    "missing_tools",
    "oracle",
    "oracle_json",
    "podman_service",
    "registry",
    "rsa_pair",
    "shape",
    "skopeo",
    "train_lib_python",
    "umoci",
]

Format = Literal["oci", "v2s2"]


class PeerFailed(RuntimeError):
    """A foreign tool ended with an error; the text holds its stderr."""


class OracleRefused(RuntimeError):
    """train_lib raised; the text is ``ExceptionName: message``."""


def missing_tools() -> tuple[str, ...]:
    """Programs the interop tests need and this machine lacks (for a skip reason)."""
    lacking = [name for name in TOOLS if not shutil.which(name)]
    if os.geteuid() != 0:
        lacking.append("root (overlay mounts)")
    return tuple(lacking)


# --- train_lib -------------------------------------------------------------------------------------------------


def train_lib_python() -> Path:
    """Interpreter of a virtual environment holding train_lib 2.0.5, made on first use (this needs an index).

    DTRAIN_TEST_TRAIN_LIB may name an existing environment instead.
    """
    if given := os.environ.get(TRAIN_LIB_ENV):
        return Path(given) / "bin" / "python"
    home = CACHE / "train_lib"
    home.parent.mkdir(parents=True, exist_ok=True)
    ready = home / "ready"
    with (CACHE / "train_lib.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test workers may come here at once
        if not ready.exists():
            venv.create(home, with_pip=True, clear=True)
            _checked([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", TRAIN_LIB])
            ready.touch()
    return home / "bin" / "python"


def oracle(*args: str, stdin: bytes = b"", docker_host: str | None = None) -> bytes:
    """What train_lib answers to one verb of oracle.py.

    Raises:
        OracleRefused: train_lib raised.
    """
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent", "PYTHONUTF8": "1"}
    if docker_host:
        env["DOCKER_HOST"] = docker_host
    done = subprocess.run(
        # -I: neither our source tree nor the caller's variables may leak into the oracle
        [str(train_lib_python()), "-I", str(ORACLE), *args],
        input=stdin,
        capture_output=True,
        env=env,
        check=False,
    )
    if done.returncode:
        raise OracleRefused(done.stderr.decode(errors="replace").strip())
    return done.stdout


def oracle_json(*args: str, ask: Any = None, docker_host: str | None = None) -> dict[str, Any]:
    """`oracle` for the verbs that take and give JSON."""
    stdin = b"" if ask is None else json.dumps(ask).encode()
    answer: dict[str, Any] = json.loads(oracle(*args, stdin=stdin, docker_host=docker_host))
    return answer


def rsa_pair(*, bits: int = 2048, password: str | None = None, pkcs1: bool = False) -> tuple[str, str]:
    """A private key (PEM) and its public key as a train carries it (hex of PEM).

    Args:
        password: encrypt the private key (PKCS#8) as the desktop app does.
        pkcs1: public key as ``RSA PUBLIC KEY``.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, bits)
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    private_form = serialization.PrivateFormat.TraditionalOpenSSL
    if password:
        how = serialization.BestAvailableEncryption(password.encode())
        private_form = serialization.PrivateFormat.PKCS8
    public_form = serialization.PublicFormat.PKCS1 if pkcs1 else serialization.PublicFormat.SubjectPublicKeyInfo
    private = key.private_bytes(serialization.Encoding.PEM, private_form, how)
    return private.decode(), key.public_key().public_bytes(serialization.Encoding.PEM, public_form).hex()


# --- podman ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PodmanService:
    """A running podman API service with storage of its own."""

    socket: Path
    env: Mapping[str, str]
    home: Path

    @property
    def docker_host(self) -> str:
        """Value for DOCKER_HOST."""
        return f"unix://{self.socket}"

    def run(self, *args: str, stdin: bytes = b"") -> str:
        """Run the podman command on the same storage; return its stdout.

        Raises:
            PeerFailed: podman ended with an error.
        """
        return _checked(["podman", *args], env=self.env, stdin=stdin)

    def oracle(self, *args: str) -> bytes:
        """`oracle` on this service."""
        return oracle(*args, docker_host=self.docker_host)

    def oracle_json(self, *args: str) -> dict[str, Any]:
        """`oracle_json` on this service."""
        return oracle_json(*args, docker_host=self.docker_host)

    def load(self, source: str, name: str) -> None:
        """Copy an image (skopeo reference such as ``oci:DIR:TAG``) into the storage under `name`."""
        # podman 4.3 cannot pull every layout by reference; skopeo writes into the same storage and keeps the bytes
        _checked(["skopeo", "--insecure-policy", "copy", "--quiet", source, f"containers-storage:{name}"], env=self.env)


@contextlib.contextmanager
def podman_service(*, insecure: Sequence[str] = ()) -> Iterator[PodmanService]:
    """Run podman's Docker-compatible API on a private socket and private storage while the block runs.

    Args:
        insecure: registries ("127.0.0.1:PORT") to be talked to over http.
    """
    with contextlib.ExitStack() as stack:
        # short: the path of a unix socket must fit into 107 bytes
        run_home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtrain-podman-")))
        home = Path(tempfile.mkdtemp(prefix="podman-", dir=_directory_for_overlay()))
        stack.callback(_remove_storage, home)
        env = _podman_env(home, run_home, insecure)
        service = PodmanService(socket=run_home / "podman.sock", env=env, home=home)
        stack.callback(_stop_containers, service)
        log = run_home / "service.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["podman", "system", "service", "--time=0", service.docker_host],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        stack.callback(_stop, process)
        _wait_for_socket(service.socket, process, log)
        yield service


def _podman_env(home: Path, run_home: Path, insecure: Sequence[str]) -> dict[str, str]:
    files = {
        # no cgroup delegation, no journal and no network set-up: works in a container or small VM as root
        "containers.conf": f"""
            [containers]
            netns = "host"
            default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
            [network]
            network_backend = "netavark"
            network_config_dir = "{run_home}/networks"
            [engine]
            cgroup_manager = "cgroupfs"
            runtime = "runc"
            events_logger = "file"
            lock_type = "file"
            tmp_dir = "{run_home}/tmp"
            image_copy_tmp_dir = "{home}"
            """,
        "storage.conf": f"""
            [storage]
            driver = "overlay"
            graphroot = "{home}/root"
            runroot = "{run_home}/run"
            """,
        "registries.conf": "unqualified-search-registries = []\n"
        + "".join(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in insecure),
        "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        "auth.json": "{}",
    }
    for name, text in files.items():
        (home / name).write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")
    return {
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_RUNTIME_DIR": str(run_home),
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"),
        "REGISTRY_AUTH_FILE": str(home / "auth.json"),
    }


def _directory_for_overlay() -> Path:
    """First directory whose file system can carry an overlay's upper directory."""
    CACHE.mkdir(parents=True, exist_ok=True)
    candidates = (CACHE, Path("/var/tmp"), Path(tempfile.gettempdir()))
    for path in candidates:
        kind = _checked(["stat", "--file-system", "--format=%T", str(path)]).strip()
        if kind not in ("overlayfs", "fuseblk", "nfs", "tmpfs", "ramfs"):
            return path
    raise PeerFailed(f"podman storage: no directory on a real file system among {candidates}")


def _wait_for_socket(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 20.0
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            return
        time.sleep(0.02)
    raise PeerFailed(f"podman service: not up:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_containers(service: PodmanService) -> None:
    # before the mounts go: conmon and its clean-up command still use them
    for args in (("rm", "--all", "--force", "--time", "0"), ("umount", "--all", "--force")):
        with contextlib.suppress(PeerFailed):
            service.run(*args)
    # conmon starts a clean-up command of its own after each container; both name the storage in their arguments
    end = time.monotonic() + 5.0
    while (left := _processes_naming(service.home)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes_naming(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile
                if os.fsencode(path) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def _remove_storage(home: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([point for point in mounts if Path(point).is_relative_to(home)]):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    shutil.rmtree(home, ignore_errors=True)


# --- images ----------------------------------------------------------------------------------------------------


def make_base_image(directory: Path, *, size_mb: int = 0) -> str:
    """Write a small image that runs (static busybox, empty /opt) as an OCI layout; return ``oci:DIRECTORY:latest``.

    Args:
        directory: the layout, to be created.
        size_mb: MiB of random bytes in a second layer, for tests of large images.
    """
    layers = [_busybox_layer()]
    if size_mb:
        layers.append(_tar_of([(_info("usr/share/padding", mode=0o644), os.urandom(size_mb * 2**20))]))
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    created = "2024-01-01T00:00:00Z"
    config = {
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MASTER=busybox"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/",
            "Labels": {"org.example.master": "busybox"},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in layers]},
        "history": [
            {"created": created, "created_by": f"/bin/sh -c #(nop) ADD file:{number} in / "}
            for number, _ in enumerate(layers)
        ]
        + [{"created": created, "created_by": '/bin/sh -c #(nop)  CMD ["/bin/sh"]', "empty_layer": True}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [
            # mtime=0: the same busybox gives the same digests in every run
            put(gzip.compress(tar, compresslevel=1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
            for tar in layers
        ],
    }
    entry = put(json.dumps(manifest).encode(), manifest["mediaType"])  # type: ignore[arg-type]
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{directory}:latest"


@dataclass(frozen=True)
class Shape:
    """What an image consists of, as read from a registry or layout."""

    media_type: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    layers: tuple[tuple[tarfile.TarInfo, ...], ...]

    def names(self, layer: int) -> list[str]:
        """Member names of one layer in tar order."""
        return [member.name for member in self.layers[layer]]


def shape(source: str, *, server: RegistryServer | None = None) -> Shape:
    """Fetch an image (skopeo reference) unchanged and take it apart."""
    with tempfile.TemporaryDirectory(prefix="dtrain-shape-") as directory:
        copy_image(source, f"dir:{directory}", server=server)
        home = Path(directory)
        manifest = json.loads((home / "manifest.json").read_bytes())
        layers = []
        for layer in manifest["layers"]:
            with tarfile.open(home / layer["digest"].removeprefix("sha256:")) as tar:
                layers.append(tuple(tar.getmembers()))
        return Shape(
            media_type=manifest["mediaType"],
            manifest=manifest,
            config=json.loads((home / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes()),
            layers=tuple(layers),
        )


def copy_image(
    source: str, target: str, *, format: Format | None = None, server: RegistryServer | None = None,
    preserve: bool = False,
) -> None:
    """skopeo copy; `format` converts the manifest, `server` lends CA and credentials to the end that is a registry.

    Unless digests are to be preserved, skopeo compresses the layers that it copies into a layout.
    """
    args = ["copy", "--quiet", *(["--preserve-digests"] if preserve else [])]
    if format:
        args += ["--format", format]
    for end, reference in (("src", source), ("dest", target)):
        if server and reference.startswith("docker://"):
            args.append(f"--{end}-tls-verify={'true' if server.ca_file else 'false'}")
            if server.ca_file:
                args += [f"--{end}-cert-dir", str(_cert_dir(server.ca_file))]
            if server.username:
                args += [f"--{end}-creds", f"{server.username}:{server.password}"]
    skopeo(*args, source, target)


def skopeo(*args: str) -> str:
    """Run skopeo; return its stdout; raise PeerFailed with its stderr."""
    # blob-info cache and auth files of whoever runs the tests must play no part
    with tempfile.TemporaryDirectory(prefix="dtrain-skopeo-") as home:
        env = {"PATH": os.environ.get("PATH", ""), "HOME": home, "XDG_DATA_HOME": home, "XDG_RUNTIME_DIR": home}
        env["REGISTRY_AUTH_FILE"] = f"{home}/auth.json"
        Path(env["REGISTRY_AUTH_FILE"]).write_text("{}")
        return _checked(["skopeo", "--insecure-policy", "--tmpdir", home, *args], env=env)


def umoci(*args: str) -> str:
    """Run umoci; return its stdout; raise PeerFailed with its stderr."""
    return _checked(["umoci", *args])


def _cert_dir(ca_file: Path) -> Path:
    made = ca_file.parent / "cert-dir"  # skopeo wants a directory holding *.crt, and nothing but certificates
    if not made.exists():
        made.mkdir()
        shutil.copy(ca_file, made / "ca.crt")
    return made


def _busybox_layer() -> bytes:
    binary = shutil.which("busybox")
    if not binary:
        raise PeerFailed("busybox: not found; install busybox-static")
    members = [(_info(name, directory=True), b"") for name in ("bin", "etc", "opt", "proc", "sys", "dev", "usr")]
    members += [(_info("tmp", directory=True, mode=0o1777), b""), (_info("usr/share", directory=True), b"")]
    members.append((_info("bin/busybox", mode=0o755), Path(binary).read_bytes()))
    members.append((_info("etc/passwd", mode=0o644), b"root:x:0:0:root:/:/bin/sh\n"))
    members.append((_info("etc/group", mode=0o644), b"root:x:0:\n"))
    for applet in sorted(set(_checked([binary, "--list"]).split()) - {"busybox"}):
        link = _info(f"bin/{applet}")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        members.append((link, b""))
    return _tar_of(members)


def _info(name: str, *, directory: bool = False, mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = mode, 1704067200  # 2024-01-01, as in the config
    if directory:
        info.type = tarfile.DIRTYPE
    return info


def _tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _checked(command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> str:
    done = subprocess.run(list(command), input=stdin, capture_output=True, env=env, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise PeerFailed(f"{' '.join(command[:3])}: exit status {done.returncode}: {text}")
    return done.stdout.decode()
