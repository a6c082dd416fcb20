"""Directories in the catalog: from paths to ids, and their tags.

A tag has to fit into an inode number together with a session's time, and to be the same in every catalog of the
repository: it is the head of the path's hash, in the lower half of its 29 bits. Of several directories that want one
tag the first that the repository had gets it (of those of one session the one with the smallest hash); the others
get hashed ones in the upper half, in the same order. So a tag never changes as long as sessions only come.
"""

import sqlite3
from collections.abc import Iterable

from histfs.store.catalog.schema import ROOT
from histfs.store.format.columns import NUMBER_BITS, number_of

TAG_BITS = 29
_HALF = 1 << TAG_BITS - 1
_SHIFT = NUMBER_BITS - TAG_BITS + 1
_MAX_REMEMBERED = 20_000

# When a directory came; of one that only holds something and never was recorded, never.
_CAME = """(select min(v.first) from version v where v.parent = d.parent and v.name = d.name and v.directory = d.id)"""


class Directories:
    """Finds and makes the directories of one database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._ids: dict[bytes, int] = {}

    def of(self, path: bytes) -> int:
        """The id of the directory `path`, made if it is new."""
        known = self._ids.get(path)
        return self._look_up(path, make=True) if known is None else known

    def known(self, path: bytes) -> int | None:
        """The id of the directory `path`, if there is one."""
        known = self._ids.get(path)
        return self._look_up(path, make=False) or None if known is None else known

    def _look_up(self, path: bytes, *, make: bool) -> int:
        steps = [path]
        while steps[-1] and (above := steps[-1].rpartition(b"/")[0]) not in self._ids:
            steps.append(above)
        parent = self._ids[above] if steps[-1] else 0
        for step in reversed(steps):
            parent = self._step(parent, step, make=make)
            if not parent:
                return 0
        return parent

    def _step(self, parent: int, path: bytes, *, make: bool) -> int:
        """The id of `path`, whose parent's id is `parent`."""
        place = number_of(path), parent, path.rpartition(b"/")[2]
        query = "select id from directory where key = ? and parent = ? and name = ?"
        found = self._database.execute(query, place).fetchone()
        if found is not None:
            number = int(found[0])
        elif make:
            insert = "insert into directory (key, parent, name) values (?, ?, ?)"
            number = int(self._database.execute(insert, place).lastrowid or 0)
            assert path or number == ROOT
        else:
            return 0
        if len(self._ids) >= _MAX_REMEMBERED:
            self._ids.clear()
        self._ids[path] = number
        return number


def assign_tags(database: sqlite3.Connection) -> None:
    """Give a tag to every directory that has none yet."""
    database.execute(f"update or ignore directory set tag = key >> {_SHIFT} where tag is null")
    without = database.execute(f"select distinct key >> {_SHIFT} from directory where tag is null").fetchall()
    for (wanted,) in without:
        first, *_ = _rivals(database, wanted)
        database.execute("update directory set tag = null where tag = ?", (wanted,))
        database.execute("update directory set tag = ? where id = ?", (wanted, first))
    losers = database.execute(
        f"select d.id, d.key from directory d where d.tag is null order by {_CAME}, d.key, d.name"
    )
    for number, key in losers.fetchall():
        _probe(database, number, key)


def reassign_tags(database: sqlite3.Connection) -> None:
    """Tags after directories went: who had to give way to one of these no longer does."""
    wanted = database.execute(f"select distinct key >> {_SHIFT} from directory where tag >= {_HALF}").fetchall()
    for (tag,) in wanted:
        forget = "update directory set tag = null where id = ?"
        database.executemany(forget, ((number,) for number in _rivals(database, tag)))
    assign_tags(database)


def _rivals(database: sqlite3.Connection, tag: int) -> Iterable[int]:
    """The directories that want `tag`, in the order of their claims."""
    query = f"select d.id from directory d where d.key between ? and ? order by {_CAME}, d.key, d.name"
    bounds = tag << _SHIFT, (tag + 1 << _SHIFT) - 1
    return [number for (number,) in database.execute(query, bounds).fetchall()]


def _probe(database: sqlite3.Connection, number: int, key: int) -> None:
    attempt = 0
    while True:
        tag = _HALF + number_of(b"%d %d" % (key, attempt)) % _HALF
        if database.execute("update or ignore directory set tag = ? where id = ?", (tag, number)).rowcount:
            return
        attempt += 1


def remove_unused_directories(database: sqlite3.Connection, *, after: int = 0) -> None:
    """Remove the directories that no version is or lies in; `after`: only those with higher ids."""
    database.execute(
        """
        with recursive used (id) as (
            select d.id from directory d where d.id > :after and (
                exists (select 1 from version v where v.parent = d.id)
                or exists (select 1 from version v where v.parent = d.parent and v.name = d.name and v.directory = d.id)
            )
            union select d.parent from used join directory d on d.id = used.id
        )
        delete from directory where id > :after and id != :root and id not in used
        """,
        {"after": after, "root": ROOT},
    )
