"""First sessions: what one has brought to the disk stays there if it is cut off, and the next one goes on with it.

Every few seconds, in a thread of its own, there is a barrier, and then what was copied before it is noted in a journal
(`format.journal`). So what the journal says is on the disk, also after a power cut. The next session keeps the copy of
each file that is in the source as it was then: the same inode number, size, modification and change time. What is not
noted may be torn: a small copy stays if it has the content of the source's file, byte by byte, and all else goes. A
finished session has no journal.

No note outlives the copy that it is about. Before one that is noted goes, or is made again, its note is revoked, and
that is on the disk: else a third session could believe what the first one noted of what the second one was writing
when the power was cut. A session that does not wait for the disk keeps no journal, and removes one that is there.
"""

import heapq
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from histfs.errors import DamagedError, FormatError, UnfinishedError
from histfs.store import held
from histfs.store.batch import Batch
from histfs.store.copying import Copies
from histfs.store.emptying import check_one_file_system
from histfs.store.entry import Entry, Kind, is_below, join, name_of, parent_of, sort_key
from histfs.store.files import Attributes, WritableTree
from histfs.store.format.journal import (
    BEGIN,
    FILES,
    HEADER_BYTES,
    REVOKED,
    Block,
    Copied,
    format_block,
    format_copied,
    format_revoked,
    parse_block,
    parse_copied,
    parse_revoked,
)
from histfs.store.format.names import parse_increment_name
from histfs.store.layout import CHARS_TO_QUOTE, DATA, INCREMENTS, LOCK, OWN, SPECIAL_ESCAPES
from histfs.store.ledger import settled_ns
from histfs.store.owners import Owners
from histfs.store.source import Found, Source
from histfs.store.tree import NotRegularError, Tree, read_at
from histfs.store.walk import fits, seen_of

log = logging.getLogger(__name__)

BEGUN = join(OWN, b"begun")
INTERVAL_S = 1.0  # of work that a first session may lose; what it waits for at its end has mostly been written then
_MOST_PENDING_BYTES = 8 << 20  # of notes
_MOST_BLOCK_BYTES = 64 << 20
_MOST_AHEAD = 4096  # notes that are revoked together


def has_begun(tree: Tree) -> bool:
    """Whether a first session has left something to go on with. Raises OSError."""
    left = Left.open(tree, None)
    if left is None:
        return False
    left.close()
    return True


def discard(tree: WritableTree) -> None:
    """Remove the journal, for good. Raises OSError."""
    if tree.exists(BEGUN):
        tree.remove_tree(BEGUN)
        tree.sync_directory(OWN, always=True)


def undo_first_session(
    tree: WritableTree, path: Path, check_emptying: Callable[[WritableTree], None] | None, *, goes_on: bool
) -> bool:
    """Empty a repository whose first session died: nothing in it was ever finished. Whether there was one.

    If the next one `goes_on`, what it can go on with stays, as a session that had not come any further.
    """
    names = set(tree.names(DATA)) - {LOCK.rpartition(b"/")[2]}
    others = [name for name in tree.names(b"") if name != DATA]
    began = INCREMENTS.rpartition(b"/")[2] in names  # which a first session makes before anything else
    if others and not began:
        if check_emptying is None:
            raise UnfinishedError(
                "holds files, and an rdiff-backup-data in which no session was recorded",
                path=path,
                advice="choose another directory, or empty this one",
            )
        check_emptying(tree)
    if not names and not others:
        return False
    if any(parse_increment_name(name) for _, name in tree.files_below(INCREMENTS)):
        raise DamagedError(
            "has increments but no current_mirror marker, so that nothing tells which session is the newest", path=path
        )
    check_one_file_system(tree, path)
    if goes_on and began and has_begun(tree):
        stay = {INCREMENTS, OWN, BEGUN}
        remove = [join(DATA, name) for name in names] + [join(OWN, name) for name in tree.names(OWN)]
        for name in remove:
            if name not in stay:
                tree.remove_tree(name)
        return True
    discard(tree)
    for name in others:
        tree.remove_tree(name)
    tree.sync()  # what tells that these were no finished session goes after them
    for name in names:
        tree.remove_tree(join(DATA, name))
    tree.sync()
    return bool(names)


