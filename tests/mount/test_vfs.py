"""The tree of all snapshots, without FUSE."""

import os
import stat
import threading
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import DamagedError, HistfsError, NotADirectoryEntryError, NotFoundError, StorageError
from histfs.store.entry import Entry, Kind
from histfs.vfs import (
    FOREVER_S,
    NOTIFIED_S,
    ROOT_INODE,
    TOP_TAG,
    UNKNOWN_S,
    History,
    NotReadyError,
    directory_inode,
    number_of,
    place_of,
    time_of_top,
    version_inode,
)
from tests.mount.fake_repository import FakeCatalog, FakeRepository, tag_of
from tests.strategies import entries
from tests.trees import MTIME, Device, Dir, Fifo, File, Link, Socket, Symlink

FIRST, SECOND, THIRD = 1_714_557_600, 1_714_557_660, 1_714_557_720  # 2024-05-01T10:00Z, a minute later, another

EVERYTHING = Dir(
    {
        "a": File(b"x" * 1000, mode=0o4755, owner=(1, 2)),
        "b": Link("a"),
        "char": Device("c", 1, 3, mode=0o600),
        "block": Device("b", 8, 1),
        "d": Dir({"inner": File(b"i"), "deep": Dir({}), "z": Link("a")}, mode=0o700, mtime=5),
        "fifo": Fifo(),
        "link": Symlink("../x"),
        "sock": Socket(mtime=-1),
    },
    mode=0o750,
)

session_times = st.integers(-2_177_452_800, 4_102_444_799)  # the years 1901 to 2099, as the format has them
tags = st.integers(0, 2**29 - 1)
numbers = st.integers(0, 2**62 - 1)


class Tree(History):
    """A history over a fake repository, with paths."""

    def __init__(self, trees, *, is_ready=True, **options):
        self.repository = trees if isinstance(trees, FakeRepository) else FakeRepository(trees)
        super().__init__(self.repository, self.repository.open_catalog, UTC, **options)
        self.refresh()
        if is_ready:
            self.update()

    def find(self, session_time, path=b""):
        found = self.top(session_time)
        for name in filter(None, path.split(b"/")):
            found = self.child(found.inode, name)
        return found

    def inode(self, session_time, path=b""):
        return self.find(session_time, path).inode


@pytest.fixture
def tree():
    return Tree({FIRST: EVERYTHING})


# Inode numbers


@given(session_times, tags)
def test_the_number_of_a_directory_tells_its_place(session_time, tag):
    inode = directory_inode(session_time, tag)
    assert place_of(inode) == (session_time, tag)
    assert ROOT_INODE < inode < 2**62
    assert number_of(inode) is None
    assert time_of_top(inode) == (session_time if tag == TOP_TAG else None)


@given(numbers)
def test_the_number_of_anything_else_is_that_of_its_version(number):
    inode = version_inode(number)
    assert number_of(inode) == number
    assert 2**62 <= inode < 2**63
    assert time_of_top(inode) is None


@pytest.mark.parametrize(("session_time", "tag"), [(FIRST, 2**29), (FIRST, -1), (2**32, 0), (-(2**32), 0)])
def test_what_does_not_fit_is_an_error(session_time, tag):
    with pytest.raises(HistfsError):
        directory_inode(session_time, tag)


@given(st.integers(0, 2**64 - 1))
def test_any_number_is_a_version_or_a_place_or_not_found(inode):
    number = number_of(inode)
    try:
        assert (inode if number is None else None) in (None, directory_inode(*place_of(inode)))
    except NotFoundError:
        assert number is not None or inode < 2**30 or inode >= 2**63
    if number is not None:
        assert version_inode(number) == inode


@given(st.integers(0, 2**64 - 1))
def test_any_number_can_be_asked_about(inode):
    history = Tree({FIRST: Dir({"a": File()})})
    for question in (history.attributes, history.target, history.open, lambda number: history.child(number, b"a")):
        with pytest.raises((NotFoundError, NotADirectoryEntryError)):
            question(inode)


# The root


def test_the_root_has_a_directory_a_snapshot():
    history = Tree({SECOND: Dir(), FIRST: Dir()}, owner=(5, 6))
    assert list(history.names().items()) == [(b"@2024-05-01T10:00", FIRST), (b"@2024-05-01T10:01", SECOND)]
    root = history.root()
    assert (root.inode, root.mode, root.nlink) == (ROOT_INODE, stat.S_IFDIR | 0o555, 1)
    assert (root.uid, root.gid, root.mtime_s, root.valid_s) == (5, 6, SECOND, NOTIFIED_S)


