"""What the history of a repository looks like as one read-only tree. Neither FUSE nor trio is known here.

Strategy: below the root there is one directory a snapshot. A snapshot never changes, so everything about it can be
computed instead of remembered: an inode number says the session's time and the row in its listing, and is the same at
every mount. No table of inodes exists, none can leak. Only listings are kept, a few, the least recently used go first.

Rules:
- `root`, `names`, `top`, `acquire` and a `View` answer from memory. `refresh`, `read_top`, `load` and `File.open` touch
  the disk and are called in worker threads. Everything may be called from any thread.
- What was acquired is released; a listing is closed when it has to go and nobody uses it any more.
- Numbers of a repository are not trusted to fit the fields of a stat structure: they are clipped here.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import tzinfo
from functools import partial
from typing import NamedTuple, Protocol

from histfs.errors import DamagedError, HistfsError, NotADirectoryEntryError, NotFoundError
from histfs.store.entry import Entry, Kind
from histfs.store.when import snapshot_names

ROOT_INODE = 1
FOREVER_S = 86_400.0  # for what cannot change while it is mounted
BRIEFLY_S = 1.0  # for what a new session may change

# An inode number is the time of the session, moved to be positive, over the row: 33 + 30 bits, so that it fits a signed
# 64 bit number; the smallest is above 2**30, far from the root's. Times from 1834 to 2106 fit, and docs/format.md 2.1
# has none before 1901 or after 2099.
_ROW_BITS = 30
_TIME_SHIFT = 1 << 32
_TIMES = range(1 - _TIME_SHIFT, _TIME_SHIFT)

_TYPES = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
_MAX_SIGNED = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # the last one means "do not change" to chown(2)
_OVERFLOW_ID = 65_534  # "nobody": what Linux shows for an id that it cannot show
_ROWS_PER_QUERY = 64

# Directory offsets: 0 starts, 1 comes after ".", 2 after "..", and 3 more than its row after an entry.
_AFTER_DOT, _AFTER_DOTS, _AFTER_ROW_0 = 1, 2, 3


class Content(Protocol):
    """An open version of a file."""

    def pread(self, size: int, offset: int) -> bytes: ...
    def pread_nowait(self, size: int, offset: int) -> bytes | None: ...
    def close(self) -> None: ...


class Node(Protocol):
    @property
    def row(self) -> int: ...
    @property
    def entry(self) -> Entry: ...
    @property
    def nlink(self) -> int: ...
    @property
    def inode_row(self) -> int: ...
    @property
    def sha1(self) -> bytes | None: ...


class Listing(Protocol):
    def node(self, row: int) -> Node: ...
    def child(self, row: int, name: bytes) -> Node | None: ...
    def children(self, row: int, after: int, limit: int) -> Sequence[Node]: ...
    def find(self, path: bytes) -> Node: ...


class Snapshot(Protocol):
    @property
    def time(self) -> int: ...
    def entries(self) -> Iterator[Entry]: ...
    def listing(self) -> Listing: ...
    def open(self, entry: Entry, sha1: bytes | None) -> Content: ...
    def close(self) -> None: ...


class Repository(Protocol):
    def sessions(self) -> tuple[int, ...]: ...
    def snapshot(self, session_time: int) -> Snapshot: ...


class Attributes(NamedTuple):
    """What stat(2) shows, and for how many seconds it is sure to be true."""

    inode: int
    mode: int  # with the type
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    mtime_ns: int
    valid_s: float = FOREVER_S


class Child(NamedTuple):
    """A name in a directory; `offset` is where the listing goes on after it."""

    name: bytes
    attributes: Attributes
    offset: int


class File(NamedTuple):
    """`open` touches the disk, and raises DamagedError or StorageError."""

    attributes: Attributes
    path: bytes
    open: Callable[[], Content]


def inode_of(session_time: int, row: int) -> int:
    """The inode number of the entry at `row` of a session's listing. HistfsError if there can be none."""
    if session_time not in _TIMES or not 0 <= row < 1 << _ROW_BITS:
        raise HistfsError(f"entry number {row} has no place in the mount", at=session_time)
    return (session_time + _TIME_SHIFT) << _ROW_BITS | row


def place_of(inode: int) -> tuple[int, int]:
    """The session time and the row that `inode` was made of. NotFoundError for a number that was not made so."""
    session_time, row = (inode >> _ROW_BITS) - _TIME_SHIFT, inode & ((1 << _ROW_BITS) - 1)
    if session_time not in _TIMES:
        raise NotFoundError(f"no file has the number {inode}")
    return session_time, row


