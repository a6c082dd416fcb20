"""Each verb and option that the help of rdiff-backup names: histfs takes it, with the same exit code, or says why not.

What both make of an option is compared elsewhere, option by option; here nothing may be missing.
"""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.cli import VERBS, main, make_parser
from histfs.cli.complete import _verbs
from tests.compat import agreement
from tests.oracle import Oracle
from tests.trees import Dir, File, build

FIRST = 1_700_000_000
DEFINED = re.compile(r"^  (-.*?)(?:\s{2,}|$)", re.MULTILINE)
OPTION = re.compile(r"(?:(?<=^)|(?<=, )|(?<=`))--?[a-z][a-z-]*")
DOCUMENT = Path(__file__).parents[2] / "docs" / "rdiff-backup.md"

# Verbs with the names that they need; S: the source, R: the repository, N: what is not there yet, T: statistics.
ACTIONS = {
    "backup": "S R",
    "calculate": "T",
    "compare": "S R",
    "complete": "-- rdiff-backup ba",
    "info": "",
    "list files": "R",
    "list increments": "R",
    "regress": "R",
    "remove increments": "R",
    "restore": "R N",
    "verify": "R",
}
VALUES = {
    "--api-version": "201",
    "--at": "1B",
    "--changed-since": "1B",
    "--chars-to-quote": "",
    "--current-time": "1800000000",
    "--cword": "1",
    "--exclude": "S/a",
    "--exclude-filelist": "L",
    "--exclude-globbing-filelist": "L",
    "--exclude-if-present": "mark",
    "--exclude-regexp": "b$",
    "--group-mapping-file": "M",
    "--include": "S/a",
    "--include-filelist": "L",
    "--include-globbing-filelist": "L",
    "--include-if-present": "mark",
    "--include-regexp": "b$",
    "--max-file-size": "100",
    "--method": "full",
    "--min-file-size": "1",
    "--no-compression-regexp": ".*b",
    "--not-compressed-regexp": ".*b",
    "--older-than": "1B",
    "--override-chars-to-quote": "",
    "--remote-schema": "ssh {h}",
    "--remote-tempdir": "S",
    "--tempdir": "S",
    "--terminal-verbosity": "4",
    "--user-mapping-file": "M",
    "--verbosity": "4",
}
# Where the codes differ on purpose: the row of docs/rdiff-backup.md that tells, and for which verb and options.
DIFFERENT = {
    "| `--no-new` |": re.compile(r".* --no-new"),
    "| `--include-fifos`, `--include-sockets`, `--include-device-files`, `--include-other-filesystems` |": re.compile(
        r"(backup|restore|compare) --include-(device-files|fifos|sockets|other-filesystems)"
    ),
    "| `restore --exclude-other-filesystems` |": re.compile(r"restore --exclude-other-filesystems"),
    "| `complete --no-unique` |": re.compile(r"complete --no-unique"),
    "| `compare`, selection |": re.compile(r"compare --(ex|in)clude.*|compare --m(ax|in)-file-size"),
    "| `restore`, `compare`, `verify` |": re.compile(r"restore --increment"),
}
WITHOUT = {"-h", "--help", "-V", "--version"}  # they are looked at by themselves


def options_of(rdiff_backup: Oracle, action: str) -> list[str]:
    """The options that the help of an action defines, in all their spellings; "": those for every action."""
    said = rdiff_backup.run([*action.split(), "--help"])
    assert said.code == 0
    return [name for line in DEFINED.findall(said.output) for name in OPTION.findall(line) if name not in WITHOUT]


def test_no_verb_is_missing(rdiff_backup: Oracle) -> None:
    [found] = re.findall(r"^  \{(.*)\}$", rdiff_backup.run(["--help"]).output, re.MULTILINE)
    actions = set(found.split(","))
    ours = _verbs(make_parser())
    assert actions - ours.keys() == {"server"}
    assert "| `server` | is not there" in DOCUMENT.read_text()
    assert actions - {"server", "test"} == {action.split()[0] for action in ACTIONS}
    for action in ("list", "remove"):
        [found] = re.findall(r"^  \{(.*)\}$", rdiff_backup.run([action, "--help"]).output, re.MULTILINE)
        assert set(found.split(",")) <= _verbs(ours[action]).keys()
    assert len(VERBS) > 10


