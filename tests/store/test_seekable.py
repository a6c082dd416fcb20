"""gzip with random access: the same bytes for every reader, and never wrong ones (docs/format.md 13)."""

import gzip
import io
import itertools
import os
import random
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip

from histfs import rsync
from histfs.errors import DamagedError
from histfs.store.compression import Seekable, compress_seekable, read_decompressed
from histfs.store.format import seekable as seekable_format
from histfs.store.tree import BLOCK_SIZE
from tests.rsync_reference import Copy, Literal, encode

RANDOM = random.Random(1).randbytes(3 * BLOCK_SIZE)
TEXT = b"".join(b"line %d of %d\n" % (number, number * 7919) for number in range(40_000))
CONTENTS = {
    "text": TEXT,
    "random": RANDOM,
    "mixed": TEXT[: BLOCK_SIZE - 5000] + RANDOM[: 2 * BLOCK_SIZE + 5000] + TEXT,
    "zeros": bytes(5 * BLOCK_SIZE),
    "one byte more than a block": TEXT[: BLOCK_SIZE + 1],
}
contents = pytest.mark.parametrize("raw", CONTENTS.values(), ids=CONTENTS.keys())


def pack(raw: bytes) -> bytes:
    return b"".join(compress_seekable([raw]))


def as_file(data: bytes) -> int:
    """A descriptor that reads `data`; close it."""
    fd = os.memfd_create("seekable")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@pytest.fixture
def opened() -> Iterator[Callable[[bytes], Seekable | None]]:
    fds = []

    def open_(data: bytes) -> Seekable | None:
        fds.append(as_file(data))
        return Seekable.open(fds[-1])

    yield open_
    for fd in fds:
        os.close(fd)


def pread(data: bytes, size: int, offset: int) -> bytes:
    """A part of the content, by the index of the file `data`."""
    fd = as_file(data)
    try:
        return pread_open(fd, size, offset)
    finally:
        os.close(fd)


def pread_open(fd: int, size: int, offset: int) -> bytes:
    """CorruptError, InputEndedError."""
    seekable = Seekable.open(fd)
    assert seekable is not None
    return pread_by(seekable, fd, size, offset)


def pread_by(seekable: Seekable, fd: int, size: int, offset: int) -> bytes:
    members = rsync.Members(0)
    place = rsync.MapSource.of_members(members, seekable.offsets, seekable.raw_offsets)
    whole = rsync.ExtentMap.of_commands(b"rs\x026" + struct.pack(">BQQ", 0x54, 0, seekable.raw_bytes) + b"\0", 1)
    buffer = bytearray(max(0, min(size, seekable.raw_bytes - offset)))
    try:
        assert place.lend(os.dup(fd))
        rsync.MapReader(whole, {rsync.BASIS: place}, members).read(buffer, min(offset, seekable.raw_bytes), pytest.fail)
        return bytes(buffer)
    finally:
        assert place.close_idle()


def raw_lengths(seekable: Seekable) -> set[int]:
    """Of all members but the last."""
    return {end - start for start, end in itertools.pairwise(seekable.raw_offsets[:-1])}


def inflate(data: bytes) -> bytes:
    fd = as_file(data)
    try:
        return b"".join(read_decompressed(fd))
    finally:
        os.close(fd)


# --- everybody reads it ---------------------------------------------------------------------------------------------


@contents
def test_every_reader_of_gzip_sees_the_content_alone(raw: bytes, tmp_path: Path) -> None:
    packed = pack(raw)
    path = tmp_path / "file.gz"
    path.write_bytes(packed)
    assert inflate(packed) == raw
    assert gzip.decompress(packed) == raw
    assert gzip.GzipFile(fileobj=io.BytesIO(packed)).read() == raw
    assert igzip.decompress(packed) == raw
    for command in (["gzip", "-dc"], ["zcat"]):
        done = subprocess.run([*command, path], capture_output=True, check=True)
        assert (done.stdout == raw, done.stderr) == (True, b"")
    assert subprocess.run(["gzip", "-tv", path], capture_output=True, check=True).stderr.endswith(b"OK\n")


@given(st.lists(st.one_of(st.binary(max_size=10), st.integers(0, 300_000).map(bytes)), max_size=5))
def test_any_blocks_are_read_again(blocks: list[bytes]) -> None:
    raw = b"".join(blocks)
    packed = b"".join(compress_seekable(blocks))
    assert inflate(packed) == gzip.decompress(packed) == raw
    fd = as_file(packed)
    seekable = Seekable.open(fd)
    assert (seekable is None) == (len(raw) <= BLOCK_SIZE)
    assert seekable is None or pread_by(seekable, fd, len(raw), 0) == raw
    os.close(fd)


