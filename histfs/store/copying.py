"""Copying many files from the source to the mirror: in C, some at a time, by threads, while the session goes on.

A file is read once, hashed and written meanwhile, and nothing that was just written is read again. One that is not what
it was when the walk looked at it, or that cannot be copied for any other reason, leaves nothing behind: whoever waits
for it does it again, one step at a time, and finds out what is wrong.
"""

import os
import struct
from binascii import hexlify
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from histfs._tree import ffi, lib
from histfs.store.entry import name_of, parent_of
from histfs.store.files import Attributes, WritableTree
from histfs.store.source import Found, Source

MAX_BYTES = 16 << 20  # of a file: others are copied by whoever meets them, block by block
_THREADS = 2
_BUFFER_BYTES = 256 * 1024
_BATCH_FILES = 200
_BATCH_BYTES = 8 << 20
_BATCH_DIRECTORIES = 16
_MOST_BATCHES = 6  # that run or wait
_COPY = struct.Struct("=iiIIQQqqIIIiI20s")  # struct histfs_copy in `_tree_build`
_OWNER_REFUSED, _HAS_XATTRS = 1, 2


class Copy:
    """A file that is being copied, to `path` in the mirror."""

    __slots__ = ("_batch", "_number", "attributes", "found", "path")

    def __init__(self, found: Found, path: bytes, attributes: Attributes, batch: "_Batch", number: int) -> None:
        self.found = found
        self.path = path
        self.attributes = attributes
        self._batch = batch
        self._number = number

    def is_done(self) -> bool:
        return self._batch.is_done()

    def sha1(self) -> bytes | None:
        """Waits for it; its SHA1 (hex), or None if it was not copied. Raises OSError."""
        return self._batch.results()[self._number]


class _Batch:
    def __init__(self, copies: "Copies") -> None:
        self._copies = copies
        self.files: list[Copy] = []
        self.size_bytes = 0
        self.records = bytearray()
        self.names = bytearray()
        self.directories: dict[bytes, tuple[int, int]] = {}
        self.future: Future[None] | None = None
        self._results: list[bytes | None] | None = None

    def is_full(self) -> bool:
        return len(self.files) >= _BATCH_FILES or self.size_bytes >= _BATCH_BYTES

    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    def results(self) -> list[bytes | None]:
        """Waits for all of it. Raises OSError."""
        if self._results is None:
            if self.future is None:
                self._copies.start()
                assert self.future is not None
            self.future.result()
            self._results = []
            for copy, (*_, error, flags, sha1) in zip(self.files, _COPY.iter_unpack(self.records), strict=True):
                self._results.append(None if error else hexlify(sha1))
                if flags and not error:
                    self._copies.see_to(copy, flags)
            self.files.clear()
        return self._results

    def run(self) -> None:
        """In a thread."""
        buffer = ffi.new("char[]", _BUFFER_BYTES)
        files = ffi.cast("struct histfs_copy *", ffi.from_buffer(self.records))
        try:
            lib.histfs_copy_files(files, len(self.files), bytes(self.names), buffer, _BUFFER_BYTES)
        finally:
            self.close()

    def close(self) -> None:
        for pair in self.directories.values():
            for fd in pair:
                os.close(fd)
        self.directories.clear()


class Copies:
    """Copies from `source` to the mirror in `tree`. A context manager: at its end nothing runs any more."""

    def __init__(self, source: Source, tree: WritableTree) -> None:
        self._source = source
        self._tree = tree
        self._batch = _Batch(self)
        self._running: deque[_Batch] = deque()
        self._threads = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for batch in (*self._running, self._batch):
            batch.close()

    def can_take(self, found: Found) -> bool:
        """Whether the file has nothing beyond content, owner, mode and time."""
        entry = found.entry
        return found.status.st_size <= MAX_BYTES and found.status.st_nlink == 1 and not entry.xattrs and entry.acl == ()

    def add(self, found: Found, path: bytes, attributes: Attributes) -> Copy:
        """Copy what was `found` to the new name `path` in the mirror. Raises OSError."""
        if len(self._batch.directories) >= _BATCH_DIRECTORIES and parent_of(found.path) not in self._batch.directories:
            self.start()
        batch = self._batch
        directories = self._directories(batch, parent_of(found.path), parent_of(path))
        name_at = len(batch.names)
        batch.names += found.entry.name + b"\0"
        mirror_name_at = len(batch.names)
        batch.names += name_of(path) + b"\0"
        status = found.status
        mtime_ns = status.st_mtime_ns
        attributes_here = attributes.mode, attributes.uid, attributes.gid
        batch.records += _COPY.pack(
            *(*directories, name_at, mirror_name_at, status.st_ino, status.st_dev, status.st_size, mtime_ns),
            *(*attributes_here, 0, 0, b""),
        )
        copy = Copy(found, path, attributes, batch, len(batch.files))
        batch.files.append(copy)
        batch.size_bytes += status.st_size
        if batch.is_full():
            self.start()
        return copy

    def _directories(self, batch: _Batch, source: bytes, mirror: bytes) -> tuple[int, int]:
        found = batch.directories.get(source)
        if found is None:
            source_fd = self._source.open_directory(source)
            try:
                found = source_fd, self._tree.open_directory(mirror)
            except BaseException:
                os.close(source_fd)
                raise
            batch.directories[source] = found
        return found

    def start(self) -> None:
        """Let begin what was added."""
        batch = self._batch
        if not batch.files:
            return
        self._batch = _Batch(self)
        batch.future = self._threads.submit(batch.run)
        self._running.append(batch)
        while len(self._running) > _MOST_BATCHES:
            self._running.popleft().results()

    def wait(self) -> None:
        """Wait for all copies."""
        self.start()
        while self._running:
            self._running.popleft().results()

    def see_to(self, copy: Copy, flags: int) -> None:
        """What C has left: extended attributes and lists that the copy has got by itself, from its directory, go."""
        if flags & _OWNER_REFUSED:
            self._tree.owners_were_refused = True
        if flags & _HAS_XATTRS:
            self._tree.set_attributes(copy.path, copy.found.entry.kind, copy.attributes)
