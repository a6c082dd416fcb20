"""The content of a regular file at a session: opened, checked, and read from anywhere (docs/format.md 6.4, 7.3).

A version is not made. The increments that lead to it are composed into one map from its bytes to where they lie, which
is the mirror, an increment, or a temporary file with what could not be read in place (`chain`). What is small is read
through the map at once, checked against the SHA1 of its record, and kept in memory. Of what is large each read costs
its own bytes, whatever the length of the chain; its SHA1 is checked by `blocks`, which reads all, and by `pread` when
all was read: then the last piece is given out only if the whole is right.

No lock is taken: `opening` says why what is read is what the session recorded, whatever a session or a regress does
meanwhile. An open version stays readable: the mirror file is kept open, an increment that is found changed or gone
makes the version be opened anew.

    opening    from an entry to a Version: mirror, chain, and what a running session may have changed
    chain      from a chain of increments to a composed map; or, where no map will do, link by link
    sources    where bytes lie: memory, a file, an increment, a map over others
    shared     what all readers of a repository share: listings, descriptors, inflated data, maps; all bounded
"""

import errno
import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from histfs.errors import DamagedError, StorageError, storage_errors
from histfs.store.content.chain import OTHER_CONTENT
from histfs.store.content.opening import ADVICE, Opening, Version
from histfs.store.content.sources import ChangedError, Mapped
from histfs.store.entry import Entry, Kind
from histfs.store.tree import BLOCK_SIZE

if TYPE_CHECKING:
    from histfs.store.repository import Repository

_ATTEMPTS = 5
_WORTH_THREADS = 4 << 20  # bytes
_LARGE_BLOCK = 1 << 20
_READERS = 4
_CHUNK_BYTES = 2 << 20
_CHUNKS = 12  # that are read, hashed, and written
_MOST_HASHED = 3  # chunks that wait, or are
_T = TypeVar("_T")


class Content:
    """An open version. Several threads may read it; nobody may when it is closed."""

    def __init__(self, entry: Entry, session_time: int, version: Version, reopen: Callable[[], Version]) -> None:
        self.size_bytes = entry.size_bytes
        # with its fraction of a second, where a file on disk carries it
        self.mtime_ns = version.mtime_ns if version.mtime_ns // 10**9 == entry.mtime_s else None
        self._place = os.fsdecode(entry.path)
        self._time = session_time
        self._version = version
        self._reopen = reopen
        self._lock = threading.Lock()
        self._replaced: list[Version] = []  # somebody may still be reading from them

    def close(self) -> None:
        for version in [self._version, *self._replaced]:
            version.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, size: int, offset: int) -> bytes | bytearray:
        """Up to `size` bytes from `offset`; fewer only at the end. Raises DamagedError, StorageError.

        The one that completes what was read of a large version raises if the whole is not what was recorded, as do all
        that follow.
        """
        return self._pread(size, offset, is_watched=True)

    def _pread(self, size: int, offset: int, *, is_watched: bool) -> bytes | bytearray:
        wanted = max(0, min(size, self.size_bytes - offset))
        if not wanted:
            return b""
        return self._read(lambda version: self._pread_once(version, wanted, offset, is_watched=is_watched))

    def _read(self, once: Callable[[Version], _T]) -> _T:
        """What `once` makes of the version, which is opened anew if it changed. Raises DamagedError, StorageError."""
        for _ in range(_ATTEMPTS):
            version = self._version
            try:
                with storage_errors():
                    return once(version)
            except ChangedError:
                self._open_anew(version)
            except StorageError as exc:
                exc.path = exc.path or self._place
                raise
            except DamagedError as exc:
                exc.path = exc.path or self._place
                exc.at = self._time if exc.at is None else exc.at
                exc.advice = exc.advice or ADVICE
                raise
        raise DamagedError("changed at every attempt to read it", path=self._place, advice="try again in a moment")

    def _pread_once(self, version: Version, size: int, offset: int, *, is_watched: bool) -> bytes | bytearray:
        data = version.source.pread(size, offset)
        if is_watched and isinstance(version.source, Mapped) and not version.source.settle(data, offset):
            raise DamagedError(OTHER_CONTENT)
        return data

    def _open_anew(self, old: Version) -> None:
        with self._lock:
            if self._version is old:
                self._version = self._reopen()
                self._replaced.append(old)

    def pread_nowait(self, size: int, offset: int) -> bytes | bytearray | None:
        """The same if it needs no disk, takes no time, and may be given out; else None."""
        wanted = max(0, min(size, self.size_bytes - offset))
        return self._version.source.pread_nowait(wanted, offset) if wanted else b""

    def hold(self) -> tuple[int, int] | None:
        """How C reads it by itself until it is closed (see `rsync.MapReader.address`), where it is large; else None.

        What is found wrong then is found again, with words, by `pread`.
        """
        if not isinstance(self._version.source, Mapped):
            return None
        try:
            return self._version.source.hold()
        except (DamagedError, OSError):  # as `pread` will tell
            return None

    def blocks(self) -> Generator[bytes | bytearray, None, None]:
        """All bytes, in blocks of up to 1 MiB; DamagedError at the end if they are not those that were recorded."""
        checked = iter if (sha1 := self._version.unchecked_sha1) is None else partial(self._checked, sha1)
        if self.size_bytes <= _WORTH_THREADS:
            offsets = range(0, self.size_bytes, BLOCK_SIZE)
            yield from checked(self._pread(BLOCK_SIZE, offset, is_watched=False) for offset in offsets)
            return
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as hasher:
            yield from _ahead(checked(self._read_ahead(readers)), hasher)

    def _read_ahead(self, readers: ThreadPoolExecutor) -> Iterator[bytes | bytearray]:
        waiting: deque[Future[bytes | bytearray]] = deque()
        for offset in range(0, self.size_bytes, _LARGE_BLOCK):
            waiting.append(readers.submit(self._pread, _LARGE_BLOCK, offset, is_watched=False))
            if len(waiting) > _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _checked(self, sha1: bytes, blocks: Iterator[bytes | bytearray]) -> Iterator[bytes | bytearray]:
        digest = hashlib.sha1(usedforsecurity=False)
        for block in blocks:
            digest.update(block)
            yield block
        self._check(sha1, digest.hexdigest())

    def _check(self, sha1: bytes, found: str) -> None:
        if found.encode() != sha1:
            raise DamagedError(OTHER_CONTENT, path=self._place, advice=ADVICE)

    def chunks(self) -> Generator[memoryview, None, None]:
        """The same of what is large, in chunks of 2 MiB that begin at a page of memory.

        The memory of one is used again when the next but four is asked for.
        """
        ring = [memoryview(mmap.mmap(-1, _CHUNK_BYTES)) for _ in range(_CHUNKS)]
        sha1, digest = self._version.unchecked_sha1, hashlib.sha1(usedforsecurity=False)
        reading: deque[tuple[memoryview, Future[None]]] = deque()
        hashing: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as hasher:

            def taken() -> memoryview:
                chunk, read = reading.popleft()
                read.result()
                if sha1 is not None:
                    hashing.append(hasher.submit(digest.update, chunk))
                    if len(hashing) > _MOST_HASHED:
                        hashing.popleft().result()
                return chunk

            for number, offset in enumerate(range(0, self.size_bytes, _CHUNK_BYTES)):
                chunk = ring[number % _CHUNKS][: self.size_bytes - offset]
                reading.append((chunk, readers.submit(self._read_into, chunk, offset)))
                if len(reading) > _READERS:
                    yield taken()
            while reading:
                yield taken()
        if sha1 is not None:
            self._check(sha1, digest.hexdigest())  # all is hashed: no thread runs any more

    def _read_into(self, chunk: memoryview, offset: int) -> None:
        def once(version: Version) -> None:
            version.source.read_into(chunk, offset)

        self._read(once)


