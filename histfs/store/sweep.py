"""What became of each path between the last list and the source: both are in metadata order, and go by side by side.

Most paths are as they were. Where the ledger (see `ledger`) is that of the last list, runs of them are passed over in C
and carried over as bytes (`Carried`); all others come one by one, with their last entries. Without it all do.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError
from histfs.store.compression import read_decompressed
from histfs.store.entry import Ascent, Entry, Extras, is_below, sort_key
from histfs.store.format.attributes import parse_access_control_list, parse_extended_attributes
from histfs.store.format.ledger import SEEN_BYTES, Header, Seen
from histfs.store.format.metadata import parse_record
from histfs.store.format.quoting import NO_QUOTING, Quoting
from histfs.store.ledger import Ledger, Lists, named
from histfs.store.source import Found, Source
from histfs.store.tree import Tree
from histfs.store.unreadable import Unreadable
from histfs.store.walk import Level, Passed, Walk, Why, status_of


class Carried(NamedTuple):
    """A run of paths that are as they were."""

    files: int
    file_bytes: int
    records: bytes  # of the list
    lines: bytes  # of the statistics of files
    number: int  # of the first record in the old ledger
    seen: bytes  # those records
    xattrs: bytes  # the records beside the list
    acls: bytes
    links: list[tuple[bytes, bytes]]  # of each file with other links: its records in the list and in the ledger


class Above(NamedTuple):
    """A directory that was carried over: what comes next lies in it."""

    entry: Entry
    found: Found
    number: int  # of its record in the new list


class Pair(NamedTuple):
    """A path: its last entry, and what is there now."""

    old: Entry | None
    found: Found | Unreadable | None

    @property
    def is_linked(self) -> bool:
        """Whether there are, or were, other links of the file."""
        now = None if self.found is None or isinstance(self.found, Unreadable) else self.found.entry
        return any(entry is not None and entry.link_group is not None for entry in (self.old, now))


class _Went(NamedTuple):
    """What the list has next lay in this directory."""

    directory: bytes


Step = Carried | Above | Pair
_Skip = Callable[[bytes, os.stat_result], bool]


def _is_next(ascent: Ascent, item: Found | Unreadable) -> bool:
    """Whether it comes after all before it; what is said of a listing may follow its directory."""
    return ascent.takes(item.path) or (isinstance(item, Unreadable) and item.is_listing and ascent.is_at(item.path))


def pairs(old: Iterator[Entry], found: Iterator[Found | Unreadable]) -> Iterator[Pair]:
    """Each path of both, which are in metadata order, one by one."""
    found = filter(partial(_is_next, Ascent()), found)
    entry = next(old, None)
    item = next(found, None)
    while entry is not None or item is not None:
        if item is None or (entry is not None and sort_key(entry.path) < sort_key(item.path)):
            yield Pair(entry, None)
            entry = next(old, None)
        elif entry is None or entry.path != item.path:
            yield Pair(None, item)
            item = next(found, None)
        else:
            yield Pair(entry, item)
            entry, item = next(old, None), next(found, None)


def text_of(tree: Tree, path: bytes | None, stack: ExitStack) -> Iterator[bytes]:
    """The text of a list, in blocks. Raises OSError, and DamagedError as it is read."""
    if path is None:
        return iter(())
    fd = tree.open_file(path)
    stack.callback(os.close, fd)
    return read_decompressed(fd)


class _Text:
    """Text in blocks, of which pieces are taken one after the other."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._text = b""
        self._at = 0

    def peek(self, size: int) -> bytes:
        """The next piece; a shorter one at the end."""
        while len(self._text) - self._at < size and (block := next(self._blocks, None)) is not None:
            self._text, self._at = self._text[self._at :] + block, 0
        return self._text[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        piece = self.peek(size)
        self._at += len(piece)
        return piece


def _last_path(records: bytes) -> bytes:
    """That of what C has passed over, whose names are written as they are."""
    start = records.rfind(b"\nFile ") + 1
    return records[start + len(b"File ") : records.index(b"\n", start)]


class OldExtras:
    """What the last session recorded beside its list. Its ledger says how long the records of each path are."""

    def __init__(self, xattrs: Iterator[bytes], acls: Iterator[bytes]) -> None:
        self._xattrs, self._acls = _Text(xattrs), _Text(acls)

    @classmethod
    def open(cls, tree: Tree, lists: Lists, which: Extras, header: Header, stack: ExitStack) -> "OldExtras | None":
        """Those of `which`, beside the list of a ledger with this header.

        None if they are damaged, or name other users and groups now than they did.
        """
        _, xattrs, acls = lists
        wanted = (xattrs if which.xattrs else None, acls if which.acls else None)
        try:
            for _ in text_of(tree, wanted[0], stack):
                pass
            if named(text_of(tree, wanted[1], stack)) != header.named:
                return None
        except DamagedError:
            return None
        return cls(*(text_of(tree, path, stack) for path in wanted))

    def added_to(self, entry: Entry, seen: Seen) -> Entry:
        """`entry`, which is the next one, with its records. Raises FormatError."""
        return _dressed(entry, self._xattrs.peek(seen.xattrs_bytes), self._acls.peek(seen.acl_bytes))

    def take(self, xattrs_bytes: int, acls_bytes: int) -> tuple[bytes, bytes]:
        return self._xattrs.take(xattrs_bytes), self._acls.take(acls_bytes)


def _dressed(entry: Entry, xattrs: bytes, acl: bytes) -> Entry:
    """`entry` with what its records say, if there are any."""
    if xattrs:
        attributes = parse_extended_attributes(xattrs)
        _check_same(attributes.path, entry)
        entry = entry._replace(xattrs=tuple(sorted(attributes.values.items())))
    if acl:
        rules = parse_access_control_list(acl)
        _check_same(rules.path, entry)
        entry = entry._replace(acl=rules.entries)
    return entry


def _check_same(path: bytes, entry: Entry) -> None:
    if path != entry.path:
        raise FormatError("the attributes are those of another path", path=path)


class OldList:
    """The last list, record by record, with what the session saw. `blocks`: of its text.

    What it recorded beside the list is taken from `extras`; None: `dressed` adds it, and nothing is passed over.
    """

    def __init__(
        self, blocks: Iterator[bytes], ledger: Ledger, dressed: Callable[[Entry], Entry], extras: OldExtras | None
    ) -> None:
        self._extras = extras
        self._blocks = blocks
        self._following: bytes | None = next(blocks, None)
        self._seen_blocks = ledger.blocks()
        self._dressed = dressed
        self._next: tuple[Entry, Seen] | None = None
        self._ascent = Ascent()
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
        self._ascent.takes(_last_path(records))
        seen = self.seen[start * SEEN_BYTES : self.seen_at * SEEN_BYTES]
        assert self._extras is not None
        beside = self._extras.take(passed.xattrs_bytes, passed.acls_bytes)
        links = [self._link(*places) for places in passed.links]
        number = self.number + start
        return Carried(passed.files, passed.file_bytes, records, passed.lines, number, seen, *beside, links)

    def _link(self, text_at: int, seen_at: int) -> tuple[bytes, bytes]:
        data = self.seen[seen_at * SEEN_BYTES : (seen_at + 1) * SEEN_BYTES]
        return self.text[text_at : text_at + Seen.parse(data).record_bytes], data

    def peek(self) -> tuple[Entry, Seen] | None:
        """The next record; None at the end."""
        while self._next is None and (self.at < len(self.text) or self.more_text()):
            if self.seen_at * SEEN_BYTES == len(self.seen):
                self.more_seen()
            seen = Seen.parse(self.seen, self.seen_at * SEEN_BYTES)
            while self.at + seen.record_bytes > len(self.text) and self.more_text():
                pass
            record = self.text[self.at : self.at + seen.record_bytes]
            entry = parse_record(record)
            if not self._ascent.takes(entry.path):
                self._skip(seen)
                continue
            dressed = self._dressed(entry) if self._extras is None else self._extras.added_to(entry, seen)
            self._next = dressed, seen
        return self._next

    def take(self) -> None:
        """Go on to the record after the next one."""
        assert self._next is not None
        self._skip(self._next[1])
        self._next = None

    def _skip(self, seen: Seen) -> None:
        if self._extras is not None:
            self._extras.take(seen.xattrs_bytes, seen.acl_bytes)
        self.at += seen.record_bytes
        self.seen_at += 1


class Sweep:
    """Goes through the source and the last list. `mirror`: the descriptor of the mirror; -1: nothing is passed over.

    `quoting`: of names in the mirror. `skipped`: device and inode of a directory that is not passed over.
    `line_end`: of the lines of the statistics of files; b"" for none. `written`: how many records the new list has.
    As long as no other file with several links was met, those that are as they were are passed over, if at all.
    """

    def __init__(
        self,
        source: Source,
        old: OldList,
        mirror: int,
        *,
        line_end: bytes,
        written: Callable[[], int],
        passes_links: bool,
        skipped: tuple[int, int],
        quoting: Quoting = NO_QUOTING,
    ) -> None:
        self._source = source
        self._passes_links = passes_links
        self._old = old
        self._mirror = mirror
        self._skipped = skipped
        self._quoting = quoting
        self._line_end = line_end
        self._written = written
        self._walk: Walk | None = None
        self._root_owner: tuple[int, int] | None = None
        self._error = 0
        self._entered_by_passing: list[Above] = []
        self._entered: tuple[bytes, int] | None = None  # the directory that was found last, and its change time

    def steps(self, is_skipped: _Skip) -> Iterator[Step]:
        for step in self._steps(is_skipped):
            if isinstance(step, Pair) and self._passes_links and step.is_linked:
                self._passes_links = False
                if self._walk is not None:
                    self._walk.stop_at_links()
            yield step

    def _steps(self, is_skipped: _Skip) -> Iterator[Step]:
        ascent = Ascent()
        for item in self._source.walk(is_skipped, self):
            if isinstance(item, Carried):
                ascent.takes(_last_path(item.records))
                yield item
                continue
            if not isinstance(item, _Went) and not _is_next(ascent, item):
                continue
            yield from self._above(item.directory if isinstance(item, _Went) else item.path)
            if isinstance(item, _Went):
                yield from self._gone(partial(_lies_in, item.directory))
                continue
            yield from self._gone(partial(_comes_before, sort_key(item.path)))
            yield self._paired(item)
        yield from self._gone(lambda _: True)

    def _above(self, path: bytes) -> Iterator[Above]:
        """The directories above `path` that were passed over, and not told of yet."""
        for above in self._entered_by_passing:
            if is_below(path, above.entry.path):
                yield above
        self._entered_by_passing.clear()

    def _keep_levels(self, levels: list[Level], run: Carried) -> None:
        """Remember the directories that the walk is in since it has passed over `run`."""
        known = self._entered_by_passing
        for level in levels:
            while known and not is_below(level.path, known[-1].entry.path):
                known.pop()
            seen, status = level.seen, status_of(level.seen)
            xattrs = run.xattrs[level.xattrs_at :][: seen.xattrs_bytes]
            acl = run.acls[level.acl_at :][: seen.acl_bytes]
            entry = _dressed(parse_record(level.record), xattrs, acl)
            known.append(Above(entry, Found(entry, status), level.number))

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
        if item.is_scanned and self._walk is not None:
            self._walk.rely(old.path, seen.mirror_ctime_ns)
        now = item.status
        is_suspect = seen.may_have_changed(now.st_ino, now.st_dev, now.st_ctime_ns)
        return Pair(old, item._replace(is_suspect=True) if is_suspect else item)

    # What the walk asks

    def new_walk(self) -> Walk:
        """See `source.Forward`."""
        return Walk(self._mirror, self._skipped, self._quoting)

    def pass_over(self, walk: Walk) -> Iterator[Carried | _Went]:
        """See `source.Forward`."""
        if self._walk is None:
            self._walk = walk
            if self._root_owner is not None:
                walk.trust(*self._root_owner)
            if not self._passes_links:
                walk.stop_at_links()
        self._error = 0
        old = self._old
        while True:
            passed = walk.compare(
                old.text,
                old.at,
                old.seen,
                old.seen_at,
                is_last=old.is_last,
                number=old.number + old.seen_at,
                first_number=self._written() - old.seen_at,
                line_end=self._line_end,
            )
            if passed.files:
                run = old.pass_over(passed)
                self._keep_levels(walk.levels(), run)
                yield run
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
                case Why.FULL:
                    pass
                case _:
                    return

    def error(self) -> int:
        error, self._error = self._error, 0
        return error

    def mirror_ctime_ns(self, path: bytes) -> int:
        if self._entered is None or self._entered[0] != path or self._mirror < 0:
            return 0
        ctime_ns = self._entered[1]
        # Whether that of the root is still right nobody else looks at.
        return ctime_ns if path or os.fstat(self._mirror).st_ctime_ns == ctime_ns else 0


def _lies_in(directory: bytes, entry: Entry) -> bool:
    return is_below(entry.path, directory)


def _comes_before(key: bytes, entry: Entry) -> bool:
    return sort_key(entry.path) < key


def _owner(entry: Entry) -> tuple[int, bytes | None, int, bytes | None]:
    return entry.uid, entry.uname, entry.gid, entry.gname
