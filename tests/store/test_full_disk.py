"""A full disk: room can be made on it, and it is told how. It is one in memory, or one whose writes are counted."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from histfs.errors import HistfsError, StorageError
from histfs.store import backup as backup_module
from histfs.store import files
from histfs.store.backup import backup
from histfs.store.regress import regress
from histfs.store.remove import remove_paths, remove_sessions
from tests.comparison import difference, read
from tests.mirrors import read_mirror
from tests.store.killing import Killed, Killer
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import Dir, File, Link, build

HOW = "; every finished session is intact; make room, as with `histfs remove increments --older-than TIME`"


def noise(seed: int, size: int = 20_000) -> bytes:
    return Random(seed).randbytes(size)


def used_bytes(top: Path) -> int:
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(top) for name in names)


@contextmanager
def full(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, room: int = 0) -> Iterator[None]:
    """Nothing can be written that makes the repository more than `room` bytes larger than it is now."""
    limit = used_bytes(sessions.repository) + room
    real = files._write_all

    def write(fd: int, block: bytes) -> None:
        if used_bytes(sessions.repository) + len(block) > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, block)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_all", write)
        yield


@contextmanager
def filled(place: Path) -> Iterator[None]:
    with (place / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 16, 4096, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                pass
        yield
    (place / "filler").unlink()


def assert_mirror_is_right(sessions: Sessions) -> None:
    """Links that had to be made again may be separate."""
    lines = difference(sessions.states[sessions.now], read_mirror(sessions.repository))
    assert [line for line in lines if "links" not in line] == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Sessions]:
    """Sessions into a file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        sessions = Sessions(place)
        sessions.source = tmp_path / "source"
        yield sessions
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def stop_before_the_end(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(backup_module._Session, "_commit", die)
        with pytest.raises(Killed):
            backup(sessions.source, sessions.repository, now=sessions.now + DAY, report=fail)


def fail(error: HistfsError) -> None:
    raise AssertionError from error


@pytest.fixture
def changed(sessions: Sessions) -> Sessions:
    """Two sessions; what comes next changes, removes and adds files."""
    names = ("a", "b", "c", "d")
    build(sessions.source, Dir({**{name: File(noise(1)) for name in names}, "l1": File(noise(2)), "l2": Link("l1")}))
    sessions.backup()
    for number, name in enumerate(names):
        (sessions.source / name).write_bytes(noise(10 + number))
    sessions.backup()
    (sessions.source / "a").write_bytes(noise(20, 5000))
    (sessions.source / "b").unlink()
    (sessions.source / "c").write_bytes(noise(21))
    (sessions.source / "l1").write_bytes(noise(22))
    build(sessions.source / "sub", Dir({"new": File(noise(23, 30_000)), "new too": File(noise(24, 30_000))}))
    return sessions


# --- old sessions ---------------------------------------------------------------------------------------------------


def test_old_sessions_can_be_removed(small: Sessions) -> None:
    build(small.source, Dir({"a": File(noise(1))}))
    for number in range(3):
        (small.source / "a").write_bytes(noise(number, 500_000))
        small.backup()
    with filled(small.repository.parent):
        assert os.statvfs(small.repository).f_bfree == 0
        assert remove_sessions(small.repository, small.now).sessions == (FIRST, FIRST + DAY)
        assert os.statvfs(small.repository).f_bfree > 0
    del small.states[FIRST], small.states[FIRST + DAY]
    small.assert_all_readable()
    assert (small.data / "lock.yml").read_bytes() == b""
    small.backup()


def test_what_is_swept_next_need_not_be_kept(rich_sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histfs.store.remove.sessions._MOST_SWEPT", 0)
    with full(rich_sessions, monkeypatch, room=-1 << 20):
        remove_sessions(rich_sessions.repository, FIRST + DAY)
    assert not (rich_sessions.data / "histfs/swept").exists()
    del rich_sessions.states[FIRST]
    rich_sessions.assert_all_readable()


# --- sessions that did not finish -----------------------------------------------------------------------------------


def test_a_session_is_undone(small: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    build(small.source, Dir({"a": File(noise(1)), "d": Dir({"b": File(noise(2))})}))
    small.backup()
    (small.source / "a").write_bytes(noise(3, 10))
    (small.source / "d/new").write_bytes(noise(4, 100_000))
    stop_before_the_end(small, monkeypatch)
    with filled(small.repository.parent):
        assert regress(small.repository, report=fail) is not None
    small.assert_all_readable()
    small.assert_mirror_is(small.now)


@pytest.mark.parametrize("notes", [True, False])
def test_each_increment_makes_room_for_the_next_file(
    changed: Sessions, monkeypatch: pytest.MonkeyPatch, notes: bool
) -> None:
    """Room for one file, and not for all."""
    monkeypatch.setattr("histfs.store.undoing._FEW_FILES", 1)
    (changed.source / "sub/new").unlink()
    (changed.source / "sub/new too").unlink()
    stop_before_the_end(changed, monkeypatch)
    if not notes:
        (changed.data / "histfs/touched").unlink(missing_ok=True)
    with full(changed, monkeypatch, room=50_000):
        assert regress(changed.repository, report=fail) is not None
    changed.assert_all_readable()
    changed.assert_mirror_is(changed.now)
    assert not [name for name in os.listdir(changed.repository) if name.startswith("rdiff-backup.tmp")]


@pytest.mark.parametrize("room", [0, 25_000])
def test_what_is_undone_on_a_full_disk_can_be_killed(
    changed: Sessions, monkeypatch: pytest.MonkeyPatch, killer: Killer, room: int
) -> None:
    monkeypatch.setattr("histfs.store.undoing._FEW_FILES", 1)
    stop_before_the_end(changed, monkeypatch)
    copy = changed.repository.with_name("copy")
    subprocess.run(["cp", "-a", changed.repository, copy], check=True)
    at = 1
    was_killed = True
    while was_killed:
        subprocess.run(["rm", "-rf", changed.repository], check=True)
        subprocess.run(["cp", "-a", copy, changed.repository], check=True)
        with full(changed, monkeypatch, room=room):
            was_killed = killer.run(at, lambda: regress(changed.repository, report=fail))
        if at % 2:
            killer.lose_data(changed.repository)
        changed.assert_all_readable()
        regress(changed.repository, report=fail)
        changed.assert_all_readable()
        assert_mirror_is_right(changed)
        at += 1
    assert at > 50


def test_where_nothing_makes_room_nothing_is_lost_and_it_is_said(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sessions.source, Dir({"a": File(noise(1)), "b": File(noise(2))}))
    sessions.backup()
    (sessions.source / "a").write_bytes(noise(3, 10))
    stop_before_the_end(sessions, monkeypatch)
    with full(sessions, monkeypatch), pytest.raises(StorageError) as caught:
        regress(sessions.repository, report=fail)
    expected = f"{sessions.repository}: {os.strerror(errno.ENOSPC)}{HOW}, then run `histfs regress` again"
    assert str(caught.value) == expected
    sessions.assert_all_readable()
    assert regress(sessions.repository, report=fail) is not None
    sessions.assert_mirror_is(sessions.now)


def test_the_newest_session_is_undone(changed: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    changed.backup()
    with full(changed, monkeypatch):
        outcome = regress(changed.repository, report=fail, force=True)
    assert outcome is not None
    assert outcome.had_finished
    del changed.states[changed.now]
    changed.assert_all_readable()
    changed.now -= DAY
    assert_mirror_is_right(changed)


# --- words ----------------------------------------------------------------------------------------------------------


def test_a_session_that_has_no_room_is_none(small: Sessions) -> None:
    build(small.source, Dir({"a": File(noise(1))}))
    small.backup()
    small.backup()
    before = read(small.data)
    with filled(small.repository.parent), pytest.raises(StorageError) as caught:
        small.backup()
    assert str(caught.value) == f"{small.repository}: {os.strerror(errno.ENOSPC)}; no session was begun{HOW}"
    assert [line for line in difference(before, read(small.data)) if "mtime" not in line] == []
    assert not small.backup().regressed


def test_a_session_that_runs_out_of_room_names_the_repository(small: Sessions) -> None:
    build(small.source, Dir({"a": File(noise(1))}))
    small.backup()
    small.backup()
    (small.source / "large").write_bytes(noise(2, 9 << 20))
    with pytest.raises(StorageError) as caught:
        small.backup()
    is_open = "the session is left open, and undone by the next one"
    assert str(caught.value) == f"{small.repository}: {os.strerror(errno.ENOSPC)}; {is_open}{HOW}"


def test_a_first_session_that_runs_out_of_room(small: Sessions) -> None:
    build(small.source, Dir({"large": File(noise(2, 9 << 20))}))
    with pytest.raises(StorageError) as caught:
        small.backup()
    is_open = "the session is left open, and the next one goes on with it"
    expected = f"{small.repository}: {os.strerror(errno.ENOSPC)}; {is_open}; make room on that disk"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "action",
    [
        lambda sessions: remove_sessions(sessions.repository, sessions.now),
        lambda sessions: remove_paths(sessions.repository, [b"a"]),
        lambda sessions: regress(sessions.repository, report=fail),
        Sessions.backup,
    ],
)
def test_what_may_not_be_written_to_was_not_changed(small: Sessions, action: Callable[[Sessions], object]) -> None:
    build(small.source, Dir({"a": File(noise(1))}))
    small.backup()
    small.backup()
    subprocess.run(["mount", "-o", "remount,ro", small.repository.parent], check=True)
    with pytest.raises(StorageError) as caught:
        action(small)
    nothing = "no session was begun" if action is Sessions.backup else "nothing was changed"
    assert str(caught.value) == f"rdiff-backup-data/lock.yml: {os.strerror(errno.EROFS)}; {nothing}"
