"""The files in the data directory that describe a session: lists, statistics, errors (docs/format.md 1.3, 4, 5)."""

import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from enum import Enum
from typing import NamedTuple

from isal import isal_zlib

from histfs.errors import HistfsError, SourceError, printable
from histfs.store.catalog import Came
from histfs.store.compression import GZIP
from histfs.store.copying import Copy
from histfs.store.entry import Entry, Extras, Kind
from histfs.store.files import WritableTree, write_blocks
from histfs.store.format.attributes import (
    AccessControlList,
    ExtendedAttributes,
    format_access_control_list,
    format_extended_attributes,
)
from histfs.store.format.ledger import Lengths
from histfs.store.format.metadata import format_record
from histfs.store.format.stats import (
    FileStatistic,
    LoggedError,
    SessionStatistics,
    format_file_statistic,
    format_file_statistics_header,
    format_logged_error,
    format_session_statistics,
)
from histfs.store.increments import DEFAULT_COMPRESSION, Compression
from histfs.store.layout import ACLS, XATTRS, Layout, State
from histfs.store.ledger import Lists
from histfs.store.sweep import Carried

_BUFFER = 256 * 1024
_MOST_JOBS = 16  # blocks that wait to be compressed
_MOST_DIFFERING_BYTES = 4 << 20  # of records that are kept in memory
_LIST_LEVEL = 1  # of ISA-L: a list takes 3 % more than with zlib's level 6, and a ninth of the time


class Update(NamedTuple):
    """What became of one path: its new record, and what was written for it."""

    record: Entry | None  # None: it does not exist any more
    is_changed: bool
    increment_bytes: int | None = None  # None: no increment was written
    is_kept: bool = False  # the record stays what it was, whatever the source has
    copy: Copy | None = None  # that has to be settled first: until then nothing is known of the content


class RecordStyle(NamedTuple):
    """Which of the texts about single files a session writes, and how."""

    file_statistics: bool = True
    line_end: bytes = b"\n"  # of file_statistics and error_log
    compression: Compression = DEFAULT_COMPRESSION


DEFAULT_STYLE = RecordStyle()
_NOTHING = Lengths(0)


class CompressedFile:
    """A new file that is gzip; it is made at the first byte, and without any it is an empty one without `.gz`.

    `is_plain`: it is the bytes themselves, and has no `.gz` either way. What is more than a block is compressed and
    written by `worker`, which has one thread, so that the session goes on meanwhile.
    """

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        base: bytes,
        session_time: int,
        type_: bytes,
        worker: Executor,
        *,
        is_plain: bool = False,
    ) -> None:
        self._tree = tree
        self.path = layout.data_path(base, session_time, type_, compressed=not is_plain)
        self._empty_path = layout.data_path(base, session_time, type_)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._member = None if is_plain else isal_zlib.compressobj(_LIST_LEVEL, isal_zlib.DEFLATED, GZIP)
        self._fd: int | None = None
        self._worker = worker
        self._jobs: deque[Future[None]] = deque()

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _BUFFER:
            self._jobs.append(self._worker.submit(self._put, self._taken()))
            while len(self._jobs) > _MOST_JOBS:
                self._jobs.popleft().result()

    def _taken(self) -> bytes:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return data

    def _put(self, data: bytes, *, is_last: bool = False) -> None:
        if self._fd is None:
            self._fd = self._tree.create_file(self.path)
        if self._member is not None:
            data = self._member.compress(data)
            if is_last:
                data += self._member.flush()
        write_blocks(self._fd, [data])

    def finish(self) -> None:
        self._wait()
        if not self._pending and self._fd is None:
            self.path = self._empty_path
            os.close(self._tree.create_file(self.path))
            return
        self._put(self._taken(), is_last=True)
        self.close()

    def _wait(self) -> None:
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Fate(Enum):
    """What became of a path in a session."""

    NEW = "new"
    CHANGED = "changed"
    DELETED = "deleted"
    SAME = "same"


# What became of a path, and its size now; or of how many paths together that are the same, without saying which.
Tell = Callable[[Fate, bytes, int, int], None]


