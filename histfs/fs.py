"""FUSE requests, answered from the history: `vfs` says what the tree is, this module translates it for pyfuse3.

Its private parts: `_fs_answers` (attributes and errors as the kernel takes them, and the log), `_fs_flights` (one job
for all who wait for the same), `_fs_open_files` (which versions are kept open, how long), `_fs_listing` (directories
as the kernel takes them), `_fs_read_ahead` (small files are read before they are asked for; `_fs_ahead` says which).

Strategy: one task a request, all in one trio loop. Questions to the catalog and small files take less than the way to a
thread and back: this is done in the loop, until something was slow because the disk is; then the next ones go to
threads for a while. All else is opened and read in threads, unless the kernel has the bytes in memory. There are two
limiters: many slow openings must not keep the reads of what is open from their threads.

Rules:
- Only the loop touches the tables here, and never across an `await` without looking again.
- Inode numbers are computed (see `vfs`), so lookups are not counted and `forget` has nothing to do. They are the
  handles as well, and nothing depends on what was opened before: where the kernel can be told so, it does not even say
  what it opens and closes (see `fuse`).
- Threads cannot be stopped. At the end of the mount they are left behind: nobody waits for them any more.
"""

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from time import monotonic
from typing import NoReturn, TypeVar, cast

import trio

from histfs._fs_answers import Reports, absent, entry_of, fill, reply, shortage
from histfs._fs_flights import Flights
from histfs._fs_listing import NAME_MAX, Page, Pages, keep
from histfs._fs_open_files import OpenFiles
from histfs._fs_read_ahead import ReadAhead, small_files
from histfs.errors import DamagedError, HistfsError, StorageError
from histfs.fuse import end_serving, forget_listings, is_by_inode, next_failure, pyfuse3, reply_listing
from histfs.vfs import (
    FOREVER_S,
    NO_XATTRS,
    NOTIFIED_S,
    ROOT_INODE,
    SMALL_BYTES,
    TOP_TAG,
    Attributes,
    Child,
    History,
    NotReadyError,
    directory_inode,
    time_of_top,
)

__all__ = ["Operations"]

T = TypeVar("T")

_TRUSTED = b"trusted."
_WRITING = os.O_ACCMODE | os.O_TRUNC
_NAMES_AT_ONCE = 512
_ATTEMPTS = 5
_SLOW_S = 0.01  # a question that took so long has met a slow disk
_SLOW_FOR_S = 0.1
_FORGOTTEN_WITHIN_S = 2.0


