"""Extended attributes and access control lists of one session, which are in files of their own beside the list.

They are joined to the entries by path, as all three files have the same order: nothing is kept in memory. Damage costs
what is damaged. But where an access control list cannot be read nobody knows whom it shut out: `Entry.acl` is None then
for every path that may be meant, so that `Entry.safe_mode` grants nothing to others than the owner.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Generic, Self, TypeVar

from histfs.errors import DamagedError, FormatError, storage_errors
from histfs.store.compression import read_decompressed
from histfs.store.entry import Acl, Entry, Extras, Xattrs, sort_key
from histfs.store.format.attributes import (
    AccessControlList,
    ExtendedAttributes,
    read_access_control_lists,
    read_extended_attributes,
)
from histfs.store.layout import State
from histfs.store.tree import NotRegularError, Tree

_Record = TypeVar("_Record", ExtendedAttributes, AccessControlList)
_Report = Callable[[DamagedError], None]


def recorded_extras(state: State, session_time: int, which: Extras) -> Extras:
    """Those of `which` that the session has recorded at all. Of the others nobody knows what they were."""
    return Extras(xattrs=which.xattrs and session_time in state.xattrs, acls=which.acls and session_time in state.acls)


class SessionExtras:
    """What the session of `session_time` recorded beyond its list. A context manager.

    `which` of it is read, and damage is told to `report`. A session without these files has recorded nothing.
    """

    def __init__(self, tree: Tree, state: State, session_time: int, which: Extras, report: _Report) -> None:
        xattrs = state.xattrs.get(session_time) if which.xattrs else None
        acls = state.acls.get(session_time) if which.acls else None
        with ExitStack() as stack:
            self._xattrs = _Records(tree, xattrs, session_time, read_extended_attributes, report, stack)
            self._acls = _Records(tree, acls, session_time, read_access_control_lists, report, stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def added_to(self, entry: Entry) -> Entry:
        """`entry` with what was recorded for it. Call in the order of the list."""
        if self.is_empty:
            return entry
        xattrs, acl = self.of(entry.path)
        return entry._replace(xattrs=xattrs, acl=acl) if xattrs or acl != () else entry

    def of(self, path: bytes) -> tuple[Xattrs, Acl | None]:
        """The extended attributes and the access control list of `path`. Call in the order of the list."""
        key = sort_key(path)
        attributes, acl = self._xattrs.at(key), self._acls.at(key)
        xattrs = () if attributes is None else tuple(sorted(attributes.values.items()))
        if acl is None:
            return xattrs, None if self._acls.may_have_lost(key) else ()
        return xattrs, acl.entries

    def walk(self) -> Iterator[tuple[bytes, Xattrs, Acl | None]]:
        """All paths that have any, in the order of the list."""
        while True:
            keys = [records.key for records in (self._xattrs, self._acls) if records.key is not None]
            if not keys:
                return
            key = min(keys)
            path = key.replace(b"\0", b"/")
            yield path, *self.of(path)
            self._xattrs.pass_over(key)
            self._acls.pass_over(key)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that was recorded."""
        return self._xattrs.is_at_end and self._acls.is_at_end


class _Records(Generic[_Record]):
    """The records of one file, asked for in ascending order."""

    def __init__(
        self,
        tree: Tree,
        path: bytes | None,
        session_time: int,
        read: Callable[[Iterable[bytes], Callable[[FormatError], None]], Iterator[_Record]],
        report: _Report,
        stack: ExitStack,
    ) -> None:
        self._path = path
        self._time = session_time
        self._report = report
        self._key = b""  # of the next record
        self._next: _Record | None = None
        self._is_damaged_before = False  # between the record before and the next one
        self._records: Iterator[_Record] = iter(())
        if path is None:
            return
        with storage_errors(at=session_time):
            try:
                fd = tree.open_file(path)
            except (FileNotFoundError, NotRegularError):
                self._damaged(DamagedError("is not there, or is not a regular file"))
                return
        stack.callback(os.close, fd)
        self._records = read(read_decompressed(fd), self._damaged)
        self._advance()

    @property
    def is_at_end(self) -> bool:
        return self._next is None and not self._is_damaged_before

    @property
    def key(self) -> bytes | None:
        """What the next record sorts by; None at the end."""
        return None if self._next is None else self._key

    def pass_over(self, key: bytes) -> None:
        if self.key == key:
            self._advance()

    def at(self, key: bytes) -> _Record | None:
        while self._next is not None and self._key < key:
            self._advance()
        return self._next if self._key == key else None

    def may_have_lost(self, key: bytes) -> bool:
        """Whether a record of `key`, for which there is none, may be one that is damaged. Asked after `at(key)`."""
        return self._is_damaged_before and (self._next is None or self._key > key)

    def _advance(self) -> None:
        self._is_damaged_before = False
        try:
            with storage_errors(at=self._time):
                self._next = next(self._records, None)
        except DamagedError as error:
            self._next = None
            self._damaged(error)
        if self._next is not None:
            self._key = sort_key(self._next.path)

    def _damaged(self, error: DamagedError) -> None:
        self._is_damaged_before = True
        self._report(
            DamagedError(f"a record is damaged: {error.problem}", path=error.path or self._path, at=self._time)
        )
