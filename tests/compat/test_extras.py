"""Extended attributes and access control lists beside rdiff-backup: the same files, options and messages.

Random histories have both, in all of the other tests.
"""

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.errors import HistfsError, UsageError
from histfs.store.backup import backup
from histfs.store.entry import ALL_EXTRAS, NO_EXTRAS, Extras
from histfs.store.format.attributes import parse_extended_attributes
from histfs.store.format.metadata import split_records
from histfs.store.repository import Repository
from histfs.store.restore import restore
from tests import comparison
from tests.compat.agreement import complain
from tests.histories import FIRST_SESSION, has_xattrs
from tests.oracle import Oracle
from tests.trees import Dir, Fifo, File, Link, Symlink, build

NOW = FIRST_SESSION
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OPTIONS = [((), ALL_EXTRAS), (("--no-acls",), Extras(acls=False)), (("--no-eas",), Extras(xattrs=False))]
OPTIONS += [(("--no-acls", "--no-eas"), NO_EXTRAS)]


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


LIST = acl((1, 6, -1), (2, 4, 1), (2, 7, 4711), (4, 0, -1), (8, 5, 2), (16, 6, -1), (32, 0, -1))
TREE = Dir(
    {
        "tagged": File(b"tagged", xattrs={"user.a": b"1", "user.b": b"\0\xff", "user.empty": b""}),
        "listed": File(b"listed", 0o660, xattrs={ACCESS: LIST}),
        "link": Link("listed"),
        "trivial": File(b"trivial", 0o640, xattrs={}),
        "fifo": Fifo(0o660, xattrs={ACCESS: LIST}),
        "symlink": Symlink("tagged"),
        "d": Dir({"odd\n \\": File(b"x", xattrs={"user.x": b"x"})}, xattrs={DEFAULT: LIST, "user.d": b"d"}),
    },
    xattrs={"user.root": b"root"},
)


@pytest.fixture
def source(scratch: Path) -> Path:
    if not has_xattrs(os.fsencode(scratch)):
        pytest.skip("the file system takes no extended attributes or no access control lists")
    build(scratch / "source", TREE)
    if os.geteuid() == 0:
        os.setxattr(scratch / "source/symlink", "trusted.link", b"l", follow_symlinks=False)
        os.setxattr(scratch / "source/fifo", "trusted.fifo", b"f")
        os.setxattr(scratch / "source/tagged", "security.other", b"s")
    return scratch / "source"


def by(writer: str, rdiff_backup: Oracle, source: Path, repository: Path, number: int, options: Sequence[str] = ()):
    """A session of either program, with the options of rdiff-backup."""
    if writer == "rdiff-backup":
        rdiff_backup.backup(source, repository, at=NOW + number, api=201, special=options).check()
        return
    extras = Extras(xattrs="--no-eas" not in options, acls="--no-acls" not in options)
    backup(source, repository, now=NOW + number, report=complain, extras=extras)


def recorded(repository: Path, base: str) -> list[bytes | None]:
    """The files of all sessions, in the order of time; None for those that have none."""
    texts = []
    data = repository / "rdiff-backup-data"
    for marker in sorted(data.glob("session_statistics.*")):
        time = marker.name.split(".")[1]
        found = list(data.glob(f"{base}.{time}.*"))
        assert len(found) <= 1
        assert all((path.suffix == ".gz") is (path.stat().st_size > 0) for path in found)
        texts += [gzip.decompress(path.read_bytes()) if path.stat().st_size else b"" for path in found] or [None]
    return texts


def with_the_mask(theirs: comparison.Manifest, ours: comparison.Manifest, *names: bytes) -> comparison.Manifest:
    """Deliberately other: here the group was shut out by the list, and still is without it."""
    changed = {}
    for name in names:
        assert (theirs[name].mode, ours[name].mode) == (0o660, 0o600)
        changed[name] = ours[name]._replace(mode=0o660)
    return {**ours, **changed}


