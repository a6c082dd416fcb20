"""What was moved in the source is linked in the mirror: nothing of it is read from the source or written again.

Whether a file was copied is told by its inode in the mirror; everything else by what the snapshots and the mirror hold.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from histfs.store import batch, moved
from histfs.store.files import WritableTree
from histfs.store.ledger import Ledger, lists_of
from histfs.store.moved import Moves, Places
from histfs.store.walk import seen_of
from tests.comparison import read
from tests.store.sessions import Sessions, contents_read
from tests.trees import MTIME, Dir, File, Link, build


def noise(name: str, size: int = 20_000) -> bytes:
    return random.Random(name).randbytes(size)


def write(path: Path, content: bytes, mtime: int = MTIME) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))


@pytest.fixture
def photos(sessions: Sessions) -> Sessions:
    """A session of a directory of files that are as large as it takes, some of them compressed by their names."""
    for name in ("photos/1.jpg", "photos/2.txt", "photos/deep/3.jpg", "photos/deep/4.txt", "other.jpg"):
        write(sessions.source / name, noise(name))
    write(sessions.source / "photos/small", b"small")
    sessions.backup()
    return sessions


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the source whose contents are read, of the size that is looked for."""
    return contents_read(monkeypatch, moved.SMALLEST)


def inodes(sessions: Sessions) -> dict[str, int]:
    top = sessions.repository
    return {
        os.path.relpath(os.path.join(place, name), top): os.lstat(os.path.join(place, name)).st_ino
        for place, _, names in os.walk(top)
        for name in names
        if "rdiff-backup-data" not in place
    }


def check(sessions: Sessions) -> None:
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)
    for place, _, names in os.walk(sessions.repository):
        for name in names:
            assert "rdiff-backup.tmp" not in name
            assert os.lstat(os.path.join(place, name)).st_nlink == 1, name
    for session_time in sessions.states:
        assert sessions.verify(session_time)[1:] == (0, 0)


@pytest.mark.parametrize("new", ["a", "pictures", "z", "other/there"])
def test_a_directory_that_was_moved_is_linked(photos: Sessions, new: str, reads: list[bytes]) -> None:
    """Whether it comes before or after the old one in the order of the list."""
    before = inodes(photos)
    (photos.source / new).parent.mkdir(exist_ok=True)
    (photos.source / "photos").rename(photos.source / new)
    photos.backup()
    assert reads == []
    after = inodes(photos)
    for name in ("1.jpg", "2.txt", "deep/3.jpg", "deep/4.txt"):
        assert after[f"{new}/{name}"] == before[f"photos/{name}"]
    assert {"photos/1.jpg.T1.snapshot", "photos/2.txt.T1.snapshot.gz", f"{new}/1.jpg.T1.missing"} <= photos.increments()
    assert not (photos.repository / "photos").exists()
    check(photos)
    photos.backup()
    check(photos)


@pytest.mark.parametrize(("old", "new"), [("other.jpg", "a/b.jpg"), ("other.jpg", "zz.jpg"), ("photos/1.jpg", "1.jpg")])
def test_a_file_that_was_moved_is_read_and_not_written(
    photos: Sessions, old: str, new: str, reads: list[bytes]
) -> None:
    """Its change time is another one: it could have been written to as well."""
    inode = inodes(photos)[old]
    (photos.source / new).parent.mkdir(exist_ok=True)
    (photos.source / old).rename(photos.source / new)
    photos.backup()
    assert reads == [new.encode()]
    assert inodes(photos)[new] == inode
    check(photos)


def test_what_was_just_written_is_read(photos: Sessions, reads: list[bytes], racy: None) -> None:
    photos.backup()
    reads.clear()
    (photos.source / "photos").rename(photos.source / "z")
    photos.backup()
    assert sorted(reads) == [b"other.jpg", b"z/1.jpg", b"z/2.txt", b"z/deep/3.jpg", b"z/deep/4.txt"]
    check(photos)


def test_what_came_from_another_file_system_is_read_and_linked(photos: Sessions, reads: list[bytes]) -> None:
    inode = inodes(photos)["photos/1.jpg"]
    shutil.copytree(photos.source / "photos", photos.source / "copied")
    shutil.rmtree(photos.source / "photos")
    photos.backup()
    assert inodes(photos)["copied/1.jpg"] == inode
    assert b"copied/1.jpg" in reads
    check(photos)


