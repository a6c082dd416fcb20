"""The worked example of docs/format.md 12: four sessions, their names and their lists."""

import pytest

from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from histfs.store.format.listing import difference, lists_needed, merge, previous_stays_snapshot
from histfs.store.format.metadata import format_record, read_entries
from histfs.store.format.names import format_increment_name, parse_increment_name
from histfs.store.format.times import format_time, parse_time

T1, T2, T3, T4 = SESSIONS = [1700000000 + 86400 * day for day in range(4)]
OWNER = {"uname": b"root", "gname": b"root"}
EMPTY_SHA1 = b"da39a3ee5e6b4b0d3255bfef95601890afd80709"


def regular(path, content, session, mode=0o644, links=None, **changes):
    """`content` stands for itself: its size and a number in place of a digest; None: no digest."""
    sha1 = EMPTY_SHA1 if content == b"" else b"%040x" % int.from_bytes(content[:16], "big")
    group = LinkGroup(2, links, 65024) if links else None
    entry = Entry(path, Kind.REGULAR, mode, mtime_s=session - 1000, size_bytes=len(content), sha1=sha1, **OWNER)
    return entry._replace(link_group=group, **changes)


def other(path, kind, session, mode=0o755, **fields):
    return Entry(path, kind, mode, mtime_s=session - 1000 if kind.has_mtime else 0, **fields, **OWNER)


def state(*entries):
    return {entry.path: entry for entry in entries}


def listing(entries):
    return [entries[path] for path in sorted(entries, key=sort_key)]


def without(entries, *paths):
    return {path: entry for path, entry in entries.items() if path not in paths}


KEEP = {"uid": 1234, "gid": 4321, "uname": None, "gname": None}
FIRST = state(
    other(b"", Kind.DIRECTORY, T1),
    regular(b"keep.txt", b"keep this\n", T1, **KEEP),
    regular(b"mod.txt", b"x" * 8893, T1),
    regular(b"del.txt", b"to be deleted\n", T1),
    regular(b"type", b"I will become a directory\n", T1),
    other(b"d", Kind.DIRECTORY, T1),
    regular(b"d/f1", b"f1\n", T1),
    other(b"d/sub", Kind.DIRECTORY, T1),
    regular(b"d/sub/f2", b"f2\n", T1),
    regular(b"hl1", b"hard\n", T1, links=77),
    regular(b"hl2", b"hard\n", T1, links=77, sha1=None),
    other(b"sym", Kind.SYMLINK, T1, 0o777, target=b"mod.txt"),
    regular(b"empty", b"", T1),
    regular(b"b\xff\xfe.bin", b"latin1 name\n", T1),
    regular(b"new\nline", b"newline name\n", T1),
    regular(b"back\\slash", b"backslash name\n", T1),
    regular(b"pic.jpg", b"JPEG?\n", T1),
    other(b"fifo", Kind.FIFO, T1, 0o644),
    other(b"null", Kind.CHARACTER_DEVICE, T1, 0o644, device_number=(1, 3)),
    other(b"sock", Kind.SOCKET, T1),
)
SECOND = without(FIRST, b"del.txt") | state(
    other(b"", Kind.DIRECTORY, T2),
    regular(b"keep.txt", b"keep this\n", T1, 0o600, **KEEP),
    regular(b"mod.txt", b"y" * 8901, T2),
    regular(b"new.txt", b"I am new in two.\n", T2),
    regular(b"pic.jpg", b"JPEG? JPEG!\n", T2),
    regular(b"d/f1", b"f1 v2\n", T2),
    regular(b"hl1", b"hard\nmore\n", T2, links=77),
    regular(b"hl2", b"hard\nmore\n", T2, links=77, sha1=None),
)
THIRD = without(SECOND, b"d", b"d/f1", b"d/sub", b"d/sub/f2") | state(
    other(b"", Kind.DIRECTORY, T3),
    other(b"type", Kind.DIRECTORY, T3),
    regular(b"type/inner", b"inside\n", T3),
    other(b"sym", Kind.SYMLINK, T3, 0o777, target=b"keep.txt"),
    regular(b"hl1", b"hard\nmore\n", T2),
    regular(b"hl2", b"hard\nmore\n", T3),
    regular(b"del.txt", b"deleted and back again\n", T3),
    regular(b"empty", b"no more empty!!\n", T3),
    regular(b"b\xff\xfe.bin", b"latin1 again.!\n", T3),
    regular(b"new\nline", b"newline again\n", T3),
)
FOURTH = without(THIRD, b"type/inner") | state(
    other(b"", Kind.DIRECTORY, T4),
    regular(b"type", b"a file again\n", T4),
    regular(b"fifo", b"no fifo now", T4),
    regular(b"keep-link", b"keep this\n", T1, 0o600, links=99, **KEEP),
    regular(b"keep.txt", b"keep this\n", T1, 0o600, links=99, sha1=None, **KEEP),
)
STATES = dict(zip(SESSIONS, (FIRST, SECOND, THIRD, FOURTH), strict=True))

