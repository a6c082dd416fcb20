"""Options of `backup`: both programs do the same with the same tree, and leave the same behind."""

import gzip
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from histfs.cli import main
from histfs.store.format.metadata import read_entries
from histfs.store.repository import Repository
from tests import comparison
from tests.compat import agreement
from tests.oracle import Oracle
from tests.trees import Dir, File, Link, build

FIRST = 1_700_000_000
SUFFIXES = (
    "7z aac arj asc avi bik bz bz2 deb docx flac flv gif gpg gz jp2 jpeg jpg jsonlz4 lharc lz4 lzh lzma lzo m4a m4v mdf"
    " mkv mov mozlz4 mp3 mp4 mpeg mpg oga ogg ogm ogv opus pgp pk3 png rar rm rpm rz shn tgz tzst vob webm webp wma wmv"
    " xlsx xz z zip zoo zst ZIP Jpg zipx jpe tar txt pdf zst~ gz. tif iso lz svgz ogx mp2 exe jar"
)


class Both(NamedTuple):
    """One source, a repository for each program, and how they are called."""

    place: Path
    oracle: Oracle

    @property
    def source(self) -> Path:
        return self.place / "source"

    def backup(self, number: int, general: Sequence[str] = (), special: Sequence[str] = ()) -> tuple[int, int]:
        """Session `number` of both; the exit codes of histfs and of rdiff-backup."""
        now = FIRST + 60 * number
        ours, theirs = self.place / "histfs", self.place / "rdiff-backup"
        arguments = ["-q", f"--current-time={now}", "--no-fsync", *general, "backup", *special]
        code = main([*arguments, str(self.source), str(ours)])
        return code, self.oracle.backup(self.source, theirs, at=now, api=201, general=general, special=special).code

    def names(self) -> tuple[set[str], set[str]]:
        """The files below the data directories that a session leaves, without those that a program has of its own."""
        return _names(self.place / "histfs"), _names(self.place / "rdiff-backup")


def _names(repository: Path) -> set[str]:
    data = repository / "rdiff-backup-data"
    found = {os.fspath(path.relative_to(data)) for path in data.rglob("*")}
    own = re.compile(r"histfs|increments/\.keep|backup\.log|lock\.yml|mirror_metadata")
    return {name for name in found if not own.match(name)}


@pytest.fixture
def both(scratch: Path, rdiff_backup: Oracle) -> Both:
    return Both(scratch, rdiff_backup)


def test_what_is_not_compressed_by_default(both: Both) -> None:
    names = [f"file.{suffix}" for suffix in SUFFIXES.split()] + ["zip", ".zip", "zip.d/x", "a.tar.gz"]
    for number in range(2):
        shutil.rmtree(both.source, ignore_errors=True)
        build(both.source, Dir({"zip.d": Dir()}))
        for name in names:
            (both.source / name).write_bytes(b"x" * (number + 1))
        assert both.backup(number) == (0, 0)
    ours, theirs = both.names()
    assert ours == theirs
    assert sum(name.endswith(".diff") for name in ours) > 60


@pytest.mark.parametrize(
    "special",
    [
        ["--no-compression"],
        ["--compression", "--no-file-statistics"],
        ["--no-compression", "--file-statistics"],
        ["--not-compressed-regexp", ".*keep"],
        ["--no-compression-regexp", ".*keep"],
        ["--not-compressed-regexp", "keep"],  # matched at the start of the path
        ["--not-compressed-regexp=(?i).*/d/.*A$"],
        ["--no-compare-inode", "--no-hard-links", "--no-carbonfile", "--no-resource-forks"],
    ],
)
def test_what_a_session_leaves(both: Both, special: list[str]) -> None:
    for number in range(2):
        shutil.rmtree(both.source, ignore_errors=True)
        content = File(b"x" * (number + 1))
        build(both.source, Dir({"keep.txt": content, "other.zip": content, "d": Dir({"a": content})}))
        assert both.backup(number, special=special) == (0, 0)
    ours, theirs = both.names()
    assert ours == theirs


@pytest.mark.parametrize(
    "general", [["--use-compatible-timestamps"], ["--chars-to-quote=A-Z:"], ["--override-chars=U"]]
)
def test_names_of_what_a_session_leaves(both: Both, general: list[str]) -> None:
    build(both.source, Dir({"Upper": Dir({"A": File(b"1")}), "b:c": File(b"2")}))
    assert both.backup(0, general) == (0, 0)
    (both.source / "Upper/A").write_bytes(b"22")
    assert both.backup(1, general) == (0, 0)
    ours, theirs = both.names()
    assert ours == theirs
    assert sorted(os.listdir(both.place / "histfs")) == sorted(os.listdir(both.place / "rdiff-backup"))


@pytest.mark.parametrize(
    ("first", "later", "code"),
    [
        (["--chars-to-quote=A-Z:"], ["--chars-to-quote=A-Z:"], 0),
        (["--chars-to-quote=A-Z:"], [], 0),
        (["--chars-to-quote=A-Z:"], ["--chars-to-quote=a"], 1),
        (["--chars-to-quote=A-Z:"], ["--chars-to-quote="], 1),
        (["--chars-to-quote=A-Z:"], ["--force", "--chars-to-quote=a"], 1),
        ([], ["--chars-to-quote=A-Z:"], 1),
        ([], ["--chars-to-quote="], 0),
    ],
)
def test_what_is_quoted_stays(both: Both, first: list[str], later: list[str], code: int) -> None:
    build(both.source, Dir({"Upper": File(b"1")}))
    assert both.backup(0, first) == (0, 0)
    assert both.backup(1, later) == (code, code)


