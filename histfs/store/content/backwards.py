"""All that one path has ever held, from the newest back, each made of the next: for who reads the whole chain anyway.

A version at a time, through a map, costs the links of its chain for each; here each increment is read once. What is
found is no more than a digest: where it is not the recorded one, or anything is in the way, `opening` has the last
word on what can be read.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import zip_longest
from typing import NamedTuple

from histfs import rsync
from histfs.errors import DamagedError
from histfs.store import plan
from histfs.store.compression import read_decompressed
from histfs.store.content.chain import ON_THE_WAY_IN_MEMORY, open_increment
from histfs.store.content.sources import Spool
from histfs.store.tree import NotRegularError, Tree, file_blocks


class Held(NamedTuple):
    """What a path held: so many bytes, with this SHA1 (hex)."""

    size_bytes: int
    sha1: bytes


def contents_backwards(
    tree: Tree,
    mirror_path: bytes | None,
    increments: Sequence[plan.Increment],
    at_most: int,
    tell: Callable[[int], object],
) -> Iterator[Held | None]:
    """What the mirror holds, then what each of `increments` (newest first) leads back to; None: no content.

    `mirror_path`: None if it does not matter, as the first increment is no difference.
    `tell` is called with the size of each block; what it raises goes through. Raises DamagedError at the first thing
    that is in the way, such as a content of more than `at_most` bytes; StorageError, OSError.
    """
    with ExitStack() as stack:
        mirror: int | None = None
        with suppress(FileNotFoundError, NotADirectoryError, NotRegularError):
            if mirror_path is not None:
                mirror = tree.open_file(mirror_path)
                stack.callback(os.close, mirror)
        yield None if mirror is None else _held(file_blocks(mirror), at_most, tell)
        content: int | Spool | None = mirror
        for increment, older in zip_longest(increments, increments[1:]):
            is_basis = older is not None and older.type == b"diff"
            with ExitStack() as opened:
                blocks = _blocks(tree, content, increment, opened)
                if blocks is None:
                    content = None
                    yield None
                    continue
                spool = Spool(ON_THE_WAY_IN_MEMORY) if is_basis else None
                if spool is not None:
                    stack.callback(spool.close)
                try:
                    held = _held(blocks if spool is None else _spooled(blocks, spool), at_most, tell)
                except rsync.RsyncError as exc:
                    raise DamagedError(f"an increment of it is damaged ({exc})") from exc
            if isinstance(content, Spool):
                content.close()
            content = spool
            yield held


def _blocks(
    tree: Tree, content: "int | Spool | None", increment: plan.Increment, opened: ExitStack
) -> Iterable[bytes] | None:
    """What an increment makes of the content that is newer; None where it says that there was none."""
    if increment.type not in (b"snapshot", b"diff"):
        return None
    fd = open_increment(tree, increment)
    opened.callback(os.close, fd)
    if increment.type == b"snapshot":
        # By its name: what is kept as it is may be gzip itself.
        return read_decompressed(fd) if increment.is_compressed else file_blocks(fd)
    if content is None:
        raise DamagedError("there is nothing that its increment leads back from")
    return rsync.patch(content.basis if isinstance(content, Spool) else content, read_decompressed(fd))


def _spooled(blocks: Iterable[bytes], spool: Spool) -> Iterator[bytes]:
    for block in blocks:
        spool.write(block)
        yield block


def _held(blocks: Iterable[bytes], at_most: int, tell: Callable[[int], object]) -> Held:
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
        if size > at_most:  # a few bytes can ask for any amount
            raise DamagedError("its increments lead to more than was ever recorded")
        tell(len(block))
    return Held(size, digest.hexdigest().encode())
