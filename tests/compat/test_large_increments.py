"""Increments that histfs writes with an index are like others to rdiff-backup (docs/format.md 13)."""

import os
import random
import shutil
from collections.abc import Callable
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


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "inserted": lambda old: old[:4097] + RNG.randbytes(100_000) + old[4097:],
    "cut": lambda old: old[:500_000] + old[600_001:],
    "moved": lambda old: old[200_000:900_000] + old[:200_000] + old[900_000:],
    "scattered": lambda old: altered(old, 100_000),
    "both": lambda old: altered(old[:4097] + RNG.randbytes(100_000) + old[4097:], 100_000),
    "sown": lambda old: b"new".join(old[start : start + 50_001] for start in range(0, len(old), 50_001)),
}
CONTENTS = {
    "noise": RANDOM,
    "text": TEXT,
    "image": b"".join(RNG.randbytes(2048) + TEXT[:2048] for _ in range(300)),
    "holes": b"".join(RNG.randbytes(16384) + bytes(49152) for _ in range(20)),
}


def test_increments_are_no_larger_than_those_of_another_writer(scratch: Path, rdiff_backup: Oracle) -> None:
    """What was inserted, cut out or moved is found, whatever lies around it."""
    names = [(content, edit) for content in CONTENTS for edit in EDITS]
    before = Dir({f"{content} {edit}": File(CONTENTS[content], mtime=1) for content, edit in names})
    after = Dir({f"{content} {edit}": File(EDITS[edit](CONTENTS[content]), mtime=2) for content, edit in names})
    source = scratch / "source"
    for number, tree in enumerate((before, after)):
        shutil.rmtree(source, ignore_errors=True)
        build(source, tree)
        agreement.histfs_backup(source, scratch / "ours", at=FIRST_SESSION + number * 60)
        rdiff_backup.backup(source, scratch / "theirs", at=FIRST_SESSION + number * 60).check()
    ours, theirs = increment_sizes(scratch / "ours"), increment_sizes(scratch / "theirs")
    assert ours.keys() == theirs.keys()
    assert len(ours) == len(names)
    larger = {name: (size, theirs[name]) for name, size in ours.items() if size > 1.02 * theirs[name]}
    assert larger == {}
    restored = scratch / "restored"
    rdiff_backup.restore(scratch / "ours", restored, at=FIRST_SESSION).check()
    for name in ours:
        assert (restored / name).read_bytes() == CONTENTS[name.split()[0]]


def increment_sizes(repository: Path) -> dict[str, int]:
    """By the names of the files, in bytes."""
    increments = (repository / "rdiff-backup-data" / "increments").glob("*.diff.gz")
    return {path.name.split(".")[0]: path.stat().st_size for path in increments}
