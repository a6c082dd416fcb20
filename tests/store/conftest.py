"""What the tests of the store share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.store import copying, ledger, walk
from histfs.store.walk import Walk
from tests.store import rich
from tests.store.barriers import remove_barriers
from tests.store.killing import Killer
from tests.store.places import is_root
from tests.store.sessions import Sessions


@pytest.fixture(autouse=True)
def _no_barriers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_sync" not in request.fixturenames:
        remove_barriers(monkeypatch)


@pytest.fixture(autouse=True)
def _settled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made just before a session counts as made long before, so that the next one may pass over it."""
    is_racy = {"failing", "racy"} & set(request.fixturenames)
    monkeypatch.setattr(ledger, "_SETTLED_AFTER_NS", 10**12 if is_racy else -(10**12))


@pytest.fixture(autouse=True)
def _scouted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads look ahead of each comparison, a few records at a time; in real ones only where there are many."""
    monkeypatch.setattr(walk, "_SCOUTED_FROM", 0)
    monkeypatch.setattr(walk, "_SCOUTED_AT_ONCE", 3)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for it has all files copied where Python can be in the way."""
    monkeypatch.setattr(copying, "MAX_BYTES", -1)


@pytest.fixture
def racy() -> None:
    """Asking for it makes everything count as just changed: each session looks at all of it."""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths below the root that Python has looked at."""
    found: list[bytes] = []
    real = Walk.look
    monkeypatch.setattr(Walk, "look", lambda walk: (found.append(walk.path), real(walk))[1])
    return found


@pytest.fixture
def real_sync() -> None:
    """Asking for it keeps the barriers."""


@pytest.fixture
def other_file_systems() -> None:
    """Asking for it skips the test where nothing can be mounted by who has a namespace of mounts of their own."""
    if (
        not is_root()
        or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
    ):
        pytest.skip("only root can mount")


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


@pytest.fixture
def rich_sessions(sessions: Sessions) -> Sessions:
    """Four, in which every kind of file came, went and changed."""
    rich.back_up(sessions)
    return sessions


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch, _no_barriers: None) -> Killer:
    return Killer(monkeypatch)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory for trees that are too deep for what removes tmp_path."""
    path = tmp_path / "deep"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)
