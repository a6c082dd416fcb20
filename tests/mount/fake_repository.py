"""A repository in memory, with as much of the store's interface as the mount uses.

Trees are literals (tests.trees). What a real repository does slowly or wrongly can be asked for: `gate` holds loads and
openings until it is set, `read_gate` reads that are not cached; `is_cached` False makes all of them so; `damaged` has
errors for contents, by path.
"""

import os
import threading
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from histfs.errors import NotFoundError
from histfs.store.entry import Entry, Kind, LinkGroup, is_below, sort_key
from tests.trees import Device, Dir, Fifo, File, Link, Socket, Symlink, walk


class Node(NamedTuple):
    row: int
    entry: Entry
    nlink: int
    inode_row: int
    sha1: bytes | None


class FakeRepository:
    def __init__(self, trees, path=Path("/")):
        self.path = path
        self.trees = dict(trees)
        self.extra_entries = {}  # session time -> entries that no literal can describe
        self.gate, self.read_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.read_gate.set()
        self.damaged = {}  # path -> exception; None: the listing
        self.is_cached = True
        self.calls = Counter()  # (what, session time or path)
        self.open_now = Counter()  # listings and contents that were not closed yet

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def sessions(self):
        self.calls["sessions"] += 1
        if "sessions" in self.damaged:
            raise self.damaged["sessions"]
        return tuple(sorted(self.trees))

    def snapshot(self, session_time):
        if session_time not in self.trees:
            raise NotFoundError("no such session", at=session_time)
        return FakeSnapshot(self, session_time)

    def entries(self, session_time):
        made = entries_of(self.trees[session_time]) + self.extra_entries.get(session_time, [])
        return sorted(made, key=lambda entry: sort_key(entry.path))

    def contents(self, session_time):
        return {path: node.content for path, node in walk(self.trees[session_time]) if isinstance(node, File)}


class FakeSnapshot:
    def __init__(self, repository, session_time):
        self.time = session_time
        self._repository = repository
        self._listing = None

    def entries(self, below=b""):
        self._repository.calls["entries", self.time] += 1
        if None in self._repository.damaged:
            raise self._repository.damaged[None]
        yield from (entry for entry in self._repository.entries(self.time) if is_below(entry.path, below))

    def listing(self):
        if self._listing is None:
            self._repository.calls["listing", self.time] += 1
            self._listing = FakeListing(list(self.entries()))
            assert self._repository.gate.wait(30)
            self._repository.open_now["listing", self.time] += 1
        return self._listing

    def open(self, entry, sha1):
        self._repository.calls["open", entry.path] += 1
        assert self._repository.gate.wait(30)
        if entry.path in self._repository.damaged:
            raise self._repository.damaged[entry.path]
        return FakeContent(self._repository, entry.path, self._repository.contents(self.time)[entry.path])

    def close(self):
        if self._listing is not None:
            self._listing = None
            self._repository.open_now["listing", self.time] -= 1
            assert self._repository.open_now["listing", self.time] >= 0


class FakeListing:
    def __init__(self, entries):
        groups = {}
        subdirectories = Counter(entry.parent for entry in entries if entry.path and entry.kind is Kind.DIRECTORY)
        for row, entry in enumerate(entries):
            if entry.link_group:
                groups.setdefault(entry.link_group.key, []).append(row)
        self.nodes = []
        for row, entry in enumerate(entries):
            members = groups[entry.link_group.key] if entry.link_group else [row]
            nlink = 2 + subdirectories[entry.path] if entry.kind is Kind.DIRECTORY else len(members)
            self.nodes.append(Node(row, entry, nlink, members[0], entry.sha1))
        below = [node for node in self.nodes if node.entry.path]
        self._names = {(node.entry.parent, node.entry.name): node for node in below}
        self._rows = {}  # by path of the directory
        for node in below:
            self._rows.setdefault(node.entry.parent, []).append(node.row)

    def node(self, row):
        try:
            return self.nodes[row]
        except IndexError:
            raise NotFoundError(f"no row {row}") from None

    def child(self, row, name):
        return self._names.get((self._path(row), name))

    def children(self, row, after=-1, limit=1000):
        rows = self._rows.get(self._path(row), [])
        return [self.nodes[row] for row in rows[bisect_right(rows, after) :][:limit]]

    def find(self, path):
        try:
            return next(node for node in self.nodes if node.entry.path == path)
        except StopIteration:
            raise NotFoundError("not there", path=path) from None

    def _path(self, row):
        return self.nodes[row].entry.path if row < len(self.nodes) else None


class FakeContent:
    def __init__(self, repository, path, data):
        self.repository, self.path, self.data = repository, path, data
        self.is_open = True
        repository.open_now["content", path] += 1

    @property
    def size_bytes(self):
        return len(self.data)

    def pread(self, size, offset):
        assert self.is_open
        self.repository.calls["pread", self.path] += 1
        assert self.repository.read_gate.wait(30)
        if ("read", self.path) in self.repository.damaged:
            raise self.repository.damaged["read", self.path]
        return self.data[offset : offset + size]

    def pread_nowait(self, size, offset):
        assert self.is_open
        return self.data[offset : offset + size] if self.repository.is_cached else None

    def close(self):
        assert self.is_open
        self.is_open = False
        self.repository.open_now["content", self.path] -= 1


_KINDS = {Fifo: Kind.FIFO, Socket: Kind.SOCKET, Dir: Kind.DIRECTORY, File: Kind.REGULAR, Symlink: Kind.SYMLINK}


def entries_of(tree):
    """The entries of a literal, hard links included."""
    nodes = dict(walk(tree))
    groups = Counter()
    for node in nodes.values():
        if isinstance(node, Link):
            groups[os.fsencode(node.path)] += 1
    return [_entry(path, node, nodes, groups) for path, node in nodes.items()]


def _entry(path, node, nodes, groups):
    first = os.fsencode(node.path) if isinstance(node, Link) else path
    node = nodes[first]
    uid, gid = node.owner or (os.geteuid(), os.getegid())
    entry = Entry(path, _KINDS.get(type(node), Kind.REGULAR), uid=uid, gid=gid)
    if groups[first]:
        inode = sorted(nodes).index(first)
        entry = entry._replace(link_group=LinkGroup(groups[first] + 1, inode, 7))
    if isinstance(node, Symlink):
        return entry._replace(mode=0o777, target=os.fsencode(node.target))
    if isinstance(node, Device):
        kind = Kind.CHARACTER_DEVICE if node.kind == "c" else Kind.BLOCK_DEVICE
        return entry._replace(kind=kind, mode=node.mode, device_number=(node.major, node.minor))
    if isinstance(node, File):
        entry = entry._replace(size_bytes=len(node.content))
    return entry._replace(mode=node.mode, mtime_s=node.mtime)
