"""Runs one operation with one kind of fault at each of its points, and judges each."""

import errno
import gc
import importlib
import json
import os
import pkgutil
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path
from time import monotonic
from typing import NamedTuple, NoReturn

from tests import comparison
from tests.faults import judge, logged, places, rdiff_backup
from tests.faults.judge import Problem
from tests.faults.logged import Write
from tests.faults.operations import FIRST, FOURTH, OPERATIONS, SECOND, THIRD, WARNED, Operation, Workshop
from tests.faults.places import Cut, Disk, Memory, copy_image
from tests.faults.supervise import OPENS, READS, Action, Plan, Ran

_FINE = (0, 2, 8, 10)  # exit codes: perhaps with a warning
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM")


class Fault(NamedTuple):
    """What happens at a point, which is a call; or, where there is no plan, what `where` says."""

    name: str
    plan: Plan | None
    needs_disk: bool = False
    where: str = "call"
    operations: str = ""  # a pattern for those that it makes sense for

    def at(self, point: int) -> Plan:
        assert self.plan is not None
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
        Fault("short reads and writes", Plan(Action.SHORTEN, sees=READS)),
        Fault("EIO, reads too", Plan(Action.FAIL, number=errno.EIO, sees=READS | OPENS)),
        Fault("EMFILE, all that is opened", Plan(Action.FAIL, number=errno.EMFILE, sees=OPENS)),
        Fault("power cut, committed only", Plan(Action.CUT_POWER, number=Cut.COMMITTED_ONLY), needs_disk=True),
        Fault("power cut, metadata ahead", Plan(Action.CUT_POWER, number=Cut.METADATA_AHEAD), needs_disk=True),
        Fault("power cut after a block", None, True, "block", "^(session|remove|regress)"),
        Fault("the same, unflushed blocks lost", None, True, "lost block", "^(session|remove|regress)"),
        Fault("full disk", None, True, "space", "^(?!catalog)"),
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
    if fault.where == "space":
        return _fill(operation, point)
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
    if operation.mounts and operation.workshop.markers():
        problems += judge.forked(lambda: _mounted(operation)())
    problems += _claims(operation, fault, ran)
    problems += operation.after(ran)
    return Verdict(point, ran.text, ran.code, problems)


def _claims(operation: Operation, fault: Fault, ran: Ran) -> list[Problem]:
    problems = operation.claims(ran)
    if fault.plan is not None and fault.plan.action is Action.SHORTEN and ran.code not in (0, WARNED):  # it is no fault
        problems.append(Problem("stuck", f"ended with {ran.code}: {ran.output}"))
    if "a bug in histfs" in ran.output:
        problems.append(Problem("dishonest", f"what is no bug is called one: {ran.output}"))
    return problems


def _mounted(operation: Operation) -> Callable[[], list[Problem]]:
    """A real mount, and what is found through it when it is asked; then it ends."""
    from tests.compat.agreement import mount

    stack = ExitStack()
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=operation.workshop.place.root)))
    mountpoint, said = stack.enter_context(mount(operation.workshop.repository, scratch))
    for name in os.listdir(mountpoint)[-1:]:
        comparison.read(mountpoint / name)

    def check() -> list[Problem]:
        with stack:
            found = judge.check_mounted(mountpoint, operation.history(), "unreadable")
        return found + [Problem("unreadable", f"the mount said: {line}") for line in said]

    return check


def _running(operation: Operation) -> Callable[[], list[Problem]]:
    """A mount that has run since before the command, and of which the newest session was read."""
    from histfs.errors import NotARepositoryError
    from tests.faults.shown import Shown

    if operation.mounts and operation.workshop.markers():
        return _mounted(operation)
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
        problems = judge.forked(
            lambda: judge.check_repository(w.repository, w.history(FIRST, SECOND, THIRD, FOURTH), "lost", w.cache)
        )
        problems += judge.forked(lambda: judge.check_mirror(w.repository, w.states[FOURTH]))
        found.append((name, bool(problems)))
    return found


def counted_calls(workshop: Workshop) -> tuple[Counter[str], Counter[str]]:
    """The calls of one session that change something: as supervised, and as strace sees them.

    strace does not see what leads through /proc/self/fd, and is not asked about barriers.
    """
    from tests.compat import killing

    w = workshop
    log = w.place.root / "log of calls"
    w.place.take("three")
    w.run(w.backup_arguments(FOURTH), Plan(), log=log)
    ours = Counter(line.split(b" ")[0].decode() for line in log.read_bytes().split(b"\0")[:-1])
    w.place.take("three")
    script = "import sys; from tests.faults import campaign; sys.exit(campaign.be_histfs())"
    points = killing.points([sys.executable, "-c", script, *w.backup_arguments(FOURTH)], w.place.box)
    return ours, Counter(point.syscall for point in points)


