"""What the verbs' arguments have in common: how they are parsed, what they mean, and how they are explained.

The parser differs from argparse's in two points only: wrong arguments exit with 1, because 2 means "warning" here,
and all its output goes through `histfs.cli.output`.
"""

import argparse
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from histfs.cli.output import Output
from histfs.errors import EXIT_ERROR, NotFoundError, UsageError, printable, printable_time, quoted

if TYPE_CHECKING:
    from histfs.store.catalog import Catalog
    from histfs.store.entry import Extras
    from histfs.store.increments import Compression
    from histfs.store.owners import Owners
    from histfs.store.repository import Repository

TIMES = """\
TIME, how the past is named:
  now                         this moment
  3D, 2h30m, 1W               so long ago (s m h D W, M = 30 days, Y = 365 days)
  2 days ago                  the same in words
  0B, 1B, 2B                  the newest session, the one before, ...
  2024-05-03                  midnight at the start of that day
  today, yesterday, 2024-05   midnight at the start of that day, that month
  2024-05-03T10:00            the end of that minute; also with seconds, and
  2024-05-03T10:00:30+02:00   with an offset (Z for UTC); else it is local time
  yesterday 10:00             the same
  1714729200                  seconds since 1970
  @2024-05-03T10:00           a folder's name in the mount, and the first column
                              of `histfs list sessions`
The newest session that is not later than TIME is meant."""

# Verbs of rdiff-backup that are not there, and what to do.
_OF_OTHER_COMPUTERS = {
    "server": "server answers another computer, which histfs does not do; run histfs there, or mount its directory"
    " here",
}

