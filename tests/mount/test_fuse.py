"""pyfuse3 with and without what stands before libfuse: in processes of their own, as loading it decides."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from histfs import fuse
from histfs._fs_open_files import OpenFiles
from histfs.fuse import is_by_inode

# The same mount of the same tree, used by other processes. What is printed is what the kernel asked.
PROGRAM = """
import {first}
import subprocess, sys
from pathlib import Path
import trio
from histfs.fuse import is_by_inode
from tests.mount.test_mount import FIRST, FIRST_NAME, OPTIONS, Dir, File, Symlink, mounted

async def main():
    mountpoint = Path(sys.argv[1])
    tree = Dir({{"f": File(b"f" * 300_000), "d": Dir({{"g": File(b"g")}}), "s": Symlink("f")}})
    async with mounted({{FIRST: tree}}, mountpoint) as operations:
        for _ in range(2):
            await trio.run_process(["find", mountpoint, "-ls"], capture_stdout=True)
            done = await trio.run_process(["sh", "-c", 'cat "$0"/*/f "$0"/*/d/g', mountpoint], capture_stdout=True)
            assert done.stdout == b"f" * 300_000 + b"g"
            print(is_by_inode(), *sorted(name for name, count in operations.asked.items() if count))
            operations.asked.clear()

trio.run(main)
"""


def asked(mountpoint, first):
    command = [sys.executable, "-c", PROGRAM.format(first=first), os.fspath(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def test_without_it_everything_is_opened(mountpoint):
    """Where somebody has loaded pyfuse3 before, as where the module is missing."""
    first, second = asked(mountpoint, "pyfuse3")
    assert first[0] == second[0] == "False"
    assert {"opendir", "readdir", "open", "read"} <= set(first)
    assert {"opendir", "open"} <= set(second)
    assert "read" not in second  # the kernel keeps what it has read


def test_with_it_nothing_is_opened_and_nothing_asked_for_twice(mountpoint):
    first, second = asked(mountpoint, "histfs.fuse")
    if first[0] == "False":
        pytest.skip("needs libfuse3.so.3 and a kernel that can do without opening")
    assert not {"releasedir", "release"} & set(first)
    assert second == ["True"]


def test_nothing_is_said_of_what_is_not_mounted():
    done = subprocess.run(
        [sys.executable, "-c", "from histfs.fuse import is_by_inode; print(is_by_inode())"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert isinstance(is_by_inode(), bool)


READER = """
import sys
from pathlib import Path
import trio
from histfs.fuse import is_by_inode
from tests.mount.fake_repository import FakeRepository
from tests.mount.test_mount import FIRST, Dir, File, mounted

def content(number):
    return b"%d " % number * (number % 3000)

async def main():
    mountpoint = Path(sys.argv[1])
    flat = Dir({f"{number:04}": File(content(number)) for number in range(1000)})
    deep = Dir({f"{number:04}": Dir({"f": File(content(number)), "g": File(b"g")}) for number in range(300)})
    repository = FakeRepository({FIRST: Dir({"flat": flat, "deep": deep})})
    repository.has_mirror = True
    async with mounted(repository, mountpoint) as operations:
        for _ in range(2):
            tar, cat = [
                await trio.run_process(["sh", "-c", 'cd "$0"/*; ' + command, mountpoint], capture_stdout=True)
                for command in ("tar -cf - . | sha1sum", "cat flat/* deep/*/f")
            ]
            assert cat.stdout == b"".join(map(content, [*range(1000), *range(300)]))
            print(is_by_inode(), operations.asked["read"], tar.stdout.split()[0])
            operations.asked.clear()

