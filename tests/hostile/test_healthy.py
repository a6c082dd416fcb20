"""The repository that the other tests spoil is a good one, in the eyes of both programs."""

from pathlib import Path

from tests import comparison
from tests.hostile import repositories, witness
from tests.oracle import Oracle
from tests.trees import compare


def test_every_reader_finds_what_was_there(tmp_path: Path) -> None:
    repositories.make(tmp_path / "repository")
    witness.check(tmp_path / "repository", tmp_path, {})


def test_so_does_rdiff_backup(tmp_path: Path, rdiff_backup: Oracle) -> None:
    repository = tmp_path / "repository"
    repositories.make(repository)
    for session_time, tree in repositories.STATES.items():
        rdiff_backup.verify(repository, at=session_time).check()
        rdiff_backup.restore(repository, tmp_path / str(session_time), at=session_time).check()
        assert compare(tmp_path / str(session_time), tree) == []


def test_reading_writes_nothing(tmp_path: Path) -> None:
    repositories.make(tmp_path / "repository")
    before = comparison.read(tmp_path / "repository")
    witness.check(tmp_path / "repository", tmp_path, {})
    assert comparison.difference(before, comparison.read(tmp_path / "repository")) == []
