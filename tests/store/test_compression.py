"""gzip as other programs write it, and as damage leaves it (docs/format.md 1.5)."""

import gzip
import os
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from histfs.errors import DamagedError
from histfs.store.compression import compress, read_decompressed
from histfs.store.files import WritableTree
from histfs.store.layout import Layout
from histfs.store.records import CompressedFile
from histfs.store.tree import BLOCK_SIZE

TEXT = b"".join(b"line %d\n" % number for number in range(2000))


@pytest.fixture
def read(tmp_path: Path):
    """Reads bytes as those of a file."""

    def read(data: bytes) -> bytes:
        path = tmp_path / "file.gz"
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            blocks = list(read_decompressed(fd))
        finally:
            os.close(fd)
        assert all(0 < len(block) <= BLOCK_SIZE for block in blocks)
        return b"".join(blocks)

    return read


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f", b"\x1f\x8c", TEXT, bytes(3 * BLOCK_SIZE)], ids=range(6))
def test_what_is_not_compressed_is_read_as_it_is(read, data: bytes) -> None:
    """Also under a name in .gz (trap 9): nobody looks at names here."""
    assert read(data) == data


@pytest.mark.parametrize("data", [b"", b"x", TEXT, bytes(5 * BLOCK_SIZE + 3)], ids=range(4))
@pytest.mark.parametrize("level", [0, 1, 9])
def test_one_member(read, data: bytes, level: int) -> None:
    assert read(gzip.compress(data, level)) == data


@pytest.mark.parametrize("padding", [0, 1, 511, 2 * BLOCK_SIZE])
def test_several_members_and_padding(read, padding: int) -> None:
    assert read(gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(b"more") + bytes(padding)) == TEXT + b"more"


def test_padding_between_members(read) -> None:
    assert read(gzip.compress(b"a") + bytes(20) + gzip.compress(b"b")) == b"ab"


def test_thousands_of_members(read) -> None:
    assert read(gzip.compress(b"x") * 30_000) == b"x" * 30_000


def test_a_member_with_all_fields_in_its_header(read, tmp_path: Path) -> None:
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = raw.compress(TEXT) + raw.flush()
    header = b"\x1f\x8b\x08\x1e\0\0\0\0\2\xff" + b"\x04\0AB\0\0" + b"name\xff\0" + b"comment\0"
    header += zlib.crc32(header).to_bytes(4, "little")[:2]
    trailer = zlib.crc32(TEXT).to_bytes(4, "little") + len(TEXT).to_bytes(4, "little")
    assert read(header + body + trailer) == TEXT


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 200, -12, -10, -3])
def test_truncated(read, cut: int) -> None:
    with pytest.raises(DamagedError, match="truncated"):
        read(gzip.compress(TEXT)[:-cut])  # a negative one is what stays


@pytest.mark.parametrize("garbage", [b"x", b"\0\0x", b"\x1f\x8b", b"\x1f", TEXT], ids=range(5))
def test_garbage_after_the_end(read, garbage: bytes) -> None:
    with pytest.raises(DamagedError):
        read(gzip.compress(TEXT) + garbage)


@pytest.mark.parametrize("place", [2, 3, 50, -8, -1])
def test_altered(read, place: int) -> None:
    data = bytearray(gzip.compress(random.Random(1).randbytes(5000)))
    data[place] ^= 0xFF
    with pytest.raises(DamagedError):
        read(bytes(data))


def test_a_bomb_comes_in_small_blocks(read, tmp_path: Path) -> None:
    """A gigabyte from a megabyte; and a reader that has enough may stop."""
    path = tmp_path / "bomb.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    fd = os.open(path, os.O_RDONLY)
    tracemalloc.start()
    try:
        size = sum(len(block) for block in read_decompressed(fd))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(fd)
    assert size == 64 << 20
    assert peak < 4 * BLOCK_SIZE


def test_a_header_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(b"\x1f\x8b\x08\x08" + b"name" * (4 << 20))
    fd = os.open(path, os.O_RDONLY)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="truncated"):
            list(read_decompressed(fd))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(fd)
    assert peak < 4 * BLOCK_SIZE


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_what_is_compressed_is_read_again_by_everybody(blocks: list[bytes]) -> None:
    assert gzip.decompress(b"".join(compress(blocks))) == b"".join(blocks)


# --- compared with zlib ----------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 9), st.sampled_from([300, 70_000])
    ),
    st.builds(
        lambda line, count: line * count, st.sampled_from([b"\0", b"abc ", b"some text\n"]), st.integers(0, 20_000)
    ),
)


@st.composite
def members(draw) -> tuple[bytes, bytes]:
    """A gzip member and its content, with whatever a header may have, deflated in every way."""
    body = draw(bodies)
    deflater = zlib.compressobj(draw(st.sampled_from([0, 1, 6])), zlib.DEFLATED, -15, 9, draw(st.integers(0, 4)))
    flags = draw(st.sampled_from([0, 0, 2, 4, 8, 16, 31]))
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\2\xff"
    if flags & 4:
        extra = draw(st.sampled_from([b"", b"HF\1\0x", bytes(300), bytes(65_535)]))
        header += len(extra).to_bytes(2, "little") + extra
    if flags & 8:
        header += b"name" * draw(st.sampled_from([0, 1, 200])) + b"\0"
    if flags & 16:
        header += b"comment\0"
    if flags & 2:
        header += zlib.crc32(header).to_bytes(4, "little")[:2]
    sums = zlib.crc32(body).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return header + deflater.compress(body) + deflater.flush() + sums + bytes(draw(st.integers(0, 3))), body


