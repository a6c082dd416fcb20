"""Statistics of a session, of its files, and its error log (docs/format.md 1.3).

Text for people that some tools read too. Reading is tolerant, as versions differ in detail: what stands in
parentheses is ignored, numbers may have a fraction, keys may be unknown or lacking. Writing follows rdiff-backup 2.2.
"""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, tzinfo
from typing import NamedTuple

from histfs.errors import FormatError, printable
from histfs.store.format.metadata import quote_path, unquote_path

_NUMBER = re.compile(rb"-?\d{1,19}(?:\.\d{1,9})?")
_UNITS = ("KB", "MB", "GB", "TB", "PB", "EB")

_FILE_STATISTICS_HEADER = (
    b"# Format of each line in file statistics file:",
    b"# Filename Changed SourceSize MirrorSize IncrementSize",
)


class SessionStatistics(NamedTuple):
    """What a session did. Counts include directories and special files, sizes are of regular files only."""

    start_time_s: float  # since the epoch; written with two decimals
    end_time_s: float = 0
    elapsed_s: float = 0
    source_files: int = 0
    source_file_bytes: int = 0
    mirror_files: int = 0  # of the mirror as it was before the session
    mirror_file_bytes: int = 0
    new_files: int = 0
    new_file_bytes: int = 0
    deleted_files: int = 0
    deleted_file_bytes: int = 0
    changed_files: int = 0
    changed_source_bytes: int = 0
    changed_mirror_bytes: int = 0
    increment_files: int = 0
    increment_file_bytes: int = 0
    total_destination_change_bytes: int = 0
    errors: int = 0

    def completed(self) -> "SessionStatistics":
        """With the two fields that follow from the others: how long it took, how much the repository grew."""
        return self._replace(
            elapsed_s=self.end_time_s - self.start_time_s, total_destination_change_bytes=int(_growth(self._asdict()))
        )


def _growth(fields: dict[str, float]) -> float:
    """How much the repository grew; KeyError where a field is lacking that tells it."""
    came = fields["new_file_bytes"] + fields["changed_source_bytes"] + fields["increment_file_bytes"]
    return came - fields["deleted_file_bytes"] - fields["changed_mirror_bytes"]


_KEYS = {  # in the order of the file
    "start_time_s": b"StartTime",
    "end_time_s": b"EndTime",
    "elapsed_s": b"ElapsedTime",
    "source_files": b"SourceFiles",
    "source_file_bytes": b"SourceFileSize",
    "mirror_files": b"MirrorFiles",
    "mirror_file_bytes": b"MirrorFileSize",
    "new_files": b"NewFiles",
    "new_file_bytes": b"NewFileSize",
    "deleted_files": b"DeletedFiles",
    "deleted_file_bytes": b"DeletedFileSize",
    "changed_files": b"ChangedFiles",
    "changed_source_bytes": b"ChangedSourceSize",
    "changed_mirror_bytes": b"ChangedMirrorSize",
    "increment_files": b"IncrementFiles",
    "increment_file_bytes": b"IncrementFileSize",
    "total_destination_change_bytes": b"TotalDestinationSizeChange",
    "errors": b"Errors",
}
_FIELDS = {key: field for field, key in _KEYS.items()}


def parse_session_statistics(text: bytes) -> SessionStatistics:
    """The statistics in a file session_statistics; lacking ones are 0.

    Raises FormatError for a known key without a number, and without a start time.
    """
    return SessionStatistics(**parse_statistics_fields(text))  # type: ignore[arg-type]  # whole numbers but in _s


def parse_statistics_fields(text: bytes) -> dict[str, float]:
    """The same, of the fields that are there."""
    found: dict[str, float] = {}
    for line in text.split(b"\n"):
        key, *words = line.split(maxsplit=2) or [b""]
        if key not in _FIELDS:
            continue
        if not words or not _NUMBER.fullmatch(words[0]):
            raise FormatError(f"not a number in the session statistics: {printable(line[:80])}")
        field = _FIELDS[key]
        found[field] = float(words[0]) if field.endswith("_s") else int(words[0].partition(b".")[0])
    if "start_time_s" not in found:
        raise FormatError("the session statistics have no start time")
    return found


class Average(NamedTuple):
    """Of session statistics, so many. `fields`: those that all of them have, but for the moments, by their names."""

    sessions: int
    fields: dict[str, float]


def average_statistics(statistics: Sequence[dict[str, float]]) -> Average:
    """The average of at least one."""
    count = len(statistics)
    fields = {
        field: sum(each[field] for each in statistics) / count
        for field in _KEYS
        if not field.endswith("_time_s") and all(field in each for each in statistics)
    }
    if "total_destination_change_bytes" in fields:
        with suppress(KeyError):
            fields["total_destination_change_bytes"] = _growth(fields)
    return Average(count, fields)


def format_average(average: Average) -> str:
    """The text that rdiff-backup makes of it, with all decimals; of errors it tells whole ones."""
    lines = [f"--------------[ Average of {average.sessions} stat files ]--------------"]
    for field, value in average.fields.items():
        key = _KEYS[field].decode()
        if field.endswith("_s"):
            lines.append(f"{key} {value:.2f} ({_duration(value)})")
        elif field.endswith("_bytes"):
            lines.append(f"{key} {value} ({format_size(round(value))})")
        else:
            lines.append(f"{key} {int(value) if field == 'errors' else value}")
    return "\n".join([*lines, "-" * 55, "", ""])


