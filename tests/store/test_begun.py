"""A first session that was cut off, and the next one, which goes on with what is noted in its journal.

What is noted is on the disk; anything else may be torn, and is copied again. Sessions are stopped by an exception, or,
in a process of their own, by SIGKILL.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import HistfsError, NotARepositoryError, StorageError
from histfs.store import begun, copying
from histfs.store.backup import backup
from histfs.store.begun import BEGUN, FirstSession, Left, has_begun
from histfs.store.entry import Kind
from histfs.store.files import WritableTree
from histfs.store.naming import Naming
from histfs.store.regress import regress
from histfs.store.tree import Tree
from tests.comparison import read
from tests.store import rich
from tests.store.killing import Killer
from tests.store.sessions import FIRST, Sessions, contents_read
from tests.trees import MTIME, Dir, Fifo, File, Link, Symlink, build

_NOTE_BYTES = 64 + 24 + len("d0/000.bin")


class Stopped(Exception):
    pass


class AtOnce:
    """In the place of a thread."""

    def __init__(self, _threads: int) -> None: ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(call(*arguments))
        return future

    def shutdown(self, **_: Any) -> None: ...


@pytest.fixture
def notes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is noted as soon as it is copied."""
    monkeypatch.setattr(begun, "INTERVAL_S", 0)
    monkeypatch.setattr(begun, "ThreadPoolExecutor", AtOnce)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the source whose contents are read."""
    return contents_read(monkeypatch)


@pytest.fixture
def tree(sessions: Sessions) -> Sessions:
    entries = {
        name: Dir({f"{number}": File(b"%d of " % number + name.encode()) for number in range(5)}) for name in "abcd"
    }
    build(sessions.source, Dir({**entries, "e": File(b"e"), "link": Symlink("e"), "z": File(b"z")}))
    return sessions


def stop(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, before: bytes, **options: Any) -> None:
    """A session that gets as far as the path `before`."""
    from histfs.store.mirror import MirrorUpdate

    real = MirrorUpdate.update

    def update(mirror: MirrorUpdate, old: Any, found: Any) -> Any:
        if found.path == before:
            mirror.before_changes()
            raise Stopped
        return real(mirror, old, found)

    with monkeypatch.context() as context:
        context.setattr(MirrorUpdate, "update", update)
        with pytest.raises(Stopped):
            sessions.backup(**options)
    with pytest.raises(NotARepositoryError):
        sessions.open()


def check(sessions: Sessions) -> None:
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)
    assert not (sessions.repository / os.fsdecode(BEGUN)).exists()
    assert sessions.verify(sessions.now)[1:] == (0, 0)


def go_on(sessions: Sessions, copied: list[bytes], **options: Any) -> int:
    """The next session; how many files it kept."""
    copied.clear()
    outcome = sessions.backup(**options)
    assert outcome.regressed
    check(sessions)
    return outcome.kept_files


def test_what_is_there_is_kept(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    stop(tree, monkeypatch, b"c/2")
    before = {path: (tree.repository / path).stat().st_ino for path in ("a/0", "b/4", "c/1")}
    assert go_on(tree, copied) == 12
    assert sorted(copied) == [b"c/2", b"c/3", b"c/4", *(b"d/%d" % number for number in range(5)), b"e", b"z"]
    assert before == {path: (tree.repository / path).stat().st_ino for path in before}
    statistics = next(tree.data.glob("session_statistics*")).read_text()
    assert f"NewFiles {len(tree.states[tree.now])}\n" in statistics  # as if nothing had been there
    tree.backup()
    tree.assert_all_readable()


def test_it_may_be_cut_off_again_and_again(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    for before in (b"a/3", b"a/1", b"b/3", b"b/3", b"d/0", b"b"):
        stop(tree, monkeypatch, before)
    assert go_on(tree, copied) == 15
    assert sorted(copied) == [*(b"d/%d" % number for number in range(5)), b"e", b"z"]


@pytest.mark.parametrize(
    "change", ["content", "touched", "mode", "other file", "gone", "directory", "link", "named twice"]
)
def test_what_has_changed_is_copied_again(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None, change: str
) -> None:
    stop(tree, monkeypatch, b"d")
    path = tree.source / "b/2"
    old = path.stat()
    match change:
        case "content":
            path.write_bytes(b"2 of c")
            os.utime(path, ns=(old.st_mtime_ns, old.st_mtime_ns))
        case "touched":
            os.utime(path, (MTIME + 5, MTIME + 5))
        case "mode":
            path.chmod(0o600)
        case "other file":
            shutil.copy2(path, tree.source / "new")
            (tree.source / "new").rename(path)
        case "gone":
            path.unlink()
        case "directory":
            path.unlink()
            build(path, Dir({"in": File(b"in")}))
        case "link":
            path.unlink()
            path.symlink_to("3")
        case "named twice":
            os.link(path, tree.source / "b/again")
    assert go_on(tree, copied) == 14
    is_file = change not in ("gone", "directory", "link")
    assert (b"b/2" in copied) == is_file
    assert b"b/1" not in copied


def test_what_the_source_does_not_have_any_more_goes(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    stop(tree, monkeypatch, b"d")
    shutil.rmtree(tree.source / "a")
    (tree.source / "b").rename(tree.source / "moved")
    (tree.source / "e").unlink()
    (tree.source / "a").write_bytes(b"a file now")
    assert go_on(tree, copied) == 5


@pytest.fixture
def unnoted(tree: Sessions, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    """What a session has copied that was cut off; of one file alone that is noted, or all would go."""
    with monkeypatch.context() as context:
        context.setattr(begun, "INTERVAL_S", 0)
        context.setattr(begun, "ThreadPoolExecutor", AtOnce)
        stop(tree, monkeypatch, b"a/1")
    with monkeypatch.context() as context:
        context.setattr(begun, "INTERVAL_S", 10**6)
        stop(tree, monkeypatch, b"z")
    assert _noted(tree.repository) == {b"a/0"}
    return tree


def inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_ctime_ns


def test_a_copy_that_is_not_noted_is_compared(unnoted: Sessions, copied: list[bytes]) -> None:
    """What is the same stays, and gets what it should have beside its content."""
    repository = unnoted.repository
    (repository / "b/1").chmod(0o777)
    os.setxattr(repository / "b/2", "user.of somebody", b"else")
    numbers = {name: inode(repository / name)[0] for name in ("b/0", "b/1", "b/2", "d/4", "e")}
    assert go_on(unnoted, copied) == 1
    assert numbers == {name: inode(repository / name)[0] for name in numbers}
    assert os.listxattr(repository / "b/2") == []


def test_nothing_is_gone_on_with_where_the_disk_refused_something(
    unnoted: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells it once, and has in memory what is not on the disk: comparing that would prove nothing."""

    def sync(tree: WritableTree) -> None:
        tree.sync_has_failed = True
        raise OSError(5, "Input/output error", b"")

    with monkeypatch.context() as patch:
        patch.setattr(WritableTree, "sync", sync)
        with pytest.raises(StorageError, match="Input/output error"):
            unnoted.backup()
    numbers = {name: inode(unnoted.repository / name)[0] for name in ("a/0", "b/0", "e")}
    assert go_on(unnoted, copied) == 0
    assert {b"a/0", b"b/0", b"e"} <= set(copied)
    assert numbers != {name: inode(unnoted.repository / name)[0] for name in numbers}


