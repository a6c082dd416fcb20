"""The manual pages have what the parser has, and man takes them."""

import argparse
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from histfs.cli import make_parser
from tests.cli.test_manual import VERBS, options_of

PAGES = runpy.run_path(str(Path(__file__).parents[2] / "contrib" / "manpages.py"))["pages"]()


def page_of(verb):
    return PAGES["-".join(["histfs", *verb.split()]) + ".1"]


def test_a_page_for_each_verb_and_one_for_all():
    assert len(PAGES) == len(VERBS) + 1
    for verb in VERBS:
        assert rf"\fB{verb}\fR" in PAGES["histfs.1"].replace(r"\fBhistfs ", r"\fB")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_option_has_its_paragraph(verb):
    parser = VERBS.get(verb, make_parser())
    shown = {
        option for action in parser._actions if action.help != argparse.SUPPRESS for option in action.option_strings
    }
    assert shown <= options_of(parser)
    tagged = " ".join(re.findall(r"^\.TP\n(.*)", page_of(verb), flags=re.M)).replace("\\-", "-")
    assert shown == set(re.findall(r"(?<!\S)--?[a-zA-Z][a-z-]*", tagged))
    assert '.SH "EXIT CODES' in page_of(verb)


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
@pytest.mark.parametrize("name", ["histfs.1", "histfs-restore.1", "histfs-list-files.1"])
def test_man_shows_them(tmp_path, name):
    (tmp_path / name).write_text(PAGES[name])
    command = ["man", "--warnings", "--encoding=utf8", "--local-file", tmp_path / name]
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "MANWIDTH": "100",
        "MANPAGER": "cat",
        "MANROFFOPT": "-c",
    }
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "SYNOPSIS" in ran.stdout
    assert "`histfs " in ran.stdout
