"""`histfs backup SRC REPO`: add a session to a repository."""

import argparse
from typing import TYPE_CHECKING

from histfs.cli import general, options, selection
from histfs.cli.output import Output, counted, moment, with_units
from histfs.cli.progress import of_last_session, progress
from histfs.errors import EXIT_FILE_ERROR, EXIT_FILE_WARNING, EXIT_WARNING, printable

if TYPE_CHECKING:
    from histfs.store.backup import BackupOutcome

DESCRIPTION = """\
Copy the state of SRC into REPO, as a new session. Afterwards REPO holds a plain
copy of SRC, and what is needed to go back to every earlier session. REPO is
made if it does not exist. SRC is only read.

A session that was cut off (power, full disk, kill) is undone first, by itself;
if its process seems to be alive, only with --force, before the verb. Of a first
session the files that it has copied are kept. Every finished session stays
readable all the time.

A directory with other things in it is refused, unless --force stands before the
verb: then it is emptied, and becomes the repository."""

EPILOG = """\
examples:
  histfs backup /home /mnt/disk/home
  histfs --quiet backup /etc /mnt/disk/etc     (for cron: silent if all is well)

exit codes (added up):
  0  all of SRC is in the repository
  1  no session was made; the repository is as it was before
  2  the session is complete, with a warning: one before it was undone, ...
  4  the session is complete, without files that cannot be read or are damaged
  8  the session is complete, without files that changed or went meanwhile"""

IF_STOPPED = "every finished session is intact, and the next `histfs backup` undoes what this one had begun"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(verbs, "backup", "add a session to a repository", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("source", metavar="SRC", type=options.path, help="the directory to back up")
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository; made if missing")
    parser.add_argument(
        "--create-full-path", action="store_true", help="make the directories that REPO lies in, too, if missing"
    )
    parser.add_argument(
        "--checksum", action="store_true", help="compare the contents also of files whose size and times agree"
    )
    options.add_compression(parser, has_effect=True)
    options.add_links(
        parser,
        hard_links="record which names are one file, and link them in REPO (the default)",
        compare_inode="take a file with several links for changed if its inode number is another (the default)",
    )
    statistics = parser.add_argument_group("statistics")
    options.add_switch(statistics, "file-statistics", "write what became of each file to REPO (the default)")
    options.add_switch(
        statistics, "print-statistics", "print the session's statistics instead of the summary", default=False
    )
    options.add_owners(parser)
    options.add_extras(parser, "record")
    parser.add_argument(
        "--never-drop-acls", action="store_true", help="for scripts of rdiff-backup: no entry of a list is ever dropped"
    )
    selection.add_to(parser)
    options.add_json(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED, takes_force=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.backup import backup
    from histfs.store.format.stats import format_session_statistics
    from histfs.store.naming import Naming
    from histfs.store.plan import Links
    from histfs.store.records import Fate, RecordStyle

    line_end = b"\0" if arguments.null_separator else b"\n"
    general.keep_log(arguments, output, arguments.repository, "backup")
    with progress(output, "backing up", arguments.progress, of_last_session(arguments.repository)) as step:

        def tell(fate: Fate, path: bytes, size_bytes: int, files: int) -> None:
            output.begin_log()
            if fate is not Fate.SAME:
                output.name(fate.value, path)
            if step is not None:
                step(size_bytes, files)

        outcome = backup(
            arguments.source,
            arguments.repository,
            now=arguments.now,
            report=output.report,
            extras=options.extras(arguments),
            force=arguments.force,
            with_parents=arguments.create_full_path,
            fsync=arguments.fsync,
            naming=Naming(arguments.chars_to_quote, arguments.use_compatible_timestamps),
            links=Links(arguments.hard_links, arguments.compare_inode),
            owners=options.owners(arguments),
            selection=selection.read(arguments, arguments.source, output),
            style=RecordStyle(arguments.file_statistics, line_end, options.compression(arguments)),
            tell=tell,
            checksum=arguments.checksum,
            on_block=None if step is None else step.block,
        )
    exit_code = _exit_code(outcome)
    if outcome.regressed:
        output.warn(_what_was_before(outcome.kept_files))
    if outcome.emptied:
        output.warn(f"what else was in {printable(arguments.repository)} was removed")
    statistics = outcome.statistics
    if options.wants_document(arguments):
        counts = with_units(statistics._asdict()) | moment(int(statistics.start_time_s))
        trouble = {"source_errors": outcome.source_errors, "source_warnings": outcome.source_warnings}
        before = {"regressed": outcome.regressed, "kept_files": outcome.kept_files, "emptied": outcome.emptied}
        output.document({"statistics": counts} | before | trouble)
    elif arguments.print_statistics:
        output.insist(format_session_statistics(statistics).decode("utf-8", "backslashreplace"))
    else:
        output.tell(
            f"{counted(statistics.source_files)}: {statistics.new_files} new, {statistics.changed_files} changed, "
            f"{statistics.deleted_files} deleted; {statistics.source_file_bytes} bytes"
        )
    return exit_code


def _exit_code(outcome: "BackupOutcome") -> int:
    exit_code = EXIT_WARNING if outcome.regressed or outcome.emptied else 0
    if outcome.source_errors:
        exit_code |= EXIT_FILE_ERROR
    if outcome.source_warnings:
        exit_code |= EXIT_FILE_WARNING
    return exit_code


def _what_was_before(kept_files: int) -> str:
    became = f"was gone on with ({counted(kept_files)} that it had copied)" if kept_files else "was undone"
    return f"the session before this one had been cut off; it {became}, and this one is complete"
