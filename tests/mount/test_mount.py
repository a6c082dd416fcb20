"""A real mount in the process of the tests: what programs see, and what the kernel asks.

The mount is touched in threads and child processes only: in the thread of the event loop a test would wait for itself.
"""

import ctypes
import errno
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from functools import partial
from pathlib import Path

import pytest
import trio

from histfs.errors import DamagedError, MountError, UsageError
from histfs.fs import Operations
from histfs.fuse import is_by_inode, pyfuse3
from histfs.mount import place, session
from histfs.store.entry import Entry, Kind
from histfs.vfs import History
from tests.mount import system_calls
from tests.mount.fake_repository import FakeRepository
from tests.trees import Device, Dir, Fifo, File, Link, Socket, Symlink, compare

FIRST, SECOND = 1_714_557_600, 1_714_644_000
FIRST_NAME, SECOND_NAME = "@2024-05-01T10:00", "@2024-05-02T10:00"
OPTIONS = {"ro", "nosuid", "nodev", "fsname=histfs:test", "subtype=histfs"}
AWKWARD = [b"-x", b" ", b"\n", b"\x1b[31m", b"\xff\xfe", b"n" * 255, "ü".encode(), b"\\040", b"*?["]

pytestmark = pytest.mark.usefixtures("nothing_is_small")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


async def until(condition):
    """Waits for what happens outside of trio."""
    with trio.fail_after(10):
        while not await in_thread(condition):  # noqa: ASYNC110 - the kernel sets no Event
            await trio.sleep(0.01)


def in_thread(function, *args, **kwargs):
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


