"""From a chain of increments to a version: composed into a map, or patched link by link.

The chain is walked from the wanted version towards the newest, as then it is known at each link which of its bytes the
version needs in the end. A link that can be read in place gives only its commands: they are in the index of what histfs
compressed, and are looked for in what is not compressed. Any other one is inflated once, and those of its literals that
are needed are kept. In all, these are never more than the version has bytes.

Composing needs a cap, as a few bytes can ask for any number of extents. Beyond it the version is made as `rdiff` would:
each version from the next newer one, in memory or in a temporary file.
"""

import hashlib
import os
import struct
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

from histfs import rsync
from histfs.errors import DamagedError
from histfs.store import plan
from histfs.store.compression import Seekable, read_decompressed
from histfs.store.content.shared import Shared
from histfs.store.content.sources import SPOOL, ChangedError, File, FileId, Increment, Mapped, Memory, Spool
from histfs.store.tree import NotRegularError, Tree

IN_MEMORY = 64 << 10  # of an open version: thousands may be open at the same time
ON_THE_WAY_IN_MEMORY = 1 << 20  # of a version that only leads to the wanted one
MAX_EXTENTS = 1 << 21  # 32 MiB

OTHER_CONTENT = "its content is not what was backed up (SHA1 differs)"

_WORTH_A_LOOK = 4 << 10  # what histfs compresses to less than this is inflated as quickly as its index is found
_WORTH_SKIPPING = 64 << 10
_WINDOW = 32 << 10
_WORTH_THREADS = 8  # links
_LOADERS = 3
_LOADED_AHEAD = 16
_MAGIC = b"rs\x026"
_END = b"\0"
_LONG_LITERAL = b"\x43"  # a length of four bytes follows


def open_increment(tree: Tree, increment: plan.Increment) -> int:
    """A descriptor of an increment that was listed a moment ago. ChangedError if it is gone, DamagedError, OSError."""
    try:
        return tree.open_file(increment.path)
    except FileNotFoundError:
        raise ChangedError("one of its increments is gone") from None
    except NotRegularError as exc:
        raise DamagedError("its increment is not a regular file") from exc


class Links:
    """The files of a chain, opened one at a time as there may be thousands. Those that may change are open already."""

    def __init__(self, tree: Tree, chain: plan.Chain, base_path: bytes, base: int, newest: int) -> None:
        self.diffs = chain.diffs  # the newest first
        self.base_path = base_path
        self.base = base
        # By its name: what is kept as it is may be gzip itself.
        self.is_base_compressed = chain.snapshot is not None and chain.snapshot.is_compressed
        self._tree = tree
        self._newest = newest

    @property
    def identity(self) -> Hashable:
        """What tells this chain from any other."""
        status = os.fstat(self.base)
        return FileId.of(self.base_path, status), status.st_ctime_ns, tuple(diff.path for diff in self.diffs)

    @contextmanager
    def open(self, diff: plan.Increment) -> Iterator[int]:
        """A descriptor of one of the diffs, at its beginning."""
        if diff is self.diffs[0]:
            os.lseek(self._newest, 0, os.SEEK_SET)
            yield self._newest
            return
        fd = open_increment(self._tree, diff)
        try:
            yield fd
        finally:
            os.close(fd)


class Composed:
    """The map of a version, and where its bytes lie, but for a basis that is a file."""

    def __init__(
        self,
        extents: rsync.ExtentMap,
        increments: dict[int, Increment],
        spool: Spool,
        shared: Shared,
        mtime_ns: int,
    ) -> None:
        self.extents = extents
        self.increments = increments
        self.mtime_ns = mtime_ns
        self.is_checked = False  # its SHA1 was compared
        self._spool = spool
        self._shared = shared

    @property
    def cost(self) -> int:
        """See `shared.Sizes`."""
        tables = sum(increment.memory_bytes for increment in self.increments.values())
        return self.extents.memory_bytes + tables + self._spool.cost

    @property
    def is_worth_keeping(self) -> bool:
        return self._spool.is_worth_keeping

    def open(self, basis: File | None, check: rsync.Check | None) -> Mapped:
        """The version on this basis, which is closed with it; None if the basis is an increment, or not needed.

        `check` compares it with its SHA1 while it is read.
        """
        own: dict[int, Memory | File] = {SPOOL: self._spool.source()}
        if basis is not None:
            own[rsync.BASIS] = basis
        return Mapped(self.extents, self.increments, own, self._shared, check)

    def close(self) -> None:
        """What was opened stays open."""
        self._spool.close()


