"""Large files that are read and written past the system's page cache (open(2), O_DIRECT).

A backup goes through all of a large file once, and nobody asks for those pages soon: in the cache they would only take
the place of what others need, and getting the memory for them takes longer than most disks do to write. It is done on
file systems that are known to keep the promise; all else, and what one of them refuses, goes the usual way. Whatever is
written so still has to be waited for by a barrier, as a disk has a cache of its own.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Self

from histfs.store.files import is_zeros, set_length

_CHUNK_BYTES = 2 << 20  # read at once
_HOLE_BYTES = 256 * 1024  # so many zeros, aligned, become a hole
_ALIGNMENT = 4096
_MOST_WRITTEN = 2  # chunks that wait or are written, while another one is taken
_CHUNKS_READ = 4  # the one before, for what looks back; the one that is asked for; those ahead
# ext2 to ext4, XFS (statfs(2)). Not those that may compress, which they leave when they are gone past.
_FILE_SYSTEMS = (0xEF53, 0x58465342)
_libc = ctypes.CDLL(None, use_errno=True)


def try_direct(fd: int) -> bool:
    """Have all that is read or written by `fd` go past the page cache. False where that is not known to be good."""
    answer = (ctypes.c_long * 32)()  # struct statfs; its first field is the kind
    if _libc.fstatfs(fd, answer) or answer[0] not in _FILE_SYSTEMS:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def write_direct(
    fd: int, chunks: Iterable[memoryview], size_bytes: int, thread: Executor, on_written: Callable[[int], None]
) -> int:
    """Write `chunks` to the empty file `fd`, for which `try_direct` was true; the number of bytes.

    Each begins at a page of memory, and all but the last are of whole pages; they are `size_bytes` at most, which is
    the length of the file from the beginning, as in `files.write_blocks`. Zeros become holes. `thread` writes; a chunk
    is not looked at any more when the next but two is taken. `on_written` is told the end of what is in the file.
    Raises OSError, and what taking a chunk raises.
    """
    set_length(fd, size_bytes)
    writer = _Writer(fd)
    running: deque[tuple[int, Future[None]]] = deque()
    size = 0

    def wait_until(most: int) -> None:
        while len(running) > most:
            end, written = running.popleft()
            written.result()
            on_written(end)

    try:
        for chunk in chunks:
            running.append((size + len(chunk), thread.submit(writer.write, chunk, size)))
            size += len(chunk)
            wait_until(_MOST_WRITTEN)
        wait_until(0)
    finally:
        for _, written in running:
            written.exception()  # only waits: what went wrong first is what is raised
    return size


class _Writer:
    """Writes to `fd`, which is direct until something has to be written that cannot be."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_direct = True

    def write(self, chunk: memoryview, at: int) -> None:
        """All of `chunk`, to `at`, but for zeros."""
        size = len(chunk)
        start = 0
        while start < size:
            end = start
            while end < size and not is_zeros(chunk[end : end + _HOLE_BYTES]):
                end = min(end + _HOLE_BYTES, size)
            self._write_all(chunk[start:end], at + start)
            start = end + _HOLE_BYTES

    def _write_all(self, data: memoryview, at: int) -> None:
        """`data` begins at a multiple of the alignment, in memory and in the file."""
        written = 0
        while written < len(data):
            left = len(data) - written
            if written % _ALIGNMENT or left < _ALIGNMENT:  # the end of the file, or a disk that is full
                self._go_the_usual_way()
            try:
                written += os.pwrite(self._fd, data[written : written + (left & -_ALIGNMENT or left)], at + written)
            except OSError as exc:
                if exc.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._go_the_usual_way()

    def _go_the_usual_way(self) -> None:
        if self._is_direct:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
            self._is_direct = False


class DirectReader:
    """Reads a file in order, ahead of who asks, past the page cache, from anywhere on. A context manager."""

    def __init__(self, fd: int) -> None:
        """`fd` stays as it is, for what cannot be read so. Raises nothing: perhaps nothing can."""
        self._fd = self._open(fd)
        self._thread = ThreadPoolExecutor(1)
        self._buffers: list[memoryview] = []
        self._reading: deque[Future[int]] = deque()  # of the chunks before `_following`
        self._following = 0

    @staticmethod
    def _open(fd: int) -> int | None:
        """The same file once more: whether it is read directly is of a descriptor, not of a read."""
        try:
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if try_direct(again):
            return again
        os.close(again)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._fd is not None:
            os.close(self._fd)

    def read(self, start: int, end: int) -> bytes | memoryview | None:
        """These bytes, no more than a chunk; who asks goes on behind them. None if they have to be read in another way.

        A view is good until the next call.
        """
        if self._fd is None or end <= start or end - start > _CHUNK_BYTES:
            return None
        first, last = start // _CHUNK_BYTES, (end - 1) // _CHUNK_BYTES
        if not self._following - len(self._reading) <= first <= self._following:
            self._begin_at(first)
        while last + 1 >= self._following:
            self._read_ahead(self._fd, self._following)
        return self._taken(first, last, start, end)

    def look(self, start: int, end: int) -> bytes | memoryview | None:
        """The same, but only of what is there already."""
        first, last = start // _CHUNK_BYTES, (end - 1) // _CHUNK_BYTES
        if end <= start or first < self._following - len(self._reading) or last >= self._following:
            return None
        return self._taken(first, last, start, end)

    def _begin_at(self, number: int) -> None:
        while self._reading:
            self._reading.popleft().exception()  # nobody writes there any more
        self._following = number

    def _read_ahead(self, fd: int, number: int) -> None:
        if not self._buffers:
            self._buffers = [memoryview(mmap.mmap(-1, _CHUNK_BYTES)) for _ in range(_CHUNKS_READ)]
        if len(self._reading) == _CHUNKS_READ:
            self._reading.popleft().exception()  # nobody writes there any more
        buffer = self._buffers[number % _CHUNKS_READ]
        self._reading.append(self._thread.submit(os.preadv, fd, [buffer], number * _CHUNK_BYTES))
        self._following += 1

    def _taken(self, first: int, last: int, start: int, end: int) -> bytes | memoryview | None:
        parts = []
        for number in range(first, last + 1):
            at = number * _CHUNK_BYTES
            part = slice(max(start - at, 0), min(end - at, _CHUNK_BYTES))
            try:
                size = self._reading[number - self._following].result()
            except OSError:
                return None
            if size < part.stop:
                return None
            parts.append(self._buffers[number % _CHUNKS_READ][part])
        return parts[0] if len(parts) == 1 else b"".join(parts)
