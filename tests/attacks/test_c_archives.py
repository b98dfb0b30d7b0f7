"""Groups C1 to C5: hostile layer tars and compressed streams, at the reader and at the merged tree."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Callable

import pytest
import zstandard

from dtrain.errors import DigestMismatch, DtrainError, UnsafeArchive
from dtrain.oci import media_types
from dtrain.oci.descriptor import Descriptor
from dtrain.oci.layer import Kind, LayerContents, read_layer
from dtrain.oci.tree import Tree, merge
from dtrain.oci.verified import VerifiedReader
from dtrain.train import paths

TAR, GZIP, ZSTD = media_types.OCI_LAYER, media_types.OCI_LAYER_GZIP, media_types.OCI_LAYER_ZSTD
REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CODE = "opt/pht_train/"
END = b"\0" * 1024


def member(name: str | bytes, kind: bytes = REG, data: bytes = b"", link: str = "", mode: int = 0o644) -> bytes:
    """Return one raw member; a name of bytes goes into the header as it is."""
    info = tarfile.TarInfo("x" if isinstance(name, bytes) else name)
    info.type, info.size, info.linkname, info.mode = kind, len(data), link, mode
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    if isinstance(name, bytes):
        head[:100] = name.ljust(100, b"\0")
        head[148:156] = b"        "
        head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + b"\0" * (-len(data) % 512)


def pax(records: dict[str, str], *, kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        body += str(length).encode() + record
    return member("pax", kind, body)


def read(raw: bytes, media_type: str = TAR) -> LayerContents:
    spool = tempfile.TemporaryFile()  # noqa: SIM115  entries read from it later
    blob = VerifiedReader(io.BytesIO(raw), Descriptor.of(raw, media_type))
    return read_layer(blob, media_type, wanted=paths.decides_train, spool=spool)


def tree(*layers: bytes) -> Tree:
    return merge([read(layer + END) for layer in layers])


def contents(found: Tree) -> dict[str, bytes | None]:
    return {entry.path: found.read(entry).read() if entry.kind is Kind.FILE else None for entry in found.walk("opt")
            if entry.kind is not Kind.DIRECTORY}


@pytest.mark.parametrize("name", [
    CODE + "a\\b", b"opt/pht_train/\xff", CODE + "n" * 256, CODE + "/".join(["d" * 200] * 25), CODE + "file/",
])
def test_c1_names_that_a_train_cannot_have(name: str | bytes) -> None:
    with pytest.raises(UnsafeArchive):
        tree(member(name, data=b"x"))


@pytest.mark.parametrize("name", ["../opt/pht_train/x", "x/../opt/pht_train/x", "opt/../opt/.wh.pht_train"])
def test_c1_dotdot_that_ends_in_the_train(name: str) -> None:
    with pytest.raises(UnsafeArchive, match=r"got one with \.\."):
        read(member(name, data=b"x") + END)


@pytest.mark.parametrize("name", ["opt/pht_train/../../etc/x", "../x"])
def test_c1_dotdot_elsewhere(name: str) -> None:
    """It counts as something outside the train, which no layer above the base may hold."""
    found = read(member(name, data=b"x") + END)
    assert (found.entries, found.first_other) == ((), name)


@pytest.mark.parametrize("name", ["/opt/pht_train/x", "./opt/pht_train/x", "opt//pht_train/./x", ".//opt/pht_train/x"])
def test_c1_spellings_that_runtimes_take_for_one_path_are_one_path(name: str) -> None:
    assert contents(tree(member(name, data=b"new"))) == {"opt/pht_train/x": b"new"}
    with pytest.raises(UnsafeArchive, match="got it twice"):
        tree(member(name, data=b"a") + member("opt/pht_train/x", data=b"b"))


def test_c1_nul_in_an_extended_name() -> None:
    with pytest.raises(UnsafeArchive):
        tree(pax({"path": "opt/pht_train/a\0b"}) + member("opt/pht_train/a", data=b"x"))


def test_c1_case_twins_are_two_files() -> None:
    assert contents(tree(member(CODE + "A", data=b"1") + member(CODE + "a", data=b"2"))) == {
        CODE + "A": b"1", CODE + "a": b"2"}


def test_c2_member_below_a_link() -> None:
    for order in (1, -1):
        parts = [member(CODE + "d", SYM, link="/etc"), member(CODE + "d/passwd", data=b"x")][::order]
        with pytest.raises(UnsafeArchive):
            tree(b"".join(parts))
    with pytest.raises(UnsafeArchive, match="expected a folder above it, got the symbolic link"):
        tree(member(CODE + "d", SYM, link="/etc"), member(CODE + "d/passwd", data=b"x"))
    with pytest.raises(UnsafeArchive, match="expected a folder above it, got the symbolic link /opt"):
        tree(member("opt", SYM, link="/etc"), member(CODE + "x", data=b"x"))


@pytest.mark.parametrize("target", ["etc/shadow", "/etc/shadow", "../../etc/shadow", CODE + "none", "opt/pht_train"])
def test_c2_hard_link_out_of_the_train(target: str) -> None:
    with pytest.raises(UnsafeArchive):
        tree(member(CODE, DIR) + member(CODE + "a", LNK, link=target))


def test_c2_hard_link_inside_the_train_is_the_file_itself() -> None:
    assert contents(tree(member(CODE + "a", data=b"x"), member(CODE + "b", LNK, link=CODE + "a"))) == {
        CODE + "a": b"x", CODE + "b": b"x"}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_c3_special_files_are_kept_as_what_they_are(kind: bytes) -> None:
    """Whoever reads a train from the tree refuses them by name (test_c2_c3 in group A)."""
    entry = tree(member(CODE + "a", kind)).get(CODE + "a")
    assert entry is not None
    assert entry.kind in (Kind.DEVICE, Kind.FIFO)


@pytest.mark.parametrize("raw", [
    pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}) + member(CODE + "a", data=b"x"),
    member(CODE + "a", tarfile.GNUTYPE_SPARSE), member(CODE + "a", b"M"), member(CODE + "a", b"V"),
])
def test_c3_sparse_and_multi_volume_members(raw: bytes) -> None:
    with pytest.raises(UnsafeArchive):
        tree(raw)


@pytest.mark.parametrize("raw", [
    pax({"comment": "x" * (2**20 + 1)}), member("l", tarfile.GNUTYPE_LONGNAME, b"n" * (2**16 + 1)),
    member("l", tarfile.GNUTYPE_LONGLINK, b"n" * (2**16 + 1)),
])
def test_c3_huge_extended_headers(raw: bytes) -> None:
    with pytest.raises(UnsafeArchive, match="at most"):
        tree(raw + member(CODE + "a", data=b"x"))


def test_c3_extended_names_are_honoured_and_cannot_hide_a_path() -> None:
    assert contents(tree(pax({"path": CODE + "é"}) + member("usr/bin/x", data=b"1"))) == {CODE + "é": b"1"}
    assert contents(tree(member("l", tarfile.GNUTYPE_LONGNAME, (CODE + "g").encode() + b"\0")
                         + member("usr/bin/x", data=b"1"))) == {CODE + "g": b"1"}


EVIL = member("usr/bin/python", data=b"evil")
KEY = "opt/user_sym_key.key"  # a path that a hop may change and nothing signs


@pytest.mark.parametrize("raw", [
    pax({"path": KEY}, kind=tarfile.XGLTYPE) + EVIL,
    pax({"path": KEY}) + pax({"mtime": "1"}) + EVIL,
    pax({"path": KEY}) + pax({"comment": "x"}, kind=tarfile.XGLTYPE) + EVIL,
    pax({"path": KEY}) + member("l", tarfile.GNUTYPE_LONGNAME, b"usr/bin/python\0") + member("x", data=b"evil"),
    member("l", tarfile.GNUTYPE_LONGNAME, b"usr/bin/python\0") + pax({"path": KEY}) + member("x", data=b"evil"),
    pax({"size": "512"}, kind=tarfile.XGLTYPE) + EVIL,
])
def test_c3_names_that_tar_readers_read_differently(raw: bytes) -> None:
    """dtrain would see a path of the train where Go's archive/tar, and so the runtimes, see /usr/bin/python."""
    with pytest.raises(UnsafeArchive):
        tree(raw)


