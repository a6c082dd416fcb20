"""Repositories that one program wrote with unusual options, and the other goes on with."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.store.naming import Naming
from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle

# Quoted, long names become too long for the file system, which the oracle cannot link.
QUOTED = histories.RDIFF_BACKUP_WRITES._replace(long_names=False)
SESSIONS = 8
GENERAL = ("--use-compatible-timestamps", "--null-separator", "--fsync")
SPECIAL = ("--no-compression", "--not-compressed-regexp=.*[0-4]$", "--no-file-statistics", "--no-compare-inode")


def write_and_check(
    scratch: Path, rdiff_backup: Oracle, seed: int, limits: histories.Limits, general: Sequence[str] = ()
) -> None:
    source, repository = scratch / "source", scratch / "repository"
    chance = random.Random(f"options {seed}")
    states = []
    for number, state in enumerate(histories.random_history(source, seed, SESSIONS, limits)):
        if number % 4 == 3:
            agreement.histfs_backup(source, repository, at=state.time)
        else:
            some = [option for option in GENERAL if chance.random() < 0.4]
            special = [option for option in SPECIAL if chance.random() < 0.4]
            rdiff_backup.backup(
                source, repository, at=state.time, api=200 + seed % 2, general=[*general, *some], special=special
            ).check()
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_mirror(repository, states[-1])
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("seed", range(4))
def test_options(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 60_000 + seed, histories.RDIFF_BACKUP_WRITES)


@pytest.mark.parametrize("quoted", ["A-Z;", "A-Z", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "a", "."])
def test_quoted_names(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    write_and_check(scratch, rdiff_backup, 61_000 + len(quoted), QUOTED, [f"--chars-to-quote={quoted}"])


SETS = (
    "A-Z:;",
    '\\x00-\\x1f"*/:<>?\\\\|\\x7f;',
    "a0-9",
    ".",
    "^a-z_",
    "A-Z\\x00-\\x1f",
)  # nothing beyond ASCII: what reads that would wait for ever


def take_turns(scratch: Path, rdiff_backup: Oracle, seed: int, quoted: str) -> None:
    """The first session is one of histfs; each may spell times in either way."""
    source, repository = scratch / "source", scratch / "repository"
    chance = random.Random(f"turns {seed}")
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, SESSIONS, QUOTED):
        if states and chance.random() < 0.5:
            general = [f"--chars-to-quote={quoted}", *(GENERAL if chance.random() < 0.5 else ())]
            rdiff_backup.backup(source, repository, at=state.time, api=200 + seed % 2, general=general).check()
        else:
            naming = Naming(quoted.encode(), chance.random() < 0.5)
            agreement.histfs_backup(source, repository, at=state.time, naming=naming)
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_mirror(repository, states[-1])
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("quoted", SETS[:2])
def test_quoted_names_that_histfs_began(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    take_turns(scratch, rdiff_backup, 63_000 + len(quoted), quoted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(60))
def test_many_quoted_names_that_histfs_began(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    take_turns(scratch, rdiff_backup, 64_000 + seed, SETS[seed % len(SETS)])


def write_long_names(scratch: Path, seed: int, quoted: str) -> None:
    """Names too long for increments, and when quoted for the mirror: rdiff-backup cannot judge them."""
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, SESSIONS, histories.ANYTHING):
        agreement.histfs_backup(source, repository, at=state.time, naming=Naming(quoted.encode()))
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("quoted", ["A-Z\\x80-\\xff"])
def test_long_quoted_names(scratch: Path, quoted: str) -> None:
    write_long_names(scratch, 65_000, quoted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_many_long_quoted_names(scratch: Path, seed: int) -> None:
    write_long_names(scratch, 66_000 + seed, (*SETS, "\\x80-\\xff")[seed % (len(SETS) + 1)])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_quoted_names(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    quoted = ("A-Z;", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "0-9", " -/")[seed % 4]
    write_and_check(scratch, rdiff_backup, 62_000 + seed, QUOTED, [f"--chars-to-quote={quoted}"])
