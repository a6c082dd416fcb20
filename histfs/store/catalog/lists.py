"""The lists of a repository's sessions as records for the catalog, and what tells whether they are still the same."""

import heapq
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError, HistfsError, storage_errors
from histfs.store.catalog.schema import Identity
from histfs.store.entry import ALL_EXTRAS, Acl, Xattrs, join, sort_key
from histfs.store.extras import SessionExtras
from histfs.store.format.attributes import (
    AccessControlList,
    ExtendedAttributes,
    format_access_control_list,
    format_extended_attributes,
)
from histfs.store.format.columns import SAME_RECORD, Record, absent_record, key_of, number_of, read_records, with_extras
from histfs.store.format.metadata import quote_path, with_lost
from histfs.store.layout import State
from histfs.store.repository import Repository
from histfs.store.snapshot import list_advice, list_blocks
from histfs.store.tree import NotRegularError

log = logging.getLogger(__name__)

_TRAILER_BYTES = 8  # of gzip: the checksum and the length of what is in it
_MOST_WARNINGS = 100


class ListsChangedError(HistfsError):
    """A session came or went while the lists were read."""


class Came(NamedTuple):
    """What the session at `newer` has found different since `older`: texts of records, in metadata order.

    As it has written them, so that its lists need not be read. What was there and is not is in `were` alone.
    """

    older: int
    newer: int
    were: bytes
    are: bytes


class ExtrasDamagedError(DamagedError):
    """What a session's extras are cannot be said as a difference."""


