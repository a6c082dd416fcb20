"""A restore that was cut off: the next one does not trust size and time of what may have lost its content."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import StorageError, UsageError
from histfs.store.files import WritableTree
from histfs.store.target import Manner
from histfs.store.unfinished import LEFTOVER, Unfinished
from tests.comparison import difference, read
from tests.store.places import is_root
from tests.store.sessions import Sessions
from tests.store.test_merge import DELETE, MERGE, run
from tests.store.test_restore_protects import selection
from tests.trees import Dir, File, build
from tests.users import as_ordinary_user, give_away

MARK = os.fsdecode(LEFTOVER) + "unfinished.0123456789abcdef"
CONTENT = Dir({"a": File(b"content a"), "d": Dir({"x": File(b"content x"), "e": Dir({"y": File(b"content y")})})})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def simple(sessions: Sessions) -> Sessions:
    build(sessions.source, CONTENT)
    sessions.backup()
    return sessions


def leftovers(target: Path) -> list[str]:
    return [name for _, _, names in os.walk(target) for name in names if name.startswith(os.fsdecode(LEFTOVER))]


def lose_content(path: Path) -> None:
    """Zeros are in it now; all that stat(2) shows but ctime is as it was."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def is_as_backed_up(sessions: Sessions, target: Path) -> bool:
    return difference(read(sessions.source), read(target)) == []


@pytest.mark.parametrize("manner", [MERGE, DELETE])
@pytest.mark.parametrize(("at", "mended"), [("", ["a", "d/x", "d/e/y"]), ("d", ["d/x", "d/e/y"]), ("d/e", ["d/e/y"])])
def test_contents_are_compared_below_a_mark(
    simple: Sessions, target: Path, at: str, mended: list[str], manner: Manner
) -> None:
    run(simple, target, Manner())
    for name in mended:
        lose_content(target / name)
    assert run(simple, target, manner).steps == []  # who does not know trusts size and time
    (target / at / MARK).touch()
    assert {path for _, path in run(simple, target, manner._replace(dry_run=True)).steps} >= {
        name.encode() for name in mended
    }
    assert leftovers(target) == [MARK]
    run(simple, target, manner)
    assert is_as_backed_up(simple, target)
    assert leftovers(target) == []


