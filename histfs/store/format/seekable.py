"""The index of a seekable gzip file, as bytes (docs/format.md 13).

Such a file is gzip in members that can be inflated one by one. Where they lie is said behind the last one, in the
headers of empty members, which every reader of gzip skips. The very last of these has a fixed length and tells that of
the index, so the index is found from the end of the file.

Nothing in an index is taken on trust: what is not exactly what `format_index` makes for a file of this length is no
index, and the file is gzip like any other. Compressing is left to the caller.
"""

import struct
from array import array
from binascii import crc32
from itertools import accumulate
from typing import NamedTuple

MAX_RAW_LENGTH = 1 << 20  # of a member: it must fit in memory several times
MAX_MEMBERS = 1 << 21
MAX_PAYLOAD_BYTES = 16 << 20
MAX_COMMANDS_BYTES = 64 << 20  # before compression

_ID = b"HF"
_MAGIC = b"histfs\1\0"  # the number is the version of the index
_HEADER = struct.Struct("<4sI2sH2sH")  # magic, method, flags; mtime; XFL, OS; length of the extra field; id, length
_EMPTY = b"\x03\0" + bytes(8)  # deflated nothing, its CRC and its length
_MEMBER_BYTES = _HEADER.size + len(_EMPTY)
_MAX_FIELD_BYTES = 0xFFFF - 4  # an extra field without the id and the length of the subfield in it
_END = struct.Struct("<8sQIIII")
_CRC = struct.Struct("<I")
END_BYTES = _MEMBER_BYTES + _END.size + _CRC.size
_IS_BIG_ENDIAN = array("H", [1]).tobytes() == b"\0\1"


class Index(NamedTuple):
    """What the last member says."""

    data_bytes: int  # of the members before the index
    member_count: int
    table_bytes: int  # of the compressed table
    commands_bytes: int  # of the compressed commands; 0: there are none
    raw_commands_bytes: int

    @property
    def payload_bytes(self) -> int:
        return self.table_bytes + self.commands_bytes

    @property
    def index_bytes(self) -> int:
        """Of all the members of the index."""
        return self.payload_bytes + -(-self.payload_bytes // _MAX_FIELD_BYTES) * _MEMBER_BYTES + END_BYTES


class Table:
    """Where each member lies, in the file and in the raw data. Takes 16 bytes a member."""

    def __init__(self, lengths: "array[int]", raw_lengths: "array[int]") -> None:
        self.offsets = array("Q", accumulate(lengths, initial=0))
        self.raw_offsets = array("Q", accumulate(raw_lengths, initial=0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def raw_bytes(self) -> int:
        return self.raw_offsets[-1]


def format_table(lengths: "array[int]", raw_lengths: "array[int]") -> bytes:
    """The table, to be compressed: the lengths of the members (arrays of type I), then those of their content."""
    return _little_endian(lengths).tobytes() + _little_endian(raw_lengths).tobytes()


def parse_table(data: bytes, index: Index) -> Table | None:
    """The table of `index`; None if it is not one."""
    column_bytes = 4 * index.member_count
    lengths, raw_lengths = array("I"), array("I")
    if len(data) != 2 * column_bytes:
        return None
    lengths.frombytes(data[:column_bytes])
    raw_lengths.frombytes(data[column_bytes:])
    lengths, raw_lengths = _little_endian(lengths), _little_endian(raw_lengths)
    is_good = (
        min(lengths) > 0
        and max(lengths) <= 2 * MAX_RAW_LENGTH
        and min(raw_lengths) > 0
        and max(raw_lengths) <= MAX_RAW_LENGTH
        and sum(lengths) == index.data_bytes
    )
    return Table(lengths, raw_lengths) if is_good else None


def _little_endian(numbers: "array[int]") -> "array[int]":
    """From or to the byte order of the file."""
    if _IS_BIG_ENDIAN:
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def format_index(index: Index, payload: bytes) -> bytes:
    """The members of the index. `payload`: the compressed table and commands, one after the other."""
    end = _END.pack(_MAGIC, *index)
    fields = [payload[at : at + _MAX_FIELD_BYTES] for at in range(0, len(payload), _MAX_FIELD_BYTES)]
    fields.append(end + _CRC.pack(crc32(payload, crc32(end))))
    return b"".join(map(_empty_member, fields))


def parse_end(tail: bytes, file_bytes: int) -> Index | None:
    """What the last bytes of a file of this length say about its index; None if there is none."""
    last = tail[-END_BYTES:]
    field = last[_HEADER.size : -len(_EMPTY)]
    if len(last) < END_BYTES or last != _empty_member(field):
        return None
    magic, *numbers = _END.unpack_from(field)
    index = Index(*numbers)
    is_good = (
        magic == _MAGIC
        and index.data_bytes + index.index_bytes == file_bytes
        and 0 < index.member_count <= MAX_MEMBERS
        and index.payload_bytes <= MAX_PAYLOAD_BYTES
        and index.raw_commands_bytes <= MAX_COMMANDS_BYTES
    )
    return index if is_good else None


def parse_index(data: bytes, index: Index) -> bytes | None:
    """The payload in the members of `index`, which are `data`; None if anything in them is not as it must be."""
    step = _MEMBER_BYTES + _MAX_FIELD_BYTES
    parts = data[:-END_BYTES]
    members = (parts[at : at + step] for at in range(0, len(parts), step))
    payload = b"".join(member[_HEADER.size : -len(_EMPTY)] for member in members)
    return payload if format_index(index, payload) == data else None


def _empty_member(field: bytes) -> bytes:
    header = _HEADER.pack(b"\x1f\x8b\x08\x04", 0, b"\0\xff", 4 + len(field), _ID, len(field))
    return header + field + _EMPTY
