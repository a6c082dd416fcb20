"""Restoring and verifying: what comes back, where it may go, and what is said of what does not."""

import contextlib
import errno
import gzip
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from histfs.errors import DamagedError, HistfsError, NotFoundError, StorageError, UsageError
from histfs.store import restore as restore_module
from histfs.store.backup import backup
from histfs.store.content import Content, small
from histfs.store.entry import Entry
from histfs.store.files import WritableTree
from histfs.store.restore import RestoreOutcome, restore
from histfs.store.target import Manner
from histfs.store.verify import VerifyOutcome, verify
from tests.comparison import below, difference, read
from tests.store import rich
from tests.store.places import is_root, make_deep, open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import MTIME, Device, Dir, Fifo, File, Link, Node, Socket, Symlink, build


class Restored(NamedTuple):
    outcome: RestoreOutcome
    reported: list[HistfsError]


@pytest.fixture
def nothing_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is opened by itself, when it is restored."""
    monkeypatch.setattr(small, "SMALL_BYTES", -1)


def run(sessions: Sessions, target: Path, path: bytes = b"", time: int | None = None, **options: Any) -> Restored:
    reported: list[HistfsError] = []
    before = open_descriptors()
    with sessions.open() as repository:
        moment = sessions.now if time is None else time
        outcome = restore(repository, path, moment, target, report=reported.append, **options)
    assert open_descriptors() == before
    return Restored(outcome, reported)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_every_session_comes_back(rich_sessions: Sessions, target: Path, number: int) -> None:
    time = FIRST + number * DAY
    restored = run(rich_sessions, target, time=time)
    expected = rich_sessions.states[time]
    if is_root():
        assert restored == ((len(expected), 0), [])
    else:
        specials = [path for path, found in expected.items() if found.device is not None]
        assert restored.outcome.errors == len(specials)
    assert difference(expected, read(target)) == []


@pytest.mark.parametrize("path", [b"kept", b"gone", b"directory-to-file", rich.LONGEST.encode()])
def test_a_directory_comes_back(rich_sessions: Sessions, target: Path, path: bytes) -> None:
    assert run(rich_sessions, target, path, FIRST).reported == []
    assert difference(below(rich_sessions.states[FIRST], path), read(target)) == []


@pytest.mark.parametrize("path", [b"changed", b"gone/b/d", b"gone/b/c", b"fifo", b"g1-b", b"odd\nname\\", b"\xff\xfe"])
def test_a_single_name_comes_back(rich_sessions: Sessions, target: Path, path: bytes) -> None:
    assert run(rich_sessions, target, path, FIRST) == ((1, 0), [])
    expected = rich_sessions.states[FIRST][path]._replace(links=None, nlink=None)
    found = read(target.parent)[b"target"]._replace(links=None, nlink=None)
    assert difference({b"x": expected}, {b"x": found}) == []
    assert found.sha1 is None or target.stat().st_nlink == 1


def test_a_link_whose_first_is_elsewhere_has_a_digest_all_the_same(rich_sessions: Sessions, target: Path) -> None:
    assert run(rich_sessions, target, b"g2-b", FIRST).reported == []
    assert target.read_bytes() == b"group two"


def test_times_have_their_nanoseconds(sessions: Sessions, target: Path) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "b": File(b"b")}))
    ns = MTIME * 10**9 + 123_456_789
    for name in "ab":
        os.utime(sessions.source / name, ns=(ns, ns))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    sessions.backup()
    run(sessions, target, time=FIRST)
    assert {(target / name).stat().st_mtime_ns for name in "ab"} == {ns}


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
def test_owners_and_setuid(sessions: Sessions, target: Path) -> None:
    entries: dict[str | bytes, Node] = {
        "a": File(b"a", owner=(1, 2), mode=0o6755),
        "d": Dir({"x": File(owner=(3, 4))}, owner=(5, 6), mode=0o2711),
        "l": Symlink("a", owner=(7, 8)),
        "f": Fifo(owner=(9, 10)),
        "s": Socket(owner=(9, 10)),
        "c": Device("c", 1, 3, owner=(11, 12)),
    }
    build(sessions.source, Dir(entries, mode=0o500, owner=(20, 21)))
    sessions.backup()
    assert run(sessions, target).outcome == (8, 0)
    assert difference(sessions.states[FIRST], read(target)) == []


@pytest.mark.skipif(not is_root(), reason="only root makes devices")
def test_what_is_untrusted_gets_no_privileges(sessions: Sessions, target: Path) -> None:
    entries: dict[str | bytes, Node] = {
        "a": File(b"a", mode=0o6755, xattrs={"user.a": b"1", "trusted.a": b"2"}),
        "c": Device("c", 1, 3),
        "d": Dir({"x": File(b"x", mode=0o4711)}, mode=0o2775),
    }
    build(sessions.source, Dir(entries))
    sessions.backup()
    done = run(sessions, target, untrusted=True)
    assert done.outcome == (4, 1)
    assert [(error.path, error.problem[:11]) for error in done.reported] == [(b"c", "is a device")]
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "d", "d/x")}
    assert modes == {"a": 0o755, "d": 0o2775, "d/x": 0o711}
    assert os.listxattr(target / "a") == ["user.a"]
    run(sessions, target, manner=Manner(merge=True))
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o6755
    run(sessions, target, manner=Manner(merge=True), untrusted=True)  # also from what is there
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o755


def test_directories_that_must_not_be_written_to(sessions: Sessions, target: Path) -> None:
    build(sessions.source, Dir({"d": Dir({"e": Dir({"x": File(b"x")}, mode=0o555)}, mode=0o500)}, mode=0o555))
    sessions.backup()
    assert run(sessions, target).reported == []
    assert difference(sessions.states[FIRST], read(target)) == []
    for path in (target, target / "d", target / "d/e", sessions.source, sessions.source / "d", sessions.source / "d/e"):
        path.chmod(0o700)


def test_holes_stay_holes(sessions: Sessions, target: Path) -> None:
    sessions.source.mkdir()
    with (sessions.source / "sparse").open("wb") as file:
        file.truncate(20 << 20)
    sessions.backup()
    run(sessions, target)
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20


def test_a_deep_tree(deep: Path) -> None:
    sessions = Sessions(deep)
    sessions.source.mkdir()
    path = make_deep(sessions.source, 1050, b"deep")
    sessions.now += DAY
    backup(sessions.source, sessions.repository, now=sessions.now, report=sessions.reported.append)
    assert run(sessions, deep / "target").outcome == (1051, 0)
    with WritableTree.open(deep / "target") as tree:
        assert tree.names(path) == []


def test_what_an_ordinary_user_cannot_make_is_told(
    sessions: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "f": Fifo(), "z": File(b"z")}))
    sessions.backup()

    def refuse(_tree: WritableTree, path: bytes, _entry: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(WritableTree, "make_special", refuse)
    restored = run(sessions, target)
    assert restored.outcome == (3, 1)
    assert [error.path for error in restored.reported] == [b"f"]
    assert sorted(os.listdir(target)) == ["a", "z"]


def test_owners_that_are_refused_are_told_once(
    sessions: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root; for others it is a matter of course."""
    build(sessions.source, Dir({"a": File(b"a"), "b": File(b"b")}))
    sessions.backup()
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        status = real(fd)
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]), {"st_mtime_ns": status.st_mtime_ns})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    class Os:
        chown = staticmethod(refuse)
        fstat = staticmethod(of_another)

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    monkeypatch.setattr("histfs.store.files.os", Os())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    restored = run(sessions, target)
    assert restored.outcome == (3, 1)
    assert [type(error) for error in restored.reported] == [StorageError]


