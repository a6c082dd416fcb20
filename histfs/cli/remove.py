"""`histfs remove increments --older-than TIME REPO`: let old sessions go."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from histfs.cli import general, options
from histfs.cli.output import Output, counted, moment
from histfs.cli.progress import Expected, progress
from histfs.errors import EXIT_WARNING, UsageError, printable, printable_time

if TYPE_CHECKING:
    from histfs.store.repository import Repository

DESCRIPTION = """\
Take history away for good: `increments` removes old sessions, `file` removes a
path from all of them."""

EPILOG = """\
examples:
  histfs remove increments --older-than 1Y /mnt/disk/home
  histfs remove file /mnt/disk/home/anna/huge.iso

`histfs remove increments --help` and `histfs remove file --help` tell more."""

INCREMENTS_DESCRIPTION = """\
Remove all sessions before a time, and everything on the disk that only they
need. Younger sessions stay as they are, and the newest one always stays.

If that is more than one session, they are listed, and nothing is done without
--force, which stands before the verb.

The time this takes depends on how much is removed, not on how much there is. It
can be stopped at any moment: no other session is harmed, and the same command
removes the rest."""

INCREMENTS_EPILOG = f"""\
{options.TIMES}
Here the sessions before TIME are meant, and the one at TIME itself stays.

examples:
  histfs remove increments --older-than 1Y /mnt/disk/home
  histfs --force remove increments --older-than 2024-05-03 /mnt/disk/home
  histfs --force remove increments --older-than 9B --size /mnt/disk/home

exit codes:
  0  the sessions were removed
  1  nothing was removed: several sessions and no --force, no such time, ...
  2  there was nothing to remove: no session is that old"""

FILE_DESCRIPTION = """\
Remove files or directories from the newest state and from all sessions, as if
they had never been backed up: contents, records, attributes, statistics. If the
source still has them, the next session brings them back.

It can be stopped at any moment: a session shows all of a path or nothing of it,
nothing else is harmed, and the same command removes the rest."""

FILE_EPILOG = """\
The lists of all sessions are read, and those that name the path are written
anew. If one is damaged, nothing is done.

examples:
  histfs remove file --dry-run /mnt/disk/home/anna/huge.iso
  histfs remove file /mnt/disk/home/anna/huge.iso /mnt/disk/home/anna/tmp

