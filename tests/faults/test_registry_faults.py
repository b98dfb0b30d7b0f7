"""A registry that misbehaves, against the registry transport (threats D1 to D6 and D8)."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import BinaryIO

import pytest
from hostile_registry import Answer, HostileRegistry, Seen, hostile_registry, self_signed

from dtrain.errors import (
    AccessDenied,
    Conflict,
    DigestMismatch,
    DtrainError,
    MalformedInput,
    NotFound,
    StorageProblem,
    TransportError,
    Unreachable,
)
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import MANIFEST_MAX, Manifest, make_manifest
from dtrain.oci.reference import Reference
from dtrain.transport.credentials import Credential
from dtrain.transport.hosts import Origin, check_public, follow, registry_origin
from dtrain.transport.registry import Registry, RegistrySettings

SECRET = "s3cret-pa55"
DATA = bytes(range(256)) * 16384  # 4 MiB
WANT = Descriptor.of(DATA, media_types.OCI_LAYER)
SMALL = DATA[:5000]
SMALL_WANT = Descriptor.of(SMALL, media_types.OCI_LAYER)


def manifest(text: str = "one") -> Manifest:
    return make_manifest(media_type=media_types.OCI_MANIFEST, config=Descriptor.of(b"{}", media_types.OCI_CONFIG),
                         layers=[WANT], annotations={"text": text})


class Content:
    """An opener that counts how often it was opened."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened = 0

    def __call__(self) -> BinaryIO:
        self.opened += 1
        return io.BytesIO(self.data)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[HostileRegistry]:
    with hostile_registry() as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[HostileRegistry]:
    with hostile_registry() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def settings(waits: list[float]) -> RegistrySettings:
    return RegistrySettings(wait=waits.append, connect_timeout=2.0, read_timeout=2.0, commit_timeout=2.0,
                            credentials=lambda place: Credential("user", SECRET))


@pytest.fixture
def registry(server: HostileRegistry, settings: RegistrySettings) -> Iterator[Registry]:
    with connect(server, settings) as opened:
        yield opened


def connect(server: HostileRegistry, settings: RegistrySettings) -> Registry:
    return Registry(Reference.parse(f"{server.host}/r"), settings)


# D1 bytes other than the digest says

@pytest.mark.parametrize("claim", ["consistent", "as asked", "none"])
def test_d1_manifest_by_digest_with_other_bytes_is_refused(
    server: HostileRegistry, registry: Registry, claim: str
) -> None:
    wanted, other = manifest("wanted"), manifest("other")
    headers = {"consistent": {"Docker-Content-Digest": str(other.digest)},
               "as asked": {"Docker-Content-Digest": str(wanted.digest)}, "none": {}}[claim]
    server.misbehave("GET", "/manifests/", Answer(200, headers, other.raw))
    with pytest.raises(DigestMismatch, match=f"expected {wanted.digest}, got {other.digest}"):
        registry.fetch_manifest(wanted.digest)


def test_d1_manifest_by_tag_with_other_bytes_than_claimed_is_refused(
    server: HostileRegistry, registry: Registry
) -> None:
    server.misbehave("GET", "/manifests/", Answer(200, {"Docker-Content-Digest": str(manifest("a").digest)},
                                                  manifest("b").raw))
    with pytest.raises(DigestMismatch):
        registry.fetch_manifest("latest")


def test_d1_claimed_digest_of_an_unknown_algorithm_is_malformed(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/manifests/", Answer(200, {"Docker-Content-Digest": "md5:" + "0" * 32}, b"{}"))
    with pytest.raises(MalformedInput, match="sha256 or sha512"):
        registry.fetch_manifest("latest")


def test_d1_manifest_by_sha512_is_checked_by_sha512(server: HostileRegistry, registry: Registry) -> None:
    raw = manifest().raw
    digest = Digest("sha512", hashlib.sha512(raw).hexdigest())
    server.manifests[str(digest)] = (media_types.OCI_MANIFEST, raw)
    assert registry.fetch_manifest(digest).digest == digest
    server.manifests[str(digest)] = (media_types.OCI_MANIFEST, raw + b" ")
    with pytest.raises(DigestMismatch):
        registry.fetch_manifest(digest)


def test_d1_manifest_by_tag_has_the_digest_of_its_bytes_without_a_claim(
    server: HostileRegistry, registry: Registry
) -> None:
    server.misbehave("GET", "/manifests/", Answer(200, {"Content-Type": f"{media_types.OCI_INDEX}; charset=utf-8"},
                                                  b"{}"))
    fetched = registry.fetch_manifest("latest")
    assert (fetched.digest, fetched.media_type) == (Digest.of(b"{}"), media_types.OCI_INDEX)


def test_d1_blob_with_other_bytes_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.blobs[str(WANT.digest)] = DATA[:-1] + b"!"
    with pytest.raises(DigestMismatch), registry.open_blob(WANT):
        pass


def test_d1_compressed_transfer_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/blobs/", Answer(200, {"Content-Encoding": "gzip"}, DATA))
    with pytest.raises(TransportError, match="Content-Encoding"):
        registry.open_blob(WANT)
    assert server.requests[0].headers["accept-encoding"] == "identity"


# D2 truncation, resets, slow drip, endless bodies, wrong lengths

def test_d2_truncated_manifest_is_fetched_again(server: HostileRegistry, registry: Registry) -> None:
    registry.put_tag("latest", manifest())
    server.misbehave("GET", "/manifests/latest", Answer(200, body=manifest().raw, cut=20))
    assert registry.fetch_manifest("latest").raw == manifest().raw


def test_d2_manifest_truncated_each_time_is_unreachable(
    server: HostileRegistry, registry: Registry, waits: list[float]
) -> None:
    server.misbehave("GET", "/manifests/latest", Answer(200, body=manifest().raw, cut=20), times=99)
    with pytest.raises(Unreachable):
        registry.fetch_manifest("latest")
    assert len(waits) == 5


def endless() -> Iterator[bytes]:
    return itertools.repeat(b" " * 2**16)


def test_d2_endless_manifest_is_cut_at_4_mib(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/manifests/", Answer(body=endless))
    with pytest.raises(MalformedInput, match=f"at most {MANIFEST_MAX} bytes"):
        registry.fetch_manifest("latest")


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (403, AccessDenied), (418, TransportError)])
def test_d2_endless_error_body_is_not_read(
    server: HostileRegistry, registry: Registry, status: int, error: type[DtrainError]
) -> None:
    server.misbehave("GET", "/manifests/", Answer(status, body=endless))
    with pytest.raises(error):
        registry.fetch_manifest("latest")


