"""A snapshot: the whole tree as it was at one session's time."""

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from histfs.errors import DamagedError, FormatError, quoted, storage_errors
from histfs.store.compression import read_decompressed
from histfs.store.content import Content, open_content
from histfs.store.entry import Entry, Extras, Kind, is_below, join, sort_key
from histfs.store.extras import SessionExtras
from histfs.store.format.listing import merge
from histfs.store.format.metadata import read_entries, with_lost
from histfs.store.layout import State
from histfs.store.listing import Listing
from histfs.store.tree import NotRegularError

if TYPE_CHECKING:
    from histfs.store.repository import Repository

log = logging.getLogger(__name__)

# A writer may replace a list by a reverse diff between our look at the directory and the opening of the file, or while
# the directory is read, so that neither is seen.
_ATTEMPTS = 5
_BEGIN = b"File "  # of every list that is not empty
_OTHERS_CAN_BE_READ = "sessions that do not need this list can still be read"


def list_advice(path: Path, state: State, list_path: bytes | None) -> str:
    """What to do about the list at `list_path` (None: one is missing) in the repository at `path`, which is damaged."""
    newest = state.mirror_time
    files = None if newest is None else state.metadata.get(newest)
    snapshot = None if files is None else files.snapshot
    if newest is None or list_path != snapshot or state.unfinished is not None:
        return _OTHERS_CAN_BE_READ
    return newest_list_advice(path)


def newest_list_advice(path: Path) -> str:
    """What to do where the newest list of the repository at `path` is damaged."""
    return (
        f"`histfs repair {quoted(path)}` makes it anew (`--dry-run` shows what it would do), and the newest files lie"
        " in the repository's directory as plain files"
    )


