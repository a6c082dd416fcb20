"""`histfs verify [--at TIME] REPO[/sub]`: check the content of files against their recorded digests."""

import argparse

from histfs.cli import options
from histfs.cli.output import Output, counted, is_terminal, iso_time
from histfs.cli.progress import reading
from histfs.errors import EXIT_FILE_ERROR, EXIT_FILE_WARNING

DESCRIPTION = """\
Rebuild every file as it was at a moment in the past, and compare it with the
SHA1 digest that was recorded when it was backed up. Silent if all is well; each
file that is not what it was is named on standard error. The repository is only
read.

Increments lead back from the newest session, each building on the next, so that
the check of an old session goes through most of the history: a check of the
oldest one (--at 999B) covers nearly all."""

EPILOG = f"""\
{options.TIMES}

examples:
  histfs verify /mnt/disk/home
  histfs verify --at 999B /mnt/disk/home

exit codes (added up):
  0  every file is what it was
  1  there is no such repository, session or path, or it cannot be read
  4  some files are damaged or missing, each is named
  8  some files have no recorded digest, and could not be checked"""

IF_STOPPED = "not every file has been checked"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "verify", "check files against their recorded digests", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_at(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.verify import verify

    with options.open_past(arguments) as past, reading(output, past, "verifying", arguments.progress):
        outcome = verify(past.repository, past.path, past.session_time, report=output.report)
    if is_terminal():
        output.tell(
            f"{counted(outcome.files)} as of {iso_time(past.session_time, None)} checked: "
            f"{outcome.mismatched} damaged, {outcome.without_digest} without a digest"
        )
    exit_code = 0
    if outcome.mismatched:
        exit_code |= EXIT_FILE_ERROR
    if outcome.without_digest:
        exit_code |= EXIT_FILE_WARNING
    return exit_code
