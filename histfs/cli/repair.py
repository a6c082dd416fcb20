"""`histfs repair [--dry-run] REPO`: make anew what follows from the rest of a damaged repository."""

import argparse
from typing import TYPE_CHECKING

from histfs.cli import general, options
from histfs.cli.output import Output
from histfs.errors import EXIT_FILE_ERROR, EXIT_WARNING, printable

if TYPE_CHECKING:
    from histfs.store.repair import RepairOutcome

DESCRIPTION = """\
Make anew in a damaged repository what follows from the rest of it: the newest
list of files (from what can be read of it, from the catalog and the mirror),
its extended attributes and access control lists, markers, statistics, the
catalog. A session that was cut off is undone first. What is to be done is said
before it is done. What is replaced is moved to rdiff-backup-data/histfs/aside,
and nothing is deleted.

Contents of files are not looked at: what is lost of them, nobody can make
again. `histfs verify --all` tells what that is, and what can still be had."""

EPILOG = """\
On a disk that has bad sectors, copy the repository to another one first, and
repair the copy.

examples:
  histfs repair --dry-run /mnt/disk/home
  histfs repair /mnt/disk/home

exit codes (added up):
  0  nothing was wrong, or all that was is repaired
  1  nothing was repaired, or not all: the reason is told
  2  with --dry-run: something is to be repaired
  4  something is lost that cannot be made again, each is named"""

IF_STOPPED = "nothing is lost by that; run `histfs repair` again to go on"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs,
        "repair",
        "make anew what follows from the rest of a damaged repository",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    options.add_owners(parser)
    options.add_json(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED, takes_force=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.repair import plan_repair, repair

    if arguments.dry_run:
        outcome = plan_repair(arguments.repository, force=arguments.force)
        _show(arguments, output, outcome)
    else:
        general.keep_log(arguments, output, arguments.repository, "repair")
        outcome = repair(
            arguments.repository,
            now=arguments.now,
            show=lambda plan: _show(arguments, output, plan),
            report=output.report,
            owners=options.owners(arguments),
            force=arguments.force,
        )
        if not options.wants_document(arguments):
            _tell(output, outcome)
    if options.wants_document(arguments):
        output.document(_document(outcome))
    exit_code = EXIT_FILE_ERROR if outcome.lost else 0
    return exit_code | (EXIT_WARNING if arguments.dry_run and outcome.repairs else 0)


def _show(arguments: argparse.Namespace, output: Output, plan: "RepairOutcome") -> None:
    if plan.repairs and not arguments.dry_run:
        output.begin_log()
    if options.wants_document(arguments):
        return
    for each in plan.repairs:
        place = f" [{printable(each.path)}]" if each.path else ""
        output.tell(f"{'would' if arguments.dry_run else 'will'} {each}{place}")
    for problem in plan.lost:
        output.warn(problem)
    if plan.goes_on:
        output.tell(
            "there is nothing to repair: the first session was cut off, and the next `histfs backup` goes on with it"
        )
    elif not plan.repairs:
        output.tell("there is nothing to repair" if not plan.lost else "nothing of this can be repaired")


def _tell(output: Output, outcome: "RepairOutcome") -> None:
    if not outcome.repairs:
        return
    kept = "" if outcome.aside is None else f"; what was replaced is in {printable(outcome.aside)}"
    output.tell(f"repaired{kept}; run `histfs verify --all` to see which contents are damaged")
    if outcome.digested:
        output.tell(f"in the newest list {outcome.why_digested_matters}")


def _document(outcome: "RepairOutcome") -> dict[str, object]:
    return {
        "repairs": [{"what": each.what, "why": each.why, "path": each.path or None} for each in outcome.repairs],
        "lost": [str(problem) for problem in outcome.lost],
        "aside": outcome.aside,
        "digested": outcome.digested,
    }
