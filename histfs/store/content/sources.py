"""Where bytes lie, all read in the same way: memory, a file, an increment, or a map over others.

A source gives exactly the bytes that it is asked for. It raises DamagedError where these are not there, or are not what
a checksum says, ChangedError where the file is not the one any more that was planned with, or OSError. Several threads
may read at the same time.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, Self

from histfs import rsync
from histfs.errors import DamagedError, StorageError
from histfs.store.tree import read_at

if TYPE_CHECKING:
    from histfs.store.content.shared import OpenFiles, Shared


SPOOL = rsync.BASIS + 1
"""The source, in maps, of what could not be read in place; increments have the numbers from there on."""
_COST_OF_A_FILE = 256 << 10  # so that not too many are open


_SHORTER = "is shorter than recorded"


class ChangedError(DamagedError):
    """The repository changed while a version was put together or read: plan again."""


class Source(Protocol):
    """Bytes to be read from anywhere."""

    def pread(self, size: int, offset: int) -> bytes | bytearray: ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill all of `buffer`."""

    def pread_nowait(self, size: int, offset: int) -> bytes | bytearray | None:
        """None if that might have to wait for a disk, or take long."""

    def close(self) -> None: ...


class Memory:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread(self, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return self._data[offset : offset + size]

    def place(self, members: rsync.Members) -> rsync.MapSource:
        return rsync.MapSource(members, memory=self._data)

    def close(self) -> None:
        """Nothing to do."""


class File:
    """An open file; the descriptor is closed with the source."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def pread(self, size: int, offset: int) -> bytes:
        return read_exactly(self.fd, size, offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer) and (some := os.preadv(self.fd, [buffer[done:]], offset + done)):
            done += some
        if done < len(buffer):
            raise DamagedError(_SHORTER)

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return read_cached(self.fd, size, offset)

    def place(self, members: rsync.Members) -> rsync.MapSource:
        """Only as long as it is open."""
        return rsync.MapSource(members, fd=self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    data = read_at(fd, size, offset)
    if len(data) < size:
        raise DamagedError(_SHORTER)
    return data


def read_cached(fd: int, size: int, offset: int) -> bytes | None:
    """What the kernel has in memory (preadv2(2), RWF_NOWAIT); None if it has not all of it."""
    buffer = bytearray(size)
    try:
        got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # not cached, not supported by the file system, or an error that pread will report
        return None
    return bytes(buffer) if got == size else None


class FileId(NamedTuple):
    """An increment, and what tells it from another one that gets its name."""

    path: bytes
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: bytes, status: os.stat_result) -> Self:
        return cls(path, status.st_ino, status.st_size, status.st_mtime_ns)


class Increment:
    """An increment that is read in place, plain or with an index of its members. It is opened when it is needed."""

    def __init__(self, file: FileId, place: rsync.MapSource, files: "OpenFiles") -> None:
        self.place = place
        self._file = file
        self._files = files

    @property
    def memory_bytes(self) -> int:
        return self.place.memory_bytes

    def lend(self, fd: int) -> None:
        """Read from a copy of this descriptor."""
        self._files.add(self._file, self.place, os.dup(fd))

    def open(self) -> None:
        """Raises ChangedError, OSError."""
        self._files.open(self._file, self.place)


class Mapped:
    """A composed map, read in C from the basis and the spool, which are closed with it, and from increments."""

    def __init__(
        self,
        extents: rsync.ExtentMap,
        increments: Mapping[int, Increment],
        own: Mapping[int, "Memory | File"],
        shared: "Shared",
        check: rsync.Check | None = None,
    ) -> None:
        self.extents = extents
        self._increments = increments
        self._files = shared.files
        self._own = own
        places = {number: increment.place for number, increment in increments.items()}
        places.update((number, source.place(shared.members)) for number, source in own.items())
        self._reader = rsync.MapReader(extents, places, shared.members, check)
        self._is_held = False

    def hold(self) -> tuple[int, int] | None:
        """How C reads it by itself until it is closed (see `rsync.MapReader.address`); None if it must not.

        Then all its files stay open. Raises ChangedError, OSError.
        """
        if not self._is_held and self._files.reserve(len(self._increments)):
            try:
                self._is_held = self._reader.hold()
                if not self._is_held:
                    for increment in self._increments.values():
                        increment.open()
                    self._is_held = self._reader.hold()
            finally:
                if not self._is_held:
                    self._files.give_back(len(self._increments))
        return self._reader.address if self._is_held else None

    def pread(self, size: int, offset: int) -> bytearray:
        buffer = bytearray(size)
        self.read_into(buffer, offset)
        return buffer

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        with _damage():
            self._reader.read(buffer, offset, self._open)

    def _open(self, number: int) -> None:
        self._increments[number].open()

    def pread_nowait(self, size: int, offset: int) -> bytearray | None:
        buffer = bytearray(size)
        return buffer if self._reader.read_nowait(buffer, offset) and self._reader.may_give(size, offset) else None

    def settle(self, data: bytes | bytearray, offset: int) -> bool:
        """Whether these bytes may be given out, see `rsync.MapReader.settle`. Raises DamagedError, OSError."""
        with _damage():
            return self._reader.settle(data, offset, self._open)

    def close(self) -> None:
        if self._is_held:
            self._reader.release()
            self._files.give_back(len(self._increments))
            self._is_held = False
        for source in self._own.values():
            source.close()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except rsync.InputEndedError:
        raise DamagedError("is shorter than recorded") from None
    except rsync.CorruptError:
        raise DamagedError("the compressed file is damaged") from None


class Spool:
    """Bytes to be kept, one after the other: in memory while they are few, then in an unlinked temporary file."""

    def __init__(self, in_memory_bytes: int) -> None:
        self._in_memory_bytes = in_memory_bytes
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._room = 0  # known when a file is needed
        self.size_bytes = 0

    def write(self, block: bytes) -> None:
        """Raises StorageError when there is no room, OSError."""
        self.size_bytes += len(block)
        if self._file is None and self.size_bytes <= self._in_memory_bytes:
            self._parts.append(block)
            return
        if self._file is None:
            self._room = free_for_temporary_files()
        if self.size_bytes > self._room:
            raise StorageError("there is not enough room for temporary files")
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` closes it
            block = b"".join([*self._parts, block])
            self._parts.clear()
        written = os.write(self._file.fileno(), block)
        while written < len(block):
            written += os.write(self._file.fileno(), memoryview(block)[written:])

    @property
    def cost(self) -> int:
        """See `shared.Sizes`."""
        return self.size_bytes if self._file is None else max(_COST_OF_A_FILE, self.size_bytes // 64)

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it leaves room for others."""
        return self._file is None or self.size_bytes < free_for_temporary_files() // 4

    @property
    def basis(self) -> int | bytes:
        """All of it, as something that can be patched."""
        return self._data() if self._file is None else self._file.fileno()

    def source(self) -> "Memory | File":
        """All of it; to be closed by itself."""
        return Memory(self._data()) if self._file is None else File(os.dup(self._file.fileno()))

    def _data(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def close(self) -> None:
        self._parts.clear()
        if self._file is not None:
            self._file.close()


def free_for_temporary_files() -> int:
    """Bytes that temporary files may take: most of what is free for them."""
    status = os.statvfs(tempfile.gettempdir())
    return status.f_bavail * status.f_frsize * 9 // 10
