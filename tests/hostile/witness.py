"""What everybody who reads says about a repository, and that it is honest: right, or said to be wrong."""

import hashlib
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from histfs.errors import HistfsError
from histfs.store.entry import Kind
from histfs.store.listing import Node
from histfs.store.repository import Repository
from histfs.store.restore import restore
from histfs.store.snapshot import Snapshot
from histfs.store.verify import verify
from tests import comparison
from tests.comparison import Manifest, difference
from tests.hostile.repositories import STATES
from tests.trees import Dir, manifest


class Account(NamedTuple):
    """What one reader found of a session. `complaints`: what it said was wrong, sentences for people."""

    found: Manifest | None  # None: the reader tells of no attributes
    complaints: list[str]


def check(repository: Path, scratch: Path, lost: dict[int, set[bytes]], *, silent: bool = False) -> None:
    """Every reader of every session gives what is not `lost` (paths, with all that is below them), and complains iff
    something is; `silent`: it need not complain. Of what is lost there may be nothing, or what is right.
    """
    for session_time, tree in STATES.items():
        gone = lost.get(session_time, set())
        for reader, account in accounts(repository, session_time, scratch):
            where = f"{reader} of {session_time}: {account}"
            if account.found is not None:
                lines = difference_from(tree, account.found, gone)
                assert not lines, "\n".join([where, *lines])
                expected = manifest(tree)
                for path in gone & account.found.keys() & expected.keys():
                    assert account.found[path].sha1 in (None, expected[path].sha1), where
            if not silent:
                assert bool(account.complaints) == bool(gone), where


def check_honest(repository: Path, scratch: Path) -> None:
    """Whoever does not complain is right."""
    for session_time, tree in STATES.items():
        for reader, account in accounts(repository, session_time, scratch):
            if account.found is not None and not account.complaints:
                lines = difference_from(tree, account.found)
                assert not lines, "\n".join([f"{reader} of {session_time}", *lines])


def difference_from(tree: Dir, found: Manifest, ignoring: Collection[bytes] = ()) -> list[str]:
    """How `found` differs from the literal, whatever may have become of the paths that are ignored."""
    return difference(without(manifest(tree), ignoring), without(found, ignoring), nlink=False, root_mtime=False)


def without(tree: Manifest, gone: Collection[bytes]) -> Manifest:
    if b"" in gone:
        return {}
    tops = [path + b"/" for path in gone]
    kept = {path for path in tree if path not in gone and not any(path.startswith(top) for top in tops)}
    links = {path: tuple(link for link in tree[path].links or () if link in kept) for path in kept}
    return {path: tree[path]._replace(links=links[path] or None) for path in kept}


def accounts(repository: Path, session_time: int, scratch: Path) -> Iterator[tuple[str, Account]]:
    yield "restore", restored(repository, session_time, scratch)
    yield "verify", verified(repository, session_time)
    yield "mount", shown(repository, session_time)


def restored(repository: Path, session_time: int, scratch: Path, *, read: bool = True) -> Account:
    """Restore into a directory next to a canary: nothing outside of the target may change."""
    cage = scratch / f"cage-{session_time}"
    cage.mkdir()
    (cage / "canary").write_bytes(b"alive")
    target = cage / "target"
    reports: list[HistfsError] = []
    errors = 0
    try:
        with Repository.open(repository) as opened:
            errors = restore(opened, b"", session_time, target, report=reports.append).errors
    except HistfsError as error:
        reports.append(error)
    assert errors <= len(reports)
    assert set(os.listdir(cage)) <= {"canary", "target"}
    assert (cage / "canary").read_bytes() == b"alive"
    found = comparison.read(target) if read and target.exists() else {}
    return Account(found if read else None, sentences(reports))


def verified(repository: Path, session_time: int) -> Account:
    reports: list[HistfsError] = []
    try:
        with Repository.open(repository) as opened:
            outcome = verify(opened, b"", session_time, report=reports.append)
        assert bool(outcome.mismatched) == bool(reports)
    except HistfsError as error:
        reports.append(error)
    return Account(None, sentences(reports))


def shown(repository: Path, session_time: int) -> Account:
    """What the mount shows, by the store's random access; all files are read, and what would be logged is kept.

    The links of a file are one inode in the mount, so that all of them give the content of the first.
    """
    log = _Log()
    logging.getLogger("histfs").addHandler(log)
    found: Manifest = {}
    try:
        with Repository.open(repository) as opened, closing(opened.snapshot(session_time)) as snapshot:
            found = _Shown(snapshot, log).manifest()
    except HistfsError as error:
        log.lines.append(str(error))
    finally:
        logging.getLogger("histfs").removeHandler(log)
    return Account(found, printable(log.lines))


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class _Shown:
    """The tree of a snapshot as a manifest. A file that cannot be read is not in it."""

    def __init__(self, snapshot: Snapshot, log: _Log) -> None:
        self._snapshot = snapshot
        self._listing = snapshot.listing()
        self._log = log

    def manifest(self) -> Manifest:
        found: Manifest = {}
        groups: dict[int, list[bytes]] = {}
        for node in self._walk(self._listing.node(0)):
            try:
                found[node.entry.path] = self._attributes(node)
            except HistfsError as error:
                self._log.lines.append(str(error))
            else:
                groups.setdefault(node.inode_row, []).append(node.entry.path)
        for paths in groups.values():
            for path in paths:
                if found[path].type == "file":
                    found[path] = found[path]._replace(links=tuple(sorted(paths)))
        return found

    def _walk(self, node: Node) -> Iterator[Node]:
        yield node
        after = -1
        while node.entry.kind is Kind.DIRECTORY and (children := self._listing.children(node.row, after, 10)):
            for child in children:
                yield from self._walk(child)
            after = children[-1].row

    def _attributes(self, node: Node) -> comparison.Attributes:
        entry = node.entry
        found = comparison.Attributes(_TYPES[entry.kind], entry.mode, entry.uid, entry.gid, entry.mtime_s)
        if entry.kind is Kind.SYMLINK:
            return found._replace(size=len(entry.target), target=entry.target)
        if entry.kind is not Kind.REGULAR:
            return found
        first = self._listing.node(node.inode_row)
        digest = hashlib.sha1()
        with closing(self._snapshot.open(first.entry, first.sha1)) as content:
            for offset in range(0, content.size_bytes, 1 << 16):
                digest.update(content.pread(1 << 16, offset))
        return found._replace(size=entry.size_bytes, sha1=digest.hexdigest())


_TYPES = {
    Kind.REGULAR: "file",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
    Kind.CHARACTER_DEVICE: "character device",
    Kind.BLOCK_DEVICE: "block device",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
}


def sentences(errors: list[HistfsError]) -> list[str]:
    """What a person reads: one line each, without a control character."""
    return printable([str(error) for error in errors])


def printable(lines: list[str]) -> list[str]:
    assert all(line.isprintable() for line in lines), lines
    return lines


_MEMORY_BYTES = 300 << 20
_FILE_BYTES = 64 << 20


def run_cramped(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with little memory and small files; it must not fail for want of more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))

    command = [sys.executable, "-m", "histfs", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert ran.returncode >= 0, ran
    assert "Traceback" not in ran.stderr, ran
    assert "emory" not in ran.stderr, ran
    printable(ran.stderr.splitlines())
    return ran
