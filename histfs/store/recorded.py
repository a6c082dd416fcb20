"""A snapshot as what surrounds a path, for the rules of a selection that ask for that (`selection.Surroundings`)."""

from contextlib import suppress

from histfs.errors import DamagedError, NotADirectoryEntryError, NotFoundError, StorageError
from histfs.store.entry import Entry, Kind, join
from histfs.store.listing import Node
from histfs.store.selection import CACHE_SIGNATURE, CACHE_TAG
from histfs.store.snapshot import Snapshot


class Recorded:
    """What was at and below `root` in the snapshot, as if that were the root.

    The first question reads the whole list (`Snapshot.listing`), so the snapshot is to be closed.
    """

    device = None

    def __init__(self, snapshot: Snapshot, root: bytes) -> None:
        self._snapshot = snapshot
        self._root = root

    def holds(self, directory: bytes, name: bytes) -> bool:
        return self._find(join(directory, name)) is not None

    def entry(self, path: bytes) -> Entry | None:
        """What was recorded for `path`; None if nothing was."""
        node = self._find(path)
        return None if node is None else node.entry

    def is_cache(self, directory: bytes) -> bool:
        tag = self._find(join(directory, CACHE_TAG))
        if tag is None or tag.entry.kind is not Kind.REGULAR:
            return False
        with suppress(DamagedError, StorageError), self._snapshot.open(tag.entry, tag.sha1) as content:
            return content.pread(len(CACHE_SIGNATURE), 0) == CACHE_SIGNATURE
        return False

    def _find(self, path: bytes) -> Node | None:
        whole = self._root + b"/" + path if self._root else path
        try:
            return self._snapshot.listing().find(whole)
        except (NotFoundError, NotADirectoryEntryError):
            return None
