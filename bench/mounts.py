"""A mount that is there as long as it is needed, and gone afterwards, whatever happens in between.

The program stays in the foreground as our child, so that its memory and its system calls can be read from /proc. It is
told to end if the bench is killed.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from bench.commands import CommandError, TooSlowError
from bench.peers import Peer

_POLL_S = 0.002
_GRACE_S = 20
_MAX_MOUNT_S = 120


class Mount:
    """`usable_s`: seconds from the start of the program until its mount point could be listed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.started = time.perf_counter()
        self.usable_s = 0.0
        self.was_too_slow = False

    def peak_memory_mib(self) -> float:
        """The most memory that the program had at any time (VmHWM of proc_pid_status(5))."""
        with open(f"/proc/{self._process.pid}/status") as status:
            peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        return peak_kib / 1024

    def answers(self) -> int:
        """How many write system calls the program has made (proc_pid_io(5)).

        Each answer to the kernel is one, so the growth over a step is an upper bound of the requests in it.
        """
        with open(f"/proc/{self._process.pid}/io") as counters:
            return next(int(line.split()[1]) for line in counters if line.startswith("syscw:"))

    def kill(self) -> None:
        """Whatever waits for the mount gets an error."""
        self.was_too_slow = True
        self._process.kill()


@contextmanager
def mounted(peer: Peer, *, limit_s: float) -> Iterator[Mount]:
    """Mount the repository of `peer`; after `limit_s` the mount dies. CommandError, TooSlowError."""
    command = ["setpriv", "--pdeathsig", "TERM", "--", *peer.mount()]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=peer.environment(), stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        mount = Mount(process)
        guard = threading.Timer(limit_s, mount.kill)
        guard.start()
        try:
            _wait_until_mounted(peer, process, said)
            os.listdir(peer.mountpoint)
            mount.usable_s = time.perf_counter() - mount.started
            yield mount
        except OSError as exc:
            if mount.was_too_slow:
                raise TooSlowError(f"more than {limit_s:g} s in the mount") from exc
            raise CommandError(f"reading the mount: {exc}; {_last_words(said)}") from exc
        finally:
            guard.cancel()
            with _to_its_end():
                _unmount(peer, process)


@contextmanager
def _to_its_end() -> Iterator[None]:
    """What ends the bench waits: a mount that is left could not be removed with the directory that it lies in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_until_mounted(peer: Peer, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    give_up = time.perf_counter() + _MAX_MOUNT_S
    while not os.path.ismount(peer.mountpoint):
        if process.poll() is not None or time.perf_counter() > give_up:
            raise CommandError(f"does not mount: {_last_words(said)}")
        time.sleep(_POLL_S)


def _last_words(said: IO[bytes]) -> str:
    said.seek(0)
    return " / ".join(said.read().decode(errors="replace").strip().splitlines()[-3:])


def _unmount(peer: Peer, process: subprocess.Popen[bytes]) -> None:
    """Ask politely first; in the end nothing is mounted and nobody runs."""
    _fusermount(peer, "-u")
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            process.wait(_GRACE_S if process.poll() is None else 0)
            break
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
    process.wait()
    if _is_mounted(peer):
        _fusermount(peer, "-uz")


def _fusermount(peer: Peer, option: str) -> None:
    command = ["fusermount3", option, str(peer.mountpoint)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _is_mounted(peer: Peer) -> bool:
    """Also if its program has died, when a stat of the mount point fails."""
    mountpoint = str(peer.mountpoint).replace(" ", "\\040")  # proc_pid_mounts(5)
    with open("/proc/self/mounts") as mounts:
        return any(line.split(" ")[1] == mountpoint for line in mounts)
