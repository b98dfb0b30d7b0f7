"""A web server that misbehaves, against the source of TUF metadata over http."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile_registry import Answer, HostileRegistry, Seen, hostile_registry, self_signed

from dtrain.errors import DtrainError, NotFound, TransportError, Unreachable
from dtrain.transport import web
from dtrain.transport.web import WebSource
from dtrain.transport.wire import RegistrySettings

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server() -> Iterator[HostileRegistry]:
    with hostile_registry() as found:
        yield found


@pytest.fixture
def source() -> Iterator[WebSource]:
    with WebSource() as found:
        yield found


def url(server: HostileRegistry, path: str = "/file") -> str:
    return f"http://{server.host}{path}"


def test_body_comes_in_parts_by_one_plain_get(
    server: HostileRegistry, source: WebSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password s3cret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    server.misbehave("GET", "^/file$", Answer(body=DATA))
    parts = list(source(url(server)))
    assert b"".join(parts) == DATA
    assert len(parts) > 1
    (seen,) = server.requests
    assert seen.headers["accept-encoding"] == "identity"
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(("status", "error"), [
    (404, NotFound), (403, NotFound), (401, TransportError), (204, TransportError), (206, TransportError),
    (304, TransportError), (410, TransportError), (429, TransportError), (500, TransportError), (503, TransportError),
])
def test_status_other_than_200_is_refused_at_once_and_not_asked_again(
    server: HostileRegistry, source: WebSource, status: int, error: type[DtrainError]
) -> None:
    server.misbehave("GET", "", Answer(status), times=9)
    with pytest.raises(error, match=f"got {status}") as refused:
        source(url(server))
    assert type(refused.value) is error
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [
    Answer(body=DATA, cut=1000), Answer(body=DATA, cut=0), Answer(body=DATA, length=len(DATA) + 1),
    Answer(headers={"Transfer-Encoding": "chunked"}, body=b"5\r\nhello\r\n", length=-1, cut=99),
    Answer(headers={"Transfer-Encoding": "chunked"}, body=b"zz\r\n", length=-1, cut=99),
])
def test_truncated_body_is_an_error(server: HostileRegistry, source: WebSource, answer: Answer) -> None:
    server.misbehave("GET", "", answer)
    with pytest.raises(Unreachable, match="expected the whole content"):
        list(source(url(server)))


def test_reset_connection_is_unreachable(server: HostileRegistry, source: WebSource) -> None:
    server.misbehave("GET", "", Answer(reset=0))
    with pytest.raises(Unreachable, match="expected an answer"):
        source(url(server))


def test_closed_port_is_unreachable(source: WebSource) -> None:
    with hostile_registry() as gone:
        where = url(gone)
    with pytest.raises(Unreachable, match="expected a connection"):
        source(where)


def test_encoded_content_is_refused(server: HostileRegistry, source: WebSource) -> None:
    server.misbehave("GET", "", Answer(headers={"Content-Encoding": "gzip"}, body=DATA))
    with pytest.raises(TransportError, match="got a Content-Encoding"):
        source(url(server))


@pytest.mark.parametrize("location", ["/other", "other", "//{host}/other", "http://{host}/other"])
def test_redirect_within_the_origin_is_followed(server: HostileRegistry, source: WebSource, location: str) -> None:
    server.misbehave("GET", "^/file$", Answer(302, {"Location": location.format(host=server.host)}))
    server.misbehave("GET", "^/other$", Answer(body=DATA))
    assert b"".join(source(url(server))) == DATA
    assert [seen.path for seen in server.requests] == ["/file", "/other"]


@pytest.mark.parametrize("location", [
    "http://{other}/file", "//{other}/file", "https://{host}/file", "http://localhost:1/file", "file:///etc/passwd",
    "http://user@{host}/file", "http://[/file",
])
def test_redirect_out_of_the_origin_is_refused(server: HostileRegistry, source: WebSource, location: str) -> None:
    with hostile_registry() as other:
        target = location.format(host=server.host, other=other.host)
        server.misbehave("GET", "", Answer(307, {"Location": target}), times=9)
        with pytest.raises(TransportError, match="expected"):
            source(url(server))
        assert len(server.requests) == 1
        assert other.requests == []


def test_redirects_end(server: HostileRegistry, source: WebSource) -> None:
    server.misbehave("GET", "", lambda seen: Answer(302, {"Location": f"{seen.path}x"}), times=99)
    with pytest.raises(TransportError, match="expected at most 5 redirects, got more"):
        source(url(server))
    assert len(server.requests) == 6


def test_dripping_body_is_given_up(
    server: HostileRegistry, source: WebSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b"x" * 100

    clock = itertools.count(0, 7.0)
    monkeypatch.setattr(web, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(web, "CHUNK", 100)
    server.misbehave("GET", "", Answer(body=drip))
    with pytest.raises(Unreachable, match="expected 65536 bytes in 60 s"):
        list(source(url(server)))


def test_servers_of_metadata_and_targets_may_differ(server: HostileRegistry, source: WebSource) -> None:
    def answer(seen: Seen) -> Answer:
        return Answer(body=seen.path.encode())

    with hostile_registry() as other:
        for place in (server, other):
            place.misbehave("GET", "", answer)
        assert b"".join(source(url(server, "/metadata"))) == b"/metadata"
        assert b"".join(source(url(other, "/targets"))) == b"/targets"


def test_tls_is_checked(tmp_path: Path, source: WebSource) -> None:
    pem, context = self_signed(tmp_path)
    with hostile_registry(context) as server:
        server.misbehave("GET", "", Answer(body=DATA))
        where = f"https://{server.host}/file"
        with pytest.raises(Unreachable, match="certificate that can be trusted"):
            source(where)
        with WebSource(RegistrySettings(ca_file=pem)) as trusting:
            assert b"".join(trusting(where)) == DATA


@pytest.mark.parametrize("wrong", ["ftp://127.0.0.1/file", "file:///etc/passwd", "metadata", "http://"])
def test_url_of_another_kind_is_refused(source: WebSource, wrong: str) -> None:
    with pytest.raises(TransportError, match="expected"):
        source(wrong)


def test_error_does_not_show_the_query(server: HostileRegistry, source: WebSource) -> None:
    server.misbehave("GET", "", Answer(500))
    with pytest.raises(TransportError) as refused:
        source(url(server, "/file?signature=s3cret"))
    assert "s3cret" not in str(refused.value)
