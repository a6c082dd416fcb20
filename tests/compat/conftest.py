"""Where the repositories of these tests lie."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 1 << 30


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory where there is enough: every session syncs its file system, and disks are slow."""
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _ENOUGH_BYTES:
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="histfs-test-", dir=_MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
