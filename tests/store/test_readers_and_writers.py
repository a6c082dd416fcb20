"""Readers that look all the time, while sessions run, die and are undone: no snapshot ever looks different."""

import random
import time

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
from tests.watching import watched


class Reader:
    """Compares snapshots with what the source was."""

    def __init__(self, sessions: Sessions, repository: Repository, seed: int) -> None:
        self._sessions = sessions
        self._repository = repository
        self._chance = random.Random(seed)

    def look(self) -> list[str] | None:
        session_time = self._chance.choice(self._repository.sessions()[-3:])
        snapshot = self._repository.snapshot(session_time)
        try:
            found = manifest_of(snapshot)
        finally:
            snapshot.close()
        expected = self._sessions.states.get(session_time)  # one that finished just now may not be noted yet
        return None if expected is None else difference(expected, found)


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
    with (
        sessions.open() as one,
        sessions.open() as other,
        watched([Reader(sessions, repository, seed).look for seed, repository in enumerate((one, other))]),
    ):
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
