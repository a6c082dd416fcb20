"""`histfs explain SRC PATH...`: which rule includes or excludes files."""

import argparse
import os
from typing import TYPE_CHECKING

from histfs.cli import options, selection
from histfs.cli.output import Output
from histfs.errors import EXIT_FILE_ERROR, HistfsError, UsageError, printable

if TYPE_CHECKING:
    from histfs.store.explain import Explanation

DESCRIPTION = """\
Say for each PATH whether `histfs backup` with the same options would take it,
and which rule decides. Nothing is written. A PATH begins with SRC, as it is
typed, or counts from SRC on. With --why, say what has changed of it since the
last session in REPO, so that the next one looks at it again."""

EPILOG = """\
examples:
  histfs explain --exclude '*.o' --exclude ./tmp /home/anna src/main.o tmp/x
  histfs explain --exclude-filelist list /home/anna /home/anna/letters
  histfs explain --why /mnt/disk/home /home/anna /home/anna/letters/may

exit codes (added up):
  0  it was said about every PATH
  1  SRC is no directory, a rule makes no sense, ...
  4  some PATHs, each named, are not there or cannot be looked at"""

_WORDS = {
    "included": "included",
    "excluded": "excluded",
    "scanned": "included if something in it is, as it may hold what is wanted",
}
IF_STOPPED = "not every path was explained"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "explain", "say which rule includes or excludes a file", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument(
        "--why", metavar="REPO", type=options.path, help="say why `histfs backup SRC REPO` would see it as changed"
    )
    options.add_json(parser)
    parser.add_argument("source", metavar="SRC", type=options.path, help="the directory to back up")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="what is in it")
    selection.add_to(parser)
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.explain import explain
    from histfs.store.selection import Selection

    root = os.fsencode(arguments.source)
    rules = selection.read(arguments, arguments.source, output) or Selection.parse([], root)
    paths = [_path_in(os.fsencode(path), root) for path in arguments.paths]
    if arguments.why is not None:
        return _say_why(arguments, output, paths)
    explained, exit_code = [], 0
    for answer in explain(arguments.source, rules, paths):
        if isinstance(answer, HistfsError):
            output.warn(answer)
            exit_code = EXIT_FILE_ERROR
        else:
            explained.append(answer)
    if options.wants_document(arguments):
        output.document([_described(answer) for answer in explained])
    else:
        output.lines(map(_sentence, explained))
    return exit_code


def _say_why(arguments: argparse.Namespace, output: Output, paths: list[bytes]) -> int:
    from histfs.store.explain import explain_changes

    found, exit_code = [], 0
    for answer in explain_changes(arguments.source, arguments.why, paths):
        if isinstance(answer, HistfsError):
            output.warn(answer)
            exit_code = EXIT_FILE_ERROR
        else:
            found.append(answer)
    if options.wants_document(arguments):
        output.document([{"path": path or b".", "why": list(why)} for path, why in found])
    else:
        output.lines(f"{printable(path or b'.')}: {'; '.join(why) or 'it is as it was'}" for path, why in found)
    return exit_code


def _path_in(path: bytes, root: bytes) -> bytes:
    """The path from the root on that was meant."""
    from histfs.store.selection import path_in

    found = path_in(path, root)
    if found is None:
        raise UsageError(
            "does not lie in SRC", path=os.fsdecode(path), advice="begin it with SRC, as it is typed there"
        )
    return found


def _sentence(answer: "Explanation") -> str:
    path, verdict = printable(answer.path), answer.verdict
    if verdict.rule is None:
        return f"{path}: included, as no rule is about it"
    if answer.decided != answer.path:
        return f"{path}: excluded, as its directory {printable(answer.decided)} is, by {verdict.rule}"
    return f"{path}: {_WORDS[verdict.outcome.value]} by {verdict.rule}"


def _described(answer: "Explanation") -> dict[str, object]:
    outcome, rule = answer.verdict
    decision = {"path": answer.path or b".", "outcome": outcome.value, "decided": answer.decided or b"."}
    if rule is None:
        return decision | {"rule": None}
    return decision | {"rule": {"option": rule.option, "argument": rule.argument, "line": rule.line, "text": rule.text}}