# --- where it may go ------------------------------------------------------------------------------------------------


@pytest.fixture
def simple(sessions: Sessions) -> Sessions:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": Link("a")})}))
    sessions.backup()
    return sessions


def test_an_empty_directory_is_filled(simple: Sessions, target: Path) -> None:
    target.mkdir()
    assert run(simple, target).reported == []
    assert difference(simple.states[FIRST], read(target)) == []


@pytest.mark.parametrize("path", [b"", b"d", b"a"])
@pytest.mark.parametrize("what", ["file", "full", "link", "dangling", "link to empty", "below nothing", "below a file"])
def test_targets_that_are_refused(simple: Sessions, tmp_path: Path, what: str, path: bytes) -> None:
    place = tmp_path / "place"
    (tmp_path / "empty").mkdir()
    if what == "file":
        place.touch()
    elif what == "full":
        build(place, Dir({"x": File(b"keep")}))
    elif what == "link":
        place.symlink_to(tmp_path)
    elif what == "dangling":
        place.symlink_to("nowhere")
    elif what == "link to empty":
        place.symlink_to("empty")
    elif what == "below nothing":
        place = place / "target"
    else:
        place.touch()
        place = place / "target"
    before = read(tmp_path)
    with pytest.raises(UsageError):
        run(simple, place, path)
    assert difference(before, read(tmp_path)) == []


