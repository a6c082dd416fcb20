"""Changing a tree: nothing outside, nothing visible too early, owners before modes, errors that surface."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histfs.store import files
from histfs.store.entry import Entry, Kind
from histfs.store.files import Attributes, WritableTree, write_blocks
from tests.store.places import is_root, make_deep, open_descriptors

needs_root = pytest.mark.skipif(not is_root(), reason="only root gives files away")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WritableTree]:
    (tmp_path / "root/d").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    with WritableTree.open(tmp_path / "root") as tree:
        yield tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions of `os` that histfs.store.files calls."""
    found: list[str] = []

    class Os:
        def __getattr__(self, name: str) -> Any:
            value = getattr(os, name)
            if not callable(value) or name == "fspath":
                return value
            return lambda *args, **options: found.append(name) or value(*args, **options)

    monkeypatch.setattr(files, "os", Os())
    return found


# --- creating -------------------------------------------------------------------------------------------------------


def test_new_files_are_private_whatever_the_umask(tree: WritableTree, root: Path) -> None:
    old = os.umask(0)
    try:
        os.close(tree.create_file(b"file"))
        tree.make_directory(b"directory")
        tree.make_special(b"fifo", Entry(b"fifo", Kind.FIFO, mode=0o666))
        os.close(tree.open_lock_file(b"lock"))
        with WritableTree.create(root / "new"):
            pass
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((root / name).lstat().st_mode) for name in os.listdir(root) if name != "d"}
    assert modes == {"file": 0o600, "directory": 0o700, "fifo": 0o600, "lock": 0o600, "new": 0o700}


@pytest.mark.parametrize("name", [b"taken", b"link", b"d"])
def test_a_name_is_taken_only_once(tree: WritableTree, root: Path, name: bytes) -> None:
    (root / "taken").write_text("keep")
    (root / "link").symlink_to("../outside/file")
    for make in (
        lambda: tree.create_file(name),
        lambda: tree.write_file(name, [b"x"]),
        lambda: tree.make_directory(name),
        lambda: tree.make_symlink(name, b"x"),
        lambda: tree.make_special(name, Entry(b"", Kind.FIFO)),
        lambda: tree.link(b"taken", name),
    ):
        with pytest.raises(FileExistsError) as caught:
            make()
        assert caught.value.filename == name
    assert (root / "taken").read_text() == "keep"
    assert not (root / "../outside/file").exists()


@pytest.mark.parametrize("path", [b"../x", b"/x", b"link/x", b"a\0b", b"", b".", b"d/..", b"d/../x"])
def test_nothing_is_changed_outside(tree: WritableTree, root: Path, path: bytes) -> None:
    (root / "link").symlink_to("../outside")
    (root / "file").touch()
    (root / "../outside/x").write_text("keep")
    (root / "../x").write_text("keep")
    changes = [
        lambda: tree.create_file(path),
        lambda: tree.make_directory(path),
        lambda: tree.make_symlink(path, b"x"),
        lambda: tree.make_special(path, Entry(b"", Kind.FIFO)),
        lambda: tree.link(b"file", path),
        lambda: tree.link(path, b"new"),
        lambda: tree.rename(b"file", path),
        lambda: tree.rename(path, b"new"),
        lambda: tree.unlink(path),
        lambda: tree.remove_directory(path),
        lambda: tree.open_lock_file(path),
    ]
    if path:
        changes.append(lambda: tree.set_attributes(path, Kind.REGULAR, Attributes(0, 0, 0, 0)))
    for change in changes:
        with pytest.raises(OSError):
            change()
    assert (root / "../outside/x").read_text() == "keep"
    assert (root / "../x").read_text() == "keep"
    assert (root / "file").exists()
    assert os.listdir(root / "../outside") == ["x"]


def test_directories_that_are_missing_are_made(tree: WritableTree, root: Path) -> None:
    tree.make_directories(b"d/e/f")
    tree.make_directories(b"d/e/f")
    tree.make_directories(b"")
    assert (root / "d/e/f").is_dir()
    (root / "d/file").touch()
    with pytest.raises(FileExistsError):
        tree.make_directories(b"d/file")
    with pytest.raises(NotADirectoryError):
        tree.make_directories(b"d/file/x")


def test_many_missing_directories_need_no_depth_of_stack(deep: Path) -> None:
    with WritableTree.open(deep) as tree:
        path = b"/".join([b"x"] * 1100)
        tree.make_directories(path)
        assert tree.names(path) == []


