"""The ledger in the repository: what the last session saw in its source, for the next one to pass over.

It belongs to one list, and to none if that was written anew by anybody. Nothing waits for the disk: a ledger that a
power cut has damaged has wrong sums, and the next session looks at every path itself, as it does without one. Nothing
is taken from a ledger before all of it was read once.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from zlib import crc32

from histfs.store.accounts import group_name, group_number, user_name, user_number
from histfs.store.compression import read_decompressed
from histfs.store.entry import Entry, Extras, Kind, join
from histfs.store.files import WritableTree, write_blocks
from histfs.store.format.ledger import (
    HEADER_BYTES,
    LINKED,
    RACY,
    RULES_BYTES,
    SCANNED,
    SEEN_BYTES,
    SLOW,
    VALID,
    Header,
    Lengths,
    Seen,
    format_header,
    is_of_another_version,
    parse_header,
)
from histfs.store.layout import OWN, State
from histfs.store.source import Found
from histfs.store.tree import BLOCK_SIZE, NotRegularError, Tree, read_at
from histfs.store.walk import fits, seen_of

log = logging.getLogger(__name__)

LEDGER = join(OWN, b"ledger")
_NEW = LEDGER + b".new"
BLOCK_RECORDS = 4096
_BLOCK_BYTES = BLOCK_RECORDS * SEEN_BYTES
# A page that was written through a mapping can be written again as long as it is dirty, and no time tells: 30 s and
# until the kernel looks (dirty_expire_centisecs). The ticks of all clocks of file systems are shorter.
_SETTLED_AFTER_NS = 60 * 10**9
_MOST_DIRECTORIES = 1 << 20  # whose change times are looked up in the end
_MOST_PENDING = 1000
_NOWHERE = (None, None, None, None)
_CHANGE_TIME = struct.Struct("=q")
_TRAILER_BYTES = 8  # of gzip: the checksum and the length of what is in it
_NAMED = re.compile(rb"^(?:default:)?(user|group):([^:\n]+):", re.MULTILINE)  # in an access control list

Lists = tuple[bytes | None, ...]
"""Where a session's list, its extended attributes and its access control lists are."""


def settled_ns(since_ns: int) -> int:
    """What changed before that has not changed again without being noticed; `since_ns`: when the session began."""
    return since_ns - _SETTLED_AFTER_NS


def lists_of(state: State, session_time: int) -> Lists:
    metadata = state.metadata.get(session_time)
    snapshot = None if metadata is None else metadata.snapshot
    return snapshot, state.xattrs.get(session_time), state.acls.get(session_time)


def stamp(tree: Tree, lists: Lists) -> bytes:
    """What tells the lists from any others: their lengths and sums. Raises OSError."""
    return b" ".join(b"-" if path is None else _stamp(tree, path) for path in lists)


def _stamp(tree: Tree, path: bytes) -> bytes:
    fd = tree.open_file(path)
    try:
        size = os.fstat(fd).st_size
        return b"%d:%b" % (size, read_at(fd, _TRAILER_BYTES, max(0, size - _TRAILER_BYTES)).hex().encode())
    finally:
        os.close(fd)


def ledger_problem(tree: Tree) -> str:
    """What is wrong with the ledger, whichever list it is of; an empty text if nothing, or if there is none."""
    try:
        fd = tree.open_file(LEDGER)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except NotRegularError:
        return "is not a regular file"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    try:
        data = read_at(fd, HEADER_BYTES, 0)
        if is_of_another_version(data):
            return ""  # the next session replaces it
        header = parse_header(data)
        if header is None or _checked(fd) != (header.records, header.crc):
            return "is not what was written"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    finally:
        os.close(fd)
    return ""


def named(blocks: Iterable[bytes]) -> int:
    """A digest of whom the access control lists in the `blocks` name, of their numbers here, and of the names of these.

    As long as it is the same, lists that are the same on the disk are recorded by the same names.
    """
    found: set[tuple[bytes, bytes]] = set()
    rest = b""
    for block in blocks:
        lines, newline, rest = (rest + block).rpartition(b"\n")
        found.update(_NAMED.findall(lines + newline))
    digest = hashlib.sha1(usedforsecurity=False)
    for tag, name in sorted(found):
        number_of, name_of = (user_number, user_name) if tag == b"user" else (group_number, group_name)
        number = int(name) if name.isdigit() else number_of(name)
        digest.update(repr((tag, name, number, None if number is None else name_of(number))).encode())
    return int.from_bytes(digest.digest()[:8], "big")