trio.run(main)
"""


def test_who_reads_many_small_files_is_answered_without_python(mountpoint):
    done = subprocess.run(
        [sys.executable, "-c", READER, os.fspath(mountpoint)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (line.split() for line in done.stdout.splitlines())
    if first[0] == "False":
        pytest.skip("needs libfuse3.so.3 and a kernel that can do without opening")
    assert int(first[1]) < 1400  # of 1,598 files that have bytes; far fewer where nothing else runs
    assert second == ["True", "0", first[2]]


LISTER = """
import os, sys
from pathlib import Path
import trio
from histfs.fuse import is_by_inode
from tests.mount.fake_repository import FakeRepository
from tests.mount.test_mount import FIRST, FIRST_NAME, SECOND, Dir, File, Symlink, mounted

def below(number):
    return Dir({"f": File(b"f" * number), "link": Symlink(f"f{number}"), "d": Dir({"x" * 255: File()})})

async def main():
    mountpoint = Path(sys.argv[1])
    flat = Dir({f"{number:05} {'n' * (number % 100)}": File(b"x" * (number % 50)) for number in range(5000)})
    deep = Dir({f"{number:03}": below(number) for number in range(200)})
    tree = Dir({"deep": deep, "empty": Dir(), "flat": flat})
    expected = {"", "deep", "empty", "flat", *(f"flat/{name}" for name in flat.entries)}
    for number in range(200):
        expected |= {f"deep/{number:03}" + name for name in ("", "/f", "/link", "/d", f"/d/{'x' * 255}")}
    async with mounted(FakeRepository({FIRST: tree, SECOND: tree}), mountpoint) as operations:
        async with trio.open_nursery() as nursery:
            for _ in range(int(sys.argv[2])):
                nursery.start_soon(look, mountpoint, expected)
        print(is_by_inode(), operations.asked["readdir"], operations.asked["readlink"])
        operations.asked.clear()
        await look(mountpoint, expected)
        print(is_by_inode(), operations.asked["readdir"], operations.asked["readlink"])
        # from the middle, where the kernel does not know any more
        names = await trio.to_thread.run_sync(os.listdir, mountpoint / os.fsdecode(FIRST_NAME) / "flat")
        assert sorted(names) == sorted(flat.entries)

async def look(mountpoint, expected):
    command = ["find", mountpoint, "-mindepth", "1", "-printf", "%P\\\\0%y\\\\0%l\\\\0%s\\\\n"]
    done = await trio.run_process(command, capture_stdout=True)
    lines = [line.split("\\0") for line in done.stdout.decode().splitlines()]
    assert len(lines) == 2 * len(expected), len(lines)
    found = {path.partition("/")[2]: (kind, target, int(size)) for path, kind, target, size in lines}
    assert set(found) == expected
    for number in range(200):
        assert found[f"deep/{number:03}/f"] == ("f", "", number)
        assert found[f"deep/{number:03}/link"][:2] == ("l", f"f{number}")

trio.run(main)
"""


@pytest.mark.parametrize("at_once", [1, 3])
def test_who_lists_a_tree_is_answered_without_python(mountpoint, at_once):
    command = [sys.executable, "-c", LISTER, os.fspath(mountpoint), str(at_once)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (line.split() for line in done.stdout.splitlines())
    if first[0] == "False":
        pytest.skip("needs libfuse3.so.3 and a kernel that can do without opening")
    if at_once == 1:  # several take the listings of each other
        assert int(first[1]) < 1206 / 4  # the directories of both trees, and those of 5,000 names in parts
    assert int(first[2]) < 100
    # The kernel keeps a listing that one reader has had as a whole, undisturbed by others: mostly all of them.
    assert int(second[1]) < (1206 / 4 if at_once > 1 else 10)
    assert second[2] == "0"


def test_all_large_files_that_are_kept_open_are_served():
    source = Path(fuse.__file__).parent / "csrc" / "serving.c"
    served = re.search(r"^#define HISTFS_SERVED (\d+)", source.read_text(), re.MULTILINE)
    assert served is not None
    assert int(served[1]) == inspect.signature(OpenFiles).parameters["max_large"].default
