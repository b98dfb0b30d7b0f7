"""The registry transport against Debian's docker-registry: plain, htpasswd, TLS with a private CA, bearer tokens."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from registry_servers import KINDS, RegistryServer, garbage_collect, registry

from dtrain.errors import AccessDenied, DigestMismatch, NotFound, Unreachable
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.manifest import Manifest, make_manifest, parse_manifest
from dtrain.oci.reference import Reference
from dtrain.transport.blobs import upload
from dtrain.transport.client import Call
from dtrain.transport.credentials import Credential
from dtrain.transport.protocol import Transport
from dtrain.transport.registry import Registry, RegistrySettings

pytestmark = pytest.mark.registry

DATA = os.urandom(3_000_000)
LAYER = Descriptor.of(DATA, media_types.OCI_LAYER)
CONFIG = Descriptor.of(b"{}", media_types.OCI_CONFIG)

Open = Callable[..., Registry]


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[RegistryServer]:
    with registry(request.param) as running:
        yield running


def settings_for(server: RegistryServer) -> RegistrySettings:
    credential = None if server.username is None else Credential(server.username, server.password or "")
    return RegistrySettings(ca_file=server.ca_file, credentials=lambda place: credential, wait=lambda seconds: None)


@pytest.fixture
def connect(server: RegistryServer) -> Iterator[Open]:
    opened: list[Registry] = []

    def connect(repository: str = "ns/train", settings: RegistrySettings | None = None) -> Registry:
        opened.append(Registry(Reference.parse(f"{server.host}/{repository}"), settings or settings_for(server)))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def push(place: Transport, text: str = "one") -> Manifest:
    place.put_blob(LAYER, lambda: io.BytesIO(DATA))
    place.put_blob(CONFIG, lambda: io.BytesIO(b"{}"))
    manifest = make_manifest(media_type=media_types.OCI_MANIFEST, config=CONFIG, layers=[LAYER],
                             annotations={"text": text})
    place.put_manifest(manifest)
    return manifest


def test_image_comes_back_as_it_was_pushed(connect: Open) -> None:
    place = connect("ns/round/trip")
    assert place.resolve("latest") is None
    manifest = push(place)
    assert place.resolve("latest") is None
    place.put_tag("latest", manifest)
    place.put_tag("hop-1", manifest)
    assert place.resolve("latest") == manifest.digest
    assert place.tags() == ("hop-1", "latest")
    fresh = connect("ns/round/trip")
    assert parse_manifest(fresh.fetch_manifest("latest")) == manifest
    assert parse_manifest(fresh.fetch_manifest(manifest.digest)) == manifest
    with fresh.open_blob(LAYER) as blob:
        assert blob.read() == DATA


def test_missing_things_are_not_found(connect: Open) -> None:
    place = connect("ns/empty")
    assert not place.has_blob(LAYER)
    with pytest.raises(NotFound):
        place.fetch_manifest("latest")
    with pytest.raises(NotFound):
        place.fetch_manifest(Digest.of(b"nothing"))
    with pytest.raises(NotFound):
        place.open_blob(LAYER)
    with pytest.raises(NotFound):
        place.tags()


def test_blob_is_mounted_from_a_repository_that_has_it(connect: Open) -> None:
    push(connect("ns/source"))
    place = connect("ns/target")
    assert not place.mount_blob(LAYER, "ns/nowhere")
    assert place.mount_blob(LAYER, "ns/source")
    with place.open_blob(LAYER) as blob:
        assert blob.read() == DATA


def test_blob_with_another_length_is_not_the_one(connect: Open) -> None:
    place = connect()
    push(place)
    with pytest.raises(DigestMismatch):
        place.open_blob(replace(LAYER, size=LAYER.size + 1))


def test_chunked_upload_is_stored_whole(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtrain.transport.blobs._put_whole", lambda *args: False)
    place = connect("ns/chunked")
    upload(place._client, LAYER, lambda: io.BytesIO(DATA))
    with place.open_blob(LAYER) as blob:
        assert blob.read() == DATA


def test_empty_blob_can_be_stored(connect: Open) -> None:
    place = connect("ns/empty-blob")
    empty = Descriptor.of(b"", media_types.OCI_LAYER)
    place.put_blob(empty, lambda: io.BytesIO(b""))
    assert place.has_blob(empty)
    with place.open_blob(empty) as blob:
        assert blob.read() == b""


def test_download_goes_on_by_range(connect: Open) -> None:
    place = connect()
    push(place)
    with place.open_blob(LAYER) as blob:
        first = blob.read(1000)
        # the network goes away; not SSLSocket.shutdown, which would go on in plain text
        socket.socket.shutdown(blob._source._response.raw._connection.sock, socket.SHUT_RDWR)
        assert first + blob.read() == DATA


def test_eight_threads_share_one_registry(connect: Open) -> None:
    place = connect("ns/threads")
    blobs = [os.urandom(200_000 + number) for number in range(24)]
    wants = [Descriptor.of(data, media_types.OCI_LAYER) for data in blobs]
    threads: set[int] = set()

    def move(pair: tuple[Descriptor, bytes]) -> bool:
        threads.add(threading.get_ident())
        place.put_blob(pair[0], lambda: io.BytesIO(pair[1]))
        with place.open_blob(pair[0]) as blob:
            return blob.read() == pair[1]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(move, zip(wants, blobs, strict=True)))
    assert len(threads) == 8


def test_untagged_manifest_is_gone_after_collection_and_tagged_one_is_not_d7() -> None:
    with registry("plain") as server, Registry(
        Reference.parse(f"{server.host}/ns/collected"), settings_for(server)
    ) as place:
        kept, dropped = push(place, "kept"), push(place, "dropped")
        place.put_tag("kept", kept)
        garbage_collect(server, delete_untagged=True)
        assert place.fetch_manifest(kept.digest).raw == kept.raw
        with pytest.raises(NotFound):
            place.fetch_manifest(dropped.digest)


def test_wrong_password_is_access_denied(server: RegistryServer, connect: Open) -> None:
    if server.username is None:
        pytest.skip("everyone is let in")
    wrong = replace(settings_for(server), credentials=lambda place: Credential("someone", "s3cret-pa55"))
    with pytest.raises(AccessDenied) as caught:
        connect(settings=wrong).resolve("latest")
    assert "s3cret-pa55" not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(AccessDenied):
        connect(settings=RegistrySettings(ca_file=server.ca_file)).resolve("latest")


def test_private_ca_has_to_be_named_d6(server: RegistryServer, connect: Open, tmp_path: Path) -> None:
    if server.ca_file is None:
        pytest.skip("no TLS")
    files = tmp_path / "client.pem", tmp_path / "client.key"
    for path, name in zip(files, ("server.pem", "server.key"), strict=True):
        path.write_bytes((server.ca_file.parent / name).read_bytes())
    place = connect(settings=RegistrySettings(client_cert=files))  # https on loopback, but no CA
    with pytest.raises(Unreachable, match="certificate that can be trusted") as caught:
        place.resolve("latest")
    assert "--ca-file" in str(caught.value.hint)


def test_inherited_delete_of_dxf_has_the_right_scope(connect: Open) -> None:
    place = connect("ns/deleted")
    push(place)
    place._client.del_blob(str(LAYER.digest))
    assert not place.has_blob(LAYER)


def test_token_that_expires_between_requests_is_renewed_d3() -> None:
    with registry("token", expires_in=1) as server, Registry(
        Reference.parse(f"{server.host}/ns/train"), settings_for(server)
    ) as place:
        manifest = push(place)
        # as if this client's clock stood still: only the registry notices
        place._client._authorizer._clock = lambda now=time.monotonic(): now
        place.put_tag("latest", manifest)
        time.sleep(1.1)
        assert place.resolve("latest") == manifest.digest
        assert [request.status for request in server.token_server.requests][-1] == 200


def test_content_shorter_than_described_is_not_stored(connect: Open) -> None:
    place = connect("ns/unfinished")
    with pytest.raises(DigestMismatch, match="2999999"):
        upload(place._client, LAYER, lambda: io.BytesIO(DATA[:-1]))
    assert not place.has_blob(LAYER)


def test_manifest_is_stored_under_the_digest_of_its_bytes(connect: Open) -> None:
    place = connect()
    manifest = push(place)
    response = place._client.once(Call(method="HEAD", path=f"manifests/{manifest.digest}", what="manifest",
                                       headers={"Accept": media_types.ACCEPT_MANIFEST}))
    assert response.headers["Docker-Content-Digest"] == str(manifest.digest)
