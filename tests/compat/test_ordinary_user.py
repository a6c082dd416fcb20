"""A backup by somebody who may not read everything, give files away or make devices; and both programs in turns.

Root prepares what an ordinary user finds on a computer, and runs the programs as one. Where the tests are run by an
ordinary user the source is that user's own, which has less in it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import comparison
from tests.comparison import Manifest
from tests.compat import killing
from tests.oracle import Oracle
from tests.trees import Device, Dir, Fifo, File, Node, Socket, Symlink, build

IS_ROOT = os.geteuid() == 0
ME, OTHER = (61_234, 61_235) if IS_ROOT else (os.geteuid(), os.geteuid())
FIRST = 1_700_000_000
# With summer time, with half hours, on both sides of Greenwich.
ZONES = ("Europe/Berlin", "Australia/Adelaide", "America/St_Johns", "Asia/Kathmandu", "UTC")
READ_ONLY = ("read-only", "read-only/sub")
UNREADABLE = {"private", "closed", "unlisted"} if IS_ROOT else set()


def mine(entries: dict[str | bytes, Node], mode: int = 0o755) -> Dir:
    return Dir(entries, mode=mode, owner=(ME, ME) if IS_ROOT else None)


def file_of(owner: int, content: bytes, mode: int = 0o644) -> File:
    return File(content, mode=mode, owner=(owner, owner) if IS_ROOT else None)


def make_source(source: Path) -> None:
    entries: dict[str | bytes, Node] = {
        "mine": file_of(ME, b"mine"),
        "other's": file_of(OTHER, b"other's"),
        "read-only": mine({"a": file_of(ME, b"a", 0o444), "sub": mine({"b": file_of(ME, b"b")}, 0o555)}, 0o555),
        "gone": mine({"deep": mine({"x": file_of(ME, b"x")}, 0o555)}, 0o555),
        "no-write": file_of(ME, b"no write", 0o444),
        "setgid": mine({"x": file_of(ME, b"x")}, 0o2775),
        "sticky": mine({"x": file_of(ME, b"x")}, 0o1777),
        "setuid": file_of(ME, b"setuid", 0o4755),
        "other's-setuid": file_of(OTHER, b"setuid", 0o6755),
        "fifo": Fifo(),
        "socket": Socket(),
        "link": Symlink("mine", owner=(OTHER, OTHER) if IS_ROOT else None),
    }
    if IS_ROOT:
        entries |= {
            "private": file_of(OTHER, b"secret", 0o600),
            "closed": Dir({"in": file_of(OTHER, b"in")}, mode=0o700, owner=(OTHER, OTHER)),
            "unlisted": mine({"in": file_of(ME, b"in")}, 0o311),
            "device": Device("c", 1, 3),
            "disk": Device("b", 7, 0),
        }
    build(source, mine(entries))


def change_source(source: Path, number: int) -> None:
    """Contents, names, types and modes, most of it where nobody but root may write."""
    for directory in READ_ONLY:
        (source / directory).chmod(0o755)
    if number == 1:
        write(source / "read-only/a", b"another a")
        (source / "read-only/sub/b").unlink()
        write(source / "read-only/sub/new", b"new", 0o400)
        write(source / "no-write", b"still no write", 0o444)
        (source / "sticky").chmod(0o1555)
        remove(source / "gone")
        (source / "fifo").unlink()
        write(source / "fifo", b"is a file")
        if IS_ROOT:
            (source / "device").unlink()
            os.symlink("mine", source / "device")
    else:
        write(source / "mine", b"mine again")
        (source / "read-only/a").unlink()
        (source / "read-only/a").mkdir(0o555)
        (source / "setgid/x").rename(source / "setgid/y")
        remove(source / "read-only/sub")
        write(source / "read-only/sub", b"was a directory", 0o444)
        if IS_ROOT:
            (source / "device").unlink()
            os.mknod(source / "device", 0o020666, os.makedev(1, 5))
    for directory in READ_ONLY:
        (source / directory).chmod(0o555 if number == 1 or directory == "read-only" else 0o444)
    for path in [source, *source.rglob("*")]:
        if IS_ROOT and path.lstat().st_uid == 0:
            os.chown(path, ME, ME, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            os.utime(path, (1_650_000_000 + number, 1_650_000_000 + number))


def remove(directory: Path) -> None:
    subprocess.run(["chmod", "-R", "u+rwX", directory], check=True)
    shutil.rmtree(directory)


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (1_600_000_000 + len(content), 1_600_000_000 + len(content)))


def command(*arguments: str | Path) -> list[str]:
    """A command line that runs histfs as the user."""
    become = ["setpriv", f"--reuid={ME}", f"--regid={ME}", "--clear-groups"] if IS_ROOT else []
    return [*become, sys.executable, "-m", "histfs", *map(os.fspath, arguments)]


def histfs(*arguments: str | Path, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TZ": zone}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, cwd="/", check=False)


def seen(place: Path) -> Manifest:
    """What an ordinary user can have saved of the source: what is readable, without owners."""
    found = comparison.read(place, leaving_out=b"rdiff-backup-data")
    hidden = {os.fsencode(name) for name in UNREADABLE}
    return {path: attributes for path, attributes in found.items() if path.split(b"/")[0] not in hidden}


@pytest.fixture
def place(scratch: Path) -> Iterator[Path]:
    """A directory of the user's in which everything happens."""
    if IS_ROOT:
        scratch.chmod(0o755)
    place = scratch / "place"
    place.mkdir(0o755)
    if IS_ROOT:
        os.chown(place, ME, ME)
        if histfs("--version").returncode != 0:
            pytest.skip("other users cannot run the interpreter of these tests")
    make_source(place / "source")
    yield place
    subprocess.run(["chmod", "-R", "u+rwX", place], check=True)


