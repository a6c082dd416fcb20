"""One writer at a time, and markers of writers that live, died, or were cut off."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from histfs.errors import LockedError
from histfs.store.files import WritableTree
from histfs.store.lock import living_writer, locked, marker_text
from tests.store.sessions import DAY, Sessions, stamp
from tests.trees import Dir, File, build


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WritableTree]:
    (tmp_path / "rdiff-backup-data").mkdir()
    with WritableTree.open(tmp_path) as tree:
        yield tree


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_lock_says_who_holds_it_and_is_emptied(tree: WritableTree, tmp_path: Path) -> None:
    file = tmp_path / "rdiff-backup-data/lock.yml"
    with locked(tree, verb="backup"):
        assert f"cmd: histfs backup\nhostname: {os.uname().nodename}\npid: {os.getpid()}\n" in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes() == b""


def test_a_second_holder_is_told_who_is_first(tree: WritableTree) -> None:
    with locked(tree, verb="backup"), pytest.raises(LockedError, match=f"pid: {os.getpid()}"), locked(tree, verb="x"):
        pass


def test_a_reader_of_another_program_keeps_writers_out(tree: WritableTree, tmp_path: Path) -> None:
    file = tmp_path / "rdiff-backup-data/lock.yml"
    file.touch()
    with subprocess.Popen(["flock", "-s", file, "sh", "-c", "echo; cat"], stdin=-1, stdout=-1) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(LockedError, match="it does not say which"), locked(tree, verb="backup"):
            pass
        reader.communicate()


def test_the_lock_is_free_after_an_error(tree: WritableTree) -> None:
    with pytest.raises(ZeroDivisionError), locked(tree, verb="backup"):
        raise ZeroDivisionError
    with locked(tree, verb="backup"):
        pass


def test_text_of_another_program_does_not_spoil_the_message(tree: WritableTree, tmp_path: Path) -> None:
    file = tmp_path / "rdiff-backup-data/lock.yml"
    with locked(tree, verb="backup"):
        file.write_bytes(b"cmd: x\n\x1b[31mred\nhostname: \xff\n" + b"z" * 5000)
        with pytest.raises(LockedError) as caught, locked(tree, verb="backup"):
            pass
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_link_in_the_place_of_the_lock_is_not_followed(tree: WritableTree, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "rdiff-backup-data/lock.yml").symlink_to("../victim")
    with pytest.raises(OSError, match="symbolic links"), locked(tree, verb="backup"):
        pass
    assert (tmp_path / "victim").read_text() == "keep"


def test_the_writer_of_a_marker_lives(process: subprocess.Popen[bytes]) -> None:
    assert living_writer(b"PID %d\n" % process.pid, time.time()) == process.pid


@pytest.mark.parametrize("text", [b"pid\t%d\n", b"something\nPID %d \r\n", b"PID %d\nmore"])
def test_other_spellings_of_a_marker(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert living_writer(text % process.pid, time.time()) == process.pid


@pytest.mark.parametrize("text", [b"", b"PID NA\n", b"PID", b"PID 1", b"PID \n", b"PID 12345678901234567890\n", b"1\n"])
def test_a_marker_that_names_no_process(text: bytes) -> None:
    """A number without the end of its line may be half of another one: process 1 always lives."""
    assert living_writer(text, time.time()) is None


def test_a_process_that_started_later_only_got_the_number(process: subprocess.Popen[bytes]) -> None:
    assert living_writer(b"PID %d\n" % process.pid, time.time() - 60) is None


def test_a_dead_process_writes_no_more() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert living_writer(b"PID %d\n" % process.pid, time.time()) is None


def test_our_own_number_is_nobody_else() -> None:
    assert living_writer(marker_text(), time.time()) is None


@pytest.fixture
def unfinished(sessions: Sessions) -> Sessions:
    """A second session has begun."""
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    marker = sessions.data / f"current_mirror.{stamp(sessions.now + DAY)}.data"
    marker.write_bytes(b"PID 1\n")
    return sessions


def test_a_session_does_not_touch_what_a_living_one_writes(
    unfinished: Sessions, process: subprocess.Popen[bytes]
) -> None:
    (marker,) = [path for path in unfinished.data.glob("current_mirror.*") if path.read_bytes() == b"PID 1\n"]
    marker.write_bytes(b"PID %d\n" % process.pid)
    with pytest.raises(LockedError, match=f"process {process.pid} is running"):
        unfinished.backup()
    assert len(list(unfinished.data.glob("current_mirror.*"))) == 2
    assert unfinished.backup(force=True).regressed
    unfinished.assert_all_readable()


def test_a_session_needs_the_lock(unfinished: Sessions) -> None:
    with (
        WritableTree.open(unfinished.repository) as tree,
        locked(tree, verb="test"),
        pytest.raises(LockedError, match="histfs test"),
    ):
        unfinished.backup()


def test_a_disk_that_fails_at_the_end_does_not_hide_how_it_ended(
    tree: WritableTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_end(action: Callable[[], None]) -> None:
        def fail(_fd: int, _size: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch, locked(tree, verb="backup"):
            patch.setattr(os, "ftruncate", fail)
            action()

    def stop() -> None:
        raise ZeroDivisionError

    fail_at_the_end(lambda: None)
    with pytest.raises(ZeroDivisionError):
        fail_at_the_end(stop)
