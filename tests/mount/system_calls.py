"""System calls on a mounted snapshot. Run as a program: a page fault in the mount's own process waits for itself.

The snapshot has a file "f" of 50,000 times this letter, and a directory "d".
"""

import errno
import fcntl
import mmap
import os
import select
import sys
from pathlib import Path


def fails(number, function, *args):
    happened = 0
    try:
        function(*args)
    except OSError as exc:
        happened = exc.errno
    assert errno.errorcode.get(happened) == errno.errorcode[number], function


def _check_system_calls(top):
    f, d = top / "f", top / "d"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        fails(errno.EROFS, os.open, f, flags)
    fails(errno.EROFS, os.open, top / "new", os.O_WRONLY | os.O_CREAT)
    for call, *args in (
        (os.mkdir, top / "new"),
        (os.rmdir, d),
        (os.unlink, f),
        (os.rename, f, top / "new"),
        (os.symlink, "x", top / "new"),
        (os.link, f, top / "new"),
        (os.mkfifo, top / "new"),
        (os.chmod, f, 0o777),
        (os.chown, f, 1, 1),
        (os.utime, f),
        (os.truncate, f, 0),
        (os.setxattr, f, "user.x", b""),
        (os.removexattr, f, "user.x"),
    ):
        fails(errno.EROFS, call, *args)
    assert not os.access(f, os.W_OK)
    assert os.access(f, os.R_OK)
    assert not os.access(f, os.X_OK)
    assert os.listxattr(f) == []
    fails(errno.ENODATA, os.getxattr, f, "user.x")
    fails(errno.ENODATA, os.getxattr, f, "user.x")
    fails(errno.ENOENT, os.stat, top / ("n" * 255))
    fails(errno.ENAMETOOLONG, os.stat, top / ("n" * 256))
    fails(errno.ENOTDIR, os.stat, f / "x")
    fails(errno.EINVAL, os.readlink, f)
    fails(errno.EISDIR, os.read, os.open(d, os.O_RDONLY), 1)
    shown = os.statvfs(top)
    assert shown.f_namemax == 255
    assert shown.f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV) == os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
    assert (shown.f_bfree, shown.f_bavail) == (0, 0)
    assert shown.f_blocks > 0
    _check_open_file(f)


def _check_open_file(path):
    content = path.name.encode() * 50_000
    fd = os.open(path, os.O_RDONLY)
    assert os.pread(fd, 100, 49_990) == b"f" * 10
    assert os.pread(fd, 100, 50_000) == b""
    assert os.lseek(fd, 0, os.SEEK_END) == 50_000
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 50_000
    for kind in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        with mmap.mmap(fd, 0, kind, mmap.PROT_READ) as mapped:
            assert mapped[:] == content
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_SH)
    os.fsync(fd)
    assert select.select([fd], [], [], 0)[0] == [fd]
    fails(errno.EBADF, os.posix_fallocate, fd, 0, 1)
    target = os.memfd_create("target")
    assert os.sendfile(target, fd, 0, 100_000) == 50_000
    os.close(target)
    os.close(fd)
    os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 65_536) as aligned:
        assert os.preadv(direct, [aligned], 0) == 50_000
        assert aligned[:50_000] == content
    os.close(direct)


def main(mountpoint, snapshot):
    fails(errno.EROFS, os.mkdir, mountpoint / "new")
    fails(errno.EROFS, os.rmdir, mountpoint / snapshot)
    _check_system_calls(mountpoint / snapshot)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
