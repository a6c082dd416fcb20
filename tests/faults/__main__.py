"""Tries every point of the operations, and prints what became of them as a table for docs/reliability.md.

python -m tests.faults                         everything: tens of minutes
python -m tests.faults --faults 'SIGKILL|EIO' --operations session --step 10
"""

import argparse
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults import places, rdiff_backup, supervise
from tests.faults.campaign import FAULTS, Task, Verdict, Worker, counted_calls, run, sensitivity, without_barriers
from tests.faults.judge import KINDS
from tests.faults.operations import OPERATIONS
from tests.faults.places import FILE_SYSTEMS, Memory
from tests.faults.record import Record

_SHORT_SEEDS = 40


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", default="", metavar="REGEX", help="only those (default: all)")
    parser.add_argument("--faults", default="", metavar="REGEX", help="only those (default: all)")
    parser.add_argument("--places", default="", metavar="REGEX", help="only there (memory, XFS, ext4, ...)")
    parser.add_argument("--step", type=int, default=1, help="every which point (default: every one)")
    parser.add_argument("--first", type=int, default=1, help="the first point")
    parser.add_argument("--minutes", type=float, default=math.inf, help="only a sample that takes so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=Path, metavar="FILE", help="go on with what is there, and add to it")
    parser.add_argument("--show", action="store_true", help="run nothing: what the record has, an operation a line")
    parser.add_argument("--mounts", action="store_true", help="read through real mounts, too (only in memory)")
    parser.add_argument("--rdiff-backup", action="store_true", help="the same with sessions of rdiff-backup")
    parser.add_argument("--without-barriers", action="store_true", help="break histfs, to see that it is noticed")
    parser.add_argument("--compare-calls", action="store_true", help="count calls, and have strace do so")
    parser.add_argument("--sensitivity", action="store_true", help="cut each file of a repository: what is noticed?")
    parser.add_argument("--all-problems", action="store_true", help="print every problem, not a few of each kind")
    return parser.parse_args(arguments)


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    found = []
    for fault in FAULTS.values():
        for place in [kind.name for kind in FILE_SYSTEMS] if fault.needs_disk else [Memory.name]:
            for operation in [rdiff_backup.NAME] if arguments.rdiff_backup else OPERATIONS:
                wanted = (fault.operations, operation), (arguments.operations, operation)
                wanted += (arguments.faults, fault.name), (arguments.places, place)
                if not all(re.search(pattern, name) for pattern, name in wanted):
                    continue
                limit = _SHORT_SEEDS if fault.name.startswith("short") else None
                found.append(Task(operation, fault.name, place, arguments.step, arguments.first, limit))
    return sorted(found, key=lambda task: task.place)


class Tally:
    """Points and problems by row of the table."""

    def __init__(self) -> None:
        self.points = Counter[tuple[str, str, str]]()
        self.all_points = Counter[tuple[str, str, str]]()
        self.good = Counter[tuple[str, str, str]]()
        self.kinds = Counter[tuple[str, str, str, str]]()

    def begin(self, task: Task, points: int) -> None:
        self.all_points[task.operation, task.fault, task.place] = points

    def add(self, task: Task, verdict: Verdict) -> None:
        row = task.operation, task.fault, task.place
        self.points[row] += 1
        kinds = {problem.kind for problem in verdict.problems}
        self.good[row] += not kinds - {"unreadable"}
        for kind in kinds:
            self.kinds[*row, kind] += 1

    def table(self) -> list[str]:
        """Markdown."""
        kinds = ["unreadable", "lost", "corrupt", "dishonest", "litter"]
        titles = ["operation", "fault", "where", "of", "points", "recovered", "unreadable before", *kinds[1:]]
        lines = [f"| {' | '.join(titles)} |", "|" + "---|" * 3 + "---:|" * (len(titles) - 3)]
        for row, points in self.points.items():
            counts = [self.all_points[row], points, self.good[row], *(self.kinds[*row, kind] for kind in kinds)]
            lines.append(f"| {' | '.join(row)} | {' | '.join(map(str, counts))} |")
        totals = [sum(self.all_points.values()), sum(self.points.values()), sum(self.good.values())]
        totals += [sum(count for row, count in self.kinds.items() if row[3] == kind) for kind in kinds]
        return [*lines, f"| **all** | | | {' | '.join(map(str, totals))} |"]

    def overview(self) -> list[str]:
        """Markdown: a line an operation, a column a kind of fault. "7": all 7 points recovered; "5 of 7": two were not,
        or not tried.
        """
        columns = {title: Counter[str]() for title in _KINDS_OF_FAULTS}
        recovered = {title: Counter[str]() for title in _KINDS_OF_FAULTS}
        for (operation, fault, place), points in self.all_points.items():
            [title] = [title for title, pattern in _KINDS_OF_FAULTS.items() if re.match(pattern, fault)]
            columns[title][operation] += points
            recovered[title][operation] += self.good[operation, fault, place]
        titles = [title for title, found in columns.items() if found]
        lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
        operations = [
            name for name in (*OPERATIONS, rdiff_backup.NAME) if any(columns[title][name] for title in titles)
        ]
        for name in operations:
            cells = [_share(recovered[title][name], columns[title][name]) for title in titles]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        totals = [_share(recovered[title].total(), columns[title].total()) for title in titles]
        return [*lines, f"| **all** | {' | '.join(totals)} |"]


# What there is to see of the faults in an overview.
_KINDS_OF_FAULTS = {
    "SIGKILL": "SIGKILL",
    "SIGTERM": "SIGTERM",
    "a call fails once": "E[A-Z]+ once",
    "all fail from then on": "E[A-Z]+ from then on",
    "reads and opening fail too": "E[A-Z]+, ",
    "short reads and writes": "short",
    "full disk": "full disk",
    "power cut at a call": "power cut, ",
    "power cut at a block": "power cut after a block|the same",
}


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" if part != whole else str(whole) if whole else "-"


def _compare_calls() -> int:
    """A line for each kind of call; 1 if strace has seen one that the supervisor has not."""
    with tempfile.TemporaryDirectory(dir=places.MEMORY) as scratch:
        ours, others = counted_calls(Worker(Path(scratch)).workshop(Memory.name))
    for name in sorted(ours | others):
        sys.stdout.write(f"{name} {ours[name]} {others[name]}\n")
    return not others <= ours or not others


def _measure_sensitivity() -> int:
    """A line for each file; 1 if one with data, an increment or a record is cut and nobody notices."""
    with tempfile.TemporaryDirectory(dir=places.MEMORY) as scratch:
        found = sensitivity(Worker(Path(scratch)).workshop(Memory.name))
    for name, is_noticed in found:
        sys.stdout.write(f"{'noticed' if is_noticed else 'NOT noticed'} {name!r}\n")
    sys.stdout.write(f"{sum(noticed for _, noticed in found)} of {len(found)} files noticed\n")
    return any(not noticed and not _SAYS_NOTHING.match(name) for name, noticed in found)


# What nothing depends on, or what is made anew: logs, statistics, who writes, indexes.
_SAYS_NOTHING = re.compile(
    r"rdiff-backup-data/(\w+\.log|\w+_statistics\..*|current_mirror\..*|histfs/.*|\w+_data/next_free"
    # The increments of a second name of a file: it is read by its first name.
    r"|increments/g\d-b\..*)\Z"
)


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: argparse.Namespace) -> int:
    if reason := supervise.obstacle():
        _tell(f"nothing can be tried: {reason}")
        return 2
    tasks = tasks_of(arguments)
    if reason := places.obstacle():
        _tell(f"power cuts are left out: {reason}")
        tasks = [task for task in tasks if task.place == Memory.name]
    if arguments.without_barriers:
        without_barriers()
    if arguments.compare_calls:
        return _compare_calls()
    if arguments.sensitivity:
        return _measure_sensitivity()
    tally, began = Tally(), time.monotonic()
    try:
        record = None if arguments.record is None else Record(arguments.record)
    except ValueError as exc:
        _tell(str(exc))
        return 1
    if record is not None:
        for task, verdict in record.verdicts:
            tally.begin(task, record.points[task])
            tally.add(task, verdict)

    if arguments.show:
        sys.stdout.write("\n".join(tally.overview()) + "\n")
        return any(row[3] != "unreadable" for row in tally.kinds)

    def begin(task: Task, points: int) -> None:
        tally.begin(task, points)
        if record is not None:
            record.begin(task, points)

    def tell(task: Task, verdict: Verdict) -> None:
        tally.add(task, verdict)
        if record is not None:
            record.add(task, verdict)
        for problem in verdict.problems:
            if arguments.all_problems or tally.kinds[task.operation, task.fault, task.place, problem.kind] <= 3:
                where = f"{task.operation}, {task.fault}, {task.place}, point {verdict.point} ({verdict.hit})"
                _tell(f"{problem.kind}: {where}: {problem.text}\n")

    options = {"jobs": arguments.jobs, "mounts": arguments.mounts, "minutes": arguments.minutes}
    run(tasks, **options, known=record.known if record is not None else {}, begin=begin, tell=tell)
    points, bad = sum(tally.points.values()), sum(tally.kinds.values())
    said = [*tally.table(), "", f"{points} points in {time.monotonic() - began:.0f} s; {bad} problems."]
    said += [f"{kind}: {KINDS[kind]}" for kind in sorted({row[3] for row in tally.kinds})]
    sys.stdout.write("\n".join(said) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(parsed()))
