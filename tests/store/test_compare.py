"""Comparing a selection: what the rules exclude on one side only is no difference."""

from pathlib import Path

import pytest

from histfs.store.compare import Difference, Method, compare
from histfs.store.selection import Option, Selection
from tests.store.sessions import Sessions
from tests.trees import Dir, File, Node, build

MARKED: dict[str | bytes, Node] = {"mark": File(), "in": File(b"in")}
SMALL, LARGE = File(b"small"), File(bytes(200))


def differences(sessions: Sessions, *rules: tuple[str, bytes]) -> list[Difference]:
    found: list[Difference] = []
    selection = Selection.parse([Option(name, value) for name, value in rules], base=b"source")
    with sessions.open() as repository:
        for source in (sessions.source, Path(f"{sessions.source}2")):
            compare(
                source,
                repository,
                b"",
                sessions.now,
                method=Method.META,
                report=sessions.reported.append,
                tell=found.append,
                selection=selection,
            )
    assert sessions.reported == []
    return found


@pytest.mark.parametrize(("then", "now"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_a_file_that_grew_or_shrank_over_the_limit(sessions: Sessions, then: File, now: File) -> None:
    build(sessions.source, Dir({"d": Dir({"f": then, "gone": SMALL}), "same": SMALL}, mtime=5))
    sessions.backup()
    build(Path(f"{sessions.source}2"), Dir({"d": Dir({"f": now, "new": SMALL}), "same": SMALL}, mtime=5))
    assert differences(sessions, ("max-file-size", b"100")) == [
        Difference(b"d/gone", "deleted"),
        Difference(b"d/new", "new"),
    ]


@pytest.mark.parametrize(("then", "now"), [({}, MARKED), (MARKED, {})])
def test_a_directory_that_is_excluded_on_one_side(
    sessions: Sessions, then: dict[str | bytes, Node], now: dict[str | bytes, Node]
) -> None:
    build(sessions.source, Dir({"d": Dir({"x": SMALL, **then})}))
    sessions.backup()
    build(Path(f"{sessions.source}2"), Dir({"d": Dir({"y": SMALL, **now})}))
    assert differences(sessions, ("exclude-if-present", b"mark")) == []


def test_the_repository_in_the_source_is_left_out(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": SMALL, "z": SMALL}))
    sessions.repository = sessions.source / "kept/repository"
    (sessions.source / "kept").mkdir()
    sessions.repository.mkdir()
    sessions.backup(may_report=True)
    found: list[Difference] = []
    with sessions.open() as repository:
        compare(
            sessions.source,
            repository,
            b"",
            sessions.now,
            method=Method.META,
            report=sessions.reported.append,
            tell=found.append,
        )
    assert found == []
