"""Bytes against the descriptor that named them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import pytest

from dtrain.errors import DigestMismatch
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.digest import Digest
from dtrain.oci.verified import VerifiedReader, read_verified

DATA = b"results of hop 2" * 1000
WANT = Descriptor.of(DATA, "text/plain")


def test_read_verified_returns_the_bytes() -> None:
    assert read_verified(io.BytesIO(DATA), WANT) == DATA
    assert read_verified(io.BytesIO(), Descriptor.of(b"", "text/plain")) == b""


def test_read_verified_knows_sha512() -> None:
    want = replace(WANT, digest=Digest("sha512", hashlib.sha512(DATA).hexdigest()))
    assert read_verified(io.BytesIO(DATA), want) == DATA
    with pytest.raises(DigestMismatch):
        read_verified(io.BytesIO(DATA[::-1]), want)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"X" + DATA[1:], "expected sha256:"),
        (DATA[:-1] + b"X", "expected sha256:"),
        (DATA[:-1], "expected 16000 bytes, got 15999"),
        (b"", "expected 16000 bytes, got 0"),
        (DATA + b"X", "expected 16000 bytes, got more"),
    ],
)
@pytest.mark.parametrize("step", [7, 16000, -1])
def test_reader_refuses_other_bytes_however_it_is_read(data: bytes, words: str, step: int) -> None:
    reader = VerifiedReader(io.BytesIO(data), WANT)
    with pytest.raises(DigestMismatch, match=words):
        list(iter(lambda: reader.read(step), b""))
    with pytest.raises(DigestMismatch, match=words):
        reader.read(step)  # trying again makes it no better
    with pytest.raises(DigestMismatch, match=words):
        reader.verify()


def test_reader_stops_an_endless_source_at_the_size() -> None:
    class Endless:
        served = 0

        def read(self, size: int = -1, /) -> bytes:
            self.served += size
            return b"0" * size

        def close(self) -> None:
            pass

    source = Endless()
    with pytest.raises(DigestMismatch, match="got more"), VerifiedReader(source, WANT) as reader:
        reader.read()
    assert source.served <= 2**21


def test_leaving_the_block_reads_and_checks_the_rest() -> None:
    with VerifiedReader(io.BytesIO(DATA), WANT) as reader:
        assert reader.read(10) == DATA[:10]
    with pytest.raises(DigestMismatch), VerifiedReader(io.BytesIO(DATA[:-1] + b"X"), WANT) as reader:
        reader.read(10)


def test_an_error_in_the_block_is_not_hidden_and_closes_the_source() -> None:
    source = io.BytesIO(b"other")
    with pytest.raises(KeyError), VerifiedReader(source, WANT):
        raise KeyError("mine")
    assert source.closed


def test_reader_works_below_a_buffer() -> None:
    with io.BufferedReader(VerifiedReader(io.BytesIO(DATA), WANT)) as stream:
        assert stream.read(20) == DATA[:20]
        assert stream.read() == DATA[20:]
