"""Whether a directory may become a repository, and be emptied for that.

Who says the latter has looked at the directory, and not at all that is below it or above: what would hurt most to lose
is refused whatever is said. Nothing is removed here.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from histfs.errors import NotARepositoryError, UsageError, printable
from histfs.store.entry import is_below, join
from histfs.store.files import WritableTree
from histfs.store.layout import DATA
from histfs.store.mounts import is_same_place_or_below, mounts
from histfs.store.tree import Tree

_ADVICE = "nothing was removed; choose another directory, or empty this one yourself"


def check_apart(source: Path, repository: Path) -> None:
    """Raise UsageError if the source lies in the repository."""
    if is_same_place_or_below(source, repository):
        raise UsageError(
            "the source lies in the repository", path=source, advice="choose a repository outside of the source"
        )


def check_may_be_made(path: Path) -> None:
    """Raise NotARepositoryError if a new repository at `path` would lie in another one.

    It would be part of that one's mirror, and in the way of what its sessions put there.
    """
    above = _repository_above(path)
    if above is not None:
        raise NotARepositoryError(
            f"would lie in the repository {printable(above)}", path=path, advice="choose a place outside of that"
        )


def _repository_above(path: Path) -> Path | None:
    parents = Path(os.path.realpath(path)).parents
    return next((place for place in parents if os.path.isdir(place / os.fsdecode(DATA))), None)


def check_may_be_emptied(tree: Tree, path: Path, source: os.stat_result) -> None:
    """Raise NotARepositoryError if what is in the directory at `path` must stay, whatever a person says.

    That is part of the directory `source`, or holds it; part of a repository, or holds one; or on another file system.
    """
    for above in _directories_above(tree):
        if os.path.samestat(above, source):
            raise NotARepositoryError("is part of the source, and is not emptied", path=path, advice=_ADVICE)
    if _repository_above(path) is not None:
        raise NotARepositoryError("is part of a repository, and is not emptied", path=path, advice=_ADVICE)
    for below, status in _below(tree, path):
        if os.path.samestat(status, source):
            raise NotARepositoryError("holds the source, and is not emptied", path=path, advice=_ADVICE)
        if below.rpartition(b"/")[2] == DATA and below != DATA:
            raise NotARepositoryError(
                "holds a repository, and is not emptied", path=path / os.fsdecode(below), advice=_ADVICE
            )


def check_one_file_system(tree: WritableTree, path: Path) -> None:
    """Raise NotARepositoryError if another file system is mounted somewhere in the directory at `path`.

    All in it is ours, and is going to be removed: directories are opened up.
    """
    for below, status in _below(tree, path):
        if stat.S_ISDIR(status.st_mode):
            tree.open_up(below, status)


def _below(tree: Tree, path: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything in the directory at `path`, of which all must be on its file system; a directory before it is listed.

    What is mounted from elsewhere on the same file system shows in the list of mounts only.
    """
    place = os.path.realpath(os.fsencode(path))
    for mount in mounts():
        if is_below(mount.place, place) and mount.place != place:
            raise NotARepositoryError("is mounted, and is not emptied", path=os.fsdecode(mount.place), advice=_ADVICE)
    device = tree.stat(b"").st_dev
    pending = [b""]
    while pending:
        directory = pending.pop()
        for name in tree.names(directory):
            below = join(directory, name)
            status = tree.stat(below)
            if status.st_dev != device:
                raise NotARepositoryError(
                    "is another file system, which is not emptied", path=path / os.fsdecode(below), advice=_ADVICE
                )
            yield below, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(below)


def _directories_above(tree: Tree) -> Iterator[os.stat_result]:
    """The directory itself and those that it lies in, by whatever way one came to it."""
    fd = os.dup(tree.root_fd)
    try:
        status = os.fstat(fd)
        while True:
            yield status
            following = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = following
            above = os.fstat(fd)
            if os.path.samestat(above, status):
                return
            status = above
    finally:
        os.close(fd)
