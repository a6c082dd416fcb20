"""The operation `test`: whether a directory can be used, to be backed up or as a repository. Nothing is written."""

import os
from pathlib import Path
from typing import NamedTuple

from histfs.errors import HistfsError, StorageError, UsageError, storage_errors
from histfs.store.repository import Repository
from histfs.store.tree import Tree


class Usable(NamedTuple):
    """What can be done with a directory. `sessions`: how many have finished; None: it is no repository."""

    sessions: int | None
    can_be_written: bool
    free_bytes: int  # on its file system, for this user


def usable(path: Path) -> Usable:
    """Look at the directory `path`. Raises UsageError if it is none.

    Raises StorageError if it cannot be listed or entered, or is a repository that this user cannot read.
    """
    with storage_errors():
        try:
            tree = Tree.open(path)
        except FileNotFoundError:
            raise UsageError("there is no such directory", path=path) from None
        except NotADirectoryError:
            raise UsageError("is not a directory", path=path) from None
        with tree:
            for _ in tree.names(b""):
                break
            room = os.fstatvfs(tree.root_fd)
        can_be_written = os.access(path, os.W_OK | os.X_OK)
        return Usable(_sessions(path), can_be_written, room.f_bavail * room.f_frsize)


def _sessions(path: Path) -> int | None:
    try:
        with Repository.open(path) as repository:
            newest = repository.sessions()[-1]
            for name in repository.state().listing_files(newest):  # without which nothing can be read
                os.close(repository.tree.open_file(name))
            return len(repository.sessions())
    except (StorageError, PermissionError) as exc:
        if isinstance(exc, PermissionError) or isinstance(exc.__cause__, PermissionError):
            raise StorageError(
                "is a repository that this user cannot read",
                path=path,
                advice="run histfs as the user who makes the backups, or as root (sudo)",
            ) from exc
        return None
    except (HistfsError, OSError):
        return None
