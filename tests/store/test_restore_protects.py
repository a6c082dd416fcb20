"""What a restore never touches: the repository that it reads from, what the backup has, other file systems."""

import gzip
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from histfs.errors import HistfsError, UsageError
from histfs.store.backup import backup
from histfs.store.selection import Option, Selection
from histfs.store.target import Manner, Step
from tests.comparison import Manifest, difference, read
from tests.store.sessions import DAY, FIRST, Sessions
from tests.store.test_merge import DELETE, FORCE, MERGE, Restored, run
from tests.trees import Dir, File, Node, Symlink, build

KEPT = Manner(delete=True, backup_dir=Path("kept"))


class Home(Sessions):
    """A source that its own repository lies in, two directories below."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.source = place / "home"
        self.repository = place / "home/disk/backup"

    def manifest_of_repository(self) -> Manifest:
        return read(self.repository)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    build(home.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")})}))
    for _ in range(2):
        home.now += DAY
        backup(home.source, home.repository, now=home.now, report=lambda _: None, with_parents=True)
        (home.source / "a").write_bytes(b"changed")
    return home


def restored(home: Home, manner: Manner, path: bytes = b"", target: Path | None = None, **options: object) -> Restored:
    """The repository is afterwards what it was."""
    before = home.manifest_of_repository()
    if manner.backup_dir is not None:
        manner = manner._replace(backup_dir=home.source.parent / manner.backup_dir)
    try:
        return run(home, target or home.source, manner, path, FIRST, **options)
    finally:
        assert difference(before, home.manifest_of_repository()) == []


EVERYTHING = Selection.parse([Option("exclude", b"**.never")], base=b"/")


@pytest.mark.parametrize("manner", [MERGE, DELETE, FORCE, KEPT, DELETE._replace(dry_run=True)])
@pytest.mark.parametrize("selection", [None, EVERYTHING])
def test_the_repository_in_the_target_stays(home: Home, manner: Manner, selection: Selection | None) -> None:
    """Also when the session has no directory that it lies in: whatever else was not there then goes."""
    (home.source / "new").mkdir()
    found = restored(home, manner, selection=selection)
    assert found.outcome.errors == 0
    told = [error for error in found.reported if error.path == b"home/disk/backup"]
    assert len(told) == (1 if manner.is_deleting else 0)
    assert all("repository" in error.problem for error in told)
    assert (home.source / "new").exists() == (manner.dry_run or not manner.is_deleting)
    assert all(not path.startswith(b"disk") for _, path in found.steps)


@pytest.mark.parametrize("manner", [DELETE, FORCE, KEPT])
def test_the_repository_by_another_path_stays(home: Home, tmp_path: Path, manner: Manner) -> None:
    """It is known by its inode."""
    (tmp_path / "link").symlink_to(home.repository)
    home.repository = tmp_path / "link"
    assert [error.path for error in restored(home, manner).reported][-1:] == [b"home/disk/backup"]


@pytest.mark.parametrize("manner", [MERGE, DELETE, FORCE, KEPT])
def test_a_session_that_had_something_in_the_place_of_the_repository(tmp_path: Path, manner: Manner) -> None:
    """What was in that directory then is not written into it."""
    home = Home(tmp_path)
    build(home.source, Dir({"disk": Dir({"backup": Dir({"a": File(b"old")})})}))
    move_in(home, tmp_path / "repository")
    found = restored(home, manner)
    assert [error.path for error in found.reported][-1:] == [b"home/disk/backup"]
    assert found.outcome.errors == 1


def move_in(home: Home, first: Path) -> None:
    """A session into a repository at `first`, which then takes the place of what was in its own place before."""
    place, home.repository = home.repository, first
    home.backup()
    if place.parent.is_file():
        place.parent.unlink()
        build(place.parent, Dir({"mine": File(b"mine")}))
    else:
        place.rename(first.with_name("moved"))
    first.rename(place)
    home.repository = place


@pytest.mark.parametrize("manner", [DELETE, FORCE, KEPT])
def test_a_file_in_the_place_of_a_directory_that_holds_the_repository(tmp_path: Path, manner: Manner) -> None:
    home = Home(tmp_path)
    build(home.source, Dir({"disk": File(b"was a file")}))
    move_in(home, tmp_path / "repository")
    for path, target in ((b"", home.source), (b"disk", home.source / "disk")):
        try:
            found = restored(home, manner, path, target)
            assert found.outcome.errors == 1
        except UsageError:
            assert path == b"disk"
        assert (home.source / "disk/mine").read_bytes() == b"mine"


@pytest.mark.parametrize("manner", [DELETE, FORCE])
@pytest.mark.parametrize(
    "target", ["link/../repo", "link/../repo/new", "link/../repo/d", "link", "link/..", "to-repo/."]
)
def test_paths_that_lead_to_the_repository_are_refused(tmp_path: Path, manner: Manner, target: str) -> None:
    """`..` behind a link leads to where the link leads, not to where it is."""
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"d": Dir({"x": File(b"x")})}))
    sessions.repository = tmp_path / "far/repo"
    (tmp_path / "far").mkdir()
    sessions.backup()
    (tmp_path / "far/repo2").mkdir()
    (tmp_path / "link").symlink_to("far/repo/d" if target in ("link", "link/..") else "far/repo2")
    (tmp_path / "to-repo").symlink_to("far/repo")
    build(tmp_path / "repo", Dir({"precious": File(b"keep")}))
    before = read(tmp_path)
    with pytest.raises(HistfsError):
        run(sessions, tmp_path / target, manner)
    assert difference(before, read(tmp_path)) == []


def test_one_place_is_checked_and_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"x": File(b"x")}))
    sessions.backup()
    build(tmp_path / "place", Dir({"out": Dir({"mine": File()}), "link": Symlink(tmp_path / "far/deep")}))
    build(tmp_path / "far", Dir({"deep": Dir({}), "out": Dir({"y": File()})}))
    monkeypatch.chdir(tmp_path / "place")
    run(sessions, Path("link/../out"), DELETE)
    assert (os.listdir("out"), os.listdir(tmp_path / "far/out")) == (["mine"], ["x"])


def test_a_place_to_keep_things_that_holds_the_repository(home: Home, tmp_path: Path) -> None:
    """What goes is not put into the repository, though it has the name of a directory on its way."""
    build(tmp_path / "target", Dir({"a": File(), "backup": Dir({"mine": File(b"mine")}), "d": Dir({})}))
    home.now += DAY
    build(home.source, Dir({"backup": Dir({})}))
    backup(home.source, home.repository, now=home.now, report=lambda _: None)
    before = home.manifest_of_repository()
    run(home, tmp_path / "target", KEPT._replace(backup_dir=home.source / "disk"))
    assert difference(before, home.manifest_of_repository()) == []
    assert (home.source / "disk/backup.~1~/mine").read_bytes() == b"mine"


# --- what the backup has --------------------------------------------------------------------------------------------


def selection(*options: tuple[str, bytes]) -> Selection:
    return Selection.parse([Option(name, value) for name, value in options], base=b".")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([("max-file-size", b"100")], id="size"),
        pytest.param([("exclude-symbolic-links", b"")], id="type"),
        pytest.param([("exclude-if-present", b"mark")], id="neighbour"),
        pytest.param([("include", b"./**small"), ("max-file-size", b"100"), ("exclude", b"./**w")], id="scanned"),
    ],
)
def test_what_the_backup_has_is_not_deleted(
    sessions: Sessions, tmp_path: Path, rules: list[tuple[str, bytes]], dry_run: bool
) -> None:
    """Names that rules exclude by what the backup has, and include by what is in the target."""
    inner: dict[str | bytes, Node] = {"big": File(bytes(200)), "link": Symlink("x"), "small": File(b"s")}
    build(sessions.source, Dir({"d": Dir({**inner, "e": Dir({"mark": File(), "in": File(b"in")})}), **inner}))
    sessions.backup()
    names: list[str | bytes] = ["big", "link", "small"]
    mine: dict[str | bytes, Node] = {name: File(b"mine") for name in names}
    build(tmp_path / "target", Dir({"d": Dir({**mine, "new": File(), "e": Dir({"in": File()})}), **mine}))
    found = run(sessions, tmp_path / "target", DELETE._replace(dry_run=dry_run), selection=selection(*rules))
    assert [path for step, path in found.steps if step is Step.DELETED] in ([b"d/new"], [])
    assert {path for path in read(sessions.source) if b"mark" not in path} <= set(read(tmp_path / "target"))


@pytest.mark.parametrize("path", [b"", b"a"])
def test_nothing_is_deleted_for_a_name_that_is_damaged(sessions: Sessions, tmp_path: Path, path: bytes) -> None:
    """Every record of such a list can be read: the sum at its end tells, also of what lies beyond what is restored."""
    tree = Dir({"photo_a": File(b"a"), "photo_c": File(b"c")})
    build(sessions.source, Dir({"a": tree, "z": Dir({})}))
    sessions.backup()
    [file] = sessions.data.glob("mirror_metadata.*")
    packed = file.read_bytes()
    spoilt = gzip.compress(gzip.decompress(packed).replace(b"photo_c", b"photo_b"))
    file.write_bytes(spoilt[:-8] + packed[-8:])
    mine = Dir({"photo_a": File(b"a"), "photo_c": File(b"c"), "new": Dir({"x": File()})})
    build(tmp_path / "target", mine if path else Dir({"a": mine}))
    for manner in (DELETE._replace(dry_run=True), DELETE, FORCE):
        found = run(sessions, tmp_path / "target", manner, path)
        assert any("nothing is deleted" in error.problem for error in found.reported)
        assert found.outcome.errors
        assert [at for step, at in found.steps if step is Step.DELETED] == []
    assert {b"photo_c", b"new/x"} <= {at.removeprefix(b"a/") for at in read(tmp_path / "target")}


# --- other file systems ---------------------------------------------------------------------------------------------

MOUNTS = {
    "tmpfs": "mount -t tmpfs none {0} && touch {0}/precious",
    "read-only": "mount -t tmpfs none {0} && touch {0}/precious && mount -o remount,ro {0}",
    "bind": "mount --bind {1} {0}",
}


@pytest.mark.usefixtures("other_file_systems")
@pytest.mark.parametrize("rules", [[], ["--exclude=**.never"]])
@pytest.mark.parametrize("place", ["new/deep/mounted", "listed", "replaced/mounted"])
@pytest.mark.parametrize("mount", MOUNTS)
def test_nothing_is_deleted_in_other_file_systems(
    sessions: Sessions, tmp_path: Path, mount: str, place: str, rules: list[str]
) -> None:
    """Neither in a directory that is deleted or replaced, nor in one that the backup has; and all else is done."""
    build(sessions.source, Dir({"a": File(b"a"), "listed": Dir({}), "replaced": File(b"r"), "z": File(b"z")}))
    sessions.backup()
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    build(target, Dir({"new": Dir({"deep": Dir({})}), "newer": File()}))
    (target / place).mkdir(parents=True, exist_ok=True)
    build(elsewhere, Dir({"precious": File(b"keep")}))
    command = [sys.executable, "-m", "histfs", "-q", "restore", "--delete", *rules, sessions.repository, target]
    script = f"{MOUNTS[mount].format(target / place, elsewhere)} && {shlex.join(map(str, command))}; code=$?; "
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{script} test -e {target / place}/precious || code=99; exit $code"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode & ~2 == 4, ran
    assert "another file system" in ran.stderr or "directory with something in it" in ran.stderr, ran
    assert (elsewhere / "precious").read_bytes() == b"keep"
    assert (target / "z").read_bytes() == b"z"
    assert not (target / "newer").exists()


@pytest.mark.usefixtures("other_file_systems")
@pytest.mark.parametrize("of", ["", "d", "d/e", "rdiff-backup-data"])
def test_the_repository_is_known_where_it_is_mounted_again(sessions: Sessions, tmp_path: Path, of: str) -> None:
    """And a part of it, which lies in no repository as far as one can see."""
    build(sessions.source, Dir({"d": Dir({"e": Dir({"f": File(b"f")})})}))
    sessions.backup()
    before = read(sessions.repository)
    (tmp_path / "again").mkdir()
    command = [sys.executable, "-m", "histfs", "--force", "restore", sessions.repository / "d"]
    restores = [
        shlex.join(map(str, [*command, *options, target]))
        for options, target in (
            ([], tmp_path / "again"),
            ([], tmp_path / "again/new"),
            ([f"--backup-dir={tmp_path}/again/kept"], tmp_path / "new"),
        )
    ]
    script = f"mount --bind {sessions.repository / of} {tmp_path}/again; " + "; ".join(
        f"{one}; echo $?" for one in restores
    )
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert ran.stdout.split() == ["1", "1", "1"], ran
    assert ran.stderr.count("lies in the repository itself") == 3
    assert read(sessions.repository) == before


@pytest.mark.usefixtures("other_file_systems")
@pytest.mark.parametrize("mount", ["mount -t tmpfs none {0}", "mount --bind {0} {0}"])
def test_what_is_kept_must_be_on_the_file_system_of_the_target(sessions: Sessions, tmp_path: Path, mount: str) -> None:
    """And it is said before anything is changed."""
    build(sessions.source, Dir({"f": File(b"f")}))
    sessions.backup()
    build(tmp_path / "target", Dir({"f": File(b"mine")}))
    kept = tmp_path / "mounted"
    kept.mkdir()
    command = [sys.executable, "-m", "histfs", "restore", f"--backup-dir={kept}/a", sessions.repository]
    restore = shlex.join(map(str, [*command, tmp_path / "target"]))
    script = f"{mount.format(kept)} && {restore}; code=$?; ls {kept}; exit $code"
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, ""), ran
    assert "must be on the file system of the target" in ran.stderr
    assert (tmp_path / "target/f").read_bytes() == b"mine"