def test_c3_prefix_of_a_header_that_has_none() -> None:
    """Only POSIX headers have a prefix; tarfile joins it to GNU ones too, and would hide a whiteout of /etc."""
    head = bytearray(member(".wh.etc"))
    head[345:345 + 15] = b"opt/pht_results"
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    assert read(bytes(head) + END).first_other == ".wh.etc"


def test_c3_name_is_cut_at_nul_as_the_runtimes_cut_it() -> None:
    raw = member("l", tarfile.GNUTYPE_LONGNAME, (CODE + "x\0/../../../usr").encode()) + member("y", data=b"1")
    assert contents(tree(raw)) == {CODE + "x": b"1"}


def test_c3_old_headers_whose_name_says_folder() -> None:
    """Type NUL with a slash at the end is a folder without content, wherever the name comes from."""
    inner = member("usr/bin/python", data=b"evil")
    outer = member("x", tarfile.AREGTYPE, inner)
    found = read(pax({"path": "usr/share/"}) + outer + END)
    assert found.first_other == "usr/share/"
    assert read(pax({"path": CODE + "d/"}) + outer + END).first_other == "usr/bin/python"


def test_c3_old_sparse_files_of_a_base_image_are_passed_over() -> None:
    head = bytearray(member("var/log/lastlog", tarfile.GNUTYPE_SPARSE, b"data"))
    head[482] = 1
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head[:512])
    raw = bytes(head[:512]) + b"\0" * 512 + bytes(head[512:]) + member(CODE + "a", data=b"x")
    assert contents(tree(raw)) == {CODE + "a": b"x"}


