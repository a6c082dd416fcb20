"""What tests do with places on the disk and what processes hold of them."""

import os
from pathlib import Path


def open_descriptors() -> set[str]:
    """The numbers of this process's descriptors (one more than it has, for the listing itself)."""
    return set(os.listdir("/proc/self/fd"))


def make_deep(top: Path, depth: int, name: bytes = b"a-name") -> bytes:
    """Directories in directories below `top`, deeper than a path can say; the path of the deepest."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    return b"/".join([name] * depth)


def is_root() -> bool:
    return os.geteuid() == 0
