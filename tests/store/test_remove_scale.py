"""A repository of 100,000 files and 100 sessions: removing half of them costs what goes, not what is there.

Nobody looks at a clock: the calls that touch a name or a directory are counted. The repository is put together by hand,
as a hundred real sessions of that size would take an hour.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from histfs.store import inventory
from histfs.store.catalog import open_catalog
from histfs.store.compression import compress
from histfs.store.entry import Entry, Kind
from histfs.store.files import WritableTree
from histfs.store.format.metadata import format_record
from histfs.store.format.stats import SessionStatistics, format_session_statistics
from histfs.store.remove import remove_sessions
from histfs.store.remove import sessions as removal
from histfs.store.repository import Repository
from histfs.store.tree import Tree
from tests.store.sessions import FIRST, stamp

DIRECTORIES, FILES = 1000, 100
SESSIONS = 100
CHANGED = 2  # directories, by each session; all files in them
HOUR = 3600


def path_of(directory: int, file: int) -> bytes:
    return b"d%04d/f%04d" % (directory, file)


def record(path: bytes, version: int) -> bytes:
    kind = Kind.REGULAR if b"/" in path else Kind.DIRECTORY
    sha1 = b"%040d" % version if kind is Kind.REGULAR else None
    return format_record(Entry(path, kind, 0o755, mtime_s=FIRST + version, size_bytes=version, sha1=sha1))


def changed(number: int) -> range:
    """The directories that differ between the sessions `number` and `number + 1`."""
    start = number * CHANGED % (DIRECTORIES - CHANGED)
    return range(start, start + CHANGED)


def make_repository(path: Path) -> list[int]:
    times = [FIRST + number * HOUR for number in range(SESSIONS)]
    data = path / "rdiff-backup-data"
    (data / "increments").mkdir(parents=True)
    (data / f"current_mirror.{stamp(times[-1])}.data").write_text("PID 1\n")
    everything = (
        record(path, 0)
        for directory in range(DIRECTORIES)
        for path in (b"d%04d" % directory, *(path_of(directory, file) for file in range(FILES)))
    )
    newest = b"".join(compress([format_record(Entry(b"", Kind.DIRECTORY, 0o755)), *everything]))
    (data / f"mirror_metadata.{stamp(times[-1])}.snapshot.gz").write_bytes(newest)
    for number, time in enumerate(times[:-1]):
        make_session(data, number, time, times[number + 1])
    return times


def make_session(data: Path, number: int, time: int, following: int) -> None:
    (data / f"increments.{stamp(time)}.dir").touch()
    records = []
    for directory in changed(number):
        place = data / f"increments/d{directory:04}"
        place.mkdir(exist_ok=True)
        (data / f"increments/d{directory:04}.{stamp(time)}.dir").touch()
        for file in range(FILES):
            (data / f"increments/d{directory:04}/f{file:04}.{stamp(time)}.diff").touch()
            records.append(record(path_of(directory, file), number + 1))
    (data / f"mirror_metadata.{stamp(time)}.diff.gz").write_bytes(b"".join(compress(records)))
    statistics = SessionStatistics(following, increment_file_bytes=number)
    (data / f"session_statistics.{stamp(following)}.data").write_bytes(format_session_statistics(statistics))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()

    def count(owner: type[Tree], name: str) -> None:
        real = getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    for name in ("names_by_kind", "names", "stat", "open_file"):
        count(Tree, name)
    for name in ("unlink", "remove_directory"):
        count(WritableTree, name)
    return calls


@pytest.mark.long
def test_half_of_the_sessions_go(tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_MOST_SWEPT", 100)
    times = make_repository(tmp_path)
    middle = times[SESSIONS // 2]

    cache = tmp_path.with_name("cache")
    with Repository.open(tmp_path) as repository, open_catalog(repository, cache=cache) as catalog:
        size_of_all = catalog.total_bytes(b"", times[-1])
    counted.clear()
    with Repository.open(tmp_path) as repository, open_catalog(repository, cache=cache) as catalog:
        assert list(inventory.increment_sizes(repository).values()) == list(range(SESSIONS - 1))
        assert catalog.total_bytes(b"", times[-1]) == size_of_all
    assert counted["names_by_kind"] == 0  # no directory of increments, nor of the mirror
    assert sum(counted.values()) <= 4 * SESSIONS

    counted.clear()
    removed = remove_sessions(tmp_path, middle)
    assert removed.sessions == tuple(times[: SESSIONS // 2])
    touched = {directory for number in range(SESSIONS // 2) for directory in changed(number)}
    assert removed.files == SESSIONS // 2 * (CHANGED * (FILES + 1) + 3) - 1
    assert counted["unlink"] <= removed.files + 1
    assert counted["remove_directory"] == len(touched)
    assert counted["names_by_kind"] <= len(touched) + 100 + 5
    assert sum(counted.values()) <= 1.1 * removed.files + 200
    with Repository.open(tmp_path) as repository:
        assert repository.sessions() == tuple(times[SESSIONS // 2 :])
        assert sum(1 for _ in repository.snapshot(middle).entries()) == 1 + DIRECTORIES * (FILES + 1)