LARGEST_MEMORY_MIB = 1 << 20
LAST_SECOND = 4_102_444_799  # of the year 2099: the format has no later sessions (docs/format.md 2.1)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with our exit code and our output."""

    default_verb = ""  # of those behind this one, the one that is meant where none is named

    def has_option(self, name: str) -> bool:
        """Whether `name` is an option of this: it may be shortened, and a letter may have its value behind it."""
        if not name.startswith("--"):
            return name[:2] in self._option_string_actions
        return any(option.startswith(name) for option in self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong, and where it is told how the command is written; exit code 1."""
        Output().error(message if message.endswith("?") else f"{message}; see `{self.prog} --help`")
        raise SystemExit(EXIT_ERROR)

    def _print_message(self, message: str, file: object = None) -> None:  # help and version
        Output().text(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        """Mends how argparse treats "--": as the name of a verb, and as no value at all where it is one."""
        if action.nargs == argparse.PARSER:
            if arg_strings[0] == "--":
                arg_strings = arg_strings[1:]
            if arg_strings[0] not in (action.choices or ()):
                arg_strings = self._meant(arg_strings)
        elif arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "-- is no value; for a name, write ./--")
        return super()._get_values(action, arg_strings)

    def _meant(self, words: list[str]) -> list[str]:
        """What is meant by words of which the first is no verb. Raises UsageError, SystemExit."""
        if self.default_verb:
            return [self.default_verb, *words]
        if words[0] == "help":
            if words[1:]:
                return [*words[1:], "--help"]
            self.print_help()
            raise SystemExit(0)
        if words[0] in _OF_OTHER_COMPUTERS:
            raise UsageError(_OF_OTHER_COMPUTERS[words[0]])
        advice = f"`{self.prog} --help` shows them"
        if "/" in words[0]:
            advice = "to back it up, write backup before it"
        elif not words[0].startswith("-") and (similar := _most_similar(words[0], self._verbs())):
            advice = f"did you mean `{self.prog} {similar}`?"
        raise UsageError(f"'{printable(words[0])}' is no verb", advice=advice)

    def _verbs(self) -> dict[str, str]:
        """All verbs behind this by their last words; of two the one that is nearer or comes first."""
        found: dict[str, str] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update((name, name) for name in action.choices)
                for name, parser in action.choices.items():
                    found = {word: f"{name} {verb}" for word, verb in parser._verbs().items()} | found
        return found

    def similar_option(self, name: str) -> str | None:
        """The option that may have been meant by `name`, which is none."""
        return _most_similar(name, {option: option for option in self._option_string_actions if option[:2] == "--"})


def _most_similar(word: str, known: Mapping[str, str]) -> str | None:
    """What `known` has for the key that `word` is most like, if one is."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return known[found[0]] if found else None


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves what is laid out by hand as it is, and names the many options of a selection as one in the usage."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        shown = [action for action in actions if action.dest != "selection"]
        if len(shown) < len(list(actions)):
            shown.append(argparse.Action(["SELECTION..."], "selection", nargs=0))
        super().add_usage(usage, shown, groups, prefix)


if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[Parser]


def add_verb(verbs: "Verbs", name: str, summary: str, *, description: str, epilog: str) -> Parser:
    """A parser for the verb `name`, whose help is laid out by hand."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
    )
    parser.set_defaults(parser_of_verb=parser)
    return parser


def seconds(text: str) -> int:
    """Seconds since the epoch, as an argument."""
    if not (text.isascii() and text.isdigit() and int(text) <= LAST_SECOND):
        raise argparse.ArgumentTypeError(f"a whole number of seconds since 1970 is needed, not {printable(text)!r}")
    return int(text)


def mebibytes(text: str) -> int:
    """An amount of memory in MiB, as an argument."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_MEMORY_MIB):
        raise argparse.ArgumentTypeError(f"a whole number of MiB is needed, not {printable(text)!r}")
    return int(text)


def path(text: str) -> Path:
    """A path of this host, as an argument.

    An empty one is refused: it comes from an unset variable in a script, and would mean the current directory.
    `HOST::PATH` is refused: whoever types it means another computer, and must not get a local folder of that name.
    """
    if not text:
        raise argparse.ArgumentTypeError("a path is empty")
    if "::" in text.partition("/")[0]:
        raise argparse.ArgumentTypeError(
            f"{printable(text)} names another computer, which histfs cannot reach by itself: "
            f"mount its directory here, or write ./{printable(text)} for a local name"
        )
    return Path(text)


def cache_directory() -> Path | None:
    """Where what can be made again is kept for this user; None where there is no such place."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "histfs") if os.path.isabs(base) else None


def add_at(parser: "argparse.ArgumentParser | argparse._MutuallyExclusiveGroup") -> None:
    parser.add_argument("--at", metavar="TIME", help="the past to look at (default: the newest session)")


def add_switch(parser: argparse._ActionsContainer, name: str, help_text: str, *, default: bool | None = True) -> None:
    """`--name` and `--no-name`."""
    parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=help_text)
    parser.set_defaults(**{name.replace("-", "_"): default})


def add_links(parser: argparse.ArgumentParser, *, hard_links: str, compare_inode: str) -> None:
    """What hard links mean, with the help for each; and what only a Mac has."""
    group = parser.add_argument_group("files and file systems")
    add_switch(group, "hard-links", hard_links)
    add_switch(group, "compare-inode", compare_inode)
    for mac in ("carbonfile", "resource-forks"):
        add_switch(group, mac, "accepted: Linux has none; what a Mac has recorded stays", default=None)


def add_compression(parser: argparse.ArgumentParser, *, has_effect: bool) -> None:
    """What is kept as gzip; without effect where nothing is written that it could concern."""
    group = parser.add_argument_group(
        "compression" if has_effect else "compression (accepted from scripts for rdiff-backup, to no effect)"
    )
    how = "keep the history, but for its lists, as gzip (the default)"
    which = (
        "but not of files whose paths, beginning with REPO, match this (default: the usual suffixes of pictures,"
        " films, music, archives)"
    )
    add_switch(group, "compression", how if has_effect else "accepted: nothing is written that it could concern")
    group.add_argument(
        "--not-compressed-regexp",
        "--no-compression-regexp",
        metavar="REGEXP",
        help=which if has_effect else "accepted, and looked at for mistakes",
    )


def compression(arguments: argparse.Namespace) -> "Compression":
    """What the options of `add_compression` ask for. Raises UsageError."""
    from histfs.store.increments import DEFAULT_COMPRESSION, Compression

    if arguments.not_compressed_regexp is None:
        return DEFAULT_COMPRESSION._replace(is_on=arguments.compression)
    place = os.fsencode(arguments.repository)
    return Compression.except_for(arguments.not_compressed_regexp, place)._replace(is_on=arguments.compression)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for programs")


def add_owners(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("owners (by name; by number where a name is not known here)")
    group.add_argument(
        "--user-mapping-file", metavar="FILE", type=path, help="lines OLD:NEW, names or numbers, for other users"
    )
    group.add_argument("--group-mapping-file", metavar="FILE", type=path, help="the same for groups")
    group.add_argument("--preserve-numerical-ids", action="store_true", help="by number, whatever the names are")


def owners(arguments: argparse.Namespace) -> "Owners":
    """What the options of `add_owners` mean. Raises UsageError."""
    from histfs.store.accounts import mapped_owners
    from histfs.store.owners import NUMERICAL

    if arguments.preserve_numerical_ids:
        return NUMERICAL
    return mapped_owners(arguments.user_mapping_file, arguments.group_mapping_file)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", action=argparse.BooleanOptionalAction, default=False, help="show how much increments take on the disk"
    )


def wants_document(arguments: argparse.Namespace) -> bool:
    """Whether the result is for a program, as JSON or YAML."""
    return bool(arguments.json or arguments.parsable_output)


def add_extras(parser: argparse.ArgumentParser, done: str) -> None:
    """--acls and --eas, which are on by default; `done` says what is done with what they mean."""
    for name, text in (("acls", "access control lists"), ("eas", "extended attributes")):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=f"{done} {text} (default: yes)"
        )


def extras(arguments: argparse.Namespace) -> "Extras":
    """What `add_extras` has added."""
    from histfs.store.entry import Extras

    return Extras(xattrs=arguments.eas, acls=arguments.acls)


class Past(NamedTuple):
    """What `[--at TIME] REPO[/sub]` means."""

    repository: "Repository"
    path: bytes
    session_time: int


@contextmanager
def open_past(arguments: argparse.Namespace) -> Iterator[Past]:
    """Opens the repository that `arguments.repository` lies in, and finds the session for `arguments.at`.

    A verb that has `arguments.increment` (whether there must be one) takes an increment file as well: it says itself
    what is restored, and when it was so. Who looks for what was not there then is told how to find out when it was.
    Raises NotARepositoryError, NotFoundError, UsageError.
    """
    from histfs.store.repository import Repository, find_repository

    root, below = find_repository(arguments.repository)
    with Repository.open(root) as repository:
        past = _past(arguments, repository, below)
        try:
            yield past
        except NotFoundError as exc:
            if exc.path == past.path and exc.at is not None and not exc.advice:
                exc.advice = _when_it_was(past, exc.at)
            raise


def _when_it_was(past: Past, session_time: int) -> str:
    from histfs.store.inventory import nearest_time

    is_known, nearest = nearest_time(past.repository, past.path, session_time)
    if is_known and nearest is None:
        return "it was never in the repository: check how it is spelt"
    command = f"`histfs list versions {quoted(past.repository.path / os.fsdecode(past.path))}`"
    if nearest is None:
        return f"{command} shows when it was"
    which = "last there" if nearest < session_time else "there first"
    return f"it was {which} at {printable_time(nearest)}; {command} shows all that became of it"


def _past(arguments: argparse.Namespace, repository: "Repository", below: bytes) -> Past:
    needed: bool | None = getattr(arguments, "increment", None)
    increment = None if needed is None else _increment(repository, below)
    if increment is None:
        if needed:
            raise UsageError("is not an increment file", path=arguments.repository)
        _refuse_history(arguments.repository, below)
        return Past(repository, below, _choose_session(repository, arguments.at, arguments.now))
    if arguments.at is not None:
        raise UsageError("an increment file has a time of its own; --at makes no sense", path=arguments.repository)
    path, session_time = increment
    return Past(repository, path, _session_at(repository, session_time))


def _increment(repository: "Repository", below: bytes) -> tuple[bytes, int] | None:
    """The path that the increment file `below` leads back, and the time; None if it is none."""
    numbered = repository.layout.numbered_increment_at(below)
    if numbered is None:
        return repository.layout.increment_at(below)
    number, session_time = numbered
    for entry in repository.snapshot(_session_at(repository, session_time)).entries():
        if number in (entry.alternate_mirror, entry.alternate_increment):
            return entry.path, session_time
    raise NotFoundError("keeps nothing that was there at this time", path=below, at=session_time)


def _refuse_history(typed: Path, below: bytes) -> None:
    from histfs.store.layout import DATA

    if below.split(b"/")[0] == DATA:
        raise UsageError("is the history itself, not a file of the backup", path=typed)


def _session_at(repository: "Repository", moment: int) -> int:
    from histfs.store.when import choose_session

    return choose_session(moment, repository.sessions())


class History:
    """What `REPO[/sub]` means for verbs that look at all sessions. The catalog is opened when it is needed."""

    def __init__(self, repository: "Repository", path: bytes, stack: ExitStack) -> None:
        self.repository = repository
        self.path = path
        self._stack = stack

    @functools.cached_property
    def catalog(self) -> "Catalog":
        from histfs.store.catalog import open_catalog

        return self._stack.enter_context(open_catalog(self.repository, cache=cache_directory()))

    def check_was_there(self, output: Output) -> None:
        """Tells which sessions cannot be read. Raises NotFoundError where no other one has the path."""
        from histfs.store.inventory import unreadable_sessions

        problems = unreadable_sessions(self.catalog)
        for problem in problems:
            output.report(problem)
        if self.path and not self.catalog.versions_of(self.path):
            where = "in any session that can be read" if problems else "ever in the repository"
            raise NotFoundError(f"nothing of this name was {where}", path=self.path)


@contextmanager
def open_history(arguments: argparse.Namespace) -> Iterator[History]:
    """Opens the repository that `arguments.repository` lies in. Raises NotARepositoryError."""
    from histfs.store.repository import Repository, find_repository

    root, below = find_repository(arguments.repository)
    _refuse_history(arguments.repository, below)
    with Repository.open(root) as repository, ExitStack() as stack:
        yield History(repository, below, stack)


def _choose_session(repository: "Repository", at: str | None, now: int) -> int:
    times = repository.sessions()  # an open repository has one at least
    if at is None:  # not "now": a session from before the clock was set back is still the newest
        return times[-1]
    from histfs.store.when import parse_when

    return _session_at(repository, parse_when(at, now=now, times=times, zone=None))