def test_a_new_session_appears_and_may_rename_another():
    history = Tree({FIRST: Dir()})
    history.repository.trees[FIRST + 7] = Dir()
    assert history.refresh() is False
    assert list(history.names()) == [b"@2024-05-01T10:00:00", b"@2024-05-01T10:00:07"]


def test_a_repository_without_sessions_has_an_empty_root():
    history = Tree({})
    assert history.names() == {}
    assert [child.name for child in history.children(ROOT_INODE, 0, 10)] == [b".", b".."]


def test_the_root_is_listed_before_there_is_a_catalog():
    history = Tree({FIRST: EVERYTHING}, is_ready=False)
    top = history.children(ROOT_INODE, 0, 10)[2].attributes
    assert (top.inode, stat.S_ISDIR(top.mode), top.valid_s) == (directory_inode(FIRST, TOP_TAG), True, UNKNOWN_S)
    read = history.read_top(FIRST)
    history.update()
    assert read == history.top(FIRST)
    known = history.children(ROOT_INODE, 0, 10)[2].attributes
    assert (known.inode, known.mode, known.valid_s) == (top.inode, stat.S_IFDIR | 0o750, FOREVER_S)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_list_of_the_root_goes_on_whatever_happens_to_it(limit):
    times = [FIRST + 60 * number for number in range(10)]
    history = Tree(dict.fromkeys(times, Dir()))
    seen = history.children(ROOT_INODE, 0, 5)
    del history.repository.trees[times[0]], history.repository.trees[times[5]]
    history.repository.trees[times[0] + 30] = history.repository.trees[times[6] + 30] = Dir()
    history.refresh()
    while page := history.children(ROOT_INODE, seen[-1].offset, limit):
        seen += page
    shown = [place_of(child.attributes.inode)[0] for child in seen[2:]]
    assert shown == [*times[:5], times[6], times[6] + 30, *times[7:]]


# What is in a snapshot


@pytest.mark.parametrize(
    ("name", "mode", "nlink", "size", "mtime", "device"),
    [
        (b"a", stat.S_IFREG | 0o4755, 3, 1000, MTIME, (0, 0)),
        (b"b", stat.S_IFREG | 0o4755, 3, 1000, MTIME, (0, 0)),
        (b"char", stat.S_IFCHR | 0o600, 1, 0, FIRST, (1, 3)),
        (b"block", stat.S_IFBLK | 0o600, 1, 0, FIRST, (8, 1)),
        (b"d", stat.S_IFDIR | 0o700, 1, 0, 5, (0, 0)),
        (b"fifo", stat.S_IFIFO | 0o644, 1, 0, MTIME, (0, 0)),
        (b"link", stat.S_IFLNK | 0o777, 1, 4, FIRST, (0, 0)),
        (b"sock", stat.S_IFSOCK | 0o755, 1, 0, -1, (0, 0)),
    ],
)
def test_attributes_are_those_recorded(tree, name, mode, nlink, size, mtime, device):
    found = tree.find(FIRST, name)
    assert (found.mode, found.nlink, found.size_bytes, found.mtime_s) == (mode, nlink, size, mtime)
    assert (os.major(found.rdev), os.minor(found.rdev)) == device
    assert found.valid_s == FOREVER_S
    assert found == tree.attributes(found.inode)


def test_owners_are_numbers(tree):
    assert tree.find(FIRST, b"a")[3:5] == (1, 2)


def test_hard_links_are_one_inode(tree):
    assert tree.inode(FIRST, b"a") == tree.inode(FIRST, b"b") == tree.inode(FIRST, b"d/z")
    assert tree.inode(FIRST, b"d/inner") != tree.inode(FIRST, b"a")


def test_the_top_carries_the_time_of_the_session(tree):
    assert tree.top(FIRST).mtime_s == FIRST
    assert tree.attributes(tree.inode(FIRST)) == tree.top(FIRST)


def test_dots(tree):
    d, deep = tree.find(FIRST, b"d"), tree.find(FIRST, b"d/deep")
    assert tree.child(d.inode, b".") == d
    assert tree.child(deep.inode, b"..") == d
    assert tree.child(d.inode, b"..") == tree.top(FIRST)
    assert tree.child(tree.inode(FIRST), b"..") == tree.root()
    a = tree.find(FIRST, b"a")
    assert tree.child(a.inode, b".") == a
    with pytest.raises(NotADirectoryEntryError):
        tree.child(a.inode, b"..")


