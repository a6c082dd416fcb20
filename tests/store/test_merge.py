"""Restoring into a target that holds something: what is touched, what stays, what is kept, what is told."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from histfs.errors import HistfsError, StorageError, UsageError
from histfs.store import restore as restore_module
from histfs.store.files import WritableTree
from histfs.store.restore import RestoreOutcome, restore
from histfs.store.target import Manner, Step, Target
from histfs.store.unfinished import LEFTOVER
from tests import histories
from tests.comparison import Manifest, difference, read
from tests.store.killing import Killer
from tests.store.places import is_root, open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import MTIME, Dir, File, Link, Symlink, build
from tests.users import as_ordinary_user, give_away

MERGE, DELETE, FORCE = Manner(merge=True), Manner(delete=True), Manner(force=True)


class Restored(NamedTuple):
    outcome: RestoreOutcome
    reported: list[HistfsError]
    steps: list[tuple[Step, bytes]]


def run(
    sessions: Sessions, target: Path, manner: Manner, path: bytes = b"", time: int | None = None, **options: Any
) -> Restored:
    reported: list[HistfsError] = []
    steps: list[tuple[Step, bytes]] = []
    before = open_descriptors()
    with sessions.open() as repository:
        outcome = restore(
            repository,
            path,
            sessions.now if time is None else time,
            target,
            report=reported.append,
            tell=lambda step, at: steps.append((step, at)),
            manner=manner,
            **options,
        )
    assert open_descriptors() == before
    return Restored(outcome, reported, steps)


def touched(before: dict[bytes, os.stat_result], target: Path) -> set[bytes]:
    """The paths of which something was changed, or that are other files now; not those that got or lost a link."""
    after = look(target)
    return {path for path in before.keys() | after.keys() if not _is_untouched(before.get(path), after.get(path))}


def _is_untouched(old: os.stat_result | None, new: os.stat_result | None) -> bool:
    if old is None or new is None or old.st_ino != new.st_ino:
        return False
    return old.st_nlink != new.st_nlink or old.st_ctime_ns == new.st_ctime_ns


def look(target: Path) -> dict[bytes, os.stat_result]:
    return {path: os.lstat(os.path.join(os.fsencode(target), path)) for path in read(target)}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def simple(sessions: Sessions) -> Sessions:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": Link("a")}), "l": Symlink("a")}))
    sessions.backup()
    return sessions


# --- what is touched ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_root(), reason="only root can make all of it")
@pytest.mark.parametrize(("number", "following"), [(0, 1), (1, 0), (2, 3), (3, 0), (0, 0)])
def test_a_target_becomes_another_session(rich_sessions: Sessions, target: Path, number: int, following: int) -> None:
    run(rich_sessions, target, Manner(), time=FIRST + number * DAY)
    expected = rich_sessions.states[FIRST + following * DAY]
    rehearsal = run(rich_sessions, target, DELETE._replace(dry_run=True), time=FIRST + following * DAY)
    before = look(target)
    restored = run(rich_sessions, target, DELETE, time=FIRST + following * DAY)
    assert (restored.outcome, restored.reported) == ((len(expected), 0), [])
    assert difference(expected, read(target)) == []
    assert rehearsal.steps == restored.steps
    told = {path for _, path in restored.steps}
    neighbours = {path.rpartition(b"/")[0] for path in told}  # directories get their time again
    assert touched(before, target) <= told | neighbours
    assert (run(rich_sessions, target, DELETE, time=FIRST + following * DAY).steps) == []


@pytest.mark.parametrize("seed", range(4))
def test_random_targets_become_what_they_should(tmp_path: Path, seed: int) -> None:
    """Whatever was there before, in random histories; with random manners for what must not depend on them."""
    chance = random.Random(f"merge {seed}")
    sessions = Sessions(tmp_path)
    for state in histories.random_history(sessions.source, 71_000 + seed, 5, histories.ANYTHING):
        sessions.now = state.time - DAY
        sessions.backup()
    target = tmp_path / "target"
    for number in range(6):
        time = chance.choice(list(sessions.states))
        expected = sessions.states[time]
        manner = DELETE._replace(checksum=chance.random() < 0.3)
        if chance.random() < 0.3:
            manner = manner._replace(backup_dir=tmp_path / f"aside{chance.randrange(2)}")
        restored = run(sessions, target, manner if number else Manner(), time=time)
        specials = [] if is_root() else [path for path, found in expected.items() if found.device is not None]
        assert len(restored.reported) == len(specials)
        wanted = {path: expected[path] for path in expected if path not in specials}
        assert difference(wanted, read(target), nlink=False) == []  # what is kept aside may be a link of what stays


def test_what_the_backup_does_not_have_stays(simple: Sessions, target: Path) -> None:
    build(target, Dir({"a": File(b"other"), "d": Dir({"mine": File(b"mine")}), "b": Dir({"c": File(b"c")})}))
    restored = run(simple, target, MERGE)
    assert restored.reported == []
    assert sorted(restored.steps, key=lambda step: step[1]) == [
        (Step.CHANGED, b"a"),
        (Step.NEW, b"d/x"),
        (Step.NEW, b"d/y"),
        (Step.NEW, b"l"),
    ]
    assert (target / "a").read_bytes() == b"a"
    assert (target / "d/mine").read_bytes() == b"mine"
    assert (target / "b/c").read_bytes() == b"c"
    assert (target / "d/y").stat().st_ino == (target / "a").stat().st_ino


def test_attributes_are_set_in_place(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    (target / "d/x").chmod(0o600)
    os.utime(target / "d", (5, 5))
    inode = (target / "d/x").stat().st_ino
    assert run(simple, target, MERGE).steps == [(Step.ATTRIBUTES, b"d/x"), (Step.ATTRIBUTES, b"d")]
    assert difference(simple.states[FIRST], read(target)) == []
    assert (target / "d/x").stat().st_ino == inode


def test_equal_content_of_another_time_is_not_written(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    os.utime(target / "d/x", (5, 5))
    inode = (target / "d/x").stat().st_ino
    assert run(simple, target, MERGE).steps == [(Step.ATTRIBUTES, b"d/x")]
    assert (target / "d/x").stat().st_ino == inode
    assert difference(simple.states[FIRST], read(target)) == []


def test_other_content_of_the_same_size_and_time_is_found_by_its_digest(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    (target / "d/x").write_bytes(b"z")
    os.utime(target / "d/x", (MTIME, MTIME))
    assert run(simple, target, MERGE).steps == []
    assert run(simple, target, MERGE._replace(checksum=True)).steps == [(Step.CHANGED, b"d/x")]
    assert difference(simple.states[FIRST], read(target)) == []


def test_a_file_with_another_name_elsewhere_is_not_changed_in_place(
    simple: Sessions, target: Path, tmp_path: Path
) -> None:
    run(simple, target, Manner())
    os.link(target / "d/x", tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    assert run(simple, target, MERGE).steps == [(Step.CHANGED, b"d/x")]
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o600
    assert difference(simple.states[FIRST], read(target)) == []


def test_links_are_made_and_undone(simple: Sessions, target: Path) -> None:
    build(target, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": File(b"a")}), "l": Symlink("a")}))
    assert run(simple, target, MERGE).steps == [(Step.CHANGED, b"d/y")]
    (target / "l").unlink()
    os.link(target / "d/x", target / "z")
    assert run(simple, target, DELETE).reported == []
    assert difference(simple.states[FIRST], read(target)) == []


@pytest.mark.parametrize("path", [b"a", b"l", b"d"])
def test_a_sub_path_is_merged(simple: Sessions, target: Path, path: bytes) -> None:
    run(simple, target, Manner(), path)
    assert run(simple, target, MERGE, path).steps == []
    if path != b"d":
        target.unlink()
        target.write_bytes(b"mine")
        assert run(simple, target, MERGE, path).steps == [(Step.CHANGED, b"")]
    assert not (target.parent / "aside").exists()


# --- what must not be lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["a", "l"])
def test_a_full_directory_in_the_way_stays_unless_it_may_go(simple: Sessions, target: Path, entry: str) -> None:
    build(target, Dir({entry: Dir({"mine": File(b"mine")})}))
    for manner in (MERGE._replace(dry_run=True), MERGE):
        restored = run(simple, target, manner)
        assert [error.path for error in restored.reported if isinstance(error, StorageError)] == [
            f"target/{entry}".encode()
        ]
        assert (target / entry / "mine").read_bytes() == b"mine"
    kept = target.parent / "aside"
    assert run(simple, target, Manner(backup_dir=kept)).reported == []
    assert (kept / entry / "mine").read_bytes() == b"mine"
    assert difference(simple.states[FIRST], read(target)) == []


def test_an_empty_directory_in_the_way_makes_way(simple: Sessions, target: Path) -> None:
    build(target, Dir({"a": Dir(), "l": Dir({}, mode=0o700)}))
    assert run(simple, target, MERGE).reported == []
    assert difference(simple.states[FIRST], read(target)) == []


def test_what_is_replaced_or_deleted_is_kept(simple: Sessions, target: Path, tmp_path: Path) -> None:
    """Again and again, and never in the place of what was kept before."""
    aside = tmp_path / "aside"
    manner = Manner(delete=True, backup_dir=aside)
    for number in (b"1", b"2"):
        build(
            target,
            Dir({"a": File(b"old" + number), "d": File(b"file" + number), "mine": Dir({"deep": File(number)})}),
        )
        assert run(simple, target, manner).reported == []
        assert difference(simple.states[FIRST], read(target)) == []
        subprocess.run(["rm", "-rf", target], check=True)
    kept = {path: (aside / os.fsdecode(path)).read_bytes() for path, found in read(aside).items() if found.sha1}
    assert kept == {
        b"a": b"old1",
        b"a.~1~": b"old2",
        b"d": b"file1",
        b"d.~1~": b"file2",
        b"mine/deep": b"1",
        b"mine.~1~/deep": b"2",
    }


def test_where_something_else_was_kept_before(simple: Sessions, target: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    build(aside, Dir({"d": File(b"kept")}))
    build(target, Dir({"d": Dir({"x": File(b"other")})}))
    assert run(simple, target, Manner(backup_dir=aside)).reported == []
    assert (aside / "d").read_bytes() == b"kept"
    assert (aside / "d.~1~/x").read_bytes() == b"other"


@pytest.mark.parametrize("place", ["target/aside", ".", "repository/aside", "target"])
def test_places_where_nothing_can_be_kept(simple: Sessions, target: Path, tmp_path: Path, place: str) -> None:
    target.mkdir()
    before = read(tmp_path)
    with pytest.raises(UsageError):
        run(simple, target, Manner(backup_dir=tmp_path / place))
    assert difference(before, read(tmp_path)) == []


def test_nothing_is_deleted_for_a_damaged_list(simple: Sessions, target: Path) -> None:
    """What was not read may have been there."""
    [path] = simple.data.glob("mirror_metadata.*")
    build(target, Dir({"d": Dir({"extra": File(b"mine")}), "zzz": File(b"mine")}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 9])
    restored = run(simple, target, DELETE)
    assert restored.reported
    assert (target / "d/extra").exists() or restored.outcome.errors
    assert (target / "zzz").read_bytes() == b"mine"


def test_a_damaged_file_keeps_what_is_in_its_place(simple: Sessions, target: Path) -> None:
    (simple.repository / "d/x").write_bytes(b"?")
    build(target, Dir({"d": Dir({"x": File(b"mine, and good")})}))
    restored = run(simple, target, DELETE)
    assert [error.path for error in restored.reported] == [b"d/x"]
    assert (target / "d/x").read_bytes() == b"mine, and good"
    assert [name for name in os.listdir(target / "d") if name.startswith(os.fsdecode(LEFTOVER))] == []


# --- where it may go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", [MERGE, DELETE, Manner(backup_dir=Path("/nowhere/kept"))])
@pytest.mark.parametrize("path", [b"", b"a"])
def test_a_target_of_another_type_is_refused(simple: Sessions, target: Path, manner: Manner, path: bytes) -> None:
    if path:
        build(target, Dir({"mine": File(b"mine")}))
    else:
        target.symlink_to("repository")
    if manner.backup_dir is not None:
        manner = manner._replace(backup_dir=target.parent / "kept")
    before = read(target.parent)
    with pytest.raises(UsageError):
        run(simple, target, manner, path)
    after = read(target.parent)
    after.pop(b"kept", None)
    assert difference(before, after, root=False) == []


@pytest.mark.parametrize(("what", "path"), [*itertools.product(["file", "link", "empty"], [b"", b"a"]), ("full", b"")])
def test_force_takes_the_place_of_anything(simple: Sessions, target: Path, what: str, path: bytes) -> None:
    victim = target.parent / "victim"
    build(victim, Dir({"x": File(b"keep")}))
    before = read(victim)
    if what == "file":
        target.write_bytes(b"mine")
    elif what == "link":
        target.symlink_to("victim")
    else:
        build(target, Dir({"mine": File(b"mine")} if what == "full" else {}))
    restored = run(simple, target, FORCE, path)
    assert bool(restored.reported) == (what == "full")
    assert restored.outcome.errors == 0
    if path:
        assert target.read_bytes() == b"a"
    else:
        assert difference(simple.states[FIRST], read(target)) == []
    assert difference(before, read(victim)) == []


@pytest.mark.parametrize(
    "manner", [Manner(), MERGE, DELETE, FORCE, Manner(force=True, backup_dir=Path("/nowhere/kept"))]
)
@pytest.mark.parametrize("name", ["target", "two words", "odd\n\udcff'"])
def test_a_file_never_takes_the_place_of_a_directory(
    simple: Sessions, target: Path, manner: Manner, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives the name of one wants the file in it."""
    monkeypatch.chdir(target.parent)
    place = Path(name)
    build(place, Dir({"mine": File(b"mine"), "a": File(b"mine too")}))
    if manner.backup_dir is not None:
        manner = manner._replace(backup_dir=target.parent / "kept")
    before = read(place)
    with pytest.raises(UsageError) as raised:
        run(simple, place, manner, b"a")
    write = {"target": "target/a", "two words": "'two words/a'"}.get(name, r"$'odd\n\xff\'/a'")
    assert (raised.value.problem, raised.value.advice) == ("is a directory", f"write {write}")
    assert difference(before, read(place)) == []


