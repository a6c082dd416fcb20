"""Threads that look ahead of a comparison: what they find is used only where it is as the record says, and is fresh.

That sessions with them are those that look at everything is tested where passing over is: scouts look ahead in all of
these tests.
"""

import ctypes
import mmap
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from histfs.store import walk as walk_module
from histfs.store.source import Source
from histfs.store.walk import Passed, Walk, Why, seen_of
from tests.store.comparing import comparing_walk
from tests.store.sessions import Sessions
from tests.trees import Dir, File, Node, Symlink, build

_RECORD = b"File %b\n  Type reg\n"


def wide(directories: int, files: int) -> Dir:
    below: dict[str | bytes, Node] = {f"f{number}": File(b"%d" % number) for number in range(files)}
    return Dir({f"d{number:03}": Dir(below) for number in range(directories)})


class Known:
    """A tree as a list and a ledger have it, without a repository."""

    def __init__(self, top: Path, mirror: Path | None = None) -> None:
        self.top = top
        paths = [os.path.relpath(path, top) for path in self._walk(top)]
        records = [_RECORD % os.fsencode(path) for path in paths]
        self.text = b"".join(records)
        self.count = len(records)
        mirror_ctime_ns = [((mirror or top) / path).lstat().st_ctime_ns for path in paths]
        self.seen = b""
        for path, record, ctime_ns in zip(paths, records, mirror_ctime_ns, strict=True):
            seen = seen_of((top / path).lstat())._replace(record_bytes=len(record), flags=1)
            self.seen += (seen._replace(size=ctime_ns) if (top / path).is_dir() else seen).format()

    def _walk(self, place: Path) -> Iterator[Path]:
        for path in sorted(place.iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from self._walk(path)

    def compare(self, walk: Walk, passed: int = 0) -> Passed:
        at = sum(len(record) + 5 for record in self.text.split(b"File ")[1 : passed + 1])
        options = {"number": passed, "first_number": passed, "line_end": b""}
        return walk.compare(self.text, at, self.seen, passed, is_last=True, **options)


@pytest.fixture
def all_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """All records are ahead of the first comparison."""
    monkeypatch.setattr(walk_module, "_SCOUTED_AT_ONCE", 64)


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_tree_is_passed_over_with_every_number_of_scouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "top", wide(40, 20))
    known = Known(tmp_path / "top")
    for scouts in (0, 1, 2, 7, 99):
        for at_once in (1, 64, 10_000):
            monkeypatch.setattr(walk_module, "_SCOUTS", scouts)
            monkeypatch.setattr(walk_module, "_SCOUTED_AT_ONCE", at_once)
            with comparing_walk(known.top) as walk:
                passed = known.compare(walk)
            assert (passed.why, passed.files) == (Why.AT_END, known.count), (scouts, at_once)


def test_nothing_is_left_of_scouts_wherever_a_walk_ends(tmp_path: Path) -> None:
    build(tmp_path / "top", wide(60, 30))
    known = Known(tmp_path / "top")
    before = tasks(), descriptors()
    random_ = random.Random(1)
    for _ in range(50):
        path = tmp_path / f"top/d{random_.randrange(60):03}/f{random_.randrange(30)}"
        path.write_bytes(b"longer than before")
        with comparing_walk(known.top) as walk:
            passed = known.compare(walk)
            assert passed.why is Why.DIFFERS
            assert walk.here() == os.fsencode(path.relative_to(tmp_path / "top"))
            assert tasks() > before[0]
        path.write_bytes(b"%d" % int(path.name[1:]))
        known = Known(tmp_path / "top")
        assert (tasks(), descriptors()) == before


