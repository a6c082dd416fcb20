"""Repositories written west of Greenwich in zones with a half hour, whose names are an hour off when they are read."""

from pathlib import Path

from histfs.store.backup import backup
from histfs.store.repository import Repository
from histfs.store.restore import restore
from tests import comparison, histories
from tests.oracle import Oracle

SESSIONS = 21  # two full lists stay in the middle of the history


def test_each_session_is_found_though_its_names_disagree(scratch: Path, rdiff_backup: Oracle) -> None:
    source, repository = scratch / "source", scratch / "repository"
    manifests = []
    now = 0
    for number, state in enumerate(histories.random_history(source, 5, SESSIONS, histories.RDIFF_BACKUP_WRITES)):
        now = state.time + number * 7200  # more apart than the names are off
        rdiff_backup.backup(source, repository, at=now, api=201, zone="America/St_Johns").check()
        manifests.append(state.manifest)
    backup(source, repository, now=now + 7200, report=_fail)
    manifests.append(manifests[-1])
    with Repository.open(repository) as opened:
        assert len(opened.sessions()) == SESSIONS + 1
        for session_time, manifest in zip(opened.sessions(), manifests, strict=True):
            target = scratch / str(session_time)
            restore(opened, b"", session_time, target, report=_fail)
            assert not comparison.difference(manifest, comparison.read(target), symlink_owners=False)


def _fail(error: Exception) -> None:
    raise error
