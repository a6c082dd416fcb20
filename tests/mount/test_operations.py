"""The FUSE handlers, called directly: no mount, no kernel."""

import errno
import inspect
import logging
import os
import stat
import struct
import threading
from contextlib import suppress
from datetime import UTC
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from hypothesis import given

from histfs import _fs_open_files as open_files
from histfs import fs
from histfs._fs_answers import entry_of, errno_of
from histfs._fs_open_files import OpenFiles
from histfs._fs_read_ahead import BATCHES_WAITING
from histfs.errors import DamagedError, FormatError, MountError, NotADirectoryEntryError, NotFoundError, StorageError
from histfs.fs import Operations
from histfs.fuse import pyfuse3
from histfs.store.entry import Entry, Kind
from histfs.vfs import ROOT_INODE, TOP_TAG, History, directory_inode, version_inode
from histfs.vfs import File as OpenVersion
from tests.mount.fake_repository import FakeContent, FakeRepository
from tests.strategies import entries
from tests.trees import Device, Dir, Fifo, File, Link, Symlink

FIRST, SECOND = 1_714_557_600, 1_714_644_000
FIRST_NAME, SECOND_NAME = b"@2024-05-01T10:00", b"@2024-05-02T10:00"

TREE = Dir(
    {
        "a": File(b"0123456789" * 100),
        "again": Link("a"),
        "d": Dir({"inner": File(b"inner"), "x": File(b"", mode=0o755)}),
        "dev": Device("c", 1, 3),
        "fifo": Fifo(),
        "link": Symlink("d/inner"),
    }
)

pytestmark = pytest.mark.usefixtures("nothing_is_small")

WRITING = ["create", "link", "mkdir", "mknod", "rename", "rmdir", "setattr", "symlink", "unlink", "write"]
WRITING += ["removexattr", "setxattr"]
LEFT_TO_KERNEL = ["flush", "fsync", "fsyncdir", "poll"]
HANDLERS = [name for name, member in vars(pyfuse3.Operations).items() if inspect.iscoroutinefunction(member)]


class Mounted:
    """Operations over a fake repository, with shorter calls."""

    def __init__(self, trees):
        self.repository = FakeRepository(trees)
        self.history = History(self.repository, self.repository.open_catalog, UTC)
        self.history.refresh()
        self.operations = Operations(self.history, self.repository.path)

    async def update(self):
        self.repository.catalog_gate.set()
        await self.operations.update()

    async def lookup(self, *names, inode=ROOT_INODE):
        for name in names:
            entry = await self.operations.lookup(inode, name, None)
            inode = entry.st_ino
        return entry

    async def inode(self, *names):
        return (await self.lookup(*names)).st_ino

    async def open(self, *names):
        return (await self.operations.open(await self.inode(*names), os.O_RDONLY, None)).fh

    async def content(self, *names):
        handle = await self.open(*names)
        data = await self.operations.read(handle, 0, 1 << 20)
        await self.operations.release(handle)
        return data


@pytest.fixture
def mounted():
    return Mounted({FIRST: TREE, SECOND: Dir({"a": File(b"new")})})


@pytest.fixture(autouse=True)
def listings(monkeypatch):
    """What is kept of directories to be answered without Python, by inode; nothing unless `is_possible` is set."""

    class Listings(dict):
        is_possible = False

        def keep(self, inode, offset, records, *, is_last):
            if self.is_possible:
                self[inode] = self[inode] if offset else b""
                self[inode] += records
                self.ends[inode] = is_last
            return self.is_possible

    kept = Listings()
    kept.ends = {}
    monkeypatch.setattr("histfs._fs_listing.keep_listing", kept.keep)
    monkeypatch.setattr(fs, "reply_listing", lambda inode, _offset: inode in kept)
    return kept


@pytest.fixture(autouse=True)
def targets(monkeypatch):
    """What is kept of symbolic links."""
    kept = {}
    monkeypatch.setattr("histfs._fs_listing.keep_content", kept.__setitem__)
    return kept


