"""The numbers that stand for names too long for the mirror or for increments (docs/format.md 3.4)."""

import re

from histfs.store.entry import Entry, join
from histfs.store.files import WritableTree
from histfs.store.layout import Layout

_NUMBER = re.compile(rb"[0-9]{1,18}")  # a record holds one digit more


class LongNames:
    """Gives out numbers, each once in the life of the repository."""

    def __init__(self, tree: WritableTree, layout: Layout) -> None:
        self._tree = tree
        self._layout = layout
        self._place = layout.long_names
        self._counter = join(self._place, layout.quoting.quote(b"next_free"))
        self._next: int | None = None
        self._collide_in: tuple[bytes, bool] = (b"", False)  # a directory, and whether increments in it would

    def named(self, old: Entry | None, new: Entry, parent: Entry | None) -> Entry:
        """`new`, which lies in `parent`, with the alternate names it has or needs (docs/format.md 3.4)."""
        if old is not None:
            if (old.alternate_mirror, old.alternate_increment) == (None, None):
                return new
            return new._replace(alternate_mirror=old.alternate_mirror, alternate_increment=old.alternate_increment)
        if not new.path:
            return new
        if self._layout.mirror_name_is_too_long(new.name) or (parent and parent.alternate_mirror is not None):
            return new._replace(alternate_mirror=self.next_number())
        if self._layout.increment_name_is_too_long(new.name) or self._increments_would_collide(new.parent):
            return new._replace(alternate_increment=self.next_number())
        return new

    def _increments_would_collide(self, directory: bytes) -> bool:
        """The same as `Layout` says; one directory is asked for many times."""
        if self._collide_in[0] != directory:
            self._collide_in = directory, self._layout.increments_would_collide(directory)
        return self._collide_in[1]

    def next_number(self) -> int:
        """A number that was never used; the counter on disk is ahead of it before it is used."""
        if self._next is None:
            self._tree.make_directories(self._place)
            self._next = self._first_free()
        number = self._next
        self._next += 1
        self._store(self._next)
        return number

    def _first_free(self) -> int:
        """What the counter says, or more: a power cut may have lost the counter and kept a file of a number."""
        names = [self._layout.quoting.unquote(name).partition(b".")[0] for name in self._tree.names(self._place)]
        free = [int(name) + 1 for name in names if _NUMBER.fullmatch(name)]
        try:
            counter = self._tree.read_small_file(self._counter, limit=100).strip()
        except FileNotFoundError:
            counter = b""
        if _NUMBER.fullmatch(counter):
            free.append(int(counter))
        return max([1, *free])

    def _store(self, number: int) -> None:
        temporary = self._counter + b".new"
        self._tree.unlink(temporary, missing_ok=True)
        self._tree.write_file(temporary, [b"%d" % number])
        self._tree.rename(temporary, self._counter)
