"""Hard links over sessions: groups that grow, shrink, split, merge, change, and are half seen (docs/format.md 4.4)."""

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.store import backup as backup_module
from histfs.store.files import WritableTree
from histfs.store.regress import regress
from histfs.store.source import Found, Source
from histfs.store.walk import Walk
from tests.comparison import difference, read
from tests.store.sessions import FIRST, Sessions
from tests.trees import MTIME, Dir, File, Link, build

A, B = b"first content", b"the second content"
_times = itertools.count(MTIME + 1)


def write(path: Path, content: bytes) -> None:
    """In place: all links change."""
    path.write_bytes(content)
    stamp(path)


def stamp(path: Path) -> None:
    now = next(_times)
    os.utime(path, (now, now))


def fresh(path: Path, content: bytes) -> None:
    """A file of its own."""
    path.unlink(missing_ok=True)
    write(path, content)


def relink(source: Path, first: str, second: str) -> None:
    (source / second).unlink(missing_ok=True)
    os.link(source / first, source / second)


@pytest.fixture
def group(sessions: Sessions) -> Sessions:
    """One session of a group of three, and two files that are not linked."""
    build(
        sessions.source,
        Dir({"b": File(A), "c": Link("b"), "d": Dir({"e": Link("b")}), "f": File(A), "g": File(B), "h": File(A[::-1])}),
    )
    sessions.backup()
    return sessions


def check(sessions: Sessions) -> None:
    """One session more; everything is right, also in another that changes nothing."""
    outcome = sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
    assert outcome.source_warnings == 0
    assert sessions.backup().statistics.changed_files == 0
    sessions.assert_all_readable()
    for time in sessions.states:
        assert sessions.verify(time)[1:] == (0, 0)


TRANSITIONS: dict[str, Callable[[Path], object]] = {
    "a link is added before all others": lambda top: relink(top, "b", "a"),
    "a link is added after all others": lambda top: relink(top, "b", "z"),
    "the first link goes": lambda top: (top / "b").unlink(),
    "a link in the middle goes": lambda top: (top / "c").unlink(),
    "the last link goes": lambda top: (top / "d/e").unlink(),
    "one link stays": lambda top: [(top / "b").unlink(), (top / "d/e").unlink()],
    "all links go": lambda top: [(top / name).unlink() for name in ("b", "c", "d/e")],
    "the directory of a link goes": lambda top: shutil.rmtree(top / "d"),
    "all links change": lambda top: write(top / "c", B),
    "all links get another mode": lambda top: (top / "c").chmod(0o600),
    "all links get another time": lambda top: stamp(top / "c"),
    "the first link is replaced by a copy": lambda top: fresh(top / "b", A),
    "the last link is replaced by a copy": lambda top: fresh(top / "d/e", A),
    "a link is replaced by a copy of the same time": lambda top: [
        fresh(top / "c", A),
        os.utime(top / "c", (MTIME, MTIME)),
    ],
    "a link is replaced by another file": lambda top: fresh(top / "c", B),
    "all links are replaced by copies": lambda top: [fresh(top / name, A) for name in ("b", "c", "d/e")],
    "a link moves to another file": lambda top: relink(top, "g", "c"),
    "the first link moves to another file": lambda top: relink(top, "g", "b"),
    "a link moves to another file of the same content": lambda top: relink(top, "f", "c"),
    "a link moves to another file of the same size and time": lambda top: relink(top, "h", "c"),
    "the first link moves to another file of the same size and time": lambda top: relink(top, "h", "b"),
    "a file of the same size and time joins the group": lambda top: relink(top, "b", "h"),
    "a file becomes a link of one of the same size and time": lambda top: relink(top, "f", "h"),
    "the group joins another file": lambda top: [relink(top, "g", name) for name in ("b", "c", "d/e")],
    "a file joins the group": lambda top: relink(top, "b", "f"),
    "another file joins the group": lambda top: relink(top, "b", "g"),
    "the group is split in two": lambda top: [relink(top, "b", "z"), fresh(top / "c", A), relink(top, "c", "d/e")],
    "the group is split and one half changes": lambda top: [fresh(top / "c", B), relink(top, "c", "d/e")],
    "the first changes on its own, the others together": lambda top: [fresh(top / "b", B), write(top / "c", A + B)],
    "the group is another file of the same content": lambda top: [
        fresh(top / "b", A),
        relink(top, "b", "c"),
        relink(top, "b", "d/e"),
    ],
    "a link becomes a directory": lambda top: [(top / "b").unlink(), (top / "b").mkdir()],
    "a directory becomes a link": lambda top: [shutil.rmtree(top / "d"), relink(top, "c", "d")],
    "a directory becomes the first link": lambda top: [
        (top / "a").mkdir(),
        (top / "a").rmdir(),
        shutil.rmtree(top / "d"),
        relink(top, "g", "d"),
        relink(top, "d", "z"),
    ],
    "a link becomes a symbolic link": lambda top: [(top / "c").unlink(), (top / "c").symlink_to("b")],
    "a new directory is full of links": lambda top: [
        (top / "new").mkdir(),
        *[relink(top, "g", f"new/{number}") for number in range(5)],
    ],
    "links move to other names": lambda top: [(top / "b").rename(top / "q"), (top / "d").rename(top / "p")],
    "a link is renamed over another": lambda top: [(top / "c").unlink(), (top / "b").rename(top / "c")],
    "a link outside of the tree": lambda top: os.link(top / "g", top.with_name("outside")),
}


