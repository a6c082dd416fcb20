"""What a session may do only when it is asked to: empty a directory, make those above it, do without the disk."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import HistfsError, NotARepositoryError, StorageError
from histfs.store import emptying, files
from histfs.store.backup import backup
from histfs.store.files import WritableTree
from histfs.store.mounts import Mount, mounts
from histfs.store.naming import Naming
from histfs.store.repository import Repository
from histfs.store.tree import Tree
from tests.store.killing import Killer
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import Dir, File, Symlink, build

FOREIGN = Dir({"a": Dir({"x": File(b"old"), "y": Symlink("x")}), "other": File(b"old"), "rdiff": Dir({"z": File()})})


def test_other_things_go_only_by_force(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"1")}))
    build(sessions.repository, FOREIGN)
    with pytest.raises(NotARepositoryError, match="--force"):
        sessions.backup()
    assert sorted(os.listdir(sessions.repository)) == ["a", "other", "rdiff"]
    assert not sessions.backup(force=True).regressed
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


@pytest.mark.parametrize("what", ["a repository below", "in the source", "source unreadable", "names"])
def test_what_is_not_emptied_even_by_force(
    sessions: Sessions, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(sessions.source, Dir({"a": File(b"1"), "d": Dir({"x": File(b"2")})}))
    sessions.backup()
    options: dict[str, Any] = {}
    if what == "a repository below":
        (tmp_path / "all/deep").mkdir(parents=True)
        sessions.repository = sessions.repository.rename(tmp_path / "all/deep/repository").parents[1]
    elif what == "in the source":
        (tmp_path / "way").symlink_to(sessions.source)
        sessions.repository = tmp_path / "way/d"
    else:
        build(tmp_path / "other", FOREIGN)
        sessions.repository = tmp_path / "other"
        if what == "names":
            options["naming"] = Naming(b"a-z")
        else:
            real = Tree.open_directory

            def open_directory(tree: Tree, path: bytes) -> int:
                if type(tree) is Tree:
                    raise PermissionError(errno.EACCES, "Permission denied", path)
                return real(tree, path)

            monkeypatch.setattr(Tree, "open_directory", open_directory)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HistfsError, match=r"nothing was|cannot be quoted"):
        sessions.backup(force=True, **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["d", "new", "rdiff-backup-data", "rdiff-backup-data/new"])
@pytest.mark.parametrize("force", [False, True])
def test_no_repository_is_made_in_another_one(sessions: Sessions, place: str, force: bool) -> None:
    build(sessions.source, Dir({"a": File(b"1"), "d": Dir({"x": File(b"2")})}))
    sessions.backup()
    outer, sessions.repository = sessions.repository, sessions.repository / place
    before = sorted(outer.rglob("*"))
    with pytest.raises(NotARepositoryError, match=r"would lie in the repository .*choose a place outside"):
        sessions.backup(force=force)
    assert sorted(outer.rglob("*")) == before


@pytest.mark.parametrize("deeper", ["", "deeper"])
def test_a_repository_in_the_way_of_a_session_stays(sessions: Sessions, tmp_path: Path, deeper: str) -> None:
    """A person made it in the mirror, where no name was; now the source has one."""
    build(sessions.source, Dir({"a": File(b"1")}))
    sessions.backup()
    shutil.copytree(sessions.repository, tmp_path / "other")
    (tmp_path / "other").rename(_made(sessions.repository / "d") / deeper if deeper else sessions.repository / "d")
    inner = sorted((sessions.repository / "d").rglob("*"))
    build(sessions.source / "d", Dir({"x": File(b"2")}))
    for _ in range(2):
        with pytest.raises(StorageError, match="is a repository in the place of what is backed up"):
            sessions.backup()
        assert sorted((sessions.repository / "d").rglob("*")) == inner
    (sessions.repository / "d").rename(tmp_path / "moved")
    sessions.backup()
    sessions.assert_all_readable()


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("is_seen", ["by its device", "in the list of mounts"])
def test_other_file_systems_are_not_emptied(sessions: Sessions, is_seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by force, nor with what a first session has left."""
    build(sessions.source, Dir({"a": File(b"1")}))
    build(sessions.repository, FOREIGN)
    if is_seen == "by its device":
        real = WritableTree.stat

        def of_device(tree: WritableTree, path: bytes) -> os.stat_result:
            status = real(tree, path)
            return os.stat_result((*status[:2], 7, *status[3:])) if path == b"a/x" else status

        monkeypatch.setattr(WritableTree, "stat", of_device)
    else:
        mount = Mount(os.fsencode(sessions.repository / "a"), b"0:1", b"/")
        monkeypatch.setattr(emptying, "mounts", lambda: iter([mount]))
    before = sorted(sessions.repository.rglob("*"))
    with pytest.raises(NotARepositoryError, match="nothing was removed"):
        sessions.backup(force=True)
    assert sorted(sessions.repository.rglob("*")) == before
    (sessions.data / "increments").mkdir(parents=True)
    with pytest.raises(NotARepositoryError, match="nothing was removed"):
        sessions.backup()
    assert set(before) < set(sessions.repository.rglob("*"))
    monkeypatch.undo()
    sessions.now = FIRST - DAY
    sessions.backup()
    sessions.assert_all_readable()


