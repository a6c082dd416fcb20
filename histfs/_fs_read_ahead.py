"""Reading small files before they are asked for: `_fs_ahead` says which, here they are read and kept.

What is kept is answered without Python (see `fuse`). As the disk is quick most of the time, some files are read in the
loop; the rest in a thread, in which waiting harms nobody.
"""

import functools
import stat
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import trio

from histfs._fs_ahead import Ahead
from histfs.errors import HistfsError
from histfs.fuse import keep_content
from histfs.vfs import Child, History

_HERE_S = 0.0005
_STEP = 8  # files
_AT_ONCE = 32
BATCHES_WAITING = 64


class ReadAhead:
    """To be used in one trio loop; `run` reads."""

    def __init__(self, history: History, limiter: trio.CapacityLimiter) -> None:
        self._history = history
        self._limiter = limiter
        self._ahead = Ahead()
        self._batches, self._next_batch = trio.open_memory_channel[list[int]](BATCHES_WAITING)

    def listed(self, inode: int, files: list[tuple[int, int]]) -> None:
        """A directory was listed to its end; `files` are inodes and sizes of its small files."""
        self.want(self._ahead.listed(inode, files))

    def crawl(self, inode: int, children: list[Child], list_directory: Callable[[int], list[Child] | None]) -> None:
        """A directory was asked for, in which `children` are: list what will be asked for next.

        `list_directory` keeps a listing and returns it, or None if it takes too long. Now, and not beside what is asked
        for: the reader would overtake us, and all be done twice.
        """
        crawl = self._ahead.crawled(inode, subdirectories(children))
        if crawl is None:
            return
        while (following := crawl.next_directory()) is not None:
            with suppress(HistfsError):  # who asks for it will hear what is wrong
                below = list_directory(following)
                if below is None:
                    break
                self._ahead.listed_ahead(following, small_files(below))
                crawl.add(subdirectories(below))
        self._ahead.paused(crawl)

    def asked(self, inode: int) -> None:
        """The first bytes of a file were asked for."""
        self.want(self._ahead.asked(inode))

    def want(self, inodes: list[int]) -> None:
        if inodes:
            with suppress(trio.WouldBlock):  # there is enough to do
                self._batches.send_nowait(inodes)

    async def run(self) -> None:
        """Read what will be asked for next, until cancelled. Several may do so."""
        async for inodes in self._next_batch:
            rest = self._keep_quick(inodes)
            for first in range(0, len(rest), _AT_ONCE):
                keep = functools.partial(self._keep, rest[first : first + _AT_ONCE])
                await trio.to_thread.run_sync(keep, limiter=self._limiter, abandon_on_cancel=True)

    def _keep_quick(self, inodes: list[int]) -> list[int]:
        """Keep what is quickly read, for a moment; what is not, or there was no time for."""
        until = monotonic() + _HERE_S
        rest: list[int] = []
        for first in range(0, len(inodes), _STEP):
            if monotonic() > until:
                return rest + inodes[first:]
            step = inodes[first : first + _STEP]
            kept = self._keep(step, only_quick=True)
            rest += [inode for inode in step if inode not in kept]
        return rest

    def _keep(self, inodes: list[int], *, only_quick: bool = False) -> set[int]:
        """Read and keep files; those that are kept."""
        kept = set()
        with suppress(HistfsError, OSError):  # who asks for it will hear what is wrong
            for inode, data in self._history.contents(inodes, only_quick=only_quick):
                keep_content(inode, data)
                kept.add(inode)
        return kept

    def whole(self, inode: int) -> bytes | bytearray | memoryview | None:
        """All bytes of a small file that is quickly read; None for any other, and where something is wrong."""
        with suppress(HistfsError, OSError):  # the long way tells what is wrong
            return next((data for _, data in self._history.contents([inode], only_quick=True)), None)
        return None


def small_files(children: list[Child]) -> list[tuple[int, int]]:
    """Inodes and sizes of what is worth reading ahead."""
    return [(child.attributes.inode, child.attributes.size_bytes) for child in children if child.is_small]


def subdirectories(children: list[Child]) -> list[int]:
    """Inodes of the directories in one."""
    return [
        child.attributes.inode
        for child in children
        if stat.S_ISDIR(child.attributes.mode) and child.name not in (b".", b"..")
    ]
