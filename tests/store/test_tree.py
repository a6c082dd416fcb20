"""Reading a tree that nothing leaves: components, links, types, kept descriptors."""

import errno
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.store import tree as tree_module
from histfs.store.files import WritableTree
from histfs.store.tree import BLOCK_SIZE, NotRegularError, Tree, file_blocks, read_at
from tests.store.places import make_deep, open_descriptors

_OUTSIDE = (
    b"a/b//c/d/e/f/g",
    b"a//b/c/d/e",
    b"a/b/c/d/../e/f/g",
    b"/a/b/c/d/e/f",
    b"..",
    b".",
    b"../x",
    b"a/../b",
    b"a/./b",
    b"a//b",
    b"/etc/passwd",
    b"a/",
    b"a\0b",
    b"a\0/b",
    b"/",
    b"a/..",
)


@pytest.fixture(params=["keeps none", "keeps two", "a kernel without openat2"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    root = tmp_path / "root"
    (root / "a/b/c/d/e/f/g").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"secret")
    if request.param == "a kernel without openat2":
        monkeypatch.setattr(tree_module, "_OPENAT2", -1)  # ENOSYS
    with Tree.open(root, cached_directories=2 * (request.param == "keeps two")) as tree:
        yield tree


def test_reads_below_its_root(tree: Tree) -> None:
    assert tree.read_small_file(b"a/b/file") == b"inside"
    assert tree.names(b"a/b/c") == [b"d"]
    assert tree.names(b"") == [b"a"]
    assert tree.stat(b"a/b/file").st_size == 6
    assert tree.exists(b"a/b")
    assert not tree.exists(b"a/none")
    assert not tree.exists(b"a/b/file/below")


@pytest.mark.parametrize("path", _OUTSIDE)
def test_a_path_that_is_not_inside_is_refused(tree: Tree, path: bytes) -> None:
    for use in (tree.stat, tree.readlink, tree.open_file, tree.open_directory, tree.names):
        with pytest.raises(OSError) as caught:
            use(path)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.filename == path


@pytest.mark.parametrize("target", ["../outside", "/", "b", "."])
def test_a_link_is_never_followed(tree: Tree, tmp_path: Path, target: str) -> None:
    (tmp_path / "root/a/link").symlink_to(target)
    for use in (tree.open_file, tree.open_directory, tree.names):
        with pytest.raises(OSError) as caught:
            use(b"a/link")
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL)
    for use in (tree.stat, tree.open_file, tree.open_directory, tree.names, tree.readlink):
        with pytest.raises(NotADirectoryError):
            use(b"a/link/file")
    assert tree.readlink(b"a/link") == os.fsencode(target)


