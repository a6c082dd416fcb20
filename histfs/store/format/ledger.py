"""The ledger: what a session saw of each path in its source, as bytes. Derived, disposable, of this program alone.

    ledger = header, then 72 bytes for each record of the session's list, in its order
    header = 256 bytes: magic, version, order of bytes; which session's, the stamp of its lists; what the records are;
             how many; whom access control lists name; a digest of the rules that decided what was left out; CRC-32 of
             the rest of the file, then that of the header

A record here says what lstat(2) said, and how long the records in the list and the files beside it are. What it says of
the size is, for a directory, when its like in the mirror last changed: as long as that holds, nobody took a file away
there.
"""

import stat
import struct
from binascii import crc32
from typing import NamedTuple, Self

VALID = 1  # it was seen by the session, and all of it is here
RACY = 2  # it changed when the session had begun, or just before: it may have changed again within the same tick
SLOW = 4  # what belongs to it is not only in the lists, such as its place under an alternate name
LINKED = 8  # a regular file that has other links
SCANNED = 16  # a directory that the rules keep only as long as something in it is included

_SEEN = struct.Struct("=QQqqqIIIIIIII")
SEEN_BYTES = _SEEN.size
_HEADER = struct.Struct("=8sIIqIIQQ16s")
_MAGIC = b"histfsL\3"
_ORDER = 0x01020304
_CRC = struct.Struct("=I")
HEADER_BYTES = 256
RULES_BYTES = 16
_STAMP_BYTES = HEADER_BYTES - _HEADER.size - _CRC.size


class Seen(NamedTuple):
    """One record. The order and sizes of the fields are those of `struct histfs_seen` in `csrc/walk.h`."""

    inode: int
    device: int
    mtime_ns: int
    ctime_ns: int
    size: int
    mode: int  # with the type
    uid: int
    gid: int
    nlink: int
    record_bytes: int = 0
    flags: int = 0
    xattrs_bytes: int = 0
    acl_bytes: int = 0

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> Self:
        return cls(*_SEEN.unpack_from(data, at))

    def format(self) -> bytes:
        return _SEEN.pack(*self)

    @property
    def mirror_ctime_ns(self) -> int:
        """Of a directory: when its like in the mirror last changed; 0: that is not known."""
        return self.size if stat.S_ISDIR(self.mode) and self.flags & VALID else 0

    def may_have_changed(self, inode: int, device: int, ctime_ns: int) -> bool:
        """Whether the content may be another one now although its size and time are the same.

        On another file system the file has other numbers, and nothing is known by them; a device that only got another
        number itself, as when it is mounted again, leaves the file's. Nothing is known either of what could not be read
        then, and that is looked at.
        """
        if self.flags & VALID and self.device != device and self.inode != inode:
            return False
        return self.flags & (VALID | RACY) != VALID or (self.inode, self.ctime_ns) != (inode, ctime_ns)


class Lengths(NamedTuple):
    """Of the records of one path: in the list, and in the files beside it; 0 where there is none."""

    record_bytes: int
    xattrs_bytes: int = 0
    acl_bytes: int = 0


class Header(NamedTuple):
    """Which list a ledger belongs to, and what its records are good for."""

    session_time: int
    has_xattrs: bool
    has_acls: bool
    links_are_kept: bool  # the list says which files have other links
    records: int
    crc: int  # of the records
    stamp: bytes  # what tells the session's lists from any others
    named: int  # a digest of whom access control lists name, and of their numbers
    rules: bytes  # a digest of those that decided what was left out; zeros: others must not believe what they decided


def format_header(header: Header) -> bytes:
    what = header.has_xattrs | header.has_acls << 1 | header.links_are_kept << 2
    numbers = what, header.session_time, header.crc, len(header.stamp), header.records, header.named, header.rules
    fixed = _HEADER.pack(_MAGIC, _ORDER, *numbers)
    data = fixed + header.stamp.ljust(_STAMP_BYTES, b"\0")
    return data + _CRC.pack(crc32(data))


def is_of_another_version(data: bytes) -> bool:
    """Whether the header is right, and only another version of the program knows what it says."""
    return _is_whole(data) and data.startswith(_MAGIC[:-1]) and not data.startswith(_MAGIC)


def _is_whole(data: bytes) -> bool:
    return len(data) == HEADER_BYTES and _CRC.unpack(data[-_CRC.size :])[0] == crc32(data[: -_CRC.size])


def parse_header(data: bytes) -> Header | None:
    """None if it is none, or of another version."""
    if not _is_whole(data):
        return None
    magic, order, what, session_time, crc, stamp_bytes, count, named, rules = _HEADER.unpack_from(data)
    if magic != _MAGIC or order != _ORDER or stamp_bytes > _STAMP_BYTES:
        return None
    stamp = data[_HEADER.size : _HEADER.size + stamp_bytes]
    has_xattrs, has_acls, links_are_kept = (bool(what & bit) for bit in (1, 2, 4))
    return Header(session_time, has_xattrs, has_acls, links_are_kept, count, crc, stamp, named, rules)