@pytest.mark.parametrize(
    "raw", [b"", b"x", TEXT[:BLOCK_SIZE], RANDOM[:BLOCK_SIZE]], ids=["empty", "x", "text", "random"]
)
def test_what_is_small_is_one_plain_member(raw: bytes, opened) -> None:
    packed = pack(raw)
    inflater = zlib.decompressobj(31)
    assert inflater.decompress(packed) == raw
    assert (inflater.eof, inflater.unused_data, packed[3]) == (True, b"", 0)
    assert opened(packed) is None


@contents
def test_it_is_hardly_larger_than_one_member(raw: bytes) -> None:
    assert len(pack(raw)) < 1.02 * len(zlib.compress(raw, 6, 31)) + 1000


def test_what_is_stored_is_hardly_longer() -> None:
    assert len(RANDOM) < len(pack(RANDOM)) < 1.001 * len(RANDOM) + 200


@pytest.mark.parametrize("size", [1024, 1500, 4096])
@pytest.mark.parametrize("before", [0, 256, 1000, 4096])
def test_noise_between_what_is_none_is_stored(before: int, size: int) -> None:
    """But for up to a cell of 256 bytes at each of its ends. The text around it is compressed as without it."""
    rng = random.Random(6)
    noise = [rng.randbytes(size + 512) for _ in range(8)]
    raw = b"".join(part for number in range(8) for part in (TEXT[:before], noise[number]))
    packed = pack(raw)
    assert gzip.decompress(packed) == raw
    assert all(part[256 : 256 + size] in packed for part in noise)
    assert len(packed) < sum(map(len, noise)) + len(zlib.compress(TEXT[:before], 6)) + 8 * 150 + 100
    assert len(packed) < 1.01 * len(zlib.compress(raw, 6, 31)) + 100


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), max_size=100))
def test_any_mixture_is_read_again(parts: list[tuple[bool, int]]) -> None:
    raw = b"".join((RANDOM if is_noise else TEXT)[at : at + size] for at, (is_noise, size) in enumerate(parts))
    assert gzip.decompress(pack(raw)) == raw


def test_members_are_small_where_literals_are_scattered(opened) -> None:
    """And as large as a block where they are not."""
    assert raw_lengths(opened(pack(RANDOM))) == raw_lengths(opened(pack(TEXT))) == {BLOCK_SIZE}
    pages = [RANDOM[at : at + 4096] for at in range(0, len(RANDOM), 4096)]
    scattered = encode([command for n, page in enumerate(pages) for command in (Literal(page), Copy(n * 9000, 4096))])
    together = encode([Literal(RANDOM), Copy(0, 10_000)])
    seekable = opened(b"".join(compress_seekable([scattered], commands=True)))
    assert raw_lengths(seekable) == {32 * 1024}
    assert raw_lengths(opened(b"".join(compress_seekable([together], commands=True)))) == {BLOCK_SIZE}


# --- random access --------------------------------------------------------------------------------------------------


@contents
def test_every_part_of_it(raw: bytes, opened) -> None:
    packed = pack(raw)
    assert opened(packed).raw_bytes == len(raw)
    rng = random.Random(2)
    edges = [0, 1, 64 * 1024, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, len(raw) - 1, len(raw), len(raw) + 5]
    for offset in edges + [rng.randrange(len(raw)) for _ in range(30)]:
        for size in (0, 1, 4096, BLOCK_SIZE + 1, len(raw), 2**40):
            assert pread(packed, size, offset) == raw[offset : offset + size]


