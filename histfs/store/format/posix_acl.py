"""Access control lists as the kernel has them, in `system.posix_acl_access` and `system.posix_acl_default`, and what
they grant.

The binary form (linux/posix_acl_xattr.h): the version, 2, in 32 bits, then for each entry 16 bits that say whom it is
for, 16 bits of permissions and 32 bits of an id; all little-endian, in the order of `_TAGS`. There ids are numbers;
in a repository they are names where a name is known (docs/format.md 4.7). Who calls says how one becomes the other.
"""

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from histfs.errors import FormatError
from histfs.store.entry import Acl, AclEntry

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_NO_ID = 2**32 - 1
_MAX_PERMISSIONS = 7
_BASE_ENTRIES = 3  # those that say what a mode says

# Whom an entry is for: the tag, and whether it names somebody.
_TAGS = {
    0x01: (b"user", False),
    0x02: (b"user", True),
    0x04: (b"group", False),
    0x08: (b"group", True),
    0x10: (b"mask", False),
    0x20: (b"other", False),
}
_NUMBERS = {tag: number for number, tag in _TAGS.items()}


class Resolved(NamedTuple):
    """A list in which everybody is named by id, and the names that nobody here has, whose entries are left out."""

    acl: Acl
    unknown: tuple[bytes, ...]


def parse_posix_acl(value: bytes, *, is_default: bool = False) -> Acl:
    """The entries of one of the two attributes, with ids, in its order. Raises FormatError."""
    if value[:4] != _VERSION or len(value) % _ENTRY.size != len(_VERSION):
        raise FormatError("an access control list of a form that is not known")
    entries = []
    for number, permissions, id_ in _ENTRY.iter_unpack(value[4:]):
        if number not in _TAGS or permissions > _MAX_PERMISSIONS:
            raise FormatError("an access control list with an entry that is not known")
        tag, is_named = _TAGS[number]
        entries.append(AclEntry(tag, id_ if is_named else None, permissions, is_default))
    return tuple(entries)


def format_posix_acl(acl: Iterable[AclEntry]) -> bytes:
    """The attribute that holds `acl`, the access or the default part of a list that `resolve` has been through."""
    packed = []
    for entry in acl:
        number = _NUMBERS[entry.tag, entry.qualifier is not None]
        id_ = entry.qualifier if isinstance(entry.qualifier, int) else _NO_ID
        packed.append((number, entry.permissions, id_))
    packed.sort(key=lambda item: (item[0], item[2]))
    return _VERSION + b"".join(_ENTRY.pack(*item) for item in packed)


def part(acl: Acl, *, is_default: bool) -> Acl:
    """What `acl` says about access, or what it says about new files."""
    return tuple(entry for entry in acl if entry.is_default is is_default)


def resolve(
    acl: Acl, user_id: Callable[[bytes | int], int | None], group_id: Callable[[bytes | int], int | None]
) -> Resolved:
    """Put the ids of this host in the place of those whom `acl` names. Who has none here is left out: it is nobody."""
    entries, unknown = [], []
    for entry in acl:
        if entry.qualifier is not None:
            id_ = (user_id if entry.tag == b"user" else group_id)(entry.qualifier)
            if id_ is None:
                unknown.append(entry.qualifier if isinstance(entry.qualifier, bytes) else b"%d" % entry.qualifier)
                continue
            entry = entry._replace(qualifier=id_)
        entries.append(entry)
    return Resolved(tuple(entries), tuple(unknown))


def named(acl: Acl, user_name: Callable[[int], bytes | None], group_name: Callable[[int], bytes | None]) -> Acl:
    """Put names in the place of ids, where they are known."""
    entries = []
    for entry in acl:
        if isinstance(entry.qualifier, int):
            name = (user_name if entry.tag == b"user" else group_name)(entry.qualifier)
            entry = entry if name is None or not is_name(name) else entry._replace(qualifier=name)
        entries.append(entry)
    return tuple(entries)


def is_name(name: bytes) -> bool:
    """Whether `name` is read as a name where it stands in a list, and not as an id or as something else."""
    return not name.isdigit() and b"#" not in name and b":" not in name and name == name.strip()


def completed(acl: Acl, mode: int) -> Acl:
    """`acl` as it is recorded: not at all if it says nothing that `mode` does not say, else with the base entries."""
    access = part(acl, is_default=False)
    if len(access) == len(acl) <= _BASE_ENTRIES:
        return ()
    return acl if access else access_of_mode(mode) + acl


def shown(acl: Acl) -> dict[bytes, bytes]:
    """The attributes that the kernel has for `acl`, which `resolve` has been through: not what the mode says too."""
    access, default = part(acl, is_default=False), part(acl, is_default=True)
    attributes = {}
    if len(access) > _BASE_ENTRIES:
        attributes[ACCESS] = format_posix_acl(access)
    if default:
        attributes[DEFAULT] = format_posix_acl(default)
    return attributes


def access_of_mode(mode: int) -> Acl:
    """The access part that grants what `mode` alone grants."""
    tags = (b"user", b"group", b"other")
    return tuple(AclEntry(tag, None, mode >> shift & 7) for tag, shift in zip(tags, (6, 3, 0), strict=True))


def mode_without(mode: int, acl: Acl) -> int:
    """`mode` for a file whose list `acl` is lost: it grants nobody what mode and list together did not grant.

    With a list the group's bits of a mode are the mask. Somebody in the owning group may be named by himself, or not.
    Somebody else may be named too, or be in any one of the groups that are.
    """
    access = part(acl, is_default=False)
    mask = next((entry.permissions for entry in access if entry.tag == b"mask"), None)
    if mask is None:
        return mode
    group, other = mode >> 3 & 7 & mask, mode & 7
    for entry in access:
        if entry.tag == b"group" and entry.qualifier is None:
            group &= entry.permissions
        elif entry.qualifier is not None:
            other &= entry.permissions & mask
            if entry.tag == b"user":
                group &= entry.permissions & mask
    return mode & ~0o77 | group << 3 | other
