"""Who owns a file here: by name, by number, by a mapping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.entry import Entry, Kind
from histfs.store.owners import NUMERICAL, Accounts, Owners, parse_mapping

HERE = {b"anna": 1, b"ben": 2, b"1000": 7}


@pytest.mark.parametrize(
    ("name", "number", "mapping", "expected"),
    [
        (b"anna", 5, {}, 1),  # the name counts
        (b"carl", 5, {}, 5),  # where it is known
        (None, 5, {}, 5),
        (b"anna", 5, {b"anna": b"ben"}, 2),  # a mapped name comes before the name itself
        (b"carl", 5, {b"carl": b"ben"}, 2),
        (b"anna", 5, {b"5": b"ben"}, 1),  # a mapped number after it
        (b"carl", 5, {b"5": b"ben"}, 2),
        (None, 5, {b"5": b"ben"}, 2),
        (None, 1, {b"anna": b"ben"}, 1),  # who has no name recorded is not known by one
        (b"anna", 5, {b"anna": b"99"}, 99),
        (b"anna", 5, {b"anna": b"1000"}, 1000),  # a number is a number
        (b"anna", 5, {b"anna": b"nobody-here"}, 5),
        (b"anna", 5, {b"anna": b""}, 5),
        (b"anna", 5, {b"anna": b"nobody-here", b"5": b"ben"}, 5),
        (b"anna", 5, {b"anna": b"4294967295"}, 5),  # which means "no change" to chown(2)
    ],
)
def test_the_number_here(name: bytes | None, number: int, mapping: dict[bytes, bytes], expected: int) -> None:
    assert Accounts(HERE.get, mapping).number(name, number) == expected


def test_users_and_groups_are_told_apart() -> None:
    entry = Entry(b"x", Kind.REGULAR, uid=10, gid=20, uname=b"anna", gname=b"ben")
    assert NUMERICAL.of(entry) == (10, 20)
    assert Owners(Accounts(HERE.get), Accounts(HERE.get)).of(entry) == (1, 2)
    assert Owners(None, Accounts(HERE.get, {b"ben": b"3"})).of(entry) == (10, 3)


def test_a_mapping() -> None:
    assert parse_mapping(b"anna:ben\n\n 5:6 \r\ncarl:\n") == {b"anna": b"ben", b"5": b"6", b"carl": b""}


@pytest.mark.parametrize("text", [b"anna", b"# who is who", b"a:b:c", b":ben"])
def test_lines_that_are_no_mapping(text: bytes) -> None:
    with pytest.raises(FormatError, match="line 2"):
        parse_mapping(b"anna:ben\n" + text + b"\n")


@given(st.binary(max_size=60))
def test_any_text_is_a_mapping_or_is_refused(text: bytes) -> None:
    try:
        mapping = parse_mapping(text)
    except FormatError:
        return
    again = b"".join(old + b":" + new + b"\n" for old, new in mapping.items())
    assert parse_mapping(again) == mapping


@pytest.mark.parametrize(
    ("new", "number"), [(b"9" * 5000, 7), (b"0" * 5000 + b"12", 12), (b"0", 0), (b"4294967295", 7)]
)
def test_a_mapping_to_a_long_number(new: bytes, number: int) -> None:
    assert Accounts(HERE.get, {b"zoe": new}).number(b"zoe", 7) == number
