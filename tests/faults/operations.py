"""What is interrupted: each operation that changes a repository or a target, and how it goes on.

All of them over a small rich tree. An operation begins with a box that was kept (finished sessions, perhaps a broken
one), runs one command in it, and knows what must hold whenever that was interrupted: `history` and `claims` without
anything being done, `after` when the same user does next what the manual says.
"""

import contextlib
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from histfs.store.format.times import parse_time
from tests import comparison
from tests.comparison import Manifest, difference
from tests.faults import judge, supervise
from tests.faults.judge import DATA, Expected, History, Problem
from tests.faults.places import Disk, Memory
from tests.faults.supervise import Action, Plan, Ran
from tests.store import rich
from tests.trees import MTIME

TIMES = tuple(1_700_000_040 + number * 86_400 for number in range(7))
FIRST, SECOND, THIRD, FOURTH, NEXT, LAST, _ = TIMES
WARNED = 2
_LARGE_BYTES = 400_000
_REMOVED = (b"changed", b"kept", b"g2-a")

Place = Memory | Disk


def make_step(source: Path, number: int) -> None:
    """The source as it is at session `number`, from 0, made from what it was at the one before."""
    (rich.first, rich.second, rich.third, rich.fourth)[number](source)
    chance = random.Random(number)
    large = source / "large"
    content = bytearray(random.Random("large").randbytes(_LARGE_BYTES) if number == 0 else large.read_bytes())
    for _ in range(4):  # as an image changes
        place = chance.randrange(len(content) - 3000)
        content[place : place + 3000] = chance.randbytes(3000)
    _write(large, bytes(content), number)
    inserted = source / "inserted"
    before = random.Random("inserted").randbytes(60_000) if number == 0 else inserted.read_bytes()
    _write(inserted, before[:1000] + chance.randbytes(500) + before[1000:], number)
    _write(source / f"large-{number}", chance.randbytes(30_000), number)
    with contextlib.suppress(FileNotFoundError):
        (source / f"large-{number - 2}").unlink()
    if number == 3:
        (source / "large-2").rename(source / "kept/moved")
        os.utime(source / "kept", (MTIME + number, MTIME + number))
    os.utime(source, (MTIME + number, MTIME + number))


def _write(path: Path, content: bytes, number: int) -> None:
    path.write_bytes(content)
    os.utime(path, (MTIME + number, MTIME + number))


class Workshop:
    """A place with the boxes that operations begin with, the source, and what it was at each session."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.source = place.root / "source"
        self.states: dict[int, Manifest] = {}
        self.repository = place.box / "repository"
        self.target = place.box / "target"
        self.cache = place.box / "cache"

    def prepare(self) -> None:
        """Keep the boxes `empty`, `three` and `four`, by the number of finished sessions; `four`'s source stays."""
        self.place.new()
        for name in ("cache", "tmp"):
            (self.place.box / name).mkdir()
        self.place.keep("empty")
        for number in range(4):
            if number == 3:
                self.place.keep("three")
            make_step(self.source, number)
            self.states[TIMES[number]] = comparison.read(self.source)
            self.check_run(self.backup_arguments(TIMES[number]))
        self.states[NEXT] = self.states[LAST] = self.states[FOURTH]
        self.place.keep("four")

    # Running

    def call(self, arguments: Sequence[str]) -> int:
        """In a forked process: one command of histfs, as from a command line. The exit code."""
        from histfs.cli import main

        temporary = self.place.box / "tmp"
        os.environ.update(XDG_CACHE_HOME=os.fspath(self.cache), TMPDIR=os.fspath(temporary))
        tempfile.tempdir = None
        return main(arguments)

    def run(self, arguments: Sequence[str], plan: Plan | None = None, log: Path | None = None) -> Ran:
        """Without a plan nobody watches, and no calls are counted."""
        if plan is None:
            return supervise.run_alone(lambda: self.call(arguments))
        return supervise.run(lambda: self.call(arguments), [self.place.box], plan, log=log)

    def check_run(self, arguments: Sequence[str], codes: Sequence[int] = (0,), plan: Plan | None = None) -> Ran:
        """Run something that must work: in the setting up, not under test."""
        ran = self.run(arguments, plan)
        if ran.code not in codes:
            raise RuntimeError(f"histfs {' '.join(arguments)} ended with {ran.code}: {ran.output}")
        return ran

    def backup_arguments(self, at: int) -> list[str]:
        return [f"--current-time={at}", "backup", os.fspath(self.source), os.fspath(self.repository)]

    # What is there

    def markers(self) -> list[int]:
        """The times in the names of the current_mirror markers, ascending."""
        try:
            names = os.listdir(os.fsencode(self.repository / DATA))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(parse_time(found[1]) for name in names if (found := _MARKER.match(name)))

    def names(self) -> list[str]:
        return judge.names_in(self.repository)

    def names_kept(self, box: str) -> list[str]:
        """The names in a repository that was kept, with their numbers."""
        self.place.take(box)
        paths = [os.path.join(at, name) for at, _, names in os.walk(self.repository) for name in names]
        return sorted(os.path.relpath(path, self.repository) for path in paths)

    def history(self, *times: int, may_be_gone: Sequence[int] = ()) -> History:
        return {time: Expected([self.states[time]], time in may_be_gone) for time in (*times, *may_be_gone)}


