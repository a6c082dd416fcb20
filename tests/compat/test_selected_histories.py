"""Both programs write sessions with rules into one repository, in turns, and new rules each time.

What a session must hold is said by the other program: by what it copies to a new place by the same rules. In the
histories is all that a source may have: extended attributes, access control lists, long names, special files; they are
written with and without quoting, by root and by somebody else, in many zones.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from histfs.cli import main
from tests import comparison, histories
from tests.compat import agreement
from tests.histories import State
from tests.mirrors import read_mirror
from tests.oracle import Oracle
from tests.selections import random_rules
from tests.users import NOBODY, as_ordinary_user, give_away

IS_ROOT = os.geteuid() == 0


class Surroundings(NamedTuple):
    zone: str = "UTC"
    quoted: str = ""
    is_root: bool = True
    histfs_alone: bool = False  # as rdiff-backup writes names there that are an hour off (docs/format.md)


# With summer time and with half hours, on both sides of Greenwich.
SURROUNDINGS = (
    Surroundings(),
    Surroundings("Europe/Berlin", quoted="A-Z"),
    Surroundings("Australia/Adelaide", is_root=False),
    Surroundings("America/New_York", quoted="A-Z:;", is_root=False),
    Surroundings("America/St_Johns", quoted="0-4,-", histfs_alone=True),
    Surroundings("Asia/Kathmandu"),
    Surroundings("America/St_Johns", is_root=False, histfs_alone=True),
)


@pytest.fixture
def others() -> Iterator[Oracle]:
    """rdiff-backup, run by an ordinary user."""
    with Oracle(NOBODY if IS_ROOT else None) as oracle:
        yield oracle


class Writers:
    """Sessions of both programs, as `surroundings` has it."""

    def __init__(self, surroundings: Surroundings, rdiff_backup: Oracle, others: Oracle) -> None:
        self._surroundings = surroundings
        self._rdiff_backup = rdiff_backup if surroundings.is_root else others
        self._run: Callable[[Callable[[], None]], None] = as_ordinary_user
        if surroundings.is_root:
            self._run = lambda action: action()

    def write(self, writer: str, at: int, rules: list[str], source: Path, repository: Path) -> None:
        general = [f"--chars-to-quote={self._surroundings.quoted}"] if self._surroundings.quoted else []
        if writer == "rdiff-backup":
            zone = self._surroundings.zone
            self._rdiff_backup.backup(
                source, repository, at=at, api=201, zone=zone, general=general, special=rules
            ).check()
            return
        command = ["-q", f"--current-time={at}", *general, "backup", *rules, str(source), str(repository)]

        def run_histfs() -> None:
            assert main(command) == 0

        self._run(run_histfs)


def write_and_check(scratch: Path, writers: Writers, rdiff_backup: Oracle, seed: int, sessions: int) -> None:
    surroundings = SURROUNDINGS[seed % len(SURROUNDINGS)]
    place = scratch / "place"
    place.mkdir()
    scratch.chmod(0o755)
    limits = histories.RDIFF_BACKUP_WRITES
    if surroundings.quoted:
        limits = limits._replace(long_names=False)  # quoted, they are too long for the oracle to link
    if not surroundings.is_root:
        limits = limits._replace(root=False)
        give_away(place)
    source, repository, beside, lists = (place / name for name in ("source", "repository", "beside", "lists"))
    chance = random.Random(f"selected {seed}")
    states: list[State] = []
    for state in histories.random_history(source, seed, sessions, limits):
        manifest = state.manifest
        if not surroundings.is_root:
            give_away(source)
            manifest = comparison.read(source)
        lists.mkdir()
        paths = sorted(path for path in manifest if path)
        rules = random_rules(chance, source, paths, lists, present=False) if chance.random() < 0.8 else []
        writer, other = chance.choice((("histfs", "rdiff-backup"), ("rdiff-backup", "histfs")))
        if surroundings.histfs_alone:
            writer, other = "histfs", "rdiff-backup"
        writers.write(other, state.time, rules, source, beside)
        writers.write(writer, state.time, rules, source, repository)
        selected = set(read_mirror(beside))
        states.append(State(state.time, comparison.part(manifest, selected)))
        shutil.rmtree(beside)
        shutil.rmtree(lists)
    agreement.check_all(repository, states, rdiff_backup, scratch, nlink=False)


def check_history(
    scratch: Path, rdiff_backup: Oracle, others: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int, sessions: int
) -> None:
    surroundings = SURROUNDINGS[seed % len(SURROUNDINGS)]
    if surroundings.is_root and not IS_ROOT:
        surroundings = surroundings._replace(is_root=False)
    monkeypatch.setenv("TZ", surroundings.zone)
    time.tzset()
    try:
        write_and_check(scratch, Writers(surroundings, rdiff_backup, others), rdiff_backup, seed, sessions)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("seed", range(70_000, 70_000 + len(SURROUNDINGS)))
def test_every_session_is_what_was_selected(
    scratch: Path, rdiff_backup: Oracle, others: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    check_history(scratch, rdiff_backup, others, monkeypatch, seed, 8)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(71_000, 71_060))
def test_many_histories(
    scratch: Path, rdiff_backup: Oracle, others: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    check_history(scratch, rdiff_backup, others, monkeypatch, seed, 16)
