"""The live tree that is backed up: a walk in the order of the metadata files, and its files' contents.

Trouble with the source is never the end of a session: it comes as a value (`Unreadable`) or a SourceError.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from histfs.errors import EXIT_FILE_WARNING, FormatError, SourceError, UsageError, storage_errors
from histfs.store.accounts import group_name, user_name
from histfs.store.entry import NO_EXTRAS, Acl, Entry, Extras, Kind, LinkGroup, join, sort_key
from histfs.store.format import posix_acl
from histfs.store.format.attributes import is_recorded
from histfs.store.layout import DATA
from histfs.store.selection import CACHE_SIGNATURE, CACHE_TAG, Outcome, Place, Scanned, Selection, Subject
from histfs.store.tree import BLOCK_SIZE, NotRegularError, Tree

KINDS = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


# Eight times what open(2) takes. Whoever may make directories in a source must not be able to stop its backups, by a
# record that does not fit metadata.MAX_RECORD_BYTES, or by so many levels that a list becomes gigabytes of paths.
LONGEST_PATH = 32 * 1024
_SHOWN = 1000  # bytes of such a path in a message

# Of times on file systems: NTFS 100 ns, some network file systems 1 us or 1 ms, exFAT 10 ms, others whole seconds.
_STEPS_NS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000)


# A file system or a kind of file that has none of them at all.
_HAS_NO_EXTRAS = (errno.EOPNOTSUPP, errno.ENOSYS)
_MAX_EXTRAS_BYTES = 8 << 20  # they have to fit attributes.MAX_RECORD_BYTES, in base64


class Found(NamedTuple):
    """A name in the source, as lstat(2) saw it."""

    entry: Entry
    status: os.stat_result
    trouble: SourceError | None = None  # why its extended attributes and access control lists are not known

    @property
    def path(self) -> bytes:
        return self.entry.path

    @property
    def of_all_links(self) -> tuple[int, ...]:
        """What all links of the file show, unless it changes between two looks."""
        return *self.entry.shared_attributes, self.status.st_mtime_ns

    def with_extras_of(self, old: Entry | None) -> "Found":
        """The same with the extended attributes and the access control list of `old`.

        If that had no list, there may be one now: the mode then grants nobody else what it may grant with it alone.
        """
        xattrs, acl = ((), ()) if old is None else (old.xattrs, old.acl)
        mode = self.entry.mode if acl or self.entry.kind is Kind.SYMLINK else self.entry._replace(acl=None).safe_mode
        return self._replace(entry=self.entry._replace(mode=mode, xattrs=xattrs, acl=acl))

    def has_time_of(self, mirror: os.stat_result) -> bool:
        """Whether the fractions of a second agree, in the steps in which the mirror's file system counts.

        A fraction of 0 was written in whole seconds, by this program or another.
        """
        found, wanted = mirror.st_mtime_ns % 10**9, self.status.st_mtime_ns % 10**9
        return any(found == wanted - wanted % step for step in _STEPS_NS)


class Unreadable(NamedTuple):
    """What lies at and below `path` cannot be known now."""

    path: bytes
    error: SourceError


class _Directory(NamedTuple):
    """A directory that the walk is in."""

    path: bytes
    place: Place | None
    names: Iterator[tuple[bytes, bool]]  # that are still to come


class Source:
    """The tree at `path`, as far as it is selected, of whose entries the `extras` are wanted. A context manager.

    `is_to_be_copied`: where access control lists are not wanted, modes are what is right without them.
    """

    def __init__(
        self,
        tree: Tree,
        path: Path,
        selection: Selection | None = None,
        extras: Extras = NO_EXTRAS,
        *,
        is_to_be_copied: bool = False,
    ) -> None:
        self.path = path
        self.extras = extras
        self.on_block: Callable[[int], object] | None = None  # called with the size of each block that is read
        self._is_to_be_copied = is_to_be_copied
        self._tree = tree
        self._selection = selection

    @classmethod
    def open(
        cls,
        path: Path,
        selection: Selection | None = None,
        extras: Extras = NO_EXTRAS,
        *,
        is_to_be_copied: bool = False,
    ) -> Self:
        """Enter the source; UsageError if it is not there or not a directory, StorageError if it cannot be listed."""
        try:
            tree = Tree.open(path, cached_directories=64)
        except FileNotFoundError:
            raise UsageError("the source does not exist", path=path) from None
        except NotADirectoryError:
            raise UsageError("the source is not a directory", path=path) from None
        except OSError:
            with storage_errors():
                raise
        return cls(tree, path, selection, extras, is_to_be_copied=is_to_be_copied)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._tree.close()

    @property
    def status(self) -> os.stat_result:
        """That of the root."""
        return self._tree.stat(b"")

    def check_root(self) -> None:
        """SourceError if the root cannot be looked at or listed, so that nothing can be made of it."""
        for found in self.look(b""), self._names(b""):
            if isinstance(found, Unreadable):
                found.error.advice = "nothing was changed"
                raise found.error

    def walk(self, is_skipped: Callable[[bytes, os.stat_result], bool]) -> Iterator[Found | Unreadable]:
        """Everything that is selected, parents first, names of a directory in byte order: metadata order.

        A directory that `is_skipped(path, status)` is left out with all that is in it, and so is one that is excluded;
        what is excluded by its name is not looked at at all. A directory that cannot be listed is followed by an
        Unreadable with its own path. `rdiff-backup-data` at the top is never part of a source.
        """
        root = self.look(b"")
        yield root
        if isinstance(root, Unreadable):
            return
        selection = self._selection
        names = self._names(b"")
        if isinstance(names, Unreadable):
            yield names
            return
        pending: list[_Directory] = [_Directory(b"", None if selection is None else selection.root, iter(names))]
        scanned: Scanned[Found] = Scanned()
        while pending:
            directory = pending[-1]
            name, is_directory = next(directory.names, (None, False))
            if name is None:
                pending.pop()
                continue
            path = join(directory.path, name)
            place = None
            if selection is not None and directory.place is not None:
                place = selection.enter(directory.place, name)
                if selection.excludes_by_name(place, is_directory=is_directory):
                    continue
            found = self.look(path)
            if isinstance(found, Unreadable):
                yield from scanned.release(path)
                yield found
                continue
            is_directory = found.entry.kind is Kind.DIRECTORY
            if is_directory and is_skipped(path, found.status):
                continue
            if selection is not None and place is not None:
                outcome = selection.verdict(place, self.subject(found)).outcome
                if outcome is Outcome.EXCLUDED:
                    continue
                if outcome is Outcome.SCANNED:
                    scanned.hold(path, found)
                else:
                    yield from scanned.release(path)
                    yield found
            else:
                yield found
            if is_directory:
                names = self._names(path)
                if isinstance(names, Unreadable):
                    yield from scanned.release(path)
                    yield names
                else:
                    pending.append(_Directory(path, place, iter(names)))

    def subject(self, found: Found) -> Subject:
        """What the rules of a selection ask about."""
        entry = found.entry
        is_directory = entry.kind is Kind.DIRECTORY
        return Subject(is_directory, entry.kind, entry.size_bytes, found.status.st_dev, self)

    @cached_property
    def device(self) -> int:
        """The file system of the root."""
        return self._tree.stat(b"").st_dev

    def holds(self, directory: bytes, name: bytes) -> bool:
        """Whether `name` can be seen in the directory."""
        try:
            return self._tree.exists(join(directory, name))
        except OSError:
            return False

    def is_cache(self, directory: bytes) -> bool:
        """Whether the directory has the mark of a cache."""
        try:
            fd = self._tree.open_file(join(directory, CACHE_TAG))
        except OSError:
            return False
        try:
            return os.read(fd, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
        except OSError:
            return False
        finally:
            os.close(fd)

    def _names(self, path: bytes) -> list[tuple[bytes, bool]] | Unreadable:
        """The names in a directory in their order, and where rules may ask for it, whether they are directories."""
        try:
            if self._selection is None:
                names = [(name, False) for name in sorted(self._tree.names(path))]
            else:
                names = sorted(self._tree.names_and_types(path))
        except OSError as exc:
            return Unreadable(path, source_error(exc, path, "the directory cannot be listed"))
        return names if path else [item for item in names if item[0] != DATA]

    def look(self, path: bytes) -> Found | Unreadable:
        if len(path) > LONGEST_PATH:
            return Unreadable(path, SourceError("its path is too long to be recorded", path=path[:_SHOWN]))
        try:
            status = self._tree.stat(path)
            target = self._tree.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
        except OSError as exc:
            return Unreadable(path, source_error(exc, path, "cannot be looked at"))
        found = Found(entry_of(path, status, target), status)
        return self._with_extras(found) if self._is_to_be_copied or self.extras != NO_EXTRAS else found

    def _with_extras(self, found: Found) -> Found:
        try:
            if self._is_to_be_copied and not self.extras.acls:
                entry = read_extras(self._tree, found.entry, self.extras._replace(acls=True))
                mode = posix_acl.mode_without(entry.mode, entry.acl or ())
                return found._replace(entry=entry._replace(mode=mode, acl=()))
            return found._replace(entry=read_extras(self._tree, found.entry, self.extras))
        except (OSError, FormatError) as exc:
            if isinstance(exc, OSError) and exc.errno in _HAS_NO_EXTRAS:
                return found
            return found._replace(trouble=_extras_error(exc, found.path))

    def open_file(self, found: Found) -> int:
        """A descriptor of the regular file that was `found`; SourceError if it cannot be read or is another one now."""
        try:
            fd = self._tree.open_file(found.path)
        except NotRegularError:
            raise changed(found.path) from None
        except OSError as exc:
            raise source_error(exc, found.path, "cannot be read") from exc
        if not os.path.samestat(os.fstat(fd), found.status):
            os.close(fd)
            raise changed(found.path)
        return fd

    def read(self, found: Found, fd: int, digest: "hashlib._Hash") -> Iterator[bytes]:
        """The bytes of the file, added to `digest`; SourceError at the end if it changed since it was `found`."""
        size = 0
        while True:
            try:
                block = os.read(fd, BLOCK_SIZE)
            except OSError as exc:
                raise source_error(exc, found.path, "cannot be read") from exc
            if not block:
                break
            size += len(block)
            if size > found.status.st_size:
                raise changed(found.path)
            if self.on_block is not None:
                self.on_block(len(block))
            digest.update(block)
            yield block
        now = os.fstat(fd)
        if size != found.status.st_size or now.st_mtime_ns != found.status.st_mtime_ns:
            raise changed(found.path)


def paired(
    old: Iterator[Entry], found: Iterator[Found | Unreadable]
) -> Iterator[tuple[Entry | None, Found | Unreadable | None]]:
    """Both streams, which are in metadata order, by path."""
    entry = next(old, None)
    item = next(found, None)
    while entry is not None or item is not None:
        if item is None or (entry is not None and sort_key(entry.path) < sort_key(item.path)):
            yield entry, None
            entry = next(old, None)
        elif entry is None or entry.path != item.path:
            yield None, item
            item = next(found, None)
        else:
            yield entry, item
            entry, item = next(old, None), next(found, None)


def read_extras(tree: Tree, entry: Entry, extras: Extras) -> Entry:
    """`entry` with the `extras` that the file in the tree has. Raises OSError, FormatError."""
    if extras == NO_EXTRAS:
        return entry
    names = tree.xattr_names(entry.path)
    if not names:
        return entry
    xattrs: list[tuple[bytes, bytes]] = []
    acl: Acl = ()
    size = 0
    for name in sorted(names):
        is_acl = name in (posix_acl.ACCESS, posix_acl.DEFAULT)
        if not (extras.acls if is_acl else extras.xattrs and is_recorded(name, entry.kind)):
            continue
        try:
            value = tree.xattr(entry.path, name)
        except OSError as exc:
            if exc.errno == errno.ENODATA:  # it went in between
                continue
            raise
        size += len(name) + len(value)
        if size > _MAX_EXTRAS_BYTES:
            raise FormatError(f"more than {_MAX_EXTRAS_BYTES} bytes", path=entry.path)
        if is_acl:
            acl += posix_acl.parse_posix_acl(value, is_default=name == posix_acl.DEFAULT)
        else:
            xattrs.append((name, value))
    acl = posix_acl.completed(acl, entry.mode)
    return entry._replace(xattrs=tuple(xattrs), acl=posix_acl.named(acl, user_name, group_name))


def source_error(exc: OSError, path: bytes, problem: str) -> SourceError:
    error = SourceError(f"{problem} ({exc.strerror})", path=path, advice="its last version in the backup is kept")
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        error = SourceError("vanished while it was backed up", path=path, advice=error.advice)
        error.exit_code = EXIT_FILE_WARNING
    return error


def _extras_error(exc: OSError | FormatError, path: bytes) -> SourceError:
    reason = exc.problem if isinstance(exc, FormatError) else exc.strerror
    error = SourceError(
        f"its extended attributes or access control list cannot be read ({reason})",
        path=path,
        advice="those of its last version are kept",
    )
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        error.exit_code = EXIT_FILE_WARNING
    return error


def changed(path: bytes) -> SourceError:
    error = SourceError("changed while it was read", path=path, advice="its last version in the backup is kept")
    error.exit_code = EXIT_FILE_WARNING
    return error


def entry_of(path: bytes, status: os.stat_result, target: bytes = b"") -> Entry:
    """The entry that lstat(2) and readlink(2) tell; without the digest of its content."""
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    is_regular = kind is Kind.REGULAR
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        uname=user_name(status.st_uid),
        gname=group_name(status.st_gid),
        mtime_s=status.st_mtime_ns // 10**9 if kind.has_mtime else 0,
        size_bytes=status.st_size if is_regular else 0,
        link_group=LinkGroup(status.st_nlink, status.st_ino, status.st_dev)
        if is_regular and status.st_nlink > 1
        else None,
        target=target,
        device_number=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind.is_device else (0, 0),
    )
