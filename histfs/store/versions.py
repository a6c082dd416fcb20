"""All versions of all paths, from all lists in one pass: what is checked, or counted, path by path through all time.

Every list has the order of the paths, so that one merge of all of them brings together what they say of one path. What
a session lists follows from it: of a full list what is there, of a difference what is there, and else what the next
newer session has. So a list is read once, whatever depends on it. Sets of sessions are bits of a number, the newest
session the lowest, as most versions are those of a long run of sessions.

A list that cannot be read to its end costs the sessions that need it, and no others, as everywhere.
"""

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError, storage_errors
from histfs.store.entry import Entry, Kind, is_below, parent_of, sort_key
from histfs.store.layout import State
from histfs.store.snapshot import list_blocks, list_entries
from histfs.store.tree import NotRegularError, Tree

# Lists that are read at the same time: each takes a descriptor, and some hundred KiB.
MOST_LISTS = 200


class Version(NamedTuple):
    """A record, and the sessions that have it, newest first. `sha1`: of its group of hard links, where that has one."""

    entry: Entry
    sha1: bytes | None
    sessions: tuple[int, ...]


class Versions(NamedTuple):
    """Those of one path, the newest first."""

    path: bytes
    of: tuple[Version, ...]


class Readable(NamedTuple):
    """Sessions whose lists can be read, newest first; and what is wrong with the others."""

    sessions: tuple[int, ...]
    damage: tuple[DamagedError, ...]


def readable_sessions(tree: Tree, state: State, sessions: Sequence[int]) -> Readable:
    """Which of `sessions` can be read. Each list that one of them needs is gone through to its end, as sums come last.

    Raises FileNotFoundError where a session has replaced a list meanwhile, PermissionError.
    """
    problems: dict[bytes, str] = {}
    found, damage = [], []
    for session_time in sorted(sessions, reverse=True):
        try:
            needed = state.listing_files(session_time)
        except DamagedError as error:
            error.at = session_time
            damage.append(error)
            continue
        for path in needed:
            if path not in problems:
                problems[path] = list_problem(tree, path, is_full=path == needed[-1])
                if problems[path]:
                    damage.append(DamagedError(problems[path], path=path))
        if any(problems[path] for path in needed):
            damage.append(DamagedError("cannot be read: it needs a list of files that is damaged", at=session_time))
        else:
            found.append(session_time)
    return Readable(tuple(found), tuple(damage))


def list_problem(tree: Tree, path: bytes, *, is_full: bool) -> str:
    """What is wrong with a list as a whole; an empty text if nothing. Raises FileNotFoundError, PermissionError."""
    try:
        fd = tree.open_file(path)
        try:
            is_empty = True
            # Of a difference every record has to tell whose it is.
            entries = list_entries(path, fd, lambda _error: None, is_difference=True)
            for _ in list_blocks(path, fd) if is_full else entries:
                is_empty = False
            if is_empty and is_full:
                return "the list of files is empty"
        finally:
            os.close(fd)
    except (FileNotFoundError, PermissionError):  # nothing is wrong with the list
        raise
    except NotRegularError:
        return "is not a regular file"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    except DamagedError as error:
        return error.problem
    return ""


def windows(sessions: Sequence[int], size: int = MOST_LISTS) -> Iterator[tuple[int, ...]]:
    """Parts of `sessions` that are looked at together, so that not too many lists are open at the same time."""
    for start in range(0, len(sessions), size):
        yield tuple(sessions[start : start + size])


def versions(
    tree: Tree, state: State, sessions: Sequence[int], path: bytes, report: Callable[[DamagedError], None]
) -> Iterator[Versions]:
    """The versions of everything at and below `path` in `sessions`, newest first, in the order of the lists.

    All of them must be readable; records that are damaged, and what lies in no directory, are told to `report` once.
    Raises FileNotFoundError where a session has replaced a list meanwhile, DamagedError, StorageError.
    """
    with ExitStack() as stack:
        timeline = _Timeline(state, sessions)
        streams = []
        for number, list_path in enumerate(timeline.lists):
            fd = tree.open_file(list_path)
            stack.callback(os.close, fd)
            is_full = number in timeline.full
            streams.append(_records(number, list_path, fd, timeline.times[number], report, is_full=is_full))
        digests = _Digests()
        directories = _Directories(report, timeline)
        end = sort_key(path) + b"\1"
        for key, group in groupby(heapq.merge(*streams), key=lambda record: record[0]):
            if path and key >= end:
                return
            runs = timeline.runs({number: entry for _, number, entry in group})
            runs = [(entry, directories.below(entry, mask)) for entry, mask in runs]
            found = tuple(
                Version(entry, sha1, timeline.sessions_of(part))
                for entry, mask in runs
                for sha1, part in digests.of(entry, mask)
            )
            where = key.replace(b"\0", b"/")
            if found and is_below(where, path):
                yield Versions(where, found)


