"""The target of a restore: what is in it already, and every change that is made to it.

Everything happens below a descriptor of the directory that holds the target, by names and through no link (see `tree`
and `files`). Rules
- What is new is made in its place. What takes the place of something is made beside it, under a name that tells an
  interrupted restore, and renamed: whoever looks sees the old or the new one, and a kill leaves one of them.
- What goes is removed, or moved below the directory that keeps it. A directory with something in it goes only where
  that was asked for.
- A file with other names is never changed in place: these may lie outside of the target.
- The repository that is restored from may lie in the target. It is known by its inode, whatever path leads to it:
  nothing is done with it or in it, and no directory that it lies in goes.
- Nothing is removed in other file systems that are mounted in the target, nor in what is mounted there from elsewhere.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Self

from histfs.errors import EXIT_FILE_ERROR, FormatError, StorageError, UsageError
from histfs.store.aside import Aside
from histfs.store.content.opening import sha1_of
from histfs.store.entry import Entry, Extras, Kind, join, name_of, parent_of
from histfs.store.files import WritableTree, make_host_directories
from histfs.store.look import entry_of, read_extras
from histfs.store.selection import Outcome, Place, Selection, Subject
from histfs.store.source import Found, Source
from histfs.store.tree import Tree
from histfs.store.unfinished import Task, Unfinished, is_below_mark, is_leftover_name, new_leftover

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Manner(NamedTuple):
    """How a restore treats a target in which something is already.

    With none of the first three it must be free: not there yet, or for a directory an empty one.
    """

    merge: bool = False  # what differs is replaced, and what the snapshot does not have stays
    delete: bool = False  # what the snapshot does not have is deleted
    force: bool = False  # that too, and the target itself may be something of another type
    backup_dir: Path | None = None  # where what is replaced or deleted is kept
    checksum: bool = False  # contents are compared also where size and time agree
    create_full_path: bool = False  # the directories that lead to the target are made
    dry_run: bool = False  # nothing is changed
    hard_links: bool = True  # what was one file is one again
    fsync: bool = True  # what was written is on the disk before anything is deleted, and at the end

    @property
    def is_merging(self) -> bool:
        return self.merge or self.is_deleting or self.backup_dir is not None

    @property
    def is_deleting(self) -> bool:
        return self.delete or self.force


class MustStayError(StorageError):
    """Something in the target that is neither changed nor removed, whatever was asked for."""


class Step(Enum):
    """What a restore does with one name in the target."""

    NEW = "new"
    CHANGED = "changed"  # it is replaced
    ATTRIBUTES = "attributes"  # its owner, mode or time are changed
    DELETED = "deleted"


class _Waiting:
    """A directory of the target that may go when what is in it has gone; None: one that stays in any case.

    `items`: those that are still to come.
    """

    __slots__ = ("found", "goes", "items", "place")

    def __init__(
        self, found: Found | None, place: Place, items: Iterator[Found | MustStayError], *, goes: bool = True
    ) -> None:
        self.found = found
        self.place = place
        self.items = items
        self.goes = goes


class Target:
    """Changes what is at and below the path `top` in `tree`. Make one with `open`.

    `aside`: what gets what is replaced or removed; None if that is not kept. `may_remove`: directories may go with what
    is in them. `dry_run`: nothing is changed. `extras`: what is looked at beyond stat(2). `repository`: its root.
    """

    def __init__(
        self,
        tree: WritableTree,
        top: bytes,
        aside: Aside | None,
        extras: Extras,
        repository: os.stat_result,
        unfinished: Unfinished,
        *,
        may_remove: bool,
        dry_run: bool,
    ) -> None:
        self.tree = tree
        self.top = top
        self._aside = aside
        self._extras = extras
        self._repository = repository
        self._may_remove = may_remove
        self._dry_run = dry_run
        self._surroundings: Source | None = None
        self._is_on_disk = True
        self._unfinished = unfinished
        self.on_block: Callable[[int], object] | None = None  # called with the size of each block that is compared

    @classmethod
    @contextmanager
    def open(
        cls, place: Path, manner: Manner, extras: Extras, repository: os.stat_result, task: Task, *, may_remove: bool
    ) -> Iterator[Self]:
        """Enter the directory that holds the target, which is `resolved`. Raises OSError, UsageError."""
        above = place.parent
        if manner.dry_run:
            while not above.is_dir():  # which would be made
                above = above.parent
        elif manner.create_full_path:
            make_host_directories(above)
        top = os.fsencode(place.relative_to(above)) if place != above else b""
        keeps = manner.backup_dir is not None
        with ExitStack() as stack:
            tree = stack.enter_context(WritableTree.open(above))
            tree.waits_for_disk = manner.fsync
            if tree.lies_in(repository):  # by another path than those that `check_target` has compared
                raise UsageError("lies in the repository itself", path=place, advice="choose a target outside of it")
            aside = None
            if manner.backup_dir is not None and not manner.dry_run:
                kept = stack.enter_context(WritableTree.create(manner.backup_dir))
                if os.fstat(kept.root_fd).st_dev != os.fstat(tree.root_fd).st_dev:
                    raise UsageError("must be on the file system of the target", path=manner.backup_dir)
                if kept.lies_in(repository):
                    raise UsageError("lies in the repository itself", path=manner.backup_dir)
                aside = Aside(kept, repository)
            unfinished = Unfinished(tree, top, task, is_marked_above=is_below_mark(place))
            stack.callback(unfinished.close)
            removes, dry_run = may_remove or keeps, manner.dry_run
            opened = cls(tree, top, aside, extras, repository, unfinished, may_remove=removes, dry_run=dry_run)
            stack.callback(opened._forget_surroundings)
            try:
                yield opened
            except Exception:  # not an interruption, which is not to wait for the disk
                with suppress(OSError):
                    opened.finish(is_complete=False)
                raise
            opened.sync()

    def _forget_surroundings(self) -> None:
        if self._surroundings is not None:
            self._surroundings.close()

    # Looking

    def find(self, path: bytes) -> Found | None:
        """What is at `path`; None if nothing is, also as something above it is not there or no directory.

        Raises MustStayError if it is the repository: whoever looks wants to change it.
        """
        try:
            status = self.tree.stat(path)
            link = self.tree.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
        except OSError as exc:
            if exc.errno not in _NOTHING_THERE:
                raise
            return None
        if os.path.samestat(status, self._repository):
            raise MustStayError("is the repository that is restored from, and stays as it is", path=path)
        entry = entry_of(path, status, link)
        with suppress(OSError, FormatError):  # what cannot be read is set anew
            entry = read_extras(self.tree, entry, self._extras)
        return Found(entry, status)

    def is_gone(self, path: bytes) -> bool:
        """Whether nothing is at `path`, as far as that can be seen."""
        try:
            self.tree.stat(path)
        except OSError as exc:
            return exc.errno in _NOTHING_THERE
        return False

    def find_to_remove(self, path: bytes) -> Found | None:
        """As `find`. Raises MustStayError also where another file system begins."""
        found = self.find(path)
        if found is not None and found.entry.kind is Kind.DIRECTORY and (not path or self.tree.is_mounted(path)):
            raise other_file_system(path)
        return found

    def is_elsewhere(self, path: bytes) -> bool:
        """Whether another file system begins with the directory `path`, below the target."""
        return path != self.top and self.tree.is_mounted(path)

    def check_may_go(self, found: Found, *, open_up: bool) -> None:
        """Raises StorageError if `found` is a directory that has something in it, and that must not be lost.

        All that lies below it is looked at. `open_up`: it is going to be removed.
        """
        if found.entry.kind is not Kind.DIRECTORY:
            return
        self._check_is_free(found)
        for _ in self.below(found.path, open_up=open_up):
            pass

    def _check_is_free(self, found: Found) -> None:
        if self._may_remove:
            return
        if not all(self._is_leftover(found.path, name) for name in self.tree.names(found.path)):
            raise StorageError(
                "is a directory with something in it, and something else in the backup",
                path=found.path,
                advice="--delete lets it go, --backup-dir keeps it elsewhere",
            )

    def below(self, path: bytes, *, open_up: bool) -> Iterator[bytes]:
        """`path` and all that lies below it, parents first. `open_up`: it is going to be removed.

        Raises MustStayError where something is that must stay.
        """
        pending = [path]
        while pending:
            current = pending.pop()
            yield current
            found = self.find_to_remove(current)
            if found is not None and found.entry.kind is Kind.DIRECTORY:
                if open_up:
                    self._open_up(found)
                pending.extend(join(current, name) for name in sorted(self.tree.names(current), reverse=True))

    def selected_below(
        self, found: Found, selection: Selection, above: Place, stays: Callable[[MustStayError], None]
    ) -> Iterator[Found]:
        """What the selection takes of what was found in the directory at `above`; what is in a directory before it.

        A directory in which something is excluded is left out, and so is one that was only scanned. What must stay is
        told to `stays`, and left out together with the directories that it lies in.
        """
        waiting = [_Waiting(None, above, iter([found]))]
        while waiting:
            directory = waiting[-1]
            item = next(directory.items, None)
            if isinstance(item, MustStayError):
                stays(item)
                directory.goes = False
                continue
            if item is None:
                waiting.pop()
                if directory.found is not None and directory.goes:
                    yield directory.found
                elif waiting:
                    waiting[-1].goes = False
                continue
            place = selection.enter(directory.place, item.entry.name)
            outcome = selection.verdict(place, self._subject(item)).outcome
            if outcome is Outcome.EXCLUDED:
                directory.goes = False
            elif item.entry.kind is Kind.DIRECTORY:
                waiting.append(_Waiting(item, place, self._items(item), goes=outcome is Outcome.INCLUDED))
            else:
                yield item

    def _subject(self, item: Found) -> Subject:
        if self._surroundings is None:
            self._surroundings = Source(Tree(self.tree.open_directory(self.top)), Path(os.fsdecode(self.top)))
        return self._surroundings.subject(item)

    def sha1_of(self, found: Found) -> bytes:
        """The digest (hex) of what is in a regular file, whose mode is afterwards what it was.

        Raises StorageError where an ordinary user would have to change the mode, and nothing is to be changed.
        """
        try:
            fd = Tree.open_file(self.tree, found.path)
        except PermissionError:
            if self._dry_run:
                raise StorageError("cannot be read, and so not compared", path=found.path) from None
            fd = self.tree.open_unreadable(found.path, found.status)
        try:
            if self.may_have_lost(found.path):  # what a disk did not take is in memory all the same
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return sha1_of(fd, self.on_block)
        finally:
            os.close(fd)

    def _items(self, directory: Found) -> Iterator[Found | MustStayError]:
        for name in sorted(self.tree.names(directory.path)):
            try:
                item = self.find_to_remove(join(directory.path, name))
            except MustStayError as error:
                yield error
                continue
            if item is not None:
                yield item

    # Changing

    def sync(self) -> None:
        """Wait until everything that was put in its place is on the disk."""
        if not self._is_on_disk:
            self.tree.sync()
            self._is_on_disk = True

    def finish(self, *, is_complete: bool) -> None:
        """The same; the next restore will know that nothing was cut off, if all that should be restored is there."""
        self._is_on_disk &= not (is_complete and self._unfinished.has_found)  # also what was there already
        self.sync()
        if not self.tree.sync_has_failed and self._unfinished.end(is_complete=is_complete):
            self._is_on_disk = False

    def begin_content(self) -> bool:
        """To be called before a file is written; whether its size and time may be on the disk before it."""
        return self._unfinished.begin()

    def is_wanted(self, path: bytes) -> None:
        """The snapshot has a file at `path`."""
        self._unfinished.is_wanted(path)

    def may_have_lost(self, path: bytes) -> bool:
        """Whether the content of the file `path` may be wrong because a restore was cut off."""
        return self._unfinished.covers(path)

    def leave_alone(self, path: bytes) -> None:
        """Something in the directory `path` is not of this restore."""
        self._unfinished.leave_alone(path)

    def delete(self, item: Found) -> None:
        """Remove or put aside what nothing is in any more."""
        if item.entry.kind is Kind.DIRECTORY:
            self.tree.remove_directory(item.path)
        else:
            self.make_way(item)

    def names(self, directory: Found, *, open_up: bool) -> set[bytes]:
        """The names in `directory`. `open_up`: it is going to be changed.

        Then what an interrupted restore left is removed, and who owns it may write there until it gets its own mode.
        """
        if open_up:
            self._open_up(directory)
        names = set(self.tree.names(directory.path))
        for name in [name for name in names if self._is_leftover(directory.path, name)]:
            names.remove(name)
            if not self._unfinished.found(name, directory.path) and open_up:
                with suppress(PermissionError):  # that of another user, in a directory that is everybody's
                    self.tree.unlink(join(directory.path, name), missing_ok=True)
        return names

    def _is_leftover(self, directory: bytes, name: bytes) -> bool:
        """Whether `new_name` made it, and nobody else: directories are made in their places."""
        return is_leftover_name(name) and not self.tree.is_directory(join(directory, name))

    def _open_up(self, directory: Found) -> None:
        """Let an ordinary user change what is in a directory of theirs."""
        if directory.status.st_uid == os.geteuid():
            self.tree.open_up(directory.path, directory.status)

    def new_name(self, path: bytes, found: Found | None) -> bytes:
        """Where what shall be at `path` is made: there, or beside it if something is `found` there."""
        if found is None:
            return path
        return join(parent_of(path), new_leftover())

    def make_special(self, name: bytes, entry: Entry) -> None:
        """Make a link, fifo, socket or device like `entry`. Raises StorageError, OSError."""
        if entry.kind is Kind.SYMLINK:
            self.tree.make_symlink(name, entry.target)
            return
        try:
            self.tree.make_special(name, entry)
        except PermissionError as exc:
            if os.geteuid() == 0:
                raise
            raise StorageError(
                f"is a {entry.kind.name.lower().replace('_', ' ')}, which only root can make",
                path=entry.path,
                advice="restore as root to get it",
            ) from exc

    def put(self, name: bytes, path: bytes, found: Found | None) -> None:
        """Give its place to what was made as `name`; if that fails it is removed."""
        self._is_on_disk = False
        if found is None:
            return
        try:
            if found.entry.kind is Kind.DIRECTORY or self._aside is not None:
                self.make_way(found)
            self.tree.rename(name, path)
        except BaseException:
            self.tree.unlink(name, missing_ok=True)
            raise

    def make_way(self, found: Found) -> None:
        """Remove or put aside what was `found`, and `check_may_go` has allowed. Raises StorageError, OSError."""
        if self._aside is not None:
            self._aside.keep(self.tree, found.path, self._below_top(found.path))
        elif found.entry.kind is not Kind.DIRECTORY:
            self.tree.unlink(found.path)
        else:
            self._check_is_free(found)
            self.tree.remove_tree(found.path)

    def _below_top(self, path: bytes) -> bytes:
        """`path` as seen from the target; the target itself by its name."""
        if not self.top:
            return path
        return name_of(path) if path == self.top else path[len(self.top) + 1 :]


def other_file_system(path: bytes) -> MustStayError:
    error = MustStayError(
        "is another file system, in which nothing is deleted",
        path=path,
        advice="unmount it, or restore to it by itself",
    )
    error.exit_code = EXIT_FILE_ERROR
    return error


def is_fatal(exc: OSError, *, elsewhere: bool = False) -> bool:
    """Whether it will not get better with the next file. `elsewhere`: in a file system mounted in the target."""
    return exc.errno in _FATAL and not (elsewhere and exc.errno == errno.EROFS)
