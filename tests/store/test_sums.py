"""Sums of large files: what they call the same is the same, and only what they do not is read of the old content."""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histfs._tree import ffi, lib
from histfs.errors import SourceError
from histfs.store import copying, delta, direct, growing
from histfs.store.files import WritableTree
from histfs.store.format import sums as format_of_sums
from histfs.store.format.sums import BLOCK_BYTES, KEY_BYTES, SUM_BYTES, Header, expanded, format_header, parse_header
from histfs.store.layout import OWN
from histfs.store.regress import regress
from histfs.store.remove import remove_paths
from histfs.store.repository import Repository
from histfs.store.source import Found, Source
from histfs.store.sums import SUMS, BlockSums, KnownSums, Sums, tidy
from tests.store.cloning import imitated_clone
from tests.store.places import open_descriptors
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build

OLD_SHA1, NEW_SHA1 = b"ab" * 20, b"cd" * 20


# --- the sums themselves --------------------------------------------------------------------------------------------


def sums_of(key: bytes, data: bytes, block: int) -> bytes:
    """As the format has them, in Python."""
    words = [int.from_bytes(key[at : at + 8], "little") for at in range(0, len(key), 8)]
    sums = b""
    for start in range(0, len(data), block):
        part = data[start : start + block]
        part += bytes(-len(part) % 16)
        message = [int.from_bytes(part[at : at + 8], "little") for at in range(0, len(part), 8)]
        added = [(m + k) % 2**64 for m, k in zip(message, words, strict=False)]
        total = sum(a * b for a, b in zip(added[::2], added[1::2], strict=True)) % 2**128
        sums += total.to_bytes(16, "little")
    return sums


def computed(key: bytes, data: bytes, block: int) -> bytes:
    sums = bytearray(-(-len(data) // block) * SUM_BYTES)
    lib.histfs_block_sums(key, ffi.from_buffer(data), len(data), block, ffi.from_buffer(sums))
    return bytes(sums)


@settings(deadline=None)
@given(
    seed=st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
    data=st.binary(max_size=700),
    block=st.sampled_from([16, 64, 256]),
)
def test_sums_are_what_the_format_says(seed: bytes, data: bytes, block: int) -> None:
    key = expanded(seed)[:block]
    assert computed(key, data, block) == sums_of(key, data, block)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, bytes(64), b"\xff" * 64])
def test_sums_that_overflow(data: bytes) -> None:
    assert computed(b"\xff" * 64, data, 64) == sums_of(b"\xff" * 64, data, 64)


def test_a_block_of_real_size() -> None:
    key, data = expanded(b"k" * KEY_BYTES), random.Random(1).randbytes(3 * BLOCK_BYTES - 5)
    assert len(key) == BLOCK_BYTES
    assert computed(key, data, BLOCK_BYTES) == sums_of(key, data, BLOCK_BYTES)


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WritableTree]:
    (tmp_path / "d").mkdir()
    with WritableTree.open(tmp_path) as tree:
        tree.make_directories(OWN)
        yield tree


def summed(
    tree: WritableTree, data: bytes, sha1: bytes, old: tuple[bytes, int] = (b"", 0), at_once: int = BLOCK_BYTES
) -> BlockSums:
    """The sums of the new content `data` of `d/image`, not yet kept or dropped."""
    sums = Sums(tree).begin(b"d/image", *old, len(data))
    for at in range(0, len(data), at_once):
        sums.add(data[at : at + at_once], at)
    return sums


def kept(tree: WritableTree, data: bytes, sha1: bytes = OLD_SHA1) -> None:
    tree.write_file(b"d/image", [data])
    summed(tree, data, sha1).keep(sha1, len(data))