class View:
    """A snapshot with its listing. Made by `History.load`, handed out by `History.acquire`."""

    def __init__(self, snapshot: Snapshot, history: "History") -> None:
        self.time = snapshot.time
        self.users = 0  # the history's: guarded by its lock
        self._snapshot = snapshot
        self._listing = snapshot.listing()
        self._history = history

    def close(self) -> None:
        self._snapshot.close()

    def attributes(self, row: int) -> Attributes:
        """NotFoundError if there is no such row."""
        return self._attributes_of(self._listing.node(row))

    def child(self, row: int, name: bytes) -> Attributes | None:
        """What `name` is in the directory at `row`, "." and ".." included; None if it is not there.

        NFS servers ask for "." of files too, to find a file by its number. NotFoundError, NotADirectoryEntryError.
        """
        if name == b".":
            return self.attributes(row)
        if name == b"..":
            return self._parent(row)
        found = self._listing.child(row, name)
        if found is None:
            self.check_directory(row)
            return None
        return self._attributes_of(found)

    def children(self, row: int, offset: int) -> Iterator[Child]:
        """The names in the directory at `row` from `offset` on, beginning with "." and "..": lazily."""
        if offset < _AFTER_DOT:
            yield Child(b".", self.attributes(row), _AFTER_DOT)
        if offset < _AFTER_DOTS:
            yield Child(b"..", self._parent(row), _AFTER_DOTS)
        after = max(-1, offset - _AFTER_ROW_0)
        while nodes := self._listing.children(row, after, _ROWS_PER_QUERY):
            for node in nodes:
                yield Child(node.entry.name, self._attributes_of(node), node.row + _AFTER_ROW_0)
            after = nodes[-1].row

    def check_directory(self, row: int) -> None:
        """Raises NotADirectoryEntryError if the entry at `row` is none."""
        entry = self._listing.node(row).entry
        if entry.kind is not Kind.DIRECTORY:
            raise NotADirectoryEntryError("is not a directory", path=entry.path, at=self.time)

    def target(self, row: int) -> bytes:
        """Where the symbolic link at `row` leads to, as recorded."""
        return self._listing.node(row).entry.target

    def file(self, row: int) -> File:
        """The file at `row`, not yet opened; only the content of regular files can be."""
        node = self._listing.node(row)
        opener = partial(self._snapshot.open, node.entry, node.sha1)
        return File(self._attributes_of(node), node.entry.path, opener)

    def _parent(self, row: int) -> Attributes:
        if row == 0:
            return self._history.root()
        return self._attributes_of(self._listing.find(self._listing.node(row).entry.parent))

    def _attributes_of(self, node: Node) -> Attributes:
        return _attributes(node.entry, inode_of(self.time, node.inode_row), node.nlink, self.time)


def _attributes(entry: Entry, inode: int, nlink: int, session_time: int) -> Attributes:
    # A snapshot's top carries its session's time, for `ls -lt` in the root. Links and devices have none recorded.
    has_own_time = entry.path and entry.kind.has_mtime
    mtime_s = entry.mtime_s if has_own_time else session_time
    size = len(entry.target) if entry.kind is Kind.SYMLINK else entry.size_bytes
    return Attributes(
        inode=inode,
        mode=_TYPES[entry.kind] | entry.mode & 0o7777,
        nlink=min(max(1, nlink), (1 << 32) - 1),
        uid=_shown_id(entry.uid),
        gid=_shown_id(entry.gid),
        rdev=_shown_device(entry) if entry.kind.is_device else 0,
        size_bytes=min(max(0, size), _MAX_SIGNED),
        mtime_ns=min(max(-_MAX_SIGNED, mtime_s), _MAX_SIGNED) * 10**9,
    )


def _shown_id(number: int) -> int:
    return number if 0 <= number <= _MAX_ID else _OVERFLOW_ID


def _shown_device(entry: Entry) -> int:
    """Linux has 12 bits for the major and 20 for the minor number; what does not fit cannot have been real."""
    major, minor = entry.device_number
    return os.makedev(major, minor) if 0 <= major < 1 << 12 and 0 <= minor < 1 << 20 else 0


