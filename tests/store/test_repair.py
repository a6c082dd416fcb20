"""Repairing: what follows from the rest is made anew, nothing is deleted, and whoever is killed goes on."""

import gzip
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import HistfsError, LockedError
from histfs.store.files import WritableTree
from histfs.store.format.ledger import HEADER_BYTES
from histfs.store.lock import locked
from histfs.store.repair import RepairOutcome, plan_repair, repair
from histfs.store.verify_all import verify_all
from tests.comparison import difference
from tests.store.catalogs import fresh_rows, own_rows
from tests.store.killing import Killer
from tests.store.places import is_root
from tests.store.sessions import DAY, Sessions, stamp

NOW = 1_800_000_000


def run(sessions: Sessions) -> RepairOutcome:
    plans: list[RepairOutcome] = []
    expected = plan_repair(sessions.repository)
    outcome = repair(sessions.repository, now=NOW, show=plans.append, report=sessions.reported.append)
    assert [plan.repairs and list(map(str, plan.repairs)) for plan in plans] == [
        expected.repairs and list(map(str, expected.repairs))
    ]
    return outcome


def check(sessions: Sessions, *, is_exact: bool = True) -> None:
    """All is readable again and verified, nothing is left to repair, and the next session succeeds."""
    if is_exact:
        sessions.assert_all_readable()
    reported: list[HistfsError] = []
    with sessions.open() as repository:
        assert verify_all(repository, b"", report=reported.append).problems == ()
    assert list(map(str, reported)) == []
    assert plan_repair(sessions.repository).repairs == ()
    assert own_rows(sessions.repository) == fresh_rows(sessions.repository)
    (sessions.source / "after the repair").write_bytes(b"new")
    sessions.backup()
    sessions.assert_readable(sessions.now)


def newest_list(sessions: Sessions) -> Path:
    return max(sessions.data.glob("mirror_metadata.*.snapshot.gz"))


def aside(sessions: Sessions) -> set[str]:
    return {path.name for path in sessions.data.glob("histfs/aside/*/*")}