def test_a_bad_regular_expression(both: Both, capfd: pytest.CaptureFixture[str]) -> None:
    build(both.source, Dir())
    assert both.backup(0, special=["--not-compressed-regexp", "("]) == (1, 1)
    assert "not a regular expression: (" in capfd.readouterr().err


@pytest.mark.parametrize("special", [[], ["--create-full-path"]])
def test_missing_directories(scratch: Path, rdiff_backup: Oracle, special: list[str]) -> None:
    build(scratch / "source", Dir({"a": File(b"1")}))
    ours, theirs = scratch / "1/2/3", scratch / "4/5/6"
    code = main(["-q", f"--current-time={FIRST}", "backup", *special, str(scratch / "source"), str(ours)])
    assert rdiff_backup.backup(scratch / "source", theirs, at=FIRST, special=special).code == code == (not special)
    assert ours.exists() == theirs.exists() == bool(special)
    for made, also in [(ours, theirs), (ours.parent, theirs.parent), (ours.parents[1], theirs.parents[1])]:
        assert not special or made.stat().st_mode == also.stat().st_mode


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_directory_with_other_things_in_it(both: Both, force: list[str]) -> None:
    build(both.source, Dir({"a": File(b"1"), "d": File(b"2")}))
    other = Dir({"a": Dir({"x": File(b"old")}), "d": File(b"old"), "other": Dir({"y": File(b"old")})})
    for program in ("histfs", "rdiff-backup"):
        build(both.place / program, other)
    assert both.backup(0, force) == ((2, 0) if force else (1, 1))
    ours, theirs = (
        comparison.read(both.place / program, leaving_out=b"rdiff-backup-data")
        for program in ("histfs", "rdiff-backup")
    )
    assert comparison.difference(theirs, ours, owners=agreement.OWNERS) == []


def linked(repository: Path) -> list[tuple[bytes, int | None]]:
    """The paths in the newest list, and how many links it says they have."""
    [newest] = sorted((repository / "rdiff-backup-data").glob("mirror_metadata.*.snapshot*"))[-1:]
    text = newest.read_bytes()
    records = read_entries([gzip.decompress(text) if newest.suffix == ".gz" else text], agreement.complain)
    return [(entry.path, entry.link_group and entry.link_group.nlink) for entry in records]


def changed(repository: Path) -> set[bytes]:
    """The paths that count as changed. Whether a directory does in which something else changed is not compared."""
    [newest] = sorted((repository / "rdiff-backup-data").glob("file_statistics.*"))[-1:]
    lines = [line.rsplit(b" ", 4) for line in gzip.decompress(newest.read_bytes()).splitlines()[2:]]
    return {path for path, is_changed, *_ in lines if is_changed == b"1"} - {b"."}


@pytest.mark.parametrize("special", [[], ["--no-hard-links"], ["--no-compare-inode"]])
def test_hard_links(both: Both, special: list[str]) -> None:
    build(both.source, Dir({"a": File(b"1"), "b": Link("a"), "c": File(b"3"), "d": Link("c"), "e": File(b"5")}))
    assert both.backup(0) == (0, 0)
    shutil.copytree(both.source, both.place / "copy", symlinks=True)
    for name in ("b", "d"):
        (both.place / "copy" / name).unlink()
        (both.place / "copy" / name).hardlink_to(both.place / "copy" / {"b": "a", "d": "c"}[name])
    mtime = both.source.stat().st_mtime_ns
    shutil.rmtree(both.source)
    (both.place / "copy").rename(both.source)
    os.utime(both.source, ns=(mtime, mtime))
    assert both.backup(1, special=special) == (0, 0)
    check_links(both)
    (both.source / "f").hardlink_to(both.source / "a")
    (both.source / "c").write_bytes(b"33")
    assert both.backup(2, special=special) == (0, 0)
    check_links(both)
    with Repository.open(both.place / "histfs") as repository:
        for number, state in enumerate(repository.sessions()):
            both.oracle.verify(both.place / "histfs", at=state).check()
            assert number < 3


@pytest.mark.parametrize(
    "special",
    [
        ["--no-hard-links"],
        ["--hard-links", "--no-compression", "--not-compressed-regexp=x", "--no-compare-inode"],
        ["--no-carbonfile", "--no-resource-forks"],
        ["--not-compressed-regexp=("],
    ],
)
def test_options_of_restore(both: Both, special: list[str]) -> None:
    build(both.source, Dir({"a": File(b"1"), "b": Link("a"), "d": Dir({"c": Link("a"), "e": File(b"5")})}))
    assert both.backup(0) == (0, 0)
    ours, theirs = both.place / "ours", both.place / "theirs"
    code = main(["-q", "restore", *special, str(both.place / "histfs"), str(ours)])
    run = both.oracle.run(["restore", *special, str(both.place / "histfs"), str(theirs)])
    assert (code, ours.exists()) == (run.code, theirs.exists())
    if ours.exists():
        assert comparison.difference(comparison.read(theirs), comparison.read(ours)) == []


def check_links(both: Both) -> None:
    ours, theirs = both.place / "histfs", both.place / "rdiff-backup"
    assert linked(ours) == linked(theirs)
    assert changed(ours) == changed(theirs)
    found, wanted = (comparison.read(place, leaving_out=b"rdiff-backup-data") for place in (ours, both.source))
    assert comparison.difference(wanted, found, owners=agreement.OWNERS, links=False) == []
