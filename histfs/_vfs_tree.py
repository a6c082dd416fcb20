"""What one catalog says, as inode numbers and attributes: the private half of `histfs.vfs`, which says the rules.

Nothing is remembered here but a few thousand tags of directories.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple, Protocol

from histfs._vfs_rights import FOREVER_S, Grants, Policy
from histfs.errors import DamagedError, HistfsError, NotADirectoryEntryError, NotFoundError
from histfs.rsync import Made
from histfs.store.catalog import LIVE, Catalog, Listed, Version
from histfs.store.catalog.schema import ROOT
from histfs.store.content.small import SMALL_BYTES, SmallFile, is_small
from histfs.store.entry import Entry, Extras
from histfs.store.extras import SessionExtras

ROOT_INODE = 1
UNKNOWN_S = 0.0

# All numbers fit a signed 64 bit number. Bit 62 tells versions from directories. Of a directory's time, moved to be
# positive, there are 33 bits: from 1834 to 2106, and docs/format.md 2.1 has none before 1901 or after 2099.
_VERSION = 1 << 62
_TAG_BITS = 29
TIME_SHIFT = 1 << 32
_TIMES = range(1 - TIME_SHIFT, TIME_SHIFT)
TOP_TAG = 0

_WITHOUT_MTIME = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK)  # docs/format.md 4.1
_TYPE = 0o170000  # stat.S_IFMT as a mask
_MAX_SIGNED = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # the last one means "do not change" to chown(2)
_OVERFLOW_ID = 65_534  # "nobody": what Linux shows for an id that it cannot show
_DIRECTORIES_KEPT = 10_000
_QUICK_KEPT = 16_384
_TOPS_KEPT = 256

# Directory offsets: 0 starts, 1 comes after ".", 2 after "..", and 3 more than its number after an entry.
AFTER_DOT, AFTER_DOTS, AFTER_0 = 1, 2, 3

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Content(Protocol):
    """An open version of a file."""

    def pread(self, size: int, offset: int) -> bytes | bytearray: ...
    def pread_nowait(self, size: int, offset: int) -> bytes | bytearray | None: ...
    def hold(self) -> tuple[int, int] | None: ...
    def close(self) -> None: ...


class Snapshot(Protocol):
    def open(self, entry: Entry, sha1: bytes | None) -> Content: ...
    def extras(self, which: Extras, report: Callable[[DamagedError], None]) -> SessionExtras: ...
    def entries(self) -> Iterator[Entry]: ...
    def close(self) -> None: ...


class Repository(Protocol):
    """Where versions are opened."""

    def snapshot(self, session_time: int) -> Snapshot: ...
    def read_small(self, directory: bytes, files: Sequence[SmallFile]) -> list[Made | None]: ...


class Attributes(NamedTuple):
    """What stat(2) shows, and for how many seconds it is sure to be true."""

    inode: int
    mode: int  # with the type
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    mtime_s: int
    valid_s: float = FOREVER_S


class Child(NamedTuple):
    """A name in a directory; `offset` is where the listing goes on after it."""

    name: bytes
    attributes: Attributes
    offset: int
    target: bytes | None = None  # of a symbolic link
    is_small: bool = False  # a file that has bytes, and so few that they are read as a whole


class File(NamedTuple):
    """An open version, and what messages about it say."""

    content: Content
    size_bytes: int
    path: bytes
    at: int
    reader: tuple[int, int] | None = None  # how C reads it, see `fuse.serve`


def directory_inode(session_time: int, tag: int) -> int:
    """The inode number of a directory in a snapshot. HistfsError if there can be none."""
    if session_time not in _TIMES or not 0 <= tag < 1 << _TAG_BITS:
        raise HistfsError(f"a directory with the tag {tag} has no place in the mount", at=session_time)
    return (session_time + TIME_SHIFT) << _TAG_BITS | tag


def version_inode(number: int) -> int:
    """The inode number of what is no directory."""
    return _VERSION | number


def place_of(inode: int) -> tuple[int, int]:
    """The session's time and the tag of a directory. NotFoundError for a number that was not made so."""
    session_time, tag = (inode >> _TAG_BITS) - TIME_SHIFT, inode & ((1 << _TAG_BITS) - 1)
    if session_time not in _TIMES:
        raise NotFoundError(f"no directory has the number {inode}")
    return session_time, tag


def time_of_top(inode: int) -> int | None:
    """The session's time if `inode` is the top of a snapshot."""
    session_time = (inode >> _TAG_BITS) - TIME_SHIFT
    return session_time if inode & ((1 << _TAG_BITS) - 1) == TOP_TAG and session_time in _TIMES else None