exit codes (added up):
  0  the paths were removed
  1  nothing was removed: not in a repository, all of one, a damaged list, ...
  2  some paths, each named, are in no session; all others were removed"""

IF_STOPPED = "the sessions that were not removed are intact; the same command removes the rest"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(verbs, "remove", "take history away", description=DESCRIPTION, epilog=EPILOG)
    subjects = parser.add_subparsers(metavar="increments|file", required=True)
    increments = options.add_verb(
        subjects, "increments", "remove old sessions", description=INCREMENTS_DESCRIPTION, epilog=INCREMENTS_EPILOG
    )
    increments.add_argument("--older-than", metavar="TIME", required=True, help="remove the sessions before this time")
    options.add_size(increments)
    options.add_json(increments)
    increments.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    increments.set_defaults(run=run_increments, if_stopped=IF_STOPPED, takes_force=True)
    file = options.add_verb(
        subjects, "file", "remove paths from all sessions", description=FILE_DESCRIPTION, epilog=FILE_EPILOG
    )
    file.add_argument("--dry-run", action="store_true", help="only say which files on the disk would be touched")
    options.add_json(file)
    file.add_argument(
        "paths", metavar="REPO/path", nargs="+", type=options.path, help="what is, or was, in a repository"
    )
    file.set_defaults(run=run_file, if_stopped="the same command removes the rest")


def _described(repository: "Repository", sessions: list[int], *, with_sizes: bool) -> list[str]:
    """Each of the sessions, by the name that --at takes."""
    from histfs.store.when import snapshot_names

    names = snapshot_names(repository.sessions(), None)
    if not with_sizes:
        return [names[time] for time in sessions]
    from histfs.store.format.stats import format_size
    from histfs.store.inventory import increment_sizes

    sizes = increment_sizes(repository)
    return [f"{names[time]} ({format_size(sizes.get(time, 0))})" for time in sessions]


def _increments(repository: "Repository", old: list[int]) -> int:
    """About how many files keep the sessions `old`, the oldest ones: what those that followed have counted."""
    following = map(repository.statistics, repository.sessions()[1 : len(old) + 1])
    return sum(statistics.increment_files for statistics in following if statistics is not None)


def run_increments(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.remove import remove_sessions
    from histfs.store.repository import Repository
    from histfs.store.when import parse_when

    with Repository.open(arguments.repository) as repository:
        times = repository.sessions()
        before = min(parse_when(arguments.older_than, now=arguments.now, times=times, zone=None), times[-1])
        old = [time for time in times if time < before]
        described = _described(repository, old, with_sizes=arguments.size)
        expected = Expected(_increments(repository, old))
    if len(old) > 1 and not arguments.force:
        raise UsageError(
            f"{len(old)} sessions are older: {', '.join(described)}",
            advice="use --force, before the verb, to remove them",
        )
    general.keep_log(arguments, output, arguments.repository, "remove")
    with progress(output, "removing", arguments.progress, expected) as step:
        tell = (lambda: None) if step is None else lambda: step(0)
        removed = remove_sessions(arguments.repository, before, fsync=arguments.fsync, tell=tell)
    if removed.files:
        output.begin_log()
    if options.wants_document(arguments):
        output.document({"removed": [moment(time) for time in removed.sessions], "files": removed.files})
    if removed.sessions:
        output.tell(f"removed {'; '.join(described)}")
        return 0
    if removed.files:
        output.tell(f"{counted(removed.files)} that an earlier removal had left were removed")
        return 0
    output.note(f"no session is older than {printable_time(before)}")
    return EXIT_WARNING


def run_file(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.remove import remove_paths

    document: dict[str, list[str]] = {"removed": [], "not_found": [], "files_rewritten": [], "files_removed": []}
    for root, paths in _by_repository(arguments.paths).items():
        if not arguments.dry_run:
            general.keep_log(arguments, output, root, "remove")
        with progress(output, "reading lists", arguments.progress, Expected()) as step:
            tell = (lambda _: None) if step is None else step
            outcome = remove_paths(root, paths, dry_run=arguments.dry_run, fsync=arguments.fsync, tell=tell)
        found = sorted(set(paths) - set(outcome.missing))
        if found:
            output.begin_log()
        if arguments.dry_run and not options.wants_document(arguments):
            output.lines(f"would rewrite {printable(root)}/{printable(path)}" for path in outcome.rewritten)
            output.lines(f"would remove {printable(root)}/{printable(path)}" for path in outcome.removed)
        for path in outcome.missing:
            output.warn(f"{printable(root / os.fsdecode(path))}: was never in the repository")
        for path in found if not arguments.dry_run else ():
            output.tell(f"removed {printable(root / os.fsdecode(path))} from all sessions")
        output.close_log()
        for kind, names in zip(document, (found, outcome.missing, outcome.rewritten, outcome.removed), strict=True):
            document[kind] += [str(root / os.fsdecode(name)) for name in names]
    if options.wants_document(arguments):
        output.document({**document, "dry_run": arguments.dry_run})
    return EXIT_WARNING if document["not_found"] else 0


def _by_repository(paths: list[Path]) -> dict[Path, list[bytes]]:
    """The paths inside of each repository. Raises UsageError before anything is done, NotARepositoryError."""
    from histfs.store.layout import DATA
    from histfs.store.repository import find_repository

    found: dict[Path, list[bytes]] = {}
    for path in paths:
        root, below = find_repository(path)
        if not below:
            raise UsageError("is the repository itself, and cannot be removed from it", path=path)
        if below.split(b"/")[0] == DATA:
            raise UsageError("is the history itself, and cannot be removed from it", path=path)
        found.setdefault(root, []).append(below)
    return found