_MARKER = re.compile(rb"current_mirror\.(.*)\.data\Z")


def _must(ran: Ran, what: str, codes: Sequence[int] = (0,), *, silent: bool = False) -> list[Problem]:
    """A run after the fault has worked."""
    if ran.is_hung:
        return [Problem("hung", what)]
    if ran.code not in codes or (silent and ran.output):
        return [Problem("stuck", f"{what} ended with {ran.code}: {ran.output[-1500:]}")]
    return []


class Operation:
    """The base: what all have in common."""

    name = ""
    base = "three"
    reads_running = True  # whether a mount that runs meanwhile is asked as well
    mounts = False  # whether it is a real one, as is one that is made afterwards

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.prepare()

    def prepare(self) -> None:
        """Make what the operation begins with, and references of runs without a fault."""

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def history(self) -> History:
        """What may be there while nobody knows how far the command came."""
        raise NotImplementedError

    def claims(self, ran: Ran) -> list[Problem]:
        """What the exit code says, and is not so."""
        raise NotImplementedError

    def after(self, ran: Ran | None) -> list[Problem]:
        """Go on, and look at everything."""
        raise NotImplementedError

    def read(self, history: History, kind: str) -> Callable[[], list[Problem]]:
        """To be called in a forked process."""
        return lambda: judge.check_repository(self.workshop.repository, history, kind, self.workshop.cache)

    def next_session(self, history: History, names: Sequence[str], *, was_unfinished: bool) -> list[Problem]:
        """A plain backup makes all well again; `history`: without its session."""
        w = self.workshop
        ran = w.run(w.backup_arguments(LAST))
        problems = _must(ran, "the next backup", (WARNED if was_unfinished else 0,))
        if problems:
            return problems
        read = self.read({**history, LAST: Expected([w.states[LAST]])}, "lost")
        problems += judge.forked(lambda: read() + judge.check_mirror(w.repository, w.states[LAST]))
        problems += judge.check_names(w.repository, names)
        problems += _must(w.run(["verify", "--every-session", os.fspath(w.repository)]), "verify", silent=True)
        return problems

    def names_after(self, *runs: Sequence[str]) -> list[str]:
        """The names in the repository after clean runs that begin with the base."""
        self.workshop.place.take(self.base)
        for arguments in runs:
            self.workshop.check_run(arguments, (0, WARNED))
        return self.workshop.names()


