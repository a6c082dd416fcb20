"""Random access to the entries of one snapshot, in a private temporary SQLite database.

Rows are numbered in the order of the metadata files, the root is row 0: as a session never changes, a row number
means the same entry at every load. SQLite keeps the pages that do not fit its cache in an unlinked temporary file,
so that memory is bounded whatever the size of the tree.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from histfs.errors import NotADirectoryEntryError, NotFoundError
from histfs.store.entry import Entry, Kind
from histfs.store.format.metadata import format_record, parse_record

_CACHE_KIB = 8 * 1024

# entry: `record` is the text of the metadata record. `links` are the true hard links within the snapshot, filled in for
#   directories (2 + their subdirectories) and for the first member of a link group. `first` is the row of the first
#   member of the link group, else the row itself.
# link: one row for each link group while the table is filled; `row` is the group's first member. Links of one file
#   share all attributes: records that claim one inode number but differ in these (`shared`) are different files.
_SCHEMA = f"""
pragma cache_size = -{_CACHE_KIB};
pragma journal_mode = off;
pragma synchronous = off;
create table entry (
    row integer primary key, parent integer not null, name blob not null,
    links integer not null, first integer not null, record blob not null
);
create table link (
    inode blob, device blob, shared blob, row integer, primary key (inode, device, shared)
) without rowid;
"""


class Node(NamedTuple):
    """An entry with what its snapshot knows of it."""

    row: int
    entry: Entry
    nlink: int  # true links within the snapshot; directories: 2 + subdirectories
    inode_row: int  # the row of the first member of the link group, else `row`
    sha1: bytes | None  # hex digest of a regular file, also where only the first member records it


class Listing:
    """The entries of one snapshot. Thread-safe."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._database.executescript(_SCHEMA)

    @classmethod
    def build(cls, entries: Iterable[Entry]) -> Self:
        """Read all of `entries` (metadata order, each parent before its children). Raises what they raise."""
        listing = cls()
        try:
            listing._fill(entries)
        except BaseException:
            listing.close()
            raise
        return listing

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _fill(self, entries: Iterable[Entry]) -> None:
        execute = self._database.execute
        execute("begin")
        open_directories: list[list[int]] = []  # row and links of each ancestor of the current entry
        paths: list[bytes] = []
        for row, entry in enumerate(entries):
            while paths and entry.parent != paths[-1]:
                self._set_links(*open_directories.pop())
                paths.pop()
            parent = open_directories[-1][0] if open_directories else -1
            first = self._first_of_group(entry, row)
            execute(
                "insert into entry values (?, ?, ?, 1, ?, ?)", (row, parent, entry.name, first, format_record(entry))
            )
            if first != row:
                execute("update entry set links = links + 1 where row = ?", (first,))
            if entry.kind is Kind.DIRECTORY:
                if open_directories:
                    open_directories[-1][1] += 1
                open_directories.append([row, 2])
                paths.append(entry.path)
        for directory in open_directories:
            self._set_links(*directory)
        execute("create unique index child on entry (parent, name)")
        execute("create index sibling on entry (parent, row)")
        execute("drop table link")
        execute("commit")

    def _set_links(self, row: int, links: int) -> None:
        self._database.execute("update entry set links = ? where row = ?", (links, row))

    def _first_of_group(self, entry: Entry, row: int) -> int:
        if entry.link_group is None or entry.kind is not Kind.REGULAR:
            return row
        group, shared = entry.link_group, entry.shared_attributes
        # As text, since an inode number may not fit SQLite's signed integers.
        key = (b"%d" % group.inode, b"%d" % group.device, b"%d %d %d %d %d" % shared)
        found = self._database.execute(
            "select row from link where inode = ? and device = ? and shared = ?", key
        ).fetchone()
        if found is not None:
            return int(found[0])
        self._database.execute("insert into link values (?, ?, ?, ?)", (*key, row))
        return row

    def node(self, row: int) -> Node:
        """The node at `row`; NotFoundError if there is none."""
        for node in self._nodes("e.row = ?", (row,), 1):
            return node
        raise NotFoundError(f"the snapshot has no entry number {row}")

    def child(self, row: int, name: bytes) -> Node | None:
        """The node of `name` in the directory at `row`; None if there is none."""
        for node in self._nodes("e.parent = ? and e.name = ?", (row, name), 1):
            return node
        return None

    def children(self, row: int, after: int = -1, limit: int = 1000) -> list[Node]:
        """Up to `limit` nodes in the directory at `row` that come after the row `after`, in order."""
        return list(self._nodes("e.parent = ? and e.row > ? order by e.row", (row, after), limit))

    def nodes(self) -> Iterator[Node]:
        """All nodes in order."""
        after = -1
        while page := list(self._nodes("e.row > ? order by e.row", (after,), 1000)):
            yield from page
            after = page[-1].row

    def find(self, path: bytes) -> Node:
        """The node at `path`; NotFoundError, NotADirectoryEntryError."""
        node = self.node(0)
        for name in path.split(b"/") if path else []:
            if node.entry.kind is not Kind.DIRECTORY:
                raise NotADirectoryEntryError("is not a directory", path=node.entry.path)
            child = self.child(node.row, name)
            if child is None:
                raise NotFoundError("was not there at this time", path=path)
            node = child
        return node

    def _nodes(self, condition: str, arguments: tuple[object, ...], limit: int) -> Iterator[Node]:
        query = (
            "select e.row, e.record, e.links, e.first, f.record, f.links from entry e"  # noqa: S608 - only our own text
            f" left join entry f on f.row = e.first and f.row != e.row where {condition} limit {limit}"
        )
        with self._lock:
            rows = self._database.execute(query, arguments).fetchall()
        for row, record, links, first, first_record, first_links in rows:
            entry = parse_record(record)
            sha1 = entry.sha1
            if first_record is not None:
                links = first_links
                sha1 = sha1 or parse_record(first_record).sha1
            yield Node(row, entry, links, first, sha1)
