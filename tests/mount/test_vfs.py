"""The tree of all snapshots, without FUSE."""

import os
import stat
import threading
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import DamagedError, HistfsError, NotADirectoryEntryError, NotFoundError
from histfs.store.entry import Entry, Kind
from histfs.vfs import BRIEFLY_S, FOREVER_S, ROOT_INODE, History, View, inode_of, place_of
from tests.mount.fake_repository import FakeRepository
from tests.strategies import entries
from tests.trees import MTIME, Device, Dir, Fifo, File, Link, Socket, Symlink

FIRST, SECOND = 1_714_557_600, 1_714_557_660  # 2024-05-01T10:00Z, one minute later

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
rows = st.integers(0, 2**30 - 1)


def history_of(trees, **options):
    repository = FakeRepository(trees)
    history = History(repository, UTC, **options)
    history.refresh()
    return repository, history


def loaded(history, session_time):
    history.load(session_time)
    return history.acquire(session_time)


@pytest.fixture
def view():
    return loaded(history_of({FIRST: EVERYTHING})[1], FIRST)


# Inode numbers


@given(session_times, rows)
def test_an_inode_number_tells_its_place(session_time, row):
    inode = inode_of(session_time, row)
    assert place_of(inode) == (session_time, row)
    assert ROOT_INODE < inode < 2**63
    assert inode >= 2**30  # so that no handle of the root's lists is one


@given(session_times, rows, session_times, rows)
def test_inode_numbers_differ(time, row, other_time, other_row):
    assert (inode_of(time, row) == inode_of(other_time, other_row)) == ((time, row) == (other_time, other_row))


@pytest.mark.parametrize("session_time", [-2_177_452_800, 4_102_444_799])
@pytest.mark.parametrize("row", [0, 2**30 - 1])
def test_the_ends_of_the_ranges_fit(session_time, row):
    assert place_of(inode_of(session_time, row)) == (session_time, row)


@pytest.mark.parametrize(("session_time", "row"), [(FIRST, 2**30), (FIRST, -1), (2**32, 0), (-(2**32), 0)])
def test_what_does_not_fit_is_an_error(session_time, row):
    with pytest.raises(HistfsError):
        inode_of(session_time, row)


@given(st.integers(0, 2**64 - 1))
def test_any_number_is_a_place_or_not_found(inode):
    try:
        session_time, row = place_of(inode)
    except NotFoundError:
        return
    assert inode_of(session_time, row) == inode


# The root


def test_the_root_has_a_directory_a_snapshot():
    _, history = history_of({SECOND: Dir(), FIRST: Dir()}, owner=(5, 6))
    assert list(history.names().items()) == [(b"@2024-05-01T10:00", FIRST), (b"@2024-05-01T10:01", SECOND)]
    root = history.root()
    assert (root.inode, root.mode, root.nlink) == (ROOT_INODE, stat.S_IFDIR | 0o555, 4)
    assert (root.uid, root.gid, root.mtime_ns, root.valid_s) == (5, 6, SECOND * 10**9, BRIEFLY_S)


def test_a_new_session_appears_and_may_rename_another():
    repository, history = history_of({FIRST: Dir()})
    repository.trees[FIRST + 7] = Dir()
    assert list(history.refresh()) == [b"@2024-05-01T10:00:00", b"@2024-05-01T10:00:07"]


def test_a_repository_without_sessions_has_an_empty_root():
    _, history = history_of({})
    assert history.names() == {}
    assert history.root().nlink == 2


def test_the_top_of_a_snapshot_is_read_without_its_listing():
    repository, history = history_of({FIRST: EVERYTHING})
    assert history.top(FIRST) is None
    top = history.read_top(FIRST)
    assert top == history.top(FIRST)
    assert (top.inode, top.mode, top.nlink) == (inode_of(FIRST, 0), stat.S_IFDIR | 0o750, 1)
    assert (top.mtime_ns, top.valid_s) == (FIRST * 10**9, BRIEFLY_S)
    assert repository.calls["listing", FIRST] == 0


def test_a_loaded_snapshot_knows_the_links_of_its_top():
    _, history = history_of({FIRST: EVERYTHING})
    history.read_top(FIRST)
    history.load(FIRST)
    assert (history.top(FIRST).nlink, history.top(FIRST).valid_s) == (3, FOREVER_S)
    assert history.read_top(FIRST).nlink == 3  # what is known better is not forgotten


def test_a_snapshot_without_a_root_is_damaged():
    repository, history = history_of({FIRST: Dir()})
    repository.entries = lambda _time: [Entry(b"a", Kind.REGULAR)]
    with pytest.raises(DamagedError):
        history.read_top(FIRST)


# What is in a snapshot


