"""Removing old sessions: what stays is untouched, what goes leaves nothing behind, and the work follows what goes."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from histfs.errors import LockedError, NotARepositoryError
from histfs.store.files import WritableTree
from histfs.store.remove import remove_sessions
from histfs.store.remove import sessions as module
from histfs.store.tree import Tree
from tests.comparison import read
from tests.store import rich
from tests.store.catalogs import fresh_rows, own_rows
from tests.store.killing import Killer
from tests.store.sessions import DAY, FIRST, Sessions, quote_names, stamp
from tests.trees import Dir, File, build


def copied(sessions: Sessions, name: str) -> Sessions:
    copy = Sessions(sessions.repository.parent / name)
    subprocess.run(["rm", "-rf", copy.repository.parent], check=True)
    copy.repository.parent.mkdir()
    subprocess.run(["cp", "-a", sessions.repository, copy.repository.parent], check=True)
    copy.source, copy.states, copy.now = sessions.source, dict(sessions.states), sessions.now
    return copy


def remove(sessions: Sessions, before: int) -> module.Removed:
    removed = remove_sessions(sessions.repository, before)
    for time in removed.sessions:
        del sessions.states[time]
    return removed


def old_files(sessions: Sessions) -> list[str]:
    """What is named with a time before the oldest session that is left."""
    gone = {stamp(FIRST + day * DAY) for day in range(100) if FIRST + day * DAY < min(sessions.states)}
    names = (os.path.join(place, name) for place, _, names in os.walk(sessions.data) for name in names)
    return [name for name in names if any(time in name for time in gone)]


def empty_directories(sessions: Sessions) -> list[str]:
    """Those of increments: an empty one among the long names is part of the mirror."""
    return [place for place, below, names in os.walk(sessions.data / "increments") if not below and not names]


@pytest.mark.parametrize("chars", [b"", b"A-Z;"])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_what_stays_is_untouched_and_the_rest_is_gone(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, kept: int, chars: bytes
) -> None:
    """The way to the old increments is found without the sweep, also where names are long or quoted."""
    monkeypatch.setattr(module, "_MOST_SWEPT", 0)
    quote_names(monkeypatch, chars)
    rich.back_up(sessions)
    mirror = {path: found for path, found in read(sessions.repository).items() if b"rdiff-backup-data" not in path}
    removed = remove(sessions, FIRST + (4 - kept) * DAY)
    assert removed.sessions == tuple(FIRST + day * DAY for day in range(4 - kept))
    sessions.assert_all_readable()
    assert mirror == {
        path: found for path, found in read(sessions.repository).items() if b"rdiff-backup-data" not in path
    }
    assert old_files(sessions) == []
    assert empty_directories(sessions) == []
    assert own_rows(sessions.repository) == fresh_rows(sessions.repository)
    sessions.backup()
    sessions.assert_all_readable()


def test_the_newest_session_always_stays(rich_sessions: Sessions) -> None:
    assert len(remove(rich_sessions, rich_sessions.now + 1000 * DAY).sessions) == 3
    rich_sessions.assert_all_readable()
    assert remove(rich_sessions, rich_sessions.now + 1000 * DAY) == ((), 0)


def test_nothing_is_that_old(rich_sessions: Sessions) -> None:
    before = sorted(os.walk(rich_sessions.repository))
    assert remove(rich_sessions, FIRST) == ((), 0)
    assert sorted(os.walk(rich_sessions.repository)) == before


def test_only_a_repository(tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError):
        remove_sessions(tmp_path / "nowhere", FIRST)
    with pytest.raises(NotARepositoryError):
        remove_sessions(tmp_path, FIRST)


def test_a_running_session_is_waited_for(rich_sessions: Sessions) -> None:
    newer = rich_sessions.data / f"current_mirror.{stamp(rich_sessions.now + DAY)}.data"
    newer.write_text(f"PID {os.getppid()}\n")
    with pytest.raises(LockedError):
        remove_sessions(rich_sessions.repository, rich_sessions.now)
    newer.write_text("PID 999999999\n")  # one that died harms nobody: what it needs is newer
    assert len(remove(rich_sessions, rich_sessions.now).sessions) == 3


def test_the_hour_between_lists_and_increments(sessions: Sessions) -> None:
    """A list that a writer in an odd zone named an hour later goes with its increments (docs/format.md 2.2)."""
    build(sessions.source, Dir({}))
    for number in range(3):
        build(sessions.source / f"d{number}", Dir({}))
        sessions.backup()
    later = stamp(FIRST + 3600)
    for path in sessions.data.glob(f"mirror_metadata.{stamp(FIRST)}.*"):
        with sessions.open() as repository:
            snapshot = repository.snapshot(FIRST)
            assert len(list(snapshot.entries())) == 2
        path.rename(sessions.data / f"mirror_metadata.{later}.snapshot")
    assert remove(sessions, FIRST + 1800).sessions == (FIRST,)
    assert list(sessions.data.glob(f"mirror_metadata.{later}.*")) == []


# Where the walk goes


def many_directories(sessions: Sessions, count: int) -> None:
    """A first session of `count` directories, and one more after each of three of them changed."""
    build(sessions.source, Dir({f"d{number:04}": Dir({"f": File(b"1")}) for number in range(count)}))
    sessions.backup()
    for number in range(3):
        (sessions.source / f"d{number:04}/f").write_bytes(b"%d" % (number + 10))
        sessions.backup()


def orphan(sessions: Sessions, directory: str, time: int = FIRST) -> Path:
    """An old increment in a directory that has none itself."""
    path = sessions.data / "increments" / directory / f"lost.{stamp(time)}.missing"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_what_no_increment_leads_to_is_found_in_the_end(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SWEPT", 3)
    many_directories(sessions, 10)
    orphans = [orphan(sessions, f"d{number:04}/below") for number in range(3, 10)]
    left = [sum(path.exists() for path in orphans)]
    for day in range(1, 4):
        remove(sessions, FIRST + day * DAY)
        left.append(sum(path.exists() for path in orphans))
    for _ in range(4):
        remove(sessions, FIRST + 3 * DAY)
        left.append(sum(path.exists() for path in orphans))
    assert left == sorted(left, reverse=True)
    assert max(before - after for before, after in itertools.pairwise(left)) <= 3
    assert left[-1] == 0
    assert not (sessions.data / "histfs/swept").exists()
    sessions.assert_all_readable()


def test_what_is_swept_is_bounded(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directories that are looked into are those in which something goes, and a few more."""
    monkeypatch.setattr(module, "_MOST_SWEPT", 5)
    many_directories(sessions, 40)
    for number in range(40):
        orphan(sessions, f"d{number:04}", FIRST + 50 * DAY)
    looked: list[bytes] = []
    real = Tree.names_by_kind
    monkeypatch.setattr(Tree, "names_by_kind", lambda tree, path: (looked.append(path), real(tree, path))[1])
    remove(sessions, FIRST + DAY)
    below = [path for path in looked if path.startswith(b"rdiff-backup-data/increments/")]
    assert b"rdiff-backup-data/increments/d0000" in below
    assert len(below) <= 1 + 5


