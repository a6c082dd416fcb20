"""What is read of a version is compared with the SHA1 of the whole: nobody gets all bytes of one that is another.

`reader` gives bytes out in the two ways in which a mount does. The model knows which bytes were given out.
"""

import hashlib
import random
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from tests.rsync_reference import Copy, encode
from tests.test_rsync_maps import parsed

SIZE = 300_000
RECORDED = random.Random(5).randbytes(SIZE)
SHA1 = hashlib.sha1(RECORDED).digest()
LAG = 1 << 20  # HISTFS_LAG
MOST_GIVEN = 256  # HISTFS_MOST_GIVEN


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def never(number: int) -> None:
    raise AssertionError(f"source {number} was to be opened")


class Reader:
    """Reads `data`, which should have the digest `sha1`, in pieces, and knows what it was given."""

    def __init__(self, data: bytes, sha1: bytes, check: rsync.Check | None = None) -> None:
        members = rsync.Members(0)
        extents, _ = parsed(encode([Copy(0, len(data))]))
        self.data = data
        self.check = check or rsync.Check(len(data), sha1)
        sources = {rsync.BASIS: rsync.MapSource(members, memory=data)}
        self._reader = rsync.MapReader(extents, sources, members, self.check)
        self.has = bytearray(len(data))  # 1 for each byte that was given out

    def read(self, offset: int, size: int, *, nowait: bool = False) -> bool:
        """Whether the bytes were given out."""
        size = min(size, len(self.data) - offset)
        piece = bytearray(size)
        self._reader.read(piece, offset, never)
        assert piece == self.data[offset : offset + size]
        is_given = (nowait and self._reader.may_give(size, offset)) or self._reader.settle(piece, offset, never)
        if is_given:
            self.has[offset : offset + size] = b"\1" * size
        return is_given

    @property
    def has_all(self) -> bool:
        return 0 not in self.has


OFFSETS = st.one_of(st.integers(0, SIZE - 1), st.sampled_from([0, 65_536, 131_072, SIZE - 1, SIZE - 4096]))
SIZES = st.one_of(st.integers(1, SIZE), st.sampled_from([1, 4096, 65_536, 131_072]))
READS = st.lists(st.tuples(OFFSETS, SIZES, st.booleans()), max_size=40)


@given(READS)
def test_what_is_right_is_never_refused(reads: list[tuple[int, int, bool]]) -> None:
    reader = Reader(RECORDED, SHA1)
    for offset, size, nowait in reads:
        assert reader.read(offset, size, nowait=nowait)
        assert reader.check.verdict is (True if reader.has_all else None)


@given(READS, st.one_of(st.integers(0, SIZE - 1), st.sampled_from([0, SIZE - 1])), st.integers(1, 131_072))
def test_of_what_is_wrong_nobody_gets_all(reads: list[tuple[int, int, bool]], at: int, step: int) -> None:
    reader = Reader(flipped(RECORDED, at), SHA1)
    in_order = [(offset, step, False) for offset in range(0, SIZE, step)] if step > 2000 else [(0, SIZE, False)]
    were_refused = False
    for offset, size, nowait in [*reads, *in_order]:
        is_refused = not reader.read(offset, size, nowait=nowait)
        assert is_refused or not were_refused  # for ever
        were_refused = is_refused
        assert not reader.has_all
        assert reader.check.verdict is (False if were_refused else None)
    assert were_refused  # as all was asked for


