"""How far long work is: a line that changes on a terminal, plain lines now and then elsewhere for who wants them.

It counts what passes, files and bytes, against what a session before has counted, and writes to standard error. It is
told of each file, and of each block of a large one, and looks at the clock then: nothing runs beside the work. Whatever
happens to the terminal, the work goes on. rich draws the line on a terminal, and is imported only then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from histfs.cli.output import LINES, Output, counted, error_is_terminal, roughly
from histfs.errors import HistfsError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from histfs.cli.options import Past
    from histfs.store.entry import Entry

_FIRST_DRAWN_AFTER_S = 1.0
_DRAWN_EVERY_S = 0.2
_SAID_EVERY_S = 30.0
_FIRST_SAID_AFTER_S = 10.0


class Expected(NamedTuple):
    """What there will be, as far as that is known; 0: it is not."""

    files: int = 0
    size_bytes: int = 0


class Step(Protocol):
    """What is called for each file that is done, or for some of them; before that, if one likes, for each block."""

    def __call__(self, size_bytes: int, files: int = 1) -> None: ...

    def block(self, size_bytes: int) -> None: ...


def of_last_session(repository: Path) -> Expected:
    """What the last session has counted."""
    from histfs.store.repository import Repository

    try:
        with Repository.open(repository) as opened:
            statistics = opened.statistics(opened.sessions()[-1])
    except (HistfsError, IndexError):  # there is none yet; what is wrong otherwise, the work itself tells
        statistics = None
    return Expected() if statistics is None else Expected(statistics.source_files, statistics.source_file_bytes)


@contextmanager
def progress(output: Output, work: str, wanted: bool | None, expected: Expected) -> Iterator[Step | None]:
    """While the block runs, what to call for each file; None where nobody wants to know.

    `work`: what is done, in one word. `wanted`: None for a line on a terminal, and lines elsewhere with verbosity.
    """
    if output.quiet or wanted is False:
        yield None
    elif error_is_terminal():
        drawing = _Drawing(output, work, expected)
        try:
            yield _Counter(_FIRST_DRAWN_AFTER_S, _DRAWN_EVERY_S, drawing)
        finally:
            drawing.end()
    elif wanted or output.verbosity >= LINES:
        yield _Counter(_FIRST_SAID_AFTER_S, _SAID_EVERY_S, lambda counter: output.note(counter.line(work, expected)))
    else:
        yield None


class _Counter:
    """Counts, and shows the count when it is time for it."""

    def __init__(self, first_s: float, every_s: float, show: "Callable[[_Counter], None]") -> None:
        self.files = 0
        self.size_bytes = 0
        self._of_current_bytes = 0
        self.started = time.monotonic()
        self._next = self.started + first_s
        self._every_s = every_s
        self._show = show

    def __call__(self, size_bytes: int, files: int = 1) -> None:
        self.files += files
        self.size_bytes += size_bytes - self._of_current_bytes
        self._of_current_bytes = 0
        self._look_at_clock()

    def block(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._of_current_bytes += size_bytes
        self._look_at_clock()

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            self._show(self)

    def part(self, expected: Expected) -> float | None:
        """How much of the work is done, from 0 to 1: files and bytes both take time. None if nobody knows."""
        done = [
            min(1.0, have / all_)
            for have, all_ in ((self.files, expected.files), (self.size_bytes, expected.size_bytes))
            if all_
        ]
        return sum(done) / len(done) if done else None

    def counts(self) -> str:
        from histfs.store.format.stats import format_size

        if not self.size_bytes:
            return f"{counted(self.files)}, {self.files / self._elapsed():.0f}/s"
        rate = format_size(int(self.size_bytes / self._elapsed()))
        return f"{counted(self.files)}, {format_size(self.size_bytes)}, {rate}/s"

    def line(self, work: str, expected: Expected) -> str:
        part = self.part(expected)
        rest = f", {part:.0%}, {roughly(self._elapsed() / part - self._elapsed())} left" if part else ""
        return f"{work}: {self.counts()}{rest}"

    def _elapsed(self) -> float:
        return max(time.monotonic() - self.started, 0.001)


class _Drawing:
    """The line on the terminal. It is begun when the work has taken a while, and so is the import of rich."""

    def __init__(self, output: Output, work: str, expected: Expected) -> None:
        self._output = output
        self._work = work
        self._expected = expected
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, counter: _Counter) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone: the work is not
            if self._bar is None:
                self._begin()
            assert self._bar is not None
            assert self._task is not None
            part = counter.part(self._expected) or 0.0
            self._bar.update(self._task, completed=part, counts=counter.counts(), refresh=True)

    def _begin(self) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task(self._work, total=1.0 if any(self._expected) else None, counts="")
        self._output.above = self._bar.console.print
        self._output.make_room = self.end
        self._bar.start()

    def end(self) -> None:
        """Take the line away; if the work goes on it comes back when it is time for it."""
        self._output.above = self._output.make_room = None
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.stop()
            self._bar = None


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, highlight=False, soft_wrap=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def reading(output: Output, past: "Past", work: str, wanted: bool | None, *, passes: int = 1) -> Iterator[None]:
    """The progress of what goes through the files of `past` while the block runs, so many times."""
    statistics = None if past.path else past.repository.statistics(past.session_time)
    expected = (
        Expected()
        if statistics is None
        else Expected(statistics.source_files * passes, statistics.source_file_bytes * passes)
    )
    with progress(output, work, wanted, expected) as step:
        if step is None:
            yield
            return
        size_bytes: int | None = None  # of the file that is gone through

        def next_entry(entry: "Entry | None") -> None:
            nonlocal size_bytes
            if size_bytes is not None:
                step(size_bytes)
            size_bytes = None if entry is None else entry.size_bytes

        past.repository.on_entry, past.repository.on_block = next_entry, step.block
        try:
            yield
            next_entry(None)
        finally:
            past.repository.on_entry = past.repository.on_block = None
