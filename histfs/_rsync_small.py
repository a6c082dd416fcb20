"""Making small versions at once, many in one call, and small deltas. Private to `histfs.rsync`.

C reads the files of which they are made, inflates and patches them in memory, and compares the result with its SHA1
(csrc/small.c): what is given out is what was recorded, whatever happened to the files meanwhile.
"""

import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple

from histfs._rsync import ffi, lib
from histfs._rsync_types import ParameterError, Result, SignatureParameters

MOST_LINKS = 32
"""Names that a small version may have."""

_ROOM_BYTES = 1024  # for commands, beside literals: a copy takes less than what it stands for
_SMALL = struct.Struct("=QqII20s4x")  # histfs_small_t
_IS_MADE = struct.Struct("=8xq4xI24x")


class Link(NamedTuple):
    """A file of which a version is made: its name in one of two directories."""

    name: bytes
    in_mirror: bool = False
    is_compressed: bool = False

    @property
    def marked(self) -> bytes:
        """As C takes it."""
        return (b"m" if self.in_mirror else b"z" if self.is_compressed else b"p") + self.name + b"\0"


class SmallVersion(NamedTuple):
    """What a version is made of: a whole one to begin with, then the deltas in the order of their use."""

    size_bytes: int
    sha1: bytes  # not as hex digits
    links: Sequence[Link]


class Made(NamedTuple):
    """The bytes of a version, and the mtime of the file that leads to it: the only one there is, or the last delta."""

    data: memoryview
    mtime_ns: int


def make_small(mirror_fd: int, increments_fd: int, versions: Sequence[SmallVersion]) -> list[Made | None]:
    """What became of each; None for one that could not be made, for whatever reason.

    The descriptors are those of the directories in which names are looked up; -1 where none is needed. Each version
    must have one link at least and MOST_LINKS at most, and a SHA1 of 20 bytes. For small ones, as all of them are in
    memory then.
    """
    for version in versions:
        if not 0 < len(version.links) <= MOST_LINKS or len(version.sha1) != 20 or version.size_bytes < 0:
            raise ParameterError("small", Result.PARAM_ERROR, "misused")
        if any(_is_no_name(link.name) for link in version.links):
            raise ParameterError("small", Result.PARAM_ERROR, "not a name in a directory")
    sizes = [version.size_bytes for version in versions]
    data = bytearray(sum(sizes))
    packed = bytearray(b"".join(_SMALL.pack(size, 0, len(links), 0, sha1) for size, sha1, links in versions))
    names = b"".join(link.marked for version in versions for link in version.links)
    table = ffi.from_buffer("histfs_small_t[]", packed, require_writable=True)
    room = ffi.from_buffer(data, require_writable=True)
    if lib.histfs_small_make(mirror_fd, increments_fd, table, len(versions), names, room):
        raise ParameterError("small", Result.PARAM_ERROR, "misused")
    view, ends = memoryview(data).toreadonly(), itertools.accumulate(sizes)
    made = _IS_MADE.iter_unpack(packed)
    return [
        Made(view[end - size : end], mtime_ns) if is_made else None
        for (mtime_ns, is_made), size, end in zip(made, sizes, ends, strict=True)
    ]


def _is_no_name(name: bytes) -> bool:
    return name in (b"", b".", b"..") or b"/" in name or b"\0" in name


def small_delta(basis: bytes, content: bytes, parameters: SignatureParameters) -> bytes | None:
    """The delta that leads from `basis` to `content`, both small, by a signature with the `parameters`, at once.

    None where that fails: a `DeltaJob` will say why.
    """
    room = len(content) + _ROOM_BYTES
    out = ffi.new("char[]", room)
    wanted = SignatureParameters(*parameters)
    size = lib.histfs_small_delta(basis, len(basis), content, len(content), *wanted, out, room)
    return None if size < 0 else ffi.buffer(out, size)[:]
