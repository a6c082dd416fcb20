"""What is backed up, and how it changes from session to session: the same for every program and every run.

Sizes and places of changes come from seeded generators. Contents compress about as well as what they stand for.
"""

import hashlib
import os
import random
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

MIB = 1 << 20
BLOCK = 4096
_WORDS = [bytes([97 + i % 26, 97 + i // 26 % 26, 97 + i * 7 % 26]) for i in range(600)]
_FILES_A_DIRECTORY = 50
_EDITS_OF_LARGE_FILE = 16
_OWNER_MAY = stat.S_IRUSR | stat.S_IWUSR


class History(ABC):
    """A directory `root` that is built once (session 0), and changed before each further session."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def __str__(self) -> str:
        """What it is, in a few words."""

    def fingerprint(self) -> str:
        """Equal only if all sessions are."""
        return str(self)

    @abstractmethod
    def build(self) -> None: ...

    @abstractmethod
    def change(self, session: int) -> None: ...

    def advance(self, session: int) -> None:
        if session:
            self.change(session)
        else:
            self.root.mkdir()
            self.build()


class SmallFiles(History):
    """Text files of 8 KiB on average and one large file. Nothing changes before session 1."""

    def __init__(self, root: Path, files: int, large_mib: int) -> None:
        super().__init__(root)
        self.files = files
        self.large_bytes = large_mib * MIB

    def __str__(self) -> str:
        return f"{self.files:,} small files and one of {self.large_bytes // MIB} MiB"

    def build(self) -> None:
        generator = random.Random("build")
        for number in range(self.files):
            path = self._small_file(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text(generator, min(int(generator.lognormvariate(8, 1.4)), MIB)))
        with (self.root / "large").open("wb") as stream:
            block = text(generator, MIB)
            for number in range(self.large_bytes // MIB):
                stream.write(number.to_bytes(8) + block[8:-number] + block[-number:] if number else block)

    def change(self, session: int) -> None:
        if session == 1:
            return
        generator = random.Random(f"session {session}")
        edit_some([self._small_file(number) for number in range(self.files)], generator, session)
        large = self.root / "large"
        with large.open("r+b") as stream:
            for _ in range(_EDITS_OF_LARGE_FILE):
                stream.seek(generator.randrange(max(self.large_bytes - BLOCK, 1)))
                stream.write(text(generator, BLOCK))
        set_time(large, session)

    def _small_file(self, number: int) -> Path:
        directory = number // _FILES_A_DIRECTORY
        return self.root / f"group{directory // 10}" / f"directory{directory % 10}" / f"file{number}.txt"


class RealTree(History):
    """The first `files` files of some directories of this machine, by name; 1 % change a session."""

    def __init__(self, root: Path, origins: list[Path], files: int) -> None:
        super().__init__(root)
        self.origins = origins
        self.files = files
        self._copied: list[Path] = []

    def __str__(self) -> str:
        return f"the first {self.files:,} files of {', '.join(map(str, self.origins))}; 1 % changes a session"

    def fingerprint(self) -> str:
        """With a digest of names, sizes and times: they differ between machines, and where packages were updated."""
        digest = hashlib.sha256()
        for path in self._originals():
            found = path.lstat()
            digest.update(b"%b %d %d\n" % (os.fsencode(path), found.st_size, found.st_mtime_ns))
        return f"{self} {digest.hexdigest()}"

    def build(self) -> None:
        for path in self._originals():
            target = self.root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                target.symlink_to(path.readlink())
            else:
                shutil.copyfile(path, target)
                found = path.stat()
                target.chmod(stat.S_IMODE(found.st_mode) & 0o777 | _OWNER_MAY)
                os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
                self._copied.append(target)

    def _originals(self) -> Iterator[Path]:
        """Regular files and symbolic links; what cannot be read is left out."""
        found = (path for origin in self.origins for path in _sorted_files(origin))
        return islice((path for path in found if path.is_symlink() or os.access(path, os.R_OK)), self.files)

    def change(self, session: int) -> None:
        edit_some(self._copied, random.Random(f"session {session}"), session)


def _sorted_files(origin: Path) -> Iterator[Path]:
    """Regular files and symbolic links below `origin`, on its file system."""
    device = origin.stat().st_dev
    for directory, directories, names in os.walk(origin):
        directories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            found = path.lstat()
            if found.st_dev == device and (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                yield path


class Image(History):
    """One file like the disk of a machine; before each session 1 % of its 4 KiB blocks are written anew."""

    def __init__(self, root: Path, mib: int) -> None:
        super().__init__(root)
        self.mib = mib
        self.path = root / "image"

    def __str__(self) -> str:
        return f"an image of {self.mib:,} MiB; 1 % of its 4 KiB blocks written anew before each session"

    def build(self) -> None:
        with self.path.open("wb") as stream:
            stream.writelines(block for _, block in self._written(0))

    def change(self, session: int) -> None:
        with self.path.open("r+b") as stream:
            for offset, block in self._written(session):
                stream.seek(offset)
                stream.write(block)
        set_time(self.path, session)

    def _written(self, session: int) -> Iterator[tuple[int, bytes]]:
        """What is written before a session: offsets and blocks."""
        generator = random.Random(f"image {session}")
        count = self.mib * MIB // BLOCK
        places = generator.sample(range(count), max(count // 100, 1)) if session else range(count)
        for some in batched(places, MIB // BLOCK):
            for place, block in zip(some, _blocks(generator, len(some)), strict=True):
                yield place * BLOCK, block

    def pieces(self, sessions: Collection[int], offsets: Collection[int]) -> dict[int, dict[int, bytes]]:
        """For each of `sessions` the blocks at `offsets`, as they were then."""
        wanted = set(offsets)
        now: dict[int, bytes] = {}
        found: dict[int, dict[int, bytes]] = {}
        for session in range(max(sessions, default=-1) + 1):
            now.update((offset, block) for offset, block in self._written(session) if offset in wanted)
            if session in sessions:
                found[session] = dict(now)
        return found


def batched(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _blocks(generator: random.Random, count: int) -> Iterator[bytes]:
    """Blocks that cannot be compressed to less than half."""
    half = BLOCK // 2
    noise, words = generator.randbytes(count * half), text(generator, half)
    for start in range(0, count * half, half):
        yield noise[start : start + half] + words


class Log(History):
    """One file that lines are added to."""

    def __init__(self, root: Path, lines_a_session: int = 100) -> None:
        super().__init__(root)
        self.lines = lines_a_session
        self.path = root / "log"

    def __str__(self) -> str:
        return f"a log of {10 * self.lines:,} lines of about 100 bytes; {self.lines} more before each session"

    def build(self) -> None:
        self._add(10 * self.lines, "log")

    def change(self, session: int) -> None:
        self._add(self.lines, f"log {session}")
        set_time(self.path, session)

    def _add(self, lines: int, seed: str) -> None:
        generator = random.Random(seed)
        with self.path.open("ab") as stream:
            for number in range(lines):
                stream.write(b"%s %06d %s\n" % (seed.encode(), number, text(generator, generator.randrange(40, 140))))


def text(generator: random.Random, size_bytes: int) -> bytes:
    """Words and blanks; half as large when compressed."""
    return b" ".join(generator.choices(_WORDS, k=size_bytes // 4 + 1))[:size_bytes]


def edit_some(files: list[Path], generator: random.Random, session: int) -> None:
    """1 % of `files`: of ten one is removed, one is new, the others get a line somewhere. Gone ones are passed over."""
    present = [path for path in files if path.exists()]
    for index, path in enumerate(generator.sample(present, min(max(len(files) // 100, 1), len(present)))):
        if index % 10 == 8:
            path.unlink()
        elif index % 10 == 9:
            (path.parent / f"new-{session}").write_bytes(text(generator, 8000))
        else:
            content = path.read_bytes()
            place = generator.randrange(len(content) + 1)
            path.write_bytes(content[:place] + b"\na new line\n" + content[place:])
            set_time(path, session)


def set_time(path: Path, session: int) -> None:
    """A time of its own, by whole seconds: a file that changes twice within one would look unchanged to some."""
    modified = path.stat().st_mtime + session
    os.utime(path, (modified, modified))
