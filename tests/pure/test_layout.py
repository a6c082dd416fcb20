"""Where a repository keeps what, and what the names in its data directory say (docs/format.md 1 to 3, 7)."""

import pytest

from histfs.errors import DamagedError
from histfs.store.entry import Entry, Kind
from histfs.store.format.quoting import Quoting
from histfs.store.layout import NAME_MAX, Layout, parse_state

T1, T2, T3 = 1_700_000_000, 1_700_086_400, 1_700_172_800
DAY1, DAY2, DAY3 = (f"2023-11-{day}T22:13:20Z".encode() for day in (14, 15, 16))

PLAIN = Layout()
UPPER = Layout(Quoting.parse(b"A-Z", b""))


def file(path: bytes, **fields: object) -> Entry:
    return Entry(path, Kind.REGULAR)._replace(**fields)


@pytest.mark.parametrize(
    ("layout", "entry", "mirror", "increment"),
    [
        (PLAIN, file(b"f"), b"f", b"increments/f." + DAY1 + b".diff.gz"),
        (PLAIN, file(b"d/e/f"), b"d/e/f", b"increments/d/e/f." + DAY1 + b".diff.gz"),
        (PLAIN, Entry(b"", Kind.DIRECTORY), b"", b"increments." + DAY1 + b".diff.gz"),
        (PLAIN, file(b"f.x.gz"), b"f.x.gz", b"increments/f.x.gz." + DAY1 + b".diff.gz"),
        (PLAIN, file(b"d/f", alternate_increment=7), b"d/f", b"long_filename_data/7." + DAY1 + b".diff.gz"),
        (
            PLAIN,
            file(b"d/f", alternate_mirror=7),
            b"rdiff-backup-data/long_filename_data/7",
            b"long_filename_data/7." + DAY1 + b".diff.gz",
        ),
        (UPPER, file(b"Dir/F;"), b";068ir/;070;059", b"increments/;068ir/;070;059.2023-11-14;08422:13:20;090.diff.gz"),
        (
            UPPER,
            file(b"Dir/F", alternate_mirror=7),
            b"rdiff-backup-data/long_filename_data/7",
            b"long_filename_data/7.2023-11-14;08422:13:20;090.diff.gz",
        ),
        (UPPER, Entry(b"", Kind.DIRECTORY), b"", b"increments.2023-11-14;08422:13:20;090.diff.gz"),
    ],
)
def test_where_a_path_is_kept(layout: Layout, entry: Entry, mirror: bytes, increment: bytes) -> None:
    assert layout.mirror_path(entry) == mirror
    assert layout.increment_path(entry, T1, b"diff", compressed=True) == b"rdiff-backup-data/" + increment


def test_files_of_a_session() -> None:
    assert PLAIN.data_path(b"current_mirror", T1, b"data") == b"rdiff-backup-data/current_mirror." + DAY1 + b".data"
    quoted = b"rdiff-backup-data/mirror_metadata.2023-11-14;08422:13:20;090.snapshot.gz"
    assert UPPER.data_path(b"mirror_metadata", T1, b"snapshot", compressed=True) == quoted


@pytest.mark.parametrize(
    ("layout", "name", "for_increment", "for_mirror"),
    [
        (PLAIN, b"x" * 205, False, False),  # docs/format.md 3.4
        (PLAIN, b"x" * 206, True, False),
        (PLAIN, b"x" * 255, True, False),
        (UPPER, b"x" * 205, False, False),
        (UPPER, b"X" * 51, False, False),  # 204 bytes when quoted
        (UPPER, b"X" * 52, True, False),
        (UPPER, b"X" * 63 + b"xxx", True, False),  # 255
        (UPPER, b"X" * 64, True, True),
    ],
)
def test_which_names_are_too_long(layout: Layout, name: bytes, for_increment: bool, for_mirror: bool) -> None:
    assert layout.increment_name_is_too_long(name) == for_increment
    assert layout.mirror_name_is_too_long(name) == for_mirror


@pytest.mark.parametrize("quoted", [b"", b"A-Z", b"a", b"0-9", b"3", b"^x", b"dg-"])
def test_no_increment_of_a_name_that_is_short_enough_is_too_long(quoted: bytes) -> None:
    layout = Layout(Quoting.parse(quoted, b""))
    for char in (b"x", b"X", b";"):
        length = max(n for n in range(256) if not layout.increment_name_is_too_long(char * n))
        for type_, compressed in ((b"snapshot", True), (b"diff", True), (b"missing", False), (b"dir", False)):
            path = layout.increment_path(file(char * length), 2_015_199_933, type_, compressed=compressed)
            assert len(path.rpartition(b"/")[2]) <= NAME_MAX


