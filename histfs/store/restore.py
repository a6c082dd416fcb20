"""The operation `restore`: write what a snapshot holds below a new or empty target.

Everything is written below a descriptor of the target, by names that the list of files gives and whose parents are
directories of the same list: nothing leads out of the target, whatever a record or another user says. A file has
its final name only when its content was checked. Directories get their owner, mode and time when they are complete.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError, UsageError, storage_errors
from histfs.store.entry import Entry, Kind, is_below
from histfs.store.files import Attributes, WritableTree, write_blocks
from histfs.store.repository import Repository
from histfs.store.snapshot import Snapshot

# What will not get better with the next file: the restore stops.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class RestoreOutcome(NamedTuple):
    """`files`: entries of all kinds that were restored; `errors`: entries that could not be, or not completely."""

    files: int
    errors: int


def restore(
    repository: Repository, path: bytes, session_time: int, target: Path, *, report: Callable[[HistfsError], None]
) -> RestoreOutcome:
    """Restore what was at `path` at the session of `session_time` to `target`.

    A directory needs a `target` that is not there yet or an empty directory, anything else one that is not there. What
    cannot be restored is told to `report`, and the rest goes on. Raises UsageError, NotFoundError, StorageError.
    """
    snapshot = repository.snapshot(session_time)
    check_target(repository, target)
    with storage_errors():
        return _Restore(snapshot, path, report).run(target)


def check_target(repository: Repository, target: Path) -> None:
    """Raises UsageError unless `target` is free, its parent exists, and it lies outside of the repository."""
    absolute = Path(os.path.abspath(target))
    if absolute.resolve().is_relative_to(repository.path.resolve()):
        raise UsageError("lies in the repository itself", path=target, advice="choose a target outside of it")
    if not absolute.parent.is_dir():
        raise UsageError("cannot be made, as the directory it would lie in does not exist", path=target)
    if not os.path.lexists(absolute):
        return
    if not stat.S_ISDIR(os.lstat(absolute).st_mode):
        raise UsageError("exists already", path=target, advice="choose a target that does not exist")
    if any(absolute.iterdir()):
        raise UsageError("is not empty", path=target, advice="choose a new or an empty directory")


class _Restore:
    def __init__(self, snapshot: Snapshot, path: bytes, report: Callable[[HistfsError], None]) -> None:
        self._snapshot = snapshot
        self._path = path
        self._report = report
        self._files = 0
        self._errors = 0
        self._digests: dict[tuple[int, int], bytes] = {}
        self._links: dict[tuple[int, int], tuple[bytes, Entry]] = {}  # where a link group was restored first
        self._is_root = os.geteuid() == 0

    def run(self, target: Path) -> RestoreOutcome:
        entries = self._snapshot.entries(on_damage=self._failed)
        for entry in entries:
            self._remember_digest(entry)
            if entry.path == self._path:
                break
        else:
            raise NotFoundError("was not there at this time", path=self._path, at=self._snapshot.time)
        if entry.kind is not Kind.DIRECTORY:
            with WritableTree.open(Path(os.path.abspath(target)).parent) as tree:
                self._restore(tree, entry, os.fsencode(target.name))
            return RestoreOutcome(self._files, self._errors)
        with WritableTree.create(target) as tree:
            directories = [entry]
            self._files += 1
            try:
                for entry in entries:
                    self._remember_digest(entry)
                    if not is_below(entry.path, self._path):
                        break
                    while not is_below(entry.path, directories[-1].path):
                        self._leave(tree, directories.pop())
                    if self._restore(tree, entry, self._relative(entry.path)) and entry.kind is Kind.DIRECTORY:
                        directories.append(entry)
            except DamagedError as error:
                self._failed(error)
            while directories:
                self._leave(tree, directories.pop())
        return RestoreOutcome(self._files, self._errors)

    def _relative(self, path: bytes) -> bytes:
        return path[len(self._path) :].lstrip(b"/") if self._path else path

    def _remember_digest(self, entry: Entry) -> None:
        if entry.link_group is not None and entry.sha1 is not None:
            self._digests.setdefault(entry.link_group.key, entry.sha1)

    def _failed(self, error: HistfsError) -> None:
        self._errors += 1
        self._report(error)

    def _restore(self, tree: WritableTree, entry: Entry, path: bytes) -> bool:
        """Whether `entry` is at `path` in the target now."""
        try:
            if entry.kind is Kind.DIRECTORY:
                tree.make_directory(path)
            elif entry.kind is Kind.REGULAR:
                self._restore_file(tree, entry, path)
            else:
                self._restore_special(tree, entry, path)
        except (DamagedError, StorageError) as error:
            self._failed(error)
            return False
        except OSError as exc:
            if exc.errno in _FATAL:
                raise
            self._failed(StorageError(f"cannot be restored ({exc.strerror})", path=entry.path))
            return False
        self._files += 1
        return True

    def _restore_file(self, tree: WritableTree, entry: Entry, path: bytes) -> None:
        key = entry.link_group.key if entry.link_group is not None else None
        if key is not None and key in self._links:
            first, first_entry = self._links[key]
            if first_entry.shared_attributes == entry.shared_attributes:
                tree.link(first, path)
                return
        sha1 = entry.sha1 or (self._digests.get(key) if key is not None else None)
        with self._snapshot.open(entry, sha1) as content:
            fd = tree.create_file(path)
            try:
                write_blocks(fd, content.blocks(), sparse=True)
                mtime_ns = content.mtime_ns if content.mtime_ns is not None else entry.mtime_s * 10**9
                tree.set_file_attributes(fd, Attributes(entry.mode, entry.uid, entry.gid, mtime_ns))
            except DamagedError as error:
                tree.unlink(path)
                error.path, error.at = entry.path, self._snapshot.time
                raise
            finally:
                os.close(fd)
        if key is not None:
            self._links[key] = (path, entry)

    def _restore_special(self, tree: WritableTree, entry: Entry, path: bytes) -> None:
        if entry.kind is Kind.SYMLINK:
            tree.make_symlink(path, entry.target)
        else:
            try:
                tree.make_special(path, entry)
            except PermissionError as exc:
                if self._is_root:
                    raise
                raise StorageError(
                    f"is a {entry.kind.name.lower().replace('_', ' ')}, which only root can make",
                    path=entry.path,
                    advice="restore as root to get it",
                ) from exc
        mtime_ns = entry.mtime_s * 10**9 if entry.kind.has_mtime else None
        tree.set_attributes(path, entry.kind, Attributes(entry.mode, entry.uid, entry.gid, mtime_ns))

    def _leave(self, tree: WritableTree, entry: Entry) -> None:
        attributes = Attributes(entry.mode, entry.uid, entry.gid, entry.mtime_s * 10**9)
        tree.set_attributes(self._relative(entry.path), Kind.DIRECTORY, attributes)
