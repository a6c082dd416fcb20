"""A session that is killed between two changes of the disk, without a process that dies.

Only `histfs.store.files` (and the lock) change the disk, through the module `os` and syncfs(2). Here they get an `os`
that counts the changes and, at the chosen one, raises `Killed` before it is made. A write is cut in half. From then
on every further change raises too: what runs while the exception travels up would not run in a killed process.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

from histfs.store import files, lock

_CHANGES = (
    *("chmod", "chown", "ftruncate", "fsync", "link", "mkdir", "mknod"),
    *("rename", "rmdir", "symlink", "unlink", "utime", "write"),
)


class Killed(BaseException):
    """Not an Exception: nothing catches it but what tidies up."""


class Killer:
    """Kills at change number `at` (from 1); with None it only counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.changes = 0
        proxy = _Os(self)
        monkeypatch.setattr(files, "os", proxy)
        monkeypatch.setattr(lock, "os", proxy)
        monkeypatch.setattr(files.WritableTree, "sync", lambda _tree: self.count())

    def count(self) -> None:
        self.changes += 1
        if self.at is not None and self.changes >= self.at:
            raise Killed

    def run(self, at: int | None, action: Callable[[], object]) -> bool:
        """Whether `action` was killed. At its end nothing is killed any more."""
        self.at, self.changes = at, 0
        try:
            action()
        except Killed:
            return True
        else:
            return False
        finally:
            self.at = None


class _Os:
    def __init__(self, killer: Killer) -> None:
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in _CHANGES:
            return value

        def change(*arguments: Any, **options: Any) -> Any:
            if name == "write" and self._killer.changes + 1 == self._killer.at:
                os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            self._killer.count()
            return None if name == "fsync" else value(*arguments, **options)  # nothing here cuts the power

        return change

    def open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            self._killer.count()
        return os.open(path, flags, *arguments, **options)
