"""A mount as a process of its own, looked at from outside: descriptors, threads, memory, and what the kernel knows."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

_REMOUNT = 32 | 1 | 2 | 4  # MS_REMOUNT, MS_RDONLY, MS_NOSUID, MS_NODEV of mount(2)


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "does not come true"
        time.sleep(0.02)


class Daemon:
    """A mount in the foreground, as our child. After `limit_s` it is killed: then all that waits for it gets an error,
    where a hang could not even be ended by SIGKILL.
    """

    def __init__(self, repository, mountpoint, *options, limit_s, environment, descriptors):
        self.mountpoint = mountpoint
        self.was_too_slow = False
        command = [sys.executable, "-m", "histfs", "mount", "--utc", "--foreground", *options, repository, mountpoint]
        self.process = subprocess.Popen(
            [os.fspath(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environment or {}),
            preexec_fn=None if descriptors is None else lambda: _limit(descriptors),
        )
        self.pid = self.process.pid
        self._guard = threading.Timer(limit_s, self._give_up)
        self._guard.start()
        self.said = self.process.stdout.readline()

    def _give_up(self):
        self.was_too_slow = True
        self.process.kill()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory(self, field="VmHWM"):
        """MiB of memory: the most there ever was, or another field of proc_pid_status(5)."""
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) / 1024

    def forget(self):
        """Make the kernel give up all names and inodes of this mount that nobody uses. Needs root."""
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mount(b"none", os.fsencode(self.mountpoint), None, _REMOUNT, None)
        assert done == 0, os.strerror(ctypes.get_errno())

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self):
        """End it as a user would; the rest of what it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            said, _ = self.process.communicate(timeout=20)
        finally:
            self._guard.cancel()
            self.process.kill()
        assert not self.was_too_slow, "was not done in time, or hung"
        return self.said + said


def _limit(descriptors):
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


@contextmanager
def mounted(repository, mountpoint, *options, limit_s=120, environment=None, descriptors=None):
    """A mount, which says nothing but that it is there, and no traceback in any case."""
    daemon = Daemon(repository, mountpoint, *options, limit_s=limit_s, environment=environment, descriptors=descriptors)
    try:
        assert str(mountpoint) in daemon.said, daemon.said + daemon.process.stdout.read()
        yield daemon
    finally:
        said = daemon.stop()
    assert "Traceback" not in said, said
    assert "a bug" not in said, said


def in_threads(functions, limit_s=120):
    """Call all at the same time, each in a thread of its own; raises what the first of them raised."""
    failures = []

    def run(function):
        try:
            function()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=[function], daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a reader hangs"
    if failures:
        raise failures[0]


def end(processes):
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait(20)


def contents_of(place: Path):
    """All that a repository is, but for access times: name, inode, size, times, bytes."""
    found = {}
    for above, _, files in os.walk(place):
        for path in (above, *(os.path.join(above, name) for name in files)):
            shown = os.lstat(path)
            data = Path(path).read_bytes() if os.path.isfile(path) else b""
            found[path] = shown.st_ino, shown.st_mode, shown.st_size, shown.st_mtime_ns, shown.st_ctime_ns, data
    return found
