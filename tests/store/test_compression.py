"""gzip as other programs write it, and as damage leaves it (docs/format.md 1.5)."""

import gzip
import os
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_what_is_compressed_is_read_again_by_everybody(blocks: list[bytes]) -> None:
    assert gzip.decompress(b"".join(compress(blocks))) == b"".join(blocks)


# --- files of a session ---------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WritableTree]:
    (tmp_path / "rdiff-backup-data").mkdir()
    with WritableTree.open(tmp_path) as tree:
        yield tree


def test_an_empty_file_has_no_gz(tree: WritableTree, tmp_path: Path) -> None:
    CompressedFile(tree, Layout(), b"error_log", 1_700_000_000, b"data").finish()
    (path,) = (tmp_path / "rdiff-backup-data").iterdir()
    assert (path.name, path.stat().st_size) == ("error_log.2023-11-14T22:13:20Z.data", 0)


@pytest.mark.parametrize("sizes", [[1], [10, 20], [200_000, 1], [128 * 1024], [300_000, 300_000]], ids=str)
def test_a_file_with_content(tree: WritableTree, tmp_path: Path, sizes: list[int]) -> None:
    file = CompressedFile(tree, Layout(), b"mirror_metadata", 1_700_000_000, b"snapshot")
    for number, size in enumerate(sizes):
        file.write(bytes([number]) * size)
    file.finish()
    (path,) = (tmp_path / "rdiff-backup-data").iterdir()
    assert path.name == "mirror_metadata.2023-11-14T22:13:20Z.snapshot.gz"
    assert gzip.decompress(path.read_bytes()) == b"".join(bytes([n]) * size for n, size in enumerate(sizes))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_given_up_is_closed(tree: WritableTree) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = CompressedFile(tree, Layout(), b"mirror_metadata", 1_700_000_000, b"snapshot")
    assert not tree.exists(b"rdiff-backup-data/x")  # which keeps the directory open
    file.write(bytes(200_000))
    file.close()
    file.close()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


def test_a_file_that_exists_is_not_overwritten(tree: WritableTree) -> None:
    for _ in range(2):
        file = CompressedFile(tree, Layout(), b"error_log", 1_700_000_000, b"data")
        file.write(b"x")
        if _:
            with pytest.raises(FileExistsError):
                file.finish()
        else:
            file.finish()
