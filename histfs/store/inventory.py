"""What the history of a repository, or of a path in it, consists of: increments, their sizes, changes, versions.

The statistics of a session say how much it wrote to keep the state before it, so sizes need no look at the increments
themselves, unless the statistics of a session are missing or do not hold any more, as paths were removed since.
"""

import contextlib
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError, HistfsError, NotFoundError, printable_time, storage_errors
from histfs.store.catalog import Catalog, open_current
from histfs.store.entry import Entry, Kind, join
from histfs.store.format.listing import changes
from histfs.store.format.names import IncrementName, parse_increment_name
from histfs.store.format.stats import parse_session_statistics
from histfs.store.layout import DATA, INCREMENTS, STATISTICS_DO_NOT_HOLD
from histfs.store.plan import what_changed
from histfs.store.repository import Repository
from histfs.store.tree import NotRegularError

_LARGEST_STATISTICS = 1 << 20
_LATER_THAN_ALL = 1 << 62

_Found = tuple[bytes, bytes, IncrementName]  # directory and name on disk, and what the name says


class Increment(NamedTuple):
    """One increment of a path: the session whose state it keeps, what the path was then, and its name on disk."""

    time: int
    kind: str  # directory, regular, special or missing
    name: bytes


class PathChange(NamedTuple):
    """What a session found changed of one path: words, and the path since then (None: it was deleted)."""

    time: int
    what: tuple[str, ...]
    entry: Entry | None
    last: int  # the newest session for which it holds


