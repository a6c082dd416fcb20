"""Removing paths from the whole history: nothing of them is left, all else is as it was, also when stopped."""

import gzip
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.errors import DamagedError, UnfinishedError
from histfs.store import inventory
from histfs.store.catalog import open_catalog
from histfs.store.layout import CHARS_TO_QUOTE
from histfs.store.remove import RemovedPaths, remove_paths
from tests.comparison import Manifest, difference, read
from tests.store import rich
from tests.store.catalogs import fresh_rows, own_rows
from tests.store.killing import Killer
from tests.store.sessions import DAY, FIRST, Sessions, manifest_of, quote_names, stamp
from tests.trees import MTIME, Dir, File, Link, build

CHOSEN = [
    *(b"changed", b"deleted", b"empty", b"kept", b"gone", b"new", b"directory-to-file", b"file-to-directory"),
    *(b"symlink", b"fifo", b"odd\nname\\", b"\xff\xfe", rich.LONG.encode(), rich.LONGEST.encode(), b"g1-a", b"g3-b"),
    *(b"gone/b", b"gone/b/d", b"directory-to-file/below"),
]


def copied(sessions: Sessions, name: str = "copy") -> Sessions:
    copy = Sessions(sessions.repository.parent / name)
    subprocess.run(["rm", "-rf", copy.repository.parent], check=True)
    copy.repository.parent.mkdir()
    subprocess.run(["cp", "-a", sessions.repository, copy.repository.parent], check=True)
    copy.source, copy.states, copy.now = sessions.source, dict(sessions.states), sessions.now
    return copy


def is_gone(path: bytes, removed: Sequence[bytes]) -> bool:
    return any(path == one or path.startswith(one + b"/") for one in removed)


def without(manifest: Manifest, removed: Sequence[bytes]) -> Manifest:
    """`manifest` without paths; the others are linked among themselves."""
    left = {path: found for path, found in manifest.items() if not is_gone(path, removed)}
    for path, found in left.items():
        if found.links is not None:
            links = tuple(link for link in found.links if not is_gone(link, removed))
            left[path] = found._replace(links=links, nlink=len(links))
    return left


def remove(sessions: Sessions, *paths: bytes) -> RemovedPaths:
    outcome = remove_paths(sessions.repository, paths)
    sessions.states = {time: without(state, paths) for time, state in sessions.states.items()}
    return outcome


def everything(sessions: Sessions) -> bytes:
    """All names on the disk, and all bytes of the lists."""
    parts = []
    for place, below, names in os.walk(os.fsencode(sessions.repository)):
        parts += [*below, *names]
        if os.path.basename(place) == b"rdiff-backup-data":
            for name in names:
                content = Path(os.fsdecode(os.path.join(place, name))).read_bytes()
                parts.append(gzip.decompress(content) if name.endswith(b".gz") else content)
    return b"\0".join(parts)


@pytest.mark.parametrize("path", CHOSEN)
def test_one_path(rich_sessions: Sessions, path: bytes) -> None:
    outcome = remove(rich_sessions, path)
    assert outcome.missing == ()
    rich_sessions.assert_all_readable()
    rich_sessions.assert_mirror_is(rich_sessions.now)
    assert own_rows(rich_sessions.repository) == fresh_rows(rich_sessions.repository)
    assert remove_paths(rich_sessions.repository, [path]) == ((), (), (path,))
    rich_sessions.backup()
    rich_sessions.assert_all_readable()
    rich_sessions.assert_mirror_is(rich_sessions.now)


@pytest.mark.parametrize("chars", [b"", b"A-Z;"])
def test_all_at_once(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, chars: bytes) -> None:
    quote_names(monkeypatch, chars)
    rich.back_up(sessions)
    assert (sessions.repository / os.fsdecode(CHARS_TO_QUOTE)).read_bytes() == chars
    assert remove(sessions, *CHOSEN, b"N" * 210, b"never").missing == (b"never",)
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)
    numbers = [name for name in os.listdir(sessions.data / "long_filename_data") if name != "next_free"]
    assert numbers == []
    sessions.backup()
    sessions.assert_all_readable()


