"""A walk through a directory tree in the order of the metadata files, which C does name by name (see `csrc/walk.h`).

    with Walk() as walk:
        walk.push(tree.open_directory(b""))
        while walk.next():
            ...  # walk.path, walk.name; walk.look()
            if it is a directory and wanted:
                walk.enter()

`compare` passes over what an earlier session saw as it is now, without Python.
"""

import errno
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple, Self

from histfs._tree import ffi, lib
from histfs.store.format.ledger import Seen
from histfs.store.format.quoting import NO_QUOTING, Quoting

_LINES_BYTES = 256 * 1024
_SCOUTS = max(2, min(os.cpu_count() or 1, 4))  # threads that look ahead of comparisons
_SCOUTED_AT_ONCE = 64  # records
_SCOUTED_FROM = 512  # records on: before that nothing would be won
_TEXT_AHEAD_BYTES = 128 * 1024  # of the list, for scouts to look at while Python does
_MOST_LINKS = 4096  # that one comparison tells of
_MOST_AHEAD = 128
_TIMES_NS = range(-(2**63), 2**63)
_AHEAD = struct.Struct("=QQqqqIIIIIIIIIBBxx")  # struct histfs_ahead in csrc/walk.h


def seen_of(status: os.stat_result) -> Seen:
    """It can be written if the status `fits`."""
    return Seen(
        status.st_ino,
        status.st_dev,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        min(status.st_nlink, 0xFFFFFFFF),
    )


def fits(status: os.stat_result) -> bool:
    """Whether its times fit, as those from 1677 until 2262 do; what has others is looked at and copied by Python."""
    return status.st_mtime_ns in _TIMES_NS and status.st_ctime_ns in _TIMES_NS


