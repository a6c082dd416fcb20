"""Where things are in a repository: names on disk, and what the names in the data directory say.

The functions are pure but for `read_layout` and `read_state`, which list and read through a Tree.
Paths returned here are on-disk paths relative to the repository's root, quoted where it quotes.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from histfs.errors import FormatError
from histfs.store.entry import Entry, join
from histfs.store.format.listing import lists_needed
from histfs.store.format.names import format_increment_name, parse_increment_name
from histfs.store.format.quoting import NO_QUOTING, Quoting
from histfs.store.format.stats import SessionStatistics, parse_session_statistics
from histfs.store.tree import Tree

DATA = b"rdiff-backup-data"
INCREMENTS = DATA + b"/increments"
_LONG_NAMES = b"long_filename_data"
LOCK = DATA + b"/lock.yml"
TEMPORARY = b"rdiff-backup.tmp."  # as other programs call what they will rename (docs/format.md 1)
CHARS_TO_QUOTE = DATA + b"/chars_to_quote"
SPECIAL_ESCAPES = DATA + b"/special_escapes"
OWN = DATA + b"/histfs"  # what other programs leave alone (docs/format.md 8.5)
CATALOG = OWN + b"/catalog.sqlite"

# Up to which session (decimal) statistics count what was removed from the history afterwards.
STATISTICS_DO_NOT_HOLD = OWN + b"/paths-were-removed"

# What files of a session are called in front of its time (docs/format.md 1.2).
XATTRS = b"extended_attributes"
ACLS = b"access_control_lists"

# The name of an increment adds at most this much to the name of the file (docs/format.md 3.4).
_LONGEST_SUFFIX = 50
NAME_MAX = 255
_TYPES = (b"snapshot.gz", b"diff.gz", b"missing", b"dir")
_STATISTICS_BYTES = 64 * 1024
_LIKE_AN_INCREMENT = re.compile(rb"\.(?:snapshot|diff|dir|missing|data)(?:\.gz)?(?:/|\Z)")


class Layout(NamedTuple):
    """The rules by which one repository names its files."""

    quoting: Quoting = NO_QUOTING
    times_without_colons: bool = False  # how new names spell times; both spellings may be there (docs/format.md 2.1)
    long_names_are_plain: bool = False  # whether their directory is unquoted where its name would be quoted

    def quoted(self, path: bytes) -> bytes:
        if not self.quoting.is_active:
            return path
        return b"/".join(map(self.quoting.quote, path.split(b"/"))) if path else path

    def mirror_path(self, entry: Entry) -> bytes:
        """Where the mirror keeps `entry` (docs/format.md 3.4)."""
        if entry.alternate_mirror is not None:
            return join(self.long_names, self.quoting.quote(b"%d" % entry.alternate_mirror))
        return self.quoted(entry.path)

    @property
    def long_names(self) -> bytes:
        """The directory with what has a number in the place of a name (docs/format.md 3.4)."""
        return join(DATA, _LONG_NAMES if self.long_names_are_plain else self.quoting.quote(_LONG_NAMES))

    def increments_of(self, entry: Entry) -> tuple[bytes, bytes]:
        """The directory with the increments of `entry`, and the (unquoted) base of their names."""
        if not entry.path:
            return DATA, b"increments"
        number = entry.alternate_increment if entry.alternate_mirror is None else entry.alternate_mirror
        if number is not None:
            return self.long_names, b"%d" % number
        return (join(INCREMENTS, self.quoted(entry.parent)) if entry.parent else INCREMENTS), entry.name

    def increment_path(self, entry: Entry, session_time: int, type_: bytes, *, compressed: bool = False) -> bytes:
        directory, base = self.increments_of(entry)
        return join(directory, self._name(base, session_time, type_, compressed))

    def data_path(self, base: bytes, session_time: int, type_: bytes, *, compressed: bool = False) -> bytes:
        """A file of a session directly in the data directory."""
        return join(DATA, self._name(base, session_time, type_, compressed))

    def _name(self, base: bytes, session_time: int, type_: bytes, compressed: bool) -> bytes:
        without_colons = self.times_without_colons
        name = format_increment_name(base, session_time, type_, compressed=compressed, without_colons=without_colons)
        return self.quoting.quote(name)

    def increment_at(self, path: bytes) -> tuple[bytes, int] | None:
        """Which path an increment, the file `path` in the repository, leads back, and to which session's time.

        None if its name is not that of one, or has a number in the place of the path: `numbered_increment_at`.
        """
        directory, _, name = self.quoting.unquote(path).rpartition(b"/")
        parsed = parse_increment_name(name)
        if parsed is None or parsed.type == b"data":
            return None
        if directory == DATA:
            return (b"", parsed.time) if parsed.base == b"increments" else None
        if directory == INCREMENTS:
            return parsed.base, parsed.time
        above = directory.removeprefix(INCREMENTS + b"/")
        return None if above == directory else (join(above, parsed.base), parsed.time)

    def numbered_increment_at(self, path: bytes) -> tuple[int, int] | None:
        """The same for an increment that has a number in the place of a long name (docs/format.md 3.4): that number."""
        directory, _, name = self.quoting.unquote(path).rpartition(b"/")
        parsed = parse_increment_name(name)
        if parsed is None or parsed.type == b"data" or not parsed.base.isdigit():
            return None
        if directory != join(DATA, _LONG_NAMES):
            return None
        return int(parsed.base), parsed.time

    def temporary_names(self, first: int) -> Iterator[bytes]:
        """Names for what will be renamed, with the numbers from `first` on. Quoted, so that others can remove them."""
        return (self.quoting.quote(b"%b%d" % (TEMPORARY, number)) for number in itertools.count(first))

    def increment_name_is_too_long(self, name: bytes) -> bool:
        """As other programs decide it, or as one would not fit, which these may find out too late."""
        return len(self.quoting.quote(name)) + _longest_suffix(self.quoting) > NAME_MAX

    def increments_would_collide(self, directory: bytes) -> bool:
        """Whether increments of what lies in `directory` need a directory that could be taken for an increment.

        One may even exist of that name; other programs stumble over the directory alone (docs/format.md, trap 20).
        """
        if _LIKE_AN_INCREMENT.search(directory) is None:
            return False
        return any(parse_increment_name(name) is not None for name in directory.split(b"/"))

    def mirror_name_is_too_long(self, name: bytes) -> bool:
        return len(self.quoting.quote(name)) > NAME_MAX


class MetadataFiles(NamedTuple):
    """The metadata of one session on disk: a full list, a reverse diff, or (while it is replaced) both."""

    snapshot: bytes | None = None
    diff: bytes | None = None


class State(NamedTuple):
    """What the names in the data directory say. Times are seconds since the epoch, values paths on disk."""

    markers: dict[int, bytes]
    metadata: dict[int, MetadataFiles]
    root_increments: dict[int, bytes]
    error_logs: dict[int, bytes]
    xattrs: dict[int, bytes]
    acls: dict[int, bytes]
    statistics: set[int]  # the times of these

    @property
    def unfinished(self) -> int | None:
        """The session that runs or died: with two markers the newer one (docs/format.md 7.3).

        If its marker is lost, what else it left tells its time; else it is taken for one of a second later.
        """
        if len(self.markers) > 1:
            return max(self.markers)
        if not self.has_lost_marker:
            return None
        good = min(self.markers)
        left = {*self.metadata, *self.error_logs, *self.xattrs, *self.acls, *self.statistics}
        return max((time for time in left if time > good), default=good + 1)

    @property
    def has_lost_marker(self) -> bool:
        """Whether a session was cut off, and its marker is lost.

        An increment of the root is the first thing that a session writes of the one before, and goes when it is undone:
        one of the newest session is not there at rest (docs/format.md 7.3).
        """
        return len(self.markers) == 1 and max(self.root_increments, default=0) >= min(self.markers)

    @property
    def has_old_marker(self) -> bool:
        """Whether sessions have finished after that of the only marker, so that more than one would be undone."""
        if not self.has_lost_marker:
            return False
        good = min(self.markers)
        return max(self.root_increments) > good or sum(time > good for time in self.metadata) > 1

    @property
    def mirror_time(self) -> int | None:
        """The newest finished session; None if there is none."""
        if self.markers:
            return min(self.markers)
        # Without any marker a single list is what a first session left that died (7.2); several are a
        # repository that lost its marker, whose newest list is the best that is known.
        return max(self.metadata) if len(self.metadata) > 1 else None

    @property
    def sessions(self) -> tuple[int, ...]:
        """The finished sessions, oldest first: every time that a marker, a list or a root increment names (2.4)."""
        newest = self.mirror_time
        if newest is None:
            return ()
        times = {*self.markers, *self.metadata, *self.root_increments}
        return tuple(sorted(time for time in times if time <= newest))

    @property
    def is_failed_first_session(self) -> bool:
        """No session ever finished here (docs/format.md 7.2)."""
        return not self.markers and len(self.metadata) <= 1 and len(self.error_logs) <= 1

    def listing_files(self, session_time: int) -> list[bytes]:
        """The metadata files from which the list of `session_time` follows: its own first, a snapshot last.

        Raises DamagedError where the chain is broken (docs/format.md 5.3, 5.5).
        """
        types = {time: b"diff" if files.snapshot is None else b"snapshot" for time, files in self.metadata.items()}
        needed = lists_needed(session_time, types, {*self.root_increments, *self.markers})
        return [self.metadata[time].snapshot or self.metadata[time].diff or b"" for time in needed]


def parse_state(names: Iterable[bytes], quoting: Quoting) -> State:
    """The State that the `names` in the data directory make (docs/format.md 1.1, 1.2)."""
    state = State({}, {}, {}, {}, {}, {}, set())
    for name in sorted(names):
        parsed = parse_increment_name(quoting.unquote(name) if quoting.is_active else name)
        if parsed is None:
            continue
        path = join(DATA, name)
        match parsed.base, parsed.type:
            case b"current_mirror", b"data":
                state.markers[parsed.time] = path
            case b"mirror_metadata", b"snapshot" | b"diff":
                files = state.metadata.get(parsed.time, MetadataFiles())
                state.metadata[parsed.time] = (
                    files._replace(diff=path) if parsed.type == b"diff" else files._replace(snapshot=path)
                )
            case b"increments", _:
                state.root_increments[parsed.time] = path
            case b"error_log", b"data":
                state.error_logs[parsed.time] = path
            case base, b"snapshot" if base == XATTRS:
                state.xattrs[parsed.time] = path
            case base, b"snapshot" if base == ACLS:
                state.acls[parsed.time] = path
            case b"session_statistics" | b"file_statistics", b"data":
                state.statistics.add(parsed.time)
    _join_split_sessions(state)
    return state


def _join_split_sessions(state: State) -> None:
    """Put a full list that stands an hour after its increments back to their time.

    Some writers west of Greenwich, in zones with a half hour, write names that are an hour off when they are read. As
    a diff is named anew with each increment, only the full lists that stay are apart from theirs (docs/format.md 2.2).
    """
    for time in state.root_increments.keys() - state.metadata.keys() - state.markers.keys():
        list_time = time + 3600
        files = state.metadata.get(list_time)
        if files is None or files.snapshot is None or list_time in state.root_increments or list_time in state.markers:
            continue
        state.metadata[time] = state.metadata.pop(list_time)
    # Those of attributes are never replaced by diffs, so all of them are apart.
    sessions = {*state.markers, *state.metadata, *state.root_increments}
    for files_of in (state.xattrs, state.acls):
        for list_time in [time for time in files_of if time not in sessions and time - 3600 in sessions]:
            files_of.setdefault(list_time - 3600, files_of.pop(list_time))


def read_layout(tree: Tree) -> Layout:
    """The repository's way to quote names; none where the files that tell it are missing (1.4).

    The directory of long names may have its plain name all the same, as histfs once wrote it.
    """
    quoting = Quoting.parse(_read_optional(tree, CHARS_TO_QUOTE), _read_optional(tree, SPECIAL_ESCAPES))
    layout = Layout(quoting, times_without_colons=quoting.quotes(b":"))
    plain = layout._replace(long_names_are_plain=True)
    if layout.long_names == plain.long_names or tree.exists(layout.long_names) or not tree.exists(plain.long_names):
        return layout
    return plain


def read_state(tree: Tree, layout: Layout) -> State:
    return parse_state(tree.names(DATA), layout.quoting)


def read_statistics(tree: Tree, layout: Layout, session_time: int) -> SessionStatistics | None:
    """What a session has counted; None where that cannot be read: it is for people, and nothing depends on it."""
    try:
        path = layout.data_path(b"session_statistics", session_time, b"data")
        return parse_session_statistics(tree.read_small_file(path, limit=_STATISTICS_BYTES))
    except (OSError, FormatError):
        return None


def _longest_suffix(quoting: Quoting) -> int:
    """What the name of an increment adds to that of the file, in bytes: 50 letters `a`, quoted, or what it takes."""
    if not quoting.is_active:
        return _LONGEST_SUFFIX
    digit = next((digit for digit in b"0123456789" if quoting.quotes(b"%c" % digit)), ord("0"))
    time = b"0000-00-00T00:00:00+00:00".replace(b"0", b"%c" % digit)
    return max(len(quoting.quote(text)) for text in (b"a" * _LONGEST_SUFFIX, *(b".%b.%b" % (time, t) for t in _TYPES)))


def _read_optional(tree: Tree, path: bytes) -> bytes:
    try:
        return tree.read_small_file(path, limit=4096)
    except FileNotFoundError:
        return b""
