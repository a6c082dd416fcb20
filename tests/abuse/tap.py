"""What the kernel was told of each inode of a mount, and what it has forgotten: `tap.c`, from Python."""

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_SUMS = struct.Struct("5Q")
_NODE = struct.Struct("Qq")


class Counts(NamedTuple):
    """`lookups` and `listed` were told with LOOKUP and READDIRPLUS; `live` has what is left of each inode."""

    lookups: int
    listed: int
    forgotten: int
    live: dict[int, int]


class Tap:
    """`environment` is for the mount that is to be watched."""

    def __init__(self, place: Path):
        if shutil.which("cc") is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("needs a C compiler")
        library = place / "tap.so"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("tap.c"), "-ldl"], check=True
        )
        self._counts = place / "counts"
        self.environment = {"LD_PRELOAD": os.fspath(library), "HISTFS_TAP": os.fspath(self._counts)}

    def read(self) -> Counts:
        data = self._counts.read_bytes()
        lookups, listed, forgotten, below_zero, lost = _SUMS.unpack_from(data)
        assert lost == 0, "more inodes than the table holds"
        assert below_zero == 0, "the kernel has forgotten what it was never told"
        nodes = _NODE.iter_unpack(data[_SUMS.size :])
        return Counts(lookups, listed, forgotten, {inode: count for inode, count in nodes if count})
