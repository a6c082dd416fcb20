"""The command `histfs`: reads the command line, the environment and the clock, runs one verb, says what went wrong.

A verb is a module with `add_to(verbs)`, which declares its arguments, and a function `run(arguments, output)`, which
makes one call and gives the exit code. It imports what it runs only then: help and mistakes must not wait for trio.

What stops a verb is an error: exit code 1, beside the bits that tell more. A HistfsError becomes its sentence here, an
interruption a sentence as well, and anything else is a bug: a sentence, and the traceback for who asks for it.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from histfs.cli import (
    backup,
    calculate,
    compare,
    complete,
    explain,
    general,
    info,
    listing,
    mount,
    options,
    regress,
    remove,
    repair,
    restore,
    status,
    test,
    umount,
    verify,
)
from histfs.cli.output import Output, ReaderGoneError, occupy_standard_descriptors
from histfs.errors import EXIT_ERROR, HistfsError, printable

VERBS = (
    *(backup, explain, restore, mount, umount, listing, status, compare, verify, repair, regress, remove),
    *(calculate, test, info, complete),
)

DESCRIPTION = """\
Your backups, as a folder of folders by time. `backup` keeps a plain copy of a
directory together with its history, in rdiff-backup's format; `mount` shows the
whole past as folders; `restore` copies some of it back."""

EPILOG = """\
I have lost a file. What now?
  histfs mount REPO /mnt/history    then look into the folders, copy it, and
  histfs umount /mnt/history
or, if you know where it was and when it was still there:
  histfs list sessions REPO
  histfs list versions REPO/path/of/the/file   when it changed, or went
  histfs restore --at 3D REPO/path/of/the/file ./the-file-again

`histfs VERB --help` explains a verb, with examples. Options before the verb are
for every verb. Long options can be shortened as long as they stay unambiguous.

exit codes (added up):
  0  all is well
  1  error: the command was not carried out
  2  warning
  4  some files could not be read, or are damaged
  8  some files changed, or could not be checked"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (None: that of the process) and returns the exit code. Never raises."""
    if argv is None:
        occupy_standard_descriptors()
        argv = sys.argv[1:]
    output = Output()
    arguments = argparse.Namespace(if_stopped="nothing was done", debug=False)
    try:
        with _stop_signals():
            arguments.argv = ["histfs", *general.expanded(argv)]
            _parse(arguments.argv[1:], arguments)
            with general.settled(arguments, output):
                return _run(arguments, output) | output.reported
    except SystemExit as exc:  # argparse has answered: help, version, wrong arguments
        return exc.code if isinstance(exc.code, int) else 0
    except ReaderGoneError:
        return output.reported
    except HistfsError as exc:
        output.error(exc)
        return EXIT_ERROR | exc.exit_code | output.reported
    except KeyboardInterrupt as exc:
        output.error(f"stopped by {exc.args[0] if exc.args else 'SIGINT'}; {arguments.if_stopped}")
        return EXIT_ERROR
    except Exception as exc:
        output.bug(exc, with_traceback=arguments.debug or bool(os.environ.get("HISTFS_DEBUG")))
        return EXIT_ERROR
    finally:
        output.close_log()


def _run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.force and not getattr(arguments, "takes_force", False):
        output.note("--force has no meaning here, and is ignored")
    arguments.now = int(time.time()) if arguments.current_time is None else arguments.current_time
    exit_code: int = arguments.run(arguments, output)
    return exit_code


def _parse(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    general_parser = make_parser()
    unknown = general_parser.parse_known_args(argv, arguments)[1]
    if unknown:
        _refuse(unknown, argv, general_parser, arguments.parser_of_verb)


def _refuse(
    unknown: Sequence[str], argv: Sequence[str], general_parser: options.Parser, parser: options.Parser
) -> NoReturn:
    """Say what is wrong with words that are left over. What stands behind an option that nobody knows may be its value.

    Raises SystemExit.
    """
    verb = parser.prog.removeprefix("histfs ")
    names = [word for word in unknown if word.startswith("-") and word != "--"]
    if not names:
        parser.error(f"{verb} does not take so many names: {' '.join(map(printable, unknown))}")
    name = names[0].partition("=")[0]
    option = printable(name)
    if parser.has_option(name):
        parser.error(f"{option} belongs behind the verb: histfs {verb} {option}")
    if general_parser.has_option(name):
        parser.error(f"{option} belongs before the verb: histfs {option} {verb}")
    first = verb.split()[0]
    is_general = first in argv and names[0] in argv[: argv.index(first)]
    place, whose = (general_parser, "histfs") if is_general else (parser, verb)
    similar = place.similar_option(name)
    if similar is None and not is_general and (similar := general_parser.similar_option(name)) is not None:
        similar = f"histfs {similar} {verb}"
    place.error(f"{whose} has no option {option}" + (f"; did you mean {similar}?" if similar else ""))


def make_parser() -> options.Parser:
    """The parser for the whole command line."""
    parser = options.Parser(
        prog="histfs",
        usage="histfs [-h] [-V] [-q] [-v LEVEL] [--force] [OPTION ...] VERB ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)  # for `complete`
    general.add_to(parser)
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs", prog="histfs")
    for verb in VERBS:
        verb.add_to(verbs)
    return parser


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise KeyboardInterrupt, with their name, as SIGINT does.

    A signal that our parent has set to be ignored stays ignored: `nohup histfs backup ...` must survive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    changed = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in changed:
            signal.signal(number, _stop)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