def test_nothing_is_wrong(rich_sessions: Sessions) -> None:
    assert run(rich_sessions) == RepairOutcome((), (), None)
    assert aside(rich_sessions) == set()
    check(rich_sessions)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_in_text(path: Path) -> None:
    """A record that is none, in a list that is whole."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"File empty\n", b"Fil\xff empty\n")))


@pytest.mark.parametrize("damage", [_cut, Path.unlink, lambda path: path.write_bytes(b""), _flip_in_text])
def test_the_newest_list(rich_sessions: Sessions, damage: Callable[[Path], object]) -> None:
    if not is_root():
        pytest.skip("only root's mirror has all attributes")
    damaged = newest_list(rich_sessions)
    damage(damaged)
    was_there = damaged.exists()
    with rich_sessions.open() as repository, pytest.raises(HistfsError):
        repository.snapshot(rich_sessions.now).check_list()
    outcome = run(rich_sessions)
    assert outcome.repairs[0].what.startswith("make the newest list of files anew")
    assert outcome.lost == ()
    assert aside(rich_sessions) >= ({damaged.name} if was_there else set())
    for time, state in rich_sessions.states.items():
        lines = difference(state, rich_sessions.manifest(time), nlink=False)
        assert lines == [], time
    check(rich_sessions, is_exact=False)


def test_what_can_be_read_of_the_list_is_the_truth(rich_sessions: Sessions) -> None:
    """A file of the mirror that is damaged is not taken for what was backed up."""
    damaged = newest_list(rich_sessions)
    text = gzip.decompress(damaged.read_bytes())
    damaged.write_bytes(gzip.compress(text[: text.index(b"File touched\n")])[:-8])
    (rich_sessions.repository / "changed").write_bytes(b"rotten")
    (rich_sessions.repository / "touched").write_bytes(b"rotten")
    run(rich_sessions)
    reported: list[HistfsError] = []
    with rich_sessions.open() as repository:
        outcome = verify_all(repository, b"", report=reported.append)
    assert {finding.path for finding in outcome.findings} >= {b"changed"}
    assert b"touched" in {finding.path for finding in outcome.findings}  # its older versions, which the lists tell of


def _rot(path: Path) -> None:
    """Other bytes, and nothing that shows it."""
    status = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _damaged_now(sessions: Sessions) -> set[object]:
    reported: list[HistfsError] = []
    sessions.verify(sessions.now, reported.append)
    return {error.path for error in reported}


@pytest.mark.parametrize("damage", [_cut, Path.unlink])
def test_the_catalog_tells_what_a_damaged_file_was(rich_sessions: Sessions, damage: Callable[[Path], object]) -> None:
    """Or the new list would take what is damaged for what was backed up."""
    _rot(rich_sessions.repository / "changed")
    _rot(rich_sessions.repository / "kept/same")
    (rich_sessions.repository / "touched").write_bytes(b"")
    damaged = _damaged_now(rich_sessions)
    assert len(damaged) >= 3
    damage(newest_list(rich_sessions))
    outcome = run(rich_sessions)
    assert (outcome.digested, outcome.lost) == (0, ())
    assert _damaged_now(rich_sessions) == damaged


@pytest.mark.parametrize("what", ["missing", "damaged", "of another session"])
def test_digests_of_what_is_there_now_are_told(rich_sessions: Sessions, what: str) -> None:
    catalog = rich_sessions.data / "histfs/catalog.sqlite"
    if what == "missing":
        catalog.unlink()
    elif what == "damaged":
        _cut(catalog)
    else:
        before = catalog.read_bytes()
        rich_sessions.backup()
        catalog.write_bytes(before)
    _rot(rich_sessions.repository / "changed")
    newest_list(rich_sessions).unlink()
    outcome = run(rich_sessions)
    assert outcome.digested > 0
    assert [error.problem for error in outcome.lost] == [
        f"the digests of {outcome.digested} files are those of what is there now:"
        " damage from before cannot be told any more"
    ]
    assert outcome.digested >= len({path.stat().st_ino for path in _files(rich_sessions.repository)}) > 10
    assert _damaged_now(rich_sessions) == set()
    assert run(rich_sessions) == RepairOutcome((), (), None)


def _files(mirror: Path) -> list[Path]:
    files = (path for path in mirror.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if "rdiff-backup-data" not in path.parts]


def test_extended_attributes(rich_sessions: Sessions) -> None:
    files = sorted(rich_sessions.data.glob("extended_attributes.*.gz"))
    if not files or not is_root():
        pytest.skip("this file system has no extended attributes")
    for kind in ("extended_attributes", "access_control_lists"):
        _cut(max(rich_sessions.data.glob(f"{kind}.*.gz")))
    outcome = run(rich_sessions)
    assert len(outcome.repairs) >= 2
    check(rich_sessions)
    _cut(files[0])
    assert [error.path for error in run(rich_sessions).lost] == [
        os.fsencode(files[0].relative_to(rich_sessions.repository))
    ]


def test_a_lost_marker(rich_sessions: Sessions) -> None:
    [marker] = rich_sessions.data.glob("current_mirror.*")
    marker.unlink()
    assert [each.what.split(" of ")[0] for each in run(rich_sessions).repairs] == ["write the marker"]
    assert marker.exists()
    check(rich_sessions)


def test_a_marker_of_long_ago(rich_sessions: Sessions) -> None:
    """Somebody has brought it back: all sessions since would be undone."""
    first = min(rich_sessions.states)
    (rich_sessions.data / f"current_mirror.{stamp(first)}.data").write_bytes(b"PID 99999\n")
    outcome = run(rich_sessions)
    assert [each.what.split(" of ")[0] for each in outcome.repairs] == ["set aside the marker"]
    assert aside(rich_sessions) == {f"current_mirror.{stamp(first)}.data"}
    check(rich_sessions)


def test_a_session_that_was_cut_off(rich_sessions: Sessions, killer: Killer) -> None:
    (rich_sessions.source / "changed").write_bytes(b"again")
    assert killer.run(30, rich_sessions.backup)
    rich_sessions.now = max(rich_sessions.states)
    if plan_repair(rich_sessions.repository).repairs:
        run(rich_sessions)
    rich_sessions.now += 86_400
    check(rich_sessions)


def test_statistics(rich_sessions: Sessions) -> None:
    files = sorted(rich_sessions.data.glob("session_statistics.*"))
    with rich_sessions.open() as repository:
        before = [repository.statistics(time) for time in repository.sessions()]
    files[1].unlink()
    files[2].write_bytes(b"\0" * 100)
    _cut(max(rich_sessions.data.glob("file_statistics.*.gz")))
    outcome = run(rich_sessions)
    assert len(outcome.repairs) == 3
    assert aside(rich_sessions) == {files[2].name, max(rich_sessions.data.glob("histfs/aside/*/file_*")).name}
    with rich_sessions.open() as repository:
        after = [repository.statistics(time) for time in repository.sessions()]
    for was, now in zip(before, after, strict=True):
        assert was is not None
        assert now is not None
        for field in (
            "source_files",
            "source_file_bytes",
            "mirror_files",
            "new_files",
            "deleted_files",
            "increment_files",
        ):
            assert getattr(now, field) == getattr(was, field), field
    check(rich_sessions)


@pytest.mark.parametrize("what", ["flip", "zero", "value", "ledger"])
def test_what_only_we_have(rich_sessions: Sessions, what: str) -> None:
    path = rich_sessions.data / "histfs" / ("ledger" if what == "ledger" else "catalog.sqlite")
    if what == "value":
        with sqlite3.connect(path) as database:
            assert database.execute("update version set mode = mode + 1 where name = cast('kept' as blob)").rowcount
        database.close()
    else:
        data = bytearray(path.read_bytes())
        data[200] ^= 255
        path.write_bytes(bytes(len(data)) if what == "zero" else data)
        if what == "flip":
            path.write_bytes(path.read_bytes()[:5000])
    outcome = run(rich_sessions)
    assert [each.path for each in outcome.repairs] == [os.fsencode(path.relative_to(rich_sessions.repository))]
    assert aside(rich_sessions) == {path.name}
    check(rich_sessions)


def test_what_another_version_of_the_program_keeps(rich_sessions: Sessions) -> None:
    """Its ledger is no damage, whatever it says, and of no use for the next session, which replaces it."""
    path = rich_sessions.data / "histfs/ledger"
    data = bytearray(path.read_bytes())
    data[7] += 1
    data[HEADER_BYTES - 4 : HEADER_BYTES] = zlib.crc32(data[: HEADER_BYTES - 4]).to_bytes(4, sys.byteorder)
    path.write_bytes(data)
    assert run(rich_sessions).repairs == ()
    assert path.read_bytes() == data
    rich_sessions.backup()
    assert path.read_bytes()[:8] != data[:8]
    check(rich_sessions)


def test_what_cannot_be_made_again(rich_sessions: Sessions) -> None:
    """A difference tells what nothing else does."""
    [lost] = rich_sessions.data.glob(f"mirror_metadata.{stamp(sorted(rich_sessions.states)[1])}.*")
    _cut(lost)
    outcome = run(rich_sessions)
    assert [(error.path, error.at) for error in outcome.lost] == [
        (os.fsencode(lost.relative_to(rich_sessions.repository)), None),
        *((None, time) for time in sorted(rich_sessions.states)[:2]),
    ]
    assert [each.path for each in outcome.repairs] == []
    for time in sorted(rich_sessions.states)[2:]:
        rich_sessions.assert_readable(time)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_every_step(rich_sessions: Sessions, killer: Killer, tmp_path: Path, step: int) -> None:
    """Running again finishes, whatever was done."""
    if not is_root():
        pytest.skip("only root's mirror has all attributes")
    original = tmp_path / "original"
    _cut(newest_list(rich_sessions))
    _cut(rich_sessions.data / "histfs/catalog.sqlite")
    max(rich_sessions.data.glob("session_statistics.*")).write_bytes(b"\0")
    names = {path.name for path in rich_sessions.data.iterdir()}
    subprocess.run(["cp", "-a", rich_sessions.repository, original], check=True)

    def work() -> None:
        repair(rich_sessions.repository, now=NOW, show=lambda _: None, report=pytest.fail)

    at = 0
    while True:
        at += step
        if not killer.run(at, work):
            break
        work()
        assert plan_repair(rich_sessions.repository).repairs == ()
        assert not list(rich_sessions.data.glob("rdiff-backup.tmp*"))
        for time, state in rich_sessions.states.items():
            assert difference(state, rich_sessions.manifest(time), nlink=False) == [], (at, time)
        assert names - {path.name for path in rich_sessions.data.iterdir()} == set()
        subprocess.run(["rm", "-rf", rich_sessions.repository], check=True)
        subprocess.run(["cp", "-a", original, rich_sessions.repository], check=True)
    assert at > 15


# --- sessions that did not finish -----------------------------------------------------------------------------------


def cut_off(sessions: Sessions, pid: int) -> None:
    name = f"current_mirror.{stamp(sessions.now + DAY)}.data"
    (sessions.data / name).write_bytes(b"PID %d\n" % pid)


def both(sessions: Sessions) -> list[Callable[[], object]]:
    def show(_plan: RepairOutcome) -> None:
        raise AssertionError

    return [
        lambda: plan_repair(sessions.repository),
        lambda: repair(sessions.repository, now=NOW, show=show, report=sessions.reported.append),
    ]


def test_a_session_that_runs_is_not_taken_for_one_that_was_cut_off(rich_sessions: Sessions) -> None:
    cut_off(rich_sessions, os.getpid())
    with WritableTree.open(rich_sessions.repository) as tree, locked(tree, verb="backup"):
        for action in both(rich_sessions):
            with pytest.raises(LockedError, match=f"another program is using .*pid: {os.getpid()}"):
                action()
    assert len(plan_repair(rich_sessions.repository).repairs) == 1


def test_nor_is_one_of_a_program_that_does_not_lock(rich_sessions: Sessions) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        cut_off(rich_sessions, process.pid)
        for action in both(rich_sessions):
            with pytest.raises(LockedError, match=f"a session of process {process.pid} is running"):
                action()
        assert len(plan_repair(rich_sessions.repository, force=True).repairs) == 1
        process.kill()


def test_a_first_session_that_was_cut_off_is_no_damage(sessions: Sessions) -> None:
    (sessions.data / "increments").mkdir(parents=True)
    (sessions.data / "increments/.keep").touch()
    (sessions.repository / "copied").touch()
    assert run(sessions) == ((), (), None, 0, True)
    (sessions.data / f"mirror_metadata.{stamp(sessions.now)}.snapshot.gz").touch()
    assert run(sessions) == ((), (), None, 0, True)


def test_a_session_that_has_lost_its_list_is_no_first_one_that_was_cut_off(sessions: Sessions) -> None:
    sessions.source.mkdir()
    sessions.backup()
    for base in ("mirror_metadata", "current_mirror"):
        for path in sessions.data.glob(f"{base}.*"):
            path.unlink()
    [lost] = run(sessions).lost
    assert "no current_mirror marker" in lost.problem
