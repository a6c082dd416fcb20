"""The harness itself: what rdiff-backup writes and restores is what the manifests say.

If these tests fail, the trees, the histories or the comparison are wrong, or rdiff-backup is; not histfs.
"""

import itertools
from pathlib import Path

import pytest

from tests import comparison, histories
from tests.oracle import Oracle
from tests.trees import Dir, Fifo, File, Link, Symlink, build, compare, difference


def test_a_literal_is_built_as_it_is_written(scratch: Path) -> None:
    tree = Dir({"a": File(b"1", mode=0o4755, mtime=-5), "b": Link("a"), "d": Dir({b"\xff": Symlink("x"), "p": Fifo()})})
    build(scratch, tree)
    assert compare(scratch, tree) == []
    assert comparison.read(scratch)[b"a"].links == (b"a", b"b")


@pytest.mark.parametrize(
    "change",
    [
        {"a": File(b"2"), "b": Link("a")},
        {"a": File(b"1", mtime=1), "b": Link("a")},
        {"a": File(b"1", mode=0o600), "b": Link("a")},
        {"a": File(b"1"), "b": File(b"1")},
        {"a": File(b"1")},
        {"a": File(b"1"), "b": Link("a"), "c": Fifo()},
        {"a": File(b"1"), "b": Symlink("a")},
    ],
)
def test_every_difference_is_noticed(scratch: Path, change: dict[str | bytes, File | Link | Fifo | Symlink]) -> None:
    build(scratch / "tree", Dir({"a": File(b"1"), "b": Link("a")}))
    assert compare(scratch / "tree", Dir({"a": File(b"1"), "b": Link("a")})) == []
    assert compare(scratch / "tree", Dir(change)) != []


def test_a_history_repeats(scratch: Path) -> None:
    first = list(histories.random_history(scratch / "one", 3, 6))
    second = list(histories.random_history(scratch / "two", 3, 6))
    assert [state.time for state in first] == [state.time for state in second]
    for one, two in zip(first, second, strict=True):
        assert difference(one.manifest, two.manifest) == []
    assert any(difference(one.manifest, two.manifest) for one, two in itertools.pairwise(first))


@pytest.mark.parametrize("api", [200, 201])
@pytest.mark.parametrize("seed", range(2))
def test_rdiff_backup_restores_what_it_wrote(scratch: Path, rdiff_backup: Oracle, seed: int, api: int) -> None:
    source, repository = scratch / "source", scratch / "repository"
    states: list[histories.State] = []
    for state in histories.random_history(source, 1_000 + seed, 8, histories.RDIFF_BACKUP_WRITES):
        rdiff_backup.backup(source, repository, at=state.time, api=api).check()
        states.append(state)
    for state in states:
        target = scratch / str(state.time)
        rdiff_backup.restore(repository, target, at=state.time).check()
        assert difference(state.manifest, comparison.read(target)) == []
        rdiff_backup.verify(repository, at=state.time).check()
