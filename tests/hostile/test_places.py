"""What is not a repository, and repositories with more or less in them than they should have."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import HistfsError, NotARepositoryError
from histfs.store.calculate import average
from histfs.store.regress import regress
from histfs.store.repository import Repository, find_repository
from tests import comparison
from tests.compat.agreement import complain
from tests.hostile import repositories, witness
from tests.hostile.repositories import DATA, FIRST
from tests.hostile.test_lists import NOT_FILES
from tests.trees import Dir, Fifo, File, Symlink, build

Make = Callable[[Path], object]


def nothing(path: Path) -> None:
    """No such directory."""


def empty(path: Path) -> None:
    path.mkdir()


def a_file(path: Path) -> None:
    path.write_bytes(b"text")


def somebodys_files(path: Path) -> None:
    build(path, Dir({"a": File(b"1"), "p": Fifo()}))


def empty_data(path: Path) -> None:
    build(path, Dir({DATA: Dir()}))


def data_is_a_file(path: Path) -> None:
    build(path, Dir({DATA: File(b"x")}))


def data_is_a_fifo(path: Path) -> None:
    build(path, Dir({DATA: Fifo()}))


def data_is_a_dangling_link(path: Path) -> None:
    build(path, Dir({DATA: Symlink("/nowhere/at/all")}))


def data_leads_to_itself(path: Path) -> None:
    build(path, Dir({DATA: Symlink(DATA)}))


def data_without_sessions(path: Path) -> None:
    build(path, Dir({DATA: Dir({"increments": Dir(), "chars_to_quote": File(), "notes.txt": File(b"x")})}))


NO_REPOSITORIES: list[Make] = [
    nothing,
    empty,
    a_file,
    somebodys_files,
    empty_data,
    data_is_a_file,
    data_is_a_fifo,
    data_is_a_dangling_link,
    data_leads_to_itself,
    data_without_sessions,
]


@pytest.mark.parametrize("make", NO_REPOSITORIES)
def test_nothing_opens_what_is_no_repository(tmp_path: Path, make: Make) -> None:
    place = tmp_path / "place"
    make(place)
    with pytest.raises(HistfsError) as caught:
        Repository.open(place)
    witness.sentences([caught.value])


@pytest.mark.parametrize("make", NO_REPOSITORIES)
@pytest.mark.parametrize("verb", ["verify", "restore", "list sessions", "list files", "mount", "regress"])
def test_every_verb_says_so_and_changes_nothing(
    tmp_path: Path, make: Make, verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from histfs.cli import main

    place, spare = tmp_path / "place", tmp_path / "spare"
    make(place)
    spare.mkdir()
    before = comparison.read(tmp_path)
    arguments = [*verb.split(), str(place)] + [str(spare)] * (verb in ("restore", "mount"))
    code = main(arguments)
    out, err = capfd.readouterr()
    if verb == "regress" and make in (empty_data, data_without_sessions):
        return  # there is nothing to undo, or a first session that was never finished
    assert code & 1, (out, err)
    assert out == ""
    assert err.startswith("histfs: ")
    assert err.count("\n") == 1
    after = comparison.read(tmp_path)
    assert comparison.difference(before, after) == []


def test_a_link_in_the_place_of_the_data_directory(tmp_path: Path) -> None:
    """Even to a real one: what a repository is lies in the repository."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    (repository / DATA).rename(tmp_path / "elsewhere")
    (repository / DATA).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HistfsError):
        Repository.open(repository)


@pytest.mark.parametrize("make_node", [make for make in NOT_FILES if make is not Path.mkdir])
def test_something_else_in_the_place_of_the_increments(tmp_path: Path, make_node: Make) -> None:
    repository = tmp_path / "repository"
    repositories.make(repository)
    repositories.put(repository / repositories.INCREMENTS, make_node)
    lost = {b"deleted", b"changed", b"replaced"}
    for reader, account in witness.accounts(repository, FIRST, tmp_path):
        assert account.complaints, reader
        if account.found is not None and reader != "mount":
            assert witness.difference_from(repositories.OLD, account.found, lost) == []


def test_three_markers(tmp_path: Path) -> None:
    """What is finished stays readable; nobody guesses what to undo."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    for day in (16, 17):
        (repository / DATA / f"current_mirror.2023-11-{day}T00:00:00Z.data").write_bytes(b"PID 1\n")
    before = comparison.read(repository / DATA)
    with pytest.raises(HistfsError):
        regress(repository, report=complain)
    after = comparison.read(repository / DATA)
    after.pop(b"lock.yml", None)
    assert comparison.difference(before, after, root_mtime=False) == []
    witness.check(repository, tmp_path, {})


def test_no_marker(tmp_path: Path) -> None:
    """The lists are still there."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    for marker in (repository / DATA).glob("current_mirror.*"):
        marker.unlink()
    witness.check(repository, tmp_path, {})
    with pytest.raises(HistfsError):
        regress(repository, report=complain)


@pytest.mark.parametrize("inside", ["", "d", "d/deeper", "gone/long/ago", "keep/x", "..", "../repository/d"])
def test_what_lies_in_a_repository_belongs_to_it(tmp_path: Path, inside: str) -> None:
    repository = tmp_path / "repository"
    repositories.make(repository)
    if inside == "..":
        with pytest.raises(NotARepositoryError):
            find_repository(repository / inside)
        return
    path = os.fsencode(inside.removeprefix("../repository/"))
    assert find_repository(repository / inside) == (repository, path)


def test_a_mirror_that_contains_strangers(tmp_path: Path) -> None:
    """Files that no list names are nobody's business."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    os.mkfifo(repository / "fifo")
    (repository / "stranger").write_bytes(b"x")
    (repository / "d" / "rdiff-backup.tmp.1").write_bytes(b"x")
    (repository / DATA / "rdiff-backup.tmp.0").mkdir()
    os.mkfifo(repository / DATA / "strange fifo")
    (repository / repositories.INCREMENTS / "stranger").mkdir()
    (repository / repositories.INCREMENTS / "changed.2023-11-14T22:13:20Z.dir").mkdir()
    witness.check(repository, tmp_path, {})


@pytest.mark.parametrize("make_node", NOT_FILES)
def test_something_else_in_the_place_of_statistics(tmp_path: Path, make_node: Make) -> None:
    """A person names them by a pattern, and does not know what is there."""
    (tmp_path / DATA).mkdir()
    statistics = tmp_path / DATA / "session_statistics.2023-11-14T22:13:20Z.data"
    make_node(statistics)
    with pytest.raises(HistfsError) as caught:
        average([statistics])
    assert str(statistics) in witness.sentences([caught.value])[0]
