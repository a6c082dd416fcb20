"""Runs one operation with one kind of fault at each of its points, and judges each."""

import errno
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.faults import judge, places, rdiff_backup
from tests.faults.judge import Problem
from tests.faults.operations import FIRST, FOURTH, OPERATIONS, SECOND, THIRD, Operation, Workshop
from tests.faults.places import Cut, Disk, Memory
from tests.faults.supervise import Action, Plan, Ran

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM")


class Fault(NamedTuple):
    """What happens at a point."""

    name: str
    plan: Plan
    needs_disk: bool = False

    def at(self, point: int) -> Plan:
        return self.plan._replace(at=point)


def _errors() -> Iterator[Fault]:
    for name in ERRORS:
        number = getattr(errno, name)
        yield Fault(f"{name} once", Plan(Action.FAIL, number=number))
        yield Fault(f"{name} from then on", Plan(Action.FAIL, number=number, from_then_on=True))


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("SIGKILL", Plan(Action.KILL)),
        Fault("SIGTERM", Plan(Action.SIGNAL, number=signal.SIGTERM)),
        *_errors(),
        Fault("short reads and writes", Plan(Action.SHORTEN)),
        Fault("power cut, committed only", Plan(Action.CUT_POWER, number=Cut.COMMITTED_ONLY), needs_disk=True),
        Fault("power cut, metadata ahead", Plan(Action.CUT_POWER, number=Cut.METADATA_AHEAD), needs_disk=True),
    )
}


class Verdict(NamedTuple):
    """Of one point."""

    point: int
    hit: str
    code: int
    problems: list[Problem]


def try_point(operation: Operation, fault: Fault, point: int) -> Verdict | None:
    """None: the command came to its end before that point."""
    w = operation.workshop
    w.place.take(operation.base)
    if fault.needs_disk:
        return _cut_power(operation, fault, point)
    with judge.waiting(lambda: _running(operation) if operation.reads_running else list) as ask_running:
        ran = w.run(operation.arguments(), fault.at(point))
        if not ran.hits:
            return None
        problems = ask_running()
    if ran.is_hung:
        problems.append(Problem("hung", ran.text))
    problems += judge.forked(operation.read(operation.history(), "unreadable"))
    problems += _claims(operation, fault, ran)
    problems += operation.after(ran)
    return Verdict(point, ran.text, ran.code, problems)


def _claims(operation: Operation, fault: Fault, ran: Ran) -> list[Problem]:
    problems = operation.claims(ran)
    if fault.plan.action is Action.SHORTEN and ran.code != 0:  # which is no fault at all
        problems.append(Problem("stuck", f"ended with {ran.code}: {ran.output}"))
    if "a bug in histfs" in ran.output:
        problems.append(Problem("dishonest", f"what is no bug is called one: {ran.output}"))
    return problems


def _running(operation: Operation) -> Callable[[], list[Problem]]:
    """A mount that has run since before the command, and of which the newest session was read."""
    from histfs.errors import NotARepositoryError
    from tests.faults.shown import Shown

    try:
        shown = Shown(operation.workshop.repository, operation.workshop.place.root / "cache of a mount")
    except NotARepositoryError:
        return list
    times = shown.look()
    if times:
        shown.manifest(times[-1])
    return lambda: judge.check_history(shown, operation.history(), "unreadable")


def _cut_power(operation: Operation, fault: Fault, point: int) -> Verdict | None:
    w = operation.workshop
    assert isinstance(w.place, Disk)
    fd = w.place.open()
    try:
        ran = w.run(operation.arguments(), fault.at(point)._replace(fd=fd))
    finally:
        os.close(fd)
    if not ran.hits:
        return None
    w.place.restart()
    problems = judge.forked(operation.read(operation.history(), "unreadable"))
    problems += operation.after(None)
    return Verdict(point, ran.text, ran.code, problems)


