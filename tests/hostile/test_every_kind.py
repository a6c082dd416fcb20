"""Every kind of hostile repository and source, through every verb that reads, and then through a backup.

Each call is one of `sandbox`: nothing outside may be opened, memory and time are bounded, nothing is run, what is said
is for people, and the exit code is one of those that are documented. What each kind loses is for the other tests.
"""

import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import comparison
from tests.compat import agreement
from tests.hostile import kinds, repositories
from tests.hostile.kinds import REPOSITORIES, SECRET, SOURCES, make_outside
from tests.hostile.repositories import NEW, SECOND
from tests.hostile.sandbox import WITHIN_S, Outside, Ran, Sandbox
from tests.trees import build

LEAST_KINDS = 60
MOST_KIB = 220 << 10
NEXT = SECOND + 86_400
LIMIT_S = 600.0
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]")
_CODES = range(16)
READING: list[list[str]] = [
    ["list", "sessions", "REPO"],
    ["list", "increments", "REPO"],
    ["list", "files", "REPO"],
    ["list", "files", "--at=1B", "REPO"],
    ["list", "files", "--changed-since=1B", "REPO"],
    ["list", "versions", "REPO/changed"],
    ["status", "REPO"],
    ["verify", "REPO"],
    ["verify", "--at=1B", "REPO"],
    ["compare", "SOURCE", "REPO"],
    ["compare", "--method=full", "--at=1B", "SOURCE", "REPO"],
    ["calculate", "average", "STATISTICS"],
    ["restore", "REPO", "TARGET"],
    ["restore", "--at=1B", "REPO", "TARGET"],
    ["restore", "--merge", "REPO", "MERGED"],
    ["restore", "--force", "REPO", "FORCED"],
]
WRITING = [["backup", "SOURCE", "REPO"], ["verify", "REPO"], ["regress", "REPO"], ["list", "sessions", "REPO"]]
# What is looked at in a moment, for each run of the tests.
SAMPLE = [verb for verb in READING if verb[0] in ("list", "verify", "restore")][2:-2] + WRITING[:2]
OF_SOURCES = [["backup", "SOURCE", "REPO"], *READING[:3], ["verify", "REPO"], ["compare", "SOURCE", "REPO"]]
OF_SOURCES += [["restore", "REPO", "TARGET"], ["backup", "SOURCE", "REPO"]]


class Case:
    """One kind, ready to be spoiled, and what there is beside it."""

    def __init__(self, scratch: Path, sandbox: Sandbox) -> None:
        self.scratch = scratch
        self.sandbox = sandbox
        self.repository, self.source = scratch / "repository", scratch / "source"
        make_outside(self.repository)
        self.before = comparison.read(scratch / "outside")
        self._restored = 0
        self._runs = 0

    def run(self, outside: Outside, verb: list[str]) -> Ran:
        self._runs += 1
        places = {"REPO": self.repository, "SOURCE": self.source, "TARGET": self.scratch / f"target{self._runs}"}
        places["REPO/changed"] = self.repository / "changed"
        places["STATISTICS"] = self.repository / "rdiff-backup-data/session_statistics.2023-11-15T22:13:20Z.data"
        for name in ("MERGED", "FORCED"):
            if name in verb:
                places[name] = self.scratch / name.lower()
                build(places[name], NEW)
                (places[name] / "d" / "out").symlink_to(self.scratch / "outside")
                (places[name] / "keep").unlink()
                (places[name] / "keep").symlink_to(self.scratch / "outside" / "secret")
        arguments = [str(places.get(word, word)) for word in verb]
        options = [f"--current-time={NEXT + self._runs}"] if verb[0] == "backup" else []
        here = self.repository if self.repository.exists() else self.scratch
        ran = self.sandbox.run("--no-fsync", *options, *arguments, directory=here)
        what = f"{' '.join(verb)}: {ran}"
        assert outside.events() == [], what
        assert not ran.is_late, what
        assert ran.code in _CODES, what
        assert ran.most_kib < MOST_KIB, what
        assert b"Traceback" not in ran.err, what
        assert b"emory" not in ran.err, what
        for said in (ran.out, ran.err):
            assert not _CONTROL.search(said), what
            assert SECRET.strip() not in said, what
        assert not Path("/tmp/histfs-was-here").exists(), what
        return ran

    def check_nothing_happened(self) -> None:
        after = comparison.read(self.scratch / "outside")
        assert comparison.difference(self.before, after) == []
        for place in self.scratch.iterdir():
            if place.name.startswith(("target", "merged", "forced")):
                self._check_restored(place)

    def _check_restored(self, place: Path) -> None:
        for above, _, names in os.walk(place):
            for name in names:
                path = os.path.join(above, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        assert SECRET not in file.read(1 << 16), path


@pytest.fixture(scope="module", params=["openat2", "walk"])
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("sandbox"), walk=request.param == "walk") as made:
        yield made


