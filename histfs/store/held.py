"""What the mirror holds for a record, and with which attributes; it may be less, where somebody was there."""

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError
from histfs.store.entry import Entry, Extras, Kind
from histfs.store.files import Attributes, WritableTree
from histfs.store.increments import mtime_ns
from histfs.store.layout import Layout
from histfs.store.owners import Owners
from histfs.store.special import mirror_mode

_MOST_KNOWN_OWNERS = 1000


class Directory(NamedTuple):
    """A directory on the way to the current path."""

    path: bytes
    old: Entry | None
    new: Entry | None
    status: os.stat_result | None  # of the source; None: the attributes in the mirror stay those of the record
    replacement: bytes | None  # the temporary file that takes the directory's place in the end
    goes_last: bool = False  # it does not exist any more, and what was in it may be found elsewhere

    @property
    def is_there(self) -> bool:
        """Whether the session leaves a directory here."""
        return self.new is not None and self.new.kind is Kind.DIRECTORY


def intact_file(
    tree: WritableTree, layout: Layout, old: Entry | None, report: Callable[[HistfsError], None]
) -> os.stat_result | None:
    """The status of the mirror's file for the record `old`; None if it is not there as recorded (reported)."""
    if old is None or old.kind is not Kind.REGULAR:
        return None
    try:
        status = tree.stat(layout.mirror_path(old))
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if status is not None and stat.S_ISREG(status.st_mode) and status.st_size == old.size_bytes:
        return status
    report(
        DamagedError(
            "is missing or damaged in the mirror: its last version is lost, unless the source still has it",
            path=old.path,
            advice="`histfs verify` tells which older versions are",
        )
    )
    return None


def open_up(tree: WritableTree, path: bytes) -> bool:
    """Make sure that we may write in the mirror's directory `path`; False if there is none."""
    try:
        status = tree.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    tree.open_up(path, status)
    return True


class MirrorAttributes:
    """What files of the mirror get, of which the `extras` are recorded."""

    def __init__(self, extras: Extras, owners: Owners) -> None:
        self._extras = extras
        self._owners = owners
        self._known_owners: dict[tuple[int, bytes | None, int, bytes | None], tuple[int, int]] = {}
        self._is_root = os.geteuid() == 0

    def of(self, entry: Entry, status: os.stat_result | None) -> Attributes:
        """`status`: of the source, for the fraction of a second."""
        mtime = mtime_ns(entry, status) if entry.kind.has_mtime else None
        attributes = Attributes(mirror_mode(entry, is_root=self._is_root), *self._owner(entry), mtime)
        return attributes.with_extras(entry, self._extras, self._owners)

    def _owner(self, entry: Entry) -> tuple[int, int]:
        """The numbers of the owner here; few different ones are in a tree."""
        there = entry.uid, entry.uname, entry.gid, entry.gname
        found = self._known_owners.get(there)
        if found is None:
            if len(self._known_owners) >= _MOST_KNOWN_OWNERS:
                self._known_owners.clear()
            found = self._known_owners[there] = self._owners.of(entry)
        return found