@pytest.mark.parametrize("status", [302, 401])
def test_d2_endless_body_of_an_intermediate_answer_is_not_read(
    server: HostileRegistry, registry: Registry, status: int
) -> None:
    registry.put_tag("latest", manifest())
    server.misbehave("GET", "/manifests/", Answer(status, {"Location": "/v2/r/manifests/latest",
                                                           "WWW-Authenticate": "Basic realm=x"}, endless))
    assert registry.fetch_manifest("latest").raw == manifest().raw


@pytest.mark.parametrize("cut", [1, 2**20, len(DATA) - 1])
def test_d2_dropped_blob_goes_on_where_it_stopped(server: HostileRegistry, registry: Registry, cut: int) -> None:
    server.store_blob(DATA)
    server.misbehave("GET", "/blobs/", Answer(body=DATA, cut=cut))
    with registry.open_blob(WANT) as blob:
        assert blob.read() == DATA
    assert [seen.headers.get("range") for seen in server.asked("GET")] == [None, f"bytes={cut}-"]


def test_d2_dropped_blob_is_completed_from_a_registry_without_ranges(
    server: HostileRegistry, registry: Registry
) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA, cut=3_000_000))
    server.misbehave("GET", "/blobs/", Answer(body=DATA, cut=2_000_000))  # drops again while skipping
    server.misbehave("GET", "/blobs/", Answer(body=DATA))
    with registry.open_blob(WANT) as blob:
        assert blob.read() == DATA


def test_d2_rest_of_a_blob_from_another_offset_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA, cut=100))
    server.misbehave("GET", "/blobs/", Answer(206, {"Content-Range": f"bytes 99-{len(DATA) - 1}/*"}, DATA[99:]))
    with pytest.raises(TransportError, match="expected the range from 100"):
        registry.open_blob(WANT).read()


def test_d2_rest_of_a_blob_with_other_bytes_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA, cut=100))
    server.blobs[str(WANT.digest)] = b"!" * len(DATA)
    with pytest.raises(DigestMismatch):
        registry.open_blob(WANT).read()


def test_d2_blob_without_its_end_is_unreachable(
    server: HostileRegistry, registry: Registry, waits: list[float]
) -> None:
    server.misbehave("GET", "/blobs/", lambda seen: Answer(206 if "range" in seen.headers else 200, {
        "Content-Range": f"bytes {seen.headers.get('range', 'bytes=0-')[6:-1]}-{len(DATA) - 1}/*"}, b"x",
        length=-1), times=999)  # one byte for each connection
    with pytest.raises(Unreachable, match="once too often"):
        registry.open_blob(WANT).read()
    assert len(waits) == 5


def test_d2_slow_drip_is_treated_as_a_drop(
    server: HostileRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.transport.blobs.STALL_WINDOW", -1.0)
    server.misbehave("GET", "/blobs/", Answer(body=lambda: itertools.repeat(b"x", 100)), times=99)
    with pytest.raises(Unreachable):
        registry.open_blob(WANT).read()


@pytest.mark.parametrize("length", [0, 100, len(DATA) + 1])
def test_d2_announced_length_other_than_wanted_is_refused(
    server: HostileRegistry, registry: Registry, length: int
) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA, length=length))
    with pytest.raises(DigestMismatch, match=f"expected {len(DATA)} bytes, got {length}"):
        registry.open_blob(WANT)


def test_d2_blob_longer_than_wanted_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA + b"x", length=-1))
    with pytest.raises(DigestMismatch, match="got more"):
        registry.open_blob(WANT).read()


def test_d2_reset_before_the_answer_is_repeated(server: HostileRegistry, registry: Registry) -> None:
    server.store_blob(DATA)
    server.misbehave("HEAD", "/blobs/", Answer(reset=0))
    assert registry.has_blob(WANT)