def test_c3_setuid_bits_are_seen() -> None:
    entry = tree(member(CODE + "a", data=b"x", mode=0o4755)).get(CODE + "a")
    assert entry is not None
    assert entry.mode == 0o4755


@pytest.mark.parametrize("marker", ["opt/.wh..wh..opq", CODE + ".wh..wh..opq", ".wh..wh..opq", CODE + ".wh.old"])
@pytest.mark.parametrize("first", [True, False])
def test_c4_whiteout_hides_lower_layers_only_wherever_it_stands(marker: str, first: bool) -> None:
    parts = [member(marker), member(CODE + "new", data=b"new")]
    upper = b"".join(parts if first else parts[::-1])
    assert contents(tree(member(CODE + "old", data=b"old"), upper)) == {CODE + "new": b"new"}


@pytest.mark.parametrize("marker", [".wh.opt", "opt/.wh.pht_train", CODE + ".wh.new"])
@pytest.mark.parametrize("first", [True, False])
def test_c4_whiteout_and_the_file_itself_in_one_layer(marker: str, first: bool) -> None:
    """The specification says the file stays; runtimes go by the order in the tar."""
    parts = [member(marker), member(CODE + "new", data=b"new")]
    with pytest.raises(UnsafeArchive, match="or its whiteout in a layer, got both"):
        tree(member(CODE + "old", data=b"old"), b"".join(parts if first else parts[::-1]))


def test_c4_whiteout_of_the_config() -> None:
    assert tree(member("opt/train_config.json", data=b"{}"), member("opt/.wh.train_config.json")).get(
        "opt/train_config.json") is None


