"""Times as people say them: what they type, and the names of snapshots they see.

Pure: the clock, the zone and the sessions are parameters. A zone of None is the system's local time.

What `parse_when` understands, tried in this order:

    @2024-05-01T10:00          a snapshot, by the name it is listed with or any longer spelling of it
    now
    1714557600                 seconds since 1970; digits that are rather a date are refused (`_epoch_seconds`)
    2024-05-01T10:00:00+02:00  a moment. Without a zone it is local time. Without seconds it is the newest session in
                               that minute, or its last second: a snapshot is found by its name without the `@`
                               too. `-` may stand for `:`, as in 2024-05-01T10-00-00+02-00, and a blank for `T`
    today 10:00                the same, and `yesterday 10:00`
    0B, 3B                     the newest session, the third before it; the oldest one if there are not so many
    Wed May  1 10:00:00 2024   what `rdiff-backup list increments` prints; local time
    3D, 1h30m, 2W              so long before now: s m h D W, M is 30 days, Y is 365 days
    2 days ago                 the same in words, as in `1 hour 30 minutes ago` and `a week ago`
    2024-05-01, 2024/5/1, 05-01-2024, 5/1/2024      the first second of that day, local time
    today, yesterday, 2024-05  the same of that day, that month

Words may be in capitals. What is understood nowhere gets the advice that fits what was probably meant (`_advice`).
A local time that the clock showed twice, when summer time ended, is the one at which there was a session; else
the later one. One that the clock left out is taken as if the clock had not been changed yet.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import NamedTuple

from histfs.errors import NotFoundError, UsageError, printable, printable_time

_YEARS = range(1901, 2100)  # the format has no other session times (docs/format.md 2.1)
_TOO_LATE = 4102444800  # 2100-01-01, seconds since the epoch
_CANDIDATES = 4  # how many names a message lists
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "D": 86400, "W": 7 * 86400, "M": 30 * 86400, "Y": 365 * 86400}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MOMENT = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)[T ](?P<hour>\d\d)(?P<mark>[:-])(?P<minute>\d\d)"
    r"(?:(?P=mark)(?P<second>\d\d))?"
    r"(?P<zone> ?(?:Z|UTC)"
    r"| ?(?P<sign>[+-])(?P<zone_hours>\d\d)[:-]?(?P<zone_minutes>\d\d)(?::(?P<zone_seconds>\d\d))?)?",
    re.ASCII,
)
_DAY = re.compile(r"(today|yesterday)(?:[T ](.+))?", re.ASCII | re.IGNORECASE)
_SESSIONS_BACK = re.compile(r"(\d{1,18})B", re.ASCII)
_ASCTIME = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4})", re.ASCII)
_INTERVAL = re.compile(r"(?:\d{1,12}[smhDWMY]){1,20}", re.ASCII)
_WORDS_AGO = re.compile(
    r"(?:(?:\d{1,12}|an?) ?(?:sec(?:ond)?|min(?:ute)?|hour|day|week|month|year)s?,? (?:and )?){1,7}ago",
    re.ASCII | re.IGNORECASE,
)
_WORDS_PART = re.compile(r"(\d+|an?) ?([a-z]{3})[a-z]*", re.ASCII | re.IGNORECASE)
_INTERVAL_PART = re.compile(r"(\d+)([smhDWMY])", re.ASCII)
_DATE = re.compile(
    r"(?P<year>\d{4})(?P<mark>[-/])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    r"|(?P<month_us>\d{1,2})(?P<mark_us>[-/])(?P<day_us>\d{1,2})(?P=mark_us)(?P<year_us>\d{4})",
    re.ASCII,
)
_MONTH = re.compile(r"(\d{4})[-/](\d{1,2})", re.ASCII)
_DIGITS_OF_A_DATE = re.compile(
    r"(?P<year>\d{4})(?:(?P<month>\d\d)(?:(?P<day>\d\d)(?:(?P<hour>\d\d)(?:(?P<minute>\d\d)(?P<second>\d\d)?)?)?)?)?",
    re.ASCII,
)

# What is probably meant by what cannot be understood, the first that fits: a pattern and its advice.
_MISTAKES = tuple(
    (re.compile(pattern, re.ASCII | re.IGNORECASE), advice)
    for pattern, advice in (
        (r"-(.+)", r"a time back has no sign: write \1"),
        (r"\d*\.\d+[a-z]+", "a time back has whole numbers: not 1.5D but 1D12h"),
        (r"(\d+)b", r"write \1B for so many sessions back"),
        (r"(\d+)d", r"write \1D for days: s, m and h stand for seconds, minutes and hours, D W M Y for what is longer"),
        (r"(?:\d+[smhdwy])+", "units are s m h D W, M (30 days) and Y (365 days), in just these letters"),
        (r"(\d+ ?(?:sec|min|hour|day|week|month|year)[a-z]*)", r"write \1 ago for a time back"),
        (r"(\d{1,2})\.(\d{1,2})\.(\d{4})", r"write the year first and the day last, with dashes: \3-\2-\1"),
        (r"(.+:\d\d)[.,]\d+(.*)", r"sessions have whole seconds: write \1\2"),
        (r"(\d\d?:\d\d(?::\d\d)?)", r"write the day as well: today \1"),
        (r"(\d+)\.\d+", r"sessions have whole seconds: write \1"),
        (r" .*|.* ", "there is a blank before or behind it"),
    )
)


def snapshot_names(times: Iterable[int], zone: tzinfo | None) -> dict[int, str]:
    """The directory name of each session time, in the order of time: `@2024-05-01T10:00`.

    Names have seconds only where sessions share a minute of the clock, and an offset only where the clock showed the
    same second twice: `@2024-10-27T02:30:00+02:00`. Every name is different.
    """
    spellings = {time: _spellings(time, zone) for time in sorted(set(times))}
    uses = Counter(spelling for three in spellings.values() for spelling in three)
    return {time: next(name for name in three if uses[name] == 1) for time, three in spellings.items()}


def parse_when(text: str, *, now: int, times: Sequence[int], zone: tzinfo | None) -> int:
    """The moment (seconds since the epoch) that `text` means, see the head of this file. Raises UsageError.

    `times` are the sessions of the repository. A moment need not be a session: `choose_session` finds that.
    """
    if text.startswith("@"):
        return _named_session(text, times, zone)
    if text.lower() == "now":
        return now
    if re.fullmatch(r"\d+", text, re.ASCII):
        return _epoch_seconds(text, now, times)
    if match := _DAY.fullmatch(text):
        return _day(match, now, times, zone)
    if match := _MOMENT.fullmatch(text):
        return _typed(match, zone).moment(times)
    if match := _SESSIONS_BACK.fullmatch(text):
        return _sessions_back(int(match[1]), times)
    if match := _ASCTIME.fullmatch(text):
        return _asctime(match, times, zone)
    if _INTERVAL.fullmatch(text):
        return now - sum(int(count) * _UNIT_SECONDS[unit] for count, unit in _INTERVAL_PART.findall(text))
    if _WORDS_AGO.fullmatch(text):
        return now - sum(_seconds_in_words(count, unit) for count, unit in _WORDS_PART.findall(text))
    if match := _DATE.fullmatch(text):
        return _date(match, zone)
    if match := _MONTH.fullmatch(text):
        return _Typed(_clock(int(match[1]), int(match[2]), 1), 1, zone).starts()[0]
    raise UsageError(f"{_shown(text)} is not a time", advice=_advice(text))


def choose_session(moment: int, times: Sequence[int]) -> int:
    """The newest session that is not after `moment`. Raises NotFoundError when there is none."""
    earlier = [time for time in times if time <= moment]
    if earlier:
        return max(earlier)
    if not times:
        raise NotFoundError("the repository has no finished session")
    raise NotFoundError(f"there is no session that early, the first one is of {printable_time(min(times))}", at=moment)


def _local(time: int, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(time, UTC).astimezone(zone)


def _spellings(time: int, zone: tzinfo | None) -> tuple[str, str, str]:
    """The names that a session can have, the shortest first."""
    moment = _local(time, zone)
    second = moment.strftime("@%Y-%m-%dT%H:%M:%S")
    offset = moment.isoformat()[19:]
    return second[:-3], second, second + ("Z" if offset == "+00:00" else offset)


def _shown(text: str) -> str:
    return f"'{printable(text[:80])}'" if text else "an empty text"


def _named_session(name: str, times: Sequence[int], zone: tzinfo | None) -> int:
    """The session with the name `name`, exactly; a name may be longer than the one that is listed.

    A slash at its end is what a shell adds when it completes a folder's name.
    """
    match = _MOMENT.fullmatch(name[1:].rstrip("/"))
    if match is None:
        raise UsageError(f"{_shown(name)} is not the name of a snapshot", advice=_names_near(times, None, zone))
    typed = _typed(match, zone)
    found = typed.sessions(times)
    if len(found) == 1:
        return found[0]
    names = _names_near(times, typed.moment(times), zone)
    if found:
        raise UsageError(f"{_shown(name)} is the name of several snapshots", advice=names)
    raise UsageError(f"there is no snapshot {_shown(name)}", advice=names)


def _names_near(times: Sequence[int], moment: int | None, zone: tzinfo | None) -> str:
    """Advice: the snapshots closest to `moment`, or the newest ones."""
    if not times:
        return "the repository has no finished session"
    wanted = max(times) if moment is None else moment
    near = sorted(times, key=lambda time: abs(time - wanted))[:_CANDIDATES]
    names = snapshot_names(times, zone)
    return "there is " + ", ".join(names[time] for time in sorted(near))


def _advice(text: str) -> str:
    """What to write in place of `text`, which is no time."""
    for pattern, advice in _MISTAKES:
        if match := pattern.fullmatch(text[:80]):
            return printable(match.expand(advice))
    return (
        "write a date (2024-05-01), a moment (2024-05-01T10:00), a time back (3D, 1h30m, 2 days ago), a number of"
        " sessions back (2B), seconds since 1970, now, today, yesterday, or the name of a snapshot"
    )


def _epoch_seconds(digits: str, now: int, times: Sequence[int]) -> int:
    """Seconds since 1970, unless a date was meant, which would silently be a time in 1970 (or long to come).

    Eight digits that are a date are never taken for seconds, other numbers of digits not where these seconds are
    before the first session or after now.
    """
    match = _DIGITS_OF_A_DATE.fullmatch(digits)
    date = "" if match is None else _as_date(match)
    too_many = len(digits) > 10 or int(digits) >= _TOO_LATE
    if date and (too_many or len(digits) == 8 or int(digits) > now or int(digits) < min(times, default=0)):
        as_seconds = "too many" if too_many else f"{datetime.fromtimestamp(int(digits), UTC).date()}"
        raise UsageError(f"{digits} as seconds since 1970 is {as_seconds}; if you mean the date, write {date}")
    if too_many:
        raise UsageError(
            f"{_shown(digits)} seconds since 1970 are too many, there are no sessions after 2099",
            advice=f"if they are milliseconds, write {digits[:10]}" if len(digits) == 13 else "",
        )
    return int(digits)


def _as_date(match: re.Match[str]) -> str:
    """What _DIGITS_OF_A_DATE matched as it should be written; an empty text if it is no date."""
    given = [(name, int(value)) for name, value in match.groupdict().items() if value is not None]
    try:
        clock = datetime(**{"month": 1, "day": 1} | dict(given))  # type: ignore[arg-type]
    except ValueError:
        return ""
    if clock.year not in _YEARS:
        return ""
    length = {"year": 4, "month": 7, "day": 10}.get(given[-1][0])
    if length == 4:
        return f"{clock.year}-01-01"
    if length is not None:
        return clock.isoformat()[:length]
    return clock.isoformat()[: 19 if given[-1][0] == "second" else 16]


class _Typed(NamedTuple):
    """What a clock in `zone` shows, for `length_s` seconds: a minute or a second."""

    clock: datetime  # without a zone
    length_s: int
    zone: tzinfo | None

    def sessions(self, times: Iterable[int]) -> list[int]:
        """Those during which the clock shows this. Asking the clock is right however it is changed."""
        keep = {"second": 0} if self.length_s == 60 else {}
        return [time for time in times if _local(time, self.zone).replace(tzinfo=None, **keep) == self.clock]

    def moment(self, times: Iterable[int]) -> int:
        """The newest of the sessions, or else the last second at which the clock shows this."""
        sessions = self.sessions(times)
        return max(sessions) if sessions else self.starts()[-1] + self.length_s - 1

    def starts(self) -> list[int]:
        """The first seconds of this, ascending: two where the clock shows it twice.

        Where the clock leaves it out, the one when it would come if the clock were not changed yet.
        """
        not_yet, already = (int(self.clock.replace(tzinfo=self.zone, fold=fold).timestamp()) for fold in (0, 1))
        shown = [time for time in (not_yet, already) if _local(time, self.zone).replace(tzinfo=None) == self.clock]
        return sorted(shown) or [not_yet]


def _clock(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    try:
        clock = datetime(year, month, day, hour, minute, second)
    except ValueError as exc:
        raise UsageError(f"there is no such time: {exc}") from exc
    if year not in _YEARS:
        raise UsageError("the year must be from 1901 to 2099")
    return clock


def _typed(match: re.Match[str], zone: tzinfo | None) -> _Typed:
    """What _MOMENT matched. Raises UsageError."""
    clock = _clock(*(int(match[name] or 0) for name in ("year", "month", "day", "hour", "minute", "second")))
    if match["zone"]:
        hours, minutes, seconds = (int(match[name] or 0) for name in ("zone_hours", "zone_minutes", "zone_seconds"))
        if hours > 23 or minutes > 59 or seconds > 59:
            raise UsageError(f"there is no such zone: {match['zone']}")
        offset = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        zone = timezone(-offset if match["sign"] == "-" else offset)
    return _Typed(clock, 60 if match["second"] is None else 1, zone)


def _sessions_back(count: int, times: Sequence[int]) -> int:
    if not times:
        raise UsageError("the repository has no finished session")
    newest_first = sorted(set(times), reverse=True)
    return newest_first[min(count, len(newest_first) - 1)]


def _asctime(match: re.Match[str], times: Sequence[int], zone: tzinfo | None) -> int:
    if match[1] not in _MONTHS:
        raise UsageError(f"there is no month {match[1]}")
    day, hour, minute, second, year = map(int, match.groups()[1:])
    return _Typed(_clock(year, _MONTHS.index(match[1]) + 1, day, hour, minute, second), 1, zone).moment(times)


def _date(match: re.Match[str], zone: tzinfo | None) -> int:
    year, month, day = (int(match[name] or match[f"{name}_us"]) for name in ("year", "month", "day"))
    if match["year"] is None and month > 12 >= day:
        raise UsageError(f"there is no month {month}", advice=f"write the year first: {year}-{day:02}-{month:02}")
    return _Typed(_clock(year, month, day), 1, zone).starts()[0]


def _day(match: re.Match[str], now: int, times: Sequence[int], zone: tzinfo | None) -> int:
    """The first second of today or yesterday; or a time of the clock on that day."""
    day = _local(now, zone).date()
    if match[1].lower() == "yesterday":
        day -= timedelta(days=1)
    if match[2] is None:
        return _Typed(_clock(day.year, day.month, day.day), 1, zone).starts()[0]
    moment = _MOMENT.fullmatch(f"{day.isoformat()}T{match[2]}")
    if moment is None:
        raise UsageError(
            f"{_shown(match[2])} is not a time of the day", advice=f"write {match[1]} 18:30, or {match[1]} alone"
        )
    return _typed(moment, zone).moment(times)


def _seconds_in_words(count: str, unit: str) -> int:
    seconds = {"sec": 1, "min": 60, "hou": 3600, "day": 86400, "wee": 7 * 86400, "mon": 30 * 86400, "yea": 365 * 86400}
    return (1 if count.startswith(("a", "A")) else int(count)) * seconds[unit.lower()]
