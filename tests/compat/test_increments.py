"""`list increments` of both programs about the same repositories."""

import json
import os
import re
import stat
from collections import Counter
from pathlib import Path

import pytest

from histfs.cli import main
from histfs.store.format.names import parse_increment_name
from tests import histories
from tests.oracle import Oracle

SESSIONS = 6


@pytest.fixture
def repository(scratch: Path, rdiff_backup: Oracle, request: pytest.FixtureRequest) -> Path:
    source, repository = scratch / "source", scratch / "repository"
    history = histories.random_history(source, 70_000 + request.param, SESSIONS, histories.RDIFF_BACKUP_WRITES)
    for number, state in enumerate(history):
        if (number + request.param) % 3:
            rdiff_backup.backup(source, repository, at=state.time, api=200 + request.param % 2).check()
        else:
            arguments = ["-q", f"--current-time={state.time}", "backup", str(source), str(repository)]
            assert main(arguments) == 0
    return repository


def both(rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    capfd.readouterr()
    assert main(list(arguments)) == 0
    ours = capfd.readouterr().out
    run = rdiff_backup.run(["--api-version=201", *arguments])
    assert run.code == 0, run.output
    return ours, run.output


def parsed(yaml: str) -> list[dict[str, str]]:
    """The list of flat maps that rdiff-backup prints."""
    items: list[dict[str, str]] = []
    for line in yaml.splitlines():
        if match := re.fullmatch(r"(- |  )(\w+): (.*)", line):
            if match[1] == "- ":
                items.append({})
            items[-1][match[2]] = match[3]
    return items


def texts(document: str) -> list[dict[str, str]]:
    return [{key: str(value) for key, value in item.items()} for item in json.loads(document)]


def size_of_what_has_no_content(path: Path) -> int:
    """rdiff-backup counts in the mirror what directories, links and special files take; histfs does not."""
    found = [path]
    for place, below, names in os.walk(path):
        if "rdiff-backup-data" in below:
            below.remove("rdiff-backup-data")
        found += [Path(place, name) for name in (*below, *names)]
    statuses = [os.lstat(one) for one in found]
    return sum(status.st_size for status in statuses if not stat.S_ISREG(status.st_mode))


def differences(repository: Path) -> Counter[str]:
    """The same of increments, by time; and histfs counts those under a replacement for a long name."""
    data = repository / "rdiff-backup-data"
    sizes: Counter[str] = Counter()
    for top in ("increments", "long_filename_data"):
        for place, below, names in os.walk(os.fsencode(data / top)):
            for name in (*below, *names):
                parsed = parse_increment_name(name)
                status = os.lstat(os.path.join(place, name))
                if parsed is not None and top == "increments" and not stat.S_ISREG(status.st_mode):
                    sizes[str(parsed.time)] -= status.st_size
                elif parsed is not None and top != "increments":
                    sizes[str(parsed.time)] += status.st_size
    return sizes


@pytest.mark.parametrize("repository", [0, 1, 2], indirect=True)
def test_increments_and_their_sizes(
    repository: Path, rdiff_backup: Oracle, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(repository.parent / "cache"))
    ours, theirs = both(rdiff_backup, capfd, "list", "increments", str(repository))
    assert ours == theirs
    ours, theirs = both(rdiff_backup, capfd, "--parsable-output", "list", "increments", str(repository))
    assert texts(ours) == parsed(theirs)
    ours, theirs = both(rdiff_backup, capfd, "--parsable-output", "list", "increments", "--size", str(repository))
    expected = differences(repository)
    expected.update({item["time"]: int(item["size"]) for item in parsed(theirs)})
    expected[parsed(theirs)[-1]["time"]] -= size_of_what_has_no_content(repository)
    assert {item["time"]: int(item["size"]) for item in texts(ours)} == expected
    plain = [name for name in os.listdir(repository) if name.isascii() and name.isprintable() and "\\" not in name]
    for name in sorted(set(plain) - {"rdiff-backup-data"})[:4]:
        ours, theirs = both(rdiff_backup, capfd, "--parsable-output", "list", "increments", str(repository / name))
        assert [(item["time"], item["type"]) for item in texts(ours)] == [
            (item["time"], item["type"]) for item in parsed(theirs)
        ], name
