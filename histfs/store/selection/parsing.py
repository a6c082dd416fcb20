"""From the options of a command line to the stages of a selection."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from histfs.errors import UsageError, printable
from histfs.store.entry import Kind
from histfs.store.selection.globs import Pattern
from histfs.store.selection.patterns import PlainPath, parse_pattern, path_in
from histfs.store.selection.stages import (
    Caches,
    FileList,
    Globs,
    IfPresent,
    Kinds,
    OtherFilesystems,
    Paths,
    Regexp,
    Rule,
    Sizes,
    Stage,
)

_DEVICES = frozenset({Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE})
KINDS = {
    "device-files": _DEVICES,
    "fifos": frozenset({Kind.FIFO}),
    "sockets": frozenset({Kind.SOCKET}),
    "symbolic-links": frozenset({Kind.SYMLINK}),
    "special-files": _DEVICES | {Kind.FIFO, Kind.SOCKET, Kind.SYMLINK},
}


_MOST_DIGITS = 19  # of a size; no file has more bytes
_SHOWN = 100  # bytes of what is no size in a message
_PATTERNS = ("", "globbing-filelist", "globbing-filelist-stdin")
_PatternRule = tuple[Rule, bool, Pattern | PlainPath]  # the bool: whether it includes


class Option(NamedTuple):
    """One option that selects files, as it was typed."""

    name: str  # without the dashes, unshortened
    argument: bytes = b""
    lines: tuple[bytes, ...] = ()  # of a list, without their ends

    @property
    def is_include(self) -> bool:
        return self.name.startswith("include-") or self.name == "include"

    @property
    def subject(self) -> str:
        """What is left of the name without "include" or "exclude"; "" for a pattern."""
        return self.name.removeprefix("include").removeprefix("exclude").removeprefix("-")

    @property
    def meaning(self) -> tuple[object, ...]:
        """What decides: of a list what is in it, wherever it lies."""
        return self.name, self.lines if "filelist" in self.name else self.argument

    @property
    def rule(self) -> Rule:
        return Rule(f"--{self.name}", self.argument)


class Parsed(NamedTuple):
    stages: list[Stage]
    ignored: list[Rule]  # lines of lists that do not lie in the tree


def split_lines(content: bytes, *, null_separated: bool) -> tuple[bytes, ...]:
    """The lines of a list of files or patterns."""
    if null_separated:
        return tuple(content.split(b"\0"))
    return tuple(line.removesuffix(b"\r") for line in content.split(b"\n"))


def parse_options(options: Sequence[Option], base: bytes) -> Parsed:
    """The rules that `options` are, in their order, for a tree whose root is at `base`, which is normalized.

    Raises UsageError for what makes no sense, or could have no effect.
    """
    parsed = Parsed([], [])
    run: list[_PatternRule] = []
    last: tuple[Rule, bool] | None = None
    for option in options:
        if option.subject in _PATTERNS:
            patterns = [(rule, is_include, parse_pattern(text, base)) for rule, is_include, text in _patterns(option)]
            run += patterns
            last = patterns[-1][:2] if patterns else last
            continue
        _add_run(parsed.stages, run, base)
        run = []
        is_after_include = any(stage.includes for stage in parsed.stages)
        parsed.stages.append(_parse_other(option, base, parsed.ignored, is_after_include=is_after_include))
        last = option.rule, option.is_include
    _add_run(parsed.stages, run, base)
    if last is not None and last[1]:
        raise UsageError(
            f"the last rule, {last[0]}, only includes, and what no rule excludes is included anyway",
            advice="say what is to be left out after it, for instance with --exclude '**'",
        )
    return parsed


def _patterns(option: Option) -> Iterator[tuple[Rule, bool, bytes]]:
    """Each pattern of the option with its rule, and whether it includes."""
    if not option.subject:
        yield option.rule, option.is_include, option.argument
    yield from _lines(option)


def _lines(option: Option) -> Iterator[tuple[Rule, bool, bytes]]:
    """The lines of a list that are not empty; "+ " and "- " say what a line is, whatever the list is.

    Raises UsageError for a line that says only this: as a path it would be the root.
    """
    for number, line in enumerate(option.lines, 1):
        is_include, text = option.is_include, line
        if line[:2] in (b"+ ", b"- "):
            is_include, text = line[:1] == b"+", line[2:]
        rule = option.rule._replace(line=number, text=line)
        if line and not text:
            raise UsageError(f"{rule}: it names nothing", advice="write a name after it, or take the line away")
        if line:
            yield rule, is_include, text


def _add_run(stages: list[Stage], run: Sequence[_PatternRule], base: bytes) -> None:
    """Add stages for patterns that stand side by side."""
    for _, group in groupby(run, key=lambda rule: type(rule[2])):
        rules = list(group)
        globs = [(rule, is_include, glob) for rule, is_include, glob in rules if isinstance(glob, Pattern)]
        plain = [(rule, is_include, path.path) for rule, is_include, path in rules if isinstance(path, PlainPath)]
        if globs:
            slot = sum(isinstance(stage, Globs) for stage in stages)
            stages.append(Globs(globs, base, slot))
        else:
            stages.append(Paths(plain))


def _parse_other(option: Option, base: bytes, ignored: list[Rule], *, is_after_include: bool) -> Stage:
    rule, is_include, subject = option.rule, option.is_include, option.subject
    if subject in ("filelist", "filelist-stdin"):
        return FileList(list(_paths(option, base, ignored, may_exclude_root=is_after_include)))
    if subject in KINDS:
        return Kinds(rule, is_include, KINDS[subject])
    makers: dict[str, Callable[[], Stage]] = {
        "regexp": lambda: Regexp(rule, is_include, _parse_regexp(option.argument), base),
        "if-present": lambda: IfPresent(rule, is_include, _parse_name(option.argument)),
        "other-filesystems": lambda: OtherFilesystems(rule, is_include),
        "caches": lambda: Caches(rule),
        "max-file-size": lambda: Sizes(rule, most_bytes=_parse_size(option.argument)),
        "min-file-size": lambda: Sizes(rule, least_bytes=_parse_size(option.argument)),
    }
    return makers[subject]()


def _paths(
    option: Option, base: bytes, ignored: list[Rule], *, may_exclude_root: bool
) -> Iterator[tuple[Rule, bool, bytes]]:
    """The paths of a list of files. The root makes sense only where a rule before has included something."""
    for rule, is_include, text in _lines(option):
        path = path_in(text, base)
        if path is None:
            ignored.append(rule)
        elif not path and not is_include and not may_exclude_root:
            raise UsageError(f"{rule}: it excludes the whole tree", advice="take the line away")
        else:
            yield rule, is_include, path


def _parse_regexp(text: bytes) -> re.Pattern[bytes]:
    if not text:
        raise UsageError("a regular expression is empty, and is found in every path")
    try:
        with warnings.catch_warnings():
            # Of what another Python may read in another way, as `[[`: rdiff-backup reads it as this one does.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise UsageError(f"the regular expression {printable(text)} makes no sense: {exc}") from None


def _parse_name(text: bytes) -> bytes:
    names = text.split(b"/")
    if b"" in names or b"." in names or b".." in names:
        raise UsageError(f"{printable(text) if text else 'an empty name'} is not the name of something in a directory")
    return text


def _parse_size(text: bytes) -> int:
    digits = text.lstrip(b"0")
    if not (digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise UsageError(f"a size is a whole number of bytes that is more than 0, not {printable(text[:_SHOWN])}")
    return int(digits)