@pytest.fixture(autouse=True)
def deadline() -> None:
    """In place of that of the folder: each call has its own."""


def try_repository(scratch: Path, sandbox: Sandbox, kind: str, verbs: list[list[str]]) -> None:
    case = Case(scratch, sandbox)
    repositories.make(case.repository)
    build(case.source, NEW)
    REPOSITORIES[kind](case.repository)
    with Outside(scratch / "outside") as outside:
        for verb in verbs:
            case.run(outside, verb)
    case.check_nothing_happened()


def try_source(scratch: Path, sandbox: Sandbox, kind: str) -> None:
    """Two sessions of it, which read well again."""
    case = Case(scratch, sandbox)
    build(case.source, NEW)
    SOURCES[kind](case.source)
    with Outside(scratch / "outside") as outside:
        for verb in OF_SOURCES:
            ran = case.run(outside, verb)
            assert ran.code in (0, 8), (verb, ran)
    case.check_nothing_happened()


def test_there_are_as_many_as_were_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(REPOSITORIES) >= LEAST_KINDS
    with capsys.disabled():
        sys.stdout.write(f"\n{len(REPOSITORIES)} kinds of hostile repositories, {len(SOURCES)} of sources\n")


@pytest.mark.parametrize("kind", kinds.names(REPOSITORIES)[::8])
def test_some_verbs_over_some_repositories(tmp_path: Path, sandbox: Sandbox, kind: str) -> None:
    try_repository(tmp_path, sandbox, kind, SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize("kind", kinds.names(REPOSITORIES))
def test_every_verb_over_every_repository(tmp_path: Path, sandbox: Sandbox, kind: str) -> None:
    try_repository(tmp_path, sandbox, kind, READING + WRITING)


@pytest.mark.parametrize("kind", kinds.names(SOURCES))
def test_every_source(tmp_path: Path, sandbox: Sandbox, kind: str) -> None:
    try_source(tmp_path, sandbox, kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", kinds.names(REPOSITORIES))
def test_a_mount_of_every_repository(tmp_path: Path, kind: str) -> None:
    """Everything is listed and read, twice; it takes no longer than the calls, and no more memory than they may."""
    repository = tmp_path / "repository"
    repositories.make(repository)
    make_outside(repository)
    before = comparison.read(tmp_path / "outside")
    REPOSITORIES[kind](repository)
    with Outside(tmp_path / "outside") as outside:
        try:
            with agreement.mount(repository, tmp_path) as (mountpoint, said):
                for _ in range(2):
                    crawl(mountpoint)
                assert outside.events() == []
        except AssertionError as error:
            if "is no repository" not in str(error) and "histfs:" not in str(error):
                raise
            said = str(error).splitlines()
    assert all(line.isprintable() for line in said), said
    assert not any("Traceback" in line or "a bug" in line for line in said), said
    assert comparison.difference(before, comparison.read(tmp_path / "outside")) == []


def crawl(top: Path) -> None:
    for above, _, names in os.walk(top):
        for name in names:
            path = os.path.join(above, name)
            try:
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb", buffering=0) as file:
                        for _ in range(16):
                            if not (block := file.read(1 << 16)):
                                break
                            assert SECRET not in block, path
                elif stat.S_ISLNK(status.st_mode):
                    os.readlink(path)
            except OSError:
                continue


def test_the_limits_are_felt(tmp_path: Path, sandbox: Sandbox) -> None:
    """What the tests above would notice."""
    case = Case(tmp_path, sandbox)
    build(case.source, NEW)
    (case.source / "leads-out").symlink_to(tmp_path / "outside")
    with Outside(tmp_path / "outside") as outside:
        ran = sandbox.run("--no-fsync", "backup", case.source / "leads-out", case.repository, directory=tmp_path)
        assert ran.code == 0, ran
        assert outside.events() != []
    assert WITHIN_S < LIMIT_S
