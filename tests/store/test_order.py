"""The order of changes in a session: nothing old goes before what preserves it is on the disk (docs/format.md 8.3).

Every change that a session makes is recorded, with the barriers between them, and read like a log.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from histfs.store import batch
from histfs.store.begun import BEGUN
from histfs.store.files import WritableTree
from histfs.store.ledger import LEDGER
from histfs.store.regress import regress
from histfs.store.source import Source
from histfs.store.tree import Tree
from tests.store import rich
from tests.store.sessions import Sessions, stamp

DATA = b"rdiff-backup-data/"
CHANGES = (
    *("create_file", "link", "make_directory", "make_special", "make_symlink", "remove_directory", "rename"),
    *("set_attributes", "sync", "sync_directory", "unlink", "write_file"),
)
Call = tuple[str, Any]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """(method, arguments) of each change of a WritableTree, in order."""
    calls: list[Call] = []

    def recorded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(tree: WritableTree, *arguments: Any, **options: Any) -> Any:
            if not any(isinstance(path, bytes) and path.startswith((LEDGER, BEGUN)) for path in arguments):
                calls.append((name, arguments))
            return real(tree, *arguments, **options)

        return change

    for name in CHANGES:
        monkeypatch.setattr(WritableTree, name, recorded(name, getattr(WritableTree, name)))
    return calls


@pytest.fixture(params=[3, 1000], ids=["small batches", "one batch"])
def third_session(
    request: pytest.FixtureRequest, sessions: Sessions, log: list[Call], monkeypatch: pytest.MonkeyPatch
) -> tuple[Sessions, list[Call], set[bytes]]:
    """A session in which everything happens, its log, and the paths that the mirror held before."""
    monkeypatch.setattr(batch, "MAX_CHANGES", request.param)
    rich.first(sessions.source)
    sessions.backup()
    rich.second(sessions.source)
    rich.third(sessions.source)
    sessions.backup()
    rich.fourth(sessions.source)
    held = {path for path in _all_paths(sessions) if not path.startswith(DATA)}
    log.clear()
    sessions.backup()
    return sessions, list(log), held


def _all_paths(sessions: Sessions) -> set[bytes]:
    top = os.fsencode(sessions.repository)
    return {
        os.path.relpath(os.path.join(place, name), top)
        for place, directories, files in os.walk(top)
        for name in (*directories, *files)
    }


def _until_catalog(log: list[Call]) -> list[Call]:
    """The calls of the session itself; behind them nothing is touched but the directory of the catalog.

    What is in that directory is left out: it is derived, and nothing waits for it.
    """
    end = max(at for at, call in enumerate(log) if call == ("make_directory", (DATA + b"histfs",)))
    for _, arguments in log[end + 1 :]:
        assert not any(isinstance(path, bytes) and path.startswith(DATA[:-1]) for path in arguments)
    return [call for call in log[:end] if call != log[end]]


def _barriers(log: list[Call]) -> list[int]:
    return [number for number, (name, _) in enumerate(log) if name == "sync"]


def _changed_mirror_path(call: Call) -> bytes | None:
    """The path that is replaced, removed or gets attributes."""
    name, arguments = call
    if name == "rename":
        return arguments[1]
    if name in ("unlink", "remove_directory", "set_attributes"):
        return arguments[0]
    return None


def test_the_old_goes_after_a_barrier(third_session: tuple[Sessions, list[Call], set[bytes]]) -> None:
    """For each change of what the mirror held: its increment and its new content were written before a barrier."""
    sessions, log, held = third_session
    barriers = _barriers(log)
    written = {arguments[0]: number for number, (name, arguments) in enumerate(log) if name.startswith(("cr", "make"))}
    links = {arguments[1]: number for number, (name, arguments) in enumerate(log) if name == "link"}
    previous = stamp(sorted(sessions.states)[1]).encode()
    checked = 0
    for number, call in enumerate(log):
        path = _changed_mirror_path(call)
        if path is None or path not in held or b"rdiff-backup.tmp." in path:
            continue
        before = [barrier for barrier in barriers if barrier < number]
        assert before, call
        needed = [at for name, at in written.items() if name.startswith(DATA + b"increments/" + path + b"." + previous)]
        if call[0] == "rename":
            needed.append((written | links)[call[1][0]])
        for at in needed:
            assert at < max(before), call
            assert any(at < barrier < number for barrier in barriers), call
        checked += bool(needed)
    assert checked > 25


def test_new_names_need_no_barrier_and_old_ones_are_never_written(
    third_session: tuple[Sessions, list[Call], set[bytes]],
) -> None:
    """What is created has a name that the mirror did not hold, or one that was removed before."""
    _, log, held = third_session
    there = set(held)
    for call in log:
        name, arguments = call
        if name in ("create_file", "make_directory", "make_symlink", "make_special") or name == "link":
            path = arguments[1] if name == "link" else arguments[0]
            assert path not in there or path.startswith(DATA[:-1]), call
            there.add(path)
        elif name in ("unlink", "remove_directory"):
            there.discard(arguments[0])
        elif name == "rename":
            there.discard(arguments[0])
            there.add(arguments[1])


def test_the_marker_is_durable_before_the_first_change(
    third_session: tuple[Sessions, list[Call], set[bytes]],
) -> None:
    sessions, log, held = third_session
    marker = DATA + b"current_mirror." + stamp(sessions.now).encode() + b".data"
    written = log.index(("write_file", (marker, [b"PID %d\n" % os.getpid()])))
    durable = log.index(("sync_directory", (b"rdiff-backup-data",)))
    assert written < durable
    for name, arguments in log[:durable]:
        assert all(path.startswith(DATA[:-1]) for path in arguments if isinstance(path, bytes)), name
    assert all(_changed_mirror_path(call) not in held for call in log[:durable])


def test_the_commit_is_the_last_of_all(third_session: tuple[Sessions, list[Call], set[bytes]]) -> None:
    sessions, log, _ = third_session
    previous = stamp(sorted(sessions.states)[1]).encode()
    marker, list_ = DATA + b"current_mirror." + previous + b".data", DATA + b"mirror_metadata." + previous
    log = _until_catalog(log)
    assert log[-5:] == [
        ("sync", ()),
        ("unlink", (list_ + b".snapshot.gz",)),
        ("sync_directory", (b"rdiff-backup-data",)),
        ("unlink", (marker,)),
        ("sync_directory", (b"rdiff-backup-data",)),
    ]
    assert log.index(("create_file", (list_ + b".diff.gz",))) < len(log) - 5


def test_a_first_session_is_marked_when_all_of_it_is_on_the_disk(sessions: Sessions, log: list[Call]) -> None:
    rich.first(sessions.source)
    sessions.backup()
    marker = DATA + b"current_mirror." + stamp(sessions.now).encode() + b".data"
    last = [(name, arguments[:1]) for name, arguments in _until_catalog(log)[-4:]]
    assert last == [
        ("sync", ()),
        ("write_file", (marker,)),
        ("create_file", (marker,)),
        ("sync_directory", (b"rdiff-backup-data",)),
    ]
    assert len(_barriers(log)) == 1


def test_the_order_of_a_recovery(sessions: Sessions, log: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebuilt files take their places after a barrier, increments go after another, the marker after a third."""
    rich.first(sessions.source)
    sessions.backup()
    for step in (rich.second, rich.third):
        step(sessions.source)
        sessions.backup()
    rich.fourth(sessions.source)
    monkeypatch.setattr("histfs.store.backup._Session._commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sessions.backup()
    monkeypatch.undo()
    calls: list[Call] = []
    _record(monkeypatch, calls)
    regress(sessions.repository, report=sessions.reported.append)
    barriers = _barriers(calls)
    assert len(barriers) >= 3
    kinds = [_kind(call, sessions) for call in calls]
    placed = [number for number, kind in enumerate(kinds) if kind == "place"]
    removed = [number for number, kind in enumerate(kinds) if kind == "increment"]
    marker = [number for number, kind in enumerate(kinds) if kind == "marker"]
    assert len(placed) > 10
    assert len(removed) > 20
    assert min(barriers) < min(placed)
    for earlier, later in ((placed, removed), (removed, marker)):
        assert any(max(earlier) < barrier < min(later) for barrier in barriers)
    rebuilt = {arguments[0] for name, arguments in calls if name == "create_file"}
    for number in placed:
        created = next(at for at, (name, arguments) in enumerate(calls) if calls[number][1][0] in arguments)
        assert any(created < barrier < number for barrier in barriers)
    assert rebuilt


def _record(monkeypatch: pytest.MonkeyPatch, calls: list[Call]) -> None:
    def recorded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(tree: WritableTree, *arguments: Any, **options: Any) -> Any:
            if not any(isinstance(path, bytes) and path.startswith((LEDGER, BEGUN)) for path in arguments):
                calls.append((name, arguments))
            return None if name == "sync" else real(tree, *arguments, **options)

        return change

    for name in CHANGES:
        monkeypatch.setattr(WritableTree, name, recorded(name, getattr(WritableTree, name)))


def _kind(call: Call, sessions: Sessions) -> str:
    name, arguments = call
    if name == "rename" and not arguments[1].startswith(DATA):
        return "place"
    if name == "unlink" and arguments[0].startswith(DATA + b"current_mirror"):
        return "marker"
    if name == "unlink" and arguments[0].startswith(DATA + b"increments"):
        return "increment"
    return name


def test_the_source_is_never_changed(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it read but through a Tree that cannot change anything."""
    rich.first(sessions.source)
    before = {path: os.lstat(os.path.join(os.fsencode(sessions.source), path)) for path in _below(sessions)}
    with Source.open(sessions.source) as source:
        assert type(source._tree) is Tree
    sessions.backup()
    after = {path: os.lstat(os.path.join(os.fsencode(sessions.source), path)) for path in _below(sessions)}
    for path, status in before.items():
        new = after[path]
        assert (new.st_mtime_ns, new.st_ctime_ns, new.st_ino) == (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    shutil.rmtree(sessions.source)
    sessions.assert_readable(sessions.now)


def _below(sessions: Sessions) -> list[bytes]:
    top = os.fsencode(sessions.source)
    return [
        os.path.relpath(os.path.join(place, name), top)
        for place, directories, files in os.walk(top)
        for name in (*directories, *files)
    ]