@pytest.mark.parametrize("manner", [Manner(), MERGE, DELETE])
def test_a_file_in_the_place_of_an_empty_directory(simple: Sessions, target: Path, manner: Manner) -> None:
    target.mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        run(simple, target, manner, b"a")
    (target.parent / "link").symlink_to("target")
    if not manner.is_merging:
        with pytest.raises(UsageError) as raised:
            run(simple, target.parent / "link", manner, b"a")
        assert f"write {target.parent}/link/a " in raised.value.advice


def test_the_directories_above_are_made(simple: Sessions, tmp_path: Path) -> None:
    place = tmp_path / "one/two/target"
    with pytest.raises(UsageError):
        run(simple, place, Manner())
    rehearsal = run(simple, place, Manner(create_full_path=True, dry_run=True))
    assert not (tmp_path / "one").exists()
    restored = run(simple, place, Manner(create_full_path=True))
    assert rehearsal.steps == restored.steps
    assert difference(simple.states[FIRST], read(place)) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        run(simple, tmp_path / "file/target", Manner(create_full_path=True))


def test_a_rehearsal_changes_nothing(simple: Sessions, target: Path) -> None:
    build(target, Dir({"a": File(b"other"), "d": File(b"d"), "gone": Dir({"x": File()})}))
    before = look(target)
    manner = Manner(delete=True, backup_dir=target.parent / "aside", dry_run=True)
    steps = run(simple, target, manner).steps
    assert [step for step in steps if step[0] is not Step.ATTRIBUTES] == [
        (Step.CHANGED, b"a"),
        (Step.CHANGED, b"d"),
        (Step.NEW, b"d/x"),
        (Step.NEW, b"d/y"),
        (Step.NEW, b"l"),
        (Step.DELETED, b"gone"),
        (Step.DELETED, b"gone/x"),
    ]
    assert touched(before, target) == set()
    assert not (target.parent / "aside").exists()


