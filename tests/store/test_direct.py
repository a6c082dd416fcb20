"""Large files past the page cache: the bytes are those of any other way, whatever the disk refuses."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histfs.store import direct, growing
from histfs.store.direct import DirectReader, try_direct, write_direct
from histfs.store.growing import Growing, StoppedError
from tests.store.places import open_descriptors

CHUNK = 64 << 10
HOLE = 8 << 10
# Zeros and noise, so that holes begin and end anywhere.
CONTENTS = st.lists(st.tuples(st.booleans(), st.integers(1, 70_000)), max_size=8).map(
    lambda parts: b"".join(random.Random(i).randbytes(n) if noise else bytes(n) for i, (noise, n) in enumerate(parts))
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(direct, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(direct, "_HOLE_BYTES", HOLE)


def filled(content: Growing, data: bytes) -> Iterator[memoryview]:
    """What a source with `data` makes of the chunks."""
    at = 0
    for chunk in content.chunks():
        some = min(len(chunk), len(data) - at)
        if not some:
            return
        chunk[:some] = data[at : at + some]
        at += some
        content.took(some)
        yield chunk[:some]
        if some < len(chunk):
            return


def write(path: Path, data: bytes, content: Growing | None = None) -> list[int]:
    """`data`, written as large files are; what was told of its way to the disk."""
    told: list[int] = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        try_direct(fd)  # where not, it is all the same to who writes
        with ThreadPoolExecutor(1) as thread:
            assert write_direct(fd, filled(content or Growing(), data), len(data), thread, told.append) == len(data)
    finally:
        os.close(fd)
    return told


@settings(deadline=None, max_examples=60)
@given(data=CONTENTS)
def test_what_is_written_is_there(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    told = write(path, data)
    assert path.read_bytes() == data
    assert told == [*range(CHUNK, len(data), CHUNK), *([len(data)] if data else [])]
    blocks = [data[at : at + HOLE] for at in range(0, len(data), HOLE)]
    assert path.stat().st_blocks * 512 <= HOLE * sum(1 for block in blocks if block.strip(b"\0"))


def test_the_cache_holds_nothing_of_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        if not try_direct(file.fileno()):
            pytest.skip("files are not read and written directly here")
    write(tmp_path / "file", random.Random(1).randbytes(10 * CHUNK))
    with (tmp_path / "file").open("rb") as file, pytest.raises(BlockingIOError):
        os.preadv(file.fileno(), [bytearray(4096)], 3 * CHUNK, os.RWF_NOWAIT)


@pytest.mark.parametrize("most", [1, 511, 4096, 5000, 40_000])
def test_a_write_that_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    data = random.Random(most).randbytes(3 * CHUNK + 777)
    real = os.pwrite
    rest = iter([most] * 3)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: next(rest, len(data))], at))
    write(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_disk_that_refuses_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(3).randbytes(5 * CHUNK)
    real, calls = os.pwrite, iter([False, True])

    def refuse(fd: int, data: memoryview, at: int) -> int:
        if next(calls, False):
            raise OSError(22, "Invalid argument")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", refuse)
    write(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("error", [22, 28])
def test_what_goes_wrong_is_raised_when_nothing_runs_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    running = threading.Semaphore(0)

    def refuse(*_: object) -> int:
        running.release()
        raise OSError(error, "no")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "file", random.Random(4).randbytes(20 * CHUNK))
    assert running.acquire(blocking=False)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system is not one of those: then not past the cache, but in the same way."""
    monkeypatch.setattr(direct, "try_direct", lambda fd: try_direct(fd) or True)


