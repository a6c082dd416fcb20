"""A session that is killed: what was finished before can be read at once, and either program recovers.

The sessions of one program are killed at chosen system calls, on a fresh copy of the repository each; what the other
program wrote before, or will do afterwards, must not matter.
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from histfs.errors import HistfsError
from histfs.store.backup import backup
from histfs.store.regress import regress
from tests import comparison, histories
from tests.compat import agreement, killing
from tests.histories import State
from tests.oracle import Oracle

_FINISHED_SESSIONS = 3


QUOTED = "A-Z:.;"


def histfs_command(source: Path, repository: Path, *, at: int, general: Sequence[str] = ()) -> list[str]:
    arguments = ["--quiet", f"--current-time={at}", *general, "backup", str(source), str(repository)]
    return [sys.executable, "-m", "histfs", *arguments]


class Killed(NamedTuple):
    """A repository whose last session was killed, and the sessions that are finished."""

    repository: Path
    states: list[State]
    is_unfinished: bool


class Workshop:
    """A repository with some finished sessions, the next state of the source, and copies of it to break."""

    def __init__(self, scratch: Path, rdiff_backup: Oracle, seed: int, quoted: str = "") -> None:
        self._scratch = scratch
        self.source = scratch / "source"
        self._finished = scratch / "finished"
        self._states: list[State] = []
        writers = random.Random(f"workshop {seed}").choices(("histfs", 200, 201), k=_FINISHED_SESSIONS)
        history = histories.random_history(
            self.source,
            30_000 + seed,
            _FINISHED_SESSIONS + 1,
            histories.RDIFF_BACKUP_WRITES._replace(long_names=not quoted),
        )
        general = [f"--chars-to-quote={quoted}"]
        for writer in writers:
            state = next(history)
            if isinstance(writer, int):
                rdiff_backup.backup(self.source, self._finished, at=state.time, api=writer, general=general).check()
            else:
                # In a process of its own: regress takes a marker with the number of a living process for a session
                # that still runs, and ours lives (docs/format.md trap 22).
                command = histfs_command(self.source, self._finished, at=state.time, general=general)
                subprocess.run(command, check=True)
            self._states.append(state)
        self.next = next(history)

    def fresh(self) -> Path:
        """A copy of the repository before the session, in place of the last copy."""
        copy = self._scratch / "repository"
        if copy.exists():
            shutil.rmtree(copy)
        subprocess.run(["cp", "-a", self._finished, copy], check=True)
        return copy

    def keep(self, repository: Path) -> Path:
        """A second copy of a repository, in place of the last one."""
        copy = self._scratch / "second"
        if copy.exists():
            shutil.rmtree(copy)
        subprocess.run(["cp", "-a", repository, copy], check=True)
        return copy

    def killed(self, command: Sequence[str], chosen: Sequence[killing.Point]) -> Iterator[Killed]:
        """Repositories whose session, run by `command` on what `fresh` returns, was killed at the chosen points."""
        for point in chosen:
            repository = self.fresh()
            if killing.kill_at(command, point):
                yield self._what_is_finished(repository)

    def _what_is_finished(self, repository: Path) -> Killed:
        """The marker of the last finished session goes last, so its presence tells (docs/format.md 7.1)."""
        markers = marker_names(repository)
        if markers & marker_names(self._finished):
            return Killed(repository, self._states, len(markers) == 2)
        return Killed(repository, [*self._states, self.next], False)


def marker_names(repository: Path) -> set[str]:
    data = repository / "rdiff-backup-data"
    return {path.name for path in data.glob("current_mirror*")}


def check_next_session_of_histfs(workshop: Workshop, killed: Killed, rdiff_backup: Oracle, scratch: Path) -> None:
    """histfs undoes what is unfinished by itself, and all sessions are as they were."""
    now = workshop.next.time + 1_000
    reports: list[HistfsError] = []
    outcome = backup(workshop.source, killed.repository, now=now, report=reports.append)
    assert reports == []
    assert outcome.regressed == killed.is_unfinished
    states = [*killed.states, workshop.next._replace(time=now)]
    agreement.check_histfs(killed.repository, states, scratch)
    agreement.check_rdiff_backup_restores(killed.repository, states, rdiff_backup, scratch)
    agreement.check_mirror(killed.repository, states[-1], links=False)


def sample(seed: int, points: Sequence[killing.Point], count: int) -> list[killing.Point]:
    """Random points, but always the last of them: they are the steps of the commit."""
    chance = random.Random(f"points {seed}")
    return [*chance.sample(points, min(count, len(points))), *points[-2:]]


# Sessions of rdiff-backup


def kill_rdiff_backup(scratch: Path, rdiff_backup: Oracle, seed: int, count: int, quoted: str = "") -> None:
    killing.skip_unless_traceable()
    workshop = Workshop(scratch, rdiff_backup, seed, quoted)
    repository = workshop.fresh()
    arguments = Oracle.backup_arguments(workshop.source, repository, at=workshop.next.time, api=200 + seed % 2)
    command = Oracle.command(arguments)
    chosen = sample(seed, killing.points(command, repository), count)
    for number, killed in enumerate(workshop.killed(command, chosen)):
        agreement.check_histfs(killed.repository, killed.states, scratch)
        if number == 0 and agreement.can_mount():
            agreement.check_mount(killed.repository, killed.states, scratch)
        check_next_session_of_histfs(workshop, killed, rdiff_backup, scratch)
        if killed.is_unfinished:
            assert [*(killed.repository / "rdiff-backup-data").glob("rdiff-backup.tmp*")] == []


@pytest.mark.parametrize("seed", range(2))
def test_killed_sessions_of_rdiff_backup(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    kill_rdiff_backup(scratch, rdiff_backup, seed, 3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_many_killed_sessions_of_rdiff_backup(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    kill_rdiff_backup(scratch, rdiff_backup, 1_000 + seed, 12)


# Sessions of histfs


def kill_histfs(scratch: Path, rdiff_backup: Oracle, seed: int, count: int, quoted: str = "") -> None:
    killing.skip_unless_traceable()
    workshop = Workshop(scratch, rdiff_backup, seed, quoted)
    command = histfs_command(workshop.source, workshop.fresh(), at=workshop.next.time)
    chosen = sample(seed, killing.points(command, scratch / "repository"), count)
    for number, killed in enumerate(workshop.killed(command, chosen)):
        agreement.check_histfs(killed.repository, killed.states, scratch)
        if number == 0 and agreement.can_mount():
            agreement.check_mount(killed.repository, killed.states, scratch)
        second = killed._replace(repository=workshop.keep(killed.repository))
        check_regress_of_rdiff_backup(second, rdiff_backup, scratch)
        check_next_session_of_histfs(workshop, killed, rdiff_backup, scratch)
        data = killed.repository / "rdiff-backup-data"
        assert [*data.glob("rdiff-backup.tmp*")] == []
        assert (data / "lock.yml").read_bytes() == b""


def check_regress_of_rdiff_backup(killed: Killed, rdiff_backup: Oracle, scratch: Path) -> None:
    run = rdiff_backup.regress(killed.repository)
    assert run.code == (2 if killed.is_unfinished else 0), run.output
    agreement.check_rdiff_backup_restores(killed.repository, killed.states, rdiff_backup, scratch)
    agreement.check_histfs(killed.repository, killed.states, scratch)
    agreement.check_mirror(killed.repository, killed.states[-1], links=False)


@pytest.mark.parametrize("seed", range(3))
def test_killed_sessions_of_histfs(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    kill_histfs(scratch, rdiff_backup, 100 + seed, 3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_many_killed_sessions_of_histfs(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    kill_histfs(scratch, rdiff_backup, 2_000 + seed, 12)


# Both, where names are quoted


@pytest.mark.parametrize("kill", [kill_rdiff_backup, kill_histfs])
def test_killed_sessions_of_quoted_repositories(
    scratch: Path, rdiff_backup: Oracle, kill: Callable[[Path, Oracle, int, int, str], None]
) -> None:
    kill(scratch, rdiff_backup, 400, 1, QUOTED)


@pytest.mark.long
@pytest.mark.parametrize("kill", [kill_rdiff_backup, kill_histfs])
@pytest.mark.parametrize("seed", range(10))
def test_many_killed_sessions_of_quoted_repositories(
    scratch: Path, rdiff_backup: Oracle, seed: int, kill: Callable[[Path, Oracle, int, int, str], None]
) -> None:
    kill(scratch, rdiff_backup, 4_000 + seed, 8, QUOTED)


# Recoveries, and first sessions


def test_a_killed_recovery_is_finished_by_the_next(scratch: Path, rdiff_backup: Oracle) -> None:
    killing.skip_unless_traceable()
    workshop = Workshop(scratch, rdiff_backup, 200)
    command = histfs_command(workshop.source, workshop.fresh(), at=workshop.next.time)
    catalog = scratch / "repository/rdiff-backup-data/histfs"  # which is written after the session was finished
    all_points = [point for point in killing.points(command, scratch / "repository") if str(catalog) not in point.text]
    [killed] = workshop.killed(command, [all_points[len(all_points) * 2 // 3]])
    assert killed.is_unfinished
    broken = workshop.keep(killed.repository)
    recovery = [sys.executable, "-m", "histfs", "regress", str(broken)]
    for point in sample(200, killing.points(recovery, broken), 2):
        broken = workshop.keep(killed.repository)
        assert killing.kill_at(recovery, point)
        agreement.check_histfs(broken, killed.states, scratch)
        regress(broken, report=agreement.complain)
        agreement.check_histfs(broken, killed.states, scratch)
        agreement.check_rdiff_backup_restores(broken, killed.states, rdiff_backup, scratch)
        assert regress(broken, report=agreement.complain) is None


@pytest.mark.parametrize("writer", ["histfs", "rdiff-backup"])
def test_a_killed_first_session_is_begun_again(scratch: Path, rdiff_backup: Oracle, writer: str) -> None:
    killing.skip_unless_traceable()
    source, repository = scratch / "source", scratch / "repository"
    state = next(histories.random_history(source, 300, 1))
    command = histfs_command(source, repository, at=state.time)
    if writer == "rdiff-backup":
        command = Oracle.command(Oracle.backup_arguments(source, repository, at=state.time))
    for point in sample(300, killing.points(command, repository), 4):
        shutil.rmtree(repository)
        if not killing.kill_at(command, point) or marker_names(repository):
            continue
        again = state._replace(time=state.time + 10)
        agreement.histfs_backup(source, repository, at=again.time)
        agreement.check_histfs(repository, [again], scratch)
        agreement.check_rdiff_backup_restores(repository, [again], rdiff_backup, scratch)


_NOTING = """
import sys
from histfs.cli import main
from histfs.store import begun, ledger
begun.INTERVAL_S = 0
ledger._SETTLED_AFTER_NS = -(10**12)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("then", ["histfs", "rdiff-backup"])
def test_a_first_session_that_has_noted_what_it_copied(scratch: Path, rdiff_backup: Oracle, then: str) -> None:
    """histfs goes on with it; to rdiff-backup it is a first session like one of its own that did not finish."""
    killing.skip_unless_traceable()
    source, repository = scratch / "source", scratch / "repository"
    state = next(histories.random_history(source, 500, 1))
    for number in range(30):
        (source / f"large{number:02}").write_bytes(random.Random(number).randbytes(100_000))
    state = State(state.time, comparison.read(source))
    command = [sys.executable, "-c", _NOTING, *histfs_command(source, repository, at=state.time)[3:]]
    chosen = [
        point
        for point in killing.points(command, repository)
        if "histfs/begun" in point.text and "write" in point.syscall
    ]
    assert chosen
    killed = 0
    for point in chosen[len(chosen) // 2 :][:3]:
        shutil.rmtree(repository)
        if not killing.kill_at(command, point) or marker_names(repository):
            continue
        killed += 1
        again = state._replace(time=state.time + 10)
        if then == "histfs":
            agreement.histfs_backup(source, repository, at=again.time)
        else:
            # Its own leave a lock file as well, and need the same word.
            run = rdiff_backup.run(["--force", *Oracle.backup_arguments(source, repository, at=again.time)])
            assert (run.code, "Found interrupted initial backup" in run.output) == (0, True)
        agreement.check_histfs(repository, [again], scratch)
        agreement.check_rdiff_backup_restores(repository, [again], rdiff_backup, scratch)
        agreement.check_mirror(repository, again)
    assert killed
