"""Times as people type them, and names of snapshots."""

import time
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from histfs.errors import NotFoundError, UsageError
from histfs.store.when import choose_session, parse_when, snapshot_names

BERLIN = ZoneInfo("Europe/Berlin")  # summer time ended on 2024-10-27 at 01:00 UTC, began on 2024-03-31 at 01:00 UTC
ST_JOHNS = ZoneInfo("America/St_Johns")  # -03:30, -02:30 in summer
MONROVIA = ZoneInfo("Africa/Monrovia")  # -00:44:30 until 1972


def at(text):
    """Seconds since the epoch of an ISO time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


NOW = at("2024-05-03T12:00:00")
TIMES = [at("2024-05-01T08:00:00"), at("2024-05-02T08:00:00"), at("2024-05-03T08:00:00"), at("2024-05-03T08:00:07")]


def when(text, times=TIMES, zone=BERLIN):
    return parse_when(text, now=NOW, times=times, zone=zone)


MOMENTS = [
    ("now", "2024-05-03T12:00:00"),
    ("1714557600", "2024-05-01T10:00:00"),
    ("0", "1970-01-01T00:00:00"),
    ("20241301", "1970-08-23T06:35:01"),  # eight digits, but there is no month 13
    ("99999999", "1973-03-03T09:46:39"),
    ("2024-05-01T10:00:00", "2024-05-01T08:00:00"),
    ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00"),
    ("2024-05-01T10:00:00+02:00", "2024-05-01T08:00:00"),
    ("2024-05-01T10:00:00-03:30", "2024-05-01T13:30:00"),
    ("2024-05-01T10-00-00-03-30", "2024-05-01T13:30:00"),
    ("2024-05-01T10-00-00", "2024-05-01T08:00:00"),
    ("2024-01-01T10:00:00", "2024-01-01T09:00:00"),
    ("2024-05-01T10:00", "2024-05-01T08:00:00"),  # there was a session
    ("2024-05-03T10:00", "2024-05-03T08:00:07"),  # there were two
    ("2024-05-01T10:00:00+23:59:59", "2024-04-30T10:00:01"),
    ("2024-05-01T10:01", "2024-05-01T08:01:59"),  # there was none: all of the minute
    ("2024-05-01T10:00Z", "2024-05-01T10:00:59"),
    ("2024-05-01T10:00-02:00", "2024-05-01T12:00:59"),
    ("2024-05-01T10-00-02-00", "2024-05-01T12:00:59"),
    ("0B", "2024-05-03T08:00:07"),
    ("1B", "2024-05-03T08:00:00"),
    ("3B", "2024-05-01T08:00:00"),
    ("4B", "2024-05-01T08:00:00"),
    ("999999999999B", "2024-05-01T08:00:00"),
    ("Wed May  1 10:00:00 2024", "2024-05-01T08:00:00"),
    ("Fri May 31 10:00:00 2024", "2024-05-31T08:00:00"),
    ("30s", "2024-05-03T11:59:30"),
    ("3D", "2024-04-30T12:00:00"),
    ("3D2h", "2024-04-30T10:00:00"),
    ("1h78m", "2024-05-03T09:42:00"),
    ("2W", "2024-04-19T12:00:00"),
    ("1M", "2024-04-03T12:00:00"),
    ("1Y", "2023-05-04T12:00:00"),
    ("2024-05-03", "2024-05-02T22:00:00"),
    ("2024/5/3", "2024-05-02T22:00:00"),
    ("05-03-2024", "2024-05-02T22:00:00"),
    ("5/3/2024", "2024-05-02T22:00:00"),
    ("2024-01-03", "2024-01-02T23:00:00"),
    ("NOW", "2024-05-03T12:00:00"),
    ("2024-05-01 10:00", "2024-05-01T08:00:00"),
    ("2024-05-01 10:00:00", "2024-05-01T08:00:00"),
    ("2024-05-01 10:00:00 +0200", "2024-05-01T08:00:00"),
    ("2024-05-01T10:00:00-0330", "2024-05-01T13:30:00"),
    ("2024-05-01T10-00-0330", "2024-05-01T13:30:59"),
    ("2024-05-01 10:00 UTC", "2024-05-01T10:00:59"),
    ("today", "2024-05-02T22:00:00"),
    ("Yesterday", "2024-05-01T22:00:00"),
    ("today 10:00", "2024-05-03T08:00:07"),
    ("yesterday 10:00", "2024-05-02T08:00:00"),
    ("yesterdayT10:00:30", "2024-05-02T08:00:30"),
    ("today 10:00Z", "2024-05-03T10:00:59"),
    ("2024-05", "2024-04-30T22:00:00"),
    ("2024/5", "2024-04-30T22:00:00"),
    ("2024-01", "2023-12-31T23:00:00"),
    ("2 days ago", "2024-05-01T12:00:00"),
    ("1 day ago", "2024-05-02T12:00:00"),
    ("2days ago", "2024-05-01T12:00:00"),
    ("a week ago", "2024-04-26T12:00:00"),
    ("An hour ago", "2024-05-03T11:00:00"),
    ("1 hour 30 minutes ago", "2024-05-03T10:30:00"),
    ("1 hour, 30 min and 5 secs ago", "2024-05-03T10:29:55"),
    ("2 MONTHS AGO", "2024-03-04T12:00:00"),
    ("3 years ago", "2021-05-04T12:00:00"),
    ("1600", "1970-01-01T00:26:40"),  # a year before 1901
    ("1990128", "1970-01-24T00:48:48"),  # seven digits are no date
]


@pytest.mark.parametrize(("text", "moment"), MOMENTS)
def test_what_people_type(text, moment):
    assert when(text) == at(moment)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "an empty text is not a time"),
        ("yesterday 25:00", "no such time"),
        ("yesterday evening", "'evening' is not a time of the day; write yesterday 18:30, or yesterday alone"),
        ("2 days", "write 2 days ago for a time back"),
        ("2 fortnights ago", "is not a time; write a date"),
        ("1.5D", "has whole numbers"),
        ("3d", "is not a time; write 3D for days"),
        ("2b", "write 2B for so many sessions back"),
        ("2w3h", "units are s m h D W, M"),
        ("-1B", "is not a time; a time back has no sign: write 1B"),
        ("-3D", "write 3D"),
        ("3.5.2024", "dashes: 2024-5-3"),
        ("13/5/2024", "there is no month 13; write the year first: 2024-05-13"),
        ("10:00", "write the day as well: today 10:00"),
        ("1714557600.5", "whole seconds: write 1714557600"),
        ("2024-05-01T10:00:00.25Z", "whole seconds: write 2024-05-01T10:00:00Z"),
        ("2024-13", "no such time"),
        ("2024-00", "no such time"),
        ("B", "is not a time"),
        ("now ", "is not a time; there is a blank before or behind it"),
        ("٣D", "is not a time"),
        ("٢٠٢٤", "is not a time"),
        ("2024-5/3", "is not a time"),
        ("2024-05-01T10:00-02", "is not a time"),
        ("\x1b[2J", r"'\\x1b\[2J' is not a time"),
        ("9" * 5000, "too many"),
        ("9" * 5000 + "B", "is not a time"),
        ("20240501", "20240501 as seconds since 1970 is 1970-08-23; if you mean the date, write 2024-05-01"),
        ("20000229", "write 2000-02-29"),
        ("2024", "2024 as seconds since 1970 is 1970-01-01; if you mean the date, write 2024-01-01"),
        ("202405", "write 2024-05$"),
        ("2024050110", "is 2034-02-20; if you mean the date, write 2024-05-01T10:00"),
        ("202405011030", "is too many; if you mean the date, write 2024-05-01T10:30"),
        ("20240501103059", "write 2024-05-01T10:30:59"),
        ("1714557600000", "no sessions after 2099; if they are milliseconds, write 1714557600"),
        ("4102444800", "no sessions after 2099"),
        ("2024-13-01", "no such time"),
        ("13-13-2024", "no such time"),
        ("2023-02-29", "no such time"),
        ("1900-05-01", "from 1901 to 2099"),
        ("2024-05-01T24:00", "no such time"),
        ("2024-05-01T10:60", "no such time"),
        ("2024-05-01T10:00:60", "no such time"),
        ("2024-05-01T10:00:00+24:00", "no such zone"),
        ("2024-05-01T10:00:00+01:60", "no such zone"),
        ("Wed Mai  1 10:00:00 2024", "no month Mai"),
        ("Wed May 32 10:00:00 2024", "no such time"),
    ],
)
def test_what_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        when(text)


def test_small_numbers_are_seconds_where_there_were_sessions():
    """As in tests with clocks that begin at 0."""
    assert when("2024", times=[1000, 2000]) == 2024
    assert when("202405", times=[1000]) == 202405


@given(st.dates(date(1971, 1, 1), date(2099, 12, 31)), st.sampled_from(["%Y%m%d", "%Y%m", "%Y"]))
def test_digits_of_a_date_are_never_a_time_in_1970(day, spelling):
    with pytest.raises(UsageError) as caught:
        when(day.strftime(spelling))
    assert when(caught.value.problem.rpartition(" ")[2], zone=UTC) <= at(f"{day}T00:00:00")


def test_sessions_back_without_sessions():
    with pytest.raises(UsageError, match="no finished session"):
        when("0B", times=[])


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_a_usage_error(text):
    try:
        moment = when(text)
    except UsageError:
        return
    assert isinstance(moment, int)


# Names of snapshots


@pytest.mark.parametrize(
    ("zone", "names"),
    [
        (
            BERLIN,
            {
                "2024-05-01T08:00:00": "@2024-05-01T10:00",
                "2024-05-01T08:01:30": "@2024-05-01T10:01",
                "2024-05-01T08:02:00": "@2024-05-01T10:02:00",
                "2024-05-01T08:02:59": "@2024-05-01T10:02:59",
                "2024-05-01T08:03:00": "@2024-05-01T10:03",
            },
        ),
        (
            BERLIN,  # the hour from 02:00 to 03:00 comes twice
            {
                "2024-10-26T23:59:00": "@2024-10-27T01:59",
                "2024-10-27T00:15:00": "@2024-10-27T02:15",
                "2024-10-27T00:30:00": "@2024-10-27T02:30:00+02:00",
                "2024-10-27T00:45:10": "@2024-10-27T02:45:10",
                "2024-10-27T01:30:00": "@2024-10-27T02:30:00+01:00",
                "2024-10-27T01:45:20": "@2024-10-27T02:45:20",
                "2024-10-27T02:00:00": "@2024-10-27T03:00",
            },
        ),
        (
            ST_JOHNS,
            {
                "2024-11-03T04:00:00": "@2024-11-03T01:30:00-02:30",
                "2024-11-03T05:00:00": "@2024-11-03T01:30:00-03:30",
            },
        ),
        (
            ZoneInfo("Europe/London"),
            {
                "2024-10-27T00:30:00": "@2024-10-27T01:30:00+01:00",
                "2024-10-27T01:30:00": "@2024-10-27T01:30:00Z",
            },
        ),
        (
            MONROVIA,  # the clock jumped by 44 1/2 minutes, forwards
            {"1971-12-31T23:59:59": "@1971-12-31T23:15", "1972-01-07T00:44:30": "@1972-01-07T00:44"},
        ),
    ],
)
def test_names_of_snapshots(zone, names):
    expected = {at(moment): name for moment, name in names.items()}
    assert snapshot_names(reversed(expected), zone) == expected
    assert list(snapshot_names(reversed(expected), zone)) == sorted(expected)
    for session, name in expected.items():
        assert when(name, list(expected), zone) == session


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("@2024-05-01T10:00", "2024-05-01T08:00:00"),
        ("@2024-05-01T10:00/", "2024-05-01T08:00:00"),
        ("@2024-05-01T10:00:00", "2024-05-01T08:00:00"),
        ("@2024-05-01T10:00:00+02:00", "2024-05-01T08:00:00"),
        ("@2024-05-01T10:00+02:00", "2024-05-01T08:00:00"),
        ("@2024-05-01T08:00:00Z", "2024-05-01T08:00:00"),
        ("@2024-05-01T10-00-00", "2024-05-01T08:00:00"),
        ("@2024-05-03T10:00:00", "2024-05-03T08:00:00"),
        ("@2024-05-03T10:00:07", "2024-05-03T08:00:07"),
    ],
)
def test_every_spelling_of_a_snapshot(name, moment):
    assert when(name) == at(moment)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("@", "'@' is not the name of a snapshot; there is @2024-05-01T10:00, .*, @2024-05-03T10:00:07$"),
        ("@now", "not the name of a snapshot"),
        ("@3D", "not the name of a snapshot"),
        ("@2024-05-01", "not the name of a snapshot"),
        ("@@2024-05-01T10:00", "not the name of a snapshot"),
        ("@2024-05-03T10:00", "the name of several snapshots; there is .*@2024-05-03T10:00:00, @2024-05-03T10:00:07$"),
        (
            "@2024-05-01T10:01",
            "there is no snapshot '@2024-05-01T10:01'; there is @2024-05-01T10:00, @2024-05-02T10:00",
        ),
        ("@2024-05-01T10:00:01", "there is no snapshot"),
        ("@2024-05-01T10:00:00+01:00", "there is no snapshot"),
        ("@2024-03-31T02:30", "there is no snapshot"),
        ("@2024-02-30T02:30", "no such time"),
    ],
)
def test_names_that_no_snapshot_has(name, complaint):
    with pytest.raises(UsageError, match=complaint):
        when(name)


def test_near_snapshots_are_listed_and_no_others():
    times = [NOW + 3600 * number for number in range(100)]
    with pytest.raises(UsageError) as caught:
        when("@2024-05-05T12:30", times, zone=UTC)
    listed = caught.value.advice
    assert listed == "there is @2024-05-05T11:00, @2024-05-05T12:00, @2024-05-05T13:00, @2024-05-05T14:00"


def test_no_snapshot_at_all():
    with pytest.raises(UsageError, match="no finished session"):
        when("@2024-05-01T10:00", times=[])


ZONES = [
    BERLIN,
    ST_JOHNS,
    MONROVIA,
    UTC,
    None,
    timezone(timedelta(hours=-9, minutes=-30)),
    ZoneInfo("Australia/Lord_Howe"),  # half an hour of summer time
    ZoneInfo("America/Havana"),  # changes at midnight
    ZoneInfo("Asia/Kathmandu"),
]
CHANGES = [at("2024-10-27T01:00:00"), at("2024-03-31T01:00:00"), at("2024-11-03T04:30:00"), at("2024-04-06T15:00:00")]
crowded = st.lists(
    st.builds(
        lambda change, *offsets: change + sum(offsets),
        st.sampled_from([*CHANGES, at("2024-11-03T05:00:00"), 63593070, -1000000000, 0]),
        st.sampled_from([-7200, -3600, -1800, 0, 1800, 3600, 7200]),
        st.sampled_from([-60, 0, 60]),
        st.integers(-3, 62),
    ),
    unique=True,
    min_size=1,
    max_size=10,
)


@given(crowded, st.sampled_from(ZONES))
def test_every_name_leads_back_to_its_session(times, zone):
    names = snapshot_names(times, zone)
    assert len(set(names.values())) == len(times)
    for session, name in names.items():
        assert when(name, times, zone) == session
        assert choose_session(when(name[1:], times, zone), times) == session


@given(crowded, crowded, st.sampled_from(ZONES))
def test_a_name_never_leads_to_another_session(times, others, zone):
    """A name that was right when there were other sessions: it means the same session, or nothing."""
    for session, name in snapshot_names(others, zone).items():
        try:
            found = when(name, times, zone)
        except UsageError:
            continue
        if session in times:
            assert found == session


# Clocks that are changed


@pytest.mark.parametrize(
    ("text", "times", "moment"),
    [
        # What the clock showed twice is the later one, if no session tells otherwise ...
        ("2024-10-27T02:30", [], "2024-10-27T01:30:59"),
        ("2024-10-27T02:30:00", [], "2024-10-27T01:30:00"),
        ("2024-10-27T02:30", ["2024-10-27T00:30:20", "2024-10-27T01:30:20"], "2024-10-27T01:30:20"),
        # ... or the one of the session.
        ("2024-10-27T02:30", ["2024-10-27T00:30:20", "2024-10-27T00:45:00"], "2024-10-27T00:30:20"),
        ("2024-10-27T02:30:20", ["2024-10-27T00:30:20", "2024-10-27T01:30:00"], "2024-10-27T00:30:20"),
        ("Sun Oct 27 02:30:20 2024", ["2024-10-27T00:30:20", "2024-10-27T01:30:00"], "2024-10-27T00:30:20"),
        # What it left out.
        ("2024-03-31T02:30:00", [], "2024-03-31T01:30:00"),
        ("Sun Mar 31 02:30:00 2024", [], "2024-03-31T01:30:00"),
    ],
)
def test_changed_clocks(text, times, moment):
    assert when(text, [at(each) for each in times]) == at(moment)


@pytest.mark.parametrize(
    ("day", "moment"),
    [
        ("2024-11-03", "2024-11-03T04:00:00"),
        ("2024-03-10", "2024-03-10T05:00:00"),
        ("2024-07-01", "2024-07-01T04:00:00"),
    ],
)
def test_days_begin_at_their_first_second(day, moment):
    """In Havana midnight comes twice on one day, and is left out on another."""
    assert when(day, zone=ZoneInfo("America/Havana")) == at(moment)


@given(st.integers(at("1975-01-01T00:00:00"), at("2037-12-31T00:00:00")), st.sampled_from(ZONES))
def test_days_and_months_begin_with_their_first_second(now, zone):
    """However they are written; the second before is another day."""

    def begins(text):
        moment = parse_when(text, now=now, times=[], zone=zone)
        first, before = (datetime.fromtimestamp(time, UTC).astimezone(zone) for time in (moment, moment - 1))
        assert first.date() != before.date()
        return first.date()

    today = datetime.fromtimestamp(now, UTC).astimezone(zone).date()
    for spelling in ("today", today.isoformat(), f"{today.month}/{today.day}/{today.year}"):
        assert begins(spelling) == today
    assert begins("yesterday") == today - timedelta(days=1)
    assert begins(f"{today.year}-{today.month:02}") == today.replace(day=1)


counts = st.integers(0, 999)
UNITS = {"s": "second", "m": "minute", "h": "hour", "D": "day", "W": "week", "M": "month", "Y": "year"}


@given(st.lists(st.tuples(counts, st.sampled_from(sorted(UNITS))), min_size=1, max_size=7), st.sampled_from(["", "s"]))
def test_words_mean_what_letters_mean(parts, plural):
    letters = "".join(f"{count}{unit}" for count, unit in parts)
    words = " ".join(f"{count} {UNITS[unit]}{plural}" for count, unit in parts)
    assert when(f"{words} ago") == when(letters) <= NOW


@given(st.integers(at("1975-01-01T00:00:00"), at("2037-12-31T00:00:00")), st.sampled_from(ZONES))
def test_local_times_are_those_of_the_zone(moment, zone):
    local = datetime.fromtimestamp(moment, UTC).astimezone(zone)
    assume(local.replace(fold=1 - local.fold).utcoffset() == local.utcoffset())
    assert when(local.strftime("%Y-%m-%dT%H:%M:%S"), [], zone) == moment
    assert when(local.isoformat(), [], zone) == moment


@pytest.fixture
def system_zone(monkeypatch):
    """The system's zone is Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("system_zone")
