"""What the mirror holds for entries that are no regular files, and with which mode (docs/format.md 4.5).

The list of files has the truth; an ordinary user's mirror can only come near it.
"""

import errno
import os

from histfs.store.entry import Entry, Kind
from histfs.store.files import Attributes, WritableTree

# By this user, in this container, or on this file system.
_CANNOT_BE_MADE = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def make_special(tree: WritableTree, path: bytes, entry: Entry, attributes: Attributes) -> None:
    """Make a symbolic link, fifo, socket or device in the mirror; an empty file stands for what cannot be made."""
    kind = entry.kind
    try:
        if kind is Kind.SYMLINK:
            tree.make_symlink(path, entry.target)
        else:
            tree.make_special(path, entry)
    except OSError as exc:
        if exc.errno not in _CANNOT_BE_MADE:
            raise
        os.close(tree.create_file(path))
        kind = Kind.REGULAR
    tree.set_attributes(path, kind, attributes)


def mirror_mode(entry: Entry, *, is_root: bool) -> int:
    """The mode of an entry in the mirror: an ordinary user must be able to read and change it again."""
    if is_root:
        return entry.safe_mode
    return entry.safe_mode | (0o700 if entry.kind is Kind.DIRECTORY else 0o600)
