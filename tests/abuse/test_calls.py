"""Every way to read, with odd offsets and sizes; attributes in pieces; all that would change something; handles."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
from functools import partial

import pytest

from tests.abuse.daemon import mounted, wait_until
from tests.abuse.past import Past
from tests.mount.system_calls import fails

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Ways to read: descriptor, offset, size; the bytes


def pread(fd, at, size):
    return os.pread(fd, size, at)


def preadv(fd, at, size):
    """Into buffers of odd lengths."""
    buffers = [bytearray(min(part, size)) for part in (1, 3, 4095, 1, size) if size]
    got = os.preadv(fd, buffers, at) if buffers else 0
    return b"".join(buffers)[:got][:size]


def mapped(fd, at, size, kind=mmap.MAP_SHARED):
    length = os.fstat(fd).st_size
    if not length:
        return b""
    with mmap.mmap(fd, 0, kind, mmap.PROT_READ) as memory:
        return memory[at : at + size]


def sendfile(fd, at, size):
    with open(os.memfd_create("target"), "w+b", buffering=0) as target:
        while size and (sent := os.sendfile(target.fileno(), fd, at, size)):
            at, size = at + sent, size - sent
        target.seek(0)
        return target.read()


def copy_file_range(fd, at, size):
    """Within the kernel where it can be, else the copy that programs fall back to."""
    with open(os.memfd_create("target"), "w+b", buffering=0) as target:
        try:
            while size and (sent := os.copy_file_range(fd, target.fileno(), size, at)):
                at, size = at + sent, size - sent
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return os.pread(fd, size, at)
        target.seek(0)
        return target.read()


def splice(fd, at, size):
    reading, writing = os.pipe()
    try:
        read = b""
        while size and (moved := os.splice(fd, writing, min(size, 60_000), offset_src=at)):
            read += os.read(reading, moved)
            at, size = at + moved, size - moved
        return read
    finally:
        os.close(reading)
        os.close(writing)


def direct(fd, at, size):
    """O_DIRECT, which asks the mount for exactly this; FUSE needs no alignment."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size + 1) as buffer:
            got = os.preadv(again, [memoryview(buffer)[:size]], at) if size else 0
            return buffer[:got]
    finally:
        os.close(again)


def seek_and_read(fd, at, size):
    os.lseek(fd, at, os.SEEK_SET)
    read = b""
    while len(read) < size and (more := os.read(fd, size - len(read))):
        read += more
    return read


WAYS = [pread, preadv, mapped, sendfile, copy_file_range, splice, direct, seek_and_read]


def places(length, draw, count):
    """Offsets and sizes: at the edges of pages and of the file, across the end, behind it, and anywhere."""
    edges = [0, 1, 4095, 4096, 4097, 131_071, 131_072, length - 1, length, length + 1, length + 5000]
    sizes = [0, 1, 511, 4096, 4097, 131_073]
    for at in edges:
        for size in sizes:
            if at >= 0:
                yield at, size
    for _ in range(count):
        yield draw.randrange(length + 1), draw.randrange(300_000)


def check_ways(past, mountpoint, names, count):
    draw = random.Random(count)
    for name in names:
        for path in ("image", "document", "log", "small/0007", "empty"):
            content = past.files[name][path]
            fd = os.open(mountpoint / name / path, os.O_RDONLY)
            try:
                for at, size in places(len(content), draw, count):
                    way = draw.choice(WAYS)
                    assert way(fd, at, size) == content[at : at + size], (way.__name__, name, path, at, size)
                for way in WAYS:  # each of them across the end
                    at = max(0, len(content) - 1000)
                    assert way(fd, at, 3000) == content[at:], (way.__name__, name, path)
            finally:
                os.close(fd)


def test_every_way_to_read_gives_the_same_bytes(past, mountpoint):
    with mounted(past.repository, mountpoint):
        check_ways(past, mountpoint, [past.names[0], past.names[-1]], 20)


@pytest.mark.long
def test_every_way_to_read_gives_the_same_bytes_many_times(past, mountpoint):
    with mounted(past.repository, mountpoint, limit_s=500):
        for count in (500, 501, 502):
            check_ways(past, mountpoint, past.names, count)


# Extended attributes


