"""A repository in which everything is kept in every way, what each version depends on, and ways to damage files.

The model knows only names on disk and the texts of lists (docs/format.md 5.3, 6.4), and nothing of histfs: a version of
a file needs the lists of its session, up to the next full one, and its increments up to the next whole copy, or the
mirror. What does not depend on a damaged file must be read as it was.
"""

import gzip
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from histfs.store.backup import backup
from tests.histories import has_xattrs
from tests.trees import MTIME, Dir, Fifo, File, Link, Symlink, build

FIRST, DAY, SESSIONS = 1_700_000_000, 86_400, 12
DATA = "rdiff-backup-data"
LONG = "L" * 206  # has a number in the place of a name (docs/format.md 3.4)

_NAME = re.compile(r"(.*)\.(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\.(snapshot|diff|missing|dir|data)(\.gz)?")


class Version(NamedTuple):
    """A file at a session: the SHA1 of its content, and the files in the repository that it needs."""

    sha1: str
    lists: frozenset[str]
    content: frozenset[str]
    first: str  # of `content`: what leads to it from the next newer version


class Model(NamedTuple):
    repository: Path
    versions: dict[tuple[int, bytes], Version]
    first_links: dict[tuple[int, bytes], bytes]  # whose content the mount shows for it
    sessions: tuple[int, ...]


def _text(seed: int, size: int) -> bytes:
    chance = random.Random(seed)
    return b"".join(b"%08x %s\n" % (chance.getrandbits(32), b"x" * chance.randrange(40)) for _ in range(size // 29))


def _states(source: Path) -> Iterator[None]:
    """The source at each session."""
    large = bytearray(_text(1, 1_500_000))
    picture = bytearray(random.Random(2).randbytes(50_000))
    build(
        source,
        Dir(
            {
                "same": File(b"never changes"),
                "same-large": File(_text(3, 1_100_000)),
                "small": File(b"small 0"),
                "empty": File(),
                "gone.txt": File(b"is gone soon"),
                "gone.jpg": File(b"is gone soon, and was not compressed"),
                "gone-link": Symlink("nowhere"),
                "gone": Dir({"in": File(b"in a directory that goes"), "fifo": Fifo()}),
                "type": File(b"becomes a directory"),
                "one": File(b"linked"),
                "two": Link("one"),
                "link": Symlink("small"),
                "d": Dir({"e": Dir({"f": File(b"deep 0")})}),
                LONG: File(b"long 0"),
            }
        ),
    )
    for number in range(SESSIONS):
        at = MTIME + 10 * number
        for name, content in (("small", b"small %d" % number), ("d/e/f", b"deep %d" % number * (number + 1))):
            _write(source / name, content, at)
        if number % 3 == 0:
            large[number * 70_000 : number * 70_000 + 120_000] = _text(100 + number, 120_000)[:120_000]
            _write(source / "large", bytes(large), at)
            picture[number * 1000 : number * 1000 + 700] = random.Random(number).randbytes(700)
            _write(source / "picture.jpg", bytes(picture), at)
            _write(source / LONG, b"long %d" % number * 300, at)
        if number == 2:
            _write(source / "late", b"came late", at)
        if number == 4:
            for name in ("gone.txt", "gone.jpg", "gone-link"):
                (source / name).unlink()
            shutil.rmtree(source / "gone")
            _write(source / "one", b"linked, changed", at)
        if number == 6:
            (source / "type").unlink()
            build(source / "type", Dir({"inner": File(b"inside")}))
            _write(source / "gone.txt", b"is back", at)
        if has_xattrs(os.fsencode(source)):
            os.setxattr(source / "same", "user.tag", b"%d" % number)
            os.setxattr(source / "d", "user.tag", b"%d" % number)
        yield


def _write(path: Path, content: bytes, at: int) -> None:
    path.write_bytes(content)
    os.utime(path, (at, at))


def make(place: Path) -> Model:
    """The repository in `place`, with the model of it."""
    source, repository = place / "source", place / "repository"
    contents: dict[int, dict[bytes, bytes]] = {}
    for number, _ in enumerate(_states(source)):
        at = FIRST + number * DAY
        reported: list[object] = []
        backup(source, repository, now=at, report=reported.append)
        assert reported == []
        contents[at] = {
            os.fsencode((Path(top) / name).relative_to(source)): (Path(top) / name).read_bytes()
            for top, _, names in os.walk(source)
            for name in names
            if (Path(top) / name).is_file() and not (Path(top) / name).is_symlink()
        }
    shutil.rmtree(source)
    versions = {
        (at, path): Version(
            hashlib.sha1(content).hexdigest(),
            frozenset(_lists_needed(repository, at)),
            frozenset(_content_needed(repository, path, at)),
            next(_content_needed(repository, path, at)),
        )
        for at, files in contents.items()
        for path, content in files.items()
    }
    links = {(at, b"two"): b"one" for at in contents}
    return Model(repository, versions, links, tuple(contents))


def _seconds(text: str) -> int:
    return int(time.strftime("%s", time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))) - time.timezone


def _lists_needed(repository: Path, at: int) -> Iterator[str]:
    lists = sorted(
        (_seconds(match[2]), match[3], name)
        for name in os.listdir(repository / DATA)
        if (match := _NAME.fullmatch(name)) and match[1] == "mirror_metadata"
    )
    for when, kind, name in lists:
        if when >= at:
            yield f"{DATA}/{name}"
            if kind == "snapshot":
                return


def _content_needed(repository: Path, path: bytes, at: int) -> Iterator[str]:
    text = os.fsdecode(path)
    directory, base = f"{DATA}/increments/{os.path.dirname(text)}".rstrip("/"), os.path.basename(text)
    if base == LONG:
        newest = max((repository / DATA).glob("mirror_metadata.*.snapshot.gz"))
        record = gzip.decompress(newest.read_bytes()).partition(b"File " + path + b"\n")[2].partition(b"\nFile ")[0]
        number = re.search(rb"AlternateIncrementName (\d+)", record)
        assert number is not None
        directory, base = f"{DATA}/long_filename_data", number[1].decode()
    increments = []
    if (repository / directory).is_dir():
        for name in os.listdir(repository / directory):
            match = _NAME.fullmatch(name)
            if match and match[1] == base and not (repository / directory / name).is_dir():
                increments.append((_seconds(match[2]), match[3], f"{directory}/{name}"))
    for when, kind, where in sorted(increments):
        if when >= at:
            assert kind in ("diff", "snapshot")
            yield where
            if kind == "snapshot":
                return
    yield text


def role(name: str) -> str:
    """What kind of file that is in a repository."""
    if not name.startswith(DATA + "/"):
        return "mirror"
    below = name.removeprefix(DATA + "/")
    if below.startswith(("increments/", "increments.", "long_filename_data/")):
        match = _NAME.fullmatch(os.path.basename(name))
        return "other" if match is None else f"{match[3]}{match[4] or ''}"
    return below.split(".")[0] if not below.startswith("histfs/") else below


def files(model: Model) -> list[str]:
    """Every regular file of the repository."""
    found = []
    for top, _, names in os.walk(model.repository):
        for name in names:
            path = Path(top) / name
            if path.is_file() and not path.is_symlink():
                found.append(str(path.relative_to(model.repository)))
    return sorted(found)


# Ways to damage a file. Each is undone by `damaged`, which leaves inode numbers and times as they were.

Damage = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _sector(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data)) // 512 * 512
    return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


