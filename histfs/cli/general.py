"""The options that stand before the verb, and what they mean for the whole run; and `@FILE`, more arguments in a file.

They are those of rdiff-backup. Whoever has them in a script keeps them: what would only matter between two computers
is accepted, and said to do nothing.
"""

import argparse
import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from histfs import __version__
from histfs.cli import options
from histfs.cli.output import NORMAL, QUIET, Output, iso_time, one_line
from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError, UsageError, printable

_LEVELS = tuple("0123456789")
_API_VERSIONS = ("200", "201")
_DEEPEST = 20  # files of arguments that name files of arguments
_SNAPSHOT_NAME = re.compile(r"@\d{4}-", re.ASCII)


def add_to(parser: options.Parser) -> None:
    parser.add_argument("-V", "--version", action="version", version=f"histfs {__version__}")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summaries and notes; only what is wrong")
    parser.add_argument(
        "-v",
        "--verbosity",
        metavar="LEVEL",
        type=_level,
        choices=range(10),
        help="how much is said, from 0 (results alone) over 3 (the default) to 9; `docs/manual.md` has them all",
    )
    parser.add_argument(
        "--terminal-verbosity",
        metavar="LEVEL",
        type=_level,
        choices=range(10),
        help="the same for what is printed, not for logs",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show how far long work is, also where no terminal is; or not at all",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="undo an unfinished session although its process seems to be alive, or with regress a finished one; with"
        " remove, remove several; with backup, empty a directory that is no repository and make it one; with restore,"
        " make TARGET what the backup is, whatever is there",
    )
    parser.add_argument(
        "--current-time",
        metavar="SECONDS",
        type=options.seconds,
        help="take this second since 1970 for the present, as the time of a session and for --at",
    )
    parser.add_argument("--parsable-output", action="store_true", help="print results as YAML, where there are any")
    parser.add_argument(
        "--null-separator", action="store_true", help="a NUL, not a line break, ends each name in files"
    )
    parser.add_argument("--tempdir", metavar="DIR", type=options.path, help="where temporary files are made")
    names = parser.add_argument_group("how a repository is written")
    names.add_argument(
        "--chars-to-quote",
        "--override-chars-to-quote",
        metavar="CHARS",
        type=os.fsencode,
        help="write these characters of names as numbers, as the file system of the repository cannot hold them"
        " (A-Z: for example); for its first session, and for good",
    )
    names.add_argument(
        "--use-compatible-timestamps", action="store_true", help="no colons in the names of new files of the history"
    )
    options.add_switch(names, "fsync", "wait for the disk, so that a crash of the system loses nothing")
    accepted = parser.add_argument_group("accepted from scripts for rdiff-backup, to no effect on one computer")
    accepted.add_argument("--api-version", metavar="NUMBER", type=_api_version, help="200 or 201")
    accepted.add_argument("--new", action=argparse.BooleanOptionalAction, help="which command line is meant: the new")
    accepted.add_argument("--remote-schema", metavar="COMMAND")
    accepted.add_argument("--remote-tempdir", metavar="DIR")
    accepted.add_argument("--ssh-compression", action=argparse.BooleanOptionalAction)


def expanded(argv: Sequence[str]) -> list[str]:
    """`argv` with the lines of FILE in place of each `@FILE`, up to a `--`. Raises UsageError, StorageError.

    An `@` before a year is the name of a snapshot.
    """
    return list(_expand(argv, 0))


def _expand(argv: Sequence[str], depth: int) -> Iterator[str]:
    for number, argument in enumerate(argv):
        if argument == "--":
            yield from argv[number:]
            return
        if argument.startswith("@") and not _SNAPSHOT_NAME.match(argument):
            if depth == _DEEPEST:
                raise UsageError("files of arguments name each other without end", path=argument[1:])
            yield from _expand(_arguments_in(argument[1:]), depth + 1)
        else:
            yield argument


