"""The values and errors of `histfs.rsync`, which exports them. Private to it; nothing here calls librsync.

The numbers are librsync's (a test compares them), its names are kept where a person may know them.
"""

from enum import IntEnum
from typing import NamedTuple, Self

MAX_BLOCK_LEN = 64 * 1024 * 1024  # a delta job holds some two blocks in memory


class Result(IntEnum):
    """librsync's result codes (`rs_result`). DONE and BLOCKED are returned, the others come with an exception."""

    DONE = 0
    BLOCKED = 1
    IO_ERROR = 100
    SYNTAX_ERROR = 101
    MEM_ERROR = 102
    INPUT_ENDED = 103
    BAD_MAGIC = 104
    UNIMPLEMENTED = 105
    CORRUPT = 106
    INTERNAL_ERROR = 107
    PARAM_ERROR = 108


class RsyncError(Exception):
    """`operation` failed with `result`; `problem` is librsync's text for that, with its last message in brackets."""

    def __init__(self, operation: str, result: Result, problem: str) -> None:
        super().__init__(operation, result, problem)  # the arguments again, for pickle
        self.operation = operation
        self.result = result
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.operation}: {self.problem}"


class BadMagicError(RsyncError, ValueError):
    """The input is not a delta, or not a signature."""


class CorruptError(RsyncError, ValueError):
    """The input holds a value that cannot be, or makes more output than was allowed."""


class InputEndedError(RsyncError, EOFError):
    """The input is cut off, or the basis is shorter than the delta says."""


class ParameterError(RsyncError, ValueError):
    """An argument is out of range."""


class InternalError(RsyncError):
    """librsync met a case that should not exist, or an earlier call of the job was interrupted."""


class TooManyExtentsError(RsyncError):
    """A map would take more extents, and so more memory, than was allowed."""


ERRORS: dict[Result, type[RsyncError]] = {
    Result.BAD_MAGIC: BadMagicError,
    Result.CORRUPT: CorruptError,
    Result.INPUT_ENDED: InputEndedError,
    Result.PARAM_ERROR: ParameterError,
    Result.INTERNAL_ERROR: InternalError,
}
"""Class of the error for a result; RsyncError itself for the others."""


class TraceLevel(IntEnum):
    """Severity of librsync's messages (`rs_loglevel`), as in syslog(3)."""

    EMERGENCY = 0
    ALERT = 1
    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class Magic(IntEnum):
    """Kind of signature: the rolling sum (rollsum, or RabinKarp: RK) and the strong hash of a block."""

    MD4 = 0x72730136
    BLAKE2 = 0x72730137
    RK_MD4 = 0x72730146
    RK_BLAKE2 = 0x72730147


class _SignatureParameters(NamedTuple):
    block_len: int
    strong_len: int
    magic: Magic


class SignatureParameters(_SignatureParameters):
    """Bytes in a block, bytes kept of a block's strong hash, and kind; ParameterError if one is out of range."""

    __slots__ = ()

    def __new__(cls, block_len: int, strong_len: int, magic: Magic = Magic.RK_BLAKE2) -> Self:
        longest = 32 if Magic(magic) in (Magic.BLAKE2, Magic.RK_BLAKE2) else 16
        if not 1 <= block_len <= MAX_BLOCK_LEN:
            raise ParameterError("signature", Result.PARAM_ERROR, f"a block of {block_len} bytes")
        if not 1 <= strong_len <= longest:
            raise ParameterError("signature", Result.PARAM_ERROR, f"a strong sum of {strong_len} bytes")
        return super().__new__(cls, block_len, strong_len, magic)


class JobStatistics(NamedTuple):
    """What a job has done so far (`rs_stats_t`). Times are in seconds since the epoch; `ended` is 0 until then."""

    operation: str
    in_bytes: int
    out_bytes: int
    literal_commands: int
    literal_bytes: int
    literal_command_bytes: int
    copy_commands: int
    copy_bytes: int
    copy_command_bytes: int
    false_matches: int
    signature_blocks: int
    block_len: int
    started: int
    ended: int

    def __str__(self) -> str:
        """One line for people, without what is zero and without times."""
        names = self._fields[1:-2]
        counts = ", ".join(f"{n.replace('_', ' ')} {getattr(self, n)}" for n in names if getattr(self, n))
        return f"{self.operation}: {counts or 'nothing yet'}"