@st.composite
def cut_up(draw, data: bytes) -> list[bytes]:
    size = draw(st.sampled_from([1, 7, 100] if len(data) < 5000 else [4096, 10_000, BLOCK_SIZE]))
    return [data[at : at + size] for at in range(0, len(data), size)]


def with_zlib(data: bytes) -> bytes | None:
    """What zlib makes of it; None if it refuses."""
    out = b""
    while data:
        member = zlib.decompressobj(31)
        try:
            out += member.decompress(data)
        except zlib.error:
            return None
        if not member.eof:
            return None
        data = member.unused_data.lstrip(b"\0")
    return out


def with_isal(blocks: list[bytes]) -> bytes | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histfs.store.compression.file_blocks", lambda _fd: iter(blocks))
        try:
            read = list(read_decompressed(-1))
        except DamagedError:
            return None
    assert all(0 < len(block) <= BLOCK_SIZE for block in read)
    return b"".join(read)


@given(st.data(), st.lists(members(), min_size=1, max_size=3))
def test_good_streams_wherever_they_are_cut(data: st.DataObject, members: list[tuple[bytes, bytes]]) -> None:
    stream, body = (b"".join(parts) for parts in zip(*members, strict=True))
    assert with_zlib(stream) == body
    assert with_isal(data.draw(cut_up(stream))) == body


@given(st.data(), st.lists(members(), min_size=1, max_size=3))
def test_mutated_streams(data: st.DataObject, members: list[tuple[bytes, bytes]]) -> None:
    """The same bytes as from zlib, or an error; zlib alone refuses odd trees of codes that lead to the same bytes."""
    stream, body = (bytearray().join(parts) for parts in zip(*members, strict=True))
    near = st.one_of(st.integers(2, min(40, len(stream) - 1)), st.integers(2, len(stream) - 1))
    for place in data.draw(st.lists(st.one_of(near, near.map(lambda n: len(stream) - n)), max_size=3)):
        stream[max(place, 2)] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        del stream[data.draw(near) :]
    expected = with_zlib(bytes(stream))
    assert with_isal(data.draw(cut_up(bytes(stream)))) in ([expected] if expected is not None else [None, body])


@given(bodies, st.binary(max_size=30), st.integers(1, 1000), st.integers(1, 300))
def test_isal_inflates_as_zlib_does(body: bytes, rest: bytes, cut: int, limit: int) -> None:
    """What the reader relies on: `unconsumed_tail` under a limit, and `unused_data` that begins exactly at the end."""
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = deflater.compress(body) + deflater.flush() + rest
    ours, theirs = isal_zlib.decompressobj(-15), zlib.decompressobj(-15)
    limit = max(limit, len(body) // 100)
    for inflater in (ours, theirs):
        out, position, pending = [], 0, b""
        while not inflater.eof:
            pending = pending or stream[position : position + cut]
            position += cut if not inflater.unconsumed_tail else 0
            out.append(inflater.decompress(pending, limit))
            pending = inflater.unconsumed_tail
        assert b"".join(out) == body
        assert max(map(len, out)) <= limit
        assert inflater.unused_data + stream[position:] == rest


def test_isal_has_errors_of_its_own() -> None:
    assert not issubclass(isal_zlib.error, zlib.error)
    with pytest.raises(isal_zlib.error):
        isal_zlib.decompressobj(-15).decompress(b"\xff" * 10)


# --- files of a session ---------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WritableTree]:
    (tmp_path / "rdiff-backup-data").mkdir()
    with WritableTree.open(tmp_path) as tree:
        yield tree


@pytest.fixture
def worker() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_an_empty_file_has_no_gz(tree: WritableTree, worker: Executor, tmp_path: Path) -> None:
    CompressedFile(tree, Layout(), b"error_log", 1_700_000_000, b"data", worker).finish()
    (path,) = (tmp_path / "rdiff-backup-data").iterdir()
    assert (path.name, path.stat().st_size) == ("error_log.2023-11-14T22:13:20Z.data", 0)


@pytest.mark.parametrize(
    "sizes", [[1], [10, 20], [200_000, 1], [128 * 1024], [300_000, 300_000], [100_000] * 60], ids=str
)
def test_a_file_with_content(tree: WritableTree, worker: Executor, tmp_path: Path, sizes: list[int]) -> None:
    file = CompressedFile(tree, Layout(), b"mirror_metadata", 1_700_000_000, b"snapshot", worker)
    for number, size in enumerate(sizes):
        file.write(bytes([number]) * size)
    file.finish()
    (path,) = (tmp_path / "rdiff-backup-data").iterdir()
    assert path.name == "mirror_metadata.2023-11-14T22:13:20Z.snapshot.gz"
    assert gzip.decompress(path.read_bytes()) == b"".join(bytes([n]) * size for n, size in enumerate(sizes))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_given_up_is_closed(tree: WritableTree, worker: Executor) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = CompressedFile(tree, Layout(), b"mirror_metadata", 1_700_000_000, b"snapshot", worker)
    assert not tree.exists(b"rdiff-backup-data/x")  # which keeps the directory open
    file.write(bytes(200_000))
    file.close()
    file.close()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


def test_a_file_that_exists_is_not_overwritten(tree: WritableTree, worker: Executor) -> None:
    for _ in range(2):
        file = CompressedFile(tree, Layout(), b"error_log", 1_700_000_000, b"data", worker)
        file.write(b"x")
        if _:
            with pytest.raises(FileExistsError):
                file.finish()
        else:
            file.finish()
