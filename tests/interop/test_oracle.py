"""Our bytes against train_lib's: the config, both hashes, the file format and the signatures, in both directions.

No image is made here; what trains do on a route is in test_mixed_routes.py.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever import mode pytest was told to use

import peers

from dtrain.crypto.cbc import PaddingProblem, decrypt, encrypt, sealed_size
from dtrain.crypto.rsa import PrivateKey
from dtrain.crypto.secret import Secret
from dtrain.errors import BadSignature, MalformedInput, WrongKey
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.layer import read_layer
from dtrain.oci.media_types import OCI_LAYER
from dtrain.oci.tree import merge
from dtrain.oci.verified import VerifiedReader
from dtrain.train import paths, pht
from dtrain.train.cargo import open_cargo, verify_code
from dtrain.train.config import parse_train_config
from dtrain.train.plain import PlainEntry, from_bytes, read_folder
from dtrain.train.route import stop_of
from dtrain.train.seal import seal_hop, seal_new
from dtrain.train.sealed import read_train

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(peers.missing_tools()), reason=f"missing: {', '.join(peers.missing_tools())}"),
]

SESSION = bytes(range(64))
FILE_KEY = Secret(bytes(range(32)))
CODE = {"./entrypoint.py": b"print()\n", "lib/x.py": b"", "./größe.bin": bytes(range(256)) * 5}
QUERY = b'{"query": 1}'

# What train_lib's pre-run and post-run do between their two visits to the daemon, by its own methods.
PRELUDE = """
import base64, io, json, sys
from loguru import logger
logger.remove()
from train_lib.security.encryption import FileEncryptor
from train_lib.security.protocol import SecurityProtocol
from train_lib.security.train_config import TrainConfig

asked = json.load(sys.stdin)
config = TrainConfig.parse_raw(asked["config"])
protocol = SecurityProtocol(asked["station"], config)
files = lambda name: [io.BytesIO(base64.b64decode(data)) for data in asked[name].values()]
"""
PRE_RUN = """
key = protocol.key_manager.decrypt_symmetric_key(protocol.route_stop.encrypted_key, asked["key_file"])
opener = FileEncryptor(key)
query = opener.decrypt(base64.b64decode(asked["query"])) if asked["query"] else None
code = opener.decrypt_files(files("code"), binary_files=True)
protocol.validate_immutable_files(
    files=code, immutable_file_names=list(asked["code"]), ordered_file_list=config.file_list, query=query
)
results = []
if not protocol._is_first_station_on_route():
    protocol.verify_digital_signature()
    results = opener.decrypt_files(files("results"), binary_files=True)
    protocol.validate_previous_results(files=results)
print(json.dumps({"results": [base64.b64encode(file.getvalue()).decode() for file in results]}))
"""
POST_RUN = """
_, key = protocol._post_run_outside_container(files("results"), asked["key_file"], None)
protocol.config = TrainConfig(**protocol.config.dict(by_alias=True))  # as post_run_protocol does
print(json.dumps({"config": protocol.config.json(indent=2, by_alias=True), "key": key.hex()}))
"""


class Parties:
    """Creator, builder and three stations; the second has 4096 bits and a PKCS#1 public key."""

    def __init__(self, home: Path) -> None:
        pairs = {name: peers.rsa_pair(bits=4096 if name == "s2" else 2048, pkcs1=name in ("s2", "creator"))
                 for name in ("creator", "builder", "s1", "s2", "s3")}  # fmt: skip
        self.files = {name: home / name for name in pairs}
        for name, (private, _) in pairs.items():
            self.files[name].write_text(private)
        self.hex = {name: public for name, (_, public) in pairs.items()}
        self.keys = {name: PrivateKey.from_pem(private.encode(), password=None, of=name)
                     for name, (private, _) in pairs.items()}  # fmt: skip


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return Parties(tmp_path_factory.mktemp("keys"))


