"""A repository of many files and sessions, written directly, with contents and increments: histories to be removed.

Each session but the first has changed all files of some directories, in turn; what a file was before is kept as it
was (`.snapshot`), with an increment of each directory above (docs/format.md 6). It is what a program would have
written, so that every program of the format takes it; writing it with one would take hours.
"""

import gzip
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.peers import session_time

_FILES_A_DIRECTORY = 100
_DIRECTORIES_CHANGED = 2
_MODIFIED = session_time(0) - 86_400
_STATISTICS = (
    *("SourceFiles", "SourceFileSize", "MirrorFiles", "MirrorFileSize", "NewFiles", "NewFileSize", "DeletedFiles"),
    *("DeletedFileSize", "ChangedFiles", "ChangedSourceSize", "ChangedMirrorSize", "IncrementFiles"),
)


class Shape(NamedTuple):
    """`files` in directories of 100; `sessions` after the first."""

    files: int
    sessions: int

    def __str__(self) -> str:
        return (
            f"{self.files:,} files in directories of {_FILES_A_DIRECTORY}, written directly; {self.sessions} sessions "
            f"after the first, each of which changes all files of {_DIRECTORIES_CHANGED} directories"
        )

    @property
    def directories(self) -> int:
        return -(-self.files // _FILES_A_DIRECTORY)

    def changed(self, session: int) -> list[int]:
        """The directories that `session` has changed."""
        first = _DIRECTORIES_CHANGED * (session - 1) if session else 0
        count = min(_DIRECTORIES_CHANGED, self.directories) if session else 0
        return sorted({(first + number) % self.directories for number in range(count)})

    def files_in(self, directory: int) -> range:
        first = directory * _FILES_A_DIRECTORY
        return range(first, min(first + _FILES_A_DIRECTORY, self.files))

    def version(self, directory: int, session: int) -> int:
        """The session that has changed the files of `directory` last, as seen from `session`."""
        return max((known for known in range(session + 1) if directory in self.changed(known)), default=0)

    def increments(self, session: int) -> int:
        """How many increments keep what `session` was."""
        changed = self.changed(session + 1)
        return 1 + len(changed) + sum(len(self.files_in(directory)) for directory in changed)


def directory_name(directory: int) -> str:
    return f"directory{directory:05}"


def file_name(number: int) -> str:
    return f"file{number:07}.txt"


def content(number: int, version: int) -> bytes:
    return f"{file_name(number)} as session {version} found it\n".encode() * 4


def write(repository: Path, shape: Shape) -> None:
    """Make a repository; it appears under its name when it is complete."""
    unfinished = repository.with_name(f"{repository.name}-unfinished")
    data = unfinished / "rdiff-backup-data"
    (data / "increments").mkdir(parents=True)
    versions = [shape.version(directory, shape.sessions) for directory in range(shape.directories)]
    for directory, version in enumerate(versions):
        place = unfinished / directory_name(directory)
        place.mkdir()
        for number in shape.files_in(directory):
            _write_file(place / file_name(number), content(number, version), version)
        os.utime(place, (_MODIFIED, _MODIFIED))
    for session in range(shape.sessions):
        _write_session(data, shape, session)
    _write_statistics(data, shape, shape.sessions)
    _write_list(data / f"mirror_metadata.{_time(shape.sessions)}.snapshot.gz", _full_list(shape, versions))
    (data / f"current_mirror.{_time(shape.sessions)}.data").write_text("PID 1\n")
    unfinished.rename(repository)


def _write_session(data: Path, shape: Shape, session: int) -> None:
    """What keeps `session`, which is not the newest."""
    (data / f"increments.{_time(session)}.dir").touch()
    records = []
    for directory in shape.changed(session + 1):
        version = shape.version(directory, session)
        place = data / "increments" / directory_name(directory)
        place.mkdir(exist_ok=True)
        (data / "increments" / f"{place.name}.{_time(session)}.dir").touch()
        for number in shape.files_in(directory):
            name = f"{file_name(number)}.{_time(session)}.snapshot"
            _write_file(place / name, content(number, version), version)
            records.append(_file(directory, number, version))
    _write_list(data / f"mirror_metadata.{_time(session)}.diff.gz", records)
    _write_statistics(data, shape, session)


def _write_file(path: Path, text: bytes, version: int) -> None:
    path.write_bytes(text)
    os.utime(path, (_MODIFIED + version, _MODIFIED + version))


def _write_list(path: Path, records: Iterator[str] | list[str]) -> None:
    with gzip.open(path, "wt", compresslevel=1) as stream:
        stream.writelines(records)


def _write_statistics(data: Path, shape: Shape, session: int) -> None:
    """Those of `session`, of which only the size of the increments that it has made is true."""
    numbers = [number for directory in shape.changed(session) for number in shape.files_in(directory)]
    written = sum(len(content(number, shape.version(number // 100, session - 1))) for number in numbers)
    lines = [f"StartTime {session_time(session)}.00", f"EndTime {session_time(session)}.00", "ElapsedTime 0.00"]
    lines += [f"{name} 0" for name in _STATISTICS]
    lines += [f"IncrementFileSize {written}", "TotalDestinationSizeChange 0", "Errors 0"]
    (data / f"session_statistics.{_time(session)}.data").write_text("".join(f"{line}\n" for line in lines))


def _time(session: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session_time(session)))


def _full_list(shape: Shape, versions: list[int]) -> Iterator[str]:
    yield _directory(".")
    for directory, version in enumerate(versions):
        yield _directory(directory_name(directory))
        yield from (_file(directory, number, version) for number in shape.files_in(directory))


def _directory(path: str) -> str:
    return f"File {path}\n  Type dir\n  ModTime {_MODIFIED}\n{_OWNER}  Permissions 493\n"


def _file(directory: int, number: int, version: int) -> str:
    text = content(number, version)
    return (
        f"File {directory_name(directory)}/{file_name(number)}\n  Type reg\n  Size {len(text)}\n"
        f"  SHA1Digest {hashlib.sha1(text).hexdigest()}\n  ModTime {_MODIFIED + version}\n{_OWNER}  Permissions 420\n"
    )


_OWNER = f"  Uid {os.getuid()}\n  Uname :\n  Gid {os.getgid()}\n  Gname :\n"
