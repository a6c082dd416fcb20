"""Both programs write sessions into the same repository, in random turns."""

import random
from pathlib import Path

import pytest

from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle

LONG = histories.RDIFF_BACKUP_WRITES._replace(late_long_names=True)


def write(
    scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int, limits: histories.Limits
) -> list[histories.State]:
    source, repository = scratch / "source", scratch / "repository"
    writers = random.Random(f"writers {seed}").choices(("histfs", 200, 201), (2, 1, 1), k=sessions)
    states: list[histories.State] = []
    for state, writer in zip(histories.random_history(source, seed, sessions, limits), writers, strict=True):
        if isinstance(writer, int):
            rdiff_backup.backup(source, repository, at=state.time, api=writer).check()
        else:
            agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    return states


def write_and_check(scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int) -> None:
    states = write(scratch, rdiff_backup, seed, sessions, histories.RDIFF_BACKUP_WRITES)
    agreement.check_all(scratch / "repository", states, rdiff_backup, scratch)


def write_long_names(scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int) -> None:
    """rdiff-backup writes such names right, but cannot judge them when it restores."""
    states = write(scratch, rdiff_backup, seed, sessions, LONG)
    agreement.check_histfs(scratch / "repository", states, scratch)
    agreement.check_mount(scratch / "repository", states, scratch)


@pytest.mark.parametrize("seed", range(4))
def test_every_session_is_what_the_source_was(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 20_000 + seed, 14)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_histories(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 21_000 + seed, 24)


def test_long_names(scratch: Path, rdiff_backup: Oracle) -> None:
    write_long_names(scratch, rdiff_backup, 22_000, 10)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_many_long_names(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_long_names(scratch, rdiff_backup, 23_000 + seed, 16)