def test_directories_that_their_owner_must_not_write_to(scratch: Path) -> None:
    """An ordinary user changes what is in them, and deletes some with what is in them."""
    scratch.chmod(0o755)
    sessions, target = Sessions(scratch), scratch / "target"
    build(sessions.source, Dir({"d": Dir({"x": File(b"x")}, mode=0o500)}))
    sessions.backup()
    closed = Dir({"e": Dir({"f": File(b"f")}, mode=0o500)}, mode=0o100)
    build(target, Dir({"d": Dir({"x": File(b"other"), "z": File(b"z"), "closed": closed}, mode=0o300)}))
    give_away(sessions.repository, target)

    def restore_as_user() -> None:
        assert run(sessions, target, DELETE).reported == []

    as_ordinary_user(restore_as_user)
    assert difference(sessions.states[FIRST], read(target), owners=False) == []
    for path in (target / "d", sessions.source / "d"):
        path.chmod(0o700)


def test_only_what_was_done_is_told(scratch: Path) -> None:
    """An ordinary user may not change what belongs to somebody else."""
    scratch.chmod(0o755)
    sessions, target = Sessions(scratch), scratch / "target"
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")}), "new": File(b"new")}))
    sessions.backup()
    build(target, Dir({"a": File(b"other"), "d": Dir({"x": File(b"x", mode=0o600)}), "gone": File()}))
    give_away(sessions.repository)
    for path in (target / "d", target):
        path.chmod(0o555)

    def restore_as_user() -> None:
        restored = run(sessions, target, DELETE)
        assert restored.steps == []
        assert restored.reported != []
        for name in ("a", "new"):
            with pytest.raises(StorageError):
                run(sessions, target / name, DELETE, b"a")

    before = look(target)
    as_ordinary_user(restore_as_user)
    assert touched(before, target) == set()
    for path in (target, target / "d"):
        path.chmod(0o700)


