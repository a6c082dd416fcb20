"""The delta back from a large file: right whatever changed, and small where little did."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs.store import delta as delta_module
from histfs.store.delta import make_delta
from tests import rsync_reference as reference
from tests.rsync_reference import Copy, Literal

CHANCE = random.Random(4)
MiB = 1 << 20
IMAGE = CHANCE.randbytes(3 * MiB + 1000)


def delta_of(old: bytes, new: bytes) -> bytes:
    with tempfile.TemporaryFile(buffering=0) as one, tempfile.TemporaryFile(buffering=0) as other:
        one.write(old)
        other.write(new)
        return b"".join(make_delta(one.fileno(), other.fileno()))


def check(old: bytes, new: bytes) -> list[Copy | Literal]:
    """That the delta leads back, for two readers; its commands."""
    delta = delta_of(old, new)
    assert b"".join(rsync.patch(new, delta, len(old))) == old
    assert reference.apply(new, delta, len(old)) == old
    return list(reference.parse(delta))


def literal_bytes(commands: list[Copy | Literal]) -> int:
    return sum(len(command.data) for command in commands if isinstance(command, Literal))


def overwritten(image: bytes, *places: int, size: int = 100) -> bytes:
    new = bytearray(image)
    for place in places:
        new[place : place + size] = CHANCE.randbytes(size)
    return bytes(new)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Notes when a signature is made."""
    made: list[object] = []
    real: Callable[..., rsync.Signature] = rsync.Signature.of
    monkeypatch.setattr(rsync.Signature, "of", lambda *arguments: (made.append(arguments), real(*arguments))[1])
    return made


def test_nothing_changed(searches: list[object]) -> None:
    assert check(IMAGE, IMAGE) == [Copy(0, len(IMAGE))]
    assert searches == []


def test_a_change_costs_its_pages(searches: list[object]) -> None:
    commands = check(IMAGE, overwritten(IMAGE, 0, 100_000, 2 * MiB - 50, len(IMAGE) - 100))
    assert literal_bytes(commands) <= 6 * 4096
    assert len(commands) == 7
    assert searches == []


@pytest.mark.parametrize("to", [2 * MiB, 2 * MiB + 77, 0])
def test_a_file_that_was_cut(to: int) -> None:
    assert literal_bytes(check(IMAGE, IMAGE[:to])) <= len(IMAGE) - to + 4096


def test_a_file_that_grew(searches: list[object]) -> None:
    assert check(IMAGE, IMAGE + b"more") == [Copy(0, len(IMAGE))]
    assert searches == []


@pytest.mark.parametrize("probes", [0, 1])
def test_what_moved_is_found(searches: list[object], monkeypatch: pytest.MonkeyPatch, probes: int) -> None:
    """Inserted before, cut out, or taken to another place: with one signature of all, unless it lies just behind."""
    monkeypatch.setattr(delta_module, "_MOST_PROBES", probes)
    for new in (
        IMAGE[:MiB] + b"inserted" + IMAGE[MiB:],
        IMAGE[:MiB] + IMAGE[MiB + 5000 :],
        IMAGE[2 * MiB :] + IMAGE[: 2 * MiB],
    ):
        searches.clear()
        assert literal_bytes(check(IMAGE, new)) <= 5000
        assert len(searches) == (0 if probes and len(new) > len(IMAGE) else 1)


