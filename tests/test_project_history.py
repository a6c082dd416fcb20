"""This project's own history, commit by commit, as sessions: the mount, histfs and rdiff-backup against what was there.

Where there is no git, or too little history (a shallow clone, an unpacked sdist), the states are made up from the
files at hand: growing parts of the tree, edited as they grow.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

import pytest

from histfs.store.repository import Repository
from histfs.store.restore import restore
from histfs.store.when import snapshot_names
from tests import comparison
from tests.comparison import difference
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle

PROJECT = Path(__file__).resolve().parent.parent
SESSIONS = 16
FIRST_MADE_UP = 1_700_000_000
NOT_OURS = frozenset({".git", ".venv", ".hypothesis", "build", "dist", "__pycache__"})
FIFO = "a fifo"  # `diff` has no opinion about it


class History(NamedTuple):
    """`truth` has a plain copy of the source, made right before each session, by the session's time."""

    repository: Path
    truth: Path
    states: list[State]


# States of the project


class Commit(NamedTuple):
    name: str
    time: int


def commits() -> list[Commit]:
    """The commits, oldest first; empty if git does not know them."""
    if not (PROJECT / ".git").exists() or shutil.which("git") is None:
        return []
    ran = subprocess.run(
        [*_GIT, "log", "--reverse", "--first-parent", "--format=%H %ct"], capture_output=True, text=True
    )
    lines = ran.stdout.splitlines() if ran.returncode == 0 else []
    return [Commit(name, int(time)) for name, time in (line.split() for line in lines)]


# The checkout may belong to somebody else, as in a container.
_GIT = ["git", "-C", os.fspath(PROJECT), "-c", "safe.directory=*"]


def spread(items: Sequence[Commit], count: int) -> list[Commit]:
    """`count` of the items, evenly spread, the first and the last included."""
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]


def states_of_commits(source: Path, chosen: Sequence[Commit], workshop: Path) -> Iterator[int]:
    """Bring `source` to each commit; yields the time, which is that of what has changed."""
    before = 0
    for commit in chosen:
        archive, checkout = workshop / "commit.tar", workshop / "checkout"
        subprocess.run([*_GIT, "archive", f"--output={archive}", commit.name], check=True)
        checkout.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", checkout], check=True)
        before = max(commit.time, before + 1)
        follow(source, checkout, before)
        shutil.rmtree(checkout)
        yield before


def follow(source: Path, wanted: Path, now: int) -> None:
    """Make the files below `source` those below `wanted`; what changes gets the time `now`, the rest is not touched."""
    new = {path.relative_to(wanted) for path in wanted.rglob("*")}
    old = {path.relative_to(source) for path in source.rglob("*")}
    for path in sorted(old - new, reverse=True):
        (Path.rmdir if _is_directory(source / path) else Path.unlink)(source / path)
        os.utime((source / path).parent, (now, now))
    for path in sorted(new):
        if _is_directory(wanted / path):
            (source / path).mkdir(exist_ok=True)
        elif path not in old or _content(source / path) != _content(wanted / path):
            (source / path).unlink(missing_ok=True)
            shutil.copy2(wanted / path, source / path, follow_symlinks=False)
            os.utime(source / path, (now, now), follow_symlinks=False)
            os.utime((source / path).parent, (now, now))


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _content(path: Path) -> tuple[int, bytes]:
    is_link = path.is_symlink()
    return path.lstat().st_mode, os.fsencode(os.readlink(path)) if is_link else path.read_bytes()


