"""gzip streams, read and written in bounded memory (docs/format.md 1.5), and gzip with random access (13).

A reader looks at the first bytes, as plain text under a name in `.gz` exists. The other way round the name counts: a
file of a user that is kept as it is may well begin like gzip.

ISA-L inflates two to four times as fast as zlib, which deflates in fewer bytes. What is noise is stored: the blocks of
a member end where noise begins and ends, so that zlib sees that it makes it no smaller. Headers are read and sums are
compared here, as ISA-L's own reader of headers refuses good files when a header is cut by the end of a block.
"""

import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Self, cast

from isal import igzip_lib, isal_zlib

from histfs import rsync
from histfs._tree import ffi, lib
from histfs.errors import DamagedError
from histfs.store.format import seekable
from histfs.store.tree import BLOCK_SIZE, file_blocks, read_at

LEVEL = 6
GZIP, _RAW = 31, -15  # zlib(3) deflateInit2: the largest window, with a gzip header and without any

_MAGIC = b"\x1f\x8b"
_DEFLATE = b"\x08"
_HEADER_CRC, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0  # flags of a header (RFC 1952)
_SUMS = struct.Struct("<II")  # what ends a member: CRC and length, modulo 2**32, of its content
_FEED_BYTES = 64 * 1024

# The stubs have an instance here.
_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]

# What is scattered all over a file is read again in small pieces, a little of each of many increments; to inflate as
# little as possible for each is worth some percent in size. Long literals, and whole files, are read in order.
_SMALL_PIECE = 32 * 1024
_MOST_RUNS = 2 * BLOCK_SIZE // 1280 + 2  # noise is told apart from 1024 bytes on, anything else from 256 on
_SCATTERED = 192  # bytes of commands in a block: about sixteen literals
_TAIL_BYTES = 64 * 1024  # holds most indexes


# --- reading --------------------------------------------------------------------------------------------------------


def read_decompressed(fd: int) -> Iterator[bytes]:
    """The bytes of an open file, inflated if they are gzip, in blocks of at most 256 KiB.

    Raises DamagedError where the stream is truncated or not what its checksum says.
    """
    stream = _Stream(file_blocks(fd))
    if stream.starts_with(_MAGIC):
        yield from _inflate(stream)
    else:
        yield from stream.rest()


def _inflate(stream: "_Stream") -> Iterator[bytes]:
    """One gzip member after the other; zero bytes after the last one are padding, as gzip(1) sees it."""
    while True:
        _skip_header(stream)
        crc = size = 0
        for block in _inflate_body(stream):
            crc = isal_zlib.crc32(block, crc)
            size += len(block)
            yield block
        if stream.take(_SUMS.size) != _SUMS.pack(crc, size & 0xFFFFFFFF):
            raise DamagedError("the compressed file is damaged (its sums are wrong)")
        if not stream.skip_zeros():
            return


def _skip_header(stream: "_Stream") -> None:
    stream.crc = 0
    header = stream.take(10)
    flags = header[3]
    if not header.startswith(_MAGIC + _DEFLATE) or flags & _RESERVED:
        raise DamagedError("the compressed file is damaged (something in it is not gzip)")
    if flags & _EXTRA:
        stream.take(int.from_bytes(stream.take(2), "little"))
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            stream.skip_string()
    crc = stream.crc & 0xFFFF
    if flags & _HEADER_CRC and stream.take(2) != crc.to_bytes(2, "little"):
        raise DamagedError("the compressed file is damaged (a header of it is)")


def _inflate_body(stream: "_Stream") -> Iterator[bytes]:
    inflater = isal_zlib.decompressobj(_RAW)
    data = b""
    while not inflater.eof:
        data = data or stream.some(_FEED_BYTES)
        try:
            block = inflater.decompress(data, BLOCK_SIZE)
        except _IsalError as exc:
            raise DamagedError(f"the compressed file is damaged ({exc})") from exc
        if block:
            yield block
        data = inflater.unconsumed_tail
    stream.put_back(len(inflater.unused_data))


