"""`histfs verify [--at TIME | --all] REPO[/sub]`: check the content of files against their recorded digests."""

import argparse
from typing import TYPE_CHECKING

from histfs.cli import options
from histfs.cli.output import Output, counted, is_terminal, iso_time, moment
from histfs.cli.progress import Expected, progress, reading
from histfs.errors import EXIT_ERROR, EXIT_FILE_ERROR, EXIT_FILE_WARNING

if TYPE_CHECKING:
    from histfs.store.verify_all import AllOutcome

DESCRIPTION = """\
Rebuild every file as it was at a moment in the past, and compare it with the
SHA1 digest that was recorded when it was backed up. Silent if all is well; each
file that is not what it was is named on standard error. The repository is only
read.

--all checks every version that any session has of a file: the mirror and every
increment, each read once. It names each version that is damaged, and which
others of that file can still be restored. If it is interrupted, the same
command goes on where it was, with the sessions there were when it began."""

EPILOG = f"""\
{options.TIMES}

examples:
  histfs verify /mnt/disk/home
  histfs verify --at 999B /mnt/disk/home
  histfs verify --all /mnt/disk/home
  histfs verify --all --json /mnt/disk/home/anna

exit codes (added up):
  0  every file is what it was
  1  no such repository, session or path, or unreadable; --all: damage was found
  4  some files are damaged or missing, or may not be read; each is named
  8  some files have no recorded digest, and could not be checked"""

IF_STOPPED = "not every file has been checked"
_IF_ALL_STOPPED = "not every version has been checked; the same command goes on from there"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "verify", "check files against their recorded digests", description=DESCRIPTION, epilog=EPILOG
    )
    past = parser.add_mutually_exclusive_group()
    options.add_at(past)
    past.add_argument(
        "--all", "--every-session", action="store_true", help="check every version of every file that any session has"
    )
    parser.add_argument("--restart", action="store_true", help="with --all: begin anew where one was interrupted")
    options.add_json(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.all:
        return _run_all(arguments, output)
    if arguments.restart:
        output.note("--restart has no meaning without --all, and is ignored")
    from histfs.store.verify import verify

    with (
        options.open_past(arguments) as past,
        reading(output, past, "verifying", arguments.progress),
    ):
        outcome = verify(past.repository, past.path, past.session_time, report=output.report)
        if is_terminal():
            output.tell(
                f"{counted(outcome.files)} as of {iso_time(past.session_time, None)} checked: "
                f"{outcome.mismatched} damaged, {outcome.without_digest} without a digest"
            )
        session_time = past.session_time
    if options.wants_document(arguments):
        output.document([{**moment(session_time), **outcome._asdict()}])
    exit_code = EXIT_FILE_ERROR if outcome.mismatched else 0
    return exit_code | (EXIT_FILE_WARNING if outcome.without_digest else 0)


def _run_all(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.recovery import tell_nobody
    from histfs.store.verify_all import verify_all

    arguments.if_stopped = _IF_ALL_STOPPED
    with options.open_past(arguments) as past:
        statistics = None if past.path else past.repository.statistics(past.session_time)
        # How many bytes there are in all is not known before they were read.
        expected = Expected() if statistics is None else Expected(statistics.source_files)
        with progress(output, "verifying", arguments.progress, expected) as step:
            outcome = verify_all(
                past.repository,
                past.path,
                report=output.warn,
                cache=options.cache_directory(),
                restart=arguments.restart,
                tell=tell_nobody if step is None else step,
            )
        newer = [each for each in past.repository.sessions() if each > outcome.newest]
    if newer:
        output.note(
            f"it was begun before the session of {iso_time(newer[0], None)}: that and what came later was not checked"
        )
    if is_terminal():
        output.tell(_summary(outcome))
    if options.wants_document(arguments):
        output.document(_document(outcome))
    exit_code = EXIT_ERROR if outcome.problems or any(each.is_damage for each in outcome.findings) else 0
    if not all(each.is_damage for each in outcome.findings):
        exit_code |= EXIT_FILE_ERROR
    return exit_code | (EXIT_FILE_WARNING if outcome.counts.without_digest else 0)


def _summary(outcome: "AllOutcome") -> str:
    from histfs.store.format.stats import format_size

    counts = outcome.counts
    lists = f", and {len(outcome.problems)} places in lists" if outcome.problems else ""
    damaged = sum(finding.is_damage for finding in outcome.findings)
    unread = len(outcome.findings) - damaged
    denied = f", {unread} that this user may not read" if unread else ""
    return (
        f"{counts.versions} versions of files ({format_size(counts.size_bytes)}) in {outcome.sessions} sessions"
        f" checked: {damaged} damaged{lists}{denied}, {counts.without_digest} without a digest"
    )


def _document(outcome: "AllOutcome") -> dict[str, object]:
    counts = outcome.counts
    return {
        "newest": moment(outcome.newest),
        "sessions": outcome.sessions,
        "versions": counts.versions,
        "bytes": counts.size_bytes,
        "without_digest": counts.without_digest,
        "was_resumed": outcome.was_resumed,
        "damaged": [
            {
                "path": finding.path,
                "problem": finding.problem,
                "sessions": [moment(each) for each in finding.sessions],
                "readable": [moment(each) for each in finding.readable],
            }
            for finding in outcome.findings
            if finding.is_damage
        ],
        "unread": [finding.path for finding in outcome.findings if not finding.is_damage],
        "problems": [str(problem) for problem in outcome.problems],
    }
