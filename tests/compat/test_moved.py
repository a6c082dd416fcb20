"""What histfs links because it was moved is to rdiff-backup what it always was: a name that went, another that came."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.store import ledger, moved
from tests import comparison, histories
from tests.compat import agreement, killing
from tests.compat.test_interrupted import Killed, check_regress_of_rdiff_backup, histfs_command, marker_names, sample
from tests.compat.test_taking_turns import write
from tests.histories import FIRST_SESSION, State
from tests.oracle import Oracle


def write_moves(scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int, sessions: int) -> None:
    """Random histories, in which much is moved; all of it is looked for, and by half of them taken on trust."""
    monkeypatch.setattr(moved, "SMALLEST", 1)
    monkeypatch.setattr(ledger, "_SETTLED_AFTER_NS", -(10**12) if seed % 2 else 10**12)
    states = write(scratch, rdiff_backup, seed, sessions, histories.RDIFF_BACKUP_WRITES)
    agreement.check_all(scratch / "repository", states, rdiff_backup, scratch)


@pytest.mark.parametrize("seed", range(2))
def test_histories(scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    write_moves(scratch, rdiff_backup, monkeypatch, 24_000 + seed, 10)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_many_histories(scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    write_moves(scratch, rdiff_backup, monkeypatch, 25_000 + seed, 24)


# Killed


def sources(source: Path) -> Iterator[State]:
    """Directories and files; then they are moved, past each other."""
    chance = random.Random("moved")
    for name in ("m/1.jpg", "m/below/2.txt", "n/3.jpg", "n/4", "o.jpg"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(chance.randbytes(chance.randint(17_000, 30_000)))
    yield State(FIRST_SESSION, comparison.read(source))
    (source / "m").rename(source / "a")
    (source / "n").rename(source / "a/z")
    (source / "o.jpg").rename(source / "n")
    yield State(FIRST_SESSION + 60, comparison.read(source))


def kill(scratch: Path, rdiff_backup: Oracle, count: int) -> None:
    killing.skip_unless_traceable()
    source, finished, repository = scratch / "source", scratch / "finished", scratch / "repository"
    states = sources(source)
    first = next(states)
    subprocess.run(histfs_command(source, finished, at=first.time), check=True)
    second = next(states)
    command = histfs_command(source, repository, at=second.time)
    shutil.copytree(finished, repository, symlinks=True)
    points = killing.points(command, repository)
    assert any("linkat" in point.syscall for point in points)
    for point in sample(len(points), points, count):
        shutil.rmtree(repository)
        subprocess.run(["cp", "-a", finished, repository], check=True)
        if not killing.kill_at(command, point):
            continue
        is_undone = bool(marker_names(repository) & marker_names(finished))
        known = [first] if is_undone else [first, second]
        killed = Killed(repository, known, is_undone and len(marker_names(repository)) == 2)
        agreement.check_histfs(repository, known, scratch)
        check_regress_of_rdiff_backup(killed, rdiff_backup, scratch)
        third = second._replace(time=second.time + 60)
        rdiff_backup.backup(source, repository, at=third.time).check()
        agreement.check_rdiff_backup_restores(repository, [*known, third], rdiff_backup, scratch)
        agreement.check_histfs(repository, [*known, third], scratch)
        for place, _, names in os.walk(repository):
            assert [name for name in names if (Path(place) / name).lstat().st_nlink != 1] == []


def test_killed_sessions(scratch: Path, rdiff_backup: Oracle) -> None:
    kill(scratch, rdiff_backup, 4)


@pytest.mark.long
def test_sessions_killed_anywhere(scratch: Path, rdiff_backup: Oracle) -> None:
    kill(scratch, rdiff_backup, 1000)
