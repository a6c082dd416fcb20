"""The operation `restore`: write what a snapshot holds below a new or empty target.

Everything is written below a descriptor of the target, by names that the list of files gives and whose parents are
directories of the same list: nothing leads out of the target, whatever a record or another user says. A file whose
content turns out wrong, or does not come to its end, is removed. Directories get owner, mode and time when complete.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError, UsageError, storage_errors
from histfs.store.accounts import BY_NAME
from histfs.store.entry import Entry, Kind, LinkDigests, is_below
from histfs.store.files import Attributes, WritableTree, write_blocks
from histfs.store.owners import Owners
from histfs.store.repository import Repository
from histfs.store.snapshot import Snapshot

# What will not get better with the next file: the restore stops.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class RestoreOutcome(NamedTuple):
    """`files`: entries of all kinds that were restored; `errors`: entries that could not be, or not completely."""

    files: int
    errors: int


def restore(
    repository: Repository,
    path: bytes,
    session_time: int,
    target: Path,
    *,
    report: Callable[[HistfsError], None],
    owners: Owners = BY_NAME,
) -> RestoreOutcome:
    """Restore what was at `path` at the session of `session_time` to `target`.

    A directory needs a `target` that is not there yet or an empty directory, anything else one that is not there. What
    cannot be restored is told to `report`, and the rest goes on. `owners`: whose the files are. Raises UsageError,
    NotFoundError, StorageError.
    """
    snapshot = repository.snapshot(session_time)
    with storage_errors():
        check_target(repository, target)
        return _Restore(snapshot, path, report, owners).run(target)


def check_target(repository: Repository, target: Path) -> None:
    """Raises UsageError unless `target` is free, its parent exists, and it lies outside of the repository."""
    absolute = Path(os.path.abspath(target))
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(repository.path)):
        raise UsageError("lies in the repository itself", path=target, advice="choose a target outside of it")
    if not os.path.isdir(absolute.parent):
        raise UsageError("cannot be made, as the directory it would lie in does not exist", path=target)
    if not os.path.lexists(absolute):
        return
    if not stat.S_ISDIR(os.lstat(absolute).st_mode):
        raise UsageError("exists already", path=target, advice="choose a target that does not exist")
    if any(absolute.iterdir()):
        raise UsageError("is not empty", path=target, advice="choose a new or an empty directory")


class _Restore:
    def __init__(self, snapshot: Snapshot, path: bytes, report: Callable[[HistfsError], None], owners: Owners) -> None:
        self._snapshot = snapshot
        self._path = path
        self._report = report
        self._owners = owners
        self._files = 0
        self._errors = 0
        self._digests = LinkDigests()
        self._links: dict[tuple[int, ...], bytes] = {}  # where the first link of a file is in the target
        self._is_root = os.geteuid() == 0

    def run(self, target: Path) -> RestoreOutcome:
        entries = self._snapshot.entries(on_damage=self._failed)
        for entry in entries:
            self._digests.remember(entry)
            if entry.path == self._path:
                break
        else:
            raise NotFoundError("was not there at this time", path=self._path, at=self._snapshot.time)
        place = Path(os.path.abspath(target))
        with WritableTree.open(place.parent) as parent:
            if entry.kind is Kind.DIRECTORY:
                with _enter(parent, place) as tree:
                    self._restore_below(tree, entry, entries)
                    refused = tree.owners_were_refused
            else:
                if os.path.lexists(place):
                    raise UsageError("exists already", path=target, advice="choose a target that does not exist")
                self._restore(parent, entry, os.fsencode(place.name))
                refused = parent.owners_were_refused
        if refused and self._is_root:
            self._failed(StorageError("takes no owners: what was restored belongs to whom it gives it", path=target))
        return RestoreOutcome(self._files, self._errors)

    def _restore_below(self, tree: WritableTree, top: Entry, entries: Iterator[Entry]) -> None:
        directories = [top]
        self._files += 1
        try:
            for entry in entries:
                self._digests.remember(entry)
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

    def _relative(self, path: bytes) -> bytes:
        return path[len(self._path) :].lstrip(b"/") if self._path else path

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
        key = entry.file_key
        if key is not None and key in self._links and tree.try_link(self._links[key], path):
            return
        with self._snapshot.open(entry, self._digests.of(entry)) as content:
            fd = tree.create_file(path)
            try:
                write_blocks(fd, content.blocks(), sparse=True)
                mtime_ns = content.mtime_ns if content.mtime_ns is not None else entry.mtime_s * 10**9
                tree.set_file_attributes(fd, self._attributes(entry, mtime_ns))
            except BaseException as exc:
                tree.unlink(path)
                if isinstance(exc, HistfsError):
                    exc.path, exc.at = entry.path, self._snapshot.time
                raise
            finally:
                os.close(fd)
        if key is not None:
            self._links[key] = path

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
        tree.set_attributes(path, entry.kind, self._attributes(entry, mtime_ns))

    def _leave(self, tree: WritableTree, entry: Entry) -> None:
        attributes = self._attributes(entry, entry.mtime_s * 10**9)
        tree.set_attributes(self._relative(entry.path), Kind.DIRECTORY, attributes)

    def _attributes(self, entry: Entry, mtime_ns: int | None) -> Attributes:
        return Attributes(entry.mode, *self._owners.of(entry), mtime_ns)


@contextmanager
def _enter(parent: WritableTree, place: Path) -> Iterator[WritableTree]:
    """The directory `place`, made if it is not there. Looked at by descriptor, as others may write beside it."""
    name = os.fsencode(place.name)
    with suppress(FileExistsError):
        parent.make_directory(name)
    with WritableTree(parent.open_directory(name)) as tree:
        if tree.names(b""):
            raise UsageError("is not empty", path=place, advice="choose a new or an empty directory")
        yield tree