def remove_unfinished(tree: WritableTree) -> None:
    """Remove what a session has left that did not finish."""
    with contextlib.suppress(OSError):
        tree.unlink(_NEW)


class Ledger:
    """A ledger that is whole. Close it with `close`."""

    def __init__(self, fd: int, header: Header) -> None:
        self._fd = fd
        self.header = header

    @classmethod
    def open(cls, tree: Tree, session_time: int, lists: Lists) -> "Ledger | None":
        """That of the session's lists; None if there is none that is as it was written. Raises OSError for those."""
        if lists[0] is None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                fd = tree.open_file(LEDGER)
            except (FileNotFoundError, NotADirectoryError, NotRegularError):
                return None
            stack.callback(os.close, fd)
            header = parse_header(read_at(fd, HEADER_BYTES, 0))
            if header is None or (header.session_time, header.stamp) != (session_time, stamp(tree, lists)):
                return None
            if _checked(fd) != (header.records, header.crc):
                return None
            stack.pop_all()
            return cls(fd, header)

    def close(self) -> None:
        os.close(self._fd)

    def blocks(self) -> Iterator[bytes]:
        """The records, BLOCK_RECORDS at a time."""
        number = 0
        while block := self.block(number):
            yield block
            number += 1

    def block(self, number: int) -> bytes:
        """Those from BLOCK_RECORDS times `number` on."""
        return read_at(self._fd, _BLOCK_BYTES, HEADER_BYTES + number * _BLOCK_BYTES)

    def record(self, number: int) -> Seen | None:
        data = read_at(self._fd, SEEN_BYTES, HEADER_BYTES + number * SEEN_BYTES)
        return Seen.parse(data) if len(data) == SEEN_BYTES else None

    def copy(self, count: int, fd: int) -> None:
        """Write the first records to the end of another file."""
        offset, end = HEADER_BYTES, HEADER_BYTES + count * SEEN_BYTES
        while offset < end:
            block = os.pread(self._fd, min(BLOCK_SIZE, end - offset), offset)
            if not block:
                raise OSError(errno.EIO, "became shorter", LEDGER)
            write_blocks(fd, [block])
            offset += len(block)


def _checked(fd: int) -> tuple[int, int]:
    """The number of records, and their checksum."""
    crc, offset = 0, HEADER_BYTES
    while block := os.pread(fd, BLOCK_SIZE, offset):
        crc = crc32(block, crc)
        offset += len(block)
    return (offset - HEADER_BYTES) // SEEN_BYTES, crc


