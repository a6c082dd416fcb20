"""The files that a session leaves beside the increments have the names that rdiff-backup gives them, quoted or not."""

import os
import shutil
from pathlib import Path

import pytest

from histfs.cli import main
from tests.oracle import Oracle
from tests.trees import MTIME, Dir, File, build

FIRST = 1_700_000_000
# What only one of the two has: the catalog, and a lock.
OWN = {b"histfs", b"lock.yml", b".keep"}
QUOTED = [
    [],
    ["--chars-to-quote=A-Z"],
    ["--chars-to-quote=:"],
    ["--chars-to-quote=A-Z:"],
    ['--chars-to-quote=\\x00-\\x1f"*/:<>?\\\\|\\x7f;'],
    ["--use-compatible-timestamps"],
]


def names_in(repository: Path) -> set[bytes]:
    """All names below rdiff-backup-data; those of lists without the suffix that they always have here."""
    data = os.fsencode(repository / "rdiff-backup-data")
    found = {
        os.path.relpath(os.path.join(place, name), data)
        for place, directories, files in os.walk(data)
        for name in (*directories, *files)
    }
    return {
        name.removesuffix(b".gz") if name.startswith(b"mirror_metadata.") else name
        for name in found
        if OWN.isdisjoint(name.split(b"/"))
    }


@pytest.mark.parametrize("compression", [[], ["--no-compression"]])
@pytest.mark.parametrize("general", QUOTED)
def test_names(scratch: Path, rdiff_backup: Oracle, general: list[str], compression: list[str]) -> None:
    source, ours, theirs = scratch / "source", scratch / "ours", scratch / "theirs"
    for number in range(3):
        shutil.rmtree(source, ignore_errors=True)
        build(source, Dir({"File": File(b"%d" % number, mtime=MTIME + number), "Dir": Dir({f"X{number}": File()})}))
        options = [f"--current-time={FIRST + number}", "--no-fsync", *general]
        assert main([*options, "backup", *compression, str(source), str(ours)]) == 0
        theirs_command = ["--api-version=201", *options, "backup", *compression, str(source), str(theirs)]
        assert rdiff_backup.run(theirs_command).code == 0
    assert b"backup.log" in names_in(ours)
    assert len([name for name in names_in(ours) if b"session_statistics" in name]) == 3
    assert names_in(ours) == names_in(theirs)
    removing = ["--force", "remove", "increments", f"--older-than={FIRST + 2}"]
    assert main([*removing, str(ours)]) == 0
    assert rdiff_backup.run(["--api-version=201", *removing, str(theirs)]).code == 0
    assert names_in(ours) - {b"increments"} == names_in(theirs)  # an empty one stays
