"""Repositories that one program wrote with unusual options, and the other goes on with."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.store.naming import Naming
from histfs.store.repository import Repository
from histfs.store.verify import verify
from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle

# Quoted, long names become too long for the file system, which the oracle cannot link.
QUOTED = histories.RDIFF_BACKUP_WRITES._replace(long_names=False)
SESSIONS = 8
GENERAL = ("--use-compatible-timestamps", "--null-separator", "--fsync")
SPECIAL = ("--no-compression", "--not-compressed-regexp=.*[0-4]$", "--no-file-statistics", "--no-compare-inode")


def write_and_check(
    scratch: Path, rdiff_backup: Oracle, seed: int, limits: histories.Limits, general: Sequence[str] = ()
) -> None:
    source, repository = scratch / "source", scratch / "repository"
    chance = random.Random(f"options {seed}")
    states = []
    for number, state in enumerate(histories.random_history(source, seed, SESSIONS, limits)):
        if number % 4 == 3:
            agreement.histfs_backup(source, repository, at=state.time)
        else:
            some = [option for option in GENERAL if chance.random() < 0.4]
            special = [option for option in SPECIAL if chance.random() < 0.4]
            rdiff_backup.backup(
                source, repository, at=state.time, api=200 + seed % 2, general=[*general, *some], special=special
            ).check()
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_mirror(repository, states[-1])
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("seed", range(4))
def test_options(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    write_and_check(scratch, rdiff_backup, 60_000 + seed, histories.RDIFF_BACKUP_WRITES)


@pytest.mark.parametrize("quoted", ["A-Z;", "A-Z", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "a", "."])
def test_quoted_names(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    write_and_check(scratch, rdiff_backup, 61_000 + len(quoted), QUOTED, [f"--chars-to-quote={quoted}"])


SETS = (
    "A-Z:;",
    '\\x00-\\x1f"*/:<>?\\\\|\\x7f;',
    "dfgl0-9",
    ".",
    "^a-z_\\x80-\\xff",
    "A-Z\\x00-\\x1f",
)
# Nothing beyond ASCII, and no `a`, which makes most of the odd names long ones: what rdiff-backup alone writes of some
# of these histories, its own restore waits over for ever. Fixed examples with `a` are below.


def take_turns(scratch: Path, rdiff_backup: Oracle, seed: int, quoted: str) -> None:
    """The first session is one of histfs; each may spell times in either way."""
    source, repository = scratch / "source", scratch / "repository"
    chance = random.Random(f"turns {seed}")
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, SESSIONS, QUOTED):
        if states and chance.random() < 0.5:
            general = [f"--chars-to-quote={quoted}", *(GENERAL if chance.random() < 0.5 else ())]
            rdiff_backup.backup(source, repository, at=state.time, api=200 + seed % 2, general=general).check()
        else:
            naming = Naming(quoted.encode(), chance.random() < 0.5)
            agreement.histfs_backup(source, repository, at=state.time, naming=naming)
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_mirror(repository, states[-1])
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("quoted", SETS[:2])
def test_quoted_names_that_histfs_began(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    take_turns(scratch, rdiff_backup, 63_000 + len(quoted), quoted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(60))
def test_many_quoted_names_that_histfs_began(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    take_turns(scratch, rdiff_backup, 64_000 + seed, SETS[seed % len(SETS)])


def write_long_names(scratch: Path, seed: int, quoted: str) -> None:
    """Names too long for increments, and when quoted for the mirror: rdiff-backup cannot judge them."""
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, SESSIONS, histories.ANYTHING):
        agreement.histfs_backup(source, repository, at=state.time, naming=Naming(quoted.encode()))
        states.append(state)
    agreement.check_histfs(repository, states, scratch)
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("quoted", ["A-Z\\x80-\\xff"])
def test_long_quoted_names(scratch: Path, quoted: str) -> None:
    write_long_names(scratch, 65_000, quoted)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_many_long_quoted_names(scratch: Path, seed: int) -> None:
    sets = (*SETS, "a0-9", "\\x80-\\xff")
    write_long_names(scratch, 66_000 + seed, sets[seed % len(sets)])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_quoted_names(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    quoted = ("A-Z;", '\\x00-\\x1f"*/:<>?\\\\|\\x7f;', "0-9", " -/")[seed % 4]
    write_and_check(scratch, rdiff_backup, 62_000 + seed, QUOTED, [f"--chars-to-quote={quoted}"])


@pytest.mark.parametrize("quoted", ["0-9", "x", "a", "a0-9", "dfgl"])
def test_numbers_of_long_names_are_quoted_too(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    """Both find the directory, the mirror's file and the counter that the other has left."""
    source, repository = scratch / "source", scratch / "repository"
    source.mkdir()
    general = [f"--chars-to-quote={quoted}"]
    for number, writer in enumerate("rhrhh"):
        name = quoted[0] * 200 + str(number)
        (source / name).write_bytes(b"new")
        (source / (quoted[0] * 200 + "0")).write_bytes(b"x" * number)
        now = 1_700_000_000 + number
        if writer == "r":
            rdiff_backup.backup(source, repository, at=now, general=general).check()
        else:
            agreement.histfs_backup(source, repository, at=now)
        with Repository.open(repository) as opened:
            for time in opened.sessions():
                assert verify(opened, b"", time, report=agreement.complain).files == time - 1_700_000_000 + 1
    for time in range(1_700_000_000, 1_700_000_005):
        rdiff_backup.verify(repository, at=time).check()
    [counter] = (repository / "rdiff-backup-data").glob("*/*ne*")
    assert counter.read_bytes().strip() == b"6"


