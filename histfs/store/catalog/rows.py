"""Rows of the catalog as values: a version, and what a listing shows of one.

Every value is made what it must be by the query itself (`& -1` is a whole number, whatever a damaged page holds), so
that wrong bytes in the file cannot be more than wrong attributes.
"""

from typing import Any, NamedTuple

from histfs.errors import DamagedError
from histfs.store.catalog.schema import LIVE
from histfs.store.entry import Kind
from histfs.store.format.columns import IS_DIRECTORY, TYPE_BITS, TYPE_MASK, unsigned

_SYMLINK = TYPE_BITS[Kind.SYMLINK]
_CHARACTER_DEVICE = TYPE_BITS[Kind.CHARACTER_DEVICE]
_BLOCK_DEVICE = TYPE_BITS[Kind.BLOCK_DEVICE]
_KINDS = {bits: kind for kind, bits in TYPE_BITS.items()}


class Version(NamedTuple):
    """A path at the sessions from `first` to `last` (LIVE: the newest session has it).

    `number` is the same in every catalog of every copy of the repository. Versions of one path with the same record,
    which went and came back, have the same number; all others have different ones.
    """

    number: int
    parent: int  # the id of the directory it is in
    name: bytes
    first: int
    last: int
    mode: int  # st_mode, with the type
    uid: int
    gid: int
    mtime_s: int
    size_bytes: int
    device_number: int | None  # major << 32 | minor
    target: bytes | None
    sha1: bytes | None  # hex digits, as recorded: for the first member of a link group only
    directory: int  # the id of the directory that it is, else 0
    link: tuple[int, int, int] | None  # inode, device and number of links in the source
    alternate_mirror: int | None
    alternate_increment: int | None
    extras: int | None  # stands for its extended attributes and access control list, see `Catalog.extras`

    @property
    def kind(self) -> Kind:
        """Raises DamagedError if the catalog has none that there is."""
        try:
            return _KINDS[self.mode & TYPE_MASK]
        except KeyError:
            raise DamagedError("has no type in the catalog", path=self.name) from None

    @property
    def is_directory(self) -> bool:
        return self.mode & TYPE_MASK == IS_DIRECTORY


# The fields of Version in their order, and the three parts of `link` behind them.
VERSION = """
    ifnull(v.number & -1, 0), ifnull(v.parent & -1, 0), ifnull(cast(v.name as blob), x''),
    ifnull(max(v.first & -1, :oldest), 0), ifnull(v.last & -1, 0),
    ifnull(v.mode & 65535, 0), ifnull(v.uid & 4294967295, 0), ifnull(v.gid & 4294967295, 0),
    ifnull(v.mtime_s & -1, 0), ifnull(v.size_bytes & -1, 0), v.device_number & -1, cast(v.target as blob),
    cast(nullif(lower(hex(v.sha1)), '') as blob), ifnull(v.directory & -1, 0),
    null, v.alternate_mirror & -1, v.alternate_increment & -1, v.extras & -1,
    v.link_inode & -1, v.link_device & -1, v.link_count & -1
"""
_FIELDS = 18
# The fields of Listed in their order.
LISTED = f"""
    ifnull(v.number & -1, 0), ifnull(cast(v.name as blob), x''), ifnull(v.mode & 65535, 0),
    ifnull(v.uid & 4294967295, 0), ifnull(v.gid & 4294967295, 0),
    ifnull(case v.mode & {TYPE_MASK} when {_SYMLINK} then length(cast(v.target as blob)) else v.size_bytes & -1 end, 0),
    ifnull(case v.mode & {TYPE_MASK} when {_SYMLINK} then max(v.first & -1, :oldest) else v.mtime_s & -1 end, 0),
    cast(v.target as blob), cast(v.sha1 as blob), ifnull(v.last = {LIVE} and v.alternate_mirror is null, 0),
    ifnull(v.directory & -1, 0),
    case when v.directory then (select tag & -1 from directory d where d.id = v.directory) end,
    ifnull(v.link_inode is null and (v.mode & {TYPE_MASK} not in ({_SYMLINK}, {_CHARACTER_DEVICE}, {_BLOCK_DEVICE})
        or v.mode & {TYPE_MASK} = {_SYMLINK} and v.last = {LIVE}), 0), v.extras & -1
"""
# The fields of Access in their order, of the version `{0}`.
ACCESS = """ifnull({0}.mode & 65535, 0), ifnull({0}.uid & 4294967295, 0), ifnull({0}.gid & 4294967295, 0),
    {0}.extras & -1"""
AT = "v.first <= :time and v.last >= :time"
# The same, and nothing if another program has just taken that session out of the database.
THERE = f"{AT} and exists (select 1 from session where time = :time)"


class Listed(NamedTuple):
    """What a listing shows of a version."""

    number: int
    name: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int  # of a symbolic link: of its target
    mtime_s: int  # of a symbolic link: when the first session was that had it
    target: bytes | None
    sha1: bytes | None  # not as hex digits
    is_live: bool  # that it is in the mirror, where its name says
    directory: int
    tag: int | None  # of a directory that has one
    is_plain: bool  # that this is all there is to it: it is no device, has no other links, and is no link of old
    extras: int | None  # as in Version


class Access(NamedTuple):
    """What a version says of who may do what; as in Version."""

    mode: int
    uid: int
    gid: int
    extras: int | None


def version_of_row(row: tuple[Any, ...]) -> Version:
    """The Version of a row of the columns VERSION."""
    version = Version._make(row[:_FIELDS])
    if row[_FIELDS] is None:
        return version
    inode, device, count = (unsigned(part or 0) for part in row[_FIELDS:])
    return version._replace(link=(inode, device, count))


def shared(version: Version) -> tuple[int, ...]:
    """See Entry.shared_attributes."""
    return version.size_bytes, version.mode, version.uid, version.gid, version.mtime_s
