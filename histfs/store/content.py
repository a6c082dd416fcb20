"""The content of a regular file at a session, made from the mirror and increments (docs/format.md 6.4, 7.3).

No lock is taken, and nothing is believed that a running session or a regress may have changed meanwhile:
- the mirror file is opened before the increments are looked for, and is looked at again when everything is open; if
  another file has taken its name in between, all of it is planned again. A replaced file stays readable
  through its descriptor.
- an increment of the newest finished session belongs to a session that runs or died. It counts only if the mirror
  does not still hold the version of that session.
- what was put together is checked against size and SHA1 of the record before a byte of it is given out. So is a
  mirror file that is the version itself, if it is small, or its time is not that of the record, as then somebody may
  have put another file there. Of a large one the size is checked at once, and the SHA1 by `blocks`, which reads all.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Self

from histfs import rsync
from histfs.errors import DamagedError, NotADirectoryEntryError, NotFoundError, StorageError, storage_errors
from histfs.store import plan
from histfs.store.compression import read_decompressed
from histfs.store.entry import Entry, Kind
from histfs.store.layout import find_increments
from histfs.store.tree import BLOCK_SIZE, NotRegularError, file_blocks

if TYPE_CHECKING:
    from histfs.store.repository import Repository

_ATTEMPTS = 5
_ON_THE_WAY_IN_MEMORY = 1 << 20  # a version that only leads to the wanted one
_OPEN_IN_MEMORY = 64 << 10  # the wanted one: thousands may be open at the same time
_CHECKED_AT_ONCE = 1 << 20  # a mirror file up to this size is read and checked when it is opened
_OTHER_CONTENT = "its content is not what was backed up (SHA1 differs)"
_ADVICE = "`histfs verify` lists what is damaged; versions at other sessions may be intact"


class _Changed(Exception):  # noqa: N818 - not an error but a signal to plan again
    """The repository changed while a version was put together."""


class Content:
    """An open version. The bytes lie in memory, in an unlinked temporary file, or in the mirror file itself."""

    def __init__(
        self, source: int | bytes, *, size_bytes: int, mtime_ns: int | None, expected_sha1: bytes | None, place: str
    ) -> None:
        self._source = source
        self._expected_sha1 = expected_sha1  # still to be checked; None: checked, or not known
        self._place = place
        self.size_bytes = size_bytes
        self.mtime_ns = mtime_ns  # with its fraction of a second, where a file on disk carries it

    def close(self) -> None:
        if isinstance(self._source, int) and self._source >= 0:
            os.close(self._source)
            self._source = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end. DamagedError if the file on disk is too short."""
        wanted = max(0, min(size, self.size_bytes - offset))
        if isinstance(self._source, bytes):
            return self._source[offset : offset + wanted]
        with storage_errors():
            data = os.pread(self._source, wanted, offset)
            while len(data) < wanted:
                more = os.pread(self._source, wanted - len(data), offset + len(data))
                if not more:
                    raise DamagedError("is shorter than recorded", path=self._place, advice=_ADVICE)
                data += more
        return data

    def pread_nowait(self, size: int, offset: int) -> bytes | None:
        """The same if it needs no disk, else None (preadv2(2), RWF_NOWAIT)."""
        wanted = max(0, min(size, self.size_bytes - offset))
        if isinstance(self._source, bytes) or not wanted:
            return self.pread(size, offset)
        buffer = bytearray(wanted)
        try:
            got = os.preadv(self._source, [buffer], offset, os.RWF_NOWAIT)
        except OSError:  # not cached, not supported by the file system, or an error that pread will report
            return None
        return bytes(buffer) if got == wanted else None

    def blocks(self) -> Iterator[bytes]:
        """All bytes, in blocks of up to 256 KiB; DamagedError at the end if they are not those that were recorded."""
        digest = hashlib.sha1(usedforsecurity=False) if self._expected_sha1 is not None else None
        for offset in range(0, self.size_bytes, BLOCK_SIZE):
            block = self.pread(BLOCK_SIZE, offset)
            if digest is not None:
                digest.update(block)
            yield block
        if digest is not None and digest.hexdigest().encode() != self._expected_sha1:
            raise DamagedError(_OTHER_CONTENT, path=self._place, advice=_ADVICE)


def open_content(repository: "Repository", entry: Entry, sha1: bytes | None, session_time: int) -> Content:
    """The content of the regular file `entry`, a record of the session at `session_time`.

    `sha1`: the hex digest to check, or None where none was recorded. Raises DamagedError, StorageError.
    """
    if entry.kind is not Kind.REGULAR:
        raise DamagedError("is not a regular file, so it has no content", path=entry.path, at=session_time)
    try:
        for attempt in range(_ATTEMPTS):
            try:
                with ExitStack() as stack, storage_errors(at=session_time):
                    return _Opening(repository, entry, sha1, session_time, stack).open()
            except _Changed:
                continue
            except DamagedError:
                # A session or a regress may have been at work on this very file. What is really damaged stays so.
                if attempt >= 1:
                    raise
    except DamagedError as exc:
        exc.path = entry.path
        exc.at = session_time
        exc.advice = exc.advice or _ADVICE
        raise
    raise DamagedError(
        "changed at every attempt to read it", path=entry.path, at=session_time, advice="try again in a moment"
    )


