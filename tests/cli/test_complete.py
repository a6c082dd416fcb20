"""Completion of command lines, and that shells accept the functions that ask for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from histfs.cli import VERBS, make_parser
from histfs.cli.complete import FILES, completions
from tests.cli.test_manual import VERBS as LEAVES
from tests.cli.test_manual import options_of
from tests.oracle import Oracle

FUNCTIONS = Path(__file__).parents[2] / "contrib" / "completion"


def words(line, **options):
    """What the last word of `line` could become."""
    *before, current = line.split(" ")
    return [each.word for each in completions(make_parser(), before, current, **options)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ba", ["backup"]),
        ("list ", ["files", "-h", "--help", "sessions"]),
        ("list s", ["sessions"]),
        ("info --", ["--help", "--json"]),
        ("list files --n", ["--null"]),
        ("info ", ["-h", "--help"]),
        ("--force list s", ["sessions"]),
        ("--verbosity ", [str(level) for level in range(10)]),
        ("--verb 5 list s", ["sessions"]),
        ("-v 5 list s", ["sessions"]),
        ("-v5 list s", ["sessions"]),
        ("--verbosity=", [f"--verbosity={level}" for level in range(10)]),
        ("--tempdir ", [FILES]),
        ("--tempdir /t", [FILES]),
        ("--current-time ", []),
        ("list files --at ", []),
        ("list files --at 3D /som", [FILES]),
        ("restore --at=3D repo /targ", [FILES]),
        ("restore repo target mo", []),
        ("restore -- --", [FILES]),
        ("restore -- -x -", [FILES]),
        ("calculate average --json a b c", [FILES]),
        ("nonsense lis", ["list"]),
        ("--nonsense lis", ["list"]),
        ("calculate --method average s", ["statistics"]),
    ],
)
def test_what_a_word_could_become(line, expected):
    assert [word for word in words(line) if word in expected or word == FILES or not expected] == expected
    if len(line.split()[-1]) > 1 and line[-1] != " ":
        assert words(line) == expected


def test_verbs_and_options_are_those_of_the_parser():
    assert set(words("")) >= {
        verb.__name__.rpartition(".")[2] for verb in VERBS if verb.__name__ != "histfs.cli.listing"
    }
    for verb, parser in LEAVES.items():
        found = {word for word in words(f"{verb} -") if word.startswith("-")}
        assert found == options_of(parser)


def test_options_that_are_there_already_are_left_out():
    assert "--at" not in words("list files --at=3D --", unique=True)
    assert "--json" in words("list files --at=3D --", unique=True)
    assert "--at" in words("list files --at=3D --")


def test_every_possibility_is_said_what_it_is(cli):
    lines = cli("complete", "--describe", "--", "histfs", "list", "").out.splitlines()
    assert "files\tshow which files there were" in lines
    assert all(line.count("\t") == 1 for line in lines)


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (("--cword", 2, "--", "histfs", "list", "se"), "sessions\n"),
        (("--cword", 2, "--", "histfs", "list", "se", "more"), "sessions\n"),
        (("--", "histfs", "list", "se"), "sessions\n"),
        (("--cword=-2", "--", "histfs", "ba", "x"), "backup\n"),
        (("--", "histfs", "restore", "--", "-x"), "::file::\n"),
        (("--", "histfs", "restore", "@x"), "::file::\n"),
    ],
)
def test_the_cursor_may_be_anywhere(cli, argv, out):
    ran = cli("complete", *argv)
    assert (ran.code, ran.out, ran.err) == (0, out, "")


@pytest.mark.parametrize("argv", [(), ("--cword=9", "--", "histfs"), ("--cword=0", "--", "histfs"), ("--cword=x",)])
def test_a_cursor_that_is_nowhere(cli, argv):
    assert cli("complete", *argv).code == 1


@pytest.mark.parametrize(
    "line",
    ["b", "res", "regr", "list fi", "remove in", "--verb", "--curr", "--tempd", "--verbosity ", "list nonsense x"],
)
def test_rdiff_backup_completes_the_same(cli, line, rdiff_backup: Oracle):
    def asked(program, run):
        typed = [program, *line.split(" ")]
        return run(["complete", "--cword", str(len(typed) - 1), "--", *typed])

    expected = asked("rdiff-backup", rdiff_backup.run).check().splitlines()
    found = asked("histfs", lambda argv: cli(*argv)).out.splitlines()
    assert found == expected if line != "list nonsense x" else not found or FILES in expected


@pytest.mark.parametrize(("shell", "name"), [("bash", "histfs.bash"), ("zsh", "_histfs"), ("fish", "histfs.fish")])
def test_shells_accept_their_functions(shell, name):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n", FUNCTIONS / name], check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("list se", "sessions"),
        ("restore --at", "--at"),
        ("list files a", "a file|a\\d"),
        ("restore --at 3D a", "a file|a\\d"),
    ],
)
def test_bash_completes(tmp_path, line, expected):
    """The function itself, called as bash calls it."""
    (tmp_path / "a file").touch()
    (tmp_path / "a\\d").touch()
    program = tmp_path / "histfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m histfs "$@"\n')
    program.chmod(0o755)
    script = f"""
        source {FUNCTIONS}/histfs.bash
        COMP_WORDS=(./histfs {line}) COMP_CWORD={len(line.split())}
        _histfs ./histfs
        (IFS='|'; echo "${{COMPREPLY[*]}}")
    """
    environment = dict(os.environ, PYTHONPATH=str(FUNCTIONS.parents[1]))
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60
    )
    assert ran.stderr == ""
    assert sorted(ran.stdout.rstrip("\n").split("|")) == sorted(expected.split("|"))
