"""What verbs write to logs in the repository, and which write none."""

import os
import re

import pytest

from histfs.cli import main
from tests.comparison import difference, read
from tests.trees import Dir, File, build

NOBODY = 2**22 + 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("RDIFF_BACKUP_VERBOSITY", raising=False)
    build(tmp_path / "source", Dir({"a\n": File(b"one"), "b": File(b"two")}))
    return tmp_path


def backup(place, time, *options):
    return main([*options, f"--current-time={time}", "backup", str(place / "source"), str(place / "repo")])


def log(place, verb="backup"):
    """The lines of the log; the time and the command line of each run as a dash."""
    text = (place / "repo" / "rdiff-backup-data" / f"{verb}.log").read_text()
    return [re.sub(r"^\d{4}-\d\d-\d\dT.* histfs .*", "-", line) for line in text.splitlines()]


def test_a_session_and_what_it_says(place):
    assert backup(place, 1_000_000_000, "--quiet") == 0
    summary = "NOTE: 3 files: 3 new, 0 changed, 0 deleted; 6 bytes"
    assert log(place) == ["-", summary]
    (place / "source" / "b").unlink()
    assert backup(place, 1_000_000_001, "-v5", "--terminal-verbosity=0") == 0
    assert log(place)[2:] == ["-", "changed: .", "deleted: b", "NOTE: 2 files: 0 new, 1 changed, 1 deleted; 3 bytes"]
    assert backup(place, 1_000_000_002, "-v2", "--terminal-verbosity=5") == 0
    assert log(place)[6:] == ["-"]


def test_a_run_that_is_refused_leaves_no_trace(place):
    assert backup(place, 1_000_000_000) == 0
    before = log(place)
    assert backup(place, 1_000_000_000) == 1
    assert main(["backup", str(place / "nothing"), str(place / "repo")]) == 1
    assert main(["backup", str(place / "source"), str(place / "no" / "where")]) == 1
    assert log(place) == before


def test_a_session_that_is_undone(place):
    backup(place, 1_000_000_000)
    (place / "repo/rdiff-backup-data/current_mirror.2001-09-10T01:46:40Z.data").write_text(f"PID {NOBODY}\n")
    assert main(["regress", str(place / "repo")]) == 2
    assert [re.sub("of .*? had", "of X had", line) for line in log(place, "regress")] == [
        "-",
        f"NOTE: the session of X had not finished and was undone; the newest is that of {newest(place)}",
    ]


def newest(place):
    from histfs.cli.output import iso_time

    return iso_time(1_000_000_000, None)


def test_what_only_reads_writes_nothing(place):
    backup(place, 1_000_000_000)
    before = read(place / "repo")
    repo = str(place / "repo")
    main(["regress", repo])
    for argv in (
        ["verify", repo],
        ["restore", repo, str(place / "target")],
        ["list", "files", repo],
        ["list", "sessions", repo],
        ["status", repo],
        ["calculate", "statistics", repo],
        ["regress", "--json", repo],
    ):
        assert main(["-v9", *argv]) == 0
    changed = [line for line in difference(before, read(place / "repo")) if "lock.yml" not in line]
    assert changed == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_files_with_trouble(place):
    (place / "source" / "b").chmod(0)
    assert backup(place, 1_000_000_000, "-v0") == 4
    assert log(place)[:1] == ["-"]
    assert backup(place, 1_000_000_001, "-q") == 4
    assert any(line.startswith("WARNING: b: ") for line in log(place))
