"""train_lib 2.0.5 behind a command line, run by the interpreter of its own virtual environment.

Nothing of ours is imported here: what this says is what the existing stations say.  Results go to stdout; a refusal
by train_lib goes to stderr as ``ExceptionName: text`` with exit status 1.  Image verbs talk to the Docker-compatible
socket named by DOCKER_HOST.

  hash-immutable            stdin JSON {user_id, session_id, files: [[name, base64]], file_list, query: base64|null}
  hash-results              stdin JSON {session_id, files: [base64, ...]}
  parse-config              stdin train_config.json; stdout exactly what train_lib would write
  encrypt, decrypt          stdin JSON {key: hex, in: path, out: path}
  extract-config IMAGE      stdout config as train_lib read it (what a station keeps during the run)
  pre-run IMAGE STATION KEY [PASSWORD] [--config FILE]
  run IMAGE                 run the decrypted train as a station's workflow does, commit onto `base`
  post-run IMAGE STATION KEY [PASSWORD] --config FILE
  validate MASTER TRAIN
  build FILE                see `build`
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import posixpath
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from loguru import logger

logger.remove()  # train_lib logs the first hundred plaintext bytes of every file

import docker  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import padding  # noqa: E402
from train_lib.docker_util.docker_ops import extract_train_config  # noqa: E402
from train_lib.security.encryption import FileEncryptor  # noqa: E402
from train_lib.security.hashing import hash_immutable_files, hash_results  # noqa: E402
from train_lib.security.key_manager import KeyManager  # noqa: E402
from train_lib.security.protocol import SecurityProtocol  # noqa: E402
from train_lib.security.train_config import TrainConfig  # noqa: E402

TIMEOUT = 120  # seconds


def do_hash_immutable(_: argparse.Namespace) -> dict[str, Any]:
    """7.4: hash of code and query."""
    asked = json.load(sys.stdin)
    digest = hash_immutable_files(
        immutable_files=[io.BytesIO(base64.b64decode(data)) for _, data in asked["files"]],
        user_id=asked["user_id"],
        session_id=bytes.fromhex(asked["session_id"]),
        binary_files=True,
        ordered_file_list=asked["file_list"],
        immutable_file_names=[name for name, _ in asked["files"]],
        query=base64.b64decode(asked["query"]) if asked.get("query") else None,
    )
    return {"hash": digest.hex()}


def do_hash_results(_: argparse.Namespace) -> dict[str, Any]:
    """7.8: hash of results, in the order given."""
    asked = json.load(sys.stdin)
    files = [io.BytesIO(base64.b64decode(data)) for data in asked["files"]]
    return {"hash": hash_results(files, bytes.fromhex(asked["session_id"]), binary_files=True).hex()}


def do_parse_config(_: argparse.Namespace) -> bytes:
    """7.2: the config as train_lib writes it back."""
    return _written(TrainConfig.parse_raw(sys.stdin.buffer.read()))


def do_encrypt(_: argparse.Namespace) -> dict[str, Any]:
    """7.6: one file."""
    return _crypt("encrypt")


def do_decrypt(_: argparse.Namespace) -> dict[str, Any]:
    """7.6: one file."""
    return _crypt("decrypt")


def do_extract_config(args: argparse.Namespace) -> bytes:
    """Config of an image."""
    return _written(extract_train_config(args.image))


def do_pre_run(args: argparse.Namespace) -> dict[str, Any]:
    """7.10: verify and decrypt IMAGE in place."""
    _protocol(args).pre_run_protocol(img=args.image, private_key_path=args.key, private_key_password=args.password)
    return _image_id(args.image)


def do_post_run(args: argparse.Namespace) -> dict[str, Any]:
    """7.11: sign, encrypt and rebase IMAGE."""
    _protocol(args).post_run_protocol(
        img=args.image, private_key_path=args.key, private_key_password=args.password, rebase=True
    )
    return _image_id(args.image)


def do_run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the container; copy code, results and config into a container of `base`; commit that over IMAGE."""
    client = docker.from_env(timeout=TIMEOUT)
    repository, _, tag = args.image.rpartition(":")
    ran = client.containers.run(args.image, detach=True, network_disabled=True)
    try:
        status = ran.wait()["StatusCode"]
        output = ran.logs().decode(errors="replace")
        onto = client.containers.create(f"{repository}:base")
        for path in ("/opt/pht_train", "/opt/pht_results", "/opt/train_config.json"):
            stream, _ = ran.get_archive(path)
            onto.put_archive(posixpath.dirname(path), b"".join(stream))
        onto.commit(repository=repository, tag=tag)
        onto.remove()
    finally:
        ran.remove(force=True)
    return {"status": status, "output": output, **_image_id(args.image)}


