"""One mount that is up as long as it is not being replaced, by every way in which a mount can end."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.compat.agreement import wait_until_mounted
from tests.soak.commands import Commands, Wrong

MOST_KIB = 100 * 1024
MOST_DESCRIPTORS = 200
WAYS = ("SIGTERM", "umount", "umount --lazy", "SIGKILL")
_PATIENCE_S = 60.0
_ORDERLY = " unmounting"  # what a daemon says that was told to end


class Mount:
    """`mountpoint` is made. `logs` is a directory for what each daemon says; it is made."""

    def __init__(self, commands: Commands, repository: Path, mountpoint: Path, logs: Path) -> None:
        self._commands = commands
        self._repository = repository
        self._mountpoint = mountpoint
        self._logs = logs
        self._excused = 0  # the number of the last one that was up while a path was removed
        self._daemon: subprocess.Popen[bytes] | None = None
        self._ending: list[subprocess.Popen[bytes]] = []  # they end when nobody has a file open any more
        self.number = 0
        self.most_kib = 0
        self.most_descriptors = 0
        mountpoint.mkdir()
        logs.mkdir()

    def up(self) -> None:
        command = self._commands.line("--quiet", "mount", "--utc", "--foreground", self._repository, self._mountpoint)
        self.number += 1
        log = self._logs / str(self.number)
        with log.open("wb") as said:
            self._daemon = subprocess.Popen(command, stderr=said, env=self._commands.environment)
        try:
            wait_until_mounted(self._mountpoint, self._daemon, log)
        except AssertionError as exc:
            raise Wrong(f"nothing was mounted: {exc}") from exc

    def down(self, way: str) -> None:
        """End the mount by one of `WAYS`, after which nothing is mounted."""
        daemon = self._daemon
        assert daemon is not None
        self._daemon = None
        self._ending.append(daemon)
        if way == "SIGTERM":
            daemon.send_signal(signal.SIGTERM)
            self._wait(daemon)
        elif way == "SIGKILL":
            daemon.kill()
            daemon.wait()
            self._ending.remove(daemon)
            if os.fsencode(self._mountpoint) in _mounted():  # else it was taken away with the process
                self._unmount()
        elif way == "umount":
            self._unmount()
        else:
            self._commands.run("umount", "--lazy", self._mountpoint)
        if os.fsencode(self._mountpoint) in _mounted():
            raise Wrong(f"it is mounted after {way}")

    def _unmount(self) -> None:
        if self._commands.run("umount", self._mountpoint, codes=(0, 1)).returncode:  # a reader has something open
            self._commands.run("umount", "--lazy", self._mountpoint)

    def check(self) -> None:
        """The daemon is alive and modest; those before it have ended, or will."""
        for daemon in self._ending[:]:
            if daemon.poll() is not None:
                self._ending.remove(daemon)
                if daemon.returncode:
                    raise Wrong(f"a daemon ended with {daemon.returncode}: {self.said()}")
        if trouble := self.said():
            raise Wrong(f"the mount said: {trouble}")
        daemon = self._daemon
        if daemon is None:
            return
        if daemon.poll() is not None:
            raise Wrong(f"the daemon has ended with {daemon.returncode}: {self.said()}")
        self.most_descriptors = max(self.most_descriptors, len(os.listdir(f"/proc/{daemon.pid}/fd")))
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        self.most_kib = max(self.most_kib, *(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line))
        if self.most_kib > MOST_KIB or self.most_descriptors > MOST_DESCRIPTORS:
            raise Wrong(f"the daemon has {self.most_kib} KiB and {self.most_descriptors} descriptors")

    def said(self) -> str:
        """What is wrong, as the daemons have said it: bugs alone where a path was removed meanwhile."""
        lines = []
        for log in self._logs.iterdir():
            said = log.read_text(errors="backslashreplace")
            if int(log.name) > self._excused or "a bug" in said or "Traceback" in said:
                lines += [line for line in said.splitlines() if not line.endswith(_ORDERLY)]
        return "\n".join(lines)

    def excuse(self) -> None:
        """A path was removed, which the mount that is up, or was, may miss (docs/manual.md)."""
        self._excused = self.number

    def wait_until_shown(self, names: set[str]) -> None:
        """OSError and Wrong if that does not come to be."""
        deadline = time.monotonic() + _PATIENCE_S
        while (shown := set(os.listdir(self._mountpoint))) != names:
            if time.monotonic() > deadline:
                raise Wrong(f"the mount has too much: {sorted(shown - names)}, and too little: {sorted(names - shown)}")
            time.sleep(0.02)

    def close(self) -> None:
        """End it, and see all daemons end."""
        if self._daemon is not None:
            self.down("SIGTERM")
        for daemon in self._ending[:]:
            self._wait(daemon)
        self.check()

    def kill(self) -> None:
        """Whatever hangs on it is free then. Nothing is cleaned up."""
        for daemon in (self._daemon, *self._ending):
            if daemon is not None and daemon.poll() is None:
                daemon.kill()

    @staticmethod
    def _wait(daemon: subprocess.Popen[bytes]) -> None:
        try:
            daemon.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired as exc:
            raise Wrong("a daemon that was to end has not") from exc


def chosen_way(chance: random.Random) -> str:
    return chance.choice(WAYS)


def _mounted() -> set[bytes]:
    return {line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()}
