"""Session times as they stand in file names (docs/format.md 2).

A session time is an integer: seconds since the epoch. Two names belong to one session when their times are equal
as integers, however they are spelled; that is why the parser below keeps a rule that looks wrong.
"""

import calendar
import re
from datetime import UTC, datetime

from histfs.errors import FormatError, printable

_TIME = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)T(\d\d)[:-](\d\d)[:-](\d\d)"  # `-` on file systems that refuse `:` (docs/format.md 2.1)
    rb"(?:Z|([+-]\d\d)[:-](\d\d))"
)
_YEARS = range(1901, 2100)


def parse_time(text: bytes) -> int:
    """The session time that `text` spells, in seconds since the epoch (docs/format.md 2.1, 2.2). Raises FormatError.

    The minutes of a zone are positive also where its hours are negative: `-03:30` is 2 1/2 hours west. Names
    match by this rule whichever zone their writer meant (docs/format.md 2.2 and trap 1).
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise FormatError(f"not a session time: {printable(text[:80])}")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    if not (
        year in _YEARS
        and 1 <= month <= 12
        and 1 <= day <= 31  # the 31st of a shorter month counts on into the next one
        and hour <= 23
        and minute <= 59
        and second <= 61
    ):
        raise FormatError(f"a session time out of range: {printable(text)}")
    zone_s = 3600 * int(match[7]) + 60 * int(match[8]) if match[7] else 0
    return calendar.timegm((year, month, day, hour, minute, second)) - zone_s


def format_time(session_time: int, *, without_colons: bool = False) -> bytes:
    """`session_time` (seconds since the epoch) in UTC, `2023-11-14T22:13:20Z` or `2023-11-14T22-13-20Z`.

    Always UTC: no other spelling is read alike by every version. Raises FormatError outside of the years 1901-2099,
    which no reader would recognise.
    """
    try:
        moment = datetime.fromtimestamp(session_time, UTC)
    except (OverflowError, ValueError, OSError):
        moment = None
    if moment is None or moment.year not in _YEARS:
        raise FormatError(f"a session time that the format cannot hold: {session_time} seconds since 1970")
    return moment.strftime("%Y-%m-%dT%H-%M-%SZ" if without_colons else "%Y-%m-%dT%H:%M:%SZ").encode()
