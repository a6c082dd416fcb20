"""Notes of what a session touches: names of the mirror and of increments. Disposable, of this program alone.

notes  = header, notes
header = magic, the session's time and that of the one before it, what tells where and by whom notes are believed
         (see `Header`), CRC-32 of that
note   = the length of the path, the kind, CRC-32 of kind and path, the path
kinds: NAME  what has this name, and nothing in it
       TREE  the same with all that lies in it
"""

import struct
from binascii import crc32
from typing import NamedTuple

NAME, TREE = b"N", b"T"

_MAGIC = b"histfT1\n"
_HEADER = struct.Struct("=8sqq36sQQqI")
_CRC = struct.Struct("=I")
_NOTE = struct.Struct("=IcI")
_BOOT_BYTES = 36
HEADER_BYTES = _HEADER.size + _CRC.size


class Header(NamedTuple):
    """Whose the notes are. They are believed by who finds all of it as it was.

    The numbers of boot and mount tell that nothing can have been lost since; the marker tells the session, and the list
    is the one that it had.
    """

    previous: int  # the session before, seconds since the epoch
    session_time: int
    boot: bytes  # the id of the kernel's boot, as text
    mount: int  # the number of the mount, never given again in this boot
    marker_inode: int
    marker_ctime_ns: int
    list_crc: int  # of what tells the list of the session before from any other


class Note(NamedTuple):
    """A path on disk, relative to the repository."""

    path: bytes
    kind: bytes


def format_header(header: Header) -> bytes:
    previous, session_time, boot, *rest = header
    data = _HEADER.pack(_MAGIC, previous, session_time, boot[:_BOOT_BYTES].ljust(_BOOT_BYTES), *rest)
    return data + _CRC.pack(crc32(data))


def format_note(note: Note) -> bytes:
    return _NOTE.pack(len(note.path), note.kind, crc32(note.path, crc32(note.kind))) + note.path


def parse_notes(data: bytes, header: Header) -> list[Note] | None:
    """The notes of who has this `header`; None if they are anybody else's, or if anything is cut off or damaged."""
    if data[:HEADER_BYTES] != format_header(header):
        return None
    notes = []
    at = HEADER_BYTES
    while at < len(data):
        if len(data) - at < _NOTE.size:
            return None
        path_bytes, kind, crc = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        path = data[at : at + path_bytes]
        if len(path) != path_bytes or crc != crc32(path, crc32(kind)) or kind not in (NAME, TREE):
            return None
        notes.append(Note(path, kind))
        at += path_bytes
    return notes