@pytest.mark.parametrize("stage", ["POST", "PUT"])
def test_d2_reset_upload_starts_again_as_a_whole(
    server: HostileRegistry, registry: Registry, stage: str
) -> None:
    content = Content(DATA)
    server.misbehave(stage, "/uploads/", Answer(reset=2**20))
    registry.put_blob(WANT, content)
    assert server.blobs[str(WANT.digest)] == DATA
    assert content.opened == (2 if stage == "PUT" else 1)
    assert server.uploads == {}


def test_d2_upload_that_never_passes_is_unreachable(
    server: HostileRegistry, registry: Registry, waits: list[float]
) -> None:
    server.misbehave("PUT", "/uploads/", Answer(reset=100), times=99)
    with pytest.raises(Unreachable):
        registry.put_blob(WANT, Content(DATA))
    assert len(waits) == 5
    assert server.blobs == {}
    assert server.uploads == {}


@pytest.mark.parametrize("length", [0, len(SMALL) - 1])
def test_d2_content_shorter_than_described_is_not_uploaded(
    server: HostileRegistry, registry: Registry, length: int
) -> None:
    with pytest.raises(DigestMismatch, match=f"expected {len(SMALL)} bytes to send, got {length}"):
        registry.put_blob(SMALL_WANT, Content(SMALL[:length]))
    assert server.blobs == {}


def test_d2_unreadable_content_is_no_network_fault(server: HostileRegistry, registry: Registry) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(StorageProblem, match="Input/output error"):
        registry.put_blob(SMALL_WANT, Broken)


def test_d2_nobody_listens(settings: RegistrySettings, waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Registry(Reference.parse(f"127.0.0.1:{port}/r"), settings) as registry, pytest.raises(
        Unreachable, match="Connection refused"
    ):
        registry.resolve("latest")
    assert waits == []


def test_d2_silence_is_unreachable(server: HostileRegistry, settings: RegistrySettings) -> None:
    released = threading.Event()

    def silent(seen: Seen) -> Answer:
        released.wait(5)
        return Answer(404)

    server.misbehave("GET", "/manifests/", silent, times=9)
    with connect(server, replace(settings, read_timeout=0.05, retries=1)) as registry, pytest.raises(Unreachable):
        registry.resolve("latest")
    released.set()


# D3 statuses: 401 while uploading, token expiry, 403, 404, 413, 416, 429, 5xx

@pytest.mark.parametrize("stage", ["PUT", "PATCH"])
def test_d3_token_that_expires_while_uploading_sends_the_body_again_whole(
    server: HostileRegistry, registry: Registry, stage: str
) -> None:
    server.require_bearer("pull", "push", "fresh")
    if stage == "PATCH":
        server.misbehave("PUT", "/uploads/", Answer(413))
    server.misbehave(stage, "/uploads/", lambda seen: Answer(401, {"WWW-Authenticate": server.challenge}))
    content = Content(DATA)
    registry.put_blob(WANT, content)
    assert server.blobs[str(WANT.digest)] == DATA
    assert server.authorization == "Bearer fresh"
    assert [seen.headers["authorization"] for seen in server.asked(stage)][:2] == ["Bearer push", "Bearer fresh"]


def test_d3_expired_token_is_renewed(server: HostileRegistry, registry: Registry) -> None:
    server.require_bearer("first", "second")
    registry.resolve("latest")
    server.authorization = "Bearer only the next"
    registry.resolve("latest")
    assert server.authorization == "Bearer second"


def test_d3_token_is_asked_for_before_it_expires(
    server: HostileRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.require_bearer("first", "second")
    server.expires_in = 10
    registry.resolve("latest")
    registry.resolve("latest")
    assert len(server.asked("GET", "/token")) == 1
    now = registry._client._authorizer._clock()
    monkeypatch.setattr(registry._client._authorizer, "_clock", lambda: now + 9.5)
    registry.resolve("latest")
    assert server.authorization == "Bearer second"
    assert len(server.asked("GET", "/manifests")) == 4  # only the very first was answered 401


def test_d3_eight_threads_ask_for_one_token(server: HostileRegistry, registry: Registry) -> None:
    server.require_bearer("only")
    server.store_blob(DATA)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: registry.open_blob(WANT).read() == DATA, range(24)))
    assert all(found)
    assert len(server.asked("GET", "/token")) == 1


def test_d3_mount_asks_for_both_repositories(server: HostileRegistry, registry: Registry) -> None:
    server.require_bearer("both")
    server.store_blob(DATA)
    assert registry.mount_blob(WANT, "other/source")
    path = server.asked("GET", "/token")[0].path
    assert "scope=repository%3Aother%2Fsource%3Apull&scope=repository%3Ar%3Apull%2Cpush" in path


def test_d3_challenge_cannot_widen_the_scope(server: HostileRegistry, registry: Registry) -> None:
    server.require_bearer("token")
    server.challenge += ',scope="repository:victim:pull,push repository:r:pull,metadata"'
    registry.resolve("latest")
    path = server.asked("GET", "/token")[0].path
    assert "victim" not in path
    assert "metadata" in path


def test_d3_mount_that_becomes_an_upload_is_cancelled(server: HostileRegistry, registry: Registry) -> None:
    assert not registry.mount_blob(WANT, "other")
    assert server.uploads == {}
    assert len(server.asked("DELETE")) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 503])
