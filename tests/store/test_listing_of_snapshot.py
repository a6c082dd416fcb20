"""Snapshots and their listings: numbered rows, true links, parents that are directories, lists that are replaced."""

import gzip
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.errors import (
    DamagedError,
    NotADirectoryEntryError,
    NotARepositoryError,
    NotFoundError,
    StorageError,
)
from histfs.store.entry import Entry, Kind, LinkGroup
from histfs.store.format.metadata import format_record
from histfs.store.listing import Listing
from histfs.store.repository import Repository, find_repository
from histfs.store.snapshot import well_formed
from tests.store.places import is_root, open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import Dir, File, Link, Symlink, build

ROOT = Entry(b"", Kind.DIRECTORY, 0o755)


def directory(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755)


def file(path: bytes, group: LinkGroup | None = None, **fields: object) -> Entry:
    return Entry(path, Kind.REGULAR, 0o644, link_group=group)._replace(**fields)


# --- listings -------------------------------------------------------------------------------------------------------


def listed(*entries: Entry) -> Listing:
    return Listing.build([ROOT, *entries])


def links(listing: Listing) -> dict[bytes, tuple[int, int]]:
    """By path: the row of the inode, and the links."""
    return {node.entry.path: (node.inode_row, node.nlink) for node in listing.nodes()}


def test_rows_are_in_order_and_lead_everywhere() -> None:
    entries = [directory(b"d"), file(b"d/a"), directory(b"d/e"), file(b"d/e/x"), file(b"d.txt"), file(b"z\xff\n")]
    listing = listed(*entries)
    nodes = list(listing.nodes())
    assert [node.entry for node in nodes] == [ROOT, *entries]
    assert [node.row for node in nodes] == list(range(7))
    for node in nodes:
        assert listing.node(node.row) == node
        assert listing.find(node.entry.path) == node
    assert listing.child(0, b"d.txt") == nodes[5]
    assert listing.child(1, b"e") == nodes[3]
    assert listing.child(0, b"a") is None
    assert listing.child(2, b"a") is None
    listing.close()


def test_directories_count_their_subdirectories() -> None:
    listing = listed(directory(b"a"), directory(b"a/b"), directory(b"a/b/c"), directory(b"a/d"), file(b"x"))
    found = {path: nlink for path, (_, nlink) in links(listing).items()}
    assert found == {b"": 3, b"a": 4, b"a/b": 3, b"a/b/c": 2, b"a/d": 2, b"x": 1}


def test_links_of_one_file_share_an_inode_and_a_digest() -> None:
    group = LinkGroup(5, 7, 1)  # two links lie outside of the tree
    listing = listed(directory(b"d"), file(b"d/a", group, sha1=b"1" * 40), file(b"e", group), file(b"f", group))
    assert links(listing) == {b"": (0, 3), b"d": (1, 2), b"d/a": (2, 3), b"e": (2, 3), b"f": (2, 3)}
    assert {node.sha1 for node in listing.nodes() if node.entry.kind is Kind.REGULAR} == {b"1" * 40}


def test_a_digest_of_any_member_counts() -> None:
    group = LinkGroup(2, 7, 1)
    listing = listed(file(b"a", group), file(b"b", group, sha1=b"2" * 40))
    assert listing.find(b"b").sha1 == b"2" * 40


def test_records_that_claim_one_inode_and_differ_are_several_files() -> None:
    group = LinkGroup(2, 7, 1)
    listing = listed(
        file(b"a", group, size_bytes=1, sha1=b"1" * 40), file(b"b", group, size_bytes=2), file(b"c", group)
    )
    assert [node for node, _ in links(listing).values()] == [0, 1, 2, 3]
    assert listing.find(b"b").sha1 is None


def test_groups_of_other_devices_and_of_inodes_that_no_database_counts() -> None:
    huge = 2**64 - 1
    listing = listed(
        file(b"a", LinkGroup(2, huge, huge)), file(b"b", LinkGroup(2, huge, 1)), file(b"c", LinkGroup(2, huge, huge))
    )
    assert links(listing) == {b"": (0, 2), b"a": (1, 2), b"b": (2, 1), b"c": (1, 2)}


def test_children_come_page_by_page() -> None:
    names = sorted(b"%d" % number for number in range(25))
    entries = [entry for name in names for entry in (directory(name), file(name + b"/in"))]
    listing = listed(*entries)
    found, after = [], -1
    while page := listing.children(0, after, 10):
        assert len(page) <= 10
        found += page
        after = page[-1].row
    assert [node.entry.path for node in found] == names
    assert [node.row for node in found] == sorted(node.row for node in found)
    assert listing.children(found[0].row)[0].entry.path == names[0] + b"/in"
    assert listing.children(found[-1].row + 1) == []  # a file
    assert listing.children(0, after=found[9].row, limit=1) == [found[10]]