@pytest.mark.skipif(not is_root(), reason="somebody else's files are needed")
def test_of_what_is_deleted_in_part_that_part_is_told(scratch: Path) -> None:
    scratch.chmod(0o755)
    sessions, target = Sessions(scratch), scratch / "target"
    build(sessions.source, Dir({}))
    sessions.backup()
    build(target, Dir({"gone": Dir({"a": File(), "closed": Dir({"b": File()})})}))
    give_away(sessions.repository, target)
    os.chown(target / "gone/closed", 0, 0)

    def restore_as_user() -> None:
        restored = run(sessions, target, DELETE)
        left = {
            os.path.relpath(os.path.join(above, name), target)
            for above, *some in os.walk(target)
            for names in some
            for name in names
        }
        everything = {"gone", "gone/a", "gone/closed", "gone/closed/b"}
        assert {os.fsdecode(path) for step, path in restored.steps if step is Step.DELETED} == everything - left
        assert left

    as_ordinary_user(restore_as_user)


# --- interrupted ----------------------------------------------------------------------------------------------------


def expected_of(sessions: Sessions, time: int) -> Manifest:
    expected = sessions.states[time]
    return expected if is_root() else {path: found for path, found in expected.items() if found.device is None}


@pytest.mark.parametrize("populated", [False, True])
@pytest.mark.parametrize("power_cut", [None, "empty files", "files of zeros"])
def test_a_killed_restore_is_repeated(
    rich_sessions: Sessions, target: Path, killer: Killer, populated: bool, power_cut: str | None
) -> None:
    """At many points, each in what the one before has left; what is not of the backup is never lost half."""
    last = FIRST + 3 * DAY

    def kill(at: int, manner: Manner) -> bool:
        was_killed = killer.run(at, lambda: run_unchecked(rich_sessions, target, manner, last))
        if was_killed and power_cut is not None:
            killer.lose_data(target, keeps_size=power_cut == "files of zeros")
        return was_killed

    def populate() -> None:
        if populated:
            run(rich_sessions, target, DELETE, time=FIRST)

    populate()
    killer.run(None, lambda: run(rich_sessions, target, MERGE, time=last))
    points = killer.changes
    for at in range(1, points, max(1, points // 12)):
        subprocess.run(["rm", "-rf", target], check=True)
        populate()
        assert kill(at, MERGE)
        kill(max(1, at // 2), DELETE)
        run(rich_sessions, target, DELETE, time=last)
        assert difference(expected_of(rich_sessions, last), read(target)) == [], at


def run_unchecked(sessions: Sessions, target: Path, manner: Manner, time: int) -> None:
    with sessions.open() as repository, contextlib.suppress(StorageError):
        restore(repository, b"", time, target, report=lambda _: None, manner=manner)


def test_what_an_interrupted_restore_left_goes(simple: Sessions, target: Path) -> None:
    name = os.fsdecode(LEFTOVER) + "0123456789abcdef"
    build(target, Dir({name: File(b"half"), "d": Dir({name: Symlink("x")}), "a": Dir({name: File(b"half")})}))
    assert run(simple, target, MERGE).reported == []
    assert sorted(os.listdir(target / "d")) == ["x", "y"]
    assert sorted(os.listdir(target)) == ["a", "d", "l"]


@pytest.mark.parametrize("mine", ["mine", "0123456789abcdeX", "0123456789abcdef0", "0123456789abcdef/x"])
def test_what_only_looks_like_that_stays(simple: Sessions, target: Path, mine: str) -> None:
    for directory in ("a", "d"):
        path = target / directory / (os.fsdecode(LEFTOVER) + mine)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    assert [error.path for error in run(simple, target, MERGE).reported] == [b"target/a", b"d/y"][:1]
    for directory in ("a", "d"):
        assert (target / directory / (os.fsdecode(LEFTOVER) + mine)).read_bytes() == b"mine"


# --- somebody else in the target ------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", [MERGE, DELETE])
def test_links_in_the_target_are_replaced_and_not_followed(
    simple: Sessions, target: Path, tmp_path: Path, manner: Manner
) -> None:
    victim = tmp_path / "victim"
    build(victim, Dir({"x": File(b"keep"), "y": File(b"keep"), "more": File(b"keep")}, mode=0o711))
    build(target, Dir({"a": Symlink("../victim/x"), "d": Symlink("../victim"), "e": Symlink("../victim")}))
    before = look(victim)
    assert run(simple, target, manner).reported == []
    assert touched(before, victim) == set()
    assert (target / "e").is_symlink() == (manner is MERGE)
    (target / "e").unlink(missing_ok=True)
    os.utime(target, (MTIME, MTIME))
    assert difference(simple.states[FIRST], read(target)) == []


@pytest.mark.long
def test_a_swapper(simple: Sessions, target: Path, tmp_path: Path) -> None:
    """Somebody who swaps a directory for a link as fast as possible, while it is restored to again and again."""
    victim, moved = tmp_path / "victim", tmp_path / "moved"
    build(victim, Dir({"x": File(b"keep"), "y": File(b"keep"), "mine": File(b"keep")}, mode=0o711))
    build(target, Dir({"d": Dir()}))
    before = look(victim)
    child = os.fork()
    if child == 0:
        while True:
            with contextlib.suppress(OSError):
                (target / "d").rename(moved)
                (target / "d").symlink_to(victim)
                (target / "d").unlink()
                moved.rename(target / "d")
    try:
        for number in range(2000):
            (target / f"other{number}").touch()
            run_unchecked(simple, target, DELETE, simple.now)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert touched(before, victim) == set()


@pytest.mark.parametrize("name", [b"", b"a", b"d", b"d/x", b"d/y", b"l"])
def test_what_is_swapped_for_a_link_meanwhile(
    simple: Sessions, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """Just after it was looked at: whatever happens to the target, nothing happens elsewhere."""
    victim = tmp_path / "victim"
    build(victim, Dir({"x": File(b"keep"), "y": File(b"keep"), "mine": File(b"keep")}, mode=0o711))
    build(target, Dir({"a": File(b"b"), "d": Dir({"x": File(b"y"), "mine": File(b"y")}, mtime=7), "l": Symlink("x")}))
    before = look(victim)
    real = restore_module.Target.find
    looks = 0

    def find(self: restore_module.Target, path: bytes) -> object:
        nonlocal looks
        found = real(self, path)
        if path == b"/".join(filter(None, (b"target", name))):
            looks += 1
            if looks == swap_at:
                place = target / os.fsdecode(name)
                if os.path.lexists(place):
                    place.rename(tmp_path / f"moved{swap_at}")
                place.symlink_to(victim if place.name in ("target", "d") else victim / "x")
        return found

    monkeypatch.setattr(restore_module.Target, "find", find)
    for swap_at in (1, 2):
        looks = 0
        try:
            run(simple, target, DELETE)
        except HistfsError:
            assert not name
        if target.is_symlink():
            target.unlink()
            (tmp_path / f"moved{swap_at}").rename(target)
        assert touched(before, victim) == set()


# --- what is only looked at -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_root(), reason="only root can back such files up")
@pytest.mark.parametrize("dry_run", [False, True])
def test_files_that_their_owner_must_not_read_are_compared(scratch: Path, dry_run: bool) -> None:
    """They keep their modes; where nothing may be changed, not even for a moment, they cannot be compared."""
    sessions = Sessions(scratch)
    build(sessions.source, Dir({"f": File(b"f", 0o200), "g": File(b"g")}))
    sessions.backup()
    run(sessions, scratch / "target", Manner())
    give_away(scratch)
    scratch.chmod(0o755)

    def compare() -> None:
        mode = (scratch / "target/f").stat().st_mode
        restored = run(sessions, scratch / "target", MERGE._replace(checksum=True, dry_run=dry_run))
        assert [error.path for error in restored.reported] == ([b"target/f"] if dry_run else [])
        assert restored.steps == []
        assert (scratch / "target/f").stat().st_mode == mode

    as_ordinary_user(compare)


@pytest.mark.parametrize("fsync", [True, False])
def test_what_was_written_is_on_the_disk_before_anything_is_deleted(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    """And at the end; where nothing was written nobody waits."""
    done: list[str] = []
    monkeypatch.setattr(Target, "put", _noting(done, "written", Target.put))
    monkeypatch.setattr(WritableTree, "unlink", _noting(done, "deleted", WritableTree.unlink))
    monkeypatch.setattr(WritableTree, "sync", lambda tree: done.append("synced") if tree.waits_for_disk else None)
    build(target, Dir({"a": File(b"other"), "d": Dir({"new": File()}), "new": File()}))
    run(simple, target, DELETE._replace(fsync=fsync))
    groups = [name for name, _ in itertools.groupby(done)]
    if fsync:
        assert groups == ["written", "synced", "deleted"] * 2 + ["synced"]  # last goes what tells that it has not ended
    else:
        assert groups == ["written", "deleted", "written", "deleted"]
    done.clear()
    run(simple, target, DELETE)
    assert done == []


def _noting(done: list[str], name: str, real: Callable[..., None]) -> Callable[..., None]:
    def noting(*arguments: Any, **options: Any) -> None:
        done.append(name)
        real(*arguments, **options)

    return noting


def test_a_restore_that_was_cut_off_is_told_how_to_go_on(simple: Sessions, target: Path) -> None:
    name = os.fsdecode(LEFTOVER) + "0123456789abcdef"
    target.mkdir()
    (target / name).write_bytes(b"half of ")
    (target / "a").write_bytes(b"mine")
    with pytest.raises(UsageError, match="a restore to it was cut off; the same with --merge completes it"):
        run(simple, target, Manner())
    assert sorted(os.listdir(target)) == [name, "a"]
    run(simple, target, MERGE)
    assert read(target).keys() == read(simple.source).keys()
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (target / name).write_bytes(b"half of ")
    run(simple, target, Manner())  # nothing else is in it
    assert read(target).keys() == read(simple.source).keys()
