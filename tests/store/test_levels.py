"""Directories so deep that the walk does not keep them open are as any others for who changes something in them."""

import os
from pathlib import Path

import pytest

from tests.store.sessions import Sessions
from tests.trees import MTIME, Dir, File, Node, build

LEVELS = 36


def chain(levels: int) -> Dir:
    below: Dir = Dir({"f": File(b"the deepest")})
    for level in range(levels, 0, -1):
        entries: dict[str | bytes, Node] = {"f": File(b"%d" % level), f"d{level}": below, "z": File(b"Z")}
        below = Dir(entries)
    return below


def path_of(level: int) -> str:
    return "/".join(f"d{number}" for number in range(1, level + 1))


def change(path: Path, way: str) -> None:
    """Something in the directory, whose modification time stays."""
    if way == "changed":  # and nothing of the directory
        with (path / "f").open("ab") as file:
            file.write(b"more")
        return
    times = path.stat().st_mtime_ns
    if way == "new":
        (path / "new").write_bytes(b"new")
    else:
        (path / "z").unlink()
    os.utime(path, ns=(times, times))


@pytest.mark.parametrize("level", [30, 31, 32, 33, 34, 35])
@pytest.mark.parametrize("way", ["changed", "new", "gone"])
def test_a_change_is_told_by_the_directories_above_it(sessions: Sessions, level: int, way: str) -> None:
    build(sessions.source, chain(LEVELS))
    sessions.backup()
    sessions.backup()
    change(sessions.source / path_of(level), way)
    sessions.backup()
    found = {name for name in sessions.increments() if name.endswith(".dir")}
    assert found == {f"{path_of(number)}.T2.dir" for number in range(1, level + 1)}
    for number in range(1, LEVELS + 1):
        assert (sessions.repository / path_of(number)).stat().st_mtime == MTIME
    sessions.assert_mirror_is(sessions.now)
    for _ in range(2):
        assert sessions.backup().statistics.changed_files == 0
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
