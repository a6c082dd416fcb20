"""A mark in the target of a restore that has not come to its end.

Content may reach the disk after size and time do. So after a power cut, or when a disk was pulled out, a file may look
as it should be and hold zeros. The mark is on the disk before the first file is written, and goes when all of them are:
a restore that finds one compares contents below it. Waiting for each file instead would cost each a write to the disk.
"""

import re
import secrets

from histfs.store.entry import is_below, join
from histfs.store.files import WritableTree

LEFTOVER = b".histfs-restore."  # and 16 hex digits: what a restore was about to put in its place
_MARK = LEFTOVER + b"unfinished."  # and as many
_LEFTOVER_NAME = re.compile(re.escape(LEFTOVER) + rb"(unfinished\.)?[0-9a-f]{16}")


def new_leftover() -> bytes:
    """A name for what is about to be put in its place."""
    return LEFTOVER + secrets.token_hex(8).encode()


def is_leftover_name(name: bytes) -> bool:
    """Whether only a restore gives such names."""
    return _LEFTOVER_NAME.fullmatch(name) is not None


class Unfinished:
    """Our mark, in the directory `top` of `tree`, and those that were found."""

    def __init__(self, tree: WritableTree, top: bytes) -> None:
        self._tree = tree
        self._top = top
        self._distrusted: set[bytes] = set()  # directories
        self._mark: bytes | None = None
        self._is_refused = False

    def found(self, name: bytes, directory: bytes) -> bool:
        """A restore that was cut off left `name`, a leftover, in `directory`. Whether it was a mark."""
        if not name.startswith(_MARK):
            return False
        self._distrusted.add(directory)
        return True

    def covers(self, path: bytes) -> bool:
        """Whether the content of the file `path` may have been lost, whatever else agrees."""
        return any(is_below(path, directory) for directory in self._distrusted)

    def begin(self) -> bool:
        """Set our mark, before anything is written; whether it is there. Else each file has to wait for the disk."""
        if self._mark is None and not self._is_refused:
            mark = join(self._top, _MARK + secrets.token_hex(8).encode())
            try:
                self._tree.write_file(mark, (), durable=True)
                self._mark = mark
                self._tree.sync_directory(self._top)
            except OSError:  # what is restored is no directory, or it takes no new names
                self._is_refused = True
        return not self._is_refused

    def end(self, *, is_complete: bool) -> bool:
        """Take our mark away; whether it was there. Everything must be on the disk. Raises OSError.

        It stays if others were found and not all that they may stand for `is_complete` now.
        """
        if self._mark is None or (self._distrusted and not is_complete):
            return False
        self._tree.unlink(self._mark, missing_ok=True)
        self._mark = None
        return True
