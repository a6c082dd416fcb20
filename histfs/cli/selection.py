"""The options that say which files are meant, for every verb that takes them.

    selection.add_to(parser)                                        # in add_to, after the verb's own options
    rules = selection.read(arguments, arguments.source, output)     # in run; None if none was given

The order of all of them counts, so they go into one list. The second argument is the root that patterns may begin with:
what the person typed for the tree that is selected from (SRC, or for `restore` TARGET).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histfs.cli.output import Output
from histfs.errors import StorageError, UsageError

if TYPE_CHECKING:
    from histfs.store.selection import Option, Selection

TITLE = "selection of files"
DESCRIPTION = """\
Rules, in this order: the first one that includes or excludes a file decides
about it. What no rule decides is included. `docs/manual.md` tells all."""

# What is there twice, to include and to exclude: the rest of the name, the argument, what it means.
_BOTH = (
    (
        "",
        "PATTERN",
        "what PATTERN matches: a name like '*.o', a path from SRC on like './tmp', or one that begins with SRC",
    ),
    ("-globbing-filelist", "FILE", "patterns, one a line; '+ ' or '- ' before one includes or excludes"),
    ("-globbing-filelist-stdin", None, "the same from standard input"),
    ("-filelist", "FILE", "paths, one a line; '+ ' or '- ' before one includes or excludes"),
    ("-filelist-stdin", None, "the same from standard input"),
    ("-regexp", "REGEXP", "paths, with SRC, in which the regular expression is found"),
    ("-if-present", "NAME", "directories with NAME in them"),
    ("-symbolic-links", None, "symbolic links"),
    ("-device-files", None, "devices"),
    ("-fifos", None, "fifos"),
    ("-sockets", None, "sockets"),
    ("-special-files", None, "all of these four"),
    ("-other-filesystems", None, "what is on another file system than SRC"),
)
_ONCE = (
    ("exclude-caches", None, "directories with a CACHEDIR.TAG"),
    ("max-file-size", "BYTES", "exclude regular files that are larger"),
    ("min-file-size", "BYTES", "exclude regular files that are smaller"),
)
_MAX_NAMED = 5  # lines of lists that are ignored


class _Append(argparse.Action):
    """Adds the option, as it is spelled out, with its argument to the list of all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        assert option_string is not None
        argument = os.fsencode(values) if isinstance(values, str) else b""
        given = (option_string.removeprefix("--"), argument)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), given])


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the options; they end in `arguments.selection`."""
    group = parser.add_argument_group(TITLE, DESCRIPTION)
    both = (((f"--include{name}", f"--exclude{name}"), metavar, text) for name, metavar, text in _BOTH)
    one = (((f"--{name}",), metavar, text) for name, metavar, text in _ONCE)
    for names, metavar, text in (*both, *one):
        nargs = 0 if metavar is None else None
        group.add_argument(
            *names, action=_Append, nargs=nargs, default=[], dest="selection", metavar=metavar, help=text
        )


def read(arguments: argparse.Namespace, root: Path, output: Output) -> "Selection | None":
    """The selection that was asked for, with its lists read; None if everything is meant.

    Raises UsageError, StorageError.
    """
    if not arguments.selection:
        return None
    from histfs.store.selection import Selection

    if sum(name.endswith("-stdin") for name, _ in arguments.selection) > 1:
        raise UsageError("standard input can be read only once", advice="name files for the other lists")
    options = [_option(name, argument, arguments.null_separator) for name, argument in arguments.selection]
    selection = Selection.parse(options, os.fsencode(root))
    for rule in selection.ignored[:_MAX_NAMED]:
        output.warn(f"{rule} is not in the tree that is selected from, and is ignored")
    if len(selection.ignored) > _MAX_NAMED:
        output.warn(f"{len(selection.ignored) - _MAX_NAMED} more lines of lists are ignored as well")
    return selection


def _option(name: str, argument: bytes, null_separated: bool) -> "Option":
    from histfs.store.selection import Option, split_lines

    if name.endswith("-stdin"):
        return Option(name, lines=split_lines(_read_standard_input(), null_separated=null_separated))
    if name.endswith("-filelist"):
        return Option(name, argument, split_lines(_read_list(argument), null_separated=null_separated))
    return Option(name, argument)


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise StorageError("the list cannot be read: standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as exc:
        raise StorageError(f"the list cannot be read from standard input ({exc.strerror})") from exc


def _read_list(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        problem = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise StorageError(f"cannot be read ({problem})", path=os.fsdecode(path)) from exc
