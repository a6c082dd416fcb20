"""The one module that prints.

Results go to standard output, everything said to a person about them to standard error. Rules:
- A result that cannot be written is an error of a listing, except that a reader who has seen enough
  (`histfs list files REPO | head`) ends it in silence. It never disturbs a session: what cannot be told is dropped.
- Nothing from a repository reaches a terminal raw: a file name may hold escape sequences and line breaks.
  Only a listing that goes to a pipe or a file gives names as they are, for programs.
- Standard streams may be closed, full or gone at any time; no message is worth a failure.
"""

import functools
import operator
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from histfs.errors import EXIT_ERROR, EXIT_WARNING, HistfsError, StorageError, printable, printable_time

if TYPE_CHECKING:
    from histfs.store.logs import Log

# How much is said, as rdiff-backup counts it; each level says what those below it say, and results are always printed.
ERRORS, QUIET, NORMAL, LINES, FILES, TRACEBACKS = 1, 2, 3, 4, 5, 8

_WRITTEN_AT_ONCE = 1 << 16  # characters


class ReaderGoneError(HistfsError):
    """Whoever read our results has closed the pipe: nobody is left to write for, and nothing is wrong."""


class Output:
    """Where a command writes, as much as `verbosity` lets it.

    `results_only`: a program reads the results; what is for a person goes to standard error then.
    `above`: writes a line above what is drawn at the bottom of the terminal, while something is; `make_room` takes that
    away, as results go their own way.
    """

    def __init__(self) -> None:
        self.verbosity = NORMAL
        self.results_only = False
        self.above: Callable[[str], object] | None = None
        self.make_room: Callable[[], object] | None = None
        self.place_of: Callable[[HistfsError], Path | None] = lambda _problem: None  # the repository that it is about
        self._reported: set[int] = set()  # exit codes
        self._log: Log | None = None
        self._log_verbosity = NORMAL

    @property
    def quiet(self) -> bool:
        """Whether what is said only for comfort is dropped: summaries and notes."""
        return self.verbosity < NORMAL

    @property
    def reported(self) -> int:
        """The exit code that all reported problems make together."""
        return functools.reduce(operator.or_, self._reported, 0)

    # The log in the repository.

    def keep_log(self, log: "Log", verbosity: int) -> None:
        """From now on `log` is told what a person is told, as much as `verbosity` lets it."""
        self._log = log
        self._log_verbosity = verbosity

    def begin_log(self) -> None:
        """The repository is held: what the log has been told is written to it."""
        if self._log is not None:
            self._log.begin()

    def close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _record(self, level: int, text: str) -> None:
        if self._log is not None and level <= self._log_verbosity:
            self._log.write(one_line(text))

    # Results, for programs as well.

    def text(self, text: str) -> None:
        """Writes a whole text as the result. Raises ReaderGoneError, StorageError."""
        self.lines(text.splitlines())

    def lines(self, lines: Iterable[str]) -> None:
        """Writes each text as a line. Raises ReaderGoneError, StorageError."""
        _write_results(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines)

    def names(self, paths: Iterable[bytes], *, null: bool = False) -> None:
        """Writes each path relative to the root of a tree: b"" as ".", printable on a terminal, raw otherwise.

        With `null` the paths are always raw and end in a NUL. Raises ReaderGoneError, StorageError.
        """
        if null:
            _write_results((path or b".") + b"\0" for path in paths)
        elif is_terminal():
            self.lines(map(printable, paths))
        else:
            _write_results((path or b".") + b"\n" for path in paths)

    def marked(self, marks: Iterable[tuple[str, bytes]]) -> None:
        """Writes each path behind a word on it: `new: the/path`; printable on a terminal, raw otherwise.

        Raises ReaderGoneError, StorageError.
        """
        if is_terminal():
            self._make_room()
            self.lines(f"{word}: {printable(path)}" for word, path in marks)
        else:
            _write_results(b"%b: %b\n" % (word.encode(), path or b".") for word, path in marks)

    def document(self, value: object) -> None:
        """Writes a JSON document, which is a YAML document as well. Raises ReaderGoneError, StorageError.

        `value` is made of dicts, lists, tuples, str, bytes (names: what is not UTF-8 becomes lone surrogates, as in
        PEP 383), numbers, bool and None.
        """
        import json

        self.text(json.dumps(_readable(value), indent=2))

    @contextmanager
    def long_document(
        self, before: Mapping[str, object] | None = None, name: str = "", *, may_stop: bool = True
    ) -> "Iterator[LongDocument]":
        """The same for a list of any length, which is written as it grows: by itself, or as `name` behind `before`.

        Whatever happens in the block, what was written is a whole document in the end; nothing is, if it did not get
        as far as to the first item. With `may_stop` False trouble with writing does not stop what is done in the
        block, and is raised at its end.
        """
        document = LongDocument(before, name, self._make_room, may_stop=may_stop)
        try:
            yield document
        except BaseException:
            with suppress(HistfsError):
                document.break_off()
            raise
        document.end()

    # For a person. These never fail.

    def tell(self, text: str) -> None:
        """Writes a summary to standard output, unless the person wanted quiet."""
        self._record(NORMAL, f"NOTE: {text}")
        if self.quiet:
            return
        if self.results_only:
            self._say(text)
        else:
            self.insist(one_line(text) + "\n")

    def name(self, fate: str, path: bytes) -> None:
        """Says what became of a file, for who wants to know of each."""
        if max(self.verbosity, self._log_verbosity) < FILES:
            return
        line = f"{fate}: {printable(path)}"
        self._record(FILES, line)
        if self.verbosity < FILES:
            return
        if self.above is not None:
            self._draw_above(line)
        else:
            _write_if_possible(sys.stderr if self.results_only else sys.stdout, line + "\n")

    def insist(self, text: str) -> None:
        """Writes text to standard output that was asked for, as it is, but is not worth a failure."""
        self._make_room()
        _write_if_possible(sys.stdout, text)

    def _make_room(self) -> None:
        if self.make_room is not None and is_terminal():
            self.make_room()

    def note(self, text: str) -> None:
        """Says on standard error what is good to know, unless the person wanted quiet."""
        self._record(NORMAL, f"NOTE: {text}")
        if not self.quiet:
            self._say(f"note: {text}")

    def error(self, problem: HistfsError | str) -> None:
        """Says what stopped the command, in one line on standard error."""
        self._locate(problem)
        self._record(ERRORS, f"ERROR: {problem}")
        if self.verbosity >= ERRORS:
            self._say(str(problem))

    def warn(self, problem: HistfsError | str) -> None:
        """Says what is wrong and did not stop the command."""
        self._locate(problem)
        self._record(QUIET, f"WARNING: {problem}")
        if self.verbosity >= QUIET:
            self._say(str(problem))

    def _locate(self, problem: HistfsError | str) -> None:
        """A path in a repository is of use to who reads it only together with that of the repository."""
        if isinstance(problem, HistfsError) and isinstance(problem.path, bytes):
            repository = self.place_of(problem)
            if repository is not None:
                problem.path = repository / os.fsdecode(problem.path)

    def report(self, problem: HistfsError) -> None:
        """Says a problem that an operation goes on from: a warning at least, and no error. From any thread."""
        self._reported.add(problem.exit_code & ~EXIT_ERROR or EXIT_WARNING)
        self.begin_log()  # an operation that reports has the repository
        self.warn(problem)

    def bug(self, exception: Exception, *, with_traceback: bool) -> None:
        """Says that histfs itself has failed, and how to find out more."""
        with_traceback = with_traceback or self.verbosity >= TRACEBACKS
        advice = "" if with_traceback else "; please report it with what HISTFS_DEBUG=1 in the environment shows"
        self._say(f"this is a bug in histfs: {type(exception).__name__}: {exception}{advice}")
        if with_traceback:
            import traceback

            _write_if_possible(sys.stderr, "".join(traceback.format_exception(exception)))

    def _say(self, text: str) -> None:
        line = f"histfs: {one_line(text)}"
        if self.above is not None:
            self._draw_above(line)
        else:
            _write_if_possible(sys.stderr, line + "\n")

    def _draw_above(self, line: str) -> None:
        assert self.above is not None
        with suppress(OSError, ValueError):
            self.above(line.encode("utf-8", "backslashreplace").decode())