@pytest.fixture
def as_user() -> Iterator[Oracle]:
    with Oracle(ME if IS_ROOT else None) as oracle:
        yield oracle


def back_up(place: Path, number: int, zone: str) -> None:
    """A session of histfs, which names each file that it could not read, and nothing else."""
    run = histfs(
        f"--current-time={FIRST + number * 86_400}", "backup", place / "source", place / "repository", zone=zone
    )
    assert run.returncode == (4 if UNREADABLE else 0), run
    named = {line.removeprefix("histfs: ").partition(":")[0] for line in run.stderr.splitlines()}
    assert named == UNREADABLE, run


def check(place: Path, states: list[Manifest], zone: str) -> None:
    """histfs lists, verifies and restores each session, as far as its user may."""
    repository = place / "repository"
    for number, state in enumerate(states):
        at = f"--at={FIRST + number * 86_400}"
        run = histfs("verify", at, repository, zone=zone)
        assert (run.returncode, run.stderr) == (0, "")
        listed = histfs("list", "files", "--null", at, repository, zone=zone).stdout.split("\0")
        assert set(state) <= {b"" if path == "." else os.fsencode(path) for path in listed}
        target = place / f"restored-{number}"
        run = histfs("restore", at, repository, target, zone=zone)
        devices = {path for path, attributes in state.items() if "device" in attributes.type}
        assert run.returncode in ((0,) if not devices else (4, 5, 6)), run
        assert all(os.fsdecode(path) in run.stderr for path in devices)
        expected = {path: found for path, found in state.items() if path not in devices}
        restored = seen(target)
        assert comparison.difference(without_special_bits(expected), without_special_bits(restored), owners=False) == []
        remove(target)


def without_special_bits(manifest: Manifest) -> Manifest:
    """Setuid and setgid are not given to what belongs to somebody else now."""
    return {path: found._replace(mode=found.mode & 0o1777) for path, found in manifest.items()}


def check_placeholders(place: Path) -> None:
    """What cannot be made is an empty file in the mirror, and still what it is in every list."""
    if not IS_ROOT:
        return
    assert (place / "repository/disk").is_file()
    assert (place / "repository/disk").stat().st_size == 0
    run = histfs("--parsable-output", "list", "files", "--json", place / "repository")
    assert '"type": "dev b"' in run.stdout


@pytest.mark.parametrize("zones", [ZONES[:3], ZONES[2:]])
def test_sessions_of_an_ordinary_user(place: Path, zones: tuple[str, ...]) -> None:
    states = []
    for number in range(3):
        if number:
            change_source(place / "source", number)
        states.append(seen(place / "source"))
        back_up(place, number, zones[number])
        check_placeholders(place)
    check(place, states, zones[0])


@pytest.mark.parametrize("writers", ["rhr", "hrh"])
def test_turns_of_both_programs(place: Path, as_user: Oracle, rdiff_backup: Oracle, writers: str) -> None:
    """Each goes on with what the other wrote, and restores all of it."""
    assert rdiff_backup
    states = []
    for number, writer in enumerate(writers):
        if number:
            change_source(place / "source", number)
        states.append(seen(place / "source"))
        if writer == "h":
            back_up(place, number, "UTC")
        else:
            at = FIRST + number * 86_400
            run = as_user.backup(place / "source", place / "repository", at=at, api=200 + number % 2)
            assert run.code == 0, run.output
    check(place, states, "UTC")
    for number, state in enumerate(states):
        target = place / f"their-{number}"
        run = as_user.restore(place / "repository", target, at=FIRST + number * 86_400)
        assert run.code == 0, run.output
        devices = {path for path, attributes in state.items() if "device" in attributes.type}
        expected, restored = without_special_bits(state), without_special_bits(seen(target))
        for path in devices:
            del expected[path]
            restored.pop(path, None)
        assert comparison.difference(expected, restored, owners=False) == []
        assert as_user.verify(place / "repository", at=FIRST + number * 86_400).code == 0
        remove(target)


@pytest.mark.parametrize("writer", ["histfs", "rdiff-backup"])
def test_a_killed_session_is_undone(place: Path, as_user: Oracle, rdiff_backup: Oracle, writer: str) -> None:
    """Also where it has changed directories that nobody may write to, in a mirror of either program."""
    assert rdiff_backup
    killing.skip_unless_traceable()
    source, repository, kept = place / "source", place / "repository", place / "kept"
    state = seen(source)
    if writer == "histfs":
        back_up(place, 0, "UTC")
    else:
        assert as_user.backup(source, repository, at=FIRST).code == 0
    subprocess.run(["cp", "-a", repository, kept], check=True)
    change_source(source, 1)
    session = command("-q", f"--current-time={FIRST + 60}", "backup", source, repository)
    points = killing.points(session, repository)
    for point in (points[len(points) // 3], points[len(points) // 2]):
        remove(repository)
        subprocess.run(["cp", "-a", kept, repository], check=True)
        assert killing.kill_at(session, point)
        check(place, [state], "UTC")
        run = histfs("regress", repository)
        assert run.returncode == 2, run
        check(place, [state], "UTC")
        assert as_user.verify(repository, at=FIRST).code == 0