def sensitivity(workshop: Workshop) -> list[tuple[str, bool]]:
    """Each file of a good repository that is not empty, and whether the judge notices that it is cut in half."""
    w = workshop
    found = []
    for name in w.names_kept("four"):
        w.place.take("four")
        path = w.repository / name
        if not path.is_file() or path.is_symlink() or not path.stat().st_size:
            continue
        status = path.stat()
        os.truncate(path, status.st_size // 2)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        history = w.history(FIRST, SECOND, THIRD, FOURTH)
        problems = judge.forked(lambda: judge.check_repository(w.repository, history, "lost", w.cache))
        problems += judge.forked(lambda: judge.check_mirror(w.repository, w.states[FOURTH]))
        found.append((name, bool(problems)))
    return found


# --- many points ------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """All points of one operation, one fault and one kind of place; every `step`th of them from `first`."""

    operation: str
    fault: str
    place: str
    step: int = 1
    first: int = 1
    limit: int | None = None


class Worker:
    """One process that tries points. It keeps what was prepared for a place and an operation."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._workshop: Workshop | None = None
        self._operations: dict[str, tuple[Operation, int]] = {}
        _make_small()

    def workshop(self, place_name: str, kind: type[Workshop] = Workshop) -> Workshop:
        if self._workshop is None or self._workshop.place.name != place_name or type(self._workshop) is not kind:
            self.close()
            root = self._root / place_name
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            self._workshop = kind(_place(root, place_name))
            self._workshop.prepare()
        return self._workshop

    def operation(self, place_name: str, name: str) -> tuple[Operation, int]:
        """It, and the number of its points."""
        is_other = name == rdiff_backup.NAME
        workshop = self.workshop(place_name, rdiff_backup.RdiffBackupWorkshop if is_other else Workshop)
        if name not in self._operations:
            operation = make_operation(name, workshop)
            workshop.place.take(operation.base)
            ran = workshop.check_run(operation.arguments(), (0, 2, 8, 10))
            if ran.blind:
                raise RuntimeError("something is changed through shared memory, where nothing can be seen")
            self._operations[name] = operation, ran.calls
        return self._operations[name]

    def try_task(self, task: Task, part: int, parts: int) -> Iterator[Verdict]:
        """Part `part` of `parts` of the points."""
        operation, calls = self.operation(task.place, task.operation)
        fault = FAULTS[task.fault]
        points = range(task.first, (calls if task.limit is None else task.limit) + 1, task.step)
        for point in points[part::parts]:
            verdict = try_point(operation, fault, point)
            if verdict is not None:
                yield verdict

    def close(self) -> None:
        if self._workshop is not None:
            self._workshop.place.close()
            shutil.rmtree(self._workshop.place.root)
        self._workshop = None
        self._operations.clear()


def make_operation(name: str, workshop: Workshop) -> Operation:
    """By its name, after which an @ may tell at which part a session was broken off."""
    if name == rdiff_backup.NAME:
        return rdiff_backup.RdiffBackupSession(workshop)
    kind, _, part = name.partition("@")
    if not part:
        return OPERATIONS[kind](workshop)
    made = type(kind, (OPERATIONS[kind],), {"part": float(part)})
    return made(workshop)


def _place(root: Path, name: str) -> Memory | Disk:
    if name == Memory.name:
        return Memory(root)
    [kind] = [kind for kind in places.FILE_SYSTEMS if kind.name == name]
    return Disk(root, kind)


def without_barriers() -> None:
    """Let nothing in this process wait for the disk: a session as it must not be, for the harness to find."""
    from histfs.store.files import WritableTree

    WritableTree.sync = lambda _tree: None  # type: ignore[method-assign]
    os.fsync = lambda _fd: None


def _make_small() -> None:
    """Let a small tree meet what large ones do: several batches, files that are copied as large, settled times."""
    from histfs.store import batch, copying, ledger
    from histfs.store.catalog import place

    place._READER_WAITS_S = 0.1  # for a writer of the catalog, who is dead here
    batch.MAX_CHANGES = 25
    copying.MAX_BYTES = 200_000
    ledger._SETTLED_AFTER_NS = -(10**12)


def run(tasks: Sequence[Task], *, jobs: int = 1, tell: Callable[[Task, Verdict], None]) -> None:
    """Try all tasks in `jobs` processes, which share the points of each. RuntimeError if one of them fails."""
    scratch = Path(tempfile.mkdtemp(prefix="histfs-faults-", dir=places.MEMORY))
    workers: dict[int, int] = {}  # the processes by the descriptors that they are heard through
    try:
        for part in range(jobs):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                _work(tasks, part, jobs, scratch / str(part), writer)
            os.close(writer)
            workers[reader] = child
        for line in _lines(list(workers)):
            number, found = json.loads(line)
            if number < 0:
                raise RuntimeError(found)
            point, hit, code, problems = found
            tell(tasks[number], Verdict(point, hit, code, [Problem(*problem) for problem in problems]))
    finally:
        for reader, child in workers.items():
            os.close(reader)
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        subprocess.run(["rm", "-rf", scratch], check=True)


def _lines(readers: Sequence[int]) -> Iterator[bytes]:
    """What comes through pipes, line by line, until all are closed."""
    begun = dict.fromkeys(readers, b"")
    while begun:
        for reader in select.select(list(begun), [], [])[0]:
            got = os.read(reader, 1 << 16)
            *whole, begun[reader] = (begun[reader] + got).split(b"\n")
            yield from whole
            if not got:
                del begun[reader]


def _work(tasks: Sequence[Task], part: int, parts: int, root: Path, writer: int) -> NoReturn:
    try:
        with open(writer, "w", closefd=False) as out:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                root.mkdir()
                if any(task.place != Memory.name for task in tasks):
                    places.enter_own_mounts()
                _import_all()
                gc.freeze()
                worker = Worker(root)
                for number, task in enumerate(tasks):
                    for verdict in worker.try_task(task, part, parts):
                        out.write(json.dumps([number, verdict]) + "\n")
                        out.flush()
                worker.close()
            except BaseException:
                out.write(json.dumps([-1, traceback.format_exc()]) + "\n")
    finally:
        os._exit(0)


def _import_all() -> None:
    """So that no process that is forked has to."""
    for package in ("histfs.cli", "histfs.store", "histfs.store.catalog", "histfs.store.content"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
            importlib.import_module(module.name)
