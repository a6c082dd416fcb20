"""The tree that is backed up, and how it changes from session to session: the same for every program and every run.

Sizes and places of changes come from a seeded generator. Contents compress about as well as text does.
"""

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

_WORDS = [bytes([97 + i % 26, 97 + i // 26 % 26, 97 + i * 7 % 26]) for i in range(600)]
_FILES_A_DIRECTORY = 50
_EDITS_OF_LARGE_FILE = 16


class Shape(NamedTuple):
    """`files` small files of 8 KiB on average, and one large file."""

    files: int
    large_bytes: int

    def __str__(self) -> str:
        return f"{self.files} small files and one of {self.large_bytes >> 20} MiB"


def text(generator: random.Random, size_bytes: int) -> bytes:
    """Words and line breaks; half as large when compressed."""
    return b" ".join(generator.choices(_WORDS, k=size_bytes // 4 + 1))[:size_bytes]


def build(root: Path, shape: Shape) -> None:
    generator = random.Random("build")
    root.mkdir()
    for number in range(shape.files):
        path = _small_file(root, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text(generator, min(int(generator.lognormvariate(8, 1.4)), 1 << 20)))
    with (root / "large").open("wb") as stream:
        block = text(generator, 1 << 20)
        for number in range(shape.large_bytes >> 20):
            stream.write(number.to_bytes(8) + block[8:-number] + block[-number:] if number else block)


def change(root: Path, shape: Shape, session: int) -> None:
    """What happens before session `session` (1, 2, ...): 1 % of the small files, and some blocks of the large one.

    Of the small files that change one in ten is removed, one in ten is new, the others get a line somewhere.
    """
    generator = random.Random(f"session {session}")
    present = [path for number in range(shape.files) if (path := _small_file(root, number)).exists()]
    for index, path in enumerate(generator.sample(present, max(shape.files // 100, 1))):
        if index % 10 == 8:
            path.unlink()
        elif index % 10 == 9:
            (path.parent / f"new-{session}").write_bytes(text(generator, 8000))
        else:
            content = path.read_bytes()
            place = generator.randrange(len(content) + 1)
            path.write_bytes(content[:place] + b"\na new line\n" + content[place:])
            _set_time(path, session)
    with (root / "large").open("r+b") as stream:
        for _ in range(_EDITS_OF_LARGE_FILE):
            stream.seek(generator.randrange(max(shape.large_bytes - 4096, 1)))
            stream.write(text(generator, 4096))
    _set_time(root / "large", session)


def _set_time(path: Path, session: int) -> None:
    """A time of its own, by whole seconds: a file that changes twice within one would look unchanged to some."""
    modified = path.stat().st_mtime + session
    os.utime(path, (modified, modified))


def copy(root: Path, target: Path) -> None:
    shutil.copytree(root, target, symlinks=True)


def _small_file(root: Path, number: int) -> Path:
    directory = number // _FILES_A_DIRECTORY
    return root / f"group{directory // 10}" / f"directory{directory % 10}" / f"file{number}.txt"