@pytest.mark.parametrize("what", ["link", "socket"])
def test_what_takes_the_name_of_a_file_is_not_opened(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the look at the type and the opening."""
    regular = os.stat(tmp_path / "outside/file")
    if what == "link":
        (tmp_path / "root/x").symlink_to("../outside/file")
    else:
        os.mknod(tmp_path / "root/x", 0o140600)
    monkeypatch.setattr(os, "stat", lambda *_args, **_options: regular)
    with pytest.raises(NotRegularError) as caught:
        tree.open_file(b"x")
    assert caught.value.filename == b"x"


def test_a_fifo_does_not_block(tree: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root/fifo")
    signal.alarm(5)
    try:
        with pytest.raises(NotRegularError) as caught:
            tree.open_file(b"fifo")
    finally:
        signal.alarm(0)
    assert caught.value.filename == b"fifo"


def test_a_fifo_that_takes_the_name_of_a_file_does_not_block(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.stat(tmp_path / "outside/file")
    os.mkfifo(tmp_path / "root/fifo")
    before = open_descriptors()
    signal.alarm(5)
    monkeypatch.setattr(os, "stat", lambda *_args, **_options: regular)
    try:
        with pytest.raises(NotRegularError):
            tree.open_file(b"fifo")
    finally:
        signal.alarm(0)
    assert open_descriptors() == before


def test_devices_and_sockets_are_not_opened(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("root/socket")
    names = [b"socket", b"a"]
    if os.geteuid() == 0:
        os.mknod(tmp_path / "root/device", 0o020600, os.makedev(5, 0))
        names.append(b"device")
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(path) or real(path, *rest, **more))
    for name in names:
        with pytest.raises(NotRegularError):
            tree.open_file(name)
    assert opened == []


def test_small_files_only(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "root/large").write_bytes(bytes(100))
    assert tree.read_small_file(b"large", limit=100) == bytes(100)
    with pytest.raises(OSError) as caught:
        tree.read_small_file(b"large", limit=99)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, b"large")


def test_errors_carry_the_whole_path(tree: Tree) -> None:
    for use in (tree.stat, tree.open_file, tree.names, tree.readlink):
        with pytest.raises(FileNotFoundError) as caught:
            use(b"a/none/file")
        assert caught.value.filename == b"a/none/file"


def test_names_can_be_any_bytes(tree: Tree, tmp_path: Path) -> None:
    name = b"\xff\n \\"
    with open(os.fsencode(tmp_path / "root/a") + b"/" + name, "wb") as file:
        file.write(b"odd")
    assert set(tree.names(b"a")) == {b"b", name}
    assert tree.read_small_file(b"a/" + name) == b"odd"


def test_without_kept_descriptors_the_newest_directory_counts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with Tree.open(tmp_path) as tree:
        assert not tree.exists(b"d/file")
        (tmp_path / "d").rename(tmp_path / "old")
        (tmp_path / "d").mkdir()
        (tmp_path / "d/file").touch()
        assert tree.exists(b"d/file")


def test_kept_descriptors_are_bounded_and_can_be_forgotten(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"d{number}/e").mkdir(parents=True)
        (tmp_path / f"d{number}/e/file").touch()
    before = open_descriptors()
    tree = Tree.open(tmp_path, cached_directories=4)
    for number in [*range(10), 3, 9, 0]:
        assert tree.exists(b"d%d/e/file" % number)
        assert len(open_descriptors() - before) <= 1 + 4
    (tmp_path / "d0").rename(tmp_path / "moved")
    (tmp_path / "d0/e").mkdir(parents=True)
    assert tree.exists(b"d0/e/file")  # it goes on meaning the old one
    tree.forget_directories(b"d0")
    assert not tree.exists(b"d0/e/file")
    assert tree.exists(b"d9/e/file")
    tree.close()
    tree.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("capacity", [2, 3, 4, 7, 64])
def test_a_descriptor_in_use_is_not_closed(deep: Path, capacity: int) -> None:
    """Two paths at a time, as a rename needs them, wherever they lie."""
    make_deep(deep, 40, b"d")
    make_deep(deep, 40, b"e")
    for top in (deep / "d", deep / "e"):
        for depth in range(40):
            (top / ("/".join([top.name] * depth)) / "file").write_text(f"{top.name}{depth}")
    chance = random.Random(capacity)
    before = open_descriptors()
    with WritableTree.open(deep, cached_directories=capacity) as tree:
        for _ in range(300):
            paths = [b"/".join([chance.choice((b"d", b"e"))] * chance.randrange(1, 41)) + b"/file" for _ in range(2)]
            with tree._at(paths[0]) as (first, _), tree._at(paths[1]) as (second, _):
                for fd, path in zip((first, second), paths, strict=True):
                    with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
                        assert file.read() == f"{path[:1].decode()}{path.count(b'/') - 1}"
            assert len(open_descriptors() - before) <= capacity + 1
    assert open_descriptors() == before


def test_a_missing_step_leaves_nothing_open(deep: Path) -> None:
    path = make_deep(deep, 30, b"d")
    before = open_descriptors()
    with Tree.open(deep, cached_directories=4) as tree:
        for _ in range(2):
            assert not tree.exists(path + b"/no/such/file")
            assert not tree.exists(b"no/such/file/as/this/one/here")
        assert len(open_descriptors() - before) <= 5
    assert open_descriptors() == before


def test_forgetting_a_directory_leaves_those_with_a_longer_name(tmp_path: Path) -> None:
    for name in ("d", "d2", "d/e"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with Tree.open(tmp_path, cached_directories=8) as tree:
        for path in (b"d/file", b"d2/file", b"d/e/file"):
            assert tree.exists(path)
        before = len(open_descriptors())
        tree.forget_directories(b"d")
        assert len(open_descriptors()) == before - 2


def test_errors_leave_no_descriptor_open(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "root/a/link").symlink_to("b")
    tree.exists(b"a/b/file")
    before = open_descriptors()
    for path in (*_OUTSIDE, b"a/none", b"a/none/x", b"a/link", b"a/link/x", b"a/b/file/x"):
        for use in (tree.stat, tree.open_file, tree.names, tree.readlink):
            if (use, path) != (tree.stat, b"a/link") and (use, path) != (tree.readlink, b"a/link"):
                with pytest.raises(OSError):
                    use(path)
    assert len(open_descriptors()) <= len(before) + 2


def test_deep_paths_need_no_depth_of_stack_or_descriptors(deep: Path) -> None:
    """The path is longer than any that open(2) takes."""
    path = make_deep(deep, 2000)
    for kept in (0, 16):
        before = open_descriptors()
        with Tree.open(deep, cached_directories=kept) as tree:
            assert tree.names(path) == []
            assert tree.exists(path)
            assert len(open_descriptors() - before) <= 1 + kept


def test_blocks_end_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(BLOCK_SIZE + 10))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert [len(block) for block in file_blocks(fd)] == [BLOCK_SIZE, 10]
        os.lseek(fd, 4, os.SEEK_SET)
        assert [len(block) for block in file_blocks(fd, 5)] == [5]
        assert list(file_blocks(fd, 0)) == []
    finally:
        os.close(fd)


def test_the_root_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    with Tree.open(tmp_path / "link") as tree:
        assert tree.read_small_file(b"file") == b"x"


def test_directories_are_opened_below_the_root_only(tree: Tree, tmp_path: Path) -> None:
    before = open_descriptors()
    with tree.directories(b"a/b", b"") as opened:
        names = [sorted(os.listdir(f"/proc/self/fd/{fd}")) for fd in opened]
    assert names == [sorted(os.listdir(tmp_path / "root/a/b")), sorted(os.listdir(tmp_path / "root"))]
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    for directory in (b"link", b"../outside", b"none", b"a/b/file"):
        with pytest.raises(OSError), tree.directories(b"a", directory):
            pass
    assert open_descriptors() == before


def test_what_is_read_at_a_place_is_complete_where_each_read_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    with open(tmp_path / "file", "rb") as file:
        assert read_at(file.fileno(), 50, 10) == bytes(range(10, 60))
        assert read_at(file.fileno(), 50, 80) == bytes(range(80, 100))
        assert read_at(file.fileno(), 50, 100) == b""
