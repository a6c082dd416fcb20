"""Whole lists of entries: putting the list of a session together, and taking two lists apart (docs/format.md 5).

Streams in, streams out. Every list is strictly ascending by `sort_key` of the path, as `metadata.read_entries`
guarantees, so one entry of look-ahead per list is all that is held. Whether the parent of a path is there and is
a directory is not looked at here.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from histfs.errors import DamagedError
from histfs.store.entry import Entry, Kind, sort_key

MAX_DIFFS = 8  # consecutive diffs that a writer leaves between two snapshots (docs/format.md 5.2)


def lists_needed(session_time: int, types: Mapping[int, bytes], sessions: Iterable[int] = ()) -> list[int]:
    """The times of the metadata files that give the list at `session_time`, in the order that `merge` wants.

    `types` has the type (b"snapshot" or b"diff") of each metadata file by its time; of two files of one time give the
    snapshot (docs/format.md 5.4). `sessions` are the times known from elsewhere: one of them without a metadata
    file is a gap, behind which the list would be wrong without notice. Raises DamagedError.
    """
    if session_time not in types:
        raise DamagedError("the metadata of this session is missing", at=session_time)
    needed = []
    for time in sorted({*types, *sessions}):
        if time < session_time:
            continue
        if time not in types:
            raise DamagedError("the metadata of a later session is missing", at=time)
        needed.append(time)
        if types[time] == b"snapshot":
            return needed
    raise DamagedError("no later metadata is complete, there are differences only", at=session_time)


def merge(listings: Sequence[Iterable[Entry]]) -> Iterator[Entry]:
    """The list at the wanted time (docs/format.md 5.3).

    `listings[0]` is the file of that time, the others follow with rising time, the last one is a full snapshot. For
    each path the entry of the first list that has it counts; what is ABSENT there is left out.
    """
    last: bytes | None = None
    for entry in heapq.merge(*listings, key=_entry_key):  # of equals the one of the first list comes first
        if entry.path != last:
            last = entry.path
            if entry.kind is not Kind.ABSENT:
                yield entry


def changes(older: Iterable[Entry], newer: Iterable[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Each path of which two full lists say different things, as (what `older` has, what `newer` has)."""
    rest = iter(newer)
    ahead = next(rest, None)
    for entry in older:
        key = _entry_key(entry)
        while ahead is not None and _entry_key(ahead) < key:
            yield None, ahead
            ahead = next(rest, None)
        if ahead is None or ahead.path != entry.path:
            yield entry, None
            continue
        if ahead != entry:
            yield entry, ahead
        ahead = next(rest, None)
    while ahead is not None:
        yield None, ahead
        ahead = next(rest, None)


def difference(older: Iterable[Entry], newer: Iterable[Entry]) -> Iterator[Entry]:
    """What leads from the full list `newer` back to the full list `older` (docs/format.md 5.1).

    Entries of `older` that `newer` has not or has otherwise, and ABSENT for paths of `newer` only:
    merge([difference(older, newer), newer]) is `older`.
    """
    for old, new in changes(older, newer):
        if old is not None:
            yield old
        elif new is not None:
            yield Entry(new.path, Kind.ABSENT)


def previous_stays_snapshot(older_types: Iterable[bytes]) -> bool:
    """The chain rule at the end of a session: whether the list of the previous session stays a snapshot.

    If not, a diff replaces it. `older_types` are the types of the metadata files before the previous session's,
    newest first (docs/format.md 5.2).
    """
    diffs = sum(1 for _ in takewhile(lambda file_type: file_type == b"diff", older_types))
    return diffs >= MAX_DIFFS


def _entry_key(entry: Entry) -> bytes:
    return sort_key(entry.path)
