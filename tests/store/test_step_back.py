"""`regress` with force: the newest of several good sessions is undone, again and again, and never is more lost."""

import os
import subprocess

import pytest

from histfs.errors import DamagedError, HistfsError
from histfs.store.regress import RegressOutcome, regress
from tests.store.killing import Killer
from tests.store.sessions import DAY, FIRST, Sessions, stamp


def fail(error: HistfsError) -> None:
    raise AssertionError from error


def copied(sessions: Sessions) -> Sessions:
    copy = Sessions(sessions.repository.parent / "copy")
    subprocess.run(["rm", "-rf", copy.repository.parent], check=True)
    copy.repository.parent.mkdir()
    subprocess.run(["cp", "-a", sessions.repository, copy.repository.parent], check=True)
    copy.source, copy.states, copy.now = sessions.source, dict(sessions.states), sessions.now
    return copy


def step_back(sessions: Sessions) -> RegressOutcome | None:
    return regress(sessions.repository, report=fail, force=True)


def test_step_by_step(rich_sessions: Sessions) -> None:
    sessions = rich_sessions
    for number in (3, 2, 1):
        assert step_back(sessions) == (FIRST + number * DAY, FIRST + (number - 1) * DAY, True)
        del sessions.states[FIRST + number * DAY]
        sessions.assert_all_readable()
        sessions.now = FIRST + (number - 1) * DAY
        assert not any(stamp(FIRST + number * DAY) in name for name in os.listdir(sessions.data))
    assert step_back(sessions) is None
    assert sessions.increments() == set()
    sessions.backup()
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


def test_without_force_a_good_session_stays(rich_sessions: Sessions) -> None:
    assert regress(rich_sessions.repository, report=fail) is None
    rich_sessions.assert_all_readable()


def test_a_session_that_cannot_be_undone_stays(rich_sessions: Sessions) -> None:
    [increment] = (rich_sessions.data / "increments").glob(f"changed.{stamp(rich_sessions.now - DAY)}.*")
    increment.write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        step_back(rich_sessions)
    with rich_sessions.open() as repository:
        assert repository.unfinished() is None
        assert len(repository.sessions()) == 4
    rich_sessions.assert_mirror_is(rich_sessions.now)


def kill_and_go_on(original: Sessions, killer: Killer, points: range) -> None:
    for at in points:
        sessions = copied(original)
        assert killer.run(at, lambda sessions=sessions: step_back(sessions)), at
        with sessions.open() as repository:
            is_unfinished = repository.unfinished() is not None
            is_undone = is_unfinished or repository.sessions()[-1] != original.now
        if is_undone:
            sessions.states.pop(original.now)
        sessions.assert_all_readable()
        if is_unfinished:
            assert regress(sessions.repository, report=fail) is not None
        sessions.assert_all_readable()
        sessions.backup()
        sessions.assert_all_readable()
        sessions.assert_mirror_is(sessions.now)


def all_points(original: Sessions, killer: Killer) -> range:
    sessions = copied(original)
    assert not killer.run(None, lambda: step_back(sessions))
    return range(1, killer.changes + 1)


def test_killed_on_the_way(rich_sessions: Sessions, killer: Killer) -> None:
    points = all_points(rich_sessions, killer)
    kill_and_go_on(rich_sessions, killer, points[:4])
    kill_and_go_on(rich_sessions, killer, points[4::29])


@pytest.mark.long
def test_killed_at_any_point(rich_sessions: Sessions, killer: Killer) -> None:
    kill_and_go_on(rich_sessions, killer, all_points(rich_sessions, killer))
