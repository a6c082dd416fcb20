"""The lists of a repository's sessions as records for the catalog, and what tells whether they are still the same."""

import heapq
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from histfs.errors import DamagedError, FormatError, HistfsError, storage_errors
from histfs.store.catalog.schema import Identity
from histfs.store.compression import read_decompressed
from histfs.store.entry import join
from histfs.store.format.columns import Record, key_of, read_records
from histfs.store.format.metadata import quote_path
from histfs.store.layout import State
from histfs.store.repository import Repository
from histfs.store.tree import NotRegularError

log = logging.getLogger(__name__)

_TRAILER_BYTES = 8  # of gzip: the checksum and the length of what is in it
_MOST_WARNINGS = 100


class ListsChangedError(HistfsError):
    """A session came or went while the lists were read."""


class Lists:
    """The lists that `state` names. Damaged records are logged and left out."""

    def __init__(self, repository: Repository, state: State) -> None:
        self._repository = repository
        self._state = state
        self._warnings = 0

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
        with ExitStack() as stack:
            paths = self._state.listing_files(session_time)
            lists = [self._read(path, session_time, stack) for path in paths]
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
        """The records of the session's own list only: for a diff, what is different at the next session."""
        with ExitStack() as stack:
            yield from self._read(self._state.listing_files(session_time)[0], session_time, stack)

    def some(self, session_time: int, wanted: Iterable[tuple[bytes, bytes]]) -> Iterator[Record]:
        """The records of a session's full list for the paths `wanted`, given as parent and name, in its order."""
        texts = {quote_path(join(parent, name)) for parent, name in wanted}
        with ExitStack() as stack:
            yield from self._read(self._state.listing_files(session_time)[0], session_time, stack, texts)

    def identity(self) -> Identity:
        """Raises StorageError."""
        with storage_errors():
            sizes = {time: self._size(time) for time in self.sessions}
            return Identity(sizes, self.newest_list())

    def newest_list(self) -> bytes:
        """What tells the newest list from any other: its size and, as it is gzip, its checksum. StorageError."""
        path = self._path(self.sessions[-1])
        with storage_errors():
            try:
                fd = -1 if path is None else self._repository.tree.open_file(path)
            except (FileNotFoundError, NotRegularError):
                fd = -1
            if fd < 0:
                return b""
            try:
                size = os.fstat(fd).st_size
                end = os.pread(fd, _TRAILER_BYTES, max(0, size - _TRAILER_BYTES))
                return b"%d %b" % (size, end.hex().encode())
            finally:
                os.close(fd)

    def _path(self, session_time: int) -> bytes | None:
        files = self._state.metadata.get(session_time)
        return None if files is None else files.snapshot or files.diff

    def _size(self, session_time: int) -> int | None:
        path = self._path(session_time)
        try:
            return None if path is None else self._repository.tree.stat(path).st_size
        except FileNotFoundError:
            return None

    def _read(
        self, path: bytes, session_time: int, stack: ExitStack, wanted: set[bytes] | None = None
    ) -> Iterator[Record]:
        with storage_errors(at=session_time):
            try:
                fd = self._repository.tree.open_file(path)
            except FileNotFoundError as exc:
                raise DamagedError("is missing", path=path, at=session_time) from exc
            except NotRegularError as exc:
                raise DamagedError("is not a regular file", path=path, at=session_time) from exc
        stack.callback(os.close, fd)
        return self._records(path, session_time, fd, wanted)

    def _records(self, path: bytes, session_time: int, fd: int, wanted: set[bytes] | None) -> Iterator[Record]:
        def damaged(error: FormatError) -> None:
            self._warn(DamagedError(f"a record is damaged: {error.problem}", path=error.path or path, at=session_time))

        try:
            with storage_errors(at=session_time):
                yield from read_records(read_decompressed(fd), damaged, wanted)
        except DamagedError as exc:
            if exc.path is None:
                exc.path, exc.at = path, session_time
                exc.advice = "sessions that do not need this list can still be read"
            raise

    def _warn(self, error: DamagedError) -> None:
        self._warnings += 1
        if self._warnings <= _MOST_WARNINGS:
            log.warning("%s", error)
        elif self._warnings == _MOST_WARNINGS + 1:
            log.warning("more records of the lists are damaged")