def status_of(seen: Seen) -> os.stat_result:
    """As lstat(2) gave it, without the time of the last access and what only devices have."""
    seconds = (0, seen.mtime_ns // 10**9, seen.ctime_ns // 10**9)
    values = (seen.mode, seen.inode, seen.device, seen.nlink, seen.uid, seen.gid, seen.size, *seconds)
    return os.stat_result(values, {"st_mtime_ns": seen.mtime_ns, "st_ctime_ns": seen.ctime_ns})


class Why(IntEnum):
    """Why a comparison stopped. The numbers are those in `csrc/walk.h`."""

    AT_END = 0  # of the tree
    DIFFERS = 1  # the next name: not there before, not as it was, or what is in the way is another one
    NEEDS_TEXT = 2
    NEEDS_SEEN = 3
    FULL = 4  # of lines or of links
    WENT = 5  # what the list has next lay in the directory that the walk is at the end of
    UNLISTED = 6  # the directory that was passed over last is not entered


class Passed(NamedTuple):
    """What a comparison passed over, and why it stopped."""

    why: Why
    files: int
    file_bytes: int
    text_bytes: int  # of their records
    xattrs_bytes: int  # of their records in the files beside the list
    acls_bytes: int
    lines: bytes  # for the statistics of files
    links: list[tuple[int, int]]  # of each file with other links: its places in the text, and in what was seen
    error: int


class Level(NamedTuple):
    """A directory that a comparison has entered."""

    path: bytes
    record: bytes
    seen: Seen
    number: int  # of its record in the new list
    xattrs_at: int  # where its records are in those of what was passed over
    acl_at: int


def _looked(data: bytes, names: bytes, above: bytes) -> Iterator[tuple[bytes, bool, Seen, bool]]:
    """Path, whether it is a directory, what was seen, and whether it surely has no extended attributes."""
    at = 0
    for *seen, name_bytes, is_directory, has_no_xattrs in _AHEAD.iter_unpack(data):
        yield above + names[at : at + name_bytes], bool(is_directory), Seen(*seen), bool(has_no_xattrs)
        at += name_bytes


class Walk:
    """See the module. A context manager.

    `mirror`: the descriptor of a tree whose directories must be as they were for anything to be passed over; -1: none.
    `skipped`: device and inode of a directory that never is. `quoting`: of the names in the mirror.
    """

    def __init__(self, mirror: int = -1, skipped: tuple[int, int] = (0, 0), quoting: Quoting = NO_QUOTING) -> None:
        walk = lib.histfs_walk_new(mirror, *skipped)
        if walk == ffi.NULL:
            raise MemoryError
        self._walk = ffi.gc(walk, lib.histfs_walk_free)
        if quoting.is_active:
            is_quoted = bytes(len(spelling) > 1 for spelling in quoting.spellings)
            special = quoting.escapes_dos_devices, quoting.escapes_trailing_spaces
            lib.histfs_walk_quote(self._walk, is_quoted, *special)
        self._item: Any = ffi.new("struct histfs_item *")
        self._seen = ffi.new("struct histfs_seen *")
        self._seen_data = ffi.buffer(self._seen)
        self._level: Any = ffi.new("struct histfs_level *")
        self._run: Any = ffi.new("struct histfs_run *")
        self._lines = ffi.new("char[]", _LINES_BYTES)
        self._links = ffi.new("uint64_t[]", 2 * _MOST_LINKS)
        self.path = b""
        self.name = b""
        self.is_directory = False  # what the directory says that has the name
        self._ahead = ffi.new("struct histfs_ahead[]", _MOST_AHEAD)
        self._ahead_data = ffi.buffer(self._ahead)
        self._ahead_names = ffi.new("char[]", _MOST_AHEAD * 64)
        self._ahead_names_data = ffi.buffer(self._ahead_names)
        self._looked: Iterator[tuple[bytes, bool, Seen, bool]] = iter(())
        self._is_ahead = False
        self._left = 0
        self._current: tuple[bytes, bool, Seen, bool] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        ffi.release(self._walk)

    def push(self, directory: int, *, is_trusted: bool = False) -> None:
        """Go into the current name, or into the root, by a descriptor, which is closed in any case. Raises OSError."""
        self._check(lib.histfs_walk_push(self._walk, directory, is_trusted))
        lib.histfs_walk_scout(self._walk, _SCOUTS, _SCOUTED_AT_ONCE, _SCOUTED_FROM)

    def enter(self, mirror_ctime_ns: int = 0) -> bool:
        """Go into the current name; False where it has to be opened and pushed. Raises OSError.

        What is in it can be passed over if the mirror's directory was last changed at `mirror_ctime_ns`.
        """
        error = lib.histfs_walk_enter(self._walk, mirror_ctime_ns)
        if error == errno.EBADF:
            return False
        self._check(error)
        return True

    def rely(self, directory: bytes, mirror_ctime_ns: int) -> None:
        """The same of a directory that the walk is in already."""
        depth = directory.count(b"/") + 1
        lib.histfs_walk_rely(self._walk, depth, directory, len(directory), mirror_ctime_ns)

    @property
    def is_ahead(self) -> bool:
        """Whether names were looked at that are still to come: a comparison has to wait until then."""
        return self._is_ahead

    def look_ahead(self) -> None:
        """Look at some of the names that come next, at once, where nothing is compared."""
        count = lib.histfs_walk_ahead(
            self._walk, self._ahead, _MOST_AHEAD, self._ahead_names, len(self._ahead_names_data)
        )
        if count:
            self._looked = _looked(self._ahead_data[: count * _AHEAD.size], self._ahead_names_data[:], self._above())
            self._is_ahead = True
            self._left = count

    def _above(self) -> bytes:
        """The path of the directory that the walk is in, with a slash if it is not the root."""
        lib.histfs_walk_level(self._walk, lib.histfs_walk_depth(self._walk) - 1, self._level)
        path = self.here()[: self._level.path_bytes]
        return path + b"/" if path else b""

    def next(self) -> bool:
        """Go to the next name; False at the end."""
        if self._is_ahead:
            self._current = current = next(self._looked)
            self.path, self.is_directory = current[:2]
            self.name = self.path.rpartition(b"/")[2]
            self._left -= 1
            self._is_ahead = self._left > 0
            return True
        self._current = None
        item = self._item
        found = lib.histfs_walk_next(self._walk, item)
        if found <= 0:
            if found < 0:
                raise MemoryError
            return False
        self.path = path = ffi.buffer(item.path, item.path_bytes)[:]
        self.name = path[-item.name_bytes :]
        self.is_directory = bool(item.is_directory)
        return True

    def look(self) -> Seen | None:
        """What the current name is now; None where it has to be looked at by its path. Raises OSError."""
        if self._current is not None:
            return self._current[2]
        error = lib.histfs_walk_look(self._walk, self._seen)
        if error in (errno.EBADF, errno.EOVERFLOW):
            return None
        self._check(error)
        return Seen.parse(self._seen_data[:])

    def has_no_xattrs(self) -> bool:
        """Whether it surely has none, access control lists among them."""
        if self._current is not None:
            return self._current[3]
        return lib.histfs_walk_count_xattrs(self._walk) == 0

    def trust(self, uid: int, gid: int) -> None:
        """Their names are those that the list has."""
        lib.histfs_walk_trust(self._walk, uid, gid)

    def stop_at_links(self) -> None:
        """Pass over no file any more that has other links."""
        lib.histfs_walk_stop_at_links(self._walk)

    def compare(
        self,
        text: bytes,
        text_at: int,
        seen: bytes,
        seen_at: int,
        *,
        is_last: bool,
        number: int,
        first_number: int,
        line_end: bytes,
    ) -> Passed:
        """Pass over what is as the list says, from the record at `text_at` on, of which `seen` has what was seen.

        `number`: of that record of `seen` in the list; records before it do not come again.
        `first_number`: of the first record of `seen` in the new list, if nothing else comes before it.
        `line_end`: of the lines that are wanted; b"" for none.
        """
        run = self._run
        text_buffer, seen_buffer = ffi.from_buffer(text), ffi.from_buffer(seen)
        run.text, run.text_bytes, run.text_at = text_buffer, len(text), text_at
        run.seen = ffi.cast("struct histfs_seen *", seen_buffer)
        run.seen_count, run.seen_at = len(seen) // ffi.sizeof("struct histfs_seen"), seen_at
        run.is_last, run.number, run.first_number = is_last, number, first_number
        run.text_ahead = _TEXT_AHEAD_BYTES
        run.lines, run.lines_bytes, run.lines_at = (self._lines if line_end else ffi.NULL), _LINES_BYTES, 0
        run.line_end = line_end or b"\n"
        run.links, run.links_count, run.links_at = self._links, 2 * _MOST_LINKS, 0
        run.files = run.file_bytes = run.xattrs_bytes = run.acls_bytes = 0
        why = Why(lib.histfs_walk_run(self._walk, run))
        lines = ffi.buffer(self._lines, run.lines_at)[:]
        numbers = iter(ffi.unpack(self._links, run.links_at) if run.links_at else ())
        return Passed(
            why,
            run.files,
            run.file_bytes,
            run.text_at - text_at,
            run.xattrs_bytes,
            run.acls_bytes,
            lines,
            list(zip(numbers, numbers, strict=True)),
            run.error,
        )

    def here(self) -> bytes:
        """The path at which a comparison has stopped."""
        item = self._item
        lib.histfs_walk_here(self._walk, item)
        return ffi.buffer(item.path, item.path_bytes)[:] if item.path_bytes else b""

    def levels(self) -> list[Level]:
        """The directories on the way here that comparisons have entered, without those that this gave before."""
        found: list[Level] = []
        here = b""
        for depth in range(lib.histfs_walk_depth(self._walk)):
            level = self._level
            lib.histfs_walk_level(self._walk, depth, level)
            if level.record != ffi.NULL:
                here = here or self.here()
                record = ffi.buffer(level.record, level.record_bytes)[:]
                seen = Seen.parse(ffi.buffer(ffi.addressof(level, "seen"))[:])
                found.append(Level(here[: level.path_bytes], record, seen, level.number, level.xattrs_at, level.acl_at))
                lib.histfs_walk_told(self._walk, depth)
        return found

    def _check(self, error: int) -> None:
        if error:
            raise OSError(error, os.strerror(error), self.path)
