"""Removing paths from all sessions, as if they had never been there.

Rules. A session shows all of a removed path or nothing of it, at every moment: half of it would be damage, to us and to
other programs. (Only extended attributes and access control lists go a step before, as they may not name what no list
has.) A list that cannot be read to its end stops it before anything is changed. Records that stay are carried over as
the bytes that they are.

Order.
1. Everything is read: what the lists show of the paths, which numbers stand for long names, which digests must be
   handed on to other links.
2. The paths are hidden, from the oldest session to the newest: what tells of their attributes goes, then the records
   in the list. A difference says in addition that what newer lists show is absent, or the newer state would show
   through. Each file is replaced as a whole, by one that is on the disk.
   Before that digests are handed on.
3. Their contents go: nothing leads there any more.
4. The differences are written once more, without what is absent, as that is so by now; and the statistics of files.
It can be stopped anywhere, and repeated: what was done is then simply not found any more.
"""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, FormatError, HistfsError, UnfinishedError
from histfs.store.catalog import discard_catalog, update_catalog
from histfs.store.compression import compress, read_decompressed
from histfs.store.entry import Entry, Kind, is_below, join, parent_of, sort_key
from histfs.store.files import Attributes, WritableTree
from histfs.store.format import attributes, metadata
from histfs.store.format.names import IncrementName, parse_increment_name
from histfs.store.format.stats import parse_file_statistic
from histfs.store.increments import mtime_ns
from histfs.store.layout import DATA, INCREMENTS, OWN, STATISTICS_DO_NOT_HOLD, TEMPORARY, State, read_state
from histfs.store.lock import MAKE_ROOM, open_locked
from histfs.store.repository import Repository
from histfs.store.sums import tidy
from histfs.store.tree import NotRegularError

_ATTRIBUTES = (b"extended_attributes", b"access_control_lists", b"win_access_control_lists")
_NEW = join(DATA, TEMPORARY + b"remove")
_LONGEST_LINE = 1 << 20
_ABSENT = b"\n  Type None\n"


class RemovedPaths(NamedTuple):
    """What was changed (or would be), as paths on disk; and the paths of which nothing was found."""

    rewritten: tuple[bytes, ...]
    removed: tuple[bytes, ...]
    missing: tuple[bytes, ...]


def remove_paths(
    repository: Path,
    paths: Iterable[bytes],
    *,
    dry_run: bool = False,
    fsync: bool = True,
    tell: Callable[[int], object] = lambda _size_bytes: None,
) -> RemovedPaths:
    """Remove `paths`, none of them the root or in the data directory, and all below them, from the whole history.

    `tell` is called with the size of each list that was read. Without `fsync` a crash of the system may cost the
    repository. Raises HistfsError.
    """
    again = "run it again to remove the rest"
    on_full_disk = f"{MAKE_ROOM}, and {again}"
    with open_locked(repository, verb="remove", advice=again, on_full_disk=on_full_disk, fsync=fsync) as tree:
        opened = Repository(tree, repository)
        state = read_state(tree, opened.layout)
        if state.unfinished is not None or state.mirror_time is None:
            raise UnfinishedError(
                "has a session that did not finish",
                path=repository,
                advice="`histfs regress` undoes it; then nothing stands in the way",
            )
        with closing(_Shown()) as shown:
            removal = _Removal(tree, opened, state, sorted(set(paths)), shown, tell)
            removal.survey()
            if not dry_run and removal.has_found_something:
                removal.run()
            return removal.outcome()


