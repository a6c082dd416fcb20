"""The operation `test`: whether a directory can be used, to be backed up or as a repository. Nothing is written."""

import os
from pathlib import Path
from typing import NamedTuple

from histfs.errors import HistfsError, UsageError, storage_errors
from histfs.store.repository import Repository
from histfs.store.tree import Tree


class Usable(NamedTuple):
    """What can be done with a directory. `sessions`: how many have finished; None: it is no repository."""

    sessions: int | None
    can_be_written: bool
    free_bytes: int  # on its file system, for this user


def usable(path: Path) -> Usable:
    """Look at the directory `path`. Raises UsageError if it is none, StorageError if it cannot be listed or entered."""
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
            return len(repository.sessions())
    except HistfsError:
        return None
