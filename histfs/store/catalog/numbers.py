"""Numbers of versions that two paths got by chance, or on purpose: the one that came later gets another.

A number is a hash of path and record, so that a version has it in every catalog; the kernel takes what has one number
for one file. Nobody may be able to make a file that passes for another one, however much he hashes.
"""

import sqlite3

from histfs.store.format.columns import number_of

_SHARED = """
select number from version {which} group by number
having min(parent) <> max(parent) or min(name) <> max(name)
"""
# Who came first keeps it; of those of one session, the smallest path.
_CLAIMS = "select parent, name, min(first) from version where number = ? group by parent, name order by 3"


def settle_numbers(database: sqlite3.Connection, *, among: str | None = None) -> None:
    """Give every number to one path only. `among`: the table with the numbers to look at; None: all of them."""
    which = "" if among is None else f"where number in (select number from {among})"
    for (number,) in database.execute(_SHARED.format(which=which)).fetchall():
        claims = database.execute(_CLAIMS, (number,)).fetchall()
        paths = {(parent, name): _path(database, parent, name) for parent, name, _ in claims}
        claims.sort(key=lambda claim: (claim[2], paths[claim[:2]]))
        for parent, name, _ in claims[1:]:
            other = _free(database, number)
            change = "update version set number = ? where number = ? and parent = ? and name = ?"
            database.execute(change, (other, number, parent, name))


def _free(database: sqlite3.Connection, number: int) -> int:
    attempt = 0
    while True:
        other = number_of(b"%d %d" % (number, attempt))
        if database.execute("select 1 from version where number = ?", (other,)).fetchone() is None:
            return other
        attempt += 1


def _path(database: sqlite3.Connection, parent: int, name: bytes) -> list[bytes]:
    """The names that lead to a version, which sort as lists are sorted."""
    names = [name]
    while parent:
        parent, name = database.execute("select parent, name from directory where id = ?", (parent,)).fetchone()
        names.append(name)
    return names[::-1]
