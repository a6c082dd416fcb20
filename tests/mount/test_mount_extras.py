"""Extended attributes and lists in a real mount: what getfattr and getfacl see, whom the kernel lets in."""

import os
import struct
import subprocess
import sys

import pytest

from histfs.store.backup import backup
from tests.compat.agreement import complain
from tests.histories import has_xattrs
from tests.trees import Dir, File, Symlink, build, difference, manifest, read

FIRST, SECOND = 1_714_557_600, 1_714_644_000
FIRST_NAME, SECOND_NAME = "@2024-05-01T10:00", "@2024-05-02T10:00"
OWNER, GROUP, FRIEND, STRANGER = 1234, 4321, 1235, 1236

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def acl(*entries):
    """The kernel's form of entries of a tag, permissions and perhaps an id."""
    packed = (struct.pack("<HHI", *entry[:2], entry[2] if len(entry) > 2 else 0xFFFFFFFF) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


# The mode says that the group may read and write; the list says that a friend may and the group may not.
FRIENDLY = {"system.posix_acl_access": acl((1, 6), (2, 4, FRIEND), (4, 0), (16, 6), (32, 0))}
DEFAULT = {"system.posix_acl_default": acl((1, 7), (2, 5, FRIEND), (4, 5), (16, 5), (32, 5))}
OWNED = (OWNER, GROUP) if os.geteuid() == 0 else None
TREE = Dir(
    {
        "tagged": File(b"tagged", xattrs={"user.a": b"1", "user.empty": b""}),
        "plain": File(b"plain"),
        "friendly": File(b"friendly", 0o660, owner=OWNED, xattrs=FRIENDLY),
        "open": File(b"open", 0o664, owner=OWNED),
        "d": Dir({"inside": File(b"inside")}, xattrs={**DEFAULT, "user.d": b"d"}),
        "link": Symlink("tagged"),
    },
    xattrs={"user.top": b"top"},
)


@pytest.fixture
def mounted(tmp_path, mountpoint, request):
    if not has_xattrs(os.fsencode(tmp_path)):
        pytest.skip("the file system takes no extended attributes or no access control lists")
    source, repository = tmp_path / "source", tmp_path / "repository"
    build(source, TREE)
    backup(source, repository, now=FIRST, report=complain)
    os.setxattr(source / "tagged", "user.a", b"2")
    os.removexattr(source / "friendly", "system.posix_acl_access")
    os.chmod(source / "friendly", 0o660)
    backup(source, repository, now=SECOND, report=complain)
    options = [*request.param] if hasattr(request, "param") else []
    command = [sys.executable, "-m", "histfs", "--quiet", "mount", "--utc", *options, repository, mountpoint]
    subprocess.run(command, check=True, timeout=60)
    for directory in (mountpoint, *mountpoint.parents):  # others shall come as far as the mount itself
        if not os.path.ismount(directory) and os.geteuid() == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    return mountpoint


def test_the_mount_has_what_was_recorded(mounted):
    assert difference(manifest(TREE), read(mounted / FIRST_NAME), root_mtime=False) == []
    assert os.getxattr(mounted / SECOND_NAME / "tagged", "user.a") == b"2"
    assert os.getxattr(mounted / FIRST_NAME / "tagged", "user.a") == b"1"
    assert os.listxattr(mounted / SECOND_NAME / "friendly") == os.listxattr(mounted) == []
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(mounted / FIRST_NAME / "plain", "user.a")


def test_what_differs_in_extras_alone_is_another_file(mounted):
    inodes = {
        name: [(mounted / session / name).stat().st_ino for session in (FIRST_NAME, SECOND_NAME)]
        for name in ("tagged", "plain", "friendly")
    }
    assert inodes["plain"][0] == inodes["plain"][1]
    assert inodes["tagged"][0] != inodes["tagged"][1]
    assert inodes["friendly"][0] != inodes["friendly"][1]


def test_programs_see_them(mounted):
    def said(*command):
        return subprocess.run(command, cwd=mounted / FIRST_NAME, check=True, capture_output=True, text=True).stdout

    assert said("getfattr", "-d", "-m", "user", "tagged") == '# file: tagged\nuser.a="1"\nuser.empty=""\n\n'
    access = said("getfacl", "--omit-header", "--numeric", "friendly")
    assert access == f"user::rw-\nuser:{FRIEND}:r--\ngroup::---\nmask::rw-\nother::---\n\n"
    assert f"default:user:{FRIEND}:r-x" in said("getfacl", "--numeric", "d")
    copy = mounted.parent / "copy"
    said("cp", "-a", ".", copy)
    assert difference(manifest(TREE), read(copy), root_mtime=False) == []


@root_only
@pytest.mark.parametrize("mounted", [["--allow-other", "--old-modes=as-stored"]], indirect=True)
@pytest.mark.parametrize(
    ("user", "group", "readable"),
    [
        (OWNER, 9, {"friendly", "open", "later"}),
        (FRIEND, 9, {"friendly", "open"}),
        (STRANGER, GROUP, {"open", "later"}),  # whom the mode of `friendly` alone would let in
        (STRANGER, 9, {"open"}),
    ],
)
def test_the_kernel_lets_in_whom_the_list_lets_in(mounted, user, group, readable):
    paths = {
        "friendly": mounted / FIRST_NAME / "friendly",
        "open": mounted / FIRST_NAME / "open",
        "later": mounted / SECOND_NAME / "friendly",  # without the list
    }
    for name, path in paths.items():
        done = subprocess.run(["cat", path], user=user, group=group, extra_groups=[], capture_output=True)
        assert (done.returncode == 0) is (name in readable), (name, done.stderr)
