"""What a path's history is said to be, against what was done to it."""

import os

import pytest

from histfs.errors import NotFoundError
from histfs.store import inventory
from histfs.store.catalog import open_catalog
from histfs.store.layout import INCREMENTS
from tests.store import rich
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import Dir, File, build


def history(sessions: Sessions, path: bytes) -> list[tuple[int, tuple[str, ...], int]]:
    """When (the number of the session), what, and until when."""
    with sessions.open() as repository, open_catalog(repository) as catalog:
        found = inventory.history_of(path, catalog)
    return [((change.time - FIRST) // DAY, change.what, (change.last - FIRST) // DAY) for change in found]


def test_a_path_that_comes_and_goes(sessions: Sessions) -> None:
    build(sessions.source, Dir({"other": File()}))
    path = sessions.source / "path"
    sessions.backup()
    path.write_bytes(b"one")
    sessions.backup()
    sessions.backup()
    path.unlink()
    sessions.backup()
    sessions.backup()
    path.symlink_to("x")
    sessions.backup()
    path.unlink()
    path.symlink_to("y")
    sessions.backup()
    path.unlink()
    build(path, Dir({"in": File()}))
    sessions.backup()
    assert history(sessions, b"path") == [
        (1, ("new",), 2),
        (3, ("deleted",), 4),
        (5, ("new",), 5),
        (6, ("target",), 6),
        (7, ("type",), 7),
    ]
    assert history(sessions, b"path/in") == [(7, ("new",), 7)]
    assert history(sessions, b"never") == []
    assert history(sessions, b"never/in") == []
    assert history(sessions, b"")[0] == (0, ("new",), 0)


def test_what_changes_alone(sessions: Sessions) -> None:
    build(sessions.source, Dir({"f": File(b"1", mtime=10, mode=0o644)}))
    path = sessions.source / "f"
    sessions.backup()
    os.utime(path, (20, 20))
    sessions.backup()
    path.chmod(0o600)
    sessions.backup()
    os.link(path, sessions.source / "g")
    sessions.backup()
    path.write_bytes(b"22")
    os.utime(path, (20, 20))
    sessions.backup()
    whats = [what for _, what, _ in history(sessions, b"f")]
    assert whats == [("new",), ("time",), ("mode",), ("links",), ("content",)]


def test_sizes_by_statistics_are_those_of_the_files(rich_sessions: Sessions) -> None:
    """Also of long names, and of parts."""
    sessions = rich_sessions
    with sessions.open() as repository, open_catalog(repository) as catalog:
        quick = inventory.increment_sizes(repository)
        for path in sessions.data.glob("session_statistics.*"):
            path.unlink()
        assert inventory.increment_sizes(repository) == quick
        assert len(quick) == 3
        files = [*repository.tree.files_below(INCREMENTS), *repository.tree.files_below(repository.layout.long_names)]
        assert files
        parts = [
            inventory.increment_sizes_below(repository, child.name, catalog)
            for time in repository.sessions()
            for child in catalog.children(catalog.root(time).directory, time)
        ]
        assert max(sum(part.values()) for part in parts) < sum(quick.values())
        longest = inventory.increment_sizes_below(repository, rich.LONG.encode(), catalog)
        assert sum(longest.values()) > 0


def test_changes_since(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "b": File(b"b"), "d": Dir({"c": File(b"c")})}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    (sessions.source / "b").unlink()
    (sessions.source / "d/new").write_bytes(b"new")
    sessions.backup()
    with sessions.open() as repository:

        def named(path: bytes) -> list[tuple[bytes | None, bytes | None]]:
            found = inventory.changes_since(repository, path, FIRST, pytest.fail)
            return [(old and old.path, new and new.path) for old, new in found]

        assert (b"a", b"a") in named(b"")
        assert (b"b", None) in named(b"")
        assert (None, b"d/new") in named(b"d")
        assert (b"a", b"a") not in named(b"d")
        assert named(b"b") == [(b"b", None)]
        with pytest.raises(NotFoundError):
            named(b"nothing")
