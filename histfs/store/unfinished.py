"""A mark in the target of a restore that has not come to its end.

Content may reach the disk after size and time do. So after a power cut, or when a disk was pulled out, a file may look
as it should be and hold zeros. The mark is on the disk before the first file is written, and goes when all of them are:
a restore that finds one compares contents below it. Waiting for each file instead would cost each a write to the disk.

A mark stands for all that its restore may have written. So it stays until a restore has come to its end that has looked
at all of that: one of the same, or one that left nothing alone below the mark. It also stays as long as its own restore
runs, which holds a lock (flock(2)) on it.
"""

import fcntl
import hashlib
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from histfs.store.entry import Kind, is_below, join, parent_of
from histfs.store.files import Attributes, WritableTree, write_blocks
from histfs.store.tree import Tree

LEFTOVER = b".histfs-restore."  # and 16 hex digits: what a restore was about to put in its place
_MARK = LEFTOVER + b"unfinished."  # and as many
_LEFTOVER_NAME = re.compile(re.escape(LEFTOVER) + rb"(unfinished\.)?[0-9a-f]{16}")


def new_leftover() -> bytes:
    """A name for what is about to be put in its place."""
    return LEFTOVER + secrets.token_hex(8).encode()


def is_leftover_name(name: bytes) -> bool:
    """Whether only a restore gives such names."""
    return _LEFTOVER_NAME.fullmatch(name) is not None


class Task(NamedTuple):
    """What a restore is to do, as its mark says it: two digests. `chosen`: of what of it; empty for all."""

    what: bytes
    chosen: bytes

    @classmethod
    def of(cls, repository: os.stat_result, session_time: int, path: bytes, meaning: bytes | None = b"") -> "Task":
        """`meaning`: that of a selection; None if it may be another one next time."""
        chosen = secrets.token_bytes() if meaning is None else meaning
        return cls(_digest(b"%d %d %b" % (repository.st_ino, session_time, path)), _digest(chosen) if chosen else b"")

    @property
    def text(self) -> bytes:
        return b"%b %b\n" % self

    def does_what(self, text: bytes) -> bool:
        """Whether it does all that the restore was to do whose mark has that `text`."""
        return text == self.text or (not self.chosen and text.startswith(self.what + b" "))


def _digest(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()


def is_below_mark(target: Path) -> bool:
    """Whether there is a mark in a directory above `target`, as far as these may be listed."""
    for directory in target.parents:
        with suppress(OSError):
            names = os.listdir(os.fsencode(directory))
            if any(name.startswith(_MARK) and is_leftover_name(name) for name in names):
                return True
    return False


class Unfinished:
    """Our mark, in the directory `top` of `tree`, and those that were found. `is_marked_above`: one is above."""

    def __init__(self, tree: WritableTree, top: bytes, task: Task, *, is_marked_above: bool) -> None:
        self._tree = tree
        self._top = top
        self._task = task
        self._found: set[bytes] = set()  # marks
        self._distrusted = {top} if is_marked_above else set()  # and the directories that they are in
        self._left_alone: set[bytes] = set()  # of these: in which something was not looked at
        self._mark: bytes | None = None
        self._fd = -1
        self._is_refused = False

    def close(self) -> None:
        """Another restore may take our mark for one of the past now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def found(self, name: bytes, directory: bytes) -> bool:
        """There is `name`, a leftover, in `directory`. Whether it is a mark, which is not to be removed."""
        if not name.startswith(_MARK):
            return False
        path = join(directory, name)
        if path != self._mark:
            self._found.add(path)
            self._distrusted.add(directory)
        return True

    def covers(self, path: bytes) -> bool:
        """Whether the content of the file `path` may have been lost, whatever else agrees."""
        return any(is_below(path, directory) for directory in self._distrusted)

    def leave_alone(self, path: bytes) -> None:
        """In the directory `path` is something that this restore does not look at."""
        self._left_alone.update(directory for directory in self._distrusted if is_below(path, directory))

    def is_wanted(self, path: bytes) -> None:
        """The snapshot has a file at `path`: even if it is a mark, it does not go."""
        self._found.discard(path)

    def begin(self) -> bool:
        """Set our mark, before anything is written; whether it is there. Else each file has to wait for the disk."""
        if self._mark is None and not self._is_refused:
            mark = join(self._top, _MARK + secrets.token_hex(8).encode())
            try:
                self._fd = self._tree.create_file(mark)
                self._mark = mark
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                write_blocks(self._fd, iter([self._task.text]), sparse=False)
                self._tree.sync_file(self._fd)
                self._tree.sync_directory(self._top)
            except OSError:  # what is restored is no directory, or it takes no new names
                self._is_refused = True
        return not self._is_refused

    @property
    def has_found(self) -> bool:
        """Whether there are marks that `end` may take away."""
        return bool(self._found)

    def end(self, *, is_complete: bool) -> bool:
        """Take our mark away, and those that stand for nothing more; whether there were any. Raises OSError.

        Everything must be on the disk. `is_complete`: all that should be restored is there.
        """
        marks = [self._mark] if self._mark is not None else []
        if is_complete:
            marks += filter(self._is_settled, sorted(self._found))
        for mark in marks:
            with suppress(PermissionError):  # that of another user, in a directory that is everybody's
                self._remove(mark)
        self._mark = None
        self._found.clear()
        return bool(marks)

    def _remove(self, mark: bytes) -> None:
        """The directory that it is in has its time already; the one that was restored gets it later."""
        directory = parent_of(mark)
        status = self._tree.stat(directory)
        self._tree.unlink(mark, missing_ok=True)
        if directory != self._top:
            as_it_was = Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
            self._tree.set_attributes(directory, Kind.DIRECTORY, as_it_was)

    def _is_settled(self, mark: bytes) -> bool:
        """Whether all was looked at that the found `mark` stands for, whose restore does not run any more."""
        try:
            fd = Tree.open_file(self._tree, mark)
        except OSError:  # a link, or what cannot be read: nobody knows what it was for
            return parent_of(mark) not in self._left_alone
        try:
            text = os.read(fd, len(self._task.text) + 100)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass
            return self._task.does_what(text) or parent_of(mark) not in self._left_alone
        finally:
            os.close(fd)