class LongDocument:
    """A JSON document with a list that grows. Made by `Output.long_document`."""

    def __init__(
        self, before: Mapping[str, object] | None, name: str, make_room: Callable[[], None], *, may_stop: bool
    ) -> None:
        self._before = before
        self._name = name
        self._make_room = make_room
        self._may_stop = may_stop
        self._trouble: HistfsError | None = None
        self._text: list[str] = []  # that is not written yet
        self._length = 0
        self._count = 0
        self.after: Mapping[str, object] = {}  # what stands behind the list

    @property
    def _indent(self) -> str:
        return "  " if self._before is None else "    "

    def add(self, item: object) -> None:
        """The next item, of what `Output.document` takes. Raises ReaderGoneError, StorageError."""
        import json

        self._put(self._opening() if not self._count else ",\n")
        self._put(textwrap.indent(json.dumps(_readable(item), indent=2), self._indent))
        self._count += 1
        if self._length > _WRITTEN_AT_ONCE:
            self._write()

    def end(self) -> None:
        """Raises ReaderGoneError, StorageError."""
        self._close()
        if self._trouble is not None:
            raise self._trouble

    def break_off(self) -> None:
        if self._count:
            self.after = {}
            self._close()

    def _opening(self) -> str:
        if self._before is None:
            return "[\n"
        return (
            "{\n"
            + "".join(f"{_member(name, value)},\n" for name, value in self._before.items())
            + (f'  "{self._name}": [\n')
        )

    def _close(self) -> None:
        if not self._count:
            self._put(self._opening().removesuffix("\n") + "]")
        else:
            self._put("\n]" if self._before is None else "\n  ]")
        if self._before is not None:
            self._put("".join(f",\n{_member(name, value)}" for name, value in self.after.items()) + "\n}")
        self._put("\n")
        self._write()

    def _put(self, text: str) -> None:
        self._text.append(text)
        self._length += len(text)

    def _write(self) -> None:
        text, self._text, self._length = "".join(self._text), [], 0
        if self._trouble is not None:
            return
        self._make_room()
        try:
            _write_results([text.encode("utf-8", "backslashreplace")])
        except HistfsError as error:
            if self._may_stop:
                raise
            self._trouble = error