def test_a_copy_is_copied(photos: Sessions) -> None:
    """What still has its old path has not moved."""
    before = inodes(photos)
    shutil.copytree(photos.source / "photos", photos.source / "copied")
    photos.backup()
    after = inodes(photos)
    assert after["photos/1.jpg"] == before["photos/1.jpg"] != after["copied/1.jpg"]
    check(photos)


@pytest.mark.parametrize("new", ["a", "z"])
def test_what_was_changed_as_well_is_copied(photos: Sessions, new: str) -> None:
    """Also where size and time are what they were."""
    before = inodes(photos)
    (photos.source / "photos").rename(photos.source / new)
    write(photos.source / new / "1.jpg", noise("other"))
    (photos.source / "other.jpg").rename(photos.source / new / "5.jpg")
    write(photos.source / new / "5.jpg", noise("another"))
    photos.backup()
    after = inodes(photos)
    assert after[f"{new}/2.txt"] == before["photos/2.txt"]
    assert after[f"{new}/1.jpg"] not in before.values()
    assert after[f"{new}/5.jpg"] not in before.values()
    check(photos)


@pytest.mark.parametrize("new", ["a", "z"])
def test_what_has_other_attributes_gets_them(photos: Sessions, new: str) -> None:
    """The file has its old name, too, until that goes: so only what comes later can be linked."""
    inode = inodes(photos)["photos/1.jpg"]
    (photos.source / "photos").rename(photos.source / new)
    (photos.source / new / "1.jpg").chmod(0o600)
    photos.backup()
    assert (inodes(photos)[f"{new}/1.jpg"] == inode) == (new == "z")
    check(photos)
    assert (photos.repository / new / "1.jpg").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("new", ["a", "z"])
def test_where_there_is_another_one_now(photos: Sessions, new: str) -> None:
    """The old directory is a file now, and the old file a directory."""
    (photos.source / "photos").rename(photos.source / new)
    (photos.source / "other.jpg").rename(photos.source / new / "other.jpg")
    write(photos.source / "photos", b"a file")
    write(photos.source / "other.jpg/inner", b"in a directory")
    photos.backup()
    check(photos)


def test_directories_that_were_moved_crosswise(photos: Sessions, reads: list[bytes]) -> None:
    for name in ("b", "c", "d", "e"):
        write(photos.source / name / "file", noise(name))
    photos.backup()
    before = inodes(photos)
    reads.clear()
    for old, new in (("b", "y"), ("c", "x"), ("d", "a"), ("e", "0")):
        (photos.source / old).rename(photos.source / new)
    photos.backup()
    assert reads == []
    after = inodes(photos)
    assert [after[f"{name}/file"] for name in "yxa0"] == [before[f"{name}/file"] for name in "bcde"]
    check(photos)


def test_a_directory_with_links_is_copied(photos: Sessions) -> None:
    """What has several names is not told apart by its inode alone."""
    tree = Dir({"one": File(noise("one")), "two": Link("one"), "three": File(noise("three"))})
    build(photos.source / "linked", tree)
    photos.backup()
    (photos.source / "linked").rename(photos.source / "a")
    photos.backup()
    photos.assert_all_readable()
    photos.assert_mirror_is(photos.now)


@pytest.mark.parametrize("new", ["a", "z"])
def test_long_names_are_moved(photos: Sessions, new: str) -> None:
    for name in ("L" * 206, "M" * 255):
        write(photos.source / "photos" / name, noise(name))
    photos.backup()
    (photos.source / "photos").rename(photos.source / new)
    photos.backup()
    check(photos)
    (photos.source / new).rename(photos.source / ("N" * 240))
    photos.backup()
    check(photos)


@pytest.mark.parametrize("new", ["a", "z"])
def test_what_went_is_there_only_as_long_as_there_is_room(
    photos: Sessions, new: str, monkeypatch: pytest.MonkeyPatch, reads: list[bytes]
) -> None:
    monkeypatch.setattr(batch.Batch, "_free_bytes", lambda _batch: 10)
    monkeypatch.setattr(batch, "MAX_BYTES", 1)
    (photos.source / "photos").rename(photos.source / new)
    photos.backup()
    assert (reads == []) == (new == "a")
    check(photos)