def be_histfs() -> int:
    """One command, as it is run here but in a process of its own."""
    from histfs.cli import main

    _make_small()
    return main(sys.argv[1:])


_SIZES = 24  # of full disks that are tried


def _fill(operation: Operation, point: int) -> Verdict:
    """Leave only so much room on the disk: from none to many times what the command needs in the end."""
    w = operation.workshop
    before = _free_bytes(w.place.box)
    w.check_run(operation.arguments(), _FINE)
    needed = max(before - _free_bytes(w.place.box), 200_000)
    w.place.take(operation.base)
    filler = w.place.box / "filler"
    room = needed * 16 * (point - 1) ** 2 // _SIZES**2
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    step = _free_bytes(w.place.box)
    while step >= 4096:  # what the filler itself takes is known to nobody
        step = min(step, _free_bytes(w.place.box) - room)
        try:
            os.posix_fallocate(fd, os.fstat(fd).st_size, max(step, 1))
        except OSError:
            step //= 2
    os.close(fd)
    ran = w.run(operation.arguments())
    problems = judge.forked(operation.read(operation.history(), "unreadable"))
    problems += operation.claims(ran)
    filler.unlink()
    problems += operation.after(ran)
    return Verdict(point, f"room for {room} bytes of {needed}", ran.code, problems)


def _free_bytes(path: Path) -> int:
    os.sync()
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize  # root may use all of it


class Recording(NamedTuple):
    """What one run of an operation wrote to its disk."""

    log: Path
    entries: list[Write | None]
    writes: list[int]  # which of the entries are no flushes
    finished_at: int  # in the log: what was written when the command had ended


def record(operation: Operation) -> Recording:
    w = operation.workshop
    assert isinstance(w.place, Disk)
    image, log = w.place.root / "recorded.img", w.place.root / "log of blocks"
    w.place.down()
    copy_image(w.place.kept(operation.base), image)
    with logged.device(image, w.place.root, log) as device:
        w.place.mount_device(device)
        try:
            w.check_run(operation.arguments(), _FINE)
            finished_at = log.stat().st_size
        finally:
            w.place.down()
    entries = logged.read_log(log)
    return Recording(log, entries, [number for number, entry in enumerate(entries) if entry], finished_at)


def _cut_after_block(operation: Operation, recording: Recording, fault: Fault, point: int) -> Verdict:
    w = operation.workshop
    assert isinstance(w.place, Disk)
    image = w.place.root / "assembled.img"
    entries = recording.entries[: recording.writes[point - 1] + 1]
    seed = point if fault.where == "lost block" else None
    logged.assemble(w.place.kept(operation.base), recording.log, entries, image, seed=seed)
    w.place.take_image(image)
    problems = judge.forked(operation.read(operation.history(), "unreadable"))
    last = entries[-1]
    assert last is not None
    if last.data_at > recording.finished_at and seed is None:
        problems += operation.claims(_SUCCESS)
    problems += operation.after(None)
    return Verdict(point, f"block write {point} of {len(recording.writes)}", -signal.SIGKILL, problems)


