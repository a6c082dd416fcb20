"""Both programs write sessions with rules into one repository, in turns, and new rules each time.

What a session must hold is said by the other program: by what it copies to a new place by the same rules.
"""

import random
import shutil
from pathlib import Path

import pytest

from histfs.cli import main
from tests import comparison, histories
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle
from tests.selections import random_rules


def write(writer: str, rdiff_backup: Oracle, at: int, rules: list[str], source: Path, repository: Path) -> None:
    if writer == "histfs":
        assert main(["-q", f"--current-time={at}", "backup", *rules, str(source), str(repository)]) == 0
    else:
        rdiff_backup.backup(source, repository, at=at, api=201, special=rules).check()


def write_and_check(scratch: Path, rdiff_backup: Oracle, seed: int, sessions: int) -> None:
    source, repository, beside = scratch / "source", scratch / "repository", scratch / "beside"
    lists = scratch / "lists"
    chance = random.Random(f"selected {seed}")
    states: list[State] = []
    for state in histories.random_history(source, seed, sessions, histories.RDIFF_BACKUP_WRITES):
        lists.mkdir()
        paths = sorted(path for path in state.manifest if path)
        rules = random_rules(chance, source, paths, lists, present=False) if chance.random() < 0.8 else []
        writer, other = chance.choice((("histfs", "rdiff-backup"), ("rdiff-backup", "histfs")))
        write(other, rdiff_backup, state.time, rules, source, beside)
        write(writer, rdiff_backup, state.time, rules, source, repository)
        selected = set(comparison.read(beside, leaving_out=b"rdiff-backup-data"))
        states.append(State(state.time, comparison.part(state.manifest, selected)))
        shutil.rmtree(beside)
        shutil.rmtree(lists)
    agreement.check_all(repository, states, rdiff_backup, scratch, nlink=False)


@pytest.mark.parametrize("seed", range(3))
def test_every_session_is_what_was_selected(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 70_000 + seed, 8)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(60))
def test_many_histories(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 71_000 + seed, 16)
