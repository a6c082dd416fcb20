"""pyfuse3, loaded in the one order in which `histfs._fuse` can stand before libfuse. Import it from here only.

`_fuse` spares all requests about opening and closing, lets the kernel cache directories, and answers by itself what was
made before it is asked for (_fuse_build.py says how). Where it is missing, or comes too late since somebody has
imported pyfuse3 before, all works as without it.
"""

import os
import sys
from types import ModuleType

__all__ = [
    "BLOCK_SIZE",
    "end_serving",
    "forget_listings",
    "is_by_inode",
    "keep_content",
    "keep_listing",
    "next_failure",
    "pyfuse3",
    "reads_served",
    "reply_listing",
    "serve",
    "withdraw",
]

BLOCK_SIZE = 4096  # of stat(2): what is good to be read at once


def _load() -> ModuleType | None:
    """Load `_fuse` so that its symbols are found before those of libraries that are loaded later."""
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from histfs import _fuse
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(flags)
    return _fuse


_compiled = _load()
import pyfuse3  # noqa: E402 - its calls are bound when it is loaded


def is_by_inode() -> bool:
    """Whether `read` and `readdir` get inode numbers as handles, so that `open` and `opendir` may answer ENOSYS.

    To be asked when the kernel has begun to ask: before, it is not known, and False.
    """
    return _compiled is not None and bool(_compiled.lib.histfs_fuse_is_by_inode())


def keep_content(inode: int, data: bytes | bytearray | memoryview) -> bool:
    """Have the first reader of a file, or of a symbolic link, get all its `data` without asking us.

    False where that cannot be.

    It may be forgotten before that. From any thread.
    """
    if _compiled is None:
        return False
    return bool(_compiled.lib.histfs_fuse_keep_content(inode, _compiled.ffi.from_buffer(data), len(data)))


def keep_listing(inode: int, offset: int, records: bytes, *, is_last: bool) -> bool:
    """Have the names that come behind `offset` in a directory told without asking us; False where that cannot be.

    `records` are as in linux/fuse.h, see `_fs_listing`. They may be forgotten before that, and are if there are others
    of the same directory. In the session's thread.
    """
    if _compiled is None:
        return False
    data = _compiled.ffi.from_buffer(records)
    return bool(_compiled.lib.histfs_fuse_keep_listing(inode, offset, data, len(records), is_last))


def reply_listing(inode: int, offset: int) -> bool:
    """Have the reply of the `readdir` that now returns, without a name of its own, taken from what is kept.

    False, and the reply stays empty, if there is nothing. In the session's thread, as all of the following.
    """
    return _compiled is not None and bool(_compiled.lib.histfs_fuse_reply_listing(inode, offset))


def forget_listings() -> None:
    """Keep none of the listings: what they show of the files is not true any more. No reply may be under way."""
    if _compiled is not None:
        _compiled.lib.histfs_fuse_forget_listings()


def serve(inode: int, size_bytes: int, reader: tuple[int, int]) -> bool:
    """Have the reads of a file answered without asking us; False where that cannot be.

    `reader`: the addresses of C functions and of what they take (`rsync.MapReader.address`), both good until `withdraw`
    has said yes.
    """
    return _compiled is not None and bool(_compiled.lib.histfs_fuse_serve(inode, size_bytes, *reader))


def withdraw(inode: int) -> bool:
    """Serve a file no longer; False if it is just being read, and still served."""
    return _compiled is None or bool(_compiled.lib.histfs_fuse_withdraw(inode))


def reads_served(inode: int) -> int:
    """How many reads of a file were answered without asking us since this was last asked."""
    return 0 if _compiled is None else _compiled.lib.histfs_fuse_reads(inode)


def next_failure() -> tuple[int, int] | None:
    """The inode and the offset of a read that could not be answered but with EIO; None if there is no other."""
    if _compiled is None:
        return None
    place = _compiled.ffi.new("uint64_t[2]")
    return (place[0], place[1]) if _compiled.lib.histfs_fuse_failure(place, place + 1) else None


def end_serving() -> None:
    """Let those end who read for us, at the end of the session. What waits for a disk is left behind after a second."""
    if _compiled is not None:
        _compiled.lib.histfs_fuse_end()
