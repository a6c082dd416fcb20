"""The operation `verify_all`: read every version that any session has of every file, each increment once.

A path at a time, through all of its past: its chain is walked from the newest back, so that the work follows the data
and not its square (`content.backwards`). What that does not find to be as recorded is asked for as any reader would
ask: what can be read is intact, whatever lies in its way, and what cannot is damaged. Several paths are read at the
same time, and told in their order.

It may take days. Where it has come to is kept in the cache of the user every now and then, and when it is stopped; the
next one goes on there. It checks the sessions that there were when it was begun: sessions that come meanwhile would
else keep it from ever being done.
"""

import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from histfs.errors import (
    WHO_MAY,
    DamagedError,
    HistfsError,
    NotFoundError,
    StorageError,
    printable_time,
    storage_errors,
)
from histfs.store import plan
from histfs.store.content.backwards import Held, contents_backwards
from histfs.store.entry import ALL_EXTRAS, Entry, Kind, sort_key
from histfs.store.kept_progress import Counts, Finding, KeptProgress, Position
from histfs.store.repository import Repository
from histfs.store.versions import Readable, Version, Versions, readable_sessions, versions, windows

_ATTEMPTS = 5
_KEPT_EVERY_S = 20.0
_WAITING_FOR_EACH_THREAD = 16
_MOST_THREADS = 8


class AllOutcome(NamedTuple):
    """What was found in the sessions up to `newest`; with what was found before a check was taken up again."""

    newest: int
    sessions: int
    counts: Counts
    findings: tuple[Finding, ...]
    problems: tuple[DamagedError, ...]  # with lists, which tell of all files, and with what belongs to single ones
    was_resumed: bool


class _StoppedError(HistfsError):
    """Somebody wants it to end."""


def verify_all(
    repository: Repository,
    path: bytes,
    *,
    report: Callable[[HistfsError], None],
    cache: Path | None = None,
    restart: bool = False,
    threads: int | None = None,
    tell: Callable[[int], object] = lambda _size_bytes: None,
) -> AllOutcome:
    """Verify every version of what was ever at and below `path`. What is damaged is told to `report` as it is found.

    `cache`: where is kept how far it has come; `restart`: begin anew all the same. `tell` is told the bytes of each
    path that is done. Raises NotFoundError if `path` was never there, StorageError.
    """
    kept = KeptProgress(repository, path, cache)
    if restart:
        kept.forget()
    check = _Check(repository, path, kept, report, tell)
    try:
        outcome = check.run(threads or min(_MOST_THREADS, 2 * (os.cpu_count() or 1)))
    except BaseException:
        check.keep()
        raise
    kept.forget()
    return outcome


def sentence(finding: Finding) -> HistfsError:
    """What is wrong with a version, and what can be had in its place; or who may read it."""
    newest, oldest = finding.sessions[0], finding.sessions[-1]
    problem = finding.problem
    if len(finding.sessions) > 1:
        problem += f"; the same back to {printable_time(oldest)} ({len(finding.sessions)} sessions)"
    if not finding.is_damage:
        return StorageError(problem, path=finding.path, at=newest, advice=WHO_MAY)
    return DamagedError(problem, path=finding.path, at=newest, advice=_what_is_left(finding))


def _what_is_left(finding: Finding) -> str:
    if not finding.readable:
        return "no other version of it can be read"
    newer = [each for each in finding.readable if each > finding.sessions[0]]
    older = [each for each in finding.readable if each < finding.sessions[-1]]
    nearest = [*newer[-1:], *older[:1]]
    others = len(finding.readable) - len(nearest)
    rest = f", and of {others} other session{'s' if others > 1 else ''}" if others else ""
    return f"`histfs restore` can read it as of {' and '.join(map(printable_time, nearest))}{rest}"


class _Result(NamedTuple):
    path: bytes
    counts: Counts
    findings: tuple[Finding, ...]


class _Trouble(NamedTuple):
    problem: str
    is_damage: bool


