"""Extended attributes and access control lists: read, recorded, in the mirror, restored, brought back by a recovery."""

import errno
import gzip
import os
import stat
import struct
from pathlib import Path

import pytest

from histfs.errors import DamagedError, HistfsError, UsageError
from histfs.store import xattrs
from histfs.store.accounts import user_name
from histfs.store.backup import backup
from histfs.store.entry import ALL_EXTRAS, NO_EXTRAS, AclEntry, Entry, Extras, Kind
from histfs.store.files import Attributes, WritableTree
from histfs.store.owners import NUMERICAL
from histfs.store.regress import regress
from histfs.store.restore import restore
from histfs.store.source import Source
from histfs.store.target import Manner
from histfs.store.tree import Tree
from tests.comparison import difference, read
from tests.histories import has_xattrs
from tests.store.killing import Killer
from tests.store.sessions import FIRST, Sessions
from tests.trees import Dir, File, Link, Symlink, build

NO_ID = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
SOMEBODY = 4711  # a user without a name
GROUP_SHUT_OUT = [(1, 6), (2, 4, SOMEBODY), (4, 0), (16, 6), (32, 0)]  # the mode says rw-rw----


def acl(*entries: tuple[int, ...]) -> bytes:
    """The kernel's form of entries of a tag, permissions and perhaps an id."""
    packed = (struct.pack("<HHI", *entry[:2], entry[2] if len(entry) > 2 else NO_ID) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


@pytest.fixture(autouse=True)
def _only_where_there_are_some(tmp_path: Path) -> None:
    if not has_xattrs(os.fsencode(tmp_path)):
        pytest.skip("the file system takes no extended attributes or no access control lists")


TREE = Dir(
    {
        "plain": File(b"plain"),
        "tagged": File(b"tagged", xattrs={"user.a": b"1", "user.empty": b"", "user.with blank=\\": b"\0\xff\n"}),
        "listed": File(b"listed", 0o660, xattrs={ACCESS: acl(*GROUP_SHUT_OUT)}),
        "link": Link("listed"),
        "symlink": Symlink("plain"),
        "d": Dir(
            {"inside": File(b"inside")},
            xattrs={DEFAULT: acl((1, 7), (2, 7, SOMEBODY), (4, 5), (16, 7), (32, 5)), "user.d": b"d"},
        ),
    },
    xattrs={"user.root": b"root"},
)


def change(sessions: Sessions) -> None:
    """Attributes alone: new, others, gone."""
    source = sessions.source
    os.setxattr(source / "plain", "user.new", b"new")
    os.setxattr(source / "tagged", "user.a", b"2")
    os.removexattr(source / "tagged", "user.empty")
    os.setxattr(source / "d/inside", ACCESS, acl((1, 6), (2, 6, SOMEBODY), (4, 4), (16, 6), (32, 4)))
    os.removexattr(source / "d", DEFAULT)
    os.removexattr(source / "listed", ACCESS)
    os.chmod(source / "listed", 0o660)


def test_each_session_is_what_the_source_was(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, TREE)
    first = sessions.backup()
    change(sessions)
    second = sessions.backup()
    unchanged = sessions.backup()
    sessions.assert_all_readable()
    assert [run.statistics.changed_files for run in (first, second, unchanged)] == [0, 6, 0]
    assert second.statistics.increment_files == 0  # contents are the same
    for session_time, state in sessions.states.items():
        target = tmp_path / str(session_time)
        with sessions.open() as repository:
            assert restore(repository, b"", session_time, target, report=_fail).errors == 0
        assert difference(state, read(target)) == []


def test_the_mirror_has_them(sessions: Sessions) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    change(sessions)
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)


def test_the_files(sessions: Sessions) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    name = ".2023-11-14T22:13:20Z.snapshot.gz"
    xattrs = gzip.decompress((sessions.data / f"extended_attributes{name}").read_bytes())
    assert xattrs == (
        b"# file: .\nuser.root=0scm9vdA==\n"
        b"# file: d\nuser.d=0sZA==\n"
        b"# file: tagged\nuser.a=0sMQ==\nuser.empty\nuser.with\\040blank\\075\\134=0sAP8K\n"
    )
    acls = gzip.decompress((sessions.data / f"access_control_lists{name}").read_bytes())
    listed = b"user::rw-\nuser:4711:r--\ngroup::---\nmask::rw-\nother::---\n"
    assert acls == (
        b"# file: d\nuser::rwx\ngroup::r-x\nother::r-x\n"
        b"default:user::rwx\ndefault:user:4711:rwx\ndefault:group::r-x\ndefault:mask::rwx\ndefault:other::r-x\n"
        b"# file: link\n" + listed + b"# file: listed\n" + listed
    )


