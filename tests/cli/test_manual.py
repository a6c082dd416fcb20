"""The manual and the parser say the same: verbs, usage, options, examples and exit codes."""

import argparse
import re
import shlex
from datetime import UTC
from pathlib import Path

import pytest

from histfs.cli import make_parser
from histfs.cli.options import TIMES
from histfs.store.entry import Entry, Kind
from histfs.store.selection import Option, Selection, selected
from histfs.store.when import choose_session, parse_when

MANUAL = (Path(__file__).parents[2] / "docs" / "manual.md").read_text()
SECTIONS = {part.partition("\n")[0]: part.partition("\n")[2] for part in re.split(r"^## ", MANUAL, flags=re.M)[1:]}
HELP = {"-h", "--help"}


def subparsers(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def leaves(parser, name=""):
    """Each verb that takes no further word, with its parser."""
    below = list(subparsers(parser))
    if not below:
        yield name, parser
    for word, subparser in below:
        yield from leaves(subparser, f"{name} {word}".strip())


VERBS = dict(leaves(make_parser()))
SELECTION = SECTIONS["Selecting files"]


def is_selection(action):
    return action.dest == "selection"


def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings}


def documented_options(section):
    """The options that have an item in a list; their values stand behind the long spelling."""
    items = re.findall(r"^- ((?:`-[^`]*`(?:, )?)+):", section, flags=re.M)
    return {spelling for item in items for spelling in re.findall(r"`([^`]*)`", item)}


def spellings(parser):
    """The options of the verb itself."""
    return spelled(action for action in parser._actions if not is_selection(action))


def spelled(actions):
    for action in actions:
        for option in action.option_strings:
            yield f"{option} {action.metavar}" if action.metavar and option.startswith("--") else option


def text_of(markdown):
    """Words alone: the manual is wrapped and marked up otherwise than the help."""
    return " ".join(markdown.replace("`", "").split())


def test_sections():
    assert list(SECTIONS) == ["I have lost a file. What now?", "For every verb", "Selecting files", *VERBS]
    for verb in VERBS:
        assert f"[`{verb}`](#{verb.replace(' ', '-')})" in MANUAL


@pytest.mark.parametrize("verb", VERBS)
def test_usage(verb):
    usage = text_of(VERBS[verb].format_usage().removeprefix("usage: ").replace("[-h]", ""))
    written = re.match(r"\n```\n(.*?)\n```\n", SECTIONS[verb], flags=re.S)
    assert written
    assert text_of(written[1]) == usage


@pytest.mark.parametrize("verb", VERBS)
def test_options(verb):
    assert documented_options(SECTIONS[verb]) == set(spellings(VERBS[verb])) - HELP


@pytest.mark.parametrize("verb", VERBS)
def test_options_that_select_files_are_the_same_everywhere(verb):
    options = set(spelled(filter(is_selection, VERBS[verb]._actions)))
    assert bool(options) == ("](#selecting-files)" in SECTIONS[verb]) == ("[SELECTION...]" in SECTIONS[verb])
    if options:
        rows = re.findall(r"^\| (`--.*?) \|", SELECTION, flags=re.M)
        assert {spelling for row in rows for spelling in re.findall(r"`([^`]*)`", row)} == options


def listed_paths(cell):
    return re.findall(r"`([^`]*)`", cell)


@pytest.mark.parametrize("row", re.findall(r"^\| (`.*`) \| (`.*`) \| (`.*`) \| (`.*`) \|$", SELECTION, flags=re.M))
def test_the_examples_of_patterns_are_right(row):
    [root], [pattern], matching, others = map(listed_paths, row)
    for path in matching + others:
        directories = [path[:at] for at, char in enumerate(path) if char == "/" and at < len(path) - 1]
        entries = [Entry(b"", Kind.DIRECTORY), *(Entry(above.encode(), Kind.DIRECTORY) for above in directories)]
        kind = Kind.DIRECTORY if path.endswith("/") else Kind.REGULAR
        entries.append(Entry(path.rstrip("/").encode(), kind))
        selection = Selection.parse([Option("exclude", pattern.encode())], root.encode())
        assert (entries[-1] in list(selected(entries, selection))) == (path in others), path


def test_options_before_the_verb():
    assert documented_options(SECTIONS["For every verb"]) == set(spellings(make_parser()))
    usage = text_of(make_parser().format_usage().removeprefix("usage: "))
    assert f"\n```\n{usage}\n```\n" in MANUAL


@pytest.mark.parametrize("verb", VERBS)
def test_exit_codes(verb):
    epilog = VERBS[verb].epilog
    promised = re.findall(r"^  (\d)  (.*)$", epilog[epilog.index("exit codes") :], flags=re.M)
    assert [code for code, _ in promised][:2] == ["0", "1"]
    documented = re.findall(r"^\| (\d) \| (.*) \|$", SECTIONS[verb], flags=re.M)
    assert [(code, text_of(meaning)) for code, meaning in documented] == promised


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_those_of_the_help_and_can_be_parsed(verb):
    epilog = VERBS[verb].epilog
    examples = re.findall(r"^  (histfs .*?)(?:   .*)?$", epilog[epilog.index("examples:") :], flags=re.M)
    assert examples
    for example in examples:
        assert re.search(rf"^{re.escape(example)}( +#.*)?$", SECTIONS[verb], flags=re.M), example
    for line in re.findall(r"^histfs [^\[\n]*$", SECTIONS[verb], flags=re.M):
        make_parser().parse_args(shlex.split(line.partition("|")[0], comments=True)[1:])


def test_every_option_that_is_mentioned_exists():
    known = {option for parser in [make_parser(), *VERBS.values()] for option in options_of(parser)} | {"--qu"}
    assert set(re.findall(r"--[a-z][a-z-]*", MANUAL)) <= known


def times_in_the_manual():
    table = SECTIONS["For every verb"].partition("### Times")[2].partition("\n\nThe newest")[0]
    rows = re.findall(r"^\| (`.*`) \| ", table, flags=re.M)
    return [time for row in rows for time in re.findall(r"`([^`]*)`", row)]


def times_in_the_help():
    rows = re.findall(r"^  (\S.*?)   ", TIMES, flags=re.M)
    return [time for row in rows for time in row.split(", ")]


@pytest.mark.parametrize("time", sorted({*times_in_the_manual(), *times_in_the_help()}))
def test_every_way_to_write_a_time_is_understood(time):
    sessions = range(1_700_000_000, 1_720_000_000, 60)
    assert choose_session(parse_when(time, now=1_720_000_000, times=sessions, zone=UTC), sessions)
    assert len(times_in_the_manual()) > 15
    assert len(times_in_the_help()) > 11