class History:
    """All snapshots of a repository, as directories below one root.

    `zone` is the time zone of the directories' names (None: local), `owner` the user and group of the root;
    `max_listings` bounds how many snapshots are kept ready.
    """

    def __init__(
        self, repository: Repository, zone: tzinfo | None, *, owner: tuple[int, int] = (0, 0), max_listings: int = 8
    ) -> None:
        self._repository = repository
        self._zone = zone
        self._owner = owner
        self._max_listings = max_listings
        self._lock = threading.Lock()
        self._times: tuple[int, ...] = ()
        self._names: dict[bytes, int] = {}
        self._views: OrderedDict[int, View] = OrderedDict()  # least recently used first
        self._tops: dict[int, Attributes] = {}  # of every snapshot that was asked for; small, and they never change

    # The root

    def root(self) -> Attributes:
        """The root as of the last `refresh`; its time is that of the newest session."""
        newest = self._times[-1] if self._times else 0
        mode = stat.S_IFDIR | 0o555
        return Attributes(ROOT_INODE, mode, 2 + len(self._names), *self._owner, 0, 0, newest * 10**9, BRIEFLY_S)

    def names(self) -> dict[bytes, int]:
        """The name of each snapshot's directory and its session's time, oldest first, as of the last `refresh`."""
        return self._names

    def refresh(self) -> dict[bytes, int]:
        """Look which sessions there are now, and drop what is kept of others. Returns `names`. StorageError."""
        times = self._repository.sessions()
        if times != self._times:
            names = snapshot_names(times, self._zone)
            with self._lock:
                self._times = times
                self._names = {os.fsencode(names[session_time]): session_time for session_time in times}
                for gone in self._tops.keys() - set(times):
                    del self._tops[gone]
                unused = self._drop(self._views.keys() - set(times))
            self._close(unused)
        return self._names

    # The top directories of the snapshots

    def top(self, session_time: int) -> Attributes | None:
        """The directory of a snapshot, if it was read before."""
        return self._tops.get(session_time)

    def read_top(self, session_time: int) -> Attributes:
        """The directory of a snapshot, read without the rest of its listing.

        Listing the root of a thousand snapshots must not load a thousand listings. The number of subdirectories is
        not known then: it is shown as 1 link, as btrfs does, and is good for a moment only.
        """
        with closing(self._repository.snapshot(session_time)) as snapshot:
            entries = snapshot.entries()
            first = next(entries, None)
            if first is None or first.path:
                raise DamagedError("the list of files has no root", at=session_time)
        attributes = _attributes(first, inode_of(session_time, 0), 1, session_time)
        return self._tops.setdefault(session_time, attributes._replace(valid_s=BRIEFLY_S))

    def unread_top(self, session_time: int) -> Attributes:
        """A stand-in for a directory listing: type and number are right, the rest is good for no time at all."""
        inode, mtime_ns = inode_of(session_time, 0), session_time * 10**9
        return Attributes(inode, stat.S_IFDIR | 0o500, 1, *self._owner, 0, 0, mtime_ns, 0.0)

    # Snapshots

    def acquire(self, session_time: int) -> View | None:
        """The snapshot, if it is loaded: to be given to `release` after use. None: `load` it and ask again."""
        with self._lock:
            view = self._views.get(session_time)
            if view is not None:
                self._views.move_to_end(session_time)
                view.users += 1
            return view

    def release(self, view: View) -> None:
        with self._lock:
            view.users -= 1
            had_to_go = self._views.get(view.time) is not view
            unused = [view] if had_to_go and not view.users else self._too_many()
        self._close(unused)

    def load(self, session_time: int) -> None:
        """Make the snapshot ready for `acquire`. Slow for a large tree. NotFoundError, DamagedError, StorageError."""
        view = View(self._repository.snapshot(session_time), self)
        with ExitStack() as on_error:
            on_error.callback(view.close)
            self._tops[session_time] = view.attributes(0)
            on_error.pop_all()
        with self._lock:
            if session_time in self._views:
                unused = [view]
            else:
                self._views[session_time] = view
                unused = self._too_many()
        self._close(unused)

    def close(self) -> None:
        """Close every listing; nothing may be in use any more."""
        with self._lock:
            views = list(self._views.values())
            self._views.clear()
        self._close(views)

    def _too_many(self) -> list[View]:
        """Take out what is above the bound and not in use, except for the newest. Needs the lock; to be closed."""
        surplus = len(self._views) - self._max_listings
        if surplus <= 0:
            return []
        idle = [session_time for session_time, view in self._views.items() if not view.users]
        newest = next(reversed(self._views))
        return self._drop([session_time for session_time in idle if session_time != newest][:surplus])

    def _drop(self, session_times: Iterable[int]) -> list[View]:
        """Take out; returns those that nobody uses, to be closed without the lock. The others `release` closes."""
        dropped = [self._views.pop(session_time) for session_time in session_times]
        return [view for view in dropped if not view.users]

    @staticmethod
    def _close(views: Iterable[View]) -> None:
        for view in views:
            view.close()
