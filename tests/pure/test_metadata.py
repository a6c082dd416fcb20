"""Metadata records (docs/format.md 4): bytes to entries and back, and files in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from histfs.store.format import metadata
from histfs.store.format.metadata import (
    MAX_RECORD_BYTES,
    format_record,
    parse_record,
    quote_path,
    read_entries,
    split_records,
    unquote_path,
    with_lost,
)
from tests.strategies import chunkings, entries, listings, tricky_bytes

SHA1 = b"c654a5435f170cfad37e136fee9672ecc40afd4a"
ROOT_OWNED = b"  Uid 0\n  Uname root\n  Gid 0\n  Gname root\n"
OWNER = {"uname": b"root", "gname": b"root"}

RECORDS = [
    (
        Entry(b"", Kind.DIRECTORY, 0o755, mtime_s=1700258200, **OWNER),
        b"File .\n  Type dir\n  ModTime 1700258200\n" + ROOT_OWNED + b"  Permissions 493\n",
    ),
    (
        Entry(b"null", Kind.CHARACTER_DEVICE, 0o644, device_number=(1, 3), **OWNER),
        b"File null\n  Type dev\n  DeviceNum c 1 3\n" + ROOT_OWNED + b"  Permissions 420\n",
    ),
    (
        Entry(b"d/sda", Kind.BLOCK_DEVICE, 0o660, device_number=(8, 0), **OWNER),
        b"File d/sda\n  Type dev\n  DeviceNum b 8 0\n" + ROOT_OWNED + b"  Permissions 432\n",
    ),
    (
        Entry(b"sym", Kind.SYMLINK, 0o777, target=b"a\nb\\c", **OWNER),
        b"File sym\n  Type sym\n  SymData a\\nb\\\\c\n" + ROOT_OWNED + b"  Permissions 511\n",
    ),
    (
        Entry(
            b"keep-link",
            Kind.REGULAR,
            0o600,
            1234,
            4321,
            mtime_s=1699999000,
            size_bytes=10,
            sha1=SHA1,
            link_group=LinkGroup(2, 2351109, 65024),
        ),
        b"File keep-link\n  Type reg\n  Size 10\n  NumHardLinks 2\n  Inode 2351109\n  DeviceLoc 65024\n  SHA1Digest "
        + SHA1
        + b"\n  ModTime 1699999000\n  Uid 1234\n  Uname :\n  Gid 4321\n  Gname :\n  Permissions 384\n",
    ),
    (
        Entry(b"pipe", Kind.FIFO, 0o644, mtime_s=-1, **OWNER),
        b"File pipe\n  Type fifo\n  ModTime -1\n" + ROOT_OWNED + b"  Permissions 420\n",
    ),
    (
        Entry(b"socket", Kind.SOCKET, 0o755, mtime_s=5, **OWNER),
        b"File socket\n  Type sock\n  ModTime 5\n" + ROOT_OWNED + b"  Permissions 493\n",
    ),
    (Entry(b"new\nline\\ \xff", Kind.ABSENT), b"File new\\nline\\\\ \xff\n  Type None\n"),
    (
        Entry(b"long", Kind.REGULAR, 0o4755, mtime_s=5, alternate_mirror=7, **OWNER),
        b"File long\n  Type reg\n  Size 0\n  ModTime 5\n"
        + ROOT_OWNED
        + b"  Permissions 2541\n  AlternateMirrorName 7\n",
    ),
    (
        Entry(
            b"mac",
            Kind.REGULAR,
            mtime_s=5,
            size_bytes=1,
            alternate_increment=12,
            resource_fork=b"None",
            carbon_file=b"creator:00|type:00|location:0,0|flags:0|createDate:0",
            **OWNER,
        ),
        b"File mac\n  Type reg\n  Size 1\n  ResourceFork None\n"
        b"  CarbonFile creator:00|type:00|location:0,0|flags:0|createDate:0\n"
        b"  ModTime 5\n" + ROOT_OWNED + b"  Permissions 0\n  AlternateIncrementName 12\n",
    ),
]
REGULAR = (
    b"File f\n  Type reg\n  Size 10\n  SHA1Digest "
    + SHA1
    + b"\n  ModTime 1699999000\n  Uid 1\n  Uname a\n  Gid 2\n  Gname b\n  Permissions 384\n"
)


@pytest.mark.parametrize(("entry", "record"), RECORDS)
def test_record_both_ways(entry, record):
    assert format_record(entry) == record
    assert parse_record(record) == entry


@given(entries())
def test_round_trip_of_entries(entry):
    assert parse_record(format_record(entry)) == entry


def parsed_or_error(record):
    """Raises anything but FormatError."""
    try:
        return parse_record(record)
    except FormatError as error:
        return error


@given(st.one_of(st.binary(), tricky_bytes, tricky_bytes.map(b"File a\n  Type dir\n%b".__mod__)))
def test_any_bytes_parse_or_are_a_format_error(record):
    found = parsed_or_error(record)
    if isinstance(found, FormatError):
        assert str(found).isprintable()
    else:
        assert parse_record(format_record(found)) == found


@given(entries(), st.data())
def test_a_damaged_record_parses_or_is_a_format_error(entry, data):
    record = bytearray(format_record(entry))
    for place in data.draw(st.lists(st.integers(0, len(record) - 1), max_size=3)):
        record[place] = data.draw(st.sampled_from(b"\0\n /.\\-:0a9\xff"))
    found = parsed_or_error(bytes(record))
    if isinstance(found, FormatError):
        assert str(found).isprintable()
    else:
        assert parse_record(format_record(found)) == found
        assert not found.path or not {b"", b".", b".."} & set(found.path.split(b"/"))
        assert b"\0" not in found.path


@given(entries(), st.randoms(use_true_random=False))
def test_the_order_of_fields_and_unknown_fields_mean_nothing(entry, random):
    head, *fields = format_record(entry).split(b"\n")[:-1]
    fields += [b"  FutureField value", b"Unindented 1"]
    random.shuffle(fields)
    assert parse_record(b"\n".join([head, *fields]) + b"\n") == entry


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (b"  Uname a\n", b"  Uname :\n", {"uname": None}),
        (b"  Uname a\n", b"  Uname None\n", {"uname": None}),
        (b"  Uname a\n", b"", {"uname": None}),
        (b"  Gname b\n", b"  Gname  b \n", {"gname": b" b "}),
        (b"  Gname b\n", b"  Gname None\n", {"gname": None}),
        (b"  Permissions 384\n", b"", {"mode": 0}),
        (b"  Permissions 384\n", b"  Permissions 4095\n", {"mode": 0o7777}),
        (b"  SHA1Digest " + SHA1 + b"\n", b"", {"sha1": None}),
        (b"  ModTime 1699999000\n", b"  ModTime -9223372036854775808\n", {"mtime_s": -(2**63)}),
        (b"  Uid 1\n", b"  Uid 4294967295\n", {"uid": 2**32 - 1}),
        (b"  SHA", b"  NumHardLinks 2\n  SHA", {}),
        (b"  SHA", b"  NumHardLinks 2\n  Inode 5\n  SHA", {}),
        (b"  SHA", b"  NumHardLinks 2\n  DeviceLoc 5\n  SHA", {}),
        (b"  SHA", b"  Inode 5\n  DeviceLoc 5\n  SHA", {}),
        (b"  SHA", b"  NumHardLinks 1\n  Inode 5\n  DeviceLoc 5\n  SHA", {}),
        (
            b"  SHA",
            b"  NumHardLinks 3\n  Inode 18446744073709551615\n  DeviceLoc 0\n  SHA",
            {"link_group": LinkGroup(3, 2**64 - 1, 0)},
        ),
        (b"File f\n", b"File  f \r\n", {"path": b" f \r"}),
        (b"File f\n", b"File a\\tb\\\\n\\n\\\n", {"path": b"a\\tb\\n\n\\"}),
        (b"File f\n", b"File ...\n", {"path": b"..."}),
        (b"File f\n", b"File .f/..g\n", {"path": b".f/..g"}),
    ],
)
def test_what_readers_accept(old, new, change):
    assert old in REGULAR
    assert parse_record(REGULAR.replace(old, new)) == parse_record(REGULAR)._replace(**change)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"  Type reg\n", b"", "no field Type"),
        (b"  Type reg\n", b"  Type xyz\n", "unknown type: xyz"),
        (b"  Type reg\n", b"  Type r\xe9g\n", "Type is not valid"),
        (b"  Type reg\n", b"  Type dev\n", "no field DeviceNum"),
        (b"  Type reg\n", b"  Type sym\n", "no field SymData"),
        (b"  Type reg\n", b"  Type dev\n  DeviceNum x 1 3\n", "DeviceNum is not valid"),
        (b"  Type reg\n", b"  Type dev\n  DeviceNum c 1 4294967296\n", "too large"),
        (b"  Size 10\n", b"", "no field Size"),
        (b"  Size 10\n", b"  Size -1\n", "Size is not valid"),
        (b"  Size 10\n", b"  Size 1_0\n", "Size is not valid"),
        (b"  Size 10\n", b"  Size 9223372036854775808\n", "too large"),
        (b"  Size 10\n", b"  Size " + b"9" * 10000 + b"\n", "Size is not valid"),
        (b"  Size 10\n", b"  Size 10\n  Size 10\n", "twice"),
        (b"  Size 10\n", b"  Size 10\n\n", "not a field"),
        (b"  Size 10\n", b"  Size\n", "not a field"),
        (b"  Size 10\n", b"  Size \n", "not a field"),
        (b"  Uid 1\n", b"", "no field Uid"),
        (b"  Gid 2\n", b"", "no field Gid"),
        (b"  Uid 1\n", b"  Uid 4294967296\n", "too large"),
        (b"  ModTime 1699999000\n", b"", "no field ModTime"),
        (b"  ModTime 1699999000\n", b"  ModTime 1.5\n", "ModTime is not valid"),
        (b"  ModTime 1699999000\n", b"  ModTime 9223372036854775808\n", "too large"),
        (b"  ModTime 1699999000\n", b"  ModTime -9223372036854775809\n", "too large"),
        (b"  Permissions 384\n", b"  Permissions abc\n", "Permissions is not valid"),
        (b"  Permissions 384\n", b"  Permissions 4096\n", "too large"),
        (b"  Permissions 384\n", b"  Permissions 38", "cut off"),
        (SHA1, SHA1[:-1], "SHA1Digest is not valid"),
        (SHA1, SHA1.upper(), "SHA1Digest is not valid"),
        (b"  SHA", b"  NumHardLinks 2\n  Inode 18446744073709551616\n  DeviceLoc 1\n  SHA", "too large"),
        (b"  SHA", b"  AlternateMirrorName x\n  SHA", "AlternateMirrorName is not valid"),
        (b"  Uname a\n", b"  Uname a\0\n", "NUL"),
        (b"File f\n", b"", "none"),
        (b"File f\n", b"  File f\n", "none"),
        (b"File f\n", b"File f\nFile g\n", "twice"),
        (b"File f\n", b"File \n", "not a field"),
        (b"File f\n", b"File f\0\n", "leaves the tree"),
        (b"  Size 10\n", b"  Size 10\n" + b"  Size 10\n" * 100, "more than 100 lines"),
    ],
)
def test_what_is_a_format_error(old, new, complaint):
    assert old in REGULAR
    with pytest.raises(FormatError, match=complaint):
        parse_record(REGULAR.replace(old, new))


@pytest.mark.parametrize(
    "path",
    [b"../evil", b"d/../../evil", b"d/..", b"..", b"/tmp/x", b"/", b"a//b", b"a/", b"./a", b"a/./b", b"a/.", b"a\0b"],
)
def test_paths_that_lead_out_of_the_tree(path):
    record = REGULAR.replace(b"File f\n", b"File " + path + b"\n")
    with pytest.raises(FormatError) as caught:
        parse_record(record)
    assert caught.value.path == path
    assert path.decode().replace("\0", "\\x00") in str(caught.value)


def test_a_message_has_no_control_characters_and_is_short():
    record = REGULAR.replace(b"File f\n", b"File ../\x1b[2J\r\xff" + b"x" * 100_000 + b"\n")
    with pytest.raises(FormatError) as caught:
        parse_record(record)
    assert "../\\x1b[2J\\r\\xff" in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_fields_of_other_kinds_are_ignored():
    record = b"File f\n  Type dir\n  Size 1\n  SHA1Digest " + SHA1 + b"\n  SymData x\n  DeviceNum c 1 2\n"
    record += b"  NumHardLinks 2\n  Inode 1\n  DeviceLoc 1\n  ModTime 7\n" + ROOT_OWNED
    assert parse_record(record) == Entry(b"f", Kind.DIRECTORY, mtime_s=7, **OWNER)


@given(st.binary())
def test_paths_unquote_what_was_quoted(path):
    quoted = quote_path(path)
    assert b"\n" not in quoted
    if path != b".":  # no record has this path
        assert unquote_path(quoted) == path


# Files


def listing_bytes(listing):
    return b"".join(map(format_record, listing))


@given(st.data())
def test_files_in_chunks_of_any_size(data):
    listing = data.draw(listings())
    chunks = data.draw(chunkings(listing_bytes(listing)))
    assert list(split_records(chunks)) == [format_record(entry) for entry in listing]
    assert list(read_entries(chunks, pytest.fail)) == listing


@given(st.data())
def test_any_chunks_of_any_bytes(data):
    content = data.draw(tricky_bytes.flatmap(lambda some: st.just(some * 3)))
    chunks = data.draw(chunkings(content))
    assert b"".join(split_records(chunks)) == content
    assert list(split_records(chunks)) == list(split_records([content]))
    errors = []
    found = list(read_entries(chunks, errors.append))
    assert len(found) + len(errors) == len(list(split_records([content])))


def test_a_file_whole_byte_by_byte_and_with_a_tail():
    listing = sorted((entry for entry, _record in RECORDS), key=lambda entry: sort_key(entry.path))
    content = listing_bytes(listing)
    assert list(read_entries([content], pytest.fail)) == listing
    assert list(read_entries((bytes([value]) for value in content), pytest.fail)) == listing
    errors = []
    assert list(read_entries([content, b"File zz\n  Type reg\n  Si"], errors.append)) == listing
    assert [str(error) for error in errors] == ["a record is cut off or is none: File zz\\n  Type reg\\n  Si"]


def test_nothing_in_nothing_out():
    assert list(split_records([])) == []
    assert list(read_entries([b"", b""], pytest.fail)) == []


def test_damage_costs_one_record():
    good = [Entry(name, Kind.ABSENT) for name in (b"a", b"c", b"e")]
    damaged = b"File b\n  Type reg\n  Size x\n"
    errors = []
    content = b"junk\n" + format_record(good[0]) + damaged + format_record(good[1]) + b"File ../d\n  Type None\n"
    assert list(read_entries([content, format_record(good[2])], errors.append)) == good
    assert [error.path for error in errors] == [None, b"b", b"../d"]


def test_records_out_of_order_or_twice_are_damage():
    errors = []
    order = [b"a", b"a/z", b"a.txt", b"a/b", b"a.txt", b"b"]
    content = b"".join(format_record(Entry(path, Kind.ABSENT)) for path in order)
    assert [entry.path for entry in read_entries([content], errors.append)] == [b"a", b"a/z", b"a.txt", b"b"]
    assert [(error.path, error.problem) for error in errors] == [
        (b"a/b", "the record is out of order"),
        (b"a.txt", "the record is there twice"),
    ]


def test_what_was_complete_comes_out_before_the_chunks_fail():
    def chunks():
        yield b"File a\n  Type None\nFile b\n  Type None\nFile c\n  Ty"
        raise OSError("truncated")

    found = read_entries(chunks(), pytest.fail)
    assert [next(found).path, next(found).path] == [b"a", b"b"]
    with pytest.raises(OSError, match="truncated"):
        next(found)


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 1 << 20, 1 << 24])
def test_a_record_that_is_too_long_is_damage_and_memory_is_bounded(chunk_bytes):
    content = b"File a\n  Type None\nFile b\n  SymData " + b"x" * (4 << 20) + b"\nFile c\n  Type None\n"
    chunks = [content[place : place + chunk_bytes] for place in range(0, len(content), chunk_bytes)]
    longest = max(map(len, split_records(chunks)))
    assert longest <= max(MAX_RECORD_BYTES + 2 * chunk_bytes, len(content) if len(chunks) == 1 else 0)
    errors = []
    assert [entry.path for entry in read_entries(chunks, errors.append)] == [b"a", b"c"]
    assert ["longer than" in str(error) for error in errors] == [True]


def test_the_longest_record():
    spare = MAX_RECORD_BYTES - len(REGULAR)
    longest = REGULAR.replace(b"File f", b"File f" + b"f" * spare)
    assert parse_record(longest).path == b"f" * (spare + 1)
    with pytest.raises(FormatError, match="longer than 1048576 bytes"):
        parse_record(longest.replace(b"File f", b"File ff"))


def test_the_quick_way_and_the_other_way_agree():
    for _entry, record in RECORDS:
        match = metadata._IN_ORDER.fullmatch(record)
        assert match
        assert match.groups() == metadata._values_in_any_order(record)


def lost(content: bytes) -> tuple[list[tuple[bytes, bool]], list[bytes | None]]:
    """What a difference says of which paths, and whether that is something; the damaged records."""
    errors: list[FormatError] = []
    told: list[bytes | None] = []

    def damaged(error: FormatError) -> None:
        errors.append(error)
        told.append(error.path)

    entries = read_entries([content], damaged)
    found = with_lost(entries, errors, lambda entry: sort_key(entry.path), lambda path: Entry(path, Kind.ABSENT))
    return [(entry.path, entry.kind is not Kind.ABSENT) for entry in found], told


def test_a_damaged_record_of_a_difference_says_that_nothing_is_known() -> None:
    """Its path would else be what it is at the next session."""
    good = [format_record(Entry(path, Kind.DIRECTORY)) for path in (b"a", b"b", b"c")]
    bad = [b"File %b\n  Type reg\n  Size x\n" % path for path in (b"a", b"b", b"bb", b"c", b"d")]
    assert lost(b"".join(good)) == ([(b"a", True), (b"b", True), (b"c", True)], [])
    assert lost(bad[0] + good[1] + bad[2] + good[2] + bad[4]) == (
        [(b"a", False), (b"b", True), (b"bb", False), (b"c", True), (b"d", False)],
        [b"a", b"bb", b"d"],
    )
    assert lost(b"".join(bad)) == (
        [(path, False) for path in (b"a", b"b", b"bb", b"c", b"d")],
        [b"a", b"b", b"bb", b"c", b"d"],
    )
    assert lost(good[0] + good[0]) == ([(b"a", True)], [b"a"])


@pytest.mark.parametrize("text", [b"rubbish", b"File ../x\n  Type dir\n", b"  Type dir\n", b"File .\n  Type reg\n"])
def test_a_damaged_record_that_may_be_anybodys(text: bytes) -> None:
    first = format_record(Entry(b"a", Kind.DIRECTORY))
    for content in (text, first + text, text + first) if text.startswith(b"File") else (text,):
        with pytest.raises(FormatError):
            lost(content)


@pytest.mark.parametrize("path", [b"b", b"c", b"c/d"])
def test_a_damaged_record_that_what_follows_should_come_before(path: bytes) -> None:
    """Lists that are merged must be in order, damaged records included."""
    first, second = (format_record(Entry(name, Kind.DIRECTORY)) for name in (b"a", b"b"))
    with pytest.raises(FormatError, match="out of order"):
        lost(first + b"File %b\n  Type reg\n  Size x\n" % path + second)


def test_a_difference_that_is_out_of_order() -> None:
    with pytest.raises(FormatError):
        lost(b"".join(format_record(Entry(path, Kind.DIRECTORY)) for path in (b"b", b"a")))
