"""A repository, open for reading. Nothing here writes, and no lock is taken: see `content` for why that is safe."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from histfs.errors import (
    HistfsError,
    InRepositoryError,
    NotARepositoryError,
    NotFoundError,
    printable,
    printable_time,
    storage_errors,
)
from histfs.rsync import Made
from histfs.store.content.shared import DEFAULT_SIZES, Shared, Sizes
from histfs.store.content.small import SmallFile, read_small
from histfs.store.entry import Entry
from histfs.store.format.stats import SessionStatistics
from histfs.store.layout import DATA, Layout, State, read_layout, read_state, read_statistics
from histfs.store.listing import Listing, Node
from histfs.store.snapshot import Snapshot
from histfs.store.tree import Tree, is_settled

_BlockT = TypeVar("_BlockT", bound=bytes | bytearray | memoryview)


class Repository:
    """A repository at `path`. Safe to use from several threads; a context manager."""

    def __init__(self, tree: Tree, path: Path, sizes: Sizes = DEFAULT_SIZES) -> None:
        self.path = path
        self.tree = tree
        self.layout: Layout = read_layout(tree)
        self.shared = Shared(tree, self.layout, sizes)
        self._lock = threading.Lock()
        self._reference_lock = threading.Lock()
        self._reference: Snapshot | None = None
        self._state: State | None = None
        self._state_is_of: tuple[int, int] | None = None
        self.trusts_catalog = True
        # For who shows how far work is: called for each entry of a list that is gone through, and with the size of each
        # block of a content that is gone through.
        self.on_entry: Callable[[Entry], object] | None = None
        self.on_block: Callable[[int], object] | None = None

    @classmethod
    def open(cls, path: Path, sizes: Sizes = DEFAULT_SIZES) -> Self:
        """Open the repository at `path`. `sizes`: how much memory may be used to read faster.

        Raises NotARepositoryError if there is none or no session ever finished, StorageError if it cannot be read.
        """
        with storage_errors():
            try:
                tree = Tree.open(path)
            except FileNotFoundError:
                raise no_repository(path, "there is no such directory") from None
            except NotADirectoryError:
                raise no_repository(path, "is not a directory, so not a repository") from None
            try:
                return cls._opened(tree, path, sizes)
            except BaseException:
                tree.close()
                raise

    @classmethod
    def _opened(cls, tree: Tree, path: Path, sizes: Sizes) -> Self:
        if not tree.is_directory(DATA):
            raise no_repository(path)
        repository = cls(tree, path, sizes)
        if not repository.sessions():
            raise NotARepositoryError(
                "no session has finished in this repository yet",
                path=path,
                advice="`histfs backup` makes the first one",
            )
        return repository

    def close(self) -> None:
        self.forget()
        self.tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self) -> State:
        """What the data directory says now; read again only if it changed. Raises StorageError."""
        with self._lock, storage_errors():
            status = self.tree.stat(DATA)
            stamp = (status.st_ino, status.st_mtime_ns)
            if self._state is None or self._state_is_of != stamp:
                self._state = read_state(self.tree, self.layout)
                self._state_is_of = stamp if is_settled(status) else None
            return self._state

    def sessions(self) -> tuple[int, ...]:
        """The times of the finished sessions, oldest first."""
        return self.state().sessions

    def unfinished(self) -> int | None:
        """The time of the session that runs now or died before its end; None if the repository is at rest."""
        return self.state().unfinished

    def statistics(self, session_time: int) -> SessionStatistics | None:
        """What the session has counted; None where that is not known."""
        return read_statistics(self.tree, self.layout, session_time)

    def told(self, blocks: Iterator[_BlockT], parts: int = 1) -> Iterator[_BlockT]:
        """The same blocks of a content, of which `on_block` is told; as one of `parts` that a file is read in."""
        if self.on_block is None:
            yield from blocks
            return
        for block in blocks:
            self.on_block(len(block) // parts)
            yield block

    def snapshot(self, session_time: int) -> Snapshot:
        """The tree at the finished session of `session_time`; NotFoundError if there is none."""
        if session_time not in self.sessions():
            raise NotFoundError(
                f"no session of {printable_time(session_time)} is in this repository",
                path=self.path,
                advice="`histfs list sessions` shows those that are",
            )
        return Snapshot(self, session_time)

    def read_small(self, directory: bytes, files: Sequence[SmallFile]) -> list[Made | None]:
        """The contents of small files in one directory; None for one that `Snapshot.open` is to look at.

        A question of speed alone: what is given out is what was recorded, by its SHA1. So no lock is needed.
        """
        return read_small(self, directory, files)

    def recorded(self, session_time: int, path: bytes) -> Node:
        """What the session of `session_time` recorded for `path`; NotFoundError, NotADirectoryEntryError, DamagedError.

        For readers that compare the mirror with the newest finished session: one listing is kept for them all.
        """
        with self._reference_lock:  # all the time, as another one closes what is replaced
            if self._reference is None or self._reference.time != session_time:
                snapshot = self.snapshot(session_time)
                self._close_reference()
                self._reference = snapshot
            return self._reference.listing().find(path)

    def refer_to(self, session_time: int, listing: Listing) -> None:
        """Let `recorded` look in `listing`, which has all that it will be asked for. `forget` closes it."""
        with self._reference_lock:
            self._close_reference()
            self._reference = Snapshot(self, session_time, listing)

    def distrust_catalog(self) -> None:
        """The catalog in the repository turned out to be damaged: it is not read any more."""
        self.trusts_catalog = False

    def forget(self) -> None:
        """Close what is kept for readers; it is made again when it is needed."""
        self._close_reference()
        self.shared.close()

    def _close_reference(self) -> None:
        if self._reference is not None:
            self._reference.close()
            self._reference = None


def no_repository(path: Path, problem: str = "") -> NotARepositoryError:
    """That `path` is no repository; because of a `problem`, or as it lacks what one has. It may lie in one."""
    with suppress(HistfsError):
        repository = printable(find_repository(path)[0])
        return InRepositoryError(f"lies in the repository {repository}", path=path, advice="name that")
    if problem:
        return NotARepositoryError(problem, path=path)
    return NotARepositoryError(
        "is not a repository: it has no directory rdiff-backup-data",
        path=path,
        advice="make one with `histfs backup SOURCE REPOSITORY`",
    )


def _check_may_be_entered(directory: Path) -> None:
    """Raises PermissionError if nobody may tell whether `directory` is a repository."""
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            os.stat(directory / os.fsdecode(DATA))
        except PermissionError as exc:
            exc.filename = directory
            raise


def find_repository(path: Path) -> tuple[Path, bytes]:
    """The repository that `path` is or lies in, and the path inside of it (b"" for all of it).

    The nearest directory upwards that has an rdiff-backup-data is taken (docs/format.md 8.1). What lies inside need
    not exist in the mirror any more. A symbolic link that leads to a repository counts, unless it lies in one: there it
    is a file that was backed up. Raises NotARepositoryError, StorageError.
    """
    absolute = Path(os.path.abspath(path))
    found = None
    for candidate in (absolute, *absolute.parents):
        if os.path.isdir(candidate / os.fsdecode(DATA)):  # False also where we may not look: go on upwards
            is_link = os.path.islink(candidate)
            found = candidate if found is None or not is_link else found
            if not is_link:
                break
    if found is not None:
        inside = absolute.relative_to(found)
        return found, b"" if inside == Path() else os.fsencode(inside)
    with storage_errors():
        for candidate in (absolute, *absolute.parents):
            _check_may_be_entered(candidate)
    if not os.path.exists(absolute):
        raise NotARepositoryError("there is no such directory, and no repository above it", path=path)
    raise NotARepositoryError("is not a repository, and lies in none", path=path)
