"""The live tree: order, odd names, what vanishes, changes, or cannot be read."""

import errno
import os
import pwd
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import EXIT_FILE_ERROR, EXIT_FILE_WARNING, HistfsError, SourceError, StorageError, UsageError
from histfs.store import copying, growing
from histfs.store import source as source_module
from histfs.store.backup import backup
from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from histfs.store.files import Block
from histfs.store.format.metadata import format_record, parse_record
from histfs.store.look import entry_of
from histfs.store.source import Found, Source
from histfs.store.tree import Tree
from histfs.store.unreadable import Unreadable
from histfs.store.walk import Walk
from tests.comparison import read
from tests.store.places import is_root, make_deep, open_descriptors
from tests.store.sessions import FIRST, Sessions
from tests.trees import Device, Dir, Fifo, File, Link, Socket, Symlink, build


def walk(path: Path) -> list[Found | Unreadable]:
    with Source.open(path) as source:
        return list(source.walk(lambda _path, _status: False))


def entries(path: Path) -> list[Entry]:
    found = walk(path)
    assert all(isinstance(item, Found) for item in found)
    return [item.entry for item in found if isinstance(item, Found)]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "source"


# --- the walk -------------------------------------------------------------------------------------------------------


def test_the_order_is_that_of_lists(top: Path) -> None:
    names = [b"d", b"d.txt", b"d ", b"D", b"\xff", b"\n", b"a", b"-", b"d\x01"]
    below: dict[str | bytes, Dir | File] = {
        name: Dir({b"x": File(), b"\xfe": Dir({"y": File()})}) for name in names[:1]
    }
    below |= {name: File() for name in names[1:]}
    build(top, Dir(below))
    paths = [entry.path for entry in entries(top)]
    assert paths == sorted(paths, key=sort_key)
    assert len(paths) == 1 + len(names) + 3
    assert paths.index(b"d/\xfe/y") < paths.index(b"d\x01") < paths.index(b"d.txt")


def test_every_kind(top: Path) -> None:
    literal = {
        "dir": Dir(mode=0o1751),
        "fifo": Fifo(mode=0o640),
        "file": File(b"12345", mode=0o4755, mtime=-5),
        "first": File(b"x"),
        "second": Link("first"),
        "socket": Socket(),
        "symlink": Symlink(b"to\nnowhere\xff"),
    }
    if is_root():
        literal |= {"char": Device("c", 1, 300), "block": Device("b", 259, 7)}
    build(top, Dir(literal))
    found = {entry.path: entry for entry in entries(top)}
    assert found[b"dir"].kind is Kind.DIRECTORY
    assert found[b"dir"].mode == 0o1751
    assert found[b"fifo"].kind is Kind.FIFO
    assert (found[b"file"].size_bytes, found[b"file"].mode, found[b"file"].mtime_s) == (5, 0o4755, -5)
    assert found[b"file"].link_group is None
    status = (top / "first").stat()
    assert found[b"first"].link_group == found[b"second"].link_group == LinkGroup(2, status.st_ino, status.st_dev)
    assert found[b"socket"].kind is Kind.SOCKET
    assert (found[b"symlink"].target, found[b"symlink"].mtime_s) == (b"to\nnowhere\xff", 0)
    if is_root():
        assert (found[b"char"].kind, found[b"char"].device_number) == (Kind.CHARACTER_DEVICE, (1, 300))
        assert (found[b"block"].kind, found[b"block"].device_number) == (Kind.BLOCK_DEVICE, (259, 7))
    assert found[b"file"].uid == os.geteuid()


def test_times_are_rounded_down(top: Path) -> None:
    build(top, Dir({"a": File()}))
    os.utime(top / "a", ns=(-1, -1))
    assert entries(top)[1].mtime_s == -1


def test_a_repository_at_the_top_is_not_part_of_the_source(top: Path) -> None:
    build(top, Dir({"rdiff-backup-data": Dir({"x": File()}), "d": Dir({"rdiff-backup-data": Dir()})}))
    assert [entry.path for entry in entries(top)] == [b"", b"d", b"d/rdiff-backup-data"]