def made_up_states(source: Path, workshop: Path) -> Iterator[int]:
    """Growing parts of the files at hand, each of which grows line by line itself."""
    files = sorted(
        path.relative_to(PROJECT)
        for path in PROJECT.rglob("*")
        if path.is_file() and not path.is_symlink() and not NOT_OURS & set(path.relative_to(PROJECT).parts)
    )
    wanted = workshop / "wanted"
    for number in range(SESSIONS):
        for position, path in enumerate(files[number % 3 :: 2] if number % 5 == 4 else files):
            age = number - position * SESSIONS // (len(files) + 1)
            if age < 0:
                continue
            lines = (PROJECT / path).read_bytes().splitlines(keepends=True)
            (wanted / path).parent.mkdir(parents=True, exist_ok=True)
            (wanted / path).write_bytes(b"".join(lines[: len(lines) * min(age + 2, 6) // 6]))
        now = FIRST_MADE_UP + number * 86_400
        follow(source, wanted, now)
        shutil.rmtree(wanted)
        yield now


def decorate(source: Path, number: int, now: int) -> None:
    """What git does not know: modes, owners, links and strange names, some of it new in every session."""
    extra = source / "not in git"
    shutil.rmtree(extra, ignore_errors=True)
    extra.mkdir()
    names = ["plain", "ex\nample", "\udcff\udcfe", "-n", f"only at {number}"]
    for position, name in enumerate(names):
        (extra / name).write_bytes(b"%d\n" % (number // (position + 1)) * 100)
        os.utime(extra / name, (now, now - number % (position + 2)))
        (extra / name).chmod((0o644, 0o600, 0o4755, 0o640)[(number + position) % 4])
    os.link(extra / names[number % 3], extra / "one more name")
    (extra / "symlink").symlink_to(names[number % 2])
    os.mkfifo(extra / FIFO, 0o600)
    (extra / "empty").mkdir(mode=0o700 | number % 8)
    if os.geteuid() == 0:
        os.chown(extra / "plain", number, 5)
        os.chown(extra / "empty", 7, number)
    for path in (extra / FIFO, extra / "empty", extra):
        os.utime(path, (now, now))
    source.chmod(0o755 if number % 2 else 0o750)
    os.utime(source, (now, now))


def test_files_change_as_they_should(tmp_path: Path) -> None:
    """Of the made-up states, too, each is different from the one before."""
    source, workshop = tmp_path / "source", tmp_path / "workshop"
    source.mkdir()
    workshop.mkdir()
    sizes = []
    before: comparison.Manifest = {}
    for _ in made_up_states(source, workshop):
        now = comparison.read(source)
        assert difference(before, now) != []
        sizes.append(len(now))
        before = now
    assert len(sizes) == SESSIONS
    assert sizes[0] < sizes[-1]
    assert all((source / name).exists() for name in ("pyproject.toml", "tests/test_project_history.py"))


# The repository and its witnesses


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    place = tmp_path_factory.mktemp("project")
    source, workshop, repository, truth = (place / name for name in ("source", "workshop", "repository", "truth"))
    for directory in (source, workshop, truth):
        directory.mkdir()
    known = commits()
    chosen = spread(known, SESSIONS) if len(known) >= SESSIONS else []
    times = states_of_commits(source, chosen, workshop) if chosen else made_up_states(source, workshop)
    states = []
    for number, now in enumerate(times):
        decorate(source, number, now)
        states.append(State(now, comparison.read(source)))
        subprocess.run(["cp", "-a", source, truth / str(now)], check=True)
        agreement.histfs_backup(source, repository, at=now)
    assert len(states) == SESSIONS
    return History(repository, truth, states)


def check(history: History, state: State, found: Path, *, root_mtime: bool = True) -> None:
    """Attribute by attribute, and by `diff`, which knows nothing of our manifests."""
    lines = difference(state.manifest, comparison.read(found), root_mtime=root_mtime, owners=agreement.OWNERS)
    assert not lines, "\n".join([f"session {state.time}", *lines])
    silently(["diff", "-r", "--no-dereference", f"--exclude={FIFO}", history.truth / str(state.time), found])


def silently(command: Sequence[str | Path], *, output: bool = False) -> bytes:
    """Run a command that must find nothing wrong; `output`: it may print to its standard output."""
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    ran = subprocess.run(command, capture_output=True, timeout=60, env=environment, check=False)
    assert (ran.returncode, ran.stderr) == (0, b""), ran
    assert output or ran.stdout == b"", ran
    return ran.stdout


@contextmanager
def removed_afterwards(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_the_mount(history: History, tmp_path: Path) -> None:
    names = snapshot_names([state.time for state in history.states], UTC)
    with agreement.mounted(history.repository, tmp_path) as mountpoint:
        for state in history.states:
            check(history, state, mountpoint / names[state.time], root_mtime=False)


def test_histfs_restore(history: History, tmp_path: Path) -> None:
    with Repository.open(history.repository) as repository:
        for state in history.states:
            with removed_afterwards(tmp_path / "restored") as target:
                restore(repository, b"", state.time, target, report=agreement.complain)
                check(history, state, target)


def test_rdiff_backup_restore(history: History, tmp_path: Path, rdiff_backup: Oracle) -> None:
    for state in history.states:
        with removed_afterwards(tmp_path / "restored") as target:
            rdiff_backup.restore(history.repository, target, at=state.time).check()
            check(history, state, target)


def test_rdiff_backup_verify(history: History, rdiff_backup: Oracle) -> None:
    for state in history.states:
        rdiff_backup.verify(history.repository, at=state.time).check()


@pytest.mark.parametrize(
    "command",
    [
        ["find", "SNAPSHOT", "-ls"],
        ["tar", "--create", "--file=TARGET", "--directory=SNAPSHOT", "."],
        ["rsync", "-aH", "--dry-run", "--itemize-changes", "SNAPSHOT/", "TARGET"],
        ["cp", "-a", "SNAPSHOT", "TARGET"],
        ["du", "-a", "SNAPSHOT"],
        ["du", "--apparent-size", "-s", "SNAPSHOT"],
        ["diff", "-r", "--no-dereference", f"--exclude={FIFO}", "SNAPSHOT", "TRUTH"],
        ["grep", "-r", "--count", "histfs", "SNAPSHOT"],
        ["stat", "SNAPSHOT", "SNAPSHOT/not in git/symlink", f"SNAPSHOT/not in git/{FIFO}"],
        ["stat", "-f", "SNAPSHOT"],
        ["ls", "-laR", "SNAPSHOT"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_ordinary_programs_do_not_complain(history: History, tmp_path: Path, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    state = history.states[SESSIONS // 2]
    names = snapshot_names([state.time for state in history.states], UTC)
    with agreement.mounted(history.repository, tmp_path) as mountpoint:
        places = {
            "SNAPSHOT": mountpoint / names[state.time],
            "TRUTH": history.truth / str(state.time),
            "TARGET": tmp_path / "target",
        }
        for word, place in places.items():
            command = [argument.replace(word, os.fspath(place)) for argument in command]
        output = silently(command, output=True)
    assert output or (tmp_path / "target").exists() or command[0] == "diff"
    if command[0] == "cp":
        check(history, state, tmp_path / "target", root_mtime=False)