class _Maps:
    """Maps of neighbouring links, composed in a balanced way: each extent is copied a few times, not once a link."""

    def __init__(self) -> None:
        self._maps: list[tuple[rsync.ExtentMap, int]] = []  # with the number of links; the oldest first

    def add(self, newer: rsync.ExtentMap) -> None:
        links = 1
        while self._maps and self._maps[-1][1] <= links:
            older, count = self._maps.pop()
            newer, links = older.compose(newer, MAX_EXTENTS), links + count
        self._maps.append((newer, links))

    def all(self) -> rsync.ExtentMap | None:
        """All composed; None if there is no link."""
        while len(self._maps) > 1:
            newer, links = self._maps.pop()
            older, count = self._maps.pop()
            self._maps.append((older.compose(newer, MAX_EXTENTS), links + count))
        return self._maps[0][0] if self._maps else None


class _Link(NamedTuple):
    """An increment of a chain; with its commands, and what will read its literals, if it can be read in place."""

    diff: plan.Increment
    file: FileId
    in_place: tuple[bytes, Increment] | None


class Composer:
    """Composes one chain. Raises DamagedError, rsync.TooManyExtentsError, StorageError, OSError."""

    def __init__(self, shared: Shared, size_bytes: int) -> None:
        self._shared = shared
        self._size_bytes = size_bytes
        self._maps = _Maps()
        self._increments: dict[int, Increment] = {}
        self._spool = Spool(IN_MEMORY)

    def compose(self, links: Links) -> Composed:
        """The version has the mtime of the file that leads to it."""
        try:
            mtimes_ns = []
            with closing(self._load(links)) as loaded:
                for link in loaded:
                    mtimes_ns.append(link.file.mtime_ns)
                    self._add(links, link)
            mtimes_ns.append(os.fstat(links.base).st_mtime_ns)
            extents = self._on_base(links)
            check_size(extents.size_bytes, self._size_bytes)
        except BaseException as exc:
            self._spool.close()
            if isinstance(exc, rsync.RsyncError) and not isinstance(exc, rsync.TooManyExtentsError):
                raise DamagedError(f"an increment of it is damaged ({exc})") from exc
            raise
        used, _ = extents.needs()
        increments = {number: source for number, source in self._increments.items() if number in used}
        return Composed(extents, increments, self._spool, self._shared, mtimes_ns[0])

    def _load(self, links: Links) -> Generator[_Link, None, None]:
        """What the links are, the oldest first. Those of a long chain are opened ahead: each may wait for the disk."""
        oldest_first = links.diffs[::-1]
        if len(oldest_first) < _WORTH_THREADS:
            yield from (self._look_at(links, diff) for diff in oldest_first)
            return
        helpers = ThreadPoolExecutor(_LOADERS)
        try:
            waiting: deque[Future[_Link]] = deque()
            for diff in oldest_first:
                waiting.append(helpers.submit(self._look_at, links, diff))
                if len(waiting) == _LOADED_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            helpers.shutdown(cancel_futures=True)

    def _look_at(self, links: Links, diff: plan.Increment) -> _Link:
        with links.open(diff) as fd:
            file = FileId.of(diff.path, os.fstat(fd))
            in_place = self._in_place(file, fd) if file.size_bytes >= _WORTH_A_LOOK else None
            if in_place is not None:
                in_place[1].lend(fd)
        return _Link(diff, file, in_place)

    def _add(self, links: Links, link: _Link) -> None:
        number = SPOOL + 1 + len(self._increments)
        if link.in_place is None or number >= rsync.HOLE:
            with links.open(link.diff) as fd:
                self._keep(read_decompressed(fd))
        else:
            commands, self._increments[number] = link.in_place
            self._maps.add(rsync.ExtentMap.of_commands(commands, number, MAX_EXTENTS))

    def _in_place(self, file: FileId, fd: int) -> tuple[bytes, Increment] | None:
        """The commands of a delta, and what will read its literals; None if that cannot be done."""
        if os.pread(fd, len(_MAGIC), 0) == _MAGIC:
            is_worth_it = file.size_bytes >= _WORTH_SKIPPING
            return (_commands_of(fd), self._increment(file, None)) if is_worth_it else None
        index = Seekable.open(fd)
        commands = None if index is None else index.commands
        if index is None or commands is None:
            return None
        return commands, self._increment(file, index)

    def _increment(self, file: FileId, index: Seekable | None) -> Increment:
        def make() -> rsync.MapSource:
            if index is None:
                return rsync.MapSource(self._shared.members)
            return rsync.MapSource.of_members(self._shared.members, index.offsets, index.raw_offsets)

        return Increment(file, self._shared.files.place(file, make), self._shared.files)

    def _keep(self, delta: Iterable[bytes]) -> None:
        """Parse a delta that cannot be read in place, and keep what is needed of it."""
        parser = rsync.DeltaParser(
            SPOOL, wanted=self._maps.all(), spool_offset=self._spool.size_bytes, max_extents=MAX_EXTENTS
        )
        for block in delta:
            kept = parser.feed(block)
            if self._spool.size_bytes + len(kept) > self._size_bytes:
                raise DamagedError(f"its increments lead to more than its {self._size_bytes} bytes")
            if kept:
                self._spool.write(kept)
        self._maps.add(parser.finish())

    def _on_base(self, links: Links) -> rsync.ExtentMap:
        """The map of all, once it is known to fit the base."""
        file = FileId.of(links.base_path, os.fstat(links.base))
        index = Seekable.open(links.base) if links.is_base_compressed and file.size_bytes >= _WORTH_A_LOOK else None
        size = file.size_bytes
        if index is not None:
            self._increments[rsync.BASIS] = self._increment(file, index)
            size = index.raw_bytes
        elif links.is_base_compressed:
            os.lseek(links.base, 0, os.SEEK_SET)
            self._keep(_as_delta(read_decompressed(links.base)))
        extents = self._maps.all() or rsync.ExtentMap.of_commands(_copy_of(size), rsync.BASIS, MAX_EXTENTS)
        if extents.needs()[1] > size:
            raise DamagedError(f"its increments are for a file of more than {size} bytes")
        return extents


