"""Where the repository of an attempt lies: a directory in memory, or a small file system whose power can be cut.

Both keep boxes (a directory with all that an attempt may change) under names, and give a fresh copy as often as asked.
A file system is an image in memory, mounted through a loop device in a namespace of mounts of its own: nothing is left
mounted when the process ends.
"""

import ctypes
import os
import shutil
import subprocess
import time
from enum import IntEnum
from pathlib import Path
from typing import Protocol

MEMORY = Path("/dev/shm")
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000


class Cut(IntEnum):
    """What a power cut leaves, as the shutdown ioctl of ext4 and XFS has it."""

    METADATA_AHEAD = 1  # the journal is committed first, file data is not: names without content
    COMMITTED_ONLY = 2  # nothing that was not committed


class FileSystem(Protocol):
    """How one is made and mounted."""

    @property
    def name(self) -> str: ...
    @property
    def size_mib(self) -> int: ...
    @property
    def make(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> str: ...


class Ext4:
    name, size_mib, options = "ext4", 24, "loop"
    make = ("mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0")


class Ext4NoAutoDaAlloc(Ext4):
    """Without what ext4 does for programs that forget to sync what they rename."""

    name, options = "ext4, noauto_da_alloc", "loop,noauto_da_alloc"


class Xfs:
    name, size_mib, options = "XFS", 300, "loop,nouuid"
    make = ("mkfs.xfs", "-q", "-f")


FILE_SYSTEMS: tuple[type[FileSystem], ...] = (Xfs, Ext4, Ext4NoAutoDaAlloc)


def enter_own_mounts() -> None:
    """Give this process a namespace of mounts of its own. OSError where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a namespace of mounts cannot be made")


def obstacle() -> str | None:
    """Why no file system can be mounted here; None if it can be."""
    if os.geteuid() != 0:
        return "only root can mount file systems"
    for command in ("mkfs.ext4", "mkfs.xfs", "losetup"):
        if shutil.which(command) is None:
            return f"needs {command}"
    script = 'mkfs.ext4 -q -F "$1/i" 8M && unshare -m mount -o loop "$1/i" "$1/m"'
    place = MEMORY / f"histfs-faults-try-{os.getpid()}"
    (place / "m").mkdir(parents=True)
    try:
        tried = subprocess.run(["sh", "-c", script, "sh", place], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(place)
    return f"file systems in files cannot be mounted here ({tried.stderr.strip()})" if tried.returncode else None


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Memory:
    """Boxes that are directories in memory, below `root`."""

    name = "memory"
    can_lose_power = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.box = root / "box"

    def new(self) -> None:
        """An empty box."""
        _run("rm", "-rf", self.box)
        self.box.mkdir()

    def keep(self, name: str) -> None:
        """The box as it is now, under a name."""
        kept = self.root / f"kept {name}"
        _run("rm", "-rf", kept)
        _run("cp", "-a", self.box, kept)

    def take(self, name: str) -> None:
        """A fresh copy of what was kept under a name."""
        _run("rm", "-rf", self.box)
        _run("cp", "-a", self.root / f"kept {name}", self.box)

    def close(self) -> None:
        pass


class Disk:
    """Boxes that are file systems, mounted at `box`. The process must have mounts of its own."""

    can_lose_power = True

    def __init__(self, root: Path, kind: type[FileSystem]) -> None:
        self.root = root
        self.box = root / "box"
        self.name = kind.name
        self._kind = kind
        self._image = root / "image"
        self._is_mounted = False

    def new(self) -> None:
        self.down()
        self.make_image(self._image)
        self.up()

    def make_image(self, path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(self._kind.size_mib << 20)
        _run(*self._kind.make, path)

    def keep(self, name: str) -> None:
        self.down()
        copy_image(self._image, self.kept(name))
        self.up()

    def kept(self, name: str) -> Path:
        return self.root / f"kept {name}.img"

    def take(self, name: str) -> None:
        self.down()
        copy_image(self.kept(name), self._image)
        self.up()

    def take_image(self, image: Path) -> None:
        """The file system that is in a file, which is moved away."""
        self.down()
        image.rename(self._image)
        self.up()

    def up(self) -> None:
        if not self._is_mounted:
            self.box.mkdir(exist_ok=True)
            _run("mount", "-o", self._kind.options, self._image, self.box)
            self._is_mounted = True

    def mount_device(self, device: str) -> None:
        """Mount a block device that holds a copy of the image instead."""
        self.down()
        options = ",".join(option for option in self._kind.options.split(",") if option != "loop")
        _run("mount", *(["-o", options] if options else []), device, self.box)
        self._is_mounted = True

    def down(self) -> None:
        if not self._is_mounted:
            return
        for _ in range(100):
            if subprocess.run(["umount", self.box], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                self._is_mounted = False
                return
            time.sleep(0.05)
        raise OSError(f"{self.box} cannot be unmounted")

    def restart(self) -> None:
        """After a power cut: the file system replays its journal."""
        self.down()
        self.up()

    def open(self) -> int:
        """A descriptor, to cut its power through."""
        return os.open(self.box, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        self.down()


def copy_image(image: Path, copy: Path) -> None:
    _run("cp", "--sparse=always", image, copy)