def test_a_directory_can_be_skipped(top: Path) -> None:
    build(top, Dir({"a": Dir({"x": File()}), "b": Dir({"x": File()}), "x": File()}))
    with Source.open(top) as source:
        found = list(source.walk(lambda path, _status: path in (b"a", b"x")))
    assert [item.path for item in found] == [b"", b"b", b"b/x", b"x"]


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = open_descriptors()
    for name, problem in (("no", UsageError), ("file", UsageError), ("file/x", UsageError), ("loop", StorageError)):
        with pytest.raises(problem):
            Source.open(tmp_path / name)
    assert open_descriptors() == before


def test_the_source_may_be_reached_through_a_link(tmp_path: Path, top: Path) -> None:
    build(top, Dir({"a": File()}))
    (tmp_path / "link").symlink_to("source")
    assert [entry.path for entry in entries(tmp_path / "link")] == [b"", b"a"]


def test_a_deep_tree(deep: Path) -> None:
    """2,000 levels, with few descriptors and without a deep stack."""
    make_deep(deep, 2000, b"dd")
    most = 0
    before = open_descriptors()
    with Source.open(deep) as source:
        for number, item in enumerate(source.walk(lambda _path, _status: False)):
            assert isinstance(item, Found)
            if number % 100 == 0:
                most = max(most, len(open_descriptors() - before))
    assert item.path.count(b"/") == 1999
    assert most <= 70


