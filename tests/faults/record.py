"""What a campaign has found, in a file: it can be stopped, and gone on with, as long as histfs is the same."""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

from tests.faults.campaign import Task, Verdict
from tests.faults.judge import Problem

_HISTFS = Path(__file__).parents[2] / "histfs"
_PARTS = (".py", ".c", ".h")


class Record:
    """Lines of JSON: first what histfs is, then how many points a task has, or what became of one of them."""

    def __init__(self, path: Path) -> None:
        """ValueError if it is of another histfs."""
        is_new = not path.exists() or not path.stat().st_size
        self._file = path.open("a+")
        self._file.seek(0)
        histfs, *lines = [_digest()] if is_new else self._file.read().splitlines()
        if histfs != _digest():
            raise ValueError(f"{path} was begun with another histfs")
        if is_new:
            self._add(histfs)
        self.points: dict[Task, int] = {}
        self.verdicts: list[tuple[Task, Verdict]] = []
        self.known: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
        for line in lines:
            task, found = json.loads(line)
            if isinstance(found, int):
                self._count(Task(*task), found)
            else:
                point, hit, code, problems = found
                self._keep(Task(*task), Verdict(point, hit, code, [Problem(*problem) for problem in problems]))

    def begin(self, task: Task, points: int) -> None:
        self._count(task, points)
        self._add(json.dumps([task, points]))

    def add(self, task: Task, verdict: Verdict) -> None:
        self._keep(task, verdict)
        self._add(json.dumps([task, verdict]))

    def _count(self, task: Task, points: int) -> None:
        """Writes to a disk are a few more or less each time."""
        self.points[task] = max(points, self.points.get(task, 0))

    def _keep(self, task: Task, verdict: Verdict) -> None:
        self.verdicts.append((task, verdict))
        self.known[task.operation, task.fault, task.place].add(verdict.point)

    def _add(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


def _digest() -> str:
    """Of all that histfs is made of."""
    sum_ = hashlib.sha256()
    for place, directories, names in os.walk(_HISTFS):
        directories.sort()
        for name in sorted(name for name in names if name.endswith(_PARTS)):
            path = Path(place) / name
            sum_.update(f"{path.relative_to(_HISTFS)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return sum_.hexdigest()
