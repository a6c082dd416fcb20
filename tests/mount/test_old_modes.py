"""By which rights old versions are shown to others: real mounts, and users who try to read what is in them.

Alice owns everything, Bob is in the group, Carol is nobody in particular. Three sessions: at the FIRST most is open, at
the SECOND some of it is, and what it is like at the THIRD counts for the strict policy.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from histfs.errors import UsageError
from histfs.mount import mount
from histfs.store.backup import backup
from tests.compat.agreement import complain
from tests.histories import has_xattrs
from tests.mount.test_mount_extras import acl

FIRST, SECOND, THIRD, FOURTH = (1_714_557_600 + 86_400 * day for day in range(4))
NAMES = [f"@2024-05-0{day}T10:00" for day in (1, 2, 3, 4)]
ALICE, BOB, CAROL, GROUP, ELSEWHERE = 1234, 1235, 1236, 4321, 4322
USERS = {"a": (ALICE, ELSEWHERE), "b": (BOB, GROUP), "c": (CAROL, ELSEWHERE)}
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")

# A mode, or a mode, an owner and a list; "/": a directory; None: nothing is there; "->": a link.
FOR_BOB = {"system.posix_acl_access": acl((1, 6), (2, 4, BOB), (4, 0), (16, 4), (32, 0))}
NOT_FOR_BOB = {"system.posix_acl_access": acl((1, 6), (2, 0, BOB), (4, 4), (16, 4), (32, 4))}
FOR_CAROL_AND_GROUP = {"system.posix_acl_access": acl((1, 6), (2, 4, CAROL), (4, 4), (16, 4), (32, 0))}

# Path: what it is at each session; who can read the first version by what it grants itself, by the strict policy, and
# by that which lets only owners in. "x/" as a path is the directory itself, which is listed.
TABLE = {
    "closed-today": ((0o644, 0o644, 0o600), "abc", "a", "a"),
    "closed-meanwhile": ((0o644, 0o600, 0o644), "abc", "abc", "a"),
    "open-today": ((0o600, 0o640, 0o644), "a", "a", "a"),
    "group-only-today": ((0o644, 0o644, 0o640), "abc", "ab", "a"),
    "always-open": ((0o644, 0o644, 0o644), "abc", "abc", "a"),
    "not-for-its-owner-today": ((0o644, 0o644, 0o044), "abc", "bc", "a"),
    "deleted": ((0o644, None, None), "abc", "abc", "a"),
    "deleted-and-closed": ((0o600, None, None), "a", "a", "a"),
    "back-again": ((0o644, None, 0o600), "abc", "a", "a"),
    "other-owner": (((0o644, ALICE), (0o644, ALICE), (0o600, CAROL)), "abc", "", "a"),
    "other-owner-open": (((0o644, ALICE), (0o644, ALICE), (0o644, CAROL)), "abc", "abc", "a"),
    "private-of-another": (((0o600, ALICE), (0o600, ALICE), (0o600, BOB)), "a", "", "a"),
    "list-taken-away": (((0o640, ALICE, FOR_BOB), 0o600, 0o600), "ab", "a", "a"),
    "list-came": ((0o644, 0o644, (0o644, ALICE, NOT_FOR_BOB)), "abc", "ac", "a"),
    "list-stays": (((0o640, ALICE, FOR_BOB),) * 3, "ab", "ab", "a"),
    # That Bob is in the group is not known to whom it is told that he may read today.
    "list-of-others": (((0o640, ALICE, FOR_CAROL_AND_GROUP), 0o600, (0o640, ALICE, FOR_BOB)), "abc", "a", "a"),
    "open/": (("/", "/", "/"), "abc", "abc", "a"),
    "open/closed-today": ((0o644, 0o644, 0o600), "abc", "a", "a"),
    "shut/": (("/", "/", "/0700"), "abc", "a", "a"),
    "shut/inside": ((0o644, 0o644, 0o644), "abc", "a", "a"),
    "shut/deleted": ((0o644, None, None), "abc", "a", "a"),
    "shut/deeper/": (("/", "/", "/"), "abc", "a", "a"),
    "shut/deeper/deleted": ((0o644, 0o644, None), "abc", "a", "a"),
    "gone/": (("/", None, None), "abc", "abc", "a"),
    "gone/inside": ((0o644, None, None), "abc", "abc", "a"),
    "listed/": (("/0755", "/0755", ("/0755", ALICE, {"system.posix_acl_access": acl(
        (1, 7), (2, 0, BOB), (4, 5), (16, 5), (32, 5))})), "abc", "ac", "a"),
    "listed/inside": ((0o644, 0o644, 0o644), "abc", "ac", "a"),
    "file-then-directory": ((0o644, 0o644, "/0700"), "abc", "a", "a"),
    "file-then-open-directory": ((0o644, 0o644, "/0755"), "abc", "abc", "a"),
    "directory-then-file/": (("/", "/", 0o600), "abc", "a", "a"),
    "directory-then-file/inside": ((0o644, 0o644, None), "abc", "a", "a"),
    "file-then-link": ((0o644, 0o644, "->/etc/shadow"), "abc", "abc", "a"),
}  # fmt: skip


def put(path, cell):
    """Make `path` what a cell of the table says, whatever it was."""
    what, owner, xattrs = (*cell, {})[:3] if isinstance(cell, tuple) else (cell, ALICE, {})
    is_directory = isinstance(what, str) and what.startswith("/")
    if os.path.lexists(path) and (not is_directory or not path.is_dir()):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if what is None:
        return
    if isinstance(what, str) and not is_directory:
        path.symlink_to(what.removeprefix("->"))
        return
    mode = int(what[1:] or "755", 8) if is_directory else what
    path.mkdir(exist_ok=True) if is_directory else path.write_bytes(b"content")
    os.chown(path, owner, GROUP)
    path.chmod(mode)
    for name, value in xattrs.items():
        os.setxattr(path, name, value)


READ = """
import json, os, sys
found = []
for path in json.load(sys.stdin):
    try:
        os.listdir(path) if path.endswith("/") else open(path, "rb").read()
    except PermissionError:
        continue
    found.append(path)
