"""How a version is opened, so that it is what its session recorded (docs/format.md 6.4, 7.3).

No lock is taken, and nothing is believed that a running session or a regress may have changed meanwhile:
- the mirror file is opened before the increments are looked for, and is looked at again when what may change is open;
  if another file has taken its name in between, all of it is planned again. A replaced file stays readable through its
  descriptor.
- an increment of the newest finished session belongs to a session that runs or died. It counts only if the mirror
  does not still hold the version of that session.
- size and SHA1 of what is small are checked before a byte of it is given out. So is a mirror file that is the version
  itself, if it is small, or its time is not that of the record, as then somebody may have put another file there. Of
  what is large the size is checked at once, and the SHA1 while it is read: by who reads all, or by a `rsync.Check`.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from histfs import rsync
from histfs.errors import DamagedError, NotADirectoryEntryError, NotFoundError
from histfs.store import plan
from histfs.store.content.chain import (
    IN_MEMORY,
    OTHER_CONTENT,
    Composed,
    Composer,
    Links,
    Patcher,
    open_increment,
    whole,
)
from histfs.store.content.sources import ChangedError, File, Memory, Source
from histfs.store.entry import Entry, Kind
from histfs.store.tree import BLOCK_SIZE, NotRegularError

if TYPE_CHECKING:
    from histfs.store.repository import Repository

CHECKED_AT_ONCE = 1 << 20  # a version up to this size is read and checked when it is opened
_SHA1_DIGITS = 40
OTHERS_MAY_BE_INTACT = "versions at other sessions may be intact"
ADVICE = f"`histfs verify` lists what is damaged; {OTHERS_MAY_BE_INTACT}"


class Version(NamedTuple):
    """What was opened: its bytes, its mtime on disk, and the SHA1 that is still to be compared."""

    source: Source
    mtime_ns: int
    unchecked_sha1: bytes | None = None


class Opening:
    """One attempt to open one version. Everything it opens is closed, but for what it returns."""

    def __init__(
        self, repository: "Repository", entry: Entry, sha1: bytes | None, session_time: int, *, anew: bool
    ) -> None:
        self._repository = repository
        self._shared = repository.shared
        self._tree = repository.tree
        self._entry = entry
        self._sha1 = sha1
        self._time = session_time
        self._anew = anew  # the map that is kept turned out to be of no use any more
        self._mirror_path = repository.layout.mirror_path(entry)

    def open(self) -> Version:
        """Raises DamagedError, ChangedError, StorageError, OSError."""
        # What a session recorded does not change, and what is kept was checked.
        known = self._shared.versions.get(self._key)
        if known is not None:
            return Version(Memory(known[0]), known[1])
        with ExitStack() as stack:
            return self._in_mirror(stack) or self._open(stack)

    @property
    def _key(self) -> Hashable:
        return self._entry.path, self._entry.size_bytes, self._entry.mtime_s, self._sha1 or self._time

    def _in_mirror(self, stack: ExitStack) -> Version | None:
        """The mirror file, if it is small, looks like the version, and is by its SHA1: no increment matters then."""
        if self._sha1 is None or self._entry.size_bytes > CHECKED_AT_ONCE:
            return None
        fd = self._open_mirror(stack)
        if fd is None:
            return None
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns // 10**9) != (self._entry.size_bytes, self._entry.mtime_s):
            return None
        data = os.pread(fd, self._entry.size_bytes, 0)
        if digest_of(data) != self._sha1:
            return None
        source = Memory(data) if len(data) <= IN_MEMORY else File(os.dup(fd))
        return Version(source, status.st_mtime_ns)

    def _open(self, stack: ExitStack) -> Version:
        state = self._repository.state()
        mirror = self._open_mirror(stack)
        chain = self._chain()
        finished = state.mirror_time
        first = chain.newest_time
        is_uncertain = first is not None and finished is not None and first >= finished
        if is_uncertain and mirror is not None and self._is_still(mirror, first):
            chain = plan.Chain(None, tuple(diff for diff in chain.diffs if diff.time != first))
        base = mirror if chain.snapshot is None else self._open_increment(chain.snapshot, stack)
        newest = self._open_increment(chain.diffs[0], stack) if chain.diffs else -1
        if chain.snapshot is None:
            self._check_mirror_is_current(mirror)
        if base is None:
            raise DamagedError("its file in the mirror is missing")
        if chain.snapshot is None and not chain.diffs:
            return self._mirror_itself(base)
        base_path = self._mirror_path if chain.snapshot is None else chain.snapshot.path
        return self._older(Links(self._tree, chain, base_path, base, newest))

    def _open_mirror(self, stack: ExitStack) -> int | None:
        try:
            fd = self._tree.open_file(self._mirror_path)
        except (FileNotFoundError, NotADirectoryError, NotRegularError):
            return None
        stack.callback(os.close, fd)
        return fd

    def _open_increment(self, increment: plan.Increment, stack: ExitStack) -> int:
        fd = open_increment(self._tree, increment)
        stack.callback(os.close, fd)
        return fd

    def _chain(self) -> plan.Chain:
        increments = [one for one in self._shared.listings.find(self._entry) if one.time >= self._time]
        chain = plan.chain(increments, self._time)
        if isinstance(chain, plan.Increment):
            what = "did not exist" if chain.type == b"missing" else "was a directory"
            raise DamagedError(f"its content is lost: the increments say that it {what} later, and keep no copy")
        return chain

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
            return node.entry.mtime_s == status.st_mtime_ns // 10**9
        return sha1_of(mirror) == node.sha1

    def _check_mirror_is_current(self, mirror: int | None) -> None:
        """That the name still means the file that was opened: then the increments were looked for in its time."""
        try:
            now = self._tree.stat(self._mirror_path)
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if mirror is None:
            if now is not None and stat.S_ISREG(now.st_mode):
                raise ChangedError("the mirror changed")
        elif now is None or not os.path.samestat(now, os.fstat(mirror)):
            raise ChangedError("the mirror changed")

    def _mirror_itself(self, fd: int) -> Version:
        """The mirror file. A small one, or one whose time is doubtful, is checked now, else by who reads all of it."""
        status = os.fstat(fd)
        if status.st_size != self._entry.size_bytes:
            raise DamagedError(f"its file in the mirror has {status.st_size} bytes instead of {self._entry.size_bytes}")
        is_checked = status.st_size <= CHECKED_AT_ONCE or status.st_mtime_ns // 10**9 != self._entry.mtime_s
        if is_checked and self._sha1 is not None and sha1_of(fd) != self._sha1:
            raise DamagedError(OTHER_CONTENT)
        file = File(os.dup(fd))
        is_large = status.st_size > CHECKED_AT_ONCE
        source = whole(file, status.st_size, self._shared, None if is_checked else self._check()) if is_large else file
        return Version(source, status.st_mtime_ns, None if is_checked else self._sha1)

    def _older(self, links: Links) -> Version:
        """A version that increments lead to: through a map that is kept, or one that is made now, or link by link."""
        key = self._key, links.identity
        if not self._anew:
            kept = self._shared.maps.use(key, lambda composed: self._mapped(composed, links))
            if kept is not None:
                return kept
        try:
            composed = Composer(self._shared, self._entry.size_bytes).compose(links)
        except rsync.TooManyExtentsError:
            return self._patched(links)
        with ExitStack() as stack:
            stack.callback(composed.close)
            version = self._mapped(composed, links)
            stack.callback(version.source.close)
            if self._entry.size_bytes <= CHECKED_AT_ONCE:
                data = bytes(version.source.pread(self._entry.size_bytes, 0))
                if self._sha1 is not None and digest_of(data) != self._sha1:
                    raise DamagedError(OTHER_CONTENT)
                if len(data) <= IN_MEMORY:
                    return self._in_memory(data, version.mtime_ns)
                composed.is_checked = True
            stack.pop_all()
        if composed.is_worth_keeping:
            self._shared.maps.put(key, composed, composed.cost)
        else:
            composed.close()
        return version._replace(unchecked_sha1=None if composed.is_checked else self._sha1)

    def _mapped(self, composed: Composed, links: Links) -> Version:
        basis = None if links.is_base_compressed else File(os.dup(links.base))
        is_checked = composed.is_checked
        source = composed.open(basis, None if is_checked else self._check())
        return Version(source, composed.mtime_ns, None if is_checked else self._sha1)

    def _check(self) -> rsync.Check | None:
        """What compares a version that is large with its SHA1 while it is read."""
        if self._sha1 is None or self._entry.size_bytes <= CHECKED_AT_ONCE:
            return None
        if len(self._sha1) != _SHA1_DIGITS:
            raise DamagedError("has a record that is damaged: its SHA1 is none")
        return self._shared.checks.of(self._key, self._entry.size_bytes, bytes.fromhex(self._sha1.decode()))

    def _patched(self, links: Links) -> Version:
        spool = Patcher(self._entry.size_bytes, self._sha1).patch(links)
        try:
            mtime_ns = self._tree.stat(links.diffs[-1].path).st_mtime_ns
            if spool.size_bytes <= IN_MEMORY:
                return self._in_memory(bytes(spool.source().pread(spool.size_bytes, 0)), mtime_ns)
            return Version(spool.source(), mtime_ns)
        finally:
            spool.close()

    def _in_memory(self, data: bytes, mtime_ns: int) -> Version:
        self._shared.versions.put(self._key, (data, mtime_ns), len(data) + 1024)
        return Version(Memory(data), mtime_ns)


def digest_of(data: bytes | memoryview) -> bytes:
    """The SHA1 (hex) of what is in memory."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()


def sha1_of(fd: int, tell: Callable[[int], object] | None = None) -> bytes:
    """The SHA1 (hex) of what is in a file; `tell` is called with the size of each block that was read."""
    digest = hashlib.sha1(usedforsecurity=False)
    offset = 0
    while block := os.pread(fd, BLOCK_SIZE, offset):
        digest.update(block)
        offset += len(block)
        if tell is not None:
            tell(len(block))
    return digest.hexdigest().encode()
