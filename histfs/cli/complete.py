"""`histfs complete -- WORD...`: what could come next on a command line, for shells. All is taken from the parser."""

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from histfs.cli import options
from histfs.cli.output import Output
from histfs.errors import UsageError

DESCRIPTION = """\
Print what the word under the cursor could become, one possibility a line: for
the completion of shells. The words are those of the whole command line, the
name of the program first. A last line ::file:: asks for names of files as well.

The functions for bash, zsh and fish, which call this, are installed where these
shells look for them; see contrib/completion."""

EPILOG = """\
examples:
  histfs complete --cword 2 -- histfs list se
  histfs complete --describe -- histfs restore --at

exit codes:
  0  the possibilities were printed, of which there may be none
  1  the cursor is beyond the words"""

FILES = "::file::"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "complete", "complete command lines, for shells", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument(
        "--cword", metavar="NUMBER", type=int, default=-1, help="where the cursor is (default: -1, the last word)"
    )
    parser.add_argument(
        "--unique",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="leave out options that are there already",
    )
    parser.add_argument("--describe", action="store_true", help="behind each, a tab and what it is")
    parser.add_argument("words", metavar="WORD", nargs="*", help="the words of the command line, behind a --")
    parser.set_defaults(run=run, if_stopped="nothing was completed")


def run(arguments: argparse.Namespace, output: Output) -> int:
    words = arguments.words
    position = arguments.cword + len(words) if arguments.cword < 0 else arguments.cword
    if not 0 < position <= len(words):
        raise UsageError(f"there is no word {arguments.cword} to complete among {len(words)}")
    before, current = words[1:position], "".join(words[position : position + 1])
    found = completions(arguments.parser, before, current, unique=arguments.unique)
    output.lines(f"{each.word}\t{each.meaning}" if arguments.describe else each.word for each in found)
    return 0


class Completion(NamedTuple):
    """What a word could become, and what that is."""

    word: str
    meaning: str


class _State(NamedTuple):
    """Where the words before the cursor lead to."""

    parser: argparse.ArgumentParser
    used: frozenset[str]  # the options that are there, in all their spellings
    value_of: argparse.Action | None  # the option whose value comes next
    names: int  # how many words without a dash
    only_names: bool  # a "--" is there


def completions(
    parser: argparse.ArgumentParser, before: Sequence[str], current: str, *, unique: bool = False
) -> list[Completion]:
    """Everything that `current` could become behind the words `before`; in the order of letters, files at the end."""
    state = _State(parser, frozenset(), None, 0, False)
    for word in before:
        state = _after(state, word)
    files = [Completion(FILES, "")] if _wants_file(state, current) else []
    found = {each for each in _possible(state, current, unique=unique) if each.word.startswith(current)}
    return sorted(found, key=lambda each: (each.word.lstrip("-"), each)) + files


def _after(state: _State, word: str) -> _State:
    if state.value_of is not None:
        return state._replace(value_of=None)
    if word == "--" and not state.only_names:
        return state._replace(only_names=True)
    if word.startswith("-") and len(word) > 1 and not state.only_names:
        option = _option(state.parser, word)
        if option is None:
            return state
        needs_value = option.nargs != 0 and "=" not in word and (word.startswith("--") or len(word) == 2)
        return state._replace(used=state.used.union(option.option_strings), value_of=option if needs_value else None)
    below = _verbs(state.parser).get(word)
    if below is not None:
        return _State(below, frozenset(), None, 0, False)
    return state._replace(names=state.names + 1)


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    """The option that `word` is, also where it is shortened or its value stands in the same word."""
    name = word.partition("=")[0]
    spelt = [(spelling, action) for action in parser._actions for spelling in action.option_strings]
    exact = [action for spelling, action in spelt if spelling == name]
    if not name.startswith("--"):
        exact = exact or [action for spelling, action in spelt if spelling == name[:2]]
    begun = {id(action): action for spelling, action in spelt if spelling.startswith(name)}
    if exact or len(begun) == 1:
        return [*exact, *begun.values()][0]
    return None


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _possible(state: _State, current: str, *, unique: bool) -> Iterator[Completion]:
    if state.value_of is not None:
        yield from (Completion(str(choice), "") for choice in state.value_of.choices or ())
        return
    option = _option(state.parser, current) if current.startswith("--") and "=" in current else None
    if option is not None:
        name = current.partition("=")[0]
        yield from (Completion(f"{name}={choice}", "") for choice in option.choices or ())
        return
    if not state.only_names:
        for action in state.parser._actions:
            meaning = action.help if action.help and action.help != argparse.SUPPRESS else ""
            for spelling in action.option_strings:
                if not (unique and spelling in state.used) and action.help != argparse.SUPPRESS:
                    yield Completion(spelling, meaning.partition("%(")[0])
    for action in state.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from (Completion(verb.dest, verb.help or "") for verb in action._choices_actions)


def _wants_file(state: _State, current: str) -> bool:
    if state.value_of is not None:
        return state.value_of.type is options.path
    if current.startswith("-") and not state.only_names:
        return False
    paths = [action for action in state.parser._actions if not action.option_strings and action.type is options.path]
    return state.names < len(paths) or any(action.nargs is not None for action in paths)
