"""The newest list of files made anew: from what can still be read of it, and for the rest from the mirror itself.

What can be read of the old list is the truth, also where the mirror has another file by now: `verify` must be able to
say so. Of what cannot be read the catalog has the sizes, times and digests of files, if it is of the same session; they
are taken as well, so that a wrong catalog can only make a right file look damaged. What it does not have either is what
the mirror shows, with the digest of what it holds today, and such files are counted. Names that are too long for a file
system are in no directory of the mirror; older lists that name them tell where they are.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from histfs.errors import DamagedError, FormatError, HistfsError
from histfs.store.catalog import LIVE, Catalog, open_recorded
from histfs.store.content.opening import sha1_of
from histfs.store.entry import NO_EXTRAS, Entry, Extras, Kind, LinkDigests, LinkGroup, sort_key
from histfs.store.extras import SessionExtras
from histfs.store.format.metadata import read_entries
from histfs.store.layout import Layout, State
from histfs.store.look import entry_of, read_extras
from histfs.store.repository import Repository
from histfs.store.snapshot import list_blocks, well_formed
from histfs.store.source import Source
from histfs.store.tree import Tree
from histfs.store.unreadable import Unreadable

_Report = Callable[[HistfsError], None]

_ANY_SHA1 = b"0" * 40


def readable_entries(tree: Tree, path: bytes) -> Iterator[Entry]:
    """The records of the list at `path`, as far as they can be read."""
    try:
        fd = tree.open_file(path)
    except OSError:
        return
    try:
        yield from read_entries(list_blocks(path, fd), lambda _error: None)
    except (DamagedError, OSError):
        return
    finally:
        os.close(fd)


def rebuilt_list(
    tree: Tree, repository: Path, layout: Layout, state: State, newest: int, report: _Report
) -> Iterator[Entry]:
    """The entries of the session `newest`, in the order of a list. What cannot be had is told to `report`.

    Raises StorageError, OSError.
    """
    with _opened_mirror(tree, repository, layout, state, newest, report) as mirror:
        yield from mirror.listed(state, newest)


def files_to_digest(tree: Tree, repository: Path, layout: Layout, state: State, newest: int) -> int:
    """How many files get the digest of what they hold today, when the list is made anew. Raises StorageError, OSError.

    A file with several links counts once.
    """
    with _opened_mirror(tree, repository, layout, state, newest, lambda _error: None) as mirror:
        mirror.reads_contents = False
        for _ in mirror.listed(state, newest):
            pass
        return mirror.digested


@contextmanager
def _opened_mirror(
    tree: Tree, repository: Path, layout: Layout, state: State, newest: int, report: _Report
) -> Iterator["_Mirror"]:
    with ExitStack() as stack:
        recorded = open_recorded(Repository(tree, repository), newest)
        if recorded is not None:
            stack.callback(recorded.close)
        source = stack.enter_context(Source.open(repository, extras=NO_EXTRAS))
        yield _Mirror(tree, layout, _numbered(tree, state), source, recorded, report)


def _numbered(tree: Tree, state: State) -> dict[bytes, Entry]:
    """What older lists say of paths that have a number in the place of a name, the newest of each."""
    known: dict[bytes, Entry] = {}
    for _, files in sorted(state.metadata.items(), reverse=True):
        for path in filter(None, (files.snapshot, files.diff)):
            for entry in readable_entries(tree, path):
                if entry.alternate_mirror is not None or entry.alternate_increment is not None:
                    known.setdefault(entry.path, entry)
    return known


class _Mirror:
    """What the mirror shows, as entries."""

    def __init__(
        self,
        tree: Tree,
        layout: Layout,
        numbered: dict[bytes, Entry],
        source: Source,
        recorded: Catalog | None,
        report: _Report,
    ) -> None:
        self._tree = tree
        self._layout = layout
        self._numbered = numbered
        self._source = source
        self._recorded = recorded
        self._report = report
        self.reads_contents = True
        self.digested = 0  # files whose digests are those of what they hold today
        self._groups: dict[tuple[int, int], Entry] = {}  # of several links, the first; by its inode in the mirror
        self._digests = LinkDigests()

    def listed(self, state: State, newest: int) -> Iterator[Entry]:
        """The entries of the session `newest`, in the order of a list."""
        files = state.metadata.get(newest)
        old = iter(()) if files is None or files.snapshot is None else readable_entries(self._tree, files.snapshot)
        yield from well_formed(self._joined(old, self._entries()), self._report)

    def _entries(self) -> Iterator[tuple[Entry, bytes]]:
        """What is there, and where on the disk; without digests. In the order of a list."""
        found = self._walk()
        if self._layout.quoting.is_active:  # which may put names in another order
            found = iter(sorted(found, key=lambda item: sort_key(item[0].path)))
        numbered = sorted(
            (each for each in self._numbered.values() if each.alternate_mirror is not None),
            key=lambda entry: sort_key(entry.path),
        )
        for entry, path in found:
            while numbered and sort_key(numbered[0].path) < sort_key(entry.path):
                yield from self._with_number(numbered.pop(0))
            yield entry, path
        for each in numbered:
            yield from self._with_number(each)

    def _walk(self) -> Iterator[tuple[Entry, bytes]]:
        for found in self._source.walk(lambda _path, _status: False):
            if isinstance(found, Unreadable):
                self._report(found.error)
                continue
            path = self._layout.quoting.unquote(found.path) if self._layout.quoting.is_active else found.path
            old = self._numbered.get(path)
            number = None if old is None else old.alternate_increment
            yield found.entry._replace(path=path, link_group=None, alternate_increment=number), found.path

    def _with_number(self, old: Entry) -> Iterator[tuple[Entry, bytes]]:
        path = self._layout.mirror_path(old)
        try:
            status = self._tree.stat(path)
            target = self._tree.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
        except OSError:  # it went since
            return
        entry = entry_of(old.path, status, target)._replace(link_group=None, alternate_mirror=old.alternate_mirror)
        yield entry, path

    def _joined(self, old: Iterator[Entry], found: Iterator[tuple[Entry, bytes]]) -> Iterator[Entry]:
        """What the old list has, and what only the mirror has."""
        recorded, shown = next(old, None), next(found, None)
        while recorded is not None or shown is not None:
            if recorded is not None and (shown is None or sort_key(recorded.path) <= sort_key(shown[0].path)):
                if shown is not None and shown[0].path == recorded.path:
                    shown = next(found, None)
                yield self._remembered(recorded)
                recorded = next(old, None)
            else:
                assert shown is not None
                yield self._complete(*shown)
                shown = next(found, None)

    def _remembered(self, entry: Entry) -> Entry:
        """A record that could be read; of several links the first may be one that could not."""
        if entry.link_group is None:
            return entry
        path = self._layout.mirror_path(entry)
        try:
            status = self._tree.stat(path)
        except OSError:
            return entry
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = self._groups.setdefault((status.st_dev, status.st_ino), entry)
            entry = entry._replace(link_group=first.link_group)
        self._digests.remember(entry)
        if self._digests.of(entry) is None:
            known = self._known(entry)
            if known is not None and (known.size_bytes, known.mtime_s) == (entry.size_bytes, entry.mtime_s):
                entry = entry._replace(sha1=known.sha1)
            elif status.st_size == entry.size_bytes:
                entry = self._with_digest(entry, path)
            self._digests.remember(entry)
        return entry

    def _known(self, entry: Entry) -> Entry | None:
        """What the catalog has of a regular file, if it has a digest of it."""
        if self._recorded is None or entry.kind is not Kind.REGULAR:
            return None
        try:
            newest = self._recorded.versions_of(entry.path)[-1:]
            known = self._recorded.entry(newest[0]) if newest and newest[0].last == LIVE else None
        except HistfsError:
            return None
        return known if known is not None and known.kind is Kind.REGULAR and known.sha1 is not None else None

    def _with_digest(self, entry: Entry, path: bytes) -> Entry:
        self.digested += 1
        if not self.reads_contents:
            return entry._replace(sha1=_ANY_SHA1)
        try:
            fd = self._tree.open_file(path)
            try:
                return entry._replace(sha1=sha1_of(fd))
            finally:
                os.close(fd)
        except OSError as exc:
            problem = f"cannot be read in the mirror ({exc.strerror}): it has no digest"
            self._report(DamagedError(problem, path=entry.path))
            return entry

    def _complete(self, entry: Entry, path: bytes) -> Entry:
        """With the digest of a regular file, or as another link of one."""
        if entry.kind is not Kind.REGULAR:
            return entry
        try:
            status = self._tree.stat(path)
        except OSError:  # it went since
            return entry
        key = status.st_dev, status.st_ino
        first = self._groups.get(key) if status.st_nlink > 1 else None
        if first is not None:
            numbers = entry.alternate_mirror, entry.alternate_increment
            first = first._replace(path=entry.path, sha1=None)
            return first._replace(alternate_mirror=numbers[0], alternate_increment=numbers[1])
        known = self._known(entry)
        if known is not None:
            entry = entry._replace(size_bytes=known.size_bytes, mtime_s=known.mtime_s, sha1=known.sha1)
        else:
            entry = self._with_digest(entry, path)
        if status.st_nlink > 1:
            entry = entry._replace(link_group=LinkGroup(status.st_nlink, status.st_ino, status.st_dev))
            self._groups[key] = entry
        self._digests.remember(entry)
        return entry


def with_extras_of_mirror(
    tree: Tree, layout: Layout, state: State, newest: int, which: Extras, entries: Iterator[Entry], report: _Report
) -> Iterator[Entry]:
    """`entries` with what their files say of `which`; in its place stands what can be read of what was recorded."""
    with SessionExtras(tree, state, newest, which, lambda _error: None) as recorded:
        for entry in entries:
            known = recorded.added_to(entry) if not recorded.is_empty else entry
            path = layout.mirror_path(entry)
            try:
                shown = read_extras(tree, entry._replace(path=path), which)
            except (OSError, FormatError) as exc:
                if not isinstance(exc, FileNotFoundError | NotADirectoryError):
                    report(DamagedError("its extended attributes in the mirror cannot be read", path=entry.path))
                shown = entry
            yield entry._replace(xattrs=known.xattrs or shown.xattrs, acl=known.acl or shown.acl)
