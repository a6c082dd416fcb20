"""What is done on XFS, in a process that alone sees its mount: python -m tests.store.on_xfs CASE DIRECTORY."""

import os
import random
import subprocess
import sys
from pathlib import Path

from histfs.store.cloned import is_scattered
from tests.store.sessions import Sessions

_MiB = 1 << 20
_IMAGE_BYTES = 48 * _MiB


def _used_bytes(place: Path) -> int:
    os.sync()
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _image(sessions: Sessions) -> Path:
    image = sessions.source / "image"
    sessions.source.mkdir()
    image.write_bytes(random.Random(1).randbytes(_IMAGE_BYTES))
    return image


def changed_in_places(sessions: Sessions) -> None:
    """The blocks of what stays are those of the version before; all versions can be read, and so can the mirror."""
    image = _image(sessions)
    sessions.backup()
    sessions.repository.joinpath("held").hardlink_to(sessions.repository / "image")  # so that its blocks stay
    before = _used_bytes(sessions.repository)
    for number in range(3):
        _overwrite(image, (5 + 9 * number) * _MiB + 77, random.Random(number).randbytes(10_000))
        _overwrite(image, (6 + 9 * number) * _MiB, bytes(_MiB))
        if number == 2:
            os.truncate(image, 44 * _MiB)
        sessions.backup(may_report=True)
        assert (sessions.repository / "image").read_bytes() == image.read_bytes()
    assert _used_bytes(sessions.repository) - before < 16 * _MiB  # mostly 4 MiB that were cut off, in their increment
    assert (sessions.repository / "image").stat().st_blocks * 512 < 42 * _MiB  # what became zeros is a hole
    sessions.assert_all_readable()


def changed_everywhere(sessions: Sessions) -> None:
    """A file in too many pieces is written anew."""
    image = _image(sessions)
    sessions.backup()
    for number in range(2):
        for at in range(0, _IMAGE_BYTES, 128 * 1024):
            _overwrite(image, at, random.Random(number + at).randbytes(4096))
        sessions.backup()
        with (sessions.repository / "image").open("rb") as file:
            assert is_scattered(file.fileno()) == (number == 0), number
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


CASES = {case.__name__: case for case in (changed_in_places, changed_everywhere)}


def main(case: str, scratch: str) -> None:
    place, image = Path(scratch, "mounted"), Path(scratch, "image of a disk")
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * _MiB)
    subprocess.run(["mkfs.xfs", "-q", "-f", image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop,nouuid", image, place], check=True)
    try:
        sessions = Sessions(place)
        CASES[case](sessions)
    finally:
        subprocess.run(["umount", place], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
