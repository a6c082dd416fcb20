"""How far long work is: when it is shown, what it says, and that nothing depends on it."""

import io
import json
import os
import pty
import re
import subprocess
import sys

import pytest

from histfs.cli import main
from histfs.cli import progress as module
from histfs.cli.output import Output
from histfs.cli.progress import Expected, progress
from histfs.store import copying, growing
from tests.cli.test_verbs import backed_up
from tests.trees import Dir, File, build


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def output_at(verbosity):
    output = Output()
    output.verbosity = verbosity
    return output


@pytest.mark.parametrize(
    ("verbosity", "wanted", "is_shown"),
    [(3, None, False), (4, None, True), (3, True, True), (2, True, False), (9, False, False), (0, None, False)],
)
def test_lines_are_for_who_wants_them(verbosity, wanted, is_shown):
    with progress(output_at(verbosity), "verifying", wanted, Expected()) as step:
        assert (step is not None) == is_shown


def test_lines_come_now_and_then(clock, capsys):
    with progress(output_at(4), "verifying", None, Expected(files=200, size_bytes=400 * 1024)) as step:
        for _ in range(100):
            clock.now += 1
            step(1024)
    assert capsys.readouterr().err.splitlines() == [
        "histfs: note: verifying: 10 files, 10.0 KB, 1.00 KB/s, 4%, 4 minutes left",
        "histfs: note: verifying: 40 files, 40.0 KB, 1.00 KB/s, 15%, 3 minutes left",
        "histfs: note: verifying: 70 files, 70.0 KB, 1.00 KB/s, 26%, 3 minutes left",
        "histfs: note: verifying: 100 files, 100 KB, 1.00 KB/s, 38%, 2 minutes left",
    ]


def test_without_a_session_before_nothing_is_foretold(clock, capsys):
    with progress(output_at(3), "backing up", True, Expected()) as step:
        clock.now += 10
        step(5 << 20)
    assert capsys.readouterr().err == "histfs: note: backing up: 1 file, 5.00 MB, 512 KB/s\n"


def test_a_large_file_moves_before_it_is_done(clock, capsys):
    with progress(output_at(3), "backing up", True, Expected(files=1, size_bytes=400 << 20)) as step:
        for _ in range(3):
            clock.now += 10
            step.block(10 << 20)
            clock.now += 20
            step.block(90 << 20)
        step(400 << 20)  # some of it without being told
        clock.now += 30
        step(0)
    assert capsys.readouterr().err.splitlines() == [
        "histfs: note: backing up: 0 files, 10.0 MB, 1.00 MB/s, 1%, 13 minutes left",
        "histfs: note: backing up: 0 files, 110 MB, 2.75 MB/s, 14%, 4 minutes left",
        "histfs: note: backing up: 0 files, 210 MB, 3.00 MB/s, 26%, 3 minutes left",
        "histfs: note: backing up: 2 files, 400 MB, 3.33 MB/s, 100%, 0 seconds left",
    ]


def test_what_has_no_bytes_is_counted(clock, capsys):
    with progress(output_at(3), "removing", True, Expected(files=100)) as step:
        for _ in range(20):
            clock.now += 0.5
            step(0)
    assert capsys.readouterr().err == "histfs: note: removing: 20 files, 2/s, 20%, 40 seconds left\n"


def test_more_than_there_was_is_no_more_than_all(clock, capsys):
    with progress(output_at(3), "backing up", True, Expected(files=1, size_bytes=1)) as step:
        clock.now += 10
        for _ in range(3):
            step(7)
            clock.now += 30
    assert capsys.readouterr().err.count("100%, 0 seconds left") == 3


DRAWING_AT_ONCE = """
import sys
from histfs.cli import main, progress

progress._FIRST_DRAWN_AFTER_S = progress._DRAWN_EVERY_S = 0.0
code = main(sys.argv[1:])
open("code", "w").write(f"{code} {'rich' in sys.modules}")
"""


def on_terminal(place, *argv, hang_up=False, results=False):
    """Runs the program with a terminal for standard error, and gives what is seen there; the code is in a file."""
    ours, theirs = pty.openpty()
    environment = dict(os.environ, TERM="xterm", COLUMNS="120")
    command = [sys.executable, "-c", DRAWING_AT_ONCE, *map(str, argv)]
    process = subprocess.Popen(
        command, cwd=place, stdout=theirs if results else subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    if hang_up:
        os.close(ours)
        process.communicate(timeout=60)
        return ""
    seen = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the last one has closed it
            break
        seen += block
    process.communicate(timeout=60)
    os.close(ours)
    return seen.decode()


@pytest.fixture
def place(tmp_path):
    build(tmp_path / "source", Dir({str(number): File(b"text") for number in range(20)}))
    return tmp_path


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("backing up", "backup source repo"),
        ("verifying", "verify repo"),
        ("restoring", "restore repo target"),
        ("comparing", "restore --dry-run repo target"),
        ("comparing", "compare source repo"),
        ("comparing", "compare --method=hash source repo"),
        ("comparing", "compare --method=full source repo"),
    ],
)
def test_a_line_on_a_terminal(place, word, command):
    on_terminal(place, "-q", "--current-time=1000000000", "backup", "source", "repo")
    seen = on_terminal(place, *command.split())
    assert word in seen
    assert "21 files, 80 bytes" in seen
    assert "100%" in seen
    assert (place / "code").read_text() == "0 True"