class LedgerWriter:
    """Writes the ledger of the running session, record by record as its list is written. A context manager.

    As long as all records are those of `old`, the ledger before, only what changed in them is written, in place.
    `since_ns`: when the session began.
    """

    def __init__(self, tree: WritableTree, old: Ledger | None, since_ns: int) -> None:
        self._tree = tree
        self._old = old
        self._since_ns = settled_ns(since_ns)
        self._count = 0
        self._fd: int | None = None  # of a new file, once there is one
        self._pending: list[bytes] = []
        self._is_lost = False
        self._directories: dict[bytes, int] = {}  # those in the mirror that may have changed, and their records

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            remove_unfinished(self._tree)

    @property
    def count(self) -> int:
        """Of records until now."""
        return self._count

    def add(self, entry: Entry, found: Found | None, lengths: Lengths, mirror_path: bytes) -> None:
        """The next path is `entry` in the list; `found`: what was seen of it, None if that says nothing."""
        record_bytes, *beside = lengths
        if found is None or not fits(found.status):
            seen = Seen(0, 0, 0, 0, 0, 0, 0, 0, 0, record_bytes, 0, *beside)
        else:
            here = seen_of(found.status)
            seen = Seen(*here[:9], record_bytes, self._flags(entry, found), *beside)
            if entry.kind is Kind.DIRECTORY:
                seen = seen._replace(size=0)  # until the end
                self.touch(mirror_path, self._count)
        if self._fd is None and self._is_in_old(seen):
            self._count += 1
        else:
            self._write(seen.format(), 1)

    def carry(self, number: int, records: bytes) -> None:
        """The next paths are as they were in the old ledger from its record `number` on."""
        count = len(records) // SEEN_BYTES
        if self._fd is None and number == self._count:
            self._count += count
        else:
            self._write(records, count)

    def touch(self, mirror_path: bytes, number: int) -> None:
        """The directory in the mirror may change; `number`: of its record."""
        if len(self._directories) < _MOST_DIRECTORIES:
            self._directories[mirror_path] = number

    def finish(
        self, session_time: int, lists: Lists, *, extras: Extras, rules: bytes | None, links_are_kept: bool
    ) -> None:
        """After the session has finished: the ledger is that of its lists. Raises OSError, DamagedError.

        `rules`: see `Source.rules`.
        """
        if self._is_lost:
            return
        if self._fd is None and (self._old is None or self._old.header.records != self._count):
            self._begin()
        self._flush()
        is_new = self._fd is not None
        fd = self._fd if self._fd is not None else self._tree.open_to_change(LEDGER)
        try:
            for path, number in self._directories.items():
                changed = _CHANGE_TIME.pack(self._ctime_ns(path))
                os.pwrite(fd, changed, HEADER_BYTES + number * SEEN_BYTES + Seen._fields.index("size") * 8)
            count, crc = _checked(fd)
            what = (extras.xattrs, extras.acls, links_are_kept)
            of_lists = (stamp(self._tree, lists), self._named(lists))
            header = Header(session_time, *what, count, crc, *of_lists, rules or bytes(RULES_BYTES))
            os.pwrite(fd, format_header(header), 0)
        finally:
            os.close(fd)
            self._fd = None
        if is_new:
            if self._tree.is_directory(LEDGER):
                self._tree.remove_tree(LEDGER)
            self._tree.rename(_NEW, LEDGER)

    def _flags(self, entry: Entry, found: Found) -> int:
        flags = VALID if found.trouble is None else 0
        if found.status.st_ctime_ns >= self._since_ns:
            flags |= RACY
        if entry.kind is not Kind.DIRECTORY and found.status.st_nlink > 1:
            flags |= LINKED if entry.kind is Kind.REGULAR else SLOW
        if found.is_scanned:
            flags |= SCANNED
        if found.is_unsettled:
            flags |= SLOW
        elsewhere = (entry.alternate_mirror, entry.alternate_increment, entry.resource_fork, entry.carbon_file)
        return flags if elsewhere == _NOWHERE and entry.acl is not None else flags | SLOW

    def _named(self, lists: Lists) -> int:
        acls = lists[-1]
        if acls is None:
            return named(())
        fd = self._tree.open_file(acls)
        try:
            return named(read_decompressed(fd))
        finally:
            os.close(fd)

    def _is_in_old(self, seen: Seen) -> bool:
        """Whether the old ledger has it at this place, but for the change time of a directory."""
        if self._old is None:
            return False
        there = self._old.record(self._count)
        if there is not None and stat.S_ISDIR(seen.mode):
            there = there._replace(size=seen.size)
        return there == seen

    def _write(self, records: bytes, count: int) -> None:
        """A ledger that cannot be written is no reason to stop the session."""
        try:
            if self._fd is None and not self._is_lost:
                self._begin()
            if len(self._pending) >= _MOST_PENDING:
                self._flush()
        except OSError as exc:
            self._is_lost = True
            log.warning("what the session saw cannot be kept, so the next one takes longer: %s", exc)
        self._count += count
        if not self._is_lost:
            self._pending.append(records)

    def _begin(self) -> None:
        """Make a new file, with what is as it was until here."""
        self._tree.make_directories(OWN)
        self._tree.remove_tree(_NEW)
        os.close(self._tree.create_file(_NEW))
        self._fd = self._tree.open_to_change(_NEW)
        write_blocks(self._fd, [bytes(HEADER_BYTES)])
        if self._old is not None:
            self._old.copy(self._count, self._fd)

    def _flush(self) -> None:
        if self._fd is not None and self._pending:
            write_blocks(self._fd, [b"".join(self._pending)])
            self._pending.clear()

    def _ctime_ns(self, mirror_path: bytes) -> int:
        try:
            return self._tree.stat(mirror_path).st_ctime_ns
        except OSError:
            return 0
