"""How far a damaged list of files could be read, and what is missing for that."""

from collections.abc import Callable

from histfs.errors import DamagedError, printable
from histfs.store.entry import Entry
from histfs.store.snapshot import Snapshot


class Reach:
    """Told of each entry that is read of the list of `snapshot`. `is_whole`: all of what it names is wanted."""

    def __init__(self, snapshot: Snapshot, *, is_whole: bool) -> None:
        self._snapshot = snapshot
        self._is_whole = is_whole
        self._files = 0
        self._last: bytes | None = None

    def note(self, entry: Entry) -> None:
        self._files += 1
        self._last = entry.path

    def once(self, report: Callable[[DamagedError], None]) -> Callable[[DamagedError], None]:
        """`report`, told only once of the same trouble with the same path: one damaged record may look like many."""
        told = set[object]()

        def report_once(error: DamagedError) -> None:
            trouble = error.path, error.problem
            if trouble not in told:
                told.add(trouble)
                report(error)

        return report_once

    def cut_off(self, error: DamagedError) -> DamagedError:
        """`error`, which is where reading has come to its end, with what is missing: the list cannot name it."""
        if self._last is None:
            return error
        missing = ""
        statistics = self._snapshot.repository.statistics(self._snapshot.time) if self._is_whole else None
        if statistics is not None:
            lost = statistics.source_files - self._files
            if lost <= 0:  # only the sums are wrong
                return error
            missing = ": 1 file" if lost == 1 else f": {lost} files"
        last = printable(self._last)
        error.problem += f"; what it should name after {last}, the last path that could be read, is missing{missing}"
        return error