def number_of(inode: int) -> int | None:
    """The number of the version; None for directories, the root, and numbers that were not made so."""
    return inode ^ _VERSION if inode >> 62 == 1 else None


class _Directories:
    """From tags to the catalog's numbers of directories, and back. Remembers a few thousand, which cost nothing."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._tags: dict[int, int] = {}  # by directory
        self._places: dict[int, tuple[int, int]] = {}  # directory and the one above, by tag
        self._tag_of_top = TOP_TAG
        with suppress(NotFoundError):  # there is none where no list could be read
            self._tag_of_top = catalog.tag(ROOT)

    def tag(self, directory: int, parent: int | None = None) -> int:
        """The tag of a directory; who knows what is above should say so. NotFoundError."""
        tag = self._tags.get(directory)
        if tag is None:
            tag = self._swapped(self._catalog.tag(directory))
            self._keep(tag, directory, self._catalog.parent(directory) if parent is None else parent)
        return tag

    def place(self, tag: int) -> tuple[int, int]:
        """The directory with a tag, and the one above. NotFoundError."""
        place = self._places.get(tag)
        if place is None:
            directory = self._catalog.directory(self._swapped(tag))
            if directory is None:
                raise NotFoundError(f"no directory has the tag {tag}")
            place = directory, self._catalog.parent(directory)
            self._keep(tag, *place)
        return place

    def keep(self, tag: int, directory: int, parent: int) -> int:
        """The tag in the mount of what has `tag` in the catalog, and is in `parent`."""
        tag = self._swapped(tag)
        if tag not in self._places:
            self._keep(tag, directory, parent)
        return tag

    def _swapped(self, tag: int) -> int:
        """Between the tags of the catalog and those of the mount, where the top has one that is known beforehand."""
        if tag == TOP_TAG:
            return self._tag_of_top
        return TOP_TAG if tag == self._tag_of_top else tag

    def _keep(self, tag: int, directory: int, parent: int) -> None:
        if len(self._tags) >= _DIRECTORIES_KEPT:
            self._tags.clear()
            self._places.clear()
        self._tags[directory] = tag
        self._places[tag] = directory, parent


class _Small(NamedTuple):
    """A file that can be read as a whole together with others in its directory."""

    parent: int
    file: SmallFile


class _Recent:
    """Files by number, at least the last half of as many as are kept. Any threads may use it."""

    def __init__(self) -> None:
        self._new: dict[int, _Small] = {}
        self._old: dict[int, _Small] = {}

    def put(self, number: int, small: _Small) -> None:
        if len(self._new) >= _QUICK_KEPT // 2:
            self._old, self._new = self._new, {}
        self._new[number] = small

    def get(self, number: int) -> _Small | None:
        return self._new.get(number) or self._old.get(number)


class Tree:
    """A catalog in use. `users` is the history's, guarded by its lock; the methods are explained there."""

    def __init__(self, catalog: Catalog, root: Callable[[], Attributes], policy: Policy) -> None:
        self.users = 1
        self.catalog = catalog
        self._grants = Grants(catalog, policy)
        self._valid_s = policy.valid_s
        self._root = root
        self._oldest = min(catalog.sessions, default=0)
        self._top = lru_cache(_TOPS_KEPT)(catalog.root)
        self._directories = _Directories(catalog)
        self._quick = _Recent()  # what was listed is likely to be read
        self._last_asked: tuple[int, Version | None] = (0, None)

    def attributes(self, inode: int) -> Attributes:
        if (number := number_of(inode)) is not None:
            return self._of_file(self._version(number))
        session_time, directory, parent = self._place(inode)
        return self._of_directory(self._version_of(directory, parent, session_time), session_time)

    def child(self, inode: int, name: bytes) -> Attributes | None:
        if name == b".":
            return self.attributes(inode)
        session_time, directory, parent = self._place(inode)
        if name == b"..":
            if directory == ROOT:
                return self._root()
            return self.attributes(directory_inode(session_time, self._directories.tag(parent)))
        found = self.catalog.child(directory, name, session_time)
        return None if found is None else self._shown(found, session_time)

    def children(self, inode: int, offset: int, limit: int) -> list[Child]:
        session_time, directory, parent = self._place(inode)
        children = []
        # Of the dots nobody but the kernel hears, which looks at type and number only.
        if offset < AFTER_DOT:
            children.append(Child(b".", _dot(inode), AFTER_DOT))
        if offset < AFTER_DOTS:
            is_top = directory == ROOT
            above = ROOT_INODE if is_top else directory_inode(session_time, self._directories.tag(parent))
            children.append(Child(b"..", _dot(above), AFTER_DOTS))
        after = None if offset < AFTER_0 else self._version(offset - AFTER_0).name
        changes = self._grants.changes(directory, session_time, after, limit)
        for listed in self.catalog.names(directory, session_time, after, limit):
            shown = self._listed_attributes(listed, directory, session_time, changes.get(listed.name))
            if shown is not None:
                has_few_bytes = 0 < listed.size_bytes <= SMALL_BYTES and listed.mode & _TYPE == stat.S_IFREG
                if has_few_bytes and listed.is_plain:
                    at = None if listed.is_live else session_time
                    file = SmallFile(listed.name, listed.size_bytes, listed.sha1 or b"", at)
                    self._quick.put(listed.number, _Small(directory, file))
                children.append(Child(listed.name, shown, listed.number + AFTER_0, listed.target, has_few_bytes))
        return children

    def _listed_attributes(
        self, listed: Listed, parent: int, session_time: int, changed_mode: int | None
    ) -> Attributes | None:
        """What a name in a listing shows; None if it is not there. `changed_mode`: if it is not the one recorded."""
        number, name, mode, uid, gid, size, mtime_s, _, _, _, directory, tag, is_plain, extras = listed
        if self._grants.is_owners:
            is_plain = is_plain and extras is None
            mode = self._grants.policy.mode(mode, ())
        elif changed_mode is not None:
            mode = changed_mode
        if not is_plain or (directory and tag is None) or uid > _MAX_ID or gid > _MAX_ID or size < 0:
            version = self.catalog.child(parent, name, session_time)
            return None if version is None else self._shown(version, session_time)
        if tag is None:
            return Attributes(_VERSION | number, mode, 1, uid, gid, 0, size, mtime_s, self._valid_s)
        tag = self._directories.keep(tag, directory, parent)
        # A snapshot's top carries its session's time, for `ls -lt` in the root.
        shown_mtime_s = session_time if tag == TOP_TAG else mtime_s
        return Attributes(directory_inode(session_time, tag), mode, 1, uid, gid, 0, size, shown_mtime_s, self._valid_s)

    def target(self, inode: int) -> bytes | None:
        number = number_of(inode)
        version = None if number is None else self._version(number)
        return version.target or b"" if version is not None and stat.S_ISLNK(version.mode) else None

    def xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        number = number_of(inode)
        if number is not None:
            version = self._version(number)
        else:
            session_time, directory, parent = self._place(inode)
            version = self._version_of(directory, parent, session_time)
        return self._grants.xattrs(version)

    def open(self, inode: int, repository: Repository, only_if_quick: bool, at_most: int = _MAX_SIGNED) -> File | None:
        number = number_of(inode)
        if number is None:
            raise NotFoundError(f"no file has the number {inode}")
        version = self._version(number)
        if only_if_quick and not (version.last == LIVE and version.size_bytes <= SMALL_BYTES):
            return None
        if version.size_bytes > at_most:
            return None
        entry, at = self.catalog.entry(version), self.catalog.time_of(version)
        content = repository.snapshot(at).open(entry, entry.sha1)
        return File(content, entry.size_bytes, entry.path, at, content.hold())

    def contents(
        self, inodes: Iterable[int], repository: Repository, only_quick: bool
    ) -> Iterator[tuple[int, bytes | bytearray | memoryview]]:
        numbers = [number for inode in inodes if (number := number_of(inode)) is not None]
        found = self._small(numbers)
        rest = [number for number in numbers if number not in found]
        quick = [(number, found[number]) for number in numbers if number in found]
        for parent, together in groupby(quick, key=lambda pair: pair[1].parent):
            in_directory = list(together)
            read = repository.read_small(self.catalog.path(parent), [small.file for _, small in in_directory])
            for (number, _), made in zip(in_directory, read, strict=True):
                if made is not None:
                    yield version_inode(number), made.data
                else:
                    rest.append(number)
        for number in [] if only_quick else rest:
            with suppress(HistfsError):  # who asks for it will hear what is wrong
                yield version_inode(number), self._whole(number, repository)

    def _whole(self, number: int, repository: Repository) -> bytes | bytearray:
        """All bytes of a file, if it is small; else NotFoundError. DamagedError, StorageError."""
        file = self.open(version_inode(number), repository, only_if_quick=False, at_most=SMALL_BYTES)
        if file is None:
            raise NotFoundError("is not a small file")
        try:
            data = file.content.pread(file.size_bytes, 0)
            if len(data) != file.size_bytes:
                raise DamagedError("is shorter than recorded", path=file.path, at=file.at)
            return data
        finally:
            file.content.close()

    def _small(self, numbers: Sequence[int]) -> dict[int, _Small]:
        """How small files are read with others, those of them that are."""
        found = {number: small for number in numbers if (small := self._quick.get(number)) is not None}
        for number, version in self.catalog.numbered(set(numbers) - found.keys()).items():
            if is_small(version) and version.link is None:
                at = None if version.last == LIVE else self.catalog.time_of(version)
                sha1 = bytes.fromhex((version.sha1 or b"").decode())
                found[number] = _Small(version.parent, SmallFile(version.name, version.size_bytes, sha1, at))
                self._quick.put(number, found[number])
        return found

    def _version(self, number: int) -> Version:
        last, version = self._last_asked
        if last != number:
            version = self.catalog.version(number)
            self._last_asked = number, version
        if version is None:
            raise NotFoundError(f"no version has the number {number}")
        return version

    def _place(self, inode: int) -> tuple[int, int, int]:
        """Session's time, directory, and the one above; whether it was there then is not looked at."""
        if number_of(inode) is not None:
            raise NotADirectoryEntryError("is not a directory")
        session_time, tag = place_of(inode)
        self._top(session_time)  # which raises where the session has no list that can be read
        return session_time, *self._directories.place(tag)

    def _version_of(self, directory: int, parent: int, session_time: int) -> Version:
        if directory == ROOT:
            return self._top(session_time)
        path = self.catalog.path(directory)
        found = self.catalog.child(parent, path.rpartition(b"/")[2], session_time)
        if found is None or found.directory != directory:
            raise NotFoundError("was not there then", path=path, at=session_time)
        return found

    def _shown(self, version: Version, session_time: int) -> Attributes:
        """What a name that has this version shows in a snapshot."""
        if version.directory:
            return self._of_directory(version, session_time)
        if version.link is not None:
            version = self.catalog.links(version, session_time)[0]
        return self._of_file(version)

    def _of_directory(self, version: Version, session_time: int) -> Attributes:
        tag = self._directories.tag(version.directory, version.parent)
        # A snapshot's top carries its session's time, for `ls -lt` in the root.
        mtime_s = session_time if tag == TOP_TAG else version.mtime_s
        return self._attributes(version, directory_inode(session_time, tag), 1, mtime_s)

    def _of_file(self, version: Version) -> Attributes:
        nlink, kind = 1, version.mode & _TYPE
        if version.link is not None or (version.last != LIVE and kind in _WITHOUT_MTIME):
            # The newest one, where the same was there more than once. Not one that is kept: since then a session may
            # have come, with which it ended, and what has its links in the newest session is something else.
            version = self.catalog.version(version.number) or version
        if version.link is not None:
            nlink = self.catalog.links(version, self.catalog.time_of(version))[1]
        # What has none recorded carries the time of the first session that had it: the same in all snapshots.
        mtime_s = max(version.first, self._oldest) if kind in _WITHOUT_MTIME else version.mtime_s
        shown = self._attributes(version, version_inode(version.number), nlink, mtime_s)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            shown = shown._replace(rdev=_shown_device(*self.catalog.entry(version).device_number))
        return shown

    def _attributes(self, version: Version, inode: int, nlink: int, mtime_s: int) -> Attributes:
        mode, uid, gid = self._grants.of(version).mode, version.uid, version.gid
        size = version.size_bytes if mode & _TYPE != stat.S_IFLNK else len(version.target or b"")
        return Attributes(
            inode,
            mode,
            nlink,
            uid if 0 <= uid <= _MAX_ID else _OVERFLOW_ID,
            gid if 0 <= gid <= _MAX_ID else _OVERFLOW_ID,
            0,
            size if 0 <= size <= _MAX_SIGNED else min(max(0, size), _MAX_SIGNED),
            mtime_s if -_MAX_SIGNED <= mtime_s <= _MAX_SIGNED else min(max(-_MAX_SIGNED, mtime_s), _MAX_SIGNED),
            self._valid_s,
        )


def _dot(inode: int) -> Attributes:
    return Attributes(inode, stat.S_IFDIR | 0o500, 1, 0, 0, 0, 0, 0, UNKNOWN_S)


def shown_id(number: int) -> int:
    return number if 0 <= number <= _MAX_ID else _OVERFLOW_ID


def _shown_device(major: int, minor: int) -> int:
    """Linux has 12 bits for the major and 20 for the minor number; what does not fit cannot have been real."""
    return os.makedev(major, minor) if 0 <= major < 1 << 12 and 0 <= minor < 1 << 20 else 0
