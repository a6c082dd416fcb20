"""The one module that changes things on disk: in a repository, or in the target of a restore.

Rules
- Everything happens below a root that was entered by descriptor (see `tree`): no link is followed.
- A file is created with O_EXCL and mode 0600, gets its owner before its mode, and its mode before anybody
  else sees it under a name that matters.
- `sync` is the barrier between what preserves the old and what overwrites it (see `barrier`). Its descriptors are
  opened before the first write, so that the kernel reports every write-back error since (Linux >= 5.8, syncfs(2)).
- A failed sync is final: nothing is retried, the session stops (fsync(2) does not report an error twice).
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from histfs._tree import ffi, lib
from histfs.store import xattrs
from histfs.store.accounts import resolved
from histfs.store.barrier import BarrierTree
from histfs.store.entry import Acl, Entry, Extras, Kind, Xattrs
from histfs.store.format.columns import TYPE_BITS
from histfs.store.owners import Owners
from histfs.store.tree import NotRegularError

Block: TypeAlias = bytes | bytearray | memoryview

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Attributes(NamedTuple):
    """What is set on a file: the low 12 mode bits, owner, group, mtime (None: left as it is), and what else it has."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int | None
    xattrs: Xattrs | None = None  # None: left as they are
    acl: Acl | None = None  # with ids in the place of names; None: left as it is

    def with_extras(self, entry: Entry, extras: Extras, owners: Owners) -> "Attributes":
        """These and, of the `extras`, what `entry` has; entries for names that nobody has here are left out."""
        xattrs = entry.xattrs if extras.xattrs else None
        acl: Acl | None = None
        if extras.acls:
            acl = resolved(entry.acl, owners).acl if entry.acl else ()
        return Attributes(self.mode, self.uid, self.gid, self.mtime_ns, xattrs, acl)


