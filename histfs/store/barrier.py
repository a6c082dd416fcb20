"""A tree whose barrier covers every file system that it leads into, not only that of its root."""

import ctypes
import os

from histfs.store.tree import Tree


class BarrierTree(Tree):
    """What is changed in it is on the disk after `sync`, also where another file system is mounted in it.

    A directory is entered before anything is written in it. So the descriptor of its file system is older than the
    first write, and the kernel reports every write-back error since.
    """

    def __init__(self, root_fd: int, *, cached_directories: int = 0) -> None:
        super().__init__(root_fd, cached_directories=cached_directories)
        self.waits_for_disk = True  # else the order of writes holds only as long as the system does not crash
        self.sync_has_failed = False  # then nobody knows what is on the disk
        self._root_device = os.fstat(root_fd).st_dev
        self._others: dict[int, int] = {}  # descriptors of other file systems, by device

    def close(self) -> None:
        while self._others:
            os.close(self._others.popitem()[1])
        super().close()

    def sync(self) -> None:
        """Wait until everything written to the file systems of the tree is on the disk."""
        if not self.waits_for_disk:
            return
        for fd in (*self._others.values(), self._root_fd):
            if self._libc.syncfs(fd):
                number = ctypes.get_errno()
                self.sync_has_failed = True
                raise OSError(number, os.strerror(number), b"")

    def open_directory(self, path: bytes) -> int:
        fd = super().open_directory(path)
        try:
            self._entered(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _keep(self, parent: int, path: bytes) -> int:
        fd = super()._keep(parent, path)
        self._entered(fd)
        return fd

    def _entered(self, directory: int) -> None:
        device = os.fstat(directory).st_dev
        if device == self._root_device or device in self._others:
            return
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        if self._others.setdefault(device, fd) != fd:  # another thread was here
            os.close(fd)