CHANGES: dict[str, Damage] = {
    "flip": _flip,
    "truncate": lambda data, chance: data[: chance.randrange(len(data))],
    "zero": lambda data, _: bytes(len(data)),
    "sector": _sector,
    "empty": lambda _data, _chance: b"",
    "append": lambda data, chance: data + chance.randbytes(chance.choice([1, 100])),
}
KINDS = (*CHANGES, "delete", "swap", "directory")


@contextmanager
def damaged(model: Model, name: str, kind: str, chance: random.Random) -> Iterator[set[str]]:
    """The repository with one file damaged (two for a swap); gives the names of all files that are other ones now."""
    path = model.repository / name
    status = path.stat()
    above = path.parent.stat()
    aside = model.repository.parent / "aside"
    if kind in CHANGES:
        before = path.read_bytes()
        path.write_bytes(CHANGES[kind](before, chance) if before or kind == "append" else b"?")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + chance.choice([0, 10**9])))
        links = {each for each in ("one", "two") if (model.repository / each).stat().st_ino == status.st_ino}
        try:
            yield {name} | links
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return
    other = None
    os.rename(path, aside)
    if kind == "swap":
        # A list in the place of another one, whole, cannot be told from it: the format has no sums over all.
        others = [each for each in files(model) if role(each) != role(name)]
        other = model.repository / chance.choice(others)
        other_above = other.parent.stat()
        os.rename(other, path)
        os.rename(aside, other)
    elif kind == "directory":
        path.mkdir()
    try:
        yield {name} if other is None else {name, str(other.relative_to(model.repository))}
    finally:
        if other is not None:
            os.rename(other, aside)
            os.rename(path, other)
            os.utime(other.parent, ns=(other_above.st_atime_ns, other_above.st_mtime_ns))
        elif kind == "directory":
            path.rmdir()
        os.rename(aside, path)
        os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def fingerprint(model: Model) -> dict[str, tuple[int, int, str]]:
    """All files: to see that nobody changed any."""
    return {
        name: (path.stat().st_mtime_ns, path.stat().st_ino, hashlib.sha1(path.read_bytes()).hexdigest())
        for name in files(model)
        for path in [model.repository / name]
    }
