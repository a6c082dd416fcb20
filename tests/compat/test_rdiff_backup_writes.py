"""What rdiff-backup writes, histfs lists, restores, verifies and mounts: each session of random histories as it was."""

from pathlib import Path

import pytest

from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle

ZONES = ("UTC", "Asia/Kathmandu", "America/New_York")  # no fractions of an hour west of Greenwich: trap 1


def write_and_check(scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int, api: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, sessions, histories.RDIFF_BACKUP_WRITES):
        zone = ZONES[(seed + len(states) // 4) % len(ZONES)]
        rdiff_backup.backup(source, repository, at=state.time, api=api, zone=zone).check()
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("api", [200, 201])
@pytest.mark.parametrize("seed", range(4))
def test_every_session_is_what_the_source_was(scratch: Path, rdiff_backup: Oracle, seed: int, api: int) -> None:
    write_and_check(scratch, rdiff_backup, 10_000 + seed, 12, api)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_histories(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 11_000 + seed, 24, 200 + seed % 2)
