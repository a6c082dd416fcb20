"""What the history of a repository looks like as one read-only tree. Neither FUSE nor trio is known here.

Strategy: below the root there is one directory a snapshot. Everything in them is asked of the catalog and nothing is
remembered, since an inode number says by itself what it means, and the same at every mount:
- the root is 1;
- a directory is (session's time, tag of its path): its content differs between snapshots, and Linux has one place
  only for a directory;
- anything else is its version, the same in every snapshot that has it, so that `diff` sees at once what did not
  change, `du` counts it once, and the kernel caches it once. Hard links are the version of their first member.
What belongs to an inode must not depend on the way to it: the number of links is that in the newest session.

Rules:
- `root`, `names` and `top` answer from memory. `refresh`, `update` and `open` touch the disk and take their time. The
  others are one or a few short queries. Everything may be called from any thread.
- A catalog is replaced when sessions came or went. It serves on until then, and is closed when nobody uses it.
- Numbers of a repository are not trusted to fit the fields of a stat structure: they are clipped here.
"""

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import tzinfo
from typing import NamedTuple, Protocol

from histfs._vfs_rights import FOREVER_S, Policy
from histfs._vfs_tree import (
    AFTER_0,
    AFTER_DOT,
    AFTER_DOTS,
    NO_XATTRS,
    ROOT_INODE,
    TIME_SHIFT,
    TOP_TAG,
    UNKNOWN_S,
    Attributes,
    Child,
    Content,
    File,
    Snapshot,
    Tree,
    directory_inode,
    number_of,
    place_of,
    shown_id,
    time_of_top,
    version_inode,
)
from histfs.errors import DamagedError, HistfsError, NotFoundError
from histfs.rsync import Made
from histfs.store.catalog import Catalog
from histfs.store.content.small import SMALL_BYTES, SmallFile
from histfs.store.entry import ALL_EXTRAS
from histfs.store.layout import State
from histfs.store.rights import OldModes
from histfs.store.when import snapshot_names

__all__ = [
    "FOREVER_S",
    "NOTIFIED_S",
    "NO_XATTRS",
    "ROOT_INODE",
    "SMALL_BYTES",
    "TOP_TAG",
    "UNKNOWN_S",
    "Attributes",
    "Child",
    "Content",
    "File",
    "History",
    "NotReadyError",
    "Policy",
    "directory_inode",
    "number_of",
    "place_of",
    "time_of_top",
    "version_inode",
]

log = logging.getLogger(__name__)

NOTIFIED_S = 60.0  # for what a new session changes: the kernel is told then


class Repository(Protocol):
    def state(self) -> State: ...
    def snapshot(self, session_time: int) -> Snapshot: ...
    def read_small(self, directory: bytes, files: Sequence[SmallFile]) -> list[Made | None]: ...


class NotReadyError(HistfsError):
    """The catalog may not know yet what is asked for: `History.update`, then ask again."""


class _Sessions(NamedTuple):
    """What the root shows."""

    times: tuple[int, ...]
    known: frozenset[int]
    names: dict[bytes, int]  # the directory of each, in the order of the times

    def check(self, session_time: int) -> None:
        if session_time not in self.known:
            raise NotFoundError("no such session is in the repository", at=session_time)


class _Top(NamedTuple):
    """The directory of a snapshot."""

    attributes: Attributes
    xattrs: Mapping[bytes, bytes]


