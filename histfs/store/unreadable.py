"""What cannot be read of a source: the session goes on, and says what that means for the path."""

from typing import NamedTuple

from histfs.errors import EXIT_FILE_WARNING, FormatError, SourceError


class Unreadable(NamedTuple):
    """What lies at and below `path` cannot be known now."""

    path: bytes
    error: SourceError
    is_listing: bool = False  # a directory that was looked at, but cannot be listed


def unlisted(path: bytes, exc: OSError) -> Unreadable:
    error = source_error(exc, path, "the directory cannot be listed")
    error.if_new = "nothing that lies in it is in the backup"
    return Unreadable(path, error, is_listing=True)


def source_error(exc: OSError, path: bytes, problem: str) -> SourceError:
    error = SourceError(f"{problem} ({exc.strerror})", path=path, advice="its last version in the backup is kept")
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        error = SourceError("vanished while it was backed up", path=path, advice=error.advice)
        error.exit_code = EXIT_FILE_WARNING
    return error


def extras_error(exc: OSError | FormatError, path: bytes) -> SourceError:
    reason = exc.problem if isinstance(exc, FormatError) else exc.strerror
    error = SourceError(
        f"its extended attributes or access control list cannot be read ({reason})",
        path=path,
        advice="those of its last version are kept",
    )
    error.if_new = "it is in the backup without them"
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        error.exit_code = EXIT_FILE_WARNING
    return error


def changed(path: bytes) -> SourceError:
    error = SourceError("changed while it was read", path=path, advice="its last version in the backup is kept")
    error.exit_code = EXIT_FILE_WARNING
    return error
