"""The directory that keeps what a restore replaces or deletes: `--backup-dir`."""

import os
import stat
from collections.abc import Callable

from histfs.store.entry import join
from histfs.store.files import WritableTree
from histfs.store.layout import NAME_MAX


class Aside:
    """Keeps things in `tree`, each in a place of its own. `repository`: its root, in which nothing is put."""

    def __init__(self, tree: WritableTree, repository: os.stat_result) -> None:
        self._tree = tree
        self._repository = repository

    def keep(self, tree: WritableTree, path: bytes, name: bytes) -> None:
        """Move what is at `path` in `tree` to `name`, a path, or beside what earlier restores have put there."""
        tree.move_to(path, self._tree, self._free_place(name))

    def _free_place(self, path: bytes) -> bytes:
        *above, name = path.split(b"/")
        directory = b""
        for component in above:
            directory = self._first_name(directory, component, self._may_hold)
            self._tree.make_directories(directory)
        return self._first_name(directory, name, lambda _: False)

    def _may_hold(self, there: os.stat_result) -> bool:
        """Whether something may be put below what is `there`."""
        return stat.S_ISDIR(there.st_mode) and not os.path.samestat(there, self._repository)

    def _first_name(self, directory: bytes, name: bytes, will_do: Callable[[os.stat_result], bool]) -> bytes:
        """The first of name, name.~1~, name.~2~, ... that is free, or will do."""
        path = join(directory, name)
        number = 0
        while True:
            try:
                if will_do(self._tree.stat(path)):
                    return path
            except FileNotFoundError:
                return path
            number += 1
            suffix = b".~%d~" % number
            path = join(directory, name[: NAME_MAX - len(suffix)] + suffix)
