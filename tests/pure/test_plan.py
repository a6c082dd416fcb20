"""The decisions: which chain leads to a version, what changed, which increment keeps the old (docs/format.md 6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.store.entry import Entry, Kind, LinkGroup
from histfs.store.plan import Chain, Change, Increment, Links, chain, change, increment_type


def increments(text: str) -> list[Increment]:
    """ "1diff 2snapshot" """
    return [Increment(int(word[0]), word[1:].encode(), word.encode()) for word in text.split()]


@pytest.mark.parametrize(
    ("found", "time", "snapshot", "diffs"),
    [
        ("", 1, None, ""),  # never changed: the mirror itself
        ("1diff", 1, None, "1diff"),
        ("1diff", 2, None, ""),
        ("1diff 2diff 3diff", 1, None, "3diff 2diff 1diff"),
        ("1diff 2diff 3diff", 2, None, "3diff 2diff"),
        ("1diff 3diff", 2, None, "3diff"),  # unchanged in between
        ("1snapshot", 1, "1snapshot", ""),
        ("1snapshot 2missing", 1, "1snapshot", ""),  # deleted, and there again: docs/format.md 12, del.txt
        ("1snapshot 2missing", 3, None, ""),
        ("1diff 2snapshot", 1, "2snapshot", "1diff"),  # 12, d/f1
        ("1diff 2snapshot 3missing 4diff", 1, "2snapshot", "1diff"),
        ("1diff 2snapshot 3missing 4diff", 4, None, "4diff"),
        ("2snapshot 3dir", 1, "2snapshot", ""),  # 12, type at T1
        ("1missing 2diff", 2, None, "2diff"),
        ("0missing 1diff 2diff", 1, None, "2diff 1diff"),
    ],
)
def test_the_chain_of_a_version(found: str, time: int, snapshot: str | None, diffs: str) -> None:
    wanted = None if snapshot is None else increments(snapshot)[0]
    assert chain(increments(found), time) == Chain(wanted, tuple(increments(diffs)))


@pytest.mark.parametrize("found", ["1missing", "2dir", "1diff 2missing", "1diff 2dir 3snapshot"])
def test_a_content_that_nothing_keeps_is_lost(found: str) -> None:
    lost = chain(increments(found), 1)
    assert isinstance(lost, Increment)
    assert lost.type in (b"missing", b"dir")


def test_two_increments_of_one_time_are_one_step() -> None:
    """Both keep the same version (docs/format.md, trap 19). Of two diffs one is applied; a snapshot needs none."""
    plain, packed = Increment(1, b"diff", b"a.diff"), Increment(1, b"diff", b"a.diff.gz")
    newer = Increment(2, b"diff", b"b")
    assert chain([plain, packed, newer], 1) == Chain(None, (newer, plain))
    copy = Increment(1, b"snapshot", b"a.snapshot.gz")
    assert chain([plain, copy, newer], 1) == Chain(copy, ())
    assert chain([Increment(1, b"missing", b"a.missing"), copy], 1) == Chain(copy, ())
    assert chain([plain, Increment(1, b"dir", b"a.dir")], 1) == Chain(None, (plain,))


def test_the_newest_time_is_of_what_is_used_first() -> None:
    assert Chain(None, ()).newest_time is None
    assert Chain(None, tuple(increments("3diff 1diff"))).newest_time == 3
    assert Chain(increments("4snapshot")[0], tuple(increments("3diff 1diff"))).newest_time == 4


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([b"diff", b"snapshot", b"missing", b"dir"])), max_size=10),
    st.integers(0, 9),
)
def test_a_chain_is_made_of_what_is_not_older_and_newest_first(
    found: list[tuple[int, bytes]], session_time: int
) -> None:
    listed = sorted(Increment(time, type_, b"") for time, type_ in dict(found).items())
    result = chain(listed, session_time)
    usable = [increment for increment in listed if increment.time >= session_time]
    if isinstance(result, Increment):
        assert result == next(increment for increment in usable if increment.type != b"diff")
        return
    times = [diff.time for diff in result.diffs]
    assert times == sorted(times, reverse=True)
    assert all(time >= session_time for time in times)
    steps = [*reversed(result.diffs), *([result.snapshot] if result.snapshot else [])]
    assert steps == usable[: len(steps)]
    assert result.snapshot is not None or steps == usable


GROUP = LinkGroup(2, 7, 1)
FILE = Entry(b"p", Kind.REGULAR, 0o644, 1, 2, b"u", b"g", mtime_s=5, size_bytes=3)
DIRECTORY = Entry(b"p", Kind.DIRECTORY, 0o755, 1, 2, b"u", b"g", mtime_s=5)
SYMLINK = Entry(b"p", Kind.SYMLINK, 0o777, 1, 2, b"u", b"g", target=b"t")
FIFO = Entry(b"p", Kind.FIFO, 0o644, 1, 2, mtime_s=5)
SOCKET = Entry(b"p", Kind.SOCKET, 0o644, 1, 2, mtime_s=5)
CHARACTER = Entry(b"p", Kind.CHARACTER_DEVICE, 0o644, device_number=(1, 3))
BLOCK = Entry(b"p", Kind.BLOCK_DEVICE, 0o644, device_number=(1, 3))
KINDS = [FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK]


@pytest.mark.parametrize("entry", KINDS, ids=lambda entry: entry.kind.name)
def test_the_same_is_no_change(entry: Entry) -> None:
    assert change(entry, entry) is Change.NONE
    assert change(entry._replace(sha1=b"known"), entry) is Change.NONE
    assert change(None, entry) is Change.REPLACED


@pytest.mark.parametrize(
    ("links", "changed"),
    [
        (Links(), {"inode", "device", "nlink", "single"}),
        (Links(inodes_count=False), {"nlink", "single"}),
        (Links(are_kept=False), set()),
        (Links(are_kept=False, inodes_count=False), set()),
    ],
)
def test_what_counts_as_a_change_of_links(links: Links, changed: set[str]) -> None:
    old = FILE._replace(link_group=GROUP)
    new: dict[str, LinkGroup | None] = {
        "inode": GROUP._replace(inode=8),
        "device": GROUP._replace(device=2),
        "nlink": GROUP._replace(nlink=3),
        "single": None,
    }
    assert {
        name for name, group in new.items() if change(old, old._replace(link_group=group), links) is not Change.NONE
    } == changed


@pytest.mark.parametrize("old", KINDS, ids=lambda entry: entry.kind.name)
@pytest.mark.parametrize("new", KINDS, ids=lambda entry: entry.kind.name)
def test_another_type_replaces(old: Entry, new: Entry) -> None:
    if old is not new:
        assert change(old, new) is Change.REPLACED


@pytest.mark.parametrize(
    ("old", "fields", "expected"),
    [
        (FILE, {"size_bytes": 4}, Change.CONTENT),
        (FILE, {"mtime_s": 6}, Change.CONTENT),
        (FILE, {"mtime_s": 6, "mode": 0o600}, Change.CONTENT),
        (FILE, {"mode": 0o600}, Change.ATTRIBUTES),
        (FILE, {"uid": 9}, Change.ATTRIBUTES),
        (FILE, {"gid": 9}, Change.ATTRIBUTES),
        (FILE, {"uname": b"x"}, Change.ATTRIBUTES),
        (FILE, {"gname": None}, Change.ATTRIBUTES),
        (FILE, {"link_group": GROUP}, Change.ATTRIBUTES),
        (FILE._replace(link_group=GROUP), {"link_group": None}, Change.ATTRIBUTES),
        (FILE._replace(link_group=GROUP), {"link_group": GROUP._replace(nlink=3)}, Change.ATTRIBUTES),
        (FILE._replace(link_group=GROUP), {"link_group": GROUP._replace(inode=3)}, Change.ATTRIBUTES),
        (DIRECTORY, {"mtime_s": 6}, Change.ATTRIBUTES),
        (DIRECTORY, {"mode": 0o700}, Change.ATTRIBUTES),
        (FIFO, {"mtime_s": 6}, Change.ATTRIBUTES),
        (SYMLINK, {"target": b"other"}, Change.REPLACED),
        (SYMLINK, {"mode": 0o700}, Change.NONE),
        (SYMLINK, {"uid": 9}, Change.ATTRIBUTES),
        (CHARACTER, {"device_number": (1, 5)}, Change.REPLACED),
        (BLOCK, {"mode": 0o600}, Change.ATTRIBUTES),
    ],
)
def test_what_a_difference_means(old: Entry, fields: dict[str, object], expected: Change) -> None:
    assert change(old, old._replace(**fields)) is expected


SPECIAL = [SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK]


def _table() -> list[tuple[Entry | None, Entry | None, bytes]]:
    """docs/format.md 6.2."""
    new_ones: list[Entry | None] = [None, *KINDS]
    rows: list[tuple[Entry | None, Entry | None, bytes]] = [(None, new, b"missing") for new in KINDS]
    rows += [(FILE, new, b"diff" if new is FILE else b"snapshot") for new in new_ones]
    rows += [(DIRECTORY, new, b"dir") for new in new_ones]
    rows += [(old, new, b"snapshot") for old in SPECIAL for new in new_ones]
    return rows


@pytest.mark.parametrize(("old", "new", "expected"), _table())
def test_the_type_of_the_increment(old: Entry | None, new: Entry | None, expected: bytes) -> None:
    assert increment_type(old, new) == expected
