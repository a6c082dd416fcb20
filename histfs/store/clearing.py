"""What a restore deletes: names in the target that the snapshot does not have.

Each is looked at as a whole before any of it goes, so that a directory stays, with all that is in it, that something
lies in that must stay (`target`). With a selection each file is looked at by itself,
and what the list has is not deleted, selected or not: rules may see it otherwise in the target (`Listed`).
"""

from collections.abc import Callable, Iterator

from histfs.errors import StorageError
from histfs.store.entry import Entry, Kind, is_below, join
from histfs.store.selection import Place, Selection
from histfs.store.source import Found
from histfs.store.steps import Steps
from histfs.store.target import Step, Target, is_fatal, other_file_system


class Listed:
    """The names that a list has in the directories on the way to where it has been read, `top` and below."""

    def __init__(self, top: bytes) -> None:
        self._directories: list[tuple[bytes, set[bytes]]] = [(top, set())]

    def noted(self, below: Iterator[Entry]) -> Iterator[Entry]:
        """The same entries, which are in the order of the list."""
        for entry in below:
            while not is_below(entry.path, self._directories[-1][0]):
                self._directories.pop()
            self._directories[-1][1].add(entry.name)
            if entry.kind is Kind.DIRECTORY:
                self._directories.append((entry.path, set()))
            yield entry

    def names_in(self, directory: bytes) -> set[bytes]:
        """A set that grows while the list is read. `directory` must be on the way."""
        return next((names for path, names in reversed(self._directories) if path == directory), set())


class Clearing:
    """Deletes in `target` what `selection` takes, and tells it in `steps`."""

    def __init__(
        self,
        target: Target,
        selection: Selection | None,
        steps: Steps,
        report: Callable[[StorageError], None],
    ) -> None:
        self._target = target
        self._selection = selection
        self._steps = steps
        self._report = report

    def delete(self, directory: bytes, names: set[bytes], place: Place | None, *, is_elsewhere: bool) -> None:
        """Delete the `names` in the `directory` at `place`; what must stay, or cannot be deleted, is told.

        `is_elsewhere`: it is in a file system that is mounted in the target.
        """
        if names and is_elsewhere:
            self._report(other_file_system(directory))
            return
        if names and not self._steps.dry_run:
            self._target.sync()  # it may be the only copy of what was restored in another place
        for name in sorted(names):
            path = join(directory, name)
            try:
                found = self._target.find_to_remove(path)
                if found is None:
                    continue
                if self._selection is not None and place is not None:
                    self._delete_selected(found, self._selection, place)
                else:
                    self._delete_all(found)
            except StorageError as error:
                self._steps.failed(self._target.is_gone)
                self._report(error)
            except OSError as exc:
                self._steps.failed(self._target.is_gone)
                if is_fatal(exc):
                    raise
                self._report(StorageError(f"cannot be deleted completely ({exc.strerror})", path=path))

    def _delete_selected(self, found: Found, selection: Selection, place: Place) -> None:
        for item in self._target.selected_below(found, selection, place, self._report):
            if self._steps.begin(Step.DELETED, item.path):
                self._target.delete(item)
            self._steps.done()

    def _delete_all(self, found: Found) -> None:
        self.begin(found)
        if not self._steps.dry_run:
            self._target.make_way(found)
        self._steps.done()

    def begin(self, found: Found, *, itself: bool = True) -> None:
        """Begin a step for all that goes with what was `found`, if it may go. Raises StorageError."""
        self._target.check_may_go(found, open_up=not self._steps.dry_run)
        for below in self._target.below(found.path, open_up=not self._steps.dry_run):
            if itself or below != found.path:
                self._steps.begin(Step.DELETED, below)