class Session(Operation):
    name = "session"

    def prepare(self) -> None:
        w = self.workshop
        self._with = self.names_after(w.backup_arguments(FOURTH), w.backup_arguments(LAST))
        self._without = self.names_after(w.backup_arguments(LAST))

    def arguments(self) -> list[str]:
        return self.workshop.backup_arguments(FOURTH)

    def finished(self) -> Sequence[int]:
        """The sessions that are finished before."""
        return (FIRST, SECOND, THIRD)

    def this(self) -> int:
        return FOURTH

    def is_finished(self) -> bool:
        return self.workshop.markers() == [self.this()]

    def history(self) -> History:
        if self.is_finished():
            return self.workshop.history(*self.finished(), self.this())
        return self.workshop.history(*self.finished())

    def claims(self, ran: Ran) -> list[Problem]:
        if ran.code >= 0 and ran.code & 1 == 0 and not self.is_finished():
            return [Problem("dishonest", f"exit code {ran.code} without a session: {ran.output}")]
        if ran.code not in (0, 1, WARNED) and ran.code > 0:
            return [Problem("dishonest", f"exit code {ran.code} tells of the source: {ran.output}")]
        return []

    def after(self, ran: Ran | None) -> list[Problem]:
        was_finished = self.is_finished()
        was_unfinished = len(self.workshop.markers()) == 2 or self._is_headless()
        names = self._with if was_finished else self._without
        return self.next_session(self.history(), names, was_unfinished=was_unfinished)

    def _is_headless(self) -> bool:
        """Whether a first session left something to undo."""
        data = self.workshop.repository / DATA
        if self.workshop.markers() or not data.is_dir():
            return False
        return any(name not in ("lock.yml", "backup.log") for name in os.listdir(data))


class FirstSession(Session):
    name = "first session"
    base = "empty"

    def finished(self) -> Sequence[int]:
        return ()


class NextSession(Session):
    """A session that finds another one broken off, at one of several points, and undoes it first."""

    name = "session after a broken one"
    part = 0.6

    def prepare(self) -> None:
        w = self.workshop
        w.place.take("three")
        calls = w.run(w.backup_arguments(FOURTH), Plan()).calls
        # What comes after the commit is the catalog's: 60 calls or so.
        self.base = f"broken at {self.part}"
        w.place.take("three")
        broken = w.run(w.backup_arguments(FOURTH), Plan(Action.KILL, max(1, int((calls - 75) * self.part))))
        if len(w.markers()) != 2:
            raise RuntimeError(f"the session is not broken at {self.part}: {broken}")
        w.place.keep(self.base)
        self._with = self.names_after(w.backup_arguments(NEXT), w.backup_arguments(LAST))
        self._without = self.names_after(w.backup_arguments(LAST))

    def arguments(self) -> list[str]:
        return self.workshop.backup_arguments(NEXT)

    def this(self) -> int:
        return NEXT


class Regress(NextSession):
    """The command that undoes a broken session, and nothing else."""

    name = "regress"

    def arguments(self) -> list[str]:
        return ["regress", os.fspath(self.workshop.repository)]

    def claims(self, ran: Ran) -> list[Problem]:
        if ran.code in (0, WARNED) and len(self.workshop.markers()) != 1:
            return [Problem("dishonest", f"exit code {ran.code}, and the session is still there: {ran.output}")]
        return []

    def this(self) -> int:
        return FOURTH


class RegressEarly(Regress):
    name = "regress, broken early"
    part = 0.25


class RegressLate(Regress):
    name = "regress, broken late"
    part = 0.95


