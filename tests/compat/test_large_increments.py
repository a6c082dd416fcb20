"""Increments that histfs writes with an index are like others to rdiff-backup (docs/format.md 13)."""

import os
import random
import shutil
from pathlib import Path

from histfs.store.compression import Seekable
from histfs.store.tree import BLOCK_SIZE
from tests import comparison
from tests.compat import agreement
from tests.histories import FIRST_SESSION, State
from tests.oracle import Oracle
from tests.trees import Dir, File, build

RNG = random.Random(1)
RANDOM = RNG.randbytes(5 * BLOCK_SIZE + 17)
TEXT = b"".join(b"%d %d\n" % (number, RNG.getrandbits(20)) for number in range(100_000))


def altered(content: bytes, every: int) -> bytes:
    """With new bytes in 4 KiB of every `every` bytes."""
    new = bytearray(content)
    for offset in range(0, len(new) - 4096, every):
        new[offset : offset + 4096] = RNG.randbytes(4096)
    return bytes(new)


TREES = [
    Dir({"image": File(RANDOM, mtime=1), "log": File(TEXT, mtime=1), "gone": File(TEXT + RANDOM, mtime=1)}),
    Dir({"image": File(altered(RANDOM, 9000), mtime=2), "log": File(TEXT[50:] + TEXT, mtime=2)}),
    Dir({"image": File(RANDOM[::-1], mtime=3), "log": File(TEXT[-300_000:], mtime=3), "gone": File(RANDOM, mtime=3)}),
    Dir({"image": File(b"", mtime=4), "log": Dir()}),
]


def test_each_version_comes_back(scratch: Path, rdiff_backup: Oracle) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states = []
    for number, tree in enumerate(TREES):
        shutil.rmtree(source, ignore_errors=True)
        build(source, tree)
        states.append(State(FIRST_SESSION + number * 60, comparison.read(source)))
        agreement.histfs_backup(source, repository, at=states[-1].time)
    check_there_are_indexes(repository)
    agreement.check_all(repository, states, rdiff_backup, scratch)


def check_there_are_indexes(repository: Path) -> None:
    with_commands = {}
    for path in (repository / "rdiff-backup-data" / "increments").glob("*.gz"):
        fd = os.open(path, os.O_RDONLY)
        seekable = Seekable.open(fd)
        os.close(fd)
        if seekable is not None:
            name, *_, kind, _ = path.name.split(".")
            with_commands[name, kind] = seekable.commands is not None
    assert with_commands == {
        ("image", "diff"): True,
        ("log", "diff"): True,
        ("log", "snapshot"): False,
        ("gone", "snapshot"): False,
    }
