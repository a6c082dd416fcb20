"""python -m bench.passthrough DIRECTORY MOUNTPOINT: show a plain directory through FUSE. The floor of every comparison.

What it costs to pass each request on to the kernel is what no file system in Python and FUSE can save. It does the
least that is right: one stat a name, one open and one pread a request, the directory read when it is opened. Nothing
ever changes, so all time-outs are long and page caches are kept.
"""

import errno
import os
import signal
import stat
import sys
from contextlib import suppress

import pyfuse3
import trio

READ_AHEAD_KIB = 512  # what histfs mounts with
_TIMEOUT_S = 86_400.0


class PassThrough(pyfuse3.Operations):
    """Inodes are numbered as they are looked up, and never forgotten: the directory's size bounds the memory."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self._paths: dict[int, str] = {pyfuse3.ROOT_INODE: root}
        self._inodes: dict[str, int] = {root: pyfuse3.ROOT_INODE}
        self._directories: dict[int, tuple[int, list[str]]] = {}

    def _attributes(self, path: str) -> pyfuse3.EntryAttributes:
        found = os.lstat(path)
        inode = self._inodes.setdefault(path, len(self._inodes) + 1)
        self._paths[inode] = path
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode, entry.st_nlink, entry.st_rdev = found.st_mode, found.st_nlink, found.st_rdev
        entry.st_uid, entry.st_gid = found.st_uid, found.st_gid
        entry.st_size, entry.st_blocks = found.st_size, found.st_blocks
        entry.st_atime_ns, entry.st_mtime_ns = found.st_atime_ns, found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT_S
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        try:
            return self._attributes(f"{self._paths[parent_inode]}/{os.fsdecode(name)}")
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        return self._attributes(self._paths[inode])

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return os.fsencode(os.readlink(self._paths[inode]))

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        path = self._paths[inode]
        handle = max(self._directories, default=0) + 1
        self._directories[handle] = inode, [f"{path}/{name}" for name in os.listdir(path)]
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        _, paths = self._directories[fh]
        for number, path in enumerate(paths[start_id:], start_id + 1):
            name = os.fsencode(path.rpartition("/")[2])
            if not pyfuse3.readdir_reply(token, name, self._attributes(path), number):
                return

    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=os.open(self._paths[inode], os.O_RDONLY), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def release(self, fh: int) -> None:
        os.close(fh)


async def serve(mountpoint: str) -> None:
    """Answer until it is unmounted, by SIGTERM or from outside."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set_read_ahead, mountpoint)
        nursery.start_soon(_unmount_when_told)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _set_read_ahead(mountpoint: str) -> None:
    device = (await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)).st_dev
    setting = trio.Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with suppress(OSError):  # only root may
        await setting.write_text(str(READ_AHEAD_KIB))


async def _unmount_when_told() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def main(directory: str, mountpoint: str) -> None:
    root = os.path.realpath(directory)
    if not stat.S_ISDIR(os.stat(root).st_mode):
        sys.exit(f"{root} is no directory")
    pyfuse3.init(PassThrough(root), mountpoint, {"ro", "fsname=passthrough"})
    try:
        trio.run(serve, mountpoint)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
