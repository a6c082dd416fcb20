"""librsync for Python: signatures, deltas and patches, as streaming jobs and as calls on whole files; and extent maps.

    signature = Signature.of(old)                   # what `old` looks like, in memory
    delta_file(signature, new, "changes.delta")     # how `new` differs from it
    patch_file(old, "changes.delta", "new-again")   # `new` again
    MapReader(parser.finish(), sources, members).read(buffer, offset, open_source)  # a part of `new`; `parser`
                                                    # is a DeltaParser that was fed the delta

Strategy: a `Job` pushes data through librsync's state machine, which does no I/O of its own. Rules that must hold:
- Nothing reaches librsync unchecked: it aborts, exits or loops for ever when it is misused (docs/librsync.md).
- C runs without the GIL, and briefly: a call handles at most CHUNK bytes (`_rsync_codec` calls it step by step).
- What C points to is referenced by the job for as long as C may look at it.

Errors: RsyncError and children for what librsync finds. They know nothing of repositories, so they are no
HistfsError: the store adds path and time. Errors of files and callbacks pass through unchanged. Mistakes of the
caller are TypeError, ValueError, EOFError (input after the end) or RuntimeError (a job used from its own callback).
"""

import logging
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from errno import EAGAIN, EBADF
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, cast

from histfs._rsync import ffi, lib
from histfs._rsync_codec import CHUNK, Codec
from histfs._rsync_files import Basis, Buffer, Source, Target, open_basis, open_target, read_blocks, source_size
from histfs._rsync_maps import BASIS, HOLE, MAX_EXTENTS, CommandFilter, DeltaParser, ExtentMap
from histfs._rsync_reading import Check, MapReader, MapSource, Members
from histfs._rsync_small import MOST_LINKS, Link, Made, SmallVersion, make_small, small_delta
from histfs._rsync_types import (
    ERRORS,
    MAX_BLOCK_LEN,
    BadMagicError,
    CorruptError,
    InputEndedError,
    InternalError,
    JobStatistics,
    Magic,
    ParameterError,
    Result,
    RsyncError,
    SignatureParameters,
    TooManyExtentsError,
    TraceLevel,
)

if TYPE_CHECKING:
    from _cffi_backend import FFI

    from histfs._rsync import JobState

__all__ = [
    "BASIS",
    "HOLE",
    "LIBRSYNC_VERSION",
    "MAX_EXTENTS",
    "MOST_LINKS",
    "BadMagicError",
    "Basis",
    "Check",
    "CommandFilter",
    "CorruptError",
    "DeltaJob",
    "DeltaParser",
    "ExtentMap",
    "InputEndedError",
    "InternalError",
    "Job",
    "JobStatistics",
    "Link",
    "LoadSignatureJob",
    "Made",
    "Magic",
    "MapReader",
    "MapSource",
    "Members",
    "ParameterError",
    "PatchJob",
    "Result",
    "RsyncError",
    "Signature",
    "SignatureJob",
    "SignatureParameters",
    "SmallVersion",
    "Source",
    "Target",
    "TooManyExtentsError",
    "TraceLevel",
    "delta",
    "delta_file",
    "make_small",
    "patch",
    "patch_file",
    "recommend",
    "set_trace_level",
    "signature",
    "signature_file",
    "small_delta",
    "strerror",
]

MAX_BLOCKS = 2**31 // 10  # librsync's hash table counts in int, and multiplies by ten first


def _text(data: object) -> str:
    assert isinstance(data, bytes)
    return data.decode("ascii", "backslashreplace")


def strerror(result: Result) -> str:
    """librsync's English text for `result`; ours where it has none."""
    return "bad parameter" if result is Result.PARAM_ERROR else _text(ffi.string(lib.rs_strerror(result)))


def _error(operation: str, result: Result, detail: str) -> RsyncError:
    problem = strerror(result) + (f" ({detail})" if detail else "")
    return ERRORS.get(result, RsyncError)(operation, result, problem)


LIBRSYNC_VERSION = _text(ffi.string(lib.rs_librsync_version)).removeprefix("librsync ")

_LOGGING_LEVELS = [logging.CRITICAL] * 3 + [logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG]
_TRACE_LINE = re.compile(r"(\d)librsync: (?:[A-Za-z]+[:!] )?(?:\((\w+)\) )?(.*)")


