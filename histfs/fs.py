"""FUSE requests, answered from the history: `vfs` says what the tree is, this module translates it for pyfuse3.

Strategy: one task a request, all in one trio loop. What is in memory is answered in the loop; what may touch the disk
runs in a worker thread, so that `ls` never waits behind a reconstruction. There are two limiters, for the same reason:
many slow openings must not keep the reads of what is open from their threads.

Rules:
- pyfuse3 ends the mount when a handler raises anything but FUSEError. So every handler is wrapped by `reply`, which
  alone knows which error is which errno; a bug is EIO for one call.
- Only the loop touches the tables here, and never across an `await` without looking again.
- Ten that ask for one thing wait for one job: `_Flights`.
- Inode numbers are computed (see `vfs`), so lookups are not counted and `forget` has nothing to do. The handle of an
  open file or directory is its inode number; only the root has a list for each time it is opened.
- Threads cannot be stopped. At the end of the mount they are left behind with what they work on: the kernel has
  been told already, nobody waits for them.
"""

import errno
import functools
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from histfs.errors import DamagedError, HistfsError, NotADirectoryEntryError, NotFoundError
from histfs.vfs import BRIEFLY_S, FOREVER_S, ROOT_INODE, Attributes, Child, Content, File, History, View, place_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]

# The first match wins.
_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, errno.ENOENT),
    (NotADirectoryEntryError, errno.ENOTDIR),
    (HistfsError, errno.EIO),
    (MemoryError, errno.ENOMEM),
)
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # they pass, and say nothing about the repository
_NAME_MAX = 255
_BLOCK_SIZE = 4096
_WRITING = os.O_ACCMODE | os.O_TRUNC
_REPORTS_REMEMBERED = 1000


def errno_of(error: Exception) -> int:
    """The error number that says best to a program what `error` says to a person."""
    if isinstance(error, HistfsError) and isinstance(error.__cause__, OSError) and error.__cause__.errno in _SHORTAGES:
        return error.__cause__.errno
    return next((number for kind, number in _ERRNOS if isinstance(error, kind)), errno.EIO)