class History:
    """All snapshots of a repository, as directories below one root.

    `open_catalog` gives a catalog of the repository as it is now; it may take its time. `zone` is the time zone of the
    directories' names (None: local), `owner` the user and group of the root; `policy` says by which rights versions
    are shown. All but `root`, `names` and `top` raise NotReadyError where only an `update` can tell, and NotFoundError
    for what is not there.
    """

    def __init__(
        self,
        repository: Repository,
        open_catalog: Callable[[], Catalog],
        zone: tzinfo | None,
        *,
        owner: tuple[int, int] = (0, 0),
        policy: Policy = Policy(),  # noqa: B008 - a value
    ) -> None:
        self._repository = repository
        self._open_catalog = open_catalog
        self._zone = zone
        self._owner = owner
        self.policy = policy
        self._lock = threading.Lock()
        self._sessions = _Sessions((), frozenset(), {})
        self._tops: dict[int, _Top] = {}  # those that were read without a catalog
        self._tree: Tree | None = None
        self._state: State | None = None  # at the last look
        self._is_current = False  # whether the catalog knew all of it
        self._is_doubtful = False  # whether it has to be asked again
        self.catalogs_taken = 0  # how often `update` took another one

    # The root

    def root(self) -> Attributes:
        """The root as of the last `refresh`; its time is that of the newest session."""
        times = self._sessions.times
        newest = times[-1] if times else 0
        return Attributes(ROOT_INODE, stat.S_IFDIR | 0o555, 1, *self._owner, 0, 0, newest, NOTIFIED_S)

    def names(self) -> dict[bytes, int]:
        """The name of each snapshot's directory and its session's time, oldest first, as of the last `refresh`."""
        return self._sessions.names

    def top(self, session_time: int) -> Attributes | None:
        """The directory of a snapshot, if it is known. NotFoundError if there is none, DamagedError.

        It can be known without a catalog (`read_top`) unless `rights_change`.
        """
        self._sessions.check(session_time)
        with self._lent_if_there() as tree:
            if tree is not None and session_time in tree.catalog.sessions:
                try:
                    return tree.attributes(directory_inode(session_time, TOP_TAG))
                except DamagedError:
                    if not tree.catalog.is_damaged:
                        raise
        read = self._tops.get(session_time)
        return None if read is None else read.attributes

    @property
    def rights_change(self) -> bool:
        """Whether another session may change by which rights old versions are shown. Then a catalog is needed."""
        return self.policy.old_modes is OldModes.STRICT

    def read_top(self, session_time: int) -> Attributes:
        """The directory of a snapshot, of its list alone: who looks at the root need not wait for the catalog.

        Touches the disk. NotFoundError, DamagedError, StorageError.
        """
        with closing(self._repository.snapshot(session_time)) as snapshot:
            entry = next(snapshot.entries(), None)
            if entry is None or entry.path:
                raise DamagedError("the list of files has no root", at=session_time)
            with snapshot.extras(ALL_EXTRAS, lambda error: log.warning("%s", error)) as extras:
                entry = extras.added_to(entry)
        top = self._unread_top(session_time)
        mode = self.policy.mode(stat.S_IFDIR | entry.safe_mode, entry.acl)
        top = top._replace(mode=mode, uid=shown_id(entry.uid), gid=shown_id(entry.gid), valid_s=FOREVER_S)
        read = _Top(top, self.policy.xattrs(entry.xattrs, entry.acl))
        return self._tops.setdefault(session_time, read).attributes

    def xattrs_of_top(self, session_time: int) -> Mapping[bytes, bytes]:
        """The extended attributes of the directory of a snapshot that `top` knows. NotFoundError, DamagedError."""
        with self._lent_if_there() as tree:
            if tree is not None and session_time in tree.catalog.sessions:
                return tree.xattrs(directory_inode(session_time, TOP_TAG))
        read = self._tops.get(session_time)
        if read is None:
            raise NotReadyError("the session is not known yet", at=session_time)
        return read.xattrs

    def _unread_top(self, session_time: int) -> Attributes:
        """A stand-in for a directory listing: type, number and time are right, the rest is good for no time at all."""
        inode = directory_inode(session_time, TOP_TAG)
        return Attributes(inode, stat.S_IFDIR | 0o500, 1, *self._owner, 0, 0, session_time, UNKNOWN_S)

    def children_of_root(self, offset: int, limit: int) -> list[Child]:
        """Up to `limit` of the snapshots' directories from `offset` on, and the dots; none at the end."""
        root, children = self.root(), []
        if offset < AFTER_DOT:
            children.append(Child(b".", root, AFTER_DOT))
        if offset < AFTER_DOTS:
            children.append(Child(b"..", root, AFTER_DOTS))
        for name, session_time in self._sessions.names.items():
            after = session_time + TIME_SHIFT + AFTER_0
            if after > offset and len(children) < limit:
                children.append(Child(name, self._top_or_stand_in(session_time), after))
        return children

    def _top_or_stand_in(self, session_time: int) -> Attributes:
        with suppress(NotFoundError, DamagedError):
            if (top := self.top(session_time)) is not None:
                return top
        return self._unread_top(session_time)

    # The disk

    def refresh(self) -> bool:
        """Look which sessions there are now; whether the catalog knows all of them. StorageError."""
        state = self._repository.state()
        if state.sessions != self._sessions.times:
            names = snapshot_names(state.sessions, self._zone)
            by_name = {os.fsencode(names[session_time]): session_time for session_time in state.sessions}
            self._sessions = _Sessions(state.sessions, frozenset(state.sessions), by_name)
        if state is not self._state or not self._is_current or self._is_doubtful:
            self._is_doubtful = False
            with self._lent_if_there() as tree:
                self._is_current = tree is not None and tree.catalog.is_current(state)
            self._state = state
        return self._is_current

    @property
    def is_current(self) -> bool:
        """Whether the catalog knew all sessions at the last `refresh`."""
        return self._is_current

    def update(self) -> None:
        """Take a catalog that knows what is there now: slow where it has to be built. DamagedError, StorageError."""
        if self.refresh():
            return
        new = Tree(self._open_catalog(), self.root, self.policy)
        with self._lock:
            self._tree, old = new, self._tree
            self.catalogs_taken += 1
        self._tops.clear()
        self._give_back(old)
        self.refresh()

    def close(self) -> None:
        with self._lock:
            self._tree, old = None, self._tree
        self._give_back(old)

    # What is in a snapshot

    def attributes(self, inode: int) -> Attributes:
        with self._lent(inode) as tree:
            return tree.attributes(inode)

    def child(self, inode: int, name: bytes) -> Attributes | None:
        """What `name` is in a directory, "." and ".." included; None if it is not there. NotADirectoryEntryError.

        NFS servers ask for "." of files too, to find a file by its number.
        """
        with self._lent(inode) as tree:
            return tree.child(inode, name)

    def children(self, inode: int, offset: int, limit: int) -> list[Child]:
        """The next names, at least `limit` or all, in a directory from `offset` on, "." and ".." first.

        NotADirectoryEntryError.
        """
        if inode == ROOT_INODE:
            return self.children_of_root(offset, limit)
        with self._lent(inode) as tree:
            return tree.children(inode, offset, limit)

    @property
    def has_xattrs(self) -> bool:
        """Whether anything in a snapshot may have extended attributes: what was looked up already, at least."""
        tree = self._tree
        return tree is None or tree.catalog.has_extras

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        """The extended attributes as the kernel knows them, access control lists among them."""
        with self._lent(inode) as tree:
            return tree.xattrs(inode)

    def target(self, inode: int) -> bytes | None:
        """Where a symbolic link leads to, as recorded; None for what is none."""
        with self._lent(inode) as tree:
            return tree.target(inode)

    def open(self, inode: int, *, only_if_quick: bool = False) -> File | None:
        """Open a regular file; perhaps only if it is small and lies in the mirror, else None.

        DamagedError, StorageError.
        """
        with self._lent(inode, checked_before=True) as tree:
            return tree.open(inode, self._repository, only_if_quick)

    def contents(
        self, inodes: Sequence[int], *, only_quick: bool = False
    ) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        """Those of the files that are small, and are what was recorded: inodes, and all their bytes.

        First those that are read together with others in their directory, which is much quicker than to open each;
        then, unless it is to be `only_quick`, the others. DamagedError, StorageError.
        """
        if inodes:
            with self._lent(inodes[0], checked_before=True) as tree:
                yield from tree.contents(inodes, self._repository, only_quick)

    @contextmanager
    def _lent(self, inode: int, *, checked_before: bool = False) -> Iterator[Tree]:
        """The catalog, to be asked about `inode`.

        A session may write to it at any moment. What was kept of it may not be right then, so it is asked again whether
        that has happened: when there is an answer, or before, where contents follow, which are compared with digests.
        """
        session_time = None if number_of(inode) is not None else place_of(inode)[0]
        try:
            if session_time is not None:
                self._sessions.check(session_time)
            with self._lent_if_there() as tree:
                if tree is None:
                    raise NotFoundError("there is no catalog yet")
                if checked_before:
                    self._check_as_it_was(tree)
                yield tree
                if not checked_before:
                    self._check_as_it_was(tree)
        except (NotFoundError, DamagedError) as exc:
            self._is_current &= not self._has_lost_catalog() and not self._has_changed()
            if self._is_current:
                self._is_doubtful |= isinstance(exc, DamagedError)  # the catalog itself may be damaged
                raise
            raise NotReadyError("the catalog is not up to date") from exc

    def _check_as_it_was(self, tree: Tree) -> None:
        if not tree.catalog.is_as_it_was():
            self._is_current = False
            raise NotReadyError("the catalog was written to")

    def _has_changed(self) -> bool:
        """Whether the repository is not what it was at the last look: a session may just be undone."""
        return self._repository.state() != self._state

    def _has_lost_catalog(self) -> bool:
        """Whether the catalog itself cannot be read, as when its writer was killed."""
        with self._lent_if_there() as tree:
            return tree is not None and tree.catalog.is_damaged

    @contextmanager
    def _lent_if_there(self) -> Iterator[Tree | None]:
        with self._lock:
            tree = self._tree
            if tree is not None:
                tree.users += 1
        try:
            yield tree
        finally:
            self._give_back(tree)

    def _give_back(self, tree: Tree | None) -> None:
        if tree is None:
            return
        with self._lock:
            tree.users -= 1
            is_unused = not tree.users
        if is_unused:
            tree.catalog.close()
