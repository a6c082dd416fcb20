"""A mount that has few descriptors, and no place for what it would like to keep."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial

import pytest

from tests.abuse.daemon import in_threads, mounted, wait_until
from tests.abuse.past import Past

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FEW = ["Too many open files", "Cannot allocate memory"]

# Descriptors


def copy(command, top, target):
    """Copy a snapshot with a tool; what it complains about."""
    target.mkdir()
    words = [word.format(top=top, target=target) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=100)
    complaints = [line for line in done.stderr.splitlines() if line and "exit" not in line]
    assert (done.returncode != 0) == bool(complaints), done
    return complaints


COPIES = {
    "cp": ["cp", "-a", "{top}/.", "{target}"],
    "tar": ["sh", "-c", "tar -C '{top}' -cf - . | tar -C '{target}' -xf -"],
}


def check_copies(past, mountpoint, names, place, tool):
    """Copies of snapshots at the same time: each file has the right bytes, or an error was told."""

    def check(number, name):
        target = place / f"{tool} {number}"
        complaints = copy(COPIES[tool], mountpoint / name, target)
        assert all(any(words in line for words in FEW) for line in complaints), complaints
        for path, content in past.files[name].items():
            is_there = (target / path).is_file() and (target / path).read_bytes() == content
            assert is_there or any(path in line or os.path.dirname(path) in line for line in complaints), (name, path)
        shutil.rmtree(target)
        return complaints

    in_threads([partial(check, number, name) for number, name in enumerate(names)])


@pytest.mark.parametrize("tool", COPIES)
@pytest.mark.parametrize("descriptors", [32, 64, 128])
def test_few_descriptors_are_enough_or_told(past, mountpoint, scratch, descriptors, tool):
    """The catalog, the log and the session take some; chains of a dozen increments are longer than what is left."""
    with mounted(past.repository, mountpoint, descriptors=descriptors) as daemon:
        check_copies(past, mountpoint, [past.names[0], past.names[5], past.names[-1]], scratch, tool)
        assert daemon.descriptors() <= descriptors
        before = daemon.descriptors()
        for name in past.names:  # one after the other there are enough for all
            for path in ("image", "document", "log", "small/0001"):
                past.check(mountpoint, name, path)
        assert daemon.descriptors() <= max(before, descriptors - 1)


@pytest.mark.long
@pytest.mark.parametrize("descriptors", [32, 64, 128])
def test_few_descriptors_and_chains_of_a_hundred(scratch, mountpoint, descriptors):
    past = Past(scratch, image_bytes=1 << 20, small=20)
    for _ in range(100):
        past.session()
    with mounted(past.repository, mountpoint, descriptors=descriptors, limit_s=500) as daemon:
        for tool in COPIES:
            check_copies(past, mountpoint, past.names[::20], scratch, tool)
        assert daemon.descriptors() <= descriptors
        for name in past.names[::7]:
            past.check(mountpoint, name, "image")
            past.check(mountpoint, name, "document")


# Places


@contextmanager
def small_file_system(place, size, options=""):
    """A file system of its own, in memory."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place):
    with open(place / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


@pytest.fixture
def without_catalog(past, scratch):
    """The history, as a program left it that knows nothing of catalogs."""
    shutil.copytree(past.repository, scratch / "bare", copy_function=shutil.copy2)
    shutil.rmtree(scratch / "bare" / "rdiff-backup-data" / "histfs")
    return scratch / "bare"


def check_all(past, mountpoint):
    assert os.listdir(mountpoint) == past.names
    for name in (past.names[0], past.names[-1]):
        for path in past.files[name]:
            past.check(mountpoint, name, path)


@root_only
@pytest.mark.parametrize("room", [0, 40_000], ids=["full", "too small"])
def test_a_full_cache_costs_time_only(past, without_catalog, mountpoint, tmp_path, room):
    with small_file_system(tmp_path / "cache", "128k") as cache:
        fill(cache)
        with open(cache / "filler", "r+b") as file:
            file.truncate(os.path.getsize(cache / "filler") - room)
        with mounted(without_catalog, mountpoint, environment={"XDG_CACHE_HOME": os.fspath(cache)}):
            check_all(past, mountpoint)
        left = [os.path.join(above, name) for above, _, names in os.walk(cache) for name in names]
        assert not [path for path in left if path.endswith((".sqlite", "-wal", "-journal"))]


@root_only
def test_a_cache_that_becomes_full_while_a_session_comes(own_past, mountpoint, tmp_path):
    """The one that is there is of older sessions; another is made elsewhere."""
    data = own_past.repository / "rdiff-backup-data"
    shutil.rmtree(data / "histfs")
    with (
        small_file_system(tmp_path / "cache", "1m") as cache,
        mounted(own_past.repository, mountpoint, environment={"XDG_CACHE_HOME": os.fspath(cache)}),
    ):
        check_all(own_past, mountpoint)
        assert any(name.endswith(".sqlite") for _, _, names in os.walk(cache) for name in names)
        fill(cache)
        own_past.session()
        shutil.rmtree(data / "histfs")
        wait_until(lambda: os.listdir(mountpoint) == own_past.names)
        check_all(own_past, mountpoint)


@root_only
def test_a_cache_on_a_read_only_file_system_costs_time_only(past, without_catalog, mountpoint, tmp_path):
    with (
        small_file_system(tmp_path / "cache", "1m", ",ro") as cache,
        mounted(without_catalog, mountpoint, environment={"XDG_CACHE_HOME": os.fspath(cache)}),
    ):
        check_all(past, mountpoint)


@pytest.mark.parametrize("is_file", [True, False], ids=["a file", "nowhere"])
def test_a_cache_that_cannot_be_made_costs_time_only(past, without_catalog, mountpoint, tmp_path, is_file):
    if is_file:
        (tmp_path / "cache").write_bytes(b"")
    place = tmp_path / "cache" if is_file else "/proc/nowhere"
    with mounted(without_catalog, mountpoint, environment={"XDG_CACHE_HOME": os.fspath(place)}):
        check_all(past, mountpoint)


@root_only
def test_where_temporary_files_have_no_room_either_another_place_is_found(past, without_catalog, mountpoint, tmp_path):
    with small_file_system(tmp_path / "full", "128k") as full:
        fill(full)
        places = {name: os.fspath(full) for name in ("XDG_CACHE_HOME", "TMPDIR", "SQLITE_TMPDIR")}
        with mounted(without_catalog, mountpoint, environment=places):
            check_all(past, mountpoint)
