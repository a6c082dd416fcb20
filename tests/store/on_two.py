"""A repository in several file systems, mounted for this process alone: python -m tests.store.on_two DIRECTORY."""

import os
import subprocess
import sys
from pathlib import Path

from histfs.store.barrier import BarrierTree
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build


def _move_to_another(place: Path) -> int:
    """Put what is in a directory on a file system of its own, which is mounted there; its device."""
    kept = place.parent / "kept"
    subprocess.run(["cp", "-a", place, kept], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", place], check=True)
    subprocess.run(["rm", "-rf", kept], check=True)
    return place.stat().st_dev


class _Libc:
    """In the place of the C library: notes of which devices is waited for."""

    def __init__(self, real: object, devices: set[int]) -> None:
        self._real = real
        self._devices = devices

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def syncfs(self, fd: int) -> int:
        self._devices.add(os.fstat(fd).st_dev)
        return 0


def main(scratch: str) -> None:
    sessions = Sessions(Path(scratch))
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"b": File(b"b" * 1000)})}))
    sessions.backup()
    devices = {sessions.source.stat().st_dev, *map(_move_to_another, (sessions.data, sessions.repository / "d"))}
    assert len(devices) == 3
    barriers: list[set[int]] = []
    real = BarrierTree.sync

    def sync(tree: BarrierTree) -> None:
        barriers.append(set())
        libc = tree._libc
        tree._libc = _Libc(libc, barriers[-1])  # type: ignore[assignment]
        real(tree)
        tree._libc = libc

    BarrierTree.sync = sync  # type: ignore[method-assign]
    for text in (b"c", b"dd"):
        for name in ("a", "d/b", "d/new"):
            (sessions.source / name).write_bytes(text * 1000)
        sessions.backup(may_report=True)
        assert barriers
        assert all(waited == devices for waited in barriers), (barriers, devices)
        barriers.clear()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


if __name__ == "__main__":
    main(*sys.argv[1:])
