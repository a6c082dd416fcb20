"""Everybody who can read a repository is asked what a session was, and must give the same answer.

The witnesses: `histfs restore`, `histfs verify`, the mount, and rdiff-backup's restore and verify. The manifest that
was made of the source before the session is what is true.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

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
from tests.oracle import Oracle

OWNERS = os.geteuid() == 0  # other users cannot give files away


def complain(error: HistfsError) -> None:
    """A `report` for operations that have nothing to report."""
    raise AssertionError(str(error))


def histfs_backup(source: Path, repository: Path, *, at: int) -> BackupOutcome:
    """A session of histfs that must be without trouble."""
    outcome = backup(source, repository, now=at, report=complain)
    assert (outcome.source_errors, outcome.source_warnings) == (0, 0)
    return outcome


def check_all(repository: Path, states: Sequence[State], rdiff_backup: Oracle, scratch: Path) -> None:
    """Every witness about every session."""
    check_histfs(repository, states, scratch)
    check_mount(repository, states, scratch)
    check_rdiff_backup(repository, states, rdiff_backup, scratch)


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


@contextmanager
def closing_snapshot(repository: Repository, session_time: int) -> Iterator[set[bytes]]:
    snapshot = repository.snapshot(session_time)
    try:
        yield {entry.path for entry in snapshot.entries()}
    finally:
        snapshot.close()


def check_mount(repository: Path, states: Sequence[State], scratch: Path) -> None:
    """The mount shows exactly these sessions, with every attribute."""
    names = snapshot_names([state.time for state in states], UTC)
    with mounted(repository, scratch) as mountpoint:
        assert set(names.values()) <= set(os.listdir(mountpoint))
        for state in states:
            shown = comparison.read(mountpoint / names[state.time])
            agree(state, shown, "mount", root_mtime=False)


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


def agree(state: State, found: Manifest, witness: str, *, root_mtime: bool = True) -> None:
    lines = difference(state.manifest, found, root_mtime=root_mtime, owners=OWNERS)
    assert not lines, "\n".join([f"{witness} of session {state.time}:", *lines])


@contextmanager
def new_directory(scratch: Path) -> Iterator[Path]:
    """The path of a directory to be made, which is removed afterwards."""
    path = scratch / "restored"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def skip_unless_mountable() -> None:
    """Skip the calling test where nothing can be mounted; a failure where CI says that it must be possible."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None:
        required = os.environ.get("HISTFS_REQUIRE_FUSE")
        (pytest.fail if required else pytest.skip)("needs /dev/fuse and fusermount3")


@contextmanager
def mounted(repository: Path, scratch: Path) -> Iterator[Path]:
    """The mount point of `repository`, whose directories are named in UTC. What the mount logs is a failure."""
    skip_unless_mountable()
    mountpoint, log = scratch / "mountpoint", scratch / "mount.log"
    mountpoint.mkdir()
    _histfs("mount", "--utc", f"--log-file={log}", str(repository), str(mountpoint))
    try:
        yield mountpoint
    finally:
        _histfs("umount", str(mountpoint))
        mountpoint.rmdir()
    logged = log.read_text()
    assert " ERROR " not in logged, logged
    log.unlink()


def _histfs(*arguments: str) -> None:
    command = [sys.executable, "-m", "histfs", "--quiet", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
