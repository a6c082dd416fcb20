"""Any lists, sound or not, and what the snapshots say of them: the catalog says the same, however it was made."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histfs.store.catalog import open_catalog
from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from histfs.store.format.listing import difference
from histfs.store.format.metadata import format_record
from histfs.store.repository import Repository
from tests.store.catalogs import assert_same_trees, fresh_rows, rows
from tests.store.sessions import DAY, FIRST, stamp

ROOT = Entry(b"", Kind.DIRECTORY, 0o755, mtime_s=FIRST)
PATHS = (b"a", b"a/b", b"a/b/c", b"a/d", b"a b", b"a.txt", b"e", b"e/a", b"e/\xff", b"f\n", b"g\\n")
DIGEST = b"0123456789" * 4
VARIANTS = (
    Entry(b"", Kind.DIRECTORY, 0o700, 1, 2, mtime_s=5),
    Entry(b"", Kind.DIRECTORY, 0o777, 1, 2, mtime_s=-6),
    Entry(b"", Kind.REGULAR, 0o644, 1, 2, b"user", b"group", 7, 8, DIGEST),
    Entry(b"", Kind.REGULAR, 0o644, 1, 2, None, None, 7, 8, DIGEST, LinkGroup(2, 2**64 - 1, 2**63)),
    Entry(b"", Kind.REGULAR, 0o644, 1, 2, None, None, 7, 8, None, LinkGroup(2, 2**64 - 1, 2**63)),
    Entry(b"", Kind.REGULAR, 0o644, 1, 2, None, None, 7, 2**63 - 1, None, LinkGroup(3, 10, 11)),
    Entry(b"", Kind.REGULAR, 0, 2**32 - 1, 0, None, None, 2**62, 9, DIGEST, alternate_increment=4),
    Entry(b"", Kind.SYMLINK, 0o777, 0, 0, target=b"to\nsome\\where"),
    Entry(b"", Kind.SYMLINK, 0o777, 0, 0, target=b"x"),
    Entry(b"", Kind.BLOCK_DEVICE, 0o600, 0, 0, device_number=(2**32 - 1, 2**32 - 1)),
    Entry(b"", Kind.FIFO, 0o600, 0, 0, mtime_s=3),
)

trees = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(VARIANTS), max_size=8)
histories = st.lists(trees, min_size=1, max_size=7)


def listed(tree: dict[bytes, Entry]) -> list[Entry]:
    entries = (entry._replace(path=path) for path, entry in tree.items())
    return [ROOT, *sorted(entries, key=lambda entry: sort_key(entry.path))]


class Lists:
    """A repository of nothing but lists."""

    def __init__(self, place: Path) -> None:
        self.repository = place / "repository"
        self.data = self.repository / "rdiff-backup-data"
        shutil.rmtree(place, ignore_errors=True)
        self.data.mkdir(parents=True)
        self.newest: list[Entry] | None = None
        self.time = FIRST

    def _path(self, time: int, type_: str) -> Path:
        return self.data / f"mirror_metadata.{stamp(time)}.{type_}.gz"

    def _write(self, time: int, type_: str, entries: list[Entry]) -> None:
        text = b"".join(map(format_record, entries))
        self._path(time, type_).write_bytes(gzip.compress(text, mtime=0))

    def add(self, tree: dict[bytes, Entry], *, keep_full: bool) -> None:
        """A session; `keep_full`: the list of the one before stays."""
        entries = listed(tree)
        previous, self.time = self.time, self.time + DAY
        self._write(self.time, "snapshot", entries)
        if self.newest is not None:
            if not keep_full:
                self._write(previous, "diff", list(difference(self.newest, entries)))
                self._path(previous, "snapshot").unlink(missing_ok=True)
            (self.data / f"current_mirror.{stamp(previous)}.data").unlink()
        (self.data / f"current_mirror.{stamp(self.time)}.data").write_bytes(b"PID 1\n")
        self.newest = entries

    def list_of(self, time: int) -> Path:
        return next(path for path in (self._path(time, "snapshot"), self._path(time, "diff")) if path.exists())

    def remove_before(self, time: int) -> None:
        for path in list(self.data.glob("mirror_metadata.*")):
            if any(stamp(gone) in path.name for gone in range(FIRST + DAY, time, DAY)):
                path.unlink()


def check(lists: Lists, cache: Path | None) -> None:
    """What is opened now shows what the lists say, and is what a new one would be."""
    with Repository.open(lists.repository) as repository, open_catalog(repository, cache=cache) as catalog:
        assert_same_trees(catalog, repository)
        found = rows(catalog)
    assert found == fresh_rows(lists.repository)


@pytest.fixture
def place(scratch: Path) -> Path:
    return scratch / "place"


@given(history=histories, data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_history_is_followed(place: Path, history: list[Any], data: st.DataObject) -> None:
    """Orphans, things that come back, the same record twice: whatever the lists say. Opened now and then."""
    lists = Lists(place)
    cache = place / "cache"
    for tree in history:
        lists.add(tree, keep_full=data.draw(st.integers(0, 3)) == 0)
        if data.draw(st.booleans()):
            check(lists, cache)
    check(lists, cache)
    if len(history) > 1:
        lists.remove_before(FIRST + DAY * data.draw(st.integers(2, len(history))))
        if data.draw(st.booleans()):
            lists.add(data.draw(trees), keep_full=False)
        check(lists, cache)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def garble(path: Path) -> None:
    text = gzip.decompress(path.read_bytes()).replace(b"  Uid 1\n", b"  Uid one\n").replace(b"File e/a\n", b"File \n")
    path.write_bytes(gzip.compress(text + b"File ../x\n  Type None\nFile a\n  Type reg\n", mtime=0))


def unsort(path: Path) -> None:
    records = gzip.decompress(path.read_bytes()).split(b"\nFile ")
    path.write_bytes(gzip.compress(b"\nFile ".join([records[0], *records[:0:-1]]), mtime=0))


@given(history=st.lists(trees, min_size=2, max_size=7), data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_damaged_lists_cost_what_they_cost_snapshots(place: Path, history: list[Any], data: st.DataObject) -> None:
    lists = Lists(place)
    for tree in history:
        lists.add(tree, keep_full=data.draw(st.integers(0, 3)) == 0)
    for number in data.draw(st.sets(st.integers(1, len(history)), min_size=1, max_size=3)):
        data.draw(st.sampled_from([truncate, garble, unsort, Path.unlink]))(lists.list_of(FIRST + DAY * number))
    check(lists, place / "cache")
    lists.add(data.draw(trees), keep_full=data.draw(st.booleans()))
    check(lists, place / "cache")
