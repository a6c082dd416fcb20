"""Sums of large files in the mirror that change: where they say that nothing changed, the old content is not read.

They are made while a new content is copied, kept beside the ledger (`format.sums`), and believed by the next session if
they are of what the list of files says of the mirror's file. Nothing here is needed: what cannot be written or read is
done without, and then all of the old content is compared.
"""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha1
from typing import Self

from histfs._tree import ffi, lib
from histfs.store.entry import join, name_of
from histfs.store.files import Block, WritableTree, write_blocks
from histfs.store.format.sums import (
    BLOCK_BYTES,
    HEADER_BYTES,
    KEY_BYTES,
    MAX_PATH_BYTES,
    SUM_BYTES,
    Header,
    expanded,
    format_header,
    parse_header,
)
from histfs.store.layout import OWN
from histfs.store.tree import BLOCK_SIZE, Tree, read_at

log = logging.getLogger(__name__)

SUMS = join(OWN, b"sums")
_UNFINISHED = b".new"
_MOST_BYTES = 1 << 40  # of a content: a flag for each of its blocks takes 32 MiB of memory


def tidy(tree: WritableTree) -> None:
    """Remove the sums of files that the mirror does not hold any more. Raises OSError."""
    if not tree.exists(SUMS):
        return
    for name in tree.names(SUMS):
        path = join(SUMS, name)
        if name.endswith(_UNFINISHED) or not _is_of_something(tree, path):
            tree.remove_tree(path)


def _is_of_something(tree: Tree, path: bytes) -> bool:
    try:
        fd = tree.open_file(path)
        try:
            known = KnownSums.read(fd, check=False)
            return known is not None and tree.stat(known.path).st_size == known.header.size_bytes
        finally:
            os.close(fd)
    except (OSError, ValueError):  # also of a name that cannot be one
        return False