# The paths of the metadata files: `*` has a digest, `+` links, `-` is absent.
DIFFS = {
    T3: [". dir", "fifo fifo", "keep-link -", "keep.txt reg*", "type dir", "type/inner reg*"],
    T2: [
        ". dir",
        "b\\xff\\xfe.bin reg*",
        "d dir",
        "d/f1 reg*",
        "d/sub dir",
        "d/sub/f2 reg*",
        "del.txt -",
        "empty reg*",
        "hl1 reg*+",
        "hl2 reg+",
        "new\\nline reg*",
        "sym sym",
        "type reg*",
        "type/inner -",
    ],
    T1: [
        ". dir",
        "d/f1 reg*",
        "del.txt reg*",
        "hl1 reg*+",
        "hl2 reg+",
        "keep.txt reg*",
        "mod.txt reg*",
        "new.txt -",
        "pic.jpg reg*",
    ],
}
INCREMENTS = """
    b\xff\xfe.bin T2 diff gz     d T1 dir                  d T2 dir              d/f1 T1 diff gz
    d/f1 T2 snapshot gz          d/sub T2 dir              d/sub/f2 T2 snapshot gz
    del.txt T1 snapshot gz       del.txt T2 missing        empty T2 diff gz      fifo T3 snapshot
    hl1 T1 diff gz               hl2 T1 diff gz            hl1 T2 diff gz        hl2 T2 diff gz
    keep.txt T1 diff gz          keep.txt T3 diff gz       keep-link T3 missing  mod.txt T1 diff gz
    new.txt T1 missing           pic.jpg T1 diff           sym T2 snapshot       type T2 snapshot gz
    type T3 dir                  type/inner T2 missing     type/inner T3 snapshot gz
"""


def described(entry):
    if entry.kind is Kind.ABSENT:
        kind = "-"
    else:
        kind = entry.kind.value + "*" * (entry.sha1 is not None) + "+" * (entry.link_group is not None)
    path = entry.path.decode("latin-1") or "."
    return f"{path.encode('unicode_escape').decode()} {kind}"


def test_times():
    assert [format_time(session) for session in SESSIONS] == [b"2023-11-%dT22:13:20Z" % day for day in (14, 15, 16, 17)]
    assert parse_time(b"2023-11-14T22:13:20Z") == T1


@pytest.mark.parametrize("older", [T1, T2, T3])
def test_the_differences(older):
    newer = older + 86400
    found = difference(listing(STATES[older]), listing(STATES[newer]))
    assert [described(entry) for entry in found] == DIFFS[older]


def test_the_newest_list():
    names = ".,back\\\\slash,b\\xff\\xfe.bin,del.txt,empty,fifo,hl1,hl2,keep-link,keep.txt,mod.txt,new\\nline"
    names += ",new.txt,null,pic.jpg,sock,sym,type"
    found = [described(entry) for entry in listing(FOURTH)]
    assert [entry.partition(" ")[0] for entry in found] == names.split(",")
    assert [entry for entry in found if "keep" in entry] == ["keep-link reg*+", "keep.txt reg+"]


def test_every_list_comes_back_from_the_files():
    """The files as bytes: three diffs and a snapshot."""
    files = {T4: b"".join(map(format_record, listing(FOURTH)))}
    for older in (T3, T2, T1):
        diff = difference(listing(STATES[older]), listing(STATES[older + 86400]))
        files[older] = b"".join(map(format_record, diff))
    types = {session: b"snapshot" if session == T4 else b"diff" for session in files}
    for session, expected in STATES.items():
        lists = [read_entries([files[time]], pytest.fail) for time in lists_needed(session, types)]
        assert list(merge(lists)) == listing(expected)


def test_the_types_of_the_files():
    assert not previous_stays_snapshot([])
    assert not previous_stays_snapshot([b"diff"])
    assert not previous_stays_snapshot([b"diff", b"diff"])


def test_names_of_increments():
    times = {"T1": T1, "T2": T2, "T3": T3}
    for line in filter(None, (part.strip() for row in INCREMENTS.splitlines() for part in row.split("   "))):
        path, time, increment_type, *compressed = line.split(" ")
        base = path.rpartition("/")[2].encode("latin-1")
        name = format_increment_name(base, times[time], increment_type.encode(), compressed=bool(compressed))
        assert name.startswith(base + b".2023-11-1")
        assert parse_increment_name(name) == (base, times[time], increment_type.encode(), bool(compressed))
