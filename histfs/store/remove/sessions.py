"""Removing the oldest sessions, with everything that only they needed (docs/format.md 9).

That is all in the data directory whose name carries an earlier time: lists and increments lead from the newer state to
the older one, so nothing of it is needed by a session that stays.

Order. Session by session, the oldest first, its increment of the root goes, then its list: until then it is whole, and
afterwards it is gone. Then a barrier: no list may come back that leads to what is not there any more. Then the
increments, and what else tells of the sessions. All of this can be stopped and repeated at any point.

Strategy. Nobody knows how many paths there are, and most of them have no old increments. But a session leaves an
increment of every directory above what it changed: so a directory can hold old increments only if there is an old one
of the directory itself, and the walk goes nowhere else. The increments in a directory go before those of it, so a
walk that was stopped is found again. Where the increment of a directory was lost, by damage or a program that removes
in another order, no session is harmed by what stays behind; to find it, each removal looks into a limited number of
the other directories too, and the next one goes on from there.
"""

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from histfs.errors import NO_ROOM
from histfs.store.catalog import update_catalog
from histfs.store.entry import is_below, join, sort_key
from histfs.store.files import WritableTree
from histfs.store.format.names import IncrementName, parse_increment_name
from histfs.store.layout import DATA, INCREMENTS, OWN, Layout, State, read_state
from histfs.store.lock import open_locked
from histfs.store.recovery import check_writer_is_gone
from histfs.store.repository import Repository

_SWEPT = OWN + b"/swept"  # the directory of increments at which the next sweep begins
_MOST_SWEPT = 1000
_LONGEST_PATH = 1 << 20


class Removed(NamedTuple):
    """The sessions that are gone, oldest first; and how many files, those that an earlier removal left included."""

    sessions: tuple[int, ...]
    files: int


def remove_sessions(
    repository: Path, before: int, *, fsync: bool = True, tell: Callable[[], object] = lambda: None
) -> Removed:
    """Remove the sessions before the time `before` (seconds since the epoch), but never the newest one.

    `tell` is called for each file that goes. Without `fsync` a crash of the system may cost the repository. Raises
    HistfsError.
    """
    with open_locked(
        repository,
        verb="remove",
        advice="run it again to remove the rest",
        on_full_disk="free a little space, and run it again to remove the rest",
        fsync=fsync,
    ) as tree:
        opened = Repository(tree, repository)
        state = read_state(tree, opened.layout)
        if state.unfinished in state.markers:
            check_writer_is_gone(tree, state.markers[state.unfinished], "undo it with `histfs --force regress`")
        if state.mirror_time is None:
            return Removed((), 0)
        before = min(before, state.mirror_time)
        removal = _Removal(tree, opened.layout, before, tell)
        removal.run(state)
        sessions = tuple(time for time in state.sessions if time < before)
        if sessions:
            update_catalog(tree, opened, make=False)  # that would take as long as the history is
        return Removed(sessions, removal.files)


class _Directory:
    """A directory of increments on the way of the walk."""

    def __init__(self, path: bytes, old: list[bytes], below: list[bytes], marked: set[bytes], remaining: int) -> None:
        self.path = path
        self.old = old  # names that go when all below it is done
        self.below = below  # directories in it that were not looked at, the last one comes next
        self.marked = marked  # those of them that have old increments themselves
        self.remaining = remaining  # how many names will be left


class _Sweep:
    """Takes up to `limit` directories in the order of their paths, from `start` on."""

    def __init__(self, start: bytes, limit: int) -> None:
        self._start = start
        self._left = limit
        self.next_start = b""  # where the next one goes on; empty: at the beginning

    def takes(self, path: bytes) -> bool:
        """Whether to look into `path`. Ask in the order of the paths, and not for what lies below one not taken."""
        if sort_key(path) < sort_key(self._start):
            return is_below(self._start, path)  # on the way to it
        if self._left == 0:
            self.next_start = self.next_start or path
            return False
        self._left -= 1
        return True


