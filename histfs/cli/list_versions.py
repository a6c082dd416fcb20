"""`histfs list versions REPO/path`: everything that ever happened to one path."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histfs.cli import options
from histfs.cli.output import Output, iso_time, moment

if TYPE_CHECKING:
    from histfs.store.entry import Entry
    from histfs.store.inventory import PathChange

DESCRIPTION = """\
Print a line for each version of one file or directory, the oldest first: the
session that found it (the folder's name in the mount; `--at` takes it), the
size, or the type of what is no plain file, the time of its last change, and
what was otherwise than before: new, deleted, content, type, target, device,
mode, owner, time, links, attributes (extended ones, access control lists)."""

EPILOG = """\
examples:
  histfs list versions /mnt/disk/home/anna/thesis.tex
  histfs list versions --json /mnt/disk/home/anna/thesis.tex

exit codes (added up):
  0  the versions were listed
  1  there is no such repository, nothing of this name ever was in it, ...
  4  versions are missing, as lists of files cannot be read; each is named"""


def add_to(subjects: "options.Verbs") -> None:
    parser = options.add_verb(
        subjects, "versions", "show what became of a path", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_json(parser)
    parser.add_argument("repository", metavar="REPO/path", type=options.path, help="what is, or was, in a repository")
    parser.set_defaults(run=run, if_stopped="the list is incomplete")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.store.inventory import history_of
    from histfs.store.when import snapshot_names

    with options.open_history(arguments) as history:
        history.check_was_there(output)
        found = history_of(history.path, history.catalog)
        names = snapshot_names(history.catalog.sessions, None)
    if options.wants_document(arguments):
        output.document([_described(change, names[change.time]) for change in found])
    else:
        output.lines(_lines(found, names))
    return 0


def _described(change: "PathChange", name: str) -> dict[str, object]:
    described: dict[str, object] = {"session": name, **moment(change.time), "last": moment(change.last)}
    described["changed"] = change.what
    entry = change.entry
    if entry is None:
        return described
    return described | {
        "type": entry.kind.value,
        "mode": f"{entry.mode:04o}",
        "size": entry.size_bytes,
        "mtime": entry.mtime_s if entry.kind.has_mtime else None,
        "uid": entry.uid,
        "gid": entry.gid,
        "sha1": entry.sha1,
        "target": entry.target or None,
    }


def _lines(found: list["PathChange"], names: dict[int, str]) -> Iterator[str]:
    width = max(len(names[change.time]) for change in found)
    for change in found:
        name = f"{names[change.time]:{width}}"
        what = ", ".join(change.what)
        if change.entry is None:
            yield f"{name}  {'-':>12}  {'-':25}  {what}"
        else:
            yield f"{name}  {_size(change.entry):>12}  {_mtime(change.entry):25}  {what}"


def _size(entry: "Entry") -> str:
    return str(entry.size_bytes) if entry.kind.value == "reg" else entry.kind.value


def _mtime(entry: "Entry") -> str:
    return iso_time(entry.mtime_s, None) if entry.kind.has_mtime else "-"
