"""What the system tells of a name, as an entry: lstat(2), readlink(2), extended attributes, access control lists."""

import errno
import os
import stat

from histfs.errors import FormatError
from histfs.store.accounts import group_name, user_name
from histfs.store.entry import NO_EXTRAS, Acl, Entry, Extras, Kind, LinkGroup
from histfs.store.format import posix_acl
from histfs.store.format.attributes import is_recorded
from histfs.store.tree import Tree

KINDS = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}

_MAX_EXTRAS_BYTES = 8 << 20  # they have to fit attributes.MAX_RECORD_BYTES, in base64


def entry_of(path: bytes, status: os.stat_result, target: bytes = b"") -> Entry:
    """The entry that lstat(2) and readlink(2) tell; without the digest of its content."""
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    is_regular = kind is Kind.REGULAR
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        uname=user_name(status.st_uid),
        gname=group_name(status.st_gid),
        mtime_s=status.st_mtime_ns // 10**9 if kind.has_mtime else 0,
        size_bytes=status.st_size if is_regular else 0,
        link_group=LinkGroup(status.st_nlink, status.st_ino, status.st_dev)
        if is_regular and status.st_nlink > 1
        else None,
        target=target,
        device_number=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind.is_device else (0, 0),
    )


def read_extras(tree: Tree, entry: Entry, extras: Extras) -> Entry:
    """`entry` with the `extras` that the file in the tree has. Raises OSError, FormatError."""
    if extras == NO_EXTRAS:
        return entry
    names = tree.xattr_names(entry.path)
    if not names:
        return entry
    xattrs: list[tuple[bytes, bytes]] = []
    acl: Acl = ()
    size = 0
    for name in sorted(names):
        is_acl = name in (posix_acl.ACCESS, posix_acl.DEFAULT)
        if not (extras.acls if is_acl else extras.xattrs and is_recorded(name, entry.kind)):
            continue
        try:
            value = tree.xattr(entry.path, name)
        except OSError as exc:
            if exc.errno == errno.ENODATA:  # it went in between
                continue
            raise
        size += len(name) + len(value)
        if size > _MAX_EXTRAS_BYTES:
            raise FormatError(f"more than {_MAX_EXTRAS_BYTES} bytes", path=entry.path)
        if is_acl:
            acl += posix_acl.parse_posix_acl(value, is_default=name == posix_acl.DEFAULT)
        else:
            xattrs.append((name, value))
    acl = posix_acl.completed(acl, entry.mode)
    return entry._replace(xattrs=tuple(xattrs), acl=posix_acl.named(acl, user_name, group_name))
