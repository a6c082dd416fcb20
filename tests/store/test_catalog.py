"""What the catalog answers, and that it is the same one however it came to be."""

import os
import shutil
from hashlib import blake2b
from pathlib import Path

import pytest

from histfs.errors import NotFoundError
from histfs.store.catalog import LIVE, Catalog, directories, open_catalog
from histfs.store.entry import LinkGroup
from histfs.store.format import columns
from histfs.store.repository import Repository
from tests.histories import ANYTHING, RDIFF_BACKUP_WRITES, random_history
from tests.oracle import Oracle
from tests.store.catalogs import assert_same_trees, fresh_rows, own_rows, rows
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import Dir, File, Link, Symlink, build


def names(catalog: Catalog, path: str, time: int) -> list[bytes]:
    version = catalog.root(time)
    for name in filter(None, path.encode().split(b"/")):
        found = catalog.child(version.directory, name, time)
        assert found is not None
        version = found
    return [child.name for child in catalog.children(version.directory, time)]


# The same rows


@pytest.mark.parametrize("seed", range(3))
def test_every_session_brings_the_catalog_of_the_repository_up_to_date(scratch: Path, seed: int) -> None:
    sessions = Sessions(scratch)
    for state in random_history(sessions.source, 60_000 + seed, 24, ANYTHING):
        sessions.now = state.time - DAY
        sessions.backup(may_report=True)
        assert own_rows(sessions.repository) == fresh_rows(sessions.repository)
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert_same_trees(catalog, repository)


@pytest.mark.parametrize("seed", range(2))
def test_sessions_of_rdiff_backup_are_taken_in(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    sessions = Sessions(scratch)
    for number, state in enumerate(random_history(source, 61_000 + seed, 12, RDIFF_BACKUP_WRITES)):
        if number % 4 == 1:
            sessions.now = state.time - DAY
            sessions.backup(may_report=True)
        else:
            rdiff_backup.backup(source, repository, at=state.time, api=200 + seed).check()
        if number % 3 == 2:
            with Repository.open(repository) as opened, open_catalog(opened, cache=scratch / "cache") as catalog:
                assert_same_trees(catalog, opened)
                assert rows(catalog) == fresh_rows(repository)
    times = sorted(int(stamp_time) for stamp_time in rdiff_backup.increments(repository))
    rdiff_backup.remove_older_than(repository, at=times[6]).check()
    with Repository.open(repository) as opened, open_catalog(opened, cache=scratch / "cache") as catalog:
        assert len(opened.sessions()) < 12
        assert_same_trees(catalog, opened)
        assert rows(catalog) == fresh_rows(repository)


def test_a_copy_has_the_same_catalog(sessions: Sessions) -> None:
    build(sessions.source, Dir({"d": Dir({"a": File(b"a")})}))
    sessions.backup()
    (sessions.source / "d/b").write_bytes(b"b")
    sessions.backup()
    copy = sessions.repository.parent / "copy"
    shutil.copytree(sessions.repository, copy, copy_function=shutil.copy)  # and all times are new
    assert own_rows(copy) == own_rows(sessions.repository) == fresh_rows(copy)


@pytest.mark.parametrize("bits", [0, 3])
def test_directories_that_want_one_tag(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Every catalog gives them the same ones, and they stay as long as sessions only come."""
    monkeypatch.setattr(directories, "_SHIFT", columns.NUMBER_BITS - bits)
    build(sessions.source, Dir({f"d{number}": Dir({}) for number in range(6)}))
    before: dict[bytes, int] = {}
    for number in range(6, 12):
        sessions.backup()
        (sessions.source / f"d{number}").mkdir()
        (sessions.source / f"d{number - 4}").rmdir()
        found = own_rows(sessions.repository)
        assert found == fresh_rows(sessions.repository)
        tags = found["directories"]
        assert isinstance(tags, dict)
        assert {path: tags[path] for path in before} == before
        assert len(set(tags.values())) == len(tags)
        before = tags
    for path in sessions.data.glob("mirror_metadata.*"):
        if any(stamp(FIRST + DAY * gone) in path.name for gone in range(3)):
            path.unlink()
    for path in sessions.data.glob("increments.*"):
        path.unlink()
    sessions.backup()
    assert own_rows(sessions.repository) == fresh_rows(sessions.repository)


def test_versions_that_hash_alike(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path counts for nothing here, and nevertheless every path has numbers of its own."""
    monkeypatch.setattr(
        columns, "blake2b", lambda text, digest_size: blake2b(text.partition(b"\n")[2] or text, digest_size=digest_size)
    )
    build(sessions.source, Dir({name: File(b"same", mtime=5) for name in "abcd"}))
    sessions.backup()
    build(sessions.source / "e", Dir({"f": File(b"same", mtime=5)}))
    sessions.backup()
    assert own_rows(sessions.repository) == fresh_rows(sessions.repository)
    with sessions.open() as repository, open_catalog(repository) as catalog:
        found = [
            *catalog.children(1, sessions.now),
            *catalog.children(catalog.children(1, sessions.now)[4].directory, sessions.now),
        ]
        assert len({version.number for version in found}) == len(found) == 6
        assert all(catalog.version(version.number) == version for version in found)


# The answers


def test_versions_of_a_path(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"1", mtime=10), "b": File(b"b", mtime=10)}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"22")
    os.utime(sessions.source / "a", (20, 20))
    sessions.backup()
    (sessions.source / "a").unlink()
    sessions.backup()
    sessions.backup()
    build(sessions.source / "x", Dir({}))
    (sessions.source / "a").write_bytes(b"1")
    (sessions.source / "a").chmod((sessions.source / "b").stat().st_mode)
    os.utime(sessions.source / "a", (10, 10))
    sessions.backup()
    times = tuple(sessions.states)
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert catalog.sessions == times
        assert catalog.is_current(repository.state())
        root = catalog.root(times[0]).directory
        first, second, third = catalog.versions(root, b"a")
        assert [(v.first, v.last, v.size_bytes) for v in (first, second, third)] == [
            (times[0], times[0], 1),
            (times[1], times[1], 2),
            (times[4], LIVE, 1),
        ]
        assert first.number == third.number != second.number  # the same record, so the same file
        assert catalog.version(first.number) == third
        assert catalog.version(second.number) == second
        assert catalog.version(5) is None
        asked = [first.number, 5, second.number, first.number]
        assert catalog.numbered(asked) == {first.number: third, second.number: second}
        assert catalog.numbered([]) == {}
        assert [catalog.time_of(v) for v in (first, second, third)] == [times[0], times[1], times[4]]
        assert catalog.child(root, b"a", times[1]) == second
        assert catalog.child(root, b"a", times[2]) is None
        assert catalog.child(root, b"nothing", times[2]) is None
        assert catalog.deleted(root, times[3]) == [second]
        assert catalog.deleted(root, times[1]) == []
        assert catalog.deleted(root, times[4]) == []
        assert names(catalog, "", times[4]) == [b"a", b"b", b"x"]
        with pytest.raises(NotFoundError):
            catalog.root(times[0] + 1)
        with pytest.raises(NotFoundError):
            catalog.path(99)