class StepBack(Operation):
    """The newest good session is undone."""

    name = "regress --force"
    base = "four"

    def prepare(self) -> None:
        w = self.workshop
        self._with = self.names_after(w.backup_arguments(LAST))
        self._without = self.names_after(self.arguments(), w.backup_arguments(LAST))

    def arguments(self) -> list[str]:
        return ["--force", "regress", os.fspath(self.workshop.repository)]

    def _is_there(self) -> bool:
        return self.workshop.markers() == [FOURTH]

    def history(self) -> History:
        times = (FIRST, SECOND, THIRD)
        return self.workshop.history(*times, FOURTH) if self._is_there() else self.workshop.history(*times)

    def claims(self, ran: Ran) -> list[Problem]:
        if ran.code == 0 and self.workshop.markers() != [THIRD]:
            return [Problem("dishonest", f"exit code 0, and the session is still there: {ran.output}")]
        return []

    def after(self, ran: Ran | None) -> list[Problem]:
        names = self._with if self._is_there() else self._without
        return self.next_session(self.history(), names, was_unfinished=len(self.workshop.markers()) == 2)


class RemoveSessions(Operation):
    name = "remove increments"
    base = "four"

    def prepare(self) -> None:
        self._names = self.names_after(self.arguments(), self.workshop.backup_arguments(LAST))

    def arguments(self) -> list[str]:
        return ["--force", "remove", "increments", f"--older-than={THIRD}", os.fspath(self.workshop.repository)]

    def history(self) -> History:
        return self.workshop.history(THIRD, FOURTH, may_be_gone=(FIRST, SECOND))

    def _after_removal(self) -> History:
        return self.workshop.history(THIRD, FOURTH)

    def claims(self, ran: Ran) -> list[Problem]:
        if ran.code != 0:
            return []
        found = judge.forked(self.read(self._after_removal(), "unreadable"))
        return [Problem("dishonest", f"exit code 0: {problem.text}") for problem in found]

    def after(self, ran: Ran | None) -> list[Problem]:
        problems = _must(self.workshop.run(self.arguments()), "the same command", (0, WARNED))
        problems += judge.forked(self.read(self._after_removal(), "lost"))
        return problems + self.next_session(self._after_removal(), self._names, was_unfinished=False)


class RemovePaths(RemoveSessions):
    name = "remove file"

    def arguments(self) -> list[str]:
        repository = os.fsencode(self.workshop.repository)
        return ["remove", "file", *(os.fsdecode(repository + b"/" + path) for path in _REMOVED)]

    def history(self) -> History:
        """In each session the paths are there as they were, or not at all; extended attributes go a step before."""
        found = {}
        for time in (FIRST, SECOND, THIRD, FOURTH):
            state = self.workshop.states[time]
            described = [state, _undescribed(state, _REMOVED, (b"user.",)), _undescribed(state, _REMOVED, (b"",))]
            found[time] = Expected([*described, _without(state, _REMOVED)])
        return found

    def _after_removal(self) -> History:
        times = (FIRST, SECOND, THIRD, FOURTH)
        return {time: Expected([_without(self.workshop.states[time], _REMOVED)]) for time in times}


def _undescribed(state: Manifest, paths: Sequence[bytes], prefixes: tuple[bytes, ...]) -> Manifest:
    """Without extended attributes that begin so, of the paths, what is below them, and other names of the same file."""
    gone = state.keys() - _without(state, paths).keys()
    gone |= {name for name, found in state.items() if gone & set(found.links or ())}
    return {
        name: found._replace(xattrs=tuple(pair for pair in found.xattrs if not pair[0].startswith(prefixes)))
        if name in gone
        else found
        for name, found in state.items()
    }


def _without(state: Manifest, paths: Sequence[bytes]) -> Manifest:
    kept = {name for name in state if not any(name == path or name.startswith(path + b"/") for path in paths)}
    return comparison.part(state, kept)


