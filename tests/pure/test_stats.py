"""Statistics and error logs (docs/format.md 1.3)."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.format.stats import (
    FileStatistic,
    LoggedError,
    SessionStatistics,
    average_statistics,
    format_average,
    format_file_statistic,
    format_file_statistics_header,
    format_logged_error,
    format_session_statistics,
    parse_file_statistic,
    parse_logged_error,
    parse_session_statistics,
    parse_statistics_fields,
)
from tests.strategies import file_statistics, logged_errors, session_statistics, tricky_bytes

STATISTICS = SessionStatistics(
    start_time_s=1700086400.0,
    end_time_s=1795293518.11,
    elapsed_s=95207118.11,
    source_files=11,
    source_file_bytes=8905,
    mirror_files=12,
    mirror_file_bytes=8900,
    new_files=1,
    new_file_bytes=2,
    deleted_files=2,
    deleted_file_bytes=2,
    changed_files=4,
    changed_source_bytes=8900,
    changed_mirror_bytes=8895,
    increment_files=7,
    increment_file_bytes=270,
    total_destination_change_bytes=275,
    errors=0,
)
TEXT = b"""\
StartTime 1700086400.00 (Wed Nov 15 22:13:20 2023)
EndTime 1795293518.11 (Sat Nov 21 20:38:38 2026)
ElapsedTime 95207118.11 (26446 hours 25 minutes 18.11 seconds)
SourceFiles 11
SourceFileSize 8905 (8.70 KB)
MirrorFiles 12
MirrorFileSize 8900 (8.69 KB)
NewFiles 1
NewFileSize 2 (2 bytes)
DeletedFiles 2
DeletedFileSize 2 (2 bytes)
ChangedFiles 4
ChangedSourceSize 8900 (8.69 KB)
ChangedMirrorSize 8895 (8.69 KB)
IncrementFiles 7
IncrementFileSize 270 (270 bytes)
TotalDestinationSizeChange 275 (275 bytes)
Errors 0
"""


def test_session_statistics_both_ways():
    assert format_session_statistics(STATISTICS, UTC) == TEXT
    assert parse_session_statistics(TEXT) == STATISTICS


def test_people_read_times_in_their_zone():
    text = format_session_statistics(STATISTICS, ZoneInfo("Asia/Tokyo"))
    assert b"StartTime 1700086400.00 (Thu Nov 16 07:13:20 2023)\n" in text
    assert parse_session_statistics(text) == STATISTICS


@pytest.mark.parametrize(
    ("size", "pretty"),
    [
        (0, b"0 bytes"),
        (1, b"1 byte"),
        (1023, b"1023 bytes"),
        (1024, b"1.00 KB"),
        (9999, b"9.76 KB"),
        (10239, b"10.00 KB"),
        (10240, b"10.0 KB"),
        (102399, b"100.0 KB"),
        (102400, b"100 KB"),
        (1048575, b"1024 KB"),
        (1048576, b"1.00 MB"),
        (107374182, b"102 MB"),
        (2**40, b"1.00 TB"),
        (2**80, b"1048576 EB"),
        (-5, b"-5 bytes"),
        (-10240, b"-10.0 KB"),
    ],
)
def test_sizes_for_people(size, pretty):
    text = format_session_statistics(SessionStatistics(0, total_destination_change_bytes=size), UTC)
    assert b"TotalDestinationSizeChange %d (%b)\n" % (size, pretty) in text


@pytest.mark.parametrize(
    ("elapsed_s", "pretty"),
    [
        (0, b"0.00 seconds"),
        (1, b"1 second"),
        (60.5, b"1 minute"),
        (61, b"1 minute 1 second"),
        (3601.5, b"1 hour 1.50 seconds"),
        (40669200.03, b"11297 hours"),
        (59.22, b"59.22 seconds"),
        (61.4, b"1 minute 1.40 seconds"),
        (3599.58, b"59 minutes 59.58 seconds"),
        (3601.75, b"1 hour 1.75 seconds"),
        (7301.06, b"2 hours 1 minute 41.06 seconds"),
        (-61.5, b"-1 minute 1.50 seconds"),
    ],
)
def test_durations_for_people(elapsed_s, pretty):
    text = format_session_statistics(SessionStatistics(0, elapsed_s=elapsed_s), UTC)
    assert b"ElapsedTime %.2f (%b)\n" % (elapsed_s, pretty) in text


def test_what_follows_from_the_other_fields():
    assert STATISTICS._replace(elapsed_s=0, total_destination_change_bytes=0).completed() == STATISTICS._replace(
        elapsed_s=STATISTICS.end_time_s - STATISTICS.start_time_s
    )


@given(session_statistics)
def test_round_trip_of_session_statistics(statistics):
    assert parse_session_statistics(format_session_statistics(statistics, UTC)) == statistics


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace(b"(8.70 KB)", b"(8.70 KiB)").replace(b"(2 bytes)", b"(2 B) and more"),
        TEXT.replace(b"Errors 0\n", b"Errors 0"),
        TEXT.replace(b"SourceFiles 11\n", b"\n  SourceFiles   11.00\nFutureKey x\nlonely\n"),
        TEXT.replace(b"\n", b"\r\n"),
    ],
)
def test_session_statistics_of_other_versions(text):
    assert parse_session_statistics(text) == STATISTICS


def test_lacking_statistics_are_nothing():
    assert parse_session_statistics(b"StartTime 5.5\n") == (5.5, *[0] * 17)
    assert parse_session_statistics(b"StartTime 5\nNewFiles 3\n") == SessionStatistics(5.0, new_files=3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "no start time"),
        (b"EndTime 5\n", "no start time"),
        (b"StartTime\n", "not a number"),
        (b"StartTime nan\n", "not a number"),
        (b"StartTime 1e9\n", "not a number"),
        (b"StartTime 5\nErrors many\n", "Errors many"),
        (b"StartTime 5\nErrors " + b"9" * 5000 + b"\n", "not a number"),
    ],
)
def test_session_statistics_that_are_damaged(text, complaint):
    with pytest.raises(FormatError, match=complaint):
        parse_session_statistics(text)


FILES = [
    (FileStatistic(b"", False, 0, 0, None), b". 0 0 0 NA\n"),
    (FileStatistic(b"d/f1", True, 2, 2, 57), b"d/f1 1 2 2 57\n"),
    (FileStatistic(b"sp ace 1", True, None, 0, 57), b"sp ace 1 1 NA 0 57\n"),
    (FileStatistic(b"new\nline", True, 2, None, 0), b"new\\nline 1 2 NA 0\n"),
    (FileStatistic(b"back\\slash\xff", True, 1, None, None), b"back\\\\slash\xff 1 1 NA NA\n"),
]


@pytest.mark.parametrize(("statistic", "line"), FILES)
def test_file_statistic_both_ways(statistic, line):
    assert format_file_statistic(statistic) == line
    assert parse_file_statistic(line) == statistic
    assert parse_file_statistic(line[:-1]) == statistic
    assert parse_file_statistic(line[:-1] + b"\0") == statistic


@given(file_statistics)
def test_round_trip_of_file_statistics(statistic):
    assert parse_file_statistic(format_file_statistic(statistic)) == statistic


@pytest.mark.parametrize("line", [b"", b"f", b"f 1 2 3", b"f 2 1 1 1", b"f 1 1 1 -1", b"f 1 1 1 1.0", b" 1 1 1 1"])
def test_file_statistics_that_are_damaged(line):
    with pytest.raises(FormatError):
        parse_file_statistic(line)


def test_the_header_is_no_statistic():
    header = format_file_statistics_header()
    assert header == (
        b"# Format of each line in file statistics file:\n# Filename Changed SourceSize MirrorSize IncrementSize\n"
    )
    for line in header.splitlines():
        with pytest.raises(FormatError):
            parse_file_statistic(line)


def test_lines_may_end_in_a_nul():
    assert format_file_statistics_header(b"\0") == format_file_statistics_header().replace(b"\n", b"\0")
    line = format_file_statistic(FileStatistic(b"a\nb", True, 1, None, None), b"\0")
    assert line == b"a\\nb 1 1 NA NA\0"
    assert parse_file_statistic(line) == FileStatistic(b"a\nb", True, 1, None, None)
    assert format_logged_error(LoggedError(b"ListError", b"a", b"b"), b"\0") == b"ListError: 'a' b\0"


LOG = [
    (
        LoggedError(b"ListError", b"s3/it's a", b'[Errno 13] Permission denied: b"s3/it\'s a"'),
        b"ListError: 's3/it's a' [Errno 13] Permission denied: b\"s3/it's a\"\n",
    ),
    (
        LoggedError(b"SpecialFileError", b"sock", b"Socket name too long"),
        b"SpecialFileError: 'sock' Socket name too long\n",
    ),
    (LoggedError(b"UpdateError", b"a", b""), b"UpdateError: 'a' \n"),
]


@pytest.mark.parametrize(("error", "line"), LOG)
def test_logged_error_both_ways(error, line):
    assert format_logged_error(error) == line
    assert parse_logged_error(line) == error


def test_line_breaks_become_blanks():
    line = format_logged_error(LoggedError(b"UpdateError", b"a\nb", b"one\ntwo"))
    assert line == b"UpdateError: 'a b' one two\n"


def test_logged_errors_of_version_1():
    assert parse_logged_error(b"ListError some/path it failed\n") == LoggedError(
        b"ListError", b"some/path", b"it failed"
    )


@given(logged_errors)
def test_round_trip_of_logged_errors(error):
    assert parse_logged_error(format_logged_error(error)) == error


def error_or_value(parse, text):
    """Raises anything but FormatError."""
    try:
        return parse(text)
    except FormatError as error:
        return error


@given(st.one_of(st.binary(), tricky_bytes, tricky_bytes.map(b"StartTime 1\nErrors %b".__mod__)))
def test_any_bytes_parse_or_are_a_format_error(text):
    for parse in (parse_session_statistics, parse_file_statistic, parse_logged_error):
        error_or_value(parse, text)


@pytest.mark.parametrize("line", [b"", b"hello", b"OtherError: 'a' b", b"ListError"])
def test_error_logs_that_are_damaged(line):
    assert isinstance(error_or_value(parse_logged_error, line), FormatError)


AVERAGED = """\
--------------[ Average of 2 stat files ]--------------
ElapsedTime 65.50 (1 minute 5.50 seconds)
SourceFiles 2.5
SourceFileSize 61728397.5 (58.9 MB)
Errors 2
-------------------------------------------------------

"""


def test_averages_are_of_what_all_have():
    first = b"StartTime 1\nEndTime 2\nElapsedTime 1\nSourceFiles 2\nSourceFileSize 123456789\nErrors 3\nNewFiles 1\n"
    second = b"StartTime 5\nElapsedTime 130\nSourceFiles 3\nSourceFileSize 6\nErrors 2\n"
    average = average_statistics([parse_statistics_fields(text) for text in (first, second)])
    assert format_average(average) == AVERAGED


def test_the_average_growth_follows_from_the_other_averages():
    texts = [format_session_statistics(SessionStatistics(0, new_file_bytes=new).completed()) for new in (1, 2, 4)]
    average = average_statistics([parse_statistics_fields(text) for text in texts])
    assert average.fields["total_destination_change_bytes"] == average.fields["new_file_bytes"] == 7 / 3
