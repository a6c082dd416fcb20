"""The new content of a large file as a clone of the old one: what is written, what is known, and on a real disk."""

import errno
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs import rsync
from histfs.store import cloned
from histfs.store.cloned import PAGE, Clone, is_scattered, try_clone
from histfs.store.delta import make_delta
from histfs.store.growing import Growing
from tests.faults import places
from tests.store import on_xfs
from tests.store.cloning import imitated_clone

_ROOT = Path(__file__).parents[2]
_BYTES = 40 * PAGE + 77

# What a stretch of the new content is, by its place and length in pages or odd bytes.
_edits = st.lists(
    st.tuples(st.sampled_from(["noise", "zeros", "one"]), st.integers(0, _BYTES), st.integers(1, 3 * PAGE)), max_size=6
)
_sizes = st.one_of(st.just(_BYTES), st.integers(0, _BYTES), st.integers(_BYTES, _BYTES + 9 * PAGE))


def edited(old: bytes, edits: list[tuple[str, int, int]], size: int) -> bytes:
    new = bytearray(old)
    for kind, at, length in edits:
        length = min(length, len(new) - at)
        if kind == "one" and length > 0:
            new[at] ^= 1
        elif kind == "zeros":
            new[at : at + length] = bytes(length)
        elif kind == "noise":
            new[at : at + length] = random.Random(at).randbytes(length)
    return bytes(new[:size]) + random.Random(size).randbytes(max(0, size - len(new)))


def blocks_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@given(edits=_edits, size=_sizes, has_hole=st.booleans(), block_pages=st.integers(1, 9), most_flags=st.integers(1, 60))
def test_it_becomes_the_new_content_and_knows_where_it_differs(
    edits: list[tuple[str, int, int]], size: int, has_hole: bool, block_pages: int, most_flags: int
) -> None:
    old = random.Random(5).randbytes(_BYTES)
    if has_hole:
        old = old[: 5 * PAGE] + bytes(20 * PAGE) + old[25 * PAGE :]
    new = edited(old, edits, size)
    flags, cloned._MOST_FLAGS = cloned._MOST_FLAGS, most_flags
    try:
        with tempfile.TemporaryFile(buffering=0) as old_file, tempfile.TemporaryFile(buffering=0) as file:
            old_file.write(old)
            imitated_clone(old_file.fileno(), file.fileno())
            clone = Clone(file.fileno(), old_file.fileno(), len(old), len(new))
            assert clone.write(blocks_of(new, block_pages * PAGE)) == len(new)
            file.seek(0)
            assert file.read() == new
            changed = list(clone.changed(0, len(new)))
            _check_ranges(old, new, changed)
            for start, end in ((0, 1), (3 * PAGE + 5, 9 * PAGE), (len(new) - 1, len(new)), (7, 7)):
                some = {at for first, last in clone.changed(start, end) for at in range(first, last)}
                assert some == {at for first, last in changed for at in range(max(first, start), min(last, end))}
            # What is known to be the same is not read: it is not there.
            kept = bytearray(len(new))
            for first, last in changed:
                kept[first:last] = new[first:last]
            file.seek(0)
            file.write(kept)
            growing = Growing()
            growing.changed = clone.changed
            growing.wrote(len(new))
            delta = b"".join(make_delta(old_file.fileno(), file.fileno(), growing=growing))
            if min(len(new), len(old)) >= 64 << 10:
                assert b"".join(rsync.patch(new, delta, len(old))) == old
    finally:
        cloned._MOST_FLAGS = flags


def _check_ranges(old: bytes, new: bytes, changed: list[tuple[int, int]]) -> None:
    end = 0
    for first, last in changed:
        assert end <= first < last <= len(new)
        assert old[end:first] == new[end:first]
        end = last
    assert old[end : len(new)] == new[end:]


def test_little_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = random.Random(1).randbytes(3 << 20)
    new = old[:5000] + b"changed" + old[5007 : 2 << 20] + bytes(1 << 20)
    (tmp_path / "old").write_bytes(old)
    written: list[int] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: (written.append(len(data)), real(fd, data, at))[1])
    with open(tmp_path / "old", "rb") as old_file, open(tmp_path / "new", "wb") as file:
        imitated_clone(old_file.fileno(), file.fileno())
        Clone(file.fileno(), old_file.fileno(), len(old), len(new)).write(blocks_of(new, 1 << 18))
    assert (tmp_path / "new").read_bytes() == new
    assert sum(written) == PAGE
    assert (tmp_path / "new").stat().st_blocks * 512 <= (2 << 20) + PAGE  # what became zeros is a hole


def test_without_holes_zeros_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoHoles:
        def fallocate(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(cloned, "_libc", NoHoles())
    monkeypatch.setattr(cloned.ctypes, "get_errno", lambda: errno.EOPNOTSUPP)
    with tempfile.TemporaryFile(buffering=0) as old_file, tempfile.TemporaryFile(buffering=0) as file:
        old_file.write(b"x" * 3 * PAGE)
        file.write(b"x" * 3 * PAGE)
        Clone(file.fileno(), old_file.fileno(), 3 * PAGE, 3 * PAGE).write(iter([bytes(PAGE), b"x" * PAGE, bytes(PAGE)]))
        file.seek(0)
        assert file.read() == bytes(PAGE) + b"x" * PAGE + bytes(PAGE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_a_disk_refuses_is_an_error(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cloned.fcntl, "ioctl", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        try_clone(0, 1)
    assert not is_scattered(0)


def test_where_there_are_no_clones_it_says_so() -> None:
    source, target = os.memfd_create("source"), os.memfd_create("target")
    try:
        assert not try_clone(source, target)
        assert not is_scattered(source)
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("case", on_xfs.CASES)
def test_on_a_file_system_whose_files_share_blocks(case: str, tmp_path: Path) -> None:
    if reason := places.obstacle():
        pytest.skip(reason)
    command = ["unshare", "-m", sys.executable, "-m", "tests.store.on_xfs", case, tmp_path]
    ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