def test_what_is_not_there(tree):
    assert tree.child(tree.inode(FIRST), b"nothing") is None
    with pytest.raises(NotADirectoryEntryError):
        tree.child(tree.inode(FIRST, b"a"), b"x")
    for inode in (directory_inode(FIRST, 1000), directory_inode(FIRST + 1, tag_of(b"d")), version_inode(1000)):
        with pytest.raises(NotFoundError):
            tree.attributes(inode)


def test_a_directory_is_not_there_before_it_was_made():
    history = Tree({FIRST: Dir({"d": File()}), SECOND: Dir({"d": Dir()}), THIRD: Dir()})
    tag = place_of(history.inode(SECOND, b"d"))[1]
    for session_time in (FIRST, THIRD):
        with pytest.raises(NotFoundError):
            history.attributes(directory_inode(session_time, tag))


def test_targets_and_contents(tree):
    assert tree.target(tree.inode(FIRST, b"link")) == b"../x"
    assert tree.target(tree.inode(FIRST, b"a")) is tree.target(tree.inode(FIRST, b"d")) is None
    file = tree.open(tree.inode(FIRST, b"b"))
    assert (file.size_bytes, file.path, file.at) == (1000, b"a", FIRST)
    assert file.content.pread(10, 995) == b"xxxxx"
    file.content.close()
    with pytest.raises(NotFoundError):
        tree.open(tree.inode(FIRST, b"d"))


@given(entries())
def test_any_record_fits_a_stat_structure(entry):
    if entry.kind is Kind.ABSENT:
        return
    repository = FakeRepository({FIRST: Dir()})
    repository.extra_entries[FIRST] = [entry._replace(path=b"hostile", link_group=None)]
    found = Tree(repository).find(FIRST, b"hostile")
    assert 0 <= found.size_bytes < 2**63
    assert 0 <= found.uid < 2**32 - 1
    assert 0 <= found.gid < 2**32 - 1
    assert 0 <= found.rdev < 2**32
    assert -(2**63) <= found.mtime_s < 2**63
    assert 1 <= found.nlink < 2**32


@pytest.mark.parametrize(
    ("field", "value", "shown", "expected"),
    [
        ("size_bytes", 10**30, "size_bytes", 2**63 - 1),
        ("size_bytes", -1, "size_bytes", 0),
        ("mtime_s", -(10**30), "mtime_s", -(2**63 - 1)),
        ("uid", 2**32 - 1, "uid", 65_534),
        ("gid", -1, "gid", 65_534),
        ("mode", 0o177777, "mode", stat.S_IFREG | 0o7777),
    ],
)
def test_numbers_that_cannot_be_are_clipped(field, value, shown, expected):
    repository = FakeRepository({FIRST: Dir()})
    repository.extra_entries[FIRST] = [Entry(b"hostile", Kind.REGULAR)._replace(**{field: value})]
    assert getattr(Tree(repository).find(FIRST, b"hostile"), shown) == expected


def test_device_numbers_that_cannot_be_are_shown_as_none():
    repository = FakeRepository({FIRST: Dir()})
    repository.extra_entries[FIRST] = [Entry(b"hostile", Kind.BLOCK_DEVICE, device_number=(2**12, 2**40))]
    assert Tree(repository).find(FIRST, b"hostile").rdev == 0


# One version, one inode


OLD = Dir({"same": File(b"same"), "other": File(b"1"), "d": Dir({"f": File(b"f")}), "s": Symlink("x")})
NEW = Dir({"same": File(b"same"), "other": File(b"2"), "d": Dir({"f": File(b"f"), "g": File()}), "s": Symlink("x")})


def test_a_version_is_one_inode_with_the_same_attributes_in_all_snapshots():
    history = Tree({FIRST: OLD, SECOND: NEW, THIRD: NEW})
    for path in (b"same", b"d/f", b"s"):
        assert history.find(FIRST, path) == history.find(SECOND, path) == history.find(THIRD, path)
    assert history.inode(FIRST, b"other") != history.inode(SECOND, b"other") == history.inode(THIRD, b"other")
    for path in (b"", b"d"):  # what is in them may differ
        assert len({history.inode(time, path) for time in (FIRST, SECOND, THIRD)}) == 3


