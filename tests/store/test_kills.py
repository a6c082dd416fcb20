"""Sessions killed at every change of the disk: nothing that was finished is lost, and the next session recovers.

At each point: all finished snapshots are readable in the repository as it is; the next session, or `regress`, undoes
the broken one by itself; then all snapshots and the mirror are right. The same where the recovery itself is killed.
The same where the power is cut, and names on the disk are ahead of data. The fast tests try one point of so many, the
long ones all.
"""

import os
import subprocess
from pathlib import Path

import pytest

from histfs.errors import DamagedError, NotARepositoryError
from histfs.store import batch
from histfs.store.backup import backup
from histfs.store.format.quoting import Quoting
from histfs.store.regress import regress
from histfs.store.repository import Repository
from tests.comparison import difference, read
from tests.mirrors import read_mirror
from tests.store import rich
from tests.store.killing import Killer
from tests.store.sessions import DAY, Sessions, quote_names


@pytest.fixture
def rich_sessions(sessions: Sessions) -> Sessions:
    """Three finished sessions, and a source for the fourth."""
    for step in (rich.first, rich.second, rich.third):
        step(sessions.source)
        sessions.backup()
    rich.fourth(sessions.source)
    return sessions


QUOTED = rb"df-hj-l.:;\x00-\x1f\x80-\xff"  # and so all times and suffixes, but nothing of the long names