def test_what_is_not_there() -> None:
    listing = listed(directory(b"d"), file(b"d/f"))
    for path in (b"x", b"d/x", b"x/y"):
        with pytest.raises(NotFoundError):
            listing.find(path)
    with pytest.raises(NotADirectoryEntryError) as caught:
        listing.find(b"d/f/x")
    assert caught.value.path == b"d/f"
    for row in (-1, 3, 10**12):
        with pytest.raises(NotFoundError):
            listing.node(row)


def test_a_listing_that_fails_leaves_nothing_open() -> None:
    def entries() -> Iterator[Entry]:
        yield ROOT
        raise DamagedError("x")

    before = open_descriptors()
    with pytest.raises(DamagedError):
        Listing.build(entries())
    assert open_descriptors() == before


def test_several_threads_read_one_listing() -> None:
    listing = listed(*(file(b"%04d" % number) for number in range(500)))
    wrong: list[object] = []

    def look() -> None:
        for number in range(500):
            node = listing.child(0, b"%04d" % number)
            if node is None or node.row != number + 1:
                wrong.append(node)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


_GROWTH = """
import resource, sys
from histfs.store.entry import Entry, Kind, LinkGroup
from histfs.store.listing import Listing
def entries(count):
    yield Entry(b"", Kind.DIRECTORY)
    for d in range(count // 100):
        yield Entry(b"d%05d" % d, Kind.DIRECTORY)
        for f in range(99):
            number = d * 100 + f
            group = LinkGroup(2, number // 2, 1)
            name = b"d%05d/a-name-that-is-not-so-short-%05d" % (d, f)
            yield Entry(name, Kind.REGULAR, 0o644, size_bytes=number // 2, sha1=b"0" * 40, link_group=group)
Listing.build(entries(2_000)).close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
listing = Listing.build(entries(int(sys.argv[1])))
assert sum(1 for _ in listing.nodes()) == int(sys.argv[1]) + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("count", [60_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_tree(count: int) -> None:
    """60,000 entries are 15 MB of rows and as much of indices, a million 17 times that."""
    ran = subprocess.run([sys.executable, "-c", _GROWTH, str(count)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * 1024 < 40 << 20


# --- what is a tree -------------------------------------------------------------------------------------------------


def kept(*entries: Entry) -> tuple[list[bytes], list[bytes]]:
    damaged: list[DamagedError] = []
    found = [entry.path for entry in well_formed(entries, damaged.append)]
    return found, [error.path for error in damaged]  # type: ignore[misc]  # they are bytes here


def test_a_whole_tree_is_kept() -> None:
    paths = [b"a", b"a/b", b"a/b/c", b"a/d", b"a.x", b"b"]
    assert kept(ROOT, *map(directory, paths)) == ([b"", *paths], [])


def test_what_lies_in_nothing_is_left_out_and_told_once() -> None:
    entries = [ROOT, directory(b"a"), file(b"a/f"), file(b"b/x"), directory(b"b/y"), file(b"b/y/z"), file(b"c")]
    assert kept(*entries) == ([b"", b"a", b"a/f", b"c"], [b"b"])


def test_nothing_lies_in_a_link() -> None:
    """Whoever restored it would write through the link."""
    link = Entry(b"a", Kind.SYMLINK, target=b"/etc")
    assert kept(ROOT, link, directory(b"a/b"), file(b"a/b/c"), file(b"d")) == ([b"", b"a", b"d"], [b"a"])


def test_what_lies_deep_in_nothing_is_told_by_the_topmost_name() -> None:
    assert kept(ROOT, directory(b"a"), file(b"a/b/c/d"), file(b"a/b/e"), file(b"a/x/y")) == (
        [b"", b"a"],
        [b"a/b", b"a/x"],
    )


def test_a_directory_that_is_left_out_holds_nothing() -> None:
    entries = [ROOT, file(b"a"), directory(b"a/b"), file(b"a/b/c"), directory(b"a/b/d"), file(b"ab")]
    assert kept(*entries) == ([b"", b"a", b"ab"], [b"a"])


@pytest.mark.parametrize(
    "entries", [[], [file(b"a")], [file(b"")], [Entry(b"", Kind.SYMLINK, target=b"/"), file(b"a")]], ids=range(4)
)
def test_a_tree_has_a_root_that_is_a_directory(entries: list[Entry]) -> None:
    with pytest.raises(DamagedError):
        kept(*entries)


# --- snapshots ------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(sessions: Sessions) -> Sessions:
    """Three sessions: a file comes, another goes."""
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": File(b"y")}), "d.txt": File(b"t")}))
    sessions.backup()
    (sessions.source / "a").unlink()
    sessions.backup()
    (sessions.source / "d/new").write_bytes(b"new")
    sessions.backup()
    return sessions


def test_entries_below_a_path(three: Sessions) -> None:
    with three.open() as repository:
        snapshot = repository.snapshot(FIRST)
        assert [entry.path for entry in snapshot.entries(b"d")] == [b"d", b"d/x", b"d/y"]
        assert [entry.path for entry in snapshot.entries(b"d/x")] == [b"d/x"]
        assert [entry.path for entry in snapshot.entries(b"d.txt")] == [b"d.txt"]
        assert list(snapshot.entries(b"nothing")) == []
        assert len(list(snapshot.entries())) == 6


def test_sessions_that_are_not_there(three: Sessions) -> None:
    with three.open() as repository:
        assert repository.sessions() == (FIRST, FIRST + DAY, FIRST + 2 * DAY)
        assert repository.unfinished() is None
        for time in (0, FIRST - 1, FIRST + 1, FIRST + 3 * DAY):
            with pytest.raises(NotFoundError):
                repository.snapshot(time)


def test_a_list_with_damage_says_so_or_goes_on(three: Sessions) -> None:
    list_ = three.data / f"mirror_metadata.{stamp(three.now)}.snapshot.gz"
    text = gzip.decompress(list_.read_bytes())
    list_.write_bytes(text.replace(b"File d\n  Type dir", b"File d\n  Type what"))  # plain text under .gz, too
    with three.open() as repository:
        with pytest.raises(DamagedError) as caught:
            list(repository.snapshot(three.now).entries())
        assert (caught.value.path, caught.value.at) == (b"d", three.now)
        damaged: list[DamagedError] = []
        found = [entry.path for entry in repository.snapshot(three.now).entries(on_damage=damaged.append)]
        assert found == [b"", b"d.txt"]
        assert [error.path for error in damaged] == [b"d", b"d"]
        assert {error.at for error in damaged} == {three.now}


def test_a_truncated_list_is_an_error_in_any_case(three: Sessions) -> None:
    list_ = three.data / f"mirror_metadata.{stamp(three.now)}.snapshot.gz"
    list_.write_bytes(list_.read_bytes()[:-5])
    with three.open() as repository:
        with pytest.raises(DamagedError, match="truncated") as caught:
            list(repository.snapshot(three.now).entries(on_damage=lambda _error: None))
        assert isinstance(caught.value.path, bytes)
        assert caught.value.path.startswith(b"rdiff-backup-data/mirror_metadata.")
        with pytest.raises(DamagedError):
            repository.snapshot(three.now).listing()


def _replace(path: Path, with_what: str) -> None:
    path.unlink()
    if with_what == "fifo":
        os.mkfifo(path)
    elif with_what == "directory":
        path.mkdir()
    elif with_what == "link":
        path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("with_what", ["nothing", "fifo", "directory", "link"])
def test_a_list_in_whose_place_is_something_else(three: Sessions, with_what: str) -> None:
    """The newest one, which is the last of those that the oldest session needs."""
    with three.open() as repository:
        assert repository.sessions()
        state = repository.state()
        _replace(three.data / f"mirror_metadata.{stamp(three.now)}.snapshot.gz", with_what)
        before = open_descriptors()
        with pytest.raises(DamagedError):
            list(repository.snapshot(FIRST).entries())
        assert open_descriptors() == before
        assert state.sessions == repository.sessions()


@pytest.mark.skipif(is_root(), reason="root may read everything")
def test_a_list_that_must_not_be_read(three: Sessions) -> None:
    (three.data / f"mirror_metadata.{stamp(three.now)}.snapshot.gz").chmod(0)
    with three.open() as repository:
        before = open_descriptors()
        with pytest.raises(StorageError):
            list(repository.snapshot(FIRST).entries())
        assert open_descriptors() == before


def test_a_list_that_is_replaced_by_a_difference_while_it_is_looked_for(
    three: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with three.open() as repository:
        time = three.now
        state = repository.state()
        snapshot = repository.snapshot(time)
        (three.source / "late").write_bytes(b"late")
        three.backup()
        real = repository.state
        states = iter([state])
        monkeypatch.setattr(repository, "state", lambda: next(states, None) or real())
        assert b"late" not in [entry.path for entry in snapshot.entries()]


def test_names_that_are_listed_while_they_change_are_listed_again(
    three: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is read while files come and go may show neither the old nor the new list of a session."""
    with three.open() as repository:
        snapshot = repository.snapshot(FIRST)
        whole = repository.state()
        torn = whole._replace(metadata={time: files for time, files in whole.metadata.items() if time != FIRST})
        states = iter([torn])
        monkeypatch.setattr(repository, "state", lambda: next(states, whole))
        assert b"a" in [entry.path for entry in snapshot.entries()]