def test_what_is_not_below_a_mark_is_trusted(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    lose_content(target / "a")
    (target / "d" / MARK).touch()
    run(simple, target, MERGE)
    assert (target / "a").read_bytes() == bytes(len(b"content a"))


def killed_restore(sessions: Sessions, target: Path, interlude: Callable[[], object]) -> None:
    """One of everything, in a process of its own that is killed when it has made two files, after an `interlude`."""
    child = os.fork()
    if not child:
        real, paths = WritableTree.create_file, []

        def create_and_die(tree: WritableTree, path: bytes) -> int:
            paths.append(path)
            if len(paths) == 4:  # the mark, and two files
                interlude()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(tree, path)

        try:
            WritableTree.create_file = create_and_die  # type: ignore[method-assign]
            run(sessions, target, Manner())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_killed_restore_leaves_a_mark(simple: Sessions, target: Path) -> None:
    killed_restore(simple, target, lambda: None)
    assert len(leftovers(target)) == 1
    with pytest.raises(UsageError, match="a restore to it was cut off"):
        run(simple, target, Manner())
    lose_content(target / "a")
    run(simple, target, MERGE)
    assert is_as_backed_up(simple, target)
    assert leftovers(target) == []


@pytest.mark.parametrize("manner", [Manner(), MERGE])
def test_the_mark_is_on_the_disk_before_files_and_goes_after_them(
    simple: Sessions, target: Path, manner: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(name: str, what: str) -> None:
        real = getattr(WritableTree, name)

        def noting(tree: WritableTree, *arguments: object, **options: object) -> object:
            path = arguments[0] if arguments else b""
            if isinstance(path, int):
                path = os.fsencode(os.readlink(f"/proc/self/fd/{path}"))
            done.append(what.format("mark" if b"unfinished" in path else "file"))  # type: ignore[operator]
            return real(tree, *arguments, **options)

        monkeypatch.setattr(WritableTree, name, noting)

    if manner == MERGE:
        build(target, Dir({"a": File(b"another"), "d": Dir({"x": File(b"another")})}))
    for name, what in [
        ("create_file", "create {0}"),
        ("sync_file", "sync {0}"),
        ("sync_directory", "sync directory"),
        ("sync", "sync"),
        ("unlink", "remove {0}"),
    ]:
        note(name, what)
    run(simple, target, manner)
    assert done[:4] == ["create mark", "sync mark", "sync directory", "create file"]
    assert done[-4:] == ["create file", "sync", "remove mark", "sync"]
    assert set(done[4:-4]) <= {"create file"}
    done.clear()
    run(simple, target, MERGE)  # nothing to do
    assert done == []


def test_a_file_by_itself_is_on_the_disk_before_it_gets_its_time(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: times.append(os.fstat(fd).st_mtime_ns))
    run(simple, target, Manner(), b"a")
    assert [time != target.stat().st_mtime_ns for time in times] == [True]
    times.clear()
    target.unlink()
    run(simple, target, Manner(fsync=False), b"a")
    assert times == []


@pytest.mark.skipif(not is_root(), reason="only root can become an ordinary user")
def test_where_no_mark_can_be_made_each_file_waits_for_the_disk(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the directories below belong to who restores."""
    scratch.chmod(0o755)
    sessions, target = Sessions(scratch), scratch / "target"
    build(sessions.source, CONTENT)
    sessions.backup()
    build(target, Dir({"d": Dir()}))
    give_away(sessions.repository, target / "d")
    written: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: written.append(os.readlink(f"/proc/self/fd/{fd}")))

    def restore_as_user() -> None:
        restored = run(sessions, target, MERGE)
        assert [error.path for error in restored.reported] == [b"a"]
        assert [path.rpartition("/")[2] for path in written] == ["y", "x"]

    as_ordinary_user(restore_as_user)
    assert (target / "d" / "e" / "y").read_bytes() == b"content y"


def test_a_mark_stays_while_something_cannot_be_restored(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    mirrored = simple.repository / "d" / "x"
    content, status = mirrored.read_bytes(), mirrored.stat()
    lose_content(target / "d" / "x")
    lose_content(mirrored)
    (target / MARK).touch()
    for _ in range(2):
        assert run(simple, target, MERGE).outcome.errors == 1
        assert len(leftovers(target)) == 1
    mirrored.write_bytes(content)
    os.utime(mirrored, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(simple, target, MERGE).outcome.errors == 0
    assert is_as_backed_up(simple, target)
    assert leftovers(target) == []


def test_a_mark_stays_while_not_all_is_restored(simple: Sessions, target: Path) -> None:
    run(simple, target, Manner())
    lose_content(target / "d" / "x")
    (target / MARK).touch()
    chosen = selection(("exclude", b"d"))
    run(simple, target, MERGE, selection=chosen)
    assert len(leftovers(target)) == 1
    run(simple, target, MERGE)
    assert is_as_backed_up(simple, target)
    assert leftovers(target) == []


def test_an_error_that_stops_it_leaves_no_mark_when_all_is_on_the_disk(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tree: WritableTree, _path: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(WritableTree, "make_directory", full)
        target.mkdir()
        with pytest.raises(Exception, match="No space left"):
            run(simple, target, Manner())
    assert os.listdir(target) == ["a"]


def test_the_mark_of_a_restore_that_runs_stays(simple: Sessions, target: Path) -> None:
    """Another one of the same comes to its end meanwhile."""
    killed_restore(simple, target, lambda: run(simple, target, MERGE, b"d/e"))
    assert len(leftovers(target)) == 1
    killed_restore(simple, target.with_name("other"), lambda: run(simple, target.with_name("other"), MERGE))
    assert len(leftovers(target.with_name("other"))) == 1


def test_a_disk_that_refused_something_leaves_the_mark(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """syncfs(2) tells of lost writes once: the next one has nothing to say."""
    real, failed = WritableTree.sync, []

    def sync(tree: WritableTree) -> None:
        if not failed:
            failed.append(True)
            tree.sync_has_failed = True
            raise OSError(5, "Input/output error", b"")
        real(tree)

    with monkeypatch.context() as patch:
        patch.setattr(WritableTree, "sync", sync)
        with pytest.raises(StorageError, match="Input/output error"):
            run(simple, target, Manner())
    assert len(leftovers(target)) == 1
    lose_content(target / "a")
    run(simple, target, MERGE)
    assert is_as_backed_up(simple, target)
    assert leftovers(target) == []


@pytest.mark.parametrize("manner", [MERGE, DELETE])
@pytest.mark.parametrize(("path", "lost"), [(b"d", "d/x"), (b"d/e", "d/e/y"), (b"a", "a")])
def test_a_mark_above_the_target_counts(simple: Sessions, target: Path, path: bytes, lost: str, manner: Manner) -> None:
    run(simple, target, Manner())
    lose_content(target / lost)
    (target / MARK).touch()
    if manner == DELETE and path == b"a":
        manner = Manner(force=True)
    run(simple, target / os.fsdecode(path), manner, path)
    assert is_as_backed_up_but_for(target / MARK, simple, target)


def is_as_backed_up_but_for(mark: Path, sessions: Sessions, target: Path) -> bool:
    """And the mark stands for more than was restored."""
    mark.unlink()
    status = sessions.source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return is_as_backed_up(sessions, target)


@pytest.mark.parametrize("path", [b"", b"d"])
def test_a_mark_stays_for_what_another_restore_leaves_alone(sessions: Sessions, target: Path, path: bytes) -> None:
    """An older snapshot, or a part, merged into what was cut off: what these do not have was not looked at."""
    build(sessions.source, CONTENT)
    sessions.backup()
    before = sessions.now
    (sessions.source / "b").write_bytes(b"content b")
    sessions.backup()
    run(sessions, target, Manner())
    lose_content(target / "b")
    (target / MARK).touch()
    run(sessions, target, MERGE, path, before)
    assert leftovers(target) == [MARK]
    run(sessions, target, MERGE)
    assert (target / "b").read_bytes() == b"content b"
    assert leftovers(target) == ([MARK] if path else [])  # with what was in d there are strangers now


@pytest.mark.parametrize("selected", [False, True])
def test_the_same_restore_takes_its_mark_away_whatever_else_is_there(
    simple: Sessions, target: Path, selected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = selection(("exclude", b"a")) if selected else None
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "end", lambda _self, is_complete: False)
        run(simple, target, Manner(), selection=chosen)
    assert len(leftovers(target)) == 1
    (target / "mine").touch()
    lose_content(target / "d" / "x")
    run(simple, target, MERGE, selection=selection(("exclude", b"d/x")))
    assert len(leftovers(target)) == 1
    run(simple, target, MERGE, selection=chosen)
    assert (target / "d" / "x").read_bytes() == b"content x"
    assert leftovers(target) == []


@pytest.mark.skipif(not is_root(), reason="only root can become an ordinary user")
def test_leftovers_of_others_in_a_directory_that_is_everybodys_stay(scratch: Path) -> None:
    scratch.chmod(0o755)
    sessions, target = Sessions(scratch), scratch / "target"
    build(sessions.source, CONTENT)
    sessions.backup()
    target.mkdir()
    target.chmod(0o1777)
    names = [MARK, os.fsdecode(LEFTOVER) + "0123456789abcdef"]
    for name in names:
        (target / name).touch()
    give_away(sessions.repository)
    as_ordinary_user(lambda: run(sessions, target, MERGE))
    assert (target / "d" / "e" / "y").read_bytes() == b"content y"
    assert sorted(leftovers(target)) == sorted(names)


def test_a_mark_that_was_not_brought_to_the_disk_goes_as_well(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 1:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run(simple, target, Manner()).reported == []
    assert len(synced) == 4  # each of three files
    assert leftovers(target) == []


def test_a_mark_that_was_backed_up_is_restored_once(simple: Sessions, target: Path) -> None:
    (simple.source / MARK).touch()
    simple.backup()
    run(simple, target, Manner())
    assert [run(simple, target, MERGE).steps for _ in range(2)] == [[], []]
    assert is_as_backed_up(simple, target)


def test_a_backed_up_mark_is_a_file_as_any_other(sessions: Sessions, target: Path) -> None:
    build(sessions.source, Dir({MARK: File(b""), "d": Dir({MARK: File(b"")})}))
    sessions.backup()
    run(sessions, target, Manner())
    assert is_as_backed_up(sessions, target)
    run(sessions, target, MERGE)
    assert is_as_backed_up(sessions, target)
