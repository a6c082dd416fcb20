"""What all readers of a repository share, so that the second look costs less than the first. All of it is bounded.

Nothing here is believed for longer than it is true: a listing holds while its directory has not changed, an increment
while it is the same file, and what a version is made of does not change as long as these are the same.
"""

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from histfs import rsync
from histfs.store.content.sources import ChangedError, FileId
from histfs.store.entry import Entry, join
from histfs.store.format.names import parse_increment_name
from histfs.store.layout import Layout
from histfs.store.plan import Increment
from histfs.store.tree import NotRegularError, Tree, is_settled

if TYPE_CHECKING:
    from histfs.store.content.chain import Composed

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_R = TypeVar("_R")

_LISTINGS_BYTES = 8 << 20
_OPEN_FILES = 200
_CHECKS = 1000
_SHARE_RESERVED = 4  # of the open files of the process, at most one in so many


class Sizes(NamedTuple):
    """How much may be kept, in bytes of memory."""

    members: int = 32 << 20  # inflated parts of increments; each link of a chain that is read in order needs one
    versions: int = 8 << 20  # small versions
    maps: int = 16 << 20  # of large versions; temporary files that belong to them count with a 64th of their size


DEFAULT_SIZES = Sizes()


class Recent(Generic[_K, _V]):
    """What was used last, up to a total cost."""

    def __init__(self, capacity: int, drop: Callable[[_V], object] | None = None) -> None:
        self._capacity = capacity
        self._drop = drop
        self._lock = threading.Lock()
        self._kept: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self._cost = 0

    def get(self, key: _K) -> _V | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def use(self, key: _K, function: Callable[[_V], _R]) -> _R | None:
        """What `function` makes of the value, which nobody drops meanwhile; None if there is none."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return function(found[0])

    def put(self, key: _K, value: _V, cost: int) -> None:
        with self._lock:
            self._remove(key)
            self._kept[key] = value, cost
            self._cost += cost
            while self._cost > self._capacity and self._kept:
                self._remove(next(iter(self._kept)))

    def clear(self) -> None:
        with self._lock:
            for key in list(self._kept):
                self._remove(key)

    def _remove(self, key: _K) -> None:
        value, cost = self._kept.pop(key, (None, 0))
        self._cost -= cost
        if value is not None and self._drop is not None:
            self._drop(value)


class Listings:
    """Finds the increments of a path. The listings of the last few directories are kept."""

    def __init__(self, tree: Tree, layout: Layout) -> None:
        self._tree = tree
        self._layout = layout
        self._kept: Recent[bytes, tuple[tuple[int, int], bytes]] = Recent(_LISTINGS_BYTES)

    def find(self, entry: Entry) -> list[Increment]:
        """All increments of `entry`'s path, oldest first; of two with one time the uncompressed comes first.

        Not among them is a directory with such a name: a source directory made it (docs/format.md, trap 20).
        """
        return self.find_named(*self._layout.increments_of(entry))

    def find_named(self, directory: bytes, base: bytes) -> list[Increment]:
        """The same, given the directory with the increments, and the (unquoted) base of their names."""
        records = self._records(directory)
        found = []
        at = records.find(b"\0" + base + b".")
        while at >= 0:
            end = records.index(b"\0", at + 1)
            name, _, quoted = records[at + 1 : end].partition(b"/")
            parsed = parse_increment_name(name)
            if parsed is not None and parsed.base == base and parsed.type != b"data":
                found.append(Increment(parsed.time, parsed.type, join(directory, quoted or name), parsed.compressed))
            at = records.find(b"\0" + base + b".", end)
        return sorted(found)

    def _records(self, directory: bytes) -> bytes:
        """The names in `directory`, each behind a zero byte; where it is quoted on disk, a slash and that follow."""
        try:
            status = self._tree.stat(directory)
            stamp = status.st_ino, status.st_mtime_ns
            kept = self._kept.get(directory)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            names = self._tree.names_of_files(directory)
        except (FileNotFoundError, NotADirectoryError):
            return b"\0"
        records = b"".join(b"\0" + self._record(name) for name in names) + b"\0"
        if is_settled(status):
            self._kept.put(directory, (stamp, records), len(records))
        return records

    def _record(self, name: bytes) -> bytes:
        unquoted = self._layout.quoting.unquote(name)
        return name if unquoted == name or b"/" in unquoted or b"\0" in unquoted else unquoted + b"/" + name


class OpenFiles:
    """Increments that are read in place. A chain may have thousands: those opened last stay open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._places: WeakValueDictionary[FileId, rsync.MapSource] = WeakValueDictionary()
        self._opened: OrderedDict[FileId, rsync.MapSource] = OrderedDict()
        self._reserved = 0

    def reserve(self, count: int) -> bool:
        """Whether so many files may stay open until `give_back`: a part of what the process may have."""
        with self._lock:
            is_room = self._reserved + count <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_RESERVED
            if is_room:
                self._reserved += count
            return is_room

    def give_back(self, count: int) -> None:
        with self._lock:
            self._reserved -= count

    def place(self, file: FileId, make: Callable[[], rsync.MapSource]) -> rsync.MapSource:
        """The one place of an increment, so that all versions share what was inflated of it."""
        with self._lock:
            known = self._places.get(file)
            if known is None:
                known = self._places[file] = make()
            return known

    def open(self, file: FileId, place: rsync.MapSource) -> None:
        """See that an increment is open now. ChangedError if it is gone, or another has its name; OSError."""
        self.add(file, place, self._open(file))

    def add(self, file: FileId, place: rsync.MapSource, fd: int) -> None:
        """Take over a descriptor of an increment."""
        with self._lock:
            if not place.lend(fd):  # another thread was faster
                os.close(fd)
                return
            self._opened[file] = place
            self._close_idle(_OPEN_FILES)

    def close_idle(self, leave: int = 0) -> None:
        """Close what nobody is reading from, but for the last few."""
        with self._lock:
            self._close_idle(leave)

    def _open(self, file: FileId) -> int:
        try:
            try:
                fd = self._tree.open_file(file.path)
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self.close_idle()
                fd = self._tree.open_file(file.path)
        except (FileNotFoundError, NotADirectoryError, NotRegularError) as exc:
            raise ChangedError("one of its increments is gone") from exc
        if FileId.of(file.path, os.fstat(fd)) != file:
            os.close(fd)
            raise ChangedError("one of its increments was replaced")
        return fd

    def _close_idle(self, leave: int) -> None:
        surplus = max(0, len(self._opened) - leave)
        for file, place in list(self._opened.items())[:surplus]:
            if place.close_idle():
                del self._opened[file]