def _has_cached(path: Path) -> bool:
    """Whether the kernel has the first page of it in memory (mincore(2)), without having it read by this question."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        page = ctypes.c_char.from_buffer(mapped)
        answer = ctypes.create_string_buffer(1)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(page), ctypes.c_size_t(1), answer)
        del page
        assert not failed, os.strerror(ctypes.get_errno())
        return answer.raw[0] & 1 == 1


def _evict(*paths: Path) -> None:
    for path in paths:
        for _ in range(50):  # a page that is new, or being written, may stay at first
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not _has_cached(path):
                break
            time.sleep(0.02)
        else:
            pytest.skip("the file system of temporary files keeps everything in memory")


@pytest.mark.usefixtures("all_at_first")
def test_content_of_changed_files_is_fetched_before_it_is_asked_for(tmp_path: Path) -> None:
    source, mirror, outside = tmp_path / "source", tmp_path / "mirror", tmp_path / "outside"
    for top in (source, mirror):
        build(top, wide(60, 30))
    outside.write_bytes(b"not of the mirror")
    known = Known(source, mirror)
    for path in ("d030/f3", "d031/f5", "d031/f6", "d031/f7", "d032/f0"):
        (source / path).write_bytes(b"longer than before")
    (source / "d031/f4").unlink()
    os.utime(source / "d031/f9", (1, 1))
    (source / "d031/f9").chmod(0o600)
    for path in ("d031/f5", "d031/f6"):
        (mirror / path).unlink()
    (mirror / "d031/f5").symlink_to(outside)
    os.mkfifo(mirror / "d031/f6")
    fetched = [source / "d031/f7", source / "d031/f9", mirror / "d031/f4", mirror / "d032/f0"]
    left = [outside, source / "d030/f2", mirror / "d030/f2"]
    _evict(*fetched, *left)
    with comparing_walk(source, mirror) as walk:
        assert known.compare(walk).why is Why.DIFFERS
        until = time.monotonic() + 20
        while not all(map(_has_cached, fetched)) and time.monotonic() < until:
            time.sleep(0.01)
    assert [path for path in fetched if not _has_cached(path)] == []
    assert [path for path in left if _has_cached(path)] == []


def test_small_trees_need_no_scouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "_SCOUTED_FROM", 1000)
    build(tmp_path / "top", wide(9, 100))
    known = Known(tmp_path / "top")
    before = tasks()
    with comparing_walk(known.top) as walk:
        assert known.compare(walk).files == known.count
        assert tasks() == before


def _file(top: Path) -> None:
    (top / "d030/f3").write_bytes(b"another content")


def _new_name(top: Path) -> None:
    (top / "d030/new").touch()


def _another_directory(top: Path) -> None:
    shutil.copytree(top / "d030", top / "other")
    shutil.rmtree(top / "d030")
    (top / "other").rename(top / "d030")


def _link(top: Path) -> None:
    (top / "d030").rename(top.parent / "elsewhere")
    (top / "d030").symlink_to(top.parent / "elsewhere")


def _gone(top: Path) -> None:
    shutil.rmtree(top / "d030")


@pytest.mark.parametrize(
    ("change", "passes", "stops_at"),
    [
        (_file, 4, b"d030/f3"),
        (_new_name, 0, b"d030"),
        (_another_directory, 0, b"d030"),
        (_link, 0, b"d030"),
        (_gone, 0, b"d03"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_change_is_seen_before_scouts_come_and_long_after(
    tmp_path: Path, change: Callable[[Path], None], passes: int, stops_at: bytes, is_late: bool, all_at_first: None
) -> None:
    """A session may be busy with one file for hours: what was looked at before does not count then."""
    top = tmp_path / "top"
    build(top, wide(40, 10))
    known = Known(top)
    (top / "d000/f0").write_bytes(b"the first difference")
    if not is_late:
        change(top)
    with comparing_walk(known.top) as walk:
        passed = known.compare(walk)
        assert (passed.why, passed.files, walk.here()) == (Why.DIFFERS, 1, b"d000/f0")
        assert walk.next()
        if is_late:
            time.sleep(0.3)  # the scouts have come to their end
            change(top)
            time.sleep(2.2)
        passed = known.compare(walk, 2)
        assert (passed.why, passed.files) == (Why.DIFFERS, 30 * 11 - 2 + passes)
        assert walk.here().startswith(stops_at)


def test_what_changes_while_a_large_file_is_copied_is_in_the_same_session(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, one_by_one: None, all_at_first: None
) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "d": wide(20, 20), "l": Symlink("d"), "z": File(b"Z")}))
    sessions.backup()
    threads = set(threading.enumerate())  # those of tests before may not have ended yet
    real = Source.open_file

    def slowly(source: Source, item: object) -> int:
        if item.path == b"a":  # type: ignore[attr-defined]
            time.sleep(0.3)
            (sessions.source / "z").write_bytes(b"changed meanwhile")
            time.sleep(2.2)
        return real(source, item)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(Source, "open_file", slowly)
    (sessions.source / "a").write_bytes(b"changed")
    outcome = sessions.backup()
    assert outcome.statistics.changed_files == 2
    assert (sessions.repository / "z").read_bytes() == b"changed meanwhile"
    assert set(threading.enumerate()) <= threads
