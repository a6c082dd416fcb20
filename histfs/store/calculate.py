"""The operation `calculate`: what sessions were like on average, and where in the tree most happens.

The statistics of a session's files are lines, one a path. Sums of all sessions are kept by path in a private temporary
database, which spills to an unlinked file, so that memory is bounded whatever the tree; then it is walked in the order
of the tree. What counts for little is counted with its directory.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError, HistfsError, NotFoundError, UsageError, storage_errors
from histfs.store.compression import read_decompressed
from histfs.store.entry import is_below, sort_key
from histfs.store.format.names import parse_increment_name
from histfs.store.format.stats import (
    Average,
    FileStatistic,
    average_statistics,
    parse_file_statistic,
    parse_statistics_fields,
)
from histfs.store.layout import DATA
from histfs.store.repository import Repository
from histfs.store.tree import Tree

_STATISTICS_BYTES = 64 * 1024
_LONGEST_LINE = 1 << 20
_CACHE_KIB = 16 * 1024

_SCHEMA = f"""
pragma cache_size = -{_CACHE_KIB};
pragma journal_mode = off;
pragma synchronous = off;
create table path (
    key blob primary key, source_bytes integer not null, increment_bytes integer not null, changed integer not null
) without rowid;
"""
_ADD = """
insert into path values (?, ?, ?, ?) on conflict (key) do update set
    source_bytes = source_bytes + excluded.source_bytes, increment_bytes = increment_bytes + excluded.increment_bytes,
    changed = changed + excluded.changed
"""


class Share(NamedTuple):
    """What a path and, as far as nothing below has a share of its own, what is below it make of the whole."""

    path: bytes
    value: int


class Ranking(NamedTuple):
    """The largest shares first, and the whole."""

    shares: tuple[Share, ...]
    total: int

    def percent(self, share: Share) -> float:
        return 100 * share.value / self.total if self.total else 0.0


class Calculated(NamedTuple):
    """Of the `sessions` (times) that have both statistics of themselves and of their files."""

    sessions: tuple[int, ...]
    average: Average
    source_bytes: Ranking
    increment_bytes: Ranking
    changed_files: Ranking


def average(files: Sequence[Path]) -> Average:
    """The average of files session_statistics. Raises UsageError, StorageError."""
    return average_statistics([_read_statistics(file) for file in files])


def _read_beginning(path: Path) -> bytes:
    """Of a file that a person names. What lies in a repository may be named by a pattern, and is nothing but a file."""
    if os.fsencode(path.parent.name) != DATA:
        with open(path, "rb", buffering=0) as file:
            return file.read(_STATISTICS_BYTES)
    with Tree.open(path.parent) as tree:
        try:
            return tree.read_small_file(os.fsencode(path.name), limit=_STATISTICS_BYTES)
        except OSError as exc:
            exc.filename = path
            raise


def _read_statistics(path: Path) -> dict[str, float]:
    with storage_errors():
        text = _read_beginning(path)
    try:
        return parse_statistics_fields(text)
    except FormatError as error:
        raise UsageError(f"is no file session_statistics ({error.problem})", path=path) from error


def calculate(
    repository: Repository,
    begin: int | None,
    end: int | None,
    minimum_ratio: float,
    *,
    report: Callable[[HistfsError], None],
) -> Calculated:
    """Of the sessions from `begin` to `end` (seconds since the epoch; None: all); a share is at least `minimum_ratio`.

    Statistics that are damaged are told to `report` and left out. Raises NotFoundError if no session is left.
    """
    with storage_errors(), closing(sqlite3.connect("", isolation_level=None)) as database:
        database.executescript(_SCHEMA)
        times, statistics = [], []
        for time, path, path_of_files in _sessions(repository, begin, end):
            try:
                fields = parse_statistics_fields(repository.tree.read_small_file(path, limit=_STATISTICS_BYTES))
                _add(database, _file_statistics(repository.tree, path_of_files))
            except DamagedError as error:
                error.at = time
                report(error)
                continue
            times.append(time)
            statistics.append(fields)
        if not times:
            raise NotFoundError("no session of that time has statistics of itself and of its files")
        rankings = (_ranking(database, column, minimum_ratio) for column in _COLUMNS)
        return Calculated(tuple(times), average_statistics(statistics), *rankings)


_COLUMNS = ("source_bytes", "increment_bytes", "changed")


def _sessions(repository: Repository, begin: int | None, end: int | None) -> Iterator[tuple[int, bytes, bytes]]:
    """The times of sessions, oldest first, and where their two statistics are."""
    quoting = repository.layout.quoting
    found: dict[bytes, dict[int, bytes]] = {b"session_statistics": {}, b"file_statistics": {}}
    for name in repository.tree.names(DATA):
        parsed = parse_increment_name(quoting.unquote(name) if quoting.is_active else name)
        if parsed is not None and parsed.type == b"data" and parsed.base in found:
            found[parsed.base][parsed.time] = DATA + b"/" + name
    of_session, of_files = found.values()
    for time in sorted(of_session.keys() & of_files.keys() & set(repository.sessions())):
        if (begin is None or begin <= time) and (end is None or time <= end):
            yield time, of_session[time], of_files[time]


def _file_statistics(tree: Tree, path: bytes) -> Iterator[FileStatistic]:
    """Raises DamagedError where the file is not what it must be."""
    fd = tree.open_file(path)
    try:
        rest = b""
        for block in read_decompressed(fd):
            *lines, rest = (rest + block).replace(b"\0", b"\n").split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise FormatError("a line of file statistics is too long", path=path)
            for line in lines:
                if not line.startswith(b"# "):
                    yield parse_file_statistic(line)
    except DamagedError as error:
        error.path = path
        raise
    finally:
        os.close(fd)


def _add(database: sqlite3.Connection, statistics: Iterator[FileStatistic]) -> None:
    """Adds all or, where that raises, nothing."""
    rows = (
        (sort_key(each.path), each.source_bytes or 0, each.increment_bytes or 0, each.is_changed) for each in statistics
    )
    database.execute("begin")
    try:
        database.executemany(_ADD, rows)
    except BaseException:
        database.execute("rollback")
        raise
    database.execute("commit")


class _Node:
    """A path on the way through the tree, with what is below it."""

    def __init__(self, path: bytes, value: int) -> None:
        self.path = path
        self.value = value  # with all that is below
        self.below: list[Share] = []  # those with a share of their own


def _ranking(database: sqlite3.Connection, column: str, minimum_ratio: float) -> Ranking:
    [total] = database.execute(f"select ifnull(sum({column}), 0) from path").fetchone()
    least = minimum_ratio * total
    way = [_Node(b"", 0)]
    for key, value in database.execute(f"select key, {column} from path order by key"):
        path = key.replace(b"\0", b"/")
        while len(way) > 1 and not is_below(path, way[-1].path):
            _leave(way, least)
        if path:
            way.append(_Node(path, value))
        else:
            way[0].value += value
    while len(way) > 1:
        _leave(way, least)
    root = way[0]
    shares = _shares(root, least)
    return Ranking(tuple(sorted(shares, key=lambda share: -share.value)), total)


def _leave(way: list[_Node], least: float) -> None:
    """All below the last node of `way` is counted: what is enough for a share stays one, the rest is its parent's."""
    node = way.pop()
    way[-1].value += node.value
    way[-1].below += _shares(node, least)


def _shares(node: _Node, least: float) -> list[Share]:
    if node.value <= least:
        return []
    rest = node.value - sum(share.value for share in node.below)
    return [Share(node.path, rest), *node.below] if rest >= least else node.below
