"""Large files in a mount of a real repository: read without Python, at any place, by many, while things go wrong."""

import contextlib
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.test_mount_process import FIRST, FIRST_NAME, SECOND, SECOND_NAME, THIRD, THIRD_NAME, back_up, histfs
from tests.trees import Dir, File

MIB = 1 << 20
CHANCE = random.Random(11)


def changed(data: bytes) -> bytes:
    """With some pages rewritten, as in an image of a disk."""
    pages = bytearray(data)
    for page in CHANCE.sample(range(len(data) // 4096), 60):
        pages[page * 4096 : (page + 1) * 4096] = CHANCE.randbytes(2048) + b"words " * 341 + b"\0\0"
    return bytes(pages)


NEWEST = CHANCE.randbytes(3 * MIB) + b"text\n" * 300_000
MIDDLE = changed(NEWEST)
OLDEST = changed(MIDDLE)
GONE = b"".join(b"line %d\n" % number for number in range(400_000))
VERSIONS = {FIRST_NAME: OLDEST, SECOND_NAME: MIDDLE, THIRD_NAME: NEWEST}

# Prints what it asked of Python when it is told to end.
MOUNT = """
import sys
from datetime import UTC
from functools import partial
from pathlib import Path
import trio
from histfs.fuse import is_by_inode, pyfuse3
from histfs.mount import session
from histfs.store.catalog import open_catalog
from histfs.store.repository import Repository
from histfs.vfs import History
from tests.mount.test_mount import OPTIONS, CountingOperations

with Repository.open(Path(sys.argv[1])) as repository:
    history = History(repository, partial(open_catalog, repository, cache=Path(sys.argv[3])), UTC, owner=(0, 0))
    history.refresh()
    operations = CountingOperations(history, Path(sys.argv[1]))
    trio.run(session.serve, operations, Path(sys.argv[2]), OPTIONS, partial(print, "ready", flush=True))
    print(is_by_inode(), operations.asked["read"])
    operations.close()
    history.close()
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("large")
    for at, data in ((FIRST, OLDEST), (SECOND, MIDDLE), (THIRD, NEWEST)):
        files = {"image": File(data, mtime=at - 1000), "small": File(b"small")}
        if at == FIRST:
            files["gone"] = File(GONE)
        back_up(Dir(files), at, top / "repository", top / "source")
    return top / "repository"


class Mounted:
    """A mount in a process of its own, which loads the module `first` first, until `end`."""

    def __init__(self, repository: Path, mountpoint: Path, cache: Path, first: str = "histfs.fuse") -> None:
        self.mountpoint = mountpoint
        command = [sys.executable, "-c", f"import {first}\n{MOUNT}", *map(os.fspath, (repository, mountpoint, cache))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.said = ""

    def path(self, session: str, name: str = "image") -> Path:
        return self.mountpoint / session / name

    def end(self) -> int:
        """Unmount; how many reads Python was asked for, if the kernel asks by inode."""
        self.process.send_signal(signal.SIGTERM)
        output, self.said = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.said
        by_inode, reads = output.split()
        return int(reads) if by_inode == "True" else 0


@pytest.fixture
def mount(original: Path, mountpoint: Path, tmp_path: Path):
    mounts = []

    def start(repository: Path = original) -> Mounted:
        mounts.append(Mounted(repository, mountpoint, tmp_path / "cache"))
        return mounts[-1]

    yield start
    for mounted in mounts:
        if mounted.process.poll() is None:
            mounted.process.kill()
            mounted.process.communicate()


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def test_all_versions_whole_and_in_parts(mount) -> None:
    mounted = mount()
    for session, data in VERSIONS.items():
        path = mounted.path(session)
        assert subprocess.run(["sha1sum", path], capture_output=True, check=True).stdout[:40].decode() == sha1(data)
        assert subprocess.run(["tail", "-c", "1000", path], capture_output=True, check=True).stdout == data[-1000:]
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(200):
                offset, size = CHANCE.randrange(len(data) + 10), CHANCE.choice([1, 4096, 70_000, 400_000])
                assert os.pread(file.fileno(), size, offset) == data[offset : offset + size]
    assert mounted.path(FIRST_NAME, "gone").read_bytes() == GONE
    assert mounted.path(FIRST_NAME, "small").read_bytes() == b"small"
    assert mounted.end() < 30
    assert mounted.said == ""


def test_direct_reads_and_maps_of_memory(mount) -> None:
    mounted = mount()
    command = ["dd", f"if={mounted.path(FIRST_NAME)}", "bs=1M", "iflag=direct", "status=none"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == OLDEST
    program = "import mmap, os, sys; sys.stdout.buffer.write(mmap.mmap(os.open(sys.argv[1], 0), 0, prot=1)[::-1])"
    done = subprocess.run([sys.executable, "-c", program, mounted.path(SECOND_NAME)], capture_output=True, check=True)
    assert done.stdout == MIDDLE[::-1]
    mounted.end()


def test_many_at_the_same_time(mount) -> None:
    mounted = mount()
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            session = chance.choice(list(VERSIONS))
            data = VERSIONS[session]
            with open(mounted.path(session), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                offset, size = chance.randrange(len(data)), chance.choice([4096, 500_000])
                if os.pread(file.fileno(), size, offset) != data[offset : offset + size]:
                    wrong.append((session, offset, size))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert not wrong
    mounted.end()


def test_readers_that_are_killed(mount) -> None:
    """Requests of which nobody wants the answer any more harm nobody."""
    mounted = mount()
    for delay_ms in range(20):
        reader = subprocess.Popen(["cat", mounted.path(FIRST_NAME)], stdout=subprocess.DEVNULL)
        time.sleep(delay_ms / 1000)
        reader.kill()
        reader.wait(timeout=10)
        with open(mounted.path(FIRST_NAME), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert mounted.path(FIRST_NAME).read_bytes() == OLDEST
    mounted.end()


def test_it_is_unmounted_while_somebody_reads(mount) -> None:
    mounted = mount()
    program = "import os, sys\nfd = os.open(sys.argv[1], 0)\nwhile True: os.pread(fd, 400_000, 0)\n"
    program = program.replace("os.pread", "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.pread")
    reader = subprocess.Popen([sys.executable, "-c", program, mounted.path(FIRST_NAME)], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    mounted.end()
    assert reader.wait(timeout=10) != 0


def test_a_damaged_member_is_an_error_where_it_is_and_is_told(mount, original: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["cp", "-a", original, repository], check=True)
    (increment,) = (repository / "rdiff-backup-data" / "increments").glob("gone.*.gz")
    data = bytearray(increment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    increment.write_bytes(bytes(data))
    mounted = mount(repository)
    path = mounted.path(FIRST_NAME, "gone")
    assert len(GONE) > 3 * 262_144  # the length of a member
    with open(path, "rb", buffering=0) as file:
        failed = []
        for offset in range(0, len(GONE), 65_536):
            try:
                data = os.pread(file.fileno(), 65_536, offset)
            except OSError as exc:
                failed.append(exc.errno)
            else:
                assert data == GONE[offset : offset + 65_536]
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with contextlib.suppress(OSError):
            os.pread(file.fileno(), 2 * MIB, 0)
    assert set(failed) == {errno.EIO}
    assert len(failed) < len(range(0, len(GONE), 65_536))
    assert mounted.path(FIRST_NAME).read_bytes() == OLDEST
    time.sleep(0.6)
    mounted.end()
    assert "gone" in mounted.said
    assert "damaged" in mounted.said
    assert "Traceback" not in mounted.said


def test_a_session_comes_while_the_old_is_read(mount, original: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["cp", "-a", original, repository], check=True)
    mounted = mount(repository)
    with open(mounted.path(FIRST_NAME), "rb", buffering=0) as oldest, open(mounted.path(THIRD_NAME), "rb") as newest:
        assert os.pread(oldest.fileno(), 4096, 0) == OLDEST[:4096]
        back_up(Dir({"image": File(changed(NEWEST))}), THIRD + 86_400, repository, tmp_path / "source")
        for file in (oldest, newest):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert oldest.read() == OLDEST
        assert newest.read() == NEWEST
    assert histfs("verify", "--all", repository).returncode == 0
    mounted.end()
