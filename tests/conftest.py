"""Fixtures and profiles that every test shares."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.store.sessions", "tests.store.catalogs")

from tests import oracle  # noqa: E402 - after the line above

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def rdiff_backup() -> Iterator[oracle.Oracle]:
    """The original program. Without it the test is skipped, and has failed where CI is set."""
    if reason := oracle.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with oracle.Oracle() as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the cache of the person who runs the tests, nor taken from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path_factory.mktemp("cache")))
        yield


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