class KnownSums:
    """Sums that were kept. `path`: of the file that they are of, in the repository. Who opened `fd` closes it."""

    def __init__(self, fd: int, header: Header, path: bytes) -> None:
        self.header = header
        self.path = path
        self._fd = fd

    @classmethod
    def read(cls, fd: int, *, check: bool = True) -> Self | None:
        """None if they are damaged; `check`: also whether each sum is what was kept. Raises OSError."""
        data = read_at(fd, HEADER_BYTES, 0)
        header = parse_header(data)
        if header is None or os.fstat(fd).st_size != header.file_bytes:
            return None
        path = read_at(fd, header.path_bytes, HEADER_BYTES + header.blocks * SUM_BYTES)
        if format_header(header, path) != data:
            return None
        known = cls(fd, header, path)
        if check:
            digest = sha1(usedforsecurity=False)
            for first in range(0, header.blocks, BLOCK_SIZE // SUM_BYTES):
                digest.update(known.of(first, BLOCK_SIZE // SUM_BYTES))
            if digest.digest() != header.sums_sha1:
                return None
        return known

    def of(self, first: int, count: int) -> bytes:
        """The sums of so many blocks, fewer where the content ends. Raises OSError."""
        count = max(0, min(count, self.header.blocks - first))
        return read_at(self._fd, count * SUM_BYTES, HEADER_BYTES + first * SUM_BYTES)


class Sums:
    """Those of a session."""

    def __init__(self, tree: WritableTree) -> None:
        self._tree = tree
        self._is_tidy = False

    def begin(self, path: bytes, old_sha1: bytes | None, old_bytes: int, new_bytes: int) -> "BlockSums":
        """For a new content of the mirror's file `path`. `old_sha1` (hex), `old_bytes`: of the one that it has."""
        place = join(SUMS, sha1(path, usedforsecurity=False).hexdigest().encode())
        sums = BlockSums(self._tree, place, path)
        if new_bytes > _MOST_BYTES or len(path) > MAX_PATH_BYTES:
            return sums
        try:
            if not self._is_tidy:
                self._tree.make_directories(SUMS)
                tidy(self._tree)
                self._is_tidy = True
            sums.open_known(old_sha1, old_bytes, new_bytes)
            sums.open_new()
        except OSError as exc:
            log.info("sums of %r cannot be kept: %s", name_of(path), exc)
        return sums


class BlockSums:
    """Of a new content while it is taken, and how they compare with those of the old one."""

    def __init__(self, tree: WritableTree, place: bytes, path: bytes) -> None:
        self._tree = tree
        self._place = place
        self._path = path
        self._key = self._block_key = b""
        self._comparable = 0  # blocks that have the same size in both
        self._known: KnownSums | None = None
        self._known_fd: int | None = None
        self._fd: int | None = None
        self._digest = sha1(usedforsecurity=False)
        self._added_bytes = 0
        self._may_be_added = False
        self._same = bytearray()  # 1 for each block that is the same in both

    @property
    def knows_old(self) -> bool:
        return self._known is not None

    def open_known(self, old_sha1: bytes | None, old_bytes: int, new_bytes: int) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError):
            self._known_fd = self._tree.open_file(self._place)
            known = KnownSums.read(self._known_fd)
            if known is not None and known.header.is_of(old_sha1, old_bytes):
                self._known = known
                self._comparable = min(old_bytes, new_bytes) // BLOCK_BYTES + (old_bytes == new_bytes)

    def open_new(self) -> None:
        """Raises OSError."""
        self._key = secrets.token_bytes(KEY_BYTES) if self._known is None else self._known.header.key
        self._block_key = expanded(self._key)
        self._fd = self._tree.create_file(self._place + _UNFINISHED)
        write_blocks(self._fd, [bytes(HEADER_BYTES)])
        self._may_be_added = True

    def add(self, data: Block, at: int) -> None:
        """`data`, of whole blocks but at the end of the content, is what comes next, at `at`. In a thread.

        After anything else, and after any error, nothing more is added, and what was not added may differ.
        """
        may_be_added = self._may_be_added and at == self._added_bytes and not at % BLOCK_BYTES
        self._may_be_added = False
        if not may_be_added:
            return
        sums = bytearray(-(-len(data) // BLOCK_BYTES) * SUM_BYTES)
        lib.histfs_block_sums(self._block_key, ffi.from_buffer(data), len(data), BLOCK_BYTES, ffi.from_buffer(sums))
        try:
            assert self._fd is not None
            if self._known is not None:
                self._compare(sums, self._known, at // BLOCK_BYTES)
            self._digest.update(sums)
            write_blocks(self._fd, [sums])
        except OSError as exc:
            log.info("sums of %r are given up: %s", name_of(self._path), exc)
            return
        self._added_bytes += len(data)
        self._may_be_added = True

    def _compare(self, sums: bytearray, known: KnownSums, first: int) -> None:
        same = bytearray(len(sums) // SUM_BYTES)
        old = known.of(first, min(len(same), self._comparable - first))
        lib.histfs_differing(
            ffi.from_buffer(sums), len(sums), ffi.from_buffer(old), len(old), SUM_BYTES, ffi.from_buffer(same)
        )
        self._same += same.translate(_TURNED)

    def differing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges, as start and end, of these bytes that may be other ones than in the old content.

        Of what was added before.
        """
        at = start
        behind = -(-end // BLOCK_BYTES)
        while at < end:
            number = at // BLOCK_BYTES
            after = self._same.find(1, number, behind)
            if after == number:
                following = self._same.find(0, number, behind)
                at = (min(len(self._same), behind) if following < 0 else following) * BLOCK_BYTES
                continue
            stop = end if after < 0 else after * BLOCK_BYTES
            yield at, stop
            at = stop

    def keep(self, content_sha1: bytes, size_bytes: int) -> None:
        """All was added, and the mirror's file becomes that: for the next session. `content_sha1`: hex."""
        try:
            if self._fd is not None and self._may_be_added and self._added_bytes == size_bytes:
                self._finish(self._fd, content_sha1, size_bytes)
        except OSError as exc:
            log.info("sums of %r are not kept: %s", name_of(self._path), exc)
        self.drop()

    def _finish(self, fd: int, content_sha1: bytes, size_bytes: int) -> None:
        digest = bytes.fromhex(content_sha1.decode())
        header = Header(size_bytes, digest, self._key, self._digest.digest(), len(self._path))
        write_blocks(fd, [self._path])
        os.lseek(fd, 0, os.SEEK_SET)
        write_blocks(fd, [format_header(header, self._path)])
        self._tree.rename(self._place + _UNFINISHED, self._place)

    def drop(self) -> None:
        """Nothing is kept that was not before, and nothing is known any more. When no thread adds."""
        new_fd, known_fd = self._fd, self._known_fd
        self._fd = self._known_fd = self._known = None
        self._may_be_added = False
        for fd in (new_fd, known_fd):
            if fd is not None:
                os.close(fd)
        if new_fd is not None:
            with suppress(OSError):
                self._tree.unlink(self._place + _UNFINISHED, missing_ok=True)


_TURNED = bytes([1, 0]) + bytes(254)