def test_nothing_tells_of_it_any_more(sessions: Sessions) -> None:
    build(sessions.source, Dir({"plain": File(b"1"), "SECRET": Dir({"SECRET-too": File(b"2"), "in": File(b"3")})}))
    sessions.backup()
    (sessions.source / "SECRET/SECRET-too").write_bytes(b"22")
    (sessions.source / "SECRET/new-SECRET").write_bytes(b"22")
    sessions.backup()
    (sessions.source / "SECRET/in").unlink()
    sessions.backup()
    assert b"SECRET" in everything(sessions)
    remove(sessions, b"SECRET")
    assert b"SECRET" not in everything(sessions)
    assert b"SECRET" not in (sessions.data / "histfs/catalog.sqlite").read_bytes()
    sessions.assert_all_readable()


def test_a_name_that_only_begins_alike_stays(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"1"), "a b": File(b"2"), "a.txt": File(b"3"), "ab": Dir({"a": File(b"4")})}))
    sessions.backup()
    for name in ("a", "a b", "a.txt", "ab/a"):
        (sessions.source / name).write_bytes(b"changed " + name.encode())
    sessions.backup()
    remove(sessions, b"a")
    sessions.assert_all_readable()
    [statistics] = sessions.data.glob(f"file_statistics.{stamp(sessions.now)}.*")
    names = [line.rsplit(b" ", 4)[0] for line in gzip.decompress(statistics.read_bytes()).splitlines()[2:]]
    assert names == [b".", b"a b", b"a.txt", b"ab", b"ab/a"]


def test_attributes_go_too(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a b": File(b"1"), "c": File(b"2")}))
    sessions.backup()
    lists = {
        "extended_attributes": b"# file: .\nuser.x=0seA==\n# file: a\\040b\nuser.x=0seA==\n# file: c\nuser.x=0seA==\n",
        "access_control_lists": b"# file: a\\040b\nuser::rw-\ngroup::r--\nother::r--\n",
    }
    for base, text in lists.items():
        (sessions.data / f"{base}.{stamp(FIRST)}.snapshot.gz").write_bytes(gzip.compress(text))
    remove(sessions, b"a b")
    left = {
        base: gzip.decompress((sessions.data / f"{base}.{stamp(FIRST)}.snapshot.gz").read_bytes()) for base in lists
    }
    assert left["extended_attributes"] == b"# file: .\nuser.x=0seA==\n# file: c\nuser.x=0seA==\n"
    assert left["access_control_lists"] == b""


def test_the_digest_goes_to_the_next_link(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"linked"), "b": Link("a"), "c": Link("a"), "other": File(b"1")}))
    sessions.backup()
    (sessions.source / "other").write_bytes(b"22")
    sessions.backup()
    remove(sessions, b"a")
    assert [sessions.entry(path).sha1 is None for path in (b"b", b"c")] == [False, True]
    sessions.assert_all_readable()
    assert sessions.verify(FIRST).without_digest == 0


def test_the_digest_is_that_of_the_session(sessions: Sessions) -> None:
    """The same size and time do not say that it is the same content."""
    build(sessions.source, Dir({"a": File(b"linked"), "b": Link("a")}))
    sessions.backup()
    for content in (b"Linked", b"LINKED"):
        (sessions.source / "a").write_bytes(content)
        os.utime(sessions.source / "a", (MTIME, MTIME))
        os.chmod(sessions.source / "a", 0o600 if content == b"Linked" else 0o644)
        sessions.backup()
    remove(sessions, b"a")
    sessions.assert_all_readable()
    assert [sessions.verify(time).without_digest for time in sessions.states] == [0, 0, 0]


def test_the_time_of_the_directory_stays(sessions: Sessions) -> None:
    build(sessions.source, Dir({"d": Dir({"a": File(), "b": File()}, mtime=1_000_000_007)}))
    sessions.backup()
    remove(sessions, b"d/a")
    assert os.stat(sessions.repository / "d").st_mtime == 1_000_000_007
    sessions.assert_mirror_is(sessions.now)


def test_a_dry_run_changes_nothing(rich_sessions: Sessions) -> None:
    before = read(rich_sessions.repository)
    outcome = remove_paths(rich_sessions.repository, [b"changed", b"never"], dry_run=True)
    assert outcome.missing == (b"never",)
    assert b"changed" in outcome.removed
    assert sum(b"/increments/changed." in path for path in outcome.removed) > 0
    assert any(b"/mirror_metadata." in path for path in outcome.rewritten)
    assert read(rich_sessions.repository) == before


