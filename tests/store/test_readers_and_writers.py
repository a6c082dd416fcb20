"""Readers that look all the time, while sessions run, die and are undone: no snapshot ever looks different."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from histfs.store import batch
from histfs.store.backup import backup
from histfs.store.regress import regress
from histfs.store.repository import Repository
from tests.comparison import difference, read
from tests.histories import Changes, Limits
from tests.store import rich
from tests.store.killing import Killer
from tests.store.places import is_root
from tests.store.sessions import DAY, Sessions, manifest_of


class Reader(threading.Thread):
    """Compares snapshots with what the source was, until it is told to stop."""

    def __init__(self, sessions: Sessions, seed: int) -> None:
        super().__init__(daemon=True)
        self._sessions = sessions
        self._chance = random.Random(seed)
        self.stop = threading.Event()
        self.looks = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        try:
            with self._sessions.open() as repository:
                while not self.stop.is_set() and not self.wrong:
                    self._look(repository)
        except BaseException as exc:
            self.wrong.append(exc)

    def _look(self, repository: Repository) -> None:
        session_time = self._chance.choice(repository.sessions()[-3:])
        snapshot = repository.snapshot(session_time)
        try:
            found = manifest_of(snapshot)
        finally:
            snapshot.close()
        expected = self._sessions.states.get(session_time)  # one that finished just now may not be noted yet
        if expected is not None:
            self.wrong += difference(expected, found)
            self.looks += 1


@contextmanager
def readers(sessions: Sessions, count: int) -> Iterator[None]:
    threads = [Reader(sessions, number) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join(30)
    assert [thread.wrong for thread in threads] == [[]] * count
    assert all(thread.looks > 2 for thread in threads)


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_snapshots_do_not_change(
    sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 4)
    rich.first(sessions.source)
    sessions.backup()
    chance = random.Random(seconds)
    changes = Changes(str(sessions.source).encode(), chance, Limits(root=is_root()))
    end = time.monotonic() + seconds
    with readers(sessions, 2):
        while time.monotonic() < end:
            changes.mutate(10)
            if chance.random() < 0.5:
                _killed_session(sessions, killer, chance)
                if chance.random() < 0.5:
                    regress(sessions.repository, report=sessions.reported.append)
            sessions.backup()
    assert sessions.reported == []


def _killed_session(sessions: Sessions, killer: Killer, chance: random.Random) -> None:
    """Killed somewhere after its marker; it may come to its end all the same."""
    state = read(sessions.source)

    def session() -> None:
        backup(sessions.source, sessions.repository, now=sessions.now + DAY, report=sessions.reported.append)

    killer.run(chance.randrange(12, 300), session)
    with sessions.open() as repository:
        if repository.sessions()[-1] > sessions.now:
            sessions.now += DAY
            sessions.states[sessions.now] = state