class CountingOperations(Operations):
    """Counts what the kernel asks, by handler."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = Counter()

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if hasattr(found, "__wrapped__") and not name.startswith("_") and name not in ("look", "update"):
            self.asked[name] += 1
        return found


@asynccontextmanager
async def mounted(repository, mountpoint, options=OPTIONS):
    """Mounts; yields the operations; unmounts."""
    if not isinstance(repository, FakeRepository):
        repository = FakeRepository(repository)
    history = History(repository, repository.open_catalog, UTC, owner=(os.geteuid(), os.getegid()))
    history.refresh()
    operations = CountingOperations(history, repository.path)
    ready, ended = trio.Event(), trio.Event()

    async def serve():
        try:
            await session.serve(operations, mountpoint, options, ready.set)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await ready.wait()
        if repository.catalog_gate.is_set():
            await operations.update()
        operations.asked.clear()
        try:
            yield operations
        finally:
            if not ended.is_set():  # without a session terminate crashes
                pyfuse3.terminate()
    operations.close()
    history.close()
    assert +repository.open_now == {}


def everything(mtime=1_690_000_000):
    """A tree with every type; devices need root."""
    devices = {"char": Device("c", 1, 3), "block": Device("b", 8, 300)} if os.geteuid() == 0 else {}
    return Dir(
        {
            "a": File(b"x" * 100_000, mode=0o4755, mtime=5),
            "b": Link("a"),
            "d": Dir({"empty": File(), "z": Link("a"), "deep": Dir({"er": Dir({"f": File(b"f")})})}, mode=0o700),
            "fifo": Fifo(),
            "link": Symlink("d/empty"),
            "long link": Symlink("x" * 4_000),
            "old": File(b"old", mtime=-1_000_000),
            "sock": Socket(),
            **devices,
            **{os.fsdecode(name): File(name) for name in AWKWARD},
        },
        mtime=mtime,
    )


# What programs see


async def test_a_snapshot_is_the_tree_that_was(mountpoint):
    async with mounted({FIRST: everything(mtime=FIRST), SECOND: Dir({}, mtime=SECOND)}, mountpoint):
        assert await in_thread(os.listdir, mountpoint) == [FIRST_NAME, SECOND_NAME]
        assert await in_thread(compare, mountpoint / FIRST_NAME, everything(mtime=FIRST)) == []
        assert await in_thread(compare, mountpoint / SECOND_NAME, Dir({}, mtime=SECOND)) == []


@pytest.mark.parametrize(
    "command",
    [
        ["cp", "-a", "{snapshot}", "{copy}"],
        ["sh", "-c", 'mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xpf -', "", "{snapshot}", "{copy}"],
        ["rsync", "-aHAX", "{snapshot}/", "{copy}"],
    ],
    ids=["cp", "tar", "rsync"],
)
async def test_tools_copy_it(mountpoint, tmp_path, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    entries = {name: node for name, node in everything().entries.items() if name != "sock"}  # tar leaves sockets out
    tree = Dir(entries, mtime=FIRST)
    async with mounted({FIRST: tree}, mountpoint):
        words = {"snapshot": mountpoint / FIRST_NAME, "copy": tmp_path / "copy"}
        filled = [word.format(**words) for word in command]
        await trio.run_process(filled, capture_stdout=True, capture_stderr=True)
    assert compare(tmp_path / "copy", tree) == []


async def test_diff_find_and_du(mountpoint):
    trees = {FIRST: everything(), SECOND: everything()}
    async with mounted(trees, mountpoint):
        first, second = mountpoint / FIRST_NAME, mountpoint / SECOND_NAME
        for name in ("fifo", "sock", "char", "block"):  # diff reads devices, and says that they differ
            trees[FIRST].entries.pop(name, None)
            trees[SECOND].entries.pop(name, None)
        done = await trio.run_process(["diff", "-r", "--no-dereference", first, second], capture_stdout=True)
        assert done.stdout == b""
        done = await trio.run_process(["find", first, "-type", "f", "-links", "3"], capture_stdout=True)
        assert len(done.stdout.splitlines()) == 3
        done = await trio.run_process(["du", "-s", "-B1", first], capture_stdout=True)
        assert int(done.stdout.split()[0]) >= 100_352


@root_only
async def test_programs_start_from_it(mountpoint):
    script = File(b"#!/bin/sh\necho started\n", mode=0o755)
    async with mounted({FIRST: Dir({"run": script, "data": File(b"#!/bin/sh\n")})}, mountpoint):
        # By a shell: subprocess forks with the GIL held and waits for the exec, which waits for this process.
        done = await trio.run_process(["sh", "-c", '"$0"', mountpoint / FIRST_NAME / "run"], capture_stdout=True)
        assert done.stdout == b"started\n"
        done = await trio.run_process(
            ["sh", "-c", '"$0"', mountpoint / FIRST_NAME / "data"], capture_stderr=True, check=False
        )
        assert (done.returncode, b"denied" in done.stderr) == (126, True)


async def test_dots_are_there(mountpoint):
    async with mounted({FIRST: Dir({"d": Dir()})}, mountpoint):
        done = await trio.run_process(["ls", "-ai", mountpoint / FIRST_NAME / "d"], capture_stdout=True)
        shown = {name: int(inode) for inode, name in (line.split() for line in done.stdout.splitlines())}
        assert set(shown) == {b".", b".."}
        assert shown[b".."] == (await in_thread(os.stat, mountpoint / FIRST_NAME)).st_ino


def large_directory(count):
    """A repository whose one snapshot has `count` files, without a literal of them."""
    repository = FakeRepository({FIRST: Dir()})
    files = [Entry(b"%06d" % number, Kind.REGULAR, mode=0o644) for number in range(count)]
    repository.entries = lambda _time: [Entry(b"", Kind.DIRECTORY, mode=0o755), *files]
    return repository


@pytest.mark.parametrize("count", [1_000, 20_000])
async def test_a_large_directory_lists_every_name_once(mountpoint, count):
    async with mounted(large_directory(count), mountpoint) as operations:
        names = await in_thread(os.listdir, mountpoint / FIRST_NAME)
        assert len(names) == count
        assert set(names) == {f"{number:06}" for number in range(count)}
        assert operations.asked["readdir"] <= count / 10  # each fills its reply
        before = operations.asked.copy()
        await in_thread(lambda: [os.lstat(mountpoint / FIRST_NAME / name) for name in names])
        after = operations.asked - before
        del after["releasedir"]  # which nobody waits for
        assert after.total() <= 1  # the attributes came with the names


async def test_a_directory_can_be_read_from_where_telldir_was(mountpoint):
    async with mounted({FIRST: Dir({f"{number:03}": File() for number in range(500)})}, mountpoint):
        await in_thread(_check_seekdir, mountpoint / FIRST_NAME, 500)


async def test_a_large_directory_can_be_read_from_where_telldir_was(mountpoint):
    async with mounted(large_directory(20_000), mountpoint):
        await in_thread(_check_seekdir, mountpoint / FIRST_NAME, 20_000)


def _check_seekdir(path, count):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.readdir64.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

    def rest():
        while entry := libc.readdir64(stream):
            yield ctypes.string_at(entry + 19)  # struct dirent64: d_ino, d_off, d_reclen, d_type, d_name

    stream = libc.opendir(os.fsencode(path))
    positions, names = [libc.telldir(stream)], []
    for name in rest():
        names.append(name)
        positions.append(libc.telldir(stream))
    assert len(names) == len(set(names)) == count + 2
    for at in (count, 0, 1, 2, 3, 77, count + 2, count // 2):
        libc.seekdir(stream, positions[at])
        assert list(rest()) == names[at:]
    libc.closedir(stream)


# System calls


async def test_system_calls(mountpoint):
    async with mounted({FIRST: Dir({"f": File(b"f" * 50_000), "d": Dir()})}, mountpoint):
        await trio.run_process([sys.executable, system_calls.__file__, mountpoint, FIRST_NAME])


@root_only
async def test_devices_are_shown_but_lead_nowhere(mountpoint):
    async with mounted({FIRST: Dir({"null": Device("c", 1, 3, mode=0o666)})}, mountpoint):
        path = mountpoint / FIRST_NAME / "null"
        assert (await in_thread(os.stat, path)).st_rdev == os.makedev(1, 3)
        await in_thread(system_calls.fails, errno.EACCES, os.open, path, os.O_RDONLY)


# What the kernel asks, and does not ask again


async def test_what_the_kernel_knows_it_does_not_ask_again(mountpoint):
    async with mounted({FIRST: Dir({"f": File(b"f" * 300_000)})}, mountpoint) as operations:
        path = mountpoint / FIRST_NAME / "f"
        assert await in_thread(path.read_bytes) == b"f" * 300_000
        before = operations.asked.copy()
        await in_thread(lambda: [os.stat(path) for _ in range(100)])
        assert await in_thread(path.read_bytes) == b"f" * 300_000
        assert set(operations.asked - before) <= (set() if is_by_inode() else {"open", "release"})


@pytest.fixture
def needs_by_inode():
    """To be called when something is mounted."""

    def check():
        if not is_by_inode():
            pytest.skip("needs libfuse3.so.3 and a kernel that can do without opening")

    return check


async def test_a_second_walk_asks_nothing(mountpoint, needs_by_inode):
    async with mounted({FIRST: everything(), SECOND: everything()}, mountpoint) as operations:
        commands = [["find", mountpoint, "-ls"], ["du", "-a", mountpoint], ["ls", "-RU", mountpoint]]
        said = [(await trio.run_process(command, capture_stdout=True)).stdout for command in commands]
        needs_by_inode()
        assert operations.asked["opendir"] == operations.asked["releasedir"] == 0
        operations.asked.clear()
        assert [(await trio.run_process(command, capture_stdout=True)).stdout for command in commands] == said
        assert operations.asked == {}


async def test_small_files_are_read_with_one_request_each(mountpoint, needs_by_inode):
    files = {f"{number}": File(b"x" * number) for number in range(50)}
    async with mounted({FIRST: Dir(files), SECOND: Dir(files)}, mountpoint) as operations:
        needs_by_inode()
        await trio.run_process(["grep", "-r", "y", mountpoint / FIRST_NAME], check=False)
        await in_thread(os.stat, mountpoint / SECOND_NAME)
        operations.asked.clear()
        for _ in range(2):
            await in_thread(lambda: [(mountpoint / SECOND_NAME / name).read_bytes() for name in files])
        assert set(operations.asked) <= {"lookup"}  # what was read in the other snapshot is cached
        assert operations.asked["lookup"] == 50


async def test_diff_opens_only_what_changed(mountpoint):
    old = {f"{number}": File(b"same" * number) for number in range(20)}
    trees = {FIRST: Dir({**old, "d": Dir({"x": File(b"1")})}), SECOND: Dir({**old, "d": Dir({"x": File(b"2")})})}
    repository = FakeRepository(trees)
    async with mounted(repository, mountpoint) as operations:
        command = ["diff", "-rq", mountpoint / FIRST_NAME, mountpoint / SECOND_NAME]
        done = await trio.run_process(command, capture_stdout=True, check=False)
        assert done.stdout.count(b"\n") == 1
        assert {what for what in repository.calls if what[0] == "open"} == {("open", b"d/x")}
        assert repository.calls["open", b"d/x"] == operations.asked["read"] == 2


async def test_du_counts_a_version_once(mountpoint):
    same, large = File(b"s" * 100_000), File(b"1" * 50_000)
    trees = {FIRST: Dir({"same": same, "f": large}), SECOND: Dir({"same": same, "f": File(b"2" * 50_000)})}
    async with mounted(trees, mountpoint):
        tops = [mountpoint / FIRST_NAME, mountpoint / SECOND_NAME]
        done = await trio.run_process(["du", "-sc", "--apparent-size", "-B1", *tops], capture_stdout=True)
        assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [150_000, 50_000, 200_000]


async def test_files_are_found_by_number_in_all_snapshots(mountpoint):
    tree = Dir({"a": File(b"x"), "d": Dir({"link": Link("a")}), "other": File(b"y")})
    async with mounted({FIRST: tree, SECOND: tree}, mountpoint):
        number = (await in_thread(os.stat, mountpoint / FIRST_NAME / "a")).st_ino
        done = await trio.run_process(["find", mountpoint, "-inum", str(number)], capture_stdout=True)
        names = {os.fspath(mountpoint / top / path) for top in (FIRST_NAME, SECOND_NAME) for path in ("a", "d/link")}
        assert {os.fsdecode(line) for line in done.stdout.splitlines()} == names


async def test_names_that_are_not_there_are_asked_for_once(mountpoint):
    async with mounted({FIRST: Dir()}, mountpoint) as operations:
        await in_thread(os.listdir, mountpoint / FIRST_NAME)
        await in_thread(os.stat, mountpoint / FIRST_NAME)
        before = operations.asked["lookup"]
        await in_thread(lambda: [os.path.exists(mountpoint / FIRST_NAME / ".hidden") for _ in range(1000)])
        assert operations.asked["lookup"] - before == 1


# Sessions that come and go


async def test_a_new_session_appears_and_an_old_one_goes(mountpoint):
    repository = FakeRepository({FIRST: Dir({"f": File(b"1" * 1_000_000)}), SECOND: Dir()})
    async with mounted(repository, mountpoint):
        held = await in_thread(partial(open, mountpoint / FIRST_NAME / "f", "rb", buffering=0))
        assert await in_thread(held.read, 1) == b"1"
        assert not await in_thread(os.path.exists, mountpoint / "@2024-05-03T10:00")  # the kernel remembers that
        await in_thread(os.listdir, mountpoint)
        repository.trees[SECOND + 86_400] = Dir({"f": File(b"3")})
        await within_a_second(lambda: len(os.listdir(mountpoint)) == 3)
        assert await in_thread((mountpoint / "@2024-05-03T10:00" / "f").read_bytes) == b"3"
        del repository.trees[FIRST]
        await within_a_second(lambda: FIRST_NAME not in os.listdir(mountpoint))
        await until(lambda: not os.path.exists(mountpoint / FIRST_NAME / "f"))
        assert await in_thread(held.read, 1_000_000) == b"1" * 999_999  # what is open stays readable
        await in_thread(held.close)


async def within_a_second(condition):
    """What is looked at all the time, so that the kernel has no reason of its own to ask again."""
    started = trio.current_time()
    await until(condition)
    assert trio.current_time() - started < 1


async def test_the_root_is_listed_while_the_catalog_is_built(mountpoint):
    repository = FakeRepository({FIRST: Dir({"f": File(b"f")}), SECOND: Dir()})
    repository.catalog_gate.clear()
    async with mounted(repository, mountpoint), trio.open_nursery() as nursery:
        assert await in_thread(os.listdir, mountpoint) == [FIRST_NAME, SECOND_NAME]
        assert (await in_thread(os.stat, mountpoint / FIRST_NAME)).st_mtime == FIRST
        read = []
        nursery.start_soon(lambda: in_thread(lambda: read.append((mountpoint / FIRST_NAME / "f").read_bytes())))
        await trio.sleep(0.1)
        assert read == []
        assert len(await in_thread(os.listdir, mountpoint)) == 2
        repository.catalog_gate.set()
    assert read == [b"f"]


async def test_the_mount_goes_on_while_the_catalog_catches_up(mountpoint):
    repository = FakeRepository({FIRST: Dir({"f": File(b"f")})})
    async with mounted(repository, mountpoint):
        repository.catalog_gate.clear()
        repository.trees[SECOND] = Dir({"f": File(b"f"), "g": File(b"g")})
        await within_a_second(lambda: SECOND_NAME in os.listdir(mountpoint))
        assert await in_thread((mountpoint / FIRST_NAME / "f").read_bytes) == b"f"
        repository.catalog_gate.set()
        assert await in_thread(os.listdir, mountpoint / SECOND_NAME) == ["f", "g"]
        same = [(await in_thread(os.stat, mountpoint / name / "f")).st_ino for name in (FIRST_NAME, SECOND_NAME)]
        assert len(set(same)) == 1


@root_only
async def test_numbers_and_handles_survive_a_remount(mountpoint):
    trees = {FIRST: Dir({"d": Dir({"f": File(b"content")}), "g": File()}), SECOND: everything()}
    async with mounted(trees, mountpoint):
        inodes = await in_thread(_inodes, mountpoint)
        handles = {path: await in_thread(_handle_of, mountpoint / path) for path in inodes}
    async with mounted({**trees, SECOND + 60: Dir()}, mountpoint):
        for path, handle in handles.items():
            assert await in_thread(_inode_by_handle, mountpoint, handle) == inodes[path]
        again = await in_thread(_inodes, mountpoint)
        assert {path: again[path] for path in inodes} == inodes
    assert len(inodes) > 20


def _inodes(top):
    paths = [Path(directory, name) for directory, below, names in os.walk(top) for name in below + names]
    return {path.relative_to(top): os.lstat(path).st_ino for path in paths}


class _FileHandle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def _handle_of(path):
    libc = ctypes.CDLL(None, use_errno=True)
    handle, mount_id = _FileHandle(size=128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0) == 0
    return handle


def _inode_by_handle(mountpoint, handle):
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.open(mountpoint, os.O_RDONLY)
    fd = libc.open_by_handle_at(directory, ctypes.byref(handle), os.O_PATH | os.O_NOFOLLOW)
    assert fd >= 0, errno.errorcode[ctypes.get_errno()]
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
        os.close(directory)


# Trouble


async def test_a_damaged_file_does_not_touch_the_others(mountpoint, caplog):
    repository = FakeRepository({FIRST: Dir({"bad": File(b"bad"), "good": File(b"good"), "torn": File(b"torn")})})
    repository.damaged = {b"bad": DamagedError("is damaged", path=b"bad"), ("read", b"torn"): DamagedError("is torn")}
    repository.is_cached = False
    async with mounted(repository, mountpoint):
        for _ in range(3):
            await in_thread(system_calls.fails, errno.EIO, (mountpoint / FIRST_NAME / "bad").read_bytes)
            await in_thread(system_calls.fails, errno.EIO, (mountpoint / FIRST_NAME / "torn").read_bytes)
        assert await in_thread((mountpoint / FIRST_NAME / "good").read_bytes) == b"good"
    assert caplog.text.count("is damaged") == caplog.text.count("is torn") == 1


async def test_a_bug_does_not_end_the_mount(mountpoint, monkeypatch):
    async with mounted({FIRST: Dir({"f": File(b"f")}), SECOND: Dir()}, mountpoint) as operations:
        monkeypatch.setattr(operations._history, "children", lambda *_: {}["bug"])
        await in_thread(system_calls.fails, errno.EIO, os.listdir, mountpoint / FIRST_NAME)
        monkeypatch.undo()
        assert await in_thread(os.listdir, mountpoint / FIRST_NAME) == ["f"]


async def test_a_crash_leaves_a_dead_mount_that_can_be_cleaned_up(mountpoint, monkeypatch):
    async def crash(*_args):
        return None  # pyfuse3 insists on EntryAttributes

    with pytest.RaisesGroup(pytest.RaisesExc(TypeError), flatten_subgroups=True, allow_unwrapped=True):
        async with mounted({FIRST: Dir()}, mountpoint):
            monkeypatch.setattr(CountingOperations, "lookup", crash)
            with pytest.raises(OSError, match=r"abort|not connected"):
                await in_thread(os.stat, mountpoint / "x")
    assert place.mounted_at(mountpoint).type == place.FILE_SYSTEM
    system_calls.fails(errno.ENOTCONN, os.statvfs, mountpoint)
    place.clear_dead_mounts(mountpoint)
    assert place.mounted_at(mountpoint) is None


async def test_umount_ends_it(mountpoint):
    async with mounted({FIRST: Dir()}, mountpoint):
        await in_thread(place.unmount, mountpoint, lazy=False)
        assert place.mounted_at(mountpoint) is None
        await trio.sleep(0.1)


async def test_a_signal_ends_it_while_a_request_is_stuck(mountpoint):
    handlers = {number: signal.getsignal(number) for number in session.STOP_SIGNALS}
    repository = FakeRepository({FIRST: Dir({"f": File(b"f")})})
    reader = None
    try:
        async with mounted(repository, mountpoint):
            await in_thread(os.stat, mountpoint / FIRST_NAME / "f")
            repository.gate.clear()
            command = ["cat", mountpoint / FIRST_NAME / "f"]
            reader = await in_thread(subprocess.Popen, command, stderr=subprocess.PIPE)
            await until(lambda: repository.calls["open", b"f"])
            started = trio.current_time()
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: place.mounted_at(mountpoint) is None)
            assert 0.5 < trio.current_time() - started < 3
            await trio.sleep(0.1)
            assert re.search(b"abort|not connected", (await in_thread(reader.communicate))[1])
            repository.gate.set()
            await until(lambda: repository.open_now["content", b"f"])
            repository.open_now["content", b"f"] = 0  # what the thread opened in the end has no owner
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


async def test_what_is_in_use_is_not_unmounted(mountpoint, tmp_path):
    go = tmp_path / "go"
    os.mkfifo(go)
    async with mounted({FIRST: Dir({"f": File(b"f")})}, mountpoint):
        # Not held here: closing it in a child, before its exec, would wait for this process, which waits for the exec.
        holder = await in_thread(
            subprocess.Popen,
            ["sh", "-c", 'exec < "$0"; echo; read go < "$1"; cat', mountpoint / FIRST_NAME / "f", go],
            stdout=subprocess.PIPE,
        )
        await in_thread(holder.stdout.readline)
        with pytest.raises(MountError, match="busy"):
            await in_thread(place.unmount, mountpoint, lazy=False)
        await in_thread(place.unmount, mountpoint, lazy=True)
        assert place.mounted_at(mountpoint) is None
        await in_thread(go.write_text, "\n")
        assert await in_thread(holder.communicate) == (b"f", None)


async def test_a_living_mount_is_not_covered(mountpoint):
    async with mounted({FIRST: Dir()}, mountpoint):
        with pytest.raises(UsageError, match="histfs:test"):
            await in_thread(place.clear_dead_mounts, mountpoint)


async def test_a_mount_that_fails_says_why(tmp_path, fuse):
    with pytest.RaisesGroup(pytest.RaisesExc(MountError, match="(?i)no such file")):
        async with mounted({FIRST: Dir()}, tmp_path / "missing"):
            pass


# Programs that are killed


@pytest.mark.parametrize("in_read", [False, True], ids=["open", "read"])
async def test_a_reader_that_is_killed_leaves_nothing_behind(mountpoint, in_read):
    repository = FakeRepository({FIRST: Dir({"f": File(b"f" * 1000), "g": File(b"g")})})
    repository.is_cached = False
    gate = repository.read_gate if in_read else repository.gate
    async with mounted(repository, mountpoint) as operations:
        await in_thread(os.stat, mountpoint / FIRST_NAME / "f")
        gate.clear()
        command = ["cat", mountpoint / FIRST_NAME / "f"]
        reader = await in_thread(subprocess.Popen, command, stdout=subprocess.DEVNULL)
        await until(lambda: repository.calls["pread" if in_read else "open", b"f"])
        reader.send_signal(signal.SIGKILL)
        assert len(await in_thread(os.listdir, mountpoint / FIRST_NAME)) == 2  # others go on
        gate.set()
        await in_thread(reader.wait)
        await until(lambda: not len(operations._flights))
    assert +repository.open_now == {}


def _fuse_device():
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
    raise AssertionError("nothing is mounted")


class KillBetweenPollAndRead(trio.abc.Instrument):
    """Kills `victim` when its request can be read and was not read yet."""

    def __init__(self, victim):
        self.victim = victim
        self.happened = False
        self._device = _fuse_device()

    def after_io_wait(self, timeout):
        if not self.happened and select.select([self._device], [], [], 0)[0]:
            self.victim.kill()
            self.victim.wait()
            self.happened = not select.select([self._device], [], [], 0)[0]


async def test_a_request_that_is_taken_back_does_not_stop_the_others(mountpoint):
    async with mounted({FIRST: Dir()}, mountpoint):
        command = f"import os, time; time.sleep(0.3); os.stat({os.fspath(mountpoint / 'missing')!r})"
        instrument = KillBetweenPollAndRead(await in_thread(subprocess.Popen, [sys.executable, "-c", command]))
        trio.lowlevel.add_instrument(instrument)
        await until(lambda: instrument.happened)  # without the heartbeat all threads stop here, for ever
        trio.lowlevel.remove_instrument(instrument)
        assert await in_thread(os.listdir, mountpoint) == [FIRST_NAME]


# Many


async def test_a_thousand_files_are_open_at_the_same_time(mountpoint):
    names = [f"{number:04}" for number in range(1000)]
    repository = FakeRepository({FIRST: Dir({name: File(name.encode() * 10) for name in names})})
    async with mounted(repository, mountpoint) as operations:
        directory = mountpoint / FIRST_NAME
        repository.gate.clear()
        files, limiter = [], trio.CapacityLimiter(1000)

        async def open_one(name):
            files.append(await trio.to_thread.run_sync(partial(open, directory / name, "rb", 0), limiter=limiter))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(open_one, name)
            await trio.sleep(0.5)
            repository.gate.set()
        assert await in_thread(lambda: {file.read() for file in files}) == {name.encode() * 10 for name in names}
        await in_thread(lambda: [file.close() for file in files])
        assert len(operations._open_files) <= 256


async def test_modes_are_checked_for_others(mountpoint, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tree = Dir({"private": File(b"secret", mode=0o600, owner=(0, 0)), "public": File(b"public", owner=(0, 0))})
    options = OPTIONS | {"allow_other", "default_permissions"}
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    async with mounted({FIRST: tree, SECOND: Dir({"f": File()}, mode=0o700, owner=(0, 0))}, mountpoint, options):
        first, second = mountpoint / FIRST_NAME, mountpoint / SECOND_NAME
        assert await _as_nobody("cat", first / "public") == b"public"
        assert await _as_nobody("cat", first / "private") is None
        assert await _as_nobody("ls", "-l", mountpoint) is not None
        assert await _as_nobody("ls", second) is None
        assert await _as_nobody("stat", second / "f") is None


async def _as_nobody(*command):
    run = partial(
        subprocess.run, command, user=65_534, group=65_534, extra_groups=[], stdout=subprocess.PIPE, check=False
    )
    done = await in_thread(run, stderr=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else None
