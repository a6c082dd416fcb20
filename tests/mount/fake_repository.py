"""A repository in memory, with as much of the store's interface as the mount uses, and its catalog.

Trees are literals (tests.trees). What a real repository does slowly or wrongly can be asked for: `gate` holds openings
until it is set, `catalog_gate` the building of a catalog, `read_gate` reads that are not cached; `is_cached` False
makes all of them so; `damaged` has errors for contents, by path.
"""

import hashlib
import os
import stat
import threading
from bisect import bisect_right
from collections import Counter
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from histfs.errors import DamagedError, NotFoundError
from histfs.rsync import Made
from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from tests.store.catalogs import listed
from tests.trees import Device, Dir, Fifo, File, Link, Socket, Symlink, walk

LIVE = 2**62
_TYPES = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


class State(NamedTuple):
    sessions: tuple


class FakeRepository:
    def __init__(self, trees, path=Path("/")):
        self.path = path
        self.trees = dict(trees)
        self.extra_entries = {}  # session time -> entries that no literal can describe
        self.gate, self.read_gate, self.catalog_gate = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        self.read_gate.set()
        self.catalog_gate.set()
        self.damaged = {}  # path -> exception; "state", "catalog": for these
        self.unreadable = set()  # session times that have no list
        self.is_cached = True
        self.calls = Counter()  # (what, path), "catalog"
        self.open_now = Counter()  # catalogs and contents that were not closed yet
        self.has_mirror = False  # whether `read_small` finds anything

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def state(self):
        self.calls["state"] += 1
        if "state" in self.damaged:
            raise self.damaged["state"]
        return State(tuple(sorted(self.trees)))

    def snapshot(self, session_time):
        if session_time not in self.trees:
            raise NotFoundError("no such session", at=session_time)
        return FakeSnapshot(self, session_time)

    def open_catalog(self):
        self.calls["catalog"] += 1
        if "catalog" in self.damaged:
            raise self.damaged["catalog"]
        made = FakeCatalog(self)
        assert self.catalog_gate.wait(30)
        return made

    def entries(self, session_time):
        made = entries_of(self.trees[session_time]) + self.extra_entries.get(session_time, [])
        return sorted(made, key=lambda entry: sort_key(entry.path))

    def read_small(self, directory, files):
        self.calls["small", directory] += len(files)
        contents = self.contents(max(self.trees)) if self.has_mirror else {}
        paths = [((directory + b"/" if directory else b"") + file.name, file.at) for file in files]
        found = [contents[path] if path in contents and at is None else None for path, at in paths]
        return [None if data is None else Made(memoryview(data), 0) for data in found]

    def contents(self, session_time):
        return {path: node.content for path, node in walk(self.trees[session_time]) if isinstance(node, File)}


class FakeSnapshot:
    def __init__(self, repository, session_time):
        self.time = session_time
        self._repository = repository

    def close(self):
        pass

    def entries(self):
        self._repository.calls["entries", self.time] += 1
        if self.time in self._repository.unreadable:
            raise DamagedError("cannot be read", at=self.time)
        yield from self._repository.entries(self.time)

    def extras(self, which, report):
        return nullcontext(SimpleNamespace(added_to=lambda entry: entry))  # which has them already

    def open(self, entry, sha1):
        self._repository.calls["open", entry.path] += 1
        assert self._repository.gate.wait(30)
        if entry.path in self._repository.damaged:
            raise self._repository.damaged[entry.path]
        return FakeContent(self._repository, entry.path, self._repository.contents(self.time)[entry.path])


class FakeVersion(NamedTuple):
    number: int
    parent: int
    name: bytes
    first: int
    last: int
    mode: int
    uid: int
    gid: int
    mtime_s: int
    size_bytes: int
    target: bytes
    directory: int
    link: tuple | None
    made_of: Entry
    extras: int | None
    alternate_mirror: int | None = None
    alternate_increment: int | None = None

    @property
    def kind(self):
        return self.made_of.kind

    @property
    def sha1(self):
        return self.made_of.sha1


