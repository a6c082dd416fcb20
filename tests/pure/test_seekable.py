"""The index of a seekable gzip file: what is formatted is parsed again, and nothing else is an index."""

import gzip
import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.store.format.seekable import (
    END_BYTES,
    MAX_COMMANDS_BYTES,
    MAX_MEMBERS,
    MAX_PAYLOAD_BYTES,
    MAX_RAW_LENGTH,
    Index,
    format_index,
    format_table,
    parse_end,
    parse_index,
    parse_table,
)

COLUMN_LIMIT = 2 * MAX_RAW_LENGTH

lengths = st.integers(1, 5000)
members = st.lists(st.tuples(lengths, lengths), min_size=1, max_size=20)
payload_sizes = st.one_of(st.integers(0, 300), st.sampled_from([65530, 65531, 65532, 131062, 131063, 200_000]))


def column(numbers) -> "array[int]":
    return array("I", numbers)


def index_of(rows: list[tuple[int, int]], **changes: int) -> Index:
    return Index(sum(length for length, _ in rows), len(rows), 0, 0, 0)._replace(**changes)


@given(payload_sizes, payload_sizes, st.integers(1, MAX_MEMBERS), st.integers(0, 2**62))
def test_what_is_formatted_is_parsed_again(table: int, commands: int, count: int, data_bytes: int) -> None:
    index = Index(data_bytes, count, table, commands, 77 if commands else 0)
    payload = bytes(number % 251 for number in range(table + commands))
    formatted = format_index(index, payload)
    assert len(formatted) == index.index_bytes
    assert parse_end(formatted, data_bytes + len(formatted)) == index
    assert parse_index(formatted, index) == payload


@given(payload_sizes)
def test_to_everybody_else_it_is_gzip_of_nothing(size: int) -> None:
    index = Index(0, 1, size, 0, 0)
    formatted = format_index(index, b"\xff" * size)
    assert gzip.decompress(formatted) == b""
    inflater = zlib.decompressobj(31)
    assert (inflater.decompress(formatted[-END_BYTES:]), inflater.eof, inflater.unused_data) == (b"", True, b"")


def test_the_bytes() -> None:
    """As docs/format.md 13 has them."""
    formatted = format_index(Index(1000, 2, 3, 4, 5), b"TABcomm")
    assert formatted == (
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + b"\x0b\0HF\x07\0" + b"TABcomm" + b"\x03\0" + bytes(8)
        # the end
        + b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + b"\x28\0HF\x24\0"
        + b"histfs\1\0"
        + b"\xe8\3\0\0\0\0\0\0" + b"\2\0\0\0" + b"\3\0\0\0" + b"\4\0\0\0" + b"\5\0\0\0"
        + zlib.crc32(b"TABcomm", zlib.crc32(formatted[49:81])).to_bytes(4, "little")
        + b"\x03\0" + bytes(8)
    )  # fmt: skip


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_any_bytes_are_no_index(data: bytes, size: int) -> None:
    assert parse_end(data, size) is None


INDEX = Index(1000, 2, 40, 60, 300)
FORMATTED = format_index(INDEX, bytes(range(100)))


@pytest.mark.parametrize("place", range(len(FORMATTED)))
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_altered_byte_is_noticed(place: int, bit: int) -> None:
    altered = bytearray(FORMATTED)
    altered[place] ^= bit
    index = parse_end(altered, 1000 + len(altered))
    assert index is None or parse_index(bytes(altered), index) is None


@pytest.mark.parametrize("cut", range(1, len(FORMATTED) + 1))
def test_every_truncation_is_noticed(cut: int) -> None:
    assert parse_end(FORMATTED[:-cut], 1000 + len(FORMATTED) - cut) is None
    assert parse_index(FORMATTED[cut:], INDEX) is None


@pytest.mark.parametrize("more", [-1000, -1, 1, 20])
def test_a_file_of_another_length_has_no_index(more: int) -> None:
    """Something was put before it, or is missing."""
    assert parse_end(FORMATTED, 1000 + len(FORMATTED) + more) is None


@pytest.mark.parametrize(
    "index",
    [
        Index(1000, 0, 40, 60, 300),
        Index(1000, MAX_MEMBERS + 1, 40, 60, 300),
        Index(1000, 2, MAX_PAYLOAD_BYTES, 1, 300),
        Index(1000, 2, 2**32 - 1, 2**32 - 1, 300),
        Index(1000, 2, 40, 60, MAX_COMMANDS_BYTES + 1),
    ],
)
def test_one_that_asks_for_too_much_is_none(index: Index) -> None:
    last = format_index(index, b"")
    assert parse_end(last, 1000 + index.index_bytes) is None


def test_another_version_is_none() -> None:
    altered = bytearray(format_index(Index(0, 1, 0, 0, 0), b""))
    altered[altered.index(b"histfs") + 6] += 1
    field = altered[16:-14]
    altered[-14:-10] = zlib.crc32(field).to_bytes(4, "little")
    assert parse_end(bytes(altered), len(altered)) is None


# --- the table ------------------------------------------------------------------------------------------------------


@given(members)
def test_a_table_is_parsed_again(rows: list[tuple[int, int]]) -> None:
    data = format_table(column(a for a, _ in rows), column(b for _, b in rows))
    table = parse_table(data, index_of(rows))
    assert table is not None
    offset = raw_offset = 0
    for number, (length, raw_length) in enumerate(rows):
        assert (table.offsets[number], table.raw_offsets[number]) == (offset, raw_offset)
        offset += length
        raw_offset += raw_length
    assert (table.offsets[-1], table.raw_offsets[-1]) == (offset, raw_offset)
    assert (len(table), table.raw_bytes) == (len(rows), raw_offset)


@given(st.binary(max_size=100), st.integers(1, 12), st.integers(0, 2**40))
def test_any_bytes_are_a_table_or_none(data: bytes, count: int, data_bytes: int) -> None:
    table = parse_table(data, Index(data_bytes, count, 0, 0, 0))
    assert table is None or len(table) == count


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ([(0, 10)], {}),
        ([(10, 0)], {}),
        ([(10, MAX_RAW_LENGTH + 1)], {}),
        ([(COLUMN_LIMIT + 1, 10)], {}),
        ([(10, 10)], {"data_bytes": 11}),
        ([(10, 10)], {"member_count": 2}),
        ([(10, 10), (10, 10)], {"member_count": 1}),
    ],
)
def test_a_table_that_cannot_be(rows: list[tuple[int, int]], changes: dict[str, int]) -> None:
    data = format_table(column(a for a, _ in rows), column(b for _, b in rows))
    assert parse_table(data, index_of(rows, **changes)) is None


def test_the_largest_members_pass() -> None:
    rows = [(COLUMN_LIMIT, MAX_RAW_LENGTH)]
    data = format_table(column([COLUMN_LIMIT]), column([MAX_RAW_LENGTH]))
    assert data == COLUMN_LIMIT.to_bytes(4, "little") + MAX_RAW_LENGTH.to_bytes(4, "little")
    assert parse_table(data, index_of(rows)) is not None
