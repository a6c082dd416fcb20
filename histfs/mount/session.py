"""One FUSE session: mounts, answers the kernel, unmounts.

Rules:
- Whatever ends it on purpose (a signal, umount) unmounts. A crash does not: a mount point that suddenly is an empty
  directory makes a mirroring job delete its copies, a dead one makes it fail (`histfs mount` cleans it up).
- It is ready when the kernel has had an answer, not when the call to mount has returned.
- pyfuse3 keeps its session in the process: there is one at a time.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import trio

from histfs.errors import MountError, printable
from histfs.fs import Operations
from histfs.fuse import pyfuse3
from histfs.mount.place import WITHOUT_FUSE

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_GRACE_S = 1.0  # for requests that are being answered when a signal comes
_LOOK_EVERY_S = 0.25  # for sessions that came or went
_UPDATE_EVERY_S = 0.5
_UPDATE_AGAIN_AFTER_S = 30.0  # where it failed, unless somebody asks for a file before
_HEARTBEAT_S = 1.0
_MAX_TASKS = 400  # requests answered at the same time; those that wait for a thread count
_READ_AHEAD_KIB = 512
_READERS_AHEAD = 2  # of files: while one waits for the disk the other may not


async def serve(operations: Operations, mountpoint: Path, options: set[str], on_ready: Callable[[], None]) -> None:
    """Mount and answer until a signal or umount ends it; calls `on_ready` when the mount can be used.

    Needs the main thread. Raises MountError if it cannot be mounted; whatever else is raised is a bug.
    """
    with _stop_signals() as stop, _heartbeat():
        _mount(operations, mountpoint, options)
        is_to_be_unmounted = True
        failure: MountError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_answer, nursery.cancel_scope)
                nursery.start_soon(_stop_when_told, stop, nursery.cancel_scope)
                try:
                    device = await trio.to_thread.run_sync(_look, mountpoint, abandon_on_cancel=True)
                except OSError as exc:
                    failure = MountError(f"was mounted, but cannot be read: {exc.strerror}", path=mountpoint)
                    nursery.cancel_scope.cancel()
                else:
                    is_to_be_unmounted = False
                    _set_read_ahead(device)
                    for _ in range(_READERS_AHEAD):
                        nursery.start_soon(operations.read_ahead)
                    nursery.start_soon(_look_for_sessions, operations)
                    nursery.start_soon(_keep_catalog, operations)
                    on_ready()
            is_to_be_unmounted = True
        finally:
            pyfuse3.close(unmount=is_to_be_unmounted)
        if failure is not None:
            raise failure


def _mount(operations: Operations, mountpoint: Path, options: set[str]) -> None:
    with _stderr_kept() as stderr:
        try:
            pyfuse3.init(operations, str(mountpoint), options)
        except RuntimeError as exc:
            # libfuse and fusermount3 tell the reason to the standard error output alone.
            os.lseek(stderr, 0, os.SEEK_SET)
            said = "; ".join(printable(line) for line in os.read(stderr, 10_000).splitlines() if line.strip())
            raise MountError(f"cannot be mounted: {said or exc}", path=mountpoint, advice=WITHOUT_FUSE) from exc


@contextmanager
def _stderr_kept() -> Iterator[int]:
    """Lead the standard error output of C code and child processes into memory; yields its descriptor."""
    kept, real = os.memfd_create("stderr"), os.dup(2)
    try:
        os.dup2(kept, 2)
        yield kept
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(kept)


@contextmanager
def _heartbeat() -> Iterator[None]:
    """Interrupt the main thread's system calls every second.

    pyfuse3 polls /dev/fuse and then reads it, with the GIL held. If the program whose request was there is killed in
    between, the kernel takes the request back and the read waits for the next one, with every other thread. A signal
    ends that: read(2) fails with EINTR, and pyfuse3 polls again.
    """
    signal.signal(signal.SIGALRM, _do_nothing)  # and left so: a late signal must not meet the default action
    signal.setitimer(signal.ITIMER_REAL, _HEARTBEAT_S, _HEARTBEAT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


async def _answer(session: trio.CancelScope) -> None:
    await pyfuse3.main(max_tasks=_MAX_TASKS)
    session.cancel()


@contextmanager
def _stop_signals() -> Iterator[trio.Event]:
    """An event that any of the signals sets. After the first one further ones are ignored, also when this has ended.

    systemd sends SIGHUP after SIGTERM, people press Ctrl-C twice: all the same it ends cleanly. (A signal receiver of
    trio would at its end repeat what was not received.)
    """
    stop = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        token.run_sync_soon(told, number)

    def told(number: int) -> None:
        log.info("%s: unmounting", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        if not stop.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


async def _stop_when_told(stop: trio.Event, session: trio.CancelScope) -> None:
    await stop.wait()
    pyfuse3.terminate()
    await trio.sleep(_GRACE_S)
    session.cancel()


async def _look_for_sessions(operations: Operations) -> None:
    while True:
        with suppress(pyfuse3.FUSEError):  # it was logged; perhaps the repository comes back
            await operations.look()
        await trio.sleep(_LOOK_EVERY_S)


async def _keep_catalog(operations: Operations) -> None:
    """Have the catalog ready before somebody needs it."""
    while True:
        try:
            await operations.update()
        except pyfuse3.FUSEError:
            await trio.sleep(_UPDATE_AGAIN_AFTER_S)
        await trio.sleep(_UPDATE_EVERY_S)


def _look(mountpoint: Path) -> int:
    """Use the mount as anybody would; its device number. OSError if the kernel got no good answer."""
    os.listdir(mountpoint)
    return os.stat(mountpoint).st_dev


def _set_read_ahead(device: int) -> None:
    """Let the kernel ask for larger pieces than 128 KiB: root may, and files are read with half the effort then."""
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        setting.write_text(str(_READ_AHEAD_KIB))
    except OSError as exc:
        log.debug("the read-ahead stays as it is: %s", exc)