class Lists:
    """The lists that `state` names, with the extras of each record. Damaged records are logged and left out.

    Extras are known by a number, which stands for them; what they are is in `take_extras` soon after. `came`: what the
    last session says by itself.
    """

    def __init__(self, repository: Repository, state: State, came: Came | None = None) -> None:
        self._repository = repository
        self._state = state
        self._came = came
        self._warnings = 0
        self._extras: dict[int, tuple[bytes, bytes | None]] = {}
        self.extras_bytes = 0  # of what can be taken

    @property
    def sessions(self) -> tuple[int, ...]:
        return self._state.sessions

    def check_unchanged(self) -> None:
        """Raises ListsChangedError."""
        if self._repository.state() != self._state:
            raise ListsChangedError("was written to while it was read", advice="try again in a moment")

    def is_full(self, session_time: int) -> bool:
        """Whether the session has a full list, not a diff; of both the full one counts (docs/format.md 5.4)."""
        files = self._state.metadata.get(session_time)
        return files is not None and files.snapshot is not None

    def is_complete(self, session_time: int) -> bool:
        """Whether all lists that the session needs are there."""
        try:
            self._state.listing_files(session_time)
        except DamagedError:
            return False
        return True

    def whole(self, session_time: int) -> Iterator[Record]:
        """The tree at a session, put together from as many lists as it needs; absent records mean nothing in it.

        Raises DamagedError, StorageError.
        """
        yield from self._with_extras(self._whole(session_time), session_time)

    def _whole(self, session_time: int) -> Iterator[Record]:
        with ExitStack() as stack:
            paths = self._state.listing_files(session_time)
            lists = [self._read(path, session_time, stack, is_difference=path != paths[-1]) for path in paths]
            if len(lists) == 1:
                yield from lists[0]
                return
            last: bytes | None = None
            for record in heapq.merge(*lists, key=key_of):  # of equals the one of the first list comes first
                key = key_of(record)
                if key != last:
                    last = key
                    yield record

    def own(self, session_time: int) -> Iterator[Record]:
        """The records of the session's own list only: for a diff, what is different at the next session.

        Where extras alone are different it says so by SAME_RECORD. Raises ExtrasDamagedError where damage hides that.
        """
        with ExitStack() as stack:
            is_full = self.is_full(session_time)
            path = self._state.listing_files(session_time)[0]
            records = self._read(path, session_time, stack, is_difference=not is_full)
            if is_full:
                yield from self._with_extras(records, session_time)
            else:
                yield from self._difference(records, session_time)

    def some(self, session_time: int, wanted: Iterable[tuple[bytes, bytes]]) -> Iterator[Record]:
        """The records of a session's full list for the paths `wanted`, given as parent and name, in its order."""
        texts = {quote_path(join(parent, name)) for parent, name in wanted}
        if not texts:  # after most sessions, and the list is long
            return
        with ExitStack() as stack:
            records = self._read(self._state.listing_files(session_time)[0], session_time, stack, texts)
            yield from self._with_extras(records, session_time)

    def came_between(self, older: int, newer: int) -> tuple[Iterator[Record], Iterator[Record]] | None:
        """What is different at `newer`: the records of before, and those of now. None where nobody says it."""
        came = self._came
        if came is None or (came.older, came.newer) != (older, newer):
            return None
        return self._texts(came.were, older), self._texts(came.are, newer)

    def _texts(self, text: bytes, session_time: int) -> Iterator[Record]:
        return self._with_extras(read_records([text], self._warn), session_time)

    # Extended attributes and access control lists

    def take_extras(self) -> list[tuple[int, bytes, bytes | None]]:
        """What the numbers of extras stand for that were given since the last time."""
        taken = [(number, *texts) for number, texts in self._extras.items()]
        self._extras.clear()
        self.extras_bytes = 0
        return taken

    def _with_extras(self, records: Iterator[Record], session_time: int) -> Iterator[Record]:
        with self._open_extras(session_time, self._warn) as extras:
            for record in records:
                if extras.is_empty:
                    yield record
                    break
                yield self._dressed(record, extras)
            yield from records

    def _difference(self, records: Iterator[Record], session_time: int) -> Iterator[Record]:
        """Those of the records of a difference, and those of paths that have other extras at the next session."""
        following = next(time for time in self.sessions if time > session_time)
        with self._open_extras(session_time, _refuse) as now, self._open_extras(following, _refuse) as later:
            if now.is_empty and later.is_empty:
                yield from records
                return
            with self._open_extras(session_time, _refuse) as extras:
                last: bytes | None = None
                for record in heapq.merge(records, self._changes(now, later), key=key_of):
                    key = key_of(record)
                    if record[2] == SAME_RECORD and key == last:
                        continue  # of equals that of the list comes first
                    last = key
                    yield record if record[2] == SAME_RECORD else self._dressed(record, extras)

    def _changes(self, now: SessionExtras, later: SessionExtras) -> Iterator[Record]:
        walks = ((item, 0) for item in now.walk()), ((item, 1) for item in later.walk())
        merged = heapq.merge(*walks, key=lambda found: sort_key(found[0][0]))
        for path, group in itertools.groupby(merged, key=lambda found: found[0][0]):
            found = {which: self._number_of(xattrs, acl) for (_, xattrs, acl), which in group}
            if found.get(0) != found.get(1):
                parent, _, name = path.rpartition(b"/")
                yield parent, name, SAME_RECORD, (found.get(0),)

    def _dressed(self, record: Record, extras: SessionExtras) -> Record:
        parent, name, number, _ = record
        if number is None:
            return record
        xattrs, acl = extras.of(join(parent, name))
        extras_number = self._number_of(xattrs, acl)
        if extras_number is None:
            return record
        return with_extras(record, extras_number, is_safe=acl is not None)

    def _number_of(self, xattrs: Xattrs, acl: Acl | None) -> int | None:
        """The number that stands for these; None if there are none."""
        if not xattrs and acl == ():
            return None
        xattrs_text = format_extended_attributes(ExtendedAttributes(b"", dict(xattrs))) if xattrs else b""
        acl_text = None if acl is None else format_access_control_list(AccessControlList(b"", acl)) if acl else b""
        number = number_of(b"%b\0%b" % (xattrs_text, b"\0" if acl_text is None else acl_text))
        if number not in self._extras:
            self._extras[number] = xattrs_text, acl_text
            self.extras_bytes += len(xattrs_text) + len(acl_text or b"")
        return number

    def _open_extras(self, session_time: int, report: Callable[[DamagedError], None]) -> SessionExtras:
        return SessionExtras(self._repository.tree, self._state, session_time, ALL_EXTRAS, report)

    # What tells lists from others

    def identity(self) -> Identity:
        """Raises StorageError."""
        with storage_errors():
            sizes = {time: self._size(time) for time in self.sessions}
            return Identity(sizes, self.newest_list())

    def _size(self, session_time: int) -> int | None:
        """Of its list, with what belongs to it; None if there is no list."""
        files = self._state.metadata.get(session_time)
        if files is None:
            return None
        try:
            size = self._repository.tree.stat(files.snapshot or files.diff or b"").st_size
            others = (self._state.xattrs.get(session_time), self._state.acls.get(session_time))
            return size + sum(self._repository.tree.stat(path).st_size for path in others if path is not None)
        except FileNotFoundError:
            return None

    def newest_list(self) -> bytes:
        """What tells the newest list, with its extras, from any other. StorageError."""
        newest = self.sessions[-1]
        files = self._state.metadata.get(newest)
        paths = (files and (files.snapshot or files.diff), self._state.xattrs.get(newest), self._state.acls.get(newest))
        with storage_errors():
            return b" ".join(self._stamp(path) for path in paths if path is not None)

    def _stamp(self, path: bytes) -> bytes:
        """What tells a file from any other of its name: its size and, as it is gzip, its checksum."""
        try:
            fd = self._repository.tree.open_file(path)
        except (FileNotFoundError, NotRegularError):
            return b""
        try:
            size = os.fstat(fd).st_size
            end = os.pread(fd, _TRAILER_BYTES, max(0, size - _TRAILER_BYTES))
            return b"%d %b" % (size, end.hex().encode())
        finally:
            os.close(fd)

    def _read(
        self,
        path: bytes,
        session_time: int,
        stack: ExitStack,
        wanted: set[bytes] | None = None,
        *,
        is_difference: bool = False,
    ) -> Iterator[Record]:
        with storage_errors(at=session_time):
            try:
                fd = self._repository.tree.open_file(path)
            except FileNotFoundError as exc:
                raise DamagedError("is missing", path=path, at=session_time) from exc
            except NotRegularError as exc:
                raise DamagedError("is not a regular file", path=path, at=session_time) from exc
        stack.callback(os.close, fd)
        return self._records(path, session_time, fd, wanted, is_difference=is_difference)

    def _records(
        self, path: bytes, session_time: int, fd: int, wanted: set[bytes] | None, *, is_difference: bool
    ) -> Iterator[Record]:
        errors: list[FormatError] = []

        def damaged(error: FormatError) -> None:
            if is_difference:
                errors.append(error)
            self._warn(DamagedError(f"a record is damaged: {error.problem}", path=error.path or path, at=session_time))

        try:
            with storage_errors(at=session_time):
                records = read_records(list_blocks(path, fd), damaged, wanted)
                yield from with_lost(records, errors, key_of, absent_record) if is_difference else records
        except DamagedError as exc:
            if exc.path is None:
                exc.path, exc.at = path, session_time
                exc.advice = list_advice(self._repository.path, self._state, path)
            raise

    def _warn(self, error: DamagedError) -> None:
        """Raises ListsChangedError if it may be no damage, as a session went meanwhile."""
        self.check_unchanged()
        self._warnings += 1
        if self._warnings <= _MOST_WARNINGS:
            log.warning("%s", error)
        elif self._warnings == _MOST_WARNINGS + 1:
            log.warning("more records of the lists are damaged")


def _refuse(error: DamagedError) -> None:
    raise ExtrasDamagedError(error.problem, path=error.path, at=error.at)
