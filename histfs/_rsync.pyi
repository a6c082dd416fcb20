"""What histfs._rsync declares (see _rsync_build.py); a test holds the names here against the compiled module."""

from typing import Protocol

from _cffi_backend import FFI, _CDataBase

class Statistics(Protocol):
    """`rs_stats_t`."""

    lit_cmds: int
    lit_bytes: int
    lit_cmdbytes: int
    copy_cmds: int
    copy_bytes: int
    copy_cmdbytes: int
    sig_blocks: int
    false_matches: int
    block_len: int
    start: int
    end: int

class JobState(Protocol):
    """`histfs_job_t *`, made by `ffi.new` and started by one of the `_begin` functions."""

    consumed: int
    produced: int
    basis_errno: int
    basis_ended: int
    trace_used: int
    trace: _CDataBase
    stats: Statistics

class MapState(Protocol):
    """`histfs_map_t *`, made by `ffi.new`."""

    size: int
    count: int
    limit: int

class ParserState(Protocol):
    """`histfs_parser_t *`, made by `ffi.new`."""

    map: MapState
    keeps_all: int
    task: int
    source: int
    literals_at: int
    literal_left: int
    produced: int

class LookupState(Protocol):
    """`histfs_lookup_t *`, made by `ffi.new`."""

    done: int
    count: int
    pieces: _CDataBase

class SourceState(Protocol):
    """`histfs_source_t *`, made by `ffi.new`."""

    memory: _CDataBase
    size: int
    member_count: int
    offsets: _CDataBase
    raw_offsets: _CDataBase
    fd: int

class VersionState(Protocol):
    """`histfs_version_t *`, made by `ffi.new`."""

    map: MapState
    sources: _CDataBase
    source_count: int
    members: _CDataBase
    check: _CDataBase

class ReadingState(Protocol):
    """`histfs_reading_t *`, made by `ffi.new`."""

    done: int
    source: int
    error: int

class _Lib:
    RS_DONE: int
    RS_BLOCKED: int
    RS_IO_ERROR: int
    RS_SYNTAX_ERROR: int
    RS_MEM_ERROR: int
    RS_INPUT_ENDED: int
    RS_BAD_MAGIC: int
    RS_UNIMPLEMENTED: int
    RS_CORRUPT: int
    RS_INTERNAL_ERROR: int
    RS_PARAM_ERROR: int

    RS_MD4_SIG_MAGIC: int
    RS_BLAKE2_SIG_MAGIC: int
    RS_RK_MD4_SIG_MAGIC: int
    RS_RK_BLAKE2_SIG_MAGIC: int

    HISTFS_TOO_MANY_EXTENTS: int
    HISTFS_WOULD_WAIT: int
    HISTFS_NOT_OPEN: int
    HISTFS_GIVE: int
    HISTFS_SETTLE_FIRST: int
    HISTFS_IN_A_THREAD: int
    HISTFS_OTHER_CONTENT: int
    HISTFS_HOLE: int
    HISTFS_PIECES: int
    HISTFS_LONGEST_COMMAND: int
    HISTFS_LITERALS: int
    HISTFS_COMMANDS: int
    HISTFS_FILTER: int

    rs_librsync_version: _CDataBase
    def rs_strerror(self, result: int, /) -> _CDataBase: ...
    def rs_trace_set_level(self, level: int, /) -> None: ...
    def rs_sig_args(self, size: int, magic: _CDataBase, block_len: _CDataBase, strong_len: _CDataBase, /) -> int: ...
    def histfs_trace_install(self) -> None: ...
    def histfs_signature_begin(self, job: JobState, block_len: int, strong_len: int, magic: int, /) -> None: ...
    def histfs_loadsig_begin(self, job: JobState, /) -> None: ...
    def histfs_delta_begin(self, job: JobState, signature: _CDataBase, /) -> int: ...
    def histfs_patch_begin(
        self, job: JobState, fd: int, memory: _CDataBase, size: int, handle: _CDataBase, /
    ) -> int: ...
    def histfs_job_iter(
        self, job: JobState, data: _CDataBase, size: int, ending: bool, out: _CDataBase, out_size: int, /
    ) -> int: ...
    def histfs_job_signature(self, job: JobState, signature: _CDataBase, /) -> int: ...
    def histfs_signature_close(self, signature: _CDataBase, /) -> None: ...
    def histfs_small_delta(
        self,
        basis: bytes,
        basis_size: int,
        content: bytes,
        content_size: int,
        block_len: int,
        strong_len: int,
        magic: int,
        out: _CDataBase,
        room: int,
        /,
    ) -> int: ...
    def histfs_job_close(self, job: JobState | _CDataBase, /) -> None: ...
    def histfs_map_compose(self, made: MapState, older: MapState, newer: MapState, /) -> int: ...
    def histfs_map_look_up(self, extents: MapState, lookup: LookupState, offset: int, size: int, /) -> int: ...
    def histfs_map_survey(
        self, extents: MapState, used: _CDataBase, basis_size: _CDataBase, source_count: _CDataBase, /
    ) -> None: ...
    def histfs_map_close(self, extents: _CDataBase, /) -> None: ...
    def histfs_parser_want(self, parser: ParserState, older: MapState, /) -> int: ...
    def histfs_parser_feed(self, parser: ParserState, data: _CDataBase, size: int, out: _CDataBase, /) -> int: ...
    def histfs_parser_skip(self, parser: ParserState, size: int, /) -> int: ...
    def histfs_parser_finish(self, parser: ParserState, extents: MapState | _CDataBase, /) -> int: ...
    def histfs_parser_close(self, parser: _CDataBase, /) -> None: ...
    def histfs_members_new(self, capacity: int, /) -> _CDataBase: ...
    def histfs_members_clear(self, members: _CDataBase, /) -> None: ...
    def histfs_members_free(self, members: _CDataBase, /) -> None: ...
    def histfs_members_size(self, members: _CDataBase, /) -> int: ...
    def histfs_source_lend(self, members: _CDataBase, source: SourceState, fd: int, /) -> int: ...
    def histfs_source_close_idle(self, members: _CDataBase, source: SourceState, /) -> int: ...
    def histfs_version_hold(self, version: VersionState, /) -> int: ...
    def histfs_version_release(self, version: VersionState, /) -> None: ...
    def histfs_version_read(
        self,
        version: VersionState,
        buffer: _CDataBase,
        offset: int,
        size: int,
        nowait: int,
        reading: ReadingState,
        /,
    ) -> int: ...
    def histfs_check_new(self, size: int, sha1: bytes, is_again: int, /) -> _CDataBase: ...
    def histfs_check_free(self, check: _CDataBase, /) -> None: ...
    def histfs_check_verdict(self, check: _CDataBase, /) -> int: ...
    def histfs_version_give(self, version: VersionState, offset: int, size: int, nowait: int, /) -> int: ...
    def histfs_version_settle(
        self,
        version: VersionState,
        buffer: _CDataBase,
        offset: int,
        size: int,
        is_ending: _CDataBase,
        reading: ReadingState,
        /,
    ) -> int: ...
    def histfs_version_calls(self) -> int: ...
    def histfs_small_make(
        self, mirror: int, increments: int, versions: _CDataBase, count: int, names: bytes, data: _CDataBase, /
    ) -> int: ...
    def histfs_basis_read(self, handle: _CDataBase, position: int, size: int, target: _CDataBase, /) -> int: ...

ffi: FFI
lib: _Lib