def whole(file: File, size: int, shared: Shared, check: rsync.Check | None) -> Mapped:
    """All of a file, which is closed with it; `check` compares it with its SHA1 while it is read."""
    extents = rsync.ExtentMap.of_commands(_copy_of(size), rsync.BASIS, MAX_EXTENTS)
    return Mapped(extents, {}, {rsync.BASIS: file}, shared, check)


def _copy_of(size: int) -> bytes:
    """The commands that copy a whole basis."""
    return _MAGIC + (struct.pack(">BQQ", 0x54, 0, size) if size else b"") + _END


def _as_delta(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """A delta that makes these bytes of nothing."""
    yield _MAGIC
    for block in blocks:
        yield _LONG_LITERAL + struct.pack(">I", len(block)) + block
    yield _END


def _commands_of(fd: int) -> bytes:
    """The commands of a delta that is not compressed. Of long literals only the beginning is read."""
    commands = []
    stripper = rsync.CommandFilter()
    offset = 0
    while data := os.pread(fd, _WINDOW, offset):
        commands.append(stripper.feed(data))
        offset += len(data)
        if stripper.literal_left > _WINDOW and stripper.literal_left <= os.fstat(fd).st_size - offset:
            offset += stripper.literal_left
            stripper.skip(stripper.literal_left)
    stripper.finish()
    return b"".join(commands)


# --- link by link ---------------------------------------------------------------------------------------------------


class Patcher:
    """Makes one version and all on the way to it. Raises DamagedError, StorageError, OSError."""

    def __init__(self, size_bytes: int, sha1: bytes | None) -> None:
        self._size_bytes = size_bytes
        self._sha1 = sha1

    def patch(self, links: Links) -> Spool:
        """The version, checked."""
        version: Spool | None = None  # None: `base` itself
        try:
            if links.is_base_compressed:
                os.lseek(links.base, 0, os.SEEK_SET)
                version = self._spooled(read_decompressed(links.base), is_wanted_version=False)
            for diff in links.diffs:
                is_last = diff is links.diffs[-1]
                basis = links.base if version is None else version.basis
                with links.open(diff) as fd:
                    blocks = rsync.patch(basis, read_decompressed(fd), self._size_bytes if is_last else None)
                    older = self._spooled(blocks, is_wanted_version=is_last)
                if version is not None:
                    version.close()
                version = older
        except BaseException as exc:
            if version is not None:
                version.close()
            if isinstance(exc, rsync.RsyncError):
                raise DamagedError(f"an increment of it is damaged ({exc})") from exc
            raise
        assert version is not None
        return version

    def _spooled(self, blocks: Iterable[bytes], *, is_wanted_version: bool) -> Spool:
        digest = hashlib.sha1(usedforsecurity=False)
        spool = Spool(IN_MEMORY if is_wanted_version else ON_THE_WAY_IN_MEMORY)
        try:
            for block in blocks:
                spool.write(block)
                if is_wanted_version:
                    digest.update(block)
            if is_wanted_version:
                check_size(spool.size_bytes, self._size_bytes)
                if self._sha1 is not None and digest.hexdigest().encode() != self._sha1:
                    raise DamagedError(OTHER_CONTENT)
        except BaseException:
            spool.close()
            raise
        return spool


def check_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise DamagedError(f"its increments lead to {found} bytes instead of {wanted}")
