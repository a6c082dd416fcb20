"""What two sets of rights have in common, against the kernel's algorithm for every user there can be."""

import itertools
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.store.entry import AclEntry
from histfs.store.rights import common, mode_and_list, mode_of_owner, rights_of, seen_as

IDS = (1, 2, 3)
SETS_OF_GROUPS = [set(groups) for size in range(len(IDS) + 1) for groups in itertools.combinations(IDS, size)]
permissions = st.integers(0, 7)
modes = st.integers(0, 0o777)


@st.composite
def files(draw):
    """A mode, an owner, a group, and a list that is valid for the kernel, or none."""
    mode, uid, gid = draw(modes), draw(st.sampled_from(IDS)), draw(st.sampled_from(IDS))
    if draw(st.booleans()):
        return mode, uid, gid, ()
    users = draw(st.dictionaries(st.sampled_from(IDS), permissions))
    groups = draw(st.dictionaries(st.sampled_from(IDS), permissions))
    acl = [AclEntry(b"user", None, mode >> 6), AclEntry(b"group", None, draw(permissions))]
    acl += [AclEntry(b"user", user, granted) for user, granted in users.items()]
    acl += [AclEntry(b"group", group, granted) for group, granted in groups.items()]
    acl += [AclEntry(b"mask", None, mode >> 3 & 7), AclEntry(b"other", None, mode & 7)]
    return mode, uid, gid, tuple(acl)


def granted(file, user, groups):
    """What the kernel lets the user do: all permissions in any one of these (acl(5), access check algorithm)."""
    mode, uid, gid, acl = file
    if not acl:
        return [mode >> 6 & 7 if user == uid else mode >> 3 & 7 if gid in groups else mode & 7]
    of_users, of_groups, mask = {}, [], 7
    for tag, qualifier, allowed, _ in acl:
        if tag == b"user":
            of_users[uid if qualifier is None else -1 if qualifier == uid else qualifier] = allowed
        elif tag == b"group" and (gid if qualifier is None else qualifier) in groups:
            of_groups.append(allowed)
        elif tag == b"mask":
            mask = allowed
        elif tag == b"other":
            other = allowed
    if user in of_users:
        return [of_users[user] & (7 if user == uid else mask)]
    return [allowed & mask for allowed in of_groups] or [other]


def is_within(some, others):
    return all(any(one & ~other == 0 for other in others) for one in some)


EVERYBODY = list(itertools.product((*IDS, 4), SETS_OF_GROUPS))


def shown(rights, mode):
    mode, acl = mode_and_list(rights, mode)
    return mode, rights.uid, rights.gid, acl


@given(files())
def test_rights_are_what_the_kernel_grants_at_most(file):
    """Only who is named twice, as owning group and by number, may get less."""
    again = shown(rights_of(*file), file[0])
    is_twice = any(entry.tag == b"group" and entry.qualifier == file[2] for entry in file[3])
    for who in EVERYBODY:
        assert is_within(granted(again, *who), granted(file, *who))
        assert is_twice or is_within(granted(file, *who), granted(again, *who))


@given(files(), files())
def test_nobody_gets_what_one_of_the_two_does_not_grant(stored, newest):
    both = shown(common(rights_of(*stored), rights_of(*newest)), stored[0])
    for who in EVERYBODY:
        assert is_within(granted(both, *who), granted(stored, *who)), (both, who)
        assert is_within(granted(both, *who), granted(newest, *who)), (both, who)


@given(modes, modes)
def test_of_modes_alone_it_is_the_intersection(stored, newest):
    rights = common(rights_of(stored, 1, 1), rights_of(newest, 1, 1))
    assert mode_and_list(rights, stat.S_IFREG | stored) == (stat.S_IFREG | stored & newest, ())


@given(files())
def test_the_same_twice_is_the_same(file):
    rights = rights_of(*file)
    assert common(rights, rights) == rights


@given(modes, modes, st.booleans(), st.booleans())
def test_who_owns_it_no_more_gets_what_all_get_and_no_list_is_made(stored, newest, other_uid, other_gid):
    rights = common(rights_of(stored, 1, 1), rights_of(newest, 2 if other_uid else 1, 2 if other_gid else 1))
    assert rights.is_mode
    assert (rights.uid, rights.gid) == (1, 1)


def test_usual_changes():
    def both(stored, newest):
        return mode_and_list(common(rights_of(*stored), rights_of(*newest)), stored[0])[0]

    assert both((0o644, 1, 1), (0o600, 1, 1)) == 0o600
    assert both((0o600, 1, 1), (0o644, 1, 1)) == 0o600
    assert both((0o644, 1, 1), (0o600, 2, 1)) == 0
    assert both((0o644, 1, 1), (0o644, 2, 2)) == 0o444
    assert both((0o640, 1, 1), (0o640, 1, 2)) == 0o600
    assert both((0o664, 1, 1), (0o640, 1, 1)) == 0o640


FILE, DIRECTORY, LINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO


@pytest.mark.parametrize(
    ("newest", "newest_type", "stored_type", "expected"),
    [
        (0o640, FILE, FILE, 0o640),
        (0o640, FIFO, FILE, 0o640),
        (0o751, DIRECTORY, DIRECTORY, 0o751),
        (0o640, FILE, DIRECTORY, 0o550),
        (0o711, FIFO, DIRECTORY, 0o500),
        (0o751, DIRECTORY, FILE, 0o770),
        (0o744, DIRECTORY, FILE, 0o700),
        (0o777, LINK, FILE, None),
        (0o600, FILE, LINK, None),
    ],
)
def test_what_another_type_says(newest, newest_type, stored_type, expected):
    seen = seen_as(rights_of(newest, 1, 1), newest_type, stored_type)
    assert (None if seen is None else mode_and_list(seen, 0)[0]) == expected


def test_lists_that_name_somebody_twice_or_nobody_count_as_the_least():
    acl = (AclEntry(b"user", 2, 6), AclEntry(b"user", 2, 4), AclEntry(b"user", 1, 0), AclEntry(b"group", 9, 7))
    rights = rights_of(0o650, 1, 1, acl)
    assert rights.users == {2: 4}
    assert rights.groups == {1: 5, 9: 5}
    assert rights.owner == 6


def test_a_list_that_gets_too_long_becomes_a_mode():
    long = tuple(AclEntry(b"user", number, 4) for number in range(10, 1200))
    rights = common(rights_of(0o644, 1, 1, long), rights_of(0o644, 1, 1))
    assert mode_and_list(rights, 0o644) == (0o644, ())


@pytest.mark.parametrize(
    ("mode", "acl", "expected"),
    [
        (FILE | 0o4755, (), FILE | 0o4700),
        (DIRECTORY | 0o2755, (), DIRECTORY | 0o2711),
        (DIRECTORY | 0o750, (), DIRECTORY | 0o710),
        (DIRECTORY | 0o775, (AclEntry(b"user", 5, 0), AclEntry(b"group", None, 5), AclEntry(b"mask", None, 7)), None),
    ],
)
def test_only_the_owner_has_rights(mode, acl, expected):
    # Who is named and may not enter may be in the group, or be one of the others: nobody else enters.
    assert mode_of_owner(mode, acl) == (DIRECTORY | 0o700 if expected is None else expected)
