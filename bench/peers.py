"""The programs that are compared, each as the command lines that do the same job.

A peer that is not installed is left out. One that cannot mount raises NotImplementedError.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def find_program(name: str) -> list[str] | None:
    """How to start `name`: beside this interpreter, else in PATH; None if it is not installed."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [sys.executable, str(script)]  # its first line may name an interpreter with a blank in its path
    found = shutil.which(name)
    return None if found is None else [found]


class Peer:
    """One program with one repository below `place`."""

    name: str
    program: str
    version_arguments = ("--version",)

    def __init__(self, place: Path) -> None:
        self.repository = place / f"repository-{self.name}"
        self.mountpoint = place / f"mount-{self.name}"
        self.mountpoint.mkdir()
        self.times: list[int] = []

    @classmethod
    def command(cls, *arguments: object) -> list[str]:
        return [*(find_program(cls.program) or [cls.program]), *map(str, arguments)]

    @classmethod
    def version(cls) -> str | None:
        """What the program says of itself; None if it is not installed."""
        if find_program(cls.program) is None:
            return None
        found = subprocess.run(cls.command(*cls.version_arguments), capture_output=True, text=True, check=True)
        return found.stdout.splitlines()[0].strip()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C.UTF-8"}

    def prepare(self) -> list[str] | None:
        """The command that makes an empty repository, if that is a step of its own."""
        return None

    def backup(self, source: Path, session_time: int) -> list[str]:
        raise NotImplementedError

    def restore(self, session: int, target: Path) -> list[str]:
        raise NotImplementedError

    def restored(self, target: Path) -> Path:
        """Where the tree is after `restore` to `target`."""
        return target

    def mount(self) -> list[str]:
        """A command that mounts and returns, or stays: `unmount` ends it."""
        raise NotImplementedError

    def mounted_snapshot(self, session: int) -> Path:
        """Where snapshot `session` (0: the oldest) is once it is mounted."""
        raise NotImplementedError

    def unmount(self) -> list[str]:
        return ["fusermount3", "-u", str(self.mountpoint)]


class Histfs(Peer):
    name = program = "histfs"

    def backup(self, source: Path, session_time: int) -> list[str]:
        return self.command("--current-time", session_time, "backup", source, self.repository)

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("restore", "--at", self.times[session], self.repository, target)

    def mount(self) -> list[str]:
        return self.command("mount", self.repository, self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / time.strftime("@%Y-%m-%dT%H:%M", time.localtime(self.times[session]))

    def unmount(self) -> list[str]:
        return self.command("umount", self.mountpoint)


class RdiffBackup(Peer):
    name = program = "rdiff-backup"

    def backup(self, source: Path, session_time: int) -> list[str]:
        options = ("--api-version", 201, "--current-time", session_time)
        return self.command(*options, "backup", source, self.repository)

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("--api-version", 201, "restore", "--at", self.times[session], self.repository, target)


class Plain(Peer):
    """What needs no backup program at all: a full copy a session. The lower bound, not a rival."""

    name = "plain copy"
    program = "cp"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.repository.mkdir()

    def backup(self, source: Path, session_time: int) -> list[str]:
        return self.command("-a", source, self.repository / str(session_time))

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("-a", self.mounted_snapshot(session), target)

    def mount(self) -> list[str]:
        return ["true"]

    def mounted_snapshot(self, session: int) -> Path:
        return self.repository / str(self.times[session])

    def unmount(self) -> list[str]:
        return ["true"]


class Restic(Peer):
    name = program = "restic"
    version_arguments = ("version",)

    def environment(self) -> dict[str, str]:
        place = {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_CACHE_DIR": f"{self.repository}-cache"}
        return {**super().environment(), **place, "RESTIC_PASSWORD": "bench", "RESTIC_PROGRESS_FPS": "0.01"}

    def prepare(self) -> list[str]:
        return self.command("-q", "init")

    def backup(self, source: Path, session_time: int) -> list[str]:
        self.source = source
        return self.command("-q", "backup", "--time", time.strftime("%F %T", time.localtime(session_time)), source)

    def restore(self, session: int, target: Path) -> list[str]:
        found = subprocess.run(
            self.command("snapshots", "--json"), env=self.environment(), capture_output=True, text=True, check=True
        )
        snapshot = sorted(json.loads(found.stdout), key=lambda one: str(one["time"]))[session]["id"]
        return self.command("-q", "restore", snapshot, "--target", target)

    def restored(self, target: Path) -> Path:
        return target / self.source.relative_to("/")

    def mount(self) -> list[str]:
        return self.command("-q", "mount", self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        names = sorted(path for path in (self.mountpoint / "snapshots").iterdir() if path.name != "latest")
        return names[session] / self.source.relative_to("/")


class Borg(Peer):
    name = program = "borg"

    def environment(self) -> dict[str, str]:
        place = {"BORG_REPO": str(self.repository), "BORG_BASE_DIR": f"{self.repository}-cache"}
        return {**super().environment(), **place, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def prepare(self) -> list[str]:
        return self.command("init", "--encryption", "none")

    def backup(self, source: Path, session_time: int) -> list[str]:
        self.source = source
        moment = time.strftime("%FT%T", time.gmtime(session_time))
        return self.command("create", "--timestamp", moment, f"::{session_time}", source)

    def restore(self, session: int, target: Path) -> list[str]:
        target.mkdir()
        depth = len(self.source.parts) - 1
        command = self.command("extract", "--strip-components", depth, f"::{self.times[session]}")
        return ["env", "-C", str(target), *command]

    def mount(self) -> list[str]:
        return self.command("mount", "::", self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / str(self.times[session]) / self.source.relative_to("/")


PEERS: tuple[type[Peer], ...] = (Histfs, RdiffBackup, Restic, Borg, Plain)