def tell_nobody(_fate: Fate, _path: bytes, _size_bytes: int, _files: int) -> None:
    """A `Tell` where nobody listens."""


class SessionRecords:
    """Everything that is recorded of the session at `session_time`. A context manager that closes the files.

    `extras`: what else of each path is recorded, in files of their own.
    `previous`: the time of the session before, if its list becomes a reverse diff; None to leave its list as it is.
    `line_end`: what ends a line of what people and tools read about files. `tell` is told of each path as it is
    recorded.
    """

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        session_time: int,
        previous: int | None,
        extras: Extras,
        style: RecordStyle = DEFAULT_STYLE,
        tell: Tell = tell_nobody,
    ) -> None:
        self._tree = tree
        self._layout = layout
        self._time = session_time
        self._line_end = style.line_end
        self._tell = tell
        self._worker = ThreadPoolExecutor(1)

        def file(base: bytes, time: int, type_: bytes, *, is_plain: bool = False) -> CompressedFile:
            return CompressedFile(tree, layout, base, time, type_, self._worker, is_plain=is_plain)

        self._list = file(b"mirror_metadata", session_time, b"snapshot")
        self._diff = None if previous is None else file(b"mirror_metadata", previous, b"diff")
        self._xattrs = file(XATTRS, session_time, b"snapshot") if extras.xattrs else None
        self._acls = file(ACLS, session_time, b"snapshot") if extras.acls else None
        self._file_statistics: CompressedFile | None = None
        if style.file_statistics:
            is_plain = not style.compression.is_on
            self._file_statistics = file(b"file_statistics", session_time, b"data", is_plain=is_plain)
            self._file_statistics.write(format_file_statistics_header(style.line_end))
        self._errors = file(b"error_log", session_time, b"data")
        self._counts = Counter[str]()
        self._were: list[bytes] = []
        self._are: list[bytes] = []
        self._differing_bytes = 0

    def __enter__(self) -> "SessionRecords":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()
        with ExitStack() as stack:
            for file in self._files:
                stack.callback(file.close)

    @property
    def lists(self) -> Lists:
        """Where the lists lie when all is finished."""
        return tuple(None if file is None else file.path for file in (self._list, self._xattrs, self._acls))

    def came_since(self, previous: int, state: State) -> Came | None:
        """What is not as it was at `previous`, the session before. None if it is much, or not known.

        `state`: of the repository before. Of extras that only one of the two sessions records nobody knows enough here.
        """
        had = previous in state.xattrs, previous in state.acls
        if self._differing_bytes > _MOST_DIFFERING_BYTES or had != (self._xattrs is not None, self._acls is not None):
            return None
        return Came(previous, self._time, b"".join(self._were), b"".join(self._are))

    @property
    def line_end(self) -> bytes:
        """What ends a line of the statistics of files; b"" where there are none."""
        return b"" if self._file_statistics is None else self._line_end

    def add(self, old: Entry | None, update: Update) -> Lengths:
        """Record what became of a path whose last record is `old`; the lengths of the new records.

        Call in metadata order.
        """
        new = update.record
        lengths = _NOTHING
        record = before = b""
        if new is not None:
            record = format_record(new)
            self._list.write(record)
            lengths = Lengths(len(record), *self._add_extras(new))
        differs = (old and old.record) != (new and new.record)
        if old is not None and (differs or _extras(old) != _extras(new)):
            before = format_record(old)
        if self._diff is not None and differs:
            self._diff.write(before or format_record(Entry(new.path if new else b"", Kind.ABSENT)))
        if before or old is None:
            self._keep(before, record)
        self._count(old, update)
        return lengths

    def _keep(self, before: bytes, record: bytes) -> None:
        self._differing_bytes += len(before) + len(record)
        if self._differing_bytes > _MOST_DIFFERING_BYTES:
            self._were.clear()
            self._are.clear()
        else:
            self._were.append(before)
            self._are.append(record)

    def carry(self, run: Carried) -> None:
        """Record paths that are as they were. Call in metadata order."""
        self._list.write(run.records)
        if self._xattrs is not None and run.xattrs:
            self._xattrs.write(run.xattrs)
        if self._acls is not None and run.acls:
            self._acls.write(run.acls)
        counts = self._counts
        counts["source_files"] += run.files
        counts["mirror_files"] += run.files
        counts["source_file_bytes"] += run.file_bytes
        counts["mirror_file_bytes"] += run.file_bytes
        self._tell(Fate.SAME, b"", run.file_bytes, run.files)
        if self._file_statistics is not None:
            self._file_statistics.write(run.lines)

    def _add_extras(self, entry: Entry) -> tuple[int, int]:
        xattrs = acl = b""
        if self._xattrs is not None and entry.xattrs:
            xattrs = format_extended_attributes(ExtendedAttributes(entry.path, dict(entry.xattrs)))
            self._xattrs.write(xattrs)
        if self._acls is not None and entry.acl:
            acl = format_access_control_list(AccessControlList(entry.path, entry.acl))
            self._acls.write(acl)
        return len(xattrs), len(acl)

    def add_error(self, error: HistfsError) -> None:
        """Record trouble with one file: the session goes on without it."""
        self._counts["errors"] += 1
        kind = b"UpdateError" if isinstance(error, SourceError) else b"SpecialFileError"
        path = os.fsencode(error.path if error.path is not None else b"")
        logged = LoggedError(kind, printable(path).encode(), error.problem.encode("utf-8", "surrogateescape"))
        self._errors.write(format_logged_error(logged, self._line_end))

    def finish(self, *, elapsed_s: float) -> SessionStatistics:
        """Write what is left; the statistics of the session."""
        for file in self._files:
            file.finish()
        start, end = self._time, self._time + elapsed_s
        statistics = SessionStatistics(start_time_s=start, end_time_s=end)._replace(**self._counts).completed()
        path = self._layout.data_path(b"session_statistics", self._time, b"data")
        self._tree.write_file(path, [format_session_statistics(statistics)])
        return statistics

    @property
    def _files(self) -> list[CompressedFile]:
        files = (self._list, self._diff, self._xattrs, self._acls, self._file_statistics, self._errors)
        return [file for file in files if file is not None]

    def _count(self, old: Entry | None, update: Update) -> None:
        new = update.record
        old_bytes = old.size_bytes if old is not None else 0
        new_bytes = new.size_bytes if new is not None else 0
        path = (old or new or Entry(b"", Kind.ABSENT)).path
        counts = self._counts
        if new is not None:
            counts["source_files"] += 1
            counts["source_file_bytes"] += new_bytes
        if old is not None:
            counts["mirror_files"] += 1
            counts["mirror_file_bytes"] += old_bytes
        if old is None:
            counts["new_files"] += 1
            counts["new_file_bytes"] += new_bytes
        elif new is None:
            counts["deleted_files"] += 1
            counts["deleted_file_bytes"] += old_bytes
        elif update.is_changed:
            counts["changed_files"] += 1
            counts["changed_source_bytes"] += new_bytes
            counts["changed_mirror_bytes"] += old_bytes
        if update.increment_bytes is not None:
            counts["increment_files"] += 1
            counts["increment_file_bytes"] += update.increment_bytes
        self._tell(_fate(old, update), path, new_bytes, 1)
        if self._file_statistics is None:
            return
        self._file_statistics.write(
            format_file_statistic(
                FileStatistic(
                    path,
                    update.is_changed,
                    None if new is None else new_bytes,
                    None if old is None else old_bytes,
                    update.increment_bytes,
                ),
                self._line_end,
            )
        )


def _extras(entry: Entry | None) -> tuple[object, ...]:
    return () if entry is None else (entry.xattrs, entry.acl)


def _fate(old: Entry | None, update: Update) -> Fate:
    if old is None:
        return Fate.NEW
    if update.record is None:
        return Fate.DELETED
    return Fate.CHANGED if update.is_changed else Fate.SAME
