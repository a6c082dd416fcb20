"""Rules that ask what else is in a directory, where the tree is a snapshot."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.store.compare import Method
from histfs.store.restore import restore
from histfs.store.selection import CACHE_SIGNATURE, Option, Selection
from tests import comparison
from tests.store.sessions import Sessions
from tests.trees import Dir, File, Symlink, build


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    sessions = Sessions(tmp_path)
    tree = {
        "a": Dir({".nobackup": File(), "x": Dir({"y": File(b"y")})}),
        "b": Dir({"CACHEDIR.TAG": File(CACHE_SIGNATURE + b"\n"), "z": File(b"z")}),
        "c": Dir({"CACHEDIR.TAG": Symlink("../b/CACHEDIR.TAG"), "d": Dir({"keep": File(), "e": Dir()})}),
        "f": Dir({"CACHEDIR.TAG": File(CACHE_SIGNATURE[:-1])}),
    }
    build(sessions.source, Dir(tree))
    sessions.backup()
    return sessions


def restored(sessions: Sessions, target: Path, path: bytes, *rules: Sequence[bytes]) -> set[bytes]:
    selection = Selection.parse([Option(name.decode(), *rest) for name, *rest in rules], bytes(target))
    with sessions.open() as repository:
        restore(repository, path, sessions.now, target, report=sessions.reported.append, selection=selection)
    assert sessions.reported == []
    return set(comparison.read(target)) - {b""}


def test_restore_leaves_out_what_is_marked(sessions: Sessions, tmp_path: Path) -> None:
    found = restored(sessions, tmp_path / "one", b"", (b"exclude-caches",), (b"exclude-if-present", b".nobackup"))
    assert {path for path in found if b"/" not in path} == {b"c", b"f"}
    found = restored(sessions, tmp_path / "two", b"", (b"include-if-present", b"d/keep"), (b"exclude", b"**"))
    assert found == {b"c", b"c/CACHEDIR.TAG"}


def test_what_is_below_a_path(sessions: Sessions, tmp_path: Path) -> None:
    found = restored(sessions, tmp_path / "target", b"c", (b"exclude-if-present", b"keep"))
    assert found == {b"CACHEDIR.TAG"}


def test_what_is_damaged_is_no_cache(sessions: Sessions, tmp_path: Path) -> None:
    (sessions.repository / "b" / "CACHEDIR.TAG").write_bytes(b"Something of another size")
    found = restored(sessions, tmp_path / "target", b"", (b"exclude-caches",), (b"exclude", b"./b/CACHEDIR.TAG"))
    assert b"b/z" in found


def test_compare(sessions: Sessions) -> None:
    (sessions.source / "b" / "z").write_bytes(b"changed")
    (sessions.source / "f" / "g").touch()
    selection = Selection.parse([Option("exclude-caches")], bytes(sessions.source))
    told = sessions.compare(method=Method.HASH, selection=selection)
    assert [(difference.path, sessions.reported) for difference in told if difference.path != b"f"] == [(b"f/g", [])]
