"""A short soak here, half an hour in the long tests; and the reader is tested: it notices what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comparison import read
from tests.compat.agreement import skip_unless_mountable
from tests.soak import reader
from tests.soak.model import Model, PublishedModel, name_of
from tests.soak.reader import Reader
from tests.soak.soak import run

_SAMPLE_SEED, _SAMPLE_STEPS = 3262, 7  # some of nearly every kind
_SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
_NOON = 1_700_000_040


def test_a_sample(scratch: Path) -> None:
    skip_unless_mountable()
    figures, failure = run(scratch, _SAMPLE_SEED, lambda steps: steps < _SAMPLE_STEPS)
    assert failure is None, failure
    assert figures.sessions > 3, figures
    assert figures.read["looks"] > 10, figures


@pytest.mark.long
def test_half_an_hour(scratch: Path) -> None:
    """SOAK_SECONDS says how long. In a process of its own, with another seed each time; a failure says which."""
    skip_unless_mountable()
    command = [sys.executable, "-m", "tests.soak", f"--seconds={_SECONDS}", f"--place={scratch}"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class Readable:
    """A directory in the place of a mount, its model, and a reader of both."""

    def __init__(self, scratch: Path) -> None:
        self.top = scratch / "mnt" / name_of(_NOON)
        self.top.mkdir(parents=True)
        (self.top / "a").write_bytes(b"right")
        self.model = Model(scratch / "model")
        self.model.add(_NOON, read(self.top))
        self.model.mounted(1)
        self.reader = Reader(scratch / "mnt", PublishedModel(scratch / "model"), "0")

    def looks(self) -> set[str]:
        """All that is wrong in some hundred looks."""
        return {line for _ in range(400) for line in self.reader.look()}


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Readable:
    monkeypatch.setattr(reader, "_HELD_S", 0.0)
    return Readable(tmp_path)


def test_a_reader_sees_that_all_is_well(readable: Readable) -> None:
    assert readable.looks() == set()
    assert readable.reader.counts.files > 10


def test_a_reader_sees_other_bytes(readable: Readable) -> None:
    (readable.top / "a").write_bytes(b"wrong")
    os.utime(readable.top / "a", (1, 1))
    assert any(re.search(r"'a'.* sha1 ", line) for line in readable.looks())


@pytest.mark.parametrize("errors", [True, False])
def test_a_reader_sees_what_is_missing(readable: Readable, errors: bool) -> None:
    """It is legal as long as the model says so, and no longer."""
    (readable.top / "a").unlink()
    readable.top.rmdir()
    if errors:
        assert any("FileNotFoundError" in line for line in readable.looks())
        assert any("does not show" in line for line in readable.looks())
    else:
        readable.model.may_go([_NOON])
        assert readable.looks() == set()
        assert readable.reader.counts.gone > 10
        readable.model.settle([])
        assert readable.looks() == set()


def test_a_path_may_go(readable: Readable) -> None:
    readable.model.path_may_go(b"a")
    assert readable.looks() == set()
    (readable.top / "a").unlink()
    readable.top.touch()
    os.utime(readable.top, (readable.model.history[_NOON].manifests[0][b""].mtime,) * 2)
    assert readable.looks() == set()
    readable.model.path_is_gone()
    assert readable.looks() == set()
    (readable.top / "a").write_bytes(b"back")
    os.utime(readable.top, (readable.model.state(_NOON)[b""].mtime,) * 2)
    assert any("unexpected" in line for line in readable.looks())
