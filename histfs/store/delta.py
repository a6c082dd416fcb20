"""The delta of an increment: from the new content of a file, which is the basis, back to the old one.

Large files change in place more often than not, so the two are compared first, page by page: what is equal at the same
offset is a copy, found at the speed of memory. What differs for a page or a few is a literal, which is less than
librsync would make of it: it finds nothing smaller than a block, which is the root of the size. Where more than a block
differs, as something may have been inserted, cut out or moved before it, librsync looks for the next blocks of the old
content in all of the new one. What it finds only says how far the two are shifted against each other there: from then
on they are compared page by page again, so shifted. At last each literal is cut down to the bytes from the first to the
last that differ, which meets the place of a change exactly. But a few bytes that are the same at an end of it, as by
chance, stay: who reads such a page then need not fetch a single byte of it from another file. What comes out is a delta
like any other.
"""

import errno
import functools
import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from histfs import rsync
from histfs._tree import ffi, lib
from histfs.store.direct import DirectReader
from histfs.store.format.delta import DELTA_END, DELTA_MAGIC, format_copy, format_literal
from histfs.store.growing import Growing
from histfs.store.tree import BLOCK_SIZE, read_at

_LARGE = 64 << 10  # smaller files are the business of librsync alone
_DIRECT = 16 << 20  # smaller ones may well be in the cache
_PAGE = 4096
_NEAR = 8 << 20  # how far what follows something inserted is looked for first
_PROBE = 64  # bytes that are looked for there
_MOST_PROBES = 4  # that find nothing
_BY_CHANCE = 16  # bytes that are the same; fewer are not worth a second place to be read from
_LONG = 64 << 10  # bytes that differ; fewer are not worth a search
_EQUAL_PER_DIFFERENT = 4  # so much that is the same makes up for what differs: repeated content may just look the same
_MOST_WAITING_BYTES = 1 << 20
_SEARCHED_BLOCKS = 8  # of a signature, searched at once, as one in the middle is not found where it is cut


def make_delta(
    old_fd: int,
    new_fd: int,
    new_size: int | None = None,
    growing: Growing | None = None,
) -> Iterator[bytes]:
    """What leads from the content of `new_fd` to that of `old_fd`, in blocks.

    The new content may still be `growing`: it will have `new_size` bytes. Raises OSError, and what stopped the growth.
    """
    size = os.fstat(new_fd).st_size if new_size is None else new_size
    old_size = os.fstat(old_fd).st_size
    with ExitStack() as stack:
        readers = None
        if min(size, old_size) >= _DIRECT:
            readers = stack.enter_context(DirectReader(old_fd)), stack.enter_context(DirectReader(new_fd))
        contents = _Contents(old_fd, new_fd, old_size, size, readers, growing)
        if min(size, old_size) < _LARGE:
            made = None
            if max(size, old_size) < _LARGE:
                made = _small_delta(contents.new(0, size), contents.old(0, old_size))
            yield from rsync.delta(contents.signature(), old_fd) if made is None else [made]
            return
        yield DELTA_MAGIC
        yield from _commands(_pieces(contents), contents)
        yield DELTA_END


def block_len(size_bytes: int) -> int:
    """The block length of a signature: about the square root of the size, and small for small files.

    A change costs about a block of literal data on each side, so small blocks make small increments.
    """
    return 64 if size_bytes < 10 * 1024 else math.isqrt(size_bytes) & ~15


def _small_delta(new: bytes, old: bytes) -> bytes | None:
    """Where no more differs than librsync's smallest piece, between what is the same at both ends, that is all."""
    start = _common_start(old, new)
    end = _common_start(old[start:][::-1], new[start:][::-1])
    length = block_len(len(new))
    if len(old) - start - end > length:
        return rsync.small_delta(new, old, _parameters(length))
    start, end = (same if same >= _BY_CHANCE else 0 for same in (start, end))
    literal = old[start : len(old) - end]
    copies = format_copy(0, start), format_copy(len(new) - end, end)
    return b"".join([DELTA_MAGIC, copies[0], format_literal(literal), copies[1], DELTA_END])


@functools.lru_cache
def _parameters(length: int, magic: rsync.Magic = rsync.Magic.RK_BLAKE2) -> rsync.SignatureParameters:
    return rsync.recommend(block_len=length, magic=magic)


class _Piece(NamedTuple):
    """A range of the old content; it lies in the new one `shift` bytes further on, or nowhere (None)."""

    start: int
    end: int
    shift: int | None


