"""Pure decisions: how an old version is found, what a session does with a path, what an increment is.

Decide first, as a value; do it afterwards. Everything here is a function of values, tested without a disk.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from histfs.store.entry import Entry, Kind, LinkGroup


class Increment(NamedTuple):
    """One increment of one path, as its name tells: it leads back to the state at `time` (docs/format.md 6.1)."""

    time: int
    type: bytes
    path: bytes  # on disk, relative to the repository
    is_compressed: bool = False  # as its name says


class Chain(NamedTuple):
    """How the content of a path at a session is made (docs/format.md 6.4).

    Start from `snapshot`, or from the mirror if that is None, and apply `diffs` in this order (newest first).
    """

    snapshot: Increment | None
    diffs: tuple[Increment, ...]

    @property
    def newest_time(self) -> int | None:
        """The time of the increment that is used first; None if the mirror is the version itself."""
        if self.snapshot is not None:
            return self.snapshot.time
        return self.diffs[0].time if self.diffs else None


def chain(increments: Sequence[Increment], session_time: int) -> Chain | Increment:
    """The chain for a regular file at `session_time`; or the increment that cannot be there.

    `increments` are those of the path, oldest first, without directories. Walk from the wanted time towards the
    present and collect diffs until something else comes: a snapshot, or the end, which is the mirror. A `missing`
    or `dir` there means that the content is lost. Of several with one time, which a damaged repository may have
    (docs/format.md, trap 19), one is a step: rather one that keeps content.
    """
    diffs: list[Increment] = []
    last: int | None = None
    for increment in sorted(increments, key=_usefulness):
        if increment.time < session_time or increment.time == last:
            continue
        last = increment.time
        if increment.type == b"snapshot":
            return Chain(increment, tuple(reversed(diffs)))
        if increment.type != b"diff":
            return increment
        diffs.append(increment)
    return Chain(None, tuple(reversed(diffs)))


def _usefulness(increment: Increment) -> tuple[int, int, bytes]:
    return increment.time, {b"snapshot": 0, b"diff": 1}.get(increment.type, 2), increment.path


class Change(Enum):
    """What a session finds when it compares a path with the record of the session before."""

    NONE = auto()
    ATTRIBUTES = auto()  # content and type are the same, for all that can be seen from outside
    CONTENT = auto()  # a regular file whose content has to be looked at
    REPLACED = auto()  # absent before, another type, or another link target or device


class Links(NamedTuple):
    """What hard links mean to a session."""

    are_kept: bool = True  # the records tell which names are one file
    inodes_count: bool = True  # a file with several links that has another inode number has changed

    def have_changed(self, old: LinkGroup | None, new: LinkGroup | None) -> bool:
        if not self.are_kept:
            return False
        if self.inodes_count or old is None or new is None:
            return old != new
        return old.nlink != new.nlink


ALL_LINKS = Links()


def change(old: Entry | None, new: Entry, links: Links = ALL_LINKS) -> Change:
    """The change from the record `old` to the source's `new` (docs/format.md 6.2).

    Sub-second times, which records do not have, are the caller's business.
    """
    if old is None or old.kind is not new.kind:
        return Change.REPLACED
    if new.kind is Kind.REGULAR and (old.size_bytes, old.mtime_s) != (new.size_bytes, new.mtime_s):
        return Change.CONTENT
    if (old.target, old.device_number) != (new.target, new.device_number):
        return Change.REPLACED
    if _attributes(old) != _attributes(new) or links.have_changed(old.link_group, new.link_group):
        return Change.ATTRIBUTES
    return Change.NONE


def _attributes(entry: Entry) -> tuple[object, ...]:
    mode = 0 if entry.kind is Kind.SYMLINK else entry.mode
    owner = entry.uid, entry.gid, entry.uname, entry.gname
    return mode, *owner, entry.mtime_s, entry.xattrs, entry.acl


def has_recorded_attributes(recorded: Entry, found: Entry) -> bool:
    """Whether a name is what a record says, for all that can be seen from outside, but for links to it.

    An owner whose name was not recorded may have any name. Owners of symbolic links are not always recorded anew when
    they change (docs/format.md, trap 8).
    """
    if recorded.kind is not found.kind:
        return False
    if recorded.kind is Kind.SYMLINK:
        return (recorded.target, recorded.xattrs) == (found.target, found.xattrs)
    names = ((recorded.uname, found.uname), (recorded.gname, found.gname))
    return all(name is None or name == here for name, here in names) and _compared(recorded) == _compared(found)


def _compared(entry: Entry) -> tuple[object, ...]:
    extras = entry.xattrs, entry.acl
    return entry.mode, entry.uid, entry.gid, entry.mtime_s, entry.size_bytes, entry.device_number, *extras


def what_changed(old: Entry, new: Entry, *, extras_differ: bool) -> tuple[str, ...]:
    """What two different records of one path differ in, in a person's words.

    `extras_differ`: whether their extended attributes or access control lists do.
    """
    if old.kind is not new.kind:
        return ("type",)
    pairs = {
        "content": ((old.size_bytes, old.sha1), (new.size_bytes, new.sha1)),
        "target": (old.target, new.target),
        "device": (old.device_number, new.device_number),
        "mode": (old.mode, new.mode),
        "owner": ((old.uid, old.gid), (new.uid, new.gid)),
        "time": (old.mtime_s, new.mtime_s),
        "links": (old.link_group, new.link_group),
        "attributes": (False, extras_differ),
    }
    # What is left are names of owners, which may change alone.
    return tuple(word for word, (before, after) in pairs.items() if before != after) or ("owner",)


def increment_type(old: Entry | None, new: Entry | None) -> bytes:
    """The increment that preserves `old` when `new` takes its place (table of docs/format.md 6.2)."""
    if old is None:
        return b"missing"
    if old.kind is Kind.DIRECTORY:
        return b"dir"
    if old.kind is Kind.REGULAR and new is not None and new.kind is Kind.REGULAR:
        return b"diff"
    return b"snapshot"
