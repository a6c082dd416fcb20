"""Who may do what with a file, and what two sets of rights have in common. Pure.

The kernel asks in this order (acl(5)): the owner, by the owner's entry alone; a user who is named, by that entry;
somebody in the owning group or in groups that are named, by any one of their entries; all others. `Rights` has what
each of these entries grants in effect, with the mask applied.

`common` grants nobody what one of the two does not grant. Who is in which groups is not known, so that where the two
name different users or groups it grants the least that anybody may have who is meant. It may grant less than both do
in common, never more.
"""

import functools
import operator
import stat
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from histfs.store.entry import Acl, AclEntry
from histfs.store.format.posix_acl import mode_without, part

_ALL = 7
_READ, _READ_AND_ENTER = 4, 5
_MOST_ENTRIES = 1000  # of a list that is made here; the kernel takes some thousands


class OldModes(Enum):
    """By which rights old versions are shown."""

    STRICT = "strict"  # by what their own grant and those of the newest version of the same path
    AS_STORED = "as-stored"  # by their own
    OWNER = "owner"  # by what their own grant to the owner


class Rights(NamedTuple):
    """The permissions (4 read, 2 write, 1 execute) of everybody; the owner is not in `users`."""

    uid: int
    gid: int
    owner: int
    users: Mapping[int, int]
    groups: Mapping[int, int]  # with the owning one
    other: int

    @property
    def least(self) -> int:
        """What nobody has less than who is neither the owner nor a user who is named."""
        return functools.reduce(operator.and_, self.groups.values(), self.other)

    def of_user(self, uid: int) -> int:
        """What a user has at least, whatever groups that user is in."""
        return self.owner if uid == self.uid else self.users.get(uid, self.least)

    def of_group(self, gid: int) -> int:
        """What somebody has at least who is in the group, and is no user who is named."""
        return self.groups.get(gid, self.least)

    @property
    def is_mode(self) -> bool:
        """Whether a mode says it all."""
        return not self.users and self.groups.keys() == {self.gid}


def rights_of(mode: int, uid: int, gid: int, acl: Acl = ()) -> Rights:
    """Those of a file of this mode, with the access part of `acl`, in which everybody is named by number.

    A list that says nothing of somebody whom every list names is completed by the mode. What names somebody twice
    counts as the least of both.
    """
    owner, mask, other = mode >> 6 & _ALL, mode >> 3 & _ALL, mode & _ALL
    users: dict[int, int] = {}
    groups = {gid: mask}
    for entry in part(acl, is_default=False):
        if isinstance(entry.qualifier, int):
            named = users if entry.tag == b"user" else groups
            named[entry.qualifier] = named.get(entry.qualifier, _ALL) & entry.permissions & mask
        elif entry.tag == b"user":
            owner &= entry.permissions
        elif entry.tag == b"group":
            groups[gid] &= entry.permissions
        elif entry.tag == b"mask":
            mask &= entry.permissions
        else:
            other &= entry.permissions
    users = {user: granted & mask for user, granted in users.items() if user != uid}
    return Rights(uid, gid, owner, users, {group: granted & mask for group, granted in groups.items()}, other)


def common(stored: Rights, newest: Rights) -> Rights:
    """What both grant, for the owner and the group of `stored`.

    A list is made only if one of them is one: else the owners and groups in which they differ get what all get.
    """
    named = (stored.users.keys() | newest.users.keys() | {newest.uid}) - {stored.uid}
    both = Rights(
        stored.uid,
        stored.gid,
        stored.owner & newest.of_user(stored.uid),
        {user: stored.of_user(user) & newest.of_user(user) for user in named},
        {group: stored.of_group(group) & newest.of_group(group) for group in (*stored.groups, *newest.groups)},
        stored.other & newest.other,
    )
    is_list = not (stored.is_mode and newest.is_mode)
    return both if is_list and len(both.users) + len(both.groups) < _MOST_ENTRIES else _folded(both)


def _folded(rights: Rights) -> Rights:
    """Without a list: whoever is named has what the owning group, or others, have. So these have no more than that."""
    groups = dict(rights.groups)
    group = groups.pop(rights.gid)
    least = functools.reduce(operator.and_, (*rights.users.values(), *groups.values()), _ALL)
    return rights._replace(users={}, groups={rights.gid: group & least}, other=rights.other & least)


def seen_as(newest: Rights, newest_type: int, stored_type: int) -> Rights | None:
    """What the rights to a file of another type say of one of `stored_type` that was there before; None: nothing.

    Whoever may read a file may read and enter the directory that was there; whoever may do both with a directory may
    read the file. Everybody has all rights to a symbolic link.
    """
    if stat.S_IFLNK in (newest_type, stored_type):
        return None
    if stat.S_IFDIR not in (newest_type, stored_type) or newest_type == stored_type:
        return newest

    def turned(granted: int) -> int:
        if stored_type == stat.S_IFDIR:
            return _READ_AND_ENTER if granted & _READ else 0
        return _ALL if granted & _READ_AND_ENTER == _READ_AND_ENTER else 0

    return newest._replace(
        owner=turned(newest.owner),
        users={user: turned(granted) for user, granted in newest.users.items()},
        groups={group: turned(granted) for group, granted in newest.groups.items()},
        other=turned(newest.other),
    )


def mode_and_list(rights: Rights, mode: int) -> tuple[int, Acl]:
    """`mode` with the permissions that say so, and the access list, empty where the mode says it all."""
    group = rights.groups[rights.gid]
    if rights.is_mode:
        return mode & ~0o777 | rights.owner << 6 | group << 3 | rights.other, ()
    mask = functools.reduce(operator.or_, (*rights.users.values(), *rights.groups.values()))
    acl = [
        AclEntry(b"user", None, rights.owner),
        *(AclEntry(b"user", user, granted) for user, granted in sorted(rights.users.items())),
        AclEntry(b"group", None, group),
        *(AclEntry(b"group", gid, granted) for gid, granted in sorted(rights.groups.items()) if gid != rights.gid),
        AclEntry(b"mask", None, mask),
        AclEntry(b"other", None, rights.other),
    ]
    return mode & ~0o777 | rights.owner << 6 | mask << 3 | rights.other, tuple(acl)


def mode_of_owner(mode: int, acl: Acl) -> int:
    """`mode` of a file with this access list, in which only the owner has rights.

    A directory can still be entered by those who could, as what somebody owns may lie below that of others.
    """
    mode = mode_without(mode, acl)
    return mode & ~(0o66 if stat.S_ISDIR(mode) else 0o77)
