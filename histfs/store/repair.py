"""The operation `repair`: make anew in a repository what follows from the rest of it.

What is wrong is looked for first and becomes a plan, which is shown before anything is done. What is replaced is moved
into a directory of our own, never deleted. Each step can be repeated, and whoever is stopped looks again: a new file is
durable before it takes its place, and the old one has another name before it loses its own.

Contents are not looked at: what is lost of them, nobody can make again, and `verify --all` tells.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from histfs.errors import DamagedError, HistfsError, printable_time
from histfs.store.accounts import BY_NAME
from histfs.store.catalog import catalog_problem, update_catalog
from histfs.store.compression import read_decompressed
from histfs.store.entry import join
from histfs.store.format.metadata import read_entries
from histfs.store.format.names import parse_increment_name
from histfs.store.layout import (
    ACLS,
    CATALOG,
    DATA,
    INCREMENTS,
    XATTRS,
    MetadataFiles,
    State,
    read_layout,
    read_state,
    read_statistics,
)
from histfs.store.ledger import LEDGER, ledger_problem
from histfs.store.lock import MAKE_ROOM, check_unlocked, entered, open_locked
from histfs.store.owners import Owners
from histfs.store.rebuilding import files_to_digest
from histfs.store.recovery import check_writer_is_gone
from histfs.store.repairing import Repairer
from histfs.store.repository import Repository
from histfs.store.snapshot import list_blocks, well_formed
from histfs.store.tree import Tree
from histfs.store.versions import list_problem

_FROM_A_COPY = "bring this file back from a copy of the repository, if there is one"


class Repair(NamedTuple):
    """One thing that is to be done, in words; `path`: the file in the repository that it is about."""

    what: str
    why: str
    path: bytes
    do: Callable[[Repairer], None]

    def __str__(self) -> str:
        return f"{self.what} ({self.why})"


class RepairOutcome(NamedTuple):
    """What was to be done, what is lost for good, and where is what was replaced (None: nothing was)."""

    repairs: tuple[Repair, ...]
    lost: tuple[DamagedError, ...]
    aside: bytes | None
    digested: int = 0  # files whose digests are those of what they hold now
    goes_on: bool = False  # whether all there is is a first session that was cut off, with which the next one goes on

    @property
    def why_digested_matters(self) -> str:
        files = "digest of 1 file is that" if self.digested == 1 else f"digests of {self.digested} files are those"
        return f"the {files} of what is there now: damage from before cannot be told any more"


def plan_repair(repository: Path, *, force: bool = False) -> RepairOutcome:
    """What `repair` would do; nothing is changed. Raises NotARepositoryError, LockedError, StorageError."""
    with entered(Tree, repository) as tree:
        check_unlocked(tree)
        found = _Examination(tree, repository, force=force)
        return found.outcome()


def repair(
    repository: Path,
    *,
    now: int,
    show: Callable[[RepairOutcome], None],
    report: Callable[[HistfsError], None],
    owners: Owners = BY_NAME,
    force: bool = False,
) -> RepairOutcome:
    """Repair what can be. The plan is told to `show` before it is carried out, trouble with single files to `report`.

    `force`: a session is undone although its process seems to run. Raises HistfsError.
    """
    advice = "run `histfs repair` again when the cause is mended: it goes on"
    on_full_disk = f"{MAKE_ROOM}, then run `histfs repair` again"
    with open_locked(repository, verb="repair", advice=advice, on_full_disk=on_full_disk) as tree:
        found = _Examination(tree, repository, force=force)
        outcome = found.outcome()
        show(outcome)
        repairer = Repairer(tree, repository, now, report, owners, force)
        repairer.remove_leftovers()
        for each in found.repairs:
            each.do(repairer)
        if found.makes_list and tree.exists(CATALOG):  # differences may lead to other records now
            repairer.rebuild_catalog()
        elif found.repairs:
            update_catalog(tree, Repository(tree, repository), make=tree.exists(CATALOG))
        tree.sync()
        return outcome._replace(aside=repairer.aside)


class _Examination:
    """Looks at everything but the contents of files, and makes the plan.

    Raises LockedError if the writer of a session that has not finished seems to run, unless `force`.
    """

    def __init__(self, tree: Tree, path: Path, *, force: bool) -> None:
        self._tree = tree
        self._path = path
        self._layout = read_layout(tree)
        self._state = read_state(tree, self._layout)
        self.repairs: list[Repair] = []
        self.lost: list[DamagedError] = []
        self.makes_list = False
        self._digested = 0
        self._list = b""
        self._goes_on = False
        state = self._with_right_markers()
        newest = state.mirror_time
        if newest is None:
            return
        self._state = state
        if state.has_old_marker:
            self.lost.append(
                DamagedError(
                    "newer sessions have finished, and nothing that can be read tells which is the newest",
                    path=state.markers[newest],
                    advice=_FROM_A_COPY + "; until then nothing else is repaired",
                )
            )
            return
        if state.unfinished is not None:
            if not force and not state.has_lost_marker:
                check_writer_is_gone(tree, state.markers[state.unfinished])
            self._look_at_unfinished(newest)
        self._look_at_lists(newest)
        self._look_at_extras(newest)
        self._look_at_statistics()
        self._look_at_derived()

    def outcome(self) -> RepairOutcome:
        outcome = RepairOutcome(tuple(self.repairs), tuple(self.lost), None, self._digested, self._goes_on)
        if not self._digested:
            return outcome
        return outcome._replace(lost=(*outcome.lost, DamagedError(outcome.why_digested_matters, path=self._list)))

    def _add(self, what: str, why: str, path: bytes, do: Callable[[Repairer], None]) -> None:
        self.repairs.append(Repair(what, why, path, do))

    # Markers

    def _with_right_markers(self) -> State:
        """The state as it will be when the markers say what they must."""
        state = self._state
        if not state.markers:
            newest = self._newest_finished()
            self._goes_on = newest is None and self._is_first_session()
            if self._goes_on:
                return state
            if newest is None:
                self.lost.append(
                    DamagedError(
                        "there is no current_mirror marker, and nothing that tells which session is the newest",
                        path=DATA,
                        advice="`histfs backup` makes a first session, if none has ever finished",
                    )
                )
                return state
            path = self._layout.data_path(b"current_mirror", newest, b"data")
            self._add(
                f"write the marker of the session of {printable_time(newest)}",
                "there is none that says which session is the newest",
                path,
                lambda repairer: repairer.write_marker(path),
            )
            return state._replace(markers={newest: path})
        if len(state.markers) == 1:
            return state
        running = max(state.markers)
        before = max((time for time in state.metadata if time < running), default=min(state.markers))
        if before in state.markers and not self._has_finished(running, before):
            right = {before, running}
        elif self._has_finished(running, before):
            right = {running}
        else:
            return state
        for time in sorted(state.markers.keys() - right):
            self._set_aside(
                state.markers[time], f"the marker of {printable_time(time)}", "a newer session has finished"
            )
        return state._replace(markers={time: path for time, path in state.markers.items() if time in right})

    def _is_first_session(self) -> bool:
        """Whether there is what a first session leaves that was cut off, and nothing of any other."""
        if not self._state.is_failed_first_session or not self._tree.is_directory(INCREMENTS):
            return False
        unquote = self._layout.quoting.unquote
        found = [parse_increment_name(unquote(name)) for name in self._tree.names(DATA)]
        if any(parsed is not None and parsed.base == b"session_statistics" for parsed in found):
            return False  # which come last: then a list was lost
        return not any(parse_increment_name(unquote(name)) for _, name in self._tree.files_below(INCREMENTS))

    def _newest_finished(self) -> int | None:
        """The newest session with a list and statistics, which come before its marker; without any, with a list."""
        state = self._state
        lists = sorted((time for time, files in state.metadata.items() if files.snapshot is not None), reverse=True)
        with_statistics = [time for time in lists if read_statistics(self._tree, self._layout, time) is not None]
        if len(state.metadata) < 2:
            return next(iter(with_statistics), None)
        return next(iter(with_statistics or lists or sorted(state.metadata, reverse=True)), None)

    def _has_finished(self, running: int, before: int) -> bool:
        """Whether the session got as far as to replace the list before it, which is the last but to remove the marker.

        Then a marker that is older than `before` is one that somebody has brought back.
        """
        files, previous = self._state.metadata.get(running), self._state.metadata.get(before)
        if files is None or files.snapshot is None or previous is None or previous.snapshot is not None:
            return False
        is_stale = min(self._state.markers) < before
        return is_stale and not self._problem_of_full_list(files.snapshot)

    def _problem_of_full_list(self, path: bytes) -> str:
        try:
            fd = self._tree.open_file(path)
            try:
                for _ in read_decompressed(fd):
                    pass
            finally:
                os.close(fd)
        except (DamagedError, OSError) as exc:
            return str(exc)
        return ""

    def _look_at_unfinished(self, newest: int) -> None:
        unfinished = self._state.unfinished
        assert unfinished is not None
        files = self._state.metadata.get(newest)
        if files is None or files.snapshot is None or self._newest_problem(newest):
            self.lost.append(
                DamagedError(
                    "a session was cut off, and cannot be undone as the list of the one before is damaged",
                    at=unfinished,
                    path=None if files is None else files.snapshot,
                    advice=_FROM_A_COPY + "; until then older sessions can be read, and nothing else is repaired",
                )
            )
            return
        self._add(
            f"undo the session of {printable_time(unfinished)}",
            "it was cut off, and its marker is lost" if self._state.has_lost_marker else "it was cut off",
            self._state.markers.get(unfinished, b""),
            lambda repairer: repairer.undo_session(),
        )

    # Lists

    def _newest_problem(self, newest: int) -> str:
        """Why no session can follow the newest list: every record of it must be right."""
        files = self._state.metadata.get(newest)
        if files is None or files.snapshot is None:
            return "it is missing"

        def refuse(error: DamagedError) -> None:
            raise error

        try:
            fd = self._tree.open_file(files.snapshot)
            try:
                for _ in well_formed(read_entries(list_blocks(files.snapshot, fd), refuse), refuse):
                    pass
            finally:
                os.close(fd)
        except DamagedError as error:
            return error.problem
        except OSError as exc:
            return exc.strerror or str(exc)
        return ""

    def _look_at_lists(self, newest: int) -> None:
        problem = self._newest_problem(newest)
        path = self._layout.data_path(b"mirror_metadata", newest, b"snapshot", compressed=True)
        if problem and self._state.unfinished is None:
            files = self._state.metadata.get(newest)
            old = path if files is None or files.snapshot is None else files.snapshot
            self._add(
                "make the newest list of files anew, from what can be read of it, the catalog and the mirror",
                problem,
                old,
                lambda repairer: repairer.rebuild_list(newest, path),
            )
            self.makes_list = True
            self._list = path
            self._digested = files_to_digest(self._tree, self._path, self._layout, self._state, newest)
            files = MetadataFiles(path, None if files is None else files.diff)
            self._state = self._state._replace(metadata={**self._state.metadata, newest: files})
        self._tell_lost({each.path for each in self.repairs} | ({path} if problem else set()))

    def _tell_lost(self, mended: set[bytes]) -> None:
        """What cannot be told any more, when the lists of `mended` are there again."""
        problems: dict[bytes, str] = {}
        for session_time in self._state.sessions:
            try:
                needed = self._state.listing_files(session_time)
            except DamagedError as error:
                error.at = session_time
                self.lost.append(error)
                continue
            for path in needed:
                if path not in problems and path not in mended:
                    problems[path] = list_problem(self._tree, path, is_full=path == needed[-1])
        for path, problem in problems.items():
            if problem:
                advice = f"the sessions that need it are named below; {_FROM_A_COPY}"
                self.lost.append(DamagedError(problem, path=path, advice=advice))
        for session_time in self._state.sessions:
            with suppress(DamagedError):
                if any(problems.get(path) for path in self._state.listing_files(session_time)):
                    self.lost.append(
                        DamagedError(
                            "which files there were cannot be told any more",
                            at=session_time,
                            advice="what is kept of their contents stays in rdiff-backup-data/increments",
                        )
                    )

    def _look_at_extras(self, newest: int) -> None:
        """Only those of the newest session are in the mirror as well."""
        if self._state.unfinished is not None:
            return
        previous = max((time for time in self._state.sessions if time < newest), default=None)
        for base, found, what in (
            (XATTRS, self._state.xattrs, "extended attributes"),
            (ACLS, self._state.acls, "access control lists"),
        ):
            for time, path in sorted(found.items()):
                problem = self._problem_of_full_list(path)
                if not problem:
                    continue
                if time != newest:
                    self.lost.append(
                        DamagedError(f"the {what} of this session: {problem}", path=path, advice=_FROM_A_COPY)
                    )
                else:
                    self._add_extras(base, newest, path, f"the {what} of the newest session cannot be read: {problem}")
            if newest not in found and previous in found:
                self._add_extras(base, newest, b"", f"the session before has recorded {what}")

    def _add_extras(self, base: bytes, newest: int, path: bytes, why: str) -> None:
        what = "extended attributes" if base == XATTRS else "access control lists"
        self._add(
            f"read the {what} of the newest session from the mirror",
            why,
            path,
            lambda repairer: repairer.rebuild_extras(newest, base),
        )

    # Statistics, and what is only ours

    def _look_at_statistics(self) -> None:
        names = {self._layout.quoting.unquote(name): join(DATA, name) for name in self._tree.names(DATA)}
        parsed = {name: parse_increment_name(name) for name in names}
        known = {each.time for each in parsed.values() if each is not None and each.base == b"session_statistics"}
        for session_time in self._state.sessions:
            statistics = read_statistics(self._tree, self._layout, session_time)
            if statistics is None and known:
                path = self._layout.data_path(b"session_statistics", session_time, b"data")
                why = "they cannot be read" if session_time in known else "they are missing"
                self._add(
                    f"count the statistics of the session of {printable_time(session_time)} again",
                    why,
                    path if session_time in known else b"",
                    lambda repairer, at=session_time: repairer.rebuild_statistics(at),  # type: ignore[misc]
                )
        for name, each in sorted(parsed.items()):
            if each is not None and each.base in (b"file_statistics", b"error_log") and each.compressed:
                problem = self._problem_of_full_list(names[name])
                if problem:
                    self._set_aside(names[name], f"{each.base.decode()} of {printable_time(each.time)}", problem)

    def _look_at_derived(self) -> None:
        problem = ledger_problem(self._tree)
        if problem:
            self._set_aside(LEDGER, "the ledger, which the next session makes anew", problem)
        try:
            problem = catalog_problem(Repository(self._tree, self._path))
        except HistfsError:  # lists that cannot be read, told elsewhere
            problem = ""
        if problem:
            self._add(
                "make the catalog anew",
                problem,
                CATALOG,
                lambda repairer: repairer.rebuild_catalog(),
            )
        if not self._tree.is_directory(INCREMENTS):
            self._add(
                "make the directory of the increments",
                "it is missing, with all old contents that were in it",
                INCREMENTS,
                lambda repairer: repairer.make_increments(),
            )

    def _set_aside(self, path: bytes, what: str, why: str) -> None:
        self._add(f"set aside {what}", why, path, lambda repairer: repairer.set_aside(path))
