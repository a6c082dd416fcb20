"""Every kind of file, damaged in every way: nothing wrong is given out, and nothing is lost that was not hit.

What must still be readable is computed by a model that knows nothing of histfs (`repository`). Three readers are asked:
one that reads as `restore` does, the mount's tree, and `verify --all`, which must name what the first cannot read and
no more. A sample goes through a real mount and the command line.
"""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat import agreement
from tests.damage.readers import ERROR, Found, through_snapshots, through_verify, through_vfs
from tests.damage.repository import DATA, KINDS, Model, damaged, files, fingerprint, make, role

_LIMIT_S = 60.0
# Of what these say no version depends on.
DERIVED = {"histfs/catalog.sqlite", "histfs/ledger", "file_statistics", "session_statistics", "error_log"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    made = make(tmp_path_factory.mktemp("damage"))
    before = fingerprint(made)
    yield made
    assert fingerprint(made) == before  # nobody who read it changed anything, and every damage was undone


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    def stop(*_: object) -> None:
        pytest.fail(f"not done after {_LIMIT_S} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def cases(model: Model) -> list[tuple[str, str]]:
    return [(name, kind) for name in files(model) for kind in KINDS]


def check(model: Model, name: str, kind: str, counts: Counter[str]) -> None:
    """Damage one file, ask everybody, and undo it."""
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    chance = random.Random(f"{name} {kind}")
    with damaged(model, name, kind, chance) as hit:
        what = f"{kind} of {sorted(hit)!r}"
        whole = through_snapshots(model.repository, model.sessions)
        shown = through_vfs(model.repository, model.sessions)
        verified = through_verify(model.repository)
    signal.setitimer(signal.ITIMER_REAL, 0)
    counts["repositories"] += 1
    counts[role(name)] += 1
    is_hit_marker = any(role(each) in ("chars_to_quote", "special_escapes") for each in hit)
    for (at, path), version in model.versions.items():
        needed = version.lists | version.content
        is_lost = not needed.isdisjoint(hit) or is_hit_marker
        got = whole.get((at, b""), whole.get((at, path), "nothing"))
        assert got in (version.sha1, ERROR), (what, at, path, got)
        counts["read" if got == version.sha1 else "errors"] += 1
        if not is_lost:
            assert got == version.sha1, (what, at, path)
        elif kind in ("delete", "directory") and (name == version.first or name in version.lists):
            assert got == ERROR, (what, at, path)
        is_named = (at, path) in verified.versions or (at, b"") in whole
        assert is_named == (got == ERROR), (what, at, path, verified)
        _check_shown(model, shown, at, path, is_lost or _needs(model, at, path, hit), what, counts)
    assert {at for at, path in whole if path == b""} <= verified.sessions or None in verified.sessions, what
    assert set(whole) - {(at, b"") for at in model.sessions} <= set(model.versions), what
    if role(name) in DERIVED and len(hit) == 1:
        assert ERROR not in whole.values(), what
        assert verified.sentences == [], what
    assert all(sentence.isprintable() for sentence in verified.sentences)


def _needs(model: Model, at: int, path: bytes, hit: set[str]) -> bool:
    """Whether the mount, which shows the first of several links for all of them, needs what was hit."""
    first = model.versions[at, model.first_links.get((at, path), path)]
    return not (first.lists | first.content).isdisjoint(hit)


def _check_shown(
    model: Model, shown: Found, at: int, path: bytes, is_lost: bool, what: str, counts: Counter[str]
) -> None:
    version = model.versions[at, path]
    above = [path[:end] + b"/" if end else b"/" for end in [0, *(i for i, byte in enumerate(path) if byte == 47)]]
    got = ERROR if any((at, each) in shown for each in above) else shown.get((at, path), "nothing")
    assert got in (version.sha1, ERROR), (what, at, path, got)
    if not is_lost:
        assert got == version.sha1, (what, at, path, got)
    counts["read in the mount" if got == version.sha1 else "errors in the mount"] += 1


def run(model: Model, chosen: list[tuple[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, kind in chosen:
        check(model, name, kind, counts)
    return counts


def test_the_model_is_right(model: Model) -> None:
    """Without damage all is read, and every kind of file is there."""
    everything = {key: version.sha1 for key, version in model.versions.items()}
    assert through_snapshots(model.repository, model.sessions) == everything
    assert through_vfs(model.repository, model.sessions) == everything
    assert through_verify(model.repository).sentences == []
    roles = {role(name) for name in files(model)}
    expected = {"mirror", "diff", "diff.gz", "snapshot", "snapshot.gz", "missing", "dir", "mirror_metadata"}
    expected |= {"current_mirror", "chars_to_quote", "special_escapes", *DERIVED}
    assert roles >= expected, expected - roles
    lists = [name for name in files(model) if role(name) == "mirror_metadata"]
    assert sum(".snapshot" in name for name in lists) >= 2
    needed = set().union(*(version.content | version.lists for version in model.versions.values()))
    assert needed <= set(files(model))


def test_a_sample(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """Some kinds of damage to each kind of file."""
    chance = random.Random(7)
    by_role: dict[str, list[str]] = {}
    for name in files(model):
        by_role.setdefault(role(name), []).append(name)
    often = {"mirror", "mirror_metadata", "diff", "diff.gz", "snapshot", "snapshot.gz"}
    chosen = [
        (chance.choice(names), kind)
        for each, names in by_role.items()
        for kind in chance.sample(KINDS, 3 if each in often else 1)
    ]
    counts = run(model, chosen)
    with capsys.disabled():
        sys.stdout.write(f"\ndamaged repositories: {dict(counts)}\n")
    assert counts["repositories"] >= 30
    assert counts["errors"] > 100


@pytest.mark.parametrize("kind", ["empty", "zero"])
@pytest.mark.parametrize("is_full", [False, True])
def test_what_is_no_list_does_not_say_that_nothing_was_different(model: Model, kind: str, is_full: bool) -> None:
    lists = [name for name in files(model) if role(name) == "mirror_metadata" and (".snapshot" in name) == is_full]
    counts = run(model, [(lists[0], kind)])
    assert counts["errors"] > 0


def test_what_is_large_is_not_given_out_in_full(model: Model) -> None:
    """Of the mirror, which only the SHA1 of all of it can tell; by itself, and under old versions."""
    counts = run(model, [("same-large", "flip"), ("large", "sector")])
    assert counts["errors in the mount"] >= 13


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_all(model: Model, part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file in each way."""
    counts = run(model, cases(model)[part::20])
    with capsys.disabled():
        sys.stdout.write(f"\ndamaged repositories, part {part}: {dict(counts)}\n")
    assert counts["repositories"] >= 25


# Through a real mount and the command line


def _samples(model: Model) -> list[tuple[str, str]]:
    newest = max(name for name in files(model) if role(name) == "mirror_metadata")
    diff = model.versions[model.sessions[1], b"small"].first
    return [
        (newest, "truncate"),
        (diff, "zero"),
        ("same", "delete"),
        ("same-large", "flip"),
        (f"{DATA}/histfs/catalog.sqlite", "zero"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_real_mount(model: Model, tmp_path: Path, number: int) -> None:
    name, kind = _samples(model)[number]
    with (
        damaged(model, name, kind, random.Random(number)) as hit,
        agreement.mount(model.repository, tmp_path) as (mountpoint, _said),
    ):
        tops = dict(zip(model.sessions, sorted(os.listdir(mountpoint)), strict=True))
        for (at, path), version in model.versions.items():
            try:
                got = hashlib.sha1(Path(mountpoint, tops[at], os.fsdecode(path)).read_bytes()).hexdigest()
            except OSError as error:
                got = ERROR if error.errno == errno.EIO else str(error)
            assert got in (version.sha1, ERROR), path
            if (version.lists | version.content).isdisjoint(hit):
                assert got == version.sha1, (name, kind, at, path)
            elif kind == "delete" and name == version.first:
                assert got == ERROR


@pytest.mark.parametrize("number", range(5))
def test_a_real_restore(model: Model, tmp_path: Path, number: int) -> None:
    name, kind = _samples(model)[number]
    target = tmp_path / "target"
    with damaged(model, name, kind, random.Random(number)) as hit:
        command = [sys.executable, "-m", "histfs", "restore", "--at", str(model.sessions[1]), model.repository, target]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        command = [sys.executable, "-m", "histfs", "verify", "--all", model.repository]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert "Traceback" not in ran.stderr + verified.stderr
    lost = 0
    for (at, path), version in model.versions.items():
        if at != model.sessions[1]:
            continue
        file = target / os.fsdecode(path)
        needed = version.lists | version.content
        if needed.isdisjoint(hit) or file.exists():
            assert hashlib.sha1(file.read_bytes()).hexdigest() == version.sha1
        else:
            lost += 1
            assert f"{os.fsdecode(path)} at " in ran.stderr or name in ran.stderr, ran.stderr
    assert bool(ran.returncode) == bool(lost), ran
    assert (verified.returncode, bool(verified.stderr)) == ((0, False) if "histfs/" in name else (1, True)), verified
