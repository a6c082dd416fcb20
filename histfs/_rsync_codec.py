"""How a job of `histfs.rsync` takes input and gives output: buffers, order of calls, threads. Private to it.

A subclass does one step of work on the buffers that it is shown, and knows nothing else; this knows nothing of C.
Rules that must hold:
- Drain before feed: librsync takes in all input it is offered while its output is full, and moves it around with
  every step. So feed() offers input only if the last step left room for output.
- A step handles at most CHUNK bytes. Between steps a job heeds signals and close().
- Between calls only bytes of our own are kept: the caller may change or resize its buffers.
- What an exception makes uncertain (input taken, output lost) ends the job.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Lock, get_ident
from typing import NoReturn, ParamSpec, Self, TypeVar

from histfs._rsync_files import Buffer
from histfs._rsync_types import CorruptError, InternalError, Result, RsyncError

CHUNK = 256 * 1024
FIRST_CHUNK = 16 * 1024  # room for output at first: most jobs are small


_P = ParamSpec("_P")
_T = TypeVar("_T")


class Codec(ABC):
    """Takes chunks of any size, in the manner of `bz2`.

    `feed()` for each piece of input, then `finish()`; or `drive()`, which calls a reader and a writer. With
    `max_length`, a call returns at most so many bytes; the rest comes with the next calls, `feed(b"")` will do.

    Any thread may use it, one at a time (the others wait). After an error it raises that error again. Its memory is
    released by `close()`, at the end of `with`, or with the last reference.
    """

    def __init__(self, operation: str, max_size: int | None = None) -> None:
        self.operation = operation
        self.in_bytes = 0  # consumed
        self.out_bytes = 0  # produced
        self._max_size = max_size
        self._lock = Lock()
        self._owner: int | None = None  # the thread that runs the job
        self._closing = False
        self._unsure = False  # a call was interrupted that may have taken input or lost output
        self._failure: RsyncError | None = None
        self._input: bytes | memoryview = b""  # not consumed yet
        self._ending = False  # no more input will come
        self._out = bytearray(FIRST_CHUNK)
        self._full = False  # there may be more output than the last step had room for
        self._unsent = memoryview(b"")  # output that drive() could not write
        self._done = False

    @abstractmethod
    def _step(
        self, data: bytes | memoryview, size: int, ending: bool, out: bytearray, room: int
    ) -> tuple[Result, int, int]:
        """Work on `size` bytes of `data` (the last ones, if `ending`) and fill up to `room` bytes of `out`.

        DONE or BLOCKED, bytes consumed, bytes produced; an error goes to `_fail`.
        """

    @abstractmethod
    def _complete(self) -> None:
        """The last step is done."""

    @abstractmethod
    def _release(self) -> None:
        """Free everything; called by each close()."""

    @property
    def eof(self) -> bool:
        """The operation is complete and all its output returned."""
        return self._done and not self._unsent

    @property
    def needs_input(self) -> bool:
        """There is no output to be had without more input."""
        return not (self._done or self._ending or self._full or self._input or self._unsent)

    @property
    def unused_data(self) -> bytes:
        """What was fed beyond the end of a delta; b"" before `eof`."""
        return bytes(self._input) if self.eof else b""

    def feed(self, data: Buffer, max_length: int = -1) -> bytes:
        """Take more input and return what output there is, at most `max_length` bytes of it (-1: no limit)."""
        return self._exclusively(self._feed, data, max_length)

    def finish(self, max_length: int = -1) -> bytes:
        """Say that there is no more input and return the rest of the output; with `max_length`: repeat until `eof`."""
        return self._exclusively(self._finish, max_length)

    def drive(self, read: Callable[[int], Buffer | None], write: Callable[[bytes], int | None]) -> Result:
        """Run until the job is DONE, or BLOCKED because `read` or `write` would block; then call again.

        As with io.RawIOBase, `read(size)` returns data, b"" at the end, or None: blocked; `write(data)` returns how
        many bytes it took, or None: blocked. Blocked may also be a BlockingIOError. Other exceptions pass through; the
        job can be driven on after them.
        """
        return self._exclusively(self._drive, read, write)

    def close(self) -> None:
        """Stop the job and free its memory. If another thread is running it, its call ends with ValueError."""
        if self._owner == get_ident():
            raise RuntimeError(f"{self.operation}: closed from its own callback")
        self._closing = True
        with self._lock:
            self._release()
            if not self._done:  # unused_data stays
                self._input = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exclusively(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._owner == get_ident():
            raise RuntimeError(f"{self.operation}: used from its own callback")
        with self._lock:
            self._check_open()
            if self._unsure:
                self._fail(InternalError(self.operation, Result.INTERNAL_ERROR, "an earlier call was interrupted"))
            if self._failure:
                self._fail(self._failure)
            try:
                self._owner = get_ident()
                return call(*args, **kwargs)
            finally:
                self._owner = None
                if not self._input or not isinstance(memoryview(self._input).obj, bytes):
                    self._input = bytes(self._input)

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError(f"{self.operation}: the job is closed")

    def _feed(self, data: Buffer, max_length: int) -> bytes:
        if self._ending or self._done:
            raise EOFError(f"{self.operation}: input after the end")
        self._take(data)
        return self._collect(max_length)

    def _finish(self, max_length: int) -> bytes:
        self._ending = True
        return self._collect(max_length)

    def _drive(self, read: Callable[[int], Buffer | None], write: Callable[[bytes], int | None]) -> Result:
        while self._write_unsent(write):
            if self._done:
                return Result.DONE
            if self.needs_input and not self._read(read):
                return Result.BLOCKED
            self._unsure = True
            self._unsent = memoryview(self._turn(CHUNK))
            self._unsure = False
        return Result.BLOCKED

    def _take(self, data: Buffer) -> None:
        view = data if isinstance(data, bytes) else memoryview(data).cast("B")
        if self._input and view:
            self._input = b"".join((self._input, view))
        elif view:
            self._input = view

    def _collect(self, max_length: int) -> bytes:
        limit = max_length if max_length >= 0 else sys.maxsize
        blocks = [bytes(self._unsent[:limit])]
        self._unsent = self._unsent[limit:]
        limit -= len(blocks[0])
        self._unsure = True
        while limit and not self._done and not self.needs_input:
            blocks.append(self._turn(limit))
            limit -= len(blocks[-1])
        self._unsure = False
        return b"".join(blocks)

    def _read(self, read: Callable[[int], Buffer | None]) -> bool:
        try:
            data = read(CHUNK)
        except BlockingIOError:
            return False
        if data is None:
            return False
        self._take(data)
        self._ending = not self._input
        return True

    def _write_unsent(self, write: Callable[[bytes], int | None]) -> bool:
        while self._unsent:
            try:
                count = write(bytes(self._unsent))
            except BlockingIOError as error:
                count = getattr(error, "characters_written", 0)
            if not count:
                return False
            if not 0 < count <= len(self._unsent):
                raise ValueError(f"{self.operation}: {count} bytes written of {len(self._unsent)}")
            self._unsent = self._unsent[count:]
        return True

    def _turn(self, limit: int) -> bytes:
        """One step; returns up to `limit` bytes of output."""
        self._check_open()
        if self._full and len(self._out) < CHUNK:
            self._out = bytearray(4 * len(self._out))
        size = 0 if self._full else min(len(self._input), CHUNK)  # drain before feed
        room = min(len(self._out), limit)
        ending = self._ending and size == len(self._input)
        result, consumed, produced = self._step(self._input, size, ending, self._out, room)
        self._input = memoryview(self._input)[consumed:]
        self.in_bytes += consumed
        self.out_bytes += produced
        self._full = produced == room
        if self._max_size is not None and self.out_bytes > self._max_size:
            self._fail(CorruptError(self.operation, Result.CORRUPT, f"more than {self._max_size} bytes of output"))
        if result is Result.DONE:
            self._complete()
            self._done, self._full = True, False
        elif ending and not consumed and not produced:
            self._fail(InternalError(self.operation, Result.INTERNAL_ERROR, "no progress at the end of the input"))
        return bytes(memoryview(self._out)[:produced])

    def _fail(self, error: RsyncError, reason: BaseException | None = None) -> NoReturn:
        """Raise `reason` or `error` now, and `error` whenever the job is used again."""
        self._failure = error
        self._unsure = False
        self._input = b""
        try:
            # not the one that we keep, nor from a frame that keeps it: its traceback would lead back to both
            raise reason or type(error)(*error.args)
        finally:
            del reason