def test_a_list_that_cannot_be_read_stops_it(rich_sessions: Sessions) -> None:
    [path] = rich_sessions.data.glob(f"mirror_metadata.{stamp(FIRST)}.*")
    path.write_bytes(path.read_bytes()[:-20])
    before = read(rich_sessions.repository)
    with pytest.raises(DamagedError, match="truncated"):
        remove_paths(rich_sessions.repository, [b"changed"])
    assert read(rich_sessions.repository) == before


def test_not_in_a_session_that_did_not_finish(rich_sessions: Sessions) -> None:
    (rich_sessions.data / f"current_mirror.{stamp(rich_sessions.now + DAY)}.data").write_text("PID 999999999\n")
    with pytest.raises(UnfinishedError):
        remove_paths(rich_sessions.repository, [b"changed"])


def test_damaged_records_are_carried_over(rich_sessions: Sessions) -> None:
    [path] = rich_sessions.data.glob(f"mirror_metadata.{stamp(rich_sessions.now)}.*")
    text = gzip.decompress(path.read_bytes()) + b"File zz\n  Type strange\n  New field\n"
    path.write_bytes(gzip.compress(text))
    remove_paths(rich_sessions.repository, [b"changed"])
    assert gzip.decompress(path.read_bytes()).endswith(b"File zz\n  Type strange\n  New field\n")


def test_sizes_are_measured_from_then_on(rich_sessions: Sessions) -> None:
    with rich_sessions.open() as repository:
        before = inventory.increment_sizes(repository)
    remove(rich_sessions, b"changed")
    with rich_sessions.open() as repository, open_catalog(repository):
        after = inventory.increment_sizes(repository)
    assert sum(after.values()) < sum(before.values())


# Stopped at any moment


def assert_whole_or_gone(sessions: Sessions, removed: Sequence[bytes]) -> None:
    """Every session shows the paths as they were, or nothing of them; all else is as it was."""
    with sessions.open() as repository:
        assert repository.sessions() == tuple(sessions.states)
        for time, state in sessions.states.items():
            snapshot = repository.snapshot(time)
            try:
                found = manifest_of(snapshot)
            finally:
                snapshot.close()
            gone = [path for path in removed if path not in found]
            expected = without(state, gone)
            for path in filter(
                lambda path: is_gone(path, removed), found
            ):  # what they are called by goes a step before
                found[path] = found[path]._replace(xattrs=expected[path].xattrs)
            assert difference(expected, found, nlink=False) == [], time


def kill_and_go_on(original: Sessions, killer: Killer, paths: Sequence[bytes], points: range, power: bool) -> None:
    for at in points:
        attempt = copied(original)
        assert killer.run(at, lambda attempt=attempt: remove_paths(attempt.repository, paths)), at
        if power:
            killer.lose_data(attempt.repository)
        assert_whole_or_gone(attempt, paths)
        remove(attempt, *paths)
        attempt.assert_all_readable()
        attempt.assert_mirror_is(attempt.now)
        assert not any(name.startswith("rdiff-backup.tmp") for name in os.listdir(attempt.data))
        for path in paths:
            assert remove_paths(attempt.repository, [path]).missing == (path,)


def all_points(original: Sessions, killer: Killer, paths: Sequence[bytes]) -> range:
    attempt = copied(original)
    assert not killer.run(None, lambda: remove_paths(attempt.repository, paths))
    return range(1, killer.changes + 1)


SOME = (b"changed", b"gone", b"directory-to-file", rich.LONG.encode(), b"g1-a")


@pytest.mark.parametrize("power", [False, True])
def test_killed_on_the_way(rich_sessions: Sessions, killer: Killer, power: bool) -> None:
    points = all_points(rich_sessions, killer, SOME)
    kill_and_go_on(rich_sessions, killer, SOME, points[power :: len(points) // 9], power)


@pytest.mark.long
@pytest.mark.parametrize("power", [False, True])
def test_killed_at_any_point(rich_sessions: Sessions, killer: Killer, power: bool) -> None:
    kill_and_go_on(rich_sessions, killer, SOME, all_points(rich_sessions, killer, SOME), power)
