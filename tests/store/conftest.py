"""What the tests of the store share."""

from pathlib import Path

import pytest

from histfs.store.files import WritableTree
from tests.store.killing import Killer
from tests.store.sessions import Sessions


@pytest.fixture(autouse=True)
def _no_barriers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """syncfs(2) waits for whatever else is being written on this computer; what it is for is tested by its place."""
    if "real_sync" not in request.keywords:
        monkeypatch.setattr(WritableTree, "sync", lambda _tree: None)


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch, _no_barriers: None) -> Killer:
    return Killer(monkeypatch)
