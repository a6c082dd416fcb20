"""Ordered batches: nothing old is overwritten before what preserves it is on the disk.

A session writes increments and new contents aside (new files under temporary names) and puts off every change to
what the mirror already holds. When a batch is large enough there is one barrier, and then the changes are made, in
order. So a power cut at any moment leaves for every path either the old file, or the new one and the increment that
leads back. A barrier for a batch costs a fraction of one for each file.

What is removed may have been moved, and be wanted under a name that comes later (see `moved`): it goes last of all, as
long as there is room.
"""

import os
from collections.abc import Callable

from histfs.store.entry import Kind, parent_of
from histfs.store.files import Attributes, WritableTree

MAX_CHANGES = 1000
MAX_BYTES = 256 << 20
MOST_LAST = 50_000  # removals that wait for the end: some ten megabytes of memory


class Batch:
    """Changes to a tree that wait for a barrier. Paths are on-disk paths."""

    def __init__(self, tree: WritableTree, *, nothing_to_lose: bool = False) -> None:
        self._tree = tree
        self._needs_barrier = not nothing_to_lose
        self._changes: list[Callable[[], None]] = []
        self._sources: dict[bytes, bytes] = {}
        self._bytes = 0
        self._last: list[Callable[[], None]] = []
        self._last_bytes = 0
        self._last_places: set[bytes] = set()  # directories in which something goes last
        self._last_attributes: list[Callable[[], None]] = []

    def add_bytes(self, size_bytes: int) -> None:
        """Count what was written aside, to keep a batch small."""
        self._bytes += size_bytes

    def replace(self, temporary: bytes, path: bytes) -> None:
        """Put off: `temporary` takes the place of `path`."""
        self._sources[path] = temporary
        self._changes.append(lambda: self._put(temporary, path))

    def unlink(self, path: bytes) -> None:
        """Put off: `path` goes (it may be gone already)."""
        self._changes.append(lambda: self._remove(path))

    def remove_directory(self, path: bytes) -> None:
        """Put off: the directory `path` goes, with whatever is left in it."""
        self._changes.append(lambda: self._tree.remove_tree(path))

    def remove_last(self, path: bytes, *, is_directory: bool = False) -> None:
        """Put off to the end: `path` goes, with what is in it if it is a directory."""
        self._last.append(lambda: self._tree.remove_tree(path) if is_directory else self._remove(path))
        self._last_places.add(parent_of(path))

    def add_last_bytes(self, size_bytes: int) -> None:
        """Count what is there until the end."""
        self._last_bytes += size_bytes

    def set_attributes(self, path: bytes, kind: Kind, attributes: Attributes) -> None:
        """Put off: `path` gets its attributes, after what changes its time."""
        changes = self._last_attributes if path in self._last_places else self._changes
        changes.append(lambda: self._tree.set_attributes(path, kind, attributes))

    def present_name(self, path: bytes) -> bytes:
        """Under which name the new content of `path` lies now: a temporary one until the batch is applied."""
        return self._sources.get(path, path)

    @property
    def is_large(self) -> bool:
        return max(len(self._changes) / MAX_CHANGES, self._bytes / MAX_BYTES, len(self._last) / MOST_LAST) >= 1

    def apply_if_large(self) -> None:
        if self.is_large:
            self.apply()

    def apply(self) -> None:
        """The barrier, then the changes. An OSError leaves the session open: the next one regresses it."""
        if self._last and (len(self._last) >= MOST_LAST or self._free_bytes() < self._last_bytes):
            self._end()
        if self._changes and self._needs_barrier:
            self._tree.sync()
        for change in self._changes:
            change()
        self._changes.clear()
        self._sources.clear()
        self._bytes = 0

    def finish(self) -> None:
        """The same, with what was put off to the end."""
        self._end()
        self.apply()

    def _free_bytes(self) -> int:
        status = os.fstatvfs(self._tree.root_fd)
        return status.f_bavail * status.f_frsize

    def _end(self) -> None:
        self._changes += self._last
        self._changes += self._last_attributes
        self._last.clear()
        self._last_attributes.clear()
        self._last_places.clear()
        self._last_bytes = 0

    # In the place of a file there may be a directory, which is damage that the session has told of.

    def _put(self, temporary: bytes, path: bytes) -> None:
        try:
            self._tree.rename(temporary, path)
        except IsADirectoryError:
            self._tree.remove_tree(path)
            self._tree.rename(temporary, path)

    def _remove(self, path: bytes) -> None:
        try:
            self._tree.unlink(path, missing_ok=True)
        except IsADirectoryError:
            self._tree.remove_tree(path)
