"""Reading the catalog: what was where, when. Answers come from single queries; little is held in memory.

Every value is made what it must be by the query itself (`& -1` is a whole number, whatever a damaged page holds), so
that wrong bytes in the file cannot be more than wrong attributes. What SQLite finds damaged raises DamagedError, and
from then on the catalog is not current: `open_catalog` makes it anew.
"""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from histfs.errors import DamagedError, NotFoundError, StorageError
from histfs.store.catalog.lists import Lists
from histfs.store.catalog.rows import (
    ACCESS,
    AT,
    LISTED,
    THERE,
    VERSION,
    Access,
    Listed,
    Version,
    shared,
    version_of_row,
)
from histfs.store.catalog.schema import DATABASE_ERRORS, LIVE, ROOT, is_busy, read_known
from histfs.store.entry import Acl, Entry, LinkGroup, Xattrs, join, name_of, parent_of, sort_key
from histfs.store.format.attributes import parse_access_control_list, parse_extended_attributes
from histfs.store.format.columns import TYPE_MASK, number_of, signed
from histfs.store.layout import State
from histfs.store.repository import Repository

_MOST_KEPT = 4096
_HALF = (1 << 32) - 1
_K = TypeVar("_K")
_V = TypeVar("_V")


class _Kept(OrderedDict[_K, _V]):
    """The last answers to what is asked again and again."""

    def keep(self, key: _K, value: _V) -> _V:
        self[key] = value
        if len(self) > _MOST_KEPT:
            self.popitem(last=False)
        return value


