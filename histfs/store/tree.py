"""A directory tree of the host that nothing leaves: all reading goes through here.

The tree is entered once, by a descriptor of its root. Every path is resolved from there so that neither a
symbolic link nor `..` leads outside, whatever a repository or another user puts in the way: by openat2(2), or
component by component with O_NOFOLLOW where that says no. Files are opened without blocking and must be
regular: a fifo or a device in the place of a file is never opened for reading.

Paths are bytes, relative to the root, b"" is the root itself. Errors are OSErrors whose `filename`
is the whole relative path; the operations translate them.
"""

import ctypes
import errno
import os
import stat
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_TO_BE_OPENED = (errno.ELOOP, errno.ENXIO)  # a symbolic link; a socket, or a device that is not there
_OPENAT2 = 437  # the number of the system call
_LISTXATTRAT = 465  # the same, since Linux 6.13
_NO_FOLLOW = 0x100  # AT_SYMLINK_NOFOLLOW
_EMPTY_PATH = 0x1000  # AT_EMPTY_PATH
_UNIQUE_MOUNT = 0x4000  # STATX_MNT_ID_UNIQUE, since Linux 6.8
_STATX_BYTES, _STATX_MOUNT = 256, 144  # of struct statx, and where in it the number of the mount is
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_BELOW = 0x08 | 0x04 | 0x02  # RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS
_SETTLED_AFTER_S = 2.0
BLOCK_SIZE = 256 * 1024


def is_settled(directory: os.stat_result) -> bool:
    """Whether the same modification time, seen later, proves that the directory has not changed.

    One that is changed again within the tick of the clock that stamps it looks unchanged, until it is old enough.
    """
    return time.time() - directory.st_mtime > _SETTLED_AFTER_S


