"""The delta of an increment: from the new content of a file, which is the basis, back to the old one.

Large files change in place more often than not, so the two are compared first, page by page: what is equal at the same
offset is a copy, found at the speed of memory. What differs for a page or a few is a literal, which is less than
librsync would make of it: it finds nothing smaller than a block, which is the root of the size. Only where a long
stretch differs, as something may have been inserted before it, librsync looks for it in all of the basis. What comes
out is a delta like any other.
"""

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, groupby
from operator import itemgetter

from histfs import rsync
from histfs.store.tree import BLOCK_SIZE

_LARGE = 1 << 20  # smaller files are the business of librsync alone
_PAGE = 4096
_LONG = 64 << 10  # a stretch of bytes that differ; a shorter one is not worth a search
_MAGIC = b"rs\x026"
_END = b"\0"
_WIDTHS = ">B", ">H", ">I", ">Q"


def make_delta(
    old_fd: int,
    new_fd: int,
    new_size: int | None = None,
    wait_for: Callable[[int], object] = lambda _end: None,
) -> Iterator[bytes]:
    """What leads from the content of `new_fd` to that of `old_fd`, in blocks.

    The new content may still be written: it will have `new_size` bytes, and `wait_for` is called with the end of what
    is read next.
    """
    size = os.fstat(new_fd).st_size if new_size is None else new_size

    @cache
    def signature() -> rsync.Signature:
        wait_for(size)
        return rsync.Signature.of(new_fd, rsync.recommend(block_len=block_len(size)))

    if min(size, os.fstat(old_fd).st_size) < _LARGE:
        yield from rsync.delta(signature(), old_fd)
        return
    yield _MAGIC
    pieces = _compared(old_fd, new_fd, min(_PAGE, block_len(size)), wait_for)
    for is_equal, group in groupby(pieces, itemgetter(0)):
        if is_equal:
            yield _copy([(offset, len(data)) for _, offset, data in group])
        else:
            yield from _different((data for _, _, data in group), signature)
    yield _END


def block_len(size_bytes: int) -> int:
    """The block length of a signature: about the square root of the size, and small for small files.

    A change costs about a block of literal data on each side, so small blocks make small increments.
    """
    return 64 if size_bytes < 10 * 1024 else math.isqrt(size_bytes) & ~15


def _compared(
    old_fd: int, new_fd: int, page: int, wait_for: Callable[[int], object]
) -> Iterator[tuple[bool, int, bytes]]:
    """The old content, piece by piece: whether the new one is equal there, the offset, and the old bytes."""
    offset = 0
    while old := os.pread(old_fd, BLOCK_SIZE, offset):
        wait_for(offset + len(old))
        new = os.pread(new_fd, len(old), offset)
        if old == new:
            yield True, offset, old
        else:
            for start in range(0, len(old), page):
                piece = old[start : start + page]
                yield piece == new[start : start + page], offset + start, piece
        offset += len(old)


def _copy(pieces: list[tuple[int, int]]) -> bytes:
    (start, _), (last, length) = pieces[0], pieces[-1]
    i, number = _number(start)
    j, size = _number(last + length - start)
    return bytes([0x45 + 4 * i + j]) + number + size


def _number(number: int) -> tuple[int, bytes]:
    """It in the fewest bytes that a command has for it; how many these are, as a power of two."""
    width = next(width for width in range(4) if number < 1 << (8 << width))
    return width, struct.pack(_WIDTHS[width], number)


def _different(pieces: Iterator[bytes], signature: Callable[[], rsync.Signature]) -> Iterator[bytes]:
    """The commands for a stretch that differs."""
    head, size = [], 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size >= _LONG:
            yield from _without_frame(rsync.delta(signature(), chain(head, pieces)))
            return
    width, number = _number(size)
    yield b"".join([bytes([0x41 + width]), number, *head])


def _without_frame(delta: Iterable[bytes]) -> Iterator[bytes]:
    """The commands of a delta, without the magic before them and the end."""
    rest = b""
    begun = False
    for block in delta:
        rest += block
        if not begun and len(rest) >= len(_MAGIC):
            rest = rest[len(_MAGIC) :]
            begun = True
        if begun:
            yield rest[: -len(_END)]
            rest = rest[-len(_END) :]
