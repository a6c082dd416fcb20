"""`histfs regress REPO`: undo a session that did not finish, or with --force the newest one."""

import argparse
from typing import TYPE_CHECKING

from histfs.cli import general, options
from histfs.cli.output import Output, iso_time, moment
from histfs.cli.progress import of_last_session, progress
from histfs.errors import EXIT_WARNING

if TYPE_CHECKING:
    from histfs.store.regress import RegressOutcome

DESCRIPTION = """\
Undo a session that did not finish, so that the repository is again what it was
after the last one that did. If there is no such session, nothing is done; or,
with --force before the verb, the newest session is undone, so that the one
before is the newest again. That can be repeated, until one is left.

`histfs backup` does the same by itself before it begins; and reading (restore,
mount, list, verify) does not need it."""

EPILOG = """\
If the session's process seems to be alive, this is refused: wait for it, or end
it. Its number may belong to another program by now. If you are sure that no
backup is running, here or on another computer, use --force.

examples:
  histfs regress /mnt/disk/home
  histfs --force regress /mnt/disk/home

exit codes (added up):
  0  there was nothing to undo; with --force: the newest session was undone
  1  the session could not be undone
  2  an unfinished session was undone; with --force: only one session is left
  4  added to 2: some files were damaged already before that session"""

IF_STOPPED = "every finished session is intact; run `histfs regress` again to go on"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs,
        "regress",
        "undo an unfinished session, or the newest one",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    options.add_compression(parser, has_effect=False)
    parser.add_argument(
        "--allow-duplicate-timestamps",
        action="store_true",
        help="accepted: two lists of one time are never in the way",
    )
    options.add_owners(parser)
    options.add_json(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED, takes_force=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.recovery import tell_nobody
    from histfs.store.regress import regress

    options.compression(arguments)  # what is undone leaves nothing that these options concern
    general.keep_log(arguments, output, arguments.repository, "regress")
    with progress(output, "undoing", arguments.progress, of_last_session(arguments.repository)) as step:
        outcome = regress(
            arguments.repository,
            report=output.report,
            force=arguments.force,
            fsync=arguments.fsync,
            owners=options.owners(arguments),
            tell=tell_nobody if step is None else step,
            on_block=None if step is None else step.block,
        )
    if outcome is not None:
        output.begin_log()
    if options.wants_document(arguments):
        output.document(_document(outcome))
    else:
        _tell(outcome, output, force=arguments.force)
    if outcome is None:
        return EXIT_WARNING if arguments.force else 0
    return 0 if outcome.had_finished else EXIT_WARNING


def _document(outcome: "RegressOutcome | None") -> dict[str, object]:
    if outcome is None:
        return {"was_unfinished": False}
    sessions = {"undone": outcome.undone, "newest": outcome.newest}
    return {
        "was_unfinished": not outcome.had_finished,
        **{name: None if time is None else moment(time) for name, time in sessions.items()},
        "had_finished": outcome.had_finished,
    }


def _tell(outcome: "RegressOutcome | None", output: Output, *, force: bool) -> None:
    if outcome is None and force:
        output.note("nothing to undo: there is only one session, and it stays")
        return
    if outcome is None:
        output.tell("nothing to undo: the last session has finished")
        return
    undone = "the first session" if outcome.undone is None else f"the session of {iso_time(outcome.undone, None)}"
    newest = "none is left" if outcome.newest is None else f"the newest is that of {iso_time(outcome.newest, None)}"
    what = "was undone" if outcome.had_finished else "had not finished and was undone"
    output.tell(f"{undone} {what}; {newest}")
