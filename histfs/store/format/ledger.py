"""The ledger: what a session saw of each path in its source, as bytes. Derived, disposable, of this program alone.

    ledger = header, then 64 bytes for each record of the session's list, in its order
    header = 128 bytes: magic, version, order of bytes; which session's, the stamp of its list; what the records are;
             how many; CRC-32 of the rest of the file, then that of the header

A record here says what lstat(2) said, and how long the record in the list is. What it says of the size is, for a
directory, when its like in the mirror last changed: as long as that holds, nobody took a file away there.
"""

import stat
import struct
from binascii import crc32
from typing import NamedTuple, Self

VALID = 1  # it was seen by the session, and all of it is here
RACY = 2  # it changed when the session had begun, or just before: it may have changed again within the same tick
SLOW = 4  # what belongs to it is not only here: other links, extended attributes, alternate names

_SEEN = struct.Struct("=QQqqqIIIIII")
SEEN_BYTES = _SEEN.size
_HEADER = struct.Struct("=8sIIqIIQ")
_MAGIC = b"histfsL\1"
_ORDER = 0x01020304
_CRC = struct.Struct("=I")
HEADER_BYTES = 128
_STAMP_BYTES = HEADER_BYTES - _HEADER.size - _CRC.size


class Seen(NamedTuple):
    """One record. The order and sizes of the fields are those of `struct histfs_seen` in `_tree_build`."""

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

        On another file system the file has other numbers, and nothing is known by them.
        """
        if not self.flags & VALID or self.device != device:
            return False
        return bool(self.flags & RACY) or (self.inode, self.ctime_ns) != (inode, ctime_ns)


class Header(NamedTuple):
    """Which list a ledger belongs to, and what its records are good for."""

    session_time: int
    has_xattrs: bool
    has_acls: bool
    is_whole_tree: bool  # nothing was left out by rules
    records: int
    crc: int  # of the records
    stamp: bytes  # what tells the session's list from any other


def format_header(header: Header) -> bytes:
    what = header.has_xattrs | header.has_acls << 1 | header.is_whole_tree << 2
    fixed = _HEADER.pack(_MAGIC, _ORDER, what, header.session_time, header.crc, len(header.stamp), header.records)
    data = fixed + header.stamp.ljust(_STAMP_BYTES, b"\0")
    return data + _CRC.pack(crc32(data))


def parse_header(data: bytes) -> Header | None:
    """None if it is none, or of another version."""
    if len(data) != HEADER_BYTES or _CRC.unpack(data[-_CRC.size :])[0] != crc32(data[: -_CRC.size]):
        return None
    magic, order, what, session_time, crc, stamp_bytes, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or order != _ORDER or stamp_bytes > _STAMP_BYTES:
        return None
    stamp = data[_HEADER.size : _HEADER.size + stamp_bytes]
    return Header(session_time, bool(what & 1), bool(what & 2), bool(what & 4), count, crc, stamp)