@pytest.fixture
def quoted_sessions(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    """The same in a repository whose names are quoted."""
    quote_names(monkeypatch, QUOTED)
    for step in (rich.first, rich.second, rich.third):
        step(sessions.source)
        sessions.backup()
    rich.fourth(sessions.source)
    return sessions


class Attempt:
    """Tries the next session in a copy of the repository, and kills it."""

    def __init__(self, original: Sessions, killer: Killer) -> None:
        self.place = original.repository.parent / "attempt"
        subprocess.run(["rm", "-rf", self.place], check=True)
        self.place.mkdir()
        if original.repository.exists():
            subprocess.run(["cp", "-a", original.repository, self.place], check=True)
        self.sessions = Sessions(self.place)
        self.sessions.source = original.source
        self.sessions.states = dict(original.states)
        self.sessions.now = original.now
        self._killer = killer

    def backup(self, at: int | None) -> bool:
        """Whether the session was killed. One whose marker was alone by then is finished all the same."""
        sessions = self.sessions
        sessions.now += DAY
        state = read(sessions.source)
        was_killed = self._killer.run(
            at, lambda: backup(sessions.source, sessions.repository, now=sessions.now, report=_fail)
        )
        if not was_killed or _newest(sessions.repository) == sessions.now:
            sessions.states[sessions.now] = state
        return was_killed

    def regress(self, at: int | None) -> bool:
        return self._killer.run(at, lambda: regress(self.sessions.repository, report=_fail))

    def is_unfinished(self) -> bool:
        with self.sessions.open() as repository:
            return repository.unfinished() is not None


def _fail(error: Exception) -> None:
    raise AssertionError from error


def _newest(path: Path) -> int | None:
    try:
        with Repository.open(path) as repository:
            return repository.sessions()[-1]
    except NotARepositoryError:
        return None


def _all_points(original: Sessions, killer: Killer) -> range:
    """Every change that the next session makes."""
    attempt = Attempt(original, killer)
    assert not attempt.backup(None)
    attempt.sessions.assert_all_readable()
    attempt.sessions.assert_mirror_is(attempt.sessions.now)
    return range(1, killer.changes + 1)


def _kill_and_go_on(original: Sessions, killer: Killer, points: range, *, power: bool = False) -> None:
    for at in points:
        attempt = Attempt(original, killer)
        assert attempt.backup(at), at
        if power:
            killer.lose_data(attempt.sessions.repository)
        sessions = attempt.sessions
        sessions.assert_all_readable()
        was_unfinished = attempt.is_unfinished()
        outcome = sessions.backup()
        assert outcome.regressed == was_unfinished, at
        sessions.assert_all_readable()
        sessions.assert_mirror_is(sessions.now)


def _kill_and_regress(original: Sessions, killer: Killer, points: range, *, power: bool = False) -> None:
    lists_before = original.increments(), original.of("")
    for at in points:
        attempt = Attempt(original, killer)
        assert attempt.backup(at), at
        if power:
            killer.lose_data(attempt.sessions.repository)
        sessions = attempt.sessions
        is_finished = sessions.now in sessions.states
        attempt.regress(None)
        assert not attempt.is_unfinished()
        sessions.assert_all_readable()
        if not is_finished:
            _assert_undone(sessions, lists_before, at)


def _assert_undone(sessions: Sessions, lists_before: tuple[set[str], list[str]], at: int) -> None:
    """The repository is what it was; only hard links that had to be made again may be separate."""
    last = max(sessions.states)
    expected = {path: found._replace(links=None) for path, found in sessions.states[last].items()}
    found = {path: found._replace(links=None) for path, found in read_mirror(sessions.repository).items()}
    assert difference(expected, found, nlink=False) == [], at
    sessions.now = last
    ignored = {"next_free", "lock.yml", "long_filename_data"}
    assert sessions.increments() == lists_before[0], at
    assert set(sessions.of("")) - ignored == set(lists_before[1]) - ignored, at


def _kill_recoveries(original: Sessions, killer: Killer, session_points: range, points: slice, *, power: bool) -> None:
    for at in session_points:
        broken = Attempt(original, killer)
        assert broken.backup(at)
        if power:
            killer.lose_data(broken.sessions.repository)
        if not broken.is_unfinished():
            continue
        kept = Sessions(original.repository.parent / "broken")
        subprocess.run(["rm", "-rf", kept.repository.parent], check=True)
        broken.place.rename(kept.repository.parent)
        kept.source, kept.states, kept.now = original.source, original.states, broken.sessions.now
        for recovery_at in _recovery_points(kept, killer)[points]:
            attempt = Attempt(kept, killer)
            assert attempt.regress(recovery_at), (at, recovery_at)
            if power:
                killer.lose_data(attempt.sessions.repository)
            attempt.sessions.assert_all_readable()
            attempt.backup(None)
            attempt.sessions.assert_all_readable()
            attempt.sessions.assert_mirror_is(attempt.sessions.now)


def _recovery_points(broken: Sessions, killer: Killer) -> range:
    assert not Attempt(broken, killer).regress(None)
    return range(1, killer.changes + 1)


def _kill_first(sessions: Sessions, killer: Killer, points: range, *, power: bool = False) -> None:
    for at in points:
        attempt = Attempt(sessions, killer)
        assert attempt.backup(at)
        if power:
            killer.lose_data(attempt.sessions.repository)
        if not attempt.sessions.states:
            with pytest.raises(NotARepositoryError):
                attempt.sessions.open()
        else:
            attempt.sessions.assert_all_readable()
        attempt.sessions.backup()
        attempt.sessions.assert_all_readable()
        attempt.sessions.assert_mirror_is(attempt.sessions.now)


# --- fast -----------------------------------------------------------------------------------------------------------


def test_a_killed_session_costs_nothing(rich_sessions: Sessions, killer: Killer) -> None:
    _kill_and_go_on(rich_sessions, killer, _all_points(rich_sessions, killer)[::37])


def test_a_killed_session_of_a_quoted_repository(quoted_sessions: Sessions, killer: Killer) -> None:
    points = _all_points(quoted_sessions, killer)
    _kill_and_go_on(quoted_sessions, killer, points[3::141])
    _kill_and_regress(quoted_sessions, killer, points[19::197])


def test_whatever_a_killed_session_leaves_has_a_quoted_name(quoted_sessions: Sessions, killer: Killer) -> None:
    """Other programs could not remove it."""
    quoting = Quoting.parse(QUOTED, b"")
    for at in _all_points(quoted_sessions, killer)[5::61]:
        attempt = Attempt(quoted_sessions, killer)
        assert attempt.backup(at)
        for _, directories, names in os.walk(os.fsencode(attempt.sessions.repository)):
            if b"rdiff-backup-data" in directories:
                directories.remove(b"rdiff-backup-data")
            assert [name for name in names if quoting.quote(quoting.unquote(name)) != name] == []


def test_a_killed_session_can_be_undone(rich_sessions: Sessions, killer: Killer) -> None:
    _kill_and_regress(rich_sessions, killer, _all_points(rich_sessions, killer)[7::53])


def test_a_power_cut_costs_nothing(rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 5)
    _kill_and_go_on(rich_sessions, killer, _all_points(rich_sessions, killer)[11::41], power=True)


def test_a_missing_barrier_would_be_noticed(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of power cuts can fail: without the barrier of a batch there are points at which history is lost."""
    monkeypatch.setattr(batch, "MAX_CHANGES", 5)
    points = _all_points(rich_sessions, killer)[::29]
    monkeypatch.setattr(killer, "sync", killer.count)
    with pytest.raises((AssertionError, DamagedError)):
        _kill_and_go_on(rich_sessions, killer, points, power=True)


@pytest.mark.parametrize("power", [False, True])
def test_a_killed_recovery_is_repeated(rich_sessions: Sessions, killer: Killer, power: bool) -> None:
    points = _all_points(rich_sessions, killer)
    third = len(points) // 3
    _kill_recoveries(rich_sessions, killer, points[third::third], slice(None, None, 73), power=power)


@pytest.mark.parametrize("power", [False, True])
def test_a_killed_first_session_starts_again(sessions: Sessions, killer: Killer, power: bool) -> None:
    rich.first(sessions.source)
    _kill_first(sessions, killer, _all_points(sessions, killer)[::31], power=power)


def test_a_killed_recovery_of_a_first_session_is_repeated(sessions: Sessions, killer: Killer) -> None:
    rich.first(sessions.source)
    points = _all_points(sessions, killer)
    attempt = Attempt(sessions, killer)
    assert attempt.backup(points[len(points) * 2 // 3])
    at = 0
    while attempt.regress(at := at + 3):  # each goes on where the last was killed
        with pytest.raises(NotARepositoryError):
            attempt.sessions.open()
    attempt.sessions.backup()
    attempt.sessions.assert_all_readable()


# --- long: every point (and most with the power cut), in parts of about half a minute --------------------------------


@pytest.mark.long
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_a_session_killed_at_any_point_costs_nothing(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch, part: int, power: bool
) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 5 if power else 1000)
    _kill_and_go_on(rich_sessions, killer, _all_points(rich_sessions, killer)[part :: 4 + power], power=power)


@pytest.mark.long
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_a_session_killed_at_any_point_can_be_undone(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch, part: int, power: bool
) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 5 if power else 1000)
    _kill_and_regress(rich_sessions, killer, _all_points(rich_sessions, killer)[part :: 4 + power], power=power)


@pytest.mark.long
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_a_recovery_killed_at_any_point_is_repeated(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch, part: int, power: bool
) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 5 if power else 1000)
    points = _all_points(rich_sessions, killer)
    start = len(points) // 4 * (part + 1) - 1 - 10 * power
    _kill_recoveries(rich_sessions, killer, points[start : start + 1], slice(power, None, 2), power=power)


@pytest.mark.long
@pytest.mark.parametrize("power", [False, True])
def test_a_first_session_killed_at_any_point_starts_again(sessions: Sessions, killer: Killer, power: bool) -> None:
    rich.first(sessions.source)
    _kill_first(sessions, killer, _all_points(sessions, killer), power=power)