class NotRegularError(OSError):
    """A regular file was expected and something else is there."""


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Tree:
    """Reads a directory tree. `cached_directories` descriptors of recently used directories are kept open.

    A cached descriptor goes on meaning the directory it was opened for, also when another one takes
    that name: keep none (the default) where others change the tree and the newest state counts.
    """

    def __init__(self, root_fd: int, *, cached_directories: int = 0) -> None:
        self._root_fd = root_fd
        self._capacity = cached_directories
        self._directories: OrderedDict[bytes, int] = OrderedDict()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = self._libc.syscall
        self._syscall.argtypes = ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
        self._listxattrat = self._libc["syscall"]
        self._listxattrat.argtypes = (
            *(ctypes.c_long, ctypes.c_int, ctypes.c_char_p),
            *(ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t),
        )
        self._how = _OpenHow(_WALK, 0, _RESOLVE_BELOW)
        self._how_here = _OpenHow(_WALK, 0, _RESOLVE_BELOW | _RESOLVE_NO_XDEV)

    @classmethod
    def open(cls, path: Path | bytes, *, cached_directories: int = 0) -> Self:
        """Enter the tree at the host's `path` (links in this path are followed). Raises OSError."""
        return cls(
            os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            cached_directories=cached_directories,
        )

    def close(self) -> None:
        self.forget_directories(b"")
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def root_fd(self) -> int:
        return self._root_fd

    def lies_in(self, directory: os.stat_result) -> bool:
        """Whether the root is the `directory` or lies in it, whatever links and mounts led here."""
        fd = os.open(b".", _WALK, dir_fd=self._root_fd)
        try:
            while True:
                status = os.fstat(fd)
                if os.path.samestat(status, directory):
                    return True
                try:
                    above = os.open(b"..", _WALK, dir_fd=fd)
                except PermissionError:  # of what is above it nothing is known
                    return False
                os.close(fd)
                fd = above
                if os.path.samestat(os.fstat(fd), status):
                    return False
        finally:
            os.close(fd)

    def forget_directories(self, path: bytes) -> None:
        """Close the kept descriptors of `path` and of everything below it."""
        below = path + b"/"
        for kept in [p for p in self._directories if not path or p == path or p.startswith(below)]:
            os.close(self._directories.pop(kept))

    def stat(self, path: bytes) -> os.stat_result:
        """lstat(2) of `path`."""
        if not path:
            return os.fstat(self._root_fd)
        with self._at(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def exists(self, path: bytes) -> bool:
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: bytes) -> bool:
        """Whether a directory has this name; a link to one is none."""
        try:
            return stat.S_ISDIR(self.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_mounted(self, path: bytes) -> bool:
        """Whether the directory `path` is another file system than the one it lies in, or mounted from elsewhere."""
        with self._at(path) as (directory, name):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_dev != os.fstat(directory).st_dev:
                return True
            how = self._how_here
            fd = int(self._syscall(_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(_OpenHow)))
            if fd < 0:
                return ctypes.get_errno() == errno.EXDEV
            os.close(fd)
            return False

    def mount_number(self) -> int | None:
        """What tells the mount that the root is in from any other since the computer was started; None: not known."""
        buffer = ctypes.create_string_buffer(_STATX_BYTES)
        try:
            failed = self._libc.statx(self._root_fd, b"", _EMPTY_PATH, _UNIQUE_MOUNT, buffer)
        except AttributeError:  # an older C library
            return None
        has_number = not failed and int.from_bytes(buffer.raw[:4], sys.byteorder) & _UNIQUE_MOUNT
        return int.from_bytes(buffer.raw[_STATX_MOUNT:][:8], sys.byteorder) if has_number else None

    def names(self, path: bytes) -> list[bytes]:
        """The names in the directory `path`, in no order, without `.` and `..`."""
        fd = self.open_directory(path)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        except OSError as exc:
            exc.filename = path
            raise
        finally:
            os.close(fd)

    def names_of_files(self, path: bytes) -> list[bytes]:
        """The names in the directory `path` that are not directories themselves, in no order."""
        return self.names_by_kind(path)[1]

    def names_by_kind(self, path: bytes) -> tuple[list[bytes], list[bytes]]:
        """The names in the directory `path`, in no order: those of directories, and those of everything else."""
        directories: list[bytes] = []
        others: list[bytes] = []
        fd = self.open_directory(path)
        try:
            with os.scandir(fd) as found:
                for item in found:
                    is_directory = item.is_dir(follow_symlinks=False)
                    (directories if is_directory else others).append(os.fsencode(item.name))
        except OSError as exc:
            exc.filename = path
            raise
        finally:
            os.close(fd)
        return directories, others

    def directories_below(self, path: bytes) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
        """`path` and each directory below it, with the names in it as `names_by_kind` gives them.

        Nothing if there is no such directory. Directories that go meanwhile are passed over.
        """
        pending = [path]
        while pending:
            directory = pending.pop()
            try:
                directories, others = self.names_by_kind(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            pending += [directory + b"/" + name for name in directories]
            yield directory, directories, others

    def files_below(self, path: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Everything below `path` that is not a directory, as (directory, name); as `directories_below`."""
        return ((directory, name) for directory, _, others in self.directories_below(path) for name in others)

    def readlink(self, path: bytes) -> bytes:
        with self._at(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def xattr_names(self, path: bytes) -> list[bytes]:
        """The names of the extended attributes of `path`, access control lists among them; a link is not followed."""
        if path:
            with self._at(path) as (directory, name):
                # Most files have none, which this tells in half the time, where there is this call.
                if self._listxattrat(_LISTXATTRAT, directory, name, _NO_FOLLOW, None, 0) == 0:
                    return []
        with self._magic(path) as magic:
            return [os.fsencode(name) for name in os.listxattr(magic, follow_symlinks=False)]

    def xattr(self, path: bytes, name: bytes) -> bytes:
        """The extended attribute `name` of `path`; a link is not followed."""
        with self._magic(path) as magic:
            return os.getxattr(magic, name, follow_symlinks=False)

    @contextmanager
    def _magic(self, path: bytes) -> Iterator[bytes]:
        """A path of the host for `path`, for system calls that do not take the descriptor of a directory."""
        if not path:
            yield b"/proc/self/fd/%d/." % self._root_fd
            return
        with self._at(path) as (directory, name):
            yield b"/proc/self/fd/%d/%b" % (directory, name)

    def open_file(self, path: bytes) -> int:
        """A descriptor to read the regular file `path`; NotRegularError if it is anything else.

        The type is looked at before the file is opened, as opening a fifo or a device has effects of
        its own, and again on the descriptor, as the name may have got another file in between.
        """
        with self._at(path) as (directory, name):
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise NotRegularError(errno.EINVAL, "is not a regular file", path)
            try:
                fd = os.open(name, _READ, dir_fd=directory)
            except OSError as exc:
                if exc.errno not in _NOT_TO_BE_OPENED:
                    raise
                raise NotRegularError(errno.EINVAL, "is not a regular file", path) from exc
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise NotRegularError(errno.EINVAL, "is not a regular file", path)
            return fd

    def read_small_file(self, path: bytes, *, limit: int = 1 << 20) -> bytes:
        """All bytes of a file that must not be larger than `limit` bytes (OSError EFBIG if it is)."""
        fd = self.open_file(path)
        try:
            data = b"".join(file_blocks(fd, limit + 1))
        finally:
            os.close(fd)
        if len(data) > limit:
            raise OSError(errno.EFBIG, "is too large", path)
        return data

    @contextmanager
    def directories(self, *paths: bytes) -> Iterator[list[int]]:
        """Descriptors of directories, in which names may be opened meanwhile. Raises OSError where one is none."""
        with ExitStack() as stack:
            opened = []
            for path in paths:
                opened.append(self._walk(self._root_fd, path) if path else self._root_fd)
                if path:
                    stack.callback(os.close, opened[-1])
            yield opened

    def open_directory(self, path: bytes) -> int:
        """A descriptor to list the directory `path`; the caller closes it."""
        if not path:
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
        with self._at(path) as (directory, name):
            return os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory)

    @contextmanager
    def _at(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The descriptor of the directory that holds `path`, and the name in it."""
        parent, _, name = path.rpartition(b"/")
        if name in (b"", b".", b"..") or b"\0" in name or path.startswith(b"/"):
            raise OSError(errno.EINVAL, "is not a path inside of the tree", path)
        opened: int | None = None
        try:
            if not parent:
                directory = self._root_fd
            elif self._capacity:
                directory = self._kept(parent)
            else:
                directory = opened = self._walk(self._root_fd, parent)
            yield directory, name
        except OSError as exc:
            exc.filename = path
            raise
        finally:
            if opened is not None:
                os.close(opened)

    def _kept(self, path: bytes) -> int:
        """The kept descriptor of the directory `path`.

        Those on the way there are kept too, as a deep tree is left upwards, step by step. But one call replaces only
        half of what can be kept: the caller may still use what the last call gave.
        """
        fd = self._directories.get(path)
        if fd is not None:
            self._directories.move_to_end(path)
            return fd
        steps = [path]
        while (above := steps[-1].rpartition(b"/")[0]) and above not in self._directories:
            steps.append(above)
        kept = steps[: max(1, self._capacity // 2)]
        start = self._directories.get(above, self._root_fd)
        if len(kept) == len(steps):
            fd = self._keep(start, kept.pop())
        else:
            passed = self._walk(start, steps[len(kept)][len(above) + 1 if above else 0 :])
            try:
                fd = self._keep(passed, kept.pop())
            finally:
                os.close(passed)
        while kept:
            fd = self._keep(fd, kept.pop())
        return fd

    def _keep(self, parent: int, path: bytes) -> int:
        self._directories[path] = fd = self._walk(parent, path.rpartition(b"/")[2])
        if len(self._directories) > self._capacity:
            os.close(self._directories.popitem(last=False)[1])
        return fd

    def _walk(self, start: int, path: bytes) -> int:
        """A descriptor of the directory `path` below `start`; the caller closes it."""
        names = path.split(b"/")
        if b"" in names or b"." in names or b".." in names or b"\0" in path:
            raise OSError(errno.EINVAL, "is not a path inside of the tree", path)
        if len(names) > 1:
            found = int(self._syscall(_OPENAT2, start, path, ctypes.byref(self._how), ctypes.sizeof(_OpenHow)))
            if found >= 0:
                return found
        fd = start
        for name in names:
            try:
                following = os.open(name, _WALK, dir_fd=fd)
            finally:
                if fd != start:
                    os.close(fd)
            fd = following
        return fd


def file_blocks(fd: int, limit: int | None = None) -> Iterator[bytes]:
    """The bytes of an open file from its current position, in blocks of up to 256 KiB, `limit` bytes at most."""
    remaining = limit
    while remaining is None or remaining > 0:
        size = BLOCK_SIZE if remaining is None else min(BLOCK_SIZE, remaining)
        block = os.read(fd, size)
        if not block:
            return
        if remaining is not None:
            remaining -= len(block)
        yield block


def read_at(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes of an open file from `offset` on, also where pread(2) gives less; fewer only where the file ends."""
    data = os.pread(fd, size, offset)
    while data and len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
