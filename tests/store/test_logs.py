"""Logs in the repository: appended, bounded, and never a trouble."""

import os
from pathlib import Path

import pytest

from histfs.store import logs
from histfs.store.logs import Log
from tests.oracle import Oracle
from tests.store.sessions import FIRST, Sessions
from tests.trees import Dir, File, build


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "rdiff-backup-data").mkdir()
    return tmp_path


def log_of(repository: Path) -> Path:
    return repository / "rdiff-backup-data/backup.log"


def run(repository: Path, *lines: str, begin: bool = True) -> None:
    log = Log(repository, "backup", "a run")
    for number, line in enumerate(lines):
        log.write(line)
        if begin and number == 0:
            log.begin()
    log.close()


def test_runs_are_appended(repository: Path) -> None:
    run(repository, "one", "two \udcff")
    run(repository, "three")
    assert log_of(repository).read_text() == "a run\none\ntwo \\udcff\na run\nthree\n"
    assert log_of(repository).stat().st_mode & 0o777 == 0o600


def test_what_has_not_begun_writes_nothing(repository: Path) -> None:
    run(repository, "one", *map(str, range(1000)), begin=False)
    assert os.listdir(repository / "rdiff-backup-data") == []


def test_every_line_is_written_at_once(repository: Path) -> None:
    log = Log(repository, "backup", "a run")
    log.begin()
    log.write("one")
    assert log_of(repository).read_text() == "a run\none\n"
    log.close()
    log.write("late")
    log.begin()
    assert log_of(repository).read_text() == "a run\none\n"


def test_a_large_one_is_put_aside(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGE_BYTES", 100)
    for number in range(10):
        run(repository, f"{number} " * 30)
    kept = [path.name for path in (repository / "rdiff-backup-data").iterdir()]
    assert sorted(kept) == ["backup.log", "backup.log.1"]
    assert "9 9" in log_of(repository).read_text()
    assert sum(path.stat().st_size for path in (repository / "rdiff-backup-data").iterdir()) < 500


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("../elsewhere", path)])
def test_one_that_cannot_be_written_is_no_trouble(repository: Path, make) -> None:
    make(log_of(repository))
    run(repository, "one", "two")
    assert not (repository / "elsewhere").exists()
    run(repository / "nothing", "one", "two")


def test_rdiff_backup_is_not_disturbed(
    sessions: Sessions, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LARGE_BYTES", 1)
    build(sessions.source, Dir({"a": File(b"text")}))
    for _ in range(2):
        sessions.backup()
        run(sessions.repository, "line")
    rdiff_backup.verify(sessions.repository, at=FIRST).check()
    rdiff_backup.backup(sessions.source, sessions.repository, at=sessions.now + 5).check()
    sessions.states[sessions.now + 5] = sessions.states[sessions.now]
    sessions.now += 5
    sessions.backup()
    sessions.assert_all_readable()
