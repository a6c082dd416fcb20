"""Records as columns: the quick way says what the slow one says, of sound records and of damaged ones."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from histfs.store.entry import Entry, Kind
from histfs.store.format.columns import (
    COMMON,
    NUMBER_BITS,
    Columns,
    columns_of,
    number_of,
    parse_any,
    read_records,
    signed,
    unsigned,
)
from histfs.store.format.metadata import format_record, quote_path, read_entries
from tests import strategies

REGULAR = format_record(Entry(b"d/f", Kind.REGULAR, 0o644, 1, 2, b"u", b"g", 3, 4, b"0a" * 20))


def complete(record):
    """A record with all columns, in the place of as many as are not None."""
    parent, name, number, columns = record
    return parent, name, number, None if columns is None else Columns(*columns, *(None,) * (13 - len(columns)))


def expected(entry):
    parent, _, name = entry.path.rpartition(b"/")
    if entry.kind is Kind.ABSENT:
        return parent, name, None, None
    return parent, name, number_of(format_record(entry)), columns_of(entry)


def both(text):
    """What the two readers give, and what they say is damaged."""
    told, told_of_entries = [], []
    records = [complete(record) for record in read_records([text], lambda error: told.append(error.path))]
    entries = list(read_entries([text], lambda error: told_of_entries.append(error.path)))
    return (records, told), ([expected(entry) for entry in entries], told_of_entries)


@given(strategies.listings())
def test_the_records_of_a_list(entries) -> None:
    text = b"".join(map(format_record, entries))
    found, wanted = both(text)
    assert found == wanted == ([expected(entry) for entry in entries], [])


@given(strategies.listings(), st.data())
def test_damaged_lists(entries, data) -> None:
    """Lines that are gone, twice or others, in any place: the same records are left out."""
    lines = b"".join(map(format_record, entries)).split(b"\n")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        other = data.draw(st.sampled_from([*lines, b"File a/../b", b"File .", b"  Uid 01", b"  Gname None", b"\0"]))
        lines[place : place + data.draw(st.integers(0, 2))] = [other] * data.draw(st.integers(0, 2))
    found, wanted = both(b"\n".join(lines))
    assert found == wanted


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Uid 1", b"Uid 01"),
        (b"Uname u", b"Uname None"),
        (b"  Size 4\n", b"  Size 4\n  NumHardLinks 1\n  Inode 1\n  DeviceLoc 1\n"),
        (b"  Size 4\n", b"  Size 4\n  NumHardLinks 2\n"),
        (b"ModTime 3", b"ModTime -0"),
        (b"Type reg\n", b"Type reg\n  Unknown field\n"),
    ],
)
def test_a_record_in_other_words_has_the_same_number_as_in_ours(old: bytes, new: bytes) -> None:
    """So a list that another program wrote anew gives no new versions."""
    other = REGULAR.replace(old, new)
    assert other != REGULAR
    (found,) = read_records([other], pytest.fail)
    assert complete(found) == complete(parse_any(other))
    (ours,) = read_entries([other], pytest.fail)
    assert found[2] == number_of(format_record(ours))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Permissions 420", b"Permissions 4096"),
        (b"Uid 1", b"Uid 4294967296"),
        (b"Size 4", b"Size 9223372036854775808"),
        (b"File d/f", b"File d/.."),
        (b"File d/f", b"File d//f"),
        (b"File d/f", b"File /f"),
        (b"File d/f", b"File d/f\0"),
        (b"Uname u", b"Uname \0"),
    ],
)
def test_what_no_record_says_is_damage(old: bytes, new: bytes) -> None:
    found, wanted = both(REGULAR.replace(old, new))
    assert found == wanted
    assert found[0] == []


def test_common_records_have_the_common_columns_alone() -> None:
    (record,) = read_records([REGULAR], pytest.fail)
    assert record[3] == (0o100644, 1, 2, 3, 4, b"\x0a" * 20)
    assert len(record[3]) == COMMON


@given(strategies.listings())
def test_only_those_that_are_wanted(entries) -> None:
    wanted = {entry.path for entry in entries[::2]}
    texts = {quote_path(path) for path in wanted}
    found = read_records([b"".join(map(format_record, entries))], pytest.fail, texts)
    assert [complete(record) for record in found] == [expected(entry) for entry in entries if entry.path in wanted]


@given(st.integers(0, 2**64 - 1))
@example(2**63)
def test_numbers_without_a_sign(number: int) -> None:
    assert -(2**63) <= signed(number) < 2**63
    assert unsigned(signed(number)) == number


@given(st.binary())
def test_numbers_fit(text: bytes) -> None:
    assert 0 <= number_of(text) < 1 << NUMBER_BITS
