"""Undoing sessions: what regress says, what it leaves alone, and damage it meets (docs/format.md 7.2, 7.4)."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import DamagedError, HistfsError, NotARepositoryError, UnfinishedError
from histfs.store import backup as backup_module
from histfs.store.backup import backup
from histfs.store.batch import Batch
from histfs.store.files import WritableTree
from histfs.store.regress import RegressOutcome, regress
from histfs.store.repair import plan_repair, repair
from histfs.store.status import status
from tests.comparison import difference, read
from tests.store import rich
from tests.store.killing import Killed
from tests.store.places import is_root
from tests.store.sessions import DAY, FIRST, Sessions, quote_names, stamp
from tests.trees import MTIME, Dir, File, Link, Symlink, build

TEXT = b"".join(b"line %d\n" % number for number in range(300))


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sessions, str], None]:
    """Runs a session that stops before its first changes to what was there ("early"), or before its commit ("late")."""

    def stop(sessions: Sessions, when: str) -> None:
        def die(*_: object) -> None:
            raise Killed

        sessions.now += DAY
        with monkeypatch.context() as patch:
            if when == "early":
                patch.setattr(Batch, "apply", die)
            else:
                patch.setattr(backup_module._Session, "_commit", die)
            with pytest.raises(Killed):
                backup(sessions.source, sessions.repository, now=sessions.now, report=sessions.reported.append)
        sessions.now -= DAY

    return stop


def undo(sessions: Sessions, **options: bool) -> tuple[RegressOutcome | None, list[HistfsError]]:
    reported: list[HistfsError] = []
    return regress(sessions.repository, report=reported.append, **options), reported


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_session_is_undone_completely(sessions: Sessions, stop: Callable[[Sessions, str], None], when: str) -> None:
    for step in (rich.first, rich.second, rich.third):
        step(sessions.source)
        sessions.backup()
    before = read(sessions.repository)
    rich.fourth(sessions.source)
    stop(sessions, when)
    assert undo(sessions) == (RegressOutcome(sessions.now + DAY, sessions.now), [])
    after = read(sessions.repository)
    for path in (b"rdiff-backup-data", b"rdiff-backup-data/histfs", b"rdiff-backup-data/long_filename_data"):
        before[path] = before[path]._replace(mtime=after[path].mtime)
    for path in (b"rdiff-backup-data/lock.yml", b"rdiff-backup-data/long_filename_data/next_free"):
        before[path] = after[path]
    new_empty = [path for path in after.keys() - before.keys() if after[path].type == "directory"]
    for path in new_empty:  # directories in `increments` may stay
        del after[path]
    increments = b"rdiff-backup-data/increments"
    lines = difference(before, after, nlink=False)
    assert [line for line in lines if "links" not in line and not _is_directory_in(increments, line)] == []
    sessions.assert_all_readable()
    assert undo(sessions) == (None, [])


def _is_directory_in(place: bytes, line: str) -> bool:
    return place.decode() in line and "(directory)" in line


def test_nothing_to_undo(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    before = read(sessions.repository)
    assert undo(sessions) == (None, [])
    assert difference(before, read(sessions.repository)) == []


@pytest.mark.parametrize("name", ["no", "file", "empty"])
def test_nothing_that_could_be_undone(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(NotARepositoryError):
        regress(tmp_path / name, report=_none)
    assert os.listdir(tmp_path / "empty") == []


def _none(error: HistfsError) -> None:
    raise AssertionError from error


def test_links_that_were_separated_by_a_recovery_come_together_again(
    sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "b": Link("a"), "c": Link("a")}))
    sessions.backup()
    (sessions.source / "c").unlink()
    (sessions.source / "c").write_bytes(b"another")
    stop(sessions, "late")
    undo(sessions)
    sessions.assert_all_readable()  # the record counts
    assert (sessions.repository / "c").stat().st_nlink == 1
    (sessions.source / "c").unlink()
    os.link(sessions.source / "a", sessions.source / "c")
    os.utime(sessions.source, (MTIME, MTIME))
    sessions.backup()
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


# --- lost markers ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["its own", "both"])
def unmarked(
    request: pytest.FixtureRequest, rich_sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> tuple[Sessions, int]:
    """A session changed the mirror and was cut off; then its marker was lost, or both were. The second: its time."""
    sessions = rich_sessions
    build(sessions.source / "late", Dir({name: File(TEXT) for name in ("changed", "gone", "half.jpg")}))
    sessions.backup()
    (sessions.source / "late/changed").write_bytes(TEXT[100:] + b"more")
    (sessions.source / "late/gone").unlink()
    (sessions.source / "late/half.jpg").write_bytes(TEXT + b"more")
    stop(sessions, "late")
    lost = sessions.now + DAY
    for time in (sessions.now, lost) if request.param == "both" else (lost,):
        (sessions.data / f"current_mirror.{stamp(time)}.data").unlink()
    for path in sessions.data.glob("*_statistics*") if request.param == "both" else ():
        if stamp(lost) in path.name:  # else the session would look as if it had finished
            path.unlink()
    sessions.now = lost
    return sessions, lost


@pytest.mark.parametrize("way", ["backup", "regress", "repair"])
def test_a_session_is_undone_though_its_marker_is_lost(unmarked: tuple[Sessions, int], way: str) -> None:
    sessions, lost = unmarked
    has_marker = any(sessions.data.glob("current_mirror*"))
    found = status(sessions.repository)
    if has_marker:
        assert (found.unfinished, found.is_broken, found.can_go_on, found.damage) == (lost, True, True, ())
    plan = plan_repair(sessions.repository)
    assert any("undo the session" in str(each) for each in plan.repairs)
    if way == "repair" or not has_marker:
        outcome = repair(sessions.repository, now=lost, show=lambda _plan: None, report=sessions.reported.append)
        assert outcome.lost == ()
        sessions.assert_mirror_is(max(sessions.states))
    elif way == "regress":
        assert undo(sessions)[0] == RegressOutcome(lost, max(sessions.states))
        sessions.assert_mirror_is(max(sessions.states))
    else:
        assert sessions.backup().regressed
    assert status(sessions.repository).unfinished is None
    sessions.assert_all_readable()
    sessions.backup()
    sessions.assert_all_readable()


def test_more_than_one_session_is_never_undone(rich_sessions: Sessions) -> None:
    """The marker of a session before the newest one is there: whose it is not was finished."""
    [marker] = rich_sessions.data.glob("current_mirror*")
    marker.rename(sorted(rich_sessions.data.glob("increments.*.dir"))[-2].with_name(_marker_of(rich_sessions, -3)))
    before = read(rich_sessions.repository)
    for run in (lambda: undo(rich_sessions), rich_sessions.backup):
        with pytest.raises(DamagedError, match="older than other finished sessions"):
            run()
    assert status(rich_sessions.repository).can_go_on is False
    assert len(plan_repair(rich_sessions.repository).lost) == 1
    after = read(rich_sessions.repository)
    for path in (b"rdiff-backup-data", b"rdiff-backup-data/lock.yml"):
        before[path] = after[path]
    assert difference(before, after) == []


def _marker_of(sessions: Sessions, number: int) -> str:
    return f"current_mirror.{stamp(sorted(sessions.states)[number])}.data"


@pytest.mark.parametrize("size_bytes", [2590, 500])
def test_content_that_may_be_needed_never_makes_way(
    sessions: Sessions, stop: Callable[[Sessions, str], None], size_bytes: int
) -> None:
    """All that told of the session that was cut off is lost: the increments are what is left of two files."""
    build(sessions.source, Dir({"a": File(TEXT), "b.jpg": File(TEXT), "c": File(b"c")}))
    sessions.backup()
    (sessions.source / "c").write_bytes(b"cc")
    sessions.backup()
    for name in ("a", "b.jpg"):
        (sessions.source / name).write_bytes((TEXT[100:] + TEXT[:100])[:size_bytes])
    stop(sessions, "late")
    for path in sessions.data.glob(f"*.{stamp(sessions.now + DAY)}.*"):
        path.unlink()
    for name in (f"increments.{stamp(sessions.now)}.dir", f"mirror_metadata.{stamp(sessions.now)}.diff.gz"):
        (sessions.data / name).unlink()
    for name in ("a", "b.jpg"):
        (sessions.source / name).write_bytes(TEXT[200:])
    sessions.now += DAY
    with pytest.raises(DamagedError, match=r"increments/a.*was there before the session"):
        sessions.backup(may_report=True)
    sessions.now -= DAY
    assert sessions.backup().regressed
    sessions.assert_all_readable()


# --- first sessions -------------------------------------------------------------------------------------------------


def test_a_first_session_leaves_nothing(sessions: Sessions, stop: Callable[[Sessions, str], None]) -> None:
    rich.first(sessions.source)
    stop(sessions, "late")
    assert undo(sessions) == (RegressOutcome(None, None), [])
    assert os.listdir(sessions.repository) == ["rdiff-backup-data"]
    assert os.listdir(sessions.data) == ["lock.yml"]
    sessions.backup()
    sessions.assert_all_readable()


@pytest.mark.parametrize("names", [(), ("backup.log",), ("lock.yml",), ("chars_to_quote", "special_escapes"), ("x",)])
def test_files_that_no_first_session_wrote_are_never_removed(sessions: Sessions, names: tuple[str, ...]) -> None:
    """Somebody emptied the data directory: the mirror may be the last copy there is."""
    build(sessions.source, Dir({"a": File(b"a")}))
    build(sessions.repository, Dir({"precious": File(b"precious"), "rdiff-backup-data": Dir()}))
    for name in names:
        (sessions.data / name).touch()
    for run in (lambda: undo(sessions), sessions.backup):
        with pytest.raises(UnfinishedError):
            run()
    assert (sessions.repository / "precious").read_bytes() == b"precious"
    assert set(names) <= set(os.listdir(sessions.data))


def test_increments_without_a_marker_are_never_removed(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"new")
    sessions.backup()
    for name in (*sessions.data.glob("current_mirror.*"), *sessions.data.glob("mirror_metadata.*.diff.gz")):
        name.unlink()
    for name in sessions.data.glob(f"error_log.{stamp(FIRST)}.*"):
        name.unlink()
    before = read(sessions.repository)
    for run in (lambda: undo(sessions), sessions.backup):
        with pytest.raises(DamagedError, match="no current_mirror"):
            run()
    assert difference(before, read(sessions.repository)) == []


# --- damage ---------------------------------------------------------------------------------------------------------


def _rewrite_list(sessions: Sessions, old: bytes, new: bytes) -> None:
    (path,) = sessions.data.glob(f"mirror_metadata.{stamp(sessions.now)}.snapshot.gz")
    text = gzip.decompress(path.read_bytes())
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"), [(b"File d/f\n  Type reg", b"File d/f\n  Type gone"), (b"File d\n  Type dir", b"File d\n  Type ?")]
)
def test_a_file_whose_record_is_damaged_is_not_taken_for_a_stranger(
    sessions: Sessions, stop: Callable[[Sessions, str], None], old: bytes, new: bytes
) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"f": File(b"precious")})}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    stop(sessions, "late")
    _rewrite_list(sessions, old, new)
    for run in (lambda: undo(sessions), sessions.backup):
        with pytest.raises(DamagedError):
            run()
        assert (sessions.repository / "d/f").read_bytes() == b"precious"
    assert len(list(sessions.data.glob("current_mirror.*"))) == 2


def test_without_a_list_nothing_is_done(sessions: Sessions, stop: Callable[[Sessions, str], None]) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    stop(sessions, "late")
    for path in sessions.data.glob(f"mirror_metadata.{stamp(sessions.now)}.*"):
        path.unlink()
    before = read(sessions.repository)
    with pytest.raises(DamagedError):
        undo(sessions)
    ignored = {b"rdiff-backup-data/lock.yml"}
    lines = difference(
        before, {path: found for path, found in read(sessions.repository).items() if path not in ignored}
    )
    assert [line for line in lines if "lock.yml" not in line] == []


def test_more_than_two_markers_are_for_a_person(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    for later in (1, 2):
        (sessions.data / f"current_mirror.{stamp(sessions.now + later * DAY)}.data").touch()
    with pytest.raises(DamagedError, match="more than two"):
        undo(sessions)


def test_a_lost_file_that_was_not_touched_is_told_and_left(
    sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "b": File(b"b"), "c": File(b"c")}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    stop(sessions, "late")
    (sessions.repository / "b").unlink()
    (sessions.repository / "c").write_bytes(b"damaged")
    (sessions.data / "histfs/touched").unlink()  # with it nobody would look at these
    outcome, reported = undo(sessions)
    assert outcome is not None
    assert [error.path for error in reported] == [b"b", b"c"]
    assert (sessions.repository / "a").read_bytes() == b"a"
    assert (sessions.repository / "c").read_bytes() == b"damaged"


def test_a_link_is_not_made_to_a_lost_first_link(sessions: Sessions, stop: Callable[[Sessions, str], None]) -> None:
    """The first of a group is lost; the second, which the session replaced, is rebuilt from its own increment."""
    build(sessions.source, Dir({"a": File(TEXT), "b": Link("a")}))
    sessions.backup()
    (sessions.source / "b").unlink()
    (sessions.source / "b").write_bytes(b"another one")
    stop(sessions, "late")
    (sessions.repository / "a").unlink()
    outcome, reported = undo(sessions)
    assert outcome is not None
    assert [error.path for error in reported] == [b"a"]
    assert (sessions.repository / "b").read_bytes() == TEXT
    assert sessions.content(b"b", sessions.now) == TEXT


def test_links_can_be_rebuilt_where_there_are_none(
    sessions: Sessions, stop: Callable[[Sessions, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without hard links, or one file that has too many."""

    build(sessions.source, Dir({"a": File(TEXT), "b": Link("a")}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"both changed")
    stop(sessions, "late")

    def refuse(_tree: WritableTree, _existing: bytes, path: bytes) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(WritableTree, "link", refuse)
    assert undo(sessions)[0] is not None
    sessions.assert_all_readable()
    assert (sessions.repository / "b").read_bytes() == TEXT


def test_a_file_that_was_damaged_before_does_not_stop_the_recovery(
    sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> None:
    """A flipped bit in the mirror, and a session that died before it could replace the file."""
    build(sessions.source, Dir({"a": File(TEXT), "b": File(b"b")}))
    sessions.backup()
    path = sessions.repository / "a"
    path.write_bytes(TEXT.replace(b"line 5\n", b"lime 5\n"))
    os.utime(path, (MTIME, MTIME))
    (sessions.source / "a").write_bytes(TEXT + b"more")
    (sessions.source / "b").write_bytes(b"more")
    stop(sessions, "early")
    assert "a.T1.diff.gz" in sessions.increments()
    outcome, reported = undo(sessions)
    assert outcome is not None
    assert [(error.path, type(error)) for error in reported] == [(b"a", DamagedError)]
    assert b"lime" in path.read_bytes()
    assert sessions.increments() == set()
    sessions.backup()
    sessions.assert_readable(sessions.now)


def test_a_file_that_cannot_be_rebuilt_stops_the_recovery_with_everything_kept(
    sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "b": File(b"b"), "c": File(b"c")}))
    sessions.backup()
    for name in "abc":
        (sessions.source / name).write_bytes(TEXT + b"more")
    stop(sessions, "late")
    (increment,) = (sessions.data / "increments").glob("b.*.diff.gz")
    increment.write_bytes(increment.read_bytes()[:-4])
    names = os.listdir(sessions.data / "increments")
    for _ in range(2):
        with pytest.raises(DamagedError) as caught:
            undo(sessions)
        assert caught.value.path == b"b"
        assert sorted(os.listdir(sessions.data / "increments")) == sorted(names)
        assert len(list(sessions.data.glob("current_mirror.*"))) == 2
    assert sessions.content(b"a", FIRST) == TEXT
    assert sessions.content(b"c", FIRST) == b"c"
    advised = sessions.repository / caught.value.advice.split("move ")[1].split(" out of")[0]
    assert advised == increment
    advised.rename(sessions.repository.with_name("given up"))
    outcome, reported = undo(sessions)
    assert outcome is not None
    assert [error.path for error in reported] == [b"b"]
    assert sessions.content(b"a", FIRST) == TEXT
    with pytest.raises(DamagedError):
        sessions.content(b"b", FIRST)
    sessions.backup(may_report=True)
    sessions.assert_readable(sessions.now)
    sessions.assert_mirror_is(sessions.now)