def test_an_empty_directory_is_no_place_for_a_file(simple: Sessions, target: Path) -> None:
    target.mkdir()
    with pytest.raises(UsageError):
        run(simple, target, b"a")
    assert os.listdir(target) == []


@pytest.mark.parametrize("place", [".", "new", "d/new", "rdiff-backup-data/new"])
def test_the_repository_is_no_target(simple: Sessions, place: str, tmp_path: Path) -> None:
    before = read(simple.repository)
    (tmp_path / "link").symlink_to(simple.repository)
    for top in (simple.repository, tmp_path / "link"):
        with pytest.raises(UsageError):
            run(simple, top / place)
    assert difference(before, read(simple.repository)) == []


@pytest.mark.skipif(is_root(), reason="root may write everywhere")
def test_a_place_where_nothing_may_be_written(simple: Sessions, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageError):
        run(simple, tmp_path / "closed/target")
    (tmp_path / "closed").chmod(0)
    with pytest.raises((StorageError, UsageError)):
        run(simple, tmp_path / "closed/target")
    (tmp_path / "closed").chmod(0o700)


def test_a_relative_target(simple: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(simple, Path("one"))
    run(simple, Path("source/../two"), b"a")
    assert difference(simple.states[FIRST], read(tmp_path / "one")) == []
    assert (tmp_path / "two").read_bytes() == b"a"


# --- somebody else in the target ------------------------------------------------------------------------------------


def test_a_link_that_takes_the_place_of_the_target(
    simple: Sessions, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was found free, and before it is made: in a directory where others may write."""
    (tmp_path / "victim").mkdir()
    real = restore_module.check_target

    def check(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]  # whatever they were
        target.symlink_to("victim")

    monkeypatch.setattr(restore_module, "check_target", check)
    with pytest.raises((UsageError, StorageError)):
        run(simple, target)
    assert os.listdir(tmp_path / "victim") == []


def test_a_directory_that_takes_the_place_of_the_target(
    simple: Sessions, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restore_module.check_target

    def check(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]  # whatever they were
        build(target, Dir({"precious": File(b"keep")}))

    monkeypatch.setattr(restore_module, "check_target", check)
    with pytest.raises(UsageError):
        run(simple, target)
    assert os.listdir(target) == ["precious"]


@pytest.mark.parametrize("plant", ["link", "file", "fifo"])
@pytest.mark.parametrize("name", [b"a", b"d", b"d/x", b"d/y"])
def test_what_others_put_in_the_way(
    simple: Sessions, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, name: bytes
) -> None:
    """Nothing is written through it or over it, and it is told."""
    build(tmp_path / "victim", Dir({"x": File(b"keep")}))
    real = restore_module._Restore._restore

    def restore_one(self: restore_module._Restore, entry: Entry, path: bytes) -> bool:
        if entry.path == name:
            place = target / os.fsdecode(name)
            if plant == "link":
                place.symlink_to(tmp_path / "victim" if name == b"d" else tmp_path / "victim/x")
            elif plant == "file":
                place.write_bytes(b"planted")
            else:
                os.mkfifo(place)
        return real(self, entry, path)

    monkeypatch.setattr(restore_module._Restore, "_restore", restore_one)
    restored = run(simple, target)
    assert name in [error.path for error in restored.reported]
    assert restored.outcome.errors == len(restored.reported)
    assert (tmp_path / "victim/x").read_bytes() == b"keep"
    assert os.listdir(tmp_path / "victim") == ["x"]


def test_a_directory_that_is_swapped_for_a_link(
    simple: Sessions, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    real = restore_module._Restore._restore

    def restore_one(self: restore_module._Restore, entry: Entry, path: bytes) -> bool:
        result = real(self, entry, path)
        if entry.path == b"d":
            (target / "d").rename(tmp_path / "moved")
            (target / "d").symlink_to(tmp_path / "victim")
        return result

    monkeypatch.setattr(restore_module._Restore, "_restore", restore_one)
    before = read(tmp_path / "victim")
    run_and_expect_trouble(simple, target)
    assert difference(before, read(tmp_path / "victim")) == []


def run_and_expect_trouble(sessions: Sessions, target: Path) -> None:
    with contextlib.suppress(StorageError):
        assert run(sessions, target).reported


# --- what does not come back ----------------------------------------------------------------------------------------


def test_what_was_not_there(simple: Sessions, target: Path) -> None:
    for path, time in ((b"no", FIRST), (b"a/x", FIRST), (b"", FIRST + 1)):
        with pytest.raises(NotFoundError):
            run(simple, target, path, time)
        assert not target.exists()


def test_a_damaged_file_is_left_out_and_the_rest_comes(simple: Sessions, target: Path) -> None:
    (simple.repository / "a").write_bytes(b"b")
    (simple.repository / "d/x").unlink()
    restored = run(simple, target)
    assert {error.path for error in restored.reported} == {b"a", b"d/x", b"d/y"}
    assert restored.outcome == (2, 3)
    assert {error.at for error in restored.reported} == {FIRST}
    assert sorted(read(target)) == [b"", b"d"]


def test_a_large_damaged_file_does_not_stay_half(simple: Sessions, target: Path) -> None:
    data = os.urandom(3 << 20)
    (simple.source / "large").write_bytes(data)
    simple.backup()
    path = simple.repository / "large"
    status = path.stat()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    restored = run(simple, target)
    assert [error.path for error in restored.reported] == [b"large"]
    assert not (target / "large").exists()


@pytest.mark.usefixtures("nothing_is_ahead")
@pytest.mark.parametrize("problem", [errno.EIO, errno.ENOSPC, KeyboardInterrupt])
def test_an_interrupted_file_does_not_stay_half(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch, problem: int | type[BaseException]
) -> None:
    def blocks(_content: Content):
        yield b"half"
        raise OSError(problem, "trouble") if isinstance(problem, int) else problem

    monkeypatch.setattr(Content, "blocks", blocks)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        run_once(simple, target)
    assert not (target / "a").exists()


def run_once(sessions: Sessions, target: Path) -> None:
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, target, report=sessions.reported.append)


@pytest.mark.usefixtures("nothing_is_ahead")
def test_a_file_that_cannot_be_read_from_the_repository(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable sector concerns one file; the target is not to blame."""

    def blocks(content: Content):
        yield b""
        raise StorageError("Input/output error")

    monkeypatch.setattr(Content, "blocks", blocks)
    restored = run(simple, target)
    assert {error.path for error in restored.reported} == {b"a", b"d/x", b"d/y"}
    assert sorted(read(target)) == [b"", b"d"]


def test_a_full_target_stops(simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(restore_module, "write_blocks", full)
    with pytest.raises(StorageError, match="No space"):
        run_once(simple, target)


def test_a_list_that_ends_too_early_gives_what_it_has(simple: Sessions, target: Path) -> None:
    (path,) = simple.data.glob("mirror_metadata.*")
    text = gzip.decompress(path.read_bytes())
    half = gzip.compress(text)
    path.write_bytes(half[:-1])
    restored = run(simple, target)
    assert restored.outcome.errors == 1
    assert (target / "a").read_bytes() == b"a"


# --- verify ---------------------------------------------------------------------------------------------------------


def check(sessions: Sessions, path: bytes = b"", time: int = FIRST) -> tuple[VerifyOutcome, list[bytes]]:
    reported: list[HistfsError] = []
    before = open_descriptors()
    with sessions.open() as repository:
        outcome = verify(repository, path, time, report=reported.append)
    assert open_descriptors() == before
    return outcome, [os.fsencode(error.path or b"") for error in reported]


def test_verify_counts_files(rich_sessions: Sessions) -> None:
    for time, state in rich_sessions.states.items():
        files = sum(found.type == "file" for found in state.values())
        assert check(rich_sessions, time=time) == ((files, 0, 0), [])
    assert check(rich_sessions, b"gone") == ((2, 0, 0), [])
    assert check(rich_sessions, b"gone/a") == ((1, 0, 0), [])
    assert check(rich_sessions, b"fifo") == ((0, 0, 0), [])
    with pytest.raises(NotFoundError):
        check(rich_sessions, b"no")


def test_verify_finds_damage_and_goes_on(simple: Sessions) -> None:
    path = simple.repository / "d/x"
    path.write_bytes(b"y")
    os.utime(path, (MTIME, MTIME))
    assert check(simple) == ((3, 1, 0), [b"d/x"])
    (simple.repository / "a").unlink()
    assert check(simple) == ((3, 2, 0), [b"a", b"d/x"])
    (simple.repository / "d/y").write_bytes(b"longer")
    assert check(simple) == ((3, 3, 0), [b"a", b"d/x", b"d/y"])


def test_verify_counts_files_without_a_digest(simple: Sessions) -> None:
    (path,) = simple.data.glob("mirror_metadata.*")
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(line for line in lines if b"SHA1Digest" not in line)))
    assert check(simple) == ((3, 0, 3), [])


def test_verify_tells_damaged_records(simple: Sessions) -> None:
    (path,) = simple.data.glob("mirror_metadata.*")
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text.replace(b"File d/x\n  Type reg", b"File d/x\n  Type x")))
    assert check(simple) == ((2, 1, 0), [b"d/x"])