EDITS = st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=20)), max_size=5)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(0, 300_000), new_size=st.integers(0, 300_000), edits=EDITS, zeros=st.booleans())
def test_what_differs_is_told(
    tmp_path_factory: pytest.TempPathFactory, size: int, new_size: int, edits: list[tuple[int, bytes]], zeros: bool
) -> None:
    """In blocks; also where one content ends, whatever the other one has there."""
    old = bytes(size) if zeros else random.Random(size).randbytes(size)
    new = bytearray(old[:new_size].ljust(new_size, b"\0"))
    for at, data in edits:
        new[at : at + len(data)] = data[: max(0, new_size - at)]
    place = tmp_path_factory.mktemp("sums")
    (place / "d").mkdir()
    with WritableTree.open(place) as tree:
        tree.make_directories(OWN)
        kept(tree, old)
        sums = summed(tree, bytes(new), NEW_SHA1, (OLD_SHA1, size), 4 * BLOCK_BYTES)
        assert sums.knows_old
        told = {at // BLOCK_BYTES for start, end in sums.differing(0, new_size) for at in range(start, end, 4096)}
        wanted = {
            number
            for number in range(-(-new_size // BLOCK_BYTES))
            if old[number * BLOCK_BYTES :][:BLOCK_BYTES] != new[number * BLOCK_BYTES :][:BLOCK_BYTES]
        }
        assert told == wanted
        for start, end in ((new_size // 3, new_size // 2), (0, min(1, new_size)), (new_size, new_size)):
            some = list(sums.differing(start, end))
            assert all(start <= first < last <= end for first, last in some)
            here = {at // BLOCK_BYTES for first, last in some for at in range(first, last)}
            assert here == {
                number
                for number in wanted
                if number * BLOCK_BYTES < end and (number + 1) * BLOCK_BYTES > start and start < end
            }
        sums.drop()


def test_what_was_not_added_may_differ(tree: WritableTree) -> None:
    data = bytes(3 * BLOCK_BYTES)
    kept(tree, data)
    sums = Sums(tree).begin(b"d/image", OLD_SHA1, len(data), len(data))
    sums.add(data[:BLOCK_BYTES], 0)
    assert list(sums.differing(0, len(data))) == [(BLOCK_BYTES, len(data))]
    sums.drop()


def test_nothing_is_left_open_or_behind(tree: WritableTree) -> None:
    data = bytes(3 * BLOCK_BYTES)
    kept(tree, data)
    before = open_descriptors()
    summed(tree, data, NEW_SHA1, (OLD_SHA1, len(data))).drop()
    assert open_descriptors() == before
    (name,) = tree.names(SUMS)
    assert not name.endswith(b".new")


@pytest.mark.parametrize("sha1", [None, NEW_SHA1, b""])
def test_sums_of_another_content_are_not_believed(tree: WritableTree, sha1: bytes | None) -> None:
    data = bytes(3 * BLOCK_BYTES)
    kept(tree, data)
    for digest, size in ((sha1, len(data)), (OLD_SHA1, len(data) + 1)):
        sums = Sums(tree).begin(b"d/image", digest, size, len(data))
        assert not sums.knows_old
        sums.add(data, 0)
        assert list(sums.differing(0, len(data))) == [(0, len(data))]
        sums.drop()


def test_sums_that_are_incomplete_are_not_kept(tree: WritableTree) -> None:
    tree.write_file(b"d/image", [bytes(3 * BLOCK_BYTES)])
    sums = Sums(tree).begin(b"d/image", None, 0, 3 * BLOCK_BYTES)
    sums.add(bytes(BLOCK_BYTES), 0)
    sums.keep(OLD_SHA1, 3 * BLOCK_BYTES)
    assert tree.names(SUMS) == []


def test_damaged_sums_are_not_believed(tree: WritableTree, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2 * BLOCK_BYTES + 7)
    kept(tree, data)
    (name,) = tree.names(SUMS)
    path = tmp_path / os.fsdecode(SUMS) / os.fsdecode(name)
    intact = path.read_bytes()

    def is_believed() -> bool:
        sums = Sums(tree).begin(b"d/image", OLD_SHA1, len(data), len(data))
        sums.drop()
        return sums_known(path, data)

    def sums_known(path: Path, data: bytes) -> bool:
        if not path.exists():
            return False
        with path.open("rb") as file:
            known = KnownSums.read(file.fileno())
        return known is not None and known.header.is_of(OLD_SHA1, len(data))

    assert is_believed()
    for at in range(len(intact)):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        assert not is_believed(), at
    for size in range(len(intact)):
        path.write_bytes(intact[:size])
        assert not is_believed(), size
    path.write_bytes(intact)
    assert is_believed()


@pytest.mark.parametrize("size", [0, 1 << 40, (1 << 64) - 1])
def test_a_header_that_lies_takes_no_memory(tree: WritableTree, tmp_path: Path, size: int) -> None:
    kept(tree, bytes(BLOCK_BYTES))
    (name,) = tree.names(SUMS)
    path = tmp_path / os.fsdecode(SUMS) / os.fsdecode(name)
    header = parse_header(path.read_bytes())
    assert header is not None
    with path.open("r+b") as file:
        file.write(format_header(header._replace(size_bytes=size), b"d/image"))
    sums = Sums(tree).begin(b"d/image", OLD_SHA1, size, BLOCK_BYTES)
    assert not sums.knows_old
    sums.drop()


def test_headers_of_other_formats() -> None:
    header = Header(5, bytes(20), bytes(KEY_BYTES), bytes(20), 3)
    data = format_header(header, b"abc")
    assert parse_header(data) == header
    assert parse_header(data[:-1]) is None
    assert parse_header(b"histfS2\n" + data[8:]) is None
    other = format_of_sums._HEADER.pack(b"histfS1\n", 4096, *header)
    assert parse_header(other + data[-4:]) is None


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["create_file", "rename", "make_directories", "open_file"])
def test_a_disk_that_takes_no_sums(tree: WritableTree, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    data = bytes(2 * BLOCK_BYTES)
    kept(tree, data)
    before = open_descriptors()

    with monkeypatch.context() as patch:
        patch.setattr(WritableTree, step, full)
        sums = summed(tree, data, NEW_SHA1, (OLD_SHA1, len(data)))
        sums.keep(NEW_SHA1, len(data))
    assert open_descriptors() == before


def test_a_disk_that_becomes_full(tree: WritableTree, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(3).randbytes(3 * BLOCK_BYTES)
    kept(tree, data)

    sums = Sums(tree).begin(b"d/image", OLD_SHA1, len(data), len(data))
    sums.add(data[:BLOCK_BYTES], 0)
    with monkeypatch.context() as patch:
        patch.setattr("histfs.store.sums.write_blocks", full)
        sums.add(data[BLOCK_BYTES : 2 * BLOCK_BYTES], BLOCK_BYTES)
    sums.add(data[2 * BLOCK_BYTES :], 2 * BLOCK_BYTES)
    assert list(sums.differing(2 * BLOCK_BYTES, len(data))) == [(2 * BLOCK_BYTES, len(data))]
    sums.keep(NEW_SHA1, len(data))
    again = Sums(tree).begin(b"d/image", OLD_SHA1, len(data), len(data))
    assert again.knows_old
    again.drop()


def test_what_the_mirror_does_not_hold_any_more(tree: WritableTree) -> None:
    data = bytes(BLOCK_BYTES)
    kept(tree, data)
    (name,) = tree.names(SUMS)
    tree.write_file(SUMS + b"/other", [b"?"])
    tree.write_file(SUMS + b"/" + name + b".new", [b"?"])
    tree.make_directory(SUMS + b"/directory")
    tidy(tree)
    assert tree.names(SUMS) == [name]
    tree.unlink(b"d/image")
    tidy(tree)
    assert tree.names(SUMS) == []
    tidy(tree)


# --- sessions -------------------------------------------------------------------------------------------------------

SIZE = 20 * BLOCK_BYTES + 77


@pytest.fixture(params=["direct", "copied", "cloned"])
def image(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A file that counts as large, of which there was a session."""
    monkeypatch.setattr(copying, "MAX_BYTES", 1 << 16)
    monkeypatch.setattr(growing, "CHUNK_BYTES", 2 * BLOCK_BYTES)
    monkeypatch.setattr(copying, "is_scattered", lambda _fd: False)
    if request.param != "direct":
        monkeypatch.setattr(copying, "try_direct", lambda _fd: False)
    clone = imitated_clone if request.param == "cloned" else lambda _source_fd, _fd: False
    monkeypatch.setattr(copying, "try_clone", clone)
    build(sessions.source, Dir({"a": File(b"a"), "image": File(random.Random(1).randbytes(SIZE))}))
    sessions.backup()
    return sessions.source / "image"


def edit(image: Path, *places: int) -> None:
    with image.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(os.urandom(10))


def sums_in(sessions: Sessions) -> list[str]:
    place = sessions.data / "histfs/sums"
    return os.listdir(place) if place.exists() else []


def test_only_what_differs_is_read_of_the_old_content(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asked: list[tuple[int, int]] = []
    real = delta._Contents._old

    def old(contents: delta._Contents, start: int, end: int, **options: bool) -> bytes | memoryview:
        asked.append((start, end))
        return real(contents, start, end, **options)

    edit(image, 5000)
    sessions.backup()
    if "cloned" in request.node.name:
        assert sums_in(sessions) == []  # where files share blocks nothing is gained, and something would be trusted
        return
    assert len(sums_in(sessions)) == 1
    monkeypatch.setattr(delta._Contents, "_old", old)
    edit(image, 3 * BLOCK_BYTES + 50, 9 * BLOCK_BYTES - 5)
    differing = [(3 * BLOCK_BYTES, 4 * BLOCK_BYTES), (8 * BLOCK_BYTES, 10 * BLOCK_BYTES)]
    sessions.backup()
    assert asked
    for start, end in asked:  # but for a part of a page before and behind
        assert any(first - 4096 < start < end < last + 4096 for first, last in differing)
    assert len(sums_in(sessions)) == 1
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_many_changes_of_every_kind(sessions: Sessions, image: Path) -> None:
    generator = random.Random(4)
    for _ in range(12):
        size = image.stat().st_size
        match generator.randrange(5):
            case 0:
                data = image.read_bytes()
                at = generator.randrange(size)
                image.write_bytes(data[:at] + generator.randbytes(generator.randrange(100_000)) + data[at:])
            case 1:
                os.truncate(image, generator.randrange(size // 2, size))
            case 2:
                os.truncate(image, size + generator.randrange(50_000))
            case _:
                edit(image, *(generator.randrange(size) for _ in range(3)))
        if generator.randrange(4) == 0 and sums_in(sessions):
            (sessions.data / "histfs/sums" / sums_in(sessions)[0]).unlink()
        sessions.backup()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_a_session_that_was_undone_leaves_sums_of_something_else(sessions: Sessions, image: Path) -> None:
    edit(image, 5000)
    sessions.backup()
    before = image.read_bytes()
    edit(image, 9000)
    sessions.backup()
    del sessions.states[sessions.now]
    with Repository.open(sessions.repository) as repository:
        assert len(repository.sessions()) == 3
    regress(sessions.repository, force=True, report=lambda _error: None)
    image.write_bytes(before)
    edit(image, 100_000)
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_nothing_is_told_of_a_file_whose_history_was_removed(sessions: Sessions, image: Path) -> None:
    edit(image, 5000)
    sessions.backup()
    image.unlink()
    sessions.backup()
    remove_paths(sessions.repository, [b"image"])
    assert sums_in(sessions) == []


def _moved_by_a_block(image: Path) -> None:
    """A block becomes zeros, as the one before it is: whoever counts blocks wrongly finds the sum that it has."""
    with image.open("r+b") as file:
        file.seek(11 * BLOCK_BYTES)
        file.write(bytes(BLOCK_BYTES))


@pytest.fixture
def with_zeros(sessions: Sessions, image: Path) -> Path:
    """The image with a block of zeros before the one that `_moved_by_a_block` changes, and sums."""
    with image.open("r+b") as file:
        file.seek(10 * BLOCK_BYTES)
        file.write(bytes(BLOCK_BYTES))
    sessions.backup()
    return image


@pytest.mark.parametrize("at", range(0, SIZE, 2 * BLOCK_BYTES + 999))
def test_reads_of_the_source_that_give_less(
    sessions: Sessions, with_zeros: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """As on some network file systems: while sums are compared, and while they are made."""
    read, readv = os.read, os.readv
    is_source = set[int]()

    def open_file(source: Source, found: Found) -> int:
        fd = open_(source, found)
        is_source.add(fd)
        return fd

    def shortened(fd: int, size: int) -> int:
        place = os.lseek(fd, 0, os.SEEK_CUR)
        return at - place if fd in is_source and place < at < place + size else size

    open_ = Source.open_file
    for _ in range(2):
        _moved_by_a_block(with_zeros)
        edit(with_zeros, 14 * BLOCK_BYTES)
        with monkeypatch.context() as patch:
            patch.setattr(Source, "open_file", open_file)
            patch.setattr(os, "read", lambda fd, size: read(fd, shortened(fd, size)))
            patch.setattr(os, "readv", lambda fd, data: readv(fd, [data[0][: shortened(fd, len(data[0]))]]))
            sessions.backup()
        is_source.clear()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


@pytest.mark.parametrize("number", [1, 2, 5])
def test_sums_that_fail_as_nobody_expects(
    sessions: Sessions, with_zeros: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Either the session fails, or all of it is right."""
    real, calls = BlockSums._compare, iter(range(1, 1000))

    def compare(*arguments: Any) -> None:
        if next(calls) == number:
            raise MemoryError
        real(*arguments)

    _moved_by_a_block(with_zeros)
    with monkeypatch.context() as patch:
        patch.setattr(BlockSums, "_compare", compare)
        try:
            sessions.backup()
        except MemoryError:
            sessions.backup(may_report=True)
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_what_is_added_out_of_order_is_not_compared(tree: WritableTree) -> None:
    data = bytes(6 * BLOCK_BYTES)
    kept(tree, data)
    for pieces in ([(1, 2)], [(0, 1), (2, 1)], [(0, 0.5), (1, 1)], [(0, 1.5), (2, 1)]):
        sums = Sums(tree).begin(b"d/image", OLD_SHA1, len(data), len(data))
        for start, size in pieces:
            sums.add(bytes(int(size * BLOCK_BYTES)), start * BLOCK_BYTES)
        told = list(sums.differing(0, len(data)))
        assert told[-1][1] == len(data)
        assert told[0][0] <= 2 * BLOCK_BYTES
        sums.keep(NEW_SHA1, len(data))
        again = Sums(tree).begin(b"d/image", NEW_SHA1, len(data), len(data))
        assert not again.knows_old
        again.drop()


def test_an_interruption_just_when_a_copy_begins(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody compares then, and who writes must not wait for it."""
    real = copying.LargeCopy.start

    def start(copy: copying.LargeCopy, *arguments: Any) -> None:
        real(copy, *arguments)
        raise KeyboardInterrupt

    image.write_bytes(os.urandom(40 * BLOCK_BYTES))
    with monkeypatch.context() as patch:
        patch.setattr(copying.LargeCopy, "start", start)
        with pytest.raises(KeyboardInterrupt):
            sessions.backup()
    sessions.backup(may_report=True)
    sessions.assert_all_readable()


def test_files_that_cannot_be_opened_leave_nothing_behind(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(image, 5)
    before = open_descriptors()

    def refuse(_source: Source, found: Found) -> int:
        raise SourceError("cannot be read", path=found.path)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "open_file", refuse)
        sessions.backup(may_report=True)
    assert open_descriptors() == before
    assert sums_in(sessions) == []


def test_a_removal_does_not_fail_for_sums(sessions: Sessions, image: Path) -> None:
    edit(image, 5)
    sessions.backup()
    place = sessions.data / "histfs/sums"
    subprocess.run(["rm", "-rf", place], check=True)
    place.write_bytes(b"no directory")
    remove_paths(sessions.repository, [b"image"])
    assert not (sessions.repository / "image").exists()


def test_what_rotted_in_the_mirror_is_right_again_when_the_file_changes(sessions: Sessions, image: Path) -> None:
    """Sums do not keep it alive: all of the new content comes from the source."""
    edit(image, 5)
    sessions.backup()
    mirrored = sessions.repository / "image"
    status = mirrored.stat()
    with mirrored.open("r+b") as file:
        file.seek(5 * BLOCK_BYTES)
        file.write(b"rotten")
    os.utime(mirrored, ns=(status.st_atime_ns, status.st_mtime_ns))
    edit(image, 9 * BLOCK_BYTES)
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_readable(sessions.now)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30))
def test_threads_that_are_slow_at_random(
    sessions: Sessions, image: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Who reads, sums, writes and compares wait for each other at any place; all versions are right."""
    generator = random.Random(seed)

    def delayed(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if generator.randrange(3) == 0:
                time.sleep(generator.random() * 0.02)
            return real(*arguments, **options)

        return call

    for owner, name in (
        *((growing.Growing, name) for name in ("sum", "took", "wrote", "recent", "differing")),
        (direct._Writer, "write"),
        (copying.LargeCopy, "update"),
        (delta._Contents, "differing"),
    ):
        monkeypatch.setattr(owner, name, delayed(getattr(owner, name)))
    for _ in range(6):
        data = bytearray(image.read_bytes())
        for _ in range(generator.randrange(1, 6)):
            at, size = generator.randrange(len(data)), generator.choice([1, 5000, 100_000])
            match generator.randrange(4):
                case 0:
                    data[at:at] = generator.randbytes(size)
                case 1:
                    del data[at : at + size]
                case 2:
                    data[at : at + size] = bytes(size)
                case _:
                    data[at : at + size] = generator.randbytes(size)
        data = data.ljust(100_000, b"\0")[:2_000_000]
        image.write_bytes(data)
        sessions.backup()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
