"""What is calculated from statistics is what rdiff-backup's programs calculate, of sessions of both."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from histfs.cli import main
from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle, missing

SESSIONS = 6


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, rdiff_backup: Oracle) -> Path:
    """Both write in turns."""
    place = tmp_path_factory.mktemp("calculate")
    chance = random.Random("calculate")
    for number in range(SESSIONS):
        for directory in ("a", "a/deep", "b", "b c"):
            (place / "source" / directory).mkdir(parents=True, exist_ok=True)
            for name in range(number + 2):
                if chance.random() < 0.5:
                    content = chance.randbytes(chance.randrange(1, 20_000))
                    (place / "source" / directory / f"{name} x\ny").write_bytes(content)
        time = 1_714_550_400 + number * 86_400
        if number % 2:
            agreement.histfs_backup(place / "source", place / "repository", at=time)
        else:
            rdiff_backup.backup(place / "source", place / "repository", at=time).check()
    return place / "repository"


def statistics_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    if reason := missing():
        pytest.skip(reason)
    scripts = Path(sys.prefix, "bin")
    environment = dict(os.environ, PATH=f"{scripts}:{os.environ['PATH']}")
    command = [scripts / "rdiff-backup-statistics", "--quiet", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_averages(repository: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in sorted(repository.glob("rdiff-backup-data/session_statistics.*"))]
    assert len(files) == SESSIONS
    expected = rdiff_backup.run(["-v1", "calculate", *files]).check()
    for argv in (["calculate", "average", *files], ["calculate", *files], ["calculate", "--method", "average", *files]):
        assert main(argv) == 0
        assert capfd.readouterr().out == expected
    assert main(["calculate", "average", "--json", *files]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["files"] == SESSIONS
    assert f"SourceFiles {told['average']['source_files']}\n" in expected


@pytest.mark.parametrize(
    "options",
    [[], ["--begin-time", "2024-05-03", "--end-time", "2024-05-05"], ["--end-time", "2024-05-03"]],
    ids=" ".join,
)
def test_statistics(repository: Path, options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Of every file; what is too small is told by session there, and of all sessions here."""
    options = ["--minimum-ratio", "0", *options]
    expected = statistics_program(*options, repository).stdout
    assert main(["calculate", "statistics", *options, str(repository)]) == 0
    # Equal shares have no order.
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(expected.splitlines())


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_what_is_too_small_is_counted_with_its_directory(
    repository: Path, ratio: float, capfd: pytest.CaptureFixture[str]
) -> None:
    def told(minimum: float) -> dict[str, dict[str, int]]:
        assert main(["calculate", "statistics", "--json", f"--minimum-ratio={minimum}", str(repository)]) == 0
        top = json.loads(capfd.readouterr().out)["top"]
        return {title: {share["path"]: share["value"] for share in shares} for title, shares in top.items()}

    for title, every in told(0).items():
        total = sum(every.values())
        shares = told(ratio)[title]
        for path, value in shares.items():
            prefix = "" if path == "." else f"{path}/"
            below = sum(each for other, each in every.items() if other == path or other.startswith(prefix))
            apart = sum(each for other, each in shares.items() if other.startswith(prefix) and other != path)
            assert value == below - apart >= ratio * total
        alone = {path for path, value in every.items() if value > ratio * total}
        assert alone <= shares.keys()


def test_the_largest_shares_come_first(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["calculate", "statistics", "--json", "--minimum-ratio", "0", str(repository)]) == 0
    told = json.loads(capfd.readouterr().out)
    assert len(told["sessions"]) == SESSIONS
    for shares in told["top"].values():
        values = [share["value"] for share in shares]
        assert values == sorted(values, reverse=True)
        assert sum(share["percent"] for share in shares) == pytest.approx(100)


@pytest.mark.parametrize("options", [["--begin-time", "2025-01-01"], ["--end-time", "2024-05-01T00:00:00Z"]])
def test_no_session_of_that_time(repository: Path, options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["calculate", "statistics", *options, str(repository)]) == 2
    assert statistics_program(*options, repository).returncode
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("ratio", ["-0.1", "1.5", "nan", "much", ""])
def test_what_is_no_ratio(repository: Path, ratio: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["calculate", "statistics", f"--minimum-ratio={ratio}", str(repository)]) == 1
    assert "a number from 0 to 1 is needed" in capfd.readouterr().err


def test_files_that_are_no_statistics(
    repository: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (repository / "a", repository / "a" / "0 x\ny", repository / "nothing"):
        assert main(["calculate", "average", str(path)]) == 1
        assert rdiff_backup.run(["calculate", str(path)]).code == 1
        assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\x1f\x8bnonsense", b"a 1 2 3 4"])
def test_statistics_that_are_damaged_are_left_out(
    scratch: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    source, repository = scratch / "source", scratch / "repository"
    for state in histories.random_history(source, 80_000, 3, histories.RDIFF_BACKUP_WRITES):
        agreement.histfs_backup(source, repository, at=state.time)
    first, *_ = sorted(repository.glob("rdiff-backup-data/file_statistics.*"))
    first.write_bytes(content)
    code = main(["calculate", "statistics", "--json", str(repository)])
    said = capfd.readouterr()
    if content in (b"", b"a 1 2 3 4"):  # no line that is whole
        assert (code, said.err) == (0, "")
        return
    assert code == 4
    assert said.err.count("\n") == 1
    assert len(json.loads(said.out)["sessions"]) == 2