def format_session_statistics(statistics: SessionStatistics, zone: tzinfo | None = None) -> bytes:
    """The contents of a file session_statistics; people read its times in `zone` (None: the system's)."""
    lines = (_format_line(key, field, getattr(statistics, field), zone) for field, key in _KEYS.items())
    return b"".join(lines)


def _format_line(key: bytes, field: str, value: float, zone: tzinfo | None) -> bytes:
    if field.endswith("_time_s"):
        return b"%b %.2f (%b)\n" % (key, value, datetime.fromtimestamp(int(value), zone).ctime().encode())
    if field.endswith("_s"):
        return b"%b %.2f (%b)\n" % (key, value, _duration(value).encode())
    if field.endswith("_bytes"):
        return b"%b %d (%b)\n" % (key, value, format_size(int(value)).encode())
    return b"%b %d\n" % (key, value)


def _duration(seconds: float) -> str:
    """`1 hour 2 minutes 3.45 seconds`; parts that are 0 are left out, and less than a second behind another part."""
    minutes, second = divmod(abs(seconds), 60)
    hours, minute = divmod(int(minutes), 60)
    parts = [_counted(count, unit) for count, unit in ((hours, "hour"), (minute, "minute")) if count]
    if second == 1:
        parts.append("1 second")
    elif second > 1 or not parts:
        parts.append(f"{second:.2f} seconds")
    return ("-" if seconds < 0 else "") + " ".join(parts)


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def format_size(size_bytes: int) -> str:
    """`1 byte`, `1023 bytes`, `1.00 KB`, `12.3 MB`, `123 GB`: three digits, units of 1024."""
    amount = float(abs(size_bytes))
    if amount < 1024:
        return _counted(size_bytes, "byte")
    power = min(int(math.log2(amount)) // 10, len(_UNITS))
    amount /= 1024**power
    decimals = 2 if amount < 10 else 1 if amount < 100 else 0
    return f"{'-' if size_bytes < 0 else ''}{amount:.{decimals}f} {_UNITS[power - 1]}"


class FileStatistic(NamedTuple):
    """One line of file_statistics. A size is None where the file does not exist, 0 where it is not regular."""

    path: bytes
    is_changed: bool
    source_bytes: int | None
    mirror_bytes: int | None
    increment_bytes: int | None  # of the increment as it is stored


_FILE_STATISTIC = re.compile(rb"(.+) ([01]) (\d{1,19}|NA) (\d{1,19}|NA) (\d{1,19}|NA)", re.DOTALL)


def parse_file_statistic(line: bytes) -> FileStatistic:
    """One line, with or without its newline (or NUL); read from the right, as a path may hold blanks.

    Raises FormatError, also for the two lines of the header.
    """
    match = _FILE_STATISTIC.fullmatch(line.rstrip(b"\n\0"))
    if match is None:
        raise FormatError(f"not a line of file statistics: {printable(line[:80])}")
    sizes = (None if size == b"NA" else int(size) for size in match.groups()[2:])
    return FileStatistic(unquote_path(match[1]), match[2] == b"1", *sizes)


def format_file_statistics_header(end: bytes = b"\n") -> bytes:
    """The two lines before those of the files, each with `end`: a newline or a NUL."""
    return b"".join(line + end for line in _FILE_STATISTICS_HEADER)


def format_file_statistic(statistic: FileStatistic, end: bytes = b"\n") -> bytes:
    """One line with its `end`: a newline or a NUL."""
    sizes = (b"NA" if size is None else b"%d" % size for size in statistic[2:])
    return b" ".join((quote_path(statistic.path), b"%d" % statistic.is_changed, *sizes)) + end


class LoggedError(NamedTuple):
    """One line of error_log: something went wrong with one file of the source, and the session went on."""

    type: bytes  # b"ListError", b"UpdateError" or b"SpecialFileError"
    path: bytes  # as it was shown to people
    message: bytes


_LOGGED_ERROR = re.compile(rb"(ListError|UpdateError|SpecialFileError)(?:: '(.*?)'| (\S+)) (.*)", re.DOTALL)


def parse_logged_error(line: bytes) -> LoggedError:
    """One line, with or without its newline (or NUL), also as version 1.2 wrote it. Raises FormatError.

    The path is not quoted: one that holds `' ` is cut there.
    """
    match = _LOGGED_ERROR.fullmatch(line.rstrip(b"\n\0"))
    if match is None:
        raise FormatError(f"not a line of an error log: {printable(line[:80])}")
    return LoggedError(match[1], match[3] if match[2] is None else match[2], match[4])


def format_logged_error(error: LoggedError, end: bytes = b"\n") -> bytes:
    """One line with its `end`, a newline or a NUL; line breaks within become blanks."""
    return b"%b: '%b' %b" % (error.type, *(part.replace(b"\n", b" ") for part in error[1:])) + end
