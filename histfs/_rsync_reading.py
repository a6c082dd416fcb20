"""Reading a version through its extent map, wherever its bytes lie. Private to `histfs.rsync`.

C goes through the map and reads: from memory, from files, and from gzip members, which it inflates whole, checks by
their sums, and keeps for a while in `Members`. It opens no files: it says which one must be open for it to go on. With
a `Check` it compares what is read with the SHA1 of the whole, as soon as all of it was read (csrc/checked.c). Rules
that must hold:
- Any number of threads may read with the same `MapReader`, and share sources and members.
- What C points to is referenced by the object that C reads with.
- Descriptors that are lent are closed by who lent them, with `close_idle`.
"""

import os
from array import array
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn, cast

from histfs._rsync import ffi, lib
from histfs._rsync_files import Buffer
from histfs._rsync_maps import ExtentMap
from histfs._rsync_types import CorruptError, InputEndedError, ParameterError, Result

if TYPE_CHECKING:
    from _cffi_backend import _CDataBase

    from histfs._rsync import ReadingState, SourceState, VersionState

_UNKNOWN = 2**64 - 1
_SHA1_BYTES = 20


class Members:
    """Inflated gzip members: those used last, of up to `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        memory = lib.histfs_members_new(capacity)
        if memory == ffi.NULL:
            raise MemoryError
        self._state = ffi.gc(memory, lib.histfs_members_free)

    @property
    def size_bytes(self) -> int:
        return lib.histfs_members_size(self._state)

    def clear(self) -> None:
        lib.histfs_members_clear(self._state)


class MapSource:
    """Bytes that a map refers to. `members` guards who reads from which descriptor; it is one for all of a reader."""

    def __init__(self, members: Members, *, memory: bytes | None = None, fd: int = -1) -> None:
        """All of `memory`, or of a file; without `fd` it is to be opened when it is needed."""
        self._members = members
        self._state = cast("SourceState", ffi.new("histfs_source_t *"))
        self._held: list[_CDataBase] = []
        self._state.size = _UNKNOWN
        self._state.fd = fd
        if memory is not None:
            self._state.size = len(memory)
            self._state.memory = self._hold("unsigned char const[]", memory)

    @classmethod
    def of_members(cls, members: Members, offsets: "array[int]", raw_offsets: "array[int]") -> "MapSource":
        """A gzip file: where its members begin in the file and in the bytes (arrays of type Q), and where they end."""
        if not len(offsets) == len(raw_offsets) > 1:
            raise ParameterError("members", Result.PARAM_ERROR, "misused")
        made = cls(members)
        made._state.size = raw_offsets[-1]
        made._state.member_count = len(offsets) - 1
        made._state.offsets = made._hold("uint64_t const[]", offsets)
        made._state.raw_offsets = made._hold("uint64_t const[]", raw_offsets)
        return made

    def _hold(self, kind: str, data: "Buffer | array[int]") -> "_CDataBase":
        pointer = ffi.from_buffer(kind, data)
        self._held.append(pointer)
        return pointer

    @property
    def memory_bytes(self) -> int:
        """Of the tables of members."""
        return 16 * (self._state.member_count + 1) if self._state.member_count else 0

    def lend(self, fd: int) -> bool:
        """Read from `fd`, until it is closed by `close_idle`; False if another one was lent before."""
        return bool(lib.histfs_source_lend(self._members._state, self._state, fd))

    def close_idle(self) -> bool:
        """Close what was lent, unless somebody reads from it; whether there is nothing open now."""
        return bool(lib.histfs_source_close_idle(self._members._state, self._state))


class Check:
    """What was given out of one version, and its SHA1 as far as that goes; shared by all that read the version."""

    def __init__(self, size_bytes: int, sha1: bytes, *, is_again: bool = False) -> None:
        """`sha1`: 20 bytes. `is_again`: it was read in full before, so that not all of it may be asked for again."""
        if len(sha1) != _SHA1_BYTES:
            raise ParameterError("check", Result.PARAM_ERROR, "misused")
        memory = lib.histfs_check_new(size_bytes, sha1, is_again)
        if memory == ffi.NULL:
            raise MemoryError
        self.size_bytes = size_bytes
        self._state = ffi.gc(memory, lib.histfs_check_free)

    @property
    def verdict(self) -> bool | None:
        """Whether the version is what was recorded; None as long as that is not known."""
        return {0: None, 1: True}.get(lib.histfs_check_verdict(self._state), False)


class MapReader:
    """A map with its sources, by number. With a `check` for a map of its size."""

    def __init__(
        self,
        extents: ExtentMap,
        sources: Mapping[int, MapSource],
        members: Members,
        check: Check | None = None,
    ) -> None:
        if check is not None and check.size_bytes != extents.size_bytes:
            raise ParameterError("check", Result.PARAM_ERROR, "of another size")
        count = max(sources, default=-1) + 1
        self._held = extents, members, dict(sources), check
        self._table = ffi.new("histfs_source_t *[]", count)
        table = cast("list[SourceState]", self._table)
        for number, source in sources.items():
            table[number] = source._state
        self._state = cast("VersionState", ffi.new("histfs_version_t *"))
        self._state.map = extents._state
        self._state.sources = self._table
        self._state.source_count = count
        self._state.members = members._state
        if check is not None:
            self._state.check = check._state

    def hold(self) -> bool:
        """See that no source is closed until `release` is called; False if one is not open."""
        return bool(lib.histfs_version_hold(self._state))

    def release(self) -> None:
        """To be called once for each time that `hold` said yes."""
        lib.histfs_version_release(self._state)

    @property
    def address(self) -> tuple[int, int]:
        """Of a `histfs_calls_t` (csrc/calls.h) and of what its functions take.

        They may be called from any thread, while this object lives and is held.
        """
        return lib.histfs_version_calls(), int(ffi.cast("uintptr_t", cast("_CDataBase", self._state)))

    def read(self, buffer: Buffer, offset: int, open_source: Callable[[int], None]) -> None:
        """Fill `buffer` from `offset` of the target on, where it has so many bytes.

        `open_source` is called with the number of a source that must be open to go on; what it raises passes through.
        Raises InputEndedError where a source is too short, CorruptError where a member is damaged, OSError.
        """
        memory = ffi.from_buffer(buffer, require_writable=True)  # holds the buffer while C uses it
        reading = cast("ReadingState", ffi.new("histfs_reading_t *"))
        while result := lib.histfs_version_read(self._state, memory, offset, len(memory), 0, reading):
            if result != lib.HISTFS_NOT_OPEN:
                _fail(result, reading.error)
            open_source(reading.source)

    def read_nowait(self, buffer: Buffer, offset: int) -> bool:
        """The same if it needs no disk and takes no time; False if it does, or if `read` has something to report."""
        memory = ffi.from_buffer(buffer, require_writable=True)
        reading = cast("ReadingState", ffi.new("histfs_reading_t *"))
        return not lib.histfs_version_read(self._state, memory, offset, len(memory), 1, reading)

    def may_give(self, size: int, offset: int) -> bool:
        """Whether bytes that were read may be given out now; if not, `settle` says whether they may be at all."""
        return lib.histfs_version_give(self._state, offset, size, 1) == lib.HISTFS_GIVE

    def settle(self, data: Buffer, offset: int, open_source: Callable[[int], None]) -> bool:
        """Whether these bytes, which were read, may be given out: False if the version is not what was recorded.

        That is known when all of it was given out but for these. They are summed here; `open_source` as in `read`,
        which says what is raised as well.
        """
        memory = ffi.from_buffer(data)
        first = lib.histfs_version_give(self._state, offset, len(memory), 0)
        if first == lib.HISTFS_OTHER_CONTENT:
            return False
        reading = cast("ReadingState", ffi.new("histfs_reading_t *"))
        while result := lib.histfs_version_settle(self._state, memory, offset, len(memory), ffi.NULL, reading):
            if result == lib.HISTFS_NOT_OPEN:
                open_source(reading.source)
            elif result == lib.HISTFS_OTHER_CONTENT:
                return False
            elif first == lib.HISTFS_GIVE:
                break  # others will find it out, who need the sum
            else:
                _fail(result, reading.error)
        return True


def _fail(result: int, error: int) -> NoReturn:
    if result == Result.IO_ERROR:
        raise OSError(error, os.strerror(error))
    if result == Result.MEM_ERROR:
        raise MemoryError
    if result == Result.INPUT_ENDED:
        raise InputEndedError("read", Result.INPUT_ENDED, "a source is shorter than the map says")
    if result == Result.CORRUPT:
        raise CorruptError("read", Result.CORRUPT, "a gzip member is damaged")
    raise ParameterError("read", Result.PARAM_ERROR, "misused")
