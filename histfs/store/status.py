"""The operation `status`: how a repository is, as far as it can be told at once, without reading what is in it.

Nothing is written and nothing locked: to try the lock, even for a moment, could keep a session from starting, so the
kernel's own list of locks is asked. Looked at are the names in the data directory, the statistics of the newest
session, the beginning of every list of files, and the sums of the newest one, without which no session can follow. What
files hold, `verify --all` reads, and `repair` makes anew what
can be.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, storage_errors
from histfs.store.format.stats import SessionStatistics
from histfs.store.layout import CATALOG, DATA, INCREMENTS, Layout, State, read_layout, read_state, read_statistics
from histfs.store.lock import Writer, lock_holder, marker_writer
from histfs.store.repository import no_repository
from histfs.store.snapshot import list_blocks
from histfs.store.tree import Tree, file_blocks

_GZIP = b"\x1f\x8b"
_WRITES_IT = "`histfs repair` writes it"
_TELLS_WHICH = "`histfs repair` sets aside what is wrong"
_MAKES_IT_ANEW = "`histfs repair` makes it anew"
_FROM_A_COPY = "bring this file back from a copy of the repository"
_SMALLEST_GZIP_BYTES = 18  # the header and the sums
_MOST_LIST_BYTES = 32 << 20  # which take about a second


class Status(NamedTuple):
    """How a repository is. Times are seconds since the epoch."""

    sessions: tuple[int, ...]  # those that have finished
    unfinished: int | None  # the time of the session that runs now or died; None also for a first one
    is_first: bool  # no session has finished yet, but one has begun
    writer: Writer | None  # who changes the repository now
    statistics: SessionStatistics | None  # of the newest session; None where they cannot be read
    damage: tuple[HistfsError, ...]
    can_go_on: bool  # whether `backup` can tell which session is the newest, and read its list

    @property
    def is_broken(self) -> bool:
        """Whether a session was cut off that must be undone."""
        return self.writer is None and (self.is_first or self.unfinished is not None)


def status(repository: Path) -> Status:
    """How the repository at the directory `repository` is. Raises NotARepositoryError, StorageError."""
    with storage_errors():
        try:
            tree = Tree.open(repository)
        except FileNotFoundError:
            raise no_repository(repository, "there is no such directory") from None
        except NotADirectoryError:
            raise no_repository(repository, "is not a directory, so not a repository") from None
        with tree:
            if not tree.is_directory(DATA):
                raise no_repository(repository)
            return _status(tree, read_layout(tree))


def _status(tree: Tree, layout: Layout) -> Status:
    state = read_state(tree, layout)
    writer = lock_holder(tree)
    if writer is None and state.unfinished in state.markers:
        writer = marker_writer(tree, state.markers[state.unfinished])
    newest = state.mirror_time
    bad = {path: problem for path in _lists(state) if (problem := _list_problem(tree, path))}
    newest_list = None if newest is None else _newest_list(state, newest)
    if newest_list is not None and newest_list not in bad and (problem := _problem_in(tree, newest_list)):
        bad[newest_list] = problem
    return Status(
        sessions=state.sessions,
        unfinished=state.unfinished,
        is_first=newest is None and tree.is_directory(INCREMENTS),
        writer=writer,
        statistics=None if newest is None else read_statistics(tree, layout, newest),
        damage=tuple(_damage(tree, state, bad)),
        can_go_on=newest is None or (_has_right_markers(state) and _can_be_read(state, newest, bad)),
    )


def _has_right_markers(state: State) -> bool:
    return 1 <= len(state.markers) <= 2 and not state.has_old_marker


def _damage(tree: Tree, state: State, bad: dict[bytes, str]) -> Iterator[HistfsError]:
    newest = state.mirror_time
    if newest is None:
        return
    if not state.markers:
        yield DamagedError("there is no current_mirror marker: `histfs backup` will refuse", advice=_WRITES_IT)
    if len(state.markers) > 2:
        yield DamagedError(
            "there are more than two current_mirror markers: `histfs backup` will refuse", advice=_TELLS_WHICH
        )
    elif state.has_old_marker:
        yield DamagedError(
            "the current_mirror marker is older than other finished sessions: `histfs backup` will refuse",
            path=state.markers[newest],
        )
    elif state.unfinished is not None and any(newest < time < state.unfinished for time in state.metadata):
        yield DamagedError(
            "a current_mirror marker is older than other finished sessions",
            path=state.markers[newest],
            advice=_TELLS_WHICH,
        )
    if not tree.is_directory(INCREMENTS):
        yield DamagedError("the directory with the increments is missing")
    files = state.metadata.get(newest)
    if files is None or (files.snapshot is None and state.unfinished is None):
        yield DamagedError("the newest list of files is missing", at=newest, advice=_MAKES_IT_ANEW)
    for path, problem in bad.items():
        is_newest = files is not None and path == files.snapshot
        yield DamagedError(problem, path=path, advice=_MAKES_IT_ANEW if is_newest else _FROM_A_COPY)
    if _begins_otherwise(tree, CATALOG, b"SQLite format 3\0"):
        yield DamagedError("is no catalog", path=CATALOG, advice=_MAKES_IT_ANEW)
    for time in state.sessions:
        try:
            needed = state.listing_files(time)
        except DamagedError as error:
            error.at = time
            yield error
            continue
        if not bad.keys().isdisjoint(needed):
            yield DamagedError("needs a damaged list of files, and cannot be read", at=time)


def _begins_otherwise(tree: Tree, path: bytes, start: bytes) -> bool:
    """Whether there is such a file, and it is another kind of one."""
    try:
        fd = tree.open_file(path)
        try:
            return b"".join(file_blocks(fd, len(start))) != start
        finally:
            os.close(fd)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _can_be_read(state: State, time: int, bad: dict[bytes, str]) -> bool:
    try:
        return bad.keys().isdisjoint(state.listing_files(time))
    except DamagedError:
        return False


def _lists(state: State) -> list[bytes]:
    return [path for _, files in sorted(state.metadata.items()) for path in files if path is not None]


def _newest_list(state: State, newest: int) -> bytes | None:
    files = state.metadata.get(newest)
    return None if files is None else files.snapshot


def _problem_in(tree: Tree, path: bytes) -> str:
    """What its sums tell of the newest list, which `backup` looks at as well before it begins; not of a long one."""
    try:
        fd = tree.open_file(path)
    except OSError:  # a session has replaced it meanwhile
        return ""
    try:
        if os.fstat(fd).st_size <= _MOST_LIST_BYTES:
            for _ in list_blocks(path, fd):
                pass
    except DamagedError as error:
        return error.problem
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    finally:
        os.close(fd)
    return ""


def _list_problem(tree: Tree, path: bytes) -> str:
    """What can be seen to be wrong with a list of files; an empty text if nothing."""
    try:
        fd = tree.open_file(path)
        try:
            size = os.fstat(fd).st_size
            begin = b"".join(file_blocks(fd, len(_GZIP)))
        finally:
            os.close(fd)
    except FileNotFoundError:  # a session has replaced it meanwhile
        return ""
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    if path.endswith(b".gz") and (size < _SMALLEST_GZIP_BYTES or begin != _GZIP):
        return "is no compressed list of files"
    if size == 0 and b".snapshot" in path:
        return "is an empty list of files"
    return ""