def probe(call, path, *name, size):
    """getxattr(2) or listxattr(2) with a buffer of `size`: the length that it told, or the error; and the bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(size + 8)
    got = getattr(libc, call)(os.fsencode(path), *name, buffer if size else None, ctypes.c_size_t(size))
    assert buffer.raw[size:] == b"\0" * 8  # nothing behind the end
    return (-ctypes.get_errno(), b"") if got < 0 else (got, buffer.raw[: min(got, size)])


def test_sizes_of_extended_attributes_are_told_and_kept(scratch, mountpoint):
    past = Past(scratch, image_bytes=1 << 16, small=3)
    values = {b"user.empty": b"", b"user.one": b"1", b"user.long": bytes(range(256)) * 8, b"user.\xff": b"odd"}
    for name, value in values.items():
        os.setxattr(past.source / "image", name, value)
    past.session()
    os.setxattr(past.source / "image", b"user.later", b"x")
    past.session()
    with mounted(past.repository, mountpoint):
        path = mountpoint / past.names[0] / "image"
        for _ in range(2):
            for name, value in values.items():
                assert probe("getxattr", path, name, size=0)[0] == len(value)
                for size in {1, len(value) - 1} if len(value) > 1 else ():
                    assert probe("getxattr", path, name, size=size)[0] == -errno.ERANGE
                for size in (len(value) or 1, len(value) + 1, 60_000):
                    assert probe("getxattr", path, name, size=size) == (len(value), value)
            length, _ = probe("listxattr", path, size=0)
            assert probe("listxattr", path, size=length - 1)[0] == -errno.ERANGE
            assert probe("listxattr", path, size=1)[0] == -errno.ERANGE
            for size in (length, length + 1, 60_000):
                got, listed = probe("listxattr", path, size=size)
                assert (got, set(listed.split(b"\0"))) == (length, {*values, b""})
            for name in (b"user.later", b"user.none", b"user." + b"n" * 250):
                assert probe("getxattr", path, name, size=0)[0] == -errno.ENODATA
            assert probe("listxattr", mountpoint, size=0) == (0, b"")


# What would change something


def attempts(top, outside):
    """What is tried, by name: calls of which each has to fail with EROFS."""
    file, directory, new = top / "image", top / "d", top / "new"
    yield from (
        (f"open {flags:o}", partial(os.open, file, flags))
        for flags in (
            os.O_WRONLY,
            os.O_RDWR,
            os.O_RDONLY | os.O_TRUNC,
            os.O_RDWR | os.O_TRUNC,
            os.O_WRONLY | os.O_APPEND,
            os.O_RDWR | os.O_DIRECT,
            os.O_WRONLY | os.O_CREAT,
        )
    )
    for flags in (os.O_CREAT | os.O_WRONLY, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_RDONLY):
        yield f"create {flags:o}", partial(os.open, new, flags)
    yield "tmpfile", partial(os.open, top, os.O_TMPFILE | os.O_WRONLY)
    yield "mkdir", partial(os.mkdir, new)
    yield "rmdir", partial(os.rmdir, directory)
    yield "unlink", partial(os.unlink, file)
    yield "rename", partial(os.rename, file, new)
    yield "rename over", partial(os.rename, file, top / "log")
    yield "rename a directory", partial(os.rename, directory, new)
    yield "link", partial(os.link, file, new)
    yield "symlink", partial(os.symlink, "x", new)
    yield "mknod", partial(os.mknod, new, stat.S_IFREG | 0o600)
    yield "mkfifo", partial(os.mkfifo, new)
    yield "chmod", partial(os.chmod, file, 0o777)
    yield "chmod a directory", partial(os.chmod, directory, 0o777)
    yield "chown", partial(os.chown, file, 1, 1)
    yield "lchown", partial(os.chown, file, 1, 1, follow_symlinks=False)
    yield "utime", partial(os.utime, file)
    yield "utimens", partial(os.utime, file, ns=(1, 1))
    yield "truncate", partial(os.truncate, file, 0)
    yield "truncate to more", partial(os.truncate, file, 1 << 40)
    for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
        yield f"setxattr {flags}", partial(os.setxattr, file, "user.x", b"x", flags)
    yield "setxattr of a directory", partial(os.setxattr, directory, "user.x", b"x")
    yield "removexattr", partial(os.removexattr, file, "user.x")
    yield "into", partial(os.rename, outside, new)


_FS_IOC_SETFLAGS, _FICLONE, _FITRIM = 0x40086602, 0x40049409, 0xC0185879


def test_nothing_can_be_changed(own_past, mountpoint, tmp_path):
    (tmp_path / "outside").write_bytes(b"")
    with mounted(own_past.repository, mountpoint):
        for name in own_past.names:
            top = mountpoint / name
            before = os.stat(top / "image"), os.listdir(top)
            for what, call in attempts(top, tmp_path / "outside"):
                with pytest.raises(OSError) as raised:  # noqa: PT012 - says which it was
                    call()
                    pytest.fail(what)
                expected = (errno.EXDEV, errno.EROFS) if what == "into" else (errno.EROFS,)
                assert raised.value.errno in expected, (what, raised.value)
            fd = os.open(top / "image", os.O_RDONLY)
            for call, *arguments in (
                (os.write, fd, b"x"),
                (os.pwrite, fd, b"x", 0),
                (os.posix_fallocate, fd, 0, 1),
            ):
                fails(errno.EBADF, call, *arguments)
            fails(errno.EINVAL, os.ftruncate, fd, 0)
            for call, *arguments in ((os.fchmod, fd, 0o777), (os.fchown, fd, 1, 1), (os.setxattr, fd, "user.x", b"")):
                fails(errno.EROFS, call, *arguments)
            for request in (_FS_IOC_SETFLAGS, _FICLONE, _FITRIM, 0xDEAD):
                with pytest.raises(OSError) as raised:
                    fcntl.ioctl(fd, request, b"\0" * 64)
                assert raised.value.errno in (errno.EROFS, errno.ENOTTY, errno.EBADF, errno.EPERM, errno.EOPNOTSUPP)
            fails(errno.EBADF, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a lock for writing
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises((OSError, ValueError)):
                mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
            os.close(fd)
            assert (os.stat(top / "image"), os.listdir(top)) == before
            own_past.check(mountpoint, name, "image")
        for call, *arguments in (
            (os.mkdir, mountpoint / "new"),
            (os.rmdir, mountpoint / own_past.names[0]),
            (os.rename, mountpoint / own_past.names[0], mountpoint / "new"),
            (os.symlink, "x", mountpoint / "new"),
        ):
            fails(errno.EROFS, call, *arguments)


# Handles


class _Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path):
    libc = ctypes.CDLL(None, use_errno=True)
    handle, mount_id = _Handle(size=128), ctypes.c_int()
    done = libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0)
    assert done == 0, os.strerror(ctypes.get_errno())
    return handle


def open_by_handle(mountpoint, handle, flags=os.O_RDONLY):
    """The descriptor. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.open(mountpoint, os.O_RDONLY)
    try:
        fd = libc.open_by_handle_at(directory, ctypes.byref(handle), flags)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return fd
    finally:
        os.close(directory)


