"""What `repair` does, step by step: each can be repeated, and keeps what it replaces.

A new file is durable before it takes its place, and the old one has another name, in a directory of our own that other
programs leave alone, before it loses its own.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from histfs.errors import DamagedError, HistfsError, UnfinishedError
from histfs.store.catalog import update_catalog
from histfs.store.compression import compress
from histfs.store.entry import Entry, Extras, Kind, join
from histfs.store.files import WritableTree
from histfs.store.format.attributes import (
    AccessControlList,
    ExtendedAttributes,
    format_access_control_list,
    format_extended_attributes,
)
from histfs.store.format.listing import changes
from histfs.store.format.metadata import format_record
from histfs.store.format.names import parse_increment_name
from histfs.store.format.stats import SessionStatistics, format_session_statistics
from histfs.store.format.times import format_time
from histfs.store.layout import (
    ACLS,
    CATALOG,
    DATA,
    INCREMENTS,
    OWN,
    TEMPORARY,
    XATTRS,
    Layout,
    State,
    read_layout,
    read_state,
)
from histfs.store.lock import marker_text
from histfs.store.owners import Owners
from histfs.store.rebuilding import rebuilt_list, with_extras_of_mirror
from histfs.store.recovery import check_writer_is_gone, recover
from histfs.store.repository import Repository
from histfs.store.touched import discard

ASIDE = join(OWN, b"aside")


class Repairer:
    """Works in the tree of a repository at `path`, whose lock is held. `now`: the time that names what is put aside."""

    def __init__(
        self,
        tree: WritableTree,
        path: Path,
        now: int,
        report: Callable[[HistfsError], None],
        owners: Owners,
        force: bool,
    ) -> None:
        self._tree = tree
        self._path = path
        self._now = now
        self._report = report
        self._owners = owners
        self._force = force
        self._layout: Layout = read_layout(tree)
        self._temporary = self._layout.temporary_names(secrets.randbits(62))
        self.aside: bytes | None = None

    @property
    def _state(self) -> State:
        return read_state(self._tree, self._layout)

    def remove_leftovers(self) -> None:
        """What a repair that was killed has not put into its place."""
        for name in self._tree.names(DATA):
            if self._layout.quoting.unquote(name).startswith(TEMPORARY):
                self._tree.remove_tree(join(DATA, name))

    # What is there already

    def _place_aside(self, path: bytes) -> bytes:
        """A name in our directory that nothing has."""
        if self.aside is None:
            stamp = format_time(self._now).replace(b":", b"-")
            names = (stamp, *(b"%b-%d" % (stamp, number) for number in range(2, 10_000)))
            self.aside = next(join(ASIDE, name) for name in names if not self._tree.exists(join(ASIDE, name)))
            self._tree.make_directories(self.aside)
        name = path.rpartition(b"/")[2]
        number = 1
        while self._tree.exists(join(self.aside, name)):
            number += 1
            name = b"%b-%d" % (path.rpartition(b"/")[2], number)
        return join(self.aside, name)

    def set_aside(self, path: bytes) -> None:
        if self._tree.exists(path):
            self._tree.rename(path, self._place_aside(path))
            self._tree.sync_directory(DATA)

    def _replace(self, old: bytes | None, path: bytes, blocks: Iterable[bytes]) -> None:
        """Put a new file at `path`; the old one, there or under another name, is kept aside."""
        temporary = join(DATA, next(self._temporary))
        try:
            self._tree.write_file(temporary, blocks, durable=True)
            if old is not None and self._tree.exists(old):
                kept = self._place_aside(old)
                if old != path or not self._linked(old, kept):
                    self._tree.rename(old, kept)
            self._tree.rename(temporary, path)
        except BaseException:
            self._tree.unlink(temporary, missing_ok=True)
            raise
        self._tree.sync_directory(DATA)

    def _linked(self, old: bytes, kept: bytes) -> bool:
        with suppress(OSError):
            return self._tree.try_link(old, kept)
        return False

    # Steps

    def write_marker(self, path: bytes) -> None:
        self._replace(None, path, [marker_text()])

    def undo_session(self) -> None:
        state = self._state
        if state.unfinished is None:
            return
        if not self._force and state.unfinished in state.markers:
            check_writer_is_gone(self._tree, state.markers[state.unfinished])
        discard(self._tree)  # not only the session has changed something
        if not recover(self._tree, self._path, report=self._report, owners=self._owners, force=self._force):
            raise UnfinishedError("the session that was cut off could not be undone", path=self._path)

    def rebuild_list(self, newest: int, path: bytes) -> None:
        state = self._state
        files = state.metadata.get(newest)
        old = None if files is None else files.snapshot
        entries = rebuilt_list(self._tree, self._path, self._layout, state, newest, self._report)
        self._replace(old, path, compress(map(format_record, entries)))

    def rebuild_extras(self, newest: int, base: bytes) -> None:
        state = self._state
        old = (state.xattrs if base == XATTRS else state.acls).get(newest)
        which = Extras(xattrs=base == XATTRS, acls=base == ACLS)
        entries = Repository(self._tree, self._path).snapshot(newest).entries(on_damage=self._report)
        texts = _extras_texts(
            with_extras_of_mirror(self._tree, self._layout, state, newest, which, entries, self._report), which
        )
        first = next(texts, None)
        path = self._layout.data_path(base, newest, b"snapshot", compressed=first is not None)
        self._replace(old, path, [] if first is None else compress(_behind(first, texts)))

    def rebuild_statistics(self, session_time: int) -> None:
        path = self._layout.data_path(b"session_statistics", session_time, b"data")
        try:
            statistics = self._counted(session_time)
        except DamagedError as error:  # its list cannot be read, which was told
            self._report(error)
            return
        self._replace(path, path, [format_session_statistics(statistics)])

    def rebuild_catalog(self) -> None:
        for end in (b"", b"-journal", b"-wal", b"-shm"):
            self.set_aside(CATALOG + end)
        update_catalog(self._tree, Repository(self._tree, self._path))

    def make_increments(self) -> None:
        self.set_aside(INCREMENTS)
        self._tree.make_directories(INCREMENTS)

    def _counted(self, session_time: int) -> SessionStatistics:
        """What can be told of a session by its list and the one before; how long it took cannot."""
        repository = Repository(self._tree, self._path)
        previous = max((time for time in repository.sessions() if time < session_time), default=None)
        newer = repository.snapshot(session_time)
        counts = dict.fromkeys(SessionStatistics._fields[3:], 0)
        for entry in newer.entries(on_damage=self._report):
            counts["source_files"] += 1
            counts["source_file_bytes"] += entry.size_bytes
        older: Iterator[Entry] = iter(())
        if previous is not None:
            for entry in repository.snapshot(previous).entries(on_damage=self._report):
                counts["mirror_files"] += 1
                counts["mirror_file_bytes"] += entry.size_bytes
            older = repository.snapshot(previous).entries(on_damage=self._report)
        for old, new in changes(older, newer.entries(on_damage=self._report)):
            if new is None:
                counts["deleted_files"] += 1
                counts["deleted_file_bytes"] += old.size_bytes if old is not None else 0
            elif old is None:
                counts["new_files"] += 1
                counts["new_file_bytes"] += new.size_bytes
            else:
                counts["changed_files"] += 1
                counts["changed_source_bytes"] += new.size_bytes
                counts["changed_mirror_bytes"] += old.size_bytes
        if previous is not None:
            for size in self._increments(previous):
                counts["increment_files"] += 1
                counts["increment_file_bytes"] += size
        start = float(session_time)
        return SessionStatistics(start, start)._replace(**counts).completed()

    def _increments(self, session_time: int) -> Iterator[int]:
        """The sizes of the increments that lead back to a session."""
        for place in (INCREMENTS, self._layout.long_names):
            for directory, name in self._tree.files_below(place) if self._tree.exists(place) else ():
                parsed = parse_increment_name(self._layout.quoting.unquote(name))
                if parsed is not None and parsed.type != b"data" and parsed.time == session_time:
                    yield self._tree.stat(join(directory, name)).st_size


def _extras_texts(entries: Iterator[Entry], which: Extras) -> Iterator[bytes]:
    for entry in entries:
        if which.xattrs and entry.xattrs:
            yield format_extended_attributes(ExtendedAttributes(entry.path, dict(entry.xattrs)))
        if which.acls and entry.acl and entry.kind is not Kind.SYMLINK:
            yield format_access_control_list(AccessControlList(entry.path, entry.acl))


def _behind(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
