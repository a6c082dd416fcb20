"""A source that also has large files, which change in places."""

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

from tests.histories import Changes, Limits

_LARGE_BYTES = 1 << 20  # more than this is read through a map, from a mirror file whose SHA1 is not computed first
_MOST_BYTES = 5 << 20
_LARGE_FILES = 3


class SoakChanges(Changes):
    """`Changes`, and 3 files of more than a mebibyte. `chance` alone decides: the same calls make the same trees."""

    def __init__(self, source: Path, chance: random.Random, limits: Limits) -> None:
        super().__init__(os.fsencode(source), chance, limits)

    def begin(self) -> None:
        super().begin()
        for _ in range(_LARGE_FILES):
            self._make_large()
        self._stamp_directories()

    def _weights(self) -> list[tuple[Callable[[], None], int]]:
        return [*super()._weights(), (self._change_large, 8), (self._make_large, 4)]

    def _large(self) -> list[bytes]:
        return [path for path in self._paths(stat.S_ISREG) if os.lstat(self._full(path)).st_size > _LARGE_BYTES]

    def _make_large(self) -> None:
        path = self._new_path()
        if path is None or len(self._large()) >= _LARGE_FILES:
            return
        size = self._random.randrange(_LARGE_BYTES + 1, 3 * _LARGE_BYTES)
        hole = bytes(self._random.choice((0, 0, 300_000)))
        self._write(path, self._random.randbytes(size // 2) + hole + self._random.randbytes(size // 2))
        self._dress(path)

    def _change_large(self) -> None:
        large = self._large()
        if not large:
            self._make_large()
            return
        path = self._random.choice(large)
        mode = stat.S_IMODE(os.lstat(self._full(path)).st_mode)
        self._random.choice((self._overwrite, self._overwrite, self._insert, self._cut, self._append))(path)
        os.chmod(self._full(path), mode)  # a write by others than root clears setuid
        self._stamp(path)

    def _overwrite(self, path: bytes) -> None:
        """Change some blocks where they are, as databases and disk images do."""
        with open(self._full(path), "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(self._random.randrange(1, 12)):
                file.seek(self._random.randrange(size))
                file.write(self._random.randbytes(self._random.choice((1, 100, 4_096, 20_000))))

    def _insert(self, path: bytes) -> None:
        content = Path(os.fsdecode(self._full(path))).read_bytes()[:_MOST_BYTES]
        at = self._random.randrange(len(content))
        self._write(path, content[:at] + self._random.randbytes(self._random.randrange(1, 50_000)) + content[at:])

    def _cut(self, path: bytes) -> None:
        with open(self._full(path), "r+b") as file:
            file.truncate(self._random.randrange(os.fstat(file.fileno()).st_size))

    def _append(self, path: bytes) -> None:
        with open(self._full(path), "r+b") as file:
            file.seek(min(file.seek(0, os.SEEK_END), _MOST_BYTES))
            file.write(self._random.randbytes(self._random.randrange(1, 300_000)))
