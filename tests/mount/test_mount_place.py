"""What is mounted where, and what may lie where: on tables of mounts as Linux writes them."""

import os
from pathlib import Path

import pytest

from histfs.errors import MountError, UsageError
from histfs.mount import _Request, mount_options, place
from histfs.mount.place import Mounted, is_inside, mounted_at, parse_mount_table

TABLE = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:2 / /home rw,relatime shared:2 - ext4 /dev/sda2 rw
31 30 8:2 /backups /mnt/bound rw,relatime shared:2 - ext4 /dev/sda2 rw
32 22 0:40 / /mnt/with\040space\134n rw,nosuid - fuse.histfs histfs:/a\040b ro,user_id=0
33 22 0:41 / /mnt/twice rw - tmpfs tmpfs rw
34 33 0:42 / /mnt/twice rw shared:7 master:3 - fuse.histfs histfs:/x ro
35 22 0:30 /@/var /var rw - btrfs /dev/sdb rw,subvol=/@/var
36 22 0:30 /@ /mnt/pool rw - btrfs /dev/sdb rw,subvol=/@
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    monkeypatch.setattr(place, "_MOUNT_TABLE", path)


def test_the_table_is_understood():
    mounts = parse_mount_table(TABLE)
    assert mounts[0] == Mounted(22, b"8:1", b"/", b"/", "ext4", b"/dev/sda1", None)
    assert mounts[3] == Mounted(32, b"0:40", b"/", b"/mnt/with space\\n", "fuse.histfs", b"histfs:/a b", 0)


def test_the_table_of_this_machine_is_understood():
    assert any(mounted.point == b"/proc" for mounted in parse_mount_table(Path("/proc/self/mountinfo").read_bytes()))


def test_the_uppermost_mount_counts(table):
    assert mounted_at(Path("/mnt/twice")).mount_id == 34
    assert mounted_at(Path("/mnt/with space\\n")).type == "fuse.histfs"
    assert mounted_at(Path("/mnt")) is None


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("/nowhere/a", "/nowhere/a", True),
        ("/nowhere/a/b", "/nowhere/a", True),
        ("/nowhere/ab", "/nowhere/a", False),
        ("/nowhere/a", "/nowhere/a/b", False),
        ("/home/backups", "/mnt/bound", True),
        ("/mnt/bound", "/home/backups", True),
        ("/mnt/bound/repository", "/home/backups/repository", True),
        ("/home/backups/repository/increments", "/mnt/bound/repository", True),
        ("/home/backups2", "/mnt/bound", False),
        ("/mnt/bound/repository", "/home", True),
        ("/mnt/bound", "/home/backups/repository", False),
        ("/var/backups", "/mnt/pool", True),
        ("/mnt/pool/var/backups", "/var/backups", True),
        ("/mnt/pool/home", "/var", False),
        ("/nowhere", "/", True),
        ("/", "/nowhere", False),
    ],
)
def test_what_lies_in_what(table, inner, outer, expected):
    assert is_inside(Path(inner), Path(outer)) is expected


def test_without_a_mount_table_entry_paths_decide(table, monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    monkeypatch.setattr(place, "_MOUNT_TABLE", tmp_path / "empty")
    assert is_inside(Path("/nowhere/a"), Path("/nowhere"))
    assert not is_inside(Path("/nowhere"), Path("/nowhere/a"))


def test_a_directory_is_told_by_its_number_too(tmp_path, monkeypatch):
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "empty").touch()
    monkeypatch.setattr(place, "_MOUNT_TABLE", tmp_path / "empty")
    assert is_inside(tmp_path / "link" / "below", tmp_path / "real")
    assert not is_inside(tmp_path / "link", tmp_path / "real" / "below")


@pytest.mark.parametrize(
    ("mountpoint", "repository", "temporary", "log", "said"),
    [
        ("/r/m", "/r", "/tmp", None, "the mount point lies in the repository"),
        ("/m", "/m/r", "/tmp", None, "the repository lies below the mount point"),
        ("/m", "/r", "/m/tmp", None, "temporary files would lie below"),
        ("/m", "/r", "/r", None, "temporary files would lie in the repository"),
        ("/m", "/r", "/tmp", "/m/log", "the log would lie below"),
        ("/m", "/r", "/tmp", "/r/log", "the log would lie in the repository"),
        ("/m", "/r", "/tmp", "/l/log", "the cache of catalogs would lie below"),
    ],
)
def test_what_may_not_overlap(table, mountpoint, repository, temporary, log, said):
    with pytest.raises(UsageError, match=said):
        place.check_overlap(
            Path(mountpoint), Path(repository), Path(temporary), Path(log) if log else None, Path("/m/c")
        )


def test_what_does_not_overlap(table):
    place.check_overlap(Path("/m"), Path("/r"), Path("/tmp"), Path("/l/log"), Path("/c"))


def test_only_the_owner_unmounts(table, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="another user"):
        place.unmount(Path("/mnt/with space\\n"), lazy=False)


# Whether this user may mount


@pytest.fixture
def as_user(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(place, "FUSE_DEVICE", tmp_path)
    monkeypatch.setattr(place.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (b"user_allow_other\n", True),
        (b"# x\n user_allow_other \n", True),
        (b"#user_allow_other\n", False),
        (b"", False),
    ],
)
def test_others_need_a_line_in_the_configuration(as_user, tmp_path, text, allowed):
    (tmp_path / "fuse.conf").write_bytes(text)
    place.check_fuse(allow_other=False, configuration=tmp_path / "fuse.conf")
    if allowed:
        place.check_fuse(allow_other=True, configuration=tmp_path / "fuse.conf")
    else:
        with pytest.raises(UsageError, match="user_allow_other"):
            place.check_fuse(allow_other=True, configuration=tmp_path / "fuse.conf")


def test_others_are_not_allowed_without_a_configuration(as_user, tmp_path):
    with pytest.raises(UsageError, match="user_allow_other"):
        place.check_fuse(allow_other=True, configuration=tmp_path / "missing")


def test_root_needs_no_configuration(as_user, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(place.shutil, "which", lambda _name: None)
    place.check_fuse(allow_other=True, configuration=tmp_path / "missing")


def test_what_is_missing_is_named(as_user, monkeypatch, tmp_path):
    monkeypatch.setattr(place.shutil, "which", lambda _name: None)
    with pytest.raises(MountError, match="fusermount3"):
        place.check_fuse(allow_other=False)
    monkeypatch.setattr(place, "FUSE_DEVICE", tmp_path / "missing")
    with pytest.raises(MountError, match="modprobe fuse"):
        place.check_fuse(allow_other=False)


# Options


def request(repository, *, allow_other=False):
    return _Request(Path(repository), Path("/m"), None, allow_other, True, None, False)


def test_options_are_always_safe():
    assert mount_options(request("/srv/r")) == {"ro", "nosuid", "nodev", "fsname=histfs:/srv/r", "subtype=histfs"}
    extra = mount_options(request("/srv/r", allow_other=True)) - mount_options(request("/srv/r"))
    assert extra == {"allow_other", "default_permissions"}


@pytest.mark.parametrize("name", ["a,suid", "a b", "ü", "a\\,dev", "x" * 5000, "\udcff", "a\nb", "a=b"])
def test_no_name_of_a_repository_is_an_option(name):
    for option in mount_options(request(f"/srv/{name}")):
        assert option.isascii()
        assert not set(option) & set(", \\\n")
        assert len(option) < 2000
