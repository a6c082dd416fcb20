"""Where bytes lie, all read in the same way: memory, a file, an increment, or a map over others.

A source gives exactly the bytes that it is asked for. It raises DamagedError where these are not there, or are not what
a checksum says, ChangedError where the file is not the one any more that was planned with, or OSError. Several threads
may read at the same time.
"""

import os
import tempfile
from bisect import bisect_right
from collections.abc import Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, Self

from histfs import rsync
from histfs.errors import DamagedError, StorageError
from histfs.store.compression import Seekable

if TYPE_CHECKING:
    from histfs.store.content.shared import Members, OpenFiles


SPOOL = rsync.BASIS + 1
"""The source, in maps, of what could not be read in place; increments have the numbers from there on."""
FILES = rsync.BASIS, SPOOL
_COST_OF_A_FILE = 256 << 10  # so that not too many are open


class ChangedError(DamagedError):
    """The repository changed while a version was put together or read: plan again."""


class Source(Protocol):
    """Bytes to be read from anywhere."""

    def pread(self, size: int, offset: int) -> bytes: ...

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        """None if that might have to wait for a disk, or take long."""

    def close(self) -> None: ...


class Memory:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread(self, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return self._data[offset : offset + size]

    def close(self) -> None:
        """Nothing to do."""


class File:
    """An open file; the descriptor is closed with the source."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def pread(self, size: int, offset: int) -> bytes:
        return read_exactly(self.fd, size, offset)

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return read_cached(self.fd, size, offset)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise DamagedError("is shorter than recorded")
        data += more
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


class PlainIncrement:
    """An increment that is not compressed. It is opened when it is read."""

    memory_bytes = 0

    def __init__(self, file: FileId, files: "OpenFiles") -> None:
        self._file = file
        self._files = files

    def pread(self, size: int, offset: int) -> bytes:
        return self._files.use(self._file, lambda fd: read_exactly(fd, size, offset))

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return self._files.use_if_open(self._file, lambda fd: read_cached(fd, size, offset))

    def close(self) -> None:
        """Nothing to do."""


class SeekableIncrement:
    """An increment in gzip members, each of which is inflated when it is needed and then kept for a while."""

    def __init__(self, file: FileId, index: Seekable, files: "OpenFiles", members: "Members") -> None:
        self._file = file
        self._key = repr(file).encode()  # bytes remember their hash
        self._index = index
        self._files = files
        self._members = members
        self._starts = index.raw_offsets
        self.memory_bytes = index.memory_bytes

    def pread(self, size: int, offset: int) -> bytes:
        data = self._read(size, offset, may_wait=True)
        assert data is not None
        return data

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        return self._read(size, offset, may_wait=False)

    def _read(self, size: int, offset: int, *, may_wait: bool) -> bytes | None:
        end = offset + size
        if end > self._starts[-1]:
            raise DamagedError("is shorter than recorded")
        parts = []
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            member = self._members.get((self._key, number))
            if member is None:
                if not may_wait:
                    return None
                member = self._files.use(self._file, partial(self._inflate, number))
                self._members.put((self._key, number), member, len(member))
            start = offset - self._starts[number]
            part = member[start : start + end - offset]
            if len(part) == size:
                return part
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _inflate(self, number: int, fd: int) -> bytes:
        return self._index.on(fd).read_member(number)[1]

    def close(self) -> None:
        """Nothing to do."""


class Mapped:
    """A composed map and its sources. Files among the first two, which are the basis and the spool, are read in C."""

    def __init__(self, extents: rsync.ExtentMap, sources: Mapping[int, Source]) -> None:
        self._extents = extents
        self._sources = sources
        self._fds = [source.fd if isinstance(source, File) else -1 for source in map(sources.get, FILES)]

    def pread(self, size: int, offset: int) -> bytes:
        buffer = bytearray(size)
        try:
            pieces = self._extents.gather(self._fds, buffer, offset) or []
        except rsync.InputEndedError:
            raise DamagedError("is shorter than recorded") from None
        for position, source, start, length in pieces:
            buffer[position : position + length] = self._sources[source].pread(length, start)
        return bytes(buffer)

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        buffer = bytearray(size)
        try:
            pieces = self._extents.gather(self._fds, buffer, offset, nowait=True)
            if pieces is None:
                return None
            for position, source, start, length in pieces:
                data = self._sources[source].pread_nowait(length, start)
                if data is None:
                    return None
                buffer[position : position + length] = data
        except (DamagedError, OSError, rsync.RsyncError):  # which pread will report
            return None
        return bytes(buffer)

    def close(self) -> None:
        self._fds = []
        for source in self._sources.values():
            source.close()


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

    def source(self) -> Source:
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
