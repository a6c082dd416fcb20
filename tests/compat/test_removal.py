"""What histfs takes away, beside what rdiff-backup takes away from a copy of the same repository: file by file."""

import gzip
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from histfs.store.remove import remove_paths, remove_sessions
from histfs.store.remove import sessions as removal
from histfs.store.repository import Repository
from tests import comparison, histories
from tests.comparison import Manifest
from tests.compat import agreement, killing
from tests.histories import State
from tests.oracle import Oracle

SESSIONS = 7


def written_in_turns(scratch: Path, rdiff_backup: Oracle, seed: int) -> list[State]:
    """Random sessions of both programs."""
    source, repository = scratch / "source", scratch / "repository"
    writers = random.Random(f"removal {seed}").choices(("histfs", 200, 201), k=SESSIONS)
    states = []
    history = histories.random_history(source, 60_000 + seed, SESSIONS, histories.RDIFF_BACKUP_WRITES)
    for writer, state in zip(writers, history, strict=True):
        if isinstance(writer, int):
            rdiff_backup.backup(source, repository, at=state.time, api=writer).check()
        else:
            agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    return states


def copy_of(repository: Path, name: str) -> Path:
    copy = repository.parent / name
    subprocess.run(["rm", "-rf", copy], check=True)
    subprocess.run(["cp", "-a", repository, copy], check=True)
    return copy