def test_each_version_has_its_content():
    history = Tree({FIRST: OLD, SECOND: NEW})
    for session_time, expected in ((FIRST, b"1"), (SECOND, b"2")):
        content = history.open(history.inode(session_time, b"other")).content
        assert content.pread(10, 0) == expected
        content.close()


def test_the_links_of_an_inode_do_not_depend_on_the_snapshot():
    """Also where a record says nothing of it: of links outside of the tree one may come in."""
    repository = FakeRepository({FIRST: Dir({"a": File(b"x"), "b": Link("a")}), SECOND: Dir({"a": File(b"x")})})
    a, b = (next(e for e in repository.entries(FIRST) if e.path == path) for path in (b"a", b"b"))
    repository.trees = {FIRST: Dir(), SECOND: Dir()}
    repository.extra_entries = {FIRST: [a], SECOND: [a, b]}
    repository.contents = lambda _time: {}
    history = Tree(repository)
    assert history.find(FIRST, b"a") == history.find(SECOND, b"a") == history.find(SECOND, b"b")
    assert history.find(FIRST, b"a").nlink == 2


def test_the_tag_of_the_top_is_known_before_the_catalog_is():
    history = Tree({FIRST: EVERYTHING})
    assert tag_of(b"") != TOP_TAG
    assert place_of(history.inode(FIRST)) == (FIRST, TOP_TAG)
    assert place_of(history.inode(FIRST, b"d")) == (FIRST, tag_of(b"d"))


def test_a_directory_with_the_tag_of_the_top_gets_that_of_the_catalog(monkeypatch):
    monkeypatch.setattr("tests.mount.fake_repository.tag_of", lambda path: {b"": 7, b"d": TOP_TAG}.get(path, 1))
    history = Tree({FIRST: EVERYTHING})
    assert place_of(history.inode(FIRST, b"d")) == (FIRST, 7)
    assert history.child(history.inode(FIRST, b"d"), b"inner") is not None
    assert history.attributes(history.inode(FIRST, b"d")) == history.find(FIRST, b"d")


# Directories


def whole(history, inode, limit=10, offset=0):
    listed = []
    while page := history.children(inode, offset, limit):
        listed += page
        offset = page[-1].offset
    return listed


def names(children):
    return [child.name for child in children]


def test_a_directory_lists_its_names_in_order(tree):
    expected = [b".", b"..", b"a", b"b", b"block", b"char", b"d", b"fifo", b"link", b"sock"]
    assert names(whole(tree, tree.inode(FIRST), 100)) == expected


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25])
def test_a_listing_goes_on_from_any_offset(count):
    contents = Dir({f"{number:03}": File() for number in range(count)})
    history = Tree({FIRST: Dir({"before": Dir({"x": File()}), "d": contents})})
    inode = history.inode(FIRST, b"d")
    listed = whole(history, inode)
    assert len(listed) == count + 2
    assert len({child.offset for child in listed}) == len(listed)
    for position, child in enumerate(listed):
        assert names(whole(history, inode, 10, child.offset)) == names(listed[position + 1 :])


def test_fewer_than_were_asked_for_are_the_last():
    history = Tree({FIRST: Dir({f"{number:02}": File() for number in range(30)})})
    offset, limit, is_end = 0, 10, False
    while not is_end:
        page = history.children(history.inode(FIRST), offset, limit)
        is_end, offset = len(page) < limit, page[-1].offset if page else offset
    assert history.children(history.inode(FIRST), offset, limit) == []


def test_listings_show_the_same_as_lookups(tree):
    for child in whole(tree, tree.inode(FIRST))[2:]:
        assert child.attributes == tree.child(tree.inode(FIRST), child.name)


def test_only_directories_can_be_listed(tree):
    with pytest.raises(NotADirectoryEntryError):
        tree.children(tree.inode(FIRST, b"a"), 0, 10)


# The catalog


def test_without_a_catalog_nothing_in_a_snapshot_is_known():
    history = Tree({FIRST: EVERYTHING}, is_ready=False)
    for inode in (directory_inode(FIRST, TOP_TAG), version_inode(5)):
        with pytest.raises(NotReadyError):
            history.attributes(inode)
    history.update()
    assert history.attributes(directory_inode(FIRST, TOP_TAG)) == history.top(FIRST)
    with pytest.raises(NotFoundError):
        history.attributes(version_inode(5))