def test_the_zone_of_the_system():
    times = [at("2024-10-27T00:30:00"), at("2024-10-27T01:30:00"), at("2024-05-01T08:00:00")]
    names = snapshot_names(times, None)
    assert list(names.values()) == ["@2024-05-01T10:00", "@2024-10-27T02:30:00+02:00", "@2024-10-27T02:30:00+01:00"]
    for session, name in names.items():
        assert when(name, times, None) == session
    assert when("2024-10-27T02:30", times, None) == at("2024-10-27T01:30:00")
    assert when("2024-03-31T02:30:00", [], None) == at("2024-03-31T01:30:00")


# Sessions


def test_the_newest_session_that_is_not_later():
    assert choose_session(TIMES[1], TIMES) == TIMES[1]
    assert choose_session(TIMES[1] + 1, TIMES) == TIMES[1]
    assert choose_session(TIMES[1] - 1, TIMES) == TIMES[0]
    assert choose_session(10**15, TIMES) == TIMES[-1]


@pytest.mark.parametrize("moment", [TIMES[0] - 1, 0, -(10**20)])
def test_before_the_first_session(moment):
    with pytest.raises(NotFoundError, match="no session that early, the first one is of 2024-05-01"):
        choose_session(moment, TIMES)


def test_without_sessions():
    with pytest.raises(NotFoundError, match="no finished session"):
        choose_session(NOW, [])