_SUCCESS = Ran(0, "", 0, 0, "", 0, False)


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

    def __init__(self, root: Path, *, mounts: bool = False) -> None:
        self._root = root
        self._mounts = mounts
        self._workshop: Workshop | None = None
        self._operations: dict[str, tuple[Operation, int]] = {}
        _make_small()

    def workshop(self, place_name: str, kind: type[Workshop] = Workshop) -> Workshop:
        if self._workshop is None or self._workshop.place.name != place_name or type(self._workshop) is not kind:
            self.close()
            root = self._root / place_name
            root.mkdir(parents=True)
            self._workshop = kind(_place(root, place_name))
            self._workshop.prepare()
        return self._workshop

    def operation(self, place_name: str, name: str) -> tuple[Operation, int]:
        """It, and the number of its points."""
        is_other = name == rdiff_backup.NAME
        workshop = self.workshop(place_name, rdiff_backup.RdiffBackupWorkshop if is_other else Workshop)
        if name not in self._operations:
            operation = make_operation(name, workshop)
            operation.mounts = self._mounts
            workshop.place.take(operation.base)
            ran = workshop.check_run(operation.arguments(), _FINE, Plan())
            if ran.blind:
                raise RuntimeError("something is changed through shared memory, where nothing can be seen")
            self._operations[name] = operation, ran.calls
        return self._operations[name]

    def count_points(self, task: Task) -> int:
        return len(self._points(task)[1])

    def _points(self, task: Task) -> tuple[Recording | None, list[int]]:
        """Its points, in an order of chance: any beginning of it is a sample."""
        operation, limit = self.operation(task.place, task.operation)
        fault = FAULTS[task.fault]
        recording = None
        if fault.where.endswith("block"):
            recording = record(operation)
            limit = len(recording.writes)
        elif fault.where == "space":
            limit = _SIZES
        elif fault.plan is not None and fault.plan.sees:
            operation.workshop.place.take(operation.base)
            limit = operation.workshop.run(operation.arguments(), Plan(sees=fault.plan.sees)).calls
        points = list(range(task.first, (limit if task.limit is None else task.limit) + 1, task.step))
        random.Random(repr(task)).shuffle(points)
        return recording, points

    def try_task(self, task: Task, part: int, parts: int, until: float, known: Collection[int]) -> Iterator[Verdict]:
        """Those points, as far as there is time (by the monotonic clock), but for those that are `known`."""
        operation, _ = self.operation(task.place, task.operation)
        recording, points = self._points(task)
        for point in [point for point in points if point not in known][part::parts]:
            if monotonic() > until:
                return
            if recording is None:
                verdict = try_point(operation, FAULTS[task.fault], point)
            else:
                verdict = _cut_after_block(operation, recording, FAULTS[task.fault], point)
            if verdict is not None:
                yield verdict

    def close(self) -> None:
        if self._workshop is not None:
            self._workshop.place.close()
            shutil.rmtree(self._workshop.place.root)
        self._workshop = None
        self._operations.clear()


def make_operation(name: str, workshop: Workshop) -> Operation:
    if name == rdiff_backup.NAME:
        return rdiff_backup.RdiffBackupSession(workshop)
    return OPERATIONS[name](workshop)


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
    from histfs.store import batch, copying, growing, ledger
    from histfs.store.catalog import place

    place._READER_WAITS_S = 0.1  # for a writer of the catalog, who is dead here
    batch.MAX_CHANGES = 25
    copying.MAX_BYTES = 200_000
    growing.CHUNK_BYTES = 64 * 1024
    ledger._SETTLED_AFTER_NS = -(10**12)


def run(
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    mounts: bool = False,
    minutes: float = inf,
    known: Mapping[tuple[str, str, str], Collection[int]],
    begin: Callable[[Task, int], None],
    tell: Callable[[Task, Verdict], None],
) -> None:
    """Try all tasks in `jobs` processes, which share the points of each, for so many minutes; with real `mounts`, too.

    `known`: points by operation, fault and place that are not tried again. `begin` is told how many points a task has.
    RuntimeError if one of them fails.
    """
    scratch = Path(tempfile.mkdtemp(prefix="histfs-faults-", dir=places.MEMORY))
    workers: dict[int, int] = {}  # the processes by the descriptors that they are heard through
    try:
        for part in range(jobs):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                worker = Worker(scratch / str(part), mounts=mounts)
                _work(tasks, part, jobs, worker, monotonic() + minutes * 60, known, writer)
            os.close(writer)
            workers[reader] = child
        for line in _lines(list(workers)):
            number, found = json.loads(line)
            if number < 0:
                raise RuntimeError(found)
            if isinstance(found, int):
                begin(tasks[number], found)
                continue
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


def _work(
    tasks: Sequence[Task],
    part: int,
    parts: int,
    worker: Worker,
    deadline: float,
    known: Mapping[tuple[str, str, str], Collection[int]],
    writer: int,
) -> NoReturn:
    try:
        with open(writer, "w", closefd=False) as out:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if any(task.place != Memory.name for task in tasks):
                    places.enter_own_mounts()
                _import_all()
                gc.freeze()
                for number, task in enumerate(tasks):
                    out.write(json.dumps([number, worker.count_points(task)]) + "\n")
                    now = monotonic()
                    until = now + (deadline - now) / (len(tasks) - number)  # an equal share for all that are left
                    done = known.get((task.operation, task.fault, task.place), ())
                    for verdict in worker.try_task(task, part, parts, until, done):
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
