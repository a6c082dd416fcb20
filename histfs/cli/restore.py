"""`histfs restore [--at TIME] REPO[/sub] TARGET`: copy a state of the past out of a repository."""

import argparse

from histfs.cli import options
from histfs.cli.output import Output, counted, iso_time
from histfs.cli.progress import reading
from histfs.errors import EXIT_FILE_ERROR, printable

DESCRIPTION = """\
Copy the state of a moment in the past out of the repository. REPO/sub restores
only what lies at `sub`, a directory or a single file. TARGET must not exist, or
be an empty directory: nothing of yours is ever overwritten or deleted. Only
root can give files back to their owners. The repository is only read.

To look before you copy: `histfs list files --at TIME REPO`, or `histfs mount`."""

EPILOG = f"""\
{options.TIMES}

examples:
  histfs restore /mnt/disk/home/anna/thesis.tex ~/thesis-back.tex
  histfs restore --at 3D /mnt/disk/home/anna ~/anna-three-days-ago
  histfs restore --at 2024-05-03T10:00 /mnt/disk/home /home/all-of-it

exit codes (added up):
  0  everything was restored
  1  nothing was restored: no such session or path, TARGET is not empty, ...
  2  added to 4: the system refused something (disk full, a device without root)
  4  some files, each named, were not restored (damaged, ...); all others were"""

IF_STOPPED = "what is in TARGET so far is incomplete: delete it and restore again"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "restore", "copy a state of the past out of a repository", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_at(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.add_argument("target", metavar="TARGET", type=options.path, help="where to copy it to; must not exist")
    options.add_owners(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.restore import restore

    with options.open_past(arguments) as past, reading(output, past, "restoring", arguments.progress):
        outcome = restore(
            past.repository,
            past.path,
            past.session_time,
            arguments.target,
            report=output.report,
            owners=options.owners(arguments),
        )
    output.tell(
        f"{counted(outcome.files)} as of {iso_time(past.session_time, None)} restored to {printable(arguments.target)}"
    )
    return EXIT_FILE_ERROR if outcome.errors else 0