def test_a_path_that_no_list_could_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list must be readable again; whoever may write in the source must not be able to stop its backups."""
    longest = Entry(b"\\" * source_module.LONGEST_PATH, Kind.SYMLINK, target=b"\n" * 4095)
    assert parse_record(format_record(longest)) == longest
    monkeypatch.setattr(source_module, "LONGEST_PATH", 1000)
    make_deep(tmp_path, 10, b"x" * 250)
    (tmp_path / "y").touch()
    found = walk(tmp_path)
    assert [len(item.path) for item in found] == [0, 250, 501, 752, 1003, 1]
    assert [item for item in found if isinstance(item, Unreadable)] == [found[4]]


# --- what cannot be looked at ---------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, one_by_one: None) -> Callable[[str, bytes, OSError], None]:
    """Makes a method of trees fail for one path."""

    def fail(method: str, path: bytes, error: OSError) -> None:
        of_walk = {"stat": "look", "names": "enter"}.get(method)
        real = getattr(Walk, of_walk) if of_walk else getattr(Tree, method)

        def wrapped(what: Walk | Tree, *arguments: Any) -> object:
            wanted = what.path if isinstance(what, Walk) else arguments[0]
            if wanted == path and type(what) in (Walk, Tree):
                raise type(error)(*error.args)
            return real(what, *arguments)

        monkeypatch.setattr(Walk if of_walk else Tree, of_walk or method, wrapped)

    return fail


DENIED = PermissionError(errno.EACCES, "Permission denied")
GONE = FileNotFoundError(errno.ENOENT, "No such file or directory")
BROKEN = OSError(errno.EIO, "Input/output error")

TREE = Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": Dir({"z": File(b"z")})}), "e": File(b"e")})


@pytest.mark.parametrize(
    ("error", "exit_code"), [(DENIED, EXIT_FILE_ERROR), (BROKEN, EXIT_FILE_ERROR), (GONE, EXIT_FILE_WARNING)]
)
def test_trouble_is_a_value(
    top: Path, failing: Callable[[str, bytes, OSError], None], error: OSError, exit_code: int
) -> None:
    build(top, TREE)
    failing("stat", b"a", error)
    failing("names", b"d/y", error)
    found = walk(top)
    assert [(item.path, type(item)) for item in found] == [
        (b"", Found),
        (b"a", Unreadable),
        (b"d", Found),
        (b"d/x", Found),
        (b"d/y", Found),
        (b"d/y", Unreadable),
        (b"e", Found),
    ]
    for item in found:
        if isinstance(item, Unreadable):
            assert item.error.exit_code == exit_code
            assert item.error.path == item.path


def run(sessions: Sessions) -> tuple[int, int, list[tuple[bytes, int]]]:
    """Errors, warnings, and what was reported of the next session."""
    sessions.reported.clear()
    outcome = sessions.backup(may_report=True)
    reported = [(os.fsencode(error.path or b""), error.exit_code) for error in sessions.reported]
    return outcome.source_errors, outcome.source_warnings, reported


@pytest.mark.parametrize("method", ["stat", "names"])
def test_what_was_in_a_directory_that_cannot_be_read_stays(
    sessions: Sessions, failing: Callable[[str, bytes, OSError], None], method: str
) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    (sessions.source / "d/x").write_bytes(b"changed")
    (sessions.source / "d/y/z").unlink()
    (sessions.source / "e").unlink()
    failing(method, b"d", DENIED)
    assert run(sessions) == (1, 0, [(b"d", EXIT_FILE_ERROR)])
    assert sessions.content(b"d/x", sessions.now) == b"x"
    assert sessions.content(b"d/y/z", sessions.now) == b"z"
    assert sessions.increments() == {"e.T1.snapshot.gz"}
    sessions.assert_readable(FIRST)
    assert sessions.verify(sessions.now).mismatched == 0


def test_a_new_directory_that_cannot_be_read_is_empty(
    sessions: Sessions, failing: Callable[[str, bytes, OSError], None]
) -> None:
    build(sessions.source, TREE)
    failing("names", b"d", DENIED)
    failing("stat", b"e", DENIED)
    assert run(sessions) == (2, 0, [(b"d", EXIT_FILE_ERROR), (b"e", EXIT_FILE_ERROR)])
    assert sorted(sessions.manifest(sessions.now)) == [b"", b"a", b"d"]


def test_a_root_that_cannot_be_listed_removes_nothing(
    sessions: Sessions, failing: Callable[[str, bytes, OSError], None]
) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Walk, "push", lambda *_, **__: (_ for _ in ()).throw(DENIED))
            with pytest.raises((SourceError, StorageError)):
                sessions.backup()
        sessions.assert_all_readable()
        assert (sessions.repository / "d/y/z").read_bytes() == b"z"
    sessions.backup()
    sessions.assert_all_readable()


# --- reading files --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(is_root(), reason="root may read everything")
def test_a_file_that_must_not_be_read(sessions: Sessions) -> None:
    build(sessions.source, TREE)
    (sessions.source / "a").chmod(0)
    (sessions.source / "d/y").chmod(0)
    reported: list[HistfsError] = []
    outcome = backup(sessions.source, sessions.repository, now=FIRST, report=reported.append)
    assert (outcome.source_errors, outcome.source_warnings) == (2, 0)
    assert [error.path for error in reported] == [b"a", b"d/y"]
    (sessions.source / "d/y").chmod(0o700)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _shrink(path: Path) -> None:
    os.truncate(path, 1)


def _rewrite(path: Path) -> None:
    """The same size, another time."""
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(1, 1))


def _remove(path: Path) -> None:
    path.unlink()


def _replace_by_file(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(data)


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


BEFORE_OPENING = [_grow, _shrink, _rewrite, _remove, _replace_by_file, _replace_by_fifo, _replace_by_link]
BEFORE_OPENING += [_replace_by_directory]


@pytest.mark.parametrize("happens", BEFORE_OPENING, ids=lambda action: action.__name__)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
def test_a_file_that_changes_before_it_is_opened(
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], None],
    is_known: bool,
    one_by_one: None,
) -> None:
    build(sessions.source, Dir({"b": File(b"b")}))
    if is_known:
        (sessions.source / "a").write_bytes(b"version 1")
    sessions.backup()
    (sessions.source / "a").write_bytes(b"version 2, longer")
    real = Source.open_file

    def open_file(source: Source, found: Found) -> int:
        happens(sessions.source / "a")
        return real(source, found)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "open_file", open_file)
        assert run(sessions) == (0, 1, [(b"a", EXIT_FILE_WARNING)])
    _assert_kept(sessions, is_known)


@pytest.mark.parametrize("happens", [_grow, _shrink, _rewrite], ids=lambda action: action.__name__)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("reads", ["read", "read_into"])
def test_a_file_that_changes_while_it_is_read(
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], None],
    is_known: bool,
    reads: str,
    one_by_one: None,
) -> None:
    build(sessions.source, Dir({"b": File(b"b")}))
    if is_known:
        (sessions.source / "a").write_bytes(b"version 1")
    sessions.backup()
    (sessions.source / "a").write_bytes(random.Random(1).randbytes(600_000))
    real: Callable[..., Iterator[Block]] = getattr(Source, reads)

    def read(*arguments: Any) -> Iterator[Block]:
        blocks = real(*arguments)
        yield next(blocks)
        happens(sessions.source / "a")
        yield from blocks

    with monkeypatch.context() as patch:
        patch.setattr(growing, "CHUNK_BYTES", 256 << 10)
        # Where files are not written directly, it is only pretended.
        patch.setattr(copying, "try_direct", lambda _fd: reads == "read_into")
        patch.setattr(Source, reads, read)
        assert run(sessions) == (0, 1, [(b"a", EXIT_FILE_WARNING)])
    _assert_kept(sessions, is_known)


def _assert_kept(sessions: Sessions, is_known: bool) -> None:
    """What was known is as it was; nothing half is left in the mirror; the next session sees what is there now."""
    if is_known:
        assert sessions.content(b"a", sessions.now) == b"version 1"
        assert (sessions.repository / "a").read_bytes() == b"version 1"
    else:
        assert b"a" not in sessions.manifest(sessions.now)
        assert not (sessions.repository / "a").exists()
    assert sessions.increments() == set()
    names = [name for name in os.listdir(sessions.repository) if name.startswith("rdiff-backup.tmp")]
    assert names == []
    assert sessions.verify(sessions.now).mismatched == 0
    sessions.states.popitem()
    sessions.backup()
    sessions.assert_readable(sessions.now)
    sessions.assert_mirror_is(sessions.now)


def test_an_error_while_a_file_is_read(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    (sessions.source / "d/x").write_bytes(b"changed")

    class Os:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def read(self, _fd: int, _size: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(source_module, "os", Os())
        assert run(sessions) == (1, 0, [(b"d/x", EXIT_FILE_ERROR)])
    assert open_descriptors() == before
    assert sessions.content(b"d/x", sessions.now) == b"x"


def test_a_kept_directory_that_became_a_file_keeps_what_was_in_it(
    sessions: Sessions, failing: Callable[[str, bytes, OSError], None]
) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    (sessions.source / "d").rename(sessions.source.with_name("d"))
    (sessions.source / "d").write_bytes(b"a file now")
    failing("open_file", b"d", DENIED)
    assert run(sessions) == (1, 0, [(b"d", EXIT_FILE_ERROR)])
    assert sessions.content(b"d/y/z", sessions.now) == b"z"
    sessions.assert_readable(FIRST)
    assert sessions.verify(sessions.now).mismatched == 0


@pytest.mark.parametrize("lost", [b"a", b"b", b"c"])
def test_a_link_that_cannot_be_looked_at(
    sessions: Sessions, failing: Callable[[str, bytes, OSError], None], lost: bytes
) -> None:
    """Its numbers are of another time: it is a file of its own until it can be read again."""
    build(sessions.source, Dir({"a": File(b"linked"), "b": Link("a"), "c": Link("a")}))
    sessions.backup()
    with pytest.MonkeyPatch.context() as patch:
        real = Walk.look

        def look(walk: Walk) -> object:
            if walk.path == lost:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(walk)

        (sessions.source / "a").write_bytes(b"linked and changed")
        patch.setattr(Walk, "look", look)
        assert run(sessions) == (1, 0, [(lost, EXIT_FILE_ERROR)])
    for path in (b"a", b"b", b"c"):
        assert sessions.content(path, sessions.now) == (b"linked" if path == lost else b"linked and changed")
        assert sessions.content(path, FIRST) == b"linked"
    assert sessions.node(lost).nlink == 1
    assert sessions.verify(sessions.now)[1:] == (0, 0)
    sessions.states.popitem()
    sessions.backup()
    sessions.assert_readable(sessions.now)
    sessions.assert_mirror_is(sessions.now)


# --- source and repository ------------------------------------------------------------------------------------------


def test_the_repository_in_the_source_is_left_out(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    build(sessions.source, TREE)
    sessions.repository = sessions.source / "d/repository"
    for _ in range(2):
        assert run(sessions)[:2] == (0, 0)
        assert [type(error) for error in sessions.reported] == [UsageError]
        assert b"d/repository" not in sessions.manifest(sessions.now)
        assert b"d/y/z" in sessions.manifest(sessions.now)


def test_the_repository_under_another_name_in_the_source_is_left_out(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    build(sessions.source, TREE)
    (sessions.source / "real").mkdir()
    sessions.repository.symlink_to(sessions.source / "real")
    run(sessions)
    assert b"real" not in sessions.manifest(sessions.now)


def test_a_source_in_the_repository_is_refused(sessions: Sessions) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    for source in (sessions.repository, sessions.repository / "d", sessions.data):
        sessions.source = source
        with pytest.raises(UsageError, match="lies in the repository"):
            sessions.backup()
    (sessions.repository.with_name("link")).symlink_to(sessions.repository / "d")
    sessions.source = sessions.repository.with_name("link")
    with pytest.raises(UsageError):
        sessions.backup()


@pytest.mark.usefixtures("other_file_systems")
@pytest.mark.parametrize("of", ["repository", "repository/d", "repository/rdiff-backup-data", "."])
def test_a_source_in_the_repository_is_known_where_it_is_mounted_again(
    sessions: Sessions, tmp_path: Path, of: str
) -> None:
    """The repository that is mounted again with all around it is left out, as by any other path."""
    build(sessions.source, TREE)
    sessions.backup()
    before = read(sessions.repository)
    again = tmp_path.with_name(f"{tmp_path.name}-again")
    again.mkdir()
    command = shlex.join(map(str, [sys.executable, "-m", "histfs", "backup", again, sessions.repository]))
    script = f"mount --bind {tmp_path / of} {again} && {command}"
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if of == ".":
        assert "is the repository itself, and is left out" in ran.stderr, ran
        assert sorted(path.name for path in sessions.repository.iterdir()) == [sessions.data.name, "source"]
    else:
        assert (ran.returncode, ran.stderr.count("the source lies in the repository")) == (1, 1), ran
        assert read(sessions.repository) == before


def test_names_of_owners_are_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other programs drop records with more (docs/format.md 8.3)."""

    status = os.stat(tmp_path)
    names = {"jürgen": None, "": None, ":": None, "a\nb": None, "with blank": b"with blank"}
    for uid, (name, expected) in enumerate(names.items(), 3_000_000):  # names are remembered by number
        record = pwd.struct_passwd((name, "x", 0, 0, "", "", ""))
        monkeypatch.setattr(pwd, "getpwuid", lambda _uid, record=record: record)
        changed = os.stat_result((*status[:4], uid, *status[5:]), {"st_mtime_ns": 0})
        assert entry_of(b"x", changed).uname == expected


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "problem", "if_new", "if_old"),
    [
        ("open_file", b"a", "cannot be read", "it is not in the backup", "its last version in the backup is kept"),
        ("stat", b"a", "cannot be looked at", "it is not in the backup", "its last version in the backup is kept"),
        (
            *("names", b"d", "the directory cannot be listed"),
            *("nothing that lies in it is in the backup", "its last version in the backup is kept"),
        ),
    ],
)
def test_errors_say_what_they_mean_for_the_backup(
    sessions: Sessions,
    failing: Callable[[str, bytes, OSError], None],
    is_new: bool,
    method: str,
    path: bytes,
    problem: str,
    if_new: str,
    if_old: str,
) -> None:
    build(sessions.source, TREE)
    if not is_new:
        sessions.backup()
        (sessions.source / "a").write_bytes(b"other content")
        (sessions.source / "d/new").touch()
    failing(method, path, DENIED)
    run(sessions)
    (error,) = sessions.reported
    meaning = if_new if is_new else if_old
    assert str(error) == f"{path.decode()}: {problem} (Permission denied); {meaning}"
