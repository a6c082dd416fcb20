"""What can be told of a repository at a glance: good, running, cut off, damaged. And nothing is changed by asking."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.errors import DamagedError, NotARepositoryError
from histfs.store.files import WritableTree
from histfs.store.lock import locked
from histfs.store.status import Status, status
from tests.comparison import difference, read
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import Dir, File, build

NOBODY = 2**22 + 1  # the number of no process


@pytest.fixture
def three(sessions: Sessions) -> Sessions:
    """A repository of three sessions."""
    build(sessions.source, Dir({"a": File(b""), "d": Dir({"b": File(b"bbb")})}))
    for text in (b"one", b"second", b"the third one"):
        (sessions.source / "a").write_bytes(text)
        sessions.backup()
    return sessions


def looked_at(sessions: Sessions) -> Status:
    before = read(sessions.repository)
    found = status(sessions.repository)
    assert difference(before, read(sessions.repository)) == []
    return found


def cut_off(sessions: Sessions, pid: int = NOBODY) -> Path:
    """What a session of process `pid` leaves that died after its first step."""
    marker = sessions.data / f"current_mirror.{stamp(sessions.now + DAY)}.data"
    marker.write_text(f"PID {pid}\n")
    return marker


def only(sessions: Sessions, pattern: str) -> Path:
    [path] = sessions.data.glob(pattern)
    return path


def test_all_is_well(three: Sessions) -> None:
    found = looked_at(three)
    assert found.sessions == (FIRST, FIRST + DAY, FIRST + 2 * DAY)
    assert (found.unfinished, found.is_first, found.writer, found.damage) == (None, False, None, ())
    assert (found.is_broken, found.can_go_on) == (False, True)
    assert found.statistics is not None
    assert (found.statistics.source_files, found.statistics.source_file_bytes) == (4, 16)


def test_a_session_that_was_cut_off(three: Sessions) -> None:
    cut_off(three)
    found = looked_at(three)
    assert (found.unfinished, found.writer, found.is_broken, found.can_go_on) == (three.now + DAY, None, True, True)
    assert len(found.sessions) == 3
    assert found.damage == ()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_session_that_runs_by_its_marker(three: Sessions, process: subprocess.Popen[bytes]) -> None:
    marker = cut_off(three, process.pid)
    found = looked_at(three)
    assert found.writer == (process.pid, marker.stat().st_mtime, "")
    assert not found.is_broken


def test_a_session_that_runs_by_its_lock(three: Sessions) -> None:
    with WritableTree.open(three.repository) as tree, locked(tree, verb="backup"):
        found = looked_at(three)
        assert found.writer is not None
        assert found.writer.pid == os.getpid()
        assert "cmd: histfs backup, hostname: " in found.writer.says
    assert looked_at(three).writer is None


def test_asking_keeps_nobody_from_starting(three: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: pytest.fail("the lock was tried"))
    assert looked_at(three).writer is None


def test_a_lock_of_readers_is_no_writer(three: Sessions) -> None:
    lock = three.data / "lock.yml"
    with subprocess.Popen(["flock", "-s", lock, "sh", "-c", "echo; cat"], stdin=-1, stdout=-1) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        assert looked_at(three).writer is None
        reader.communicate()


def test_a_first_session_that_was_cut_off(sessions: Sessions) -> None:
    (sessions.data / "increments").mkdir(parents=True)
    found = looked_at(sessions)
    assert (found.sessions, found.is_first, found.is_broken, found.can_go_on) == ((), True, True, True)
    with WritableTree.open(sessions.repository) as tree, locked(tree, verb="backup"):
        assert not looked_at(sessions).is_broken


def test_no_repository(sessions: Sessions, tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError, match="no such directory"):
        status(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotARepositoryError, match="is not a directory"):
        status(tmp_path / "file")
    with pytest.raises(NotARepositoryError, match="is not a repository"):
        status(tmp_path)


def messages(found: Status) -> list[str]:
    return [error.problem for error in found.damage]


class TestDamage:
    def test_no_marker(self, three: Sessions) -> None:
        only(three, "current_mirror.*").unlink()
        found = looked_at(three)
        assert not found.can_go_on
        assert messages(found) == ["there is no current_mirror marker: `histfs backup` will refuse"]

    def test_three_markers(self, three: Sessions) -> None:
        for days in (1, 2):
            (three.data / f"current_mirror.{stamp(three.now + days * DAY)}.data").touch()
        found = looked_at(three)
        assert not found.can_go_on
        assert messages(found) == ["there are more than two current_mirror markers: `histfs backup` will refuse"]

    def test_a_list_that_is_missing(self, three: Sessions) -> None:
        only(three, f"mirror_metadata.{stamp(FIRST + DAY)}.*").unlink()
        found = looked_at(three)
        assert {error.at for error in found.damage} >= {FIRST + DAY}

    @pytest.mark.parametrize("content", [b"", b"\0" * 500, b"\x1f\x8b"])
    def test_a_list_that_is_none(self, three: Sessions, content: bytes) -> None:
        """All sessions need the newest one's list."""
        path = only(three, "mirror_metadata.*.snapshot.gz")
        path.write_bytes(content)
        found = looked_at(three)
        assert (found.damage[0].path, found.damage[0].problem) == (
            os.fsencode(path.relative_to(three.repository)),
            "is no compressed list of files",
        )
        assert [error.at for error in found.damage[1:]] == list(found.sessions)
        assert not found.can_go_on
        with pytest.raises(DamagedError):
            three.backup()

    def test_a_list_that_is_a_fifo(self, three: Sessions) -> None:
        path = only(three, f"mirror_metadata.{stamp(FIRST)}.*")
        path.unlink()
        os.mkfifo(path)
        found = looked_at(three)
        assert messages(found)[0] == "cannot be read (is not a regular file)"
        assert [error.at for error in found.damage[1:]] == [FIRST]
        assert found.can_go_on

    def test_increments_that_are_missing(self, three: Sessions) -> None:
        (three.data / "increments").rename(three.data / "elsewhere")
        assert messages(looked_at(three)) == ["the directory with the increments is missing"]

    @pytest.mark.parametrize("content", [None, b"", b"SourceFiles many\n", b"x" * 10**6])
    def test_statistics_that_cannot_be_read_are_no_damage(self, three: Sessions, content: bytes | None) -> None:
        path = only(three, f"session_statistics.{stamp(three.now)}.*")
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        found = looked_at(three)
        assert (found.statistics, found.damage) == (None, ())


def test_what_repair_can_mend_is_told(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"1")}))
    for _ in range(3):
        sessions.backup()

    def advised() -> list[str]:
        return [error.advice for error in status(sessions.repository).damage if "repair" in error.advice]

    assert advised() == []
    catalog = sessions.data / "histfs/catalog.sqlite"
    text = catalog.read_bytes()
    catalog.write_bytes(bytes(len(text)))
    assert advised() == ["`histfs repair` makes it anew"]
    catalog.write_bytes(text)
    stale = sessions.data / f"current_mirror.{stamp(min(sessions.states))}.data"
    stale.write_bytes(b"PID 1\n")
    assert advised() == ["`histfs repair` sets aside what is wrong"]
    stale.unlink()
    newest = max(sessions.data.glob("mirror_metadata.*.snapshot.gz"))
    newest.write_bytes(b"")
    assert advised() == ["`histfs repair` makes it anew"]
    newest.unlink()
    assert advised() == ["`histfs repair` makes it anew"]
