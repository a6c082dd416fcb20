"""`restore` of both programs into what is there already, from increment files, with the directories above."""

import gzip
import os
import re
import shutil
from pathlib import Path

import pytest

from histfs.cli import main
from histfs.store.naming import Naming
from tests import histories
from tests.comparison import difference, read
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle
from tests.trees import Dir, Fifo, File, Link, Node, Symlink, build
from tests.users import NOBODY, as_ordinary_user, give_away

OWNERS = os.geteuid() == 0
FIRST, SECOND = 1_700_000_000, 1_700_086_400


class Both:
    """Runs a command line of both programs, each with targets of its own, and checks that they agree."""

    def __init__(self, rdiff_backup: Oracle, scratch: Path) -> None:
        self._rdiff_backup = rdiff_backup
        self.ours, self.theirs = scratch / "ours", scratch / "theirs"
        for place in (self.ours, self.theirs):
            place.mkdir()

    def build(self, name: str, tree: Dir) -> None:
        for place in (self.ours, self.theirs):
            build(place / name, tree)

    def __call__(self, *arguments: str, target: str, code: int | None = None) -> int:
        """The exit code, which is that of both, as what is in the targets is; or `code` alone is ours."""
        theirs = self._rdiff_backup.run(["--api-version=201", *arguments, str(self.theirs / target)])
        ours = main(["--quiet", *arguments, str(self.ours / target)])
        assert ours == (theirs.code if code is None else code), theirs.output
        assert difference(read(self.theirs), read(self.ours), root_mtime=False, symlink_owners=False) == []
        return ours


@pytest.fixture
def both(rdiff_backup: Oracle, scratch: Path) -> Both:
    return Both(rdiff_backup, scratch)


@pytest.fixture
def states(scratch: Path) -> list[State]:
    found = []
    for state in histories.random_history(scratch / "source", 81_000, 5, histories.RDIFF_BACKUP_WRITES):
        agreement.histfs_backup(scratch / "source", scratch / "repository", at=state.time)
        found.append(state)
    return found


