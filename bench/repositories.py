"""A repository of very many files, written directly: lists of metadata, and no contents.

The newest session has a full list, each older one the reverse diff to the next (docs/format.md 4.1, 5.1). Every file
changes once or never: file i before session i % 100, so that a session changes 1 % of all. A deep directory comes last.
"""

import gzip
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.peers import session_time

_FILES_A_DIRECTORY = 100
_DIRECTORIES_A_GROUP = 100
_DEEP_FILES = 100
_DEPTH = 20
_CYCLE = 100
_MODIFIED = session_time(0) - 86_400
DEEP = "/".join(["z-deep", *(f"level{level:02}" for level in range(1, _DEPTH))])


class Shape(NamedTuple):
    """`files` in directories of 100, in groups of 100 directories; the deep directory comes on top."""

    files: int
    sessions: int

    def __str__(self) -> str:
        return (
            f"{self.files:,} files in directories of {_FILES_A_DIRECTORY}, written as lists of metadata; "
            f"1 % changes a session; {self.sessions} sessions after the first"
        )

    def entries(self) -> int:
        """Names in one snapshot, and its root."""
        directories = -(-self.files // _FILES_A_DIRECTORY)
        groups = -(-directories // _DIRECTORIES_A_GROUP)
        return 1 + self.files + directories + groups + _DEPTH + _DEEP_FILES

    def records(self) -> int:
        """In all lists."""
        return self.entries() + sum(1 for session in range(self.sessions) for _ in _changed(self, session + 1))


def names_in_deep_directory() -> list[str]:
    return [f"file{number:03}" for number in range(_DEEP_FILES)]


def write(repository: Path, shape: Shape) -> None:
    """Make a repository; it appears under its name when it is complete."""
    assert shape.sessions < _CYCLE
    unfinished = repository.with_name(f"{repository.name}-unfinished")
    data = unfinished / "rdiff-backup-data"
    (data / "increments").mkdir(parents=True)
    for session in range(shape.sessions):
        _write_list(data / f"mirror_metadata.{_time(session)}.diff.gz", _diff(shape, session))
    _write_list(data / f"mirror_metadata.{_time(shape.sessions)}.snapshot.gz", _full_list(shape))
    (data / f"current_mirror.{_time(shape.sessions)}.data").write_text("PID 1\n")
    unfinished.rename(repository)


def _time(session: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session_time(session)))


def _write_list(path: Path, records: Iterator[str]) -> None:
    with gzip.open(path, "wt", compresslevel=1) as stream:
        stream.writelines(records)


def _changed(shape: Shape, session: int) -> range:
    """The files that change before `session`."""
    return range(session % _CYCLE, shape.files, _CYCLE)


def _diff(shape: Shape, session: int) -> Iterator[str]:
    """The records of `session` that the next one changes."""
    return (_file(_path(number), number, 0) for number in _changed(shape, session + 1))


def _full_list(shape: Shape) -> Iterator[str]:
    yield _directory(".")
    for number in range(shape.files):
        path = _path(number)
        if number % (_FILES_A_DIRECTORY * _DIRECTORIES_A_GROUP) == 0:
            yield _directory(path.split("/")[0])
        if number % _FILES_A_DIRECTORY == 0:
            yield _directory(path.rpartition("/")[0])
        changed_before = number % _CYCLE
        yield _file(path, number, changed_before if 0 < changed_before <= shape.sessions else 0)
    parts = DEEP.split("/")
    for depth in range(1, len(parts) + 1):
        yield _directory("/".join(parts[:depth]))
    for number, name in enumerate(names_in_deep_directory()):
        yield _file(f"{DEEP}/{name}", number, 0)


def _path(number: int) -> str:
    directory = number // _FILES_A_DIRECTORY
    group = directory // _DIRECTORIES_A_GROUP
    return f"group{group:04}/directory{directory % _DIRECTORIES_A_GROUP:02}/file{number:07}.txt"


def _directory(path: str) -> str:
    return f"File {path}\n  Type dir\n  ModTime {_MODIFIED}\n{_OWNER}  Permissions 493\n"


def _file(path: str, number: int, version: int) -> str:
    """The record of a file that has changed before session `version`; 0: that has not."""
    digest = hashlib.sha1(f"{path} {version}".encode()).hexdigest()
    modified = _MODIFIED + version * 3600
    return (
        f"File {path}\n  Type reg\n  Size {number % 50_000 + version}\n  SHA1Digest {digest}\n"
        f"  ModTime {modified}\n{_OWNER}  Permissions 420\n"
    )


_OWNER = "  Uid 1000\n  Uname user\n  Gid 1000\n  Gname user\n"
