"""The versions that are kept open because they are read now, or were a moment ago.

Nobody says when a file is closed, and one that is read in several goes should not be put together each time. So all are
kept for a while, up to a number; the least recently read go first. What is costly to open again, large files, has
places of its own, so that it stays while somebody walks through thousands of small ones, which may be in memory. And it
is served without Python, as far as there is room for that (see `fuse.serve`): then it is closed when that has ended.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic

from histfs.fuse import reads_served, serve, withdraw
from histfs.vfs import File

_LARGE_BYTES = 1 << 20
_IDLE_S = 60.0  # then disk space of what was replaced or taken out of the repository is given back
_FAILURE_IS_NEWS_FOR_S = 1.0  # the kernel asks for one damaged block more than once
_FAILURES = 100


class _Opened:
    def __init__(self, inode: int, file: File) -> None:
        self.file = file
        self.users = 0
        self.used_at = monotonic()
        self._inode = inode
        self._is_served = file.reader is not None and serve(inode, file.size_bytes, file.reader)

    def is_idle(self) -> bool:
        """Whether nobody reads it, nor can any more but through us."""
        if self._is_served and not self.users:
            self._is_served = not withdraw(self._inode)
        return not self.users and not self._is_served

    def is_idle_since(self, before: float) -> bool:
        if self._is_served and reads_served(self._inode):
            self.used_at = monotonic()
        return self.used_at < before and self.is_idle()


class _Shelf(OrderedDict[int, _Opened]):
    """Open versions by inode number, the least recently used first; `max_bytes` of what they are long together."""

    def __init__(self, max_files: int, max_bytes: float = inf) -> None:
        super().__init__()
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._bytes = 0

    def add(self, inode: int, file: File) -> None:
        """Add the newest, which stays in any case, and drop what is too much of those that nobody reads."""
        while self._is_full(file):
            idle = next((old for old, opened in self.items() if opened.is_idle()), None)
            if idle is None:
                break
            self.drop(idle)
        self[inode] = _Opened(inode, file)
        self._bytes += file.size_bytes

    def drop(self, inode: int) -> None:
        file = self.pop(inode).file
        self._bytes -= file.size_bytes
        file.content.close()

    def _is_full(self, newest: File) -> bool:
        return len(self) >= self._max_files or self._bytes + newest.size_bytes > self._max_bytes


class OpenFiles:
    """Open versions by inode number. To be used in one trio loop. `small_bytes`: how long all small ones may be."""

    def __init__(self, *, small_bytes: float = inf, max_small: int = 256, max_large: int = 32) -> None:
        self._small = _Shelf(max_small, small_bytes)
        self._large = _Shelf(max_large)  # which lie on disk
        self._failures: OrderedDict[int, tuple[float, Exception]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __contains__(self, inode: int) -> bool:
        return inode in self._small or inode in self._large

    def add(self, inode: int, file: File) -> None:
        """Keep what was just opened; it stays at least until somebody had the chance to `use` it."""
        shelf = self._large if file.size_bytes > _LARGE_BYTES else self._small
        shelf.add(inode, file)

    def add_failure(self, inode: int, error: Exception) -> None:
        """Remember that `inode` could not be opened."""
        self._failures[inode] = monotonic(), error
        self._failures.move_to_end(inode)
        if len(self._failures) > _FAILURES:
            self._failures.popitem(last=False)

    def check_failure(self, inode: int) -> None:
        """Raise what was raised a moment ago."""
        failed_at, error = self._failures.get(inode, (0.0, None))
        if error is not None:
            if monotonic() < failed_at + _FAILURE_IS_NEWS_FOR_S:
                raise error
            del self._failures[inode]

    @contextmanager
    def use(self, inode: int) -> Iterator[File]:
        """An open version, which is not closed meanwhile. KeyError if it is not open."""
        shelf = self._small if inode in self._small else self._large
        opened = shelf[inode]
        shelf.move_to_end(inode)
        opened.users += 1
        try:
            yield opened.file
        finally:
            opened.users -= 1
            opened.used_at = monotonic()

    def close_idle(self) -> None:
        """Close what was not read for a minute."""
        before = monotonic() - _IDLE_S
        for shelf in (self._small, self._large):
            for inode in [inode for inode, opened in shelf.items() if opened.is_idle_since(before)]:
                shelf.drop(inode)

    def close(self) -> None:
        """Close all, but for what somebody reads who cannot be stopped."""
        for shelf in (self._small, self._large):
            for inode in [inode for inode, opened in shelf.items() if opened.is_idle()]:
                shelf.drop(inode)