def do_validate(args: argparse.Namespace) -> dict[str, Any]:
    """7.12: compare TRAIN with MASTER; refusal is ValueError."""
    # connects while it is being imported, so only here
    from train_lib.docker_util.validate_master_image import validate_train_image

    validate_train_image(args.master, args.train, docker_client=docker.from_env(timeout=TIMEOUT))
    return {}


def do_build(args: argparse.Namespace) -> dict[str, Any]:
    """Make `REPOSITORY:latest` and `:base` as the central builder does, without a RUN step.

    FILE is JSON: repository, base_image, cmd [str], train_id, user {id, private_key, public_key?},
    builder_private_key, route [{station, public_key}], files [{path, data: base64}], query (base64 or null).
    Private keys are PEM; public keys are hex of PEM (so that both PEM forms can be tried).
    """
    order = json.loads(Path(args.file).read_text())
    files = {item["path"]: base64.b64decode(item["data"]) for item in order["files"]}
    query = base64.b64decode(order["query"]) if order.get("query") else None
    key, session_id = os.urandom(32), os.urandom(64)
    config = _build_config(order, files, query, key, session_id)
    encryptor = FileEncryptor(key)  # one key and, as the builder does, one IV for all files
    sealed = {f"pht_train/{name}": encryptor.encrypt(data) for name, data in files.items()}
    if query is not None:
        sealed["pht_train/query.json"] = encryptor.encrypt(query)
    text = json.dumps(config, separators=(",", ":")).encode()

    client = docker.from_env(timeout=TIMEOUT)
    repository = order["repository"]
    # the builder's Dockerfile is FROM + RUN mkdir + CMD: an image of its own between master and train
    container = client.containers.create(order["base_image"])
    container.put_archive("/opt", _tar({}, directories=("pht_train", "pht_results")))
    image = container.commit(changes=[f"CMD {json.dumps(order['cmd'])}"])
    container.remove()
    container = client.containers.create(image.id)
    directories = sorted({parent for name in sealed for parent in _parents(name)} - {"pht_train"})
    container.put_archive("/opt", _tar({"train_config.json": text}))
    container.put_archive("/opt", _tar(sealed, directories=tuple(directories)))
    for tag in ("latest", "base"):  # two commits, so two digests: the router relies on it
        container.commit(repository=repository, tag=tag)
    container.remove()
    return {
        "config": text.decode(),
        "symmetric_key": key.hex(),
        "latest": client.images.get(f"{repository}:latest").id,
        "base": client.images.get(f"{repository}:base").id,
    }