def test_a_hostile_note_of_the_sweep(sessions: Sessions) -> None:
    many_directories(sessions, 3)
    for note in (b"../../../x", b"\0", b"", b"z" * 100_000):
        (sessions.data / "histfs/swept").write_bytes(note)
        remove(sessions, FIRST)
        assert not (sessions.data / "histfs/swept").exists()
    (sessions.data / "histfs/swept").symlink_to("/etc/passwd")
    remove(sessions, FIRST + DAY)
    sessions.assert_all_readable()


def test_links_are_not_followed(sessions: Sessions, tmp_path: Path) -> None:
    many_directories(sessions, 3)
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / f"victim.{stamp(FIRST)}.missing"
    victim.touch()
    shutil.rmtree(sessions.data / "increments/d0000")
    (sessions.data / "increments/d0000").symlink_to(outside)
    remove(sessions, sessions.now)
    assert victim.exists()


# Stopped at any moment


def kill_and_go_on(original: Sessions, killer: Killer, before: int, points: range) -> None:
    whole = copied(original, "whole")
    remove(whole, before)
    expected = sorted(os.listdir(whole.data)), whole.increments()
    for at in points:
        attempt = copied(original, "attempt")
        assert killer.run(at, lambda attempt=attempt: remove_sessions(attempt.repository, before)), at
        with attempt.open() as repository:
            left = repository.sessions()
        assert set(left) <= set(attempt.states)
        assert left == tuple(sorted(attempt.states))[-len(left) :]
        attempt.states = {time: state for time, state in attempt.states.items() if time in left}
        attempt.assert_all_readable()
        attempt.assert_mirror_is(attempt.now)
        remove(attempt, before)
        attempt.assert_all_readable()
        assert (sorted(os.listdir(attempt.data)), attempt.increments()) == expected, at
        assert empty_directories(attempt) == []


def all_points(original: Sessions, killer: Killer, before: int) -> range:
    attempt = copied(original, "attempt")
    assert not killer.run(None, lambda: remove_sessions(attempt.repository, before))
    return range(1, killer.changes + 1)


def test_a_killed_removal_harms_nothing_and_is_finished_by_the_next(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_SWEPT", 0)
    before = FIRST + 3 * DAY
    points = all_points(rich_sessions, killer, before)
    kill_and_go_on(rich_sessions, killer, before, points[::11])


@pytest.mark.long
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_removal_killed_at_any_point_is_finished_by_the_next(
    rich_sessions: Sessions, killer: Killer, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(module, "_MOST_SWEPT", 0)
    before = FIRST + (4 - kept) * DAY
    kill_and_go_on(rich_sessions, killer, before, all_points(rich_sessions, killer, before))


def test_sessions_go_for_good_before_their_increments(rich_sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier stands between the lists and what they lead to."""
    order: list[bytes] = []
    real = WritableTree.unlink
    monkeypatch.setattr(
        WritableTree, "unlink", lambda tree, path, **options: (order.append(path), real(tree, path, **options))[1]
    )
    monkeypatch.setattr(WritableTree, "sync", lambda _tree: order.append(b"sync"))
    remove(rich_sessions, rich_sessions.now)
    barrier = order.index(b"sync")
    lists = [place for place, path in enumerate(order) if b"/mirror_metadata." in path or b"-data/increments." in path]
    increments = [place for place, path in enumerate(order) if b"/increments/" in path]
    assert lists
    assert max(lists) < barrier < min(increments)