@pytest.mark.parametrize(
    ("name", "mode", "nlink", "size", "mtime", "device"),
    [
        (b"a", stat.S_IFREG | 0o4755, 3, 1000, MTIME, (0, 0)),
        (b"b", stat.S_IFREG | 0o4755, 3, 1000, MTIME, (0, 0)),
        (b"char", stat.S_IFCHR | 0o600, 1, 0, FIRST, (1, 3)),
        (b"block", stat.S_IFBLK | 0o600, 1, 0, FIRST, (8, 1)),
        (b"d", stat.S_IFDIR | 0o700, 3, 0, 5, (0, 0)),
        (b"fifo", stat.S_IFIFO | 0o644, 1, 0, MTIME, (0, 0)),
        (b"link", stat.S_IFLNK | 0o777, 1, 4, FIRST, (0, 0)),
        (b"sock", stat.S_IFSOCK | 0o755, 1, 0, -1, (0, 0)),
    ],
)
def test_attributes_are_those_recorded(view, name, mode, nlink, size, mtime, device):
    found = view.child(0, name)
    assert (found.mode, found.nlink, found.size_bytes, found.mtime_ns) == (mode, nlink, size, mtime * 10**9)
    assert (os.major(found.rdev), os.minor(found.rdev)) == device
    assert found.valid_s == FOREVER_S
    assert found == view.attributes(place_of(found.inode)[1])


def test_owners_are_numbers(view):
    assert view.child(0, b"a")[3:5] == (1, 2)


def test_hard_links_are_one_inode(view):
    deep = place_of(view.child(0, b"d").inode)[1]
    assert view.child(0, b"a").inode == view.child(0, b"b").inode == view.child(deep, b"z").inode
    assert view.child(deep, b"inner").inode != view.child(0, b"a").inode


def test_the_top_carries_the_time_of_the_session(view):
    assert view.attributes(0).mtime_ns == FIRST * 10**9


def test_dots(view):
    d = view.child(0, b"d")
    row = place_of(d.inode)[1]
    deep = view.child(row, b"deep")
    assert view.child(row, b".") == d
    assert view.child(place_of(deep.inode)[1], b"..") == d
    assert view.child(row, b"..") == view.attributes(0)
    assert view.child(0, b"..").inode == ROOT_INODE


def test_what_is_not_there(view):
    assert view.child(0, b"nothing") is None
    with pytest.raises(NotADirectoryEntryError):
        view.child(place_of(view.child(0, b"a").inode)[1], b"x")
    with pytest.raises(NotFoundError):
        view.child(1000, b"x")
    with pytest.raises(NotFoundError):
        view.attributes(1000)


def test_targets_and_contents(view):
    assert view.target(place_of(view.child(0, b"link").inode)[1]) == b"../x"
    file = view.file(place_of(view.child(0, b"b").inode)[1])
    assert (file.attributes, file.path) == (view.child(0, b"b"), b"a")
    content = file.open()
    assert content.pread(10, 995) == b"xxxxx"
    content.close()


@given(entries())
def test_any_record_fits_a_stat_structure(entry):
    if entry.kind is Kind.ABSENT:
        return
    repository, history = history_of({FIRST: Dir()})
    repository.extra_entries[FIRST] = [entry._replace(path=b"hostile", link_group=None)]
    found = loaded(history, FIRST).child(0, b"hostile")
    assert 0 <= found.size_bytes < 2**63
    assert 0 <= found.uid < 2**32 - 1
    assert 0 <= found.gid < 2**32 - 1
    assert 0 <= found.rdev < 2**32
    assert -(2**63) <= found.mtime_ns // 10**9 < 2**63
    assert 1 <= found.nlink < 2**32


@pytest.mark.parametrize(
    ("field", "value", "shown", "expected"),
    [
        ("size_bytes", 10**30, "size_bytes", 2**63 - 1),
        ("size_bytes", -1, "size_bytes", 0),
        ("mtime_s", -(10**30), "mtime_ns", -(2**63 - 1) * 10**9),
        ("uid", 2**32 - 1, "uid", 65_534),
        ("gid", -1, "gid", 65_534),
        ("mode", 0o177777, "mode", stat.S_IFREG | 0o7777),
    ],
)
def test_numbers_that_cannot_be_are_clipped(field, value, shown, expected):
    repository, history = history_of({FIRST: Dir()})
    repository.extra_entries[FIRST] = [Entry(b"hostile", Kind.REGULAR)._replace(**{field: value})]
    assert getattr(loaded(history, FIRST).child(0, b"hostile"), shown) == expected


