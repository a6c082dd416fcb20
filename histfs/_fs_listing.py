"""Listings of directories as the kernel takes them: struct fuse_direntplus of linux/fuse.h, one after the other.

pyfuse3 takes names one by one, which costs three times what it takes to find them. Here they are packed at once, and
given to the kernel as they are (see `fuse.keep_listing`). The numbers are in the machine's own byte order.
"""

import stat
import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from histfs.fuse import BLOCK_SIZE, keep_content, keep_listing
from histfs.vfs import FOREVER_S, ROOT_INODE, Child

NAME_MAX = 255
_TARGET_MAX = 4096  # of a symbolic link, with a zero byte behind it
_PAGES_KEPT = 64

# fuse_entry_out: node, generation, seconds and (below) nanoseconds of validity of the name and of the attributes;
# fuse_attr: inode, size, blocks, atime, mtime, ctime; nanoseconds, mode, links, uid, gid, device, block size, flags;
# fuse_dirent: inode, offset, length of the name, type.
_RECORD = struct.Struct("=QQQQIIQQQqqqIIIIIIIIIIQQII")
_PADDING = tuple(bytes(-length % 8) for length in range(NAME_MAX + 1))  # to a multiple of 8 bytes
_TYPE = 0o170000
_MOST = 2**32 - 1
_TYPE_SHIFT = 12  # from a mode to what readdir(3) calls d_type


class Page(NamedTuple):
    """Names of a directory, which the kernel asks for, or will ask for next."""

    children: list[Child]
    is_last: bool
    files: list[tuple[int, int]]  # inodes and sizes of what is worth reading ahead, from the first name on
    is_told: bool = False  # what is asked for comes behind them


class Pages:
    """What was asked for and had no place in a reply, the last of it, by inode and offset."""

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[int, int], Page] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def clear(self) -> None:
        self._pages.clear()

    def take(self, inode: int, offset: int) -> Page | None:
        return self._pages.pop((inode, offset), None)

    def put(self, inode: int, offset: int, page: Page) -> None:
        if inode == ROOT_INODE:  # it changes
            return
        self._pages[inode, offset] = page
        if len(self._pages) > _PAGES_KEPT:
            self._pages.popitem(last=False)


def keep(inode: int, offset: int, page: Page) -> bool:
    """Have these names told as those that come behind `offset`; False if that cannot be."""
    if any(len(child.name) > NAME_MAX for child in page.children):
        return False
    if not keep_listing(inode, offset, pack(page.children, FOREVER_S), is_last=page.is_last):
        return False
    for child in page.children:
        if child.target and len(child.target) < _TARGET_MAX and stat.S_ISLNK(child.attributes.mode):
            keep_content(child.attributes.inode, child.target)
    return True


def pack(children: Iterable[Child], entry_valid_s: float) -> bytes:
    """The records of `children`, whose names are at most NAME_MAX bytes long."""
    pack_record, parts = _RECORD.pack, []
    name_s, name_ns = _split(entry_valid_s)
    known_valid_s, valid_s, valid_ns = entry_valid_s, name_s, name_ns
    for name, (inode, mode, nlink, uid, gid, rdev, size, mtime_s, shown_valid_s), offset, *_ in children:
        if shown_valid_s != known_valid_s:
            known_valid_s = shown_valid_s
            valid_s, valid_ns = _split(shown_valid_s)
        length = len(name)
        blocks = (size + 511) // 512 if mode & _TYPE == stat.S_IFREG else 0
        parts.append(
            pack_record(
                inode, 0, name_s, valid_s, name_ns, valid_ns,
                inode, size, blocks, mtime_s, mtime_s, mtime_s,
                0, 0, 0, mode, min(nlink, _MOST), uid, gid, rdev & _MOST, BLOCK_SIZE, 0,
                inode, offset, length, (mode & _TYPE) >> _TYPE_SHIFT,
            )
        )  # fmt: skip
        parts.append(name)
        parts.append(_PADDING[length])
    return b"".join(parts)


def _split(seconds: float) -> tuple[int, int]:
    """Whole seconds, and nanoseconds."""
    return int(seconds), int(seconds % 1 * 1_000_000_000)