class _Removal:
    def __init__(self, tree: WritableTree, layout: Layout, before: int, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._tree = tree
        self._layout = layout
        self._before = before
        self.files = 0

    def run(self, state: State) -> None:
        lists, others = self._files_of_sessions(state)
        if lists:
            for path in lists:
                self._unlink(path)
            self._tree.sync()
        self._remove_increments()
        if self._tree.exists(self._layout.long_names):
            for name in self._old_names(self._tree.names_of_files(self._layout.long_names)):
                self._unlink(join(self._layout.long_names, name))
        for path in others:
            self._unlink(path)
        if self.files:
            self._tree.sync()

    def _files_of_sessions(self, state: State) -> tuple[list[bytes], list[bytes]]:
        """Old files in the data directory itself: what makes sessions, in the order in which it goes, and the rest."""
        times = {path: time for time, files in state.metadata.items() for path in files if path is not None}
        makers: list[tuple[int, bool, bytes]] = []
        others: list[bytes] = []
        for name in self._tree.names_of_files(DATA):
            path = join(DATA, name)
            parsed = self._parse(name)
            if parsed is None or times.get(path, parsed.time) >= self._before:
                continue
            if parsed.base in (b"increments", b"mirror_metadata"):
                makers.append((times.get(path, parsed.time), parsed.base == b"mirror_metadata", path))
            else:
                others.append(path)
        return [path for *_, path in sorted(makers)], others

    def _remove_increments(self) -> None:
        if not self._tree.exists(INCREMENTS):
            return
        sweep = _Sweep(self._swept(), _MOST_SWEPT)
        way = [self._look_into(INCREMENTS)]
        while way:
            directory = way[-1]
            if directory.below:
                name = directory.below.pop()
                path = join(directory.path, name)
                if name in directory.marked or sweep.takes(path):
                    way.append(self._look_into(path))
                continue
            way.pop()
            for name in directory.old:
                self._unlink(join(directory.path, name))
            if way and not directory.remaining and self._removed_directory(directory.path):
                way[-1].remaining -= 1
        self._keep_swept(sweep.next_start)

    def _look_into(self, path: bytes) -> _Directory:
        directories, others = self._tree.names_by_kind(path)
        old = self._old_names(others)
        unquote = self._layout.quoting.unquote
        bases = {parsed.base for parsed in map(self._parse, old) if parsed is not None}
        # The increments of a directory with a long name are elsewhere.
        marked = {
            name
            for name in directories
            if unquote(name) in bases or self._layout.increment_name_is_too_long(unquote(name))
        }
        remaining = len(directories) + len(others) - len(old)
        return _Directory(path, old, sorted(directories, reverse=True), marked, remaining)

    def _old_names(self, names: list[bytes]) -> list[bytes]:
        return [name for name in names if (parsed := self._parse(name)) is not None and parsed.time < self._before]

    def _parse(self, name: bytes) -> IncrementName | None:
        return parse_increment_name(self._layout.quoting.unquote(name))

    def _unlink(self, path: bytes) -> None:
        self._tree.unlink(path, missing_ok=True)
        self.files += 1
        self._tell()

    def _removed_directory(self, path: bytes) -> bool:
        try:
            self._tree.remove_directory(path)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def _swept(self) -> bytes:
        with contextlib.suppress(OSError):
            return self._tree.read_small_file(_SWEPT, limit=_LONGEST_PATH)
        return b""

    def _keep_swept(self, path: bytes) -> None:
        """On a full disk it is not kept: the next sweep begins at the beginning."""
        self._tree.unlink(_SWEPT, missing_ok=True)
        if path:
            try:
                self._tree.make_directories(OWN)
                self._tree.write_file(_SWEPT, [path])
            except OSError as exc:
                if exc.errno not in NO_ROOM:
                    raise
                self._tree.unlink(_SWEPT, missing_ok=True)