def test_mounts_are_listed() -> None:
    assert b"/proc" in [mount.place for mount in mounts()]


def test_emptying_that_is_killed_goes_on_only_by_force(sessions: Sessions, killer: Killer) -> None:
    build(sessions.source, Dir({"a": File(b"1")}))

    def session(force: bool) -> None:
        backup(sessions.source, sessions.repository, now=FIRST, report=_fail, force=force)

    at = 0
    while True:
        shutil.rmtree(sessions.repository, ignore_errors=True)
        build(sessions.repository, FOREIGN)
        at += 1
        if not killer.run(at, lambda: session(True)):
            break
        foreign = {"other", "rdiff"} & set(os.listdir(sessions.repository))
        if foreign and killer.run(None, lambda: _expect_refusal(session)):
            raise AssertionError(at)
        if not _is_finished(sessions):
            session(True)
        with Repository.open(sessions.repository) as repository:
            assert repository.sessions() == (FIRST,)
        assert set(os.listdir(sessions.repository)) == {"a", "rdiff-backup-data"}
    assert at > 20


def _expect_refusal(session) -> None:
    with pytest.raises(HistfsError, match=r"other things in it|holds files"):
        session(False)


def _is_finished(sessions: Sessions) -> bool:
    try:
        with Repository.open(sessions.repository):
            return True
    except NotARepositoryError:
        return False


def _fail(error: Exception) -> None:
    raise AssertionError from error


def test_without_fsync_nothing_waits_for_the_disk(
    sessions: Sessions, real_sync: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    real = WritableTree.sync
    monkeypatch.setattr(files.os, "fsync", lambda _fd: waits.append("file"))
    monkeypatch.setattr(WritableTree, "sync", lambda tree: waits.append("all") if tree.waits_for_disk else real(tree))
    build(sessions.source, Dir({"a": File(b"1")}))
    for number in range(2):
        (sessions.source / "a").write_bytes(b"x" * number)
        waits.clear()
        sessions.backup(fsync=False)
        assert set(waits) <= {"file"}
        assert not number or not waits  # the first has made a directory above its tree
        sessions.backup()
        assert waits
    sessions.assert_all_readable()


def test_directories_above_are_made_private(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"1")}))
    sessions.repository = sessions.repository.parent / "x/y/repository"
    with pytest.raises(NotARepositoryError, match="--create-full-path"):
        sessions.backup()
    sessions.backup(with_parents=True)
    sessions.assert_all_readable()
    assert [place.stat().st_mode & 0o777 for place in sessions.repository.parents[:2]] == [0o700, 0o700]
