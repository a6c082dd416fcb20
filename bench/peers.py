"""The programs that are compared, each as the command lines that do the same job.

A program that is not installed is left out. Session n has the time START + n hours, in every repository of every run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.commands import output_of, program_beside_python

START = 1_750_000_000
HOUR_S = 3600
_LIMIT_S = 60
_PROJECT = Path(__file__).resolve().parents[1]


def session_time(session: int) -> int:
    """Seconds since the epoch."""
    return START + session * HOUR_S


def find_program(name: str) -> list[str] | None:
    """How to start `name`: beside this interpreter, else in PATH; None if it is not installed."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return program_beside_python(name)
    found = shutil.which(name)
    return None if found is None else [found]


class Peer:
    """One program with one repository below `place`, that holds the sessions of `source`, 0 to `newest`."""

    name: str
    program: str
    version_arguments = ("--version",)
    can_mount = True
    excluding: tuple[str, ...] = ()  # options that leave out what ends in .h, and each directory doc; (): not known

    def __init__(self, place: Path, source: Path) -> None:
        self.source = source
        self.newest = 0
        self.word = re.sub(r"\W+", "-", self.name)
        self.repository = place / f"repository-{self.word}"
        self.cache = place / f"cache-{self.word}"
        self.mountpoint = place / f"mount-{self.word}"
        self.mountpoint.mkdir(exist_ok=True)

    @classmethod
    def command(cls, *arguments: object) -> list[str]:
        return [*(find_program(cls.program) or [cls.program]), *map(str, arguments)]

    @classmethod
    def version(cls) -> str | None:
        """What the program says of itself; None if it is not installed."""
        if find_program(cls.program) is None:
            return None
        found = subprocess.run(cls.command(*cls.version_arguments), capture_output=True, text=True, check=True)
        said = found.stdout.splitlines()[0].strip()
        return said if cls.program in said else f"{cls.program} {said}"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "XDG_CACHE_HOME": str(self.cache)}

    def forget(self) -> None:
        """Remove the repository and what the program keeps beside it."""
        for place in (self.repository, self.cache):
            shutil.rmtree(place, ignore_errors=True)

    def wants(self, session: int, newest: int) -> bool:
        """Whether it backs up this session at all."""
        return True

    def has(self, session: int) -> bool:
        """Whether this session can be read, after writing."""
        return session <= self.newest

    def prepare(self) -> list[str] | None:
        """The command that makes an empty repository, if that is a step of its own."""
        return None

    def backup(self, session: int, *options: str) -> list[str]:
        """`options` of the program's own, where it has some that are `excluding`."""
        raise NotImplementedError

    def restore(self, session: int, target: Path) -> list[str]:
        """A command that writes the whole source as it was then to `target`, which is not there yet."""
        raise NotImplementedError

    def restored(self, target: Path) -> Path:
        """Where the tree is after `restore` to `target`."""
        return target

    def mount(self) -> list[str]:
        """A command that mounts and stays in the foreground."""
        raise NotImplementedError

    def mounted_snapshot(self, session: int) -> Path:
        """Where snapshot `session` is once it is mounted."""
        raise NotImplementedError

    def increments(self) -> list[Path]:
        """The files of the repository that are compressed steps back in time, of programs that have such files."""
        return []