def set_trace_level(level: TraceLevel) -> None:
    """Have librsync report what is at least as severe as `level`: one setting for the process, INFO at first.

    Messages go to the logger "histfs.rsync", never to stderr; those of a call that fails as DEBUG, because they are
    in its exception. DEBUG messages exist only if librsync was built with ENABLE_TRACE (Debian's is not).
    """
    lib.rs_trace_set_level(TraceLevel(level))


def _set_up() -> None:
    if [int(number) for number in re.findall(r"\d+", LIBRSYNC_VERSION)] < [2, 3, 2]:
        # older ones loop for ever on a COPY of 0 bytes
        raise ImportError(f"librsync {LIBRSYNC_VERSION} is too old, histfs needs 2.3.2 (Debian: librsync2)")
    lib.histfs_trace_install()
    set_trace_level(TraceLevel.INFO)
    logging.getLogger(__name__).addHandler(logging.NullHandler())  # or logging prints warnings to stderr


_set_up()


def recommend(
    size: int | None = None, *, block_len: int = 0, strong_len: int = 0, magic: Magic = Magic.RK_BLAKE2
) -> SignatureParameters:
    """Parameters for the signature of `size` bytes (None: unknown). Lengths that are given are kept, 0 is chosen.

    A block gets the square root of `size`, at least 256 bytes. The strong hash stays whole: a signature that is
    neither stored nor sent may be large, and so nobody can prepare two blocks that are taken for the same. For those
    that travel, strong_len=-1 chooses the shortest that is safe against chance.
    """
    if (size or 0) < 0 or block_len < 0 or strong_len < -1:
        raise ParameterError("signature", Result.PARAM_ERROR, f"{size=}, {block_len=}, {strong_len=}")
    kind = ffi.new("rs_magic_number *", Magic(magic))
    lengths = ffi.new("size_t[2]", [block_len, sys.maxsize * 2 + 1 if strong_len < 0 else strong_len])
    known = -1 if size is None else min(size, MAX_BLOCK_LEN**2)
    result = lib.rs_sig_args(known, kind, lengths, lengths + 1)
    if result != Result.DONE:
        raise ParameterError("signature", Result.PARAM_ERROR, f"{strong_len=}")
    return SignatureParameters(lengths[0], lengths[1], magic)


def _new(kind: str, close: Callable[["FFI.CData"], None]) -> tuple["FFI.CData", "FFI.CData"]:
    """A structure, and what closes it when it is garbage.

    It must be used by the first name: the collector may close it and finalize other garbage after that, such as a
    generator that runs on to its `with`. The structure must still be there then.
    """
    memory = ffi.new(kind)
    return memory, ffi.gc(memory, close)


class Job(Codec):
    """One operation in progress; memory: what was fed and is not consumed, a chunk, two blocks of the signature.

    A codec for chunks of any size in the manner of `bz2`; see there for the methods.
    """

    def __init__(self, operation: str, max_size: int | None = None) -> None:
        super().__init__(operation, max_size)
        memory, self._net = _new("histfs_job_t *", lib.histfs_job_close)
        self._state = cast("JobState", memory)

    @property
    def statistics(self) -> JobStatistics:
        """A copy of the job's statistics; also while another thread runs the job, and after `close()`."""
        names = "lit_cmds lit_bytes lit_cmdbytes copy_cmds copy_bytes copy_cmdbytes false_matches sig_blocks block_len"
        counts = (getattr(self._state.stats, name) for name in f"{names} start end".split())
        return JobStatistics(self.operation, self.in_bytes, self.out_bytes, *counts)

    def _step(
        self, data: bytes | memoryview, size: int, ending: bool, out: bytearray, room: int
    ) -> tuple[Result, int, int]:
        source, target = ffi.from_buffer(data), ffi.from_buffer(out)  # hold the buffers while C uses them
        state = self._state
        result = Result(lib.histfs_job_iter(state, source, size, ending, target, room))
        failed = result > Result.BLOCKED
        detail = self._log(failed) if state.trace_used else ""
        if failed:
            self._fail(_error(self.operation, result, detail))
        return result, state.consumed, state.produced

    def _log(self, failed: bool) -> str:
        """Log what librsync had to say; return the message that explains a failure."""
        detail = ""
        for line in _text(ffi.unpack(self._state.trace, self._state.trace_used)).splitlines():
            match = _TRACE_LINE.fullmatch(line)
            level, function, message = match.groups() if match else ("6", "", line)
            logging.getLogger(__name__).log(
                logging.DEBUG if failed else _LOGGING_LEVELS[int(level)], "%s: %s", self.operation, message
            )
            if function != "rs_job_complete":  # it repeats the result
                detail = message
        return detail

    def _complete(self) -> None:
        """Nothing to do for most."""

    def _release(self) -> None:
        lib.histfs_job_close(self._state)