class _Check:
    def __init__(
        self,
        repository: Repository,
        path: bytes,
        kept: KeptProgress,
        report: Callable[[HistfsError], None],
        tell: Callable[[int], object],
    ) -> None:
        self._repository = repository
        self._path = path
        self._kept = kept
        self._report = report
        self._tell = tell
        self._problems: list[DamagedError] = []
        self._is_stopped = threading.Event()
        found = kept.read()
        sessions = repository.sessions()
        self._was_resumed = found is not None and found.newest in sessions
        if found is None or not self._was_resumed:
            found = Position(sessions[-1], sessions[-1], None)
        self._position = found
        self._findings = list(found.findings)
        self._is_there = self._was_resumed
        for finding in found.findings:
            report(sentence(finding))

    def keep(self) -> None:
        self._kept.write(self._position._replace(findings=tuple(self._findings)))

    def run(self, threads: int) -> AllOutcome:
        repository = self._repository
        sessions = [each for each in repository.sessions() if each <= self._position.newest]
        readable = self._readable(sessions)
        for error in readable.damage:
            self._problem(error)
        for session_time in readable.sessions:
            self._check_extras(session_time)
        for part in windows(readable.sessions):
            if part[0] > self._position.part:  # only what is wrong with the lists is not kept
                for _ in versions(repository.tree, repository.state(), part, self._path, self._problem):
                    pass
                continue
            if part[0] < self._position.part:
                self._position = self._position._replace(part=part[0], path=None)
            self._check_part(part, threads)
        if not self._is_there and not readable.damage:
            raise NotFoundError("was never there", path=self._path)
        position = self._position
        return AllOutcome(
            position.newest,
            len(sessions),
            position.counts,
            tuple(self._findings),
            tuple(self._problems),
            self._was_resumed,
        )

    def _readable(self, sessions: Sequence[int]) -> Readable:
        with storage_errors():
            for _ in range(_ATTEMPTS - 1):
                with suppress(FileNotFoundError):  # a session has replaced a list by a difference
                    return readable_sessions(self._repository.tree, self._repository.state(), sessions)
            return readable_sessions(self._repository.tree, self._repository.state(), sessions)

    def _problem(self, error: DamagedError) -> None:
        self._problems.append(error)
        self._report(error)

    def _check_extras(self, session_time: int) -> None:
        """Go through what belongs to the files of a session and is not in its list."""
        with (
            suppress(FileNotFoundError),
            self._repository.snapshot(session_time).extras(ALL_EXTRAS, self._problem) as extras,
        ):
            for _ in extras.walk():
                pass

    def _check_part(self, sessions: tuple[int, ...], threads: int) -> None:
        done = None if self._position.path is None else sort_key(self._position.path)
        last_kept = time.monotonic()
        found = versions(self._repository.tree, self._repository.state(), sessions, self._path, self._problem)
        with closing(self._results(found, done, threads)) as results:
            for result in results:
                self._is_there = True
                counts = self._position.counts.plus(result.counts)
                self._position = self._position._replace(path=result.path, counts=counts)
                self._findings += result.findings
                for finding in result.findings:
                    self._report(sentence(finding))
                self._tell(result.counts.size_bytes)
                if time.monotonic() - last_kept > _KEPT_EVERY_S:
                    self.keep()
                    last_kept = time.monotonic()

    def _results(self, found: Iterator[Versions], done: bytes | None, threads: int) -> Generator[_Result, None, None]:
        """What is found of each path, in their order."""
        waiting: deque[Future[_Result]] = deque()
        with ThreadPoolExecutor(threads) as workers:
            try:
                for each in found:
                    if done is not None and sort_key(each.path) <= done:
                        continue
                    waiting.append(workers.submit(self._check, each))
                    if len(waiting) >= threads * _WAITING_FOR_EACH_THREAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                self._is_stopped.set()
                workers.shutdown(wait=True, cancel_futures=True)
                self._is_stopped.clear()

    # One path

    def _check(self, path: Versions) -> _Result:
        regular = [version for version in path.of if version.entry.kind is Kind.REGULAR]
        counts = Counts()
        good: list[int] = []
        bad: list[tuple[tuple[int, ...], _Trouble]] = []
        places: dict[object, list[Version]] = {}
        for version in regular:
            places.setdefault(self._place(version.entry), []).append(version)
        for of_place in places.values():
            for version, session_times, error in self._check_place(of_place):
                if error is None:
                    good += session_times
                else:
                    bad.append((session_times, error))
                counts = counts.plus(Counts(1, version.entry.size_bytes, version.sha1 is None))
        readable = tuple(sorted(good, reverse=True))
        findings = (Finding(path.path, at, why.problem, readable, why.is_damage) for at, why in bad)
        return _Result(path.path, counts, tuple(findings))

    def _place(self, entry: Entry) -> object:
        layout = self._repository.layout
        return layout.increments_of(entry), layout.mirror_path(entry)

    def _check_place(self, of_place: Sequence[Version]) -> Iterator[tuple[Version, tuple[int, ...], _Trouble | None]]:
        """Each version, the sessions that have it and share what it is made of, and why it cannot be read if so."""
        entry = of_place[0].entry
        increments = sorted(self._repository.shared.listings.find(entry), reverse=True)  # the newest first
        times = [increment.time for increment in reversed(increments)]
        held: dict[int, Held | None] = {}
        wanted: list[tuple[Version, int, tuple[int, ...]]] = []
        for version in of_place:
            # By how many increments lead back to it.
            steps: dict[int, list[int]] = {}
            for session_time in version.sessions:
                steps.setdefault(len(times) - bisect_left(times, session_time), []).append(session_time)
            wanted += [(version, step, tuple(of_step)) for step, of_step in steps.items()]
        if self._is_certain(increments):
            at_most = max(version.entry.size_bytes for version in of_place)
            held = self._walk(entry, increments, {step for _, step, _ in wanted}, at_most)
        for version, step, session_times in wanted:
            is_right = _is(held.get(step), version)
            yield version, session_times, None if is_right else self._trouble(version, session_times[0])

    def _is_certain(self, increments: Sequence[plan.Increment]) -> bool:
        """Whether none is of a session that may be running, and of no time are there two."""
        newest = self._repository.state().mirror_time
        times = [increment.time for increment in increments]
        return len(set(times)) == len(times) and all(newest is not None and each < newest for each in times)

    def _walk(
        self, entry: Entry, increments: Sequence[plan.Increment], steps: set[int], at_most: int
    ) -> dict[int, Held | None]:
        """What `increments`, the newest first, lead to, by how many of them it took; as far as it goes."""
        held: dict[int, Held | None] = {}
        # What is newer than a whole old version does not matter to it.
        first = max((i for i in range(min(steps)) if increments[i].type != b"diff"), default=None)
        mirror = self._repository.layout.mirror_path(entry) if first is None else None
        start = first or 0
        needed = increments[start : max(steps)]
        tree = self._repository.tree
        with suppress(DamagedError, StorageError, OSError):  # what can be read all the same is found out by reading it
            for step, content in enumerate(contents_backwards(tree, mirror, needed, at_most, self._go_on), start):
                held[step] = content
        return held

    def _go_on(self, _size_bytes: int) -> None:
        if self._is_stopped.is_set():
            raise _StoppedError("it was stopped")

    def _trouble(self, version: Version, session_time: int) -> _Trouble | None:
        """Why a version cannot be read, as any reader is told; None if it can."""
        try:
            with self._repository.snapshot(session_time).open(version.entry, version.sha1) as content:
                for block in content.blocks():
                    self._go_on(len(block))
        except (DamagedError, StorageError) as error:
            return _Trouble(error.problem, is_damage=not isinstance(error.__cause__, PermissionError))
        except NotFoundError:  # the session was removed meanwhile
            return None
        return None


def _is(held: Held | None, version: Version) -> bool:
    if held is None or held.size_bytes != version.entry.size_bytes:
        return False
    return version.sha1 is None or held.sha1 == version.sha1
