"""One program goes on where the other stopped: it sees nothing new where nothing is, removes, compares, undoes."""

from pathlib import Path

import pytest

from histfs.errors import HistfsError
from histfs.store.backup import backup
from histfs.store.repository import Repository
from tests import histories
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle

SESSIONS = 8


def written_by_histfs(scratch: Path, seed: int) -> list[State]:
    states = []
    for state in histories.random_history(scratch / "source", seed, SESSIONS, histories.RDIFF_BACKUP_WRITES):
        agreement.histfs_backup(scratch / "source", scratch / "repository", at=state.time)
        states.append(state)
    return states


def statistics(repository: Path) -> dict[str, str]:
    """The statistics of the newest session."""
    newest = max((repository / "rdiff-backup-data").glob("session_statistics.*"))
    return {line.split()[0]: line.split()[1] for line in newest.read_text().splitlines()}


@pytest.mark.parametrize("api", [200, 201])
def test_rdiff_backup_sees_no_change_where_none_is(scratch: Path, rdiff_backup: Oracle, api: int) -> None:
    states = written_by_histfs(scratch, 50_000 + api)
    now = states[-1].time + 1_000
    rdiff_backup.compare(scratch / "source", scratch / "repository", at=states[-1].time).check()
    rdiff_backup.backup(scratch / "source", scratch / "repository", at=now, api=api).check()
    counts = statistics(scratch / "repository")
    assert [counts[name] for name in ("NewFiles", "DeletedFiles", "ChangedFiles", "IncrementFiles")] == ["0"] * 4
    agreement.check_all(scratch / "repository", [*states, states[-1]._replace(time=now)], rdiff_backup, scratch)


@pytest.mark.parametrize("api", [200, 201])
def test_histfs_sees_no_change_where_none_is(scratch: Path, rdiff_backup: Oracle, api: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states = []
    for state in histories.random_history(source, 51_000 + api, SESSIONS, histories.RDIFF_BACKUP_WRITES):
        rdiff_backup.backup(source, repository, at=state.time, api=api).check()
        states.append(state)
    now = states[-1].time + 1_000
    outcome = backup(source, repository, now=now, report=agreement.complain)
    assert (outcome.statistics.new_files, outcome.statistics.deleted_files) == (0, 0)
    assert (outcome.statistics.changed_files, outcome.statistics.source_files) == (0, len(states[-1].manifest))
    agreement.check_all(repository, [*states, states[-1]._replace(time=now)], rdiff_backup, scratch)


def test_every_session_of_histfs_is_an_increment(scratch: Path, rdiff_backup: Oracle) -> None:
    """Also one in which nothing has changed."""
    states = written_by_histfs(scratch, 52_000)
    agreement.histfs_backup(scratch / "source", scratch / "repository", at=states[-1].time + 5)
    times = [*(state.time for state in states), states[-1].time + 5]
    assert rdiff_backup.increments(scratch / "repository") == times


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_what_rdiff_backup_has_removed_is_gone_and_no_more(scratch: Path, rdiff_backup: Oracle, kept: int) -> None:
    states = written_by_histfs(scratch, 53_000 + kept)
    repository = scratch / "repository"
    run = rdiff_backup.remove_older_than(repository, at=states[-kept].time)
    assert run.code == 0, run.output
    states = states[-kept:]
    agreement.check_all(repository, states, rdiff_backup, scratch)
    now = states[-1].time + 5
    agreement.histfs_backup(scratch / "source", repository, at=now)
    agreement.check_all(repository, [*states, states[-1]._replace(time=now)], rdiff_backup, scratch)


def test_a_mount_sees_what_the_other_program_does(scratch: Path, rdiff_backup: Oracle) -> None:
    """Sessions come and go under a mount, and what is open stays what it was."""
    source, repository = scratch / "source", scratch / "repository"
    history = histories.random_history(source, 54_000, SESSIONS, histories.RDIFF_BACKUP_WRITES)
    states = []
    for _ in range(4):
        states.append(next(history))
        agreement.histfs_backup(source, repository, at=states[-1].time)
    with agreement.mounted(repository, scratch) as mountpoint:
        agreement.check_shown(mountpoint, states)
        for number, state in enumerate(history):
            if number % 2:
                agreement.histfs_backup(source, repository, at=state.time)
            else:
                rdiff_backup.backup(source, repository, at=state.time, api=201).check()
            states.append(state)
            agreement.check_shown(mountpoint, states)


def test_both_refuse_to_write_at_the_same_time(scratch: Path, rdiff_backup: Oracle) -> None:
    """Two sessions of one second cannot be told apart: the second one is refused, and the repository is untouched."""
    states = written_by_histfs(scratch, 55_000)
    source, repository = scratch / "source", scratch / "repository"
    assert rdiff_backup.backup(source, repository, at=states[-1].time).code != 0
    with pytest.raises(HistfsError):
        backup(source, repository, now=states[-1].time, report=agreement.complain)
    with Repository.open(repository) as opened:
        assert opened.unfinished() is None
    agreement.check_all(repository, states, rdiff_backup, scratch)