class _Stream:
    """Blocks of bytes as one stream, to be taken in pieces. Its end is a DamagedError where more is needed."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._data = b""
        self._at = 0
        self.crc = 0  # of what was taken since it was last set

    def _refill(self) -> bool:
        """Make sure of a byte to take; False at the end."""
        while self._at == len(self._data):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._data, self._at = block, 0
        return True

    def starts_with(self, prefix: bytes) -> bool:
        while len(self._data) - self._at < len(prefix):
            block = next(self._blocks, b"")
            if not block:
                return False
            self._data, self._at = self._data[self._at :] + block, 0
        return self._data.startswith(prefix, self._at)

    def rest(self) -> Iterator[bytes]:
        while self._refill():
            yield self.some(BLOCK_SIZE)

    def some(self, limit: int) -> bytes:
        """At least one byte."""
        if not self._refill():
            raise DamagedError("the compressed file is truncated")
        piece = self._data[self._at : self._at + limit]
        self._at += len(piece)
        return piece

    def put_back(self, size: int) -> None:
        """The last `size` bytes of the last piece."""
        self._at -= size

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        taken = b""
        while len(taken) < size:
            taken += self.some(size - len(taken))
        self.crc = isal_zlib.crc32(taken, self.crc)
        return taken

    def skip_string(self) -> None:
        """What ends with a zero byte, and that."""
        while True:
            piece = self.some(_FEED_BYTES)
            string, zero, rest = piece.partition(b"\0")
            self.crc = isal_zlib.crc32(string + zero, self.crc)
            if zero:
                self.put_back(len(rest))
                return

    def skip_zeros(self) -> bool:
        """Whether anything comes after them."""
        while self._refill():
            piece = self.some(BLOCK_SIZE).lstrip(b"\0")
            if piece:
                self.put_back(len(piece))
                return True
        return False


# --- writing --------------------------------------------------------------------------------------------------------


def compress(blocks: Iterable[bytes], level: int = LEVEL) -> Iterator[bytes]:
    """`blocks` as one gzip member."""
    member = zlib.compressobj(level, zlib.DEFLATED, GZIP)
    for block in blocks:
        out = member.compress(block)
        if out:
            yield out
    yield member.flush()


def compress_seekable(blocks: Iterable[bytes], *, commands: bool = False) -> Iterator[bytes]:
    """`blocks` as gzip with random access; as one plain member if they are 256 KiB or less.

    `commands`: the blocks are a delta, and the index gets its commands too.
    """
    blocks = _of_equal_size(blocks)
    first, second = next(blocks, b""), next(blocks, None)
    if second is None:
        yield _member(first)
        return
    index = _IndexWriter(commands=commands)
    for block in chain((first, second), blocks):
        commands_bytes = index.add_raw(block)
        for member, raw_length in _members(block, _SMALL_PIECE if commands_bytes >= _SCATTERED else BLOCK_SIZE):
            index.add_member(len(member), raw_length)
            yield member
    yield from index.finish()


def _of_equal_size(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of 256 KiB, and a last one that may be shorter."""
    parts: list[bytes] = []
    missing = BLOCK_SIZE
    for block in blocks:
        start = 0
        while len(block) - start >= missing:
            parts.append(block[start : start + missing])
            yield b"".join(parts)
            parts.clear()
            start += missing
            missing = BLOCK_SIZE
        if start < len(block):
            parts.append(block[start:])
            missing -= len(block) - start
    if parts:
        yield b"".join(parts)


def _members(block: bytes, piece_bytes: int) -> Iterator[tuple[bytes, int]]:
    """`block` in members of up to `piece_bytes` of it; with their raw lengths."""
    for start in range(0, len(block), piece_bytes):
        piece = block[start : start + piece_bytes]
        yield _member(piece), len(piece)


def _member(data: bytes) -> bytes:
    ends = _runs(data)
    if ends[0] == 0 and ends[1:] == [len(data)]:
        return zlib.compress(data, 0, GZIP)
    member = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    parts = []
    for start, end in pairwise([0, *ends]):
        parts.append(member.compress(data[start:end]))
        if 0 < end < len(data):
            parts.append(member.flush(zlib.Z_BLOCK))
    return b"".join([*parts, member.flush()])


def _runs(data: bytes) -> list[int]:
    """Where what is no noise (at first; it may be nothing) and what is ends, by turns; of at most 256 KiB."""
    ends = ffi.new("uint32_t[]", _MOST_RUNS)
    count = lib.histfs_noise_runs(ffi.from_buffer(data), len(data), ends, _MOST_RUNS)
    return cast("list[int]", ffi.unpack(ends, count))


