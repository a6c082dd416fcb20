"""pyfuse3, loaded in the one order in which `histfs._fuse` can stand before libfuse. Import it from here only.

`_fuse` spares all requests about opening and closing, and lets the kernel cache directories (_fuse_build.py says how).
Where it is missing, or comes too late since somebody has imported pyfuse3 before, all works as without it.
"""

import os
import sys
from types import ModuleType

__all__ = ["is_by_inode", "pyfuse3"]


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