class _Shown:
    """Which of the removed paths a list shows. In a private database, as there may be millions."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            "pragma journal_mode = off; pragma synchronous = off;"
            "create table shown (key blob, time integer, primary key (key, time)) without rowid; begin"
        )

    def close(self) -> None:
        self._database.close()

    def add(self, time: int, path: bytes) -> None:
        self._database.execute("insert or ignore into shown values (?, ?)", (sort_key(path), time))

    def between(self, first: int, last: int) -> Iterator[bytes]:
        """The paths that lists after `first` up to `last` show, in the order of lists."""
        query = "select distinct key from shown where time > ? and time <= ? order by key"
        for (key,) in self._database.execute(query, (first, last)):
            yield key.replace(b"\0", b"/")


class _Removal:
    def __init__(
        self,
        tree: WritableTree,
        repository: Repository,
        state: State,
        paths: list[bytes],
        shown: _Shown,
        tell: Callable[[int], object],
    ) -> None:
        self._tell = tell
        self._tree = tree
        self._repository = repository
        self._layout = repository.layout
        self._state = state
        self._paths = paths
        self._shown = shown
        self._with_records: set[bytes] = set()  # files that name one of the paths
        self._with_links: set[bytes] = set()  # lists in which files with several links stay
        # Of links that go, by what tells their file, with the lists that have them.
        self._digests: dict[tuple[int, ...], set[tuple[bytes, bytes]]] = {}
        self._going: set[int | None] = set()  # numbers for long names
        self._staying: set[int | None] = set()
        self._knows_all = state.metadata.keys() >= set(state.sessions)
        self._found: set[bytes] = set()
        self._contents: list[bytes] = []

    @property
    def has_found_something(self) -> bool:
        return bool(self._with_records or self._contents)

    def outcome(self) -> RemovedPaths:
        missing = tuple(path for path in self._paths if path not in self._found)
        return RemovedPaths(tuple(sorted(self._with_records)), tuple(sorted(self._contents)), missing)

    def run(self) -> None:
        newest = max(self._state.markers)
        discard_catalog(self._tree)  # it names what goes
        self._keep_note(newest)
        self._hand_on_digests()
        hidden = self._hide()
        self._tree.sync()
        self._remove_contents(newest)
        for path in hidden:
            self._replace(path, self._kept_records(path))
        for path in self._files_of(b"file_statistics"):
            if path in self._with_records:
                self._replace(path, self._kept_lines(path))
        self._tree.sync()
        update_catalog(self._tree, self._repository)

    # What there is

    def survey(self) -> None:
        """Read everything. DamagedError if something cannot be read to its end."""
        for time, files in self._state.metadata.items():
            for path in files:
                if path is not None:
                    self._survey_list(time, path)
        for base in _ATTRIBUTES:
            for path in self._files_of(base):
                for name, _ in self._attribute_records(path):
                    self._note(name, path)
        for path in self._files_of(b"file_statistics"):
            for name, _ in self._lines(path):
                self._note(name, path)
        for wanted in self._paths:
            contents = [*self._mirror_of(wanted), *self._increments_of(wanted)]
            if contents:
                self._found.add(wanted)
            self._contents += contents
        self._contents += self._numbered_files()

    def _survey_list(self, time: int, path: bytes) -> None:
        for name, record in self._list_records(path):
            goes = self._note(name, path)
            if goes and _ABSENT not in record and name is not None:
                self._shown.add(time, name)
            if b"\n  Alternate" not in record and b"\n  NumHardLinks " not in record and name is not None:
                continue
            try:
                entry = metadata.parse_record(record)
            except FormatError:
                self._knows_all = False
                continue
            self._note_links(entry, path, goes=goes)
            numbers = self._going if goes else self._staying
            numbers.update((entry.alternate_mirror, entry.alternate_increment))

    def _note_links(self, entry: Entry, path: bytes, *, goes: bool) -> None:
        if entry.file_key is None:
            return
        if not goes:
            self._with_links.add(path)
        elif entry.sha1 is not None:
            self._digests.setdefault(entry.file_key, set()).add((path, entry.sha1))

    def _note(self, name: bytes | None, path: bytes) -> bool:
        """Whether what `name` stands for in the file `path` goes."""
        wanted = None if name is None else next((one for one in self._paths if is_below(name, one)), None)
        if wanted is None:
            return False
        self._found.add(wanted)
        self._with_records.add(path)
        return True

    def _mirror_of(self, path: bytes) -> list[bytes]:
        if not self._has_place(path):
            return []
        place = self._layout.quoted(path)
        return [place] if self._tree.exists(place) else []

    def _has_place(self, path: bytes) -> bool:
        """Whether a file of this name can be; what cannot lies under a number."""
        return not any(map(self._layout.mirror_name_is_too_long, path.split(b"/")))

    def _increments_of(self, path: bytes) -> list[bytes]:
        """Its increments under its own name, and the directory of those below it."""
        if not self._has_place(path):
            return []
        directory, base = self._layout.increments_of(Entry(path, Kind.ABSENT))
        try:
            names = self._tree.names_of_files(directory)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        own = [name for name in names if (parsed := self._parse(name)) is not None and parsed.base == base]
        below = join(INCREMENTS, self._layout.quoted(path))
        return [*(join(directory, name) for name in own), *([below] if self._tree.is_directory(below) else [])]

    def _numbered_files(self) -> list[bytes]:
        """What lies under numbers that no record has any more, after a removal that was stopped too.

        Where there is a record that cannot be read, only what goes for sure.
        """
        found = []
        for name in self._tree.names(self._layout.long_names) if self._tree.exists(self._layout.long_names) else []:
            parsed = self._parse(name)
            base = self._layout.quoting.unquote(name) if parsed is None else parsed.base
            number = int(base) if base.isdigit() and len(base) < 20 else None
            if number is not None and number not in self._staying and (self._knows_all or number in self._going):
                found.append(join(self._layout.long_names, name))
        return found

    def _parse(self, name: bytes) -> IncrementName | None:
        return parse_increment_name(self._layout.quoting.unquote(name))

    def _files_of(self, base: bytes) -> list[bytes]:
        """The files in the data directory that are called so, the oldest first."""
        found = []
        for name in self._tree.names_of_files(DATA):
            parsed = self._parse(name)
            if parsed is not None and parsed.base == base:
                found.append((parsed.time, join(DATA, name)))
        return [path for _, path in sorted(found)]

    # What is done

    def _keep_note(self, newest: int) -> None:
        """From now on the statistics of sessions are not those of what is there."""
        self._tree.make_directories(OWN)
        self._tree.unlink(STATISTICS_DO_NOT_HOLD, missing_ok=True)
        self._tree.write_file(STATISTICS_DO_NOT_HOLD, [b"%d\n" % newest], durable=True)

    def _hand_on_digests(self) -> None:
        """Only the first link of a file has its digest: where that one goes, the first that stays gets it too."""
        for path in sorted(self._with_links) if self._digests else ():
            self._replace(path, self._with_digests(path))

    def _with_digests(self, path: bytes) -> Iterator[bytes]:
        has_digest: set[tuple[int, ...]] = set()
        for name, record in self._list_records(path):
            if b"\n  NumHardLinks " in record and not self._goes(name):
                yield self._with_digest(path, record, has_digest)
            else:
                yield record

    def _with_digest(self, path: bytes, record: bytes, has_digest: set[tuple[int, ...]]) -> bytes:
        try:
            entry = metadata.parse_record(record)
        except FormatError:
            return record
        key = entry.file_key
        known = set() if key is None or key in has_digest else self._digests.get(key, set())
        # Those of this list, else of all: the same size and second do not say that it was the same content always.
        digests = {sha1 for there, sha1 in known if there == path} or {sha1 for _, sha1 in known}
        if key is None or len(digests) != 1:
            return record
        has_digest.add(key)
        return record if entry.sha1 is not None else metadata.format_record(entry._replace(sha1=digests.pop()))

    def _hide(self) -> list[bytes]:
        """Hide the paths in all sessions; the differences that say more now than they have to."""
        described: dict[int, list[bytes]] = {}
        for base in _ATTRIBUTES:
            for path in self._files_of(base):
                parsed = self._parse(path.rpartition(b"/")[2])
                if parsed is not None and path in self._with_records:
                    described.setdefault(parsed.time, []).append(path)
        hidden = []
        for time in sorted({*self._state.metadata, *described}):
            for path in described.get(time, ()):
                self._replace(path, (record for name, record in self._attribute_records(path) if not self._goes(name)))
            files = self._state.metadata.get(time)
            if files is None:
                continue
            if files.diff is not None and files.snapshot is None and self._hide_in_difference(time, files.diff):
                hidden.append(files.diff)
            for name in files if files.snapshot is not None else ():
                if name is not None and name in self._with_records:
                    self._replace(name, self._kept_records(name))
        return hidden

    def _hide_in_difference(self, time: int, path: bytes) -> bool:
        """Whether records of absence were written."""
        last = next((later for later in sorted(self._state.metadata) if later > time and self._is_full(later)), time)
        is_shown = next(self._shown.between(time, last), None) is not None
        if is_shown or path in self._with_records:
            self._replace(path, _with_absent(self._kept_named(path), self._shown.between(time, last)))
        return is_shown

    def _is_full(self, time: int) -> bool:
        return self._state.metadata[time].snapshot is not None

    def _remove_contents(self, newest: int) -> None:
        """First in the mirror: as long as something else is left, a removal that is repeated mends times there too."""
        parents = {parent_of(path) for path in self._paths}
        before = {parent: status for parent in parents if (status := self._directory_status(parent)) is not None}
        for path in self._paths:
            for place in self._mirror_of(path):
                self._tree.remove_tree(place)
        for parent, status in before.items():
            self._restore_time(parent, status, newest)
        for place in self._contents:
            self._tree.remove_tree(place)
        with suppress(OSError):  # nobody needs sums, and the removal must come to its end
            tidy(self._tree)

    def _directory_status(self, directory: bytes) -> os.stat_result | None:
        place = self._layout.quoted(directory)
        return self._tree.stat(place) if self._has_place(directory) and self._tree.is_directory(place) else None

    def _restore_time(self, directory: bytes, before: os.stat_result, newest: int) -> None:
        """Give a directory of the mirror the time that is recorded; what was removed from it has changed it."""
        place = self._layout.quoted(directory)
        if not self._tree.is_directory(place):
            return  # it was removed as well
        entry = next(self._repository.snapshot(newest).entries(directory, lambda _error: None), None)
        if entry is None or entry.path != directory:
            return
        mode = stat.S_IMODE(before.st_mode)
        wanted = Attributes(mode, before.st_uid, before.st_gid, mtime_ns(entry, before))
        self._tree.set_attributes(place, Kind.DIRECTORY, wanted)

    def _replace(self, path: bytes, blocks: Iterable[bytes]) -> None:
        self._tree.unlink(_NEW, missing_ok=True)
        self._tree.write_file(_NEW, compress(blocks) if path.endswith(b".gz") else blocks, durable=True)
        self._tree.rename(_NEW, path)
        self._tree.sync_directory(DATA)

    # Records

    def _goes(self, name: bytes | None) -> bool:
        return name is not None and any(is_below(name, path) for path in self._paths)

    def _kept_records(self, path: bytes) -> Iterator[bytes]:
        return (record for _, record in self._kept_named(path))

    def _kept_named(self, path: bytes) -> Iterator[tuple[bytes | None, bytes]]:
        """The records of a list that stay."""
        return ((name, record) for name, record in self._list_records(path) if not self._goes(name))

    def _list_records(self, path: bytes) -> Iterator[tuple[bytes | None, bytes]]:
        return self._records(path, b"File ", metadata.MAX_RECORD_BYTES, metadata.unquote_path)

    def _attribute_records(self, path: bytes) -> Iterator[tuple[bytes | None, bytes]]:
        def unquote(text: bytes) -> bytes:
            return b"" if text == b"." else attributes.unquote_octal(text)

        return self._records(path, b"# file: ", attributes.MAX_RECORD_BYTES, unquote)

    def _records(
        self, path: bytes, start: bytes, limit: int, unquote: Callable[[bytes], bytes]
    ) -> Iterator[tuple[bytes | None, bytes]]:
        """The raw records of a file with their paths; None for the path of what is none."""
        for record in metadata.split_records(self._read(path), start, limit):
            if len(record) > limit:
                raise DamagedError("has a record that is too long to be carried over", path=path)
            yield unquote(record[len(start) : record.find(b"\n")]) if record.startswith(start) else None, record

    def _kept_lines(self, path: bytes) -> Iterator[bytes]:
        return (line for name, line in self._lines(path) if not self._goes(name))

    def _lines(self, path: bytes) -> Iterator[tuple[bytes | None, bytes]]:
        """The lines of file statistics, with their ends; None for the path of what is none."""
        end: bytes | None = None
        held = b""
        for block in self._read(path):
            end = end or (b"\0" if b"\0" in block else b"\n")
            *lines, held = (held + block).split(end)
            if len(held) > _LONGEST_LINE:
                raise DamagedError("has a line that is too long to be carried over", path=path)
            yield from ((_name_in(line), line + end) for line in lines)
        if held:
            yield _name_in(held), held

    def _read(self, path: bytes) -> Iterator[bytes]:
        try:
            fd = self._tree.open_file(path)
        except NotRegularError as exc:
            raise DamagedError("is not a regular file", path=path) from exc
        try:
            yield from read_decompressed(fd)
            self._tell(os.fstat(fd).st_size)
        except HistfsError as error:
            error.path = path
            error.advice = "nothing can be removed from it, so nothing was"
            raise
        finally:
            os.close(fd)


def _name_in(line: bytes) -> bytes | None:
    try:
        return parse_file_statistic(line).path
    except FormatError:
        return None


def _with_absent(records: Iterable[tuple[bytes | None, bytes]], absent: Iterator[bytes]) -> Iterator[bytes]:
    """A list's records, and those that say that something is absent, in order."""
    waiting = next(absent, None)
    for name, record in records:
        while waiting is not None and name is not None and sort_key(waiting) < sort_key(name):
            yield metadata.format_record(Entry(waiting, Kind.ABSENT))
            waiting = next(absent, None)
        yield record
    while waiting is not None:
        yield metadata.format_record(Entry(waiting, Kind.ABSENT))
        waiting = next(absent, None)
