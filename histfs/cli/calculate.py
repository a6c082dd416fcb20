"""`histfs calculate average FILE...` and `histfs calculate statistics REPO`: what the statistics of sessions tell."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histfs.cli import options
from histfs.cli.output import Output, iso_time, with_units
from histfs.errors import EXIT_WARNING, NotFoundError, printable

if TYPE_CHECKING:
    from histfs.store.calculate import Calculated, Ranking

DESCRIPTION = """\
Calculate from the statistics that every session leaves: their average, and
where in the tree most happens. The repository is only read."""

EPILOG = """\
`histfs calculate FILE ...` is `histfs calculate average FILE ...`.

examples:
  histfs calculate statistics /mnt/disk/home

`histfs calculate average --help` and `histfs calculate statistics --help` tell
more."""

AVERAGE_DESCRIPTION = """\
Print the average of the given files session_statistics.*.data, which lie in
REPO/rdiff-backup-data, in the form that rdiff-backup gives it. Fields that a
file lacks are left out."""

AVERAGE_EPILOG = """\
examples:
  histfs calculate average /mnt/disk/home/rdiff-backup-data/session_statistics.*

exit codes:
  0  the average was printed
  1  a file cannot be read, or has no statistics in it"""

STATISTICS_DESCRIPTION = """\
Print the average of a repository's sessions, and which files and directories
take most: by their size in the source, by the size of their increments, and by
how often files changed. What is too small for a place of its own is counted
with its directory."""

STATISTICS_EPILOG = f"""\
{options.TIMES}

examples:
  histfs calculate statistics /mnt/disk/home
  histfs calculate statistics --begin-time 4W --minimum-ratio .01 /mnt/disk/home

exit codes (added up):
  0  the statistics were printed
  1  REPO is not a repository, or cannot be read
  2  there are no statistics of that time
  4  some statistics are damaged, each is named: they were left out"""

IF_STOPPED = "nothing was calculated"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "calculate", "calculate from the statistics of sessions", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("--method", choices=["average"], help=argparse.SUPPRESS)  # of rdiff-backup 2.2
    parser.default_verb = "average"
    subjects = parser.add_subparsers(metavar="average|statistics", required=True)
    average = options.add_verb(
        subjects, "average", "print the average of sessions", description=AVERAGE_DESCRIPTION, epilog=AVERAGE_EPILOG
    )
    options.add_json(average)
    average.add_argument("files", metavar="FILE", nargs="+", type=options.path, help="a file session_statistics")
    average.set_defaults(run=run_average, if_stopped=IF_STOPPED)
    statistics = options.add_verb(
        subjects,
        "statistics",
        "print the average, and where most happens",
        description=STATISTICS_DESCRIPTION,
        epilog=STATISTICS_EPILOG,
    )
    statistics.add_argument("--begin-time", metavar="TIME", help="leave out sessions before that")
    statistics.add_argument("--end-time", metavar="TIME", help="leave out sessions after that")
    statistics.add_argument(
        "--minimum-ratio",
        metavar="RATIO",
        type=_ratio,
        default=0.05,
        help="what part of the whole is enough for a place of its own, from 0 to 1 (default: 0.05)",
    )
    options.add_json(statistics)
    statistics.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    statistics.set_defaults(run=run_statistics, if_stopped=IF_STOPPED)


def run_average(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.calculate import average
    from histfs.store.format.stats import format_average

    found = average(arguments.files)
    if options.wants_document(arguments):
        output.document({"files": found.sessions, "average": with_units(found.fields)})
    else:
        output.lines(format_average(found).splitlines())
    return 0


def run_statistics(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.calculate import calculate
    from histfs.store.format.stats import format_average
    from histfs.store.repository import Repository

    with Repository.open(arguments.repository) as repository:
        begin, end = (
            None if text is None else _moment(text, arguments.now, repository.sessions())
            for text in (arguments.begin_time, arguments.end_time)
        )
        try:
            found = calculate(repository, begin, end, arguments.minimum_ratio, report=output.report)
        except NotFoundError as error:
            output.warn(error)
            return EXIT_WARNING
    if options.wants_document(arguments):
        output.document(_document(found))
    else:
        output.lines(["Session statistics:", *format_average(found.average).splitlines()])
        for title, ranking in _rankings(found).items():
            output.lines(_table(title, ranking))
    return 0


def _moment(text: str, now: int, times: tuple[int, ...]) -> int:
    from histfs.store.when import parse_when

    return parse_when(text, now=now, times=times, zone=None)


def _rankings(found: "Calculated") -> "dict[str, Ranking]":
    return {
        "source size": found.source_bytes,
        "increment size": found.increment_bytes,
        "number of files changed": found.changed_files,
    }


def _table(title: str, ranking: "Ranking") -> Iterator[str]:
    heading = f"Top directories by {title} (percent of total)"
    yield from ("", heading, "-" * len(heading))
    for share in ranking.shares:
        yield f"{printable(share.path)} ({ranking.percent(share):.1f}%)"


def _document(found: "Calculated") -> dict[str, object]:
    return {
        "sessions": [{"time": iso_time(time, None), "seconds": time} for time in found.sessions],
        "average": with_units(found.average.fields),
        "top": {
            title.replace(" ", "_"): [
                {"path": share.path or b".", "value": share.value, "percent": ranking.percent(share)}
                for share in ranking.shares
            ]
            for title, ranking in _rankings(found).items()
        },
    }


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1
    if not 0 <= ratio <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, not {printable(text)!r}")
    return ratio