def test_a_new_session_is_seen_at_once(three: Sessions) -> None:
    with three.open() as repository:
        assert len(repository.sessions()) == 3
        three.backup()
        assert len(repository.sessions()) == 4
        (three.data / f"current_mirror.{stamp(three.now + DAY)}.data").touch()
        assert repository.unfinished() == three.now + DAY
        assert len(repository.sessions()) == 4


def test_the_names_are_read_again_only_if_the_directory_changed(
    three: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(three.data, (FIRST, FIRST))
    with three.open() as repository:
        read = []
        real = repository.tree.names
        monkeypatch.setattr(repository.tree, "names", lambda path: read.append(path) or real(path))
        repository.sessions()
        repository.sessions()
        assert read == []
        os.utime(three.data, (FIRST + 1, FIRST + 1))
        repository.sessions()
        repository.sessions()
        assert read == [b"rdiff-backup-data"]


def test_reading_leaves_no_descriptor_open(three: Sessions) -> None:
    before = open_descriptors()
    with three.open() as repository:
        snapshot = repository.snapshot(FIRST)
        snapshot.listing()
        entries = snapshot.entries()
        next(entries)
        entries.close()  # type: ignore[attr-defined]  # it is a generator
        snapshot.close()
        snapshot.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["no", "file", "empty"])
