"""What became of each path between the last list and the source: both are in metadata order, and go by side by side.

Most paths are as they were. Where the ledger (see `ledger`) is that of the last list, runs of them are passed over in C
and carried over as bytes (`Carried`); all others come one by one, with their last entries. Without it all do.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from typing import NamedTuple

from histfs.store.entry import Entry, is_below, sort_key
from histfs.store.format.ledger import SEEN_BYTES, Seen
from histfs.store.format.metadata import parse_record
from histfs.store.ledger import Ledger
from histfs.store.look import entry_of
from histfs.store.source import Found, Source, Unreadable, paired
from histfs.store.walk import Passed, Walk, Why, status_of


class Carried(NamedTuple):
    """A run of paths that are as they were."""

    files: int
    file_bytes: int
    records: bytes  # of the list
    lines: bytes  # of the statistics of files
    number: int  # of the first record in the old ledger
    seen: bytes  # those records


class Above(NamedTuple):
    """A directory that was carried over: what comes next lies in it."""

    entry: Entry
    found: Found
    number: int  # of its record in the new list


class Pair(NamedTuple):
    """A path: its last entry, and what is there now."""

    old: Entry | None
    found: Found | Unreadable | None


class _Went(NamedTuple):
    """What the list has next lay in this directory."""

    directory: bytes


Step = Carried | Above | Pair
_Skip = Callable[[bytes, os.stat_result], bool]


def pairs(old: Iterator[Entry], found: Iterator[Found | Unreadable]) -> Iterator[Pair]:
    """Each path of both, one by one."""
    return starmap(Pair, paired(old, found))


class OldList:
    """The last list, record by record, with what the session saw. `blocks`: of its text."""

    def __init__(self, blocks: Iterator[bytes], ledger: Ledger, dressed: Callable[[Entry], Entry]) -> None:
        self._blocks = blocks
        self._following: bytes | None = next(blocks, None)
        self._seen_blocks = ledger.blocks()
        self._dressed = dressed
        self._next: tuple[Entry, Seen] | None = None
        self.text = b""
        self.at = 0
        self.seen = b""
        self.seen_at = 0
        self.number = 0  # of the record at `seen`
        self.more_text()
        self.more_seen()

    @property
    def is_last(self) -> bool:
        """Whether nothing follows `text`."""
        return self._following is None

    def more_text(self) -> bool:
        if self._following is None:
            return False
        self.text = self.text[self.at :] + self._following
        self.at = 0
        self._following = next(self._blocks, None)
        return True

    def more_seen(self) -> bool:
        block = next(self._seen_blocks, b"")
        self.number += self.seen_at
        self.seen, self.seen_at = self.seen[self.seen_at * SEEN_BYTES :] + block, 0
        return bool(block)

    def pass_over(self, passed: Passed) -> Carried:
        records = self.text[self.at : self.at + passed.text_bytes]
        start = self.seen_at
        self.at += passed.text_bytes
        self.seen_at += passed.files
        self._next = None
        seen = self.seen[start * SEEN_BYTES : self.seen_at * SEEN_BYTES]
        return Carried(passed.files, passed.file_bytes, records, passed.lines, self.number + start, seen)

    def peek(self) -> tuple[Entry, Seen] | None:
        """The next record; None at the end."""
        if self._next is None and (self.at < len(self.text) or self.more_text()):
            if self.seen_at * SEEN_BYTES == len(self.seen):
                self.more_seen()
            seen = Seen.parse(self.seen, self.seen_at * SEEN_BYTES)
            while self.at + seen.record_bytes > len(self.text) and self.more_text():
                pass
            record = self.text[self.at : self.at + seen.record_bytes]
            self._next = self._dressed(parse_record(record)), seen
        return self._next

    def take(self) -> None:
        """Go on to the record after the next one."""
        assert self._next is not None
        self.at += self._next[1].record_bytes
        self.seen_at += 1
        self._next = None


class Sweep:
    """Goes through the source and the last list. `mirror`: the descriptor of the mirror; -1: nothing is passed over.

    `line_end`: of the lines of the statistics of files; b"" for none. `written`: how many records the new list has.
    """

    def __init__(
        self,
        source: Source,
        old: OldList,
        mirror: int,
        *,
        line_end: bytes,
        written: Callable[[], int],
    ) -> None:
        self._source = source
        self._old = old
        self.mirror = mirror
        self._line_end = line_end
        self._written = written
        self._walk: Walk | None = None
        self._root_owner: tuple[int, int] | None = None
        self._error = 0
        self._entered: tuple[bytes, int] | None = None  # the directory that was found last, and its change time

    def steps(self, is_skipped: _Skip, skipped: tuple[int, int]) -> Iterator[Step]:
        for item in self._source.walk(is_skipped, self, skipped):
            if isinstance(item, Carried):
                yield item
                continue
            yield from self._above()
            if isinstance(item, _Went):
                yield from self._gone(partial(_lies_in, item.directory))
                continue
            yield from self._gone(partial(_comes_before, sort_key(item.path)))
            yield self._paired(item)
        yield from self._gone(lambda _: True)

    def _above(self) -> Iterator[Above]:
        if self._walk is None:
            return
        for level in self._walk.levels():
            status = status_of(level.seen)
            yield Above(parse_record(level.record), Found(entry_of(level.path, status), status), level.number)

    def _gone(self, is_gone: Callable[[Entry], bool]) -> Iterator[Pair]:
        while (there := self._old.peek()) is not None and is_gone(there[0]):
            self._old.take()
            yield Pair(there[0], None)

    def _paired(self, item: Found | Unreadable) -> Pair:
        there = self._old.peek()
        self._entered = None
        if there is None or there[0].path != item.path:
            return Pair(None, item)
        self._old.take()
        old, seen = there
        if isinstance(item, Unreadable):
            return Pair(old, item)
        if _owner(old) == _owner(item.entry):
            if self._walk is None:
                self._root_owner = old.uid, old.gid
            else:
                self._walk.trust(old.uid, old.gid)
        self._entered = old.path, seen.mirror_ctime_ns
        now = item.status
        is_suspect = seen.may_have_changed(now.st_ino, now.st_dev, now.st_ctime_ns)
        return Pair(old, item._replace(is_suspect=True) if is_suspect else item)

    # What the walk asks

    def pass_over(self, walk: Walk) -> Iterator[Carried | _Went]:
        """See `source.Forward`."""
        if self._walk is None:
            self._walk = walk
            if self._root_owner is not None:
                walk.trust(*self._root_owner)
        self._error = 0
        old = self._old
        while True:
            passed = walk.compare(
                old.text,
                old.at,
                old.seen,
                old.seen_at,
                is_last=old.is_last,
                first_number=self._written() - old.seen_at,
                line_end=self._line_end,
            )
            if passed.files:
                yield old.pass_over(passed)
            match passed.why:
                case Why.NEEDS_TEXT:
                    old.more_text()
                case Why.NEEDS_SEEN:
                    if not old.more_seen():
                        return
                case Why.WENT:
                    yield _Went(walk.here())
                case Why.UNLISTED:
                    self._error = passed.error
                    return
                case Why.LINES_FULL:
                    pass
                case _:
                    return

    def error(self) -> int:
        error, self._error = self._error, 0
        return error

    def mirror_ctime_ns(self, path: bytes) -> int:
        if self._entered is None or self._entered[0] != path or self.mirror < 0:
            return 0
        ctime_ns = self._entered[1]
        # Whether that of the root is still right nobody else looks at.
        return ctime_ns if path or os.fstat(self.mirror).st_ctime_ns == ctime_ns else 0


def _lies_in(directory: bytes, entry: Entry) -> bool:
    return is_below(entry.path, directory)


def _comes_before(key: bytes, entry: Entry) -> bool:
    return sort_key(entry.path) < key


def _owner(entry: Entry) -> tuple[int, bytes | None, int, bytes | None]:
    return entry.uid, entry.uname, entry.gid, entry.gname