def test_a_line_while_a_session_is_undone(place):
    on_terminal(place, "-q", "--current-time=1000000000", "backup", "source", "repo")
    (place / "source" / "0").write_text("another text")
    on_terminal(place, "-q", "--current-time=1000000001", "backup", "source", "repo")
    seen = on_terminal(place, "--force", "regress", "repo")
    assert "undoing" in seen
    assert "21 files, 80 bytes" in seen
    assert (place / "code").read_text() == "0 True"


@pytest.mark.parametrize("command", ["remove increments --older-than=0B repo", "remove file repo/0"])
def test_a_line_while_something_is_removed(place, command):
    on_terminal(place, "-q", "--current-time=1000000000", "backup", "source", "repo")
    (place / "source" / "0").write_text("another text")
    on_terminal(place, "-q", "--current-time=1000000001", "backup", "source", "repo")
    seen = on_terminal(place, *command.split())
    assert ("removing" if "increments" in command else "reading lists") in seen
    assert re.search(r"\b\d+ files, ", seen)
    assert (place / "code").read_text() == "0 True"


def test_blocks_of_a_large_file_are_told_while_a_session_is_undone(place, capfd, monkeypatch):
    for time in (1_000_000_000, 1_000_000_001):
        (place / "source" / "large").write_bytes(os.urandom(2 << 20))
        on_terminal(place, "-q", f"--current-time={time}", "backup", "source", "repo")
    monkeypatch.setattr(module, "_FIRST_SAID_AFTER_S", 0.0)
    monkeypatch.setattr(module, "_SAID_EVERY_S", 0.0)
    assert main(["--progress", "--force", "regress", str(place / "repo")]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "undoing" in line]
    assert len({line.split(",")[1] for line in lines}) >= 8


@pytest.mark.parametrize("verb", ["backup", "restore", "restore again", "verify", "compare"])
def test_blocks_of_a_large_file_are_told(place, verb, capfd, monkeypatch):
    (place / "source" / "large").write_bytes(os.urandom(2 << 20))
    on_terminal(place, "-q", "--current-time=1000000000", "backup", "source", "repo")
    argv = {
        "backup": [place / "source", place / "other"],
        "restore": [place / "repo", place / "target"],
        "restore again": ["--merge", "--checksum", place / "repo", place / "source"],
        "verify": [place / "repo"],
        "compare": ["--method=full", place / "source", place / "repo"],
    }[verb]
    monkeypatch.setattr(copying, "MAX_BYTES", 1 << 20)  # smaller ones are copied at once
    monkeypatch.setattr(growing, "CHUNK_BYTES", 256 << 10)
    monkeypatch.setattr(module, "_FIRST_SAID_AFTER_S", 0.0)
    monkeypatch.setattr(module, "_SAID_EVERY_S", 0.0)
    assert main(["--progress", verb.split()[0], *map(str, argv)]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "21 files" in line or "20 files" in line]
    assert len({line.split(",")[1] for line in lines}) >= 8  # blocks of 256 KiB


def test_results_do_not_go_through_the_line(place):
    """Both streams are the same terminal: a result stands on a line of its own."""
    on_terminal(place, "-q", "--current-time=1000000000", "backup", "source", "repo")
    for name in ("3", "7"):
        (place / "source" / name).write_text("another text")
    seen = on_terminal(place, "compare", "source", "repo", results=True)
    shown = re.sub(r"[^\n]*(?:\x1b\[2K|\r)", "", seen.replace("\r\n", "\n"))
    assert {"changed: 3", "changed: 7"} <= {re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", line) for line in shown.splitlines()}
    assert "comparing" in seen


def test_nothing_with_quiet(place):
    assert on_terminal(place, "--quiet", "backup", "source", "repo") == ""
    assert (place / "code").read_text() == "0 False"


def test_messages_stand_above_the_line(place):
    (place / "source" / "0").rename(place / "source" / "new\x1b")
    seen = on_terminal(place, "-v5", "backup", "source", "repo")
    assert "new: new\\x1b\r\n" in seen


def test_a_terminal_that_goes_hurts_nothing(place):
    on_terminal(place, "backup", "source", "repo", hang_up=True)
    assert (place / "code").read_text().startswith("0 ")


def test_each_file_is_named_for_who_wants_to_know(place, capfd):
    argv = ["-v5", "--current-time=1000000000", "backup", str(place / "source"), str(place / "repo")]
    assert main(argv) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == ["new: .", "new: 0", "new: 1"]
    (place / "source" / "0").unlink()
    (place / "source" / "1").write_text("another text")
    argv[1] = "--current-time=1000000001"
    assert main([*argv[:3], "--json", *argv[3:]]) == 0
    said = capfd.readouterr()
    assert {"deleted: 0", "changed: 1"} <= set(said.err.splitlines())
    assert json.loads(said.out)["statistics"]["deleted_files"] == 1


class TestDocuments:
    def test_of_a_session(self, cli):
        cli.outcomes["backup"] = backed_up(source_errors=1)
        ran = cli("backup", "--json", "src", "repo")
        assert ran.code == 4
        told = json.loads(ran.out)
        assert (told["source_errors"], told["source_warnings"], told["regressed"]) == (1, 0, False)
        assert told["statistics"]["source_files"] == 7
        assert told["statistics"]["time"].startswith("2024-05-01T")

    def test_of_nothing_to_undo(self, cli):
        cli.outcomes["regress"] = None
        assert json.loads(cli("regress", "--json", "repo").out) == {"was_unfinished": False}


def test_no_terminal_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress(output_at(3), "verifying", None, Expected()) as step:
        assert step is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(output_at(3), "verifying", None, Expected()) as step:
        assert step is None