def _member(name: str, value: object) -> str:
    import json

    return f'  "{name}": {json.dumps(_readable(value))}'


def _readable(value: object) -> object:
    """`value` with what JSON has no type for as text."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list | tuple) else value


def is_terminal() -> bool:
    """Whether results go to a person's screen."""
    return sys.stdout is not None and sys.stdout.isatty()


def error_is_terminal() -> bool:
    """Whether what is said to a person goes to a screen that can be drawn on."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def one_line(text: str) -> str:
    """`text` without line breaks, escape sequences and the like; a sentence made of printable parts stays as it is."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def moment(session_time: int) -> dict[str, object]:
    """A session's time for a document."""
    return {"time": iso_time(session_time, None), "seconds": session_time}


def with_units(fields: Mapping[str, float]) -> dict[str, object]:
    """Statistics for a document, in which all that is measured in seconds says so in the same way."""
    return {name.removesuffix("_s") + "_seconds" * name.endswith("_s"): value for name, value in fields.items()}


def roughly(seconds: float) -> str:
    """How long, in one unit: `40 seconds`, `1 minute`, `14 hours`, `3 days`."""
    amount, unit = int(seconds), "second"
    for size, longer in ((60, "minute"), (3600, "hour"), (86400, "day")):
        if seconds >= 2 * size or (size == 60 <= seconds):
            amount, unit = int(seconds // size), longer
    return f"{amount} {unit}" if amount == 1 else f"{amount} {unit}s"


def iso_time(session_time: int, zone: tzinfo | None) -> str:
    """A session time (seconds since the epoch) to the second with its offset, in `zone` (None: local time)."""
    if zone is None:
        return printable_time(session_time)
    try:
        return datetime.fromtimestamp(session_time, UTC).astimezone(zone).isoformat()
    except (OverflowError, ValueError, OSError):
        return printable_time(session_time)


def asctime(session_time: int) -> str:
    """A session time as rdiff-backup shows it: `Tue Nov 14 22:13:20 2023`, local time."""
    return time.ctime(session_time)


def occupy_standard_descriptors() -> None:
    """Opens /dev/null in place of each standard descriptor that is closed.

    Otherwise a file of the repository could get the number 2, and whatever writes a last message there spoils it.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)


def _write_results(chunks: Iterable[bytes]) -> None:
    if sys.stdout is None:
        raise StorageError("the results cannot be written: standard output is closed")
    write = sys.stdout.buffer.write
    try:
        for chunk in chunks:
            try:
                write(chunk)
            except OSError as exc:
                raise _cannot_write(exc) from exc
    finally:
        flushed = _flush(sys.stdout)
    if flushed is not None:
        raise _cannot_write(flushed) from flushed


def _cannot_write(exc: OSError) -> HistfsError:
    _abandon(sys.stdout)
    if isinstance(exc, BrokenPipeError):
        return ReaderGoneError("nobody reads the results any more")
    return StorageError(f"the results cannot be written: {exc.strerror or exc}")


def _flush(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as exc:
        return exc
    return None


def _write_if_possible(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return
    try:
        stream.buffer.write(text.encode("utf-8", "backslashreplace"))
        stream.flush()
    except (OSError, ValueError):  # ValueError: closed by whoever called us
        _abandon(stream)


def _abandon(stream: TextIO) -> None:
    """Points the stream to /dev/null: what it still holds would fail again when the interpreter flushes it at exit."""
    with suppress(OSError, ValueError):  # a stream in memory has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