class FakeCatalog:
    is_damaged = False

    def __init__(self, repository):
        self._repository = repository
        self.sessions = tuple(sorted(repository.trees))
        self._unreadable = set(repository.unreadable)
        self._paths, self._directories = [None], {}  # numbers of directories begin at 1
        self._versions = {}  # by number
        self._names = {}  # (directory, name) -> versions, oldest first
        self._tags = {}
        runs, before = {}, None  # path -> (record, number) at the session before
        for time in (time for time in self.sessions if time not in self._unreadable):
            contents, now = repository.contents(time), {}
            for entry in repository.entries(time):
                record = (entry, contents.get(entry.path))
                earlier = runs.get(entry.path)
                now[entry.path] = self._add(record, time) if earlier is None or earlier[0] != record else earlier
            for path, (_, number) in runs.items():
                if now.get(path, (None, None))[1] != number:
                    self._versions[number] = self._versions[number]._replace(last=before)
            runs, before = now, time
        for version in self._versions.values():
            self._names.setdefault((version.parent, version.name), []).append(version)
        self._in = {}  # directory -> names, sorted
        for parent, name in sorted(self._names):
            self._in.setdefault(parent, []).append(name)
        repository.open_now["catalog"] += 1

    def _add(self, record, time):
        entry = record[0]
        key = repr((*record, time)).encode()
        number = int.from_bytes(hashlib.sha1(key).digest()[:8], "big") >> 2
        directory = self._directory_of(entry.path) if entry.kind is Kind.DIRECTORY else 0
        mode = _TYPES[entry.kind] | entry.mode & 0o7777
        link = entry.link_group and (entry.link_group.inode, entry.link_group.device, entry.link_group.nlink)
        parent = self._directory_of(entry.parent) if entry.path else 0
        attributes = mode, entry.uid, entry.gid, entry.mtime_s, entry.size_bytes, entry.target
        extras = number if entry.xattrs or entry.acl else None
        self._versions[number] = FakeVersion(
            number, parent, entry.name, time, LIVE, *attributes, directory, link, entry, extras
        )
        return record, number

    def _directory_of(self, path):
        if path not in self._directories:
            self._directories[path] = len(self._paths)
            self._paths.append(path)
            self._tags[tag_of(path)] = self._directories[path]
        return self._directories[path]

    @property
    def has_extras(self):
        return any(version.extras is not None for version in self._versions.values())

    def extras(self, number):
        self._repository.calls["extras"] += 1
        return self._versions[number].made_of.xattrs, self._versions[number].made_of.acl

    def is_as_it_was(self) -> bool:
        return True

    def is_current(self, state):
        return state.sessions == self.sessions

    def root(self, time):
        if time not in self.sessions:
            raise NotFoundError("no such session", at=time)
        if time in self._unreadable:
            raise DamagedError("cannot be read", at=time)
        return self.child(0, b"", time)

    def child(self, directory, name, time):
        return next((v for v in self._names.get((directory, name), []) if v.first <= time <= v.last), None)

    def children(self, directory, time, after=None, limit=1000):
        names = self._in.get(directory, [])
        start = 0 if after is None else bisect_right(names, after)
        found = (self.child(directory, name, time) for name in names[start:])
        return list(islice((version for version in found if version is not None), limit))

    def names(self, directory, time, after=None, limit=1000):
        for version in self.children(directory, time, after, limit):
            tag = self.tag(version.directory) if version.directory else None
            yield listed(version, tag, min(self.sessions, default=0))

    def version(self, number):
        return self._versions.get(number)

    def numbered(self, numbers):
        return {number: self._versions[number] for number in numbers if number in self._versions}

    def directory(self, tag):
        return self._tags.get(tag)

    def tag(self, directory):
        if directory >= len(self._paths):
            raise NotFoundError("no such directory")
        return tag_of(self._paths[directory])

    def path(self, directory):
        return self._paths[directory]

    def parent(self, directory):
        return self._directories[self._paths[directory].rpartition(b"/")[0]]

    def links(self, version, time):
        members = [v for v in self._versions.values() if v.link == version.link and v.first <= time <= v.last]
        if version.link is None:
            return version, 1
        return min(members, key=lambda v: sort_key(v.made_of.path)), len(members)

    def entry(self, version):
        return version.made_of

    def time_of(self, version):
        return max({*self.sessions} - self._unreadable) if version.last == LIVE else version.last

    def close(self):
        self._repository.open_now["catalog"] -= 1
        assert self._repository.open_now["catalog"] >= 0


def tag_of(path):
    return int.from_bytes(hashlib.sha1(path).digest()[:4], "big") >> 3


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

    def hold(self):
        return None

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
    xattrs = tuple(sorted((os.fsencode(name), value) for name, value in node.xattrs.items()))
    entry = Entry(path, _KINDS.get(type(node), Kind.REGULAR), uid=uid, gid=gid, xattrs=xattrs)
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
