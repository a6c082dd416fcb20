"""Extent maps: where each byte of a version lies, so that it can be read without being made. Private to `histfs.rsync`.

A delta says of its target, command by command, that a range is a copy of the basis or is literally in the delta: that
is a map from offsets to (source, offset). A range of the basis that another delta describes in turn can be replaced by
what that delta's map says of it, and so a chain of deltas becomes one map (`compose`). C does the work (csrc/), here
are objects, checks of arguments, and errors. Rules that must hold:
- Parsing refuses what a patch job refuses, with the same errors. Whether a copy leaves the basis is known when the
  basis is: when maps are composed or read.
- A few bytes of delta can ask for any number of extents when they are composed: each result has a cap.
- A map owns its memory and never changes: any number of threads may use it.
"""

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, NoReturn, cast

from histfs._rsync import ffi, lib
from histfs._rsync_codec import CHUNK
from histfs._rsync_files import Buffer
from histfs._rsync_types import (
    ERRORS,
    InputEndedError,
    InternalError,
    ParameterError,
    Result,
    TooManyExtentsError,
)

if TYPE_CHECKING:
    from histfs._rsync import LookupState, MapState, ParserState

BASIS = 0
"""The source of what is copied: the basis of the delta, or of the last delta that was composed."""
HOLE = lib.HISTFS_HOLE
"""The source of literals that were not kept."""
MAX_EXTENTS = 1 << 22  # 64 MiB of memory
_LARGEST = 2**48 - 1  # of offsets and sizes

_PROBLEMS = {
    Result.CORRUPT: "the delta holds a value that cannot be",
    Result.INPUT_ENDED: "the delta is cut off",
    Result.BAD_MAGIC: "this is not a delta",
}


def _fail(operation: str, result: int, limit: int) -> NoReturn:
    if result == lib.HISTFS_TOO_MANY_EXTENTS:
        raise TooManyExtentsError(operation, Result.MEM_ERROR, f"more than {limit} extents")
    if result == Result.MEM_ERROR:
        raise MemoryError
    known = Result(result)
    raise ERRORS[known](operation, known, _PROBLEMS.get(known, "misused"))


class ExtentMap:
    """Where each byte of a delta's target lies. Made by `of_commands`, `compose` and `DeltaParser.finish`.

    An extent is a range that lies in one piece in one source; neighbours that continue each other are one. Sources are
    numbers: BASIS is what the delta copies from, each other one was given by the caller for the literals of a delta.
    """

    def __init__(self, limit: int) -> None:
        """An empty map that may get `limit` extents; for those who make maps."""
        if not 0 <= limit <= _LARGEST:
            raise ParameterError("map", Result.PARAM_ERROR, f"{limit} extents")
        # used by the first name, closed when garbage by the second, which may happen first (see `rsync._new`)
        memory = ffi.new("histfs_map_t *")
        self._net = ffi.gc(memory, lib.histfs_map_close)
        self._state = cast("MapState", memory)
        self._state.limit = limit

    @classmethod
    def of_commands(cls, commands: Buffer, source: int, max_extents: int = MAX_EXTENTS) -> "ExtentMap":
        """The map of a delta whose `commands` are there without their literals, as `CommandFilter` leaves them.

        The literals lie in `source`, at their offsets in the delta. Raises RsyncError as a patch job would.
        """
        parser = _Parser("commands", lib.HISTFS_COMMANDS, source, 0, max_extents)
        parser.feed(commands)
        return parser.finish()

    @property
    def size_bytes(self) -> int:
        """The size of the target."""
        return self._state.size

    def __len__(self) -> int:
        """The number of extents."""
        return self._state.count

    def __bool__(self) -> bool:
        return True

    @property
    def memory_bytes(self) -> int:
        return 16 * (self._state.count + 1)

    def compose(self, newer: "ExtentMap", max_extents: int = MAX_EXTENTS) -> "ExtentMap":
        """This map with what lies in its basis looked up in `newer`, the map of that basis.

        The order in which a chain is composed does not matter. Raises InputEndedError where this map wants more than
        `newer` has, TooManyExtentsError.
        """
        made = ExtentMap(max_extents)
        result = lib.histfs_map_compose(made._state, self._state, newer._state)
        if result == Result.INPUT_ENDED:
            raise InputEndedError("compose", Result.INPUT_ENDED, "the basis is shorter than the delta says")
        if result:
            _fail("compose", result, max_extents)
        return made

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """All extents, in order: source, offset in it, length."""
        return (piece[1:] for piece in self._pieces(0, self.size_bytes))

    def needs(self) -> tuple[set[int], int]:
        """The sources that are referred to, and how many bytes the basis must have."""
        used, numbers = bytearray(HOLE + 1), ffi.new("uint64_t[2]")
        lib.histfs_map_survey(self._state, ffi.from_buffer(used), numbers, numbers + 1)
        basis_size, source_count = numbers
        sources = {number for number in range(source_count) if used[number]}
        return sources | {HOLE} if used[HOLE] else sources, basis_size

    def resolve(self, offset: int, size: int) -> list[tuple[int, int, int]]:
        """Where `size` bytes from `offset` lie, up to the end of the target: source, offset in it, length."""
        return [piece[1:] for piece in self._pieces(*self._clipped(offset, size))]

    def _clipped(self, offset: int, size: int) -> tuple[int, int]:
        if offset < 0 or size < 0:
            raise ParameterError("map", Result.PARAM_ERROR, f"{size} bytes at {offset}")
        at = min(offset, self.size_bytes)
        return at, min(size, self.size_bytes - at)

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        lookup = cast("LookupState", ffi.new("histfs_lookup_t *"))
        while lookup.done < size:
            result = lib.histfs_map_look_up(self._state, lookup, offset, size)
            if result:
                raise ParameterError("map", Result.PARAM_ERROR, "misused")
            yield from _noted(lookup)