class Restore(Operation):
    """Into a directory that holds an older state, and something else."""

    name = "restore"
    base = "four and a target"

    def prepare(self) -> None:
        w = self.workshop
        w.place.take("four")
        w.check_run(["restore", f"--at={SECOND}", os.fspath(w.repository), os.fspath(w.target)])
        (w.target / "gone" / "stranger").write_bytes(b"of somebody")
        (w.target / "stranger").write_bytes(b"of somebody else")
        self._old = comparison.read(w.target)
        w.place.keep(self.base)
        self._names = w.names()

    def arguments(self) -> list[str]:
        w = self.workshop
        return ["restore", f"--at={FOURTH}", "--delete", os.fspath(w.repository), os.fspath(w.target)]

    def history(self) -> History:
        return self.workshop.history(FIRST, SECOND, THIRD, FOURTH)

    def _wanted(self) -> Manifest:
        return self.workshop.states[FOURTH]

    def claims(self, ran: Ran) -> list[Problem]:
        lines = self._torn()
        if ran.code == 0:
            lines += difference(self._wanted(), comparison.read(self.workshop.target))
            return [Problem("dishonest", f"exit code 0: {line}") for line in lines]
        return [Problem("corrupt", line) for line in lines]

    def _torn(self) -> list[str]:
        """Files of the target that are neither what they were nor what they shall be."""
        lines: list[str] = []
        if not self.workshop.target.exists():
            return lines
        for path, found in comparison.read(self.workshop.target).items():
            may_be = [state[path].sha1 for state in (self._old, self._wanted()) if path in state]
            if path in self._old and found.type == "file" and found.sha1 not in may_be:
                lines.append(f"target: {path!r} is neither the old file nor the new one")
        return lines

    def after(self, ran: Ran | None) -> list[Problem]:
        w = self.workshop
        # After a power cut files of the target may have lost what nobody has synced yet: that is not promised.
        problems = _must(w.run(self.arguments()), "the same restore")
        lines = difference(self._wanted(), comparison.read(w.target)) if not problems else []
        problems += [Problem("stuck", f"target: {line}") for line in lines]
        return problems + judge.check_names(w.repository, self._names)


class RestoreAnew(Restore):
    """Into a directory that is not there yet."""

    name = "restore, new target"
    base = "four"

    def prepare(self) -> None:
        self._old: Manifest = {}
        self.workshop.place.take(self.base)
        self._names = self.workshop.names()

    def arguments(self) -> list[str]:
        w = self.workshop
        return ["restore", f"--at={FIRST}", "--merge", os.fspath(w.repository), os.fspath(w.target)]

    def _wanted(self) -> Manifest:
        return self.workshop.states[FIRST]


class CatalogUpdate(Operation):
    """A reader brings its own copy of the catalog up to date, as there is none in the repository."""

    name = "catalog update"
    base = "four and an old catalog"

    def prepare(self) -> None:
        w = self.workshop
        w.place.take("three")
        shutil.rmtree(w.repository / DATA / "histfs")
        w.check_run(self.arguments())
        w.check_run(w.backup_arguments(FOURTH))
        shutil.rmtree(w.repository / DATA / "histfs")
        w.place.keep(self.base)
        self._says = w.check_run(self.arguments()).output
        w.place.take(self.base)
        self._names = w.names()

    def arguments(self) -> list[str]:
        return ["list", "versions", "--json", os.fspath(self.workshop.repository / "changed")]

    def history(self) -> History:
        return self.workshop.history(FIRST, SECOND, THIRD, FOURTH)

    def claims(self, ran: Ran) -> list[Problem]:
        if ran.code == 0 and ran.output != self._says:
            return [Problem("dishonest", f"exit code 0: {ran.output}")]
        return []

    def after(self, ran: Ran | None) -> list[Problem]:
        again = self.workshop.run(self.arguments())
        problems = _must(again, "the same command")
        if not problems and again.output != self._says:
            problems.append(Problem("stuck", f"the same command says {again.output}"))
        problems += judge.forked(self.read(self.history(), "lost"))
        return problems + judge.check_names(self.workshop.repository, self._names)


OPERATIONS: dict[str, type[Operation]] = {
    kind.name: kind
    for kind in (
        *(Session, FirstSession, NextSession, Regress, RegressEarly, RegressLate, StepBack),
        *(RemoveSessions, RemovePaths, Restore, RestoreAnew, CatalogUpdate),
    )
}
