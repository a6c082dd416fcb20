"""What fuzzing has found once is kept and run again; and a little of it is done in every run of the tests."""

import itertools
from pathlib import Path

import pytest

from tests.fuzz import kept, repositories
from tests.fuzz.__main__ import KEPT, blind
from tests.fuzz.targets import SEEDS, SLOW, TARGETS

CORPUS = sorted(path for path in KEPT.rglob("*") if path.is_file() and path != kept.ARCHIVE)


def test_every_target_has_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    assert all(SEEDS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutations(name: str) -> None:
    for data in [*SEEDS[name], *itertools.islice(blind(SEEDS[name], f"{name} 0"), 300 // SLOW.get(name, 1))]:
        TARGETS[name](data)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations(name: str) -> None:
    known = [path.read_bytes() for path in CORPUS if path.parent.name == name]
    for data in itertools.islice(blind([*SEEDS[name], *known], f"{name} 1"), 20_000 // SLOW.get(name, 1)):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_leads_to_more_code(name: str) -> None:
    for data in kept.found().get(name, ()):
        TARGETS[name](data)


def test_what_is_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ARCHIVE", tmp_path / "found.tar.xz")
    (tmp_path / "corpus/times").mkdir(parents=True)
    (tmp_path / "corpus/times-crash").write_bytes(b"no input of a search")
    for number, data in enumerate((b"one", b"other", b"one")):
        (tmp_path / f"corpus/times/{number}").write_bytes(data)
    for _ in range(2):
        kept.found.cache_clear()
        assert kept.keep(tmp_path / "corpus") == 2
    kept.found.cache_clear()
    assert kept.found() == {"times": [b"one", b"other"]}
    kept.found.cache_clear()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: str(path.relative_to(KEPT)))
def test_what_was_found_before(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_seeds_change_the_files_that_they_are_meant_for() -> None:
    names = repositories.made().names
    meant = {0: "a", 1: "b", 9: "/current_mirror.", 14: "/extended_attributes.", 22: "/catalog.sqlite", 23: "/ledger"}
    meant |= {28: "/increments/a.", 37: "/mirror_metadata."}
    assert all(part in names[number] for number, part in meant.items())
    assert {data[0] for data in SEEDS["repository"] if data} == set(meant)


@pytest.mark.parametrize("name", ["metadata", "delta", "composition", "gzip", "index", "repository"])
def test_targets_notice_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that cannot fail is worth nothing: each is run with something broken under it."""
    from tests.fuzz import targets

    broken = {
        "metadata": (targets.metadata, "parse_record", lambda text: targets.metadata._entry(*[None] * 16)),
        "delta": (targets, "patched", lambda basis, delta: b"something else"),
        "composition": (targets, "patched", lambda basis, delta: b"something else"),
        "gzip": (targets, "inflated", lambda data: b"something else"),
        "index": (targets, "inflated", lambda data: bytes(400_000)),
        "repository": (repositories, "through_snapshots", lambda place, at: {(at[0], b"a"): "another sum"}),
    }
    monkeypatch.setattr(*broken[name])
    if name == "index":
        monkeypatch.setattr(targets, "_is_ours", lambda data: True)
        monkeypatch.setattr(targets, "MOST_BYTES", 1 << 20)
    inputs = [*SEEDS[name], *itertools.islice(blind(SEEDS[name], "0"), 2000)]
    with pytest.raises((AssertionError, TypeError)):
        list(map(TARGETS[name], inputs))
