"""The logs that verbs leave in a repository, each under its name: `backup.log`, `regress.log` (docs/format.md 1.3).

Text for people, and bounded: one that has become large is put aside before the next run appends, in place of the one
that was put aside before. A log that cannot be written is no trouble: nothing depends on it.
"""

import os
from pathlib import Path

from histfs.store.files import WritableTree, write_blocks
from histfs.store.layout import DATA

LARGE_BYTES = 1 << 20
_MOST_WAITING = 100


class Log:
    """The log of one run of a verb. Lines wait until the run has begun to change the repository.

    Before that the repository may be another's: one that somebody else writes to, or none at all.
    """

    def __init__(self, repository: Path, verb: str, heading: str) -> None:
        self._repository = repository
        self._path = DATA + b"/" + verb.encode() + b".log"
        self._waiting = [heading]
        self._fd: int | None = None
        self._has_failed = False

    def begin(self) -> None:
        """The repository is ours now: what waits is written, and from now on every line at once."""
        if self._fd is not None or self._has_failed:
            return
        try:
            with WritableTree.open(self._repository) as tree:
                self._fd = tree.open_to_append(self._path)
                if os.fstat(self._fd).st_size > LARGE_BYTES:
                    os.close(self._fd)
                    self._fd = None
                    tree.rename(self._path, self._path + b".1")
                    self._fd = tree.open_to_append(self._path)
        except OSError:
            self._has_failed = True
            return
        for line in self._waiting:
            self._append(line)
        self._waiting.clear()

    def write(self, line: str) -> None:
        """Appends a line."""
        if self._fd is not None:
            self._append(line)
        elif len(self._waiting) < _MOST_WAITING:
            self._waiting.append(line)

    def _append(self, line: str) -> None:
        if self._fd is None:
            return
        try:
            write_blocks(self._fd, [line.encode("utf-8", "backslashreplace") + b"\n"])
        except OSError:
            self.close()

    def close(self) -> None:
        self._has_failed = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
