"""`compare` of both programs: the same differences in the same words and order, and the same exit code."""

import os
import re
import socket
from pathlib import Path

import pytest

from histfs.cli import main
from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle
from tests.trees import Dir, File, build

# Of names that are not text the two print other things.
PLAIN = re.compile(rb"[!-~]*")
LINE = re.compile(
    r"^(?:changed|new|deleted|metadata (?:changed|the same), data (?:changed|the same)): .*$", re.MULTILINE
)
NO_DIGEST = re.compile("has no digest for mirror file (.*?), unable to compare")
METHODS = ("meta", "hash", "full")
FIRST = 1_700_000_000


class Both:
    """Runs `compare` of both programs and checks that they agree."""

    def __init__(self, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]) -> None:
        self._rdiff_backup = rdiff_backup
        self._capfd = capfd

    def __call__(self, *arguments: object) -> list[str]:
        command = [str(argument) for argument in arguments]
        self._capfd.readouterr()
        code = main(["compare", "--no-eas", "--no-acls", *command])  # which rdiff-backup does not look at
        ours = self._capfd.readouterr().out.splitlines()
        theirs = self._rdiff_backup.run(["--api-version=201", "compare", *command])
        expected = LINE.findall(theirs.output)
        # The digest of hard links is recorded with the first: the oracle does not know it where that one is gone.
        unknown = tuple(f": {path}" for path in NO_DIGEST.findall(" ".join(theirs.output.split())))
        assert [line for line in ours if not line.endswith(unknown)] == [
            line for line in expected if not line.endswith(unknown)
        ]
        assert code == theirs.code
        return ours


@pytest.fixture
def both(rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]) -> Both:
    return Both(rdiff_backup, capfd)


def leave_out_odd_names(source: Path) -> None:
    for place, directories, files in os.walk(os.fsencode(source), topdown=False):
        for name in (*directories, *files):
            if PLAIN.fullmatch(name) is None:
                path = os.path.join(place, name)
                os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(scratch: Path, both: Both, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    monkeypatch.setattr(histories, "ODD_NAMES", (b"back\\slash", b"-rf", b"a'b\"c", b"picture.jpg", b"..."))
    monkeypatch.setattr(histories, "LONG_NAMES", (b"N" * 205,))
    states = []
    for state in histories.random_history(source, 80_000 + seed, 6, histories.RDIFF_BACKUP_WRITES):
        agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    assert both(source, repository) == []
    different = 0
    for number, state in enumerate(states):
        different += len(both(f"--at={state.time}", f"--method={METHODS[number % 3]}", source, repository))
    assert different
    for path in sorted(set(os.listdir(source)) & {name.name for name in repository.iterdir()}):
        if (source / path).is_dir() and not (source / path).is_symlink():
            both("--method=hash", f"--at={states[2].time}", source / path, repository / path)
            break


@pytest.fixture
def changed(scratch: Path, rdiff_backup: Oracle) -> Path:
    """A source in which every attribute of every type differs from what its repository recorded."""
    source = scratch / "source"
    source.mkdir()
    files = ("own", "group", "mode", "time", "size", "type", "same", "content", "one", "three", "five", "time-content")
    for name in files:
        (source / name).write_text(name)
        os.utime(source / name, (FIRST - 99, FIRST - 99))
    os.link(source / "one", source / "two")
    os.link(source / "three", source / "four")
    for name in ("link", "link-own"):
        (source / name).symlink_to("x")
    for name in ("fifo-time", "fifo-mode"):
        os.mkfifo(source / name)
    for name in ("socket-time", "socket-mode"):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(source / name))
    for name in ("directory", "directory-type", "directory-mode"):
        (source / name).mkdir()
    (source / "directory/in").write_text("in")
    (source / "directory-type/in").write_text("in")
    rdiff_backup.backup(source, scratch / "repository", at=FIRST).check()
    if os.geteuid() == 0:
        os.chown(source / "own", 5, -1)
        os.chown(source / "group", -1, 4_000)
        os.chown(source / "link-own", 9, 9, follow_symlinks=False)
    (source / "mode").chmod(0o600)
    for name in ("time", "fifo-time", "socket-time"):
        os.utime(source / name, (5, 5))
    (source / "size").write_text("longer")
    (source / "time-content").write_text("content-time")
    (source / "content").write_text("CONTENT")
    os.utime(source / "content", (FIRST - 99, FIRST - 99))
    (source / "type").unlink()
    (source / "type").mkdir()
    (source / "type/in").write_text("in")
    (source / "two").unlink()
    (source / "two").write_text("one")
    os.utime(source / "two", (FIRST - 99, FIRST - 99))
    (source / "four").unlink()
    os.link(source / "five", source / "six")
    (source / "link").unlink()
    (source / "link").symlink_to("y")
    for name in ("fifo-mode", "socket-mode", "directory-mode"):
        (source / name).chmod(0o700)
    (source / "directory-type/in").unlink()
    (source / "directory-type").rmdir()
    (source / "directory-type").write_text("a file")
    return source