def _build_config(
    order: dict[str, Any], files: dict[str, bytes], query: bytes | None, key: bytes, session_id: bytes
) -> dict[str, Any]:
    # the builder joins directory and name, and the directory of a top-level file is "."
    file_list = [name if "/" in name else f"./{name}" for name in files]
    user = order["user"]
    digest = hash_immutable_files(
        immutable_files=[io.BytesIO(data) for data in files.values()],
        user_id=str(user["id"]),
        session_id=session_id,
        binary_files=True,
        ordered_file_list=file_list,
        immutable_file_names=list(files),
        query=query,
    )
    user_key, user_public = _private(user["private_key"])
    builder_key, builder_public = _private(order["builder_private_key"])
    signature = user_key.sign(digest, padding.PKCS1v15(), hashes.SHA512())
    route = [
        {
            "station": stop["station"],
            "eco_system": stop.get("eco_system", "tue"),
            "rsa_public_key": stop["public_key"],
            "index": index,
            "signature": None,
            "encrypted_key": (
                KeyManager.encrypt_symmetric_key(KeyManager, key, stop["public_key"]) if index == 0 else None
            ),
        }
        for index, stop in enumerate(order["route"])
    ]
    return {
        "@id": order["train_id"],
        "id": order["train_id"],  # the builder writes it twice
        "@context": {"link": "https://www.w3.org/2018/credentials/v1"},
        "source": {"type": "docker_repository", "tag": "latest", "address": order["base_image"].rpartition(":")[0]},
        "creator": {
            "id": user["id"],
            "rsa_public_key": user.get("public_key") or user_public,
            "paillier_public_key": None,
            "encrypted_key": None,
        },
        "proposal_id": 1,
        "session_id": session_id.hex(),
        "hash": digest.hex(),
        "signature": signature.hex(),
        "route": route,
        "file_list": file_list,
        "build": {
            "signature": builder_key.sign(digest + signature, padding.PKCS1v15(), hashes.SHA512()).hex(),
            "rsa_public_key": builder_public,
        },
        "result_hash": None,
        "result_signature": None,
    }


def _private(pem: str) -> tuple[Any, str]:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key, public.hex()


def _protocol(args: argparse.Namespace) -> SecurityProtocol:
    # a station keeps the config it extracted before the run, so the algorithm cannot change it
    kept = Path(args.config).read_bytes() if args.config else None
    config = TrainConfig.parse_raw(kept) if kept else extract_train_config(args.image)
    return SecurityProtocol(args.station, config)


def _written(config: TrainConfig) -> bytes:
    return config.json(indent=2, by_alias=True).encode("utf-8")


def _crypt(direction: str) -> dict[str, Any]:
    asked = json.load(sys.stdin)
    work = getattr(FileEncryptor(bytes.fromhex(asked["key"])), direction)
    Path(asked["out"]).write_bytes(work(Path(asked["in"]).read_bytes()))
    return {}


def _image_id(image: str) -> dict[str, Any]:
    return {"id": docker.from_env(timeout=TIMEOUT).images.get(image).id}


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _tar(files: dict[str, bytes], *, directories: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in directories:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), int(time.time())
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train_lib as an oracle for tests")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, work: Any, *positional: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name)
        made.set_defaults(work=work)
        for argument in positional:
            made.add_argument(argument)
        return made

    verb("hash-immutable", do_hash_immutable)
    verb("hash-results", do_hash_results)
    verb("parse-config", do_parse_config)
    verb("encrypt", do_encrypt)
    verb("decrypt", do_decrypt)
    verb("extract-config", do_extract_config, "image")
    verb("run", do_run, "image")
    verb("validate", do_validate, "master", "train")
    verb("build", do_build, "file")
    for name, work in (("pre-run", do_pre_run), ("post-run", do_post_run)):
        made = verb(name, work, "image", "station", "key")
        made.add_argument("password", nargs="?")
        made.add_argument("--config", metavar="FILE")
    return parser.parse_args()


def main() -> int:
    """Do one verb."""
    args = _arguments()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # whatever a library prints is not the answer
            answer = args.work(args)
    except Exception as refusal:  # the edge: every refusal becomes one line and a status
        # train_lib's ValidationError keeps its text in an attribute only
        print(f"{type(refusal).__name__}: {refusal or getattr(refusal, 'hash_value', '')}", file=sys.stderr)
        return 1
    if isinstance(answer, bytes):
        sys.stdout.buffer.write(answer)
    else:
        json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