def test_so_many_wait_for_the_end(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_LAST", 3)
    for number in range(8):
        write(sessions.source / f"camera/{number}.jpg", noise(str(number)))
    sessions.backup()
    (sessions.source / "year").mkdir()
    for number in range(8):
        (sessions.source / f"camera/{number}.jpg").rename(sessions.source / f"year/{number}.jpg")
    linked = []
    real = WritableTree.try_link

    def try_link(tree: WritableTree, existing: bytes, path: bytes) -> bool:
        linked.append(path)
        return real(tree, existing, path)

    monkeypatch.setattr(WritableTree, "try_link", try_link)
    sessions.backup()
    assert linked == [b"year/6.jpg", b"year/7.jpg"]
    check(sessions)


def test_what_is_too_far_away_is_copied(photos: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "_MOST_TEXT_BYTES", -1)
    (photos.source / "photos").rename(photos.source / "a")
    photos.backup()
    check(photos)


def test_what_comes_back_meanwhile_has_a_file_of_its_own(photos: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is moved back when the session has seen it in its new place, and has not come to the old one."""
    real = Moves.take
    taken = []
    old, new = photos.source / "z/photos", photos.source / "a"

    def take(moves: Moves, *arguments: Any) -> bytes | None:
        sha1 = real(moves, *arguments)
        taken.append(sha1)
        if len(taken) == 5:
            new.rename(old)
            os.utime(old, (MTIME + 1, MTIME + 1))  # no time that it could have by chance
        return sha1

    (photos.source / "z").mkdir()
    (photos.source / "photos").rename(old)
    photos.backup()
    old.rename(new)
    with monkeypatch.context() as context:
        context.setattr(Moves, "take", take)
        photos.backup(may_report=True)
    assert taken.count(None) == 1  # the small one
    seen = inodes(photos)
    assert len({seen[f"{top}/{name}"] for top in ("a", "z/photos") for name in ("1.jpg", "2.txt")}) == 4
    photos.states[photos.now] = photos.manifest(photos.now)
    check(photos)
    photos.backup()
    check(photos)


def test_a_lost_or_damaged_file_of_the_mirror_is_not_linked(photos: Sessions) -> None:
    (photos.repository / "photos/1.jpg").unlink()
    (photos.repository / "photos/2.txt").write_bytes(b"damaged")
    (photos.source / "photos").rename(photos.source / "z")
    photos.backup(may_report=True)
    assert len(photos.reported) == 2
    photos.assert_mirror_is(photos.now)
    photos.assert_readable(photos.now)


def test_nothing_is_known_without_a_ledger(photos: Sessions) -> None:
    (photos.data / "histfs/ledger").unlink()
    (photos.source / "photos").rename(photos.source / "z")
    photos.backup()
    check(photos)


def _move_at_random(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Directories and files are moved, changed and removed, and every session is what the source was."""
    monkeypatch.setattr(moved, "SMALLEST", 1)
    monkeypatch.setattr(batch, "MAX_CHANGES", 4)
    chance = random.Random(f"moved {seed}")
    for number in range(30):
        name = "/".join(chance.choices("abcd", k=chance.randint(1, 3))) + f"/f{number}{chance.choice(['', '.jpg'])}"
        write(sessions.source / name, noise(str(number % 20), 50), MTIME + number % 3)
    sessions.backup()
    for session in range(5):
        for step in range(chance.randint(1, 6)):
            paths = sorted(sessions.source.rglob("*"))
            if not paths:
                break
            path = chance.choice(paths)
            if chance.random() < 0.7:
                places = [
                    sessions.source,
                    *(found for found in paths if found.is_dir() and path not in (found, *found.parents)),
                ]
                path.rename(chance.choice(places) / f"{chance.choice('aez')}{session}-{step}{path.suffix}")
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                write(path, noise(str(chance.random()), 50), MTIME + chance.randint(0, 2))
        sessions.backup()
        check(sessions)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_moved(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    _move_at_random(sessions, monkeypatch, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 20))
def test_whatever_is_moved_and_more(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    _move_at_random(sessions, monkeypatch, seed)


def test_places_are_found_by_inode_or_by_size_and_time(photos: Sessions) -> None:
    """Of all that the ledger has, and nothing but those."""
    with photos.open() as repository:
        files = repository.state().metadata[photos.now].snapshot
        assert files is not None
        ledger = Ledger.open(repository.tree, photos.now, lists_of(repository.state(), photos.now))
        assert ledger is not None
        places = Places(repository.tree, ledger, files)
        for name in sorted(read(photos.source), reverse=True):
            status = os.lstat(os.path.join(os.fsencode(photos.source), name))
            found = [before.entry.path for before in places.of(status) if before.is_sure]
            is_file = seen_of(status).mode & 0o170000 == 0o100000 and status.st_size >= moved.SMALLEST
            assert found == ([name] if is_file else [])
        places.close()
        ledger.close()