def test_c4_member_twice_in_one_layer() -> None:
    with pytest.raises(UnsafeArchive, match="got it twice"):
        tree(member(CODE + "a", data=b"1") + member(CODE + "a", data=b"2"))
    with pytest.raises(UnsafeArchive, match="got it twice"):
        tree(member(CODE + "a", data=b"1") + member(CODE + "a", SYM, link="/etc"))


def test_c4_file_in_place_of_a_folder_hides_what_was_below() -> None:
    assert contents(tree(member(CODE + "d/x", data=b"1"), member(CODE + "d", data=b"2"))) == {CODE + "d": b"2"}
    with pytest.raises(UnsafeArchive):
        tree(member(CODE + "d/x", data=b"1") + member(CODE + "d", data=b"2"))


HONEST = member(CODE + "a", data=b"x") + END


@pytest.mark.parametrize(("media_type", "pack"), [
    (GZIP, lambda raw: gzip.compress(raw) + b"garbage"),
    (GZIP, lambda raw: gzip.compress(raw)[:-9]),
    (GZIP, lambda raw: gzip.compress(raw)[:-8] + b"\0" * 8),
    (ZSTD, lambda raw: zstandard.compress(raw) + b"garbage"),
    (ZSTD, lambda raw: zstandard.compress(raw)[:-3]),
    (TAR, lambda raw: raw + b"garbage"),
    (TAR, lambda raw: raw[:-1024 - 100]),
    (TAR, lambda raw: raw[:512]),
    (TAR, lambda raw: raw[:300]),
    (TAR, lambda raw: b"\0" * 512 + raw),
    (TAR, gzip.compress), (GZIP, lambda raw: raw), (GZIP, zstandard.compress), (ZSTD, gzip.compress),
    (TAR, lambda raw: b"not a tar" * 100),
])
def test_c5_streams_that_two_readers_could_read_differently(media_type: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnsafeArchive):
        read(pack(HONEST), media_type)


@pytest.mark.parametrize(("media_type", "pack"), [
    (TAR, lambda raw: raw), (TAR, lambda raw: raw + b"\0" * 8192), (GZIP, gzip.compress), (ZSTD, zstandard.compress),
    (GZIP, lambda raw: gzip.compress(raw[:700]) + gzip.compress(raw[700:])),
    (ZSTD, lambda raw: zstandard.compress(raw[:700]) + zstandard.compress(raw[700:])),
])
def test_c5_honest_forms_are_read_alike(media_type: str, pack: Callable[[bytes], bytes]) -> None:
    assert contents(merge([read(pack(HONEST), media_type)])) == {CODE + "a": b"x"}


@pytest.mark.parametrize("media_type", [GZIP, ZSTD])
def test_c5_decompression_bomb(media_type: str) -> None:
    size = 200 * 2**20
    head = member("usr/zeros")  # its size is put in below
    info = tarfile.TarInfo("usr/zeros")
    info.size = size
    head = info.tobuf(tarfile.GNU_FORMAT)
    zeros = (b"\0" * 2**20 for _ in range(size // 2**20))
    if media_type == GZIP:
        packer = zlib.compressobj(9, wbits=31)
        raw = packer.compress(head) + b"".join(packer.compress(part) for part in zeros) + packer.flush()
    else:
        stream = zstandard.ZstdCompressor().compressobj()
        raw = stream.compress(head) + b"".join(stream.compress(part) for part in zeros) + stream.flush()
    with pytest.raises(UnsafeArchive, match="decompression bomb"):
        read(raw, media_type)


def test_c5_size_that_differs_from_the_declared_one() -> None:
    blob = VerifiedReader(io.BytesIO(HONEST + b"\0" * 512), Descriptor.of(HONEST, TAR))
    with pytest.raises(DigestMismatch):
        read_layer(blob, TAR, wanted=paths.decides_train, spool=tempfile.TemporaryFile())  # noqa: SIM115


def test_c5_layer_that_is_stored_elsewhere() -> None:
    with pytest.raises(DtrainError):
        read(HONEST, media_types.DOCKER_FOREIGN_LAYER)