def _records(
    number: int, path: bytes, fd: int, session_time: int, report: Callable[[DamagedError], None], *, is_full: bool
) -> Iterator[tuple[bytes, int, Entry]]:
    """The records of a list; with the key of the path and the number of the list, by which they are merged."""

    def damaged(error: FormatError) -> None:
        report(DamagedError(f"a record is damaged: {error.problem}", path=error.path or path, at=session_time))

    with storage_errors(at=session_time):
        for entry in list_entries(path, fd, damaged, is_difference=not is_full):
            yield sort_key(entry.path), number, entry


class _Timeline:
    """Which lists tell of which sessions, newest first."""

    def __init__(self, state: State, sessions: Sequence[int]) -> None:
        paths: dict[int, bytes] = {}
        for session_time in sessions:
            times = sorted(time for time in state.metadata if time >= session_time)
            paths.update(zip(times, state.listing_files(session_time), strict=False))
        self.times = sorted(paths, reverse=True)
        self.lists = [paths[time] for time in self.times]
        self.full = {number for number, time in enumerate(self.times) if paths[time] == state.metadata[time].snapshot}
        wanted = set(sessions)
        self._wanted = sum(1 << number for number, time in enumerate(self.times) if time in wanted)

    def runs(self, records: dict[int, Entry]) -> list[tuple[Entry, int]]:
        """What the records of one path, by the numbers of their lists, mean: each entry with its sessions."""
        points = sorted(self.full | records.keys())
        runs: list[tuple[Entry, int]] = []
        for point, following in zip(points, [*points[1:], len(self.times)], strict=True):
            entry = records.get(point)  # nothing in a full list: it was not there
            mask = ((1 << following) - (1 << point)) & self._wanted
            if entry is None or entry.kind is Kind.ABSENT or not mask:
                continue
            if runs and runs[-1][0] == entry:
                runs[-1] = entry, runs[-1][1] | mask
            else:
                runs.append((entry, mask))
        return runs

    def sessions_of(self, mask: int) -> tuple[int, ...]:
        return tuple(time for number, time in enumerate(self.times) if mask >> number & 1)


class _Directories:
    """The directories above the current path, with the sessions that have them: no other one has what lies in them."""

    def __init__(self, report: Callable[[DamagedError], None], timeline: _Timeline) -> None:
        self._report = report
        self._timeline = timeline
        self._above: list[tuple[bytes, int]] = []
        self._lost: tuple[bytes, int] | None = None

    def below(self, entry: Entry, mask: int) -> int:
        """Those sessions of `mask` in which the entry lies in a directory. Call in order, the newest version first."""
        path = entry.path
        if not path:
            if entry.kind is not Kind.DIRECTORY:
                return 0  # what lies below tells
            self._above = [(path, mask | (self._above[0][1] if self._above else 0))]
            return mask
        while self._above and self._above[-1][0] != path and not _lies_in(path, self._above[-1][0]):
            self._above.pop()
        parent = next((each for each in reversed(self._above) if each[0] != path), None)
        known = parent[1] if parent is not None and parent[0] == entry.parent else 0
        if lost := mask & ~known:
            self._tell(path, lost)
        mask &= known
        if entry.kind is Kind.DIRECTORY:
            if self._above and self._above[-1][0] == path:
                mask_before = self._above.pop()[1]
                self._above.append((path, mask_before | mask))
            else:
                self._above.append((path, mask))
        return mask

    def _tell(self, path: bytes, lost: int) -> None:
        """Of what lies in a directory that is lost nothing more is told."""
        if self._lost is not None and is_below(path, self._lost[0]) and not lost & ~self._lost[1]:
            return
        top = parent_of(path)
        self._lost = top, lost
        at = self._timeline.sessions_of(lost)[0]
        self._report(DamagedError("is not recorded as a directory, so what lies in it is left out", path=top, at=at))


def _lies_in(path: bytes, directory: bytes) -> bool:
    return is_below(path, directory) and path != directory


class _Digests:
    """The digests of files with several links, of which the first one alone records it; by session."""

    def __init__(self) -> None:
        self._by_file: dict[tuple[int, ...], list[tuple[bytes, int]]] = {}

    def of(self, entry: Entry, mask: int) -> Iterator[tuple[bytes | None, int]]:
        """The digest of an entry, and the sessions of `mask` for which it holds. Call in order."""
        if not mask:
            return
        key = entry.file_key
        if key is None or entry.kind is not Kind.REGULAR:
            yield entry.sha1, mask
            return
        known = self._by_file.setdefault(key, [])
        if entry.sha1 is not None:
            rest = mask
            for _, other in known:
                rest &= ~other
            if rest:
                known.append((entry.sha1, rest))
            yield entry.sha1, mask
            return
        for sha1, other in known:
            if mask & other:
                yield sha1, mask & other
                mask &= ~other
        if mask:
            yield None, mask
