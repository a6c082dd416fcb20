"""Sessions in this process: a source directory, backups of it at times that are made up, and what the snapshots hold.

sessions = Sessions(tmp_path)
build(sessions.source, Dir({"a": File(b"text")}))
sessions.backup()                      # the state of the source is remembered for this time
sessions.assert_all_readable()         # every finished snapshot is what the source was
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import HistfsError
from histfs.store import naming
from histfs.store.accounts import BY_NAME, resolved
from histfs.store.backup import BackupOutcome, backup
from histfs.store.compare import Difference, Method, compare
from histfs.store.copying import Copies
from histfs.store.entry import ALL_EXTRAS, Entry, Kind
from histfs.store.format import posix_acl
from histfs.store.listing import Node
from histfs.store.repository import Repository
from histfs.store.snapshot import Snapshot
from histfs.store.verify import VerifyOutcome, verify
from tests.comparison import Attributes, Manifest, difference, read
from tests.mirrors import read_mirror

FIRST = 1_700_000_000
DAY = 86_400
DATA = "rdiff-backup-data"

_TYPE_NAMES = {
    Kind.REGULAR: "file",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
    Kind.CHARACTER_DEVICE: "character device",
    Kind.BLOCK_DEVICE: "block device",
}


class Sessions:
    """A source, a repository, and what the source was at each session."""

    def __init__(self, place: Path) -> None:
        self.source = place / "source"
        self.repository = place / "repository"
        self.states: dict[int, Manifest] = {}
        self.reported: list[HistfsError] = []
        self.now = FIRST - DAY

    @property
    def data(self) -> Path:
        return self.repository / DATA

    def backup(self, *, force: bool = False, may_report: bool = False, **options: Any) -> BackupOutcome:
        """The next session, a day after the last one. `options`: those of `histfs.store.backup.backup`."""
        self.now += DAY
        state = read(self.source)
        reported: list[HistfsError] = []
        outcome = backup(self.source, self.repository, now=self.now, report=reported.append, force=force, **options)
        self.reported += reported
        if not may_report:
            assert [str(error) for error in reported] == []
        self.states[self.now] = state
        return outcome

    def open(self) -> Repository:
        return Repository.open(self.repository)

    def manifest(self, session_time: int) -> Manifest:
        with self.open() as repository:
            snapshot = repository.snapshot(session_time)
            try:
                return manifest_of(snapshot)
            finally:
                snapshot.close()

    def assert_readable(self, session_time: int) -> None:
        assert difference(self.states[session_time], self.manifest(session_time)) == [], session_time

    def assert_all_readable(self) -> None:
        """The finished sessions are those that are remembered, and each is what the source was."""
        with self.open() as repository:
            assert repository.sessions() == tuple(self.states)
        for session_time in self.states:
            self.assert_readable(session_time)

    def assert_mirror_is(self, session_time: int) -> None:
        """The mirror is a plain copy of the source, hard links too."""
        assert difference(self.states[session_time], read_mirror(self.repository)) == []

    def entry(self, path: bytes, session_time: int | None = None) -> Entry:
        return self.node(path, session_time).entry

    def node(self, path: bytes, session_time: int | None = None) -> Node:
        with self.open() as repository:
            snapshot = repository.snapshot(self.now if session_time is None else session_time)
            try:
                return snapshot.listing().find(path)
            finally:
                snapshot.close()

    def content(self, path: bytes, session_time: int) -> bytes:
        """All bytes of a version, checked; raises what reading raises."""
        with self.open() as repository:
            snapshot = repository.snapshot(session_time)
            try:
                node = snapshot.listing().find(path)
                with snapshot.open(node.entry, node.sha1) as content:
                    return b"".join(content.blocks())
            finally:
                snapshot.close()

    def verify(self, session_time: int, report: Callable[[HistfsError], None] | None = None) -> VerifyOutcome:
        with self.open() as repository:
            return verify(repository, b"", session_time, report=report or self.reported.append)

    def compare(
        self, source: Path | None = None, path: bytes = b"", *, method: Method = Method.META, **options: Any
    ) -> list[Difference]:
        """How `source` differs from what the newest session recorded at `path`; reports go to `reported`."""
        found: list[Difference] = []
        with self.open() as repository:
            compare(
                self.source if source is None else source,
                repository,
                path,
                self.now,
                method=method,
                report=self.reported.append,
                tell=found.append,
                **options,
            )
        return found

    def increments(self, below: str = "") -> set[str]:
        """The increments below `increments`, as paths with the session's number in place of its time."""
        top = self.data / "increments" / below
        found = {os.path.relpath(os.path.join(place, name), top) for place, _, names in os.walk(top) for name in names}
        return {self.numbered(name) for name in found - {".keep"}}

    def numbered(self, name: str) -> str:
        for number, session_time in enumerate(sorted({*self.states, self.now}), 1):
            name = name.replace(stamp(session_time), f"T{number}")
        return name

    def of(self, base: str) -> list[str]:
        """The names of the files of the data directory that begin with `base`, with the session's number."""
        return sorted(self.numbered(name) for name in os.listdir(self.data) if name.startswith(base))