@pytest.mark.parametrize(("options", "extras"), OPTIONS)
def test_both_write_the_same(scratch: Path, source: Path, rdiff_backup: Oracle, options, extras) -> None:
    places = {writer: scratch / writer for writer in ("rdiff-backup", "histfs")}
    for number, path in enumerate(["tagged", "listed", "d"]):
        for writer, repository in places.items():
            by(writer, rdiff_backup, source, repository, number, options)
        for name in os.listxattr(source / path):
            os.removexattr(source / path, name)
    theirs, ours = (recorded(place, "access_control_lists") for place in places.values())
    assert ours == theirs
    theirs, ours = (
        [
            None if text is None else [parse_extended_attributes(raw) for raw in split_records([text], b"# file: ")]
            for text in texts
        ]
        for texts in (recorded(place, "extended_attributes") for place in places.values())
    )
    assert ours == theirs  # but for the order of the names of one file, which is the kernel's there
    theirs, ours = (comparison.read(place, leaving_out=b"rdiff-backup-data") for place in places.values())
    if not extras.acls:
        ours = with_the_mask(theirs, ours, b"fifo")  # the others have lost their lists
    assert comparison.difference(theirs, ours, special_mtimes=False) == []


@pytest.mark.parametrize("writer", ["rdiff-backup", "histfs"])
@pytest.mark.parametrize(("options", "extras"), OPTIONS)
def test_both_restore_the_same(
    scratch: Path, source: Path, rdiff_backup: Oracle, writer: str, options, extras: Extras
) -> None:
    repository = scratch / "repository"
    by(writer, rdiff_backup, source, repository, 0)
    rdiff_backup.run(["restore", *options, str(repository), str(scratch / "theirs")]).check()
    with Repository.open(repository) as opened:
        restore(opened, b"", NOW, scratch / "ours", report=complain, extras=extras)
    theirs, ours = comparison.read(scratch / "theirs"), comparison.read(scratch / "ours")
    if not extras.acls:
        ours = with_the_mask(theirs, ours, b"listed", b"link", b"fifo")
    assert comparison.difference(theirs, ours) == []


def test_names_that_nobody_has(scratch: Path, source: Path, rdiff_backup: Oracle) -> None:
    repository = scratch / "repository"
    by("histfs", rdiff_backup, source, repository, 0)
    [path] = (repository / "rdiff-backup-data").glob("access_control_lists.*")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"4711", b"nobody-has-this")))
    run = rdiff_backup.run(["restore", str(repository), str(scratch / "theirs")])
    assert run.code == 0
    assert run.output.count("nobody-has-this not found on system") == 1
    reports: list[HistfsError] = []
    with Repository.open(repository) as opened:
        assert restore(opened, b"", NOW, scratch / "ours", report=reports.append).errors == 0
        assert ["nobody-has-this" in str(error) for error in reports] == [True]
        with pytest.raises(UsageError, match="nobody-has-this"):
            restore(opened, b"", NOW, scratch / "never", report=complain, never_drop_acls=True)
    assert comparison.difference(comparison.read(scratch / "theirs"), comparison.read(scratch / "ours")) == []
    run = rdiff_backup.run(["restore", "--never-drop-acls", str(repository), str(scratch / "theirs too")])
    assert run.code == 1


def test_rdiff_backup_goes_on_and_sees_no_change(scratch: Path, source: Path, rdiff_backup: Oracle) -> None:
    repository = scratch / "repository"
    by("histfs", rdiff_backup, source, repository, 0)
    for writer in ("rdiff-backup", "histfs", "rdiff-backup"):
        by(writer, rdiff_backup, source, repository, len(recorded(repository, "extended_attributes")))
    changed = [
        line
        for path in (repository / "rdiff-backup-data").glob("session_statistics.*")
        for line in path.read_text().splitlines()
        if line.startswith("ChangedFiles")
    ]
    assert changed == ["ChangedFiles 0"] * 4
    rdiff_backup.compare(source, repository, at=NOW).check()
