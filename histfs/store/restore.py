"""The operation `restore`: write what a snapshot holds to a target, which may hold some of it, or other things.

Everything is written below a descriptor of the directory that holds the target, by names that the list of files gives
and whose parents are directories of the same list: nothing leads out of the target, whatever a record or another user
says, and nothing into the repository, which may lie in it. Directories get owner, mode and time when complete. A file
whose content turns out wrong, or does not come to its end, is removed, and what it was to replace stays.

What is in the target as it should be is not touched. A file is taken for that by type, size and time; one of the right
size and another time by its SHA1; with `checksum` all are. A file that differs is written anew beside the old one,
which it replaces at once (`target`): writing the ranges that differ into the file would be quicker for large ones, and
would leave one that is neither old nor new when it is interrupted. So what was interrupted can be repeated.

Where something may be deleted the list is read to its end before anything else: a name that is damaged looks like one
that was not there, and sums come last. If there is damage nothing is deleted, and no directory makes way.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from histfs.errors import EXIT_FILE_ERROR, DamagedError, HistfsError, NotFoundError, StorageError, storage_errors
from histfs.store import plan
from histfs.store.accounts import BY_NAME
from histfs.store.clearing import Clearing, Listed
from histfs.store.dress import Dress, mtime_ns_of
from histfs.store.entry import ALL_EXTRAS, Entry, Extras, Kind, LinkDigests, is_below, join
from histfs.store.extras import SessionExtras, recorded_extras
from histfs.store.files import write_blocks
from histfs.store.owners import Owners
from histfs.store.reach import Reach
from histfs.store.read_ahead import ReadAhead
from histfs.store.recorded import Recorded
from histfs.store.repository import Repository
from histfs.store.selection import Place, Selection, selected
from histfs.store.snapshot import Snapshot
from histfs.store.source import Found
from histfs.store.steps import Steps
from histfs.store.target import Manner, MustStayError, Step, Target, is_fatal
from histfs.store.target_place import check_target, check_what_is_there, resolved, target_errors, what_was_refused
from histfs.store.unfinished import Task
from histfs.store.writing import write_content


class RestoreOutcome(NamedTuple):
    """`files`: entries of all kinds that are in the target now; `errors`: those that are not, or not completely."""

    files: int
    errors: int


def restore(
    repository: Repository,
    path: bytes,
    session_time: int,
    target: Path,
    *,
    report: Callable[[HistfsError], None],
    tell: Callable[[Step, bytes], None] = lambda _step, _path: None,
    manner: Manner = Manner(),  # noqa: B008 - a value
    owners: Owners = BY_NAME,
    selection: Selection | None = None,
    extras: Extras = ALL_EXTRAS,
    never_drop_acls: bool = False,
    untrusted: bool = False,
) -> RestoreOutcome:
    """Restore what was at `path` at the session of `session_time` to `target`.

    What cannot be restored is told to `report`, and the rest goes on; each change to `tell`, with its path below
    `target`. `owners`: whose the files are. `selection`: what is meant; all else is neither restored nor deleted.
    `extras`, `never_drop_acls`, `untrusted`: see `Dress`; of what is untrusted no devices are made either. Raises
    UsageError, NotFoundError, StorageError.
    """
    with storage_errors(), closing(repository.snapshot(session_time)) as snapshot:
        place = resolved(target)
        check_target(repository.path, place, manner)
        dress = Dress(
            owners,
            recorded_extras(repository.state(), session_time, extras),
            never_drop_acls=never_drop_acls,
            report=report,
            untrusted=untrusted,
        )
        return _Restore(snapshot, path, manner, dress, selection, report, tell).run(place, target)


class _Directory(NamedTuple):
    """A directory on the way to the current entry. `others`: names that were in it, and that no entry had yet.

    `listed`: the names that the list has in it, also those that are not selected, as far as it has been read. `place`:
    where the selection is there, if there is one.
    """

    entry: Entry
    others: set[bytes]
    listed: set[bytes]
    was_there: bool
    changes: bool  # what was there gets other attributes
    is_elsewhere: bool  # in a file system that is mounted in the target
    place: Place | None


class _Link(NamedTuple):
    """The first link of a file: where it is in the target, and which file that is (None: one that will be made)."""

    path: bytes
    status: os.stat_result | None


class _Restore:
    def __init__(
        self,
        snapshot: Snapshot,
        path: bytes,
        manner: Manner,
        dress: Dress,
        selection: Selection | None,
        report: Callable[[HistfsError], None],
        tell: Callable[[Step, bytes], None],
    ) -> None:
        self._snapshot = snapshot
        self._path = path
        self._manner = manner
        self._dress = dress
        self._selection = selection
        self._report = report
        self._tell = tell
        self._files = 0
        self._errors = 0
        self._reach = Reach(snapshot, is_whole=not path and selection is None)
        self._is_damaged = False  # the list of files: then what it does not name may have been there
        self._digests = LinkDigests()
        self._links: dict[tuple[int, ...], _Link] = {}
        self._claimed: dict[tuple[int, int], tuple[int, ...]] = {}  # files of the target with several names
        self._let_go: Counter[tuple[int, int]] = Counter()  # names of files that a dry run would have taken away
        self._top = b""  # the path of the target below the directory that `_target` was opened by
        self._target: Target
        self._clearing: Clearing
        self._steps: Steps
        self._directories: list[_Directory] = []
        self._listed = Listed(path)
        self._ahead = ReadAhead(snapshot.repository, snapshot.time)

    def run(self, target: Path, typed: Path) -> RestoreOutcome:
        if self._manner.is_deleting:
            self._check_list()
        # Without its list a mode may grant too much, so the list is read also where it is not restored.
        with (
            self._snapshot.extras(self._dress.extras._replace(acls=True), self._failed) as extras,
            closing(self._recorded(extras)) as entries,
        ):
            return self._run(target, typed, entries)

    def _check_list(self) -> None:
        try:
            self._snapshot.check_list()
        except DamagedError as error:
            advice = "restore an older session, or with --merge"
            problem = f"the list of files is damaged, so nothing is deleted: {error.problem}"
            self._damaged(DamagedError(problem, path=error.path, at=error.at, advice=advice))

    def _run(self, target: Path, typed: Path, entries: Iterator[Entry]) -> RestoreOutcome:
        for entry in entries:
            if entry.path == self._path:
                break
        else:
            raise NotFoundError("was not there at this time", path=self._path, at=self._snapshot.time)
        may_remove = self._manner.is_deleting and self._selection is None and not self._is_damaged
        repository = os.fstat(self._snapshot.repository.tree.root_fd)
        manner, extras = self._manner, self._dress.extras
        meaning = b"" if self._selection is None else self._selection.meaning
        task = Task.of(repository, self._snapshot.time, self._path, meaning)
        with (
            target_errors(target, manner, lambda: self._files > 0),
            Target.open(target, manner, extras, repository, task, may_remove=may_remove) as self._target,
        ):
            self._top = self._target.top
            self._target.on_block = self._snapshot.repository.on_block
            self._steps = Steps(self._tell, self._top, dry_run=manner.dry_run)
            self._clearing = Clearing(self._target, self._selection, self._steps, self._stays)
            check_what_is_there(self._target, entry, target, typed, manner, self._report)
            if entry.kind is Kind.DIRECTORY:
                self._restore_entry(entry, self._top)  # what stops this stops all
                self._steps.done()
                with closing(self._read_ahead(self._selected(entry, entries))) as below:  # threads end before all else
                    self._restore_below(below)
            else:
                self._restore(entry, self._top)
            for error in what_was_refused(self._target, target):
                self._failed(error)
        return RestoreOutcome(self._files, self._errors)

    def _recorded(self, extras: SessionExtras) -> Generator[Entry, None, None]:
        """All entries, also those of links whose first one is not restored: it alone may have the digest."""
        for entry in self._snapshot.entries(on_damage=self._reach.once(self._damaged)):
            self._digests.remember(entry)
            self._reach.note(entry)
            yield extras.added_to(entry)

    def _selected(self, top: Entry, following: Iterator[Entry]) -> Iterator[Entry]:
        """What is to be restored below `top`."""
        below: Iterator[Entry] = itertools.takewhile(lambda entry: is_below(entry.path, self._path), following)
        if self._selection is None:
            return below
        surroundings = Recorded(self._snapshot, self._path)
        if self._manner.is_deleting:
            below = self._listed.noted(below)
        found = selected(itertools.chain([top], below), self._selection, surroundings, root=self._path)
        return itertools.islice(found, 1, None)

    def _read_ahead(self, entries: Iterator[Entry]) -> Generator[Entry, None, None]:
        """The same; contents are on their way, unless nothing is written, or little, as in what is there already."""
        yield from entries if self._manner.dry_run or self._manner.is_merging else self._ahead.along(entries)

    def _restore_below(self, entries: Iterator[Entry]) -> None:
        lost: bytes | None = None  # a directory that is not there, so that nothing can be restored in it
        try:
            for entry in entries:
                if lost is not None and is_below(entry.path, lost):
                    continue
                while not is_below(entry.path, self._directories[-1].entry.path):
                    self._leave()
                self._directories[-1].others.discard(entry.name)
                is_restored = self._restore(entry, self._place(entry.path))
                lost = entry.path if not is_restored and entry.kind is Kind.DIRECTORY else None
        except DamagedError as error:
            self._damaged(self._reach.cut_off(error))
        while self._directories:
            self._leave()

    def _place(self, path: bytes) -> bytes:
        """Where the entry `path` belongs in the target."""
        below = path[len(self._path) :].lstrip(b"/") if self._path else path
        return join(self._top, below) if below else self._top

    def _failed(self, error: HistfsError) -> None:
        self._errors += 1
        self._report(error)

    def _stays(self, error: StorageError) -> None:
        """Tell what is not deleted. That the repository stays is no failure: nothing else was to be expected."""
        if isinstance(error, MustStayError) and error.exit_code != EXIT_FILE_ERROR:
            self._report(error)
        else:
            self._failed(error)

    def _damaged(self, error: DamagedError) -> None:
        self._is_damaged = True
        self._failed(error)

    def _replace(self, path: bytes, found: Found | None) -> bool:
        """Begin that something takes the place of what was found; whether it shall be done indeed."""
        if found is not None and self._manner.dry_run and self._manner.backup_dir is None:
            self._let_go[found.inode] += 1
        return self._steps.begin(Step.NEW if found is None else Step.CHANGED, path)

    def _restore(self, entry: Entry, path: bytes) -> bool:
        """Whether `entry` is at `path` in the target now."""
        try:
            self._restore_entry(entry, path)
        except (DamagedError, StorageError) as error:
            self._steps.failed(self._target.is_gone)
            self._failed(error)
            return False
        except OSError as exc:
            self._steps.failed(self._target.is_gone)
            if not self._directories or is_fatal(exc, elsewhere=self._is_elsewhere()):
                raise  # it was all that was to be restored, or the rest will fail as well
            self._failed(StorageError(f"cannot be restored ({exc.strerror})", path=entry.path))
            return False
        self._steps.done()
        return True

    def _restore_entry(self, entry: Entry, path: bytes) -> None:
        is_new = self._directories and not self._directories[-1].was_there  # then nothing can be there
        found = None if is_new else self._target.find(path)
        if found is not None and found.entry.kind is not entry.kind:
            self._clearing.begin(found, itself=False)
        if entry.kind is Kind.DIRECTORY:
            self._restore_directory(entry, path, found)
        elif entry.kind is Kind.REGULAR:
            self._restore_file(entry, path, found)
        else:
            self._restore_special(entry, path, found)
        self._files += 1

    # Directories

    def _restore_directory(self, entry: Entry, path: bytes, found: Found | None) -> None:
        place = None if self._selection is None else self._place_of(entry, self._selection)
        listed = self._listed.names_in(entry.path)
        if found is not None and found.entry.kind is Kind.DIRECTORY:
            names = self._target.names(found, open_up=not self._manner.dry_run)
            changes = self._dress.change(entry, found.entry) is not plan.Change.NONE
            is_elsewhere = self._is_elsewhere() or self._target.is_elsewhere(path)
            self._directories.append(_Directory(entry, names, listed, True, changes, is_elsewhere, place))
            return
        if self._replace(path, found):
            if found is not None:
                self._target.make_way(found)
            self._target.tree.make_directory(path)
        self._directories.append(_Directory(entry, set(), listed, False, False, self._is_elsewhere(), place))

    def _is_elsewhere(self) -> bool:
        return bool(self._directories) and self._directories[-1].is_elsewhere

    def _place_of(self, entry: Entry, selection: Selection) -> Place:
        above = self._directories[-1].place if self._directories else None
        return selection.root if above is None else selection.enter(above, entry.name)

    def _leave(self) -> None:
        directory = self._directories.pop()
        path = self._place(directory.entry.path)
        try:
            names = directory.others - directory.listed
            if self._manner.is_deleting and not self._is_damaged:
                self._clearing.delete(path, names, directory.place, is_elsewhere=directory.is_elsewhere)
            elif names:
                self._target.leave_alone(path)
            if not self._manner.dry_run:
                if not self._directories:
                    self._target.finish(is_complete=not self._errors)  # it changes the directory
                found = self._target.find(path)
                if found is None or self._dress.change(directory.entry, found.entry) is not plan.Change.NONE:
                    attributes = self._dress.attributes(directory.entry, directory.entry.mtime_s * 10**9)
                    self._target.tree.set_attributes(path, Kind.DIRECTORY, attributes)
            if directory.changes:
                self._steps.begin(Step.ATTRIBUTES, path)
                self._steps.done()
        except OSError as exc:
            if is_fatal(exc, elsewhere=directory.is_elsewhere):
                raise
            self._failed(StorageError(f"cannot be restored completely ({exc.strerror})", path=directory.entry.path))

    # Regular files

    def _restore_file(self, entry: Entry, path: bytes, found: Found | None) -> None:
        key = entry.file_key if self._manner.hard_links else None
        first = self._links.get(key) if key is not None else None
        if first is not None and self._link(first, path, found):
            return
        sha1 = self._digests.of(entry)
        self._target.is_wanted(path)
        if found is not None and found.entry.kind is Kind.REGULAR and self._may_stay(found, key):
            change = self._dress.change(entry, found.entry)
            if self._is_content_there(change, found, sha1) and (change is plan.Change.NONE or self._names(found) == 1):
                if change is not plan.Change.NONE and self._steps.begin(Step.ATTRIBUTES, path):
                    self._set_file_attributes(entry, path, found, sha1)
                if key is not None:
                    self._links[key] = _Link(path, found.status)
                return
        status = self._write_file(entry, path, found, sha1) if self._replace(path, found) else None
        if key is not None:
            self._links[key] = _Link(path, status)

    def _may_stay(self, found: Found, key: tuple[int, ...] | None) -> bool:
        """Whether the file, or the links of one file, may go on with what was found, shared with nobody else."""
        if self._names(found) == 1:
            return True
        return key is not None and self._claimed.setdefault(found.inode, key) == key

    def _names(self, found: Found) -> int:
        """How many names the file has, or would have by now."""
        return found.status.st_nlink - self._let_go[found.inode]

    def _is_content_there(self, change: plan.Change, found: Found, sha1: bytes | None) -> bool:
        if change is plan.Change.CONTENT or self._manner.checksum or self._target.may_have_lost(found.path):
            return sha1 is not None and self._target.sha1_of(found) == sha1
        return True

    def _link(self, first: _Link, path: bytes, found: Found | None) -> bool:
        """Whether `path` is another link of a file that was restored before."""
        if found is not None and first.status is not None and os.path.samestat(found.status, first.status):
            return True
        if self._manner.dry_run:
            return not self._replace(path, found)
        name = self._target.new_name(path, found)
        if not self._target.tree.try_link(first.path, name):
            return False
        self._replace(path, found)
        self._target.put(name, path, found)
        return True

    def _write_file(self, entry: Entry, path: bytes, found: Found | None, sha1: bytes | None) -> os.stat_result:
        with self._content(entry, sha1) as (write, mtime_ns):
            name = self._target.new_name(path, found)
            may_wait = self._target.begin_content()
            fd = self._target.tree.create_file(name)
            try:
                write(fd)
                if not may_wait:
                    self._target.tree.sync_file(fd)
                self._target.tree.set_file_attributes(fd, self._dress.attributes(entry, mtime_ns))
                status = os.fstat(fd)
            except BaseException as exc:
                self._target.tree.unlink(name)
                if isinstance(exc, HistfsError):
                    exc.path, exc.at = entry.path, self._snapshot.time
                raise
            finally:
                os.close(fd)
        self._target.put(name, path, found)
        return status

    @contextmanager
    def _content(self, entry: Entry, sha1: bytes | None) -> Iterator[tuple[Callable[[int], object], int]]:
        """What writes the content of a file to a descriptor, and its mtime."""
        repository = self._snapshot.repository
        made = self._ahead.take(entry)
        if made is not None:
            blocks = repository.told(iter([made.data]))
            yield partial(write_blocks, blocks=blocks, sparse=True), mtime_ns_of(entry, made.mtime_ns)
            return
        with self._snapshot.open(entry, sha1) as content:
            yield partial(write_content, content=content, repository=repository), mtime_ns_of(entry, content.mtime_ns)

    def _set_file_attributes(self, entry: Entry, path: bytes, found: Found, sha1: bytes | None) -> None:
        mtime_ns = found.status.st_mtime_ns
        if mtime_ns // 10**9 != entry.mtime_s:
            with self._snapshot.open(entry, sha1) as content:
                mtime_ns = mtime_ns_of(entry, content.mtime_ns)
        attributes = self._dress.attributes(entry, mtime_ns)
        self._target.tree.set_attributes(path, Kind.REGULAR, attributes, expected=found.status)

    # Everything else

    def _restore_special(self, entry: Entry, path: bytes, found: Found | None) -> None:
        if entry.kind.is_device and self._dress.untrusted:
            raise StorageError("is a device, which is not made of what is untrusted", path=entry.path)
        mtime_ns = entry.mtime_s * 10**9 if entry.kind.has_mtime else None
        attributes = self._dress.attributes(entry, mtime_ns)
        change = plan.Change.REPLACED if found is None else self._dress.change(entry, found.entry)
        if change is plan.Change.NONE:
            return
        if found is not None and change is plan.Change.ATTRIBUTES and found.status.st_nlink == 1:
            if self._steps.begin(Step.ATTRIBUTES, path):
                self._target.tree.set_attributes(path, entry.kind, attributes, expected=found.status)
            return
        if not self._replace(path, found):
            return
        name = self._target.new_name(path, found)
        self._target.make_special(name, entry)
        self._target.tree.set_attributes(name, entry.kind, attributes)
        self._target.put(name, path, found)