def _noted(lookup: "LookupState") -> Iterator[tuple[int, int, int, int]]:
    numbers = iter(cast("list[int]", ffi.unpack(lookup.pieces, 4 * lookup.count)) if lookup.count else [])
    return zip(numbers, numbers, numbers, numbers, strict=True)


class _Parser:
    """A parser in C, and its output. Any thread may use it, one at a time; after an error it raises that again."""

    def __init__(
        self, operation: str, task: int, source: int, literals_at: int, limit: int, wanted: ExtentMap | None = None
    ) -> None:
        if not 0 <= literals_at <= _LARGEST or not BASIS <= source < HOLE or not 0 <= limit <= _LARGEST:
            raise ParameterError(operation, Result.PARAM_ERROR, f"{source=}, offset {literals_at}, {limit} extents")
        self.operation = operation
        memory = ffi.new("histfs_parser_t *")
        self._net = ffi.gc(memory, lib.histfs_parser_close)
        self._state = state = cast("ParserState", memory)
        state.task = task
        state.source = source << 48
        state.literals_at = literals_at
        state.map.limit = limit
        state.keeps_all = wanted is None
        self._lock = Lock()
        self._unsure = False  # a call was interrupted that may have lost output
        self._out = bytearray(0)
        if wanted is not None and (result := lib.histfs_parser_want(state, wanted._state)):
            _fail(operation, result, limit)

    def feed(self, data: Buffer) -> bytes:
        view = memoryview(data).cast("B")
        with self._lock:
            self._check()
            self._unsure = True
            output = b"".join(self._feed(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))
            self._unsure = False
            return output

    def _feed(self, data: memoryview) -> bytes:
        if len(self._out) < len(data) and self._state.task != lib.HISTFS_COMMANDS:
            self._out = bytearray(len(data))
        source, target = ffi.from_buffer(data), ffi.from_buffer(self._out)  # hold the buffers while C uses them
        self._demand(lib.histfs_parser_feed(self._state, source, len(data), target))
        return bytes(memoryview(self._out)[: self._state.produced])

    def finish(self) -> ExtentMap:
        with self._lock:
            self._check()
            made = ExtentMap(self._state.map.limit)
            self._demand(lib.histfs_parser_finish(self._state, made._state))
            return made

    def check_end(self) -> None:
        with self._lock:
            self._check()
            self._demand(lib.histfs_parser_finish(self._state, ffi.NULL))

    @property
    def literal_left(self) -> int:
        return self._state.literal_left

    def skip(self, size: int) -> None:
        with self._lock:
            self._check()
            if not 0 <= size <= self._state.literal_left:
                raise ParameterError(self.operation, Result.PARAM_ERROR, f"{size} bytes to skip")
            self._demand(lib.histfs_parser_skip(self._state, size))

    def _check(self) -> None:
        if self._unsure:
            raise InternalError(self.operation, Result.INTERNAL_ERROR, "an earlier call was interrupted")

    def _demand(self, result: int) -> None:
        if result:
            self._unsure = False  # C raises it again
            _fail(self.operation, result, self._state.map.limit)


class DeltaParser:
    """Makes the map of the delta that is fed, in chunks of any size, and gives out its literals to be kept.

    They are taken to be kept in `source`, one after the other from `spool_offset` on. With `wanted`, the map of
    another delta whose basis is the target of this one, only those to which it refers are given out; the others lie in
    HOLE. As with a patch job, what follows the end of the delta is ignored, and after an error it is raised again.
    """

    def __init__(
        self,
        source: int,
        *,
        wanted: ExtentMap | None = None,
        spool_offset: int = 0,
        max_extents: int = MAX_EXTENTS,
    ) -> None:
        self._parser = _Parser("delta", lib.HISTFS_LITERALS, source, spool_offset, max_extents, wanted)

    def feed(self, data: Buffer) -> bytes:
        """The literals in `data` that must be kept. Raises RsyncError as a patch job would, TooManyExtentsError."""
        return self._parser.feed(data)

    def finish(self) -> ExtentMap:
        """The map; to be called once. Raises InputEndedError if the delta was not complete."""
        return self._parser.finish()


class CommandFilter:
    """Gives out a delta without its literals, which is what `ExtentMap.of_commands` takes."""

    def __init__(self) -> None:
        self._parser = _Parser("delta", lib.HISTFS_FILTER, BASIS, 0, 0)

    def feed(self, data: Buffer) -> bytes:
        """What is not a literal in `data`. Raises RsyncError as a patch job would."""
        return self._parser.feed(data)

    @property
    def literal_left(self) -> int:
        """How many of the next bytes belong to a literal and may be skipped."""
        return self._parser.literal_left

    def skip(self, size: int) -> None:
        """Take the next `size` bytes of a literal as fed."""
        self._parser.skip(size)

    def finish(self) -> None:
        """Raises InputEndedError if the delta was not complete."""
        self._parser.check_end()
