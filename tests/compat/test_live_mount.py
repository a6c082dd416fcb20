"""A mount that is read all the time, while both programs run sessions, are killed in them, and undo them."""

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path

import pytest

from histfs.store.when import snapshot_names
from tests import comparison, histories
from tests.compat import agreement
from tests.compat.test_interrupted import histfs_command, marker_names
from tests.histories import State
from tests.oracle import Oracle
from tests.watching import watched

_DAY = 86_400
_PATIENCE_S = 30.0


class Reader:
    """Reads one snapshot of the mount after the other, with all its bytes."""

    def __init__(self, mountpoint: Path, states: list[State], seed: int) -> None:
        self._mountpoint = mountpoint
        self._states = states  # grows
        self._chance = random.Random(seed)

    def look(self) -> list[object]:
        states = self._states[:]
        state = self._chance.choice([states[0], *states[-4:]])
        name = snapshot_names([each.time for each in states], UTC)[state.time]
        agreement.agree(state, comparison.read(self._mountpoint / name), "the mount", root_mtime=False)
        return []


class Writers:
    """Sessions of both programs on one repository; `states` are those that have finished."""

    def __init__(self, source: Path, repository: Path, rdiff_backup: Oracle, seed: int) -> None:
        self._source = source
        self._repository = repository
        self._rdiff_backup = rdiff_backup
        self._chance = random.Random(f"writers {seed}")
        self._history = histories.random_history(source, seed, 10_000, histories.RDIFF_BACKUP_WRITES)
        self._now = histories.FIRST_SESSION
        self.states: list[State] = []
        self.undone = 0

    def session(self) -> None:
        """The source changes, and a session records it; perhaps another one died on it before."""
        state = next(self._history)._replace(time=self._now)
        if self.states and self._chance.random() < 0.5:
            self._killed_session(state)
        else:
            self._finish_session(state)
        self._now += _DAY

    def _finish_session(self, state: State) -> None:
        if self._chance.random() < 0.5:
            subprocess.run(histfs_command(self._source, self._repository, at=state.time), check=True)
        else:
            self._rdiff_backup.backup(self._source, self._repository, at=state.time, api=201).check()
        self.states.append(state)

    def _killed_session(self, state: State) -> None:
        before = marker_names(self._repository)
        command = histfs_command(self._source, self._repository, at=state.time)
        if self._chance.random() < 0.5:
            arguments = self._rdiff_backup.backup_arguments(self._source, self._repository, at=state.time, api=201)
            command = self._rdiff_backup.command(arguments)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + _PATIENCE_S
            while marker_names(self._repository) == before and process.poll() is None:
                assert time.monotonic() < deadline
            time.sleep(self._chance.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        if not marker_names(self._repository) & before:  # it was committed all the same
            self.states.append(state)
        elif len(marker_names(self._repository)) > 1:
            self._regress()

    def _regress(self) -> None:
        """Undo what was killed; both programs warn that they had to."""
        self.undone += 1
        if self._chance.random() < 0.5:
            undone = self._rdiff_backup.regress(self._repository, api=201)
            assert undone.code in (0, 2), undone.output
        else:
            command = [sys.executable, "-m", "histfs", "--quiet", "regress", self._repository]
            assert subprocess.run(command, check=False).returncode in (0, 2)


def wait_until_shown(mountpoint: Path, states: list[State]) -> None:
    names = set(snapshot_names([state.time for state in states], UTC).values())
    deadline = time.monotonic() + _PATIENCE_S
    while set(os.listdir(mountpoint)) != names:
        assert time.monotonic() < deadline, (sorted(names), sorted(os.listdir(mountpoint)))
        time.sleep(0.02)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.long)])
def test_snapshots_do_not_change_in_a_mount(scratch: Path, rdiff_backup: Oracle, seconds: int) -> None:
    writers = Writers(scratch / "source", scratch / "repository", rdiff_backup, 40_000 + seconds)
    writers.session()
    writers.session()
    with agreement.mounted(scratch / "repository", scratch) as mountpoint:
        with watched([Reader(mountpoint, writers.states, seed).look for seed in range(2)]) as reading:
            end = time.monotonic() + seconds
            while time.monotonic() < end or not writers.undone:
                writers.session()
                wait_until_shown(mountpoint, writers.states)
                assert not any(reader.wrong for reader in reading)
        agreement.check_shown(mountpoint, writers.states)
