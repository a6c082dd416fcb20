"""One session: the source's state becomes the newest snapshot, the last one becomes history.

Order (docs/format.md 7.1, 8.3): lock; undo what a broken session left; read the last list to its end, as a name that it
has wrong would lose its last version; a second marker, durable: the session is open;
increments and new contents in ordered batches (see `batch`); lists and statistics; a barrier; the last session's full
list goes if a diff replaces it; at the very end its marker goes: this commits the session. The catalog comes after it.
Any error of the repository stops the session and leaves it open; the next one undoes it. Trouble with files of the
source is reported, and their last versions stay.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from histfs.errors import (
    EXIT_FILE_WARNING,
    DamagedError,
    HistfsError,
    NotARepositoryError,
    SourceError,
    UsageError,
    printable_time,
    storage_errors,
)
from histfs.store.accounts import BY_NAME
from histfs.store.batch import Batch
from histfs.store.begun import BEGUN, FirstSession, discard
from histfs.store.catalog import update_catalog
from histfs.store.copying import Copies
from histfs.store.emptying import check_apart, check_may_be_emptied, check_may_be_made
from histfs.store.entry import ALL_EXTRAS, Entry, Extras, is_below
from histfs.store.extras import recorded_extras
from histfs.store.files import WritableTree
from histfs.store.format.listing import previous_stays_snapshot
from histfs.store.format.stats import SessionStatistics
from histfs.store.increments import IncrementWriter
from histfs.store.layout import CHARS_TO_QUOTE, DATA, INCREMENTS, SPECIAL_ESCAPES, Layout, State, read_state
from histfs.store.ledger import Ledger, LedgerWriter, Lists, lists_of
from histfs.store.lock import locked, write_marker
from histfs.store.mirror import MirrorUpdate
from histfs.store.moved import Moves, Places
from histfs.store.naming import DEFAULT_NAMING, Naming, check_naming, settle_layout
from histfs.store.ordered import Ordered
from histfs.store.owners import Owners
from histfs.store.plan import ALL_LINKS, Links
from histfs.store.records import DEFAULT_STYLE, RecordStyle, SessionRecords, Tell, Update, tell_nobody
from histfs.store.recovery import recover, session_errors
from histfs.store.repository import Repository
from histfs.store.selection import Selection
from histfs.store.snapshot import newest_list_advice
from histfs.store.source import Found, Source
from histfs.store.sweep import Above, Carried, OldExtras, OldList, Step, Sweep, pairs, text_of
from histfs.store.touched import Notes, Session
from histfs.store.unreadable import Unreadable

log = logging.getLogger(__name__)

_KEEP = INCREMENTS + b"/.keep"  # an empty `increments` would keep other programs from undoing a session (trap 4)


class BackupOutcome(NamedTuple):
    """What a session did. `regressed`: there was one that had not finished, and was undone, or gone on with."""

    statistics: SessionStatistics
    source_errors: int  # files that could not be read
    source_warnings: int  # files that vanished or changed while they were read
    regressed: bool
    kept_files: int = 0  # that it had copied, if it was a first one
    emptied: bool = False  # something else lay where the repository is now


def backup(
    source: Path,
    repository: Path,
    *,
    now: int,
    report: Callable[[HistfsError], None],
    extras: Extras = ALL_EXTRAS,
    force: bool = False,
    with_parents: bool = False,
    fsync: bool = True,
    naming: Naming = DEFAULT_NAMING,
    links: Links = ALL_LINKS,
    owners: Owners = BY_NAME,
    selection: Selection | None = None,
    style: RecordStyle = DEFAULT_STYLE,
    tell: Tell = tell_nobody,
    on_block: Callable[[int], object] | None = None,
    checksum: bool = False,
) -> BackupOutcome:
    """Run a session at `now` (seconds since the epoch) from the directory `source` to `repository`.

    The repository is made if there is none, and with `with_parents` the directories that it shall lie in. `report` is
    told of everything that went wrong without stopping the session, `tell` what becomes of each path, `on_block` how
    many bytes of a file were read. `force` undoes an unfinished session even if its writer seems to run still, and
    takes a directory that is no repository for one, without what lies in it, if that may go at all (see `emptying`).
    Without `fsync` a crash of the system may cost the repository. `owners`: whose the files of the mirror are.
    `extras`: what is recorded beyond stat(2). What `selection` leaves out is deleted if the last session had it. With
    `checksum` all contents are read and compared. Raises HistfsError.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(Source.open(source, selection, extras, is_to_be_copied=True))
        opened.on_block = on_block
        opened.check_root()
        check_apart(source, repository)

        emptied = False

        def check_emptying(tree: WritableTree) -> None:
            nonlocal emptied
            check_naming(naming)
            check_may_be_emptied(tree, repository, opened.status)
            emptied = True

        emptying = check_emptying if force else None
        tree = stack.enter_context(_open_repository(repository, emptying, with_parents=with_parents))
        tree.waits_for_disk = fsync
        with session_errors(tree, repository):
            with contextlib.suppress(FileExistsError):
                tree.make_directory(DATA)
            stack.enter_context(locked(tree, verb="backup"))
            regressed = recover(tree, repository, report, owners, force=force, check_emptying=emptying, goes_on=True)
            layout = settle_layout(tree, naming)
            opened_repository = Repository(tree, repository)
            session = _Session(opened_repository, layout, tree, opened, now, report, links, owners, style, tell)
            session.compares_contents = checksum
            return session.run()._replace(regressed=regressed, emptied=emptied)


