"""Names that carry a session time (docs/format.md 1.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.format.names import TYPES, IncrementName, format_increment_name, parse_increment_name
from tests.strategies import session_times, tricky_bytes

T1 = 1700000000

NAMES = [  # both ways
    (b"mod.txt.2023-11-14T22:13:20Z.diff.gz", IncrementName(b"mod.txt", T1, b"diff", True)),
    (b"pic.jpg.2023-11-14T22:13:20Z.diff", IncrementName(b"pic.jpg", T1, b"diff", False)),
    (b"increments.2023-11-14T22:13:20Z.dir", IncrementName(b"increments", T1, b"dir", False)),
    (b"new\nline.2023-11-14T22:13:20Z.missing", IncrementName(b"new\nline", T1, b"missing", False)),
    (b"\xff.2023-11-14T22:13:20Z.snapshot.gz", IncrementName(b"\xff", T1, b"snapshot", True)),
    (b"current_mirror.2023-11-14T22:13:20Z.data", IncrementName(b"current_mirror", T1, b"data", False)),
    (b".2023-11-14T22:13:20Z.dir", IncrementName(b"", T1, b"dir", False)),
    (b"tr..2023-11-14T22:13:20Z.missing", IncrementName(b"tr.", T1, b"missing", False)),
    (b"a.2023-11-14T22:13:20Z.dir.gz", IncrementName(b"a", T1, b"dir", True)),
    (
        b"q.2023-11-14T22:13:20Z.dir.2023-11-14T22:13:20Z.missing",
        IncrementName(b"q.2023-11-14T22:13:20Z.dir", T1, b"missing", False),
    ),
    (b"a.gz.2023-11-14T22:13:20Z.diff.gz", IncrementName(b"a.gz", T1, b"diff", True)),
]


@pytest.mark.parametrize(("name", "parts"), NAMES)
def test_name_both_ways(name, parts):
    assert parse_increment_name(name) == parts
    base, time, increment_type, compressed = parts
    assert format_increment_name(base, time, increment_type, compressed=compressed) == name


@pytest.mark.parametrize("time", [b"2023-11-14T17:13:20-05:00", b"2023-11-14T22-13-20Z"])
def test_the_time_counts_not_its_spelling(time):
    assert parse_increment_name(b"f." + time + b".diff.gz") == IncrementName(b"f", T1, b"diff", True)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"..",
        b"gz",
        b"mod.txt",
        b"2023-11-14T22:13:20Z.diff",
        b"2023-11-14T22:13:20Z.diff.gz",
        b"f.2023-11-14T22:13:20Z",
        b"f.2023-11-14T22:13:20Z.gz",
        b"f.2023-11-14T22:13:20Z.diff.gz.gz",
        b"f.2023-11-14T22:13:20Z.diff.bz2",
        b"f.2023-11-14T22:13:20Z.Diff",
        b"f.2023-11-14T25:13:20Z.diff",
        b"f.1900-11-14T22:13:20Z.diff",
        b"f.diff.2023-11-14T22:13:20Z",
        b"f.2023-11-14T22:13:20Z.diff.",
        b"chars_to_quote",
        b"rdiff-backup.tmp.0",
    ],
)
def test_what_is_no_such_name(name):
    assert parse_increment_name(name) is None


@given(tricky_bytes, session_times, st.sampled_from(sorted(TYPES)), st.booleans())
def test_round_trip_of_names(base, time, increment_type, compressed):
    name = format_increment_name(base, time, increment_type, compressed=compressed)
    assert parse_increment_name(name) == (base, time, increment_type, compressed)


@given(st.one_of(st.binary(), tricky_bytes))
def test_any_bytes_are_a_name_or_none(name):
    parts = parse_increment_name(name)
    if parts is not None:
        base, time, increment_type, compressed = parts
        assert parse_increment_name(format_increment_name(base, time, increment_type, compressed=compressed)) == parts


def test_a_time_that_the_format_cannot_hold():
    with pytest.raises(FormatError):
        format_increment_name(b"f", 10**12, b"diff", compressed=False)
