"""Large versions are compared with their SHA1 while `Content.pread` reads them, across openings and in any order."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs.errors import DamagedError
from histfs.store.content import Content, opening
from histfs.store.content.shared import Checks
from histfs.store.repository import Repository
from tests.store.sessions import FIRST, Sessions
from tests.trees import Dir, File, build

SIZE = 400_000
DATA = random.Random(4).randbytes(SIZE)
STEP = 65_536
OFFSETS = range(0, SIZE, STEP)
LAST = OFFSETS[-1]


@pytest.fixture(scope="module", autouse=True)
def large():
    """So much is large here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "CHECKED_AT_ONCE", 100)
        yield


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    made = Sessions(tmp_path_factory.mktemp("checked"))
    build(made.source, Dir({"f": File(DATA)}))
    made.backup()
    return made


def flip(path: Path) -> None:
    """The byte in the middle; another time, and it is as it was."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)[0]
        file.seek(SIZE // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def flipped(sessions: Sessions):
    flip(sessions.repository / "f")
    yield
    flip(sessions.repository / "f")


def opened(sessions: Sessions, repository: Repository) -> Content:
    node = sessions.node(b"f", FIRST)
    return repository.snapshot(FIRST).open(node.entry, node.sha1)


def test_what_was_read_before_a_version_was_closed_counts(sessions: Sessions, flipped: None) -> None:
    """As the kernel keeps it. What is wrong then stays wrong, wherever it is read."""
    with sessions.open() as repository:
        for offset in OFFSETS[:-1]:
            with opened(sessions, repository) as content:
                assert len(content.pread(STEP, offset)) == STEP
        for offset in (LAST, 0, LAST):
            with opened(sessions, repository) as content, pytest.raises(DamagedError, match="SHA1") as caught:
                content.pread(STEP, offset)
            assert (caught.value.path, caught.value.at) == ("f", FIRST)
            assert "histfs verify" in caught.value.advice
            with opened(sessions, repository) as content:
                assert content.pread_nowait(10, 0) is None  # as `pread` tells


def test_what_was_right_is_compared_again_when_it_was_closed(sessions: Sessions) -> None:
    with sessions.open() as repository, opened(sessions, repository) as content:
        assert b"".join(content.pread(STEP, offset) for offset in OFFSETS) == DATA
        flip(sessions.repository / "f")
        try:
            assert len(content.pread(STEP, LAST)) == SIZE - LAST  # not while it is open
            content.close()
            with opened(sessions, repository) as again:
                assert all(again.pread(STEP, offset) for offset in OFFSETS[:-1])
                with pytest.raises(DamagedError, match="SHA1"):
                    again.pread(STEP, LAST)
        finally:
            flip(sessions.repository / "f")


def test_who_reads_all_blocks_computes_one_sum(
    sessions: Sessions, flipped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own, and what others have read does not matter to it."""
    monkeypatch.setattr(rsync.MapReader, "settle", None)
    with sessions.open() as repository, opened(sessions, repository) as content:
        with pytest.raises(DamagedError, match="SHA1"):
            list(content.blocks())
        assert content._version.source._reader._held[-1].verdict is None  # type: ignore[attr-defined]


@given(
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE), st.booleans()), max_size=25),
    st.booleans(),
)
def test_any_reads_in_any_order(sessions: Sessions, reads: list[tuple[int, int, bool]], is_flipped: bool) -> None:
    """A healthy version is never refused; of another one nobody gets all bytes."""
    if is_flipped:
        flip(sessions.repository / "f")
    try:
        has = bytearray(SIZE)
        with sessions.open() as repository, opened(sessions, repository) as content:
            for offset, size, nowait in [*reads, *((offset, STEP, False) for offset in OFFSETS)]:
                try:
                    data = content.pread_nowait(size, offset) if nowait else None
                    data = content.pread(size, offset) if data is None else data
                except DamagedError:
                    assert is_flipped
                    continue
                assert is_flipped or data == DATA[offset : offset + size]
                has[offset : offset + len(data)] = b"\1" * len(data)
        assert (0 in has) == is_flipped
    finally:
        if is_flipped:
            flip(sessions.repository / "f")


def test_threads_that_read_a_version_together(sessions: Sessions, flipped: None) -> None:
    with sessions.open() as repository, opened(sessions, repository) as content:
        refused: list[int] = []

        def work(number: int) -> None:
            for offset in range(number * 4096, SIZE, 4 * 4096):
                try:
                    content.pread(4096, offset)
                except DamagedError:
                    refused.append(offset)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        assert refused


def test_so_many_checks_are_kept() -> None:
    checks = Checks()
    sha1 = bytes(20)
    first = checks.of("first", SIZE, sha1)
    assert checks.of("first", SIZE, sha1) is first
    for number in range(1000):
        checks.of(number, SIZE, sha1)
    assert checks.of("first", SIZE, sha1) is not first
    assert checks.of(999, SIZE, sha1) is checks.of(999, SIZE, sha1)


def test_a_record_whose_digest_is_none(sessions: Sessions) -> None:
    """As a damaged catalog may have."""
    entry = sessions.node(b"f", FIRST).entry
    with sessions.open() as repository, pytest.raises(DamagedError, match="SHA1"):
        repository.snapshot(FIRST).open(entry, b"abcd").close()
