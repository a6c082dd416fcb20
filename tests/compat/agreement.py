"""Everybody who can read a repository is asked what a session was, and must give the same answer.

The witnesses: `histfs restore`, `histfs verify`, the mount, and rdiff-backup's restore and verify. The manifest that
was made of the source before the session is what is true.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from histfs.errors import HistfsError
from histfs.store.backup import BackupOutcome, backup
from histfs.store.repository import Repository
from histfs.store.restore import restore
from histfs.store.verify import verify
from histfs.store.when import snapshot_names
from tests import comparison
from tests.comparison import Manifest, difference
from tests.histories import State
from tests.mirrors import read_mirror
from tests.oracle import Oracle

_PATIENCE_S = 60.0
_SHOWN_WITHIN_S = 2.0  # a second, where nobody else needs the machine
OWNERS = os.geteuid() == 0  # other users cannot give files away


def complain(error: HistfsError) -> None:
    """A `report` for operations that have nothing to report."""
    raise AssertionError(str(error))


def histfs_backup(source: Path, repository: Path, *, at: int, **options: Any) -> BackupOutcome:
    """A session of histfs that must be without trouble. `options`: those of `backup`."""
    outcome = backup(source, repository, now=at, report=complain, **options)
    assert (outcome.source_errors, outcome.source_warnings) == (0, 0)
    return outcome


def check_all(
    repository: Path, states: Sequence[State], rdiff_backup: Oracle, scratch: Path, *, nlink: bool = True
) -> None:
    """Every witness about every session; the mount last, as the test is skipped where nothing can be mounted.

    Without `nlink` some links of a file were not backed up: the mount counts them, too.
    """
    check_histfs(repository, states, scratch)
    check_rdiff_backup(repository, states, rdiff_backup, scratch)
    check_mirror(repository, states[-1])
    check_mount(repository, states, scratch, nlink=nlink)


def check_histfs(repository: Path, states: Sequence[State], scratch: Path) -> None:
    """histfs lists the sessions and their files, restores and verifies them."""
    with Repository.open(repository) as opened:
        assert opened.sessions() == tuple(state.time for state in states)
        for state in states:
            with closing_snapshot(opened, state.time) as paths:
                assert paths == set(state.manifest)
            outcome = verify(opened, b"", state.time, report=complain)
            files = sum(attributes.type == "file" for attributes in state.manifest.values())
            assert outcome == (files, 0, 0)
            with new_directory(scratch) as target:
                restored = restore(opened, b"", state.time, target, report=complain)
                assert restored == (len(state.manifest), 0)
                agree(state, comparison.read(target), "histfs restore")
            check_part(opened, state, scratch)


def check_part(repository: Repository, state: State, scratch: Path) -> None:
    """A directory is restored by itself. Links to files outside of it are files of their own then."""
    directories = sorted(path for path, attributes in state.manifest.items() if attributes.type == "directory")
    chosen = random.Random(state.time).choice(directories)
    with new_directory(scratch) as target:
        restore(repository, chosen, state.time, target, report=complain)
        part = comparison.below(state.manifest, chosen) if chosen else state.manifest
        lines = difference(part, comparison.read(target), owners=OWNERS)
        assert not lines, "\n".join([f"histfs restore of {chosen!r} at {state.time}", *lines])


def check_mirror(repository: Path, newest: State, *, links: bool = True) -> None:
    """The repository itself is a plain copy of the newest state, for everybody to use.

    Where a session was undone, `links` need not be links any more (docs/format.md trap 5).
    """
    lines = difference(newest.manifest, read_mirror(repository), owners=OWNERS, links=links)
    assert not lines, "\n".join(["mirror:", *lines])


@contextmanager
def closing_snapshot(repository: Repository, session_time: int) -> Iterator[set[bytes]]:
    snapshot = repository.snapshot(session_time)
    try:
        yield {entry.path for entry in snapshot.entries()}
    finally:
        snapshot.close()


def check_mount(repository: Path, states: Sequence[State], scratch: Path, *, nlink: bool = True) -> None:
    """The mount shows exactly these sessions, with every attribute."""
    with mounted(repository, scratch) as mountpoint:
        check_shown(mountpoint, states, nlink=nlink)


def check_shown(mountpoint: Path, states: Sequence[State], *, nlink: bool = True) -> None:
    names = snapshot_names([state.time for state in states], UTC)
    deadline = time.monotonic() + _SHOWN_WITHIN_S
    while set(os.listdir(mountpoint)) != set(names.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for state in states:
        shown = comparison.read(mountpoint / names[state.time])
        agree(state, shown, "mount", root_mtime=False, nlink=nlink)


def check_rdiff_backup(repository: Path, states: Sequence[State], rdiff_backup: Oracle, scratch: Path) -> None:
    """rdiff-backup restores every session, and has nothing to say when it verifies it."""
    check_rdiff_backup_restores(repository, states, rdiff_backup, scratch)
    for state in states:
        rdiff_backup.verify(repository, at=state.time).check()


def check_rdiff_backup_restores(repository: Path, states: Sequence[State], rdiff_backup: Oracle, scratch: Path) -> None:
    """rdiff-backup restores every session without a word."""
    for state in states:
        with new_directory(scratch) as target:
            rdiff_backup.restore(repository, target, at=state.time).check()
            agree(state, comparison.read(target), "rdiff-backup restore")


def agree(state: State, found: Manifest, witness: str, *, root_mtime: bool = True, nlink: bool = True) -> None:
    lines = difference(state.manifest, found, root_mtime=root_mtime, owners=OWNERS, nlink=nlink)
    assert not lines, "\n".join([f"{witness} of session {state.time}:", *lines])


@contextmanager
def new_directory(scratch: Path) -> Iterator[Path]:
    """The path of a directory to be made, which is removed afterwards."""
    path = scratch / "restored"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def can_mount() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None


def skip_unless_mountable() -> None:
    """Skip the calling test where nothing can be mounted; that is a failure where CI is set."""
    if not can_mount():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs /dev/fuse and fusermount3")


@contextmanager
def mounted(repository: Path, scratch: Path) -> Iterator[Path]:
    """The mount point of `repository`, whose directories are named in UTC. Whatever the mount says is a failure."""
    with mount(repository, scratch) as (mountpoint, said):
        yield mountpoint
    assert said == [], said


@contextmanager
def mount(repository: Path, scratch: Path) -> Iterator[tuple[Path, list[str]]]:
    """The mount point of `repository`, and a list of the lines that the mount said, which is filled at the end."""
    skip_unless_mountable()
    mountpoint, said = scratch / "mountpoint", scratch / "mount.log"
    lines: list[str] = []
    mountpoint.mkdir()
    command: list[str | Path] = [sys.executable, "-m", "histfs", "--quiet", "mount", "--utc", "--foreground"]
    command += [repository, mountpoint]
    with said.open("w+") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            wait_until_mounted(mountpoint, process, said)
            yield mountpoint, lines
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(_PATIENCE_S)
    mountpoint.rmdir()
    lines += [line for line in said.read_text().splitlines() if line != "histfs: SIGTERM: unmounting"]
    said.unlink()
    assert code == 0, lines


def wait_until_mounted(mountpoint: Path, process: subprocess.Popen[bytes], said: Path) -> None:
    """`process` mounts something there, and says what is wrong in the file `said`."""
    deadline = time.monotonic() + _PATIENCE_S
    while not os.path.ismount(mountpoint):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, "it is not mounted yet"
        time.sleep(0.01)