@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_transition(group: Sessions, transition: Callable[[Path], object]) -> None:
    transition(group.source)
    if (group.source.with_name("outside")).exists():
        group.backup()
        assert group.entry(b"g").link_group is not None
        assert group.node(b"g").nlink == 1
        return
    check(group)


@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_transition_back(group: Sessions, transition: Callable[[Path], object], tmp_path: Path) -> None:
    """From what comes out of the transition to what was before."""
    before = tmp_path / "before"
    shutil.copytree(group.source, before, symlinks=True)
    transition(group.source)
    if (group.source.with_name("outside")).exists():
        (group.source.with_name("outside")).unlink()
    group.backup()
    group.source.rename(tmp_path / "after")  # and kept: a new file that got the number of an old one would pass for it
    shutil.copytree(before, group.source, symlinks=True)
    for name in ("c", "d/e"):
        relink(group.source, "b", name)
    check(group)


@pytest.mark.parametrize("seed", range(6))
def test_random_links(sessions: Sessions, seed: int) -> None:
    chance = random.Random(seed)
    names = [*"abcdef", "g/x", "g/y"]
    build(sessions.source, Dir({**{name: File(b"%d" % number) for number, name in enumerate("abc")}, "g": Dir()}))
    for _ in range(8):
        for _ in range(chance.randrange(5)):
            there = [name for name in names if (sessions.source / name).exists()]
            name, other = chance.choice(names), chance.choice(there) if there else None
            action = chance.randrange(5)
            if action == 0:
                (sessions.source / name).unlink(missing_ok=True)
            elif action == 1:
                fresh(sessions.source / name, chance.choice((A, B, b"")))
            elif action == 2 and other:
                write(sessions.source / other, chance.choice((A, B)))
            elif other and other != name:
                relink(sessions.source, other, name)
        sessions.backup()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_the_first_link_alone_has_the_digest(group: Sessions) -> None:
    assert [group.entry(path).sha1 is not None for path in (b"b", b"c", b"d/e")] == [True, False, False]
    (group.source / "b").unlink()
    group.backup()
    assert [group.entry(path).sha1 is not None for path in (b"c", b"d/e")] == [True, False]
    group.assert_all_readable()


