"""New content of a large file: one thread takes it from the source and writes it, another one compares it meanwhile.

Who compares gets it from memory, where the last of it is kept, and need not read again what was just written. The two
stay together: who writes waits for who compares.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeAlias

from histfs.errors import HistfsError
from histfs.store.files import Block
from histfs.store.sums import BlockSums

Changed: TypeAlias = Callable[[int, int], Iterator[tuple[int, int]]]

CHUNK_BYTES = 2 << 20  # taken and written at once
_CHUNKS = 8  # in memory
_MOST_AHEAD = _CHUNKS - 2  # chunks, of who compares
_MOST_SUMMED = 3  # chunks that are taken before they have sums


class StoppedError(HistfsError):
    """The session ends, and nobody wants the copy any more."""


class Growing:
    """What is known of the content while it is written to a file.

    `changed`: the ranges of it, between two places, outside of which it is the old one at the same place, as far as was
    waited for; then nothing else of it is read. None where nobody knows. `old_fd`: of the old content, for who writes.
    """

    def __init__(self, sums: BlockSums | None = None, *, is_compared: bool = False) -> None:
        """`is_compared`: somebody will compare, and `let_go`."""
        self.sums = sums
        self.changed: Changed | None = None
        self.old_fd: int | None = None
        self._ended: Future[int] | None = None
        self._moved = threading.Condition()
        self._chunks: list[memoryview] = []
        self._kept_from = self._taken = self._summed = self._written = 0
        self._asked = 0 if is_compared else None  # the end of what was; None if nobody compares
        self._is_stopped = False

    # --- who writes

    def chunks(self) -> Iterator[memoryview]:
        """Where to put the content, chunk after chunk; each is told by `took`, when all of it is there.

        All are filled but the last, behind which none is asked for. A chunk is used again after some others: all that
        was to be done with it, as it was taken, must be over then. Raises StoppedError.
        """
        self._chunks = [memoryview(mmap.mmap(-1, CHUNK_BYTES)) for _ in range(_CHUNKS)]  # aligned as pages are
        number = 0

        def may_be_taken() -> bool:
            if self._is_stopped:
                raise StoppedError("the session ends")
            has_sums = self.sums is None or self._taken - self._summed <= _MOST_SUMMED * CHUNK_BYTES
            return has_sums and (self._asked is None or self._taken - self._asked < _MOST_AHEAD * CHUNK_BYTES)

        while True:
            with self._moved:
                self._moved.wait_for(may_be_taken)
                self._kept_from = max(0, (number - _CHUNKS + 1) * CHUNK_BYTES)
            yield self._chunks[number % _CHUNKS]
            number += 1

    def took(self, size: int) -> None:
        """So many bytes more are there."""
        with self._moved:
            self._taken += size
            self._moved.notify_all()

    def give_up_sums(self) -> None:
        """When no thread makes them."""
        if self.sums is not None:
            self.sums.drop()
            self.sums = None

    def sum(self, data: Block, at: int) -> None:
        """Tell what is next, whole blocks of it, in what it differs from the old content by its sums."""
        assert self.sums is not None
        try:
            self.sums.add(data, at)
            if self.old_fd is not None and self.sums.knows_old:
                for start, end in self.sums.differing(at, at + len(data)):
                    if end - start < len(data):  # else all is read in order
                        os.posix_fadvise(self.old_fd, start, end - start, os.POSIX_FADV_WILLNEED)
        finally:
            with self._moved:
                self._summed = at + len(data)
                self._moved.notify_all()

    def wrote(self, end: int) -> None:
        """All before `end` is in the file. Raises StoppedError."""
        with self._moved:
            if self._is_stopped:
                raise StoppedError("the session ends")
            self._written = end
            self._moved.notify_all()

    def keep_sums(self, content_sha1: bytes, size_bytes: int) -> None:
        """The content becomes that of the mirror. When no thread makes sums. `content_sha1`: hex."""
        if self.sums is not None:
            self.sums.keep(content_sha1, size_bytes)

    def over(self, ended: Future[int]) -> None:
        """Nothing more comes: all is in the file, or what stopped it is raised for whoever waits."""
        with self._moved:
            self._ended = ended
            self._moved.notify_all()

    # --- who compares

    @property
    def knows_old(self) -> bool:
        """Whether sums or ranges tell where the old content may differ: only there it is read."""
        return self.changed is not None or (self.sums is not None and self.sums.knows_old)

    def recent(self, start: int, end: int) -> bytes | memoryview | None:
        """These bytes, as soon as they are there; None when they are in the file, and only there.

        A view is good until the next call. Raises what stopped the copy.
        """
        with self._moved:
            self._ask(end)
            self._moved.wait_for(lambda: self._ended is not None or max(self._taken, self._written) >= end)
            if self._kept_from <= start <= end <= self._taken:
                return self._kept(start, end)
        self.wait_for(end)
        return None

    def ahead(self, start: int) -> bytes | None:
        """What is there already from `start` on, where who compares is; None if that is in the file only."""
        with self._moved:
            asked = self._asked or 0
            enough = asked + (_MOST_AHEAD - 1) * CHUNK_BYTES  # so far who writes goes by itself
            self._moved.wait_for(lambda: self._ended is not None or max(self._taken, self._written) >= enough)
            if self._kept_from <= start < self._taken:
                return bytes(self._kept(start, min(self._taken, enough)))
        return None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes, and all is in the file."""
        return self._ended is not None

    def differing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of these bytes that may be other ones than in the old content, by what is known of both."""
        with self._moved:
            self._ask(end)
            if self.changed is None and self.sums is not None and self.sums.knows_old:
                self._moved.wait_for(lambda: self._ended is not None or self._summed >= end)
                return self.sums.differing(start, end)
        if self.changed is None:
            return iter([(start, end)])
        self.wait_for(end)
        return self.changed(start, end)

    def wait_for(self, end: int) -> None:
        """Wait until so many bytes are in the file, or all. Raises what stopped the copy."""
        with self._moved:
            self._moved.wait_for(lambda: self._ended is not None or self._written >= end)
        if self._ended is not None:
            self._ended.result()

    def _ask(self, end: int) -> None:
        """Who writes may go on from there; the lock is held."""
        self._asked = max(end, self._asked or 0)
        self._moved.notify_all()

    def let_go(self) -> None:
        """Nobody compares any more."""
        with self._moved:
            self._asked = None
            self._moved.notify_all()

    def stop(self) -> None:
        """Who writes ends as soon as it can. For who compares, or has begun it, at the end of a session."""
        with self._moved:
            self._asked = None
            self._is_stopped = True
            self._moved.notify_all()
        with suppress(RuntimeError):  # until it is not ours: an interruption may have come after the lock was taken
            while True:
                self._moved.release()

    def _kept(self, start: int, end: int) -> bytes | memoryview:
        # Who writes is at most so far ahead of what was asked for that the last chunk's worth of it stays where it is.
        is_last = self._asked is not None and self._asked - start <= CHUNK_BYTES
        if is_last and start // CHUNK_BYTES == (end - 1) // CHUNK_BYTES:
            at = start % CHUNK_BYTES
            return self._chunks[start // CHUNK_BYTES % _CHUNKS][at : at + end - start]
        parts = []
        while start < end:
            at = start % CHUNK_BYTES
            parts.append(bytes(self._chunks[start // CHUNK_BYTES % _CHUNKS][at : at + end - start]))
            start += len(parts[-1])
        return b"".join(parts)