def _ahead(blocks: Iterator[bytes | bytearray], helpers: ThreadPoolExecutor) -> Iterator[bytes | bytearray]:
    """The same blocks. A helper makes the next one while the caller works on one."""
    following = helpers.submit(next, blocks, None)
    while (block := following.result()) is not None:
        following = helpers.submit(next, blocks, None)
        yield block


def open_content(repository: "Repository", entry: Entry, sha1: bytes | None, session_time: int) -> Content:
    """The content of the regular file `entry`, a record of the session at `session_time`.

    `sha1`: the hex digest to check, or None where none was recorded. Raises DamagedError, StorageError.
    """
    if entry.kind is not Kind.REGULAR:
        raise DamagedError("is not a regular file, so it has no content", path=entry.path, at=session_time)

    def open_version(*, anew: bool) -> Version:
        return _open_version(repository, entry, sha1, session_time, anew=anew)

    return Content(entry, session_time, open_version(anew=False), lambda: open_version(anew=True))


def _open_version(
    repository: "Repository", entry: Entry, sha1: bytes | None, session_time: int, *, anew: bool
) -> Version:
    try:
        for attempt in range(_ATTEMPTS):
            try:
                with storage_errors(at=session_time):
                    return Opening(repository, entry, sha1, session_time, anew=anew).open()
            except ChangedError:
                continue
            except StorageError as exc:
                if getattr(exc.__cause__, "errno", None) not in (errno.EMFILE, errno.ENFILE) or attempt >= 1:
                    raise
                repository.shared.close()
            except DamagedError:
                # A session or a regress may have been at work on this very file. What is really damaged stays so.
                if attempt >= 1:
                    raise
    except StorageError as exc:
        exc.path = exc.path or entry.path
        raise
    except DamagedError as exc:
        exc.path = entry.path
        exc.at = session_time
        exc.advice = exc.advice or ADVICE
        raise
    raise DamagedError(
        "changed at every attempt to read it", path=entry.path, at=session_time, advice="try again in a moment"
    )
