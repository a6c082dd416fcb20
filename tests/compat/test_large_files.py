"""Large files that rdiff-backup wrote, whose versions histfs reads from anywhere without making them."""

import random
import shutil
from pathlib import Path

import pytest

from histfs.store.content.sources import Mapped
from histfs.store.repository import Repository
from tests import comparison
from tests.compat import agreement
from tests.histories import FIRST_SESSION, State
from tests.oracle import Oracle
from tests.trees import Dir, File, build

CHANCE = random.Random(2)
MiB = 1 << 20


def edited(version: bytes) -> bytes:
    """Pages overwritten; something inserted, removed and moved."""
    new = bytearray(version)
    for _ in range(20):
        at = CHANCE.randrange(len(new) // 4096) * 4096
        new[at : at + 4096] = CHANCE.randbytes(4096)
    at = CHANCE.randrange(len(new) - 500_000)
    return bytes(new[:at] + b"inserted" + new[at + 300_000 :] + new[at : at + 200_000])


IMAGES = [CHANCE.randbytes(2 * MiB) + bytes(MiB) + b"text\n" * 100_000]
for _ in range(4):
    IMAGES.append(edited(IMAGES[-1]))
IMAGES[3:3] = [IMAGES[2][: MiB + 7], bytes(3 * MiB)]  # cut; then zeros


@pytest.mark.parametrize("options", [[], ["--no-compression"]], ids=["compressed", "plain"])
def test_any_part_of_any_version(scratch: Path, rdiff_backup: Oracle, options: list[str]) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states = []
    for number, image in enumerate(IMAGES):
        shutil.rmtree(source, ignore_errors=True)
        build(source, Dir({"image": File(image, mtime=number + 1)} if number < len(IMAGES) - 1 else {}))
        states.append(State(FIRST_SESSION + number * 60, comparison.read(source)))
        rdiff_backup.backup(source, repository, at=states[-1].time, special=options).check()
    agreement.check_histfs(repository, states, scratch)
    with Repository.open(repository) as opened:
        for state, image in zip(states[:-1], IMAGES, strict=False):
            check_parts(opened, state.time, image)


def check_parts(repository: Repository, session_time: int, image: bytes) -> None:
    snapshot = repository.snapshot(session_time)
    try:
        node = snapshot.listing().find(b"image")
    finally:
        snapshot.close()
    with snapshot.open(node.entry, node.sha1) as content:
        assert isinstance(content._version.source, Mapped)
        for _ in range(100):
            offset, size = CHANCE.randrange(len(image)), CHANCE.choice((1, 4096, 200_000))
            assert content.pread(size, offset) == image[offset : offset + size]
