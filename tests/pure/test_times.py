"""Session times in names (docs/format.md 2)."""

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.format.times import format_time, parse_time
from tests.strategies import session_times, tricky_bytes

T1 = 1700000000

WRITTEN = [  # both ways
    (T1, b"2023-11-14T22:13:20Z"),
    (0, b"1970-01-01T00:00:00Z"),
    (-1, b"1969-12-31T23:59:59Z"),
    (1709210096, b"2024-02-29T12:34:56Z"),
    (-2177452800, b"1901-01-01T00:00:00Z"),
    (4102444799, b"2099-12-31T23:59:59Z"),
]
READ = [  # other spellings, of other writers and zones
    (T1, b"2023-11-14T22-13-20Z"),
    (T1, b"2023-11-14T22:13-20Z"),
    (T1, b"2023-11-14T17:13:20-05:00"),
    (T1, b"2023-11-14T17-13-20-05-00"),
    (T1, b"2023-11-15T03:58:20+05:45"),
    (T1, b"2023-11-15T03-58-20+05:45"),
    (T1, b"2023-11-14T22:13:20+00:00"),
    # The minutes of a zone count eastwards, whatever the sign of its hours.
    (T1, b"2023-11-14T18:43:20-04:30"),
    (T1 - 3600, b"2023-11-14T18:43:20-03:30"),
    (T1 - 1800, b"2023-11-14T22:13:20-00:30"),
    (calendar.timegm((2023, 11, 14, 22, 14, 1)), b"2023-11-14T22:13:61Z"),
    (calendar.timegm((2023, 3, 3, 0, 0, 0)), b"2023-02-31T00:00:00Z"),
]


@pytest.mark.parametrize(("time", "text"), WRITTEN)
def test_time_both_ways(time, text):
    assert format_time(time) == text
    assert format_time(time, without_colons=True) == text.replace(b":", b"-")
    assert parse_time(text.replace(b":", b"-")) == time
    assert parse_time(text) == time


@pytest.mark.parametrize(("time", "text"), READ)
def test_other_spellings(time, text):
    assert parse_time(text) == time


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"2023-11-14",
        b"2023-11-14T22:13Z",
        b"2023-11-14T22:13:20",
        b"2023-11-14T22:13:20z",
        b"2023-11-14 22:13:20Z",
        b"2023/11/14T22:13:20Z",
        b"2023-11-14T22:13:20Z\n",
        b" 2023-11-14T22:13:20Z",
        b"2023-11-14T22:13:20ZZ",
        b"2023-11-14T22:13:20+0500",
        b"2023-11-14T22:13:20+5:00",
        b"2023-11-14T22:13:20+05:0",
        b"1900-11-14T22:13:20Z",
        b"2100-11-14T22:13:20Z",
        b"0000-11-14T22:13:20Z",
        b"99999-11-14T22:13:20Z",
        b"2023-00-14T22:13:20Z",
        b"2023-13-14T22:13:20Z",
        b"2023-11-00T22:13:20Z",
        b"2023-11-32T22:13:20Z",
        b"2023-11-14T24:13:20Z",
        b"2023-11-14T22:60:20Z",
        b"2023-11-14T22:13:62Z",
        b"-023-11-14T22:13:20Z",
        "٢٠٢٣-11-14T22:13:20Z".encode(),
    ],
)
def test_what_is_no_time(text):
    with pytest.raises(FormatError):
        parse_time(text)


@given(session_times)
def test_round_trip_of_times(time):
    assert parse_time(format_time(time)) == time


@given(
    st.one_of(
        tricky_bytes, st.from_regex(rb"[12]\d{3}-\d\d-\d\dT\d\d[:-]\d\d[:-]\d\d(Z|[+-]\d\d[:-]\d\d)", fullmatch=True)
    )
)
def test_any_bytes_are_a_time_or_a_format_error(text):
    try:
        time = parse_time(text)
    except FormatError:
        return
    assert isinstance(time, int)


@pytest.mark.parametrize("time", [-2177452801, 4102444800, 10**18, -(10**18), 10**30])
def test_times_that_the_format_cannot_hold(time):
    with pytest.raises(FormatError, match=str(time)):
        format_time(time)
