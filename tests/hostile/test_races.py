"""Somebody else swaps directories for links all the time: in the target of a restore, and in the source of a backup.

The other one is a process that calls renameat2(RENAME_EXCHANGE) as fast as it can. What lies outside must stay as it
is, and none of it may come into the backup.
"""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from histfs.errors import HistfsError
from histfs.store import tree
from histfs.store.backup import backup
from histfs.store.repository import Repository
from histfs.store.restore import restore
from histfs.store.target import Manner
from tests import comparison
from tests.hostile.kinds import SECRET
from tests.trees import Dir, File, build

FIRST = 1_700_000_000
LEAST_LOOPS = 3
SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
pairs = [(os.fsencode(a), os.fsencode(b)) for a, b in zip(sys.argv[1::2], sys.argv[2::2])]
print("ready", flush=True)
swaps = 0
while True:
    for a, b in pairs:
        if libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0:
            swaps += 1
"""


@contextmanager
def swapping(*pairs: Path) -> Iterator[None]:
    """Each two of `pairs` change their places all the time."""
    command = [sys.executable, "-S", "-c", SWAPPER, *map(str, pairs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)


def make_outside(path: Path) -> None:
    """What a restore or backup that is led astray would meet: the same names."""
    build(path, Dir({name: File(SECRET, 0o600) for name in "abcdef"} | {"deep": Dir({"x": File(SECRET, 0o600)})}))


@pytest.fixture(params=["openat2", "walk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "walk":
        monkeypatch.setattr(tree, "_OPENAT2", -1)


@pytest.fixture(autouse=True)
def deadline() -> None:
    """In place of that of the folder: these take the time that they are given."""


INNER = Dir({name: File(name.encode() * 2_000, 0o644) for name in "abcdef"} | {"deep": Dir({"x": File(b"deep")})})


TREE = Dir({"d": INNER, "e": Dir({"d": INNER, "a": File(b"a" * 2_000, 0o644)})})


def traps(tree: Path, outside: Path) -> list[Path]:
    """Pairs of what is in a tree like TREE and a link that leads out. None lies in another one."""
    pairs = []
    for number, (path, target) in enumerate((("d", ""), ("e/d", ""), ("e/a", "a"))):
        trap = tree.parent / f"trap{number}"
        if not os.path.lexists(trap):
            trap.symlink_to(outside / target)
        pairs += [tree / path, trap]
    return pairs


def restore_under_attack(scratch: Path, seconds: float) -> int:
    """Restore over and over, in every manner; how often."""
    source, repository, target, outside = (scratch / name for name in ("source", "repository", "target", "outside"))
    build(source, TREE)
    backup(source, repository, now=FIRST, report=lambda _: None)
    make_outside(outside)
    before = comparison.read(outside)
    loops = 0
    until = time.monotonic() + seconds
    manners = [Manner(merge=True, fsync=False), Manner(delete=True, fsync=False), Manner(force=True, fsync=False)]
    while time.monotonic() < until or loops < LEAST_LOOPS:
        shutil.rmtree(target, ignore_errors=True)
        if loops % 2:
            build(
                target,
                Dir({"d": Dir({"a": File(b"older", 0o644), "gone": Dir({"x": File()})}), "e": Dir({"d": Dir()})}),
            )
        else:
            target.mkdir()
        with swapping(*traps(target, outside)):
            for manner in manners:
                with suppress(HistfsError), Repository.open(repository) as opened:
                    restore(opened, b"", FIRST, target, report=lambda _: None, manner=manner)
                loops += 1
                assert comparison.difference(before, comparison.read(outside)) == []
    return loops


def backup_under_attack(scratch: Path, seconds: float) -> int:
    """Back up over and over; how often. Whoever can swap something in the source does not stop the session."""
    source, outside, repository = scratch / "source", scratch / "outside", scratch / "repository"
    build(source, TREE)
    make_outside(outside)
    loops = 0
    until = time.monotonic() + seconds
    with swapping(*traps(source, outside)):
        while time.monotonic() < until or loops < LEAST_LOOPS:
            backup(source, repository, now=FIRST + loops, report=lambda _: None)
            loops += 1
    for above, _, names in os.walk(repository):
        for name in names:
            path = Path(above, name)
            if not path.is_symlink():
                content = path.read_bytes()
                assert SECRET not in (gzip.decompress(content) if name.endswith(".gz") else content), path
    return loops


@pytest.mark.parametrize("attack", [restore_under_attack, backup_under_attack])
def test_nothing_leads_outside_for_a_moment(tmp_path: Path, way: None, attack: Callable[[Path, float], int]) -> None:
    assert attack(tmp_path, 1.0) >= LEAST_LOOPS


@pytest.mark.long
@pytest.mark.parametrize("attack", [restore_under_attack, backup_under_attack])
def test_nothing_leads_outside_for_a_minute(tmp_path: Path, way: None, attack: Callable[[Path, float], int]) -> None:
    assert attack(tmp_path, 60.0) >= 30
