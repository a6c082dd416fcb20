"""`histfs list increments [--size] REPO[/sub]`: which steps back there are, and how much they take."""

import argparse
from collections.abc import Iterator
from itertools import accumulate

from histfs.cli import options
from histfs.cli.output import Output, asctime
from histfs.errors import printable

DESCRIPTION = """\
Print the increments of a repository, the oldest first, and the time of the
mirror, which is the newest state. An increment is a file that leads one step
back, to the state of the time that it is named with. With REPO/sub: those of
that path only, a line for each time before it changed.

With --size: what the increments of each time take on the disk, and the files of
the mirror; the last column is what a time and all newer ones take together. For
REPO/sub it is what lies at and below that path."""

EPILOG = """\
Sizes of the whole repository come from the statistics of its sessions and from
the catalog, so they are there at once. Where statistics are missing, and for
REPO/sub, the increments are looked at.

examples:
  histfs list increments /mnt/disk/home
  histfs list increments --size /mnt/disk/home
  histfs list increments /mnt/disk/home/anna/thesis.tex

exit codes (added up):
  0  the increments were listed
  1  there is no such repository or path, or it cannot be read
  4  with a path: lists of files cannot be read, each is named"""

_KINDS = {"reg": "regular", "dir": "directory"}


def add_to(subjects: "options.Verbs") -> None:
    parser = options.add_verb(
        subjects, "increments", "show which steps back there are", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_size(parser)
    options.add_json(parser)
    parser.add_argument("repository", metavar="REPO[/sub]", type=options.path, help="the repository, or what is in it")
    parser.set_defaults(run=run, if_stopped="the list is incomplete")


def run(arguments: argparse.Namespace, output: Output) -> int:
    with options.open_history(arguments) as history:
        if history.path:
            history.check_was_there(output)
        if arguments.size:
            _list_sizes(history, output, as_document=options.wants_document(arguments))
        else:
            _list_names(history, output, as_document=options.wants_document(arguments))
    return 0


def _list_names(history: options.History, output: Output, *, as_document: bool) -> None:
    from histfs.store.inventory import increments_of, increments_of_root

    repository = history.repository
    newest = repository.sessions()[-1]
    if history.path:
        increments = increments_of(repository, history.path, history.catalog)
    else:
        increments = increments_of_root(repository)
    if as_document:
        described = [{"base": found.name, "time": found.time, "type": found.kind} for found in increments]
        mirror = {"base": _mirror_name(history), "time": newest, "type": _kind_now(history, newest)}
        output.document([*described, mirror])
        return
    output.lines(
        [
            f"Found {len(increments)} increments:",
            *(f"    {printable(found.name)}   {asctime(found.time)}" for found in increments),
            f"Current mirror: {asctime(newest)}",
        ]
    )


def _mirror_name(history: options.History) -> bytes | str:
    return history.path.rpartition(b"/")[2] or history.repository.path.name


def _kind_now(history: options.History, newest: int) -> str:
    if not history.path:
        return "directory"
    found = next((version for version in history.catalog.versions_of(history.path) if version.last >= newest), None)
    return "missing" if found is None else _KINDS.get(found.kind.value, "special")


def _list_sizes(history: options.History, output: Output, *, as_document: bool) -> None:
    from histfs.store.inventory import increment_sizes, increment_sizes_below

    newest = history.repository.sessions()[-1]
    if history.path:
        sizes = increment_sizes_below(history.repository, history.path, history.catalog)
    else:
        sizes = increment_sizes(history.repository)
    sizes[newest] = history.catalog.total_bytes(history.path, newest)
    totals = list(accumulate(reversed(sizes.values())))[::-1]
    if as_document:
        rows = zip(sizes.items(), totals, strict=True)
        output.document([{"size": size, "time": time, "total_size": total} for (time, size), total in rows])
        return
    output.lines(_table(sizes, totals))


def _table(sizes: dict[int, int], totals: list[int]) -> Iterator[str]:
    from histfs.store.format.stats import format_size

    yield "          Time                 Size         Cumulative size "
    yield " ".join(("-" * 24, "-" * 17, "-" * 17))
    for (time, size), total in zip(sizes.items(), totals, strict=True):
        mirror = "  (current mirror)" if time == max(sizes) else ""
        yield f"{asctime(time):24} {format_size(size):>17} {format_size(total):>17}{mirror}"
