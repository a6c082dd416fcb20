"""`histfs verify [--at TIME] REPO[/sub]`: check the content of files against their recorded digests."""

import argparse
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from histfs.cli import options
from histfs.cli.output import Output, counted, is_terminal, iso_time, moment
from histfs.cli.progress import reading
from histfs.errors import EXIT_FILE_ERROR, EXIT_FILE_WARNING

if TYPE_CHECKING:
    from histfs.store.verify import VerifyOutcome

DESCRIPTION = """\
Rebuild every file as it was at a moment in the past, and compare it with the
SHA1 digest that was recorded when it was backed up. Silent if all is well; each
file that is not what it was is named on standard error. The repository is only
read.

Increments lead back from the newest session, each building on the next, so that
the check of an old session goes through most of the history: a check of the
oldest one (--at 999B) covers nearly all. --every-session checks every version
that any session has of a file, each once."""

EPILOG = f"""\
{options.TIMES}

examples:
  histfs verify /mnt/disk/home
  histfs verify --at 999B /mnt/disk/home
  histfs verify --every-session /mnt/disk/home/anna

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
    past = parser.add_mutually_exclusive_group()
    options.add_at(past)
    past.add_argument("--every-session", action="store_true", help="check all sessions, each version of a file once")
    options.add_json(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.verify import verify, verify_all

    with options.open_past(arguments) as past, _progress(arguments, output, past):
        outcomes: Iterable[tuple[int, VerifyOutcome]]
        if arguments.every_session:
            outcomes = verify_all(past.repository, past.path, report=output.report)
        else:
            outcome = verify(past.repository, past.path, past.session_time, report=output.report)
            outcomes = [(past.session_time, outcome)]
        exit_code = 0
        sessions = []
        for session_time, outcome in outcomes:
            if outcome.mismatched:
                exit_code |= EXIT_FILE_ERROR
            if outcome.without_digest:
                exit_code |= EXIT_FILE_WARNING
            sessions.append({**moment(session_time), **outcome._asdict()})
            if is_terminal():
                output.tell(
                    f"{counted(outcome.files)} as of {iso_time(session_time, None)} checked: "
                    f"{outcome.mismatched} damaged, {outcome.without_digest} without a digest"
                )
    if options.wants_document(arguments):
        output.document(sessions)
    return exit_code


def _progress(arguments: argparse.Namespace, output: Output, past: options.Past) -> AbstractContextManager[None]:
    """With --every-session the lists but the newest are gone through twice, to compare each with the next."""
    passes = 2 * len(past.repository.sessions()) - 1 if arguments.every_session else 1
    return reading(output, past, "verifying", arguments.progress, passes=passes)
