"""The tables of the catalog, and what their values mean.

version: one row for each run of sessions in which a path had one record, clustered by the directory and the name.
    `first` and `last` are times of sessions; OLDEST is the first of a version that the oldest session has already, LIVE
    the last of one that the newest session has: so old sessions can go, and the rows are those that a catalog made
    without them has. `number` stands for path, record and extras: the same run or not, equal numbers are equal records.
    `directory` is the id of what is a directory, else 0. The rest is `format.columns.Columns`.
directory: a path that is or was one, or that has something in it. Ids are private to one database, above that of the
    parent, and never used again: who reads while something goes finds nothing, and not something else. The root is 1,
    its parent 0, its name empty. `key` is a hash of the path, `tag` a shorter one that is unique and the same in every
    catalog of the repository (see `tags`).
extras: extended attributes and access control lists, by a hash of both, in the form that the repository has them
    (docs/format.md 4.6, 4.7), each as of the root. `acl` is null where it was damaged: nobody but the owner gets in.
session: every session, with the size of its list when the catalog was made, and why it is not in the catalog if it
    is not: the problem, and the path in the repository that has it.
state: one row: what tells the newest list from any other.
"""

import sqlite3
from typing import NamedTuple

from histfs.store.format.columns import Columns

LIVE = 2**62
OLDEST = -(2**62)

APPLICATION_ID = 0x68697374  # "hist"
SCHEMA_VERSION = 3

# In the order of the table.
KEY_COLUMNS = ("parent", "name", "first", "last", "number", "directory")
COLUMNS = (*KEY_COLUMNS, *Columns._fields)
ROOT = 1

_TABLES = f"""
create table directory (
    id integer primary key autoincrement, key integer not null, parent integer not null, name blob not null,
    tag integer unique
);
create index directory_key on directory (key);
create table version (
    parent integer not null, name blob not null, first integer not null, last integer not null,
    number integer not null, directory integer not null,
    mode integer not null, uid integer not null, gid integer not null, mtime_s integer not null,
    size_bytes integer not null, sha1 blob, target blob, device_number integer,
    link_inode integer, link_device integer, link_count integer,
    alternate_mirror integer, alternate_increment integer, extras integer,
    primary key (parent, name, first)
) without rowid;
create table extras (id integer primary key, xattrs blob not null, acl blob);
create table session (time integer primary key, list_bytes integer, problem text, path blob);
create table state (newest_list blob not null);
pragma application_id = {APPLICATION_ID};
pragma user_version = {SCHEMA_VERSION};
"""
_INDEXES = """
create index version_number on version (number);
create index version_link on version (link_inode, link_device, last) where link_inode is not null;
create index version_extras on version (extras) where extras is not null;
"""


def create_tables(database: sqlite3.Connection) -> None:
    """Make the tables in an empty database; rows go in much faster before `create_indexes`."""
    database.executescript(_TABLES)


def create_indexes(database: sqlite3.Connection) -> None:
    database.executescript(_INDEXES)


def is_catalog(database: sqlite3.Connection) -> bool:
    """Whether the database has exactly these tables, and nothing that SQLite would run by itself."""
    if database.execute("pragma application_id").fetchone() != (APPLICATION_ID,):
        return False
    if database.execute("pragma user_version").fetchone() != (SCHEMA_VERSION,):
        return False
    return _definitions(database) == _expected()


class Identity(NamedTuple):
    """What tells the lists of a repository from others: the size of each session's, and the end of the newest."""

    list_bytes: dict[int, int | None]  # None: the session has no list
    newest_list: bytes


class Known(NamedTuple):
    """What a catalog was made from, and what it could not take in."""

    identity: Identity
    problems: dict[int, tuple[str, bytes | None]]  # what is wrong with a session, and the path that has it

    @property
    def sessions(self) -> tuple[int, ...]:
        return tuple(self.identity.list_bytes)

    @property
    def readable(self) -> tuple[int, ...]:
        """The sessions that are in the catalog, oldest first."""
        return tuple(time for time in self.sessions if time not in self.problems)


def read_known(database: sqlite3.Connection) -> Known:
    list_bytes: dict[int, int | None] = {}
    problems: dict[int, tuple[str, bytes | None]] = {}
    query = "select time & -1, list_bytes & -1, cast(problem as blob), cast(path as blob) from session order by time"
    for time, size, problem, path in database.execute(query):
        list_bytes[time] = size
        if problem is not None:
            problems[time] = problem.decode(errors="replace"), path
    newest = database.execute("select cast(newest_list as blob) from state").fetchone()
    return Known(Identity(list_bytes, b"" if newest is None else newest[0]), problems)


# What may be raised by reading a database: a message about a damaged one may be no text.
DATABASE_ERRORS = (sqlite3.DatabaseError, UnicodeError)


def is_busy(error: Exception) -> bool:
    """Whether somebody else was in the way, and nothing is wrong."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _expected() -> set[tuple[object, ...]]:
    database = sqlite3.connect(":memory:")
    try:
        create_tables(database)
        create_indexes(database)
        return _definitions(database)
    finally:
        database.close()


def _definitions(database: sqlite3.Connection) -> set[tuple[object, ...]]:
    return set(database.execute("select type, name, tbl_name, sql from sqlite_master limit 100"))