def test_device_numbers_that_cannot_be_are_shown_as_none():
    repository, history = history_of({FIRST: Dir()})
    hostile = Entry(b"hostile", Kind.BLOCK_DEVICE, device_number=(2**12, 2**40))
    repository.extra_entries[FIRST] = [hostile]
    assert loaded(history, FIRST).child(0, b"hostile").rdev == 0


# Directories


def names(children):
    return [child.name for child in children]


def test_a_directory_lists_its_names_in_order(view):
    expected = [b".", b"..", b"a", b"b", b"block", b"char", b"d", b"fifo", b"link", b"sock"]
    assert names(view.children(0, 0)) == expected


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_a_listing_goes_on_from_any_offset(count):
    tree = Dir({f"{number:03}": File() for number in range(count)})
    view = loaded(history_of({FIRST: Dir({"before": Dir({"x": File()}), "d": tree})})[1], FIRST)
    row = place_of(view.child(0, b"d").inode)[1]
    whole = list(view.children(row, 0))
    assert len(whole) == count + 2
    assert len({child.offset for child in whole}) == len(whole)
    for position, child in enumerate(whole):
        assert names(view.children(row, child.offset)) == names(whole[position + 1 :])


def test_a_listing_is_not_made_as_a_whole(view):
    asked = []
    children = view._listing.children
    view._listing.children = lambda row, after, limit: asked.append(limit) or children(row, after, limit)
    listing = view.children(0, 0)
    assert names([next(listing), next(listing)]) == [b".", b".."]
    assert asked == []
    next(listing)
    assert len(asked) == 1
    assert asked[0] <= 100


def test_listings_show_the_same_as_lookups(view):
    for child in view.children(0, 2):
        assert child.attributes == view.child(0, child.name)


# What is kept


def many(count):
    return {FIRST + 60 * number: Dir({"f": File()}) for number in range(count)}


def test_an_unknown_session_is_not_found():
    _, history = history_of({FIRST: Dir()})
    assert history.acquire(FIRST) is None
    with pytest.raises(NotFoundError):
        history.load(SECOND)


def test_few_listings_are_kept_and_the_least_used_goes():
    repository, history = history_of(many(4), max_listings=2)
    first, second, third, _ = repository.trees
    history.load(first)
    history.load(second)
    history.release(history.acquire(first))
    history.load(third)
    assert history.acquire(second) is None
    assert history.acquire(first) is not None
    assert +repository.open_now == {("listing", first): 1, ("listing", third): 1}


def test_what_is_in_use_is_not_closed():
    repository, history = history_of(many(4), max_listings=1)
    first, second, third, fourth = repository.trees
    users = [loaded(history, first), loaded(history, second)]
    history.load(third)
    assert repository.open_now["listing", first] == repository.open_now["listing", second] == 1
    assert users[0].child(0, b"f") is not None
    for user in users:
        history.release(user)
    history.load(fourth)
    assert +repository.open_now == {("listing", fourth): 1}


def test_a_listing_that_was_just_loaded_can_be_acquired_whatever_the_bound():
    _, history = history_of(many(2), max_listings=1)
    first, second = history.names().values()
    user = loaded(history, first)
    history.load(second)
    assert history.acquire(second) is not None
    history.release(user)


def test_loading_twice_keeps_one():
    repository, history = history_of(many(1))
    history.load(FIRST)
    history.load(FIRST)
    assert repository.open_now["listing", FIRST] == 1


def test_the_listing_of_a_removed_session_is_closed_when_nobody_uses_it():
    repository, history = history_of(many(3))
    first, second, _ = repository.trees
    user = loaded(history, first)
    history.load(second)
    del repository.trees[first], repository.trees[second]
    history.refresh()
    assert +repository.open_now == {("listing", first): 1}
    assert history.acquire(first) is None
    assert history.top(first) is None
    assert user.child(0, b"f") is not None
    history.release(user)
    assert +repository.open_now == {}


def test_close_closes_all():
    repository, history = history_of(many(3))
    for session_time in repository.trees:
        history.load(session_time)
    history.close()
    assert +repository.open_now == {}


def test_a_listing_that_fails_half_way_is_closed(monkeypatch):
    repository, history = history_of({FIRST: Dir()})
    monkeypatch.setattr(View, "attributes", lambda _self, _row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history.load(FIRST)
    assert +repository.open_now == {}


def test_many_threads_share_few_listings():
    repository, history = history_of(many(6), max_listings=2)
    errors = []

    def use(turn):
        try:
            for number in range(200):
                session_time = FIRST + 60 * ((number * turn) % 6)
                while (view := history.acquire(session_time)) is None:
                    history.load(session_time)
                assert view.time == session_time
                assert view.child(0, b"f") is not None
                history.release(view)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use, args=(turn,)) for turn in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(repository.open_now.values()) <= 2
    history.close()
    assert +repository.open_now == {}
