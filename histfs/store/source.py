"""The live tree that is backed up: a walk in the order of the metadata files, and its files' contents.

Trouble with the source is never the end of a session: it comes as a value (`Unreadable`) or a SourceError.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

from histfs import __version__
from histfs.errors import FormatError, SourceError, UsageError, storage_errors
from histfs.store.entry import NO_EXTRAS, Entry, Extras, Kind, join
from histfs.store.format import posix_acl
from histfs.store.format.ledger import RULES_BYTES
from histfs.store.layout import DATA
from histfs.store.look import KINDS, entry_of, read_extras
from histfs.store.selection import CACHE_SIGNATURE, CACHE_TAG, Outcome, Places, Scanned, Selection, Subject
from histfs.store.tree import BLOCK_SIZE, NotRegularError, Tree
from histfs.store.unreadable import Unreadable, changed, extras_error, source_error, unlisted
from histfs.store.walk import Walk, status_of

# Eight times what open(2) takes. Whoever may make directories in a source must not be able to stop its backups, by a
# record that does not fit metadata.MAX_RECORD_BYTES, or by so many levels that a list becomes gigabytes of paths.
LONGEST_PATH = 32 * 1024
_SHOWN = 1000  # bytes of such a path in a message

# Of times on file systems: NTFS 100 ns, some network file systems 1 us or 1 ms, exFAT 10 ms, others whole seconds.
_STEPS_NS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000)


# Of other kinds the walk does not tell everything.
_LOOKED_AT_BY_WALKS = (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK)

# A file system or a kind of file that has none of them at all.
_HAS_NO_EXTRAS = (errno.EOPNOTSUPP, errno.ENOSYS)


class Found(NamedTuple):
    """A name in the source, as lstat(2) saw it."""

    entry: Entry
    status: os.stat_result
    trouble: SourceError | None = None  # why its extended attributes and access control lists are not known
    is_suspect: bool = False  # its content may be another one although size and time are those of before
    is_scanned: bool = False  # it is selected only because something in it is
    is_unsettled: bool = False  # whether it is selected may change although lstat(2) says the same of it

    @property
    def path(self) -> bytes:
        return self.entry.path

    @property
    def inode(self) -> tuple[int, int]:
        """Its device and number."""
        return self.status.st_dev, self.status.st_ino

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


class Digest(Protocol):
    """What takes in the blocks of a file."""

    def update(self, block: bytes | memoryview, /) -> None: ...


_Told = TypeVar("_Told", covariant=True)


class Forward(Protocol[_Told]):
    """What passes over a part of a walk, see `Source.walk`. It tells of that in a form of its own."""

    def new_walk(self) -> Walk:
        """The walk to go on with."""

    def pass_over(self, walk: Walk) -> Iterator[_Told]:
        """Go on as far as nothing has changed."""

    def error(self) -> int:
        """Why the directory that was passed over last cannot be listed; 0: it was."""

    def mirror_ctime_ns(self, path: bytes) -> int:
        """When the directory in the mirror was last changed; 0: nothing in `path` may be passed over."""


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
        self._walks = ExitStack()
        self._is_unsettled = False  # what the rules were told last may change unnoticed

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
            tree = Tree.open(path, cached_directories=32)
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
        self._walks.close()  # what was broken off
        self._tree.close()

    @property
    def rules(self) -> bytes | None:
        """A digest: with an equal one, what was selected still is as long as lstat(2) says the same of it.

        But for what was `is_scanned` or `is_unsettled`. None: nobody can tell.
        """
        meaning = b"" if self._selection is None else self._selection.meaning
        if meaning is None:
            return None
        decides = (meaning, self.device, os.geteuid(), __version__) if meaning else ()
        return hashlib.sha1(repr(decides).encode(), usedforsecurity=False).digest()[:RULES_BYTES]

    @property
    def status(self) -> os.stat_result:
        """That of the root."""
        return self._tree.stat(b"")

    def check_root(self) -> None:
        """SourceError if the root cannot be looked at or listed, so that nothing can be made of it."""
        found = self.look(b"")
        try:
            os.close(self._tree.open_directory(b""))
        except OSError as exc:
            found = unlisted(b"", exc)
        if isinstance(found, Unreadable):
            found.error.advice = "nothing was changed"
            raise found.error

    def walk(
        self,
        is_skipped: Callable[[bytes, os.stat_result], bool],
        forward: Forward[_Told] | None = None,
    ) -> "Iterator[Found | Unreadable | _Told]":
        """Everything that is selected, parents first, names of a directory in byte order: metadata order.

        A directory that `is_skipped(path, status)` is left out with all that is in it, and so is one that is excluded;
        what is excluded by its name is not looked at at all. A directory that cannot be listed is followed by an
        Unreadable with its own path. `rdiff-backup-data` at the top is never part of a source.
        What `forward` passes over comes as it tells it.
        """
        root = self.look(b"")
        yield root
        if isinstance(root, Unreadable):
            return
        walk = self._walks.enter_context(Walk() if forward is None else forward.new_walk())
        trouble = self._enter(walk, b"", forward)
        if trouble is not None:
            yield trouble
            return
        yield from self._walk(walk, is_skipped, forward)

    def _walk(
        self, walk: Walk, is_skipped: Callable[[bytes, os.stat_result], bool], forward: Forward[_Told] | None
    ) -> "Iterator[Found | Unreadable | _Told]":
        selection = self._selection
        places = Places(selection)
        scanned: Scanned[Found] = Scanned()
        while True:
            if forward is not None and not walk.is_ahead:
                yield from forward.pass_over(walk)
                if error := forward.error():
                    yield unlisted(walk.here(), OSError(error, os.strerror(error)))
                    continue
            if selection is None and not walk.is_ahead:
                walk.look_ahead()
            if not walk.next():
                return
            path = walk.path
            if path == DATA:
                continue
            place = None
            if selection is not None:
                place = places.enter(path, walk.name)
                if selection.excludes_by_name(place, is_directory=walk.is_directory):
                    continue
            found = self._look(walk)
            if isinstance(found, Unreadable):
                yield from scanned.release(path)
                yield found
                continue
            is_directory = found.entry.kind is Kind.DIRECTORY
            if is_directory and is_skipped(path, found.status):
                continue
            outcome = Outcome.INCLUDED
            if selection is not None and place is not None:
                self._is_unsettled = False
                outcome = selection.verdict(place, self.subject(found)).outcome
                if self._is_unsettled:
                    found = found._replace(is_unsettled=True)
            if outcome is Outcome.EXCLUDED:
                continue
            if outcome is Outcome.SCANNED:
                scanned.hold(path, found._replace(is_scanned=True))
            else:
                yield from scanned.release(path)
                yield found
            if is_directory:
                places.keep(place)
                trouble = self._enter(walk, path, forward)
                if trouble is not None:
                    yield from scanned.release(path)
                    yield trouble

    def _enter(self, walk: Walk, path: bytes, forward: Forward[_Told] | None) -> Unreadable | None:
        """Go into a directory that was just looked at; Unreadable if it cannot be listed."""
        mirror_ctime_ns = 0 if forward is None else forward.mirror_ctime_ns(path)
        try:
            if not path:
                walk.push(self._tree.open_directory(path), is_trusted=mirror_ctime_ns != 0)
            elif not walk.enter(mirror_ctime_ns):
                walk.push(self._tree.open_directory(path))
        except OSError as exc:
            return unlisted(path, exc)
        return None

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
            self._is_unsettled = True
            return False

    def has_lost(self, path: bytes) -> bool:
        """Whether it is certain that nothing is at `path` any more."""
        try:
            return not self._tree.exists(path)
        except OSError:
            return False

    def is_cache(self, directory: bytes) -> bool:
        """Whether the directory has the mark of a cache."""
        try:
            fd = self._tree.open_file(join(directory, CACHE_TAG))
        except FileNotFoundError:
            return False
        except OSError:
            self._is_unsettled = True
            return False
        self._is_unsettled = True  # it can be written to
        try:
            return os.read(fd, len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
        except OSError:
            return False
        finally:
            os.close(fd)

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

    def _look(self, walk: Walk) -> Found | Unreadable:
        """The same for the current name of a walk."""
        path = walk.path
        if len(path) > LONGEST_PATH:
            return self.look(path)
        try:
            seen = walk.look()
            kind = None if seen is None else KINDS.get(stat.S_IFMT(seen.mode))
            if seen is None or kind not in _LOOKED_AT_BY_WALKS:
                return self.look(path)
            target = self._tree.readlink(path) if kind is Kind.SYMLINK else b""
        except OSError as exc:
            return Unreadable(path, source_error(exc, path, "cannot be looked at"))
        status = status_of(seen)
        found = Found(entry_of(path, status, target), status)
        wants_extras = self._is_to_be_copied or self.extras != NO_EXTRAS
        return self._with_extras(found) if wants_extras and not walk.has_no_xattrs() else found

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
            return found._replace(trouble=extras_error(exc, found.path))

    def open_directory(self, path: bytes) -> int:
        """A descriptor of a directory that the walk is in. Raises SourceError."""
        try:
            return self._tree.open_directory(path)
        except OSError as exc:
            raise source_error(exc, path, "cannot be entered") from exc

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

    def read(self, found: Found, fd: int, digest: "Digest") -> Iterator[bytes]:
        """The bytes of the file, added to `digest`; SourceError at the end if it changed since it was `found`.

        In blocks that are full but for the last.
        """
        size = 0
        is_last = False
        while not is_last:
            try:
                block = os.read(fd, BLOCK_SIZE)
                while 0 < len(block) < BLOCK_SIZE and not is_last:  # fewer bytes tell nothing on some file systems
                    more = os.read(fd, BLOCK_SIZE - len(block))
                    is_last = not more
                    block += more
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
        self._check_end(found, fd, size)

    def read_into(self, chunks: Iterator[memoryview], found: Found, fd: int, digest: "Digest") -> Iterator[memoryview]:
        """The same in `chunks`, which are full but for the last."""
        size = 0
        for chunk in chunks:
            filled = 0
            try:
                while filled < len(chunk) and (some := os.readv(fd, [chunk[filled:]])):
                    filled += some
            except OSError as exc:
                raise source_error(exc, found.path, "cannot be read") from exc
            size += filled
            if size > found.status.st_size:
                raise changed(found.path)
            if filled:
                if self.on_block is not None:
                    self.on_block(filled)
                digest.update(chunk[:filled])
                yield chunk[:filled]
            if filled < len(chunk):
                break  # also where more has come meanwhile
        self._check_end(found, fd, size)

    def _check_end(self, found: Found, fd: int, size: int) -> None:
        now = os.fstat(fd)
        if not size == now.st_size == found.status.st_size or now.st_mtime_ns != found.status.st_mtime_ns:
            raise changed(found.path)