def reply(handler: Handler[P, T]) -> Handler[P, T]:
    """Answer every exception of a handler with an error number, and log what a person should know."""

    @functools.wraps(handler)
    async def wrapper(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s%r", handler.__name__, tuple(arg for arg in args if isinstance(arg, int | bytes)))
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            number = errno_of(error)
            self.reports.report(error, number, handler.__name__)
            raise FUSEError(number) from error

    return wrapper


class _Reports:
    """Logs each trouble once: a damaged file is read in hundreds of requests. Remembers a bounded number."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, None] = OrderedDict()

    def report(self, error: Exception, number: int, handler: str) -> None:
        if number in (errno.ENOENT, errno.ENOTDIR):  # a missing name is not news
            return
        is_bug = not isinstance(error, HistfsError)
        if not self._is_new(f"{handler}: {error!r}" if is_bug else str(error)):
            return
        if is_bug:
            log.error("a bug: %s was answered with %s", handler, errno.errorcode[number], exc_info=error)
        else:
            log.error("%s", error, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)

    def _is_new(self, key: str) -> bool:
        is_new = key not in self._said
        self._said[key] = None
        self._said.move_to_end(key)
        if len(self._said) > _REPORTS_REMEMBERED:
            self._said.popitem(last=False)
        return is_new


class _Flight:
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.error: Exception | None = None


class _Flights:
    """Single flight: while a job for a key runs, whoever asks for the same key waits for it."""

    def __init__(self) -> None:
        self._running: dict[int, _Flight] = {}

    async def run(self, key: int, job: Callable[[], Awaitable[object]]) -> None:
        """Run `job`, or wait for the one that runs. Raises what it raises; cancelled jobs look finished to others."""
        flight = self._running.get(key)
        if flight is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error
            return
        flight = self._running[key] = _Flight()
        try:
            await job()
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._running[key]
            flight.landed.set()


class _OpenFile:
    """A content that `users` handles share: all of one inode."""

    def __init__(self, file: File, content: Content) -> None:
        self.file = file
        self.content = content
        self.users = 0


class Operations(pyfuse3.Operations):
    """The handlers. `repository` is asked for the size of its file system. Closed by its maker, after the mount."""

    # NFS servers, and whoever opens by handle, look up "." and "..".
    supports_dot_lookup = True

    def __init__(self, history: History, repository: Path) -> None:
        super().__init__()
        cores = os.cpu_count() or 1
        self.reports = _Reports()
        self._history = history
        self._repository = repository
        self._readers = trio.CapacityLimiter(cores + 8)
        self._builders = trio.CapacityLimiter(max(2, min(cores, 8)))
        self._loads = _Flights()  # by session time
        self._openings = _Flights()  # by inode
        self._files: dict[int, _OpenFile] = {}  # by inode
        self._known_names: set[bytes] = set()  # that the kernel may know of the root
        self._root_lists: dict[int, list[bytes]] = {}  # by handle; what was there when it was opened
        self._root_handles = count(1)  # far below every inode of a snapshot

    def close(self) -> None:
        for opened in self._files.values():
            opened.content.close()
        self._files.clear()

    @reply
    async def forget_removed_sessions(self) -> None:
        """Tell the kernel which names of the root have gone; new ones it finds by itself. To be called now and then."""
        names = await self._refresh()
        for name in self._known_names - names.keys():
            pyfuse3.invalidate_entry_async(ROOT_INODE, name, ignore_enoent=True)
        self._known_names = set(names)

    # Names and attributes

    @reply
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if len(name) > _NAME_MAX:  # the kernel lets longer ones pass
            raise FUSEError(errno.ENAMETOOLONG)
        if parent_inode == ROOT_INODE:
            return await self._lookup_in_root(name)
        session_time, row = place_of(parent_inode)
        async with self._snapshot(session_time) as view:
            found = view.child(row, name)
        return _absent(FOREVER_S) if found is None else _entry(found, FOREVER_S)

    async def _lookup_in_root(self, name: bytes) -> EntryAttributes:
        names = await self._refresh()
        if name in (b".", b".."):
            return _entry(self._history.root(), BRIEFLY_S)
        session_time = names.get(name)
        if session_time is None:
            return _absent(BRIEFLY_S)
        return _entry(await self._top(session_time), BRIEFLY_S)

    @reply
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode == ROOT_INODE:
            await self._refresh()
            return _entry(self._history.root(), BRIEFLY_S)
        session_time, row = place_of(inode)
        if row == 0:
            return _entry(await self._top(session_time), BRIEFLY_S)
        async with self._snapshot(session_time) as view:
            return _entry(view.attributes(row), FOREVER_S)

    async def _top(self, session_time: int) -> Attributes:
        while (top := self._history.top(session_time)) is None:
            job = functools.partial(self._in_thread, self._readers, self._history.read_top, session_time)
            await self._loads.run(session_time, job)
        return top

    @reply
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        session_time, row = place_of(inode)
        async with self._snapshot(session_time) as view:
            if not stat.S_ISLNK(view.attributes(row).mode):
                raise FUSEError(errno.EINVAL)
            return view.target(row)

    @reply
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # Without default_permissions only the owner of the mount comes here, who may read all of the repository.
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        if not mode & os.X_OK or inode == ROOT_INODE:
            return True
        session_time, row = place_of(inode)
        async with self._snapshot(session_time) as view:
            shown = view.attributes(row).mode
        return stat.S_ISDIR(shown) or bool(shown & 0o111)

    @reply
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        # Never ENOSYS: the kernel would not ask again for any file.
        raise FUSEError(errno.ENODATA)

    @reply
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return []

    @reply
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        below = await self._in_thread(self._readers, os.statvfs, self._repository)
        shown = StatvfsData()
        shown.f_bsize, shown.f_frsize = below.f_bsize, below.f_frsize
        shown.f_blocks, shown.f_files = below.f_blocks, below.f_files
        shown.f_namemax = _NAME_MAX
        return shown  # nothing is free: it cannot be written

    @reply
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is remembered of an inode."""

    # Directories

    @reply
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if inode == ROOT_INODE:
            handle = next(self._root_handles)
            self._root_lists[handle] = [b".", b"..", *await self._refresh()]
            return handle
        session_time, row = place_of(inode)
        async with self._snapshot(session_time) as view:
            view.check_directory(row)
        return inode

    @reply
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        if fh in self._root_lists:
            self._fill(token, self._root_children(self._root_lists[fh], start_id), BRIEFLY_S)
            return
        session_time, row = place_of(fh)
        async with self._snapshot(session_time) as view:
            self._fill(token, view.children(row, start_id), FOREVER_S)

    def _root_children(self, names: list[bytes], offset: int) -> Iterator[Child]:
        times, root = self._history.names(), self._history.root()
        for position in range(offset, len(names)):
            name = names[position]
            if name in (b".", b".."):
                yield Child(name, root, position + 1)
            elif name in times:  # else it has gone since the directory was opened
                top = self._history.top(times[name]) or self._history.unread_top(times[name])
                yield Child(name, top, position + 1)

    def _fill(self, token: ReaddirToken, children: Iterator[Child], entry_valid_s: float) -> None:
        for child in children:
            if len(child.name) > _NAME_MAX:
                error = DamagedError("is not shown: its name is longer than 255 bytes", path=child.name)
                self.reports.report(error, errno.EIO, "readdir")
            elif not pyfuse3.readdir_reply(token, child.name, _entry(child.attributes, entry_valid_s), child.offset):
                return

    @reply
    async def releasedir(self, fh: int) -> None:
        self._root_lists.pop(fh, None)

    # Files

    @reply
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & _WRITING:
            raise FUSEError(errno.EROFS)
        while (opened := self._files.get(inode)) is None:
            await self._openings.run(inode, functools.partial(self._open_content, inode))
        opened.users += 1
        # A snapshot never changes, so what the kernel has cached of the file stays true.
        return FileInfo(fh=inode, keep_cache=True)

    async def _open_content(self, inode: int) -> None:
        session_time, row = place_of(inode)
        async with self._snapshot(session_time) as view:
            file = view.file(row)
            if not stat.S_ISREG(file.attributes.mode):
                # The kernel opens fifos and devices itself. Nothing of the repository is opened for them.
                raise FUSEError(errno.EISDIR if stat.S_ISDIR(file.attributes.mode) else errno.ENXIO)
            self._files[inode] = _OpenFile(file, await self._in_thread(self._builders, file.open))

    @reply
    async def read(self, fh: int, off: int, size: int) -> bytes:
        opened = self._files[fh]
        data = opened.content.pread_nowait(size, off)
        if data is None:
            data = await self._in_thread(self._readers, opened.content.pread, size, off)
        # The kernel would put zeros in place of what is missing.
        if len(data) < min(size, opened.file.attributes.size_bytes - off):
            raise DamagedError("is shorter than recorded", path=opened.file.path, at=place_of(fh)[0])
        return data

    @reply
    async def release(self, fh: int) -> None:
        opened = self._files[fh]
        opened.users -= 1
        if not opened.users:
            del self._files[fh]
            opened.content.close()

    # What is refused. The kernel does not even ask, as the mount is read-only.

    @reply
    async def _refuse(self, /, *_args: object, **_kwargs: object) -> NoReturn:
        raise FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    create = write = setxattr = removexattr = _refuse

    @reply
    async def _leave_to_kernel(self, /, *_args: object, **_kwargs: object) -> NoReturn:
        """ENOSYS: the kernel does what is right by itself, and does not ask again."""
        raise FUSEError(errno.ENOSYS)

    flush = fsync = fsyncdir = poll = _leave_to_kernel

    # What the handlers share

    @asynccontextmanager
    async def _snapshot(self, session_time: int) -> AsyncIterator[View]:
        """A snapshot that stays loaded while it is used."""
        job = functools.partial(self._in_thread, self._builders, self._history.load, session_time)
        while (view := self._history.acquire(session_time)) is None:
            await self._loads.run(session_time, job)
        try:
            yield view
        finally:
            self._history.release(view)

    async def _refresh(self) -> dict[bytes, int]:
        """The names in the root as they are now."""
        return await self._in_thread(self._readers, self._history.refresh)

    async def _in_thread(self, limiter: trio.CapacityLimiter, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=limiter, abandon_on_cancel=True)


def _entry(shown: Attributes, entry_valid_s: float) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = shown.inode
    entry.st_mode = shown.mode
    entry.st_nlink = shown.nlink
    entry.st_uid = shown.uid
    entry.st_gid = shown.gid
    entry.st_rdev = shown.rdev
    entry.st_size = shown.size_bytes
    entry.st_blksize = _BLOCK_SIZE
    entry.st_blocks = (shown.size_bytes + 511) // 512 if stat.S_ISREG(shown.mode) else 0
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = shown.mtime_ns
    entry.entry_timeout = entry_valid_s
    entry.attr_timeout = shown.valid_s
    return entry


def _absent(valid_s: float) -> EntryAttributes:
    """A name that is not there, which the kernel may remember (raising ENOENT it would ask every time)."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = valid_s
    return entry