def test_no_option_of_the_server_is_passed_over(rdiff_backup: Oracle) -> None:
    [row] = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `server` |")]
    assert set(options_of(rdiff_backup, "server")) == set(OPTION.findall(row))


@pytest.fixture
def place(scratch: Path) -> Path:
    source = scratch / "source"
    for number in range(3):
        build(source, Dir({"a": File(b"a%d" % number), "b": File(b"b" * number), "d": Dir({"mark": File()})}))
        agreement.histfs_backup(source, scratch / "original", at=FIRST + number)
        if number < 2:
            shutil.rmtree(source)
    (scratch / "mapping").write_text("root:root\n")
    return scratch


class Both:
    """Runs a command line with histfs and with rdiff-backup, each with a repository of its own."""

    def __init__(self, place: Path, rdiff_backup: Oracle) -> None:
        self._place = place
        self._programs: dict[str, Callable[[list[str]], int]] = {
            "theirs": lambda command: rdiff_backup.run(["--api-version=201", *command]).code,
            "ours": main,
        }

    def codes(self, general: list[str], action: str, special: list[str]) -> dict[str, int]:
        return {name: run(self._command(name, general, action, special)) for name, run in self._programs.items()}

    def _command(self, program: str, general: list[str], action: str, special: list[str]) -> list[str]:
        place = self._place / program
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(self._place / "original", place / "repository", symlinks=True)
        source = self._place / "source"
        (place / "list").write_text(f"{source}/a\n")
        statistics = sorted((place / "repository/rdiff-backup-data").glob("session_statistics.*"))[-1]
        meant = {
            "S": source,
            "R": place / "repository",
            "N": place / "new",
            "T": statistics,
            "L": place / "list",
            "M": self._place / "mapping",
        }
        speed = [] if any("fsync" in word for word in general) else ["--no-fsync"]
        words = [*speed, *general, *action.split(), *special, *ACTIONS[action].split()]
        return [
            str(meant.get(word, word)) if not word.startswith("S/") else f"{source}/{word[2:]}"
            for word in (str(word) for word in words)
        ]


def valued(name: str) -> list[str]:
    value = VALUES.get(name)
    return [name] if value is None else [name, value]


def needed(action: str, name: str) -> list[str]:
    """What a command line must have besides: an include is followed by an exclude, or it means nothing."""
    if action == "remove increments" and name != "--older-than":
        return ["--older-than=2B"]
    return ["--exclude-regexp", "nothing$"] if name.startswith("--include") else []


@pytest.mark.parametrize("action", ACTIONS)
def test_every_option_of_a_verb(
    action: str, place: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # as the oracle has it
    both = Both(place, rdiff_backup)
    different = {}
    options = options_of(rdiff_backup, action)
    assert options or action in ("info", "verify")
    for name in options:
        codes = both.codes([], action, [*valued(name), *needed(action, name)])
        if codes["ours"] != codes["theirs"]:
            different[name] = codes
    check(action, different)


@pytest.mark.parametrize("action", ["backup", "verify"])
def test_every_option_for_all_verbs(action: str, place: Path, rdiff_backup: Oracle) -> None:
    both = Both(place, rdiff_backup)
    different = {}
    options = options_of(rdiff_backup, "")
    assert len(options) >= 20
    for name in options:
        if name == "-v":
            continue  # takes its value in the same word, too
        codes = both.codes(valued(name), action, [])
        if codes["ours"] != codes["theirs"]:
            different[name] = codes
    check(action, different)


def check(action: str, different: dict[str, dict[str, int]]) -> None:
    """Fail unless it is known, and said, that the options make a difference with the verb."""
    rows = DOCUMENT.read_text()
    unknown = {
        name: codes
        for name, codes in different.items()
        if not any(row in rows and known.fullmatch(f"{action} {name}") for row, known in DIFFERENT.items())
    }
    assert unknown == {}


@pytest.mark.parametrize("verb", sorted(_verbs(make_parser())))
def test_every_verb_has_a_help(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capfd.readouterr().out.startswith(f"usage: histfs {verb}")