def test_a_repository_is_made_below_an_existing_directory_only(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WritableTree.create(tmp_path / "no/repository")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        WritableTree.create(tmp_path / "file")


def test_what_was_written_before_an_error_is_reported_by_its_path(
    tree: WritableTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert not tree.exists(b"d/file")  # which keeps the directory open
    before = open_descriptors()
    monkeypatch.setattr(files, "_write_all", full)
    with pytest.raises(OSError) as caught:
        tree.write_file(b"d/file", [b"x"])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, b"d/file")
    assert open_descriptors() == before


# --- attributes -----------------------------------------------------------------------------------------------------


@needs_root
def test_the_owner_is_set_before_the_mode(tree: WritableTree, root: Path, calls: list[str]) -> None:
    """chown(2) clears setuid; and a setuid file must not be ours for a moment."""
    fd = tree.create_file(b"file")
    tree.set_file_attributes(fd, Attributes(0o6755, 1234, 4321, 5))
    os.close(fd)
    status = (root / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns) == (0o6755, 1234, 4321, 5)
    changes = [name for name in calls if name in ("chown", "chmod", "utime")]
    assert changes == ["chown", "chmod", "utime"]


def test_without_the_owner_there_is_no_setuid(tree: WritableTree, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chown", refuse)
    tree.write_file(b"file", [])
    tree.set_attributes(b"file", Kind.REGULAR, Attributes(0o6755, os.geteuid() + 1, os.getegid(), 0))
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o755
    tree.set_attributes(b"d", Kind.DIRECTORY, Attributes(0o3775, os.geteuid() + 1, os.getegid(), 0))
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o1775


def test_our_own_files_keep_setuid(tree: WritableTree, root: Path) -> None:
    tree.write_file(b"file", [])
    tree.set_attributes(b"file", Kind.REGULAR, Attributes(0o4755, os.geteuid(), os.getegid(), 0))
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o4755


@pytest.mark.parametrize("problem", [errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_owners_is_noticed(
    tree: WritableTree, root: Path, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    """Some network file systems refuse root, too, and some containers do not know every number."""

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(os, "chown", refuse)
    tree.write_file(b"file", [])
    tree.set_attributes(b"file", Kind.REGULAR, Attributes(0o755, os.geteuid(), os.getegid(), 0))
    assert not tree.owners_were_refused
    tree.set_attributes(b"file", Kind.REGULAR, Attributes(0o711, os.geteuid() + 1, os.getegid(), 0))
    assert tree.owners_were_refused
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o711


def test_other_trouble_with_owners_is_trouble(tree: WritableTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "chown", fail)
    tree.write_file(b"file", [])
    with pytest.raises(OSError):
        tree.set_attributes(b"file", Kind.REGULAR, Attributes(0o755, os.geteuid() + 1, 0, 0))


def test_attributes_of_every_kind(tree: WritableTree, root: Path) -> None:
    owner = (1234, 4321) if is_root() else (os.geteuid(), os.getegid())
    tree.make_symlink(b"link", b"nowhere")
    tree.make_special(b"fifo", Entry(b"", Kind.FIFO))
    tree.make_special(b"socket", Entry(b"", Kind.SOCKET))
    for path, kind in ((b"link", Kind.SYMLINK), (b"fifo", Kind.FIFO), (b"socket", Kind.SOCKET), (b"d", Kind.DIRECTORY)):
        tree.set_attributes(path, kind, Attributes(0o1711, *owner, 10**18 + 1))
        status = (root / os.fsdecode(path)).lstat()
        assert (status.st_uid, status.st_gid) == owner
        if kind is not Kind.SYMLINK:
            assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o1711, 10**18 + 1)
    tree.set_attributes(b"", Kind.DIRECTORY, Attributes(0o750, *owner, 7))
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_mtime_ns) == (0o750, 7)


def test_the_target_of_a_link_keeps_its_attributes(tree: WritableTree, root: Path) -> None:
    target = root / "../outside/file"
    target.write_text("keep")
    before = target.stat()
    (root / "link").symlink_to("../outside/file")
    tree.set_attributes(b"link", Kind.SYMLINK, Attributes(0o600, os.geteuid(), os.getegid(), 1))
    with pytest.raises(OSError) as caught:
        tree.set_attributes(b"link", Kind.REGULAR, Attributes(0o600, os.geteuid(), os.getegid(), 1))
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, b"link")
    assert target.stat() == before


def test_no_time_leaves_the_time(tree: WritableTree, root: Path) -> None:
    os.utime(root / "d", ns=(3, 3))
    tree.set_attributes(b"d", Kind.DIRECTORY, Attributes(0o700, os.geteuid(), os.getegid(), None))
    assert (root / "d").stat().st_mtime_ns == 3


# --- replacing and removing -----------------------------------------------------------------------------------------


def test_rename_replaces(tree: WritableTree, root: Path) -> None:
    tree.write_file(b"new", [b"new"])
    tree.write_file(b"d/old", [b"old"])
    tree.rename(b"new", b"d/old")
    assert (root / "d/old").read_bytes() == b"new"
    assert not (root / "new").exists()


def test_rename_of_two_links_of_one_file_leaves_one(tree: WritableTree, root: Path) -> None:
    """rename(2) does nothing then."""
    tree.write_file(b"file", [b"x"])
    tree.link(b"file", b"d/link")
    tree.rename(b"file", b"d/link")
    assert (root / "d/link").read_bytes() == b"x"
    assert os.listdir(root) == ["d"]


def test_a_link_to_a_link_links_the_link(tree: WritableTree, root: Path) -> None:
    (root / "link").symlink_to("../outside/file")
    (root / "../outside/file").touch()
    tree.link(b"link", b"other")
    assert (root / "other").is_symlink()
    assert (root / "../outside/file").stat().st_nlink == 1


def test_unlink(tree: WritableTree, root: Path) -> None:
    tree.write_file(b"file", [])
    tree.unlink(b"file")
    tree.unlink(b"file", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        tree.unlink(b"file")
    assert not (root / "file").exists()


def test_remove_tree(tree: WritableTree, root: Path) -> None:
    for name in ("d/e/f", "d/e/g"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    (root / "../outside/file").write_text("keep")
    (root / "d/e/out").symlink_to("../../../outside")
    os.mkfifo(root / "d/e/f/fifo")
    tree.remove_tree(b"d")
    tree.remove_tree(b"d")
    assert os.listdir(root) == []
    assert (root / "../outside/file").read_text() == "keep"
    (root / "link").symlink_to("../outside")
    tree.remove_tree(b"link")
    assert (root / "../outside/file").exists()


def test_remove_tree_needs_no_depth_of_stack(deep: Path) -> None:
    make_deep(deep, 1100)
    with WritableTree.open(deep) as tree:
        tree.remove_tree(b"a-name")
        assert tree.names(b"") == []


def test_a_directory_that_was_removed_and_made_again_is_the_new_one(tree: WritableTree, root: Path) -> None:
    tree.write_file(b"d/file", [])
    tree.remove_tree(b"d")
    tree.make_directory(b"d")
    tree.write_file(b"d/file", [b"new"])
    assert (root / "d/file").read_bytes() == b"new"
    tree.remove_tree(b"d")
    tree.write_file(b"d", [b"a file now"])
    with pytest.raises(NotADirectoryError):
        tree.write_file(b"d/file", [])


# --- durability -----------------------------------------------------------------------------------------------------


def test_a_failed_sync_surfaces(tree: WritableTree, real_sync: None) -> None:
    tree.sync()

    def fail(_fd: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    tree._libc = SimpleNamespace(syncfs=fail)  # type: ignore[assignment] # the kernel does not fail on demand
    with pytest.raises(OSError) as caught:
        tree.sync()
    assert caught.value.errno == errno.EIO


def test_a_failed_fsync_surfaces_and_is_not_repeated(tree: WritableTree, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fail(fd: int) -> None:
        synced.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    before = open_descriptors()
    with pytest.raises(OSError) as caught:
        tree.write_file(b"file", [b"x"], durable=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, b"file")
    with pytest.raises(OSError):
        tree.sync_directory(b"d")
    assert len(synced) == 2
    assert open_descriptors() == before


def test_durable_files_and_directories_are_synced(tree: WritableTree, calls: list[str]) -> None:
    tree.write_file(b"file", [b"x"])
    assert "fsync" not in calls
    tree.write_file(b"d/file", [b"x"], durable=True)
    assert calls.count("fsync") == 1
    tree.sync_directory(b"d")
    assert calls.count("fsync") == 2


# --- blocks ---------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, blocks: list[bytes], *, sparse: bool) -> tuple[int, Path]:
    path = tmp_path / "written"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return write_blocks(fd, blocks, sparse=sparse), path
    finally:
        os.close(fd)


_ZEROS = bytes(256 * 1024)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [b""],
        [b"text"],
        [b"text", b""],
        [_ZEROS],
        [_ZEROS, b""],
        [b"text", _ZEROS],
        [_ZEROS, b"text"],
        [_ZEROS, b"", b"text", _ZEROS, _ZEROS[:5]],
        [_ZEROS[:-1] + b"x"],
        [b"\0"],
        [_ZEROS[: 128 * 1024] + b"x"],
    ],
    ids=range(12),
)
def test_blocks_are_written_as_they_are(tmp_path: Path, blocks: list[bytes], sparse: bool) -> None:
    size, path = written(tmp_path, blocks, sparse=sparse)
    assert path.read_bytes() == b"".join(blocks)
    assert size == path.stat().st_size


def test_zeros_become_holes_where_that_is_asked_for(tmp_path: Path) -> None:
    blocks = [b"x" * 4096, *[_ZEROS] * 8, b"y" * 4096, *[_ZEROS] * 8]
    _, path = written(tmp_path, blocks, sparse=True)
    if path.stat().st_blocks * 512 > 3 * len(_ZEROS):
        pytest.skip("the file system has no holes")
    assert path.stat().st_size == 16 * len(_ZEROS) + 8192
    _, path = written(tmp_path, blocks, sparse=False)
    assert path.stat().st_blocks * 512 >= 16 * len(_ZEROS)


def test_a_write_that_takes_less_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[: max(1, len(data) // 3)]))
    data = os.urandom(10_000)
    size, path = written(tmp_path, [data, b"end"], sparse=False)
    assert size == 10_003
    assert path.read_bytes() == data + b"end"


def test_a_barrier_waits_for_each_file_system(other_file_systems: None, tmp_path: Path) -> None:
    command = ["unshare", "-m", sys.executable, "-m", "tests.store.on_two", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