# --- the state ------------------------------------------------------------------------------------------------------


def state(*names: bytes, layout: Layout = PLAIN):
    return parse_state(names, layout.quoting)


MARKER, SNAPSHOT, DIFF, ROOT, LOG = (
    b"current_mirror.%b.data",
    b"mirror_metadata.%b.snapshot.gz",
    b"mirror_metadata.%b.diff.gz",
    b"increments.%b.dir",
    b"error_log.%b.data",
)


def test_a_repository_at_rest() -> None:
    found = state(MARKER % DAY2, SNAPSHOT % DAY2, DIFF % DAY1, ROOT % DAY1, LOG % DAY1, LOG % DAY2, b"increments", b"x")
    assert found.sessions == (T1, T2)
    assert found.mirror_time == T2
    assert found.unfinished is None
    assert not found.is_failed_first_session
    assert found.listing_files(T1) == [b"rdiff-backup-data/" + DIFF % DAY1, b"rdiff-backup-data/" + SNAPSHOT % DAY2]
    assert found.listing_files(T2) == [b"rdiff-backup-data/" + SNAPSHOT % DAY2]
    assert found.error_logs.keys() == {T1, T2}


@pytest.mark.parametrize("left", [(), (SNAPSHOT % DAY2,), (LOG % DAY2,), (b"session_statistics.%b.data" % DAY2,)])
def test_a_session_that_died_and_has_lost_its_marker(left: tuple[bytes, ...]) -> None:
    """An increment of the newest session is there only while another one is made."""
    found = state(MARKER % DAY1, SNAPSHOT % DAY1, ROOT % DAY1, *left)
    assert (found.sessions, found.mirror_time) == ((T1,), T1)
    assert found.unfinished == (T2 if left else T1 + 1)
    assert (found.has_lost_marker, found.has_old_marker) == (True, False)


def test_a_marker_that_is_too_old() -> None:
    found = state(MARKER % DAY1, SNAPSHOT % DAY2, DIFF % DAY1, ROOT % DAY1, ROOT % DAY2)
    assert (found.has_lost_marker, found.has_old_marker) == (True, True)


@pytest.mark.parametrize(
    "names",
    [
        (MARKER % DAY1, MARKER % DAY2, SNAPSHOT % DAY1),
        (MARKER % DAY1, MARKER % DAY2, SNAPSHOT % DAY1, ROOT % DAY1, SNAPSHOT % DAY2),
        (MARKER % DAY1, MARKER % DAY2, SNAPSHOT % DAY1, SNAPSHOT % DAY2, DIFF % DAY1),
        (MARKER % DAY1, MARKER % DAY2, SNAPSHOT % DAY2, DIFF % DAY1),
    ],
)
def test_a_session_that_runs_or_died(names: tuple[bytes, ...]) -> None:
    """The states of docs/format.md 7.3: only the older session counts."""
    found = state(*names)
    assert found.sessions == (T1,)
    assert (found.mirror_time, found.unfinished) == (T1, T2)
    assert not found.is_failed_first_session
    expected = [SNAPSHOT % DAY1] if SNAPSHOT % DAY1 in names else [DIFF % DAY1, SNAPSHOT % DAY2]
    assert found.listing_files(T1) == [b"rdiff-backup-data/" + name for name in expected]


@pytest.mark.parametrize(
    ("names", "is_first"),
    [
        ((), True),
        ((b"increments", b"lock.yml"), True),
        ((SNAPSHOT % DAY1, LOG % DAY1), True),
        ((SNAPSHOT % DAY1, SNAPSHOT % DAY2), False),
        ((LOG % DAY1, LOG % DAY2), False),
        ((MARKER % DAY1,), False),
    ],
)
def test_a_first_session_that_failed(names: tuple[bytes, ...], is_first: bool) -> None:
    assert state(*names).is_failed_first_session == is_first


def test_without_a_marker_several_lists_are_still_history() -> None:
    found = state(SNAPSHOT % DAY2, DIFF % DAY1)
    assert found.sessions == (T1, T2)
    assert state(SNAPSHOT % DAY1).sessions == ()


