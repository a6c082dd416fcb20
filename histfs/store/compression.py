"""gzip streams, read and written in bounded memory (docs/format.md 1.5).

A reader looks at the first bytes, as plain text under a name in `.gz` exists. The other way round the name counts: a
file of a user that is kept as it is may well begin like gzip.
zlib is used directly: it inflates a block at a time under a limit, and says exactly where a member ends.
"""

import zlib
from collections.abc import Iterable, Iterator

from histfs.errors import DamagedError
from histfs.store.tree import BLOCK_SIZE, file_blocks

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib(3) inflateInit2: the largest window, with a gzip header
LEVEL = 6


def read_decompressed(fd: int) -> Iterator[bytes]:
    """The bytes of an open file, inflated if they are gzip, in blocks of at most 256 KiB.

    Raises DamagedError where the stream is truncated or not what its checksum says.
    """
    blocks = file_blocks(fd)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(_GZIP_MAGIC):
            break
    if head.startswith(_GZIP_MAGIC):
        yield from _inflate(head, blocks)
    elif head:
        yield head
        yield from blocks


def _inflate(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """One gzip member after the other; zero bytes after the last one are padding, as gzip(1) sees it."""
    data = head
    while True:
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof:
            if not data:
                data = next(blocks, b"")
                if not data:
                    raise DamagedError("the compressed file is truncated")
            try:
                out = member.decompress(data, BLOCK_SIZE)
            except zlib.error as exc:
                raise DamagedError(f"the compressed file is damaged ({exc})") from exc
            if out:
                yield out
            data = member.unconsumed_tail
        data = member.unused_data.lstrip(b"\0")
        while not data:
            data = next(blocks, b"")
            if not data:
                return
            data = data.lstrip(b"\0")


def compress(blocks: Iterable[bytes], level: int = LEVEL) -> Iterator[bytes]:
    """`blocks` as one gzip member."""
    member = zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW)
    for block in blocks:
        out = member.compress(block)
        if out:
            yield out
    yield member.flush()