def test_a_large_index_takes_two_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: one of which the end alone is within reach of the first."""
    monkeypatch.setattr("histfs.store.compression._TAIL_BYTES", seekable_format.END_BYTES)
    assert pread(pack(TEXT), 100, 300_000) == TEXT[300_000:300_100]


# --- the commands of a delta ----------------------------------------------------------------------------------------


def delta(old: bytes, new: bytes) -> bytes:
    signature = rsync.Signature.of([new], rsync.recommend(block_len=64))
    return b"".join(rsync.delta(signature, [old]))


def without_literals(delta: bytes) -> bytes:
    commands = rsync.CommandFilter()
    left = commands.feed(delta)
    commands.finish()
    return left


def test_the_commands_are_in_the_index(opened) -> None:
    raw = delta(TEXT[:5000] + RANDOM + TEXT[4000:], TEXT)
    packed = b"".join(compress_seekable([raw], commands=True))
    seekable = opened(packed)
    assert seekable.commands == seekable.commands == without_literals(raw)
    assert pread(packed, len(raw), 0) == inflate(packed) == gzip.decompress(packed) == raw


def test_a_version_is_read_by_the_commands_and_single_members(opened) -> None:
    old = TEXT[:5000] + RANDOM + TEXT[4000:]
    packed = b"".join(compress_seekable([delta(old, TEXT)], commands=True))
    seekable = opened(packed)
    extents = rsync.ExtentMap.of_commands(seekable.commands, 1)
    assert extents.size_bytes == len(old)
    rng = random.Random(5)
    for offset in [0, len(old) - 1, *(rng.randrange(len(old)) for _ in range(100))]:
        parts = [
            TEXT[start : start + size] if source == rsync.BASIS else pread(packed, size, start)
            for source, start, size in extents.resolve(offset, 4096)
        ]
        assert b"".join(parts) == old[offset : offset + 4096]


def test_many_commands_take_several_members(opened) -> None:
    """And a reader who has nothing of the index at hand, as it is longer than the tail."""
    rng = random.Random(3)
    pieces = [rng.randbytes(64) for _ in range(40_000)]
    old = b"".join(piece + b"literal" for piece in rng.sample(pieces, len(pieces)))
    raw = delta(old, b"".join(pieces))
    packed = b"".join(compress_seekable([raw], commands=True))
    assert packed.count(b"HF\xfb\xff") >= 1  # a part of 65,531 bytes
    seekable = opened(packed)
    assert seekable.commands == without_literals(raw)
    assert inflate(packed) == raw


def test_without_a_delta_there_are_none(opened) -> None:
    assert opened(pack(TEXT)).commands is None


@pytest.mark.parametrize("name", ["MAX_PAYLOAD_BYTES", "MAX_COMMANDS_BYTES"])
def test_too_many_commands_are_left_out(opened, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(seekable_format, name, 1000)
    raw = delta(RANDOM + b"".join(TEXT[n : n + 100] for n in range(len(TEXT) - 300, 0, -170)), TEXT)
    assert len(without_literals(raw)) > 10_000
    packed = b"".join(compress_seekable([raw], commands=True))
    seekable = opened(packed)
    assert seekable.commands is None
    assert pread(packed, len(raw), 0) == inflate(packed) == raw


@pytest.mark.parametrize(("name", "limit"), [("MAX_MEMBERS", 2), ("MAX_PAYLOAD_BYTES", 10)])
def test_a_giant_has_no_index(opened, monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    monkeypatch.setattr(seekable_format, name, limit)
    packed = pack(TEXT)
    assert opened(packed) is None
    assert inflate(packed) == TEXT


# --- damage ---------------------------------------------------------------------------------------------------------

SMALL = TEXT[: BLOCK_SIZE + 200]
PACKED = pack(SMALL)
INDEX_BYTES = len(PACKED) - PACKED.index(b"\x1f\x8b\x08\x04")


def check_never_wrong(data: bytes) -> None:
    """Whoever reads `data` gets a DamagedError or the right bytes; fewer where exactly whole members are missing."""
    with suppress(DamagedError):
        assert SMALL.startswith(inflate(data))
    fd = as_file(data)
    try:
        seekable = Seekable.open(fd)
        if seekable is None:
            return
        assert seekable.raw_bytes == len(SMALL)
        assert seekable.commands is None
        for offset in (0, BLOCK_SIZE):
            with suppress(rsync.CorruptError):
                assert pread_by(seekable, fd, 200, offset) == SMALL[offset : offset + 200]
    finally:
        os.close(fd)


def test_every_altered_byte_of_the_index() -> None:
    for place in range(len(PACKED) - INDEX_BYTES, len(PACKED)):
        for bit in (0x01, 0x10, 0x80):
            altered = bytearray(PACKED)
            altered[place] ^= bit
            check_never_wrong(bytes(altered))
            fd = as_file(bytes(altered))
            assert Seekable.open(fd) is None
            os.close(fd)


def test_altered_bytes_of_the_members() -> None:
    last_member = PACKED.rindex(b"\x1f\x8b\x08\0")
    # From 2 on: without the magic it is not compressed.
    places = [*range(2, 30), *range(300, len(PACKED) - INDEX_BYTES, 97), *range(last_member, len(PACKED) - INDEX_BYTES)]
    for place in places:
        altered = bytearray(PACKED)
        altered[place] ^= 0x10
        check_never_wrong(bytes(altered))


def test_every_truncation() -> None:
    for length in [*range(2, len(PACKED) - INDEX_BYTES, 997), *range(len(PACKED) - INDEX_BYTES - 50, len(PACKED))]:
        check_never_wrong(PACKED[:length])
        fd = as_file(PACKED[:length])
        assert Seekable.open(fd) is None
        os.close(fd)


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 10, PACKED + b"\0", PACKED + PACKED, gzip.compress(b"x") + PACKED, PACKED + gzip.compress(b"x")],
    ids=["empty", "short", "padded", "twice", "after another", "before another"],
)
def test_what_was_made_of_it_has_no_index(opened, data: bytes) -> None:
    assert opened(data) is None


def test_a_file_that_shrinks_under_its_reader_is_damaged() -> None:
    fd = as_file(PACKED)
    seekable = Seekable.open(fd)
    assert seekable is not None
    os.ftruncate(fd, 1000)
    for offset in (0, BLOCK_SIZE):
        with pytest.raises((rsync.CorruptError, rsync.InputEndedError)):
            pread_by(seekable, fd, 1, offset)
    os.close(fd)


def forged(members: list[tuple[bytes, int]], **changes: int) -> bytes:
    """A file whose index says what the caller wants, with all sums right."""
    lengths = seekable_format.array("I", [len(member) for member, _ in members])
    raw_lengths = seekable_format.array("I", [length for _, length in members])
    table = zlib.compress(seekable_format.format_table(lengths, raw_lengths))
    index = seekable_format.Index(sum(lengths), len(members), len(table), 0, 0)._replace(**changes)
    return b"".join(member for member, _ in members) + seekable_format.format_index(index, table)


MEMBER = gzip.compress(b"x" * 1000, mtime=0)


@pytest.mark.parametrize(
    "member",
    [
        (MEMBER, 999),
        (MEMBER, 1001),
        (MEMBER + MEMBER, 1000),
        (MEMBER + MEMBER, 2000),
        (MEMBER + b"\0", 1000),
        (MEMBER[:-8] + b"x" + MEMBER[-8:], 1000),
        (MEMBER[:-9] + MEMBER[-8:], 1000),
        (b"x" * 30, 1000),
        (b"x", 1000),
        (MEMBER[:3] + b"\x08" + MEMBER[4:10] + b"name\0" + MEMBER[10:], 1000),
        (zlib.compress(bytes(50 << 20), 9, 31), 1000),
    ],
    ids=range(11),
)
def test_an_index_that_lies_is_noticed_when_the_member_is_read(member: tuple[bytes, int]) -> None:
    with pytest.raises(rsync.CorruptError):
        pread(forged([member]), 1, 0)


@pytest.mark.parametrize("changes", [{"member_count": 2}, {"member_count": 1 << 20}, {"table_bytes": 0}])
def test_an_index_that_contradicts_itself_is_none(opened, changes: dict[str, int]) -> None:
    assert opened(forged([(MEMBER, 1000)], **changes)) is None


@pytest.mark.parametrize("size", [99, 101, seekable_format.MAX_COMMANDS_BYTES])
def test_commands_of_another_length_are_none(opened, size: int) -> None:
    table = zlib.compress(
        seekable_format.format_table(seekable_format.array("I", [len(MEMBER)]), seekable_format.array("I", [1000]))
    )
    commands = zlib.compress(bytes(100))
    index = seekable_format.Index(len(MEMBER), 1, len(table), len(commands), size)
    forgery = MEMBER + seekable_format.format_index(index, table + commands)
    assert opened(forgery).commands is None
    assert pread(forgery, 1000, 0) == b"x" * 1000


# --- memory ---------------------------------------------------------------------------------------------------------


def test_writing_and_reading_take_little_memory() -> None:
    fd = os.memfd_create("packed")
    rng = random.Random(4)
    blocks = (rng.randbytes(100_000) + bytes(100_000) for _ in range(160))
    tracemalloc.start()
    try:
        for packed in compress_seekable(blocks):
            os.write(fd, packed)
        seekable = Seekable.open(fd)
        assert seekable is not None
        assert seekable.raw_bytes == 32_000_000
        for offset in range(0, seekable.raw_bytes, 1_000_000):
            assert len(pread_by(seekable, fd, 4096, offset)) == 4096
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(fd)
    assert peak < 12 * BLOCK_SIZE