print(json.dumps(found))
"""


def readable(user, paths):
    """Which of the paths a user can read, or list."""
    uid, gid = USERS[user]
    command = [sys.executable, "-S", "-c", READ]
    done = subprocess.run(
        command,
        input=json.dumps(paths),
        text=True,
        capture_output=True,
        user=uid,
        group=gid,
        extra_groups=[],
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@contextmanager
def mounted(repository, mountpoint, *options):
    command = [sys.executable, "-m", "histfs", "--quiet", "mount", "--utc", "--allow-other", *options]
    subprocess.run([*command, repository, mountpoint], check=True, timeout=60)
    for directory in (mountpoint, *mountpoint.parents):  # others shall come as far as the mount itself
        if not os.path.ismount(directory):
            directory.chmod(directory.stat().st_mode | 0o011)
    yield mountpoint
    subprocess.run([sys.executable, "-m", "histfs", "--quiet", "umount", mountpoint], check=True, timeout=60)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    place = tmp_path_factory.mktemp("modes")
    if not has_xattrs(os.fsencode(place)):
        pytest.skip("the file system takes no access control lists")
    source = place / "source"
    source.mkdir(mode=0o755)
    source.chmod(0o755)
    for number, session_time in enumerate((FIRST, SECOND, THIRD)):
        for name, (cells, *_) in TABLE.items():
            put(source / name.rstrip("/"), cells[number])
        make_links(source, number)
        backup(source, place / "repository", now=session_time, report=complain)
    return place / "repository"


def make_links(source, number):
    """Files with two names, of which one is another file today, or is closed, or is gone."""
    if number == 0:
        for pair in ("1", "2", "3"):
            put(source / f"link{pair}", 0o644)
            os.link(source / f"link{pair}", source / f"zlink{pair}")
    elif number == 2:
        put(source / "link1", None)
        put(source / "zlink1", 0o600)
        put(source / "zlink2", None)
        put(source / "zlink2", 0o600)
        put(source / "link3", None)
        put(source / "zlink3", None)


LINKS = {
    **dict.fromkeys(("link1", "zlink1", "link2", "zlink2"), ("abc", "a", "a")),
    **dict.fromkeys(("link3", "zlink3"), ("abc", "abc", "a")),
}
EXPECTED = {name: who for name, (_, *who) in TABLE.items()} | LINKS


@pytest.mark.parametrize(
    ("policy", "options"),
    [(1, []), (0, ["--old-modes=as-stored"]), (2, ["--old-modes=owner"])],
)
def test_who_can_read_the_past(repository, mountpoint, policy, options):
    with mounted(repository, mountpoint, *options):
        top = mountpoint / NAMES[0]
        for user in USERS:
            paths = [f"{top}/{name}" for name in EXPECTED]
            found = {path.removeprefix(f"{top}/") for path in readable(user, paths)}
            assert found == {name for name, who in EXPECTED.items() if user in who[policy]}, user
            assert readable(user, paths[::-1]) == readable(user, paths)  # also when the kernel knows it


def test_nothing_is_shown_that_the_version_itself_does_not_grant(repository, mountpoint, tmp_path):
    """At every session; in listings, by names, and again when all is cached."""
    with mounted(repository, mountpoint, "--old-modes=as-stored"):
        stored = {name: modes(mountpoint / name) for name in NAMES[:3]}
    with mounted(repository, mountpoint):
        for _ in range(2):
            for name in NAMES[:3]:
                shown = modes(mountpoint / name)
                assert shown.keys() == stored[name].keys()
                assert all(shown[path] & ~stored[name][path] == 0 for path in shown)
        assert modes(mountpoint / NAMES[2]) == stored[NAMES[2]]
        one_by_one = {path: stat.S_IMODE(os.lstat(mountpoint / NAMES[0] / path).st_mode) for path in stored[NAMES[0]]}
        time.sleep(1.2)
        assert one_by_one == modes(mountpoint / NAMES[0])
        top = mountpoint / NAMES[0]
        assert (top / "link1").stat().st_ino == (top / "zlink1").stat().st_ino
        shown = subprocess.run(
            ["getfacl", "--omit-header", "--numeric", "--absolute-names", top / "list-came"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert shown == f"user::rw-\nuser:{BOB}:---\ngroup::r--\nmask::r--\nother::r--\n\n"


def modes(top):
    return {
        os.path.relpath(os.path.join(above, name), top): stat.S_IMODE(os.lstat(os.path.join(above, name)).st_mode)
        for above, directories, files in os.walk(top)
        for name in (*directories, *files)
        if not os.path.islink(os.path.join(above, name))
    }


def test_a_mount_follows_what_is_closed_meanwhile(mountpoint, tmp_path):
    """Also where the kernel, and what answers for us, had it all: attributes, lists, listings, open directories."""
    source, repository = tmp_path / "source", tmp_path / "repository"
    source.mkdir(mode=0o755)
    source.chmod(0o755)
    many = [f"many/{number}" for number in range(600)]
    put(source / "many", "/")
    put(source / "d", "/")
    for name in ("closed", "d/inside", "stays", *many):
        put(source / name, 0o644)
    put(source / "list", (0o640, ALICE, FOR_BOB))
    backup(source, repository, now=FIRST, report=complain)
    (source / "stays").write_bytes(b"changed")
    backup(source, repository, now=SECOND, report=complain)
    paths = [f"{name}/{path}" for name in NAMES[:2] for path in ("closed", "d/", "d/inside", "list", "stays", *many)]
    with mounted(repository, mountpoint):
        paths = [f"{mountpoint}/{path}" for path in paths]
        modes(mountpoint)
        assert readable("b", paths) == set(paths)
        (source / "closed").chmod(0o600)
        (source / "d").chmod(0o700)
        put(source / "list", 0o600)
        for name in many:
            (source / name).chmod(0o600)
        backup(source, repository, now=THIRD, report=complain)
        stays = {path for path in paths if path.endswith("stays")}
        deadline = time.monotonic() + PATIENCE_S
        while readable("b", paths) != stays:
            assert time.monotonic() < deadline, readable("b", paths) - stays
            time.sleep(0.1)
        for name in NAMES[:2]:
            assert set(modes(mountpoint / name / "many").values()) == {0o600}
        assert readable("b", paths) == stays
        assert readable("a", paths) == set(paths)
        (source / "closed").chmod(0o644)
        backup(source, repository, now=FOURTH, report=complain)
        opened = stays | {path for path in paths if path.endswith("/closed")}
        while readable("b", paths) != opened:
            assert time.monotonic() < deadline + PATIENCE_S
            time.sleep(0.1)


def test_what_only_root_may_set_is_shown_if_root_asks(mountpoint, tmp_path):
    source, repository = tmp_path / "source", tmp_path / "repository"
    source.mkdir(mode=0o755)
    (source / "f").write_bytes(b"x")
    capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_raw+ep
    for name, value in {"user.a": b"1", "trusted.b": b"2", "security.capability": capability}.items():
        os.setxattr(source / "f", name, value)
    backup(source, repository, now=FIRST, report=complain)
    own = [sys.executable, "-m", "histfs", "--quiet"]
    for options, expected in (
        (["--allow-other"], {"user.a"}),
        (["--allow-other", "--all-attributes"], {"user.a", "trusted.b", "security.capability"}),
        (["--allow-other", "--old-modes=owner"], {"user.a"}),
        ([], {"user.a", "trusted.b", "security.capability"}),
    ):
        subprocess.run([*own, "mount", "--utc", *options, repository, mountpoint], check=True, timeout=60)
        file = mountpoint / NAMES[0] / "f"
        assert set(os.listxattr(file)) == expected
        if "trusted.b" not in expected:
            with pytest.raises(OSError, match="No data"):
                os.getxattr(file, "trusted.b")
        subprocess.run([*own, "umount", mountpoint], check=True, timeout=60)


@pytest.mark.parametrize("option", ["-osuid,dev", "--suid", "--dev"])
def test_no_option_lets_setuid_or_devices_have_an_effect(tmp_path, option):
    command = [sys.executable, "-m", "histfs", "mount", *option.split(), tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has no option" in done.stderr


def test_options_that_make_no_sense_are_refused(tmp_path):
    from histfs.store.rights import OldModes

    options = {"zone": None, "foreground": True, "log_file": None, "debug": False, "cache": None, "memory_bytes": 0}
    with pytest.raises(UsageError, match="says what others may read"):
        mount(tmp_path, tmp_path, allow_other=False, old_modes=OldModes.STRICT, **options)
