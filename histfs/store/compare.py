"""The operation `compare`: how a directory differs from what a session recorded, in rdiff-backup's words.

Both are walked once, in the order of the lists, and so are the extended attributes and access control lists that the
session recorded. What a selection excludes on one side, by its size there for instance, is compared on neither. By
`META` a file with recorded size and time has recorded content; `HASH` reads it and compares its SHA1 with the recorded
one; `FULL` reads the repository's content too, and needs none.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from histfs.errors import (
    EXIT_FILE_WARNING,
    DamagedError,
    HistfsError,
    NotFoundError,
    SourceError,
    StorageError,
    storage_errors,
)
from histfs.store import plan
from histfs.store.accounts import numbered
from histfs.store.entry import ALL_EXTRAS, Entry, Extras, Kind, LinkDigests, Xattrs, is_below, join
from histfs.store.extras import SessionExtras, recorded_extras
from histfs.store.recorded import Recorded
from histfs.store.repository import Repository
from histfs.store.selection import Outcome, Selection, Subject, selected
from histfs.store.snapshot import Snapshot
from histfs.store.source import Found, Source
from histfs.store.sweep import pairs
from histfs.store.unreadable import Unreadable

_OF_ROOT = b"trusted."


class Method(Enum):
    """How contents are compared."""

    META = "meta"
    HASH = "hash"
    FULL = "full"


class Difference(NamedTuple):
    """A path (relative to the directory) that is not what was recorded: new, deleted, changed, or in which way."""

    path: bytes
    reason: str


class CompareOutcome(NamedTuple):
    """`compared`: paths that are in the directory or were recorded; `errors`: those that could not be compared."""

    compared: int
    errors: int


def compare(
    source: Path,
    repository: Repository,
    path: bytes,
    session_time: int,
    *,
    method: Method,
    report: Callable[[HistfsError], None],
    tell: Callable[[Difference], None],
    selection: Selection | None = None,
    extras: Extras = ALL_EXTRAS,
) -> CompareOutcome:
    """Compare the directory `source` with what was at `path` at the session of `session_time`, if it is selected.

    Those `extras` are compared that the session has recorded at all. Each difference goes to `tell`, in the order of
    the lists; what cannot be compared to `report`. Raises NotFoundError, UsageError, StorageError, and DamagedError if
    the list of files cannot be read to its end.
    """
    snapshot = repository.snapshot(session_time)
    with storage_errors(at=session_time):
        extras = recorded_extras(repository.state(), session_time, extras)
    # Where lists are not compared, the mode is perhaps recorded as it is right without one.
    with (
        Source.open(source, selection, extras, is_to_be_copied=not extras.acls) as opened,
        storage_errors(at=session_time),
        closing(snapshot),
    ):
        return _Comparison(opened, snapshot, path, method, selection, report, tell).run()


class _Comparison:
    def __init__(
        self,
        source: Source,
        snapshot: Snapshot,
        path: bytes,
        method: Method,
        selection: Selection | None,
        report: Callable[[HistfsError], None],
        tell: Callable[[Difference], None],
    ) -> None:
        self._source = source
        self._snapshot = snapshot
        self._path = path
        self._method = method
        self._selection = selection
        self._report = report
        self._tell = tell
        self._errors = 0
        self._recorded_paths = Recorded(snapshot, path)
        self._digests = LinkDigests()

    def run(self) -> CompareOutcome:
        with self._snapshot.extras(self._source.extras, self._failed) as extras:
            return self._run(extras)

    def _run(self, extras: SessionExtras) -> CompareOutcome:
        compared = 0
        unreadable: bytes | None = None  # what lies at and below this path in the source is not known
        for entry, found in pairs(self._selected(extras), self._source.walk(self._is_repository)):
            compared += 1
            if isinstance(found, Unreadable):
                unreadable = found.path
                self._failed(found.error)
            elif found is None:
                assert entry is not None
                is_known = unreadable is None or not is_below(entry.path, unreadable)
                if is_known and not self._is_excluded(entry.path, self._in_source):
                    self._tell(Difference(entry.path, "deleted"))
            elif entry is None:
                if not self._is_excluded(found.path, self._in_snapshot):
                    self._tell(Difference(found.path, "new"))
            else:
                self._compare(entry, found)
        return CompareOutcome(compared, self._errors)

    def _is_repository(self, _path: bytes, status: os.stat_result) -> bool:
        """Whether it is the repository itself, which no backup takes."""
        return os.path.samestat(status, os.fstat(self._snapshot.repository.tree.root_fd))

    def _selected(self, extras: SessionExtras) -> Iterator[Entry]:
        recorded = self._recorded(extras)
        if self._selection is None:
            return recorded
        return selected(recorded, self._selection, self._recorded_paths)

    def _is_excluded(self, path: bytes, look: Callable[[bytes], Subject | None]) -> bool:
        """Whether `path`, which one side did not yield, is there, or would be below something that is excluded."""
        if self._selection is None:
            return False
        place = self._selection.root
        for name in path.split(b"/"):
            place = self._selection.enter(place, name)
            subject = look(place.path)
            if subject is None:
                return False
            if self._selection.verdict(place, subject).outcome is Outcome.EXCLUDED:
                return True
        return True

    def _in_source(self, path: bytes) -> Subject | None:
        found = self._source.look(path)
        return None if isinstance(found, Unreadable) else self._source.subject(found)

    def _in_snapshot(self, path: bytes) -> Subject | None:
        entry = self._recorded_paths.entry(path)
        if entry is None:
            return None
        is_directory = entry.kind is Kind.DIRECTORY
        return Subject(is_directory, entry.kind, entry.size_bytes, surroundings=self._recorded_paths)

    def _recorded(self, extras: SessionExtras) -> Iterator[Entry]:
        """What was recorded at and below the path, as if that were the root."""
        is_there = False
        for entry in self._snapshot.entries(on_damage=self._failed):
            self._digests.remember(entry)
            if is_below(entry.path, self._path):
                is_there = True
                entry = extras.added_to(entry)
                yield entry._replace(path=entry.path[len(self._path) :].removeprefix(b"/"))
        if not is_there:
            raise NotFoundError("was not there at this time", path=self._path, at=self._snapshot.time)

    def _failed(self, error: HistfsError) -> None:
        self._errors += 1
        if isinstance(error, SourceError):
            error.advice = ""  # which is about a backup
        self._report(error)

    def _compare(self, entry: Entry, found: Found) -> None:
        is_same = self._has_recorded_attributes(entry, found)
        if self._method is Method.META or entry.kind is not Kind.REGULAR or found.entry.kind is not Kind.REGULAR:
            if not is_same:
                self._tell(Difference(entry.path, "changed"))
            return
        try:
            is_same_content = self._has_recorded_content(entry, found)
        except (SourceError, DamagedError, StorageError) as error:
            self._failed(error)
            is_same_content = False  # as far as anybody knows
        if not (is_same and is_same_content):
            words = ("the same" if same else "changed" for same in (is_same, is_same_content))
            self._tell(Difference(entry.path, "metadata {}, data {}".format(*words)))

    def _has_recorded_attributes(self, entry: Entry, found: Found) -> bool:
        there = found.entry
        if found.trouble is not None:
            self._failed(found.trouble)
            entry, there = entry.record, there.record
        if os.geteuid():
            entry = entry._replace(xattrs=_seen_by_all(entry.xattrs))
        if entry.acl is None:  # it was damaged, and that has been reported
            entry, there = entry._replace(acl=()), there._replace(acl=())
        elif entry.acl or there.acl:
            entry, there = (each._replace(acl=numbered(each.acl or (), each.mode)) for each in (entry, there))
        if plan.has_recorded_attributes(entry, there):
            return True
        mode = stat.S_IMODE(found.status.st_mode)
        return not self._source.extras.acls and plan.has_recorded_attributes(entry, there._replace(mode=mode))

    def _has_recorded_content(self, entry: Entry, found: Found) -> bool:
        """Raises SourceError, DamagedError, StorageError."""
        if entry.size_bytes != found.entry.size_bytes:
            return False
        sha1 = self._digests.of(entry)
        if self._method is Method.HASH and sha1 is None:
            error = DamagedError("has no recorded digest: only --method full can compare it", path=entry.path)
            error.exit_code = EXIT_FILE_WARNING
            self._failed(error)
            return True
        if self._method is Method.FULL:
            sha1 = self._sha1_of_repository(entry, sha1)
        digest = hashlib.sha1(usedforsecurity=False)
        fd = self._source.open_file(found)
        try:
            for _ in self._told(self._source.read(found, fd, digest)):
                pass
        finally:
            os.close(fd)
        return digest.hexdigest().encode() == sha1

    def _told(self, blocks: Iterator[bytes | bytearray]) -> Iterator[bytes | bytearray]:
        return self._snapshot.repository.told(blocks, parts=2 if self._method is Method.FULL else 1)

    def _sha1_of_repository(self, entry: Entry, sha1: bytes | None) -> bytes:
        """The hex digest of what the repository holds, which is checked against its own record."""
        digest = hashlib.sha1(usedforsecurity=False)
        with self._snapshot.open(entry._replace(path=join(self._path, entry.path)), sha1) as content:
            for block in self._told(content.blocks()):
                digest.update(block)
        return digest.hexdigest().encode()


def _seen_by_all(xattrs: Xattrs) -> Xattrs:
    """Those that not root alone can read."""
    return tuple(item for item in xattrs if not item[0].startswith(_OF_ROOT))
