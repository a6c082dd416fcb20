"""What a handler raises, as the error number for the program that asks, and as a line in the log for a person; and the
attributes that it answers with.

pyfuse3 ends the mount when a handler raises anything but FUSEError. So every handler is wrapped by `reply`, which alone
knows which error is which errno; a bug is EIO for one call.
"""

import errno
import functools
import logging
import stat
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from histfs.errors import HistfsError, NotADirectoryEntryError, NotFoundError
from histfs.fuse import BLOCK_SIZE, pyfuse3
from histfs.vfs import Attributes

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# The first match wins.
_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, errno.ENOENT),
    (NotADirectoryEntryError, errno.ENOTDIR),
    (HistfsError, errno.EIO),
    (MemoryError, errno.ENOMEM),
)
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # they pass, and say nothing about the repository
_REPORTS_REMEMBERED = 1000


class Reports:
    """Logs each trouble once: a damaged file is read in hundreds of requests. Remembers a bounded number."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, None] = OrderedDict()

    def report(self, error: Exception, number: int, handler: str) -> None:
        if number in (errno.ENOENT, errno.ENOTDIR):  # a missing name is not news
            return
        is_bug = not isinstance(error, HistfsError)
        if not self._is_new(f"{handler}: {error!r}" if is_bug else str(error)):
            return
        if is_bug:
            log.error("a bug: %s was answered with %s", handler, errno.errorcode[number], exc_info=error)
        else:
            log.error("%s", error, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)

    def _is_new(self, key: str) -> bool:
        is_new = key not in self._said
        self._said[key] = None
        self._said.move_to_end(key)
        if len(self._said) > _REPORTS_REMEMBERED:
            self._said.popitem(last=False)
        return is_new


class Reporting(Protocol):
    """Who has handlers."""

    reports: Reports


R = TypeVar("R", bound=Reporting)


def shortage(error: Exception) -> int | None:
    """The error number, if `error` says that the system has too little of something to open or read a file now."""
    cause = error.__cause__ if isinstance(error, HistfsError) else None
    return cause.errno if isinstance(cause, OSError) and cause.errno in _SHORTAGES else None


def errno_of(error: Exception) -> int:
    """The error number that says best to a program what `error` says to a person."""
    if (number := shortage(error)) is not None:
        return number
    return next((number for kind, number in _ERRNOS if isinstance(error, kind)), errno.EIO)


def reply(
    handler: Callable[Concatenate[R, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    """Answer every exception of a handler with an error number, and log what a person should know."""

    @functools.wraps(handler)
    async def wrapper(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s%r", handler.__name__, tuple(arg for arg in args if isinstance(arg, int | bytes)))
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            number = errno_of(error)
            self.reports.report(error, number, handler.__name__)
            raise pyfuse3.FUSEError(number) from error

    return wrapper


def entry_of(shown: Attributes, entry_valid_s: float) -> pyfuse3.EntryAttributes:
    """A name that leads to what is `shown`; for how many seconds it is sure to do so."""
    entry = pyfuse3.EntryAttributes()
    fill(entry, shown, entry_valid_s)
    return entry


def fill(entry: pyfuse3.EntryAttributes, shown: Attributes, entry_valid_s: float) -> None:
    """Put the same into an entry that is used again."""
    (entry.st_ino, mode, entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_rdev, size, mtime_s, valid_s) = shown
    entry.st_mode = mode
    entry.st_size = size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = (size + 511) // 512 if stat.S_ISREG(mode) else 0
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = mtime_s * 1_000_000_000
    entry.entry_timeout = entry_valid_s
    entry.attr_timeout = valid_s


def absent(valid_s: float) -> pyfuse3.EntryAttributes:
    """A name that is not there, which the kernel may remember (raising ENOENT it would ask every time)."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = valid_s
    return entry
