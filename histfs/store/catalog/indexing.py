"""Making a catalog, and keeping it up with its repository.

Strategy. The lists lead back in time, so a catalog is made backwards: the newest list gives the versions that live,
and each session before it what was different then: `change` holds a record, or none, for each path that differed. What
a session says of a path ends the version that reached further back until then. Where a session has a full list in the
place of a difference it is compared with the versions that reach that far back.

A catalog is brought forward by the same means: the paths that the differences since its newest session name are taken
from the next full list, and followed back to where the catalog knows them. So however a catalog came to be, its rows
are those that a new one has.

Rules. A list goes into `change` whole, or into fresh tables as the first, before anything depends on it: one that
breaks off has changed nothing. Memory does not grow with the repository: what is large is in temporary tables.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

from histfs.errors import DamagedError, HistfsError, StorageError
from histfs.store.catalog.directories import Directories, assign_tags, reassign_tags, remove_unused_directories
from histfs.store.catalog.lists import ExtrasDamagedError, Lists
from histfs.store.catalog.numbers import settle_numbers
from histfs.store.catalog.schema import (
    COLUMNS,
    LIVE,
    OLDEST,
    Identity,
    Known,
    create_indexes,
    create_tables,
    read_known,
)
from histfs.store.entry import join
from histfs.store.format.columns import IS_DIRECTORY, MAX_NUMBER, SAME_RECORD, TYPE_MASK, Record

_BATCH = 5000
_MOST_EXTRAS_BYTES = 8 << 20  # in memory
_MOST_TOUCHED = 100_000  # paths that are followed in memory
_STILL_OPEN = OLDEST - 1  # `first` of a version whose beginning is being looked for
_UNKNOWN_SIZE = -1  # of a list that could not be read this time

_REST = ", ".join(COLUMNS[4:])
# With the types of `version`, or its keys could not be looked up; without keys of their own, so that these are.
_TEMPORARY = f"""
create temp table if not exists change (parent integer, name blob, {_REST});
create temp table if not exists dressed (parent integer, name blob, extras integer);
create temp table if not exists listed (parent integer, name blob, number integer);
create temp table if not exists touched (parent integer, name blob);
create temp table if not exists fresh (number integer);
"""
# A version with other extras, see columns.with_extras.
_DRESSED = ", ".join(
    (
        f"(version.number - ifnull(version.extras, 0) + ifnull(dressed.extras, 0)) & {MAX_NUMBER}",
        *(f"version.{column}" for column in COLUMNS[5:-1]),
        "dressed.extras",
    )
)
_SAME_PATH = "version.parent = change.parent and version.name = change.name"

Progress = Callable[[int], None]
# As many of the columns of `change` as are not null: the place alone (what is absent), or the common columns, or all.
Row = tuple[Any, ...]


class OutdatedError(HistfsError):
    """The catalog cannot be brought up to date: it has to be made anew."""


class Indexer:
    """Writes one database, with connections in autocommit mode. `progress` is told how many records were read."""

    def __init__(self, database: sqlite3.Connection, lists: Lists, progress: Progress) -> None:
        self._database = database
        self._lists = lists
        self._progress = progress
        self._directories = Directories(database)
        self._records = 0
        self._problems: dict[int, HistfsError] = {}
        database.executescript(_TEMPORARY)

    # A new one

    def build(self) -> None:
        """Fill the empty database; sessions that cannot be read are left out. ListsChangedError."""
        create_tables(self._database)
        self._database.execute("begin")
        identity = self._lists.identity()
        newer: int | None = None  # the last one that was read
        following: int | None = None
        for time in reversed(self._lists.sessions):
            try:
                if newer is None:
                    self._load(time)
                else:
                    self._go_back(time, newer, is_next=newer == following)
                newer = time
            except (DamagedError, StorageError) as error:
                self._lists.check_unchanged()
                self._problems[time] = error
                if newer is None:
                    self._database.execute("delete from version")
            following = time
        if self._problems:
            remove_unused_directories(self._database)
        assign_tags(self._database)
        self._note(identity)
        self._database.execute("commit")
        create_indexes(self._database)
        settle_numbers(self._database)
        self._remove_unused_extras()

    def _load(self, time: int) -> None:
        """The versions of the newest session."""
        for batch in self._batches(self._lists.whole(time)):
            self._insert_versions(batch, OLDEST)

    def _go_back(self, time: int, newer: int, *, is_next: bool) -> None:
        if self._lists.is_full(time):
            self._compare(time, f"first = {OLDEST}")
        elif is_next:
            try:
                self._stage(self._lists.own(time), f"first = {OLDEST}")
            except ExtrasDamagedError:
                self._compare(time, f"first = {OLDEST}")
        else:
            raise DamagedError("a list that leads there cannot be read", at=time)
        self._end_at(time, newer, OLDEST)

    def _end_at(self, time: int, newer: int, open_first: int) -> None:
        """Go from the session `newer` back to `time`, with what `change` says."""
        self._database.execute(
            "update version set first = ? from change"
            f" where {_SAME_PATH} and version.first = ? and version.number is not change.number",
            (newer, open_first),
        )
        # A version that is open still has the same record: nothing changed, and the key is taken.
        self._database.execute(
            f"insert or ignore into version select parent, name, ?, ?, {_REST} from change where number is not null",
            (open_first, time),
        )
        if open_first == _STILL_OPEN:
            self._remember_numbers()

    # What a session says

    def _stage(self, records: Iterable[Record], state: str) -> None:
        """Fill `change` with all of `records`; those with the same record have it from the version with `state`."""
        self._database.execute("delete from change")
        self._database.execute("delete from dressed")
        for batch in self._batches(records):
            dressed = [(*row[:2], row[3]) for row in batch if row[2:3] == (SAME_RECORD,)]
            self._database.executemany("insert into dressed values (?, ?, ?)", dressed)
            self._insert("change", [row for row in batch if row[2:3] != (SAME_RECORD,)] if dressed else batch)
        self._database.execute(
            f"insert into change select version.parent, version.name, {_DRESSED} from dressed join version"
            f" on version.parent = dressed.parent and version.name = dressed.name and version.{state}"
        )

    def _compare(self, time: int, state: str) -> None:
        """Fill `change` with what is in the tree at `time` and not among the versions with `state`, or differs there.

        What is there and not in the tree gets a row without a number.
        """
        self._database.execute("delete from change")
        self._database.execute("delete from listed")
        done = 0
        for batch in self._batches(self._lists.whole(time)):
            present = [row for row in batch if len(row) > 2]
            self._database.executemany("insert into listed values (?, ?, ?)", (row[:3] for row in present))
            differing = set(
                self._database.execute(
                    "select parent, name from listed l where rowid > ? and not exists (select 1 from version v"
                    f" where v.parent = l.parent and v.name = l.name and v.{state} and v.number = l.number)",
                    (done,),
                )
            )
            self._insert("change", [row for row in present if row[:2] in differing])
            done += len(present)
        self._database.execute("create index temp.listed_path on listed (parent, name)")
        self._database.execute(
            f"insert into change (parent, name) select parent, name from version v where v.{state} and not exists"
            " (select 1 from listed l where l.parent = v.parent and l.name = v.name)"
        )
        self._database.execute("drop index temp.listed_path")

    def _insert_versions(self, batch: list[Row], first: int) -> None:
        rows = [(parent, name, first, LIVE, *rest) for parent, name, *rest in batch if rest]
        rows.sort()  # most of it is already, and in order they are packed tightly
        self._insert("version", rows)

    def _insert(self, table: str, rows: list[Row]) -> None:
        """What a row has too little is null: naming a value for it would take as long as for any other."""
        columns = len(COLUMNS) if table == "version" else len(COLUMNS) - 2
        for length in {len(row) for row in rows}:
            values = ", ".join(["?"] * length + ["null"] * (columns - length))
            some = (row for row in rows if len(row) == length)
            self._database.executemany(f"insert into {table} values ({values})", some)

    def _batches(self, records: Iterable[Record]) -> Iterator[list[Row]]:
        rows = self._rows(records)
        while batch := list(islice(rows, _BATCH)):
            self._records += len(batch)
            self._progress(self._records)
            self._keep_extras()
            yield batch

    def _keep_extras(self) -> None:
        self._database.executemany("insert or ignore into extras values (?, ?, ?)", self._lists.take_extras())

    def _rows(self, records: Iterable[Record]) -> Iterator[Row]:
        """The records with the ids of their directories. What is absent from an unknown directory is left out."""
        current: bytes | None = None
        place = 0
        for parent, name, number, columns in records:
            if self._lists.extras_bytes > _MOST_EXTRAS_BYTES:
                self._keep_extras()
            if columns is None or number == SAME_RECORD:
                known = self._directories.known(parent) if name else 0
                if known is not None:
                    yield (known, name) if columns is None else (known, name, number, *columns)
                continue
            if parent != current:
                place, current = self._directories.of(parent), parent
            is_directory = columns[0] & TYPE_MASK == IS_DIRECTORY
            directory = self._directories.of(join(parent, name)) if is_directory else 0
            yield place if name else 0, name, number, directory, *columns

    # Bringing it up to date

    def catch_up(self) -> None:
        """Take in the sessions that came and let those go that went. OutdatedError, ListsChangedError, DamagedError.

        All of it is one transaction.
        """
        identity = self._lists.identity()
        known = read_known(self._database)
        new = _new_sessions(known, identity)
        oldest = known.readable[0]
        self._database.execute("begin immediate")
        try:
            (last_directory,) = self._database.execute("select max(id) from directory").fetchone()
            self._advance([known.sessions[-1], *new])
            settle_numbers(self._database, among="fresh")
            remove_unused_directories(self._database, after=last_directory)
            assign_tags(self._database)
            self._note(identity)
            remaining = [*new, *(time for time in known.readable if time in identity.list_bytes)]
            if min(remaining) != oldest:
                self._forget_before(min(remaining))
            self._remove_unused_extras()
            self._database.execute("commit")
        except BaseException:
            self._database.execute("rollback")
            raise

    def _advance(self, sessions: list[int]) -> None:
        """Take in `sessions` after the first one, which is the newest that the catalog has."""
        while len(sessions) > 1:
            came = self._lists.came_between(*sessions) if len(sessions) == 2 else None
            if came is not None:
                self._take_in(*came, sessions[0])
                self._begin_at(*sessions)
                return
            full = next((place for place, time in enumerate(sessions) if place and self._lists.is_full(time)), 0)
            if not full or not all(self._lists.is_complete(time) for time in sessions[: full + 1]):
                raise OutdatedError("a list that leads to the new sessions is missing", at=sessions[0])
            if self._lists.is_full(sessions[0]):
                self._compare(sessions[1], f"last = {LIVE}")
                self._begin_at(sessions[0], sessions[1])
                sessions = sessions[1:]
            else:
                self._follow_differences(sessions[: full + 1])
                sessions = sessions[full:]

    def _take_in(self, were: Iterable[Record], are: Iterable[Record], older: int) -> None:
        """Fill `change` with what the session after `older`, the newest in the catalog, says by itself."""
        self._stage(were, f"last = {LIVE}")
        self._check_history(older)
        gone = set(self._database.execute("select parent, name from change"))
        self._stage(are, f"last = {LIVE}")
        gone.difference_update(self._database.execute("select parent, name from change"))
        self._insert("change", list(gone))
        # The same record once more begins no version: as a session says it of a file that could not be read.
        self._database.execute(
            "delete from change where exists"
            f" (select 1 from version where {_SAME_PATH} and last = {LIVE} and version.number is change.number)"
        )

    def _check_history(self, newest_known: int) -> None:
        """That `change`, which is said of the newest session in the catalog, is what this says. OutdatedError."""
        same = f"left join version on {_SAME_PATH} and version.last = {LIVE}"
        query = f"select 1 from change {same} where version.number is not change.number limit 1"
        if self._database.execute(query).fetchone():
            raise OutdatedError("the catalog is of another history", at=newest_known)

    def _begin_at(self, time: int, newer: int) -> None:
        """Go from the newest session `time` to `newer`, with what `change` says."""
        self._database.execute(
            f"update version set last = ? from change where {_SAME_PATH} and version.last = {LIVE}", (time,)
        )
        self._database.execute(
            f"insert into version select parent, name, ?, {LIVE}, {_REST} from change where number is not null",
            (newer,),
        )
        self._remember_numbers()

    def _remember_numbers(self) -> None:
        """Those of new versions: that none of them is another path's is looked at in the end."""
        self._database.execute("insert into fresh select number from change where number is not null")

    def _follow_differences(self, sessions: list[int]) -> None:
        """Take in `sessions` after the first one, of which the last has a full list and the others differences."""
        newest_known, first_new, last = sessions[0], sessions[1], sessions[-1]
        touched = self._touched(sessions[:-1])
        execute = self._database.execute
        execute(
            f"update version set last = ? from touched as change where {_SAME_PATH} and last = {LIVE}", (newest_known,)
        )
        for batch in self._batches(self._lists.some(last, touched)):
            self._insert_versions(batch, _STILL_OPEN)
            self._database.executemany("insert into fresh values (?)", (row[2:3] for row in batch if len(row) > 2))
        for time, newer in reversed(list(pairwise(sessions[1:]))):
            self._stage(self._lists.own(time), f"first = {_STILL_OPEN}")
            self._end_at(time, newer, _STILL_OPEN)
        # What is still open now was there at the first new session: it goes on from before, or begins with it.
        merged = execute(
            "select later.last, version.parent, version.name from touched as change"
            f" cross join version as later on later.parent = change.parent and later.name = change.name"
            f" cross join version on {_SAME_PATH}"
            f" where later.first = {_STILL_OPEN} and version.last = ? and version.number = later.number",
            (newest_known,),
        ).fetchall()
        remove = f"delete from version where first = {_STILL_OPEN} and parent = ? and name = ?"
        self._database.executemany(remove, (path for _, *path in merged))
        extend = f"update version set last = ? where parent = ? and name = ? and last = {newest_known}"
        self._database.executemany(extend, merged)
        execute(
            f"update version set first = ? from touched as change where {_SAME_PATH} and first = {_STILL_OPEN}",
            (first_new,),
        )

    def _touched(self, sessions: list[int]) -> set[tuple[bytes, bytes]]:
        """The paths that the differences at `sessions` name, as parent and name; their places are in `touched`.

        The difference at the first of them, the newest in the catalog, must say what the catalog says.
        """
        self._stage(self._lists.own(sessions[0]), f"last = {LIVE}")
        self._check_history(sessions[0])
        touched: set[tuple[bytes, bytes]] = set()
        for time in sessions:
            touched.update((parent, name) for parent, name, *_ in islice(self._lists.own(time), _MOST_TOUCHED))
            if len(touched) >= _MOST_TOUCHED:
                raise OutdatedError("too much changed to be followed", at=time)
        self._database.execute("delete from touched")
        places = ((self._directories.of(parent) if name else 0, name) for parent, name in touched)
        self._database.executemany("insert into touched values (?, ?)", places)
        return touched

    def _forget_before(self, oldest: int) -> None:
        """Let the versions go that ended before `oldest`."""
        self._database.execute("delete from version where last < ?", (oldest,))
        self._database.execute(f"update version set first = {OLDEST} where first > {OLDEST} and first <= ?", (oldest,))
        remove_unused_directories(self._database)
        reassign_tags(self._database)

    def _remove_unused_extras(self) -> None:
        unused = "not exists (select 1 from version where version.extras = extras.id)"
        self._database.execute(f"delete from extras where {unused}")

    # What it was made from

    def _note(self, identity: Identity) -> None:
        kept = {time: problem for time, *problem in self._database.execute("select time, problem, path from session")}
        rows = []
        for time, size in identity.list_bytes.items():
            error = self._problems.get(time)
            problem = kept.get(time, [None, None]) if error is None else [error.problem, _path_of(error)]
            rows.append((time, _UNKNOWN_SIZE if isinstance(error, StorageError) else size, *problem))
        self._database.execute("delete from session")
        self._database.executemany("insert into session values (?, ?, ?, ?)", rows)
        self._database.execute("delete from state")
        self._database.execute("insert into state values (?)", (identity.newest_list,))


def _path_of(error: HistfsError) -> bytes | None:
    return None if error.path is None else os.fsencode(error.path)


def _new_sessions(known: Known, identity: Identity) -> list[int]:
    """The sessions that came. OutdatedError unless these are all that is new."""
    if not known.identity.list_bytes or not identity.list_bytes:
        raise OutdatedError("the catalog is empty")
    newest = known.sessions[-1]
    kept = {time: size for time, size in known.identity.list_bytes.items() if time >= min(identity.list_bytes)}
    now = {time: size for time, size in identity.list_bytes.items() if time <= newest}
    new = sorted(identity.list_bytes.keys() - now.keys())
    if new:  # the list of the newest became another one
        kept.pop(newest, None)
        if now.pop(newest, None) is None:
            raise OutdatedError("the newest session of the catalog went", at=newest)
    elif known.identity.newest_list != identity.newest_list:
        raise OutdatedError("the newest list is another one", at=newest)
    if kept != now or newest not in known.readable:
        raise OutdatedError("the sessions that the catalog has are others", at=newest)
    return new
