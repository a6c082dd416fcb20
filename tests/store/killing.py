"""A session that is killed between two changes of the disk, without a process that dies.

Only `histfs.store.files` and its parts, `copying` and the lock change the disk, through the module `os` and syncfs(2).
Here they get an `os` that counts the changes and, at the chosen one, raises `Killed` before it is made. A write is cut
in half. From then on every further change raises too: what runs while the exception travels up would not run in a
killed process.

`lose_data` turns a kill into a power cut of the worst kind that file systems allow: names are ahead of data, so that
what was written since the last barrier has its name and no content.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histfs.store import copying, files, lock, xattrs

_CHANGES = (
    *("chmod", "chown", "ftruncate", "fsync", "link", "mkdir", "mknod"),
    *("removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "utime", "write"),
)


class Killed(BaseException):
    """Not an Exception: nothing catches it but what tidies up."""


class Killer:
    """Kills at change number `at` (from 1); with None it only counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.changes = 0
        self.unsynced: set[tuple[int, int]] = set()  # files whose data would not survive a power cut
        proxy = _Os(self)
        monkeypatch.setattr(files, "os", proxy)
        monkeypatch.setattr(lock, "os", proxy)
        monkeypatch.setattr(xattrs, "os", proxy)
        monkeypatch.setattr(copying, "os", proxy)
        monkeypatch.setattr(files.WritableTree, "sync", lambda _tree: self.sync())

    def count(self) -> None:
        self.changes += 1
        if self.at is not None and self.changes >= self.at:
            raise Killed

    def sync(self) -> None:
        self.count()
        self.unsynced.clear()

    def run(self, at: int | None, action: Callable[[], object]) -> bool:
        """Whether `action` was killed. At its end nothing is killed any more."""
        self.at, self.changes = at, 0
        self.unsynced.clear()
        try:
            action()
        except Killed:
            return True
        else:
            return False
        finally:
            self.at = None

    def lose_data(self, top: Path, *, keeps_size: bool = False) -> None:
        """Empty the files below `top` that a power cut now would leave empty, or full of zeros."""
        for place, _, names in os.walk(top):
            for name in names:
                path = os.path.join(place, name)
                status = os.lstat(path)
                # What was removed may have left its number to something that has no data.
                if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) in self.unsynced:
                    os.truncate(path, 0)
                    os.truncate(path, status.st_size if keeps_size else 0)
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class _Os:
    def __init__(self, killer: Killer) -> None:
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in _CHANGES:
            return value

        def change(*arguments: Any, **options: Any) -> Any:
            self._killer.count()
            return value(*arguments, **options)

        return change

    def open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            self._killer.count()
        return os.open(path, flags, *arguments, **options)

    def write(self, fd: int, data: bytes) -> int:
        status = os.fstat(fd)
        self._killer.unsynced.add((status.st_dev, status.st_ino))
        if self._killer.changes + 1 == self._killer.at:
            os.write(fd, bytes(data)[: len(data) // 2])
        self._killer.count()
        return os.write(fd, data)

    def copy_file_range(self, source: int, target: int, count: int) -> int:
        status = os.fstat(target)
        self._killer.unsynced.add((status.st_dev, status.st_ino))
        self._killer.count()
        return os.copy_file_range(source, target, count)

    def fsync(self, fd: int) -> None:
        self._killer.count()
        status = os.fstat(fd)
        self._killer.unsynced.discard((status.st_dev, status.st_ino))
