"""Files that are compressed themselves: their increments are kept as they are (docs/format.md 6.3)."""

import gzip
import shutil
from pathlib import Path

import pytest

from tests import comparison
from tests.compat import agreement
from tests.histories import FIRST_SESSION, State
from tests.oracle import Oracle
from tests.trees import Dir, File, Node, build

PACKED = gzip.compress(b"some text\n" * 100, mtime=0)
NAMES = ("a.gz", "a.GZ", "a.txt", "picture.jpg")  # the increments of all but the text are not compressed


def tree(content: bytes, mtime: int) -> Dir:
    files: dict[str | bytes, Node] = {name: File(content, mtime=mtime) for name in NAMES}
    return Dir(files)


TREES = [
    tree(PACKED, 1),
    tree(gzip.compress(b"other text\n" * 100, mtime=0), 2),
    Dir({"a.gz": Dir()}),
    tree(PACKED + PACKED, 3),
    tree(PACKED[:-3], 4),
    tree(b"\x1f\x8b", 5),
    tree(b"plain", 6),
    tree(b"", 7),
    tree(PACKED, 8),
    Dir(),
]


@pytest.mark.parametrize("writer", ["histfs", "200", "201"])
def test_each_version_comes_back(scratch: Path, rdiff_backup: Oracle, writer: str) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states = []
    for number, literal in enumerate(TREES):
        shutil.rmtree(source, ignore_errors=True)
        build(source, literal)
        now = FIRST_SESSION + number * 60
        states.append(State(now, comparison.read(source)))
        if writer == "histfs":
            agreement.histfs_backup(source, repository, at=now)
        else:
            rdiff_backup.backup(source, repository, at=now, api=int(writer)).check()
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_mount(repository, states, scratch)
