"""What must hold after a fault: of finished snapshots, of the mirror, of names that are left behind.

The truth are manifests that `tests.comparison` made of the source before each session; it knows nothing of histfs.
"""

import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic as time_now
from time import sleep
from typing import NamedTuple, NoReturn

from histfs.errors import NotARepositoryError
from tests.comparison import Manifest, difference, read
from tests.faults.shown import Shown
from tests.mirrors import read_mirror

DATA = "rdiff-backup-data"
_NOTICED_WITHIN_S = 5.0


class Problem(NamedTuple):
    """`kind`: see KINDS."""

    kind: str
    text: str


KINDS = {
    "unreadable": "a finished snapshot could not be read before recovery",
    "lost": "a finished snapshot could not be read after recovery",
    "corrupt": "something was read that is not what was backed up, without an error",
    "dishonest": "the exit code said something else than what was there",
    "stuck": "the next run failed, or what it left was not right",
    "litter": "something was left behind",
    "hung": "the program did not end",
}


class Expected(NamedTuple):
    """What a session may be (any of these manifests), and whether it may be gone."""

    manifests: Sequence[Manifest]
    may_be_gone: bool = False


History = Mapping[int, Expected]


def check_history(shown: Shown, history: History, kind: str) -> list[Problem]:
    """Every session is there and is what it may be. `kind`: what a session that cannot be read is called."""
    try:
        times = shown.look()
    except NotARepositoryError as exc:
        times = []
        if all(expected.may_be_gone for expected in history.values()):
            return []
        return [Problem(kind, str(exc))]
    except Exception:
        return [Problem(kind, traceback.format_exc(limit=-3))]
    return check_sessions(times, shown.manifest, history, kind)


def check_sessions(
    times: Collection[int], manifest: Callable[[int], Manifest], history: History, kind: str
) -> list[Problem]:
    problems = [Problem("corrupt", f"session {time} was never made") for time in times if time not in history]
    for time, expected in history.items():
        if time not in times:
            if not expected.may_be_gone:
                problems.append(Problem(kind, f"session {time} is not listed"))
            continue
        try:
            found = manifest(time)
        except Exception:
            problems.append(Problem(kind, f"session {time}: {traceback.format_exc(limit=-3)}"))
            continue
        differences = [difference(wanted, found, nlink=False, root_mtime=False) for wanted in expected.manifests]
        if all(differences):
            problems.append(Problem("corrupt", f"session {time}: " + "; ".join(min(differences, key=len))))
    return problems


def check_repository(repository: Path, history: History, kind: str, cache: Path | None = None) -> list[Problem]:
    """The same through a mount that is made now."""
    try:
        shown = Shown(repository, cache)
    except NotARepositoryError as exc:
        return [] if all(expected.may_be_gone for expected in history.values()) else [Problem(kind, str(exc))]
    except Exception:
        return [Problem(kind, traceback.format_exc(limit=-3))]
    with shown:
        return check_history(shown, history, kind)


def check_mounted(mountpoint: Path, history: History, kind: str) -> list[Problem]:
    """The same through a mount that is there, whose names are in UTC; it may take a moment to notice what is new."""
    sure = {time for time, expected in history.items() if not expected.may_be_gone}
    until = time_now() + _NOTICED_WITHIN_S
    while True:
        names = {name: _time_of(name) for name in os.listdir(mountpoint)}
        if sure <= set(names.values()) <= set(history) or time_now() > until:
            break
        sleep(0.05)
    places = {at: mountpoint / name for name, at in names.items()}
    return check_sessions(names.values(), lambda at: read(places[at]), history, kind)


def _time_of(name: str) -> int:
    text = name.removeprefix("@")
    form = "%Y-%m-%dT%H:%M:%S" if text.count(":") == 2 else "%Y-%m-%dT%H:%M"
    return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


def check_mirror(repository: Path, state: Manifest) -> list[Problem]:
    lines = difference(state, read_mirror(repository))
    return [Problem("stuck", "mirror: " + "; ".join(lines))] if lines else []


_NUMBER = re.compile(r"(long_filename_data/)\d+")
_LOGS = re.compile(r"rdiff-backup-data/(\w+\.log(\.1)?|long_filename_data/next_free)\Z")


def names_in(repository: Path) -> list[str]:
    """All names, but for logs; long names that have numbers without these."""
    found = []
    for place, directories, names in os.walk(repository):
        for name in (*directories, *names):
            path = os.path.relpath(os.path.join(place, name), repository)
            if not _LOGS.match(path):
                found.append(_NUMBER.sub(r"\1N", path))
    return sorted(found)


def check_names(repository: Path, expected: Sequence[str]) -> list[Problem]:
    """Nothing is there that a repository without faults had not, and nothing missing; nobody is said to hold it."""
    found = names_in(repository)
    problems = []
    if found != list(expected):
        more, less = set(found) - set(expected), set(expected) - set(found)
        problems.append(Problem("litter", f"left behind: {sorted(more)}, missing: {sorted(less)}"))
    lock = repository / DATA / "lock.yml"
    if lock.exists() and lock.stat().st_size:
        problems.append(Problem("litter", "lock.yml still names who holds it"))
    return problems


# --- in a process of its own ------------------------------------------------------------------------------------------


def forked(check: Callable[[], list[Problem]]) -> list[Problem]:
    """What `check` finds in a forked process, of which nothing stays behind."""
    with waiting(lambda: check) as told:
        return told()


@contextmanager
def waiting(prepare: Callable[[], Callable[[], list[Problem]]]) -> Iterator[Callable[[], list[Problem]]]:
    """A forked process that calls `prepare` now, and what that returns when it is told to. Yields the telling."""
    go_reader, go_writer = os.pipe()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go_writer)
        os.close(reader)
        _answer(prepare, go_reader, writer)
    os.close(go_reader)
    os.close(writer)
    with open(reader, "rb") as answer, open(go_writer, "wb") as go:
        answer.read(1)  # it is ready

        def tell() -> list[Problem]:
            go.close()
            said = answer.read()
            return pickle.loads(said) if said else [Problem("stuck", "the judge died")]

        try:
            yield tell
        finally:
            go.close()
            os.waitpid(child, 0)


def _answer(prepare: Callable[[], Callable[[], list[Problem]]], go: int, writer: int) -> NoReturn:
    try:
        try:
            check = prepare()
            os.write(writer, b".")
            os.read(go, 1)
            found = check()
        except BaseException:
            found = [Problem("stuck", f"the judge failed: {traceback.format_exc()}")]
        with open(writer, "wb", closefd=False) as answer:
            answer.write(pickle.dumps(found))
    finally:
        sys.stdout.flush()
        os._exit(0)
