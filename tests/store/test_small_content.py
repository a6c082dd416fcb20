"""Small files, many at once: what is given out is what `Snapshot.open` gives; the rest is left to it."""

import os
import shutil

from histfs.store.content.small import SmallFile
from histfs.store.entry import Kind, name_of, parent_of
from histfs.store.naming import Naming
from histfs.store.repository import Repository
from tests.store import rich
from tests.store.sessions import Sessions
from tests.trees import MTIME, Dir, File, build


def read_all(repository: Repository) -> tuple[int, int]:
    """Every regular file of every session by itself, compared with what `open` says; how many are made, and left."""
    made = left = 0
    for session_time in repository.sessions():
        snapshot = repository.snapshot(session_time)
        for entry in list(snapshot.entries()):
            if entry.kind is not Kind.REGULAR or entry.sha1 is None:
                continue
            file = SmallFile(name_of(entry.path), entry.size_bytes, bytes.fromhex(entry.sha1.decode()), session_time)
            [found] = repository.read_small(parent_of(entry.path), [file])
            if found is None:
                left += 1
                continue
            made += 1
            with snapshot.open(entry, entry.sha1) as content:
                assert bytes(found.data) == bytes(content.pread(entry.size_bytes, 0))
                assert content.mtime_ns in (found.mtime_ns, None)
        snapshot.close()
    return made, left


def test_every_version_of_a_rich_tree(sessions: Sessions) -> None:
    rich.back_up(sessions)
    with sessions.open() as repository:
        made, left = read_all(repository)
    assert made > 60
    assert left < made / 4  # links of links, and long names


def test_names_that_are_too_long_when_quoted(sessions: Sessions) -> None:
    long = "A" * 100
    build(sessions.source, Dir({long: Dir({"f": File(b"one", mtime=MTIME)})}))
    sessions.backup(naming=Naming(b"A-Z"))
    (sessions.source / long / "f").write_bytes(b"other")
    sessions.backup()
    with sessions.open() as repository:
        assert repository.read_small(long.encode(), [SmallFile(b"f", 3, bytes(20), min(sessions.states))]) == [None]
        assert repository.read_small(b"none/there", [SmallFile(b"f", 3, bytes(20))]) == [None]
        made, left = read_all(repository)
    assert (made, left) == (0, 2)


def test_of_many_some_are_left(sessions: Sessions) -> None:
    build(sessions.source, Dir({f"f{number}": File(b"%d" % number * 50, mtime=MTIME) for number in range(100)}))
    sessions.backup()
    for number in range(0, 100, 3):
        (sessions.source / f"f{number}").write_bytes(b"new %d" % number)
        os.utime(sessions.source / f"f{number}", (MTIME + 9, MTIME + 9))
    sessions.backup()
    first = min(sessions.states)
    (sessions.repository / "f7").write_bytes(b"damaged")
    with sessions.open() as repository:
        snapshot = repository.snapshot(first)
        files = [
            SmallFile(entry.path, entry.size_bytes, bytes.fromhex(entry.sha1.decode()), first)
            for entry in snapshot.entries()
            if entry.sha1 is not None
        ]
        snapshot.close()
        read = repository.read_small(b"", files)
        expected = [None if file.name == b"f7" else file.name[1:] * 50 for file in files]
        assert [None if found is None else bytes(found.data) for found in read] == expected
        shutil.rmtree(sessions.data / "increments")
        again = repository.read_small(b"", files)
        assert [found is None for found in again] == [
            file.name == b"f7" or int(file.name[1:]) % 3 == 0 for file in files
        ]