def test_an_old_catalog_serves_until_the_new_one_is_there():
    history = Tree({FIRST: OLD})
    history.repository.trees[SECOND] = NEW
    assert history.refresh() is False
    assert history.find(FIRST, b"same") is not None
    for inode in (directory_inode(SECOND, TOP_TAG), version_inode(5)):
        with pytest.raises(NotReadyError):
            history.attributes(inode)
    assert history.top(SECOND) is None
    assert history.read_top(SECOND).valid_s == FOREVER_S
    history.update()
    assert history.find(SECOND, b"same") == history.find(FIRST, b"same")
    assert history.repository.open_now["catalog"] == 1


def test_a_removed_session_is_gone_at_once():
    history = Tree({FIRST: OLD, SECOND: NEW})
    inode = history.inode(FIRST, b"d")
    del history.repository.trees[FIRST]
    for is_updated in (False, True):
        history.refresh()
        with pytest.raises(NotFoundError):
            history.top(FIRST)
        with pytest.raises(NotFoundError if is_updated else NotReadyError):
            history.attributes(inode)
        history.update()


def test_a_session_without_a_list_is_damaged_and_the_others_are_not():
    repository = FakeRepository({FIRST: OLD, SECOND: NEW})
    repository.unreadable.add(FIRST)
    history = Tree(repository)
    for question in (history.attributes, history.read_top, history.top):
        with pytest.raises(DamagedError):
            question(directory_inode(FIRST, TOP_TAG) if question == history.attributes else FIRST)
    assert history.children(ROOT_INODE, 0, 10)[2].attributes.valid_s == UNKNOWN_S
    assert history.find(SECOND, b"other") is not None


def test_a_catalog_that_is_current_is_not_taken_again():
    history = Tree({FIRST: OLD})
    history.update()
    assert history.repository.calls["catalog"] == 1


def test_a_catalog_that_cannot_be_made_leaves_the_old_one():
    history = Tree({FIRST: OLD})
    history.repository.trees[SECOND] = NEW
    history.repository.damaged["catalog"] = StorageError("full")
    with pytest.raises(StorageError):
        history.update()
    assert history.find(FIRST, b"same") is not None


def test_another_catalog_is_taken_in_the_place_of_one_that_cannot_be_read(monkeypatch):
    """Who asks meanwhile is told to ask again, and not that a file is damaged."""
    history = Tree({FIRST: EVERYTHING})
    catalog = history._tree.catalog

    def fail(*_):
        catalog.is_damaged = True
        raise DamagedError("the catalog cannot be read")

    monkeypatch.setattr(catalog, "child", fail)
    monkeypatch.setattr(catalog, "is_current", lambda _state: not catalog.is_damaged)
    assert history.top(FIRST) is None
    with pytest.raises(NotReadyError):
        history.child(directory_inode(FIRST, TOP_TAG), b"a")
    assert not history.is_current
    history.update()
    assert history.is_current
    assert history.find(FIRST, b"a").size_bytes == 1000


def test_a_catalog_in_use_is_not_closed():
    history = Tree({FIRST: OLD})
    inside, go_on = threading.Event(), threading.Event()
    content = history.repository.snapshot(FIRST)

    def slow(_time):
        inside.set()
        assert go_on.wait(10)
        return content

    history.repository.snapshot = slow
    opening = threading.Thread(target=lambda: history.open(history.inode(FIRST, b"same")).content.close())
    opening.start()
    assert inside.wait(10)
    history.repository.trees[SECOND] = NEW
    history.update()
    assert history.repository.open_now["catalog"] == 2
    go_on.set()
    opening.join()
    assert history.repository.open_now["catalog"] == 1
    history.close()
    assert +history.repository.open_now == {}


def test_many_threads_ask_while_catalogs_change():
    history = Tree({FIRST: OLD})
    errors, is_over = [], threading.Event()

    def use():
        try:
            while not is_over.is_set():
                assert history.find(FIRST, b"d/f") is not None
                assert len(history.children(history.inode(FIRST, b"d"), 0, 10)) == 3
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 50):
        history.repository.trees[FIRST + number] = NEW
        history.update()
    is_over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    history.close()
    assert +history.repository.open_now == {}


def test_the_fake_is_like_the_real_one():
    """What these tests build on."""
    catalog = FakeCatalog(FakeRepository({FIRST: OLD, SECOND: NEW}))
    version = catalog.child(catalog.root(FIRST).directory, b"same", FIRST)
    assert (version.first, catalog.time_of(version)) == (FIRST, SECOND)
    assert catalog.version(version.number) == version