def test_d3_mount_refused_is_no_error(server: HostileRegistry, registry: Registry, status: int) -> None:
    server.misbehave("POST", "/uploads/", Answer(status), times=9)
    assert not registry.mount_blob(WANT, "other")
    assert len(server.asked("POST")) == 1


@pytest.mark.parametrize(("status", "error"), [
    (401, AccessDenied), (403, AccessDenied), (400, TransportError), (501, TransportError), (505, TransportError),
])
def test_d3_statuses_that_do_not_pass_are_raised_at_once(
    server: HostileRegistry, registry: Registry, waits: list[float], status: int, error: type[DtrainError]
) -> None:
    server.misbehave("GET", "/manifests/", Answer(status, body=b'{"errors":[{"code":"DENIED"}]}'), times=9)
    with pytest.raises(error):
        registry.resolve("latest")
    assert waits == []


def test_d3_missing_things_are_not_found(registry: Registry) -> None:
    assert registry.resolve("latest") is None
    assert not registry.has_blob(WANT)
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        registry.fetch_manifest("latest")
    with pytest.raises(NotFound):
        registry.open_blob(WANT)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_d3_busy_registry_is_asked_again(
    server: HostileRegistry, registry: Registry, waits: list[float], status: int
) -> None:
    server.misbehave("GET", "/manifests/", Answer(status), times=5)
    assert registry.resolve("latest") is None
    assert len(waits) == 5
    assert all(0.25 * 2**number <= wait <= 0.5 * 2**number for number, wait in enumerate(waits))


@pytest.mark.parametrize(("status", "error"), [(429, TransportError), (503, TransportError)])
def test_d3_busy_registry_is_given_up_at_last(
    server: HostileRegistry, registry: Registry, status: int, error: type[DtrainError]
) -> None:
    server.misbehave("GET", "/manifests/", Answer(status), times=99)
    with pytest.raises(error, match=f"expected 200, got {status}"):
        registry.resolve("latest")
    assert len(server.requests) == 6


@pytest.mark.parametrize(("header", "low", "high"), [
    ("7", 7, 7), ("0", 0, 0), ("86400", 60, 60), ("9" * 300, 60, 60), ("soon", 0.25, 0.5), ("-5", 0.25, 0.5),
    (timedelta(seconds=30), 20, 30), (timedelta(days=30), 60, 60), (timedelta(days=-30), 0, 0),
])
def test_d3_retry_after_is_obeyed_within_reason(
    server: HostileRegistry, registry: Registry, waits: list[float], header: str | timedelta, low: float, high: float
) -> None:
    if isinstance(header, timedelta):
        header = format_datetime(datetime.now(UTC) + header, usegmt=True)
    server.misbehave("GET", "/manifests/", Answer(429, {"Retry-After": header}))
    registry.resolve("latest")
    assert len(waits) == 1
    assert low <= waits[0] <= high


@pytest.mark.parametrize(("stage", "answer"), [
    ("POST", Answer(503)), ("PUT", Answer(500)), ("PUT", Answer(429, {"Retry-After": "3"})),
    ("PUT", Answer(404)),  # the session was lost
])
def test_d3_upload_starts_again_in_a_new_session(
    server: HostileRegistry, registry: Registry, waits: list[float], stage: str, answer: Answer
) -> None:
    server.misbehave(stage, "/uploads/", answer)
    registry.put_blob(SMALL_WANT, Content(SMALL))
    assert server.blobs[str(SMALL_WANT.digest)] == SMALL
    assert len(server.asked("POST")) == 2
    assert len(waits) == 1