def test_pages_and_directories(sessions: Sessions) -> None:
    build(sessions.source, Dir({"d": Dir({f"{number:03}": File() for number in range(25)}), "e": Symlink("d")}))
    sessions.backup()
    with sessions.open() as repository, open_catalog(repository) as catalog:
        time = sessions.now
        d = catalog.child(catalog.root(time).directory, b"d", time)
        assert d is not None
        assert d.is_directory
        assert catalog.path(d.directory) == b"d"
        assert catalog.parent(d.directory) == d.parent == catalog.root(time).directory
        assert catalog.directory(catalog.tag(d.directory)) == d.directory
        assert 0 <= catalog.tag(d.directory) < 2**29
        found: list[bytes] = []
        while page := catalog.children(d.directory, time, found[-1] if found else None, limit=10):
            found += [version.name for version in page]
        assert found == [b"%03d" % number for number in range(25)]
        assert catalog.children(0, time) == []
        e = catalog.child(d.parent, b"e", time)
        assert e is not None
        assert (e.target, e.directory, e.kind.name) == (b"d", 0, "SYMLINK")


def test_hard_links(sessions: Sessions) -> None:
    build(sessions.source, Dir({"b": Dir({"x": File(b"linked")}), "b.txt": Link("b/x"), "a": Link("b/x"), "c": File()}))
    sessions.backup()
    (sessions.source / "a").unlink()
    sessions.backup()
    one, two = sessions.states
    with sessions.open() as repository, open_catalog(repository) as catalog:
        root = catalog.root(one).directory
        a, txt = catalog.child(root, b"a", one), catalog.child(root, b"b.txt", one)
        x = catalog.child(catalog.versions(root, b"b")[0].directory, b"x", two)
        assert a
        assert x
        assert txt
        assert catalog.links(txt, one) == (a, 3)
        first, count = catalog.links(txt, two)
        assert (first, count) == (x, 2)
        later = catalog.child(root, b"b.txt", two)
        assert later
        assert later.sha1 is None
        entry = catalog.entry(later)
        assert entry.sha1 == a.sha1 is not None
        assert entry.link_group == LinkGroup(2, *(sessions.entry(b"b.txt").link_group or (0, 0, 0))[1:])
        c = catalog.child(root, b"c", two)
        assert c
        assert catalog.links(c, two) == (c, 1)


def test_a_deep_tree_and_a_wide_one(sessions: Sessions) -> None:
    depth, deepest = 400, sessions.source
    sessions.source.mkdir()
    for _ in range(depth):
        deepest = deepest / "deep"
    os.makedirs(deepest)
    build(sessions.source / "wide", Dir({str(number): File() for number in range(7000)}))
    sessions.backup()
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert_same_trees(catalog, repository)
    assert own_rows(sessions.repository) == fresh_rows(sessions.repository)


def test_progress_is_told_when_there_is_work(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, Dir({"a": File()}))
    sessions.backup()
    seen: list[int] = []
    with sessions.open() as repository:
        repository.distrust_catalog()
        open_catalog(repository, cache=tmp_path / "cache", progress=seen.append).close()
        assert seen == [2]
        open_catalog(repository, cache=tmp_path / "cache", progress=seen.append).close()
        assert seen == [2]


def test_a_catalog_that_cannot_be_read_any_more_is_not_current(sessions: Sessions) -> None:
    """As when a session was killed while it wrote to it."""
    build(sessions.source, Dir({"a": File(b"1")}))
    sessions.backup()
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert catalog.is_current(repository.state())
        assert not catalog.is_damaged
        with open(sessions.data / "histfs/catalog.sqlite", "r+b") as file:
            file.write(b"no database any more" * 100)
        assert not catalog.is_current(repository.state())
        assert catalog.is_damaged


def test_the_catalog_that_is_open_notices_a_new_session(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File()}))
    sessions.backup()
    with sessions.open() as repository, open_catalog(repository) as catalog:
        assert catalog.is_current(repository.state())
        (sessions.source / "b").write_bytes(b"b")
        sessions.backup()
        assert not catalog.is_as_it_was()
        assert not catalog.is_current(repository.state())
        with open_catalog(repository) as again:  # it is the repository's own, which the session brought up
            assert again.sessions == tuple(sessions.states)
            assert names(again, "", sessions.now) == [b"a", b"b"]
