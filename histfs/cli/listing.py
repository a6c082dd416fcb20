"""`histfs list sessions REPO` and `histfs list files [--at TIME] REPO[/sub]`: what is in a repository."""

import argparse
from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import TYPE_CHECKING

from histfs.cli import list_increments, list_versions, options
from histfs.cli.output import Output, iso_time, moment
from histfs.errors import NotFoundError

if TYPE_CHECKING:
    from histfs.store.entry import Entry

DESCRIPTION = """\
Show what is in a repository: the sessions it has, the increments that lead back
to them, the files of one moment, or what became of one. The repository is only
read."""

EPILOG = """\
examples:
  histfs list sessions /mnt/disk/home
  histfs list increments --size /mnt/disk/home
  histfs list files --at 3D /mnt/disk/home/anna

`histfs list sessions --help` and the like tell more."""

SESSIONS_DESCRIPTION = """\
Print a line for each finished session, the oldest first: its name (the folder's
name in the mount; `--at` takes it), its time with the offset from UTC, and the
same in seconds since 1970. The newest is marked."""

SESSIONS_EPILOG = """\
A session that has not finished, because it still runs or was cut off, is named
on standard error only.

examples:
  histfs list sessions /mnt/disk/home
  histfs list sessions --utc /mnt/disk/home | tail -n 3

exit codes:
  0  the sessions were listed
  1  REPO is not a repository, or cannot be read"""

FILES_DESCRIPTION = """\
Print the path of everything that was there at a moment in the past, one a line,
relative to the repository ("." is its root). With REPO/sub: what lies at `sub`.

With --changed-since: what is otherwise in the newest session than at a moment
in the past, each path behind the word `changed`, `new` or `deleted`.

On a terminal, control characters in names show as \\n, \\x1b and the like, and a
backslash as two. Into a pipe or a file, names go as they are; use --null if
names may contain line breaks."""

FILES_EPILOG = f"""\
{options.TIMES}

examples:
  histfs list files --at 3D /mnt/disk/home/anna
  histfs list files --at 0B /mnt/disk/home | grep -i thesis
  histfs list files --changed-since yesterday /mnt/disk/home
  histfs list files --null /mnt/disk/home | xargs -0 -n 1 echo

exit codes:
  0  the files were listed
  1  there is no such repository, session or path, or it cannot be read
  4  records of the session are damaged, each is named: the list is incomplete"""

IF_STOPPED = "the list is incomplete"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs,
        "list",
        "show sessions, increments, or files of a repository",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    subjects = parser.add_subparsers(metavar="sessions|increments|files|versions", required=True)
    sessions = options.add_verb(
        subjects, "sessions", "show which sessions there are", description=SESSIONS_DESCRIPTION, epilog=SESSIONS_EPILOG
    )
    sessions.add_argument(
        "--utc", action="store_true", help="show UTC, not local time; add a Z to such a name to use it with --at"
    )
    options.add_json(sessions)
    sessions.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    sessions.set_defaults(run=run_sessions, if_stopped=IF_STOPPED)
    list_increments.add_to(subjects)
    files = options.add_verb(
        subjects, "files", "show which files there were", description=FILES_DESCRIPTION, epilog=FILES_EPILOG
    )
    moment = files.add_mutually_exclusive_group()
    options.add_at(moment)
    moment.add_argument("--changed-since", metavar="TIME", help="what is otherwise now, in the newest session")
    options.add_json(files)
    files.add_argument("--null", action="store_true", help="raw names, each ended by a NUL, for `xargs -0`")
    files.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    files.set_defaults(run=run_files, if_stopped=IF_STOPPED)
    list_versions.add_to(subjects)


def run_sessions(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.repository import Repository
    from histfs.store.when import snapshot_names

    zone = UTC if arguments.utc else None
    with Repository.open(arguments.repository) as repository:
        times = repository.sessions()
        unfinished = repository.unfinished()
    names = snapshot_names(times, zone)
    if options.wants_document(arguments):
        sessions = [{"name": names[time], "time": iso_time(time, zone), "seconds": time} for time in times]
        output.document({"sessions": sessions, "unfinished": None if unfinished is None else moment(unfinished)})
        return 0
    width = max(map(len, names.values()), default=0)
    output.lines(
        f"{names[time]:{width}}  {iso_time(time, zone)}  {time}{'  newest' if time == times[-1] else ''}"
        for time in times
    )
    if unfinished is not None:
        output.note(
            f"the session of {iso_time(unfinished, zone)} has not finished: it still runs, or it was cut off; "
            "then the next `histfs backup` undoes it, or `histfs regress` does at once"
        )
    return 0


def run_files(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.changed_since is not None:
        return _run_changes(arguments, output)
    with options.open_past(arguments) as past:
        if options.wants_document(arguments):
            with output.long_document() as document:
                for described in _described(past, output):
                    document.add(described)
            return 0
        output.names(_paths(past, output), null=arguments.null)
    return 0


def _run_changes(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.inventory import changes_since

    arguments.at = arguments.changed_since
    with options.open_past(arguments) as past:
        changes = _named_changes(changes_since(past.repository, past.path, past.session_time, output.report))
        if options.wants_document(arguments):
            with output.long_document() as document:
                for word, path in changes:
                    document.add({"path": path or b".", "change": word})
        else:
            output.names((b"%-7b %b" % (word.encode(), path or b".") for word, path in changes), null=arguments.null)
    return 0


def _named_changes(changes: Iterable[tuple["Entry | None", "Entry | None"]]) -> Iterator[tuple[str, bytes]]:
    for old, new in changes:
        if new is None:
            yield "deleted", b"" if old is None else old.path
        else:
            yield "new" if old is None else "changed", new.path


def _paths(past: options.Past, output: Output) -> Iterator[bytes]:
    return (entry.path for entry in _entries(past, output))


def _described(past: options.Past, output: Output) -> Iterator[dict[str, object]]:
    for entry in _entries(past, output):
        mtime_s = entry.mtime_s if entry.kind.has_mtime else None
        described = {"path": entry.path or b".", "type": entry.kind.value, "mode": f"{entry.mode:04o}"}
        yield described | {"size": entry.size_bytes, "mtime": mtime_s, "uid": entry.uid, "gid": entry.gid}


def _entries(past: options.Past, output: Output) -> "Iterator[Entry]":
    entry = None
    for entry in past.repository.snapshot(past.session_time).entries(past.path, output.report):
        yield entry
    if entry is None:
        raise NotFoundError("was not there at this time", path=past.path, at=past.session_time)
