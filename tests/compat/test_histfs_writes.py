"""What histfs writes, rdiff-backup reads: every session of random histories, as it was."""

from pathlib import Path

import pytest

from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle


def write_and_check(scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, sessions):
        agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    agreement.check_all(repository, states, rdiff_backup, scratch)


@pytest.mark.parametrize("seed", range(12))
def test_every_session_is_what_the_source_was(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, seed, 12)


@pytest.mark.parametrize("seed", range(400, 404))
def test_what_the_oracle_cannot_judge(scratch: Path, seed: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, 12, histories.ANYTHING):
        agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_mount(repository, states, scratch)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_histories(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, seed, 24)
