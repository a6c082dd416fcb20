"""Options before the verb: rdiff-backup takes them in the same places, and gives the same exit codes."""

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from histfs.cli import main
from tests.oracle import Oracle
from tests.trees import Dir, File, build

FIRST = 1_714_550_400
TREE = Dir({"a": File(b"one\n"), "b\nc": File(b"two"), "d": Dir({"back\\slash": File(b"")})})


@pytest.fixture
def repository(scratch: Path) -> Path:
    build(scratch / "source", TREE)
    assert main(["-q", f"--current-time={FIRST}", "backup", str(scratch / "source"), str(scratch / "repository")]) == 0
    return scratch / "repository"


@pytest.mark.parametrize(
    "options",
    [
        ["--parsable-output"],
        ["--parsable"],
        ["-v5"],
        ["-v", "0"],
        ["--verb=9", "--terminal-verbosity", "1"],
        ["--verbosity", "10"],
        ["-vv"],
        ["--null-separator", "--api-version", "201"],
        ["--api-version", "200"],
        ["--api-version", "300"],
        ["--api-version", "x"],
        ["--tempdir", "/tmp"],
        ["--tempdir", "/nonexistent"],
        ["--new"],
        ["--remote-schema", "ssh {h}", "--remote-tempdir=/x"],
        ["--ssh-compression"],
        ["--no-ssh-compression"],
        ["--current-time", "1714550401"],
        ["--current-time", "soon"],
        ["--no-such-option"],
        ["@nothing-of-this-name"],
    ],
    ids=" ".join,
)
def test_options_are_taken_or_refused(repository: Path, rdiff_backup: Oracle, options: list[str]) -> None:
    arguments = [*options, "list", "files", str(repository)]
    assert main(arguments) == rdiff_backup.run(arguments).code


def test_arguments_in_files(repository: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]) -> None:
    inner, outer = repository.parent / "inner", repository.parent / "outer"
    inner.write_text(f"files\n{repository}\n")
    outer.write_text(f"-v1\n--api-version\n201\nlist\n@{inner}\n")
    assert main([f"@{outer}"]) == 0
    assert capfd.readouterr().out == rdiff_backup.run([f"@{outer}"]).check()


def test_names_in_statistics_may_end_in_a_nul(scratch: Path, rdiff_backup: Oracle) -> None:
    build(scratch / "source", TREE)
    source, ours, theirs = (str(scratch / name) for name in ("source", "ours", "theirs"))
    assert main(["--null-separator", f"--current-time={FIRST}", "backup", source, ours]) == 0
    rdiff_backup.backup(Path(source), Path(theirs), at=FIRST, general=["--null-separator"]).check()
    name = "rdiff-backup-data/file_statistics.2024-05-01T08:00:00Z.data.gz"
    written, expected = (gzip.decompress(Path(where, name).read_bytes()).split(b"\0") for where in (ours, theirs))
    root = 2  # the line of the root, behind the header: whether a first session finds a directory is told otherwise
    assert written[:root] + written[root + 1 :] == expected[:root] + expected[root + 1 :]
    assert len(written) == 2 + 5 + 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_errors_may_end_in_a_nul(scratch: Path) -> None:
    build(scratch / "source", TREE)
    (scratch / "source" / "a").chmod(0)
    assert main(["-v0", "--null-separator", "backup", str(scratch / "source"), str(scratch / "repository")]) == 4
    [log] = (scratch / "repository" / "rdiff-backup-data").glob("error_log.*")
    assert gzip.decompress(log.read_bytes()).endswith(b"\0")


EVENING = 1_714_671_000  # 2024-05-02T17:30:00Z
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kolkata", "Australia/Adelaide"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session every seven hours; each has one file, which has the time as its name."""
    place = tmp_path_factory.mktemp("sessions")
    for moment in range(FIRST, EVENING, 7 * 3600):
        (place / "source").mkdir()
        (place / "source" / str(moment)).touch()
        command = ["-q", f"--current-time={moment}", "backup", str(place / "source"), str(place / "repository")]
        assert main(command) == 0
        (place / "source" / str(moment)).unlink()
        (place / "source").rmdir()
    return place / "repository"


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_both_understand_the_same_times(
    sessions: Path, rdiff_backup: Oracle, zone: str, capfd: pytest.CaptureFixture[str]
) -> None:
    times = [
        "now",
        "0B",
        "1B",
        "3B",
        "99B",
        "1714557600",
        "0",
        "2h",
        "1D",
        "20h78m",
        "2024-05-02",
        "2024/5/3",
        "5/2/2024",
    ]
    times += ["05-02-2024", "2024-05-02T10:00:00", "2024-05-02T10:00:00Z", "2024-05-02T10:00:00-03:30"]
    times += [
        "2024-05-02T10-00-00",
        "2024-05-02T10-00-00+09-30",
        "Thu May  2 10:00:00 2024",
        "",
        "B",
        "3d",
        "1.5D",
        "2024-13-01",
    ]
    for text in times:
        arguments = [f"--current-time={EVENING}", "list", "files", f"--at={text}", str(sessions)]
        code = main(arguments)
        said = capfd.readouterr()
        expected = rdiff_backup.run(["-v1", *arguments], zone=zone)
        if "no session that early" in said.err:  # a deliberate difference
            assert expected.output == f".\n{FIRST}\n", text
            continue
        assert code == expected.code, text
        if code == 0:
            assert said.out == expected.output, text