def _document(parties: Parties) -> dict[str, Any]:
    """A config as the central builder writes it, its signatures still to be made."""
    return {
        "@id": "t-1",
        "id": "t-1",
        "@context": {"link": "https://www.w3.org/2018/credentials/v1"},
        "source": {"type": "docker_repository", "tag": "latest", "address": "registry.example/master/busybox"},
        "creator": {"id": "user-1", "rsa_public_key": parties.hex["creator"], "paillier_public_key": None,
                    "encrypted_key": None},
        "proposal_id": 1,
        "session_id": SESSION.hex(),
        "hash": "00" * 64,
        "signature": "00" * 256,
        "route": [{"station": name, "eco_system": "tue", "rsa_public_key": parties.hex[name], "index": index,
                   "signature": None, "encrypted_key": "ab" * 256 if index == 0 else None}
                  for index, name in enumerate(("s1", "s2", "s3"))],
        "file_list": list(CODE),
        "build": {"signature": "00" * 256, "rsa_public_key": parties.hex["builder"]},
        "result_hash": None,
        "result_signature": None,
    }  # fmt: skip


# --- the config ------------------------------------------------------------------------------------------------


def _after_hop(document: dict[str, Any]) -> None:
    document["result_hash"], document["result_signature"] = "11" * 64, "22" * 256
    document["creator"]["encrypted_key"] = "33" * 256
    document["route"][0]["signature"] = {"digest": "44" * 64, "signature": "55" * 256}
    for stop in document["route"]:
        stop["encrypted_key"] = "66" * 256


def _numeric_ids(document: dict[str, Any]) -> None:
    document["creator"]["id"], document["proposal_id"] = "0012", " 1_0 "
    for stop, name in zip(document["route"], ("007", "2024", "+5"), strict=True):
        stop["station"] = name


def _almost_numeric_ids(document: dict[str, Any]) -> None:
    document["creator"]["id"], document["proposal_id"] = "1e3", "0x10"
    for stop, name in zip(document["route"], ("1__0", "٣", "7.0"), strict=True):
        stop["station"] = name


def _integer_ids(document: dict[str, Any]) -> None:
    document["creator"]["id"], document["proposal_id"] = 7, -3
    document["route"][0]["station"] = 10**30


def _unicode(document: dict[str, Any]) -> None:
    document["@id"] = "zug-é-漢-😀-\u007f-\u2028"
    document["creator"]["id"] = "benützer\t\"\\/"
    document["file_list"] = ["./größe.py", "漢/字.py", "😀"]
    document["@context"] = {"ключ": ["ä", 1, 1.5, True, None, {"b": {}, "a": []}]}


def _context_null(document: dict[str, Any]) -> None:
    document["@context"] = None


def _absent_optionals(document: dict[str, Any]) -> None:
    for key in ("@context", "result_hash", "result_signature", "id"):
        del document[key]
    for key in ("paillier_public_key", "encrypted_key"):
        del document["creator"][key]
    for stop in document["route"]:
        del stop["signature"], stop["encrypted_key"]
    del document["source"]["tag"]


def _git_source(document: dict[str, Any]) -> None:
    document["source"] = {"type": "git_repository", "address": "https://git.example/x", "branch": "main"}
    document["route"][1]["eco_system"] = "padme"


def _paillier_text(document: dict[str, Any]) -> None:
    document["creator"]["paillier_public_key"] = "abcdef"


def _paillier_number(document: dict[str, Any]) -> None:
    document["creator"]["paillier_public_key"] = 2**130 + 1


def _unknown_members(document: dict[str, Any]) -> None:
    document["x"] = document["creator"]["x"] = document["source"]["x"] = document["build"]["x"] = {"y": 1}
    document["route"][0]["x"] = []


CHANGES = [
    _after_hop, _numeric_ids, _almost_numeric_ids, _integer_ids, _unicode, _context_null, _absent_optionals,
    _git_source, _paillier_text, _paillier_number, _unknown_members,
]  # fmt: skip
CHANGES_BY_NAME: dict[str, Callable[[dict[str, Any]], None]] = {
    "fresh": lambda document: None,
    **{change.__name__.strip("_"): change for change in CHANGES},
}


