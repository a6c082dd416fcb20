"""What the tests with a real mount share."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _missing() -> str | None:
    """Why nothing can be mounted here; None if it can be."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "needs fusermount3"
    return None


@pytest.fixture(scope="session")
def fuse():
    """A kernel that mounts. Without it the test is skipped, and has failed where CI is set."""
    if reason := _missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def nothing_is_small(monkeypatch):
    """Everything is opened and read in threads, so that a test can hold it up."""
    monkeypatch.setattr("histfs._vfs_tree.SMALL_BYTES", -1)
    monkeypatch.setattr("histfs.fs.SMALL_BYTES", -1)


@pytest.fixture
def mountpoint(fuse, tmp_path):
    """An empty directory; whatever is mounted there at the end, also several times, is taken away."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while os.fsencode(path) in (line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()):
        subprocess.run(["umount" if os.geteuid() == 0 else "fusermount3", *_LAZY, path], check=True)


_LAZY = ["-l"] if os.geteuid() == 0 else ["-u", "-z"]