class Snapshot:
    """The tree at `time` (seconds since the epoch). Safe to use from several threads once `listing` was called."""

    def __init__(self, repository: "Repository", session_time: int, listing: Listing | None = None) -> None:
        self.repository = repository
        self.time = session_time
        self._listing = listing

    def close(self) -> None:
        if self._listing is not None:
            self._listing.close()
            self._listing = None

    def entries(self, below: bytes = b"", on_damage: Callable[[DamagedError], None] | None = None) -> Iterator[Entry]:
        """The entries at and below the path `below`, parents first, in the order of the metadata files.

        Damaged records are left out and told to `on_damage`; without it they are raised. A list that cannot be read
        to its end raises DamagedError in any case.
        """

        def damaged(error: DamagedError) -> None:
            error.at = self.time
            if on_damage is None:
                raise error
            on_damage(error)

        end = sort_key(below) + b"\1"
        with self._naming_list():
            for entry in well_formed(self._records(damaged), damaged):
                if is_below(entry.path, below):
                    if self.repository.on_entry is not None:
                        self.repository.on_entry(entry)
                    yield entry
                elif below and sort_key(entry.path) >= end:
                    return

    def wanted_entries(self, wants: Callable[[bytes], bool]) -> Iterator[Entry]:
        """Those whose raw records are wanted; the others are not even looked at. Raises DamagedError."""
        with self._naming_list():
            yield from well_formed(self._records(self._raise, wants), self._raise)

    def _raise(self, error: DamagedError) -> None:
        error.at = self.time
        raise error

    def check_list(self) -> None:
        """Go through the list to its end, and through all that it is made of: sums come last. Raises DamagedError."""
        with self._naming_list(), contextlib.closing(self._records(self._raise)) as records:
            for _ in well_formed(records, self._raise):
                pass

    def check_sums(self) -> None:
        """Go through the session's own list alone, a full one, without looking at its records. Raises DamagedError."""
        with self._naming_list(), ExitStack() as stack:
            for path, fd in self._open_lists(stack):
                for _ in list_blocks(path, fd):
                    pass

    @contextlib.contextmanager
    def _naming_list(self) -> Iterator[None]:
        """What is wrong with the list as a whole says which list that is."""
        try:
            yield
        except DamagedError as exc:
            if exc.path is None and exc.at is None:
                exc.at = self.time
                with contextlib.suppress(DamagedError):
                    exc.path = self.repository.state().listing_files(self.time)[0]
                exc.advice = self._advice(exc.path if isinstance(exc.path, bytes) else None)
            raise

    def _advice(self, path: bytes | None) -> str:
        return list_advice(self.repository.path, self.repository.state(), path)

    def extras(self, which: Extras, report: Callable[[DamagedError], None]) -> SessionExtras:
        """What belongs to the entries and is not in their records; the caller closes it."""
        return SessionExtras(self.repository.tree, self.repository.state(), self.time, which, report)

    def listing(self) -> Listing:
        """Random access to the entries. Made at the first call, which reads the whole list: slow for a large tree."""
        if self._listing is None:
            self._listing = Listing.build(self.entries(on_damage=lambda error: log.warning("%s", error)))
        return self._listing

    def open(self, entry: Entry, sha1: bytes | None) -> Content:
        """The content of the regular file `entry` at this time, checked against its size and `sha1` (hex) where known.

        Raises DamagedError, StorageError.
        """
        return open_content(self.repository, entry, sha1, self.time)

    def _records(
        self, damaged: Callable[[DamagedError], None], wants: Callable[[bytes], bool] | None = None
    ) -> Generator[Entry, None, None]:
        with ExitStack() as stack:
            listings = []
            lists = self._open_lists(stack)
            for path, fd in lists:
                listings.append(self._read_list(path, fd, damaged, wants, is_difference=path != lists[-1][0]))
            yield from merge(listings)

    def _open_lists(self, stack: ExitStack) -> list[tuple[bytes, int]]:
        """The lists that are needed, with descriptors that `stack` closes; what was damaged for a moment is retried."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(DamagedError):
                return self._open_lists_once(stack)
        return self._open_lists_once(stack)

    def _open_lists_once(self, stack: ExitStack) -> list[tuple[bytes, int]]:
        lists = []
        with ExitStack() as opened, storage_errors(at=self.time):
            try:
                needed = self.repository.state().listing_files(self.time)
            except DamagedError as exc:
                exc.advice = self._advice(None)
                raise
            for path in needed:
                try:
                    fd = self.repository.tree.open_file(path)
                except FileNotFoundError as exc:
                    raise DamagedError("is missing", path=path, at=self.time, advice=self._advice(path)) from exc
                except NotRegularError as exc:
                    advice = self._advice(path)
                    raise DamagedError("is not a regular file", path=path, at=self.time, advice=advice) from exc
                opened.callback(os.close, fd)
                lists.append((path, fd))
            stack.enter_context(opened.pop_all())
        return lists

    def _read_list(
        self,
        path: bytes,
        fd: int,
        damaged: Callable[[DamagedError], None],
        wants: Callable[[bytes], bool] | None,
        *,
        is_difference: bool,
    ) -> Iterator[Entry]:
        def damaged_record(error: FormatError) -> None:
            damaged(DamagedError(f"a record is damaged: {error.problem}", path=error.path or path))

        try:
            with storage_errors(at=self.time):
                yield from list_entries(path, fd, damaged_record, wants, is_difference=is_difference)
        except DamagedError as exc:
            if exc.path is None:
                exc.path = path
                exc.at = self.time
                exc.advice = self._advice(path)
            raise


def list_blocks(path: bytes, fd: int) -> Iterator[bytes]:
    """The text of the list at `path`, which is open. Raises DamagedError where it is none.

    Something else in the place of a difference would say that nothing was different. A difference that is empty by
    right has no `.gz` (docs/format.md 1.5), as what a power cut has left of a compressed one has.
    """
    start = b""
    for block in read_decompressed(fd):
        if len(start) < len(_BEGIN):
            start += block
            if len(start) < len(_BEGIN):
                continue
            if not start.startswith(_BEGIN):
                raise DamagedError("is no list of files")
            block = start
        yield block
    if 0 < len(start) < len(_BEGIN):
        raise DamagedError("is no list of files")
    if not start and path.endswith(b".gz") and not os.fstat(fd).st_size:
        raise DamagedError("is an empty file")


def list_entries(
    path: bytes,
    fd: int,
    damaged: Callable[[FormatError], None],
    wants: Callable[[bytes], bool] | None = None,
    *,
    is_difference: bool,
) -> Iterator[Entry]:
    """The entries of the list at `path`, which is open, as `metadata.read_entries` gives them. Raises DamagedError.

    In a difference what is damaged is absent, or it would be what it is at the next newer session.
    """
    if not is_difference:
        return read_entries(list_blocks(path, fd), damaged, wants)
    errors: list[FormatError] = []

    def damaged_record(error: FormatError) -> None:
        errors.append(error)
        damaged(error)

    return with_lost(read_entries(list_blocks(path, fd), damaged_record, wants), errors, _key_of, _absent)


def _key_of(entry: Entry) -> bytes:
    return sort_key(entry.path)


def _absent(path: bytes) -> Entry:
    return Entry(path, Kind.ABSENT)


def well_formed(entries: Iterable[Entry], damaged: Callable[[DamagedError], None]) -> Iterator[Entry]:
    """Those of `entries` whose parent is a directory of the same list, so that a path never leads through a link.

    `damaged` is told once of each name that has something in it and is not a directory.
    """
    directories: list[bytes] = []  # the ancestors of the current record, the root first
    lost: bytes | None = None
    for entry in entries:
        if not entry.path:
            if entry.kind is not Kind.DIRECTORY:
                raise DamagedError("the root of the tree is not a directory")
            directories = [b""]
            yield entry
            continue
        if not directories:
            raise DamagedError("the list of files has no root")
        while len(directories) > 1 and not is_below(entry.parent, directories[-1]):
            directories.pop()
        if directories[-1] != entry.parent:
            if lost is None or not is_below(entry.path, lost):
                rest = entry.path[len(directories[-1]) :].lstrip(b"/")
                lost = join(directories[-1], rest.partition(b"/")[0])
                damaged(DamagedError("is not recorded as a directory, so what lies in it is left out", path=lost))
            continue
        if entry.kind is Kind.DIRECTORY:
            directories.append(entry.path)
        yield entry
    if not directories:
        raise DamagedError("the list of files is empty")
