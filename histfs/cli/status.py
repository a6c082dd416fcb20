"""`histfs status [--since TIME] REPO`: how a repository is, at a glance."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histfs.cli import options
from histfs.cli.output import Output, counted, iso_time, moment, roughly
from histfs.errors import EXIT_ERROR, EXIT_FILE_ERROR, EXIT_FILE_WARNING, EXIT_WARNING, printable

if TYPE_CHECKING:
    from histfs.store.status import Status

DESCRIPTION = """\
Tell at once how a repository is: the last good session, whether one runs now,
whether one was cut off and what `histfs backup` will do about it, and such
damage as shows without reading what is in files. Nothing is changed, and
nothing is kept from starting. Whether files are what they were tells
`histfs verify --all`, and `histfs repair` makes anew what can be."""

EPILOG = """\
--since takes what --at takes: see `histfs restore --help`.

examples:
  histfs status /mnt/disk/home
  histfs status --since 26h /mnt/disk/home || echo "see to the backup"
  histfs status --json /mnt/disk/home

exit codes (added up):
  0  all is well; a session may be running
  1  REPO is no repository, cannot be read, or has no finished session
  2  a session was cut off, none has finished since --since, or a clock was off
  4  the repository is damaged, each place is named
  8  files were left out of the last session, or something else went wrong"""

IF_STOPPED = "how the repository is was not found out"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(verbs, "status", "tell how a repository is", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--since", metavar="TIME", help="warn unless a session has finished since then")
    options.add_json(parser)
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.status import status
    from histfs.store.when import parse_when

    found = status(arguments.repository)
    last = found.sessions[-1] if found.sessions else None
    is_late = False
    if arguments.since is not None:
        since = parse_when(arguments.since, now=arguments.now, times=found.sessions, zone=None)
        is_late = last is None or last < since
    if options.wants_document(arguments):
        output.document(_document(found, arguments.now, is_late=is_late))
    else:
        output.lines(_lines(found, arguments.now))
        if _is_to_come(found, arguments.now):
            output.warn(
                "the last session is of a time that is still to come, so no other can follow it;"
                " check the clock; if that was wrong then, `histfs --force regress` undoes that session"
            )
        if is_late:
            output.warn(f"no session has finished since {iso_time(since, None)}")
        for problem in found.damage:
            output.warn(problem)
        if found.damage:
            output.note(
                "`histfs verify --all` tells what is lost of contents, `histfs repair --dry-run` what can be made anew"
            )
    return _exit_code(found, is_late=is_late or _is_to_come(found, arguments.now))


def _is_to_come(found: "Status", now: int) -> bool:
    """Whether the clock was wrong at the last session, or is now."""
    return bool(found.sessions) and found.sessions[-1] > now


def _exit_code(found: "Status", *, is_late: bool) -> int:
    exit_code = 0 if found.sessions else EXIT_ERROR
    if found.is_broken or is_late:
        exit_code |= EXIT_WARNING
    if found.damage:
        exit_code |= EXIT_FILE_ERROR
    if found.statistics is not None and found.statistics.errors:
        exit_code |= EXIT_FILE_WARNING
    return exit_code


def _lines(found: "Status", now: int) -> Iterator[str]:
    from histfs.store.format.stats import format_size

    if found.sessions:
        last = found.sessions[-1]
        ago = "still to come" if last > now else f"{roughly(now - last)} ago"
        yield f"last session:  {iso_time(last, None)}, {ago}"
        statistics = found.statistics
        if statistics is not None:
            size, took = format_size(statistics.source_file_bytes), roughly(statistics.elapsed_s)
            errors = f"; {statistics.errors} could not be read, or changed meanwhile" if statistics.errors else ""
            yield f"  its files:   {counted(statistics.source_files)}, {size}, in {took}{errors}"
        yield f"sessions:      {len(found.sessions)}, the first of {iso_time(found.sessions[0], None)}"
    else:
        yield "last session:  none has finished"
    if found.writer is not None:
        says = f" ({printable(found.writer.says)})" if found.writer.says else ""
        yield f"running:       process {found.writer.pid}, since {iso_time(int(found.writer.since_s), None)}{says}"
    else:
        yield "running:       nothing"
    if found.is_broken:
        which = (
            "the first session" if found.unfinished is None else f"the session of {iso_time(found.unfinished, None)}"
        )
        yield f"cut off:       {which}"
    yield f"next backup:   {_NEXT[_next_backup(found, now)]}"
    yield f"damage:        {len(found.damage) or 'none'} to be seen from outside"


# What the next `histfs backup` does: the word for programs, the sentence for people.
_NEXT = {
    "adds": "adds a session",
    "waits": "is refused while this runs",
    "undoes": "undoes the session that was cut off, then adds one",
    "resumes": "goes on with the first session, which was cut off",
    "refuses": "refuses, because of the damage",
    "is_early": "refuses, as long as the last session is of a time that is still to come",
}


def _next_backup(found: "Status", now: int) -> str:
    if found.writer is not None:
        return "waits"
    if not found.can_go_on:
        return "refuses"
    if _is_to_come(found, now):
        return "is_early"
    if not found.is_broken:
        return "adds"
    return "resumes" if found.is_first else "undoes"


def _document(found: "Status", now: int, *, is_late: bool) -> dict[str, object]:
    statistics, writer = found.statistics, found.writer
    last: dict[str, object] | None = None
    if found.sessions:
        last = moment(found.sessions[-1]) | {"age_seconds": max(0, now - found.sessions[-1])}
        if statistics is not None:
            last |= {
                "files": statistics.source_files,
                "bytes": statistics.source_file_bytes,
                "elapsed_seconds": statistics.elapsed_s,
                "errors": statistics.errors,
            }
    return {
        "last": last,
        "is_late": is_late,
        "sessions": len(found.sessions),
        "first": moment(found.sessions[0]) if found.sessions else None,
        "running": None if writer is None else {"pid": writer.pid, "says": writer.says} | moment(int(writer.since_s)),
        "is_broken": found.is_broken,
        "unfinished": None if found.unfinished is None else moment(found.unfinished),
        "next_backup": _next_backup(found, now),
        "damage": [str(problem) for problem in found.damage],
    }
