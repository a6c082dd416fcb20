"""Large files of which a byte has flipped, in a real mount: whoever reads all of one hears of it, however he reads.

No size and no sum of the format tells but the SHA1 of the whole: the files are in the mirror, in increments that are
not compressed, and in versions that are made of both. Each way to read has files of its own, as the kernel remembers
what was read; and a whole one beside the damaged one.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.test_mount_large_files import Mounted
from tests.mount.test_mount_process import FIRST, FIRST_NAME, SECOND, SECOND_NAME, back_up, histfs
from tests.trees import Dir, File

SIZE = 1_300_000
PAGE = 4096
CHANCE = random.Random(3)


def shell(command: str) -> Callable[[Path], list[bytes | None]]:
    """What a command prints of the file "$0"; None if it fails."""

    def run(path: Path) -> list[bytes | None]:
        done = subprocess.run(["sh", "-c", command, path], capture_output=True, timeout=60)
        return [None if done.returncode else done.stdout]

    return run


def copied(path: Path) -> list[bytes | None]:
    with tempfile.TemporaryDirectory() as target:
        done = subprocess.run(["cp", path, f"{target}/copy"], capture_output=True, timeout=60)
        return [None if done.returncode else Path(target, "copy").read_bytes()]


def mapped(path: Path) -> list[bytes | None]:
    program = "import mmap, os, sys; sys.stdout.buffer.write(mmap.mmap(os.open(sys.argv[1], 0), 0, prot=1)[::-1])"
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # sanitizers take the signal
    command = [sys.executable, "-S", "-c", program, path]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment)
    assert done.returncode in (0, -signal.SIGBUS)
    return [None if done.returncode else done.stdout[::-1]]


def two_at_once(path: Path) -> list[bytes | None]:
    got: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: got.extend(shell('cat "$0"')(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def after_random_reads(path: Path) -> list[bytes | None]:
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in random.Random(1).sample(range(0, SIZE - 100_000, PAGE), 40):
            assert len(os.pread(file.fileno(), 100, offset)) == 100
    return shell('cat "$0"')(path)


WAYS: dict[str, Callable[[Path], list[bytes | None]]] = {
    "cat": shell('cat "$0"'),
    "cp": copied,
    "dd of 64 KiB": shell('dd status=none bs=64k if="$0"'),
    "dd of 1 MiB": shell('dd status=none bs=1M if="$0"'),
    "direct dd of 4 KiB": shell('dd status=none bs=4k iflag=direct if="$0"'),
    "direct dd of 64 KiB": shell('dd status=none bs=64k iflag=direct if="$0"'),
    "direct dd of 1 MiB": shell('dd status=none bs=1M iflag=direct if="$0"'),
    "mmap, backwards": mapped,
    "two at once": two_at_once,
    "again": shell('cat "$0" >/dev/null; cat "$0"'),
    "after head": shell('head -c 500000 "$0" >/dev/null && cat "$0"'),
    "after tail": shell('tail -c 100000 "$0" >/dev/null && cat "$0"'),
    "after random reads": after_random_reads,
}
PLACES = {"begin": 0, "middle": SIZE // 2, "last": SIZE - 1}
NEWEST = [*WAYS, *PLACES]
OLD = {"old.jpg": "diff", "gone.jpg": "snapshot", "partly.jpg": "diff"}
CONTENTS = {name: CHANCE.randbytes(SIZE) for name in [*NEWEST, *OLD, "shared.jpg"]}


def changed(data: bytes) -> bytes:
    """With each fourth page rewritten, so that the delta is long enough to be read in place."""
    pages = bytearray(data)
    for at in range(0, SIZE - PAGE, 4 * PAGE):
        pages[at : at + PAGE] = CHANCE.randbytes(PAGE)
    return bytes(pages)


def flip(path: Path, at: int) -> None:
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def make(top: Path) -> Path:
    """A repository of two sessions, with damage in all of "damaged", and none in "whole"."""
    repository = top / "repository"
    newest = {name: File(content) for name, content in CONTENTS.items()}
    for at in (FIRST, SECOND):
        files = dict(newest)
        if at == SECOND:
            del files["gone.jpg"]
            files["old.jpg"] = File(CHANCE.randbytes(SIZE), mtime=SECOND - 1000)
            for name in ("partly.jpg", "shared.jpg"):
                files[name] = File(changed(CONTENTS[name]), mtime=SECOND - 1000)
        back_up(Dir({"damaged": Dir(files), "whole": Dir(files)}), at, repository, top / "source")
    for name in NEWEST:
        flip(repository / "damaged" / name, PLACES.get(name, CHANCE.randrange(SIZE)))
    flip(repository / "damaged" / "shared.jpg", PAGE + 5)
    for name, kind in OLD.items():
        (increment,) = (repository / "rdiff-backup-data" / "increments" / "damaged").glob(f"{name}.*")
        assert increment.suffix == f".{kind}"  # it is not compressed
        flip(increment, increment.stat().st_size // 2)
    return repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def mounted(repository: Path, fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("mount")
    (top / "mnt").mkdir()
    mount = Mounted(repository, top / "mnt", top / "cache")
    yield top / "mnt"
    mount.end()


@pytest.mark.parametrize("way", WAYS)
def test_the_newest_version(mounted: Path, way: str) -> None:
    top = mounted / SECOND_NAME
    assert set(WAYS[way](top / "whole" / way)) == {CONTENTS[way]}
    assert set(WAYS[way](top / "damaged" / way)) == {None}
    for _ in range(2):
        assert WAYS["cat"](top / "whole" / way) == [CONTENTS[way]]
        assert WAYS["cat"](top / "damaged" / way) == [None]


@pytest.mark.parametrize("place", PLACES)
def test_any_place(mounted: Path, place: str) -> None:
    assert WAYS["cat"](mounted / SECOND_NAME / "whole" / place) == [CONTENTS[place]]
    assert WAYS["cat"](mounted / SECOND_NAME / "damaged" / place) == [None]


@pytest.mark.parametrize("way", ["cat", "direct dd of 64 KiB"])
@pytest.mark.parametrize("name", [*OLD, "shared.jpg"])
def test_old_versions(mounted: Path, name: str, way: str) -> None:
    """From an increment, or from the mirror and an increment; what was hit is missing in no other version."""
    assert WAYS[way](mounted / FIRST_NAME / "whole" / name) == [CONTENTS[name]]
    assert WAYS[way](mounted / FIRST_NAME / "damaged" / name) == [None]
    if name != "gone.jpg":
        assert (WAYS[way](mounted / SECOND_NAME / "damaged" / name) == [None]) == (name == "shared.jpg")


@pytest.mark.parametrize("first", ["histfs.fuse", "pyfuse3"])
def test_it_is_told_once_and_remembered(repository: Path, mountpoint: Path, tmp_path: Path, first: str) -> None:
    """Also where Python answers all reads, as it does if somebody has loaded pyfuse3 before."""
    mount = Mounted(repository, mountpoint, tmp_path / "cache", first=first)
    paths = [mount.path(SECOND_NAME, f"damaged/{name}") for name in ("cat", "cp", "two at once")]
    for _ in range(3):
        for path in paths:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert WAYS["direct dd of 64 KiB" if path is paths[1] else "cat"](path) == [None]
    with open(paths[0], "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 1, PAGE)  # wherever it is read
    assert WAYS["cat"](mount.path(SECOND_NAME, "whole/cat")) == [CONTENTS["cat"]]
    time.sleep(0.6)
    mount.end()
    lines = mount.said.splitlines()
    for path in paths:
        (line,) = [line for line in lines if f"damaged/{path.name} at 2024-" in line]
        assert "its content is not what was backed up" in line
        assert "histfs verify" in line
    assert "whole" not in mount.said
    assert "Traceback" not in mount.said


def test_who_reads_a_part_is_not_told_and_verify_tells(repository: Path, mounted: Path) -> None:
    with open(mounted / SECOND_NAME / "damaged" / "old.jpg", "rb") as file:
        assert len(file.read(SIZE // 2)) == SIZE // 2
    said = histfs("verify", repository)
    assert said.returncode
    for name in [*NEWEST, "shared.jpg"]:
        assert f"damaged/{name}" in said.stderr
