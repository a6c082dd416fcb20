"""`histfs test DIR...`: whether directories can be used, before a script relies on them."""

import argparse

from histfs.cli import options
from histfs.cli.output import Output
from histfs.errors import EXIT_ERROR, HistfsError, printable

DESCRIPTION = """\
Test whether directories are there and can be used: listed, and written to; and
which of them are repositories. Nothing is written. For a script, before it
relies on a disk that may not be mounted.

How a repository is, and whether its last backup went well, `histfs status`
tells; what is in its files, `histfs verify`."""

EPILOG = """\
examples:
  histfs test /home /mnt/disk/home && histfs backup /home /mnt/disk/home

exit codes:
  0  all can be used
  1  some, each named, are no directories or cannot be listed or read"""


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "test", "test whether directories can be used", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_json(parser)
    parser.add_argument("directories", metavar="DIR", nargs="+", type=options.path, help="what is, or shall be, used")
    parser.set_defaults(run=run, if_stopped="not all directories were tested")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.format.stats import format_size
    from histfs.store.usable import usable

    found: list[dict[str, object]] = []
    lines = []
    exit_code = 0
    for directory in arguments.directories:
        try:
            result = usable(directory)
        except HistfsError as error:
            output.error(error)
            exit_code = EXIT_ERROR
            found.append({"path": str(directory), "usable": False, "problem": error.problem})
            continue
        found.append({"path": str(directory), "usable": True, **result._asdict()})
        what = "a directory" if result.sessions is None else f"a repository with {_counted(result.sessions)}"
        written = "can be written to" if result.can_be_written else "can only be read"
        lines.append(f"{printable(directory)}: {what} that {written}, {format_size(result.free_bytes)} free")
    if options.wants_document(arguments):
        output.document(found)
    elif not output.quiet:
        output.lines(lines)
    return exit_code


def _counted(sessions: int) -> str:
    return "1 session" if sessions == 1 else f"{sessions} sessions"