@pytest.mark.parametrize("change", CHANGES_BY_NAME.values(), ids=CHANGES_BY_NAME.keys())
def test_config_is_written_as_train_lib_writes_it(parties: Parties, change: Callable[[dict[str, Any]], None]) -> None:
    document = _document(parties)
    change(document)
    compact = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    theirs = peers.oracle("parse-config", stdin=compact)
    ours = parse_train_config(compact)
    assert ours.to_bytes() == theirs
    assert parse_train_config(theirs) == ours
    assert peers.oracle("parse-config", stdin=ours.to_compact_bytes()) == theirs


def test_config_is_put_in_order_as_a_post_run_of_train_lib_does(parties: Parties) -> None:
    """train_lib sorts the route and we write hex in lower case; what it reads stays the same."""
    document, ordered = _document(parties), _document(parties)
    document["route"].reverse()
    document["hash"], document["session_id"] = "AB" * 64, document["session_id"].upper()
    ordered["hash"] = "ab" * 64
    ours = parse_train_config(json.dumps(document).encode())
    assert ours.to_bytes() == peers.oracle("parse-config", stdin=json.dumps(ordered).encode())


def _mutations() -> dict[str, Callable[[dict[str, Any]], None]]:
    def set_to(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
        def change(document: dict[str, Any]) -> None:
            *parents, last = path.split(".")
            place: Any = document
            for name in parents:
                place = place[int(name)] if name.isdecimal() else place[name]
            if value is ...:
                del place[last]
            else:
                place[last] = value

        return change

    return {
        "no-id": set_to("@id", ...),
        "no-build": set_to("build", ...),
        "no-creator-key": set_to("creator.rsa_public_key", None),
        "context-is-text": set_to("@context", "https://www.w3.org/2018/credentials/v1"),
        "old-eco-system": set_to("route.0.eco_system", "aac"),
        "unknown-source": set_to("source.type", "ftp"),
        "no-hash": set_to("hash", None),
        "creator-id-null": set_to("creator.id", None),
    }


@pytest.mark.parametrize("name", _mutations())
def test_config_refused_by_train_lib_is_refused(parties: Parties, name: str) -> None:
    document = _document(parties)
    _mutations()[name](document)
    raw = json.dumps(document).encode()
    with pytest.raises(peers.OracleRefused, match="ValidationError"):
        peers.oracle("parse-config", stdin=raw)
    with pytest.raises(MalformedInput):
        parse_train_config(raw)


# --- hashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [None, QUERY, b""], ids=["no-query", "query", "empty-query"])
@pytest.mark.parametrize("creator", ["user-1", "0012", "benützer", 7])
def test_code_hash_is_that_of_train_lib(parties: Parties, query: bytes | None, creator: str | int) -> None:
    layer = _new(parties, query=query, creator=creator)
    stored = json.loads(peers.oracle("parse-config", stdin=layer.config))
    theirs = peers.oracle_json("hash-immutable", ask={
        "user_id": str(stored["creator"]["id"]), "session_id": SESSION.hex(),
        "query": None if query is None else _b64(query), "file_list": list(CODE),
        "files": [[name.removeprefix("./"), _b64(data)] for name, data in reversed(CODE.items())],
    })["hash"]  # fmt: skip
    assert stored["hash"] == theirs


def test_results_hash_is_that_of_train_lib_in_the_order_of_the_walk(parties: Parties, tmp_path: Path) -> None:
    # each folder's entries in byte order, so what is in d comes before d-e and d.txt; sorting whole paths would not do
    walk = ["Z", "a/x", "a-b", "a.b/1", "a0", "d/empty", "d/z.txt", "d-e", "d.txt", "ä/x"]
    for path in reversed(walk):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"" if path.endswith("empty") else path.encode() * 100)
    (tmp_path / "leer").mkdir()
    theirs = peers.oracle_json("hash-results", ask={
        "session_id": SESSION.hex(), "files": [_b64((tmp_path / path).read_bytes()) for path in walk],
    })["hash"]  # fmt: skip
    hop = _hop(parties, _new(parties), "s1", tuple(read_folder(tmp_path)))
    assert json.loads(hop.config)["result_hash"] == theirs


