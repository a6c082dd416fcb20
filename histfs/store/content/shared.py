"""What all readers of a repository share, so that the second look costs less than the first. All of it is bounded.

Nothing here is believed for longer than it is true: a listing holds while its directory has not changed, an increment
while it is the same file, and what a version is made of does not change as long as these are the same.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

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
        directory, base = self._layout.increments_of(entry)
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


Members = Recent[tuple[bytes, int], bytes]
"""Inflated members of increments, by increment and number."""


class _OpenFile:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 1


class OpenFiles:
    """Descriptors of increments. A chain may have thousands: those used last stay open, the others are opened again."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._opened: OrderedDict[FileId, _OpenFile] = OrderedDict()

    def use(self, file: FileId, function: Callable[[int], _R]) -> _R:
        """What `function` makes of a descriptor. ChangedError if `file` is gone, or another has its name; OSError."""
        opened = self._take(file) or self._add(file, self._open(file))
        try:
            return function(opened.fd)
        finally:
            with self._lock:
                opened.users -= 1

    def use_if_open(self, file: FileId, function: Callable[[int], _R]) -> _R | None:
        """The same if it is open already, else None."""
        opened = self._take(file)
        if opened is None:
            return None
        try:
            return function(opened.fd)
        finally:
            with self._lock:
                opened.users -= 1

    def close_idle(self, leave: int = 0) -> None:
        """Close what nobody is reading from, but for the last few."""
        with self._lock:
            self._close_idle(leave)

    def _take(self, file: FileId) -> _OpenFile | None:
        with self._lock:
            opened = self._opened.get(file)
            if opened is not None:
                self._opened.move_to_end(file)
                opened.users += 1
            return opened

    def _add(self, file: FileId, fd: int) -> _OpenFile:
        with self._lock:
            opened = self._opened.get(file)
            if opened is None:
                self._opened[file] = opened = _OpenFile(fd)
                self._close_idle(_OPEN_FILES)
            else:  # another thread was faster
                os.close(fd)
                opened.users += 1
            return opened

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
        if len(self._opened) <= leave:
            return
        for file, opened in list(self._opened.items())[: len(self._opened) - leave]:
            if not opened.users:
                os.close(opened.fd)
                del self._opened[file]


class Shared:
    """All of this, for one repository."""

    def __init__(self, tree: Tree, layout: Layout, sizes: Sizes) -> None:
        self.listings = Listings(tree, layout)
        self.files = OpenFiles(tree)
        self.members: Members = Recent(sizes.members)
        self.versions: Recent[Hashable, tuple[bytes, int]] = Recent(sizes.versions)  # with mtime_ns
        self.maps: Recent[Hashable, Composed] = Recent(sizes.maps, lambda composed: composed.close())

    def close(self) -> None:
        """Close what is open. What is read later is opened again."""
        self.maps.clear()
        self.files.close_idle()
