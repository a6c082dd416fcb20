"""A history that the tests share, and what those of the mount have."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.abuse.past import Past
from tests.mount.conftest import fuse, mountpoint  # noqa: F401 - fixtures

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def past(tmp_path_factory):
    """A dozen sessions, which nobody changes; in memory where that can be."""
    place = Path(tempfile.mkdtemp(prefix="histfs-abuse-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        made = Past(place)
        for _ in range(12):
            made.session()
        yield made
    finally:
        shutil.rmtree(place)


@pytest.fixture
def own_past(scratch):
    """A history of two sessions that the test may change."""
    made = Past(scratch, image_bytes=1 << 20)
    made.session()
    made.session()
    return made
