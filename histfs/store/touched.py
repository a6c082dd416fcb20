"""What a session touches is noted before it is touched, so that undoing the session need not look at anything else.

The notes (`format.touched`) are in the page cache before what they tell of is done: one write(2) each. So they are
complete as long as nothing that was written can have been lost: in the same boot, and the same mount of the file
system. After a power cut, or when the disk was pulled out, nothing is believed, and all is looked at. Nothing here
is needed: notes that cannot be written, or become too many, are removed, and the session goes on.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self
from zlib import crc32

from histfs.store.entry import Entry, Kind, join, parent_of
from histfs.store.files import WritableTree, write_blocks
from histfs.store.format.metadata import unquote_path
from histfs.store.format.touched import (
    HEADER_BYTES,
    NAME,
    TREE,
    Header,
    Note,
    format_header,
    format_note,
    parse_notes,
)
from histfs.store.layout import DATA, INCREMENTS, OWN, Layout
from histfs.store.ledger import stamp
from histfs.store.tree import Tree

log = logging.getLogger(__name__)

TOUCHED = join(OWN, b"touched")
MOST_NOTES = 50_000  # some ten megabytes of memory
_MOST_BYTES = 16 << 20
_BOOT = "/proc/sys/kernel/random/boot_id"


def discard(tree: WritableTree) -> None:
    """Remove the notes: whoever comes next looks at everything. Raises OSError."""
    tree.before_change = None
    if tree.exists(TOUCHED):
        tree.remove_tree(TOUCHED)


class Session(NamedTuple):
    """A session that has not finished, and the one before it. Paths on disk, times in seconds since the epoch."""

    marker: bytes
    session_time: int
    previous: int
    list_path: bytes | None  # of the session before; None: there is no full one

    def header(self, tree: Tree) -> Header | None:
        """Of its notes; None where nothing would tell whether something was lost."""
        mount = tree.mount_number()
        if self.list_path is None or mount is None:
            return None
        try:
            if tree.stat(DATA).st_dev != tree.stat(b"").st_dev:
                return None  # the number is that of another mount
            with open(_BOOT, "rb") as file:
                boot = file.read(64).strip()
            status = tree.stat(self.marker)
            list_crc = crc32(stamp(tree, (self.list_path,)))
        except OSError as exc:
            log.info("what the session touches cannot be noted: %s", exc)
            return None
        return Header(self.previous, self.session_time, boot, mount, status.st_ino, status.st_ctime_ns, list_crc)


class Notes:
    """Notes what is about to be changed in `tree`, which asks for it, until it is closed. A context manager."""

    def __init__(self, tree: WritableTree, layout: Layout) -> None:
        self._tree = tree
        self._layout = layout
        self._fd: int | None = None
        self._names: set[bytes] = set()
        self._trees: set[bytes] = set()
        self._bytes = HEADER_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, session: Session) -> None:
        """Begin the notes of a session; its marker is there. Raises OSError."""
        discard(self._tree)
        header = None if self._layout.quoting.is_active else session.header(self._tree)
        if header is None:
            return
        try:
            self._tree.make_directories(OWN)
            self._fd = self._tree.create_file(TOUCHED)
            write_blocks(self._fd, [format_header(header)])
            self._tree.before_change = self.add
        except OSError as exc:
            self._give_up(exc)

    def resume(self, touched: "Touched") -> None:
        """Go on with the notes of a session that is being undone. Raises OSError."""
        self._names, self._trees = set(touched.names), set(touched.trees)
        self._names.update(touched.increments)
        self._bytes = touched.size_bytes
        self._fd = self._tree.open_to_change(TOUCHED)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._tree.before_change = self.add

    def end(self) -> None:
        """What they are about is over. Raises OSError."""
        self._close()
        discard(self._tree)

    def _close(self) -> None:
        self._tree.before_change = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _give_up(self, why: object) -> None:
        log.info("what the session touches is not noted any more: %s", why)
        self.end()

    def add(self, path: bytes, is_tree: bool) -> None:
        """`path`, or all of it and in it, is about to be changed. Raises OSError if it may not be."""
        if path == DATA or path.startswith(DATA + b"/"):
            if path.startswith(self._layout.long_names + b"/"):
                self._give_up("long names are not noted")
                return
            if is_tree or not path.startswith(INCREMENTS + b"/"):
                return  # directories of increments may stay
        if path in self._trees or (not is_tree and path in self._names) or is_in(parent_of(path), self._trees):
            return
        note = format_note(Note(path, TREE if is_tree else NAME))
        self._bytes += len(note)
        if len(self._names) + len(self._trees) >= MOST_NOTES or self._bytes > _MOST_BYTES:
            self._give_up("it is too much")
            return
        assert self._fd is not None
        try:
            write_blocks(self._fd, [note])
        except OSError as exc:
            self._give_up(exc)
            return
        (self._trees if is_tree else self._names).add(path)


def is_in(path: bytes, trees: set[bytes]) -> bool:
    """Whether `path` is or lies in one of the `trees`."""
    while path and trees:
        if path in trees:
            return True
        path = parent_of(path)
    return False


class Touched:
    """What a broken session has touched, of the mirror and of increments: on-disk paths, which are plain ones here.

    `read` gives the records of it, and of the directories that lead to it; then `suffices` tells whether it is enough
    to look at these, and `strangers` what has no record.
    """

    def __init__(self, notes: Iterable[Note], layout: Layout, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.names: set[bytes] = set()
        self.increments: list[bytes] = []
        noted = list(dict.fromkeys(notes))
        trees = {note.path for note in noted if note.kind == TREE}
        self.trees = {path for path in trees if path and not is_in(parent_of(path), trees)}
        self._is_odd = b"" in trees
        for path, kind in noted:
            if path.startswith(INCREMENTS + b"/"):
                self.increments.append(path)
                leads_to = layout.increment_at(path)
                if leads_to is not None:  # else it is none, and not of a session
                    self.names.add(leads_to[0])
            elif kind == NAME:
                self.names.add(path)
        self.names = {path for path in self.names if not is_in(path, self.trees)}
        self._directories = {b""}  # that lead to what was touched
        for path in self.names | self.trees:
            while (path := parent_of(path)) not in self._directories:
                self._directories.add(path)
        self._missing = set(self._directories)  # those that are not recorded, or not as directories
        self._strangers = self.names | self.trees
        self._last_parent: tuple[bytes, bool] = (b"", False)

    @classmethod
    def read(cls, tree: Tree, layout: Layout, session: Session) -> "Touched | None":
        """None where nothing can be believed. Raises OSError."""
        if layout.quoting.is_active or not tree.exists(TOUCHED):
            return None
        header = session.header(tree)
        if header is None:
            return None
        try:
            data = tree.read_small_file(TOUCHED, limit=2 * _MOST_BYTES)
        except OSError as exc:
            log.info("the notes of what the session has touched cannot be read: %s", exc)
            return None
        notes = parse_notes(data, header)
        return None if notes is None else cls(notes, layout, len(data))

    def wants(self, record: bytes) -> bool:
        """Whether the raw record is one of those that are to be looked at."""
        path = record[5 : record.find(b"\n")]
        if b"\\" in path or path == b".":
            path = unquote_path(path)
        if path in self._directories or path in self.names:
            return True
        return bool(self.trees) and self.is_whole(path)

    def is_whole(self, path: bytes) -> bool:
        """Whether anything in `path` may have been touched, without a note of its own."""
        if path in self.trees:
            return True
        parent = parent_of(path)
        if parent != self._last_parent[0]:
            self._last_parent = parent, is_in(parent, self.trees)
        return self._last_parent[1]

    def looked_at(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same `entries`, those that are wanted, which are remembered."""
        for entry in entries:
            self._strangers.discard(entry.path)
            if entry.kind is Kind.DIRECTORY and not self.is_whole(entry.path):
                self._missing.discard(entry.path)
                self._directories.add(entry.path)
            alternate = (entry.alternate_mirror, entry.alternate_increment)
            # Which of the links of one file the session has not touched, only the whole list tells.
            self._is_odd |= entry.link_group is not None or alternate != (None, None)
            yield entry

    def strangers(self) -> dict[bytes, list[bytes]]:
        """What has no record, by the directory it lies in. After `looked_at` has come to its end."""
        found: dict[bytes, list[bytes]] = {}
        for path in sorted(self._strangers - {b""}):
            found.setdefault(parent_of(path), []).append(path)
        return found

    def suffices(self, tree: Tree) -> bool:
        """Whether everything is as notes that are complete would have it. After `looked_at` has come to its end."""
        if self._is_odd or self._missing:
            return False
        try:
            are_there = all(tree.is_directory(path) for path in self._directories if path)
            return are_there and not self._links_lead_out(tree)
        except OSError as exc:
            log.info("everything is looked at: %s", exc)
            return False

    def _links_lead_out(self, tree: Tree) -> bool:
        """Whether a file that was touched has a name that was not."""
        left: dict[tuple[int, int], int] = {}
        inside = (join(place, name) for top in self.trees for place, name in tree.files_below(top))
        for paths in (self.names, self.trees, inside):
            for path in paths:
                try:
                    status = tree.stat(path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                    key = status.st_dev, status.st_ino
                    left[key] = left.get(key, status.st_nlink) - 1
        return any(left.values())
