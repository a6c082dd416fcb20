"""Run a function in a forked process, and let one of its calls that change something fail: the binding of supervisor.c.

Which calls are points is decided by path: those that change something below the watched directories. They are
numbered in the order in which the process makes them, whichever thread that is.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, NoReturn

TIMEOUT_S = 60.0
_SOURCE = Path(__file__).with_name("supervisor.c")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


READS, OPENS = 1, 2  # what else may be points: transfers from files, and opening what is there


class Action(IntEnum):
    """As in supervisor.c."""

    WATCH = 0
    KILL = 1
    SIGNAL = 2
    FAIL = 3
    CUT_POWER = 4
    SHORTEN = 5


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("action", "at", "from_then_on", "number", "fd", "log_fd", "sees")),
        ("watched", ctypes.c_char_p * 4),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("status", "calls", "hits", "blind", "is_hung")),
        ("text", ctypes.c_char * 400),
    )


class Plan(NamedTuple):
    """What is done at call number `at` (from 1; for SHORTEN it is the seed).

    `number` is the errno, the signal, or what the file system is told when its power is cut (`fd`: a descriptor on it).
    """

    action: Action = Action.WATCH
    at: int = 0
    number: int = 0
    from_then_on: bool = False
    fd: int = -1
    sees: int = 0  # READS, OPENS


class Ran(NamedTuple):
    """How a supervised process ended: the exit code, or minus the signal; and what it had printed."""

    code: int
    output: str
    calls: int  # that were points
    hits: int  # that the plan did something to
    text: str  # the first of these
    blind: int  # memory maps through which watched files may have changed unseen
    is_hung: bool


def obstacle() -> str | None:
    """Why nothing can be supervised here; None if it can be."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the supervisor of system calls is for Linux on x86-64"
    if shutil.which("cc") is None:
        return "needs a C compiler"
    if run(lambda: 7, [], Plan()).code != 7:
        return "processes cannot be traced here (ptrace, seccomp)"
    return None


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled supervisor: made once for each text of its source."""
    text = _SOURCE.read_bytes()
    place = Path(tempfile.gettempdir()) / f"histfs-faults-{os.geteuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.geteuid():
        raise PermissionError(f"{place} is somebody else's")
    compiled = place / f"supervisor-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not compiled.exists():
        made = compiled.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", *_FLAGS, "-o", made, _SOURCE], check=True)
        made.rename(compiled)
    loaded = ctypes.CDLL(os.fspath(compiled), use_errno=True)
    loaded.fault_supervise.argtypes = (ctypes.c_int, ctypes.POINTER(_Plan), ctypes.POINTER(_Report))
    return loaded


def run(
    action: Callable[[], int],
    watched: Sequence[Path],
    plan: Plan,
    *,
    log: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Ran:
    """Fork, and call `action` in the child, whose exit code it gives.

    `log` gets the points of a WATCH, with a NUL after each. The caller must be a process with one thread. A child that
    takes too long is killed.
    """
    compiled = library()
    report = _Report()

    def supervise(child: int) -> int:
        log_fd = -1 if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            places = [os.fsencode(place) for place in watched]
            given = _Plan(plan.action, plan.at, plan.from_then_on, plan.number, plan.fd, log_fd)
            given.sees = plan.sees
            given.watched[: len(places)] = places
            with _alarm(timeout_s, lambda: None):
                failed = compiled.fault_supervise(child, ctypes.byref(given), ctypes.byref(report))
            if failed:
                raise OSError(ctypes.get_errno(), "the process could not be supervised")
        finally:
            if log_fd != -1:
                os.close(log_fd)
        return report.status

    code, said = _forked(action, supervise, lambda: compiled.fault_enter(plan.sees))
    text = report.text.decode("utf-8", "backslashreplace")
    return Ran(code, said, report.calls, report.hits, text, report.blind, bool(report.is_hung))


def run_alone(action: Callable[[], int], *, timeout_s: float = TIMEOUT_S) -> Ran:
    """The same with nobody watching, which takes less time: nothing is a point."""
    is_hung = False

    def wait(child: int) -> int:
        def kill() -> None:
            nonlocal is_hung
            is_hung = True
            os.killpg(child, signal.SIGKILL)

        with _alarm(timeout_s, kill):
            return os.waitpid(child, 0)[1]

    code, said = _forked(action, wait, lambda: 0)
    return Ran(code, said, 0, 0, "", 0, is_hung)


def _forked(action: Callable[[], int], wait: Callable[[int], int], enter: Callable[[], int]) -> tuple[int, str]:
    """`action` in a child, if `enter` gives 0. `wait` gives a status. Exit code or minus the signal, and the output."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _be_child(action, output.fileno(), enter)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(child, child)  # also here: whoever comes first
        status = wait(child)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _alarm(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: act())
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should it have come before wait(2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _be_child(action: Callable[[], int], output: int, enter: Callable[[], int]) -> NoReturn:
    """Nothing of the parent's own stack may be unwound here."""
    code = 97
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if enter() == 0:
            code = action()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)
