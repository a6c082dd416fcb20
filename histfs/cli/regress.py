"""`histfs regress REPO`: undo a session that did not finish."""

import argparse

from histfs.cli import general, options
from histfs.cli.output import Output, iso_time
from histfs.errors import EXIT_WARNING

DESCRIPTION = """\
Undo a session that did not finish, so that the repository is again what it was
after the last one that did. If there is no such session, nothing is done. A
finished session is never touched.

`histfs backup` does the same by itself before it begins; and reading (restore,
mount, list, verify) does not need it."""

EPILOG = """\
If the session's process seems to be alive, this is refused: wait for it, or end
it. Its number may belong to another program by now. If you are sure that no
backup is running, here or on another computer, use --force, before the verb:

examples:
  histfs regress /mnt/disk/home
  histfs --force regress /mnt/disk/home

exit codes:
  0  there was nothing to undo
  1  the session could not be undone
  2  a session was undone (and 4 is added if files were damaged)"""

IF_STOPPED = "every finished session is intact; run `histfs regress` again to go on"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "regress", "undo a session that did not finish", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    options.add_compression(parser)
    parser.add_argument(
        "--allow-duplicate-timestamps",
        action="store_true",
        help="accepted: two lists of one time are never in the way",
    )
    options.add_owners(parser)
    options.add_json(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED, takes_force=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.regress import regress

    options.compression(arguments)  # what is undone leaves nothing that these options concern
    general.keep_log(arguments, output, "regress")
    outcome = regress(
        arguments.repository,
        report=output.report,
        force=arguments.force,
        fsync=arguments.fsync,
        owners=options.owners(arguments),
    )
    if outcome is not None:
        output.begin_log()
    if options.wants_document(arguments):
        output.document({"was_unfinished": outcome is not None} | (outcome._asdict() if outcome is not None else {}))
        return 0 if outcome is None else EXIT_WARNING
    if outcome is None:
        output.tell("nothing to undo: the last session has finished")
        return 0
    undone = "the first session" if outcome.undone is None else f"the session of {iso_time(outcome.undone, None)}"
    newest = "none is left" if outcome.newest is None else f"the newest is that of {iso_time(outcome.newest, None)}"
    output.tell(f"{undone} had not finished and was undone; {newest}")
    return EXIT_WARNING
