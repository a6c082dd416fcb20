"""Copying many files from the source to the mirror: in C, some at a time, by threads, while the session goes on.

A file is read once, hashed and written meanwhile, and nothing that was just written is read again. One that is not what
it was when the walk looked at it, or that cannot be copied for any other reason, leaves nothing behind: whoever waits
for it does it again, one step at a time, and finds out what is wrong. What is in the repository already is copied by
the system (`cloned`).
"""

import ctypes
import hashlib
import os
import struct
from binascii import hexlify
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self

from histfs._tree import ffi, lib
from histfs.errors import SourceError
from histfs.store.cloned import Clone, is_scattered, try_clone
from histfs.store.direct import try_direct, write_direct
from histfs.store.entry import name_of, parent_of
from histfs.store.files import Attributes, WritableTree, write_blocks
from histfs.store.growing import Growing
from histfs.store.source import Found, Source
from histfs.store.strangers import remove_stranger
from histfs.store.sums import BlockSums
from histfs.store.walk import fits

MAX_BYTES = 16 << 20  # of a file: others are copied by whoever meets them, block by block
_THREADS = 2
_BUFFER_BYTES = 256 * 1024
_BATCH_FILES = 200
_BATCH_BYTES = 8 << 20
_BATCH_DIRECTORIES = 16
_WRITE_BACK_BYTES = 8 << 20
_BEGIN_WRITING = 2  # sync_file_range(2): SYNC_FILE_RANGE_WRITE
_MOST_UPDATES = 3  # blocks or chunks that wait to be hashed; of the chunks in memory (`growing`) more are kept
_MOST_BATCHES = 6  # that run or wait
_COPY = struct.Struct("=iiIIQQqqIIIiI20s")  # struct histfs_copy in `csrc/copy.h`
_OWNER_REFUSED, _HAS_XATTRS, _MAY_BE_THERE = 1, 2, 4