class _Opening:
    """One attempt to open one version. Everything it opens is closed by `stack`, but for what it returns."""

    def __init__(
        self, repository: "Repository", entry: Entry, sha1: bytes | None, session_time: int, stack: ExitStack
    ) -> None:
        self._repository = repository
        self._tree = repository.tree
        self._entry = entry
        self._sha1 = sha1
        self._time = session_time
        self._stack = stack
        self._mirror_path = repository.layout.mirror_path(entry)

    def open(self) -> Content:
        state = self._repository.state()
        mirror = self._open_mirror()
        chain = self._chain()
        finished = state.mirror_time
        first = chain.newest_time
        is_uncertain = first is not None and finished is not None and first >= finished
        if is_uncertain and mirror is not None and self._is_still(mirror, first):
            chain = plan.Chain(None, tuple(diff for diff in chain.diffs if diff.time != first))
        base = mirror if chain.snapshot is None else self._open(chain.snapshot.path)
        newest = self._open(chain.diffs[0].path) if chain.diffs else None
        if chain.snapshot is None:
            self._check_mirror_is_current(mirror)
        if base is None:
            raise DamagedError("its file in the mirror is missing")
        if chain.snapshot is None and newest is None:
            return self._mirror_itself(base)
        return self._reconstruct(base, newest, chain)

    def _open_mirror(self) -> int | None:
        try:
            fd = self._tree.open_file(self._mirror_path)
        except (FileNotFoundError, NotADirectoryError, NotRegularError):
            return None
        self._stack.callback(os.close, fd)
        return fd

    def _open(self, path: bytes, stack: ExitStack | None = None) -> int:
        """A descriptor of an increment, closed by `stack` (None: with all others)."""
        try:
            fd = self._tree.open_file(path)
        except FileNotFoundError:
            raise _Changed from None
        except NotRegularError as exc:
            raise DamagedError("its increment is not a regular file") from exc
        (stack or self._stack).callback(os.close, fd)
        return fd

    def _chain(self) -> plan.Chain:
        increments = [
            increment
            for increment in find_increments(self._tree, self._repository.layout, self._entry)
            if increment.time >= self._time and not self._is_directory(increment.path)
        ]
        chain = plan.chain(increments, self._time)
        if isinstance(chain, plan.Increment):
            what = "did not exist" if chain.type == b"missing" else "was a directory"
            raise DamagedError(f"its content is lost: the increments say that it {what} later, and keep no copy")
        return chain

    def _is_directory(self, path: bytes) -> bool:
        """A directory among the increments is one that a source directory with such a name made, never an increment."""
        try:
            return stat.S_ISDIR(self._tree.stat(path).st_mode)
        except FileNotFoundError:
            raise _Changed from None

    def _is_still(self, mirror: int, session_time: int | None) -> bool:
        """Whether the mirror file holds the version that the newest finished session recorded."""
        try:
            node = self._repository.recorded(session_time or 0, self._entry.path)
        except (NotFoundError, NotADirectoryEntryError):
            return False
        status = os.fstat(mirror)
        if node.entry.kind is not Kind.REGULAR or node.entry.size_bytes != status.st_size:
            return False
        if node.sha1 is None:
            return node.entry.mtime_s == int(status.st_mtime // 1)
        return sha1_of(mirror) == node.sha1

    def _check_mirror_is_current(self, mirror: int | None) -> None:
        """That the name still means the file that was opened: then the increments were looked for in its time."""
        try:
            now = self._tree.stat(self._mirror_path)
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if mirror is None:
            if now is not None and stat.S_ISREG(now.st_mode):
                raise _Changed
        elif now is None or not os.path.samestat(now, os.fstat(mirror)):
            raise _Changed

    def _mirror_itself(self, fd: int) -> Content:
        """The mirror file. A small one, or one whose time is doubtful, is checked now, else by who reads all of it."""
        status = os.fstat(fd)
        if status.st_size != self._entry.size_bytes:
            raise DamagedError(f"its file in the mirror has {status.st_size} bytes instead of {self._entry.size_bytes}")
        is_checked = status.st_size <= _CHECKED_AT_ONCE or status.st_mtime_ns // 10**9 != self._entry.mtime_s
        if is_checked and self._sha1 is not None and sha1_of(fd) != self._sha1:
            raise DamagedError(_OTHER_CONTENT)
        return self._content(os.dup(fd), status.st_mtime_ns, expected_sha1=None if is_checked else self._sha1)

    def _reconstruct(self, base: int, newest: int | None, chain: plan.Chain) -> Content:
        """Make each version from the next newer one. A chain may be long: the one at hand and one diff are open.

        `newest` is the diff that is applied first, as it may belong to the session that runs; older ones do not change.
        """
        status = os.fstat(base)
        version: _Spool | None = None  # None: `base` itself
        if chain.snapshot is not None:
            # By its name: what is kept as it is may be gzip itself.
            blocks = read_decompressed(base) if chain.snapshot.is_compressed else file_blocks(base)
            version = self._spool(blocks, is_wanted_version=not chain.diffs)
        for left, diff in zip(range(len(chain.diffs))[::-1], chain.diffs, strict=True):
            with ExitStack() as link:
                fd = self._open(diff.path, link) if newest is None else newest
                newest = None
                status = os.fstat(fd)
                older = self._patched(base if version is None else version.source, fd, is_wanted_version=not left)
            if version is not None:
                version.close()
            version = older
        assert version is not None
        source = version.source
        return self._content(os.dup(source) if isinstance(source, int) else source, status.st_mtime_ns)

    def _patched(self, basis: int | bytes, diff: int, *, is_wanted_version: bool) -> "_Spool":
        limit = self._entry.size_bytes if is_wanted_version else None
        try:
            return self._spool(rsync.patch(basis, read_decompressed(diff), limit), is_wanted_version=is_wanted_version)
        except rsync.RsyncError as exc:
            raise DamagedError(f"an increment of it is damaged ({exc})") from exc

    def _spool(self, blocks: Iterable[bytes], *, is_wanted_version: bool) -> "_Spool":
        """Keep `blocks` in memory or in a temporary file; if they are the version that was asked for, check them."""
        digest = hashlib.sha1(usedforsecurity=False)
        spool = _Spool(self._stack, _OPEN_IN_MEMORY if is_wanted_version else _ON_THE_WAY_IN_MEMORY)
        room = max(_ON_THE_WAY_IN_MEMORY, _free_for_temporary_files())
        for block in blocks:
            digest.update(block)
            if is_wanted_version and spool.size_bytes + len(block) > self._entry.size_bytes:
                raise DamagedError(f"its increments lead to more than its {self._entry.size_bytes} bytes")
            if spool.size_bytes + len(block) > room:
                raise StorageError("there is not enough room for temporary files", path=self._entry.path, at=self._time)
            spool.write(block)
        if is_wanted_version:
            if spool.size_bytes != self._entry.size_bytes:
                raise DamagedError(
                    f"its increments lead to {spool.size_bytes} bytes instead of {self._entry.size_bytes}"
                )
            if self._sha1 is not None and digest.hexdigest().encode() != self._sha1:
                raise DamagedError(_OTHER_CONTENT)
        return spool

    def _content(self, source: int | bytes, mtime_ns: int, *, expected_sha1: bytes | None = None) -> Content:
        return Content(
            source,
            size_bytes=self._entry.size_bytes,
            mtime_ns=mtime_ns if mtime_ns // 10**9 == self._entry.mtime_s else None,
            expected_sha1=expected_sha1,
            place=os.fsdecode(self._entry.path),
        )


class _Spool:
    """A version on its way to the next link of a chain: in memory while it is small, then in an unlinked file."""

    def __init__(self, stack: ExitStack, in_memory_bytes: int) -> None:
        self._stack = stack  # closes it in any case
        self._in_memory_bytes = in_memory_bytes
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size_bytes = 0

    def write(self, block: bytes) -> None:
        self.size_bytes += len(block)
        if self._file is None and self.size_bytes <= self._in_memory_bytes:
            self._parts.append(block)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` closes it
            self._stack.callback(self.close)
            block = b"".join([*self._parts, block])
            self._parts.clear()
        written = os.write(self._file.fileno(), block)
        while written < len(block):
            written += os.write(self._file.fileno(), memoryview(block)[written:])

    @property
    def source(self) -> int | bytes:
        return b"".join(self._parts) if self._file is None else self._file.fileno()

    def close(self) -> None:
        self._parts.clear()
        if self._file is not None:
            self._file.close()


def _free_for_temporary_files() -> int:
    """Bytes an intermediate version may take: most of what is free for temporary files."""
    status = os.statvfs(tempfile.gettempdir())
    return status.f_bavail * status.f_frsize * 9 // 10


def sha1_of(fd: int) -> bytes:
    digest = hashlib.sha1(usedforsecurity=False)
    offset = 0
    while block := os.pread(fd, BLOCK_SIZE, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest().encode()