class _IndexWriter:
    """Collects what the index of a file says. Without the commands if they are too large, and nothing of a giant."""

    def __init__(self, *, commands: bool) -> None:
        self._lengths, self._raw_lengths = array("I"), array("I")
        self._filter = rsync.CommandFilter() if commands else None
        self._packer = zlib.compressobj(LEVEL)
        self._commands = bytearray()
        self._raw_commands_bytes = 0

    def add_raw(self, block: bytes) -> int:
        """How many bytes of commands are in it."""
        if self._filter is None:
            return 0
        commands = self._filter.feed(block)
        self._raw_commands_bytes += len(commands)
        self._keep(self._packer.compress(commands))
        return len(commands)

    def add_member(self, length: int, raw_length: int) -> None:
        if len(self._lengths) <= seekable.MAX_MEMBERS:
            self._lengths.append(length)
            self._raw_lengths.append(raw_length)

    def finish(self) -> Iterator[bytes]:
        if self._filter is not None:
            self._filter.finish()
            self._keep(self._packer.flush())
        table = zlib.compress(seekable.format_table(self._lengths, self._raw_lengths), LEVEL)
        index = seekable.Index(
            sum(self._lengths), len(self._lengths), len(table), len(self._commands), self._raw_commands_bytes
        )
        if index.member_count <= seekable.MAX_MEMBERS and index.payload_bytes <= seekable.MAX_PAYLOAD_BYTES:
            yield seekable.format_index(index, table + self._commands)

    def _keep(self, packed: bytes) -> None:
        self._commands += packed
        is_too_large = len(self._commands) > seekable.MAX_PAYLOAD_BYTES // 2
        if is_too_large or self._raw_commands_bytes > seekable.MAX_COMMANDS_BYTES:
            self._filter = None
            self._commands.clear()
            self._raw_commands_bytes = 0


# --- random access --------------------------------------------------------------------------------------------------


class Seekable:
    """The index of a gzip file: where its members lie, and what commands of a delta they hold.

    `rsync.MapReader` reads the members, and inflates and checks them.
    """

    def __init__(self, table: seekable.Table, packed_commands: bytes, raw_commands_bytes: int) -> None:
        self._table = table
        self._packed_commands = packed_commands
        self._raw_commands_bytes = raw_commands_bytes

    @classmethod
    def open(cls, fd: int) -> Self | None:
        """None if the file has no index, or one that is not as it must be: it is gzip, or anything, like others then.

        Raises OSError only.
        """
        size = os.fstat(fd).st_size
        tail = read_at(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        index = seekable.parse_end(tail, size)
        if index is None:
            return None
        if index.index_bytes > len(tail):
            tail = read_at(fd, index.index_bytes, index.data_bytes)
        payload = seekable.parse_index(tail[-index.index_bytes :], index)
        if payload is None:
            return None
        table_data = _decompressed(payload[: index.table_bytes], 8 * index.member_count)
        table = None if table_data is None else seekable.parse_table(table_data, index)
        if table is None:
            return None
        return cls(table, payload[index.table_bytes :], index.raw_commands_bytes)

    @property
    def raw_bytes(self) -> int:
        return self._table.raw_bytes

    @property
    def offsets(self) -> "array[int]":
        """Where each member begins in the file; at last, where the last one ends."""
        return self._table.offsets

    @property
    def raw_offsets(self) -> "array[int]":
        """Where the content of each member begins in the raw data; at last, where it ends."""
        return self._table.raw_offsets

    @property
    def commands(self) -> bytes | None:
        """The commands of the delta that this is, inflated anew at each call; None if the index has none."""
        return _decompressed(self._packed_commands, self._raw_commands_bytes)


def _decompressed(data: bytes, size: int) -> bytes | None:
    """What zlib.compress was given; None unless it was `size` bytes."""
    return _inflated(data, size, igzip_lib.DECOMP_ZLIB) if data else None


def _inflated(data: bytes | memoryview, size: int, kind: int) -> bytes | None:
    """All of `data`, a stream of that kind, inflated; None unless it is whole and leads to `size` bytes."""
    inflater = igzip_lib.IgzipDecompressor(kind)
    try:
        raw = inflater.decompress(data, size + 1)
    except _IsalError:
        return None
    is_whole = inflater.eof and not inflater.unused_data and len(raw) == size
    return raw if is_whole else None
