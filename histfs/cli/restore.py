"""`histfs restore [--at TIME] REPO[/sub] TARGET`: copy a state of the past out of a repository."""

import argparse
from collections import Counter
from contextlib import ExitStack

from histfs.cli import options, selection
from histfs.cli.output import Output, counted, iso_time, moment
from histfs.cli.progress import reading
from histfs.errors import EXIT_FILE_ERROR, printable

DESCRIPTION = """\
Copy the state of a moment in the past out of the repository. REPO/sub restores
only what lies at `sub`, a directory or a single file; an increment file in
REPO/rdiff-backup-data restores what it keeps. TARGET must not exist, or be an
empty directory: nothing of yours is overwritten or deleted unless you say so.
Only root can give files back to their owners. The repository is only read.

With --merge TARGET may hold something: what is as it was then is not touched,
what differs is replaced, and what was not there then stays. --delete deletes
that too. --backup-dir keeps what is replaced or deleted. --dry-run shows what
would happen. --force, before the verb, means what it means in rdiff-backup:
as --delete, and TARGET may even be a file in the place of a directory. No
directory with something in it makes way for a file, with --force neither.

A restore that was interrupted is completed by the same with --merge.

To look before you copy: `histfs list files --at TIME REPO`, or `histfs mount`."""

EPILOG = f"""\
{options.TIMES}

In what selects files, SRC is TARGET here.

examples:
  histfs restore /mnt/disk/home/anna/thesis.tex ~/thesis-back.tex
  histfs restore --at 3D /mnt/disk/home/anna ~/anna-three-days-ago
  histfs restore --at 2024-05-03T10:00 /mnt/disk/home /home/all-of-it
  histfs restore --at 3D --merge --dry-run /mnt/disk/home/anna ~anna
  histfs restore --delete --backup-dir ~/before /mnt/disk/home/anna ~anna

exit codes (added up):
  0  everything was restored
  1  nothing was restored: no such path, ...; or it was stopped, and not all was
  2  --force replaced things, or the repository stays; added to 4: a refusal
  4  some files, each named, were not restored (damaged, ...); all others were"""

IF_STOPPED = "what is in TARGET so far is incomplete: the same command with --merge completes it"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "restore", "copy a state of the past out of a repository", description=DESCRIPTION, epilog=EPILOG
    )
    past = parser.add_mutually_exclusive_group()
    options.add_at(past)
    past.add_argument("--increment", action="store_true", help="REPO is an increment file, else nothing is done")
    options.add_json(parser)
    parser.add_argument("--dry-run", action="store_true", help="list what would be done, and change nothing")
    parser.add_argument("--create-full-path", action="store_true", help="make the directories that lead to TARGET")
    group = parser.add_argument_group("a TARGET in which something is already")
    group.add_argument("--merge", action="store_true", help="replace what differs; what was not there then stays")
    group.add_argument("--delete", action="store_true", help="replace what differs; delete what was not there then")
    group.add_argument(
        "--backup-dir",
        metavar="DIR",
        type=options.path,
        help="keep what is replaced or deleted in DIR (implies --merge)",
    )
    group.add_argument(
        "--checksum", action="store_true", help="compare the contents also of files whose size and time agree"
    )
    options.add_links(
        parser, hard_links="link again what was one file (the default)", compare_inode="accepted: it is not compared"
    )
    options.add_compression(parser, has_effect=False)
    options.add_owners(parser)
    options.add_extras(parser, "restore")
    parser.add_argument(
        "--never-drop-acls",
        action="store_true",
        help="stop at an access control list that names somebody whom this system does not know, instead of leaving "
        "that entry out",
    )
    parser.add_argument(
        "--untrusted",
        action="store_true",
        help="the repository may be anybody's: no setuid and setgid bits of files, no attributes that only root can "
        "set (capabilities, labels), no devices",
    )
    selection.add_to(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.add_argument("target", metavar="TARGET", type=options.path, help="where to copy it to")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED, takes_force=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.restore import restore
    from histfs.store.target import Manner, Step

    manner = Manner(
        merge=arguments.merge,
        delete=arguments.delete,
        force=arguments.force,
        backup_dir=arguments.backup_dir,
        checksum=arguments.checksum,
        create_full_path=arguments.create_full_path,
        dry_run=arguments.dry_run,
        hard_links=arguments.hard_links,
        fsync=arguments.fsync,
    )
    options.compression(arguments)  # a restore writes nothing that it could concern
    counts: Counter[str] = Counter()

    def tell(step: Step, path: bytes) -> None:
        counts[step.value] += 1
        if document is not None:
            document.add({"step": step.value, "path": path or b"."})
        elif arguments.dry_run:
            output.marked([(step.value, path)])

    work = "comparing" if arguments.dry_run else "restoring"
    with ExitStack() as stack:
        past = stack.enter_context(options.open_past(arguments))
        document = None
        if options.wants_document(arguments):
            before = {**moment(past.session_time), "target": str(arguments.target), "dry_run": arguments.dry_run}
            document = stack.enter_context(output.long_document(before, "steps", may_stop=arguments.dry_run))
        stack.enter_context(reading(output, past, work, arguments.progress))
        outcome = restore(
            past.repository,
            past.path,
            past.session_time,
            arguments.target,
            report=output.report,
            tell=tell,
            manner=manner,
            owners=options.owners(arguments),
            selection=selection.read(arguments, arguments.target, output),
            extras=options.extras(arguments),
            never_drop_acls=arguments.never_drop_acls,
            untrusted=arguments.untrusted,
        )
        if document is not None:
            document.after = {"files": outcome.files, "errors": outcome.errors}
    summary = f"{counted(outcome.files)} as of {iso_time(past.session_time, None)}"
    where = printable(arguments.target)
    if arguments.dry_run or manner.is_merging:
        done = ", ".join(f"{counts[step.value]} {_MEANINGS[step.value]}" for step in Step)
        verb = "would be" if arguments.dry_run else "is" if outcome.files == 1 else "are"
        output.tell(f"{summary} {verb} in {where}: {done}")
    else:
        output.tell(f"{summary} restored to {where}")
    return EXIT_FILE_ERROR if outcome.errors else 0


_MEANINGS = {"new": "new", "changed": "replaced", "attributes": "with other attributes", "deleted": "deleted"}
