"""Large contents that are written past the page cache: all bytes, holes, and what is damaged or cannot be written."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import DamagedError, HistfsError, StorageError
from histfs.store import content as content_module
from histfs.store import writing
from histfs.store.content import Content
from histfs.store.content.opening import Version
from histfs.store.direct import try_direct
from histfs.store.restore import restore
from tests.store.places import open_descriptors
from tests.store.sessions import Sessions
from tests.store.test_step_back import step_back
from tests.trees import Dir, File, build

CHUNK = 64 << 10
SIZES = [CHUNK, 5 * CHUNK, 20 * CHUNK, 20 * CHUNK + 1, 21 * CHUNK - 4096, 20 * CHUNK + 4097, 9 * CHUNK + 511]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(writing, "_DIRECT", CHUNK)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each file could be written so."""
    could: list[bool] = []
    monkeypatch.setattr(writing, "try_direct", lambda fd: could.append(try_direct(fd)) or could[-1])
    return could


def contents(size_bytes: int) -> tuple[bytes, bytes]:
    """Of two sessions: with zeros in the middle, and with some of it changed."""
    generator = random.Random(size_bytes)
    data = bytearray(generator.randbytes(size_bytes))
    data[size_bytes // 3 : size_bytes // 2] = bytes(size_bytes // 2 - size_bytes // 3)
    newer = bytearray(data)
    for at in range(0, size_bytes, 50_000):
        newer[at : at + 999] = generator.randbytes(len(newer[at : at + 999]))
    return bytes(data), bytes(newer)


def restored(sessions: Sessions, number: int, target: Path) -> list[HistfsError]:
    reported: list[HistfsError] = []
    before = open_descriptors()
    with sessions.open() as repository:
        restore(repository, b"file", sorted(sessions.states)[number], target, report=reported.append)
    assert open_descriptors() == before
    return reported


@pytest.fixture
def history(sessions: Sessions) -> Callable[[int], tuple[bytes, bytes]]:
    def make(size_bytes: int) -> tuple[bytes, bytes]:
        both = contents(size_bytes)
        build(sessions.source, Dir({"file": File(both[0])}))
        sessions.backup()
        (sessions.source / "file").write_bytes(both[1])
        sessions.backup()
        return both

    return make


@pytest.mark.parametrize("size_bytes", SIZES)
def test_all_bytes_come_back(
    sessions: Sessions,
    history: Callable[[int], tuple[bytes, bytes]],
    direct: list[bool],
    tmp_path: Path,
    size_bytes: int,
) -> None:
    for number, data in enumerate(history(size_bytes)):
        target = tmp_path / f"target{number}"
        assert restored(sessions, number, target) == []
        assert target.read_bytes() == data
    assert len(direct) == 2


def test_zeros_become_holes(sessions: Sessions, direct: list[bool], tmp_path: Path) -> None:
    data = b"x" * CHUNK + bytes(40 * CHUNK) + b"y" * CHUNK + bytes(8 * CHUNK)
    build(sessions.source, Dir({"file": File(data)}))
    sessions.backup()
    restored(sessions, 0, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert (tmp_path / "target").stat().st_blocks * 512 <= 12 * CHUNK


@pytest.mark.parametrize("at", [0, 10 * CHUNK, 20 * CHUNK])
def test_what_is_damaged_leaves_nothing(
    sessions: Sessions, history: Callable[[int], tuple[bytes, bytes]], tmp_path: Path, at: int
) -> None:
    """Nobody knows before the last byte."""
    _, newer = history(20 * CHUNK + 77)
    mirrored = sessions.repository / "file"
    status = mirrored.stat()
    with mirrored.open("r+b") as file:
        file.seek(at)
        file.write(bytes([newer[at] ^ 1]))
    os.utime(mirrored, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [type(error) for error in restored(sessions, 1, tmp_path / "target")] == [DamagedError]
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("call", [1, 2, 5, 21])
@pytest.mark.parametrize("number", [0, 1])
def test_what_cannot_be_read_leaves_nothing(
    sessions: Sessions,
    history: Callable[[int], tuple[bytes, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    number: int,
) -> None:
    history(20 * CHUNK + 77)
    calls = iter(range(1, 1000))
    real = content_module.Content._read_into

    def failing(*arguments: Any) -> None:
        if next(calls) == call:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(content_module.Content, "_read_into", failing)
    with pytest.raises(HistfsError, match="Input/output error"):
        restored(sessions, number, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_disk_that_is_full_leaves_nothing(
    sessions: Sessions,
    history: Callable[[int], tuple[bytes, bytes]],
    direct: list[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history(20 * CHUNK + 77)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.setattr(os, "write", full)
        with pytest.raises(HistfsError, match="No space left"):
            restored(sessions, 0, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_mirror_is_put_back_so(
    sessions: Sessions, history: Callable[[int], tuple[bytes, bytes]], direct: list[bool]
) -> None:
    """When a session is undone."""
    older, _ = history(20 * CHUNK + 77)
    step_back(sessions)
    assert (sessions.repository / "file").read_bytes() == older
    assert len(direct) == 1


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("by_chunks", [False, True])
def test_nothing_is_read_after_the_content_was_closed(
    sessions: Sessions,
    history: Callable[[int], tuple[bytes, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    by_chunks: bool,
) -> None:
    """As when the disk of the target gets full: threads read ahead of who writes."""
    if not by_chunks:
        monkeypatch.setattr(writing, "_DIRECT", 1 << 40)
        monkeypatch.setattr(content_module, "_WORTH_THREADS", 0)
        monkeypatch.setattr(content_module, "_LARGE_BLOCK", CHUNK)
    history(40 * CHUNK)
    real_read, real_close = Content._read, Content.close
    closed: list[Content] = []
    late: list[Content] = []
    written: list[int] = []

    def read(self: Content, once: Callable[[Version], object]) -> object:
        time.sleep(0.05)
        if self in closed:
            late.append(self)
        return real_read(self, once)

    def close(self: Content) -> None:
        closed.append(self)
        real_close(self)

    def until_full(real: Callable[..., int]) -> Callable[..., int]:
        def write(*arguments: object) -> int:
            written.append(1)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return write

    monkeypatch.setattr(Content, "_read", read)
    monkeypatch.setattr(Content, "close", close)
    monkeypatch.setattr(os, "write", until_full(os.write))
    monkeypatch.setattr(os, "pwrite", until_full(os.pwrite))
    with pytest.raises(StorageError, match="No space left"), sessions.open() as repository:
        restore(repository, b"file", sorted(sessions.states)[number], tmp_path / "t", report=lambda _: None)
    time.sleep(0.3)
    assert closed
    assert late == []
