"""Extended attributes and access control lists, set on one file: the private half of `files`, which says the rules.

A file is given by `magic`, its path in /proc/self/fd. What a file system or a user is refused is no error here.
"""

import errno
import os

from histfs.store.entry import Acl, Xattrs
from histfs.store.format import posix_acl

_CAPABILITY = b"security.capability"
_USER = b"user."
_NOT_RECORDED = b"system."
# Every file has them where the system uses them.
_OF_THE_SYSTEM = (b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm")
# As which XFS shows lists to root a second time: to take them away would take the lists away.
_LISTS_OF_XFS = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")
_NOT_OURS = (*_OF_THE_SYSTEM, *_LISTS_OF_XFS)
# By the file system, for this user, for this kind of file, for this name or value, in this place.
_REFUSED = (
    *(errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL),
    *(errno.ERANGE, errno.E2BIG, errno.ENODATA, errno.ENOSPC),
)


def present(magic: str) -> list[bytes]:
    """The names of all that the file has."""
    try:
        return [os.fsencode(name) for name in os.listxattr(magic)]
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        return []


def set_acl(magic: str, present: list[bytes], mode: int, acl: Acl) -> tuple[int, bool]:
    """Give a file the access control list `acl`, and no other; the mode that goes with it, and whether it was refused.

    This comes before the mode, whose bits for the group would mean the owning group without the list. A list that
    says no more than a mode takes the old one away. (New files get one where their directory says so.)
    """
    is_refused = False
    for is_default, name in ((True, posix_acl.DEFAULT), (False, posix_acl.ACCESS)):
        wanted = posix_acl.part(acl, is_default=is_default)
        if wanted and not _try(magic, name, posix_acl.format_posix_acl(wanted)):
            is_refused = True
            mode = mode if is_default else posix_acl.mode_without(mode, wanted)
        elif not wanted and name in present and is_default:
            os.removexattr(magic, name)
        elif not wanted and name in present:
            _try(magic, name, posix_acl.format_posix_acl(posix_acl.access_of_mode(mode)))
    return mode, is_refused


def set_xattrs(magic: str, present: list[bytes], xattrs: Xattrs, *, owned: bool) -> bool:
    """Give a file `xattrs` and, of those that are recorded, no others; whether some were refused that need not be.

    This comes after owner and mode, which clear some. `owned`: the file belongs to whom it should.
    """
    is_refused = False
    wanted = {name: value for name, value in xattrs if name not in _LISTS_OF_XFS}
    if not owned:  # as setuid
        wanted.pop(_CAPABILITY, None)
    for name in present:
        if name not in wanted and name not in _NOT_OURS and not name.startswith(_NOT_RECORDED):
            _try_remove(magic, name)
    for name, value in wanted.items():
        if name in present and _has(magic, name, value):
            continue
        if not _try(magic, name, value) and (os.geteuid() == 0 or name.startswith(_USER)):
            is_refused = True
    return is_refused


def _has(magic: str, name: bytes, value: bytes) -> bool:
    try:
        return os.getxattr(magic, name) == value
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        return False


def _try(magic: str, name: bytes, value: bytes) -> bool:
    """Set it; False where this user or this file system has none like it, or no place for it."""
    try:
        os.setxattr(magic, name, value)
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        return False
    return True


def _try_remove(magic: str, name: bytes) -> None:
    try:
        os.removexattr(magic, name)
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