@pytest.mark.parametrize("step", [1000, 65_536, 131_072, SIZE])
@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
def test_the_read_that_fills_the_last_gap_is_refused_and_all_that_follow(step: int, order: str) -> None:
    reader = Reader(flipped(RECORDED, SIZE // 2), SHA1)
    offsets = list(range(0, SIZE, step))
    if order == "backward":
        offsets.reverse()
    elif order == "mixed":
        random.Random(1).shuffle(offsets)
    *others, last = offsets
    assert all(reader.read(offset, step) for offset in others)
    assert reader.check.verdict is None
    assert not reader.read(last, step)
    assert reader.check.verdict is False
    assert not any(reader.read(offset, step, nowait=nowait) for offset in offsets for nowait in (True, False))


def test_reads_here_and_there_cost_no_sum_and_may_be_forgotten() -> None:
    """The one in the beginning and the one at the end never are, nor is what is read in order afterwards."""
    size = 4 << 20
    data = flipped(random.Random(6).randbytes(size), size // 2)
    reader = Reader(data, SHA1)
    kept = [*range(4096, size - 8192, 8192), size - 1000]  # which the kernel does not ask for again
    assert len(kept) > MOST_GIVEN
    assert all(reader.read(offset, 1000) for offset in kept)
    between = zip([0, *(offset + 1000 for offset in kept)], kept, strict=False)
    given_out = [reader.read(start, end - start) for start, end in between]
    assert given_out == [True] * (len(given_out) - 1) + [False]


def test_who_may_not_wait_leaves_the_sum_to_others() -> None:
    size = 4 << 20
    data = random.Random(7).randbytes(size)
    reader = Reader(data, hashlib.sha1(data).digest())
    piece = bytearray(65_536)
    given_out = 0
    while reader._reader.may_give(len(piece), given_out):
        given_out += len(piece)
    assert given_out == LAG
    assert reader.read(given_out, len(piece))  # sums all
    given_out += len(piece)
    assert reader._reader.may_give(len(piece), given_out)
    assert not reader._reader.may_give(size, 0)  # the last
    assert reader.read(0, size)
    assert reader._reader.may_give(size, 0)
    assert reader.check.verdict is True


def test_a_check_is_shared_by_openings_of_a_version() -> None:
    check = rsync.Check(SIZE, SHA1)
    wrong = flipped(RECORDED, 0)
    assert Reader(wrong, SHA1, check).read(0, SIZE - 1)
    assert not Reader(wrong, SHA1, check).read(SIZE - 1, 1)
    assert not Reader(wrong, SHA1, check).read(5, 1)
    with pytest.raises(rsync.ParameterError):
        Reader(b"other", SHA1, check)
    with pytest.raises(rsync.ParameterError):
        rsync.Check(SIZE, SHA1[1:])


def test_a_gap_is_taken_for_what_the_kernel_kept_where_all_was_read_before() -> None:
    check = rsync.Check(SIZE, SHA1, is_again=True)
    reader = Reader(flipped(RECORDED, 100_000), SHA1, check)
    assert reader.read(0, 70_000)
    assert reader.read(140_000, 70_000)
    assert not reader.read(210_000, SIZE)


def test_where_a_source_is_closed_it_is_opened_for_the_sum() -> None:
    members = rsync.Members(0)
    extents, _ = parsed(encode([Copy(0, SIZE)]))
    place = rsync.MapSource(members)
    reader = rsync.MapReader(extents, {rsync.BASIS: place}, members, rsync.Check(SIZE, SHA1))
    asked = []

    def give_up(number: int) -> None:
        asked.append(number)
        raise OSError(5, "gone")

    half = SIZE // 2
    assert reader.settle(RECORDED[half:], half, give_up)  # there is nothing to sum yet
    with pytest.raises(OSError, match="gone"):
        reader.settle(RECORDED[:half], 0, give_up)
    assert asked == [rsync.BASIS]


def in_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("is_in_order", [True, False])
def test_many_threads(is_right: bool, is_in_order: bool) -> None:
    size = 24 << 20  # so that some lag behind
    data = random.Random(8).randbytes(size)
    sha1 = hashlib.sha1(data if is_right else flipped(data, size - 1)).digest()
    for seed in range(4):
        check = rsync.Check(size, sha1)
        readers = [Reader(data, sha1, check) for _ in range(6)]
        pieces = [(offset, 131_072) for offset in range(0, size, 131_072)]
        if not is_in_order:
            random.Random(seed).shuffle(pieces)
        left = pieces[::-1]

        def work(number: int, left: list[tuple[int, int]] = left, readers: list[Reader] = readers) -> None:
            chance = random.Random(number)
            with suppress(IndexError):
                while True:
                    readers[number].read(*left.pop(), nowait=chance.random() < 0.3)

        in_threads(work, len(readers))
        together = [any(given_out) for given_out in zip(*(reader.has[::4096] for reader in readers), strict=True)]
        assert all(together) == is_right
        assert check.verdict is is_right