def test_d3_too_large_for_one_put_is_sent_in_chunks(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("PUT", "/uploads/", Answer(413))
    content = Content(DATA)
    registry.put_blob(WANT, content)
    assert server.blobs[str(WANT.digest)] == DATA
    assert [seen.headers["content-range"] for seen in server.asked("PATCH")] == [
        "0-1048575", "1048576-2097151", "2097152-3145727", "3145728-4194303"]
    assert server.uploads == {}


def test_d3_chunks_are_as_large_as_the_registry_asks(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("PUT", "/uploads/", Answer(413))
    server.uploads["s"] = bytearray()
    for _ in range(2):
        server.misbehave("POST", "/uploads/", Answer(202, {"Location": "/v2/r/blobs/uploads/s",
                                                           "OCI-Chunk-Min-Length": "3000000"}))
    server.misbehave("DELETE", "/uploads/", Answer(404))
    registry.put_blob(WANT, Content(DATA))
    assert [len(seen.body) for seen in server.asked("PATCH")] == [3_000_000, len(DATA) - 3_000_000]


def test_d3_chunk_stored_elsewhere_starts_the_upload_again(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("PUT", "/uploads/", Answer(413), times=2)
    server.misbehave("PATCH", "/uploads/", lambda seen: Answer(202, {"Location": seen.path, "Range": "0-99"}))
    registry.put_blob(WANT, Content(DATA))
    assert server.blobs[str(WANT.digest)] == DATA
    assert server.uploads == {}


def test_d3_too_large_in_chunks_too_is_an_error(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("PUT", "/uploads/", Answer(413), times=9)
    server.misbehave("PATCH", "/uploads/", Answer(413), times=9)
    with pytest.raises(TransportError, match="got 413"):
        registry.put_blob(WANT, Content(DATA))
    assert server.uploads == {}


def test_d3_range_beyond_the_end_means_a_short_blob(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/blobs/", Answer(body=DATA[:100], length=-1))
    server.misbehave("GET", "/blobs/", Answer(416))
    with pytest.raises(DigestMismatch, match=f"expected {len(DATA)} bytes, got 100"):
        registry.open_blob(WANT).read()


def test_d3_stored_blob_is_not_sent_and_an_empty_one_is(server: HostileRegistry, registry: Registry) -> None:
    server.store_blob(SMALL)
    content = Content(SMALL)
    registry.put_blob(SMALL_WANT, content)
    assert content.opened == 0
    registry.put_blob(Descriptor.of(b"", media_types.OCI_LAYER), Content(b""))
    assert server.blobs[str(Digest.of(b""))] == b""


@pytest.mark.parametrize("challenge", ["", "Negotiate", 'Bearer realm="', "Bearer", "x" * 9000, 'Bearer realm="x:y"'])
def test_d3_challenge_that_makes_no_sense_is_access_denied(
    server: HostileRegistry, registry: Registry, challenge: str
) -> None:
    server.authorization, server.challenge = "never", challenge
    with pytest.raises(AccessDenied) as caught:
        registry.resolve("latest")
    assert SECRET not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("body", [
    b"[]", b"{}", b'{"token": 7}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b"\xff", b"["])
def test_d3_token_answer_that_makes_no_sense_is_malformed(
    server: HostileRegistry, registry: Registry, body: bytes
) -> None:
    server.require_bearer()
    server.misbehave("GET", "/token", Answer(body=body))
    with pytest.raises(MalformedInput):
        registry.resolve("latest")


def test_d3_busy_token_realm_is_asked_again(server: HostileRegistry, registry: Registry, waits: list[float]) -> None:
    server.require_bearer("token")
    server.misbehave("GET", "/token", Answer(429, {"Retry-After": "2"}))
    registry.resolve("latest")
    assert waits == [2.0]


def test_d3_identity_token_is_posted_and_anonymous_is_not(
    server: HostileRegistry, settings: RegistrySettings
) -> None:
    server.require_bearer("one", "two")
    with connect(server, replace(settings, credentials=lambda place: Credential("<token>", SECRET))) as registry:
        registry.resolve("latest")
    with connect(server, replace(settings, credentials=lambda place: None)) as registry:
        registry.resolve("other")
    assert b"grant_type=refresh_token" in server.asked("POST", "/token")[0].body
    assert "authorization" not in server.asked("GET", "/token")[0].headers


@pytest.mark.parametrize("basic", [True, False])
def test_d3_wrong_password_is_told_without_it(
    server: HostileRegistry, registry: Registry, basic: bool
) -> None:
    if basic:
        server.authorization = "Basic something else"
    else:
        server.require_bearer()
        server.misbehave("GET", "/token", Answer(401), times=9)
    with pytest.raises(AccessDenied) as caught:
        registry.resolve("latest")
    told = f"{caught.value!r} {caught.value.hint} {registry!r} {registry._client!r} {registry._client.settings!r}"
    assert "DTRAIN_PASSWORD" in str(caught.value.hint)
    assert SECRET not in told
    assert Credential("user", SECRET).basic not in told


def test_d3_credential_is_looked_up_by_place_and_once(server: HostileRegistry, settings: RegistrySettings) -> None:
    places: list[str] = []

    def find(place: str) -> Credential:
        places.append(place)
        return Credential("user", SECRET)

    server.authorization = Credential("user", SECRET).basic
    with connect(server, replace(settings, credentials=find)) as registry:
        registry.resolve("a")
        registry.resolve("b")
    assert places == [f"{server.host}/r"]
    assert len(server.requests) == 3  # the challenge, then each at the first try


# D4 redirects, upload locations and paging links to other hosts

def via_redirect(registry: Registry, server: HostileRegistry, url: str) -> None:
    server.store_blob(DATA)
    server.misbehave("GET", "/blobs/", Answer(307, {"Location": f"{url}/v2/r/blobs/{WANT.digest}"}))
    assert registry.open_blob(WANT).read() == DATA


def via_upload(registry: Registry, server: HostileRegistry, url: str) -> None:
    server.misbehave("POST", "/uploads/", Answer(202, {"Location": f"{url}/v2/r/blobs/uploads/s?signature={SECRET}"}))
    registry.put_blob(SMALL_WANT, Content(SMALL))


@pytest.mark.parametrize("step", [via_redirect, via_upload])
def test_d4_private_address_of_another_host_is_not_followed(
    server: HostileRegistry, elsewhere: HostileRegistry, registry: Registry,
    step: Callable[[Registry, HostileRegistry, str], None],
) -> None:
    with pytest.raises(TransportError, match="expected a public address") as caught:
        step(registry, server, f"http://{elsewhere.host}")
    assert elsewhere.requests == []
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("step", [via_redirect, via_upload])
def test_d4_name_that_leads_to_a_private_address_is_not_followed(
    server: HostileRegistry, elsewhere: HostileRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Registry, HostileRegistry, str], None],
) -> None:
    port = int(elsewhere.host.partition(":")[2])
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **options: real(
        "127.0.0.1" if host == "blobs.example" else host, *args, **options))
    with pytest.raises(TransportError, match="expected a public address"):
        step(registry, server, f"http://blobs.example:{port}")
    assert elsewhere.requests == []


@pytest.mark.parametrize("step", [via_redirect, via_upload])
@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_d4_other_host_gets_no_credentials(
    server: HostileRegistry, elsewhere: HostileRegistry, settings: RegistrySettings, auth: str,
    step: Callable[[Registry, HostileRegistry, str], None],
) -> None:
    elsewhere.store_blob(DATA)
    elsewhere.uploads["s"] = bytearray()
    if auth == "basic":
        server.authorization = Credential("user", SECRET).basic
    else:
        server.require_bearer("pull", "push", "more")
    with connect(server, replace(settings, trusted_hosts=frozenset({elsewhere.host}))) as registry:
        registry.resolve("warm")  # credentials are at hand from here on
        step(registry, server, f"http://{elsewhere.host}")
    assert elsewhere.requests != []
    assert all("authorization" not in seen.headers for seen in elsewhere.requests)


def test_d4_other_host_that_asks_for_a_password_gets_none(
    server: HostileRegistry, elsewhere: HostileRegistry, settings: RegistrySettings
) -> None:
    elsewhere.authorization = "anything"
    with connect(server, replace(settings, trusted_hosts=frozenset({elsewhere.host}))) as registry, pytest.raises(
        AccessDenied
    ):
        via_redirect(registry, server, f"http://{elsewhere.host}")
    assert len(elsewhere.requests) == 1


def test_d4_paging_link_to_another_host_is_refused(
    server: HostileRegistry, elsewhere: HostileRegistry, settings: RegistrySettings
) -> None:
    server.misbehave("GET", "/tags/", Answer(200, {
        "Link": f'<http://{elsewhere.host}/v2/r/tags/list?n=1>; rel="next"'}, b'{"tags":["a"]}'))
    with connect(server, replace(settings, trusted_hosts=frozenset({elsewhere.host}))) as registry, pytest.raises(
        TransportError, match="expected the next page at"
    ):
        registry.tags()
    assert elsewhere.requests == []


def test_d4_tags_are_paged_and_sorted(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "list.n=1000$", Answer(200, {"Link": '</v2/r/tags/list?n=2&last=b>; rel="next"'},
                                                   b'{"tags":["b","c"]}'))
    server.misbehave("GET", "last=b", Answer(200, {"Link": "<list?last=x>; rel=next"}, b'{"tags":null}'))
    server.misbehave("GET", "/v2/r/tags/list.last=x", Answer(200, body=b'{"tags":["a"]}'))
    assert registry.tags() == ("a", "b", "c")


def test_d4_pages_in_a_circle_end(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/tags/", Answer(200, {"Link": '</v2/r/tags/list?n=2>; rel="next"'}, b'{"tags":[]}'),
                     times=9)
    with pytest.raises(TransportError, match="pages without end"):
        registry.tags()


@pytest.mark.parametrize("body", [b"[]", b'{"tags":7}', b'{"tags":[7]}', b"no"])
def test_d4_tag_list_that_makes_no_sense_is_malformed(
    server: HostileRegistry, registry: Registry, body: bytes
) -> None:
    server.misbehave("GET", "/tags/", Answer(body=body))
    with pytest.raises(MalformedInput):
        registry.tags()


def test_d4_redirects_in_a_circle_end(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/manifests/", Answer(302, {"Location": "/v2/r/manifests/latest"}), times=99)
    with pytest.raises(TransportError, match="at most 5 redirects"):
        registry.resolve("latest")
    assert len(server.requests) <= 7


@pytest.mark.parametrize(("status", "stored"), [(307, True), (308, True), (302, False), (303, False)])
def test_d4_redirected_upload_keeps_its_body_or_fails(
    server: HostileRegistry, registry: Registry, status: int, stored: bool
) -> None:
    server.misbehave("PUT", "/uploads/", lambda seen: Answer(status, {"Location": seen.path}))
    if stored:
        registry.put_blob(SMALL_WANT, Content(SMALL))
    else:
        with pytest.raises(TransportError, match=f"got a redirect {status}"):
            registry.put_blob(SMALL_WANT, Content(SMALL))
    assert (str(SMALL_WANT.digest) in server.blobs) is stored


@pytest.mark.parametrize("location", [
    "ftp://127.0.0.1/x", "file:///etc/passwd", "http://user@127.0.0.1/", "http://[::1", "gopher:x"])
def test_d4_location_that_is_no_http_url_is_refused(
    server: HostileRegistry, registry: Registry, location: str
) -> None:
    server.misbehave("GET", "/manifests/", Answer(302, {"Location": location}))
    with pytest.raises(TransportError):
        registry.resolve("latest")


def test_d4_plain_token_realm_elsewhere_gets_nothing(
    server: HostileRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.authorization, server.challenge = "never", 'Bearer realm="http://realm.example/token"'
    with pytest.raises(AccessDenied, match=r"expected a token realm with https, got http://realm\.example"):
        registry.resolve("latest")


@pytest.mark.parametrize("address", [
    "127.0.0.1", "localhost", "::1", "[::1]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "224.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "fc00::1", "::"])
def test_d4_address_is_not_public(address: str) -> None:
    with pytest.raises(TransportError):
        check_public(address, named="registry.example")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "storage.example"])
def test_d4_address_is_public(address: str) -> None:
    check_public(address, named="registry.example")


OWN = Origin.of("https://registry.example")


@pytest.mark.parametrize(("target", "followed"), [
    ("/v2/x", "https://registry.example/v2/x"),
    ("http://registry.example/v2/x?a=b", "https://registry.example/v2/x?a=b"),  # a registry behind a TLS proxy
    ("//storage.example/x", "https://storage.example/x"),
    ("https://registry.example:8443/x", "https://registry.example:8443/x"),
])
def test_d4_location_is_resolved(target: str, followed: str) -> None:
    assert follow("https://registry.example/v2/y", target, OWN) == followed


@pytest.mark.parametrize("target", ["http://storage.example/x", "http://registry.example:81/x"])
def test_d4_location_from_https_to_http_is_refused(target: str) -> None:
    with pytest.raises(TransportError, match="stay on https"):
        follow("https://registry.example/v2/y", target, OWN)


def test_d4_location_that_two_parsers_read_differently_stays_with_the_one_that_sends() -> None:
    target = "https://registry.example\\@evil.example/"
    assert follow("https://registry.example/v2/y", target, OWN) == "https://registry.example/%5C@evil.example/"


# D5 .netrc and proxies

def test_d5_netrc_is_ignored(
    server: HostileRegistry, settings: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login netrc password netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with connect(server, settings) as registry:
        registry.resolve("anonymous")
        assert "authorization" not in server.requests[-1].headers
        server.require_bearer("explicit")
        registry.resolve("bearer")
    assert server.requests[-1].headers["authorization"] == "Bearer explicit"
    assert server.asked("GET", "/token")[0].headers["authorization"] == Credential("user", SECRET).basic


def test_d5_proxy_of_the_environment_is_used(
    server: HostileRegistry, settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://proxyuser:{SECRET}@{server.host}")
    server.misbehave("GET", "^http://registry.example/v2/r/manifests/latest$", Answer(404))
    with Registry(Reference.parse("registry.example/r"), replace(settings, plain_http=True)) as registry:
        assert registry.resolve("latest") is None
    assert "proxy-authorization" in server.requests[0].headers


def test_d5_no_proxy_is_honoured_and_loopback_is_direct(
    server: HostileRegistry, elsewhere: HostileRegistry, settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{elsewhere.host}")
    monkeypatch.setenv("no_proxy", "registry.example")
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **options: real(
        "127.0.0.1" if host == "registry.example" else host, *args, **options))
    port = server.host.partition(":")[2]
    for host in (server.host, f"registry.example:{port}"):
        with Registry(Reference.parse(f"{host}/r"), replace(settings, plain_http=True)) as registry:
            assert registry.resolve("latest") is None
    assert len(server.requests) == 2
    assert elsewhere.requests == []


def test_d5_broken_proxy_is_told_without_its_password(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://proxyuser:{SECRET}@127.0.0.1:1")
    with Registry(Reference.parse("registry.example/r"), replace(settings, plain_http=True)) as registry, pytest.raises(
        Unreachable, match="Connection refused"
    ) as caught:
        registry.resolve("latest")
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert caught.value.__suppress_context__


# D6 TLS

@pytest.mark.parametrize(("name", "expired", "known", "reason"), [
    ("127.0.0.1", False, False, "self-signed certificate"),
    ("other.example", False, True, "IP address mismatch"),
    ("127.0.0.1", True, True, "certificate has expired"),
])
def test_d6_certificate_that_does_not_prove_the_registry_is_refused(
    settings: RegistrySettings, tmp_path: Path, waits: list[float],
    name: str, expired: bool, known: bool, reason: str,
) -> None:
    pem, context = self_signed(tmp_path, name=name, expired=expired)
    unknown = tmp_path / "other"
    unknown.mkdir()
    other, _ = self_signed(unknown)
    with hostile_registry(context) as server, connect(
        server, replace(settings, ca_file=pem if known else other)
    ) as registry:
        with pytest.raises(Unreachable, match=reason) as caught:
            registry.resolve("latest")
        assert server.requests == []
    assert "--ca-file" in str(caught.value.hint)
    assert waits == []


def test_d6_private_ca_is_enough_and_its_bundle_variable_too(
    settings: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, context = self_signed(tmp_path, name="localhost")
    with hostile_registry(context) as server:
        reference = Reference.parse(f"localhost:{server.host.partition(':')[2]}/r")
        with Registry(reference, replace(settings, ca_file=pem)) as registry:
            assert registry.resolve("latest") is None
            assert registry._client.origin.scheme == "https"


def test_d6_plain_http_where_tls_is_expected_is_told(
    server: HostileRegistry, settings: RegistrySettings, tmp_path: Path
) -> None:
    pem, _ = self_signed(tmp_path)
    with connect(server, replace(settings, ca_file=pem)) as registry, pytest.raises(Unreachable) as caught:
        registry.resolve("latest")
    assert "--plain-http" in str(caught.value.hint)


@pytest.mark.parametrize(("host", "plain", "private", "origin"), [
    ("registry.example", False, False, "https://registry.example"),
    ("10.0.0.1:5000", False, False, "https://10.0.0.1:5000"),
    ("registry.example:5000", True, False, "http://registry.example:5000"),
    ("localhost:5000", False, False, "http://localhost:5000"),
    ("127.0.0.2:5000", False, False, "http://127.0.0.2:5000"),
    ("[::1]:5000", False, False, "http://[::1]:5000"),
    ("localhost:5000", False, True, "https://localhost:5000"),
    ("localhost:443", False, False, "https://localhost"),
    ("localhost.example", False, False, "https://localhost.example"),
    ("docker.io", False, False, "https://registry-1.docker.io"),
])
def test_d6_plain_http_is_for_loopback_or_when_asked(host: str, plain: bool, private: bool, origin: str) -> None:
    assert str(registry_origin(host, plain_http=plain, private_tls=private)) == origin


def test_d6_password_over_plain_http_beyond_loopback_is_refused(
    server: HostileRegistry, settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **options: real("127.0.0.1", *args, **options))
    server.authorization = Credential("user", SECRET).basic
    reference = Reference.parse(f"registry.example:{server.host.partition(':')[2]}/r")
    with Registry(reference, replace(settings, plain_http=True)) as registry:
        with pytest.raises(AccessDenied, match="plain http beyond loopback"):
            registry.resolve("latest")
        server.require_bearer("anonymous")
        server.challenge = server.challenge.replace("127.0.0.1", "registry.example")
        registry.resolve("latest")
    assert all(SECRET not in str(seen.headers) and "Basic" not in str(seen.headers) for seen in server.requests)


@pytest.mark.parametrize(("name", "error"), [("missing.pem", StorageProblem), ("text.pem", MalformedInput)])
def test_d6_ca_file_that_is_none_is_refused_at_once(
    settings: RegistrySettings, tmp_path: Path, name: str, error: type[DtrainError]
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(error, match=name):
        Registry(Reference.parse("registry.example/r"), replace(settings, ca_file=tmp_path / name))


# D8 answers to PUT, and tags that read back otherwise

OTHER = str(Digest.of(b"something else"))


@pytest.mark.parametrize("chunked", [False, True])
def test_d8_blob_stored_under_another_digest_is_refused(
    server: HostileRegistry, registry: Registry, chunked: bool
) -> None:
    if chunked:
        server.misbehave("PUT", "/uploads/", Answer(413))
    server.misbehave("PUT", "/uploads/", Answer(201, {"Docker-Content-Digest": OTHER}))
    with pytest.raises(DigestMismatch, match=f"expected the registry to store {SMALL_WANT.digest}, got {OTHER}"):
        registry.put_blob(SMALL_WANT, Content(SMALL))


def test_d8_manifest_stored_under_another_digest_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("PUT", "/manifests/", Answer(201, {"Docker-Content-Digest": OTHER}), times=2)
    with pytest.raises(DigestMismatch):
        registry.put_manifest(manifest())
    with pytest.raises(DigestMismatch):
        registry.put_tag("latest", manifest())


def test_d8_mount_of_another_digest_is_refused(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("POST", "/uploads/", Answer(201, {"Docker-Content-Digest": OTHER}))
    with pytest.raises(DigestMismatch):
        registry.mount_blob(WANT, "other")


def test_d8_tag_that_reads_back_otherwise_is_a_conflict(server: HostileRegistry, registry: Registry) -> None:
    other = manifest("other")
    server.misbehave("GET", "/manifests/latest", Answer(200, body=other.raw))
    with pytest.raises(Conflict, match=f"tag latest: expected {manifest().digest}, got {other.digest}"):
        registry.put_tag("latest", manifest())


def test_d8_tag_that_is_not_there_afterwards_is_a_conflict(server: HostileRegistry, registry: Registry) -> None:
    server.misbehave("GET", "/manifests/latest", Answer(404))
    with pytest.raises(Conflict, match="got no such tag"):
        registry.put_tag("latest", manifest())


def test_d8_stored_manifest_is_the_raw_bytes_under_its_media_type(
    server: HostileRegistry, registry: Registry
) -> None:
    registry.put_manifest(manifest())
    assert list(server.manifests) == [str(manifest().digest)]
    assert server.manifests[str(manifest().digest)] == (media_types.OCI_MANIFEST, manifest().raw)


# The inherited methods of dxf go through the same place

def test_inherited_methods_of_dxf_are_held_to_the_same_rules(
    server: HostileRegistry, elsewhere: HostileRegistry, registry: Registry
) -> None:
    server.store_blob(SMALL)
    registry.put_tag("latest", manifest())
    client = registry._client
    assert client.blob_size(str(SMALL_WANT.digest)) == len(SMALL)
    assert client.list_aliases() == ["latest"]
    assert json.loads(client.get_manifest("latest")) == json.loads(manifest().raw)
    server.misbehave("GET", "/manifests/", Answer(body=endless))
    with pytest.raises(MalformedInput):
        client.get_manifest("latest")
    server.misbehave("GET", "/tags/", Answer(302, {"Location": f"http://{elsewhere.host}/"}))
    with pytest.raises(TransportError):
        client.list_aliases()
    assert elsewhere.requests == []
