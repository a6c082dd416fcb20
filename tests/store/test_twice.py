"""A name that comes twice, as readdir(3) may tell one that was removed and made again meanwhile, is one name."""

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from histfs.store.entry import Entry, Kind
from histfs.store.format.ledger import HEADER_BYTES, SEEN_BYTES, Seen, parse_header
from histfs.store.ledger import lists_of, stamp
from histfs.store.source import Found, Source
from histfs.store.sweep import Carried, pairs
from histfs.store.tree import Tree
from tests.comparison import read
from tests.store.passing import ledger
from tests.store.sessions import DAY, Sessions
from tests.store.test_sweep import rewrite
from tests.trees import Dir, File, build

TREE = Dir(
    {
        "a": File(b"A"),
        "twice-d": Dir({"twice-f": File(b"F"), "x": File(b"X")}),
        "twice-e": Dir(),
        "twice-f": File(b"F" * 30_000),
        "z": File(b"Z"),
    }
)

_SESSION = """
import sys
from pathlib import Path
from histfs.store import ledger, walk
from histfs.store.backup import backup

def fail(error):
    raise error

ledger._SETTLED_AFTER_NS = -10**12
walk._SCOUTED_FROM = int(sys.argv[4])
backup(Path(sys.argv[1]), Path(sys.argv[2]), now=int(sys.argv[3]), report=fail)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs a C compiler")
    made = tmp_path_factory.mktemp("twice") / "twice.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", made, Path(__file__).with_name("twice.c")], check=True)
    return made


def run(sessions: Sessions, library: Path, scouted_from: int) -> None:
    sessions.now += DAY
    sessions.states[sessions.now] = read(sessions.source)
    preload = " ".join(filter(None, (os.environ.get("LD_PRELOAD"), os.fspath(library))))
    command = [sys.executable, "-c", _SESSION, sessions.source, sessions.repository, str(sessions.now)]
    subprocess.run([*command, str(scouted_from)], check=True, env=dict(os.environ, LD_PRELOAD=preload))


def recorded(sessions: Sessions) -> list[bytes]:
    """The paths in the newest list, in its order."""
    [path] = sessions.data.glob("mirror_metadata.*.snapshot.gz")
    return [line[5:] for line in gzip.decompress(path.read_bytes()).splitlines() if line.startswith(b"File ")]


def check(sessions: Sessions) -> None:
    assert len(recorded(sessions)) == len(set(recorded(sessions)))
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
    for session_time in sessions.states:
        assert sessions.verify(session_time).mismatched == 0
    assert sessions.compare() == []
    assert sessions.reported == []


@pytest.mark.parametrize("scouted_from", [0, 1 << 30])
def test_what_the_system_tells_twice_is_backed_up_once(sessions: Sessions, library: Path, scouted_from: int) -> None:
    build(sessions.source, TREE)
    for change in (lambda: None, lambda: None, lambda: (sessions.source / "twice-d/x").write_bytes(b"new")):
        change()
        run(sessions, library, scouted_from)
        check(sessions)
    sessions.backup()  # which sees everything once
    check(sessions)
    assert sessions.increments() == {"twice-d.T2.dir", "twice-d/x.T2.diff.gz"}


@pytest.mark.parametrize("has_ledger", [True, False])
def test_a_walk_that_tells_something_twice_does_no_harm(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, has_ledger: bool
) -> None:
    real = Source.walk

    def walk(source: Source, *arguments: Any) -> Iterator[Any]:
        for item in real(source, *arguments):
            yield item
            if isinstance(item, Carried):
                path = [line[5:] for line in item.records.splitlines() if line.startswith(b"File ")][-1]
                yield source.look(path)
            else:
                yield item

    monkeypatch.setattr(Source, "walk", walk)
    build(sessions.source, TREE)
    for change in (lambda: None, lambda: None, lambda: (sessions.source / "twice-d/x").write_bytes(b"new")):
        change()
        sessions.backup()
        check(sessions)
        if not has_ledger:
            ledger(sessions).unlink()


@pytest.mark.parametrize("path", [b"twice-f", b"twice-d", b"twice-d/x", b"z"])
@pytest.mark.parametrize("change", [None, "twice-d/x", "z", "a"])
def test_a_list_that_tells_something_twice_does_no_harm(sessions: Sessions, path: bytes, change: str | None) -> None:
    """With sums that are right, as an earlier version has written it."""
    build(sessions.source, TREE)
    sessions.backup()
    repeat(sessions, path)
    if change is not None:
        (sessions.source / change).write_bytes(b"new")
    sessions.backup()
    check(sessions)
    sessions.backup()
    check(sessions)


def repeat(sessions: Sessions, path: bytes) -> None:
    """Write the record of `path` twice, into the newest list and its ledger."""
    [list_path] = sessions.data.glob("mirror_metadata.*.snapshot.gz")
    records = re.split(rb"^(?=File )", gzip.decompress(list_path.read_bytes()), flags=re.MULTILINE)[1:]
    number = [record.partition(b"\n")[0] for record in records].index(b"File " + path)
    records.insert(number, records[number])
    list_path.write_bytes(gzip.compress(b"".join(records)))
    data = ledger(sessions).read_bytes()
    header = parse_header(data[:HEADER_BYTES])
    assert header is not None
    seen = [Seen.parse(data, at) for at in range(HEADER_BYTES, len(data), SEEN_BYTES)]
    seen.insert(number, seen[number])
    with Tree.open(sessions.repository) as tree, sessions.open() as repository:
        found = stamp(tree, lists_of(repository.state(), sessions.now))
    rewrite(sessions, header._replace(stamp=found), seen)


def test_pairs_are_ascending(tmp_path: Path) -> None:
    status = tmp_path.stat()
    entries = [Entry(path=path, kind=Kind.DIRECTORY) for path in (b"", b"a", b"a/b", b"a", b"a/b", b"a/c", b"a", b"d")]
    got = [pair.found.path for pair in pairs(iter(()), (Found(entry, status) for entry in entries)) if pair.found]
    assert got == [b"", b"a", b"a/b", b"a/c", b"d"]
