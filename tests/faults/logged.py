"""A block device that remembers in which order it was written to: which states a power cut could leave on a disk.

A file system of one file, in a process of its own, notes each write and each flush of that file before it is made. A
loop device upon that file is the disk. Afterwards any beginning of what was noted can be put together: the disk as it
was when the power went, or, without some of the writes that no flush had followed yet, as it may have been.
"""

import errno
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<QI")  # where a write begins, and its length; a flush has none
_FLUSH = 0
_NAME = "disk"
_PATIENCE_S = 20


class Write(NamedTuple):
    """Of a block; `data_at` is where its bytes are in the log. A flush is None in its place."""

    offset: int
    length: int
    data_at: int


@contextmanager
def device(image: Path, scratch: Path, log: Path) -> Iterator[str]:
    """A block device that holds the image and changes it; what is written goes to `log`."""
    mountpoint = scratch / "logged"
    mountpoint.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", __spec__.name, image, mountpoint, log])
    try:
        until = time.monotonic() + _PATIENCE_S
        while not (mountpoint / _NAME).exists():
            if server.poll() is not None or time.monotonic() > until:
                raise OSError("the logged disk cannot be mounted")
            time.sleep(0.02)
        attach = ["losetup", "--show", "--find", mountpoint / _NAME]
        loop = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        try:
            yield loop
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)
    finally:
        until = time.monotonic() + _PATIENCE_S
        while subprocess.run(["umount", mountpoint], stderr=subprocess.DEVNULL, check=False).returncode:
            if time.monotonic() > until:
                server.kill()
                break
            time.sleep(0.05)
        server.wait()


def read_log(log: Path) -> list[Write | None]:
    found: list[Write | None] = []
    with open(log, "rb") as file:
        while header := file.read(_HEADER.size):
            offset, length = _HEADER.unpack(header)
            found.append(Write(offset, length, file.tell()) if length else None)
            file.seek(length, os.SEEK_CUR)
    return found


def assemble(base: Path, log: Path, entries: list[Write | None], to: Path, *, seed: int | None = None) -> None:
    """The disk after the first `entries`. With a `seed` each write since the last flush is there only by chance."""
    shutil.copyfile(base, to) if base.stat().st_blocks * 512 >= base.stat().st_size else _copy_sparse(base, to)
    flushed = max((number for number, entry in enumerate(entries) if entry is None), default=-1)
    chance = random.Random(seed)
    with open(log, "rb") as source, open(to, "r+b") as target:
        for number, entry in enumerate(entries):
            if entry is None or (seed is not None and number > flushed and chance.random() < 0.5):
                continue
            source.seek(entry.data_at)
            target.seek(entry.offset)
            target.write(source.read(entry.length))


def _copy_sparse(base: Path, to: Path) -> None:
    subprocess.run(["cp", "--sparse=always", base, to], check=True)


# Below: the process that serves the file.


def serve(image: Path, mountpoint: Path, log: Path) -> None:
    import pyfuse3
    import trio

    fd = os.open(image, os.O_RDWR)
    noted = open(log, "wb", buffering=0)  # noqa: SIM115 - open as long as the process; its length tells how far it is
    size = os.fstat(fd).st_size
    disk = pyfuse3.ROOT_INODE + 1

    class OneFile(pyfuse3.Operations):
        async def getattr(self, inode, ctx=None):
            shown = pyfuse3.EntryAttributes()
            shown.st_ino = inode
            if inode == pyfuse3.ROOT_INODE:
                shown.st_mode, shown.st_nlink = stat.S_IFDIR | 0o700, 2
            else:
                shown.st_mode, shown.st_nlink, shown.st_size = stat.S_IFREG | 0o600, 1, size
            return shown

        async def setattr(self, inode, attr, fields, fh, ctx):
            return await self.getattr(inode)

        async def lookup(self, parent_inode, name, ctx=None):
            if name != _NAME.encode():
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(disk)

        async def open(self, inode, flags, ctx):
            return pyfuse3.FileInfo(fh=inode, direct_io=True)

        async def read(self, fh, off, size):
            return os.pread(fd, size, off)

        async def write(self, fh, off, buf):
            noted.write(_HEADER.pack(off, len(buf)) + buf)
            return os.pwrite(fd, buf, off)

        async def fsync(self, fh, datasync):
            noted.write(_HEADER.pack(_FLUSH, 0))

    options = {*pyfuse3.default_options, "fsname=logged"} - {"default_permissions"}
    pyfuse3.init(OneFile(), os.fspath(mountpoint), options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)
        noted.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(*map(Path, sys.argv[1:]))
