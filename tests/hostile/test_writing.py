"""Writing to a damaged repository: what can still be read stays so, and nothing is thrown away on a guess."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import HistfsError
from histfs.store.backup import backup
from histfs.store.regress import regress
from tests import comparison
from tests.comparison import Manifest, difference
from tests.hostile import repositories, witness
from tests.hostile.repositories import DATA, FIRST, INCREMENTS, NEW, OLD, SECOND, increment_path, metadata_path, put
from tests.hostile.test_lists import NOT_FILES
from tests.trees import Dir, File, build

NEXT = SECOND + 86_400
DEAD = b"PID 999999\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    repositories.make(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    build(path, Dir({**NEW.entries, "keep": File(b"not kept any more", mtime=5)}))
    return path


def precious(repository: Path) -> Manifest:
    """All of it but for what a writer may leave that gave up: the lock's text, and the times of directories."""
    found = comparison.read(repository)
    found.pop(f"{DATA}/lock.yml".encode(), None)
    return {path: kept._replace(mtime=0) if kept.type == "directory" else kept for path, kept in found.items()}


def refused(verb: Callable[[], object]) -> None:
    with pytest.raises(HistfsError) as caught:
        verb()
    witness.sentences([caught.value])


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_no_session_follows_a_list_that_cannot_be_read(
    repository: Path, source: Path, tmp_path: Path, content: bytes | None
) -> None:
    """What the last session was is not known, so that nothing may take its place in the mirror."""
    newest = metadata_path(repository, SECOND)
    newest.unlink() if content is None else newest.write_bytes(content)
    before = precious(repository)
    refused(lambda: backup(source, repository, now=NEXT, report=lambda _: None))
    after = {path: kept for path, kept in precious(repository).items() if path in before}
    assert difference(before, after) == []


def test_a_session_over_a_damaged_older_list(repository: Path, source: Path, tmp_path: Path) -> None:
    """An older session is lost already; that is no reason not to go on."""
    metadata_path(repository, FIRST).write_bytes(b"garbage")
    backup(source, repository, now=NEXT, report=lambda _: None)
    witness.check(repository, tmp_path, {FIRST: {b""}})


@pytest.mark.parametrize("make_node", [make for make in NOT_FILES if make is not Path.mkdir])
def test_a_session_over_a_mirror_file_that_is_none(
    repository: Path, source: Path, make_node: Callable[[Path], object], tmp_path: Path
) -> None:
    """The file's old version is lost; the session says so, or goes on with the new one, and harms nothing else."""
    put(repository / "keep", make_node)
    try:
        backup(source, repository, now=NEXT, report=lambda _: None)
    except HistfsError as error:
        witness.sentences([error])
    witness.check(repository, tmp_path, {time: {b"keep"} for time in (FIRST, SECOND)}, silent=True)


def test_a_directory_of_the_mirror_that_became_a_link(repository: Path, source: Path, tmp_path: Path) -> None:
    """Nothing is written through it."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "inner").write_bytes(b"outside")
    put(repository / "d", lambda place: place.symlink_to(victim))
    (source / "d" / "inner").write_bytes(b"changed inside")
    (source / "d" / "new").write_bytes(b"new inside")
    try:
        backup(source, repository, now=NEXT, report=lambda _: None)
    except HistfsError as error:
        witness.sentences([error])
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == {"inner": b"outside"}


def test_increments_that_became_a_link(repository: Path, source: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    put(repository / INCREMENTS, lambda place: place.symlink_to(victim))
    try:
        backup(source, repository, now=NEXT, report=lambda _: None)
    except HistfsError as error:
        witness.sentences([error])
    assert os.listdir(victim) == []


# Undoing


def break_off(repository: Path) -> None:
    """Make it look as if the session SECOND had died just before its end."""
    (repository / DATA / "current_mirror.2023-11-14T22:13:20Z.data").write_bytes(DEAD)


def test_the_session_can_be_undone(repository: Path, tmp_path: Path) -> None:
    break_off(repository)
    assert regress(repository, report=lambda _: None) is not None
    account = witness.restored(repository, FIRST, tmp_path)
    assert account.complaints == []
    assert account.found is not None
    assert witness.difference_from(OLD, account.found) == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: increment_path(path, b"changed", "diff.gz").write_bytes(b"garbage"), id="diff"),
        pytest.param(lambda path: increment_path(path, b"deleted", "snapshot.gz").write_bytes(b""), id="snapshot"),
        pytest.param(lambda path: put(increment_path(path, b"deleted", "snapshot.gz"), os.mkfifo), id="fifo"),
        pytest.param(lambda path: metadata_path(path, FIRST).write_bytes(b"garbage"), id="older list"),
        pytest.param(lambda path: metadata_path(path, FIRST).unlink(), id="no older list"),
        pytest.param(lambda path: metadata_path(path, SECOND).write_bytes(b"garbage"), id="newer list"),
        pytest.param(lambda path: (path / "changed").write_bytes(b"another basis"), id="mirror"),
    ],
)
def test_what_cannot_be_undone_is_kept(repository: Path, spoil: Callable[[Path], object]) -> None:
    """An old version that cannot be made again: everything that might still help a person stays."""
    break_off(repository)
    spoil(repository)
    before = precious(repository)
    refused(lambda: regress(repository, report=lambda _: None))
    after = precious(repository)
    for path, kept in before.items():
        is_content = kept.type == "file" and not path.startswith(DATA.encode()) and path not in (b"one", b"two")
        if path.startswith(INCREMENTS.encode()) or (is_content and path != b"replaced"):
            assert after.get(path) == kept, path
    assert sum(b"current_mirror" in path for path in after) == 2


def test_undoing_leaves_through_no_link(repository: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"x")
    break_off(repository)
    put(repository / "d", lambda place: place.symlink_to(victim))
    (repository / "stranger").symlink_to(victim)
    (repository / INCREMENTS / "stranger").symlink_to(victim)
    try:
        regress(repository, report=lambda _: None)
    except HistfsError as error:
        witness.sentences([error])
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == {"precious": b"x"}


def test_a_target_within_the_repository_is_refused(repository: Path) -> None:
    before = precious(repository)
    for target in (repository / "new", repository / DATA / "new", repository / "d"):
        ran = witness.run_cramped("restore", str(repository), str(target))
        assert ran.returncode & 1, ran
    assert difference(before, precious(repository)) == []


def test_a_target_that_is_a_link_to_the_repository(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository / "d" / "deeper")
    before = precious(repository)
    ran = witness.run_cramped("restore", str(repository), str(tmp_path / "link" / "new"))
    assert ran.returncode & 1, ran
    assert difference(before, precious(repository)) == []