class WritableTree(BarrierTree):
    """A tree that may be changed.

    Owners that cannot be set are left as they are, and `owners_were_refused`: that is how it is for an ordinary user,
    and for root on some network file systems and in some containers. The same holds for extended attributes and access
    control lists, and `extras_were_refused`.
    """

    def __init__(self, root_fd: int, *, cached_directories: int = 128) -> None:
        super().__init__(root_fd, cached_directories=cached_directories)
        self.owners_were_refused = False
        self.extras_were_refused = False
        self.before_change: Callable[[bytes, bool], None] | None = None  # a path, and whether all in it is meant

    @classmethod
    def open(cls, path: Path | bytes, *, cached_directories: int = 128) -> Self:
        return super().open(path, cached_directories=cached_directories)

    @classmethod
    def create(cls, path: Path, *, with_parents: bool = False) -> Self:
        """Make the directory `path` (mode 0700) unless it is there, and enter it.

        The directory it lies in must exist, unless it is to be made too (`with_parents`).
        """
        if with_parents and not path.parent.exists():
            cls.create(path.parent, with_parents=True).close()
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            return cls.open(path)
        with contextlib.suppress(PermissionError):  # a directory that may be written to and not read
            _sync_host_directory(path.absolute().parent)
        return cls.open(path)

    def will_change(self, path: bytes, *, is_tree: bool = False) -> None:
        """What is done to `path` by others, as to copy in C, is announced here; what is done here announces itself."""
        if self.before_change is not None:
            self.before_change(path, is_tree)

    def _changing(self, path: bytes, *, is_tree: bool = False) -> contextlib.AbstractContextManager[tuple[int, bytes]]:
        self.will_change(path, is_tree=is_tree)
        return self._at(path)

    # Durability

    def sync_directory(self, path: bytes, *, always: bool = False) -> None:
        """Wait until the names in the directory `path` are on the disk; `always`: also where nothing else waits."""
        if not (self.waits_for_disk or always):
            return
        fd = self.open_directory(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_file(self, fd: int) -> None:
        """Wait until the content of an open file is on the disk."""
        if self.waits_for_disk:
            os.fsync(fd)

    # Creating

    def create_file(self, path: bytes) -> int:
        """A descriptor to write the new file `path`, mode 0600. FileExistsError if the name is taken."""
        with self._changing(path) as (directory, name):
            return os.open(name, _CREATE, 0o600, dir_fd=directory)

    def write_file(self, path: bytes, blocks: Iterable[bytes], *, durable: bool = False) -> int:
        """Create `path` with the bytes of `blocks`; the number of bytes. `durable`: wait until they are on the disk."""
        return self.fill_file(self.create_file(path), path, blocks, durable=durable)

    def fill_file(
        self,
        fd: int,
        path: bytes,
        blocks: Iterable[bytes],
        *,
        attributes: Attributes | None = None,
        durable: bool = False,
    ) -> int:
        """The same for the new file `path`, which is open and is closed in any case."""
        try:
            size = write_blocks(fd, blocks)
            if attributes is not None:
                self.set_file_attributes(fd, attributes)
            if durable:
                self.sync_file(fd)
        except OSError as exc:
            exc.filename = path
            raise
        finally:
            os.close(fd)
        return size

    def open_lock_file(self, path: bytes) -> int:
        """A descriptor of the file `path`, made if it is missing, to lock and to write."""
        with self._changing(path) as (directory, name):
            return os.open(name, _OPEN | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=directory)

    def open_to_change(self, path: bytes, *, size: int | None = None) -> int:
        """A descriptor to read and write the regular file `path`; what it has beyond `size` bytes goes."""
        with self._changing(path) as (directory, name):
            fd = _regular(os.open(name, _OPEN | os.O_RDWR, dir_fd=directory), path)
            if size is not None and os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            return fd

    def open_to_append(self, path: bytes) -> int:
        """A descriptor to write at the end of the regular file `path`, made if it is missing."""
        with self._changing(path) as (directory, name):
            flags = _OPEN | os.O_WRONLY | os.O_APPEND | os.O_CREAT
            return _regular(os.open(name, flags, 0o600, dir_fd=directory), path)

    def make_directory(self, path: bytes) -> None:
        with self._changing(path, is_tree=True) as (directory, name):
            os.mkdir(name, 0o700, dir_fd=directory)

    def make_directories(self, path: bytes) -> None:
        """Make the directory `path` and those above it, where they are missing."""
        missing = []
        while path and not self._make_directory_unless_there(path):
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for path in reversed(missing):
            self.make_directory(path)

    def _make_directory_unless_there(self, path: bytes) -> bool:
        """Whether the directory is there now; False if the one that it would lie in is missing."""
        try:
            self.make_directory(path)
        except FileExistsError:
            if not stat.S_ISDIR(self.stat(path).st_mode):
                raise
        except FileNotFoundError:
            return False
        return True

    def make_symlink(self, path: bytes, target: bytes) -> None:
        with self._changing(path) as (directory, name):
            os.symlink(target, name, dir_fd=directory)

    def make_special(self, path: bytes, entry: Entry) -> None:
        """A fifo, a socket or a device (needs privileges) like `entry`."""
        device = os.makedev(*entry.device_number) if entry.kind.is_device else 0
        with self._changing(path) as (directory, name):
            os.mknod(name, TYPE_BITS[entry.kind] | 0o600, device, dir_fd=directory)

    def link(self, existing: bytes, path: bytes) -> None:
        """A hard link `path` to the file `existing`."""
        with self._changing(path) as (directory, name), self._changing(existing) as (from_directory, from_name):
            os.link(from_name, name, src_dir_fd=from_directory, dst_dir_fd=directory, follow_symlinks=False)

    def try_link(self, existing: bytes, path: bytes) -> bool:
        """The same; False where the file system has no hard links, or no more for this file."""
        try:
            self.link(existing, path)
        except OSError as exc:
            if exc.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                raise
            return False
        return True

    # Replacing and removing

    def rename(self, path: bytes, new_path: bytes) -> None:
        """Put `path` in the place of `new_path`, atomically.

        Where both are links of one file rename(2) does nothing and leaves `path` behind: it is removed.
        """
        with self._changing(new_path) as (directory, name), self._changing(path) as (from_directory, from_name):
            os.rename(from_name, name, src_dir_fd=from_directory, dst_dir_fd=directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(from_name, dir_fd=from_directory)

    def move_to(self, path: bytes, other: "WritableTree", new_path: bytes) -> None:
        """Move `path` into another tree on the same file system, where nothing must be at `new_path`."""
        self.forget_directories(path)
        with (
            self._changing(path, is_tree=True) as (from_directory, from_name),
            other._at(new_path) as (directory, name),
        ):
            os.rename(from_name, name, src_dir_fd=from_directory, dst_dir_fd=directory)

    def unlink(self, path: bytes, *, missing_ok: bool = False) -> None:
        try:
            with self._changing(path) as (directory, name):
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_directory(self, path: bytes) -> None:
        """Remove the empty directory `path`."""
        self.forget_directories(path)
        with self._changing(path, is_tree=True) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def remove_tree(self, path: bytes) -> None:
        """Remove `path` and everything below it; nothing if it is not there. OSError where a file system begins."""
        self.will_change(path, is_tree=True)
        pending = [path]
        device: int | None = None
        while pending:
            current = pending[-1]
            try:
                status = self.stat(current)
                if stat.S_ISDIR(status.st_mode):
                    if device not in (None, status.st_dev):
                        raise OSError(errno.EXDEV, "is another file system", current)
                    device = status.st_dev
                    self.open_up(current, status)
                    children = self.names(current)
                    if children:
                        pending.extend(current + b"/" + name for name in children)
                        continue
                    self.remove_directory(current)
                else:
                    self.unlink(current)
            except FileNotFoundError:
                pass
            pending.pop()

    # Attributes

    def open_up(self, path: bytes, status: os.stat_result) -> None:
        """Give an ordinary user all rights in a directory, or to read a file, whose owner that is (else OSError).

        What this program writes has them. Other programs leave in a mirror what the source has.
        """
        wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o400
        if status.st_mode & wanted == wanted or os.geteuid() == 0:
            return
        mode = stat.S_IMODE(status.st_mode) | wanted
        if not path:
            self.will_change(path)
            os.fchmod(self._root_fd, mode)
            return
        with self._changing(path) as (directory, name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if os.path.samestat(os.fstat(fd), status):
                    os.chmod(f"/proc/self/fd/{fd}", mode)
            finally:
                os.close(fd)

    def open_file(self, path: bytes) -> int:
        try:
            return super().open_file(path)
        except PermissionError:
            self.open_up(path, self.stat(path))
            return super().open_file(path)

    def open_unreadable(self, path: bytes, status: os.stat_result) -> int:
        """The same for a file of `status` that its owner may not read, and that has its mode again then."""
        fd = self.open_file(path)
        if os.path.samestat(os.fstat(fd), status):
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
        return fd

    def set_attributes(
        self, path: bytes, kind: Kind, attributes: Attributes, *, expected: os.stat_result | None = None
    ) -> None:
        """Owner, then mode (not for symbolic links), then mtime of `path`, which must be of `kind`.

        `expected`: the file that it must be, with as many names as it had.
        """
        if not path:
            self.will_change(path)
            self._set_by_descriptor(self._root_fd, kind, attributes)
            return
        with self._changing(path) as (directory, name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                status = os.fstat(fd)
                if stat.S_IFMT(status.st_mode) != TYPE_BITS[kind]:
                    raise OSError(errno.EINVAL, f"is not a {kind.name.lower()} any more", path)
                if expected is not None and _identity(status) != _identity(expected):
                    raise OSError(errno.EINVAL, "is another file now", path)
                self._set_by_descriptor(fd, kind, attributes)
            finally:
                os.close(fd)

    def set_file_attributes(self, fd: int, attributes: Attributes) -> None:
        """The same for an open regular file."""
        self._set_by_descriptor(fd, Kind.REGULAR, attributes)

    def _set_by_descriptor(self, fd: int, kind: Kind, attributes: Attributes) -> None:
        """Through /proc/self/fd, as an O_PATH descriptor takes no fchmod(2) and the name may change under us."""
        magic = f"/proc/self/fd/{fd}"
        owned = self._set_owner(fd, kind, attributes)
        present = [] if attributes.xattrs is None and attributes.acl is None else xattrs.present(magic)
        if kind is not Kind.SYMLINK:
            mode = attributes.mode
            if not owned:  # setuid of another owner must not become setuid of ours
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if attributes.acl is not None:
                mode, is_refused = xattrs.set_acl(magic, present, mode, attributes.acl)
                self.extras_were_refused |= is_refused
            os.chmod(magic, mode)
        if attributes.xattrs is not None:
            self.extras_were_refused |= xattrs.set_xattrs(magic, present, attributes.xattrs, owned=owned)
        if kind is not Kind.SYMLINK and attributes.mtime_ns is not None:
            os.utime(magic, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _set_owner(self, fd: int, kind: Kind, attributes: Attributes) -> bool:
        """Whether the file has the wanted owner and group now."""
        current = os.fstat(fd)
        if (current.st_uid, current.st_gid) == (attributes.uid, attributes.gid):
            return True
        try:
            if kind is Kind.SYMLINK:  # fchownat(2) with AT_EMPTY_PATH; /proc would follow the link
                self._chown_empty_path(fd, attributes.uid, attributes.gid)
            else:
                os.chown(f"/proc/self/fd/{fd}", attributes.uid, attributes.gid)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self.owners_were_refused = True
            return False
        return True

    def _chown_empty_path(self, fd: int, uid: int, gid: int) -> None:
        at_empty_path = 0x1000
        if self._libc.fchownat(fd, b"", ctypes.c_uint(uid), ctypes.c_uint(gid), at_empty_path):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink


def make_host_directories(path: Path) -> None:
    """Make the directory `path` and those above it, where they are missing, for their owner alone."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700)


def _sync_host_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _regular(fd: int, path: bytes) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError(errno.EINVAL, "is not a regular file", path)
    return fd


def write_blocks(fd: int, blocks: Iterable[Block], *, sparse: bool = False, expected_bytes: int = 0) -> int:
    """Write all `blocks`, also where write(2) takes less; the number of bytes.

    `sparse`: blocks of zeros become holes (they are skipped, and the length is set at the end). `expected_bytes`: the
    length that is set at the beginning, so that who reads meanwhile finds holes where they are.
    """
    size = 0
    if expected_bytes:
        os.ftruncate(fd, expected_bytes)
    hole = False
    for block in blocks:
        size += len(block)
        hole = sparse and is_zeros(block)
        if hole:
            os.lseek(fd, len(block), os.SEEK_CUR)
        else:
            _write_all(fd, block)
    if hole:
        os.ftruncate(fd, size)
    return size


def set_length(fd: int, size_bytes: int) -> None:
    """What is added are zeros. Raises OSError."""
    os.ftruncate(fd, size_bytes)


def is_zeros(block: Block) -> bool:
    """Whether all bytes are."""
    return bool(lib.histfs_is_zeros(ffi.from_buffer(block), len(block)))


def _write_all(fd: int, block: Block) -> None:
    written = os.write(fd, block)
    while written < len(block):
        written += os.write(fd, memoryview(block)[written:])
