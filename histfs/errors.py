"""What can go wrong, said to a person: what, where, when, and what to do.

Every error that a caller of histfs may see derives from HistfsError. The class knows its exit code;
only `histfs.cli` maps errors to messages and exit codes, and only `histfs.fs` maps them to errnos.
Exit codes are rdiff-backup's bits: 1 error, 2 warning, 4 file error, 8 file warning or difference.
"""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

EXIT_ERROR = 1
EXIT_WARNING = 2
EXIT_FILE_ERROR = 4
EXIT_FILE_WARNING = 8

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def printable(path: bytes | str | os.PathLike[str]) -> str:
    """`path` for a message: one line, no control characters, never an encoding error.

    Bytes that are not UTF-8 and characters that are not printable (line breaks, escape sequences,
    direction marks) become backslash escapes; a backslash is doubled.
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    return "".join(map(_printable_character, text)) or "."


def quoted(path: bytes | str | os.PathLike[str]) -> str:
    """`path` for a command in a message: one word for a shell, printable as well."""
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_printable_character, text)).replace("'", "\\'") + "'"


def _printable_character(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:  # an undecodable byte, see PEP 383
        return f"\\x{ord(char) - 0xDC00:02x}"
    if ord(char) < 0x80:
        return char.encode("unicode_escape").decode("ascii")
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def printable_time(session_time: int) -> str:
    """A session time (seconds since the epoch) in local time with its offset, to the second."""
    try:
        return datetime.fromtimestamp(session_time, UTC).astimezone().isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{session_time} seconds since 1970"


class HistfsError(Exception):
    """A problem with a sentence for the person who has it.

    `problem` says what is wrong, `path` where (bytes: relative to the repository's or the source's root;
    otherwise a path of the host), `at` at which session time (seconds since the epoch), `advice` what to do.
    """

    exit_code = EXIT_ERROR

    def __init__(
        self,
        problem: str,
        *,
        path: bytes | str | os.PathLike[str] | None = None,
        at: int | None = None,
        advice: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path
        self.at = at
        self.advice = advice

    def __str__(self) -> str:
        where = "" if self.path is None else printable(self.path)
        when = "" if self.at is None else f"at {printable_time(self.at)}"
        place = " ".join(part for part in (where, when) if part)
        text = f"{place}: {self.problem}" if place else self.problem
        return f"{text}; {self.advice}" if self.advice else text


class UsageError(HistfsError):
    """What was asked for makes no sense: a bad time, a bad argument, overlapping directories."""


class NotFoundError(HistfsError):
    """The name or the session that was asked for is not in the repository."""


class NotADirectoryEntryError(HistfsError):
    """A directory was asked for and the name is something else."""


class NotARepositoryError(HistfsError):
    """The directory is not a repository, or is an empty one."""


class InRepositoryError(NotARepositoryError):
    """It is no repository, and lies in one."""


class LockedError(HistfsError):
    """Another program is writing to the repository."""


class UnfinishedError(HistfsError):
    """A session did not finish and what was asked for needs a repository at rest."""


class DamagedError(HistfsError):
    """Something in the repository is not what it must be: truncated, altered, inconsistent, missing."""

    exit_code = EXIT_FILE_ERROR


class FormatError(DamagedError):
    """Bytes that do not follow the repository format (raised by the codecs of `store.format`)."""


class StorageError(HistfsError):
    """The operating system refused to read or write the repository or the target (disk full, I/O error)."""


class SourceError(HistfsError):
    """A file of the source could not be read, or changed while it was read: the session goes on without it."""

    exit_code = EXIT_FILE_ERROR
    if_new = "it is not in the backup"  # in place of the advice, where there is no version before

    def for_new(self) -> None:
        """Say what it means for something that no session has had before."""
        self.advice = self.if_new


class MountError(HistfsError):
    """The file system could not be mounted or unmounted."""


WHO_MAY = "run histfs as the user who makes the backups, or as root (sudo)"


@contextmanager
def storage_errors(
    *,
    at: int | None = None,
    advice: str = "",
    on_full_disk: str = "",
    place: str | os.PathLike[str] | None = None,
) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names the path the error carries.

    Who may not do something is told who may, and not `advice`: no second attempt helps. `on_full_disk`: the advice
    where there is no room; then it is all of `place` that this is about, and not the file that was written just then.
    """
    try:
        yield
    except OSError as exc:
        path = exc.filename
        if isinstance(exc, PermissionError) and os.geteuid() != 0:
            advice = WHO_MAY
        elif exc.errno in NO_ROOM and on_full_disk:
            path, advice = place, on_full_disk
        raise StorageError(exc.strerror or str(exc), path=path, at=at, advice=advice) from exc
