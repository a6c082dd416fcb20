"""The same faults in sessions of rdiff-backup, for comparison: what it wrote is read by itself.

It is run, never read: the worker imports it once and forks (see `tests.oracle`).
"""

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

from tests import comparison, oracle
from tests.comparison import Manifest, difference
from tests.faults import judge
from tests.faults.judge import Expected, History, Problem
from tests.faults.operations import LAST, TIMES, Session, Workshop, make_step
from tests.faults.supervise import Ran

NAME = "session of rdiff-backup"
_LONGEST = 150
_GOOD = (0, 2, 8, 10)  # with warnings


class RdiffBackupWorkshop(Workshop):
    """Boxes with sessions of rdiff-backup."""

    def prepare(self) -> None:
        for name in oracle._modules_of_a_backup():
            try:
                importlib.import_module(name)
            except ImportError:  # a module that imports itself under another name
                continue
        self.place.new()
        for number in range(4):
            if number == 3:
                self.place.keep("three")
            make_step(self.source.with_name("with long names"), number)
            self._copy_source()
            self.states[TIMES[number]] = comparison.read(self.source)
            self.check_run(self.backup_arguments(TIMES[number]), _GOOD)
        self.states[LAST] = self.states[TIMES[3]]

    def _copy_source(self) -> None:
        """Without long names, which are a matter of their own."""
        shutil.rmtree(self.source, ignore_errors=True)
        subprocess.run(["cp", "-a", self.source.with_name("with long names"), self.source], check=True)
        for name in os.listdir(self.source):
            if len(name) > _LONGEST:
                subprocess.run(["rm", "-rf", self.source / name], check=True)
        status = self.source.with_name("with long names").stat()
        os.utime(self.source, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def call(self, arguments: Sequence[str]) -> int:
        oracle._become_rdiff_backup(list(arguments), None)

    def backup_arguments(self, at: int) -> list[str]:
        repository = os.fspath(self.repository)
        return ["--api-version=201", f"--current-time={at}", "backup", os.fspath(self.source), repository]

    def restored(self, session_time: int) -> Manifest:
        """What its restore makes of a session. RuntimeError if it fails."""
        target = self.place.root / "restored"
        shutil.rmtree(target, ignore_errors=True)
        arguments = ["--api-version=201", "restore", f"--at={session_time}", os.fspath(self.repository)]
        ran = self.run([*arguments, os.fspath(target)])
        if ran.code not in _GOOD:
            raise RuntimeError(f"restore ended with {ran.code}: {ran.output[-500:]}")
        return comparison.read(target)


class RdiffBackupSession(Session):
    name = NAME
    reads_running = False

    def prepare(self) -> None:
        pass

    def read(self, history: History, kind: str) -> Callable[[], list[Problem]]:
        w = self.workshop
        assert isinstance(w, RdiffBackupWorkshop)
        return lambda: judge.check_sessions(history, w.restored, history, kind)

    def claims(self, ran: Ran) -> list[Problem]:
        """Success is what ended without a word about an error, and left a session that is complete."""
        if ran.code < 0 or ran.code & 1:
            return []
        if not self.is_finished():
            return [Problem("dishonest", f"exit code {ran.code} without a session")]
        found = judge.forked(self.read(self.history(), "unreadable"))
        return [Problem("dishonest", f"exit code {ran.code}: {problem.text}") for problem in found]

    def after(self, ran: Ran | None) -> list[Problem]:
        w = self.workshop
        history = self.history()
        again = w.run(w.backup_arguments(LAST))
        problems = []
        if again.is_hung or again.code not in _GOOD:
            problems.append(Problem("stuck", f"the next backup ended with {again.code}: {again.output[-500:]}"))
        expected = {**history, LAST: Expected([w.states[LAST]])} if not problems else history
        problems += judge.forked(self.read(expected, "lost"))
        if lines := [] if problems else difference(w.states[LAST], judge.read_mirror(w.repository), links=False):
            problems.append(Problem("stuck", "mirror: " + "; ".join(lines)))
        return problems
