"""What became of the paths, in their order: copies of files finish later than what comes after them is looked at."""

from collections import deque
from collections.abc import Callable

from histfs.errors import SourceError
from histfs.store.begun import FirstSession
from histfs.store.entry import Entry
from histfs.store.layout import Layout
from histfs.store.ledger import LedgerWriter
from histfs.store.mirror import MirrorUpdate
from histfs.store.records import SessionRecords, Update
from histfs.store.source import Found
from histfs.store.sweep import Above, Carried

_MOST_WAITING = 5000
_MOST_WAITING_BYTES = 16 << 20

_One = tuple[Entry | None, Update, Found | None]


class Ordered:
    """Gives `records` and `ledger` what became of each path, in metadata order, as soon as it is known.

    `lost` is told of a new file that could not be copied, and nothing is recorded of it. `first`: the session has
    nothing before it.
    """

    def __init__(
        self,
        mirror: MirrorUpdate,
        records: SessionRecords,
        ledger: LedgerWriter,
        layout: Layout,
        lost: Callable[[SourceError], None],
        first: FirstSession | None = None,
    ) -> None:
        self._first = first
        self._mirror = mirror
        self._records = records
        self._ledger = ledger
        self._layout = layout
        self._lost = lost
        self._waiting: deque[_One | Carried] = deque()
        self._waiting_bytes = 0
        self.count = 0  # of records of the new list, those that wait among them
        mirror.before_changes = self.settle

    def add(self, old: Entry | None, update: Update, found: Found | None) -> None:
        """`found`: what was seen of it; None if the source could not tell."""
        self.count += update.record is not None
        if update.copy is None and not self._waiting:
            self._record(old, update, found)
            return
        self._waiting.append((old, update, found))
        self._settle_some()

    def pass_over(self, step: Carried | Above) -> None:
        """What is as it was; or: what comes next lies in a directory that was carried."""
        if isinstance(step, Above):
            self._mirror.update(step.entry, step.found)
            self._ledger.touch(self._layout.mirror_path(step.entry), step.number)
        else:
            self._pass_over(step)

    def _pass_over(self, run: Carried) -> None:
        self.count += run.files
        self._mirror.pass_links(run.links)
        if not self._waiting:
            self._carry(run)
            return
        self._waiting.append(run)
        self._waiting_bytes += len(run.records) + len(run.xattrs) + len(run.acls)
        self._settle_some()

    def settle(self) -> None:
        """Wait for all that was begun."""
        while self._waiting:
            self._settle_one()

    def _settle_some(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            copy = None if isinstance(first, Carried) else first[1].copy
            is_too_much = len(self._waiting) > _MOST_WAITING or self._waiting_bytes > _MOST_WAITING_BYTES
            if copy is not None and not copy.is_done() and not is_too_much:
                return
            self._settle_one()

    def _settle_one(self) -> None:
        first = self._waiting.popleft()
        if isinstance(first, Carried):
            self._waiting_bytes -= len(first.records) + len(first.xattrs) + len(first.acls)
            self._carry(first)
            return
        old, update, found = first
        if update.copy is not None:
            try:
                update = self._mirror.settle(update)
            except SourceError as error:
                self.count -= 1
                self._lost(error)
                return
        self._record(old, update, found)

    def _carry(self, run: Carried) -> None:
        self._records.carry(run)
        self._ledger.carry(run.number, run.seen)

    def _record(self, old: Entry | None, update: Update, found: Found | None) -> None:
        lengths = self._records.add(old, update)
        if update.record is not None:
            is_as_found = found is not None and update.record.kind is found.entry.kind and not update.is_kept
            path = self._layout.mirror_path(update.record)
            self._ledger.add(update.record, found if is_as_found else None, lengths, path)
            if self._first is not None and found is not None:
                self._first.add(update.record, found)
