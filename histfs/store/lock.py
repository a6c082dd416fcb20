"""One writer at a time: flock(2) on lock.yml (docs/format.md 8.4); and whether the writer of a marker still runs."""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from histfs.errors import NO_ROOM, LockedError, NotARepositoryError, storage_errors
from histfs.store.files import WritableTree, write_blocks
from histfs.store.format.times import format_time
from histfs.store.layout import DATA, LOCK
from histfs.store.tree import Tree, file_blocks

_TreeT = TypeVar("_TreeT", bound=Tree)

# With the end of the line: half of a number is another process.
_PID = re.compile(rb"^PID[ \t]*([0-9]{1,9})[ \t\r]*\n", re.IGNORECASE | re.MULTILINE)
_CLOCK_SLACK_S = 2.0
MAKE_ROOM = "make room, as with `histfs remove increments --older-than TIME`"
# A line of /proc/locks: the process that holds a lock for itself, the device and the number of the file.
_FLOCK = re.compile(rb"\d+: FLOCK +ADVISORY +WRITE (\d+) ([0-9a-f]+:[0-9a-f]+):(\d+) ")


@contextmanager
def open_locked(
    repository: Path, *, verb: str, advice: str, on_full_disk: str, fsync: bool = True
) -> Iterator[WritableTree]:
    """Enter an existing repository to write in it, and hold its lock.

    `advice`: what to do when the disk refuses something, `on_full_disk` when there is no room. Without `fsync` a crash
    of the system may cost the repository. Raises NotARepositoryError, LockedError, StorageError.
    """
    with entered(WritableTree, repository, "nothing was changed") as tree:
        tree.waits_for_disk = fsync
        on_full_disk = f"every finished session is intact; {on_full_disk}"
        with locked(tree, verb=verb), storage_errors(advice=advice, on_full_disk=on_full_disk, place=repository):
            yield tree


@contextmanager
def entered(kind: type[_TreeT], repository: Path, advice: str = "") -> Iterator[_TreeT]:
    """An existing repository as such a tree. `advice`: what to say when the disk refuses.

    Raises NotARepositoryError, StorageError.
    """
    with storage_errors():
        try:
            tree = kind.open(repository)
        except (FileNotFoundError, NotADirectoryError):
            raise NotARepositoryError("there is no such directory", path=repository) from None
    with tree, storage_errors(advice=advice):
        if not tree.is_directory(DATA):
            raise NotARepositoryError("is not a repository: it has no directory rdiff-backup-data", path=repository)
        yield tree


@contextmanager
def locked(tree: WritableTree, *, verb: str) -> Iterator[None]:
    """Hold the exclusive lock of the repository; LockedError if another program holds it.

    The text in the file is for people: it says who holds the lock, and is emptied at the end. On a full disk it is
    left out, as whoever makes room must come in.
    """
    fd = tree.open_lock_file(LOCK)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _is_used(_said(fd)) from None
        text = f"cmd: histfs {verb}\nhostname: {os.uname().nodename}\npid: {os.getpid()}\n"
        _write_if_there_is_room(fd, [text.encode(), b"timestamp: '" + format_time(int(time.time())) + b"'\n"])
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # which would hide how it ended
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)  # which also gives the lock up


def _write_if_there_is_room(fd: int, blocks: Iterable[bytes]) -> None:
    """Make `blocks` the text of the open file; an empty one on a full disk."""
    try:
        os.ftruncate(fd, 0)
        write_blocks(fd, blocks)
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            exc.filename = LOCK
            raise
        with contextlib.suppress(OSError):  # of half a text nobody would know who it is
            os.ftruncate(fd, 0)


def check_unlocked(tree: Tree) -> None:
    """Raises LockedError if another program is seen to hold the lock, which is not tried."""
    holder = lock_holder(tree)
    if holder is not None:
        raise _is_used(holder.says or f"process {holder.pid}")


def _is_used(by: str) -> LockedError:
    return LockedError(
        f"another program is using the repository ({by or 'it does not say which'})",
        advice="wait until it has finished and try again",
    )


def _said(fd: int) -> str:
    """What the open lock file says about who holds it."""
    text = b"".join(file_blocks(fd, 1024)).decode("ascii", "replace")
    return ", ".join(line for line in text.splitlines() if line.isprintable())


def marker_text() -> bytes:
    """The content of this process's `current_mirror` marker (docs/format.md 1.3)."""
    return b"PID %d\n" % os.getpid()


def write_marker(tree: WritableTree, path: bytes, *, may_be_empty: bool = False) -> None:
    """Write this process's marker, durably; after an OSError there is none, so that nothing has begun.

    `may_be_empty`: on a full disk it does not name the process, for whom it is enough that the lock is held.
    """
    for blocks in ([marker_text()], []):
        try:
            tree.write_file(path, blocks, durable=True)
            break
        except OSError as exc:
            if not isinstance(exc, FileExistsError):
                with contextlib.suppress(OSError):
                    tree.unlink(path)
            if not (blocks and may_be_empty and exc.errno in NO_ROOM):
                raise
    tree.sync_directory(DATA)


def living_writer(marker: bytes, written_at: float) -> int | None:
    """The process that wrote the text `marker` at `written_at` (seconds since the epoch), if it still runs.

    A process that started later only got the same number.
    """
    found = _PID.search(marker)
    if found is None:
        return None
    pid = int(found[1])
    if pid == os.getpid():
        return None
    started = _started_at(pid)
    return pid if started is not None and started <= written_at + _CLOCK_SLACK_S else None


def _started_at(pid: int) -> float | None:
    """When process `pid` started (seconds since the epoch); None if there is none. See proc(5), stat, field 22."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


class Writer(NamedTuple):
    """A process that changes the repository: its number, since when (seconds since the epoch), what it says it is."""

    pid: int
    since_s: float
    says: str = ""


def lock_holder(tree: Tree) -> Writer | None:
    """Who holds the lock now, by what the kernel shows (/proc/locks); None where it shows nobody.

    The lock is not tried: who comes in that moment would be refused.
    """
    try:
        fd = tree.open_file(LOCK)
    except OSError:
        return None
    try:
        status, said = os.fstat(fd), _said(fd)
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}".encode()
        with open("/proc/locks", "rb") as locks:
            for found in filter(None, map(_FLOCK.match, locks)):
                pid = int(found[1])
                # Some file systems show another device there: then the file must name the process.
                if int(found[3]) == status.st_ino and (found[2] == device or f"pid: {pid}" in said):
                    return Writer(pid, status.st_mtime, said)
        return None
    except OSError:  # no /proc
        return None
    finally:
        os.close(fd)


def marker_writer(tree: Tree, marker: bytes) -> Writer | None:
    """The process that wrote the marker at the path `marker`, if it still runs."""
    try:
        text, written_at = tree.read_small_file(marker, limit=4096), tree.stat(marker).st_mtime
    except FileNotFoundError:  # the session has finished meanwhile
        return None
    pid = living_writer(text, written_at)
    return None if pid is None else Writer(pid, written_at)
