"""What `histfs.rsync` reads from and writes to, as blocks of bytes. Private to it.

A descriptor of a seekable file is read with preadv(2) from its beginning, so that threads may share it and nobody has
to rewind it; a pipe or socket is read as it comes. Descriptors and file objects of the caller stay open.
"""

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from stat import S_ISREG
from typing import Protocol, TypeAlias, TypeGuard, cast

Buffer: TypeAlias = bytes | bytearray | memoryview  # for the type checker; whatever exports its bytes will do
Path: TypeAlias = str | os.PathLike[str]


class Reader(Protocol):
    """A binary file to read from."""

    def read(self, size: int, /) -> Buffer | None: ...


class SeekableReader(Protocol):
    """A binary file to read from here and there."""

    def read(self, size: int, /) -> Buffer | None: ...
    def seek(self, offset: int, /) -> object: ...
    def flush(self) -> object: ...


class Writer(Protocol):
    """A binary file to write to."""

    def write(self, data: bytes, /) -> int | None: ...


Source: TypeAlias = int | Path | Buffer | Reader | Iterable[Buffer]
"""Where input comes from: a descriptor, a path, bytes-like data, a binary file, or an iterable of bytes-like blocks."""
Target: TypeAlias = int | Path | Writer
"""Where output goes: a descriptor, the path of a file that does not exist yet, or a binary file."""
Basis: TypeAlias = int | Path | Buffer | SeekableReader | Callable[[int, int], Buffer]
"""What a patch copies from: a descriptor (read with pread(2)), a path, bytes-like data, a binary file, or a callable
(size, offset) that returns up to `size` bytes, and b"" only at the end. A mmap of a file that shrinks is SIGBUS."""


def is_buffer(value: object) -> TypeGuard[Buffer]:
    """Whether `value` exports its bytes, whatever its type."""
    try:
        memoryview(value).release()  # type: ignore[arg-type]  # the question is whether it may be called
    except TypeError:
        return False
    return True


def source_size(source: Source) -> int | None:
    """Size of `source` in bytes if it can be known without reading it."""
    if is_buffer(source):
        return memoryview(source).nbytes
    if isinstance(source, (int, str, os.PathLike)):
        status = os.stat(source)
        return status.st_size if S_ISREG(status.st_mode) else None
    return None


def read_blocks(source: Source, size: int) -> Iterator[Buffer]:
    """The bytes of `source` in blocks of about `size`; a block is valid until the next one is asked for."""
    if is_buffer(source):
        yield source
    elif isinstance(source, int):
        yield from _read_descriptor(source, size)
    elif isinstance(source, (str, os.PathLike)):
        with open(source, "rb", buffering=0) as file:
            yield from _read_descriptor(file.fileno(), size)
    elif hasattr(source, "read"):
        while data := source.read(size):
            yield data
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "a source that does not block is for Job.drive()")
    else:
        yield from cast("Iterable[Buffer]", source)


def _read_descriptor(fd: int, size: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(max(os.fstat(fd).st_size + 1, 4096), size)))
    offset = 0
    seekable = True
    while True:
        try:
            count = os.preadv(fd, [buffer], offset) if seekable else os.readv(fd, [buffer])
        except OSError as error:
            if not seekable or error.errno != errno.ESPIPE:
                raise
            seekable = False
            continue
        if not count:
            return
        yield buffer[:count]
        offset += count


@contextmanager
def open_target(target: Target) -> Iterator[Callable[[bytes], int | None]]:
    """A function that writes to `target`. A path must not exist; what was written to it is removed after an error."""
    if isinstance(target, int):
        yield partial(os.write, target)
    elif isinstance(target, (str, os.PathLike)):
        with open(target, "xb", buffering=0) as file:
            try:
                yield file.write
            except BaseException:
                os.unlink(target)
                raise
    else:
        yield target.write


@contextmanager
def open_basis(basis: Basis) -> Iterator[int | Buffer | Callable[[int, int], Buffer]]:
    """`basis` in one of three forms: a descriptor, bytes-like data, or a function of size and offset."""
    if is_buffer(basis):
        yield basis
    elif isinstance(basis, (str, os.PathLike)):
        with open(basis, "rb", buffering=0) as opened:
            yield opened.fileno()
    elif hasattr(basis, "read"):
        # Only a FileIO's descriptor has the bytes that read() gives: GzipFile has one, too, of compressed bytes.
        raw = getattr(basis, "raw", basis)
        file = cast("SeekableReader", basis)
        if isinstance(raw, io.FileIO):
            if raw.writable():
                file.flush()
            yield raw.fileno()
        else:
            yield partial(_seek_and_read, file)
    else:
        yield basis


def _seek_and_read(file: SeekableReader, size: int, offset: int) -> Buffer:
    file.seek(offset)
    data = file.read(size)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "a basis must not block")
    return data
