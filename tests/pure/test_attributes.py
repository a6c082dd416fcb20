"""Extended attributes and access control lists (docs/format.md 4.6, 4.7)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.entry import sort_key
from histfs.store.format.attributes import (
    MAX_ACL_ENTRIES,
    MAX_RECORD_BYTES,
    MAX_VALUE_BYTES,
    AccessControlList,
    AclEntry,
    ExtendedAttributes,
    format_access_control_list,
    format_extended_attributes,
    parse_access_control_list,
    parse_extended_attributes,
    quote_octal,
    read_access_control_lists,
    read_extended_attributes,
    unquote_octal,
)
from tests.strategies import access_control_lists, chunkings, extended_attributes, tricky_bytes

QUOTED = [
    (b"plain-name.txt", b"plain-name.txt"),
    (b"a b", b"a\\040b"),
    (b"a=b", b"a\\075b"),
    (b"new\nline", b"new\\012line"),
    (b"back\\slash", b"back\\134slash"),
    ("é".encode(), b"\\303\\251"),
    (b"\xff#\x7f", b"\\377#\\177"),
]

ATTRIBUTES = [
    (ExtendedAttributes(b"", {b"user.a": b"1"}), b"# file: .\nuser.a=0sMQ==\n"),
    (
        ExtendedAttributes(b"d/a b", {b"user.empty": b"", b"user.bin": b"\0\xff", b"security.capability": b"abc"}),
        b"# file: d/a\\040b\nuser.empty\nuser.bin=0sAP8=\nsecurity.capability=0sYWJj\n",
    ),
    (
        ExtendedAttributes(b"x", {"user.x y=é".encode(): b"v"}),
        b"# file: x\nuser.x\\040y\\075\\303\\251=0sdg==\n",
    ),
    (ExtendedAttributes(b"x", {b"user.a\\040 b": b""}), b"# file: x\nuser.a\\040 b\n"),  # raw without a value
    (ExtendedAttributes(b"x", {b"user.a=0s": b"", b"user.\n": b""}), b"# file: x\nuser.a\\0750s=0s\nuser.\\012=0s\n"),
    (ExtendedAttributes(b"nothing", {}), b"# file: nothing\n"),
]

BASE = (AclEntry(b"user", None, 6), AclEntry(b"group", None, 4), AclEntry(b"other", None, 4))
LISTS = [
    (
        AccessControlList(
            b"f",
            (
                AclEntry(b"user", None, 6),
                AclEntry(b"user", b"daemon", 4),
                AclEntry(b"user", 4711, 7),
                AclEntry(b"group", None, 0),
                AclEntry(b"group", b"DOMAIN\\all users", 1),
                AclEntry(b"mask", None, 5),
                AclEntry(b"other", None, 2),
            ),
        ),
        b"# file: f\nuser::rw-\nuser:daemon:r--\nuser:4711:rwx\ngroup::---\ngroup:DOMAIN\\all users:--x\n"
        b"mask::r-x\nother::-w-\n",
    ),
    (
        AccessControlList(b"", (*BASE, *(entry._replace(is_default=True) for entry in BASE))),
        b"# file: .\nuser::rw-\ngroup::r--\nother::r--\ndefault:user::rw-\ndefault:group::r--\ndefault:other::r--\n",
    ),
    (
        AccessControlList(b"d", tuple(entry._replace(is_default=True) for entry in BASE)),
        b"# file: d\ndefault:user::rw-\ndefault:group::r--\ndefault:other::r--\n",
    ),
]
ACCESS = b"# file: f\nuser::rw-\nuser:daemon:r--\ngroup::r--\nmask::r--\nother::r--\n"


@pytest.mark.parametrize(("text", "quoted"), QUOTED)
def test_octal_both_ways(text, quoted):
    assert quote_octal(text) == quoted
    assert unquote_octal(quoted) == text


@given(st.binary())
def test_round_trip_of_octal(text):
    quoted = quote_octal(text)
    assert quoted.isascii()
    assert not set(quoted) & set(b" \n=")
    assert unquote_octal(quoted) == text


def test_a_backslash_without_a_byte_stands_for_itself():
    assert unquote_octal(b"\\777\\4\\\\040\\") == b"\\777\\4\\ \\"


@pytest.mark.parametrize(("attributes", "record"), ATTRIBUTES)
def test_extended_attributes_both_ways(attributes, record):
    assert format_extended_attributes(attributes) == record
    assert parse_extended_attributes(record) == attributes


@pytest.mark.parametrize(("acl", "record"), LISTS)
def test_access_control_lists_both_ways(acl, record):
    assert format_access_control_list(acl) == record
    assert parse_access_control_list(record) == acl


@given(extended_attributes)
def test_round_trip_of_extended_attributes(attributes):
    assert parse_extended_attributes(format_extended_attributes(attributes)) == attributes


@given(access_control_lists)
def test_round_trip_of_access_control_lists(acl):
    assert parse_access_control_list(format_access_control_list(acl)) == acl


def parsed_or_error(parse, record):
    """Raises anything but FormatError."""
    try:
        return parse(record)
    except FormatError as error:
        return error


@given(st.one_of(st.binary(), tricky_bytes.map(b"# file: a\n%b\n".__mod__), tricky_bytes.map(b"# file: %b\n".__mod__)))
def test_any_bytes_parse_or_are_a_format_error(record):
    found = parsed_or_error(parse_extended_attributes, record)
    if not isinstance(found, FormatError):
        assert parse_extended_attributes(format_extended_attributes(found)) == found
    found = parsed_or_error(parse_access_control_list, record)
    if not isinstance(found, FormatError):
        assert parse_access_control_list(format_access_control_list(found)) == found


@given(st.one_of(access_control_lists.map(format_access_control_list)), st.data())
def test_a_damaged_list_parses_or_is_a_format_error(record, data):
    damaged = bytearray(record)
    for place in data.draw(st.lists(st.integers(0, len(record) - 1), min_size=1, max_size=3)):
        damaged[place] = data.draw(st.sampled_from(b"\0\n /.\\-:#=0rwx\xff"))
    found = parsed_or_error(parse_access_control_list, bytes(damaged))
    if isinstance(found, FormatError):
        assert str(found).isprintable()
    else:
        assert parse_access_control_list(format_access_control_list(found)) == found


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (b"", "cut off or is none"),
        (b"# file: f\nuser.a=0sMQ==", "cut off"),
        (b"file: f\n", "none"),
        (b"# file: \n", "leaves the tree"),
        (b"# file: ../f\n", "leaves the tree"),
        (b"# file: a\\057..\\057b\n", "leaves the tree"),
        (b"# file: a\\000b\n", "leaves the tree"),
        (b"# file: f\nuser.a=MQ==\n", "no value in base64"),
        (b'# file: f\nuser.a="text"\n', "no value in base64"),
        (b"# file: f\nuser.a=0xff\n", "no value in base64"),
        (b"# file: f\nuser.a=0sM\n", "bad value"),
        (b"# file: f\nuser.a=0sMQ==MQ==\n", "bad value"),
        (b"# file: f\nuser.a=0sM!Q==\n", "bad value"),
        (b"# file: f\n=0sMQ==\n", "bad name"),
        (b"# file: f\nuser.\\000=0sMQ==\n", "bad name"),
        (b"# file: f\nuser." + b"x" * 251 + b"\n", "bad name"),
        (b"# file: f\nuser.a=0sMQ==\nuser.a\n", "user.a is there twice"),
        (b"# file: f\nuser.a=0s" + b"A" * (1 << 17) + b"\n", "too long"),
        (b"# file: f\nuser.a=0s" + b"AAAA" * (MAX_VALUE_BYTES // 3 + 1) + b"\n", "too large"),
        (b"# file: f\n" + b"user.a\n" * (MAX_RECORD_BYTES // 6), "more than"),
    ],
)
def test_extended_attributes_that_are_damaged(record, complaint):
    with pytest.raises(FormatError, match=complaint):
        parse_extended_attributes(record)


def test_the_largest_attribute_passes():
    attributes = ExtendedAttributes(b"f", {b"user." + b"\xff" * 250: b"\xff" * MAX_VALUE_BYTES})
    assert parse_extended_attributes(format_extended_attributes(attributes)) == attributes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"user:daemon:r--\n", b"user:daemon:r--\t#effective:---\n"),
        (b"user:daemon:r--\n", b"user:daemon:r--   # a:rwx\n"),
        (b"other::r--\n", b"other::r--\n\n"),
        (b"user::rw-\n", b"# owner: root\n\nuser::rw-\n"),
    ],
)
def test_what_means_nothing_in_an_access_control_list(old, new):
    assert parse_access_control_list(ACCESS.replace(old, new)) == parse_access_control_list(ACCESS)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"user:daemon:r--\n", b"user:daemon:r-\n", "not a line"),
        (b"user:daemon:r--\n", b"user:daemon:rx-\n", "not a line"),
        (b"user:daemon:r--\n", b"user:daemon\n", "not a line"),
        (b"user:daemon:r--\n", b"owner:daemon:r--\n", "not a line"),
        (b"user:daemon:r--\n", b"user:4294967296:r--\n", "too large"),
        (b"user:daemon:r--\n", b"user:" + b"9" * 5000 + b":r--\n", "too large"),
        (b"user:daemon:r--\n", b"user:daemon:r--\nuser:daemon:rwx\n", "not complete"),
        (b"user:daemon:r--\n", b"user:007:r--\nuser:7:rwx\n", "not complete"),
        (b"user::rw-\n", b"", "not complete"),
        (b"group::r--\n", b"", "not complete"),
        (b"other::r--\n", b"", "not complete"),
        (b"mask::r--\n", b"", "not complete"),
        (b"mask::r--\n", b"mask:x:r--\n", "not complete"),
        (b"other::r--\n", b"other:x:r--\n", "not complete"),
        (b"other::r--\n", b"other::r--\ndefault:user::rwx\n", "not complete"),
        (b"# file: f\n", b"# file: /f\n", "leaves the tree"),
        (b"other::r--\n", b"other::r--\n" + b"user:1:r--\n" * MAX_ACL_ENTRIES, "too many"),
    ],
)
def test_access_control_lists_that_are_damaged(old, new, complaint):
    assert old in ACCESS
    with pytest.raises(FormatError, match=complaint):
        parse_access_control_list(ACCESS.replace(old, new))


# Files


@given(st.lists(extended_attributes, unique_by=lambda each: each.path, max_size=6), st.data())
def test_files_of_attributes_in_chunks_of_any_size(listed, data):
    listed.sort(key=lambda each: sort_key(each.path))
    chunks = data.draw(chunkings(b"".join(map(format_extended_attributes, listed))))
    assert list(read_extended_attributes(chunks, pytest.fail)) == listed


@given(st.lists(access_control_lists, unique_by=lambda each: each.path, max_size=6), st.data())
def test_files_of_lists_in_chunks_of_any_size(listed, data):
    listed.sort(key=lambda each: sort_key(each.path))
    chunks = data.draw(chunkings(b"".join(map(format_access_control_list, listed))))
    assert list(read_access_control_lists(chunks, pytest.fail)) == listed


def test_damage_costs_one_record():
    content = b"".join(b"# file: %b\nuser.a=0sMQ==\n" % path for path in (b"b", b"a", b"../c", b"d", b"d", b"e"))
    errors = []
    found = [each.path for each in read_extended_attributes([content + b"# file: f\nuser.a=0s"], errors.append)]
    assert found == [b"b", b"d", b"e"]
    assert [error.path for error in errors] == [b"a", b"../c", b"d", None]


def test_a_damaged_list_tells_its_path():
    errors = []
    content = [b"# file: f\nuser::rw-\n", b"# file: g\n", b"user::rw-\ngroup::rw-\nother::---\n"]
    assert [each.path for each in read_access_control_lists(content, errors.append)] == [b"g"]
    assert [error.path for error in errors] == [b"f"]