class SignatureJob(Job):
    """Makes the signature of what is fed. Without parameters: `recommend()`, which does not know the size."""

    def __init__(self, parameters: SignatureParameters | None = None) -> None:
        super().__init__("signature")
        wanted = parameters or recommend()
        lib.histfs_signature_begin(self._state, wanted.block_len, wanted.strong_len, wanted.magic)


class LoadSignatureJob(Job):
    """Loads the signature that is fed. There is no output; the result is the attribute `signature`, from `eof` on."""

    def __init__(self) -> None:
        super().__init__("load signature")
        self._header = b""
        self._parameters: SignatureParameters | None = None
        self._signature: Signature | None = None
        lib.histfs_loadsig_begin(self._state)

    @property
    def signature(self) -> "Signature":
        """The signature; ValueError before `eof`."""
        if self._signature is None:
            raise ValueError(f"{self.operation}: not complete")
        return self._signature

    def _take(self, data: Buffer) -> None:
        fresh = len(self._input)
        super()._take(data)
        if self._parameters is None:
            self._header += bytes(self._input[fresh:][: 12 - len(self._header)])
            if len(self._header) == 12:
                self._parse_header(*struct.unpack(">III", self._header))

    def _parse_header(self, magic: int, block_len: int, strong_len: int) -> None:
        # librsync takes magic 0, and block lengths that make it ask for gigabytes
        try:
            self._parameters = SignatureParameters(block_len, strong_len, Magic(magic))
        except ParameterError as error:
            self._fail(_error(self.operation, Result.CORRUPT, error.problem))
        except ValueError:
            self._fail(_error(self.operation, Result.BAD_MAGIC, f"{magic:#010x}"))

    def _complete(self) -> None:
        assert self._parameters is not None
        size = self.in_bytes + len(self._input)
        count, stray = divmod(size - len(self._header), 4 + self._parameters.strong_len)
        if stray:  # librsync overlooks up to three bytes
            self._fail(_error(self.operation, Result.INPUT_ENDED, "in the last block"))
        if count > MAX_BLOCKS:
            self._fail(_error(self.operation, Result.CORRUPT, f"{count} blocks"))
        memory, net = _new("histfs_signature_t *", lib.histfs_signature_close)
        if lib.histfs_job_signature(self._state, memory) < 0:
            self._fail(_error(self.operation, Result.MEM_ERROR, "hash table"))
        self._signature = Signature(self._parameters, count, memory, net)


class DeltaJob(Job):
    """Makes the delta that leads from the data of `signature` to what is fed."""

    def __init__(self, signature: "Signature") -> None:
        super().__init__("delta")
        if type(signature) is not Signature:
            raise TypeError(f"a Signature is needed, not {type(signature).__name__}")
        if lib.histfs_delta_begin(self._state, signature._state) < 0:
            raise ParameterError(self.operation, Result.PARAM_ERROR, "the signature is garbage")


class PatchJob(Job):
    """Applies the delta that is fed to `basis`.

    A few bytes of delta can ask for any amount of output: beyond `max_size` bytes it is a CorruptError. With another
    basis than the delta was made for, the output is wrong and nobody notices: compare a digest. A descriptor is
    duplicated, so that it may be closed.
    """

    def __init__(self, basis: Basis, max_size: int | None = None) -> None:
        super().__init__("patch", max_size)
        self._reader: _BasisReader | None = None
        with open_basis(basis) as opened:
            fd, memory, handle = -1, ffi.from_buffer(b""), ffi.NULL
            if isinstance(opened, int):
                if opened < 0:
                    raise OSError(EBADF, os.strerror(EBADF))
                fd = opened
            elif callable(opened):
                self._reader = _BasisReader(opened)
                handle = ffi.new_handle(self._reader)
            else:
                memory = ffi.from_buffer(opened)
            self._basis = memory, handle
            if lib.histfs_patch_begin(self._state, fd, memory, len(memory), handle) < 0:
                raise OSError(ffi.errno, os.strerror(ffi.errno))

    def _fail(self, error: RsyncError, reason: BaseException | None = None) -> NoReturn:
        if self._state.basis_errno:
            reason = OSError(self._state.basis_errno, os.strerror(self._state.basis_errno))
        elif self._reader:
            reason, self._reader.error = self._reader.error, None
        if reason:
            error = _error(self.operation, error.result, f"basis: {reason!r}")
        elif self._state.basis_ended and error.result is Result.INPUT_ENDED:
            error = _error(self.operation, error.result, "the basis is shorter than the delta says")
        try:
            super()._fail(error, reason)
        finally:
            del reason  # see there