def test_links_are_kept_apart_where_the_mirror_has_none(group: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links; and a file that has too many."""
    monkeypatch.setattr(WritableTree, "try_link", lambda _tree, _existing, _path: False)
    write(group.source / "b", B)
    relink(group.source, "g", "z")
    group.backup()
    group.assert_all_readable()
    assert (group.repository / "c").stat().st_nlink == 1
    assert group.node(b"c").nlink == 3  # the record counts
    monkeypatch.undo()


@pytest.mark.parametrize("which", [b"c", b"d/e"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_file_that_changes_between_two_looks_at_its_links(
    group: Sessions, monkeypatch: pytest.MonkeyPatch, which: bytes, is_known: bool
) -> None:
    """Each link is recorded with what was read: none gets the attributes of one state and the content of another."""
    if not is_known:
        shutil.rmtree(group.source)
        build(group.source, Dir({"x": File(A)}))
        group.backup()
        shutil.rmtree(group.source)
        build(group.source, Dir({"b": File(A), "c": Link("b"), "d": Dir({"e": Link("b")})}))
    write(group.source / "b", A + b"1")
    real = Walk.look

    def look(walk: Walk) -> object:
        if walk.path == which:
            write(group.source / "b", A + b"12")
        return real(walk)

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "look", look)
        group.backup()
    assert group.verify(group.now) == (6 if is_known else 3, 0, 0)
    contents = {path: group.content(path, group.now) for path in (b"b", b"c", b"d/e")}
    changed = [b"c", b"d/e"] if which == b"c" else [b"d/e"]
    assert contents == {path: A + b"12" if path in changed else A + b"1" for path in contents}
    group.states[group.now] = group.manifest(group.now)  # whatever it is, it stays so
    check_time = group.now
    check(group)
    assert {path: group.content(path, check_time) for path in contents} == contents


def test_a_file_with_another_mode_at_the_second_look(group: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    write(group.source / "b", B)
    real = Walk.look

    def look(walk: Walk) -> object:
        if walk.path == b"c":
            (group.source / "c").chmod(0o600)
        return real(walk)

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "look", look)
        group.backup()
    assert group.verify(group.now)[1:] == (0, 0)
    assert (group.entry(b"b").mode, group.entry(b"c").mode) == (0o644, 0o600)
    assert [(group.repository / name).stat().st_mode & 0o777 for name in "bc"] == [0o644, 0o600]
    group.states[group.now] = group.manifest(group.now)  # whatever it is, it stays so
    check(group)


def test_what_was_read_of_a_link_that_vanished_is_not_linked_to(
    group: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(group.source / "b", B)
    real = Source.open_file

    def open_file(source: Source, found: Found) -> int:
        if found.path == b"b":
            (group.source / "b").unlink()
        return real(source, found)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "open_file", open_file)
        outcome = group.backup(may_report=True)
    assert outcome.source_warnings == 1
    assert group.content(b"b", group.now) == A
    assert group.content(b"c", group.now) == group.content(b"d/e", group.now) == B
    assert group.verify(group.now)[1:] == (0, 0)
    group.states[group.now] = group.manifest(group.now)  # whatever it is, it stays so
    check(group)
    group.assert_readable(FIRST)


def test_inode_numbers_of_another_file_system_change_nothing_else(group: Sessions, tmp_path: Path) -> None:
    """The source was copied to a new disk: the same files under other numbers."""
    moved = tmp_path / "moved"
    shutil.copytree(group.source, moved)
    for name in ("c", "d/e"):
        relink(moved, "b", name)
    shutil.copystat(group.source, moved)
    shutil.copystat(group.source / "d", moved / "d")
    group.source = moved
    inodes = {name: (group.repository / name).stat().st_ino for name in ("b", "c", "d/e")}
    group.backup()
    assert inodes == {name: (group.repository / name).stat().st_ino for name in ("b", "c", "d/e")}
    assert group.increments() == {"d.T1.dir"}
    check(group)


@pytest.mark.parametrize("back", [True, False], ids=["and the source goes back", "and the source stays"])
@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_a_transition_that_is_undone(
    group: Sessions, transition: Callable[[Path], object], back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror is what it was, but for links that may be separate; and the next session makes it whole."""
    before = tmp_path / "before"
    subprocess.run(["cp", "-a", group.source, before], check=True)
    transition(group.source)
    with monkeypatch.context() as patch:
        patch.setattr(backup_module._Session, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            group.backup()
    regress(group.repository, report=group.reported.append)
    assert group.reported == []
    mirror = {path: found for path, found in read(group.repository).items() if b"rdiff-backup-data" not in path}
    apart = {path: found._replace(links=None) for path, found in mirror.items()}
    expected = {path: found._replace(links=None) for path, found in group.states[FIRST].items()}
    assert difference(expected, apart, nlink=False) == []
    recorded = group.states[FIRST]
    assert all(set(found.links or ()) <= set(recorded[path].links or ()) for path, found in mirror.items())
    group.assert_all_readable()
    if back:
        group.source = before
    if not group.source.with_name("outside").exists():
        check(group)
