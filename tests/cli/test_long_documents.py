"""Documents that are written as they grow: whole whatever happens, and never in memory as a whole."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from histfs.cli.output import Output
from histfs.errors import DamagedError
from tests.trees import Dir, File, build

COMMAND = [sys.executable, "-m", "histfs"]


@pytest.mark.parametrize("items", [[], [1], [{"a": b"b\xff"}, [1, 2], "c\n"], list(range(20_000))])
@pytest.mark.parametrize("before", [None, {"time": "now", "seconds": 5, "nested": {"a": [1]}}])
def test_it_is_what_a_document_would_be(capfd, items, before):
    output = Output()
    with output.long_document(before, "items") as document:
        for item in items:
            document.add(item)
        document.after = {"count": len(items)}
    told = json.loads(capfd.readouterr().out)
    expected = [{"a": os.fsdecode(b"b\xff")} if isinstance(item, dict) else item for item in items]
    assert told == (expected if before is None else {**before, "items": expected, "count": len(items)})


@pytest.mark.parametrize("before", [None, {"a": 1}])
@pytest.mark.parametrize("count", [0, 1, 10_000])
def test_it_is_whole_when_something_stops_it(capfd, before, count):
    def stopped():
        with Output().long_document(before, "items") as document:
            for number in range(count):
                document.add(number)
            raise DamagedError("is damaged")

    with pytest.raises(DamagedError):
        stopped()
    text = capfd.readouterr().out
    assert bool(text) is (count > 0)  # what did not begin has no document
    if text:
        told = json.loads(text)
        assert (told if before is None else told["items"]) == list(range(count))


def test_it_does_not_grow_with_its_length(monkeypatch):
    def peak(count):
        with open(os.devnull, "w") as null, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", null)
            with Output().long_document() as document:
                tracemalloc.start()
                for number in range(count):
                    document.add({"path": b"%d" % number, "reason": "changed"})
                most = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        return most

    peak(1000)
    assert peak(20_000) < 1 << 20  # the text has more


@pytest.fixture
def place(tmp_path: Path) -> Path:
    build(tmp_path / "source", Dir({f"{number:0>200}": File(b"text") for number in range(2_000)}))
    subprocess.run([*COMMAND, "-q", "backup", "source", "repo"], cwd=tmp_path, check=True)
    return tmp_path


def run_with_reader_that_goes(place: Path, *arguments: str) -> int:
    process = subprocess.Popen([*COMMAND, *arguments], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    return process.wait(60)


def test_a_restore_goes_on_when_nobody_reads(place: Path) -> None:
    assert run_with_reader_that_goes(place, "restore", "--json", "repo", "target") == 0
    assert len(list((place / "target").iterdir())) == 2_000
    assert run_with_reader_that_goes(place, "restore", "--json", "--dry-run", "repo", "other") == 0