class Operations(pyfuse3.Operations):
    """The handlers. `repository` is asked for the size of its file system, `small_bytes` of small files may be kept
    open. Closed by its maker, after the mount. `enforces_acls`: the kernel asks for access control lists before it lets
    somebody in, which is of use where it checks permissions at all.
    """

    # NFS servers, and whoever opens by handle, look up "." and "..".
    supports_dot_lookup = True

    def __init__(
        self, history: History, repository: Path, *, small_bytes: float = inf, enforces_acls: bool = False
    ) -> None:
        super().__init__()
        self.enable_acl = enforces_acls
        cores = os.cpu_count() or 1
        self.reports = Reports()
        self._history = history
        self._repository = repository
        self._readers = trio.CapacityLimiter(cores + 8)
        self._openers = trio.CapacityLimiter(max(2, min(cores, 8)))
        self._updaters = trio.CapacityLimiter(1)
        self._flights = Flights()  # by inode; of the root: taking a new catalog
        self._open_files = OpenFiles(small_bytes=small_bytes)
        self._pages = Pages()  # by inode and offset
        self._shown = history.names()  # what the kernel may know of the root
        self._slow_until = 0.0
        self._ahead = ReadAhead(history, self._readers)

    def close(self) -> None:
        end_serving()
        self._open_files.close()

    # Sessions that come and go

    @reply
    async def look(self) -> None:
        """Look which sessions there are, and tell the kernel which names in the root have changed. Now and then."""
        await self._in_thread(self._readers, self._history.refresh)
        await self._report_failures()
        self._open_files.close_idle()
        names = self._history.names()
        if names is self._shown:
            return
        changed = {name for name, _ in self._shown.items() ^ names.items()}
        self._shown = names
        # In a thread: the kernel makes it wait while somebody looks something up in the root, which we have to answer.
        # At the end of the mount it is waited for, as it uses the session.
        with trio.move_on_after(_FORGOTTEN_WITHIN_S, shield=True):
            await self._in_thread(self._readers, _make_kernel_forget, changed)

    async def _report_failures(self) -> None:
        """Read once more what could not be read without us: then it is told what is wrong."""
        while (failure := next_failure()) is not None:
            inode, offset = failure
            with suppress(pyfuse3.FUSEError):
                await self.read(inode, offset, 1)

    @reply
    async def update(self) -> None:
        """Take the catalog that knows all sessions, if `look` has found that there are others: it may take its time."""
        if not self._history.is_current:
            await self._update()

    # Names and attributes

    @reply
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if len(name) > NAME_MAX:  # the kernel lets longer ones pass
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        if parent_inode == ROOT_INODE:
            return await self._lookup_in_root(name)
        found = await self._ask(self._history.child, parent_inode, name)
        return absent(FOREVER_S) if found is None else entry_of(found, FOREVER_S)

    async def _lookup_in_root(self, name: bytes) -> pyfuse3.EntryAttributes:
        if name in (b".", b".."):
            return entry_of(self._history.root(), NOTIFIED_S)
        session_time = self._history.names().get(name)
        if session_time is None:  # it may be a session that has just finished
            await self._in_thread(self._readers, self._history.refresh)
            session_time = self._history.names().get(name)
        return absent(NOTIFIED_S) if session_time is None else entry_of(await self._top(session_time), NOTIFIED_S)

    async def _top(self, session_time: int) -> Attributes:
        if self._history.rights_change:
            return await self._ask(self._history.attributes, directory_inode(session_time, TOP_TAG))
        while (top := self._history.top(session_time)) is None:
            job = functools.partial(self._in_thread, self._readers, self._history.read_top, session_time)
            await self._flights.run(directory_inode(session_time, TOP_TAG), job)
        return top

    @reply
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return entry_of(await self._attributes(inode), FOREVER_S)

    @reply
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        target = await self._ask(self._history.target, inode)
        if target is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return target

    @reply
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        # Without default_permissions only the owner of the mount comes here, who may read all of the repository.
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        if not mode & os.X_OK:
            return True
        shown = (await self._attributes(inode)).mode
        return stat.S_ISDIR(shown) or bool(shown & 0o111)

    @reply
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        value = (await self._xattrs(inode)).get(name)
        if value is None:  # never ENOSYS: the kernel would not ask again for any file
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    @reply
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        names = list(await self._xattrs(inode))
        if names and ctx.uid != 0:  # the kernel gives them to root alone, and what is listed should be there
            names = [name for name in names if not name.startswith(_TRUSTED)]
        return names

    async def _xattrs(self, inode: int) -> Mapping[bytes, bytes]:
        if inode == ROOT_INODE:
            return NO_XATTRS
        if not self._history.rights_change and (session_time := time_of_top(inode)) is not None:
            await self._top(session_time)
            return self._history.xattrs_of_top(session_time)
        return await self._ask(self._history.xattrs, inode) if self._history.has_xattrs else NO_XATTRS

    @reply
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        below = await self._in_thread(self._readers, os.statvfs, self._repository)
        shown = pyfuse3.StatvfsData()
        shown.f_bsize, shown.f_frsize = below.f_bsize, below.f_frsize
        shown.f_blocks, shown.f_files = below.f_blocks, below.f_files
        shown.f_namemax = NAME_MAX
        return shown  # nothing is free: it cannot be written

    @reply
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is remembered of an inode."""

    # Directories

    @reply
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if is_by_inode():
            raise pyfuse3.FUSEError(errno.ENOSYS)  # the kernel does not ask again, for any directory
        return inode

    @reply
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        offset, entry = start_id, pyfuse3.EntryAttributes()
        page = self._pages.take(fh, offset)
        files = [] if page is None else page.files
        while True:
            if page is None or page.is_told:
                taken, children = -1, []
                while taken != self._history.catalogs_taken:  # of an old one nothing may be kept
                    taken = self._history.catalogs_taken
                    children = await self._ask(self._history.children, fh, offset, _NAMES_AT_ONCE)
                files += small_files(children)
                page = Page(children, len(children) < _NAMES_AT_ONCE, files)
                if fh != ROOT_INODE and offset == start_id and self._keep_reply(fh, offset, page):
                    return
            for position, child in enumerate(page.children):
                if not self._tell(token, child, entry, NOTIFIED_S if fh == ROOT_INODE else FOREVER_S):
                    self._pages.put(fh, offset, page._replace(children=page.children[position:]))
                    return
                offset = child.offset
            if page.is_last:
                if start_id != offset:  # the kernel asks once more, to hear that this was all
                    self._pages.put(fh, offset, Page([], True, files))
                    if fh != ROOT_INODE:
                        self._ahead.listed(fh, files)
                return
            page = None

    def _keep_reply(self, inode: int, offset: int, page: Page) -> bool:
        """Have this page, now and as long as it is asked for, told without asking us; False if that cannot be."""
        if not keep(inode, offset, page):
            return False
        if not page.is_last:
            self._pages.put(inode, page.children[-1].offset, page._replace(children=[], is_told=True))
        else:
            self._ahead.listed(inode, page.files)
        self._ahead.crawl(inode, page.children, self._list_unasked)
        return reply_listing(inode, offset)

    def _list_unasked(self, inode: int) -> list[Child] | None:
        """Have a directory told without asking us, unless it is large; what is in it. None if a disk is slow.

        HistfsError.
        """
        if self._is_slow():
            return None
        children = self._ask_here(self._history.children, inode, 0, _NAMES_AT_ONCE)
        return children if len(children) < _NAMES_AT_ONCE and keep(inode, 0, Page(children, True, [])) else []

    def _tell(
        self, token: pyfuse3.ReaddirToken, child: Child, entry: pyfuse3.EntryAttributes, entry_valid_s: float
    ) -> bool:
        """Put a name into a reply; False if it is full."""
        if len(child.name) > NAME_MAX:
            error = DamagedError("is not shown: its name is longer than 255 bytes", path=child.name)
            self.reports.report(error, errno.EIO, "readdir")
            return True
        fill(entry, child.attributes, entry_valid_s)
        return bool(pyfuse3.readdir_reply(token, child.name, entry, child.offset))

    @reply
    async def releasedir(self, fh: int) -> None:
        """Nothing is remembered of an open directory."""

    # Files

    @reply
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & _WRITING:
            raise pyfuse3.FUSEError(errno.EROFS)
        if is_by_inode():
            raise pyfuse3.FUSEError(errno.ENOSYS)  # as for directories; what is damaged is told by `read`
        mode = (await self._attributes(inode)).mode
        if not stat.S_ISREG(mode):
            # The kernel opens fifos and devices itself. Nothing of the repository is opened for them.
            raise pyfuse3.FUSEError(errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO)
        await self._open(inode)
        # A version never changes, so what the kernel has cached of the file stays true.
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @reply
    async def read(self, fh: int, off: int, size: int) -> bytes:
        try:
            return await self._read(fh, off, size)
        except StorageError as error:
            if shortage(error) is None:
                raise
        self._open_files.close()  # but for what is being read: descriptors that somebody needs now
        return await self._read(fh, off, size)

    async def _read(self, fh: int, off: int, size: int) -> bytes:
        if not off:
            self._ahead.asked(fh)
            if fh not in self._open_files and not self._is_slow():
                whole = self._ask_here(self._ahead.whole, fh)
                if whole is not None:
                    return bytes(whole[:size])
        await self._open(fh)
        with self._open_files.use(fh) as file:
            data = file.content.pread_nowait(size, off)
            if data is None and file.size_bytes <= SMALL_BYTES and not self._is_slow():
                data = self._ask_here(file.content.pread, size, off)
            elif data is None:
                data = await self._in_thread(self._readers, file.content.pread, size, off)
        # The kernel would put zeros in place of what is missing.
        if len(data) < min(size, file.size_bytes - off):
            raise DamagedError("is shorter than recorded", path=file.path, at=file.at)
        return cast("bytes", data)  # anything with a buffer will do

    @reply
    async def release(self, fh: int) -> None:
        """What was read a moment ago stays open for a while."""

    async def _open(self, inode: int) -> None:
        """See that a file is open now; for how long is not said."""
        while inode not in self._open_files:
            self._open_files.check_failure(inode)
            await self._flights.run(inode, functools.partial(self._open_now, inode))

    async def _open_now(self, inode: int) -> None:
        try:
            file = None
            if not self._is_slow():
                file = await self._ask(functools.partial(self._history.open, only_if_quick=True), inode)
            if file is None:
                file = await self._ask(self._history.open, inode, limiter=self._openers)
        except HistfsError as error:
            if shortage(error) is None:  # which passes
                self._open_files.add_failure(inode, error)
            raise
        assert file is not None
        self._open_files.add(inode, file)

    async def read_ahead(self) -> None:
        """Read small files before they are asked for, until cancelled. Several may do so."""
        while True:
            with suppress(pyfuse3.FUSEError):  # a bug costs what it has met with, not the mount
                await self._read_ahead()

    @reply
    async def _read_ahead(self) -> None:
        await self._ahead.run()

    # What is refused. The kernel does not even ask, as the mount is read-only.

    @reply
    async def _refuse(self, /, *_args: object, **_kwargs: object) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    create = write = setxattr = removexattr = _refuse

    @reply
    async def _leave_to_kernel(self, /, *_args: object, **_kwargs: object) -> NoReturn:
        """ENOSYS: the kernel does what is right by itself, and does not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    flush = fsync = fsyncdir = poll = _leave_to_kernel

    # What the handlers share

    async def _attributes(self, inode: int) -> Attributes:
        if inode == ROOT_INODE:
            return self._history.root()
        if (session_time := time_of_top(inode)) is not None:
            return await self._top(session_time)
        return await self._ask(self._history.attributes, inode)

    async def _ask(self, question: Callable[..., T], *args: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """Ask the history: in the loop, or in a thread if the disk is slow or a `limiter` for threads is given.

        Waits for the catalog if it is not ready.
        """
        for _ in range(_ATTEMPTS):
            with suppress(NotReadyError):
                if limiter is not None or self._is_slow():
                    return await self._in_thread(limiter or self._readers, question, *args)
                return self._ask_here(question, *args)
            await self._update()
        raise StorageError(
            "changes faster than its history can be read", path=self._repository, advice="try again in a moment"
        )

    def _ask_here(self, question: Callable[..., T], *args: object) -> T:
        asked_at = monotonic()
        try:
            return question(*args)
        finally:
            answered_at = monotonic()
            if answered_at - asked_at > _SLOW_S:
                self._slow_until = answered_at + _SLOW_FOR_S

    def _is_slow(self) -> bool:
        return monotonic() < self._slow_until

    async def _update(self) -> None:
        await self._flights.run(ROOT_INODE, self._take_catalog)

    async def _take_catalog(self) -> None:
        await self._in_thread(self._updaters, self._history.update)
        if self._history.rights_change:
            self._pages.clear()
            forget_listings()

    async def _in_thread(self, limiter: trio.CapacityLimiter, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=limiter, abandon_on_cancel=True)


def _make_kernel_forget(names_in_root: Iterable[bytes]) -> None:
    for name in names_in_root:
        with suppress(FileNotFoundError):  # it does not know the name
            pyfuse3.invalidate_entry(ROOT_INODE, name)
    with suppress(FileNotFoundError):  # it has let the root go: the mount ends
        pyfuse3.invalidate_inode(ROOT_INODE)
