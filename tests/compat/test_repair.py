"""What histfs has repaired, rdiff-backup takes for a repository as any other; and the other way round."""

import os
from pathlib import Path

import pytest

from histfs.store.repair import plan_repair, repair
from tests import histories
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle

SESSIONS = 4


@pytest.mark.parametrize("by", ["histfs", "rdiff-backup"])
def test_after_a_repair_both_go_on(scratch: Path, rdiff_backup: Oracle, by: str) -> None:
    if os.geteuid():
        pytest.skip("only root's mirror has all attributes")
    source, repository = scratch / "source", scratch / "repository"
    states: list[State] = []
    for state in histories.random_history(source, 91_000, SESSIONS, histories.RDIFF_BACKUP_WRITES):
        if by == "histfs":
            agreement.histfs_backup(source, repository, at=state.time)
        else:
            rdiff_backup.backup(source, repository, at=state.time).check()
        states.append(state)
    data = repository / "rdiff-backup-data"
    newest = max(data.glob("mirror_metadata.*.snapshot.gz"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 3])
    for marker in data.glob("current_mirror.*"):
        marker.unlink()
    max(data.glob("session_statistics.*")).write_bytes(b"")
    outcome = repair(repository, now=states[-1].time, show=lambda _: None, report=agreement.complain)
    assert outcome.aside is not None
    assert len(outcome.repairs) >= 3
    assert plan_repair(repository).repairs == ()
    agreement.check_all(repository, states, rdiff_backup, scratch)
    now = states[-1].time + 1_000
    rdiff_backup.backup(source, repository, at=now).check()
    agreement.histfs_backup(source, repository, at=now + 1_000)
    more = [states[-1]._replace(time=now), states[-1]._replace(time=now + 1_000)]
    agreement.check_all(repository, [*states, *more], rdiff_backup, scratch)
    assert rdiff_backup.remove_older_than(repository, at=states[-1].time).code == 0
    agreement.check_all(repository, [states[-1], *more], rdiff_backup, scratch)
    assert list(data.glob("histfs/aside/*/mirror_metadata.*"))