def test_what_is_no_repository(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = open_descriptors()
    with pytest.raises(NotARepositoryError):
        Repository.open(tmp_path / name)
    assert open_descriptors() == before


def test_a_repository_without_a_session_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "rdiff-backup-data").mkdir()
    with pytest.raises(NotARepositoryError, match="no session has finished"):
        Repository.open(tmp_path)


@pytest.mark.parametrize("inside", [b"", b"d", b"d/x", b"gone/for/long"])
def test_the_repository_above_a_path(three: Sessions, inside: bytes) -> None:
    path = three.repository / os.fsdecode(inside) if inside else three.repository
    assert find_repository(path) == (three.repository, inside)


def test_no_repository_above_a_path(tmp_path: Path) -> None:
    for name in (".", "no", "no/such"):
        with pytest.raises(NotARepositoryError):
            find_repository(tmp_path / name)


@pytest.mark.skipif(is_root(), reason="root may look everywhere")
def test_a_directory_above_that_must_not_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "closed/in").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(NotARepositoryError):
            find_repository(tmp_path / "closed/in")
        (tmp_path / "rdiff-backup-data").mkdir()
        assert find_repository(tmp_path / "closed/in") == (tmp_path, b"closed/in")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_hard_links_in_a_repository(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"x"), "d": Dir({"b": Link("a")}), "s": Symlink("a")}))
    sessions.backup()
    first, second = sessions.node(b"a"), sessions.node(b"d/b")
    assert (first.nlink, second.nlink) == (2, 2)
    assert first.inode_row == second.inode_row == first.row
    assert second.entry.sha1 is None
    assert second.sha1 == first.sha1 == first.entry.sha1


def test_a_path_damaged_in_one_list_only(three: Sessions) -> None:
    """A record of a difference that cannot be read is told of, not silently replaced by the newer one."""
    with three.open() as repository:
        (name,) = [name for name in os.listdir(three.data) if name.startswith(f"mirror_metadata.{stamp(FIRST)}")]
        path = three.data / name
        text = gzip.decompress(path.read_bytes())
        path.write_bytes(text + b"File zzz\n  Type reg\n  Size -1\n")
        damaged: list[DamagedError] = []
        list(repository.snapshot(FIRST).entries(on_damage=damaged.append))
        assert [error.path for error in damaged] == [b"zzz"]


def test_a_record_as_text_is_the_same_row(three: Sessions) -> None:
    with three.open() as repository:
        snapshot = repository.snapshot(three.now)
        by_listing = [node.entry for node in snapshot.listing().nodes()]
        assert [format_record(entry) for entry in snapshot.entries()] == [format_record(entry) for entry in by_listing]
        snapshot.close()


def test_limits_of_the_process_are_as_usual() -> None:
    """The tests of descriptors mean something only if there may be more of them."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256


def test_rows_mean_the_same_at_every_load(three: Sessions) -> None:
    """Also when newer sessions have turned the full list into differences."""

    def rows() -> list[tuple[int, bytes, int, int]]:
        with three.open() as repository:
            snapshot = repository.snapshot(FIRST + 2 * DAY)
            found = [(node.row, node.entry.path, node.nlink, node.inode_row) for node in snapshot.listing().nodes()]
            snapshot.close()
            return found

    before = rows()
    for name in ("0", "zz", "d/0"):
        (three.source / name).write_bytes(b"new")
        three.backup()
    assert rows() == before