@pytest.fixture
def replies(monkeypatch):
    """Collects what readdir replies, as (name, attributes, offset); it can be told to be full after some."""

    class Replies(list):
        room = 10_000

        def accept(self, _token, name, attributes, offset):
            if len(self) >= self.room:
                return False
            self.append((name, attributes.__getstate__(), offset))  # one object serves a whole reply
            return True

    collected = Replies()
    monkeypatch.setattr(pyfuse3, "readdir_reply", collected.accept)
    return collected


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What the kernel is told to forget."""
    told = []
    monkeypatch.setattr(pyfuse3, "invalidate_entry", lambda *args: told.append(args))
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda *args: told.append(args))
    return told


@pytest.fixture(autouse=True)
def with_handles(monkeypatch):
    """As if the kernel opened what it reads, whatever was mounted in this process before."""
    monkeypatch.setattr(fs, "is_by_inode", lambda: False)


class Failure:
    """`with failure(errno.EIO):` the block must be answered with this error number."""

    def __init__(self, number):
        self._number = number

    def __enter__(self):
        pass

    def __exit__(self, kind, error, _traceback):
        assert isinstance(error, pyfuse3.FUSEError), f"no error, or a wrong one: {kind}"
        assert errno.errorcode[error.errno] == errno.errorcode[self._number]
        return True


# Every handler


def test_every_handler_is_ours_and_wrapped():
    assert len(HANDLERS) > 25
    for name in HANDLERS:
        assert hasattr(vars(Operations).get(name), "__wrapped__"), f"{name} may raise what ends the mount"


@pytest.mark.parametrize("name", sorted(set(HANDLERS) - set(WRITING) - set(LEFT_TO_KERNEL)))
async def test_a_bug_is_an_error_for_one_call(name, caplog):
    methods = [
        "attributes",
        "child",
        "children",
        "names",
        "open",
        "refresh",
        "root",
        "target",
        "top",
        "read_top",
        "update",
        "xattrs",
        "xattrs_of_top",
    ]
    broken = Mock()
    operations = Operations(broken, Mock())
    broken.configure_mock(**{f"{method}.side_effect": ZeroDivisionError for method in methods})
    handler = getattr(operations, name)
    parameters = list(inspect.signature(handler).parameters)
    arguments = [b"name" if parameter == "name" else 0 for parameter in parameters]
    if parameters[0] != "ctx":
        arguments[0] = [(1, 1)] if name == "forget" else directory_inode(FIRST, 1)
    harmless = {"access", "forget", "getxattr", "listxattr", "opendir", "release", "releasedir"}
    if name in harmless:
        with suppress(pyfuse3.FUSEError):
            await handler(*arguments)
    else:
        with Failure(errno.EIO):
            await handler(*arguments)
        assert "a bug" in caplog.text


@pytest.mark.parametrize("name", WRITING)
async def test_nothing_can_be_written(mounted, name):
    handler = getattr(mounted.operations, name)
    count = len(inspect.signature(getattr(pyfuse3.Operations, name)).parameters) - 1
    with Failure(errno.EROFS):
        await handler(*[1] * count)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
async def test_no_file_can_be_opened_for_writing(mounted, flags):
    inode = await mounted.inode(FIRST_NAME, b"a")
    with Failure(errno.EROFS):
        await mounted.operations.open(inode, flags, None)
    assert mounted.repository.calls["open", b"a"] == 0


@pytest.mark.parametrize("name", LEFT_TO_KERNEL)
async def test_what_the_kernel_does_alone(mounted, name):
    with Failure(errno.ENOSYS):
        await getattr(mounted.operations, name)(1, 2)


async def test_forget_never_raises(mounted):
    await mounted.operations.forget([(0, 1), (2**64, 7)])


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NotFoundError(""), errno.ENOENT),
        (NotADirectoryEntryError(""), errno.ENOTDIR),
        (DamagedError(""), errno.EIO),
        (FormatError(""), errno.EIO),
        (StorageError(""), errno.EIO),
        (MountError(""), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (OSError(errno.EPERM, ""), errno.EIO),
        (ExceptionGroup("", [KeyError()]), errno.EIO),
    ],
)
def test_error_numbers(error, number):
    assert errno_of(error) == number


@pytest.mark.parametrize(
    ("cause", "number"),
    [
        (errno.EMFILE, errno.EMFILE),
        (errno.ENFILE, errno.ENFILE),
        (errno.ENOMEM, errno.ENOMEM),
        (errno.EACCES, errno.EIO),
        (errno.ENOSPC, errno.EIO),
    ],
)
def test_a_shortage_keeps_its_error_number(cause, number):
    error = StorageError("")
    error.__cause__ = OSError(cause, "")
    assert errno_of(error) == number


# Names and attributes


async def test_lookup_follows_names(mounted):
    assert (await mounted.lookup(FIRST_NAME)).st_ino == directory_inode(FIRST, TOP_TAG)
    entry = await mounted.lookup(FIRST_NAME, b"d", b"inner")
    assert (stat.S_ISREG(entry.st_mode), entry.st_size, entry.st_blocks, entry.st_blksize) == (True, 5, 1, 4096)
    assert entry.st_atime_ns == entry.st_ctime_ns == entry.st_mtime_ns
    assert (entry.entry_timeout, entry.attr_timeout) == (86_400, 86_400)


async def test_lookup_and_getattr_agree(mounted):
    for path in [(FIRST_NAME,), (FIRST_NAME, b"a"), (FIRST_NAME, b"d"), (FIRST_NAME, b"again"), (FIRST_NAME, b"dev")]:
        found = await mounted.lookup(*path)
        again = await mounted.operations.getattr(found.st_ino, None)
        assert {**again.__getstate__(), "entry_timeout": 0} == {**found.__getstate__(), "entry_timeout": 0}


async def test_the_root_is_not_good_for_ever(mounted):
    assert (await mounted.lookup(FIRST_NAME)).entry_timeout == 60
    root = await mounted.operations.getattr(ROOT_INODE, None)
    assert (root.attr_timeout, root.st_mtime_ns) == (60, SECOND * 10**9)


async def test_blocks_are_whole():
    mounted = Mounted({FIRST: Dir({str(size): File(bytes(size)) for size in (0, 1, 512, 513)})})
    blocks = [(await mounted.lookup(FIRST_NAME, b"%d" % size)).st_blocks for size in (0, 1, 512, 513)]
    assert blocks == [0, 1, 1, 2]


async def test_names_that_are_not_there_are_remembered_by_the_kernel(mounted):
    missing = await mounted.lookup(FIRST_NAME, b".hidden")
    assert (missing.st_ino, missing.entry_timeout) == (0, 86_400)
    missing = await mounted.lookup(b"@2030-01-01T00:00")
    assert (missing.st_ino, missing.entry_timeout) == (0, 60)


@pytest.mark.parametrize("parent", [(), (FIRST_NAME,), (FIRST_NAME, b"d")])
async def test_too_long_names(mounted, parent):
    assert (await mounted.lookup(*parent, b"n" * 255)).st_ino == 0
    with Failure(errno.ENAMETOOLONG):
        await mounted.lookup(*parent, b"n" * 256)


async def test_dots_lead_up(mounted):
    d = await mounted.inode(FIRST_NAME, b"d")
    assert await mounted.inode(FIRST_NAME, b"d", b".") == d
    assert await mounted.inode(FIRST_NAME, b"d", b"..") == directory_inode(FIRST, TOP_TAG)
    assert await mounted.inode(FIRST_NAME, b"..") == ROOT_INODE
    assert await mounted.inode(b".") == await mounted.inode(b"..") == ROOT_INODE
    inner = await mounted.inode(FIRST_NAME, b"d", b"inner")
    assert await mounted.inode(FIRST_NAME, b"d", b"inner", b".") == inner


async def test_errors_of_lookup(mounted):
    a = await mounted.inode(FIRST_NAME, b"a")
    with Failure(errno.ENOTDIR):
        await mounted.operations.lookup(a, b"x", None)
    for inode in (2, 2**64 - 1, version_inode(999), directory_inode(FIRST + 1, 0), directory_inode(FIRST, 5)):
        with Failure(errno.ENOENT):
            await mounted.operations.getattr(inode, None)


async def test_the_top_of_a_snapshot_does_not_wait_for_the_catalog(mounted):
    mounted.repository.catalog_gate.clear()
    with trio.fail_after(5):
        before = await mounted.lookup(FIRST_NAME)
        again = await mounted.operations.getattr(directory_inode(FIRST, TOP_TAG), None)
    assert mounted.repository.calls["entries", FIRST] == 1
    await mounted.update()
    after = await mounted.operations.getattr(directory_inode(FIRST, TOP_TAG), None)
    assert again.__getstate__() == after.__getstate__()
    assert before.__getstate__() == (await mounted.lookup(FIRST_NAME)).__getstate__()
    assert mounted.repository.calls["entries", FIRST] == 1


async def test_readlink(mounted):
    assert await mounted.operations.readlink(await mounted.inode(FIRST_NAME, b"link"), None) == b"d/inner"
    with Failure(errno.EINVAL):
        await mounted.operations.readlink(await mounted.inode(FIRST_NAME, b"a"), None)


@pytest.mark.parametrize(
    ("path", "mode", "allowed"),
    [
        ((FIRST_NAME, b"a"), os.R_OK, True),
        ((FIRST_NAME, b"a"), os.X_OK, False),
        ((FIRST_NAME, b"d", b"x"), os.X_OK, True),
        ((FIRST_NAME, b"d"), os.X_OK | os.R_OK, True),
        ((FIRST_NAME,), os.X_OK, True),
        ((b".",), os.X_OK | os.R_OK, True),
    ],
)
async def test_access(mounted, path, mode, allowed):
    inode = await mounted.inode(*path)
    assert await mounted.operations.access(inode, mode, None) is allowed
    with Failure(errno.EROFS):
        await mounted.operations.access(inode, mode | os.W_OK, None)


ROOT_USER, OTHER_USER = SimpleNamespace(uid=0), SimpleNamespace(uid=1234)


async def test_where_nothing_has_extended_attributes_none_are_looked_for(mounted, monkeypatch):
    inode = await mounted.inode(FIRST_NAME, b"a")
    monkeypatch.setattr(History, "xattrs", None)
    for each in (inode, ROOT_INODE, await mounted.inode(FIRST_NAME)):
        assert list(await mounted.operations.listxattr(each, ROOT_USER)) == []
        with Failure(errno.ENODATA):
            await mounted.operations.getxattr(each, b"user.x", ROOT_USER)


async def test_extended_attributes():
    xattrs = {"user.a": b"\0value", "trusted.b": b"", "security.c": b"c"}
    tree = Dir(
        {
            "tagged": File(b"", xattrs=xattrs),
            "plain": File(b""),
            "d": Dir({}, xattrs={"user.d": b"d"}),
            "link": Symlink("x", xattrs={"trusted.l": b"l"}),
        },
        xattrs={"user.top": b"top"},
    )
    mounted = Mounted({FIRST: tree})
    operations = mounted.operations
    assert list(await operations.listxattr(await mounted.inode(FIRST_NAME), OTHER_USER)) == [b"user.top"]
    assert mounted.repository.calls["catalog"] == 0  # who looks at the root need not wait for it
    await mounted.update()
    for names, expected in {
        (): {"user.top": b"top"},
        ("tagged",): xattrs,
        ("plain",): {},
        ("d",): {"user.d": b"d"},
        ("link",): {"trusted.l": b"l"},
    }.items():
        inode = await mounted.inode(FIRST_NAME, *map(os.fsencode, names))
        found = await operations.listxattr(inode, ROOT_USER)
        assert set(found) == {name.encode() for name in expected}
        for name, value in expected.items():
            assert await operations.getxattr(inode, name.encode(), OTHER_USER) == value
        assert set(await operations.listxattr(inode, OTHER_USER)) == {n for n in found if not n.startswith(b"trusted")}
        with Failure(errno.ENODATA):
            await operations.getxattr(inode, b"user.missing", ROOT_USER)
    assert mounted.repository.calls["extras"] == 4  # each once


async def test_access_control_lists_are_asked_for_where_the_kernel_checks(mounted):
    assert not mounted.operations.enable_acl
    assert Operations(mounted.history, mounted.repository.path, enforces_acls=True).enable_acl


async def test_the_file_system_is_full(mounted):
    shown = await mounted.operations.statfs(None)
    real = os.statvfs(mounted.repository.path)
    assert (shown.f_blocks, shown.f_bsize, shown.f_files) == (real.f_blocks, real.f_bsize, real.f_files)
    assert (shown.f_bfree, shown.f_bavail, shown.f_ffree, shown.f_favail, shown.f_namemax) == (0, 0, 0, 0, 255)


@given(entries())
def test_any_record_can_be_told_to_the_kernel(entry):
    if entry.kind is Kind.ABSENT:
        return
    mounted = Mounted({FIRST: Dir()})
    mounted.repository.extra_entries[FIRST] = [entry._replace(path=b"x", link_group=None)]
    mounted.history.update()
    found = mounted.history.child(directory_inode(FIRST, TOP_TAG), b"x")
    state = entry_of(found, 1).__getstate__()
    assert state["st_mtime_ns"] == found.mtime_s * 10**9
    assert state["st_uid"] == found.uid


# Directories


async def listing(mounted, inode, replies, start=0):
    replies.clear()
    handle = await mounted.operations.opendir(inode, None)
    await mounted.operations.readdir(handle, start, None)
    await mounted.operations.releasedir(handle)
    return [name for name, _, _ in replies]


def unpack(records):
    """Names, attributes as pyfuse3 has them, and offsets, of what the kernel is given."""
    found, at = [], 0
    while at < len(records):
        numbers = struct.unpack_from("=QQQQIIQQQqqqIIIIIIIIIIQQII", records, at)
        node, generation, name_s, valid_s, name_ns, valid_ns, inode, size, blocks, atime, mtime, ctime = numbers[:12]
        _, _, _, mode, nlink, uid, gid, rdev, block_size, _, entry_inode, offset, length, kind = numbers[12:]
        assert (node, generation, node, kind) == (inode, 0, entry_inode, mode >> 12)
        assert numbers[12:15] == (0, 0, 0)
        at += 152
        name = records[at : at + length]
        at += length
        attributes = {
            "st_ino": inode, "st_mode": mode, "st_nlink": nlink, "st_uid": uid, "st_gid": gid, "st_rdev": rdev,
            "st_size": size, "st_blocks": blocks, "st_blksize": block_size, "st_atime_ns": atime * 10**9,
            "st_mtime_ns": mtime * 10**9, "st_ctime_ns": ctime * 10**9,
            "entry_timeout": name_s + name_ns / 1e9, "attr_timeout": valid_s + valid_ns / 1e9,
        }  # fmt: skip
        found.append((name, attributes, offset))
        assert records[at : at + -at % 8] == bytes(-at % 8)
        at += -at % 8
    return found


async def test_readdir(mounted, replies):
    expected = [b".", b"..", b"a", b"again", b"d", b"dev", b"fifo", b"link"]
    assert await listing(mounted, await mounted.inode(FIRST_NAME), replies) == expected
    for name, attributes, _ in replies[2:]:
        assert attributes == (await mounted.lookup(FIRST_NAME, name)).__getstate__()


@pytest.mark.parametrize("at_once", [3, 256])
async def test_a_directory_is_kept_as_a_whole(mounted, replies, listings, monkeypatch, at_once):
    listings.is_possible = True
    monkeypatch.setattr(fs, "_NAMES_AT_ONCE", at_once)
    inode, offset = await mounted.inode(FIRST_NAME), 0
    for _ in range(10):
        assert await listing(mounted, inode, replies, start=offset) == []  # what is kept is the reply
        offset = unpack(listings[inode])[-1][2]
        if listings.ends[inode]:
            break
    records = unpack(listings[inode])
    assert [name for name, _, _ in records] == [b".", b"..", b"a", b"again", b"d", b"dev", b"fifo", b"link"]
    for name, attributes, _ in records[2:]:
        expected = (await mounted.lookup(FIRST_NAME, name)).__getstate__()
        assert {key: expected[key] for key in attributes} == attributes
    listings.is_possible = False
    assert [name for name, _, _ in records] == await listing(mounted, inode, replies)
    assert [offset for _, _, offset in records] == [offset for _, _, offset in replies]


async def test_the_root_is_never_kept(mounted, replies, listings):
    listings.is_possible = True
    assert len(await listing(mounted, ROOT_INODE, replies)) == 4
    assert listings == {}


async def test_targets_are_kept_with_the_names(mounted, replies, listings, targets):
    listings.is_possible = True
    await listing(mounted, await mounted.inode(FIRST_NAME), replies)
    assert targets == {await mounted.inode(FIRST_NAME, b"link"): b"d/inner"}


async def test_what_comes_next_is_listed_ahead(listings, replies, monkeypatch):
    """In the order in which find goes: down before on; more each time that it was right."""
    monkeypatch.setattr("histfs.fs._SLOW_S", 60.0)
    tree = Dir({f"{number:02}": Dir({"a": Dir({"f": File()}), "b": Dir()}) for number in range(30)})
    mounted = Mounted({FIRST: tree})
    await mounted.update()
    listings.is_possible = True
    asked, todo = 0, [await mounted.inode(FIRST_NAME)]
    while todo:
        inode = todo.pop()
        if inode not in listings:
            asked += 1
            await listing(mounted, inode, replies)
        names = unpack(listings[inode])[2:]
        todo += [shown["st_ino"] for _, shown, _ in reversed(names) if stat.S_ISDIR(shown["st_mode"])]
    assert len(listings) == 91
    assert asked < 10


async def test_who_looks_at_one_directory_has_few_listed(mounted, replies, listings):
    tree = Dir({f"{number:03}": Dir({"f": File()}) for number in range(100)})
    mounted = Mounted({FIRST: tree})
    await mounted.update()
    listings.is_possible = True
    await listing(mounted, await mounted.inode(FIRST_NAME), replies)
    assert len(listings) == 3


@pytest.mark.parametrize("at_once", [3, 256])
async def test_readdir_stops_when_the_reply_is_full_and_goes_on_there(mounted, replies, monkeypatch, at_once):
    monkeypatch.setattr(fs, "_NAMES_AT_ONCE", at_once)
    handle = await mounted.operations.opendir(await mounted.inode(FIRST_NAME), None)
    seen, offset = [], 0
    for replies.room in (1, 3, 2, 0, 50, 50):
        replies.clear()
        await mounted.operations.readdir(handle, offset, None)
        assert len(replies) <= replies.room
        if replies:
            seen += [name for name, _, _ in replies]
            offset = replies[-1][2]
    assert seen == [b".", b"..", b"a", b"again", b"d", b"dev", b"fifo", b"link"]


async def test_only_directories_can_be_listed(mounted):
    with Failure(errno.ENOTDIR):
        await mounted.operations.readdir(await mounted.inode(FIRST_NAME, b"a"), 0, None)


async def test_where_inodes_are_handles_the_kernel_is_told_not_to_open(mounted, replies, monkeypatch):
    monkeypatch.setattr(fs, "is_by_inode", lambda: True)
    inode = await mounted.inode(FIRST_NAME, b"a")
    for question in mounted.operations.opendir(ROOT_INODE, None), mounted.operations.open(inode, os.O_RDONLY, None):
        with Failure(errno.ENOSYS):
            await question
    assert await mounted.operations.read(inode, 0, 3) == b"012"
    with Failure(errno.EROFS):
        await mounted.operations.open(inode, os.O_WRONLY, None)


async def test_the_end_of_a_directory_is_not_looked_for_twice(mounted, replies, monkeypatch):
    inode = await mounted.inode(FIRST_NAME)
    await listing(mounted, inode, replies)
    end = replies[-1][2]
    with monkeypatch.context() as patch:
        patch.setattr(mounted.history, "children", lambda *_: 1 / 0)
        assert await listing(mounted, inode, replies, start=end) == []
    assert await listing(mounted, inode, replies, start=end) == []


async def test_what_a_reply_had_no_place_for_is_kept_within_bounds(mounted, replies):
    replies.room = 1
    for name in range(100):
        mounted.repository.trees[FIRST + 60 * name] = TREE
    await mounted.operations.look()
    for name in mounted.history.names():
        await listing(mounted, await mounted.inode(name), replies)
    assert len(mounted.operations._pages) == 64


async def test_the_root_is_listed_before_there_is_a_catalog(mounted, replies):
    mounted.repository.catalog_gate.clear()
    assert await listing(mounted, ROOT_INODE, replies) == [b".", b"..", FIRST_NAME, SECOND_NAME]
    assert set(mounted.repository.calls) == {"state"}
    _, attributes, _ = replies[2]
    assert (attributes["st_ino"], stat.S_ISDIR(attributes["st_mode"])) == (directory_inode(FIRST, TOP_TAG), True)
    assert attributes["attr_timeout"] == 0


async def test_the_list_of_the_root_goes_on_where_it_was(mounted, replies):
    replies.room = 3
    await mounted.operations.readdir(ROOT_INODE, 0, None)
    offset = replies[-1][2]
    mounted.repository.trees[FIRST - 86_400] = Dir()  # sorts before what was listed already
    del mounted.repository.trees[FIRST]
    await mounted.operations.look()
    replies.clear()
    await mounted.operations.readdir(ROOT_INODE, offset, None)
    assert [name for name, _, _ in replies] == [SECOND_NAME]
    replies.room = 100
    assert len(await listing(mounted, ROOT_INODE, replies)) == 4


async def test_names_that_the_kernel_would_refuse_are_left_out(mounted, replies, caplog):
    mounted.repository.extra_entries[SECOND] = [Entry(b"n" * 256, Kind.REGULAR), Entry(b"o" * 255, Kind.REGULAR)]
    inode = await mounted.inode(SECOND_NAME)
    assert await listing(mounted, inode, replies) == [b".", b"..", b"a", b"o" * 255]
    await listing(mounted, inode, replies)
    assert caplog.text.count("longer than 255 bytes") == 1


# Sessions that come and go


async def test_a_new_session_is_there_after_a_look(mounted, told):
    third = SECOND + 86_400
    assert (await mounted.lookup(b"@2024-05-03T10:00")).st_ino == 0
    await mounted.operations.look()
    told.clear()
    mounted.repository.trees[third] = Dir({"a": File(b"third")})
    await mounted.operations.look()
    assert told == [(ROOT_INODE, b"@2024-05-03T10:00"), (ROOT_INODE,)]
    assert await mounted.content(b"@2024-05-03T10:00", b"a") == b"third"
    assert (await mounted.operations.getattr(ROOT_INODE, None)).st_mtime_ns == third * 10**9


async def test_a_kernel_that_has_let_all_go_is_no_news(mounted, monkeypatch, caplog):
    """The mount may just be ending."""

    def is_unknown(*_):
        raise FileNotFoundError(errno.ENOENT, "fuse_lowlevel_notify_inval_inode")

    for name in ("invalidate_entry", "invalidate_inode"):
        monkeypatch.setattr(pyfuse3, name, is_unknown)
    mounted.repository.trees[SECOND + 86_400] = Dir({})
    await mounted.operations.look()
    assert caplog.text == ""


async def test_the_kernel_is_told_what_has_gone(mounted, told):
    await mounted.operations.look()
    told.clear()
    await mounted.operations.look()
    assert told == []
    del mounted.repository.trees[FIRST]
    await mounted.operations.look()
    await mounted.operations.look()
    assert told == [(ROOT_INODE, FIRST_NAME), (ROOT_INODE,)]


async def test_a_removed_session_is_gone(mounted, told):
    d = await mounted.inode(FIRST_NAME, b"d")
    inner = await mounted.inode(FIRST_NAME, b"d", b"inner")
    del mounted.repository.trees[FIRST]
    await mounted.operations.look()
    assert (await mounted.lookup(FIRST_NAME)).st_ino == 0
    for inode in (d, inner, directory_inode(FIRST, TOP_TAG)):
        with Failure(errno.ENOENT):
            await mounted.operations.getattr(inode, None)


async def test_a_repository_that_cannot_be_read_comes_back(mounted, told, caplog):
    await mounted.update()
    mounted.repository.damaged["state"] = StorageError("gone")
    for _ in range(3):
        with Failure(errno.EIO):
            await mounted.operations.look()
        assert (await mounted.operations.getattr(ROOT_INODE, None)).st_mtime_ns == SECOND * 10**9
        assert (await mounted.lookup(FIRST_NAME, b"a")).st_size == 1000
    assert [record.getMessage() for record in caplog.records] == ["gone"]
    mounted.repository.damaged.clear()
    await mounted.operations.look()


async def test_who_needs_the_catalog_waits_for_it_and_the_others_do_not(mounted):
    mounted.repository.catalog_gate.clear()
    found = []

    async def find():
        found.append(await mounted.lookup(b"x", inode=directory_inode(FIRST, TOP_TAG)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mounted.operations.update)
        for _ in range(10):
            nursery.start_soon(find)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert (await mounted.lookup(FIRST_NAME)).st_ino
        assert found == []
        mounted.repository.catalog_gate.set()
    assert len(found) == 10
    assert mounted.repository.calls["catalog"] == 1


async def test_a_catalog_that_cannot_be_made_is_an_error_and_tried_again(mounted, caplog):
    mounted.repository.damaged["catalog"] = StorageError("no room")
    for _ in range(3):
        with Failure(errno.EIO):
            await mounted.inode(FIRST_NAME, b"a")
    assert [record.getMessage() for record in caplog.records] == ["no room"]
    mounted.repository.damaged.clear()
    assert await mounted.inode(FIRST_NAME, b"a")


async def test_a_repository_that_never_rests_is_an_error(mounted, monkeypatch):
    inode = await mounted.inode(FIRST_NAME)
    monkeypatch.setattr(type(mounted.repository.open_catalog()), "is_current", lambda *_: False)
    mounted.repository.trees[SECOND + 60] = Dir()
    mounted.history.refresh()
    with Failure(errno.EIO):
        await mounted.operations.getattr(version_inode(7), None)
    assert (await mounted.operations.getattr(inode, None)).st_ino == inode


async def test_a_slow_disk_is_left_to_threads(mounted, monkeypatch):
    await mounted.update()
    monkeypatch.setattr(fs, "_SLOW_S", 0.0)
    loop, asked = threading.get_ident(), []
    child = mounted.history.child
    monkeypatch.setattr(mounted.history, "child", lambda *args: asked.append(threading.get_ident()) or child(*args))
    await mounted.lookup(FIRST_NAME, b"a")
    await mounted.lookup(FIRST_NAME, b"d")
    assert (asked[0] == loop, asked[1] == loop) == (True, False)


# Files


async def test_read(mounted):
    handle = await mounted.open(FIRST_NAME, b"a")
    assert await mounted.operations.read(handle, 998, 4096) == b"89"
    assert await mounted.operations.read(handle, 1000, 10) == b""
    assert await mounted.operations.read(handle, 5000, 10) == b""
    await mounted.operations.release(handle)


async def test_what_is_cached_is_read_in_the_loop(mounted):
    handle = await mounted.open(FIRST_NAME, b"a")
    mounted.repository.gate.clear()
    assert await mounted.operations.read(handle, 0, 3) == b"012"
    assert mounted.repository.calls["pread", b"a"] == 0


async def test_what_is_not_cached_is_read_in_a_thread(mounted):
    handle = await mounted.open(FIRST_NAME, b"a")
    mounted.repository.is_cached = False
    assert await mounted.operations.read(handle, 0, 3) == b"012"
    assert mounted.repository.calls["pread", b"a"] == 1


async def test_a_small_file_of_the_mirror_is_opened_and_read_in_the_loop(mounted, monkeypatch):
    monkeypatch.setattr("histfs._vfs_tree.SMALL_BYTES", 10)
    monkeypatch.setattr("histfs.fs.SMALL_BYTES", 10)
    mounted.repository.is_cached = False
    mounted.repository.trees[SECOND] = Dir({"small": File(b"x"), "large": File(b"x" * 11)})
    threads, in_thread = [], mounted.operations._in_thread

    async def counting(limiter, function, *args):
        threads.append(function)
        return await in_thread(limiter, function, *args)

    await mounted.update()
    monkeypatch.setattr(mounted.operations, "_in_thread", counting)
    assert await mounted.content(SECOND_NAME, b"small") == b"x"
    assert threads == []
    await mounted.content(SECOND_NAME, b"large")
    assert len(threads) == 2
    await mounted.content(FIRST_NAME, b"d", b"inner")
    assert len(threads) == 3  # not from the mirror: to be put together, but then it is in memory
    mounted.operations._slow_until = float("inf")
    monkeypatch.setattr(mounted.operations, "_ask_here", lambda *_: 1 / 0)
    mounted.operations.close()
    await mounted.content(SECOND_NAME, b"small")


@pytest.fixture
def kept(monkeypatch):
    """What is kept to be answered without Python, by inode."""
    kept = {}
    monkeypatch.setattr("histfs._fs_read_ahead.keep_content", lambda inode, data: kept.__setitem__(inode, bytes(data)))
    return kept


SMALL_FILES = Dir({f"{number:03}": File(b"%d" % number) for number in range(100)} | {"large": File(b"x" * 200_000)})


@pytest.fixture
def many(monkeypatch):
    """A mount of many small files that lie in the mirror."""
    for module in ("histfs._vfs_tree", "histfs.fs"):
        monkeypatch.setattr(f"{module}.SMALL_BYTES", 128 << 10)
    many = Mounted({FIRST: SMALL_FILES})
    many.repository.has_mirror = True
    return many


async def list_files(many, replies, nursery):
    """The inodes of all files, listed as the kernel does; what is to be read ahead is."""
    await many.update()
    nursery.start_soon(many.operations.read_ahead)
    await listing(many, await many.inode(FIRST_NAME), replies)
    return {name: await many.inode(FIRST_NAME, name) for name, _, _ in replies[2:]}


async def test_a_small_file_of_the_mirror_is_read_without_being_opened(many, replies, nursery, kept):
    inodes = await list_files(many, replies, nursery)
    assert await many.operations.read(inodes[b"007"], 0, 4096) == b"7"
    assert many.repository.calls["open", b"007"] == 0
    assert len(many.operations._open_files) == 0


async def test_what_is_something_else_in_the_mirror_is_opened_as_ever(many, replies, nursery, kept):
    inodes = await list_files(many, replies, nursery)
    many.repository.has_mirror = False
    assert await many.operations.read(inodes[b"007"], 0, 4096) == b"7"
    assert many.repository.calls["open", b"007"] == 1


async def test_the_next_files_are_kept(many, replies, nursery, kept):
    inodes = await list_files(many, replies, nursery)
    for number in range(100):
        if inodes[b"%03d" % number] not in kept:
            await many.operations.read(inodes[b"%03d" % number], 0, 4096)
            while many.operations._readers.borrowed_tokens:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(kept) > 80
    assert all(kept[inode] == b"%d" % int(name) for name, inode in inodes.items() if inode in kept)
    assert inodes[b"large"] not in kept


async def test_what_cannot_be_read_ahead_concerns_only_who_asks_for_it(many, replies, nursery, kept, monkeypatch):
    def contents(_inodes, **_):
        raise DamagedError("is damaged")

    inodes = await list_files(many, replies, nursery)
    monkeypatch.setattr(many.history, "contents", contents)
    assert await many.operations.read(inodes[b"000"], 0, 4096) == b"0"
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert kept == {}


async def test_a_bug_in_reading_ahead_costs_nobody_else(many, replies, nursery, kept, monkeypatch, caplog):
    inodes = await list_files(many, replies, nursery)
    contents = many.history.contents
    monkeypatch.setattr(many.history, "contents", lambda *_, **__: 1 / 0)
    many.operations._ahead.want([inodes[b"001"]])
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert "a bug" in caplog.text
    monkeypatch.setattr(many.history, "contents", contents)
    many.operations._ahead.want([inodes[b"002"]])
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert kept == {inodes[b"002"]: b"2"}


async def test_where_much_is_to_be_read_ahead_no_more_is_added(many, kept):
    for _ in range(3 * BATCHES_WAITING):
        many.operations._ahead.want([ROOT_INODE])
    assert many.operations._ahead._next_batch.statistics().current_buffer_used == BATCHES_WAITING


async def test_one_version_is_opened_once(mounted):
    """Through hard links, and in one snapshot after the other."""
    mounted.repository.trees[FIRST + 60] = TREE
    await mounted.operations.look()
    handles = {await mounted.open(name, b"a") for name in mounted.history.names() if name != SECOND_NAME}
    handles.add(await mounted.open(b"@2024-05-01T10:01", b"again"))
    assert len(handles) == 1
    assert mounted.repository.calls["open", b"a"] == 1


async def test_what_was_closed_can_be_read(mounted):
    """Where the kernel does not tell what it opens, this is how every file is read."""
    handle = await mounted.open(FIRST_NAME, b"a")
    await mounted.operations.release(handle)
    mounted.operations.close()
    assert await mounted.operations.read(handle, 0, 2) == b"01"
    assert mounted.repository.calls["open", b"a"] == 2


@pytest.mark.parametrize(
    ("name", "number"), [(b"d", errno.EISDIR), (b"fifo", errno.ENXIO), (b"dev", errno.ENXIO), (b"link", errno.ENXIO)]
)
async def test_only_regular_files_are_opened(mounted, name, number):
    inode = await mounted.inode(FIRST_NAME, name)
    with Failure(number):
        await mounted.operations.open(inode, os.O_RDONLY, None)
    assert mounted.repository.calls["open", name] == 0


async def test_a_damaged_file_is_an_error_for_this_file_logged_once(mounted, caplog):
    mounted.repository.damaged["read", b"a"] = DamagedError("is damaged", path=b"a", at=FIRST)
    mounted.repository.is_cached = False
    handle = await mounted.open(FIRST_NAME, b"a")
    for offset in range(20):
        with Failure(errno.EIO):
            await mounted.operations.read(handle, offset, 1)
    assert await mounted.content(FIRST_NAME, b"d", b"inner") == b"inner"
    assert [record.getMessage() for record in caplog.records] == [str(mounted.repository.damaged["read", b"a"])]
    assert "Traceback" not in caplog.text


async def test_each_damaged_file_is_logged(mounted, caplog):
    for name in (b"a", b"d/inner"):
        mounted.repository.damaged[name] = DamagedError("is damaged", path=name)
    for path in [(b"a",), (b"d", b"inner"), (b"again",)]:
        with Failure(errno.EIO):
            await mounted.open(FIRST_NAME, *path)
    assert sorted(record.getMessage() for record in caplog.records) == ["a: is damaged", "d/inner: is damaged"]


async def test_content_that_ends_early_is_not_filled_with_zeros(mounted, caplog):
    handle = await mounted.open(FIRST_NAME, b"a")
    with mounted.operations._open_files.use(handle) as file:
        file.content.data = b"short"
    with Failure(errno.EIO):
        await mounted.operations.read(handle, 0, 4096)
    assert "is shorter than recorded" in caplog.text


async def test_a_missing_name_is_not_news(mounted, caplog):
    with Failure(errno.ENOENT):
        await mounted.operations.getattr(version_inode(999), None)
    assert caplog.records == []


async def test_a_bug_is_logged_once_with_its_traceback(mounted, monkeypatch, caplog):
    monkeypatch.setattr(mounted.history, "attributes", lambda _inode: 1 / 0)
    for _ in range(5):
        with Failure(errno.EIO):
            await mounted.operations.getattr(version_inode(3), None)
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text


def test_what_was_logged_is_remembered_within_bounds(mounted, caplog):
    for number in range(3000):
        mounted.operations.reports.report(DamagedError(f"{number}"), errno.EIO, "read")
    assert len(caplog.records) == 3000
    assert len(mounted.operations.reports._said) <= 1000


async def test_debugging_logs_requests_but_no_content(mounted, caplog):
    caplog.set_level(logging.DEBUG, "histfs._fs_answers")
    await mounted.content(FIRST_NAME, b"d", b"inner")
    messages = [record.getMessage() for record in caplog.records]
    assert f"lookup(1, {FIRST_NAME!r})" in messages
    assert not any("b'inner'" in message for message in messages if message.startswith("read"))


# Many at the same time


async def test_ten_that_open_one_file_wait_for_one_job(mounted):
    inode = await mounted.inode(FIRST_NAME, b"a")
    mounted.repository.gate.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(mounted.operations.open, inode, os.O_RDONLY, None)
        await trio.testing.wait_all_tasks_blocked()
        mounted.repository.gate.set()
    assert mounted.repository.calls["open", b"a"] == 1


async def test_ten_that_read_what_is_not_open_wait_for_one_job(mounted):
    inode = await mounted.inode(FIRST_NAME, b"a")
    mounted.repository.gate.clear()
    got = []

    async def read(offset):
        got.append(await mounted.operations.read(inode, offset, 1))

    async with trio.open_nursery() as nursery:
        for offset in range(10):
            nursery.start_soon(read, offset)
        await trio.testing.wait_all_tasks_blocked()
        mounted.repository.gate.set()
    assert sorted(got) == [b"%d" % digit for digit in range(10)]
    assert mounted.repository.calls["open", b"a"] == 1


async def test_blocks_of_one_file_are_read_at_the_same_time(mounted):
    handle = await mounted.open(FIRST_NAME, b"a")
    mounted.repository.is_cached = False
    mounted.repository.read_gate.clear()
    async with trio.open_nursery() as nursery:
        for offset in range(4):
            nursery.start_soon(mounted.operations.read, handle, offset, 1)
        with trio.fail_after(5):
            while mounted.repository.calls["pread", b"a"] < 4:  # noqa: ASYNC110 - a thread sets no Event
                await trio.sleep(0.01)
        mounted.repository.read_gate.set()


async def test_what_is_in_memory_does_not_wait_for_what_is_not(mounted):
    inode = await mounted.inode(FIRST_NAME, b"a")
    mounted.repository.gate.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(mounted.operations.open, inode, os.O_RDONLY, None)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await mounted.operations.getattr(inode, None)
            await mounted.operations.statfs(None)
            assert (await mounted.lookup(FIRST_NAME, b"nothing")).st_ino == 0
        mounted.repository.gate.set()


async def test_slow_openings_leave_threads_for_reads():
    mounted = Mounted({FIRST: Dir({str(number): File(b"x") for number in range(40)})})
    mounted.repository.is_cached = False
    handle = await mounted.open(FIRST_NAME, b"0")
    inodes = [await mounted.inode(FIRST_NAME, b"%d" % number) for number in range(1, 40)]
    mounted.repository.gate.clear()
    async with trio.open_nursery() as nursery:
        for inode in inodes:
            nursery.start_soon(mounted.operations.open, inode, os.O_RDONLY, None)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert await mounted.operations.read(handle, 0, 1) == b"x"
        mounted.repository.gate.set()


async def test_a_job_that_fails_fails_for_all_and_can_be_tried_again(mounted, monkeypatch, caplog):
    inode = await mounted.inode(FIRST_NAME, b"a")
    mounted.repository.damaged[b"a"] = DamagedError("is damaged", path=b"a")
    mounted.repository.gate.clear()
    failures = []

    async def attempt():
        with Failure(errno.EIO):
            await mounted.operations.open(inode, os.O_RDONLY, None)
        failures.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(attempt)
        await trio.testing.wait_all_tasks_blocked()
        mounted.repository.gate.set()
    assert len(failures) == 5
    assert mounted.repository.calls["open", b"a"] == 1
    assert len(caplog.records) == 1
    with Failure(errno.EIO):  # not at once
        await mounted.operations.read(inode, 0, 1)
    assert mounted.repository.calls["open", b"a"] == 1
    mounted.repository.damaged.clear()
    monkeypatch.setattr(open_files, "_FAILURE_IS_NEWS_FOR_S", 0.0)
    assert await mounted.content(FIRST_NAME, b"a") == b"0123456789" * 100


async def test_who_waits_for_a_cancelled_job_does_it_itself(mounted):
    inode = await mounted.inode(FIRST_NAME, b"a")
    mounted.repository.gate.clear()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first():
            with scope:
                await mounted.operations.open(inode, os.O_RDONLY, None)

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(mounted.operations.open, inode, os.O_RDONLY, None)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        mounted.repository.gate.set()
    assert inode in mounted.operations._open_files


async def test_memory_does_not_grow_with_what_was_looked_at(replies):
    mounted = Mounted({FIRST: Dir({f"{number}": File() for number in range(300)})})
    for number in range(300):
        await mounted.content(FIRST_NAME, b"%d" % number)
        await listing(mounted, directory_inode(FIRST, TOP_TAG), replies)
    operations = mounted.operations
    assert [len(table) for table in (operations._open_files, operations._pages, operations._flights)] == [256, 1, 0]
    assert sum(mounted.repository.open_now.values()) == 256 + 1  # the catalog
    operations.close()
    mounted.history.close()
    assert +mounted.repository.open_now == {}


# What is kept open


def opened(number, size_bytes=1):
    return OpenVersion(FakeContent(FakeRepository({}), b"%d" % number, b""), size_bytes, b"", FIRST)


def test_the_least_recently_read_are_closed():
    files = OpenFiles(max_small=2)
    versions = [opened(number) for number in range(4)]
    for number in (0, 1):
        files.add(number, versions[number])
    with files.use(0):
        files.add(2, versions[2])
        files.add(3, versions[3])
    assert [version.content.is_open for version in versions] == [True, False, False, True]
    files.close()
    assert not any(version.content.is_open for version in versions)


def test_what_is_read_is_not_closed():
    files = OpenFiles(max_small=1)
    first = opened(0)
    files.add(0, first)
    with files.use(0) as file:
        for number in range(1, 10):
            files.add(number, opened(number))
        assert file.content.is_open
    files.add(10, opened(10))
    assert not first.content.is_open
    assert len(files) == 1


def test_small_files_are_kept_up_to_a_total_of_bytes():
    files = OpenFiles(small_bytes=100)
    versions = [opened(number, 40) for number in range(5)]
    for number, version in enumerate(versions):
        files.add(number, version)
        assert len(files) <= 2
    files.add(7, opened(7, 1000))  # what is more than all of it stays until the next
    assert len(files) == 1
    files.add(8, opened(8, 0))
    assert 7 not in files


def test_many_small_files_do_not_close_a_large_one():
    files = OpenFiles(max_small=2, max_large=1)
    large = opened(0, 1 << 30)
    files.add(0, large)
    for number in range(1, 100):
        files.add(number, opened(number))
    assert large.content.is_open
    files.add(100, opened(100, 1 << 30))
    assert not large.content.is_open


def test_what_nobody_reads_is_closed_after_a_while(monkeypatch):
    files, version, used = OpenFiles(), opened(0), opened(1)
    files.add(0, version)
    files.add(1, used)
    files.close_idle()
    assert version.content.is_open
    monkeypatch.setattr(open_files, "_IDLE_S", 0.0)
    with files.use(1):
        files.close_idle()
        assert (version.content.is_open, used.content.is_open) == (False, True)


def test_failures_are_remembered_within_bounds():
    files = OpenFiles()
    for number in range(1000):
        files.add_failure(number, DamagedError(""))
    assert len(files._failures) <= 100
    with pytest.raises(DamagedError):
        files.check_failure(999)
    files.check_failure(0)
