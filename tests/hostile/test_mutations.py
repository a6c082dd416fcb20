"""Random damage to a repository with everything in it: whoever does not complain about a session is right about it.

Only what the format can tell is done: it has no checksum over the repository, so that a whole list that was put in the
place of another one cannot be noticed (docs/format.md 0).
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.errors import HistfsError
from histfs.store.repository import Repository
from histfs.store.restore import restore
from histfs.store.verify import verify
from tests import comparison, histories
from tests.compat import agreement
from tests.histories import State
from tests.hostile import witness

SESSIONS = 6


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[State]]:
    """A repository with a random history; not to be changed."""
    place = tmp_path_factory.mktemp("original")
    states: list[State] = []
    for state in histories.random_history(place / "source", 40_000, SESSIONS, histories.ANYTHING):
        agreement.histfs_backup(place / "source", place / "repository", at=state.time)
        states.append(state)
    return place / "repository", states


def files_of(repository: Path) -> Iterator[Path]:
    """Every file of the repository whose content or existence matters to a reader."""
    for directory, _, names in os.walk(repository):
        for name in sorted(names):
            path = Path(directory) / name
            inside = path.relative_to(repository)
            is_data = inside.parts[0] == "rdiff-backup-data" and len(inside.parts) == 2
            if path.is_file() and not path.is_symlink() and (not is_data or name.startswith("mirror_metadata")):
                yield path


def damage(path: Path, chance: random.Random) -> str:
    """Spoil one file in one way; says how."""
    whole = path.read_bytes()
    kind = chance.choice(["flip", "cut", "delete", "zero", "insert", "fifo", "directory", "link"])
    if not whole and kind in ("flip", "cut", "zero"):
        kind = "insert"
    status = path.lstat()
    if kind in ("delete", "fifo", "directory", "link"):
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("x")
        return kind
    place = chance.randrange(len(whole) + 1)
    if kind == "flip":
        changed = bytearray(whole)
        changed[place % len(whole)] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
    elif kind == "cut":
        path.write_bytes(whole[: place % len(whole)])
    elif kind == "zero":
        path.write_bytes(whole[:place] + bytes(len(whole) - place))
    else:
        path.write_bytes(whole[:place] + chance.randbytes(7) + whole[place:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return kind


def check_honest(repository: Path, states: list[State], scratch: Path, what: str) -> None:
    known = {state.time: state for state in states}
    try:
        opened = Repository.open(repository)
    except HistfsError:
        return
    with opened:
        assert set(opened.sessions()) <= set(known), what
        for session_time in opened.sessions():
            reports: list[HistfsError] = []
            target = scratch / "target"
            try:
                verify(opened, b"", session_time, report=reports.append)
                restore(opened, b"", session_time, target, report=reports.append)
                if not reports:
                    lines = comparison.difference(
                        known[session_time].manifest, comparison.read(target), owners=agreement.OWNERS
                    )
                    assert not lines, "\n".join([what, *lines])
            except HistfsError as error:
                reports.append(error)
            witness.sentences(reports)
            shutil.rmtree(target, ignore_errors=True)


def mutate_and_check(original: tuple[Path, list[State]], scratch: Path, seed: int, count: int) -> None:
    whole, states = original
    repository = scratch / "repository"
    chance = random.Random(f"mutation {seed}")
    for _ in range(count):
        subprocess.run(["cp", "-a", whole, repository], check=True)
        path = chance.choice(list(files_of(repository)))
        what = f"{damage(path, chance)} of {os.fsencode(path.relative_to(repository))!r}"
        check_honest(repository, states, scratch, what)
        subprocess.run(["rm", "-rf", repository], check=True)


@pytest.mark.parametrize("seed", range(4))
def test_some_mutations(original: tuple[Path, list[State]], scratch: Path, seed: int) -> None:
    mutate_and_check(original, scratch, seed, 10)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1_000, 1_200))
def test_many_mutations(original: tuple[Path, list[State]], scratch: Path, seed: int) -> None:
    mutate_and_check(original, scratch, seed, 20)