def test_names_are_recorded_where_there_are_any(sessions: Sessions) -> None:
    build(
        sessions.source, Dir({"f": File(xattrs={ACCESS: acl((1, 6), (2, 4, 0), (4, 4), (8, 4, 0), (16, 4), (32, 4))})})
    )
    sessions.backup()
    [path] = sessions.data.glob("access_control_lists.*")
    text = gzip.decompress(path.read_bytes())
    assert b"user:%b:r--\n" % user_name(0) in text
    assert b"group:root:r--\n" in text


@pytest.mark.parametrize("extras", [Extras(xattrs=False), Extras(acls=False), NO_EXTRAS])
def test_what_is_not_wanted_is_not_recorded_and_the_mirror_is_left_as_it_is(sessions: Sessions, extras: Extras) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    change(sessions)
    backup(sessions.source, sessions.repository, now=sessions.now + 60, report=_fail, extras=extras)
    assert (len(list(sessions.data.glob("extended_attributes.*"))) == 2) is extras.xattrs
    assert (len(list(sessions.data.glob("access_control_lists.*"))) == 2) is extras.acls
    tagged = os.getxattr(sessions.repository / "tagged", "user.a")
    assert tagged == (b"2" if extras.xattrs else b"1")
    assert (ACCESS in os.listxattr(sessions.repository / "d/inside")) is extras.acls


