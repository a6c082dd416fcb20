"""A mount of a repository in which much is bad at once: each bad file is an error of its own, the rest goes on."""

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests import comparison
from tests.comparison import difference
from tests.compat import agreement
from tests.hostile import repositories, witness
from tests.hostile.repositories import (
    END,
    add_record,
    copy,
    insert_record,
    put,
    record,
    write_delta,
    write_snapshot,
)
from tests.trees import Dir, manifest

FIRST_NAME, SECOND_NAME = "@2023-11-14T22:13", "@2023-11-15T22:13"
STRANGE: dict[bytes, dict[str, object]] = {  # records without a file in the mirror
    b"\x1b[2J\r\xff": {"Type": "reg", "Size": 5},
    b"huge": {"Type": "reg", "Size": 2**62},
    b"old": {"Type": "reg", "Size": 4, "ModTime": -(10**14)},
    b"young": {"Type": "reg", "Size": 4, "ModTime": 10**17},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    repositories.make(path)
    put(path / "keep", os.mkfifo)
    put(path / "d/inner", lambda place: place.symlink_to("/etc/passwd"))
    write_delta(path, b"changed", copy(0, 3_900) * 300_000 + END)
    write_snapshot(path, b"deleted", b"once there was")
    for name, fields in STRANGE.items():
        add_record(path, name, **({"ModTime": 0} | fields), Permissions=0o644)
    add_record(path, b"impossible", Type="reg", Size=2**70, ModTime=0, Permissions=0o644)
    add_record(path, b"zero", Type="dev", DeviceNum="c 1 5", Permissions=0o666)
    add_record(path, b"zsetuid", Type="reg", Size=0, ModTime=0, Permissions=0o4755)
    return path


def error_of_reading(path: Path | bytes) -> int:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return error.errno or 0
    try:
        while os.read(fd, 1 << 20):
            pass
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(fd)
    return 0


def test_each_bad_file_is_an_error_of_its_own(repository: Path, tmp_path: Path) -> None:
    with agreement.mount(repository, tmp_path) as (mountpoint, said):
        for _ in range(2):
            first, second = mountpoint / FIRST_NAME, mountpoint / SECOND_NAME
            for bad in (first / "keep", second / "keep", second / "d/inner", first / "changed", first / "deleted"):
                assert error_of_reading(bad) == errno.EIO, bad
            for name in STRANGE:
                assert error_of_reading(os.fsencode(second) + b"/" + name) == errno.EIO, name
            assert error_of_reading(second / "impossible") == errno.ENOENT  # it was logged
            for good in (first / "replaced", second / "replaced", second / "changed", second / "d/deeper/x"):
                assert error_of_reading(good) == 0, good
            assert os.listdir(second / "d") == ["deeper", "inner"]
            assert {os.fsencode(name) for name in os.listdir(second)} >= STRANGE.keys()
    assert len(said) == len(set(said))
    witness.printable(said)


def test_devices_and_setuid_have_no_effect(repository: Path, tmp_path: Path) -> None:
    with agreement.mount(repository, tmp_path) as (mountpoint, _):
        status = os.lstat(mountpoint / SECOND_NAME / "zero")
        assert stat.S_ISCHR(status.st_mode)
        assert error_of_reading(mountpoint / SECOND_NAME / "zero") == errno.EACCES
        flags = os.statvfs(mountpoint).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert flags & os.ST_RDONLY


def test_programs_that_walk_go_on(repository: Path, tmp_path: Path) -> None:
    with agreement.mount(repository, tmp_path) as (mountpoint, _):
        top = mountpoint / SECOND_NAME
        ran = subprocess.run(["find", top, "-ls"], capture_output=True, timeout=20, check=False)
        assert (ran.returncode, ran.stderr) == (0, b"")
        copied = tmp_path / "copied"
        ran = subprocess.run(["cp", "-a", top, copied], capture_output=True, timeout=20, check=False)
        assert ran.returncode == 1
        bad = STRANGE.keys() | {b"keep", b"zero", b"zsetuid"}
        expected = {path: kept for path, kept in manifest(repositories.NEW).items() if path not in bad}
        found = {path: kept for path, kept in comparison.read(copied).items() if path not in bad}
        found.pop(b"d/inner", None)  # some programs make a file before they read the first byte
        del expected[b"d/inner"]
        assert difference(expected, found, root_mtime=False) == []


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    """The directory of its session is there, and says that it cannot be listed; the others can."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    repositories.metadata_path(repository, repositories.FIRST).write_bytes(b"\x1f\x8bgarbage")
    with agreement.mount(repository, tmp_path) as (mountpoint, said):
        assert sorted(os.listdir(mountpoint)) == [FIRST_NAME, SECOND_NAME]
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mountpoint / FIRST_NAME)
        shown = comparison.read(mountpoint / SECOND_NAME)
        assert difference(manifest(repositories.NEW), shown, root_mtime=False) == []
    assert len(said) == 1
    assert "mirror_metadata" in said[0]
    shutil.rmtree(repository)


def test_names_that_the_kernel_must_not_see(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repositories.make(repository)
    insert_record(repository, record(b"e" * 256, Type="dir", ModTime=0, Permissions=0o755), before=b"keep")
    with agreement.mount(repository, tmp_path) as (mountpoint, said):
        shown = comparison.read(mountpoint / SECOND_NAME)
        assert difference(manifest(repositories.NEW), shown, root_mtime=False) == []
        with pytest.raises(OSError, match="File name too long"):
            os.lstat(mountpoint / SECOND_NAME / ("e" * 256))
    assert len(said) == 1


def test_an_empty_tree(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repositories.make(repository)
    repositories.write_records(repository, repositories.SECOND, b"".join(repositories.records(Dir())))
    with agreement.mounted(repository, tmp_path) as mountpoint:
        assert os.listdir(mountpoint / SECOND_NAME) == []
