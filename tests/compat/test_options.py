"""Repositories that rdiff-backup wrote with unusual options, and histfs goes on with."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

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
    if not general:
        agreement.check_mirror(repository, states[-1])
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("seed", range(4))
def test_options(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 60_000 + seed, histories.RDIFF_BACKUP_WRITES)


@pytest.mark.parametrize("quoted", ["A-Z;", "A-Z", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "a", "."])
def test_quoted_names(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    write_and_check(scratch, rdiff_backup, 61_000 + len(quoted), QUOTED, [f"--chars-to-quote={quoted}"])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_quoted_names(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    quoted = ("A-Z;", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "0-9", " -/")[seed % 4]
    write_and_check(scratch, rdiff_backup, 62_000 + seed, QUOTED, [f"--chars-to-quote={quoted}"])