class Checks:
    """How far large versions were compared with their SHA1 while they were read: it is not known when this ends.

    The kernel keeps what it was given, and asks for the rest after a version was closed and opened again. So a check
    goes on where it was, and what was found wrong stays so. What was found right may have changed since, so it is
    compared once more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Recent[Hashable, rsync.Check] = Recent(_CHECKS)

    def of(self, key: Hashable, size_bytes: int, sha1: bytes) -> rsync.Check:
        """`sha1`: 20 bytes."""
        with self._lock:
            known = self._kept.get(key)
            if known is None or known.verdict:
                known = rsync.Check(size_bytes, sha1, is_again=known is not None)
                self._kept.put(key, known, 1)
            return known


class Shared:
    """All of this, for one repository."""

    def __init__(self, tree: Tree, layout: Layout, sizes: Sizes) -> None:
        self.listings = Listings(tree, layout)
        self.files = OpenFiles(tree)
        self.checks = Checks()
        self.members = rsync.Members(sizes.members)
        self.versions: Recent[Hashable, tuple[bytes, int]] = Recent(sizes.versions)  # with mtime_ns
        self.maps: Recent[Hashable, Composed] = Recent(sizes.maps, lambda composed: composed.close())

    def close(self) -> None:
        """Close what is open. What is read later is opened again."""
        self.maps.clear()
        self.files.close_idle()
