"""`histfs compare [--at TIME] SRC REPO[/sub]`: how a directory differs from a backup of it."""

import argparse
from contextlib import ExitStack

from histfs.cli import options, selection
from histfs.cli.output import Output, counted, is_terminal, iso_time
from histfs.cli.progress import reading
from histfs.errors import EXIT_FILE_WARNING

METHODS = ("meta", "hash", "full")

DESCRIPTION = """\
Print how the directory SRC differs from what was backed up: a line for each
path that is `new` in SRC, `deleted` there, or `changed`. Both are only read.

By default type, size, time, owner, permissions, extended attributes and access
control lists are compared. --method hash reads every file of SRC too, and
compares it with its recorded SHA1; --method full reads the repository's content
as well. Both tell of each file whether its metadata and its data are the same
or changed."""

EPILOG = f"""\
{options.TIMES}

examples:
  histfs compare /home /mnt/disk/home
  histfs compare --at 3D --method hash /home/anna /mnt/disk/home/anna

exit codes (added up):
  0  nothing differs
  1  nothing was compared: no such directory, repository, session or path, ...
  4  something, each named, cannot be read or is damaged
  8  something differs, or could not be compared"""

IF_STOPPED = "not everything has been compared"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "compare", "show how a directory differs from its backup", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_at(parser)
    parser.add_argument("--method", choices=METHODS, metavar="METHOD", default="meta", help="meta, hash or full")
    options.add_extras(parser, "compare")
    options.add_json(parser)
    selection.add_to(parser)
    parser.add_argument("source", metavar="SRC", type=options.path, help="the directory to compare")
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.compare import Difference, Method, compare

    differences = 0

    def tell(difference: Difference) -> None:
        nonlocal differences
        differences += 1
        if document is not None:
            document.add({"path": difference.path or b".", "reason": difference.reason})
        else:
            output.marked([(difference.reason, difference.path)])

    with ExitStack() as stack:
        document = stack.enter_context(output.long_document()) if options.wants_document(arguments) else None
        past = stack.enter_context(options.open_past(arguments))
        stack.enter_context(reading(output, past, "comparing", arguments.progress))
        outcome = compare(
            arguments.source,
            past.repository,
            past.path,
            past.session_time,
            method=Method(arguments.method),
            report=output.report,
            tell=tell,
            selection=selection.read(arguments, arguments.source, output),
            extras=options.extras(arguments),
        )
    if document is None and is_terminal():
        output.tell(
            f"{counted(outcome.compared)} compared as of {iso_time(past.session_time, None)}: {differences} differ"
        )
    return EXIT_FILE_WARNING if differences else 0