def test_hash_of_no_results_is_that_of_train_lib(parties: Parties) -> None:
    theirs = peers.oracle_json("hash-results", ask={"session_id": SESSION.hex(), "files": []})["hash"]
    assert json.loads(_hop(parties, _new(parties), "s1", ()).config)["result_hash"] == theirs


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100, 2**20 - 1, 2**20, 2**20 + 16, 3 * 2**20 + 5])
def test_encrypted_file_is_read_by_the_other_side(size: int, tmp_path: Path) -> None:
    plain, theirs, ours, opened = (tmp_path / name for name in ("plain", "theirs", "ours", "opened"))
    data = os.urandom(size)
    plain.write_bytes(data)
    ask = {"key": FILE_KEY.reveal().hex()}
    peers.oracle_json("encrypt", ask={**ask, "in": str(plain), "out": str(theirs)})
    assert theirs.stat().st_size == sealed_size(size)
    assert b"".join(decrypt(io.BytesIO(theirs.read_bytes()), FILE_KEY)) == data

    ours.write_bytes(b"".join(encrypt((data[: size // 3], data[size // 3 :]), FILE_KEY)))
    assert ours.stat().st_size == sealed_size(size)
    peers.oracle_json("decrypt", ask={**ask, "in": str(ours), "out": str(opened)})
    assert opened.read_bytes() == data


def test_file_under_another_key_is_refused_by_both_sides(tmp_path: Path) -> None:
    # a wrong key gives right padding once in 256: the last block is chosen so that it does not
    other = Secret(b"\x01" * 32)
    sealed = next(blob for blob in _seals_forever() if not _opens(blob, other))
    (tmp_path / "sealed").write_bytes(sealed)
    with pytest.raises(peers.OracleRefused):
        peers.oracle_json("decrypt", ask={"key": other.reveal().hex(), "in": str(tmp_path / "sealed"),
                                          "out": str(tmp_path / "opened")})  # fmt: skip


def _seals_forever() -> Any:
    while True:
        yield b"".join(encrypt((b"data",), FILE_KEY))


def _opens(blob: bytes, key: Secret[bytes]) -> bool:
    try:
        b"".join(decrypt(io.BytesIO(blob), key))
    except PaddingProblem:
        return False
    return True


# --- signatures and wrapped keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 2])
def test_pre_run_of_train_lib_accepts_what_we_sealed(parties: Parties, done: int) -> None:
    """File key, creator's and builder's signature, route, results: after `done` hops of ours, for the next station."""
    layer = _new(parties)
    results = tuple(from_bytes(name, name.encode() * 7) for name in ("a", "b/c", "empty"))
    for station in ("s1", "s2", "s3")[:done]:
        layer = _hop(parties, layer, station, results)
    answer = _train_lib(PRE_RUN, layer.ask(("s1", "s2", "s3")[done], parties))
    assert answer["results"] == [_b64(file.path.encode() * 7) for file in results if done]
    if done:
        assert peers.oracle("parse-config", stdin=layer.config) == layer.config


@pytest.mark.parametrize("place", [
    ("signature",), ("build", "signature"), ("result_signature",), ("route", 0, "signature", "signature"),
])  # fmt: skip
def test_both_sides_refuse_a_signature_with_other_bytes(parties: Parties, place: tuple[Any, ...]) -> None:
    layer = _hop(parties, _new(parties), "s1", (from_bytes("r", b"results"),))
    document = json.loads(layer.config)
    *parents, last = place
    holder = document
    for name in parents:
        holder = holder[name]
    holder[last] = holder[last][:-2] + f"{int(holder[last][-2:], 16) ^ 1:02x}"
    edited = replace(layer, config=json.dumps(document).encode())
    with pytest.raises(peers.OracleRefused, match=r"InvalidSignature|ValidationError"):
        _train_lib(PRE_RUN, edited.ask("s2", parties))
    with pytest.raises(BadSignature):
        pht.check_signatures(parse_train_config(edited.config), 1)


def test_we_verify_what_train_lib_signs_and_wraps(parties: Parties) -> None:
    """Each stop's post-run by train_lib's own code, and at the end the whole chain by ours."""
    config = _new(parties).config
    for done, station in enumerate(("s1", "s2", "s3"), start=1):
        results = {"a": _b64(b"results of " + station.encode()), "empty": ""}
        ask = {"config": config.decode(), "station": station, "results": results,
               "key_file": str(parties.files[station])}  # fmt: skip
        made = _train_lib(POST_RUN, ask)
        config = made["config"].encode()
        ours = parse_train_config(config)
        pht.check_signatures(ours, done)
        assert ours.to_bytes() == config
        file_key = bytes.fromhex(made["key"])
        wrapped = {str(stop.station): stop.encrypted_key for stop in ours.route}
        for name, blob in {**wrapped, "creator": ours.creator.encrypted_key}.items():
            assert blob is not None
            assert parties.keys[name].unwrap(blob, of=name).reveal() == file_key
            with pytest.raises(WrongKey):
                parties.keys["builder"].unwrap(blob, of=name)


# --- help ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A sealed train as a layer, and the config in it."""

    tar: bytes
    config: bytes

    def ask(self, station: str, parties: Parties) -> dict[str, Any]:
        """What train_lib finds in the image and gets from its station."""
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as tar:
            found = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
            blobs = {name: _b64(file.read()) for name, file in found.items() if file and "/.wh." not in name}
        code = _below(paths.CODE, blobs)
        return {"config": self.config.decode(), "station": station, "key_file": str(parties.files[station]),
                "query": code.pop(paths.QUERY, None), "code": code,
                "results": _below(paths.RESULTS, blobs)}  # fmt: skip


def _below(folder: str, blobs: dict[str, str]) -> dict[str, str]:
    return {name[len(folder) + 1 :]: blob for name, blob in blobs.items() if name.startswith(folder + "/")}


def _new(parties: Parties, *, query: bytes | None = QUERY, creator: str | int = "user-1") -> Layer:
    document = _document(parties)
    document["creator"]["id"] = creator
    out = io.BytesIO()
    made = seal_new(
        parse_train_config(json.dumps(document).encode()),
        [from_bytes(name.removeprefix("./"), data) for name, data in CODE.items()],
        None if query is None else from_bytes(paths.QUERY, query),
        creator_key=parties.keys["creator"], builder_key=parties.keys["builder"], out=out, mtime=0,
    )  # fmt: skip
    return Layer(out.getvalue(), made.config.to_compact_bytes())


def _hop(parties: Parties, layer: Layer, station: str, results: Sequence[PlainEntry]) -> Layer:
    with tempfile.TemporaryFile() as spool:
        blob = VerifiedReader(io.BytesIO(layer.tar), Descriptor.of(layer.tar, OCI_LAYER))
        sealed = read_train(merge([read_layer(blob, OCI_LAYER, wanted=paths.is_train_path, spool=spool)]))
        stop = stop_of(sealed.config, station)
        pht.check_signatures(sealed.config, stop.index)
        key = parties.keys[station]
        code = verify_code(open_cargo(sealed, key, wrapped=stop.encrypted_key, of=station), None)
        out = io.BytesIO()
        made = seal_hop(code, stop, key, results, out=out, mtime=0)
    return Layer(out.getvalue(), made.config.to_bytes())


def _train_lib(script: str, ask: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [str(peers.train_lib_python()), "-I", "-c", PRELUDE + script],
        input=json.dumps(ask), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise peers.OracleRefused(done.stderr.strip().splitlines()[-1])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
