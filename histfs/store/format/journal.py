"""The journal of a first session: which files it has brought to the disk. Disposable, of this program alone.

    journal = blocks
    block = 24 bytes: magic with the kind, the length of what follows, CRC-32 of that, that of the header before it
    kinds: BEGIN  a session begins, or goes on: what tells the layout of its names
           FILES  for each file: 72 bytes as in a ledger, 20 bytes SHA1, the length of the path, the path
           REVOKED  for each path: its length, the path; what earlier blocks say of it does not hold any more

The files of a session are in metadata order, and so are the paths that it revokes. A block that is cut off or damaged
ends the journal.
"""

import struct
from binascii import crc32, hexlify, unhexlify
from collections.abc import Iterator
from typing import NamedTuple

from histfs.errors import FormatError
from histfs.store.format.ledger import SEEN_BYTES, Seen

BEGIN, FILES, REVOKED = b"B", b"F", b"R"

_HEADER = struct.Struct("=8sQI")
_CRC = struct.Struct("=I")
HEADER_BYTES = _HEADER.size + _CRC.size
_MAGIC = b"histfJ3"
_FILE = struct.Struct("=20sI")
_LENGTH = struct.Struct("=I")


class Copied(NamedTuple):
    """A file of which the mirror has all."""

    path: bytes
    sha1: bytes  # hex
    seen: Seen  # what it was in the source


class Block(NamedTuple):
    """What the header of a block says."""

    kind: bytes
    size_bytes: int
    crc: int

    def is_of(self, payload: bytes) -> bool:
        return (len(payload), crc32(payload)) == self[1:]


def format_block(kind: bytes, payload: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC + kind, len(payload), crc32(payload))
    return header + _CRC.pack(crc32(header)) + payload


def parse_block(data: bytes) -> Block | None:
    """What its first HEADER_BYTES say; None if they are none."""
    if len(data) != HEADER_BYTES or _CRC.unpack(data[_HEADER.size :])[0] != crc32(data[: _HEADER.size]):
        return None
    magic, size_bytes, crc = _HEADER.unpack_from(data)
    is_known = magic[:-1] == _MAGIC and magic[-1:] in (BEGIN, FILES, REVOKED)
    return Block(magic[-1:], size_bytes, crc) if is_known else None


def format_copied(copied: Copied) -> bytes:
    return copied.seen.format() + _FILE.pack(unhexlify(copied.sha1), len(copied.path)) + copied.path


def parse_copied(payload: bytes) -> Iterator[Copied]:
    """The files of a block. Raises FormatError."""
    at = 0
    while at < len(payload):
        if len(payload) - at < SEEN_BYTES + _FILE.size:
            raise FormatError("a file of the journal is cut off")
        sha1, path_bytes = _FILE.unpack_from(payload, at + SEEN_BYTES)
        start = at + SEEN_BYTES + _FILE.size
        path = payload[start : start + path_bytes]
        if len(path) != path_bytes:
            raise FormatError("a path of the journal is cut off")
        yield Copied(path, hexlify(sha1), Seen.parse(payload, at))
        at = start + path_bytes


def format_revoked(path: bytes) -> bytes:
    return _LENGTH.pack(len(path)) + path


def parse_revoked(payload: bytes) -> Iterator[bytes]:
    """The paths of a block. Raises FormatError."""
    at = 0
    while at < len(payload):
        start = at + _LENGTH.size
        if len(payload) < start:
            raise FormatError("a path that the journal revokes is cut off")
        at = start + _LENGTH.unpack_from(payload, at)[0]
        if len(payload) < at:
            raise FormatError("a path that the journal revokes is cut off")
        yield payload[start:at]
