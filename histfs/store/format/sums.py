"""Sums of the blocks of a large file in the mirror. Disposable, of this program alone.

sums   = header, one sum for each block, the path of the file in the mirror
header = magic, the size of a block and of the content, the content's SHA1, the key, SHA1 of the sums, how long the path
         is, CRC-32 of that and of the path
sum    = NH (RFC 4418, 5.2.2; with words of 64 bits, in the order of the machine that makes it) of the block, by what
         SHAKE256 makes of the key. As that is random, and known to nobody who may not read the repository, nobody can
         make two blocks that have the same sum, and by chance two have it once in 2^64. A sum tells nothing of a size:
         only of blocks of the same size they are compared.

Only what has the SHA1 that the list of files tells of the mirror's file is believed.
"""

import struct
from binascii import crc32
from hashlib import shake_256
from typing import NamedTuple

BLOCK_BYTES = 32 * 1024
SUM_BYTES = 16
KEY_BYTES = 32

_MAGIC = b"histfS1\n"
_HEADER = struct.Struct("=8sQQ20s32s20sI")
_CRC = struct.Struct("=I")
HEADER_BYTES = _HEADER.size + _CRC.size
MAX_PATH_BYTES = 64 * 1024


class Header(NamedTuple):
    """Of what the sums are. `sums_sha1`: of all sums."""

    size_bytes: int
    sha1: bytes  # 20 bytes
    key: bytes
    sums_sha1: bytes  # 20 bytes
    path_bytes: int

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // BLOCK_BYTES)

    @property
    def file_bytes(self) -> int:
        """How long all of it is."""
        return HEADER_BYTES + self.blocks * SUM_BYTES + self.path_bytes

    def is_of(self, sha1: bytes | None, size_bytes: int) -> bool:
        """`sha1`: hex; None if nobody knows it."""
        return (self.sha1.hex().encode(), self.size_bytes) == (sha1, size_bytes)


def expanded(key: bytes) -> bytes:
    """The key of a block, as long as that."""
    return shake_256(key).digest(BLOCK_BYTES)


def format_header(header: Header, path: bytes) -> bytes:
    size, sha1, key, sums_sha1, path_bytes = header
    data = _HEADER.pack(_MAGIC, BLOCK_BYTES, size, sha1, key, sums_sha1, path_bytes)
    return data + _CRC.pack(crc32(path, crc32(data)))


def parse_header(data: bytes) -> Header | None:
    """None if it is none, or of sums of other blocks. Whether it is damaged `format_header` tells, with the path."""
    if len(data) < HEADER_BYTES:
        return None
    magic, block_bytes, *rest = _HEADER.unpack_from(data)
    header = Header(*rest)
    return header if (magic, block_bytes) == (_MAGIC, BLOCK_BYTES) and header.path_bytes <= MAX_PATH_BYTES else None