def test_nothing_is_written_to_a_copy_that_is_another_one(unnoted: Sessions, copied: list[bytes]) -> None:
    """Who has it open sees what it was."""
    content = (unnoted.source / "b/1").read_bytes()
    (unnoted.source / "b/1").write_bytes(content[::-1])
    with (unnoted.repository / "b/1").open("rb") as file:
        go_on(unnoted, copied)
        assert file.read() == content
    assert (unnoted.repository / "b/1").read_bytes() == content[::-1]


@pytest.mark.parametrize("put", ["link", "symlink", "fifo", "directory", "longer"])
def test_what_is_no_copy_goes(unnoted: Sessions, copied: list[bytes], put: str, tmp_path: Path) -> None:
    mirrored, content = unnoted.repository / "b/1", (unnoted.repository / "b/1").read_bytes()
    mirrored.unlink()
    (tmp_path / "victim").write_bytes(content)
    match put:
        case "link":
            os.link(tmp_path / "victim", mirrored)
        case "symlink":
            mirrored.symlink_to(tmp_path / "victim")
        case "fifo":
            os.mkfifo(mirrored)
        case "directory":
            (mirrored / "x").mkdir(parents=True)
        case _:
            mirrored.write_bytes(content + b"x")
    before = inode(tmp_path / "victim")[0], (tmp_path / "victim").stat().st_mode
    go_on(unnoted, copied)
    assert before == (inode(tmp_path / "victim")[0], (tmp_path / "victim").stat().st_mode)
    assert inode(mirrored)[0] != before[0]
    assert (tmp_path / "victim").read_bytes() == content


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_goes_while_it_is_looked_at_leaves_no_copy(
    unnoted: Sessions, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = copying.Copies.add

    def add(copies: copying.Copies, found: Any, path: bytes, attributes: Any) -> Any:
        if path == b"b/1":
            if what == "file":
                (unnoted.source / "b/1").unlink()
            else:
                shutil.rmtree(unnoted.source / "b")
                copies.start()  # so that the directory is opened anew
        return real(copies, found, path, attributes)

    monkeypatch.setattr(copying.Copies, "add", add)
    unnoted.backup(may_report=True)
    assert not (unnoted.repository / "b/1").exists()
    assert (unnoted.repository / "b/0").exists() is (what == "file")


def test_what_was_not_noted_is_not_trusted(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    """As after a power cut: names, sizes and times are there, and no data."""
    stop(tree, monkeypatch, b"c")
    with monkeypatch.context() as context:
        context.setattr(begun, "INTERVAL_S", 10**6)
        stop(tree, monkeypatch, b"z")
    noted = _noted(tree.repository)
    assert noted == {b"%c/%d" % (name, number) for name in b"ab" for number in range(5)}
    torn = 0
    for path in tree.repository.rglob("*"):
        name = os.fsencode(path.relative_to(tree.repository))
        if path.is_file() and not path.is_symlink() and name not in noted and not name.startswith(b"rdiff-backup-data"):
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
            torn += 1
    assert torn == 11
    assert go_on(tree, copied) == 10


def _lose_data(path: Path) -> None:
    """As after a power cut: the name is there, with size and time, and no data."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _copied_again(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Sessions after one that was cut off at `d`, of which the last copies b/2 once more and notes nothing."""
    with monkeypatch.context() as context:
        context.setattr(begun, "INTERVAL_S", 10**6)
        gone = sessions.source.parent / "gone"
        match how:
            case "compared":
                stop(sessions, monkeypatch, b"d", checksum=True)
            case "left out":
                (sessions.source / "b/2").rename(gone)
                stop(sessions, monkeypatch, b"c/1")
                gone.rename(sessions.source / "b/2")
            case "left out with its directory":
                (sessions.source / "b").rename(gone)
                stop(sessions, monkeypatch, b"z")
            case "a directory meanwhile":
                (sessions.source / "b/2").rename(gone)
                build(sessions.source / "b/2", Dir({"in": File(b"in")}))
                stop(sessions, monkeypatch, b"c")
                shutil.rmtree(sessions.source / "b/2")
                gone.rename(sessions.source / "b/2")
            case "a file for the directory":
                (sessions.source / "b").rename(gone)
                (sessions.source / "b").write_bytes(b"a file")
                stop(sessions, monkeypatch, b"c")
                (sessions.source / "b").unlink()
            case "half undone":
                _stop_regress(sessions, monkeypatch)
            case "gone":
                (sessions.repository / "b/2").unlink()
            case "damaged":
                (sessions.repository / "b/2").write_bytes(b"2")
        if not (sessions.source / "b").exists():
            gone.rename(sessions.source / "b")
        if how != "compared":
            stop(sessions, monkeypatch, b"d")


def _stop_regress(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as something of the mirror is gone."""
    real = WritableTree.remove_tree

    def remove_tree(tree: WritableTree, path: bytes) -> None:
        real(tree, path)
        if path == b"b":
            raise Stopped

    with monkeypatch.context() as context:
        context.setattr(WritableTree, "remove_tree", remove_tree)
        with pytest.raises(Stopped):
            regress(sessions.repository, report=sessions.reported.append)


@pytest.mark.parametrize(
    "how",
    [
        *("compared", "left out", "left out with its directory", "a directory meanwhile", "a file for the directory"),
        *("half undone", "gone", "damaged"),
    ],
)
@pytest.mark.parametrize("chars", [None, b"b"])
def test_no_note_outlives_its_copy(
    tree: Sessions, monkeypatch: pytest.MonkeyPatch, notes_all: None, how: str, chars: bytes | None
) -> None:
    """What is copied again has no data after a power cut, and the session after that must not believe the old note."""
    options: dict[str, Any] = {} if chars is None else {"naming": Naming(chars)}
    if chars is not None and how in ("half undone", "gone", "damaged"):
        pytest.skip("names the directory as it is")
    real = tree.backup
    monkeypatch.setattr(tree, "backup", lambda **others: real(**{**options, **others}))
    stop(tree, monkeypatch, b"d")
    _copied_again(tree, monkeypatch, how)
    _lose_data(tree.repository / ("b" if chars is None else ";098") / "2")
    tree.backup()
    tree.assert_all_readable()
    assert tree.verify(tree.now)[1:] == (0, 0)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_session_that_does_not_wait_for_the_disk_keeps_no_journal(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None, is_first: bool
) -> None:
    if not is_first:
        stop(tree, monkeypatch, b"c")
        copied.clear()
    stop(tree, monkeypatch, b"d", fsync=False)
    assert len(copied) == (15 if is_first else 5)  # what is noted may be kept: it is on the disk
    assert not (tree.repository / os.fsdecode(BEGUN)).exists()
    _lose_data(tree.repository / "b/2")
    assert go_on(tree, copied) == 0


def test_many_notes_are_revoked_with_few_waits(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    """And what is kept all the same is noted once more."""
    build(tree.source / "a/many", Dir({f"{number:03}": File(b"%03d" % number) for number in range(200)}))
    stop(tree, monkeypatch, b"b")
    blocks: list[bytes] = []
    real = FirstSession._append
    monkeypatch.setattr(FirstSession, "_append", lambda first, block: (blocks.append(block), real(first, block))[1])
    for number in range(0, 200, 2):
        (tree.source / f"a/many/{number:03}").chmod(0o600)
    stop(tree, monkeypatch, b"b")
    assert len([block for block in blocks if block.startswith(b"histfJ3R")]) < 12
    assert go_on(tree, copied) == 205


def _noted(repository: Path) -> set[bytes]:
    with Tree.open(repository) as opened:
        left = Left.open(opened, None)
        assert left is not None
        found = {note.path for note in (*left._next, *left._notes)}
        left.close()
        return found


@pytest.mark.parametrize("damage", ["cut", "flipped", "nothing", "noise", "directory"])
def test_a_damaged_journal_ends_where_it_is_damaged(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None, damage: str
) -> None:
    stop(tree, monkeypatch, b"d")
    journal = tree.repository / os.fsdecode(BEGUN)
    data = journal.read_bytes()
    match damage:
        case "cut":
            journal.write_bytes(data[: len(data) // 2])
        case "flipped":
            journal.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        case "nothing":
            journal.write_bytes(b"")
        case "noise":
            journal.write_bytes(random.Random(1).randbytes(5000))
        case "directory":
            journal.unlink()
            journal.mkdir()
    copied.clear()
    stop(tree, monkeypatch, b"d/2")  # what is damaged is copied, and noted again
    assert (len(copied) < 17) == (damage in ("cut", "flipped"))
    assert go_on(tree, copied) == 17


@pytest.mark.parametrize("damage", ["gone", "shorter", "touched", "linked", "directory"])
def test_a_copy_that_is_not_what_it_was_is_made_again(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None, damage: str
) -> None:
    stop(tree, monkeypatch, b"d")
    path = tree.repository / "b/2"
    match damage:
        case "gone":
            path.unlink()
        case "shorter":
            status = path.stat()
            os.truncate(path, 1)
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        case "touched":
            os.utime(path, (MTIME + 9, MTIME + 9))
        case "linked":
            os.link(path, tree.repository / "b/stranger")
        case "directory":
            path.unlink()
            build(path, Dir({"in": File(b"in")}))
    assert go_on(tree, copied) == 14
    assert b"b/2" in copied


def test_attributes_are_set_again(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    stop(tree, monkeypatch, b"d")
    (tree.repository / "b/2").chmod(0o777)
    os.setxattr(tree.repository / "b/3", "user.of somebody", b"else")
    (tree.repository / "b").chmod(0o711)
    files: list[bytes] = []
    real = WritableTree.set_attributes

    def set_attributes(mirror: WritableTree, path: bytes, kind: Kind, *arguments: Any) -> None:
        if kind is Kind.REGULAR:
            files.append(path)
        real(mirror, path, kind, *arguments)

    monkeypatch.setattr(WritableTree, "set_attributes", set_attributes)
    assert go_on(tree, copied) == 15
    assert files == [b"b/2", b"b/3"]  # the others have theirs
    assert os.listxattr(tree.repository / "b/3") == []


def test_names_that_are_quoted_otherwise(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    """Nothing is kept, and nothing stays."""
    stop(tree, monkeypatch, b"d")
    copied.clear()
    outcome = tree.backup(naming=Naming(b"abdz;"))
    assert outcome.kept_files == 0
    assert not {"a", "b", "d"} & set(os.listdir(tree.repository))
    tree.assert_all_readable()


def test_contents_that_shall_be_compared_are_read(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    stop(tree, monkeypatch, b"d")
    assert go_on(tree, copied, checksum=True) == 0


def test_what_had_just_changed_is_copied_again(
    tree: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None, racy: None
) -> None:
    stop(tree, monkeypatch, b"d")
    assert go_on(tree, copied) == 0


def test_undoing_it_leaves_nothing(tree: Sessions, monkeypatch: pytest.MonkeyPatch, notes_all: None) -> None:
    stop(tree, monkeypatch, b"d")
    with Tree.open(tree.repository) as opened:
        assert has_begun(opened)
    assert regress(tree.repository, report=tree.reported.append) is not None
    assert os.listdir(tree.repository) == ["rdiff-backup-data"]
    assert os.listdir(tree.data) == ["lock.yml"]


def test_everything_that_can_be_in_a_tree(
    sessions: Sessions, copied: list[bytes], monkeypatch: pytest.MonkeyPatch, notes_all: None
) -> None:
    rich.first(sessions.source)
    build(sessions.source / "y", Dir({"f": Fifo(), "l": Symlink("x"), "one": File(b"one"), "two": Link("one")}))
    paths = sorted(path for path in read(sessions.source) if path)
    for before in paths[::7]:
        shutil.rmtree(sessions.repository, ignore_errors=True)
        sessions.states.clear()
        stop(sessions, monkeypatch, before)
        sessions.backup()
        check(sessions)


def test_killed_at_some_changes(
    sessions: Sessions, killer: Killer, notes_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it goes on, and after the power was cut. Each file is copied where the killer is asked."""
    monkeypatch.setattr(copying, "MAX_BYTES", -1)
    rich.first(sessions.source)
    _kill(sessions, killer, random.Random("begun"), 14)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_many_changes(
    sessions: Sessions, killer: Killer, notes_all: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(copying, "MAX_BYTES", -1)
    rich.first(sessions.source)
    _kill(sessions, killer, random.Random(f"begun {seed}"), 120)


def _killed_with_copies_that_are_not_noted(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    """Of which some are torn when the next session comes, and some of the source has changed."""
    chance = random.Random(seed)
    sizes = [0, 1, 100, 5000, 300_000]
    files = {
        f"d{directory}": Dir({f"{number:02}": File(chance.randbytes(chance.choice(sizes))) for number in range(25)})
        for directory in range(6)
    }
    build(sessions.source, Dir(files))
    paths = sorted(path for path in sessions.source.glob("*/*"))
    monkeypatch.setattr(begun, "INTERVAL_S", chance.choice([0, 0.003, 0.02]))
    monkeypatch.setattr(copying, "_BATCH_FILES", 7)
    for _ in range(chance.randrange(1, 4)):
        _run_and_kill(sessions, chance.randrange(20, 150), monkeypatch)
        noted = _noted(sessions.repository) if has_begun_at(sessions.repository) else set()
        for path in paths:
            name = path.relative_to(sessions.source)
            copy = sessions.repository / name
            if copy.is_file() and not copy.is_symlink() and os.fsencode(name) not in noted and chance.random() < 0.6:
                _tear(copy, chance)
        for path in chance.sample(paths, 5):
            path.write_bytes(chance.randbytes(path.stat().st_size))
            os.utime(path, (MTIME, MTIME))
    sessions.backup()
    check(sessions)


def has_begun_at(repository: Path) -> bool:
    with Tree.open(repository) as tree:
        return has_begun(tree)


def _tear(copy: Path, chance: random.Random) -> None:
    status, data = copy.stat(), copy.read_bytes()
    how = chance.randrange(5)
    if how == 4:
        copy.unlink()
        copy.symlink_to(f"{copy.name}.elsewhere")
        return
    if how == 3:
        copy.chmod(0)
    else:
        copy.write_bytes([bytes(len(data)), b"", data[:-1] + b"!"][how])
    if chance.random() < 0.7:
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("seed", range(6))
def test_copies_that_are_not_noted_may_be_torn(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    _killed_with_copies_that_are_not_noted(sessions, monkeypatch, f"torn {seed}")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30))
def test_copies_that_are_not_noted_may_be_torn_in_many_ways(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    _killed_with_copies_that_are_not_noted(sessions, monkeypatch, f"torn in many ways {seed}")


def _kill(sessions: Sessions, killer: Killer, chance: random.Random, times: int) -> None:
    """Over and over, until it is finished now and then."""

    def session() -> None:
        sessions.backup()

    assert not killer.run(None, session)
    most, finished = killer.changes, 0
    for _ in range(times):
        if sessions.states:
            shutil.rmtree(sessions.repository)
            sessions.states.clear()
        if chance.random() < 0.3:
            path = chance.choice([sessions.source / name for name in ("changed", "kept/same", "m-one")])
            path.write_bytes(chance.randbytes(100))
            os.utime(path, (MTIME, MTIME))
        was_killed = killer.run(chance.randrange(1, most * 11 // 10), session)
        if was_killed and chance.random() < 0.5:
            killer.lose_data(sessions.repository)
        if was_killed and any(sessions.data.glob("current_mirror*")):
            sessions.states[sessions.now] = read(sessions.source)
        if sessions.states:
            sessions.assert_all_readable()
            sessions.assert_mirror_is(sessions.now)
            finished += 1
    if not sessions.states:
        sessions.backup()
        check(sessions)


# In a process that is killed


@pytest.fixture
def large(sessions: Sessions) -> Sessions:
    chance = random.Random("large")
    for number in range(160):
        path = sessions.source / f"d{number // 20}" / f"{number:03}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(1 << 20))
    return sessions


@pytest.mark.parametrize("seed", range(2))
def test_little_is_read_again(large: Sessions, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Killed at a random moment: the next session reads what is not there yet, and what the last moments copied."""
    monkeypatch.setattr(begun, "INTERVAL_S", 0.02)
    _run_and_kill(large, random.Random(f"moment {seed}").randint(1, 140), monkeypatch)
    noted = _noted(large.repository)
    assert 0 < len(noted) < 160
    (large.source / "d0/000.bin").write_bytes(b"changed meanwhile")
    bytes_read, kept = _run(large)
    assert kept == len(noted) - 1
    assert bytes_read < 2 * (160 - len(noted) << 20) + (8 << 20)  # a copy that is not noted is read as well
    large.now = FIRST + 1
    large.states[large.now] = read(large.source)
    check(large)


def _run_and_kill(sessions: Sessions, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a session, one that takes its time, and kill it when it has noted as many files."""
    real = FirstSession.add

    def add(first: FirstSession, *arguments: Any) -> None:
        time.sleep(0.005)
        real(first, *arguments)

    child = os.fork()
    if not child:
        monkeypatch.setattr(FirstSession, "add", add)
        backup(sessions.source, sessions.repository, now=FIRST, report=_fail)
        os._exit(0)
    journal = sessions.repository / os.fsdecode(BEGUN)
    while not (journal.exists() and journal.stat().st_size > files * _NOTE_BYTES):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _run(sessions: Sessions) -> tuple[int, int]:
    """A session in a process of its own: how many bytes that has read, and how many files were kept."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        before = _bytes_read()
        outcome = backup(sessions.source, sessions.repository, now=FIRST + 1, report=_fail)
        os.write(write_end, b"%d %d" % (_bytes_read() - before, outcome.kept_files))
        os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 100)
    os.close(read_end)
    assert os.waitpid(child, 0)[1] == 0
    bytes_read, kept = answer.split()
    return int(bytes_read), int(kept)


def _bytes_read() -> int:
    """By all system calls of the process until now."""
    return int(Path("/proc/self/io").read_text().split()[1])


def _fail(error: HistfsError) -> None:
    raise error