class _Line(NamedTuple):
    """What one block of the journal says of one path; `copied` is None if it is revoked there."""

    key: bytes
    at: int  # where the block is
    path: bytes
    copied: Copied | None


class _Note(NamedTuple):
    """What holds of one path."""

    key: bytes
    path: bytes
    copies: list[Copied]


class Left:
    """What is noted in a journal, in metadata order: what is passed over and not kept is to be revoked. Close it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.end = 0  # of what is whole
        self._runs: list[tuple[int, int]] = []  # where the blocks of each session are
        self._notes: Iterator[_Note] = iter(())
        self._next: deque[_Note] = deque()
        self._revoked = 0  # so many of these are revoked
        self._passed: list[bytes] = []  # and not kept, and not revoked yet

    @classmethod
    def open(cls, tree: Tree, layout: bytes | None) -> "Left | None":
        """None where nothing is noted, or where names had another `layout` (None: it may be any). Raises OSError."""
        try:
            fd = tree.open_file(BEGUN)
        except (FileNotFoundError, NotADirectoryError, NotRegularError):
            return None
        left = cls(fd)
        try:
            if left._scan(layout):
                return left
        except BaseException:
            left.close()
            raise
        left.close()
        return None

    def close(self) -> None:
        os.close(self._fd)

    def _scan(self, layout: bytes | None) -> bool:
        """Find the blocks that are whole; whether there are files in them."""
        while (block := self._block(self.end)) is not None:
            payload = self._payload(self.end, block)
            if not block.is_of(payload):
                break
            end = self.end + HEADER_BYTES + block.size_bytes
            if block.kind == BEGIN:
                if layout is not None and payload != layout:
                    return False
                self._runs.append((end, end))
            elif not self._runs or (block.kind == REVOKED and not _are_paths(payload)):
                return False
            else:
                self._runs[-1] = self._runs[-1][0], end
            self.end = end
        runs = [self._run(start, end, kind) for start, end in self._runs for kind in (FILES, REVOKED)]
        self._notes = _what_holds(heapq.merge(*runs))
        return self._peek() is not None

    def _block(self, at: int) -> Block | None:
        block = parse_block(read_at(self._fd, HEADER_BYTES, at))
        return None if block is None or block.size_bytes > _MOST_BLOCK_BYTES else block

    def _payload(self, at: int, block: Block) -> bytes:
        return read_at(self._fd, block.size_bytes, at + HEADER_BYTES)

    def _run(self, at: int, end: int, kind: bytes) -> Iterator[_Line]:
        while at < end and (block := self._block(at)) is not None:
            payload = self._payload(at, block) if block.kind == kind else b""
            if kind == REVOKED:
                for path in parse_revoked(payload):
                    yield _Line(sort_key(path), at, path, None)
            else:
                try:
                    for copied in parse_copied(payload):
                        yield _Line(sort_key(copied.path), at, copied.path, copied)
                except FormatError as exc:
                    log.warning("what a session had copied is copied again, as far as it is not noted: %s", exc)
                    return
            at += HEADER_BYTES + block.size_bytes

    def _peek(self) -> _Note | None:
        if not self._next and (note := next(self._notes, None)) is not None:
            self._next.append(note)
        return self._next[0] if self._next else None

    def _pop(self, *, is_kept: bool = False) -> None:
        note = self._next.popleft()
        if self._revoked:
            self._revoked -= 1
        elif not is_kept:
            self._passed.append(note.path)

    def sha1_of(self, found: Found) -> bytes | None:
        """The SHA1 (hex) of the copy of what was `found`; None if it is not as it was. Ask in metadata order."""
        key = sort_key(found.path)
        while (note := self._peek()) is not None and note.key < key:
            self._pop()
        if note is None or note.path != found.path:
            return None
        as_seen = (copied.sha1 for copied in reversed(note.copies) if _is_as_seen(copied, found.status))
        return next(as_seen, None)

    def keep(self) -> None:
        """The copy that the last answer was about stays."""
        self._pop(is_kept=True)

    def pass_over(self, path: bytes, *, also_below: bool = True) -> None:
        """Come to the end of `path`, and of what is in it."""
        key = sort_key(path)
        while (note := self._peek()) is not None:
            if note.key > key and not (also_below and is_below(note.path, path)):
                break
            self._pop()

    def revoked(self, ahead: int) -> list[bytes]:
        """What is to be revoked now, if anything must be; and then the next notes as well, as many as `ahead`."""
        paths, self._passed = self._passed, []
        if paths:
            while len(self._next) < ahead and (note := next(self._notes, None)) is not None:
                self._next.append(note)
            paths += [note.path for number, note in enumerate(self._next) if number >= self._revoked]
            self._revoked = len(self._next)
        return paths


def _are_paths(payload: bytes) -> bool:
    try:
        deque(parse_revoked(payload), maxlen=0)
    except FormatError as exc:
        log.warning("what a session had copied is copied again: %s", exc)
        return False
    return True


def _what_holds(lines: Iterable[_Line]) -> Iterator[_Note]:
    """Of each path in the order of its `lines`."""
    for key, of_path in groupby(lines, lambda line: line.key):
        copies: list[Copied] = []
        for line in of_path:
            if line.copied is None:
                copies.clear()
            else:
                copies.append(line.copied)
        if copies:
            yield _Note(key, copies[0].path, copies)


def _is_as_seen(copied: Copied, status: os.stat_result) -> bool:
    """The device may have got another number since: disks are counted when they are found."""
    return copied.seen._replace(device=0, flags=0) == seen_of(status)._replace(device=0, flags=0)


class FirstSession:
    """What a first session finds of one before it, and notes for one after it. A context manager.

    Paths in the mirror are on-disk paths. `since_ns`: when the session began.
    """

    def __init__(
        self, tree: WritableTree, source: Source, batch: Batch, owners: Owners, copies: Copies, since_ns: int
    ) -> None:
        self._tree = tree
        self._copies = copies
        self._batch = batch
        self._attributes = held.MirrorAttributes(source.extras, owners).of
        self._layout = b"\0".join(tree.read_small_file(path, limit=4096) for path in (CHARS_TO_QUOTE, SPECIAL_ESCAPES))
        self._left = Left.open(tree, self._layout)
        self._is_clean = not tree.exists(BEGUN)
        self._has_journal = tree.waits_for_disk
        if self._left is None or not self._has_journal:
            discard(tree)
        self._names: dict[bytes, set[bytes]] = {}  # in directories that the session is in: what it has not met yet
        self._settled_ns = settled_ns(since_ns)
        self._thread = ThreadPoolExecutor(1)
        self._noting: Future[None] | None = None
        self._pending = bytearray()
        self._noted_at = time.monotonic()
        self._writing = threading.Lock()
        self._end = 0 if self._left is None else self._left.end
        self._has_begun = False
        self._ahead = 0  # so many notes are revoked with one that must be: as many as were before, so few waits do
        self.kept_files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._left is not None:
            self._left.close()

    # What is there

    def enter(self, path: bytes, named: bytes) -> bool:
        """Whether the mirror has the new directory `path` already; the source calls it `named`."""
        if self._is_clean:
            return False
        if self._left is not None:
            self._left.pass_over(named, also_below=False)
            self._revoke()
        above = self._names.get(parent_of(path), set()) if path else set()
        is_there = not path or name_of(path) in above
        above.discard(name_of(path))
        if not is_there:
            return False
        if not held.open_up(self._tree, path):
            self._tree.remove_tree(path)
            return False
        self._names[path] = set(self._tree.names(path)) - (set() if path else {DATA})
        return True

    def leave(self, path: bytes, named: bytes) -> None:
        """Remove what is left in the directory of what the source does not have; the source calls it `named`."""
        names = sorted(self._names.pop(path, ()))
        if names and self._left is not None:
            self._left.pass_over(named)
            self._revoke()
        for name in names:
            self._tree.remove_tree(join(path, name))

    def take(self, found: Found, path: bytes) -> bytes | None:
        """The SHA1 (hex) of the copy of what was `found`, if it is at the new name `path`.

        What else is there goes, but for what may turn out to be the copy when it is compared.
        """
        names = self._names.get(parent_of(path), set())
        is_there = name_of(path) in names
        names.discard(name_of(path))
        sha1 = None if self._left is None else self._left.sha1_of(found)
        there = self._whole(found, path) if sha1 is not None and is_there else None
        if self._left is not None and there is not None:
            self._left.keep()
            attributes = self._attributes(found.entry, found.status)
            if not self._is_dressed(path, there, attributes):
                self._batch.set_attributes(path, Kind.REGULAR, attributes)
            self.kept_files += 1
            return sha1
        if self._left is not None:
            self._left.pass_over(found.path)
            self._revoke()
        if is_there and self._copies.can_take(found) and self._is_a_file(path, found.status.st_size):
            self._copies.may_stay.add(path)
        elif is_there:
            self._tree.remove_tree(path)
        return None

    def _is_a_file(self, path: bytes, size_bytes: int) -> bool:
        there = self._tree.stat(path)
        return stat.S_ISREG(there.st_mode) and there.st_nlink == 1 and there.st_size == size_bytes

    def _whole(self, found: Found, path: bytes) -> os.stat_result | None:
        """The copy that is at `path`; None if it is not what was copied of what was `found`."""
        if found.is_suspect:
            return None
        there = self._tree.stat(path)
        is_plain = stat.S_ISREG(there.st_mode) and there.st_nlink == 1
        size_and_time = there.st_size, there.st_mtime_ns // 10**9
        is_whole = is_plain and size_and_time == (found.status.st_size, found.entry.mtime_s)
        return there if is_whole and found.has_time_of(there) else None

    def _is_dressed(self, path: bytes, there: os.stat_result, wanted: Attributes) -> bool:
        """Whether the copy has all that it should have, as most have."""
        has = stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid, there.st_mtime_ns
        if has != wanted[:4] or wanted.xattrs or wanted.acl:
            return False
        return (wanted.xattrs is None and wanted.acl is None) or not self._tree.xattr_names(path)

    # What is noted

    def add(self, record: Entry, found: Found) -> None:
        """The mirror has all of the file. Raises what stopped the barrier."""
        status = found.status
        is_plain = record.kind is Kind.REGULAR and status.st_nlink == 1 and record.alternate_mirror is None
        is_settled = status.st_ctime_ns < self._settled_ns and fits(status)
        if self._has_journal and is_plain and record.sha1 is not None and is_settled:
            self._pending += format_copied(Copied(record.path, record.sha1, seen_of(status)))
        is_time = time.monotonic() - self._noted_at >= INTERVAL_S or len(self._pending) >= _MOST_PENDING_BYTES
        if is_time and self._pending and (self._noting is None or self._noting.done()):
            self.wait()
            self._noting = self._thread.submit(self._note, bytes(self._pending))
            self._pending.clear()

    def wait(self) -> None:
        """Until nothing runs any more. Raises what stopped it."""
        if self._noting is not None:
            self._noting.result()
            self._noting = None

    def _note(self, files: bytes) -> None:
        """In a thread: what `files` tells of is on the disk, and then the note of it."""
        self._tree.sync()
        self._append(format_block(FILES, files))
        self._noted_at = time.monotonic()

    def _revoke(self) -> None:
        """What was passed over and not kept is not noted any more, and that is on the disk."""
        assert self._left is not None
        paths = self._left.revoked(self._ahead)
        if paths and self._has_journal:
            self._append(format_block(REVOKED, b"".join(map(format_revoked, paths))))
            self._ahead = min(self._ahead + len(paths), _MOST_AHEAD)

    def _append(self, block: bytes) -> None:
        with self._writing:
            blocks = [block] if self._has_begun else [format_block(BEGIN, self._layout), block]
            if self._end == 0:
                self._tree.make_directories(OWN)
                self._tree.remove_tree(BEGUN)
                os.close(self._tree.create_file(BEGUN))
            fd = self._tree.open_to_change(BEGUN, size=self._end)  # what is not whole goes
            os.lseek(fd, self._end, os.SEEK_SET)
            self._end += self._tree.fill_file(fd, BEGUN, blocks, durable=True)
            if not self._has_begun:
                self._has_begun = True
                self._tree.sync_directory(OWN)
                self._tree.sync_directory(DATA)