def _arguments_in(name: str) -> list[str]:
    try:
        with open(name, "rb") as file:
            text = file.read()
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        raise StorageError(
            f"cannot be read for arguments ({reason})",
            path=name,
            advice=f"for a name that begins with an @, write ./@{printable(name)}",
        ) from exc
    return [os.fsdecode(line) for line in text.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")] if text else []


@contextmanager
def settled(arguments: argparse.Namespace, output: Output) -> Iterator[None]:
    """A run in which the options before the verb hold. Raises UsageError where they make no sense."""
    output.verbosity = _terminal_verbosity(arguments)
    output.place_of = _Place(arguments).of
    output.results_only = arguments.parsable_output or getattr(arguments, "json", False)
    if arguments.new is False:
        raise UsageError(
            "histfs does not know the command line that rdiff-backup had before version 2.1",
            advice="`histfs --help` shows the verbs: `histfs backup SRC REPO`, and so on",
        )
    for name in ("remote_schema", "remote_tempdir", "ssh_compression"):
        if getattr(arguments, name) is not None:
            output.warn(f"--{name.replace('_', '-')} does nothing, as no other computer takes part")
    with _temporary_files_in(arguments.tempdir):
        yield


class _Place:
    """The repository that a command line names."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._typed: Path | None = getattr(arguments, "repository", None)
        # Beside a source or a target, it is about these that most paths are.
        self._is_alone = not hasattr(arguments, "source") and not hasattr(arguments, "target")

    def of(self, problem: HistfsError) -> Path | None:
        """The repository, if the path that `problem` has is one in it."""
        from histfs.store.layout import DATA

        if self._typed is None or not isinstance(problem.path, bytes):
            return None
        is_history = problem.path.split(b"/")[0] == DATA
        if is_history or self._is_alone or isinstance(problem, DamagedError | NotFoundError):
            return self._root()
        return None

    @functools.cache  # noqa: B019 - as long as the process
    def _root(self) -> Path | None:
        from histfs.store.repository import find_repository

        assert self._typed is not None
        try:
            return find_repository(self._typed)[0]
        except HistfsError:
            return None


def _terminal_verbosity(arguments: argparse.Namespace) -> int:
    if arguments.quiet:
        return QUIET
    return _verbosity(arguments) if arguments.terminal_verbosity is None else int(arguments.terminal_verbosity)


def _verbosity(arguments: argparse.Namespace) -> int:
    if arguments.verbosity is not None:
        return int(arguments.verbosity)
    by_environment = os.environ.get("RDIFF_BACKUP_VERBOSITY", "")
    return int(by_environment) if by_environment in _LEVELS else NORMAL


def keep_log(arguments: argparse.Namespace, output: Output, repository: Path, verb: str) -> None:
    """Has what is said written to the log of `verb` in `repository`, as soon as that is held."""
    import shlex

    from histfs.store.logs import Log

    heading = f"{iso_time(arguments.now, None)} {shlex.join(arguments.argv)}"
    output.keep_log(Log(repository, verb, one_line(heading)), _verbosity(arguments))


@contextmanager
def _temporary_files_in(directory: "os.PathLike[str] | None") -> Iterator[None]:
    """Has temporary files made in `directory`: those of Python's modules, of SQLite, and of programs that are run."""
    if directory is None:
        yield
        return
    if not os.path.isdir(directory):
        raise UsageError("is no directory for temporary files", path=directory)
    import tempfile

    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = os.path.abspath(directory)
    try:
        yield
    finally:
        _, tempfile.tempdir = before
        if before[0] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[0]


def _level(text: str) -> int:
    if text not in _LEVELS:
        raise argparse.ArgumentTypeError(f"a digit from 0 to 9 is needed, not {printable(text)!r}")
    return int(text)


def _api_version(text: str) -> int:
    if text not in _API_VERSIONS:
        raise argparse.ArgumentTypeError(f"200 or 201 is needed, not {printable(text)!r}")
    return int(text)