@pytest.mark.parametrize("near", [100_000, 8 * MiB])
def test_what_seems_to_have_moved_has_not(searches: list[object], monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    """What is looked for is there many times, and what follows it is something else."""
    monkeypatch.setattr(delta_module, "_NEAR", near)
    probe = IMAGE[MiB + 4096 : MiB + 4096 + 64]
    lures = b"".join(probe + CHANCE.randbytes(1000) for _ in range(300))
    commands = check(IMAGE, IMAGE[:MiB] + lures + IMAGE[MiB:])
    assert literal_bytes(commands) <= 5000
    assert len(searches) == 1


def test_a_file_that_is_all_different_is_not_looked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = delta_module._Search._inserted

    def inserted(search: delta_module._Search, start: int, shift: int) -> Any:
        looked.append(start)
        return real(search, start, shift)

    monkeypatch.setattr(delta_module._Search, "_inserted", inserted)
    check(IMAGE, CHANCE.randbytes(len(IMAGE)))
    assert 0 < len(looked) <= 4


def test_the_place_of_a_change_is_met_exactly() -> None:
    inserted, cut = b"in the middle", 70_001
    there = IMAGE[: MiB + 33] + inserted + IMAGE[MiB + 33 :]
    assert check(IMAGE, there) == [Copy(0, MiB + 33), Copy(MiB + 33 + len(inserted), len(IMAGE) - MiB - 33)]
    without = IMAGE[: MiB + 33] + IMAGE[MiB + 33 + cut :]
    assert literal_bytes(check(IMAGE, without)) == cut
    (before, literal, after) = check(IMAGE, overwritten(IMAGE, MiB + 33, size=10))
    assert isinstance(literal, Literal)
    assert len(literal.data) <= 10
    assert isinstance(before, Copy)
    assert isinstance(after, Copy)


@pytest.mark.parametrize(("same", "is_cut"), [(1, False), (15, False), (16, True), (200, True)])
def test_what_is_the_same_by_chance_stays_in_its_page(same: int, is_cut: bool) -> None:
    """A reader of the page needs one place in the place of three, of which two would have a byte each."""
    size = delta_module.block_len(len(IMAGE))  # less than a page, in a file of this size
    page = slice(10 * size, 11 * size)
    new = bytearray(IMAGE)
    new[page] = bytes(byte ^ 0xFF for byte in IMAGE[page])
    new[page.start : page.start + same] = IMAGE[page.start : page.start + same]
    new[page.stop - same : page.stop] = IMAGE[page.stop - same : page.stop]
    [literal] = [command for command in check(IMAGE, bytes(new)) if isinstance(command, Literal)]
    expected = slice(page.start + same, page.stop - same) if is_cut else page
    assert literal.data == IMAGE[expected]


def test_changes_behind_an_insertion_cost_their_pages(searches: list[object]) -> None:
    places = [100_000, 500_000, 900_000, 2 * MiB]
    commands = check(IMAGE, b"inserted" + overwritten(IMAGE, *places, size=4096))
    assert literal_bytes(commands) <= len(places) * 4096
    assert len(searches) == 1


@pytest.mark.parametrize("repeated", [bytes(3000), CHANCE.randbytes(1500) * 2])
def test_what_is_repeated_everywhere_hides_nothing(repeated: bytes) -> None:
    """Pages that are equal at any shift, and others between them that tell which is right."""
    image = b"".join(CHANCE.randbytes(5192) + repeated for _ in range(300))
    for new in (
        image[:99] + CHANCE.randbytes(8192) + image[99:],
        image[300_000:] + image[:300_000],
        image[:MiB] + image[MiB + 8192 :],
        overwritten(image, *range(0, len(image), 200_000), size=4096),
    ):
        assert literal_bytes(check(image, new)) <= 13 * 4096


def test_long_and_short_stretches(searches: list[object]) -> None:
    places = [100_000, 500_000, 900_000, 2 * MiB]
    new = bytearray(overwritten(IMAGE, *places))
    new[MiB : MiB + 200_000] = CHANCE.randbytes(200_000)
    new[2 * MiB + 300_000 : 2 * MiB + 600_000] = IMAGE[:300_000]
    commands = check(IMAGE, bytes(new))
    assert literal_bytes(commands) < 6 * 4096 + 500_000 + 10_000
    assert len(searches) == 1


def test_a_small_file_is_the_business_of_librsync() -> None:
    old, new = IMAGE[:200_000], overwritten(IMAGE[:200_000], 100_000, size=1)
    assert literal_bytes(check(old, new)) < 1000


@pytest.mark.parametrize("size", [0, 1, 100])
def test_small_and_large(size: int) -> None:
    check(IMAGE[:size], IMAGE)
    check(IMAGE, IMAGE[:size])


@given(st.data())
def test_any_edits(data: st.DataObject) -> None:
    old = new = data.draw(st.binary(min_size=50, max_size=400))
    for _ in range(data.draw(st.integers(0, 4))):
        start, end = sorted(data.draw(st.integers(0, len(new))) for _ in range(2))
        new = new[:start] + data.draw(st.one_of(st.binary(max_size=80), st.just(new[start:end]))) + new[end:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_module, "_LARGE", 1)
        patch.setattr(delta_module, "_PAGE", 8)
        patch.setattr(delta_module, "_LONG", 40)
        patch.setattr(delta_module, "_MOST_WAITING_BYTES", data.draw(st.sampled_from([1, 40, 200])))
        patch.setattr(delta_module, "_EQUAL_PER_DIFFERENT", data.draw(st.sampled_from([1, 4, 100])))
        patch.setattr(delta_module, "BLOCK_SIZE", 64)
        patch.setattr(delta_module, "block_len", lambda _: 8)
        check(old, new)


SMALL = CHANCE.randbytes(20_000)


@pytest.mark.parametrize("at", [0, 5, 16, 9000, 19_950, 19_999, 20_000])
@pytest.mark.parametrize(("removed", "inserted"), [(0, 0), (0, 40), (40, 0), (30, 40), (1, 0)])
def test_one_place_of_a_small_file(at: int, removed: int, inserted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no signature, and no more than what was there."""
    monkeypatch.setattr(rsync, "small_delta", None)
    new = SMALL[:at] + CHANCE.randbytes(inserted) + SMALL[at + removed :]
    commands = check(SMALL, new)
    assert literal_bytes(commands) <= removed + 2 * 16
    assert len(commands) <= 3


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 64, 100, 5000, 65_535])
@pytest.mark.parametrize("old", [b"", b"x", SMALL[:100], bytes(5000), IMAGE[:65_535]])
def test_small_files_that_have_little_in_common(old: bytes, size: int) -> None:
    check(old, CHANCE.randbytes(size))
    check(old, old[:size] + old[size // 2 :])


@given(
    st.lists(st.sampled_from([b"a", b"b", bytes(20), SMALL[:70]]), max_size=40).map(b"".join),
    st.lists(st.sampled_from([b"a", b"b", bytes(20), SMALL[:70]]), max_size=40).map(b"".join),
)
def test_small_files_made_of_the_same(old: bytes, new: bytes) -> None:
    check(old, new)


def test_a_small_delta_is_that_of_the_jobs() -> None:
    for parameters in (rsync.SignatureParameters(64, 32), rsync.SignatureParameters(16, 8, rsync.Magic.RK_MD4)):
        new = overwritten(SMALL, 50, 7000, 19_990)
        made = b"".join(rsync.delta(rsync.Signature.of(new, parameters), SMALL))
        assert rsync.small_delta(new, SMALL, parameters) == made


def test_a_small_delta_that_fails_is_made_by_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(rsync, "small_delta", lambda *arguments: calls.append(arguments))
    check(SMALL, overwritten(SMALL, 50, 7000))
    assert len(calls) == 1


def test_files_are_read_from_their_beginning() -> None:
    with tempfile.TemporaryFile(buffering=0) as one, tempfile.TemporaryFile(buffering=0) as other:
        one.write(IMAGE)
        other.write(IMAGE)
        os.lseek(one.fileno(), 1000, os.SEEK_SET)
        assert list(reference.parse(b"".join(make_delta(one.fileno(), other.fileno())))) == [Copy(0, len(IMAGE))]