def files(repository: Path) -> set[str]:
    """All but logs and what is histfs's own."""
    found = {
        os.path.relpath(os.path.join(place, name), repository)
        for place, _, names in os.walk(repository)
        for name in names
    }
    return {path for path in found if not path.endswith(".log") and "rdiff-backup-data/histfs/" not in path}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_what_rdiff_backup_leaves(
    scratch: Path, rdiff_backup: Oracle, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_MOST_SWEPT", 0)  # the increments lead to all that goes
    states = written_in_turns(scratch, rdiff_backup, seed)
    repository = scratch / "repository"
    # rdiff-backup counts a session only if something changed after it, and leaves the others to the next removal.
    counted = set(rdiff_backup.increments(repository))
    kept = [number for number in range(1, SESSIONS) if states[number - 1].time in counted]
    assert kept
    for number in kept:
        before = states[number].time
        ours, theirs = copy_of(repository, "ours"), copy_of(repository, "theirs")
        assert remove_sessions(ours, before).sessions == tuple(state.time for state in states[:number])
        assert rdiff_backup.remove_older_than(theirs, at=before).code == 0
        assert files(ours) ^ files(theirs) == set()
    agreement.check_histfs(ours, states[number:], scratch)
    agreement.check_rdiff_backup_restores(ours, states[number:], rdiff_backup, scratch)


def test_a_killed_removal(scratch: Path, rdiff_backup: Oracle) -> None:
    """The sessions that are left can be read by both, and the same command, or rdiff-backup's, takes the rest."""
    killing.skip_unless_traceable()
    states = written_in_turns(scratch, rdiff_backup, 10)
    repository = scratch / "repository"
    before = states[-2].time
    whole = copy_of(repository, "attempt")

    def command(of: Path) -> list[str]:
        arguments = ["--force", "remove", "increments", f"--older-than={before}", str(of)]
        return [sys.executable, "-m", "histfs", *arguments]

    points = [point for point in killing.points(command(whole), whole) if "histfs/catalog" not in point.text]
    expected = files(whole)
    chance = random.Random("killed removal")
    for number, point in enumerate([points[2], *chance.sample(points, 3)]):
        attempt = copy_of(repository, "attempt")
        assert killing.kill_at(command(attempt), point)
        with Repository.open(attempt) as opened:
            left = [state for state in states if state.time in opened.sessions()]
        assert left == states[-len(left) :]
        agreement.check_histfs(attempt, left, scratch)
        agreement.check_rdiff_backup_restores(attempt, left, rdiff_backup, scratch)
        if number % 2 and len(left) > 2:
            assert rdiff_backup.remove_older_than(attempt, at=before).code == 0
        else:
            remove_sessions(attempt, before)
            assert files(attempt) == expected
        agreement.check_histfs(attempt, states[-2:], scratch)
        agreement.check_rdiff_backup_restores(attempt, states[-2:], rdiff_backup, scratch)


def lists(repository: Path) -> dict[str, bytes]:
    """What the lists of sessions and the statistics of files say, whatever they are compressed by."""
    found = {}
    for path in (repository / "rdiff-backup-data").iterdir():
        if path.name.startswith(("mirror_metadata.", "file_statistics.")):
            content = path.read_bytes()
            found[path.name.removesuffix(".gz")] = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return found


def is_plain(path: bytes, state: State) -> bool:
    """Whether rdiff-backup-delete can be asked about it: nothing odd in the name, and no digest to hand on."""
    below = [found for name, found in state.manifest.items() if name == path or name.startswith(path + b"/")]
    return (
        path.isascii()
        and path.decode().isprintable()
        and not set(path) & set(b"\\%;:")
        and all(found.links is None or len(found.links) == 1 for found in below)
    )


@pytest.mark.parametrize("seed", range(30, 33))
def test_paths_are_gone_as_rdiff_backup_delete_has_it(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    states = written_in_turns(scratch, rdiff_backup, seed)
    repository = scratch / "repository"
    there = (path for path in states[-1].manifest if path and len(path) < 200)
    chosen = sorted(path for path in there if all(is_plain(path, state) for state in states))
    for path in random.Random(f"paths {seed}").sample(chosen, 2):
        ours, theirs = copy_of(repository, "ours"), copy_of(repository, "theirs")
        assert remove_paths(ours, [path]).missing == ()
        program = Path(sys.executable).with_name("rdiff-backup-delete")
        subprocess.run([program, os.fsencode(theirs) + b"/" + path], check=True, capture_output=True)
        assert files(ours) ^ files(theirs) == set(), path
        assert lists(ours) == lists(theirs), path
        left = [state._replace(manifest=without(state.manifest, path)) for state in states]
        agreement.check_histfs(ours, left, scratch)
        agreement.check_rdiff_backup(ours, left, rdiff_backup, scratch)


def without(manifest: Manifest, path: bytes) -> Manifest:
    return {name: found for name, found in manifest.items() if name != path and not name.startswith(path + b"/")}


def test_a_killed_removal_of_a_path(scratch: Path, rdiff_backup: Oracle) -> None:
    """At any moment each session has all of the path or nothing of it, for both programs."""
    killing.skip_unless_traceable()
    states = written_in_turns(scratch, rdiff_backup, 50)
    repository = scratch / "repository"
    chosen = max(
        (path for state in states for path, found in state.manifest.items() if path and found.type == "directory"),
        key=lambda path: sum(len(state.manifest) - len(without(state.manifest, path)) for state in states),
    )

    def command(of: Path) -> list[str]:
        return [sys.executable, "-m", "histfs", "remove", "file", os.fsdecode(os.fsencode(of) + b"/" + chosen)]

    whole = copy_of(repository, "attempt")
    points = [point for point in killing.points(command(whole), whole) if "histfs/" not in point.text]
    for point in random.Random("killed path").sample(points, 4):
        attempt = copy_of(repository, "attempt")
        assert killing.kill_at(command(attempt), point)
        left = []
        with Repository.open(attempt) as opened:
            for state in states:
                with agreement.closing_snapshot(opened, state.time) as paths:
                    is_there = chosen in paths
                left.append(state if is_there else state._replace(manifest=without(state.manifest, chosen)))
        for state in left:
            with agreement.new_directory(scratch) as target:
                rdiff_backup.restore(attempt, target, at=state.time).check()
                assert set(comparison.read(target)) == set(state.manifest)
        remove_paths(attempt, [chosen])
        with Repository.open(attempt) as opened:
            for state in states:
                with agreement.closing_snapshot(opened, state.time) as paths:
                    assert paths == set(without(state.manifest, chosen))
