"""The files in the data directory that describe a session: lists, statistics, errors (docs/format.md 1.3, 4, 5)."""

import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import NamedTuple

from histfs.errors import HistfsError, SourceError, printable
from histfs.store.compression import GZIP, LEVEL
from histfs.store.entry import Entry, Extras, Kind
from histfs.store.files import WritableTree, write_blocks
from histfs.store.format.attributes import (
    AccessControlList,
    ExtendedAttributes,
    format_access_control_list,
    format_extended_attributes,
)
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
from histfs.store.layout import ACLS, XATTRS, Layout
from histfs.store.mirror import Update

_BUFFER = 128 * 1024


class RecordStyle(NamedTuple):
    """Which of the texts about single files a session writes, and how."""

    file_statistics: bool = True
    line_end: bytes = b"\n"  # of file_statistics and error_log
    compression: Compression = DEFAULT_COMPRESSION


DEFAULT_STYLE = RecordStyle()


class CompressedFile:
    """A new file that is gzip; it is made at the first byte, and without any it is an empty one without `.gz`.

    `is_plain`: it is the bytes themselves, and has no `.gz` either way.
    """

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        base: bytes,
        session_time: int,
        type_: bytes,
        *,
        is_plain: bool = False,
    ) -> None:
        self._tree = tree
        self._path = layout.data_path(base, session_time, type_, compressed=not is_plain)
        self._empty_path = layout.data_path(base, session_time, type_)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._member = None if is_plain else zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
        self._fd: int | None = None

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if self._fd is None:
            self._fd = self._tree.create_file(self._path)
        data = b"".join(self._pending)
        write_blocks(self._fd, [data if self._member is None else self._member.compress(data)])
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self) -> None:
        if not self._pending and self._fd is None:
            os.close(self._tree.create_file(self._empty_path))
            return
        self._flush()
        if self._fd is not None and self._member is not None:
            write_blocks(self._fd, [self._member.flush()])
        self.close()

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


Tell = Callable[[Fate, bytes, int], None]  # what became of a path, and its size now


def tell_nobody(_fate: Fate, _path: bytes, _size_bytes: int) -> None:
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
        self._list = CompressedFile(tree, layout, b"mirror_metadata", session_time, b"snapshot")
        self._diff = None if previous is None else CompressedFile(tree, layout, b"mirror_metadata", previous, b"diff")
        self._xattrs = CompressedFile(tree, layout, XATTRS, session_time, b"snapshot") if extras.xattrs else None
        self._acls = CompressedFile(tree, layout, ACLS, session_time, b"snapshot") if extras.acls else None
        self._file_statistics: CompressedFile | None = None
        if style.file_statistics:
            self._file_statistics = CompressedFile(
                tree, layout, b"file_statistics", session_time, b"data", is_plain=not style.compression.is_on
            )
            self._file_statistics.write(format_file_statistics_header(style.line_end))
        self._errors = CompressedFile(tree, layout, b"error_log", session_time, b"data")
        self.statistics = SessionStatistics(start_time_s=session_time)

    def __enter__(self) -> "SessionRecords":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for file in self._files:
                stack.callback(file.close)

    def add(self, old: Entry | None, update: Update) -> None:
        """Record what became of a path whose last record is `old`. Call in metadata order."""
        new = update.record
        if new is not None:
            self._list.write(format_record(new))
            self._add_extras(new)
        if self._diff is not None and (old and old.record) != (new and new.record):
            path = (old or new or Entry(b"", Kind.ABSENT)).path
            self._diff.write(format_record(old if old is not None else Entry(path, Kind.ABSENT)))
        self._count(old, update)

    def _add_extras(self, entry: Entry) -> None:
        if self._xattrs is not None and entry.xattrs:
            self._xattrs.write(format_extended_attributes(ExtendedAttributes(entry.path, dict(entry.xattrs))))
        if self._acls is not None and entry.acl:
            self._acls.write(format_access_control_list(AccessControlList(entry.path, entry.acl)))

    def add_error(self, error: HistfsError) -> None:
        """Record trouble with one file: the session goes on without it."""
        self.statistics = self.statistics._replace(errors=self.statistics.errors + 1)
        kind = b"UpdateError" if isinstance(error, SourceError) else b"SpecialFileError"
        path = os.fsencode(error.path if error.path is not None else b"")
        logged = LoggedError(kind, printable(path).encode(), error.problem.encode("utf-8", "surrogateescape"))
        self._errors.write(format_logged_error(logged, self._line_end))

    def finish(self, *, elapsed_s: float) -> SessionStatistics:
        """Write what is left; the statistics of the session."""
        for file in self._files:
            file.finish()
        self.statistics = self.statistics._replace(end_time_s=self._time + elapsed_s).completed()
        path = self._layout.data_path(b"session_statistics", self._time, b"data")
        self._tree.write_file(path, [format_session_statistics(self.statistics)])
        return self.statistics

    @property
    def _files(self) -> list[CompressedFile]:
        files = (self._list, self._diff, self._xattrs, self._acls, self._file_statistics, self._errors)
        return [file for file in files if file is not None]

    def _count(self, old: Entry | None, update: Update) -> None:
        new = update.record
        old_bytes = old.size_bytes if old is not None else 0
        new_bytes = new.size_bytes if new is not None else 0
        path = (old or new or Entry(b"", Kind.ABSENT)).path
        s = self.statistics
        counts: dict[str, int] = {}
        if new is not None:
            counts |= {"source_files": s.source_files + 1, "source_file_bytes": s.source_file_bytes + new_bytes}
        if old is not None:
            counts |= {"mirror_files": s.mirror_files + 1, "mirror_file_bytes": s.mirror_file_bytes + old_bytes}
        if old is None:
            counts |= {"new_files": s.new_files + 1, "new_file_bytes": s.new_file_bytes + new_bytes}
        elif new is None:
            counts |= {"deleted_files": s.deleted_files + 1, "deleted_file_bytes": s.deleted_file_bytes + old_bytes}
        elif update.is_changed:
            counts |= {
                "changed_files": s.changed_files + 1,
                "changed_source_bytes": s.changed_source_bytes + new_bytes,
                "changed_mirror_bytes": s.changed_mirror_bytes + old_bytes,
            }
        if update.increment_bytes is not None:
            counts |= {
                "increment_files": s.increment_files + 1,
                "increment_file_bytes": s.increment_file_bytes + update.increment_bytes,
            }
        self.statistics = s._replace(**counts)
        self._tell(_fate(old, update), path, new_bytes)
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


def _fate(old: Entry | None, update: Update) -> Fate:
    if old is None:
        return Fate.NEW
    if update.record is None:
        return Fate.DELETED
    return Fate.CHANGED if update.is_changed else Fate.SAME