@pytest.mark.parametrize("method", METHODS)
def test_every_difference(changed: Path, scratch: Path, both: Both, method: str) -> None:
    assert len(both(f"--method={method}", changed, scratch / "repository")) > 15


@pytest.mark.parametrize(
    "rules", ["--exclude=**/directory* --exclude=**/own", "--include=**/link* --exclude=**/[a-z]*", "--max-file-size=4"]
)
@pytest.mark.parametrize("method", METHODS[:2])
def test_selections(
    changed: Path, scratch: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str], rules: str, method: str
) -> None:
    """rdiff-backup does not ask the rules about the repository: to it what is excluded was deleted."""
    command = ["compare", f"--method={method}", *rules.split(), str(changed), str(scratch / "repository")]
    capfd.readouterr()
    assert main(command) == 8
    ours = capfd.readouterr().out.splitlines()
    theirs = LINE.findall(rdiff_backup.run(["--api-version=201", *command]).output)
    assert [line for line in theirs if line in ours or not line.startswith("deleted")] == ours


def test_as_yaml(changed: Path, scratch: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")  # which rdiff-backup needs
    command = ["--parsable-output", "compare", "--method=hash", str(changed), str(scratch / "repository")]
    theirs = rdiff_backup.run(["--api-version=201", *command])
    code = main(command)
    [document] = re.findall(r"^---\n.*?^\.\.\.$", theirs.output, re.MULTILINE | re.DOTALL)
    assert (code, yaml.safe_load(capfd.readouterr().out)) == (theirs.code, yaml.safe_load(document))


def test_what_cannot_be_compared(changed: Path, scratch: Path, both: Both) -> None:
    for source, repository in (("nowhere", "repository"), ("source/mode", "repository"), ("source", "nowhere")):
        assert both(scratch / source, scratch / repository) == []


def test_a_path_that_was_not_there_is_an_error(changed: Path, scratch: Path, rdiff_backup: Oracle) -> None:
    """And not a directory in which everything is new: it is a mistake most of the time."""
    arguments = ["compare", str(changed), str(scratch / "repository/nowhere")]
    assert rdiff_backup.run(["--api-version=201", *arguments]).code == 8
    assert main(arguments) == 1


def test_attributes_are_compared_by_histfs_alone(
    scratch: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]
) -> None:
    if not histories.has_xattrs(os.fsencode(scratch)):
        pytest.skip("the file system takes no extended attributes")
    source, repository = scratch / "source", scratch / "repository"
    build(source, Dir({"f": File(b"f", xattrs={"user.a": b"1"})}))
    rdiff_backup.backup(source, repository, at=FIRST).check()
    assert main(["compare", str(source), str(repository)]) == 0
    os.setxattr(source / "f", "user.a", b"2")
    command = ["compare", str(source), str(repository)]
    assert rdiff_backup.run(["--api-version=201", *command]).code == 0
    capfd.readouterr()
    assert main(command) == 8
    assert capfd.readouterr().out == "changed: f\n"
    assert main([*command[:1], "--no-eas", *command[1:]]) == 0