def test_links_that_only_seem_to_be_of_one_file(simple: Sessions) -> None:
    """Records that claim one inode and differ are several files: one has no digest of another."""
    (path,) = simple.data.glob("mirror_metadata.*")
    text = gzip.decompress(path.read_bytes())
    head, tail = text.split(b"File d/y\n")
    path.write_bytes(gzip.compress(head + b"File d/y\n" + tail.replace(b"  Size 1\n", b"  Size 2\n")))
    (simple.repository / "d/y").unlink()
    (simple.repository / "d/y").write_bytes(b"yy")
    os.utime(simple.repository / "d/y", (MTIME, MTIME))
    assert check(simple) == ((3, 0, 1), [])
    target = simple.repository.with_name("target")
    assert run(simple, target).reported == []
    assert (target / "d/y").read_bytes() == b"yy"


def test_a_damaged_list_cannot_be_verified(simple: Sessions) -> None:
    (path,) = simple.data.glob("mirror_metadata.*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError):
        check(simple)


@pytest.mark.usefixtures("nothing_is_ahead")
def test_modes_of_what_is_restored_are_never_too_open(
    simple: Sessions, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is written nobody else may read it."""
    seen: list[int] = []
    real = Content.blocks

    def blocks(content: Content):
        for _, _, names in os.walk(target):
            seen.extend(stat.S_IMODE((target / name).lstat().st_mode) for name in names if (target / name).exists())
        yield from real(content)

    monkeypatch.setattr(Content, "blocks", blocks)
    old = os.umask(0)
    try:
        with simple.open() as repository:
            restore(repository, b"", FIRST, target, report=simple.reported.append)
    finally:
        os.umask(old)
    assert 0o600 in seen
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_target_in_a_circle_of_links(simple: Sessions, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place in ("loop", "loop/target"):
        with pytest.raises((UsageError, StorageError)):
            run(simple, tmp_path / place)