def stamp(session_time: int) -> str:
    """A session's time as names of files have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session_time))


def manifest_of(snapshot: Snapshot) -> Manifest:
    """What the listing of a snapshot and the contents of its files say."""
    nodes = list(snapshot.listing().nodes())
    groups: dict[int, list[bytes]] = {}
    for node in nodes:
        groups.setdefault(node.inode_row, []).append(node.entry.path)
    with snapshot.extras(ALL_EXTRAS, _complain) as extras:
        return {
            node.entry.path: _attributes(snapshot, node, tuple(sorted(groups[node.inode_row])))._replace(
                xattrs=_xattrs(extras.added_to(node.entry))
            )
            for node in nodes
        }


def _complain(error: HistfsError) -> None:
    raise error


def _xattrs(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes as the kernel shows them."""
    acls = posix_acl.shown(resolved(entry.acl or (), BY_NAME).acl)
    return tuple(sorted((*entry.xattrs, *acls.items())))


def _attributes(snapshot: Snapshot, node: Node, links: tuple[bytes, ...]) -> Attributes:
    entry = node.entry
    found = Attributes(_TYPE_NAMES[entry.kind], entry.mode, entry.uid, entry.gid, entry.mtime_s)
    if entry.kind is Kind.REGULAR:
        with snapshot.open(entry, node.sha1) as content:
            for _ in content.blocks():
                pass
        assert node.sha1 is not None
        return found._replace(size=entry.size_bytes, sha1=node.sha1.decode(), links=links, nlink=node.nlink)
    if entry.kind is Kind.SYMLINK:
        return found._replace(target=entry.target, size=len(entry.target))
    if entry.kind.is_device:
        return found._replace(device=entry.device_number)
    return found


def quote_names(monkeypatch: pytest.MonkeyPatch, chars: bytes) -> None:
    """Have first sessions find a file system that needs `chars` quoted."""
    monkeypatch.setattr(naming, "_needs", lambda _tree: (chars, []))


def contents_read(monkeypatch: pytest.MonkeyPatch, smallest_bytes: int = 0) -> list[bytes]:
    """A list that gets the path of each file of the source, of that size at least, whose content is read."""
    paths: list[bytes] = []

    def note(name: str) -> None:
        real: Callable[..., Any] = getattr(Copies, name)

        def call(copies: Copies, found: Any, *arguments: Any) -> Any:
            if found.status.st_size >= smallest_bytes:
                paths.append(found.path)
            return real(copies, found, *arguments)

        monkeypatch.setattr(Copies, name, call)

    for name in ("add", "begin", "digest"):
        note(name)
    return paths