@root_only
def test_handles_lead_to_the_same_files_as_long_as_their_session_is_there(own_past, mountpoint):
    """As an NFS server needs it, which may be asked again after the mount was started anew."""
    handles, inodes = {}, {}
    with mounted(own_past.repository, mountpoint) as daemon:
        for name in own_past.names:
            for path in ("image", "document", "small/0003", "d/e/f", "small"):
                handles[name, path] = handle_of(mountpoint / name / path)
                inodes[name, path] = os.stat(mountpoint / name / path).st_ino
        daemon.forget()
        _check_handles(own_past, mountpoint, handles, inodes)
    own_past.session()
    with mounted(own_past.repository, mountpoint) as daemon:
        _check_handles(own_past, mountpoint, handles, inodes)
        gone, kept = own_past.names[0], own_past.names[1]
        assert own_past.remove_oldest(2) == [gone]
        wait_until(lambda: gone not in os.listdir(mountpoint))
        daemon.forget()
        for path in ("d/e/f", "small"):
            with pytest.raises(OSError) as raised:
                open_by_handle(mountpoint, handles[gone, path])
            assert raised.value.errno in (errno.ESTALE, errno.ENOENT)
        with pytest.raises(OSError) as raised:
            open_by_handle(mountpoint, handles[gone, "image"])  # no other session has this version
        assert raised.value.errno in (errno.ESTALE, errno.ENOENT)
        of_kept = {place: found for place, found in handles.items() if place[0] == kept}
        _check_handles(own_past, mountpoint, of_kept, inodes)
        forged = handle_of(mountpoint / kept / "image")
        for at in range(8):
            forged.data[at] ^= 0x5A
        with pytest.raises(OSError) as raised:
            open_by_handle(mountpoint, forged)
        assert raised.value.errno in (errno.ESTALE, errno.ENOENT)


def _check_handles(past, mountpoint, handles, inodes):
    for (name, path), handle in handles.items():
        fd = open_by_handle(mountpoint, handle)
        try:
            assert os.fstat(fd).st_ino == inodes[name, path]
            content = past.files[name].get(path)
            if content is not None:
                assert os.pread(fd, len(content) + 1, 0) == content
        finally:
            os.close(fd)