class _Contents:
    """The old and the new content. `old_size`, `new_size`: in bytes."""

    def __init__(
        self,
        old_fd: int,
        new_fd: int,
        old_size: int,
        new_size: int,
        readers: tuple[DirectReader, DirectReader] | None,
        growing: Growing | None,
    ) -> None:
        self._old_fd, self._new_fd = old_fd, new_fd
        self.old_size, self.new_size = old_size, new_size
        self._readers = readers
        self._all_before = 0  # the end of a range of which all had to be compared
        self._growing = growing
        self._changed = None if growing is None else growing.changed

    def old(self, start: int, end: int) -> bytes:
        return bytes(self._old(start, end))

    def _old(self, start: int, end: int, *, in_order: bool = False) -> bytes | memoryview:
        """`in_order`: what follows is asked for next."""
        data = None
        if self._readers is not None:
            data = self._readers[0].read(start, end) if in_order else self._readers[0].look(start, end)
        if data is None:
            data = read_at(self._old_fd, end - start, start)
        if len(data) != end - start:
            raise OSError(errno.EIO, "became shorter")
        return data

    def new(self, start: int, end: int) -> bytes:
        """Fewer bytes where the content ends."""
        return bytes(self._new(start, end))

    def _new(self, start: int, end: int, *, in_order: bool = False) -> bytes | memoryview:
        start, end = min(start, self.new_size), min(end, self.new_size)
        if self._changed is None:
            data = None if self._growing is None else self._growing.recent(start, end)
            if data is None and in_order and self._readers and (self._growing is None or self._growing.is_over):
                data = self._readers[1].read(start, end)
            return read_at(self._new_fd, end - start, start) if data is None else data
        self._wait_for(end)
        data = self.old(start, min(end, self.old_size)) if start < self.old_size else b""
        ranges = list(self._changed(start, end))
        if not ranges:
            return data
        mixed = bytearray(data)
        for first, last in ranges:
            mixed[first - start : last - start] = read_at(self._new_fd, last - first, first)
        return bytes(mixed)

    def _wait_for(self, end: int) -> None:
        if self._growing is not None:
            self._growing.wait_for(end)

    def _differing(self, start: int, end: int, shift: int) -> Iterator[tuple[int, int]]:
        """The ranges of a range of the old content that may not be the same in the new one, so shifted."""
        if self._growing is None or shift or end > self.new_size:
            return iter([(start, end)])
        return self._growing.differing(start, end)

    def new_ahead(self, start: int) -> bytes:
        """What follows in the new content, as much as is not far."""
        start = min(start, self.new_size)
        data = self._growing.ahead(start) if self._growing is not None and self._changed is None else None
        return self.new(start, start + _NEAR) if data is None else data

    def signature(self, magic: rsync.Magic = rsync.Magic.RK_BLAKE2) -> rsync.Signature:
        """Of the new content."""
        blocks = (self.new(at, at + BLOCK_SIZE) for at in range(0, self.new_size, BLOCK_SIZE))
        return rsync.Signature.of(blocks, _parameters(block_len(self.new_size), magic))

    def differing(self, start: int, end: int, shift: int, page: int) -> bytes:
        """For each page of a range of the old content, 1 if it is not the same in the new one, so shifted, else 0.

        Nothing if no page differs.
        """
        pages = bytearray(-(-(end - start) // page))
        count = 0
        for first, last in self._differing(start, end, shift):
            number = (first - start) // page
            first = start + number * page
            last = min(start + -(-(last - start) // page) * page, end)
            is_all = (first, last) == (start, end)
            in_order = is_all and start == self._all_before
            self._all_before = end if is_all else 0
            old = self._old(first, last, in_order=in_order)
            new = self._new(first + shift, last + shift, in_order=in_order)
            differs = ffi.from_buffer(memoryview(pages)[number:])
            count += lib.histfs_differing(ffi.from_buffer(old), len(old), ffi.from_buffer(new), len(new), page, differs)
        return bytes(pages) if count else b""

    def equal_after(self, start: int, end: int, shift: int) -> int:
        """How many bytes of the old content from `start` on, up to `end`, are the same in the new one, so shifted."""
        at = start
        while at < end:
            old = self.old(at, min(at + _PAGE, end))
            same = _common_start(old, self.new(at + shift, at + shift + len(old)))
            at += same
            if same < len(old):
                break
        return at - start

    def equal_before(self, start: int, end: int, shift: int) -> int:
        """The same backwards from `end` on, down to `start`."""
        at = end
        lowest = max(start, -shift)
        while at > lowest:
            old = self.old(max(at - _PAGE, lowest), at)
            same = _common_start(old[::-1], self.new(at + shift - len(old), at + shift)[::-1])
            at -= same
            if same < len(old):
                break
        return end - at


def _common_start(one: bytes, other: bytes) -> int:
    """The number of bytes before the first that differs."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # equal up to `low`, not up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


# --- what lies where ------------------------------------------------------------------------------------------------


def _pieces(contents: _Contents) -> Iterator[_Piece]:
    """All of the old content, in order."""
    length = block_len(contents.new_size)
    page = min(_PAGE, length)
    enough = max(2 * page + 1, min(length, _LONG))  # a small change may touch two pages
    search = _Search(contents, length)
    at = shift = 0
    while at < contents.old_size:
        doubt = 0  # bytes that differ, less those that are the same
        waiting: list[_Piece] = []  # from the first page on that differs, and may lie elsewhere
        for piece in _compared(contents, at, contents.old_size, shift, page):
            at = piece.end
            if piece.shift is not None:
                if not waiting:
                    yield piece
                    continue
                _add(waiting, piece)
                same = contents.new(piece.start + piece.shift, piece.end + piece.shift)
                if not _is_uniform(same):  # as much in an image of a disk is everywhere
                    doubt -= (piece.end - piece.start) // _EQUAL_PER_DIFFERENT
                if doubt <= 0:
                    yield from waiting
                    waiting.clear()
                continue
            doubt = (doubt if waiting else 0) + piece.end - piece.start
            _add(waiting, piece)
            first = waiting[0].start
            found = search.found_before(first)
            if found is not None and found.shift != shift and found.start <= piece.end:
                break
            if doubt < enough and at - first < _MOST_WAITING_BYTES:
                continue
            if found := search.found_in(first, shift):
                break
            yield from _before(waiting, search.searched)
            waiting = list(_behind(waiting, search.searched))
            doubt = sum(piece.end - piece.start for piece in waiting if piece.shift is None)
        else:
            yield from waiting
            return
        search.drop()
        # What was found begins at a block; something may be the same before it, and at the old shift before that.
        start = max(found.start, first)
        assert found.shift is not None
        start -= contents.equal_before(first, start, found.shift)
        yield from _compared(contents, first, start, shift, page)
        at, shift = start, found.shift


def _add(pieces: list[_Piece], piece: _Piece) -> None:
    if pieces and pieces[-1].shift == piece.shift:
        pieces[-1] = pieces[-1]._replace(end=piece.end)
    else:
        pieces.append(piece)


def _before(pieces: list[_Piece], at: int) -> Iterator[_Piece]:
    return (piece._replace(end=min(piece.end, at)) for piece in pieces if piece.start < at)


def _behind(pieces: list[_Piece], at: int) -> Iterator[_Piece]:
    return (piece._replace(start=max(piece.start, at)) for piece in pieces if piece.end > at)


def _compared(contents: _Contents, start: int, end: int, shift: int, page: int) -> Iterator[_Piece]:
    """The pieces of a range, if it is shifted."""
    while start < end:
        stop = min(start + BLOCK_SIZE, end)
        differing = contents.differing(start, stop, shift, page)
        if not differing:
            yield _Piece(start, stop, shift)
        for number, differs in enumerate(differing):
            at = start + number * page
            yield _Piece(at, min(at + page, stop), None if differs else shift)
        start = stop


def _is_uniform(data: bytes) -> bool:
    return data[:64].count(data[:1]) == len(data[:64]) and data.count(data[:1]) == len(data)


class _Search:
    """Finds blocks of the old content anywhere in the new one. `length`: of a block of the signature."""

    def __init__(self, contents: _Contents, length: int) -> None:
        self._contents = contents
        self._length = length
        self._window_bytes = max(BLOCK_SIZE, _SEARCHED_BLOCKS * length)
        self._signature: rsync.Signature | None = None
        self._probes = _MOST_PROBES
        self._found: deque[_Piece] = deque()
        self.searched = 0  # the end of what was

    def found_before(self, start: int) -> _Piece | None:
        """The next range behind `start`, or around it, that is known to be in the new content."""
        while self._found and self._found[0].end <= start:
            self._found.popleft()
        return self._found[0] if self._found else None

    def found_in(self, start: int, shift: int) -> _Piece | None:
        """The same, after a search in the next blocks if nothing is known of them. `shift`: of what was before them."""
        known = self.found_before(start)
        if known is not None or start < self.searched:
            return known
        if self._signature is None and self._probes:
            near = self._inserted(start, shift)
            if near is not None:
                self._found.append(near)
                return near
            self._probes -= 1
        end = min(start + self._window_bytes, self._contents.old_size)
        self._found.extend(self._blocks(start, end))
        # A block that begins in the last bytes is not found whole.
        self.searched = end if end == self._contents.old_size else end - self._length + 1
        return self.found_before(start)

    def _inserted(self, start: int, shift: int) -> _Piece | None:
        """What comes next, if it follows in the new content, behind something small that was inserted.

        What was cut out is not looked for in this way: what is missed here may be anywhere else.
        """
        start += _PAGE
        end = min(start + self._length, self._contents.old_size)
        probe = self._contents.old(start, min(start + _PROBE, end)) if start < end else b""
        if len(probe) < _PROBE or _is_uniform(probe):
            return None
        found = self._contents.new_ahead(start + shift).find(probe)
        if found < 0:
            return None
        shift += found
        return _Piece(start, end, shift) if self._contents.equal_after(start, end, shift) == end - start else None

    def drop(self) -> None:
        """The range that was told of last is used."""
        self._found.popleft()

    def _blocks(self, start: int, end: int) -> Iterator[_Piece]:
        if self._signature is None:
            # The quickest hash is enough: what is found is compared, byte by byte.
            self._signature = self._contents.signature(rsync.Magic.RK_MD4)
        parser = rsync.DeltaParser(1)
        for block in rsync.delta(self._signature, self._contents.old(start, end)):
            parser.feed(block)
        for source, offset, size in parser.finish().extents():
            if source == rsync.BASIS:
                yield _Piece(start, start + size, offset - start)
            start += size


# --- commands -------------------------------------------------------------------------------------------------------


def _commands(pieces: Iterator[_Piece], contents: _Contents) -> Iterator[bytes]:
    """The commands for all of the old content."""
    copy: _Piece | None = None
    literal: _Piece | None = None  # behind it
    for piece in pieces:
        if piece.shift is None:
            literal = piece if literal is None else literal._replace(end=piece.end)
            continue
        following = piece
        if literal is not None:
            copy, literal = _with_what_follows(copy, literal, contents)
        if literal is not None:
            literal, following = _with_what_precedes(literal, following, contents)
        if literal is None and copy is not None and copy.shift == following.shift:
            copy = copy._replace(end=following.end)
            continue
        yield from _formatted(copy, literal, contents)
        copy, literal = following, None
    if literal is not None:
        copy, literal = _with_what_follows(copy, literal, contents)
    yield from _formatted(copy, literal, contents)


def _with_what_follows(
    copy: _Piece | None, literal: _Piece, contents: _Contents
) -> tuple[_Piece | None, _Piece | None]:
    """The copy with as much of the literal behind it as is the same, and the rest of that."""
    if copy is None or copy.shift is None:
        return copy, literal
    at = literal.start + _worth_cutting(contents.equal_after(literal.start, literal.end, copy.shift), literal)
    return copy._replace(end=at), literal._replace(start=at) if at < literal.end else None


def _with_what_precedes(literal: _Piece, copy: _Piece, contents: _Contents) -> tuple[_Piece | None, _Piece]:
    """The same for the copy behind the literal."""
    assert copy.shift is not None
    at = literal.end - _worth_cutting(contents.equal_before(literal.start, literal.end, copy.shift), literal)
    return literal._replace(end=at) if at > literal.start else None, copy._replace(start=at)


def _worth_cutting(same: int, literal: _Piece) -> int:
    """How many of the bytes that are the same at an end of a literal are cut off: all or none."""
    return 0 if same < min(_BY_CHANCE, literal.end - literal.start) else same


def _formatted(copy: _Piece | None, literal: _Piece | None, contents: _Contents) -> Iterator[bytes]:
    if copy is not None and copy.shift is not None:
        yield format_copy(copy.start + copy.shift, copy.end - copy.start)
    if literal is not None:
        for start in range(literal.start, literal.end, BLOCK_SIZE):
            yield format_literal(contents.old(start, min(start + BLOCK_SIZE, literal.end)))
