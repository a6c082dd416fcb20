"""Writes the manual pages of histfs, one for the program and one for each verb, from the parser of the command line.

    python3 contrib/manpages.py DIRECTORY

The pages are in the language of man(7). What is laid out by hand in the help (examples, tables) stays as it is.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from histfs import __version__
from histfs.cli import make_parser


def pages() -> dict[str, str]:
    """The text of each page by the name of its file."""
    parser = make_parser()
    verbs = dict(_leaves(parser, "histfs", ""))
    names = [name for name in verbs if name != "histfs"]
    written = {f"{name}.1": _page(name, verb, summary, ["histfs"]) for name, (verb, summary) in verbs.items()}
    summary = "your backups, as a folder of folders by time"
    return {"histfs.1": _page("histfs", parser, summary, names, verbs)} | written


def _leaves(
    parser: argparse.ArgumentParser, name: str, summary: str
) -> Iterator[tuple[str, tuple[argparse.ArgumentParser, str]]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for choice in action._choices_actions:
            yield from _leaves(action.choices[choice.dest], f"{name}-{choice.dest}", choice.help or "")
    if not below:
        yield name, (parser, summary)


def _page(
    name: str,
    parser: argparse.ArgumentParser,
    summary: str,
    related: list[str],
    verbs: dict[str, tuple[argparse.ArgumentParser, str]] | None = None,
) -> str:
    lines = [
        f'.TH {name.upper()} 1 "" "histfs {__version__}" "histfs"',
        *_section("name"),
        rf"{_text(name)} \- {_text(summary)}",
        *_section("synopsis"),
        _text(" ".join(parser.format_usage().removeprefix("usage: ").split())),
        *_section("description"),
        *_prose(parser.description or ""),
    ]
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if shown and not any(isinstance(action, argparse._SubParsersAction) for action in shown):
            lines += _section(group.title or "options")
            for action in shown:
                lines += [".TP", _text(_spelling(action)), _text(_help(parser, action))]
    if verbs:
        lines += _section("verbs")
        for verb, (_, meaning) in verbs.items():
            lines += [".TP", rf"\fB{_text(verb.replace('-', ' '))}\fR", _text(meaning)]
    lines += _blocks(parser.epilog or "")
    see = ", ".join(rf"\fB{_text(each)}\fR(1)" for each in related)
    return "\n".join([*lines, *_section("see also"), see, ""])


def _section(title: str) -> list[str]:
    return [f'.SH "{_text(title.upper())}"']


def _spelling(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else ""
    if not action.option_strings:
        return value or action.dest
    return ", ".join(action.option_strings) + (f" {value}" if value and action.nargs != 0 else "")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of one argument, with what it fills in, in one line."""
    formatter = parser._get_formatter()
    return " ".join(formatter._expand_help(action).split()) if action.help else "see the manual of histfs"


def _prose(text: str) -> Iterator[str]:
    """Paragraphs to be filled anew, but for what is indented."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if any(line.startswith(" ") for line in paragraph.splitlines()):
            yield from _as_it_is(paragraph.splitlines())
        else:
            yield _text(" ".join(paragraph.split()))


def _blocks(epilog: str) -> Iterator[str]:
    """What stands behind the options: blocks with a title before a colon, and paragraphs."""
    for block in filter(None, epilog.split("\n\n")):
        title, _, rest = block.partition("\n")
        if rest.startswith("  ") and title.endswith(":"):
            yield from _section(title.rstrip(":"))
            yield from _as_it_is(rest.splitlines())
        else:
            yield ".PP"
            yield from _prose(block)


def _as_it_is(lines: list[str]) -> list[str]:
    return [".nf", *map(_text, lines), ".fi"]


def _text(text: str) -> str:
    """`text` without a meaning for troff: no escapes, no requests, plain dashes and quotes."""
    for char, escape in {
        "\\": r"\e",
        "-": r"\-",
        "'": r"\(aq",
        "`": r"\(ga",
        '"': r"\(dq",
        "^": r"\(ha",
        "~": r"\(ti",
    }.items():
        text = text.replace(char, escape)
    return rf"\&{text}" if text.startswith(".") else text


if __name__ == "__main__":
    [directory] = map(Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)
