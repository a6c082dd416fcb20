"""Writing increments: what leads from the state that a session makes back to the one before (docs/format.md 6)."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple, NoReturn

from histfs.errors import DamagedError, UsageError, printable
from histfs.store import plan
from histfs.store.cloned import clone
from histfs.store.compression import compress_seekable
from histfs.store.content.opening import sha1_of
from histfs.store.delta import make_delta
from histfs.store.entry import Entry, Kind, join
from histfs.store.files import Attributes, WritableTree
from histfs.store.growing import Growing
from histfs.store.layout import Layout
from histfs.store.owners import Owners
from histfs.store.special import make_special
from histfs.store.touched import discard
from histfs.store.tree import file_blocks

# Content that is compressed already; the list is part of the format's defaults (docs/format.md 6.3).
_NOT_COMPRESSED = re.compile(
    rb".*\.(?:7z|aac|arj|asc|avi|bik|bz|bz2|deb|docx|flac|flv|gif|gpg|gz|jp2|jpeg|jpg|jsonlz4|lharc|lz4|lzh|lzma|lzo"
    rb"|m4a|m4v|mdf|mkv|mov|mozlz4|mp3|mp4|mpeg|mpg|oga|ogg|ogm|ogv|opus|pgp|pk3|png|rar|rm|rpm|rz|shn|tgz|tzst|vob"
    rb"|webm|webp|wma|wmv|xlsx|xz|z|zip|zoo|zst)\Z",
    re.IGNORECASE | re.DOTALL,
)


class Compression(NamedTuple):
    """Which increments, and whether the statistics of files, are gzip. Lists of files and of errors always are.

    `not_compressed` is matched at the start of the path of a file, with `place`, the repository as it was named, before
    it: so do the patterns read that other programs take.
    """

    is_on: bool = True
    not_compressed: re.Pattern[bytes] = _NOT_COMPRESSED
    place: bytes = b""

    @classmethod
    def except_for(cls, expression: str, place: bytes) -> "Compression":
        """Raises UsageError where `expression` is none."""
        try:
            return cls(True, re.compile(os.fsencode(expression)), place)
        except (re.error, OverflowError, RecursionError) as exc:
            raise UsageError(f"not a regular expression: {printable(expression)} ({exc})") from None

    def is_for(self, path: bytes) -> bool:
        return self.is_on and self.not_compressed.match(join(self.place, path)) is None


DEFAULT_COMPRESSION = Compression()


class IncrementWriter:
    """Writes the increments that preserve the states of the session at `session_time`.

    `since_ns` is the change time of the running session's marker: an increment that is older was left behind when
    another session was undone, and makes way if nothing is lost with it.
    """

    def __init__(
        self,
        tree: WritableTree,
        layout: Layout,
        session_time: int,
        since_ns: int,
        owners: Owners,
        compression: Compression = DEFAULT_COMPRESSION,
    ) -> None:
        self._tree = tree
        self._layout = layout
        self._compression = compression
        self._time = session_time
        self._since_ns = since_ns
        self._owners = owners

    def write(
        self,
        old: Entry | None,
        new: Entry | None,
        new_content: bytes | None = None,
        growing: Growing | None = None,
    ) -> int:
        """Preserve `old`, whose place `new` takes; the size of the increment in bytes.

        The mirror must still hold `old`. `new_content`: where the content of a regular `new` lies (a path in the tree);
        it may still be `growing`. Raises OSError, also if the increment exists.
        """
        known = old or new
        assert known is not None
        match plan.increment_type(old, new):
            case b"missing":
                return self._create(known, b"missing", iter(()), None)
            case b"dir":
                assert old is not None
                return self._create(old, b"dir", iter(()), None)
            case b"diff":
                assert old is not None
                assert new is not None
                assert new_content is not None
                return self._write_diff(old, new_content, partial(make_delta, new_size=new.size_bytes, growing=growing))
            case _:
                assert old is not None
                return self._write_snapshot(old)

    def discard_diff(self, old: Entry) -> None:
        """Remove the diff that was just written for `old`, if it was: there is no new content."""
        compressed = self._compression.is_for(old.path)
        self._tree.unlink(self._layout.increment_path(old, self._time, b"diff", compressed=compressed), missing_ok=True)

    def _write_diff(self, old: Entry, new_content: bytes, delta: Callable[[int, int], Iterator[bytes]]) -> int:
        new_fd = self._tree.open_file(new_content)
        try:
            old_fd = self._tree.open_file(self._layout.mirror_path(old))
            try:
                return self._create(old, b"diff", delta(old_fd, new_fd), os.fstat(old_fd))
            finally:
                os.close(old_fd)
        finally:
            os.close(new_fd)

    def _write_snapshot(self, old: Entry) -> int:
        mirror_path = self._layout.mirror_path(old)
        status = self._tree.stat(mirror_path)
        if old.kind is Kind.REGULAR or stat.S_ISREG(status.st_mode):  # an empty one stands for a special one (4.5)
            fd = self._tree.open_file(mirror_path)
            try:
                return self._create(old, b"snapshot", file_blocks(fd), status, fd)
            finally:
                os.close(fd)
        path = self._layout.increment_path(old, self._time, b"snapshot")
        self._tree.make_directories(path.rpartition(b"/")[0])
        attributes = Attributes(old.mode & 0o777, *self._owners.of(old), None)
        try:
            make_special(self._tree, path, old, attributes)
        except FileExistsError:
            self._make_way(path, old, b"snapshot")
            make_special(self._tree, path, old, attributes)
        return 0

    def _create(
        self,
        entry: Entry,
        type_: bytes,
        blocks: Iterator[bytes],
        status: os.stat_result | None,
        blocks_fd: int | None = None,
    ) -> int:
        """A regular increment file; its size. `status`: of the mirror file, for the fraction of a second in its mtime.

        `blocks_fd`: where `blocks` are read from, from its position on.
        """
        is_content = type_ in (b"diff", b"snapshot")
        compressed = is_content and self._compression.is_for(entry.path)
        path = self._layout.increment_path(entry, self._time, type_, compressed=compressed)
        if compressed:
            blocks = compress_seekable(blocks, commands=type_ == b"diff")
        # Without setuid and setgid: an increment is not a program, and the record keeps these bits.
        attributes = Attributes(entry.mode & 0o777, *self._owners.of(entry), mtime_ns(entry, status))
        fd = self._create_file(path, entry, type_)
        cloned = 0
        try:
            if blocks_fd is not None and not compressed:
                cloned = clone(blocks_fd, fd)
        except OSError as exc:
            os.close(fd)
            exc.filename = path
            raise
        return cloned + self._tree.fill_file(fd, path, blocks, attributes=None if type_ == b"missing" else attributes)

    def _create_file(self, path: bytes, entry: Entry, type_: bytes) -> int:
        try:
            return self._tree.create_file(path)
        except FileNotFoundError:
            self._tree.make_directories(path.rpartition(b"/")[0])
        except FileExistsError:
            self._make_way(path, entry, type_)
        return self._tree.create_file(path)

    def _make_way(self, path: bytes, old: Entry, type_: bytes) -> None:
        """Remove what an undone session left at `path`; anything else stays, and stops the session.

        Content may be all that is left of `old`, unless the mirror has that.
        """
        if not self._is_left(path):
            return
        if type_ in (b"diff", b"snapshot") and old.kind is Kind.REGULAR and not self._mirror_has(old):
            self._refuse(path)
        self._tree.unlink(path)

    def check_damaged(self, old: Entry) -> None:
        """The mirror does not have `old`. Raises DamagedError if there is an increment that may lead back to it."""
        for type_, compressed in product((b"diff", b"snapshot"), (True, False)):
            path = self._layout.increment_path(old, self._time, type_, compressed=compressed)
            if self._tree.exists(path) and self._is_left(path):
                self._refuse(path)

    def _is_left(self, path: bytes) -> bool:
        status = self._tree.stat(path)
        return not stat.S_ISDIR(status.st_mode) and status.st_ctime_ns < self._since_ns

    def _refuse(self, path: bytes) -> NoReturn:
        discard(self._tree)  # whoever undoes this session looks at all that there is
        raise DamagedError(
            "is an increment that was there before the session, and leads back to what the mirror does not have",
            path=path,
            advice="it was kept; the next `histfs backup`, or `histfs regress`, takes it for one of a session that"
            " was cut off, and undoes that",
        )

    def _mirror_has(self, old: Entry) -> bool:
        fd = self._tree.open_file(self._layout.mirror_path(old))
        try:
            return sha1_of(fd) == old.sha1
        finally:
            os.close(fd)


def mtime_ns(entry: Entry, status: os.stat_result | None) -> int:
    """The recorded mtime, with the fraction of a second that a file on disk (`status`) knows of."""
    if status is not None and status.st_mtime_ns // 10**9 == entry.mtime_s:
        return status.st_mtime_ns
    return entry.mtime_s * 10**9