class Histfs(Peer):
    name = program = "histfs"
    excluding = ("--exclude", "**.h", "--exclude", "**/doc")

    @classmethod
    def version(cls) -> str | None:
        """With the newest commit that changed it, if git knows."""
        git = ["git", "-C", str(_PROJECT), "log", "-1", "--format= (%h)", "--", "histfs"]
        try:
            commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.rstrip()
        except FileNotFoundError:
            commit = ""
        version = super().version()
        return None if version is None else f"{version}{commit}"

    def backup(self, session: int, *options: str) -> list[str]:
        return self.command("--current-time", session_time(session), "backup", *options, self.source, self.repository)

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("restore", "--at", session_time(session), self.repository, target)

    def mount(self) -> list[str]:
        return self.command("mount", "--foreground", "--utc", self.repository, self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / time.strftime("@%Y-%m-%dT%H:%M", time.gmtime(session_time(session)))

    def increments(self) -> list[Path]:
        return sorted((self.repository / "rdiff-backup-data" / "increments").rglob("*.diff.gz"))


class RdiffBackup(Peer):
    name = program = "rdiff-backup"
    can_mount = False
    excluding = Histfs.excluding

    def backup(self, session: int, *options: str) -> list[str]:
        general = ("--api-version", 201, "--current-time", session_time(session))
        return self.command(*general, "backup", *options, self.source, self.repository)

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("--api-version", 201, "restore", "--at", session_time(session), self.repository, target)


class HistfsOnForeign(Histfs):
    """histfs, reading what rdiff-backup wrote."""

    name = "histfs on rdiff-backup's"

    def __init__(self, writer: RdiffBackup, place: Path) -> None:
        super().__init__(place, writer.source)
        self.repository = writer.repository
        self.newest = writer.newest

    def forget(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def wants(self, session: int, newest: int) -> bool:
        return False


class Restic(Peer):
    name = program = "restic"
    version_arguments = ("version",)
    excluding = ("--exclude", "*.h", "--exclude", "doc")

    def environment(self) -> dict[str, str]:
        place = {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_CACHE_DIR": str(self.cache)}
        return {**super().environment(), **place, "RESTIC_PASSWORD": "bench", "RESTIC_PROGRESS_FPS": "0.01"}

    def prepare(self) -> list[str]:
        return self.command("-q", "init")

    def backup(self, session: int, *options: str) -> list[str]:
        moment = time.strftime("%F %T", time.gmtime(session_time(session)))
        return self.command("-q", "backup", "--time", moment, *options, self.source)

    def restore(self, session: int, target: Path) -> list[str]:
        found = output_of(self.command("snapshots", "--json"), limit_s=_LIMIT_S, environment=self.environment())
        snapshot = sorted(json.loads(found), key=lambda one: str(one["time"]))[session]["id"]
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
    excluding = ("--exclude", "*.h", "--exclude", "*/doc")

    def environment(self) -> dict[str, str]:
        place = {"BORG_REPO": str(self.repository), "BORG_BASE_DIR": str(self.cache)}
        return {**super().environment(), **place, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def prepare(self) -> list[str]:
        return self.command("init", "--encryption", "none")

    def backup(self, session: int, *options: str) -> list[str]:
        moment = time.strftime("%FT%T", time.gmtime(session_time(session)))
        return self.command("create", "--timestamp", moment, *options, f"::{session_time(session)}", self.source)

    def restore(self, session: int, target: Path) -> list[str]:
        target.mkdir()
        depth = len(self.source.parts) - 1
        command = self.command("extract", "--strip-components", depth, f"::{session_time(session)}")
        return ["env", "-C", str(target), *command]

    def mount(self) -> list[str]:
        return self.command("mount", "--foreground", "::", self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / str(session_time(session)) / self.source.relative_to("/")


class Bup(Peer):
    name = program = "bup"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "BUP_DIR": str(self.repository)}

    def prepare(self) -> list[str]:
        return self.command("init")

    def backup(self, session: int, *options: str) -> list[str]:
        both = '"$0" index "$1" && exec "$0" save -q -n bench --date "$2" "$1"'
        return ["sh", "-c", both, *self.command(), str(self.source), str(session_time(session))]

    def _name(self, session: int) -> str:
        return time.strftime("%Y-%m-%d-%H%M%S", time.gmtime(session_time(session)))

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("restore", "-q", "-C", target, f"/bench/{self._name(session)}{self.source}/.")

    def mount(self) -> list[str]:
        return self.command("fuse", "--foreground", "--meta", self.mountpoint)

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / "bench" / self._name(session) / self.source.relative_to("/")


class Plain(Peer):
    """No backup program: full copies of what is looked at later, shown by bench.passthrough.

    It is the floor of the comparison, and the truth that the others are checked against.
    """

    name = "plain copy"
    program = "cp"

    def __init__(self, place: Path, source: Path, *, keeps_all: bool = False) -> None:
        super().__init__(place, source)
        self.repository.mkdir(exist_ok=True)
        self.keeps_all = keeps_all

    def forget(self) -> None:
        super().forget()
        self.repository.mkdir()

    def wants(self, session: int, newest: int) -> bool:
        return self.keeps_all or session in (0, 1, newest)

    def has(self, session: int) -> bool:
        return self.copy_of(session).exists()

    def copy_of(self, session: int) -> Path:
        return self.repository / str(session_time(session))

    def backup(self, session: int, *options: str) -> list[str]:
        return self.command("-a", self.source, self.copy_of(session))

    def restore(self, session: int, target: Path) -> list[str]:
        return self.command("-a", self.copy_of(session), target)

    def mount(self) -> list[str]:
        return [sys.executable, "-m", "bench.passthrough", str(self.repository), str(self.mountpoint)]

    def mounted_snapshot(self, session: int) -> Path:
        return self.mountpoint / str(session_time(session))


PEERS: tuple[type[Peer], ...] = (Histfs, RdiffBackup, Restic, Borg, Bup, Plain)
