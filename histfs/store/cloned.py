"""Files that share blocks: copies that the system makes, and contents of which only what differs is written.

The new content of a large file begins as a clone of the old one. Where files can share blocks (XFS, Btrfs) that is
made at once, whatever its size, and nothing is written for what stays. What is written is known by ranges, so that
nobody who compares the two has to read the rest again: the kernel keeps no common pages for files that share blocks.
What is written lies elsewhere on the disk, so that a file that changes often comes to lie in many pieces; from some
number on it is written anew as a whole.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from histfs.store.files import set_length

PAGE = 4096
_MOST_FLAGS = 4 << 20  # for a file: the larger it is, the longer is the range that one of them is for
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_FIEMAP = 0xC020660B  # ioctl_fiemap: the kernel's Documentation/filesystems/fiemap.rst
_FIEMAP_HEADER = struct.Struct("=QQIIII")
_PIECE_BYTES = 256 * 1024  # of a file on average; reading smaller ones takes a disk that turns several times as long
_PUNCH_HOLE = 0x02 | 0x01  # fallocate(2): and keep the size
_NO_HOLES = (errno.ENOSYS, errno.EOPNOTSUPP)
_AT_ONCE_BYTES = 256 << 20  # of a copy by the system
# What tells that the system cannot do so for these two files, here; the others are answers to an unknown ioctl.
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV)
_CANNOT_CLONE = (*_CANNOT, errno.EBADF, errno.ENOTTY)


def clone(source_fd: int, fd: int) -> int:
    """Have the system copy one file to the other, from where they are; how many bytes it took. The rest is as before.

    File systems that can do so let both share the blocks. Raises OSError.
    """
    size = 0
    try:
        left = os.fstat(source_fd).st_size - os.lseek(source_fd, 0, os.SEEK_CUR)
        while size < left and (some := os.copy_file_range(source_fd, fd, _AT_ONCE_BYTES)):
            size += some
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
    return size


def try_clone(source_fd: int, fd: int) -> bool:
    """Give the empty file `fd` the content of the other one. False where the file system cannot. Raises OSError."""
    try:
        fcntl.ioctl(fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def is_scattered(fd: int) -> bool:
    """Whether the file lies in so many pieces that it should be written anew. False where nobody knows."""
    question = bytearray(_FIEMAP_HEADER.pack(0, (1 << 64) - 1, 0, 0, 0, 0))
    try:
        fcntl.ioctl(fd, _FIEMAP, question)
    except OSError:
        return False
    pieces: int = _FIEMAP_HEADER.unpack(question)[3]
    return pieces * _PIECE_BYTES > os.fstat(fd).st_blocks * 512 + _PIECE_BYTES


class Clone:
    """`fd`, which is a clone of `old_fd` (`old_bytes`), and becomes another content of `new_bytes`. Not closed here."""

    def __init__(self, fd: int, old_fd: int, old_bytes: int, new_bytes: int) -> None:
        self._fd, self._old_fd = fd, old_fd
        self._old_bytes = old_bytes
        self.range_bytes = PAGE
        while self.range_bytes * _MOST_FLAGS < new_bytes:
            self.range_bytes *= 2
        self._changed = bytearray(new_bytes // self.range_bytes + 1)
        set_length(fd, new_bytes)

    def write(self, blocks: Iterator[bytes]) -> int:
        """Make it what `blocks` are, of which there are no more bytes than was said; how many. Raises OSError."""
        at = 0
        for block in blocks:
            old = os.pread(self._old_fd, len(block), at)
            if old != block:
                self._write_block(block, old, at)
            at += len(block)
        return at

    def changed(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges, as start and end, of these bytes that may be other ones than in the old content, as yet."""
        size = self.range_bytes
        number, last = start // size, (end - 1) // size
        while start < end and (number := self._changed.find(1, number, last + 1)) >= 0:
            after = self._changed.find(0, number, last + 1)
            after = last + 1 if after < 0 else after
            yield max(number * size, start), min(after * size, end)
            number = after

    def _write_block(self, block: bytes, old: bytes, at: int) -> None:
        """Page by page, and neighbours together."""
        start = 0
        while start < len(block):
            end = start
            while end < len(block) and block[end : end + PAGE] != old[end : end + PAGE]:
                end = min(end + PAGE, len(block))
            if end > start:
                self._write(block[start:end], at + start)
            start = end + PAGE

    def _write(self, data: bytes, at: int) -> None:
        for number in range(at // self.range_bytes, (at + len(data) - 1) // self.range_bytes + 1):
            self._changed[number] = 1
        if data.count(0) == len(data) and (at >= self._old_bytes or self._punch_hole(at, len(data))):
            return
        written = os.pwrite(self._fd, data, at)
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], at + written)

    def _punch_hole(self, at: int, size: int) -> bool:
        """Give the blocks back that hold nothing but zeros. False where that cannot be done."""
        if _libc.fallocate(self._fd, _PUNCH_HOLE, ctypes.c_long(at), ctypes.c_long(size)) == 0:
            return True
        number = ctypes.get_errno()
        if number not in _NO_HOLES:
            raise OSError(number, os.strerror(number))
        return False


_libc = ctypes.CDLL(None, use_errno=True)