def changes_since(
    repository: Repository, path: bytes, session_time: int, report: Callable[[DamagedError], None]
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """What is otherwise in the newest session, at and below `path`: pairs of what was and what is, None for nothing.

    Damaged records are told to `report` and left out. Raises NotFoundError if `path` is in none of both.
    """
    is_there = False

    def entries(time: int) -> Iterator[Entry]:
        nonlocal is_there
        for entry in repository.snapshot(time).entries(path, report):
            is_there = True
            yield entry

    for old, new in changes(entries(session_time), entries(repository.sessions()[-1])):
        if old is None or new is None or _without_count(old) != _without_count(new):
            yield old, new
    if not is_there:
        raise NotFoundError("was there neither at this time nor in the newest session", path=path, at=session_time)


def _without_count(entry: Entry) -> Entry:
    """A link more or less, somewhere else, is no change of this one."""
    group = entry.link_group
    return entry if group is None else entry._replace(link_group=group._replace(nlink=2))


def history_of(path: bytes, catalog: Catalog) -> list[PathChange]:
    """Everything that ever happened to `path`, the oldest first; empty if it never was.

    Of sessions that cannot be read nothing is told: see `unreadable_sessions`.
    """
    sessions = catalog.readable_sessions
    found: list[PathChange] = []
    before: Entry | None = None
    extras: int | None = None
    for version in catalog.versions_of(path):
        entry, last = catalog.entry(version), catalog.time_of(version)
        if found and (gap := _following(sessions, found[-1].last)) != version.first:
            found.append(PathChange(gap, ("deleted",), None, sessions[sessions.index(version.first) - 1]))
            before = None
        what: tuple[str, ...] = ("new",)
        if before is not None:
            what = what_changed(before, entry, extras_differ=version.extras != extras)
        found.append(PathChange(version.first, what, entry, last))
        before, extras = entry, version.extras
    if found and found[-1].last != sessions[-1]:
        found.append(PathChange(_following(sessions, found[-1].last), ("deleted",), None, sessions[-1]))
    return found


def nearest_time(repository: Repository, path: bytes, session_time: int) -> tuple[bool, int | None]:
    """Whether it can be told at once when `path` was there; and the last time before a session that has nothing of it.

    The first one after it, if there is none before; None if it was never there.
    """
    with contextlib.suppress(HistfsError):
        catalog = open_current(repository)
        if catalog is None:
            return False, None
        with catalog:
            if catalog.readable_sessions != catalog.sessions:
                return False, None
            found = catalog.versions_of(path)
            before = [time for version in found if (time := catalog.time_of(version)) < session_time]
            after = [version.first for version in found if version.first > session_time]
            return True, max(before, default=None) or min(after, default=None)
    return False, None


def unreadable_sessions(catalog: Catalog) -> list[DamagedError]:
    """What is wrong with the lists that cost sessions, and which those are."""
    readable = set(catalog.readable_sessions)
    lost: list[tuple[DamagedError, list[int]]] = []
    for session_time in sorted(set(catalog.sessions) - readable, reverse=True):
        try:
            catalog.root(session_time)
        except DamagedError as error:
            if lost and error.path in (None, lost[-1][0].path):  # it needs the list of a newer one
                lost[-1][1].append(session_time)
            else:
                lost.append((error, [session_time]))
    for problem, times in lost:
        problem.at = None
        problem.advice = f"versions of {_sessions(times[::-1])} are missing here"
    return [problem for problem, _ in lost]


def _sessions(times: list[int]) -> str:
    if len(times) == 1:
        return f"the session of {printable_time(times[0])}"
    return f"{len(times)} sessions, of {printable_time(times[0])} to {printable_time(times[-1])},"


def _following(sessions: Sequence[int], time: int) -> int:
    return sessions[bisect_right(sessions, time)]


def increments_of_root(repository: Repository) -> list[Increment]:
    """The increments of the root, the oldest first: one for each session after which something changed."""
    names = (path.rpartition(b"/")[2] for path in repository.state().root_increments.values())
    with storage_errors():
        return _described(repository, _parsed(repository, DATA, names))


def increments_of(repository: Repository, path: bytes, catalog: Catalog) -> list[Increment]:
    """The increments of one path below the root, the oldest first. Raises StorageError."""
    with storage_errors():
        return _described(repository, _own(repository, path, catalog))


def increment_sizes(repository: Repository) -> dict[int, int]:
    """The bytes of all increments by their session's time, ascending. Raises StorageError."""
    with storage_errors():
        sizes = _sizes_by_statistics(repository)
        if sizes is None:
            sizes = dict.fromkeys(repository.state().root_increments, 0)
            _measure(
                repository,
                chain(_below(repository, INCREMENTS), _below(repository, repository.layout.long_names)),
                sizes,
            )
    return dict(sorted(sizes.items()))


def increment_sizes_below(repository: Repository, path: bytes, catalog: Catalog) -> dict[int, int]:
    """Those of the increments at and below a path that is not the root. Raises StorageError."""
    sizes: dict[int, int] = {}
    numbers = {b"%d" % number for number in catalog.long_names_below(path)}
    with storage_errors():
        _measure(repository, _own(repository, path, catalog), sizes)
        _measure(repository, _below(repository, join(INCREMENTS, repository.layout.quoted(path))), sizes)
        if numbers:
            numbered = (found for found in _below(repository, repository.layout.long_names) if found[2].base in numbers)
            _measure(repository, numbered, sizes)
    return dict(sorted(sizes.items()))


def _sizes_by_statistics(repository: Repository) -> dict[int, int] | None:
    """Those of all increments; None where statistics are missing or do not hold."""
    state = repository.state()
    last_wrong = _last_that_does_not_hold(repository)
    if any(time <= last_wrong for time in state.sessions[1:]):
        return None
    sizes = {time: 0 for time in state.root_increments if time in state.sessions}
    paths = {
        parsed.time: join(directory, name)
        for directory, name, parsed in _parsed(repository, DATA, repository.tree.names(DATA), data=True)
        if parsed.base == b"session_statistics"
    }
    for before, time in pairwise(state.sessions):
        path = paths.get(time)
        if path is None:
            return None
        try:
            text = repository.tree.read_small_file(path, limit=_LARGEST_STATISTICS)
            written = parse_session_statistics(text).increment_file_bytes
        except (FileNotFoundError, NotRegularError, FormatError):
            return None
        if written or before in sizes:
            sizes[before] = written
    return sizes


def _last_that_does_not_hold(repository: Repository) -> int:
    """The newest session whose statistics count what was removed afterwards."""
    try:
        text = repository.tree.read_small_file(STATISTICS_DO_NOT_HOLD, limit=100).strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else _LATER_THAN_ALL


def _measure(repository: Repository, files: Iterable[_Found], sizes: dict[int, int]) -> None:
    """Add the sizes of `files` to `sizes`."""
    for directory, name, parsed in files:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = repository.tree.stat(join(directory, name))
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            sizes[parsed.time] = sizes.get(parsed.time, 0) + size


def _own(repository: Repository, path: bytes, catalog: Catalog) -> Iterator[_Found]:
    """The increments of one path: at the usual place, and under each number that its long name ever had."""
    layout = repository.layout
    places = {layout.increments_of(Entry(path, Kind.ABSENT))}
    for version in catalog.versions_of(path):
        places.add(layout.increments_of(catalog.entry(version)))
    for directory, base in sorted(places):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = repository.tree.names_of_files(directory)
            yield from (found for found in _parsed(repository, directory, names) if found[2].base == base)


def _below(repository: Repository, place: bytes) -> Iterator[_Found]:
    for directory, name in repository.tree.files_below(place):
        yield from _parsed(repository, directory, [name])


def _parsed(
    repository: Repository, directory: bytes, names: Iterable[bytes], *, data: bool = False
) -> Iterator[_Found]:
    for name in names:
        parsed = parse_increment_name(repository.layout.quoting.unquote(name))
        if parsed is not None and (parsed.type == b"data") is data:
            yield directory, name, parsed


def _described(repository: Repository, files: Iterable[_Found]) -> list[Increment]:
    return sorted(
        Increment(parsed.time, _kind(repository, join(directory, name), parsed), name)
        for directory, name, parsed in files
    )


def _kind(repository: Repository, path: bytes, parsed: IncrementName) -> str:
    if parsed.type in (b"dir", b"missing"):
        return "directory" if parsed.type == b"dir" else "missing"
    return "regular" if stat.S_ISREG(repository.tree.stat(path).st_mode) else "special"