def _written_back(fd: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """`blocks`, which are written to `fd`; the disk begins with what is there while the rest is still to come.

    By itself the system would let it lie until all of it is waited for. What goes wrong that barrier tells.
    """
    begun = end = 0
    for block in blocks:
        yield block
        end += len(block)
        if end - begun >= _WRITE_BACK_BYTES:
            _libc.sync_file_range(fd, ctypes.c_long(begun), ctypes.c_long(end - begun), _BEGIN_WRITING)
            begun = end


def _summed(blocks: Iterator[bytes], content: Growing) -> Iterator[bytes]:
    """`blocks`, of which the sums are known."""
    at = 0
    for block in blocks:
        content.sum(block, at)
        at += len(block)
        yield block


def _told(blocks: Iterator[bytes], content: Growing) -> Iterator[bytes]:
    """`blocks`, each of which is written before the next one is asked for."""
    end = 0
    for block in blocks:
        yield block
        content.wrote(end := end + len(block))


_libc = ctypes.CDLL(None, use_errno=True)


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
        self.directories: dict[tuple[bytes, bytes], tuple[int, int]] = {}
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


class LargeCopy:
    """A file that is copied in one thread and hashed in another, while a third looks at what is there already.

    Without `hashing`, a thread of its own, all of it is done by the first.
    """

    def __init__(self, hashing: ThreadPoolExecutor | None, content: Growing) -> None:
        self.content = content
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._hashing = hashing
        self._updates: deque[Future[None]] = deque()
        self._size: Future[int] = Future()

    def start(self, thread: ThreadPoolExecutor | None, fill: Callable[[], int]) -> None:
        """Copy, by `fill`, which gives the size, at once or in a thread. At once, raises what `fill` raises."""
        if thread is None:
            self._size.set_result(fill())
        else:
            self._size = thread.submit(fill)
        self._size.add_done_callback(self.content.over)

    def update(self, block: bytes | memoryview) -> None:
        """Hash a block."""
        if self._hashing is None:
            self._digest.update(block)
            return
        self._updates.append(self._hashing.submit(self._digest.update, block))
        if len(self._updates) > _MOST_UPDATES:
            self._updates.popleft().result()

    def result(self) -> tuple[int, bytes]:
        """Size and SHA1 (hex), when all is there. Raises SourceError, OSError."""
        size = self._size.result()
        while self._updates:
            self._updates.popleft().result()
        return size, self._digest.hexdigest().encode()


class Copies:
    """Copies from `source` to the mirror in `tree`. A context manager: at its end nothing runs any more."""

    def __init__(self, source: Source, tree: WritableTree) -> None:
        self._source = source
        self._tree = tree
        self._batch = _Batch(self)
        self._running: deque[_Batch] = deque()
        self._threads = ThreadPoolExecutor(_THREADS)
        # These begin when they are needed.
        self._large, self._hashing, self._summing, self._writing = (ThreadPoolExecutor(1) for _ in range(4))
        self._content: Growing | None = None  # of the large copy that was begun last
        self.may_stay: set[bytes] = set()  # paths in the mirror, until they are copied

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._content is not None:
            self._content.stop()  # whoever began it has waited for it, or was interrupted
        # The large copy uses those behind it.
        for threads in (self._threads, self._large, self._hashing, self._summing, self._writing):
            threads.shutdown(cancel_futures=True)
        if self._content is not None:
            self._content.give_up_sums()  # unless they are kept already
        for batch in (*self._running, self._batch):
            batch.close()

    def digest(self, found: Found) -> bytes:
        """The SHA1 (hex) of the source's file. Raises SourceError."""
        digest = hashlib.sha1(usedforsecurity=False)
        fd = self._source.open_file(found)
        try:
            for _ in self._source.read(found, fd, digest):
                pass
        finally:
            os.close(fd)
        return digest.hexdigest().encode()

    def copy(self, found: Found, path: bytes, attributes: Attributes) -> tuple[int, bytes]:
        """Copy it to the new name `path` at once; its size and SHA1 (hex). Raises SourceError, OSError."""
        copying = self.begin(found, path, attributes)
        try:
            return copying.result()
        except SourceError:
            self._tree.unlink(path)
            raise

    def begin(
        self,
        found: Found,
        path: bytes,
        attributes: Attributes,
        old_path: bytes | None = None,
        sums: Callable[[], BlockSums] | None = None,
    ) -> "LargeCopy":
        """The same, while the caller does something else if the file is large. Raises SourceError, OSError.

        `old_path`: a file in the mirror that may have much of the same content; the caller compares the copy with it,
        and lets it go then. If waiting for the copy raises SourceError, the caller removes what there is of `path`, who
        may be looking at it. `sums`: begins them, for a large file that is written as a whole; who has waited for the
        copy has them kept or given up.
        """
        is_large = self.is_large(found)
        self._content = content = Growing(is_compared=old_path is not None)
        copying = LargeCopy(self._hashing if is_large else None, content)
        with ExitStack() as stack:
            source_fd = self._source.open_file(found)
            stack.callback(os.close, source_fd)
            fd = self._create(path)
            stack.callback(os.close, fd)
            clone = None
            if old_path is not None:
                content.old_fd = old_fd = self._tree.open_file(old_path)
                stack.callback(os.close, old_fd)
                clone = self._clone(fd, path, old_fd, found.status.st_size)
            if clone is not None:
                content.changed = clone.changed
            elif sums is not None and is_large:
                content.sums = sums()
            used = stack.pop_all()
        try:
            copying.start(
                self._large if is_large else None,
                lambda: self._fill(found, path, attributes, source_fd, fd, clone, copying, used),
            )
        except SourceError:
            self._tree.unlink(path)
            raise
        return copying

    def _clone(self, fd: int, path: bytes, old_fd: int, size: int) -> Clone | None:
        """`fd`, which is at `path`, as a clone of another file; None where it has to be written."""
        try:
            if is_scattered(old_fd) or not try_clone(old_fd, fd):
                return None
            return Clone(fd, old_fd, os.fstat(old_fd).st_size, size)
        except OSError as exc:
            exc.filename = path
            raise

    def _fill(
        self,
        found: Found,
        path: bytes,
        attributes: Attributes,
        source_fd: int,
        fd: int,
        clone: Clone | None,
        copying: "LargeCopy",
        used: ExitStack,
    ) -> int:
        """`used`: closes what is read and written."""
        with used:
            try:
                if self.is_large(found) and clone is None and try_direct(fd):
                    chunks = self._source.read_into(copying.content.chunks(), found, source_fd, copying)
                    chunks = self._taken(chunks, copying.content)
                    size = write_direct(fd, chunks, found.status.st_size, self._writing, copying.content.wrote)
                else:
                    blocks = self._source.read(found, source_fd, copying)
                    size = self._write(fd, blocks, found, clone, copying.content)
                self._tree.set_file_attributes(fd, attributes)
            except OSError as exc:
                exc.filename = path
                raise
        return size

    def _write(self, fd: int, blocks: Iterator[bytes], found: Found, clone: Clone | None, content: Growing) -> int:
        if not self.is_large(found):
            return write_blocks(fd, blocks, sparse=True)
        if self._tree.waits_for_disk:
            blocks = _written_back(fd, blocks)
        if content.sums is not None:
            blocks = _summed(blocks, content)
        if clone is not None:
            return clone.write(_told(blocks, content))
        return write_blocks(fd, _told(blocks, content), sparse=True, expected_bytes=found.status.st_size)

    def _taken(self, chunks: Iterator[memoryview], content: Growing) -> Iterator[memoryview]:
        """`chunks`, each of which can be compared from then on."""
        at = 0
        summing: deque[Future[None]] = deque()
        try:
            for chunk in chunks:
                if content.sums is not None:
                    summing.append(self._summing.submit(content.sum, chunk, at))
                content.took(len(chunk))
                at += len(chunk)
                yield chunk
                while summing and summing[0].done():
                    summing.popleft().result()
            while summing:
                summing.popleft().result()
        finally:
            for each in summing:
                each.exception()  # only waits: who looks at the sums next is not alone with them before

    def _create(self, path: bytes) -> int:
        try:
            return self._tree.create_file(path)
        except FileExistsError:
            remove_stranger(self._tree, path)
            return self._tree.create_file(path)

    def is_large(self, found: Found) -> bool:
        return found.status.st_size > MAX_BYTES

    def can_take(self, found: Found) -> bool:
        """Whether the file has nothing beyond content, owner, mode and a time that C can tell."""
        entry = found.entry
        is_plain = found.status.st_nlink == 1 and not entry.xattrs and entry.acl == ()
        return is_plain and not self.is_large(found) and fits(found.status)

    def add(self, found: Found, path: bytes, attributes: Attributes) -> Copy:
        """Copy what was `found` to the new name `path` in the mirror. Raises SourceError, OSError.

        A file of those that `may_stay` is the copy if it has the content, and goes if not.
        """
        self._tree.will_change(path)
        may_stay = path in self.may_stay
        self.may_stay.discard(path)
        try:
            directories = self._directories(parent_of(found.path), parent_of(path))
        except SourceError:
            if may_stay:
                self._tree.unlink(path)
            raise
        batch = self._batch
        name_at = len(batch.names)
        batch.names += found.entry.name + b"\0"
        mirror_name_at = len(batch.names)
        batch.names += name_of(path) + b"\0"
        status = found.status
        mtime_ns = status.st_mtime_ns
        attributes_here = attributes.mode, attributes.uid, attributes.gid
        batch.records += _COPY.pack(
            *(*directories, name_at, mirror_name_at, status.st_ino, status.st_dev, status.st_size, mtime_ns),
            *(*attributes_here, 0, _MAY_BE_THERE if may_stay else 0, b""),
        )
        copy = Copy(found, path, attributes, batch, len(batch.files))
        batch.files.append(copy)
        batch.size_bytes += status.st_size
        if batch.is_full():
            self.start()
        return copy

    def _directories(self, source: bytes, mirror: bytes) -> tuple[int, int]:
        """Descriptors for the batch, which is another one if it has many."""
        found = self._batch.directories.get((source, mirror))
        if found is None:
            if len(self._batch.directories) >= _BATCH_DIRECTORIES:
                self.start()
            source_fd = self._source.open_directory(source)
            try:
                found = source_fd, self._tree.open_directory(mirror)
            except BaseException:
                os.close(source_fd)
                raise
            self._batch.directories[source, mirror] = found
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