def test_a_target_that_is_not_empty(scratch: Path, both: Both, states: list[State]) -> None:
    """Refused; with --force it becomes what the backup is, session after session."""
    repository = str(scratch / "repository")
    both.build("target", Dir({"mine": File(b"mine"), "d": Dir({"x": Symlink("/etc")})}))
    assert both("restore", repository, target="target") == 1
    for number in (0, 3, 1, 4, 4):
        assert both("--force", "restore", f"--at={states[number].time}", repository, target="target") == 2
        assert difference(states[number].manifest, read(both.ours / "target"), owners=OWNERS) == []


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("what", ["file", "link", "directory", "empty"])
@pytest.mark.parametrize("path", ["", "a"])
def test_a_target_of_another_type(
    scratch: Path, rdiff_backup: Oracle, both: Both, force: list[str], what: str, path: str
) -> None:
    build(scratch / "source", Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")})}))
    rdiff_backup.backup(scratch / "source", scratch / "repository", at=FIRST).check()
    build(scratch / "victim", Dir({"x": File(b"keep")}))
    for place in (both.ours, both.theirs):
        if what == "file":
            build(place, Dir({"target": File(b"mine")}))
        elif what == "link":
            build(place, Dir({"target": Symlink(scratch / "victim")}))
        else:
            build(place, Dir({"target": Dir({} if what == "empty" else {"mine": File(b"mine")})}))
    if path and (what == "empty" if not force else what == "directory"):
        # rdiff-backup puts the file in its place; here a person is taken to have meant the file in the directory.
        before = read(both.ours)
        assert main(["--quiet", *force, "restore", str(scratch / "repository" / path), str(both.ours / "target")]) == 1
        assert difference(before, read(both.ours)) == []
        return
    code = both(*force, "restore", str(scratch / "repository" / path), target="target")
    assert code == (2 if force and what == "directory" else 0 if force or what == "empty" else 1)
    assert read(scratch / "victim")[b"x"].size == 4


def test_the_directories_above(scratch: Path, both: Both, states: list[State]) -> None:
    repository = str(scratch / "repository")
    assert both("restore", repository, target="one/two/target") == 1
    assert both("restore", "--create-full-path", repository, target="one/two/target") == 0


def test_increment_files(scratch: Path, both: Both, states: list[State]) -> None:
    """Every one, with and without --increment."""
    top = scratch / "repository/rdiff-backup-data"
    increments = sorted(top.glob("increments.*"))
    for place, directories, names in os.walk(top / "increments"):
        directories.sort()
        increments += [Path(place, name) for name in sorted(names) if name != ".keep"]
    assert len(increments) > 20
    for number, path in enumerate(increments[::3]):
        option = ["--increment"] if number % 2 else []
        was_there = b".missing" not in os.fsencode(path)
        both("restore", *option, str(path), target=f"target{number}", code=0 if was_there else 1)


@pytest.mark.parametrize(
    "arguments",
    [["--increment", "a"], ["--at=now", "--increment", "increment"], ["--at=now", "increment"], ["rdiff-backup-data"]],
)
def test_what_is_no_increment(scratch: Path, both: Both, arguments: list[str]) -> None:
    build(scratch / "source", Dir({"a": File(b"a")}))
    for at in (FIRST, SECOND):
        agreement.histfs_backup(scratch / "source", scratch / "repository", at=at)
        (scratch / "source/a").write_bytes(b"changed")
    [increment] = (scratch / "repository/rdiff-backup-data/increments").glob("a.*")
    *options, path = arguments
    place = increment if path == "increment" else scratch / "repository" / path
    both("restore", *options, str(place), target="target", code=1)


def test_a_path_that_was_not_there_is_an_error(scratch: Path, rdiff_backup: Oracle, both: Both) -> None:
    build(scratch / "source", Dir({"a": File(b"a")}))
    rdiff_backup.backup(scratch / "source", scratch / "repository", at=FIRST).check()
    both("restore", str(scratch / "repository/no"), target="target", code=1)


RULES = """
--exclude=**/d
--exclude=**.tmp --exclude-symbolic-links
--max-file-size=3
--exclude-regexp=mine
"""


@pytest.mark.parametrize("rules", RULES.strip().splitlines())
def test_selections(scratch: Path, both: Both, rules: str) -> None:
    """What is not selected is neither restored nor deleted; hard links whose first one is excluded are complete.

    Nothing that is excluded lies in a directory that is to be deleted: the oracle stumbles over that.
    """
    tree = {
        "d": Dir({"x": File(b"x"), "y.tmp": File(b"yyyyyyyy"), "e": Dir({"z": File(b"z")})}),
        "f": File(b"f"),
        "first.tmp": File(b"linked"),
        "second": Link("first.tmp"),
        "link": Symlink("f"),
    }
    build(scratch / "source", Dir(tree))
    agreement.histfs_backup(scratch / "source", scratch / "repository", at=FIRST)
    mine: dict[str | bytes, Node] = {
        "d": Dir({"x": File(b"other"), "mine.tmp": File(b"mine"), "long": File(b"longer")}),
        "f": File(b"g"),
        "mine": Dir({"q": File(b"q")}),
        "q": Symlink("d"),
    }
    for target in ("new", "old"):
        if target == "old":
            both.build(target, Dir(mine))
        both("--force", "restore", *rules.split(), str(scratch / "repository"), target=target)


def test_an_ordinary_user(scratch: Path, both: Both) -> None:
    """With modes that are in the way of the owner, of other people's things, and of what only root can make."""
    if os.geteuid() != 0:
        pytest.skip("the other tests are run by one")
    scratch.chmod(0o755)
    with Oracle(NOBODY) as theirs:
        back_up_modes(scratch, theirs)
        give_away(both.ours, both.theirs)
        for at in (FIRST, SECOND, FIRST):
            arguments = ["--force", "restore", f"--at={at}", str(scratch / "repository")]
            code = theirs.run(["--api-version=201", *arguments, str(both.theirs / "target")]).code

            def restore_ours(arguments: list[str] = arguments, code: int = code) -> None:
                assert main(["--quiet", *arguments, str(both.ours / "target")]) == code

            as_ordinary_user(restore_ours)
            assert difference(read(both.theirs), read(both.ours), root_mtime=False) == []


def back_up_modes(scratch: Path, rdiff_backup: Oracle) -> None:
    source, repository = scratch / "source", scratch / "repository"
    repository.mkdir()
    give_away(repository)
    for number, at in enumerate((FIRST, SECOND)):
        tree: dict[str | bytes, Node] = {
            "closed": Dir({"x": File(b"%d" % number, mode=0o400), "d": Dir({"y": File(b"y")}, mode=0o500)}, mode=0o500),
            "setuid": File(b"setuid", mode=0o6755),
            "fifo": Fifo(),
            "link": Symlink(f"x{number}"),
        }
        build(source, Dir(tree))
        give_away(source)
        assert rdiff_backup.backup(source, repository, at=at, api=201).code == 0
        shutil.rmtree(source)


def test_verify(scratch: Path, rdiff_backup: Oracle) -> None:
    """Exit codes: all is well; something is damaged; something has no digest."""
    source, repository = scratch / "source", scratch / "repository"
    build(source, Dir({"a": File(b"a"), "b": File(b"b")}))
    for at in (FIRST, SECOND):
        rdiff_backup.backup(source, repository, at=at).check()
        (source / "a").write_bytes(b"changed")

    def check(code: int, *all_codes: int) -> None:
        theirs = rdiff_backup.run(["--api-version=201", "verify", str(repository)])
        assert (main(["--quiet", "verify", str(repository)]), theirs.code) == (code, code), theirs.output
        assert main(["--quiet", "verify", "--all", str(repository)]) == (all_codes or (code,))[0]

    check(0)
    [newest] = (repository / "rdiff-backup-data").glob("mirror_metadata.*.snapshot.gz")
    text = newest.read_bytes()
    newest.write_bytes(gzip.compress(re.sub(rb"  SHA1Digest .*\n", b"", gzip.decompress(text))))
    check(8)
    newest.write_bytes(text)
    (repository / "b").write_bytes(b"?")
    check(4, 1)
    (repository / "b").write_bytes(b"b")
    [increment] = (repository / "rdiff-backup-data/increments").glob("a.*")
    increment.write_bytes(b"?")
    check(0, 1)


@pytest.mark.parametrize(("quoted", "name"), [(None, "a" * 230), (b"A-Z", "A" * 100)])
def test_increment_files_under_a_number(
    scratch: Path, capfd: pytest.CaptureFixture[str], quoted: bytes | None, name: str
) -> None:
    """What has a long name: its increments do not tell it (docs/format.md 3.4)."""
    source, repository = scratch / "source", scratch / "repository"
    versions: list[dict[str | bytes, Node]] = [{name: File(b"first")}, {name: File(b"the second")}, {}, {name: File()}]
    for number, version in enumerate(versions):
        build(source, Dir({"d": Dir({**version})}))
        agreement.histfs_backup(source, repository, at=FIRST + number, naming=Naming(quoted))
        shutil.rmtree(source)
    increments = sorted((repository / "rdiff-backup-data/long_filename_data").glob("[0-9]*.*.*"))
    found = []
    for number, path in enumerate(increments):
        target = scratch / f"target{number}"
        if main(["restore", "--increment", str(path), str(target)]) == 0:
            found.append(target.read_bytes())
        else:
            assert ".missing" in path.name
    assert found == [b"first", b"the second"]
    capfd.readouterr()
    assert main(["restore", str(increments[0].with_name(f"99{increments[0].name[1:]}")), str(scratch / "x")]) == 1
    assert "keeps nothing that was there at this time" in capfd.readouterr().err