@pytest.mark.parametrize("extras", [Extras(acls=False), NO_EXTRAS, ALL_EXTRAS])
def test_a_mode_whose_list_is_not_recorded_or_read_grants_nobody_more(
    sessions: Sessions, extras: Extras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group's bits of the mode are the list's mask; the owning group was shut out."""
    build(sessions.source, Dir({"f": File(b"f", 0o640), "plain": File(b"p", 0o640)}))
    os.setxattr(sessions.source / "f", ACCESS, acl((1, 6), (2, 6, SOMEBODY), (4, 0), (16, 6), (32, 0)))
    reported: list[HistfsError] = []
    if extras.acls:

        def denied(tree: Tree, path: bytes, name: bytes) -> bytes:
            raise PermissionError(errno.EACCES, "no", path)

        monkeypatch.setattr(Tree, "xattr", denied)
    backup(sessions.source, sessions.repository, now=FIRST, report=reported.append, extras=extras)
    monkeypatch.undo()
    assert [error.path for error in reported] == ([b"f"] if extras.acls else [])
    with sessions.open() as repository:
        restore(repository, b"", FIRST, tmp_path / "target", report=_fail)
    for place in (sessions.repository, tmp_path / "target"):
        assert [(place / name).stat().st_mode & 0o777 for name in ("f", "plain")] == [0o600, 0o640]


def test_a_session_without_the_files_is_no_trouble(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    for path in [*sessions.data.glob("extended_attributes.*"), *sessions.data.glob("access_control_lists.*")]:
        path.unlink()
    with sessions.open() as repository:
        assert restore(repository, b"", sessions.now, tmp_path / "target", report=_fail).errors == 0
    assert not os.listxattr(tmp_path / "target/tagged")
    assert sessions.backup().statistics.changed_files == 5  # what has any now had none then, for all that is known


def test_new_files_do_not_get_what_their_directory_gives(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    build(sessions.source / "d/new", Dir({"file": File(b"new", 0o664)}))
    for path in (sessions.source / "d/new", sessions.source / "d/new/file"):
        for name in os.listxattr(path):
            os.removexattr(path, name)
    os.chmod(sessions.source / "d/new", 0o755)
    os.chmod(sessions.source / "d/new/file", 0o664)
    os.setxattr(sessions.source / "d/inside", "user.a", b"a")
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    inheriting = tmp_path / "inheriting"
    inheriting.mkdir()
    os.setxattr(inheriting, DEFAULT, acl((1, 7), (2, 7, SOMEBODY), (4, 7), (16, 7), (32, 7)))
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, inheriting / "target", report=_fail)
    assert difference(sessions.states[sessions.now], read(inheriting / "target")) == []


# Trouble with the source


def test_what_cannot_be_read_is_told_and_kept(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    change(sessions)
    real = os.getxattr

    def getxattr(path: bytes | str, name: bytes, **options: bool) -> bytes:
        if isinstance(path, bytes) and path.startswith(b"/proc/") and path.endswith(b"/tagged"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "getxattr", getxattr)
        outcome = sessions.backup(may_report=True)
    assert (outcome.source_errors, outcome.source_warnings) == (1, 0)
    [error] = sessions.reported
    assert error.path == b"tagged"
    assert "Input/output error" in str(error)
    with sessions.open() as repository, repository.snapshot(sessions.now).extras(ALL_EXTRAS, _fail) as extras:
        assert extras.of(b"plain") == (((b"user.new", b"new"),), ())
        assert dict(extras.of(b"tagged")[0])[b"user.a"] == b"1"
    assert sessions.backup().source_errors == 0
    sessions.assert_readable(sessions.now)


def test_a_file_system_without_any(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    build(sessions.source, Dir({"f": File(b"f")}))
    with monkeypatch.context() as patch:
        patch.setattr(os, "listxattr", refuse)
        assert sessions.backup().source_errors == 0
        assert sessions.backup().statistics.changed_files == 0


def test_what_xfs_shows_of_a_list_a_second_time_is_neither_set_nor_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the list itself, which has its own way."""
    changes: list[bytes] = []
    monkeypatch.setattr(os, "setxattr", lambda _magic, name, _value: changes.append(name))
    monkeypatch.setattr(os, "removexattr", lambda _magic, name: changes.append(name))
    shown = b"trusted.SGI_ACL_FILE"
    assert not xattrs.set_xattrs("nowhere", [shown, b"user.old"], ((shown, b"raw"), (b"user.new", b"")), owned=True)
    assert changes == [b"user.old", b"user.new"]


def test_links_are_not_followed(sessions: Sessions) -> None:
    build(sessions.source, TREE)
    (sessions.source / "to").symlink_to("tagged")
    with Source.open(sessions.source, extras=ALL_EXTRAS) as source:
        found = {item.path: item.entry for item in source.walk(lambda _path, _status: False)}
    assert found[b"to"].xattrs == ()
    assert len(found[b"tagged"].xattrs) == 3


# Setting them


def test_a_target_that_takes_none_grants_nobody_more(
    sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    monkeypatch.setattr(os, "setxattr", _refuse)
    reports: list[HistfsError] = []
    with sessions.open() as repository:
        assert restore(repository, b"", sessions.now, tmp_path / "target", report=reports.append).errors == 1
    assert "does not take all extended attributes" in str(reports[0])
    assert stat.S_IMODE((tmp_path / "target/listed").stat().st_mode) == 0o600  # the group was shut out by its list


def test_a_restore_without_lists_grants_nobody_more(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, tmp_path / "t", report=_fail, extras=NO_EXTRAS)
    assert os.listxattr(tmp_path / "t/listed") == os.listxattr(tmp_path / "t/tagged") == []
    assert stat.S_IMODE((tmp_path / "t/listed").stat().st_mode) == 0o600


def test_a_list_is_there_before_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without it the mode would let the group in."""
    (tmp_path / "f").touch(0o600)
    calls = []
    for name in ("chmod", "setxattr"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    entries = (
        AclEntry(b"user", None, 6),
        AclEntry(b"user", SOMEBODY, 4),
        AclEntry(b"group", None, 0),
        AclEntry(b"mask", None, 6),
        AclEntry(b"other", None, 0),
    )
    with WritableTree.open(tmp_path) as tree:
        wanted = Attributes(0o660, os.geteuid(), os.getegid(), None)
        entry = Entry(b"f", Kind.REGULAR, acl=entries)
        tree.set_attributes(b"f", Kind.REGULAR, wanted.with_extras(entry, ALL_EXTRAS, NUMERICAL))
        assert calls == ["setxattr", "chmod"]
        assert os.getxattr(tmp_path / "f", ACCESS) == acl(*GROUP_SHUT_OUT)
        tree.set_attributes(b"f", Kind.REGULAR, wanted._replace(mode=0o664, acl=()))
    assert os.listxattr(tmp_path / "f") == []
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o664


def test_names_that_nobody_has(sessions: Sessions, tmp_path: Path) -> None:
    build(sessions.source, Dir({name: File(b"", 0o640) for name in ("a", "b")}))
    sessions.backup()
    entries = b"user::rw-\nuser:nobody-has-this:rwx\nuser:4711:r--\ngroup::---\nmask::r--\nother::---\n"
    [path] = sessions.data.glob("access_control_lists.*")
    path.write_bytes(b"# file: a\n" + entries + b"# file: b\n" + entries)
    reports: list[HistfsError] = []
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, tmp_path / "target", report=reports.append)
        with pytest.raises(UsageError, match="nobody-has-this"):
            restore(repository, b"", sessions.now, tmp_path / "never", report=_fail, never_drop_acls=True)
    assert ["nobody-has-this" in str(error) for error in reports] == [True]
    for name in "ab":
        assert os.getxattr(tmp_path / "target" / name, ACCESS) == acl((1, 6), (2, 4, 4711), (4, 0), (16, 4), (32, 0))


# Damage


@pytest.mark.parametrize(
    ("damage", "shut"),
    [
        (lambda text: text.replace(b"mask::rw-\n", b"", 1), {"link"}),
        (lambda text: text.replace(b"# file: link", b"# file: /../link"), {"link"}),
        (lambda text: text[:-20], {"listed", "plain", "tagged"}),
    ],
)
def test_where_a_list_is_damaged_only_the_owner_gets_in(sessions: Sessions, tmp_path: Path, damage, shut) -> None:
    build(sessions.source, Dir({**TREE.entries, "link": TREE.entries["listed"]}))
    sessions.backup()
    [path] = sessions.data.glob("access_control_lists.*")
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    reports: list[HistfsError] = []
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, tmp_path / "target", report=reports.append)
    assert reports
    assert all(isinstance(error, DamagedError) for error in reports)
    for name in ("link", "listed", "plain", "tagged"):
        mode = stat.S_IMODE((tmp_path / "target" / name).stat().st_mode)
        assert (not mode & 0o077) is (name in shut), name
    assert sessions.backup(may_report=True).source_errors == 0  # which the next session records anew
    sessions.assert_readable(sessions.now)


# Recovery


@pytest.mark.parametrize("at", [8, 12, 16, 20, 24])
def test_an_undone_session_leaves_what_was_there_before(sessions: Sessions, killer: Killer, at: int) -> None:
    build(sessions.source, TREE)
    sessions.backup()
    good = sessions.now
    change(sessions)
    (sessions.source / "tagged").write_bytes(b"other content")
    state = dict(sessions.states)
    assert killer.run(at, sessions.backup)
    sessions.states = state
    regress(sessions.repository, report=_fail)
    assert len(list(sessions.data.glob("extended_attributes.*"))) == 1
    assert len(list(sessions.data.glob("access_control_lists.*"))) == 1
    sessions.assert_mirror_is(good)
    sessions.assert_all_readable()


def _fail(error: HistfsError) -> None:
    raise error


def _refuse(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("extras", [Extras(xattrs=False), Extras(acls=False), NO_EXTRAS])
def test_what_a_session_has_not_recorded_stays_in_the_target(
    sessions: Sessions, tmp_path: Path, extras: Extras
) -> None:
    shared = acl((1, 6), (2, 6, SOMEBODY), (4, 4), (16, 6), (32, 4))
    build(sessions.source, Dir({"f": File(b"f", 0o664, xattrs={"user.a": b"1", ACCESS: shared}), "g": File(b"g")}))
    sessions.backup(extras=extras)
    build(tmp_path / "target", Dir({"f": File(b"f", 0o664, xattrs={"user.b": b"2", ACCESS: shared})}))
    os.utime(tmp_path / "target/f", (1, 1))
    with sessions.open() as repository:
        restore(repository, b"", sessions.now, tmp_path / "target", report=_fail, manner=Manner(merge=True))
    names = os.listxattr(tmp_path / "target/f")
    assert ("user.b" in names, "user.a" in names) == (not extras.xattrs, extras.xattrs)
    assert ACCESS in names
