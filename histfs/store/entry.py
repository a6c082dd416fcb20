"""An entry: one name with its metadata at one time. Pure values, no I/O.

Paths are bytes, relative to the root of the tree, components joined by b"/"; the root itself is b"".
"""

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """The type of an entry. The values are the words of the `Type` field (docs/format.md 4.1).

    Both kinds of devices share the word `dev` on disk; ABSENT occurs in metadata diffs only.
    """

    REGULAR = "reg"
    DIRECTORY = "dir"
    SYMLINK = "sym"
    CHARACTER_DEVICE = "dev c"
    BLOCK_DEVICE = "dev b"
    FIFO = "fifo"
    SOCKET = "sock"
    ABSENT = "None"

    @property
    def is_device(self) -> bool:
        return self is Kind.CHARACTER_DEVICE or self is Kind.BLOCK_DEVICE

    @property
    def has_mtime(self) -> bool:
        """Whether the format records a modification time: not for symbolic links and devices."""
        return self not in (Kind.SYMLINK, Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)


class LinkGroup(NamedTuple):
    """What tells hard links: entries of one session with equal `inode` and `device` are one file.

    The numbers are the source's at the time; `nlink` may count links outside of the tree.
    """

    nlink: int
    inode: int
    device: int

    @property
    def key(self) -> tuple[int, int]:
        return self.inode, self.device


class AclEntry(NamedTuple):
    """One line of an access control list."""

    tag: bytes  # b"user", b"group", b"mask" or b"other"
    qualifier: bytes | int | None  # whom: a name, or an id; None: the owner, the owning group, or no one in particular
    permissions: int  # 4 read, 2 write, 1 execute
    is_default: bool = False  # what new files in this directory get


class Extras(NamedTuple):
    """Which attributes beyond those of stat(2) are recorded or restored."""

    xattrs: bool = True
    acls: bool = True


ALL_EXTRAS = Extras()
NO_EXTRAS = Extras(xattrs=False, acls=False)
Acl = tuple[AclEntry, ...]
Xattrs = tuple[tuple[bytes, bytes], ...]  # names, ascending, and values


class Entry(NamedTuple):
    """One name at one session. Fields that a kind does not have keep their defaults.

    Extended attributes and access control lists are not part of the record: they are in files of their own, and only
    those who ask for them have them here.
    """

    path: bytes
    kind: Kind
    mode: int = 0  # the low 12 bits: permissions, setuid, setgid, sticky
    uid: int = 0
    gid: int = 0
    uname: bytes | None = None  # None: the name was not known
    gname: bytes | None = None
    mtime_s: int = 0  # whole seconds since the epoch, may be negative; 0 unless kind.has_mtime
    size_bytes: int = 0  # regular files only
    sha1: bytes | None = None  # 40 lower-case hex digits; on the first member of a link group only
    link_group: LinkGroup | None = None  # regular files with more than one link
    target: bytes = b""  # symbolic links
    device_number: tuple[int, int] = (0, 0)  # devices: major, minor
    alternate_mirror: int | None = None  # the number of a too long mirror name (docs/format.md 3.4)
    alternate_increment: int | None = None  # the number of a too long increment name
    resource_fork: bytes | None = None  # the raw field of a repository written on a Mac, carried over
    carbon_file: bytes | None = None
    xattrs: Xattrs = ()  # extended attributes
    acl: Acl | None = ()  # what the mode does not say about access; None: it says more, but what is not known

    @property
    def name(self) -> bytes:
        return name_of(self.path)

    @property
    def shared_attributes(self) -> tuple[int, int, int, int, int]:
        """What all links of one file have in common: records of one link group that differ here are not of one file."""
        return self.size_bytes, self.mode, self.uid, self.gid, self.mtime_s

    @property
    def file_key(self) -> tuple[int, ...] | None:
        """What only the links of one file have in common in one session; None for a file that has no others."""
        return None if self.link_group is None else (*self.link_group.key, *self.shared_attributes)

    @property
    def record(self) -> "Entry":
        """What a metadata record says of it."""
        return self._replace(xattrs=(), acl=()) if self.xattrs or self.acl != () else self

    @property
    def safe_mode(self) -> int:
        """The mode without what it may grant only together with an access control list that is not known."""
        return self.mode if self.acl is not None else self.mode & ~0o7077

    @property
    def parent(self) -> bytes:
        return parent_of(self.path)


class LinkDigests:
    """The digests of one session's files, also of those hard links whose first one alone records it.

    Each entry is remembered, in the order of the metadata files, before its own digest is asked for.
    """

    def __init__(self) -> None:
        self._by_file: dict[tuple[int, ...] | None, bytes] = {}

    def remember(self, entry: Entry | None) -> None:
        if entry is not None and entry.file_key is not None and entry.sha1 is not None:
            self._by_file.setdefault(entry.file_key, entry.sha1)

    def of(self, entry: Entry) -> bytes | None:
        """The hex digest; None if none was recorded."""
        return entry.sha1 or self._by_file.get(entry.file_key)


def name_of(path: bytes) -> bytes:
    """The last component of `path`; b"" for the root."""
    return path.rpartition(b"/")[2]


def parent_of(path: bytes) -> bytes:
    """The directory that holds `path`; b"" for the root and for what lies in it."""
    return path.rpartition(b"/")[0]


def join(parent: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory `parent`."""
    return parent + b"/" + name if parent else name


def sort_key(path: bytes) -> bytes:
    """A key that puts paths in the order of the metadata files: component by component (docs/format.md 4.2).

    No name contains a NUL, so NUL in place of the slash sorts below every other byte; the root sorts first.
    """
    return path.replace(b"/", b"\0")


class Ascent:
    """Where a sequence of paths in that order is. One that comes twice must not be taken for two, of which one went."""

    def __init__(self) -> None:
        self._key: bytes | None = None

    def takes(self, path: bytes) -> bool:
        """Whether `path` comes after all before it; then it is the last."""
        key = sort_key(path)
        if self._key is not None and key <= self._key:
            return False
        self._key = key
        return True

    def is_at(self, path: bytes) -> bool:
        return sort_key(path) == self._key


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` itself or lies below it."""
    return not directory or path == directory or path.startswith(directory + b"/")