class Catalog:
    """Thread-safe; a context manager. Made by `open_catalog`. Reading raises DamagedError, StorageError."""

    def __init__(self, database: sqlite3.Connection, repository: Repository, discard: Callable[[], None]) -> None:
        """`discard` is called when the database turned out to be damaged."""
        self._database = database
        self._repository = repository
        self._discard = discard
        self._lock = threading.RLock()  # a query is asked while the rows of another come in
        self.is_damaged = False  # as a query has found: another catalog must be opened
        self._groups: _Kept[tuple[int, ...], tuple[Version, int, bytes | None]] = _Kept()
        self._paths: _Kept[int, bytes] = _Kept()
        self._reachable: _Kept[tuple[int, int], bool] = _Kept()
        self._data_version = self._asked_data_version()
        self._read_identity()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def keep_in_memory(self, size_bytes: int) -> None:
        """How much of the database is kept in memory, where it is not what `open_catalog` has set."""
        with self._reading():
            self._database.execute(f"pragma cache_size = -{size_bytes >> 10}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Which sessions

    @property
    def sessions(self) -> tuple[int, ...]:
        """The sessions of the repository as of the last look, oldest first; some of them may not be readable."""
        return self._known.sessions

    @property
    def readable_sessions(self) -> tuple[int, ...]:
        """The sessions that are in the catalog, oldest first."""
        return self._known.readable

    def is_current(self, state: State) -> bool:
        """Whether the catalog is that of a repository whose data directory says `state`. Raises StorageError."""
        if not self.is_as_it_was():
            return False
        newest_list = self._known.identity.newest_list
        return self.sessions == state.sessions and newest_list == Lists(self._repository, state).newest_list()

    def is_as_it_was(self) -> bool:
        """Whether nobody has written to the database since it was opened. If not, what is kept of it may be wrong.

        Raises StorageError.
        """
        if not self.is_damaged:
            with suppress(DamagedError):
                return self._asked_data_version() == self._data_version
        return False

    def _asked_data_version(self) -> object:
        return self._row("pragma data_version")

    def _read_identity(self) -> None:
        with self._reading():
            self._known = read_known(self._database)
            self._has_extras = bool(self._database.execute("select exists (select 1 from extras)").fetchone()[0])
        readable = self._known.readable
        self._oldest, self._newest = (readable[0], readable[-1]) if readable else (0, 0)

    # Extended attributes and access control lists

    @property
    def has_extras(self) -> bool:
        """Whether any version has any."""
        return self._has_extras

    def extras(self, number: int) -> tuple[Xattrs, Acl | None]:
        """What the number in `Version.extras` stands for; an access control list that is None was damaged.

        NotFoundError if a removal came after the version was asked for.
        """
        row = self._row("select cast(xattrs as blob), cast(acl as blob) from extras where id = ?", number)
        if row is None:
            if not self.is_as_it_was():
                raise NotFoundError("went with what was removed", path=self._repository.path)
            raise DamagedError("the catalog has lost extended attributes", path=self._repository.path)
        xattrs_text, acl_text = row
        xattrs = tuple(sorted(parse_extended_attributes(xattrs_text).values.items())) if xattrs_text else ()
        if acl_text is None:
            return xattrs, None
        return xattrs, parse_access_control_list(acl_text).entries if acl_text else ()

    # Versions

    def root(self, time: int) -> Version:
        """The root of the tree at a session. NotFoundError if there is none, DamagedError if it cannot be read."""
        if time not in self.sessions:
            raise NotFoundError("there is no such session in the catalog", at=time)
        if time in self._known.problems:
            problem, path = self._known.problems[time]
            raise DamagedError(problem, path=path, at=time)
        found = self.child(0, b"", time)
        if found is None:
            raise DamagedError("the list of files has no root", at=time)
        if not found.is_directory:
            raise DamagedError("the root of the tree is not a directory", at=time)
        return found

    def child(self, directory: int, name: bytes, time: int) -> Version | None:
        """What `name` in the directory with the id `directory` was at `time`. NotFoundError if that is no session."""
        where = f"v.parent = :directory and v.name = :name and {THERE}"
        found = next(iter(self._versions(where, {"directory": directory, "name": name, "time": time})), None)
        if found is None:
            self._check_session(time)
        return found

    def children(self, directory: int, time: int, after: bytes | None = None, limit: int = 1000) -> list[Version]:
        """Up to `limit` of what was in a directory at `time`, by name, those that come after the name `after`.

        NotFoundError if `time` is no session.
        """
        where = f"v.parent = :directory and v.name > :after and {THERE} order by v.name limit :limit"
        found = self._versions(where, {"directory": directory, "after": after or b"", "time": time, "limit": limit})
        if not found:
            self._check_session(time)
        else:
            self._check_is_behind(found[-1].name, after)
        return found

    def names(self, directory: int, time: int, after: bytes | None = None, limit: int = 1000) -> Iterator[Listed]:
        """As `children`, but only what a listing shows, and quicker."""
        query = f"select {LISTED} from version v where v.parent = :directory and v.name > :after and {THERE}"
        values = {"directory": directory, "after": after or b"", "time": time, "limit": limit, "oldest": self._oldest}
        with self._reading():
            rows = self._database.execute(f"{query} order by v.name limit :limit", values).fetchall()
        if not rows:
            self._check_session(time)
        listed = list(map(Listed._make, rows))
        if listed:
            self._check_is_behind(listed[-1].name, after)
        return iter(listed)

    def _check_is_behind(self, last: bytes, after: bytes | None) -> None:
        """DamagedError where a page of names does not lead on: who asks for all would never come to an end."""
        with self._reading():
            if after is not None and last <= after:
                raise sqlite3.DatabaseError("names are not in their order")

    def _check_session(self, time: int) -> None:
        """NotFoundError if the session was removed since the last look, or never was."""
        if self._row("select 1 from session where time = ?", time) is None:
            raise NotFoundError("there is no such session in the catalog", at=time)

    def version(self, number: int) -> Version | None:
        """The newest version with this number."""
        return self.numbered([number]).get(number)

    def numbered(self, numbers: Collection[int]) -> dict[int, Version]:
        """The newest version with each of the numbers, where there is one; one query for all."""
        wanted = ",".join(f"{number:d}" for number in numbers)
        return {version.number: version for version in self._versions(f"v.number in ({wanted}) order by v.last", {})}

    def versions(self, directory: int, name: bytes) -> list[Version]:
        """All that `name` in a directory ever was, oldest first."""
        where = "v.parent = :directory and v.name = :name order by v.first"
        return self._versions(where, {"directory": directory, "name": name})

    def versions_of(self, path: bytes) -> list[Version]:
        """All that a path ever was, oldest first."""
        if not path:
            return self.versions(0, b"")
        directory = self.directory_at(parent_of(path))
        return [] if directory is None else self.versions(directory, name_of(path))

    def newest_access(self, version: Version) -> list[Access]:
        """What the newest session says of the path of `version`, and of all that were ever links of the same file.

        Nothing of those that are not there any more.
        """
        if version.link is None:
            query = f"select {ACCESS.format('w')} from version w where w.parent = :parent and w.name = :name"
            values: dict[str, object] = {"parent": version.parent, "name": version.name}
        else:
            inode, device = map(signed, version.link[:2])
            query = f"""select distinct {ACCESS.format("w")} from version v
                join version w on w.parent = v.parent and w.name = v.name
                where v.link_inode = :inode and v.link_device = :device and v.size_bytes = :size_bytes
                and v.mode = :mode and v.uid = :uid and v.gid = :gid and v.mtime_s = :mtime_s"""
            names = ("size_bytes", "mode", "uid", "gid", "mtime_s")
            values = {"inode": inode, "device": device, **dict(zip(names, shared(version), strict=True))}
        with self._reading():
            rows = self._database.execute(f"{query} and w.last = {LIVE}", values).fetchall()
        return list(map(Access._make, rows))

    def changed_access(
        self, directory: int, time: int, after: bytes | None = None, limit: int = 1000
    ) -> Iterator[tuple[bytes, Access, Access]]:
        """The names in a directory that have another version now than at `time`, with both; in pages as `names`."""
        query = f"""select v.name, {ACCESS.format("v")}, {ACCESS.format("w")} from (
            select * from version v where v.parent = :directory and v.name > :after and {AT}
            order by v.name limit :limit
        ) v join version w on w.parent = :directory and w.name = v.name and w.last = {LIVE} where v.last < {LIVE}"""
        values = {"directory": directory, "after": after or b"", "time": time, "limit": limit}
        size = len(Access._fields)
        with self._reading():
            rows = self._database.execute(query, values).fetchall()
        return ((name, Access._make(old[:size]), Access._make(old[size:])) for name, *old in rows)

    def total_bytes(self, path: bytes, time: int) -> int:
        """The size of all that was at and below `path` at `time`; each link of a file counts."""
        own = next((version for version in self.versions_of(path) if version.first <= time <= version.last), None)
        if own is None or not own.is_directory:
            return 0 if own is None else own.size_bytes
        query = f"""with recursive inside (id) as (
            select :directory union select v.directory from inside join version v on v.parent = inside.id
            where v.directory != 0 and {AT}
        ) select ifnull(sum(v.size_bytes & -1), 0) from inside join version v on v.parent = inside.id where {AT}"""
        with self._reading():
            return int(self._database.execute(query, {"directory": own.directory, "time": time}).fetchone()[0])

    def long_names_below(self, path: bytes) -> set[int]:
        """The numbers that ever stood for a name below `path` (docs/format.md 3.4)."""
        directory = self.directory_at(path)
        query = """with recursive inside (id) as (
            select :directory union select d.id from inside join directory d on d.parent = inside.id
        ) select distinct ifnull(v.alternate_mirror, v.alternate_increment) & -1 from inside
        join version v on v.parent = inside.id where ifnull(v.alternate_mirror, v.alternate_increment) is not null"""
        with self._reading():
            return {number for (number,) in self._database.execute(query, {"directory": directory})}

    def deleted(self, directory: int, time: int, after: bytes | None = None, limit: int = 1000) -> list[Version]:
        """The last version of each name that was in a directory before `time` and is not there then, as `children`."""
        where = """v.parent = :directory and v.name > :after and v.last < :time and not exists (
            select 1 from version w
            where w.parent = v.parent and w.name = v.name and w.first > v.first and w.first <= :time
        ) order by v.name limit :limit"""
        return self._versions(where, {"directory": directory, "after": after or b"", "time": time, "limit": limit})

    def links(self, version: Version, time: int) -> tuple[Version, int]:
        """The first member of the link group of `version` at `time`, by path, and how many it has in the tree then.

        (version, 1) for what is in no group.
        """
        if version.link is None:
            return version, 1
        first, count, _ = self._group(version, time)
        return first, count

    def _group(self, version: Version, time: int) -> tuple[Version, int, bytes | None]:
        """The first member of the link group of `version` at `time`, how many there are, and their digest."""
        assert version.link is not None
        key = *version.link[:2], time, *shared(version)
        group = self._groups.get(key)
        if group is None:
            first, first_path, count = version, None, 0
            digest, digest_path = None, None
            for path, member in self._members(version, time):
                count += 1
                if first_path is None or path < first_path:
                    first, first_path = member, path
                if member.sha1 is not None and (digest_path is None or path < digest_path):
                    digest, digest_path = member.sha1, path
            group = self._groups.keep(key, (first, max(1, count), digest))
        return group

    def _members(self, version: Version, time: int) -> Iterator[tuple[bytes, Version]]:
        """The members of the link group of `version` at `time`, each with what sorts it as lists are sorted."""
        assert version.link is not None
        inode, device = map(signed, version.link[:2])
        where = f"v.link_inode = :inode and v.link_device = :device and {AT}"
        values = {"inode": inode, "device": device, "time": time, "oldest": self._oldest}
        with self._reading():  # not all at once: there may be a million
            for row in self._database.execute(f"select {VERSION} from version v where {where}", values):
                member = version_of_row(row)
                if shared(member) == shared(version) and self._is_reachable(member.parent, time):
                    yield sort_key(self._path_of(member)), member

    def entry(self, version: Version) -> Entry:
        """The version as an entry, without names of users and groups.

        A member of a link group has the digest of its group, at the newest session that has the version.
        """
        sha1 = version.sha1
        if sha1 is None and version.link is not None:
            sha1 = self._group(version, self.time_of(version))[2]
        number = version.device_number
        group = None if version.link is None else LinkGroup(version.link[2], *version.link[:2])
        return Entry(
            self._path_of(version),
            version.kind,
            version.mode & ~TYPE_MASK,
            version.uid,
            version.gid,
            mtime_s=version.mtime_s,
            size_bytes=version.size_bytes,
            sha1=sha1,
            link_group=group,
            target=version.target or b"",
            device_number=(0, 0) if number is None else (number >> 32 & _HALF, number & _HALF),
            alternate_mirror=version.alternate_mirror,
            alternate_increment=version.alternate_increment,
        )

    def time_of(self, version: Version) -> int:
        """The newest session that has the version: the one with the shortest way to its content."""
        return self._newest if version.last == LIVE else version.last

    # Directories

    def directory(self, tag: int) -> int | None:
        """The id of the directory with this tag."""
        row = self._row("select id & -1 from directory where tag = ?", tag)
        return None if row is None else int(row[0])

    def directory_at(self, path: bytes) -> int | None:
        """The id of the directory `path`, if there ever was one."""
        with self._reading():
            found = self._database.execute("select id & -1 from directory where key = ?", (number_of(path),)).fetchall()
        return next((number for (number,) in found if self.path(number) == path), None)

    def tag(self, directory: int) -> int:
        """NotFoundError if there is no such directory."""
        return int(self._directory(directory)[0])

    def parent(self, directory: int) -> int:
        """The id of the directory above; 0 for the root. NotFoundError."""
        return int(self._directory(directory)[1])

    def path(self, directory: int) -> bytes:
        """NotFoundError, DamagedError."""
        wanted, names = directory, []
        while directory != ROOT and (known := self._paths.get(directory)) is None:
            _, parent, name = self._directory(directory)
            if parent >= directory:
                raise DamagedError("the catalog has a directory that lies in itself")
            names.append(name)
            directory = parent
        above = b"" if directory == ROOT else known
        return self._paths.keep(wanted, b"/".join((above, *reversed(names)) if above else reversed(names)))

    def _directory(self, directory: int) -> tuple[int, int, bytes]:
        query = "select ifnull(tag & -1, 0), parent & -1, cast(name as blob) from directory where id = ?"
        row = self._row(query, directory)
        if row is None:
            raise NotFoundError(f"the catalog has no directory number {directory}")
        tag, parent, name = row
        return tag, parent, name

    def _path_of(self, version: Version) -> bytes:
        return join(self.path(version.parent), version.name) if version.parent else b""

    def _is_reachable(self, directory: int, time: int) -> bool:
        """Whether a directory and all above it were directories at `time`: in a sound list they always are."""
        wanted = directory
        while directory and (known := self._reachable.get((directory, time))) is None:
            _, parent, name = self._directory(directory)
            found = self.child(parent, name, time)
            if found is None or found.directory != directory or parent >= directory:
                return self._reachable.keep((wanted, time), False)
            directory = parent
        return self._reachable.keep((wanted, time), known if directory and known is not None else True)

    # Queries

    def _versions(self, where: str, values: dict[str, object]) -> list[Version]:
        query = f"select {VERSION} from version v where {where}"
        with self._reading():
            rows = self._database.execute(query, {**values, "oldest": self._oldest}).fetchall()
        return list(map(version_of_row, rows))

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._reading():
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
            return row

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.ProgrammingError:
                raise  # it was closed: a mistake of the caller's
            except DATABASE_ERRORS as exc:
                if is_busy(exc):
                    raise StorageError("the catalog is being written to", path=self._repository.path) from exc
                if not self.is_damaged:
                    self.is_damaged = True
                    self._discard()
                raise DamagedError(
                    f"the catalog cannot be read ({exc})",
                    path=self._repository.path,
                    advice="it is made anew when it is opened again",
                ) from exc
