"""Going to the background, and where the log goes.

The process forks before it has threads, an event loop or a FUSE session, since none of them survives a fork. The
parent waits at a pipe: it returns when the child says that it is ready, and raises the child's sentence otherwise.
What the child says is one message, a byte that tells which kind it is and then text; the end of the pipe without
a message means that the child died.
"""

import logging
import logging.handlers
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from histfs.errors import EXIT_ERROR, HistfsError, MountError

log = logging.getLogger(__name__)

_READY, _FAILED = b"+", b"-"
_SYSTEM_LOG = Path("/dev/log")
_FIRST_FREE_DESCRIPTOR = 3
_PRIVATE = 0o077


def run(task: Callable[[Callable[[], None]], None]) -> None:
    """Run `task(ready)` in a process of its own; return when it has called `ready()`.

    The new process has its own session, "/" as working directory and none of our descriptors. It ends with exit code 0
    when `task` returns, else 1. Raises MountError if `task` raises before it is ready.
    """
    reading, writing = os.pipe()
    # Ctrl-C waits until there is somebody to end the child.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child == 0:
        _be_the_child(task, _Parent(writing), mask)
    os.close(writing)
    message = _wait_for_message(reading, child, mask)
    if message == _READY:
        return
    _, status = os.waitpid(child, 0)
    if message.startswith(_FAILED):
        raise MountError(message.removeprefix(_FAILED).decode("utf-8", "replace"))
    code = os.waitstatus_to_exitcode(status)
    ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise MountError(f"the process in the background {ending} before it was ready")


def _wait_for_message(pipe: int, child: int, mask: set[int]) -> bytes:
    with ExitStack() as if_interrupted, open(pipe, "rb") as file:
        if_interrupted.callback(os.waitpid, child, 0)
        if_interrupted.callback(os.kill, child, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        message = file.read()
        if_interrupted.pop_all()
    return message


class _Parent:
    """The writing end of the pipe, for one message."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self._listens = True

    def tell(self, message: bytes) -> None:
        if not self._listens:
            return
        self._listens = False
        try:
            os.write(self.pipe, message)
        except BrokenPipeError:
            log.debug("the process that started us has not waited")
        os.close(self.pipe)


def _be_the_child(task: Callable[[Callable[[], None]], None], parent: _Parent, mask: set[int]) -> NoReturn:
    code = EXIT_ERROR
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _leave_everything_behind(parent.pipe)
        task(lambda: parent.tell(_READY))
        code = 0
    except HistfsError as exc:
        parent.tell(_FAILED + str(exc).encode("utf-8", "backslashreplace"))
    finally:
        # Not sys.exit: what the parent's Python has still to do at its end must not be done twice. Threads that wait
        # for a disk are left behind.
        logging.shutdown()
        os._exit(code)


def _leave_everything_behind(pipe: int) -> None:
    """Keep nothing busy or locked that belongs to our caller: terminal, directory, descriptors."""
    os.setsid()
    os.chdir("/")
    os.closerange(_FIRST_FREE_DESCRIPTOR, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(_FIRST_FREE_DESCRIPTOR):
        os.dup2(nowhere, standard)
    os.close(nowhere)


@contextmanager
def logging_to(log_file: Path | None, *, foreground: bool, debug: bool) -> Iterator[None]:
    """Send the log to `log_file`; without one to the standard error output in the foreground, else to the system's log.

    The file is made readable for its owner alone: names of private files may be in it. MountError if it cannot be.
    """
    handler = _handler(log_file, foreground=foreground)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        handler.close()


def _handler(log_file: Path | None, *, foreground: bool) -> logging.Handler:
    handler: logging.Handler
    if log_file is not None:
        umask = os.umask(_PRIVATE)
        try:
            handler = logging.FileHandler(log_file)
        except OSError as exc:
            raise MountError(f"the log cannot be written: {exc.strerror}", path=log_file) from exc
        finally:
            os.umask(umask)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    elif foreground:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("histfs: %(message)s"))
    else:
        handler = _system_log()
    return handler


def _system_log() -> logging.Handler:
    if not _SYSTEM_LOG.exists():  # as in most containers
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler(os.fspath(_SYSTEM_LOG), logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = f"histfs[{os.getpid()}]: "
    return handler
