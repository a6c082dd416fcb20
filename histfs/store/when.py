"""Times as people say them: what they type, and the names of snapshots they see.

Pure: the clock, the zone and the sessions are parameters. A zone of None is the system's local time.

What `parse_when` understands, tried in this order:

    @2024-05-01T10:00          a snapshot, by the name it is listed with or any longer spelling of it
    now
    1714557600                 seconds since 1970; eight digits that could be a date are refused as ambiguous
    2024-05-01T10:00:00+02:00  a moment. Without a zone it is local time. Without seconds it is the newest session in
                               that minute, or its last second: a snapshot is found by its name without the `@`
                               too. `-` may stand for `:`, as in 2024-05-01T10-00-00+02-00
    0B, 3B                     the newest session, the third before it; the oldest one if there are not so many
    Wed May  1 10:00:00 2024   what `rdiff-backup list increments` prints; local time
    3D, 1h30m, 2W              so long before now: s m h D W, M is 30 days, Y is 365 days
    2024-05-01, 2024/5/1, 05-01-2024, 5/1/2024      the first second of that day, local time

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
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)T(?P<hour>\d\d)(?P<mark>[:-])(?P<minute>\d\d)"
    r"(?:(?P=mark)(?P<second>\d\d))?"
    r"(?P<zone>Z|(?P<sign>[+-])(?P<zone_hours>\d\d)[:-](?P<zone_minutes>\d\d)(?::(?P<zone_seconds>\d\d))?)?",
    re.ASCII,
)
_SESSIONS_BACK = re.compile(r"(\d{1,18})B", re.ASCII)
_ASCTIME = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) +(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4})", re.ASCII)
_INTERVAL = re.compile(r"(?:\d{1,12}[smhDWMY]){1,20}", re.ASCII)
_INTERVAL_PART = re.compile(r"(\d+)([smhDWMY])", re.ASCII)
_DATE = re.compile(
    r"(?P<year>\d{4})(?P<mark>[-/])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    r"|(?P<month_us>\d{1,2})(?P<mark_us>[-/])(?P<day_us>\d{1,2})(?P=mark_us)(?P<year_us>\d{4})",
    re.ASCII,
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
    if text == "now":
        return now
    if re.fullmatch(r"\d+", text, re.ASCII):
        return _epoch_seconds(text)
    if match := _MOMENT.fullmatch(text):
        return _typed(match, zone).moment(times)
    if match := _SESSIONS_BACK.fullmatch(text):
        return _sessions_back(int(match[1]), times)
    if match := _ASCTIME.fullmatch(text):
        return _asctime(match, times, zone)
    if _INTERVAL.fullmatch(text):
        return now - sum(int(count) * _UNIT_SECONDS[unit] for count, unit in _INTERVAL_PART.findall(text))
    if match := _DATE.fullmatch(text):
        return _date(match, zone)
    raise UsageError(
        f"{_shown(text)} is not a time",
        advice="write a date (2024-05-01), a moment (2024-05-01T10:00), a time back (3D, 1h30m), a number of sessions"
        " back (2B), seconds since 1970, now, or the name of a snapshot",
    )


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
    """The session with the name `name`, exactly; a name may be longer than the one that is listed."""
    match = _MOMENT.fullmatch(name[1:])
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


def _epoch_seconds(digits: str) -> int:
    if len(digits) == 8:
        date = (int(digits[:4]), int(digits[4:6]), int(digits[6:]))
        if _is_date(*date):
            as_seconds = datetime.fromtimestamp(int(digits), UTC).date()
            raise UsageError(
                f"{digits} is {as_seconds} as seconds; for the day write {digits[:4]}-{digits[4:6]}-{digits[6:]}"
            )
    if len(digits) > 10 or int(digits) >= _TOO_LATE:
        raise UsageError(f"{_shown(digits)} seconds since 1970 are too many, there are no sessions after 2099")
    return int(digits)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        return False
    return year in _YEARS


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
    return _Typed(_clock(year, month, day), 1, zone).starts()[0]