def test_one_session_under_several_spellings() -> None:
    found = state(
        b"current_mirror.2023-11-14T23:13:20+01:00.data",
        b"mirror_metadata.2023-11-14T17-13-20-05-00.snapshot.gz",
        ROOT % DAY1,
    )
    assert found.sessions == (T1,)
    assert found.listing_files(T1) == [b"rdiff-backup-data/mirror_metadata.2023-11-14T17-13-20-05-00.snapshot.gz"]


def test_a_session_without_changes_has_no_root_increment() -> None:
    found = state(MARKER % DAY3, SNAPSHOT % DAY3, b"mirror_metadata.%b.diff" % DAY2, DIFF % DAY1, ROOT % DAY1)
    assert found.sessions == (T1, T2, T3)
    assert len(found.listing_files(T1)) == 3


def test_a_list_that_is_missing_breaks_the_older_ones() -> None:
    found = state(MARKER % DAY3, SNAPSHOT % DAY3, DIFF % DAY1, ROOT % DAY1, ROOT % DAY2)
    assert found.sessions == (T1, T2, T3)
    for time in (T1, T2):
        with pytest.raises(DamagedError) as caught:
            found.listing_files(time)
        assert caught.value.at == T2
    assert found.listing_files(T3)


def test_a_full_list_needs_no_newer_one() -> None:
    found = state(MARKER % DAY3, ROOT % DAY2, SNAPSHOT % DAY1)
    assert found.listing_files(T1) == [b"rdiff-backup-data/" + SNAPSHOT % DAY1]
    with pytest.raises(DamagedError):
        found.listing_files(T3)


def test_differences_that_lead_nowhere() -> None:
    with pytest.raises(DamagedError):
        state(MARKER % DAY2, DIFF % DAY1, DIFF % DAY2).listing_files(T1)


def test_of_two_lists_of_one_session_the_full_one_counts() -> None:
    found = state(MARKER % DAY2, SNAPSHOT % DAY2, SNAPSHOT % DAY1, DIFF % DAY1)
    assert found.listing_files(T1) == [b"rdiff-backup-data/" + SNAPSHOT % DAY1]


def test_names_that_only_look_similar_say_nothing() -> None:
    found = state(
        b"current_mirror.x.data",
        b"current_mirror.%b.snapshot" % DAY1,
        b"mirror_metadata.%b.data" % DAY1,
        b"mirror_metadata_%b.snapshot" % DAY1,
        b"x.current_mirror.%b.data" % DAY1,
        b"error_log.%b.dir" % DAY1,
        b"histfs",
        b"",
    )
    assert found == state()


def test_quoted_names_are_understood() -> None:
    names = [UPPER.data_path(b"current_mirror", T1, b"data"), UPPER.data_path(b"mirror_metadata", T1, b"snapshot")]
    assert state(*(name.rpartition(b"/")[2] for name in names), layout=UPPER).sessions == (T1,)


@pytest.mark.parametrize(
    ("directory", "collides"),
    [
        (b"", False),
        (b"d", False),
        (b"q." + DAY1 + b".dir", True),
        (b"a/q." + DAY1 + b".diff.gz/b/c", True),
        (b"a/q." + DAY1 + b".dirx/b", False),
        (b"conf.dir/x.data/y.missing", False),
        (b"q." + DAY1, False),
        (b"q." + DAY1 + b".gz", False),
    ],
)
def test_directories_that_could_be_taken_for_increments(directory: bytes, collides: bool) -> None:
    assert PLAIN.increments_would_collide(directory) == collides


@pytest.mark.parametrize(
    ("layout", "place", "expected"),
    [
        (PLAIN, b"increments/f." + DAY1 + b".diff.gz", (b"f", T1)),
        (PLAIN, b"increments/d/e/f.x." + DAY2 + b".missing", (b"d/e/f.x", T2)),
        (PLAIN, b"increments." + DAY1 + b".dir", (b"", T1)),
        (UPPER, b"increments/;068ir/;070.2023-11-14;08422:13:20;090.diff.gz", (b"Dir/F", T1)),
        (PLAIN, b"mirror_metadata." + DAY1 + b".snapshot.gz", None),
        (PLAIN, b"increments/current_mirror." + DAY1 + b".data", None),
        (PLAIN, b"long_filename_data/7." + DAY1 + b".diff.gz", None),
        (PLAIN, b"increments/f", None),
        (PLAIN, b"incrementsx/f." + DAY1 + b".diff.gz", None),
    ],
)
def test_what_an_increment_file_is_of(layout: Layout, place: bytes, expected: tuple[bytes, int] | None) -> None:
    assert layout.increment_at(b"rdiff-backup-data/" + place) == expected
    assert layout.increment_at(place) is None