def _open_repository(
    path: Path, check_emptying: Callable[[WritableTree], None] | None, *, with_parents: bool
) -> WritableTree:
    with storage_errors():
        if not os.path.isdir(path / os.fsdecode(DATA)):
            check_may_be_made(path)
        try:
            tree = WritableTree.create(path, with_parents=with_parents)
        except FileNotFoundError:
            raise NotARepositoryError(
                "cannot be made, as the directory it would lie in does not exist",
                path=path,
                advice="make that first, or use --create-full-path",
            ) from None
        except NotADirectoryError:
            raise NotARepositoryError("is not a directory, so not a repository", path=path) from None
        try:
            names = tree.names(b"")
            if names and DATA not in names:
                if check_emptying is None:
                    raise NotARepositoryError(
                        "is a directory with other things in it, and not a repository",
                        path=path,
                        advice="choose an empty or a new directory; with --force this one is emptied",
                    )
                check_emptying(tree)  # before anything is made in it
        except BaseException:
            tree.close()
            raise
        return tree


class _Session:
    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        tree: WritableTree,
        source: Source,
        now: int,
        report: Callable[[HistfsError], None],
        links: Links,
        owners: Owners,
        style: RecordStyle,
        tell: Tell,
    ) -> None:
        self._tree = tree
        self._tell = tell
        self._repository = repository
        self._layout = layout
        self._links = links
        self._style = style
        self._source = source
        self._now = now
        self._report = report
        self._owners = owners
        self._state = read_state(tree, self._layout)
        self._marker = self._layout.data_path(b"current_mirror", now, b"data")
        self._errors = self._warnings = 0
        self._started_ns = self._kept_files = 0
        self.compares_contents = False  # also of files that have size and time of before
        self._unreadable: bytes | None = None  # what lies at and below this path is kept as it was

    def run(self) -> BackupOutcome:
        previous = self._state.mirror_time
        if previous is not None and self._now <= previous:
            problem = f"the last session is of {printable_time(previous)}, which is not before now"
            way_out = "check the clock; if that was wrong then, `histfs --force regress` undoes that session"
            advice = "wait a second" if self._now == previous else way_out
            raise UsageError(problem, path=self._repository.path, advice=advice)
        started, self._started_ns = time.monotonic(), time.time_ns()
        becomes_diff = previous is not None and not _previous_stays(self._state, previous)
        with ExitStack() as stack:
            ledger = None if previous is None else self._open_ledger(previous, stack)
            if previous is not None:
                self._check_list(previous, ledger)
            else:
                stack.callback(self._distrust_copies)
            self._prepare()
            notes = stack.enter_context(Notes(self._tree, self._layout))
            if previous is not None:
                write_marker(self._tree, self._marker)
                notes.begin(Session(self._marker, self._now, previous, lists_of(self._state, previous)[0]))
            self._ledger = stack.enter_context(LedgerWriter(self._tree, ledger, self._started_ns))
            records = stack.enter_context(self._records(previous if becomes_diff else None))
            self._update_mirror(previous, ledger, records)
            statistics = records.finish(elapsed_s=time.monotonic() - started)
            self._commit(previous, becomes_diff)
            notes.end()
            self._finish_ledger(records.lists)
            with suppress(NotADirectoryError):  # nor is a journal in what somebody has put in the place of ours
                self._tree.unlink(BEGUN, missing_ok=True)
        came = None if previous is None else records.came_since(previous, self._state)
        update_catalog(self._tree, self._repository, came=came)
        return BackupOutcome(statistics, self._errors, self._warnings, False, self._kept_files)

    def _distrust_copies(self) -> None:
        """Nothing of a first session is gone on with whose disk refused something: memory still has what it lost."""
        if self._tree.sync_has_failed:
            with suppress(OSError):
                discard(self._tree)

    def _records(self, older: int | None) -> SessionRecords:
        return SessionRecords(self._tree, self._layout, self._now, older, self._source.extras, self._style, self._tell)

    def _open_ledger(self, previous: int, stack: ExitStack) -> Ledger | None:
        """That of the last session's list."""
        ledger = Ledger.open(self._tree, previous, lists_of(self._state, previous))
        if ledger is not None:
            stack.callback(ledger.close)
        return ledger

    def _finish_ledger(self, lists: Lists) -> None:
        """The session has finished, and without a ledger the next one takes longer: that is all."""
        extras, rules, links_are_kept = self._source.extras, self._source.rules, self._links.are_kept
        try:
            self._ledger.finish(self._now, lists, extras=extras, rules=rules, links_are_kept=links_are_kept)
        except (OSError, DamagedError) as exc:
            log.warning("what the session saw cannot be kept, so the next one takes longer: %s", exc)

    def _check_list(self, previous: int, ledger: Ledger | None) -> None:
        """Read the last session's list once before anything changes: its sums come at its end.

        A damaged name would look like one that is new in the source, and its file in the mirror like a stranger's.
        Of a list with a ledger, which a session has written as it is, the sums are enough.
        """
        snapshot = self._repository.snapshot(previous)
        try:
            if ledger is not None:
                snapshot.check_sums()
            else:
                snapshot.check_list()
        except DamagedError as exc:
            how = newest_list_advice(self._repository.path)
            exc.advice = f"no session can follow it, and nothing was changed; {how}"
            raise

    def _prepare(self) -> None:
        """Make what every repository has; other writers may have left some of it out (docs/format.md 8.3)."""
        self._tree.make_directories(INCREMENTS)
        for path in (_KEEP, CHARS_TO_QUOTE, SPECIAL_ESCAPES):
            if not self._tree.exists(path):
                self._tree.write_file(path, [])

    def _update_mirror(self, previous: int | None, ledger: Ledger | None, records: SessionRecords) -> None:
        batch = Batch(self._tree, nothing_to_lose=previous is None)
        increments = None
        if previous is not None:
            since_ns = self._tree.stat(self._marker).st_ctime_ns
            increments = IncrementWriter(
                self._tree, self._layout, previous, since_ns, self._owners, self._style.compression
            )

        def report(error: HistfsError) -> None:
            records.add_error(error)
            self._report(error)

        with ExitStack() as stack:
            copies = stack.enter_context(Copies(self._source, self._tree))
            moves = self._moves(previous, ledger, batch, copies, stack)
            first: FirstSession | None = None
            if previous is None:
                first = stack.enter_context(
                    FirstSession(self._tree, self._source, batch, self._owners, copies, self._started_ns)
                )
            mirror = MirrorUpdate(
                *(self._tree, self._layout, self._source, batch, increments, report, self._owners, copies),
                *(self._links, moves, first),
            )
            ordered = Ordered(mirror, records, self._ledger, self._layout, partial(self._count, records), first)
            steps = self._steps(previous, ledger, records.line_end, lambda: ordered.count, report, stack)
            self._update_paths(mirror, steps, ordered, records)
            mirror.finish()
            if first is not None:
                first.wait()
                self._kept_files = first.kept_files

    def _moves(
        self, previous: int | None, ledger: Ledger | None, batch: Batch, copies: Copies, stack: ExitStack
    ) -> Moves | None:
        """What may have moved; None where nothing tells what was where."""
        if previous is None or ledger is None:
            return None
        list_path = lists_of(self._state, previous)[0]
        assert list_path is not None  # of which the ledger is
        places = Places(self._tree, ledger, list_path)
        stack.callback(places.close)
        return Moves(self._tree, self._layout, self._source, batch, copies, self._owners, places)

    def _steps(
        self,
        previous: int | None,
        ledger: Ledger | None,
        line_end: bytes,
        written: Callable[[], int],
        report: Callable[[HistfsError], None],
        stack: ExitStack,
    ) -> Iterator[Step]:
        """What there is now beside what the last session recorded.

        Its list must be intact; what belongs to the entries beyond it need not.
        """
        source = self._source
        if previous is None:
            return pairs(iter(()), source.walk(self._is_repository))
        snapshot = self._repository.snapshot(previous)
        dressed = stack.enter_context(snapshot.extras(source.extras, report)).added_to
        if ledger is None:
            return pairs(map(dressed, snapshot.entries()), source.walk(self._is_repository))
        extras, lists = None, lists_of(self._state, previous)
        if self._may_pass_over(previous, ledger):
            extras = OldExtras.open(self._tree, lists, source.extras, ledger.header, stack)
        root = os.fstat(self._tree.root_fd)
        sweep = Sweep(
            source,
            OldList(text_of(self._tree, lists[0], stack), ledger, dressed, extras),
            -1 if extras is None else self._tree.root_fd,
            line_end=line_end,
            written=written,
            passes_links=ledger.header.links_are_kept == self._links.are_kept,
            skipped=(root.st_dev, root.st_ino),
            quoting=self._layout.quoting,
        )
        return sweep.steps(self._is_repository)

    def _may_pass_over(self, previous: int, ledger: Ledger) -> bool:
        """Whether what the ledger says of a path is all that this session wants to know."""
        extras, rules = self._source.extras, self._source.rules
        knows_all = (ledger.header.has_xattrs, ledger.header.has_acls) == extras
        knows_all = knows_all and recorded_extras(self._state, previous, extras) == extras
        return not self.compares_contents and knows_all and rules is not None and ledger.header.rules == rules

    def _update_paths(
        self, mirror: MirrorUpdate, steps: Iterator[Step], ordered: Ordered, records: SessionRecords
    ) -> None:
        new = None  # the last path that no session has had before
        for step in steps:
            if isinstance(step, Carried | Above):
                ordered.pass_over(step)
                continue
            old, found = step
            if isinstance(found, Unreadable):
                if not found.path:
                    raise found.error
                self._unreadable = found.path
                is_new = found.path == new if found.is_listing else old is None
                self._count(records, found.error, is_new=is_new)
                if old is not None:
                    ordered.add(old, mirror.keep(old), None)
                continue
            if old is None and found is not None:
                new = found.path
            update = self._update_path(mirror, old, found, records)
            if update is not None:
                ordered.add(old, update, found)
            if found is not None and not found.path:
                mirror.mark_root()

    def _update_path(
        self, mirror: MirrorUpdate, old: Entry | None, found: Found | None, records: SessionRecords
    ) -> Update | None:
        """What becomes of one path; None if it is new and cannot be read, so that there is nothing to record."""
        if found is not None:
            if self.compares_contents:
                found = found._replace(is_suspect=True)
            try:
                update = mirror.update(old, found if found.trouble is None else found.with_extras_of(old))
            except SourceError as error:
                self._unreadable = found.path
                self._count(records, error, is_new=old is None)
                return None if old is None else mirror.keep(old)
            if found.trouble is not None:
                self._count(records, found.trouble, is_new=old is None)
            return update
        assert old is not None
        if self._unreadable is not None and is_below(old.path, self._unreadable):
            return mirror.keep(old)
        return mirror.remove(old)

    def _count(self, records: SessionRecords, error: SourceError, *, is_new: bool = True) -> None:
        if is_new:
            error.for_new()
        if error.exit_code == EXIT_FILE_WARNING:
            self._warnings += 1
        else:
            self._errors += 1
        records.add_error(error)
        self._report(error)

    def _is_repository(self, path: bytes, status: os.stat_result) -> bool:
        if not os.path.samestat(status, os.fstat(self._tree.root_fd)):
            return False
        self._report(UsageError("is the repository itself, and is left out of the backup", path=path))
        return True

    def _commit(self, previous: int | None, becomes_diff: bool) -> None:
        self._tree.sync()
        if previous is None:
            write_marker(self._tree, self._marker)
            return
        if becomes_diff:
            snapshot = self._state.metadata[previous].snapshot
            assert snapshot is not None
            self._tree.unlink(snapshot)
            self._tree.sync_directory(DATA)
        self._tree.unlink(self._state.markers[previous])
        self._tree.sync_directory(DATA)


def _previous_stays(state: State, previous: int) -> bool:
    """The chain rule for the list of the session before (docs/format.md 5.2)."""
    older = sorted((time for time in state.metadata if time < previous), reverse=True)
    return previous_stays_snapshot(b"diff" if state.metadata[time].snapshot is None else b"snapshot" for time in older)