@pytest.mark.parametrize("quoted", ["a", "a0-9", "dfgl", "A-Z"])
def test_both_take_the_same_names_for_long(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    """Names around the limit, 50 letters `a` longer than which must fit, quoted as they may be."""
    source = scratch / "source"
    source.mkdir()
    names = ["b" * length for length in (54, 55, 56, 204, 205, 206, 254, 255)]
    repositories = scratch / "ours", scratch / "theirs"
    naming = Naming(quoted.encode())
    for number in range(3):
        now = 1_700_000_000 + number
        for name in names[:: 1 + number]:
            (source / name).write_text(name * number)
        agreement.histfs_backup(source, repositories[0], at=now, naming=naming)
        rdiff_backup.backup(source, repositories[1], at=now, general=[f"--chars-to-quote={quoted}"]).check()
    ours, theirs = (names_of_long_names(repository) for repository in repositories)
    assert ours == theirs
    assert len(ours) > 1
    for repository in repositories:
        with Repository.open(repository) as opened:
            for time in opened.sessions():
                assert verify(opened, b"", time, report=agreement.complain) == (len(names), 0, 0)
                rdiff_backup.verify(repository, at=time).check()


@pytest.mark.parametrize("quoted", ["0-9", "^a-z_"])
def test_a_number_that_only_histfs_gives_is_kept(scratch: Path, rdiff_backup: Oracle, quoted: str) -> None:
    """Names that are short by the rule, whose increments would not fit."""
    source, repository = scratch / "source", scratch / "repository"
    source.mkdir()
    names = ["x" * length for length in (40, 150, 180, 204, 205)]
    naming = Naming(quoted.encode())
    for number, writer in enumerate("hrhrrh"):
        now = 1_700_000_000 + number
        for name in names if number == 0 else names[:: number % 2 + 1]:
            (source / name).write_text(name * number)
        if writer == "h":
            agreement.histfs_backup(source, repository, at=now, naming=naming)
        else:
            rdiff_backup.backup(source, repository, at=now, general=[f"--chars-to-quote={quoted}"]).check()
    with Repository.open(repository) as opened:
        for time in opened.sessions():
            assert verify(opened, b"", time, report=agreement.complain) == (len(names), 0, 0)
            rdiff_backup.verify(repository, at=time).check()
    assert len(names_of_long_names(repository)) > 1


def names_of_long_names(repository: Path) -> set[str]:
    """The files in the directory of long names, below the data directory."""
    data = repository / "rdiff-backup-data"
    paths = {path.relative_to(data) for path in data.glob("*/*") if path.is_file()}
    return {str(path) for path in paths if path.parts[0] not in ("increments", "histfs")}


ESCAPED = ("con", "tr.", "bl ", "aux.", "com1.x", "CON", "lpt9", "nul.tar.gz", "...", "prn/x", "d./x ", "com", "con-x")


def test_special_escapes(scratch: Path, rdiff_backup: Oracle) -> None:
    """Names of devices, and blanks and dots at the end: both spell them alike, and read what the other wrote."""
    source = scratch / "source"
    source.mkdir()
    (source / "a").touch()
    repositories = scratch / "ours", scratch / "theirs"
    for repository in repositories:
        rdiff_backup.backup(source, repository, at=1_700_000_000, general=["--chars-to-quote=A-Z"]).check()
        (repository / "rdiff-backup-data/special_escapes").write_text("escape_dos_devices\nescape_trailing_spaces")
    for name in ESCAPED:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    for number in (1, 2):
        now = 1_700_000_000 + number
        agreement.histfs_backup(source, repositories[0], at=now)
        assert rdiff_backup.backup(source, repositories[1], at=now).code == 0
        for name in ESCAPED:
            (source / name).write_text(name * 2)
    mirrors, increments = zip(*map(names_on_disk, repositories), strict=True)
    assert mirrors[0] == mirrors[1]
    assert increments[0] == increments[1]
    for repository in repositories:
        with Repository.open(repository) as opened:
            for time in opened.sessions():
                assert verify(opened, b"", time, report=agreement.complain).mismatched == 0
                assert rdiff_backup.verify(repository, at=time).code == 0


def names_on_disk(repository: Path) -> tuple[set[str], set[str]]:
    """Of the mirror, and of increments that are files."""
    paths = [path.relative_to(repository) for path in repository.rglob("*")]
    mirror = {str(path) for path in paths if path.parts[0] != "rdiff-backup-data"}
    increments = {str(path) for path in paths if "increments" in path.parts and (repository / path).is_file()}
    return mirror, {path for path in increments if not path.endswith(".keep")}