# --- leftovers ------------------------------------------------------------------------------------------------------


def test_what_a_dead_session_and_dead_recoveries_left_is_removed(
    sessions: Sessions, stop: Callable[[Sessions, str], None]
) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"f": File(b"f")})}))
    sessions.backup()
    (sessions.source / "new").write_bytes(b"new")
    stop(sessions, "late")
    (sessions.data / "histfs/touched").unlink()  # it was another program, which notes nothing
    for place in (sessions.repository, sessions.repository / "d", sessions.data, sessions.data / "long_filename_data"):
        place.mkdir(exist_ok=True)
        (place / "rdiff-backup.tmp.123").write_bytes(b"left")
    (sessions.data / "rdiff-backup.tmp.0").mkdir()
    (sessions.data / "rdiff-backup.tmp.0/probe").touch()
    undo(sessions)
    found = [name for _, names, files in os.walk(sessions.repository) for name in (*names, *files)]
    assert [name for name in found if name.startswith("rdiff-backup.tmp")] == []


def test_long_names_of_a_dead_session_are_removed(
    sessions: Sessions, stop: Callable[[Sessions, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose files are kept under numbers: only the mirror refers to them, and its list does not."""
    quote_names(monkeypatch, b"A-Z")
    build(sessions.source, Dir({"K" * 100: File(b"kept"), "D" * 100: Dir({"in": File(b"in")})}))
    sessions.backup()
    (sessions.source / ("N" * 100)).write_bytes(bytes(1000))
    (sessions.source / ("K" * 100)).write_bytes(b"changed")
    stop(sessions, "late")
    numbers = {name for name in os.listdir(sessions.data / "long_filename_data") if name.isdigit()}
    assert numbers == {"1", "2", "3", "4"}
    undo(sessions)
    names = os.listdir(sessions.data / "long_filename_data")
    assert {name for name in names if name.isdigit()} == {"1", "2", "3"}
    sessions.assert_all_readable()
    sessions.backup()
    sessions.assert_all_readable()


# --- attributes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["early", "late"])
def test_attributes_come_back(sessions: Sessions, stop: Callable[[Sessions, str], None], when: str) -> None:
    """Modes, owners and times (which have only whole seconds in a record), of everything and of the root."""
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")}), "l": Symlink("x")}))
    for name in ("a", "d", "d/x", "."):
        os.utime(sessions.source / name, ns=(10**18 + 123_456_789, 10**18 + 123_456_789))
    sessions.backup()
    before = {name: os.lstat(sessions.repository / name) for name in ("a", "d", "d/x", "l", ".")}
    for name in ("a", "d", "."):
        (sessions.source / name).chmod(0o711)
        os.utime(sessions.source / name, ns=(2 * 10**18, 2 * 10**18))
        if is_root():
            os.chown(sessions.source / name, 77, 78)
    if is_root():
        os.chown(sessions.source / "l", 77, 78, follow_symlinks=False)
    stop(sessions, when)
    assert undo(sessions)[1] == []
    for name, old in before.items():
        new = os.lstat(sessions.repository / name)
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid), name
        assert name == "l" or int(new.st_mtime) == int(old.st_mtime), name
