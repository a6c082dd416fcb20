"""A session tells the catalog itself what has changed: no list is read, and the rows are those of a new catalog."""

import itertools
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from histfs.store import records
from histfs.store.catalog import catalog_problem, indexing
from histfs.store.catalog.lists import Lists
from histfs.store.entry import ALL_EXTRAS, NO_EXTRAS, Extras
from tests.store import rich
from tests.store.places import is_root
from tests.store.sessions import Sessions
from tests.trees import Dir, File, Link, Symlink, build

SOME = Dir({"a": File(b"a"), "d": Dir({"x": File(b"x"), "y": File(b"y"), "z": Link("d/x")}), "l": Symlink("a")})


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to bring catalogs up to date, other than taking in what the session said."""
    done: list[str] = []
    for name in ("build", "_compare", "_follow_differences"):
        real = getattr(indexing.Indexer, name)

        def note(*arguments: object, name: str = name, real: object = real) -> object:
            done.append(name)
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(indexing.Indexer, name, note)
    return done


def check(sessions: Sessions) -> None:
    with sessions.open() as repository:
        assert catalog_problem(repository) == ""
        identity = Lists(repository, repository.state()).identity()
    assert identity.list_bytes.keys() == sessions.states.keys()


def change(source: Path, number: int) -> None:
    """Something of each kind: content, attributes, new, gone, links, another kind."""
    generator = random.Random(number)
    (source / "d" / "y").write_bytes(generator.randbytes(number + 3))
    (source / f"new{number}").write_bytes(b"new")
    (source / f"new{number - 2}").unlink(missing_ok=True)
    (source / "a").chmod(0o600 + number % 8)
    if (source / "turns").is_dir():
        shutil.rmtree(source / "turns")
    else:
        (source / "turns").unlink(missing_ok=True)
    if number % 3:
        (source / "turns").mkdir()
        (source / "turns" / "below").write_bytes(b"below %d" % number)
    else:
        (source / "turns").write_bytes(b"a file")
    if number % 4 == 1:
        os.link(source / "a", source / f"link{number}")


def test_sessions_one_after_the_other(sessions: Sessions, builds: list[str]) -> None:
    """So many that some list in between stays a full one."""
    build(sessions.source, SOME)
    sessions.backup()
    assert builds == ["build"]
    for number in range(25):
        builds.clear()
        if number % 6:  # else nothing changes
            change(sessions.source, number)
        sessions.backup()
        assert builds == []
        check(sessions)
        sessions.assert_readable(sessions.now)
    with sessions.open() as repository:
        files = repository.state().metadata.values()
        assert sum(listed.snapshot is not None for listed in files) > 1


def test_every_kind_of_change(sessions: Sessions, builds: list[str]) -> None:
    rich.back_up(sessions)
    assert builds == ["build"]
    check(sessions)


@pytest.mark.skipif(not is_root(), reason="only root can set all of them")
@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations([ALL_EXTRAS, NO_EXTRAS, Extras(xattrs=True, acls=False)], 2))
)
def test_sessions_that_record_other_extras(sessions: Sessions, first: Extras, second: Extras) -> None:
    build(sessions.source, SOME)
    os.setxattr(sessions.source / "a", "user.a", b"1")
    os.setxattr(sessions.source / "d" / "x", "user.b", b"2")
    for number, extras in enumerate([first, first, second, second, first]):
        (sessions.source / "d" / "y").write_bytes(b"%d" % number)
        sessions.backup(extras=extras)
        check(sessions)


def test_extras_that_change_alone(sessions: Sessions, builds: list[str]) -> None:
    build(sessions.source, SOME)
    sessions.backup()
    for value in (b"1", b"2", None):
        builds.clear()
        if value is None:
            os.removexattr(sessions.source / "a", "user.a")
        else:
            os.setxattr(sessions.source / "a", "user.a", value)
        sessions.backup()
        assert builds == []
        check(sessions)


def test_too_much_to_be_told(sessions: Sessions, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, SOME)
    sessions.backup()
    builds.clear()
    monkeypatch.setattr(records, "_MOST_DIFFERING_BYTES", 300)
    change(sessions.source, 1)
    sessions.backup()
    assert builds == ["_follow_differences"]
    check(sessions)


def test_a_catalog_that_is_behind(sessions: Sessions, builds: list[str]) -> None:
    """It needs more than what the last session has to tell."""
    build(sessions.source, SOME)
    sessions.backup()
    kept = (sessions.data / "histfs" / "catalog.sqlite").read_bytes()
    change(sessions.source, 1)
    sessions.backup()
    (sessions.data / "histfs" / "catalog.sqlite").write_bytes(kept)
    builds.clear()
    change(sessions.source, 2)
    sessions.backup()
    assert builds == ["_follow_differences"]
    check(sessions)


def test_a_catalog_that_says_something_else_is_made_anew(sessions: Sessions, builds: list[str]) -> None:
    build(sessions.source, SOME)
    sessions.backup()
    builds.clear()
    with sqlite3.connect(sessions.data / "histfs" / "catalog.sqlite") as database:
        database.execute("update version set number = number + 1 where name = ?", (b"y",))
    change(sessions.source, 1)
    sessions.backup()
    assert builds == ["build"]
    check(sessions)
