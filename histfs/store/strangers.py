"""What lies where something new belongs, and is in no list."""

from histfs.errors import StorageError
from histfs.store.files import WritableTree
from histfs.store.layout import DATA
from histfs.store.tree import Tree


def remove_stranger(tree: WritableTree, path: bytes) -> None:
    """Remove what has the place of something new: a person put it there, or a session that died; no list knows it.

    Unless it has another name, and the file system takes the two for one; or it is or holds a repository, as a person's
    other backups must not go for this one. Raises StorageError, OSError.
    """
    parent, _, name = path.rpartition(b"/")
    if name not in tree.names(parent):
        raise StorageError(
            "the file system of the repository takes two names for one",
            path=path,
            advice="use one that tells upper from lower case and leaves the bytes of names as they are",
        )
    if repository := repository_in(tree, path):
        raise StorageError(
            "is a repository in the place of what is backed up to here",
            path=repository,
            advice="move it out of this repository, and back up again",
        )
    tree.remove_tree(path)


def repository_in(tree: Tree, path: bytes) -> bytes | None:
    """A repository that `path`, which may be missing, is or holds. Raises OSError."""
    below = tree.directories_below(path)
    return next((directory for directory, directories, _ in below if DATA in directories), None)
