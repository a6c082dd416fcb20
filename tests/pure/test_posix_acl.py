"""Access control lists in the kernel's form, and what a mode grants without its list (docs/format.md 4.7)."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.entry import AclEntry
from histfs.store.format.posix_acl import (
    ACCESS,
    DEFAULT,
    access_of_mode,
    completed,
    format_posix_acl,
    mode_without,
    named,
    parse_posix_acl,
    part,
    resolve,
    shown,
)
from tests.strategies import access_control_lists

NO_ID = 0xFFFFFFFF
USERS = {b"daemon": 1, b"bin": 2, b"4711": 3, b"a:b": 4}
GROUPS = {b"daemon": 1, b"tape": 26}
LIST = (
    AclEntry(b"user", None, 6),
    AclEntry(b"user", 1, 4),
    AclEntry(b"user", 4711, 7),
    AclEntry(b"group", None, 0),
    AclEntry(b"group", 26, 1),
    AclEntry(b"mask", None, 5),
    AclEntry(b"other", None, 2),
)
# As the kernel gave it for this list.
PACKED = bytes.fromhex(
    "02000000 01000600ffffffff 0200040001000000 0200070067120000 04000000ffffffff 080001001a000000"
    " 10000500ffffffff 20000200ffffffff"
)


def _some_id(whom):
    return whom if isinstance(whom, int) else len(whom)


IDS = access_control_lists.map(lambda acl: resolve(acl.entries, _some_id, _some_id).acl)


def _of(ids):
    return lambda whom: whom if isinstance(whom, int) else ids.get(whom)


def names_of(ids):
    return {number: name for name, number in ids.items()}.get


def test_the_form_of_the_kernel():
    assert parse_posix_acl(PACKED) == LIST
    assert format_posix_acl(LIST) == PACKED
    assert format_posix_acl(reversed(LIST)) == PACKED  # it refuses any other order


@given(IDS)
def test_a_list_survives(acl):
    for is_default in (False, True):
        wanted = part(acl, is_default=is_default)
        parsed = parse_posix_acl(format_posix_acl(wanted), is_default=is_default)
        assert sorted(map(repr, parsed)) == sorted(map(repr, wanted))
        assert format_posix_acl(parsed) == format_posix_acl(wanted)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: PACKED[:4] + rest))
def test_any_bytes_are_parsed_or_refused(value):
    try:
        acl = parse_posix_acl(value)
    except FormatError:
        return
    assert len(format_posix_acl(acl)) == len(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        b"\1" + PACKED[1:],
        PACKED[:-1],
        PACKED + b"\0",
        struct.pack("<IHHI", 2, 0x40, 4, NO_ID),
        struct.pack("<IHHI", 2, 0x01, 8, NO_ID),
    ],
)
def test_another_form_is_refused(value):
    with pytest.raises(FormatError):
        parse_posix_acl(value)


def test_names_and_ids():
    with_names = named(LIST, names_of(USERS), names_of(GROUPS))
    assert [entry.qualifier for entry in with_names if entry.qualifier] == [b"daemon", 4711, b"tape"]
    assert resolve(with_names, _of(USERS), _of(GROUPS)) == (LIST, ())
    unreadable = (AclEntry(b"user", 3, 4), AclEntry(b"user", 4, 4))
    assert named(unreadable, names_of(USERS), names_of(GROUPS)) == unreadable


def test_nobody_is_meant_by_a_name_that_is_not_known():
    acl = (*LIST[:3], AclEntry(b"user", b"tape", 7), *LIST[3:], AclEntry(b"group", b"bin", 7, is_default=True))
    assert resolve(acl, _of(USERS), _of(GROUPS)) == (LIST, (b"tape", b"bin"))


def test_what_is_recorded_of_a_list():
    default = tuple(entry._replace(is_default=True) for entry in LIST)
    assert completed((), 0o640) == completed(access_of_mode(0o751), 0o640) == ()
    assert completed(LIST, 0o640) == LIST
    assert completed(LIST + default, 0o640) == LIST + default
    assert completed(default, 0o640) == access_of_mode(0o640) + default


def test_what_the_kernel_shows_of_it():
    default = tuple(entry._replace(is_default=True) for entry in LIST)
    assert shown(()) == {}
    assert shown(LIST) == {ACCESS: PACKED}
    assert shown(access_of_mode(0o640) + default) == {DEFAULT: PACKED}
    assert shown(LIST + default) == {ACCESS: PACKED, DEFAULT: PACKED}


def may(wanted, uid, groups, owner, group, mode, acl):
    """What the kernel says (acl(5)): whether somebody has the permissions `wanted`."""
    if uid == owner:
        return wanted & mode >> 6 == wanted
    mask = next((entry.permissions for entry in acl if entry.tag == b"mask"), 7)
    for entry in acl:
        if entry.tag == b"user" and entry.qualifier == uid:
            return wanted & entry.permissions & mask == wanted
    of_groups = [
        entry.permissions & mask
        for entry in acl
        if entry.tag == b"group" and (group if entry.qualifier is None else entry.qualifier) in groups
    ]
    if of_groups:
        return any(wanted & permissions == wanted for permissions in of_groups)
    return wanted & mode == wanted


_BITS = st.integers(0, 7)


@given(
    _BITS, _BITS, _BITS, _BITS, st.dictionaries(st.integers(1, 2), _BITS), st.dictionaries(st.integers(11, 13), _BITS)
)
def test_without_its_list_a_mode_grants_nobody_more(user, group, mask, other, users, groups):
    acl = [AclEntry(b"user", uid, bits) for uid, bits in users.items()]
    acl += [AclEntry(b"group", gid, bits) for gid, bits in groups.items()]
    acl += [AclEntry(b"group", None, group), AclEntry(b"mask", None, mask)]
    mode = 0o4000 | user << 6 | mask << 3 | other
    alone = mode_without(mode, tuple(acl))
    assert alone & 0o7700 == mode & 0o7700
    assert mode_without(mode, ()) == mode
    owning = 10
    for uid in range(4):
        for members in itertools.chain.from_iterable(itertools.combinations(range(10, 14), n) for n in range(5)):
            for wanted in range(8):
                if may(wanted, uid, members, 0, owning, alone, access_of_mode(alone)):
                    assert may(wanted, uid, members, 0, owning, mode, acl)
