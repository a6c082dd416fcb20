"""The walk of a source with rules: what is looked at, what is kept, and what becomes of it in a session."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.errors import SourceError
from histfs.store.backup import backup
from histfs.store.selection import Option, Selection
from histfs.store.source import Found, Source, Unreadable
from histfs.store.tree import Tree
from histfs.store.walk import Walk
from tests import comparison
from tests.comparison import difference
from tests.store.places import open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import Dir, Fifo, File, Link, Symlink, build

TAG = b"Signature: 8a477f597d28d172789f06886806bc55"


def selection(*options: Sequence[bytes]) -> Selection:
    return Selection.parse([Option(name.decode(), *rest) for name, *rest in options], b"/source")


def walk(path: Path, *options: Sequence[bytes]) -> list[Found | Unreadable]:
    with Source.open(path, selection(*options)) as source:
        return list(source.walk(lambda _path, _status: False))


def paths(path: Path, *options: Sequence[bytes]) -> list[bytes]:
    found = walk(path, *options)
    assert not any(isinstance(item, Unreadable) for item in found)
    return [item.path for item in found]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths whose attributes or names are read."""
    seen: list[bytes] = []
    stat, look, enter = Tree.stat, Walk.look, Walk.enter
    monkeypatch.setattr(Tree, "stat", lambda tree, path: (seen.append(path), stat(tree, path))[1])
    monkeypatch.setattr(Walk, "look", lambda walk: (seen.append(walk.path), look(walk))[1])
    monkeypatch.setattr(Walk, "enter", lambda walk, ns: (seen.append(walk.path), enter(walk, ns))[1])
    return seen


def test_what_is_excluded_by_name_is_not_looked_at(top: Path, looked_at: list[bytes]) -> None:
    build(top, Dir({"a": Dir({"x.o": File(), "y": File()}), "out": Dir({"z": File()}), "x.o": File()}))
    rules = (b"exclude-fifos",), (b"exclude", b"*.o"), (b"exclude", b"./out")
    assert paths(top, *rules) == [b"", b"a", b"a/y"]
    assert set(looked_at) == {b"", b"a", b"a/y"}


def test_what_is_not_wanted_is_not_looked_at_unless_it_is_a_directory(top: Path, looked_at: list[bytes]) -> None:
    build(top, Dir({"a": Dir({"x.c": File(), "y": File()}), "b": Dir({"z": File()}), "x": File()}))
    assert paths(top, (b"include", b"*.c"), (b"exclude", b"*")) == [b"", b"a", b"a/x.c"]
    assert set(looked_at) == {b"", b"a", b"a/x.c", b"b"}


def test_an_excluded_directory_is_not_listed(top: Path, looked_at: list[bytes]) -> None:
    build(top, Dir({"a": Dir({".nobackup": File(), "x": Dir()}), "b": Dir({"y": File()})}))
    assert paths(top, (b"exclude-if-present", b".nobackup")) == [b"", b"b", b"b/y"]
    assert b"a/x" not in looked_at


def test_caches(top: Path) -> None:
    tree = {
        "cache": Dir({"CACHEDIR.TAG": File(TAG + b"\n# a comment"), "x": Dir({"y": File()})}),
        "exactly": Dir({"CACHEDIR.TAG": File(TAG)}),
        "link": Dir({"CACHEDIR.TAG": Symlink("../cache/CACHEDIR.TAG")}),
        "other": Dir({"CACHEDIR.TAG": File(b"Signature: something")}),
        "short": Dir({"CACHEDIR.TAG": File(TAG[:-1])}),
        "waiting": Dir({"CACHEDIR.TAG": Fifo()}),
    }
    build(top, Dir(tree))
    before = open_descriptors()
    found = paths(top, (b"exclude-caches",))
    assert {path for path in found if b"/" not in path} == {b"", b"link", b"other", b"short", b"waiting"}
    assert open_descriptors() == before


def test_a_scanned_directory_that_cannot_be_listed_is_kept(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(top, Dir({"a": Dir({"b": Dir({"x.c": File()}), "c": Dir({"x": File()})})}))
    real = Walk.enter

    def enter(walk: Walk, mirror_ctime_ns: int) -> bool:
        if walk.path == b"a/b":
            raise PermissionError(13, "Permission denied", walk.path)
        return real(walk, mirror_ctime_ns)

    monkeypatch.setattr(Walk, "enter", enter)
    found = walk(top, (b"include", b"*.c"), (b"exclude", b"*"))
    assert [(type(item), item.path) for item in found] == [
        *((Found, b""), (Found, b"a"), (Found, b"a/b"), (Unreadable, b"a/b"))
    ]


def test_only_what_is_selected_can_be_in_the_way(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(top, Dir({"a": Dir({"dead": Dir(), "x": File()})}))
    real = Walk.look

    def look(walk: Walk) -> object:
        if walk.path == b"a/dead":
            raise OSError(107, "Transport endpoint is not connected", walk.path)
        return real(walk)

    monkeypatch.setattr(Walk, "look", look)
    assert paths(top, (b"exclude", b"dead")) == [b"", b"a", b"a/x"]
    [problem] = [item for item in walk(top, (b"exclude", b"alive")) if isinstance(item, Unreadable)]
    assert isinstance(problem.error, SourceError)


def test_what_is_excluded_from_now_on_is_deleted(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"a": File(b"1"), "b": Dir({"x": File(b"2")}), "c": File(b"3"), "d": Link("a")}))
    sessions.backup()
    now = FIRST + DAY
    outcome = backup(
        sessions.source,
        sessions.repository,
        now=now,
        report=sessions.reported.append,
        selection=selection((b"exclude", b"b"), (b"exclude", b"d")),
    )
    assert (outcome.statistics.deleted_files, sessions.reported) == (3, [])
    sessions.now = now
    sessions.states[now] = sessions.manifest(now)
    assert set(sessions.states[now]) == {b"", b"a", b"c"}
    sessions.backup()
    sessions.assert_all_readable()
    assert not difference(comparison.read(sessions.source), sessions.manifest(sessions.now))
