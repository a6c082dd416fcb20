"""Reading through maps: the same bytes wherever they lie, whoever else reads, and none that are damaged."""

import errno
import os
import random
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from tests.maps_reference import BASIS
from tests.rsync_reference import Copy, Literal, encode
from tests.test_rsync_maps import apply, chains, parsed

CHANCE = random.Random(7)
DATA = bytes(CHANCE.choices(b"abcdefgh", k=50_000))


class Packed:
    """`data` as gzip members of `piece` bytes each."""

    def __init__(self, data: bytes, piece: int) -> None:
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        packed = [zlib.compress(piece, 6, 31) for piece in pieces]
        self.content = b"".join(packed)
        self.offsets = array("Q", accumulate(map(len, packed), initial=0))
        self.raw_offsets = array("Q", accumulate(map(len, pieces), initial=0))

    def source(self, members: rsync.Members) -> rsync.MapSource:
        return rsync.MapSource.of_members(members, self.offsets, self.raw_offsets)


@contextmanager
def stored(content: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def never(number: int) -> None:
    raise AssertionError(f"source {number} was to be opened")


def map_of(*commands: Copy | Literal) -> rsync.ExtentMap:
    return parsed(encode(commands))[0]


def whole(size: int) -> rsync.ExtentMap:
    return map_of(Copy(0, size))


def read(reader: rsync.MapReader, size: int, offset: int = 0, open_source=never) -> bytes:
    buffer = bytearray(size)
    reader.read(buffer, offset, open_source)
    return bytes(buffer)


KINDS = ("memory", "file", "members", "late file", "late members")


class Sources:
    """The same bytes by number as `data` has them, each in its own way; what is late is opened when it is needed."""

    def __init__(self, data: dict[int, bytes], kinds: dict[int, str], members: rsync.Members, piece: int) -> None:
        self._files = ExitStack()
        self._late: dict[int, int] = {}
        self.opened: list[int] = []
        self.places: dict[int, rsync.MapSource] = {}
        for number, content in data.items():
            kind = kinds[number] if content else "memory"
            if kind == "memory":
                self.places[number] = rsync.MapSource(members, memory=content)
                continue
            packed = Packed(content, piece)
            fd = self._files.enter_context(stored(packed.content if "members" in kind else content))
            place = packed.source(members) if "members" in kind else rsync.MapSource(members)
            if kind == "file":
                place = rsync.MapSource(members, fd=fd)
            elif kind == "members":
                assert place.lend(os.dup(fd))
            else:
                self._late[number] = fd
            self.places[number] = place

    def open(self, number: int) -> None:
        assert self.places[number].lend(os.dup(self._late[number]))
        self.opened.append(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for place in self.places.values():
            place.close_idle()
        with suppress(OSError):  # what was given with its descriptor is closed
            self._files.close()


@given(chains(), st.data())
def test_the_bytes_are_the_same_wherever_they_lie(chain, data):
    basis, deltas = chain
    version, contents, composed = basis, {BASIS: basis}, None
    for number, delta in enumerate(deltas, 1):
        version = apply(version, delta)
        extents, contents[number] = parsed(delta, number)
        composed = extents if composed is None else extents.compose(composed)
    kinds = {number: data.draw(st.sampled_from(KINDS)) for number in contents}
    members = rsync.Members(data.draw(st.sampled_from([0, 20, 10_000])))
    with Sources(contents, kinds, members, data.draw(st.integers(1, 30))) as sources:
        reader = rsync.MapReader(composed, sources.places, members)
        for _ in range(3):
            offset = data.draw(st.integers(0, len(version)))
            size = data.draw(st.integers(0, len(version) - offset))
            buffer = bytearray(size)
            assert not reader.read_nowait(buffer, offset) or buffer == version[offset : offset + size]
            assert read(reader, size, offset, sources.open) == version[offset : offset + size]
        assert len(sources.opened) == len(set(sources.opened))
        assert members.size_bytes <= 10_000


# --- members ---------------------------------------------------------------------------------------------------------


def test_members_are_kept_up_to_a_size_and_the_ones_used_last():
    members = rsync.Members(25_000)
    packed = Packed(DATA, 10_000)
    with stored(packed.content) as fd:
        place = packed.source(members)
        assert place.lend(os.dup(fd))
        reader = rsync.MapReader(whole(len(DATA)), {BASIS: place}, members)
        for offset, kept in ((0, 10_000), (10_000, 20_000), (5, 20_000), (20_000, 20_000)):
            assert read(reader, 10, offset) == DATA[offset : offset + 10]
            assert members.size_bytes == kept
        assert place.close_idle()
        assert read(reader, 10_000) == DATA[:10_000]  # which was used after the second one
        assert read(reader, 10_000, 20_000) == DATA[20_000:30_000]
        with pytest.raises(AssertionError, match="opened"):
            read(reader, 1, 10_000)
        members.clear()
        assert members.size_bytes == 0
        with pytest.raises(AssertionError, match="opened"):
            read(reader, 1)


def test_versions_share_members_of_one_source():
    members = rsync.Members(1 << 20)
    packed = Packed(DATA, 10_000)
    with stored(packed.content) as fd:
        place = packed.source(members)
        assert place.lend(os.dup(fd))
        first = rsync.MapReader(whole(len(DATA)), {BASIS: place}, members)
        assert read(first, len(DATA)) == DATA
        assert place.close_idle()
        del first
        second = rsync.MapReader(map_of(Copy(1000, 20_000)), {BASIS: place}, members)
        assert read(second, 20_000) == DATA[1000:21_000]


def damage(packed: Packed, how: str) -> bytes:
    data = bytearray(packed.content)
    start, end = packed.offsets[1], packed.offsets[2]
    at = {"magic": start, "method": start + 2, "flags": start + 3, "CRC": end - 8, "length": end - 4}.get(how, end - 20)
    data[at] ^= 1 << 4
    return bytes(data)


@pytest.mark.parametrize("how", ["magic", "method", "flags", "CRC", "length", "body"])
def test_a_damaged_member_gives_no_byte(how):
    members = rsync.Members(1 << 20)
    packed = Packed(DATA, 10_000)
    with stored(damage(packed, how)) as fd:
        place = packed.source(members)
        assert place.lend(os.dup(fd))
        reader = rsync.MapReader(whole(len(DATA)), {BASIS: place}, members)
        for _ in range(2):
            with pytest.raises(rsync.CorruptError):
                read(reader, 1, 10_000)
            assert not reader.read_nowait(bytearray(1), 10_000)
        assert read(reader, 10_000) == DATA[:10_000]
        assert read(reader, 30_000, 20_000) == DATA[20_000:]
        assert place.close_idle()


@given(st.integers(0, 255), st.data())
def test_any_flipped_byte_is_noticed_or_without_effect(value, data):
    content = DATA[:300]
    packed = Packed(content, 100)
    flipped = bytearray(packed.content)
    flipped[data.draw(st.integers(0, len(flipped) - 1))] = value
    members = rsync.Members(0)
    with stored(bytes(flipped)) as fd:
        place = packed.source(members)
        assert place.lend(os.dup(fd))
        reader = rsync.MapReader(whole(300), {BASIS: place}, members)
        with suppress(rsync.CorruptError):
            assert read(reader, 300) == content
        assert place.close_idle()


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_table_that_does_not_fit_the_file(change):
    members = rsync.Members(1 << 20)
    packed = Packed(DATA, 10_000)
    for number in range(1, len(packed.offsets)):
        packed.offsets[number] += -1 if change == "shorter" else 1
    with stored(packed.content) as fd:
        place = packed.source(members)
        assert place.lend(os.dup(fd))
        reader = rsync.MapReader(whole(len(DATA)), {BASIS: place}, members)
        for offset in range(0, 50_000, 10_000):
            with pytest.raises((rsync.CorruptError, rsync.InputEndedError)):
                read(reader, 10, offset)
        assert place.close_idle()


def test_a_member_that_is_shorter_than_gzip_can_be():
    members = rsync.Members(0)
    place = rsync.MapSource.of_members(members, array("Q", [0, 17]), array("Q", [0, 5]))
    with stored(b"x" * 17) as fd:
        assert place.lend(os.dup(fd))
        with pytest.raises(rsync.CorruptError):
            read(rsync.MapReader(whole(5), {BASIS: place}, members), 5)
        assert place.close_idle()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_source_that_is_too_short_is_noticed():
    members = rsync.Members(0)
    extents = map_of(Copy(5, 6))
    with stored(b"0123456789") as fd:
        for place in (rsync.MapSource(members, fd=fd), rsync.MapSource(members, memory=b"0123456789")):
            reader = rsync.MapReader(extents, {BASIS: place}, members)
            assert read(reader, 5) == b"56789"
            with pytest.raises(rsync.InputEndedError):
                read(reader, 6)
            assert not reader.read_nowait(bytearray(6), 0)
    gone = rsync.MapReader(extents, {BASIS: rsync.MapSource(members, fd=fd)}, members)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        read(gone, 5)
    assert caught.value.errno == errno.EBADF


def test_more_than_the_version_has_is_a_mistake():
    members = rsync.Members(0)
    reader = rsync.MapReader(whole(3), {BASIS: rsync.MapSource(members, memory=b"abc")}, members)
    assert read(reader, 0, 3) == b""
    for size, offset in ((4, 0), (1, 3), (1, 2**63)):
        with pytest.raises(rsync.ParameterError):
            read(reader, size, offset)
    without = rsync.MapReader(whole(3), {}, members)
    with pytest.raises(rsync.ParameterError):
        read(without, 1)


def test_reading_without_waiting():
    data = random.Random(1).randbytes(100_000)
    members = rsync.Members(0)
    extents = map_of(*(Copy(i * 100, 50) for i in range(1000)))
    with stored(data) as fd:
        os.pread(fd, len(data), 0)
        reader = rsync.MapReader(extents, {BASIS: rsync.MapSource(members, fd=fd)}, members)
        buffer = bytearray(500)
        if not reader.read_nowait(buffer, 0):
            pytest.skip("the file system of temporary files has no RWF_NOWAIT")
        assert buffer == b"".join(data[i * 100 : i * 100 + 50] for i in range(10))
        assert not reader.read_nowait(bytearray(50_000), 0)  # too many reads for somebody in a hurry
        assert len(read(reader, 50_000)) == 50_000


def test_a_few_members_are_inflated_for_somebody_in_a_hurry():
    members = rsync.Members(1 << 20)
    packed = Packed(DATA, 5000)
    with stored(packed.content) as fd:
        os.pread(fd, len(packed.content), 0)
        place = packed.source(members)
        reader = rsync.MapReader(whole(len(DATA)), {BASIS: place}, members)
        buffer = bytearray(5000)
        assert not reader.read_nowait(buffer, 0)  # it is not open
        assert place.lend(os.dup(fd))
        if not reader.read_nowait(buffer, 0):
            pytest.skip("the file system of temporary files has no RWF_NOWAIT")
        assert buffer == DATA[:5000]
        assert not reader.read_nowait(bytearray(50_000), 0)
        assert read(reader, len(DATA)) == DATA
        assert reader.read_nowait(bytearray(50_000), 0)
        assert place.close_idle()


def test_a_buffer_must_be_writable():
    members = rsync.Members(0)
    reader = rsync.MapReader(whole(1), {BASIS: rsync.MapSource(members, memory=b"x")}, members)
    with pytest.raises(BufferError):
        reader.read(b"x", 0, never)


def test_tables_must_fit_each_other():
    members = rsync.Members(0)
    for offsets, raw_offsets in (([], []), ([0], [0]), ([0, 1], [0]), ([0, 1], [0, 1, 2])):
        with pytest.raises(rsync.ParameterError):
            rsync.MapSource.of_members(members, array("Q", offsets), array("Q", raw_offsets))


def test_what_opening_raises_passes_through_and_reading_goes_on_later():
    members = rsync.Members(0)
    place = rsync.MapSource(members)
    reader = rsync.MapReader(whole(3), {BASIS: place}, members)

    def fail(number: int) -> None:
        raise KeyError(number)

    with pytest.raises(KeyError):
        read(reader, 3, 0, fail)
    with stored(b"abc") as fd:
        assert read(reader, 3, 0, lambda number: place.lend(os.dup(fd))) == b"abc"
        other = os.dup(fd)
        assert not place.lend(other)
        os.close(other)
        assert place.close_idle()
        assert place.close_idle()


def test_threads_read_close_and_open_at_the_same_time():
    members = rsync.Members(30_000)
    packed = Packed(DATA, 5000)
    failures: list[object] = []
    with stored(packed.content) as fd, stored(DATA) as plain_fd:
        places = {BASIS: packed.source(members), 1: rsync.MapSource(members)}
        files = {BASIS: fd, 1: plain_fd}
        older = map_of(*(Copy((i * 7919) % 40_000, 1000) for i in range(100)))
        readers = {number: rsync.MapReader(older, {BASIS: place}, members) for number, place in places.items()}

        def open_source(number: int) -> None:
            copy = os.dup(files[number])
            if not places[number].lend(copy):
                os.close(copy)

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(300):
                number, at = chance.randrange(2), chance.randrange(99)
                data = read(readers[number], 1500, at * 1000, lambda _, number=number: open_source(number))
                start, following = (at * 7919) % 40_000, ((at + 1) * 7919) % 40_000
                if data != DATA[start : start + 1000] + DATA[following : following + 500]:
                    failures.append(at)
                places[number].close_idle()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        assert all(place.close_idle() for place in places.values())
    assert not failures
