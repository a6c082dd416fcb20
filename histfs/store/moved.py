"""Files that are elsewhere in the source now: the mirror has them already, and they are linked there, not copied again.

In the records a move is what it is to every reader, a name that went and another that came. What was moved is told by
the ledger: its inode number, or its size and time to the nanosecond, while nothing is left at its old path.
- Also its device and its change time are what they were, as with all that lies in a directory that was moved: it is the
  file that the last session saw, by what also tells that a file has not changed. The source is not read.
- Something is not, as with a file that was moved itself, or brought over from another file system: its content is read
  from the source, and linked if it is what was recorded.

The mirror's file has both names until the old one goes, which it does last of all, see `batch`. The increment of the
old path has bytes of its own: what is one inode would change for both.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from histfs._tree import ffi, lib
from histfs.store.batch import Batch
from histfs.store.compression import read_decompressed
from histfs.store.copying import Copies
from histfs.store.entry import Entry, Kind, is_below, join, parent_of, sort_key
from histfs.store.files import Attributes, WritableTree
from histfs.store.format.ledger import RACY, SEEN_BYTES, VALID, Seen
from histfs.store.format.metadata import parse_record
from histfs.store.held import MirrorAttributes
from histfs.store.layout import Layout
from histfs.store.ledger import BLOCK_RECORDS, Ledger
from histfs.store.look import entry_of, read_extras
from histfs.store.owners import Owners
from histfs.store.source import Found, Source
from histfs.store.strangers import remove_stranger
from histfs.store.tree import Tree, file_blocks
from histfs.store.walk import fits

SMALLEST = 16 * 1024  # bytes; to copy a file that is smaller takes no longer than to find out where it was
_MOST_ALIKE = 8
_BEHIND_BYTES = 1 << 20  # of the list that are kept of what has gone by
_MOST_TEXT_BYTES = 8 << 30  # that are inflated to find records: beyond that, what was moved is copied


class _Records:
    """The records of a list by their numbers: quick where they are asked for in about their order."""

    def __init__(self, tree: Tree, list_path: bytes, ledger: Ledger, block_starts: list[int]) -> None:
        self._tree = tree
        self._list_path = list_path
        self._ledger = ledger
        self._block_starts = block_starts  # where the records of each block of the ledger begin in the text
        self._block = -1
        self._starts: list[int] = []  # the same for each record of that block, and for what comes after it
        self._blocks: Iterator[bytes] = iter(())
        self._fd: int | None = None
        self._text = b""
        self._text_at = 0
        self._left = _MOST_TEXT_BYTES

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def entry(self, number: int) -> Entry | None:
        """None where it would take too long to find."""
        block, within = divmod(number, BLOCK_RECORDS)
        if block != self._block:
            data = self._ledger.block(block)
            sizes = (Seen.parse(data, at).record_bytes for at in range(0, len(data), SEEN_BYTES))
            self._starts = list(accumulate(sizes, initial=self._block_starts[block]))
            self._block = block
        start, end = self._starts[within : within + 2]
        if self._fd is None or start < self._text_at:
            self._begin()
        while self._text_at + len(self._text) < end:
            text = next(self._blocks, None)
            if text is None or self._left < 0:
                return None
            self._left -= len(text)
            gone = max(0, len(self._text) - _BEHIND_BYTES)
            self._text = self._text[gone:] + text
            self._text_at += gone
        return parse_record(self._text[start - self._text_at : end - self._text_at])

    def _begin(self) -> None:
        self.close()
        self._fd = self._tree.open_file(self._list_path)
        self._blocks = read_decompressed(self._fd)
        self._text, self._text_at = b"", 0


def may_have_moved(found: Found) -> bool:
    """Whether something new is such that it is looked for under another path."""
    status = found.status
    return found.entry.kind is Kind.REGULAR and status.st_nlink == 1 and status.st_size >= SMALLEST and fits(status)


class Before(NamedTuple):
    """What a file may have been before. `is_sure`: nothing of it has changed since."""

    entry: Entry
    is_sure: bool


class Places:
    """Where in the source files were in the last session, of which `ledger` and the list at `list_path` are."""

    def __init__(self, tree: Tree, ledger: Ledger, list_path: bytes) -> None:
        self._tree = tree
        self._ledger = ledger
        self._list_path = list_path
        self._index: Any = None
        self._records: _Records | None = None
        self._numbers = ffi.new("uint32_t[]", _MOST_ALIKE)

    def close(self) -> None:
        if self._records is not None:
            self._records.close()

    def of(self, status: os.stat_result) -> Iterator[Before]:
        """What the file of `status` may have been, as far as the ledger knows. Raises OSError."""
        records = self._prepared()
        what = status.st_ino, status.st_size, status.st_mtime_ns
        count = lib.histfs_moved_find(self._index, *what, self._numbers, _MOST_ALIKE)
        for number in dict.fromkeys(self._numbers[place] for place in range(count)):
            seen = self._ledger.record(number)
            if seen is None or (seen.size, seen.mtime_ns) != what[1:] or not _is_plain(seen):
                continue
            entry = records.entry(number)
            if entry is not None and entry.kind is Kind.REGULAR and entry.size_bytes == seen.size:
                now = status.st_ino, status.st_dev, status.st_ctime_ns
                is_sure = (seen.inode, seen.device, seen.ctime_ns) == now and not seen.flags & RACY
                yield Before(entry, is_sure)

    def _prepared(self) -> _Records:
        """Where the records are; made when it is asked for first."""
        if self._records is None:
            index = lib.histfs_moved_new(SMALLEST)
            if index == ffi.NULL:
                raise MemoryError
            self._index = ffi.gc(index, lib.histfs_moved_free)
            starts, number, text_bytes = [0], 0, ffi.new("uint64_t *")
            for block in self._ledger.blocks():
                count = len(block) // SEEN_BYTES
                seen = ffi.cast("struct histfs_seen *", ffi.from_buffer(block))
                if lib.histfs_moved_add(self._index, seen, count, number, text_bytes):
                    raise MemoryError
                number += count
                starts.append(starts[-1] + text_bytes[0])
            self._records = _Records(self._tree, self._list_path, self._ledger, starts)
        return self._records


def _is_plain(seen: Seen) -> bool:
    return bool(seen.flags & VALID) and stat.S_ISREG(seen.mode) and seen.nlink == 1


class Moves:
    """Links what was moved, in a session of `source`. Paths in the mirror are on-disk paths."""

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        source: Source,
        batch: Batch,
        copies: Copies,
        owners: Owners,
        places: Places,
    ) -> None:
        self._tree = tree
        self._layout = layout
        self._source = source
        self._batch = batch
        self._copies = copies
        self._owners = owners
        self._attributes = MirrorAttributes(source.extras, owners).of
        self._places = places
        self._is_root = os.geteuid() == 0
        self._ahead: set[bytes] = set()  # files of the mirror that have another name, and whose own is still to go
        self._kept: list[bytes] = []  # directories of which the source could not tell what is in them
        self._temporary = layout.temporary_names(secrets.randbits(62))

    def take(self, found: Found, path: bytes) -> bytes | None:
        """Give the mirror's file that is what was `found` the new name `path`; its SHA1 (hex), None if there is none.

        Raises SourceError, OSError.
        """
        if not may_have_moved(found):
            return None
        attributes = self._attributes(found.entry, found.status)
        sha1: bytes | None = None
        for old, is_sure in self._places.of(found.status):
            there = self._layout.mirror_path(old)
            status = self._left_over(old, there, found)
            if status is None:
                continue
            is_ahead = sort_key(found.path) < sort_key(old.path)
            is_dressed = self._is_dressed(there, status, found, attributes)
            if is_ahead and not is_dressed:
                continue  # until its old name goes it must stay as it is
            if not is_sure or found.is_suspect:
                sha1 = sha1 or self._copies.digest(found)
                if sha1 != old.sha1:
                    continue
            if not self._link(there, path):
                return None
            if is_ahead:
                self._ahead.add(there)
            elif not is_dressed:
                self._batch.set_attributes(path, Kind.REGULAR, attributes)
            return old.sha1
        return None

    def _left_over(self, old: Entry, there: bytes, found: Found) -> os.stat_result | None:
        """The mirror's file for `old`, if nothing is at its path in the source any more, and nobody else has it."""
        if old.sha1 is None or old.path == found.path or not self._source.has_lost(old.path):
            return None
        if any(is_below(old.path, kept) for kept in self._kept):
            return None
        try:
            status = self._tree.stat(there)
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == old.size_bytes
        return status if is_plain and found.has_time_of(status) else None

    def _is_dressed(self, there: bytes, status: os.stat_result, found: Found, wanted: Attributes) -> bool:
        is_owned = not self._is_root or (status.st_uid, status.st_gid) == (wanted.uid, wanted.gid)
        if not is_owned or stat.S_IMODE(status.st_mode) != wanted.mode:
            return False
        extras = self._extras(there, status)
        return (extras.xattrs, extras.acl) == (found.entry.xattrs, found.entry.acl)

    def _extras(self, there: bytes, status: os.stat_result) -> Entry:
        entry = entry_of(there, status)
        try:
            return read_extras(self._tree, entry, self._source.extras)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return entry

    def _link(self, there: bytes, path: bytes) -> bool:
        try:
            return self._tree.try_link(there, path)
        except FileExistsError:
            remove_stranger(self._tree, path)
            return self._tree.try_link(there, path)

    def is_shared(self, there: bytes) -> bool:
        """Whether the mirror's file has another name now, and must not be changed."""
        return there in self._ahead

    def gone(self, old: Entry, there: bytes) -> bool:
        """The old name goes: whether the file may be found elsewhere."""
        self._ahead.discard(there)
        return old.kind is Kind.REGULAR and old.size_bytes >= SMALLEST

    def kept(self, path: bytes) -> None:
        """The record of this path stays, whatever the source has."""
        if not self._kept or not is_below(path, self._kept[-1]):
            self._kept.append(path)

    def finish(self) -> None:
        """Give a file of its own to what has come back to its old path, before the session came there.

        All other changes have been made.
        """
        directories: dict[bytes, os.stat_result] = {}
        for there in sorted(self._ahead):
            status = self._tree.stat(there) if self._tree.exists(there) else None
            if status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                if parent_of(there) not in directories:
                    directories[parent_of(there)] = self._tree.stat(parent_of(there))
                self._separate(there, status)
        for directory, status in directories.items():
            self._batch.set_attributes(directory, Kind.DIRECTORY, _attributes_of(status))

    def _separate(self, there: bytes, status: os.stat_result) -> None:
        temporary = join(parent_of(there), next(self._temporary))
        entry = self._extras(there, status)
        attributes = _attributes_of(status).with_extras(entry, self._source.extras, self._owners)
        fd = self._tree.open_file(there)
        try:
            new_fd = self._tree.create_file(temporary)
            self._tree.fill_file(new_fd, temporary, file_blocks(fd), attributes=attributes)
        finally:
            os.close(fd)
        self._batch.replace(temporary, there)


def _attributes_of(status: os.stat_result) -> Attributes:
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