class _BasisReader:
    """A basis written in Python, and what it raised: exceptions do not pass through C."""

    def __init__(self, read: Callable[[int, int], Buffer]) -> None:
        self.read = read
        self.error: BaseException | None = None


def _keep_error(_kind: object, error: BaseException, traceback: TracebackType) -> None:
    ffi.from_handle(traceback.tb_frame.f_locals["handle"]).error = error.with_traceback(traceback)


@ffi.def_extern("histfs_basis_read", -1, _keep_error)
def _read_basis(handle: "FFI.CData", offset: int, size: int, target: "FFI.CData") -> int:
    data = memoryview(ffi.from_handle(handle).read(size, offset)).cast("B")
    if len(data) > size:
        raise ValueError(f"the basis returned {len(data)} bytes, {size} were asked for")
    ffi.memmove(target, data, len(data))
    return len(data)


class Signature:
    """What a delta job must know of the data that the receiver has. Any number of jobs and threads may share it."""

    __slots__ = ("_block_count", "_net", "_parameters", "_state")

    def __init__(self, parameters: SignatureParameters, block_count: int, state: "FFI.CData", net: "FFI.CData") -> None:
        self._parameters = parameters
        self._block_count = block_count
        self._state = state
        self._net = net

    @property
    def parameters(self) -> SignatureParameters:
        return self._parameters

    @property
    def block_count(self) -> int:
        return self._block_count

    @classmethod
    def of(cls, source: Source, parameters: SignatureParameters | None = None) -> "Signature":
        """The signature of `source`. Without parameters: what `recommend()` says for its size."""
        return cls.load(signature(source, parameters))

    @classmethod
    def load(cls, source: Source) -> "Signature":
        """The signature that `source` holds."""
        job = LoadSignatureJob()
        for _ in _blocks(job, source):
            pass
        return job.signature


def signature(source: Source, parameters: SignatureParameters | None = None) -> Iterator[bytes]:
    """The signature of `source`, in blocks. Without parameters: what `recommend()` says for its size."""
    return _blocks(SignatureJob(parameters or recommend(source_size(source))), source)


def delta(signature: Signature, source: Source) -> Iterator[bytes]:
    """The delta that leads from the data of `signature` to `source`, in blocks."""
    return _blocks(DeltaJob(signature), source)


def patch(basis: Basis, delta: Source, max_size: int | None = None) -> Iterator[bytes]:
    """What `delta` makes of `basis`, in blocks; CorruptError instead of more than `max_size` bytes (see `PatchJob`).

    What follows the end of the delta is read and ignored: a decompressor checks its sums there.
    """
    return _blocks(PatchJob(basis, max_size), delta)


def signature_file(source: Source, target: Target, parameters: SignatureParameters | None = None) -> JobStatistics:
    """Write the signature of `source` to `target`."""
    return _copy(SignatureJob(parameters or recommend(source_size(source))), source, target)


def delta_file(signature: Signature, source: Source, target: Target) -> JobStatistics:
    """Write the delta that leads from the data of `signature` to `source`."""
    return _copy(DeltaJob(signature), source, target)


def patch_file(basis: Basis, delta: Source, target: Target, max_size: int | None = None) -> JobStatistics:
    """Write what `delta` makes of `basis`; see `patch` and `PatchJob`."""
    return _copy(PatchJob(basis, max_size), delta, target)


def _blocks(job: Job, source: Source) -> Iterator[bytes]:
    with job:
        for data in read_blocks(source, CHUNK):
            output = b"" if job.eof else job.feed(data, CHUNK)
            while output:
                yield output
                output = b"" if job.needs_input or job.eof else job.feed(b"", CHUNK)
        while not job.eof:
            if output := job.finish(CHUNK):
                yield output


def _copy(job: Job, source: Source, target: Target) -> JobStatistics:
    blocks = filter(len, read_blocks(source, CHUNK))  # b"" would be the end
    with job, open_target(target) as write:
        if job.drive(lambda _size: next(blocks, b""), write) is Result.BLOCKED:
            raise BlockingIOError(EAGAIN, "a target that does not block is for Job.drive()")
        for _ in blocks:
            pass
    return job.statistics