@pytest.mark.usefixtures("reads_anyway")
def test_what_is_read_in_order(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(9 * CHUNK + 321)
    (tmp_path / "file").write_bytes(data)
    before = open_descriptors()
    generator = random.Random(6)
    with (tmp_path / "file").open("rb") as file, DirectReader(file.fileno()) as reader:
        at = 0
        while at < len(data):
            end = min(at + generator.randrange(1, CHUNK // 2), len(data))
            assert reader.look(at, end) in (data[at:end], None)
            assert reader.read(at, end) == data[at:end]
            back = max(0, at - generator.randrange(CHUNK // 2))
            assert reader.look(back, end) == data[back:end]
            at = end
        assert reader.look(0, 10) is None
        assert reader.read(len(data) - 10, len(data)) == data[-10:]
        assert reader.read(len(data) - 10, len(data) + 1) is None
        assert reader.read(5, 5) is None
        assert reader.read(0, CHUNK + 1) is None
    assert open_descriptors() == before


@pytest.mark.usefixtures("reads_anyway")
def test_reading_begins_anywhere(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(30 * CHUNK + 5)
    (tmp_path / "file").write_bytes(data)
    generator = random.Random(8)
    with (tmp_path / "file").open("rb") as file, DirectReader(file.fileno()) as reader:
        for _ in range(200):
            at = generator.randrange(len(data))
            end = min(at + generator.randrange(1, CHUNK), len(data))
            assert reader.read(at, end) == data[at:end]
            assert reader.look(at, end) == data[at:end]
        os.truncate(tmp_path / "file", CHUNK // 2)
        assert reader.read(29 * CHUNK, 29 * CHUNK + 1) in (data[29 * CHUNK : 29 * CHUNK + 1], None)
        assert reader.read(20 * CHUNK, 20 * CHUNK + 1) in (data[20 * CHUNK : 20 * CHUNK + 1], None)
        assert reader.read(10 * CHUNK, 10 * CHUNK + 1) in (data[10 * CHUNK : 10 * CHUNK + 1], None)


def test_a_file_system_that_may_compress_is_read_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_FILE_SYSTEMS", ())
    (tmp_path / "file").write_bytes(bytes(CHUNK))
    before = open_descriptors()
    with (tmp_path / "file").open("rb") as file, DirectReader(file.fileno()) as reader:
        assert reader.read(0, 10) is None
    assert open_descriptors() == before


# --- one writes, another compares -----------------------------------------------------------------------------------


def compare(content: Growing, path: Path, data: bytes, look: Callable[[int, int], tuple[int, int]]) -> int:
    """Ask for all of it in order, and for what `look` says of each piece; how often the file had to be read."""
    missed = 0
    for at in range(0, len(data), 5000):
        for start, end in ((at, min(at + 5000, len(data))), look(at, len(data))):
            some = content.recent(start, end)
            if some is None:
                missed += 1
                some = path.read_bytes()[start:end]
            assert some == data[start:end]
    return missed


@pytest.mark.parametrize(("back", "misses"), [(0, False), (CHUNK // 2, False), (20 * CHUNK, True)])
def test_who_compares_gets_what_was_taken(tmp_path: Path, back: int, misses: bool) -> None:
    data = random.Random(7).randbytes(40 * CHUNK + 99)
    content = Growing(is_compared=True)
    generator = random.Random(8)

    def look(at: int, size: int) -> tuple[int, int]:
        start = max(0, at - generator.randrange(back + 1))
        return start, min(start + generator.randrange(20_000), size)

    ended: Future[int] = Future()
    ended.add_done_callback(content.over)
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as writing:
        fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)

        def fill() -> None:
            ended.set_result(write_direct(fd, filled(content, data), len(data), writing, content.wrote))

        filling = thread.submit(fill)
        missed = compare(content, tmp_path / "file", data, look)
        content.let_go()
        filling.result()
        os.close(fd)
    assert (missed > 0) is misses


def test_what_is_ahead(tmp_path: Path) -> None:
    data = random.Random(10).randbytes(20 * CHUNK)
    content = Growing(is_compared=True)
    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(lambda: sum(1 for _ in filled(content, data)))
        assert content.recent(0, 10) == data[:10]
        ahead = content.ahead(5)
        assert ahead is not None
        assert len(ahead) > 4 * CHUNK
        assert ahead == data[5 : 5 + len(ahead)]
        assert content.recent(10, 20) == data[10:20], "looking ahead is not asking"
        content.let_go()
        taking.result()


def test_who_writes_waits_for_who_compares_until_let_go() -> None:
    data = random.Random(9).randbytes(30 * CHUNK)
    content = Growing()
    chunks = filled(content, data)
    next(chunks)
    assert content.recent(0, 10) == data[:10]
    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(lambda: sum(1 for _ in chunks))
        with pytest.raises(TimeoutError):
            taking.result(timeout=0.2)
        assert content.recent(10, 20) == data[10:20]
        assert content.recent(5 * CHUNK, 5 * CHUNK + 9) == data[5 * CHUNK : 5 * CHUNK + 9]
        with pytest.raises(TimeoutError):
            taking.result(timeout=0.2)
        content.let_go()
        assert taking.result(timeout=10) == 29


def test_what_stopped_the_copy_is_told_who_compares() -> None:
    content = Growing()
    next(filled(content, bytes(CHUNK)))
    ended: Future[int] = Future()
    ended.add_done_callback(content.over)
    assert content.recent(0, 5) == bytes(5)
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(content.recent, CHUNK, CHUNK + 1)
        ended.set_exception(OSError(5, "gone"))
        with pytest.raises(OSError, match="gone"):
            asking.result(timeout=10)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_copy_that_nobody_wants_ends(is_held: bool) -> None:
    """Also if whoever stops it was interrupted just when it had taken the lock."""
    content = Growing(is_compared=True)
    taken: list[int] = []

    def take() -> None:
        for chunk in content.chunks():
            content.took(len(chunk))
            taken.append(len(chunk))

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take)
        with pytest.raises(TimeoutError):
            taking.result(timeout=0.2)  # it waits for who compares
        if is_held:
            content._moved.acquire()
        content.stop()
        with pytest.raises(StoppedError):
            taking.result(timeout=10)
    with pytest.raises(StoppedError):
        content.wrote(CHUNK)
