"""Restores that fail: what is said of the target, how many files are missing, and the exit code."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from histfs.cli import main
from histfs.errors import HistfsError
from histfs.store import restore as restore_module
from histfs.store import writing
from histfs.store.files import write_blocks
from tests.store.places import is_root
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build
from tests.users import as_ordinary_user, give_away


@pytest.fixture
def many(sessions: Sessions) -> Sessions:
    build(sessions.source, Dir({"d": Dir({f"{n:04}": File(b"%d" % n) for n in range(2000)}), "e": File(b"e")}))
    sessions.backup()
    return sessions


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """No more files than that can be written."""
    written = 0

    def write(fd: int, blocks: Iterable[bytes], *, sparse: bool = False) -> int:
        nonlocal written
        written += 1
        if written > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_blocks(fd, blocks, sparse=sparse)

    for module in (restore_module, writing):
        monkeypatch.setattr(module, "write_blocks", write)


@pytest.mark.parametrize("options", [[], ["--merge"]])
def test_a_full_disk(
    many: Sessions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    target = tmp_path / "target"
    command = ["restore", *options, str(many.repository), str(target)]
    with monkeypatch.context() as patched:
        fill_the_disk(patched, after=3)
        assert main(command) == 5
    said = capfd.readouterr()
    how = "" if options else " with --merge"
    assert said.out == ""
    assert said.err == (
        f"histfs: {target}: No space left on device, so that what is in it is incomplete;"
        f" the same command{how} completes it\n"
    )
    assert len(os.listdir(target / "d")) == 3
    assert main(["restore", "--merge", *command[-2:]]) == 0
    assert len(os.listdir(target / "d")) == 2000


def test_a_full_disk_for_a_single_file(
    many: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fill_the_disk(monkeypatch, after=0)
    assert main(["restore", f"{many.repository}/e", str(tmp_path / "target")]) == 1
    assert capfd.readouterr().err == f"histfs: {tmp_path / 'target'}: No space left on device\n"
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(not is_root(), reason="somebody else's directory is needed")
@pytest.mark.parametrize("path", ["", "a"])
@pytest.mark.parametrize("options", [[], ["--create-full-path"], ["--backup-dir"]])
def test_a_target_that_may_not_be_written_to(scratch: Path, path: str, options: list[str]) -> None:
    sessions = Sessions(scratch)
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    give_away(sessions.repository)
    scratch.chmod(0o755)
    closed, target = scratch / "closed", scratch / "closed/target"
    closed.mkdir(mode=0o755)
    if options == ["--create-full-path"]:
        target, closed = target / "new", target
    elif options:
        closed = closed / "kept"
        options = [*options, str(closed)]
    problems: list[HistfsError] = []

    def restore_as_user() -> None:
        from histfs.cli.output import Output

        Output.error = lambda _self, problem: problems.append(problem)  # type: ignore[method-assign,assignment]
        assert main(["restore", *options, str(sessions.repository / path), str(target)]) == 1
        place = closed if len(options) else target
        assert [str(problem) for problem in problems] == [
            f"{place}: Permission denied; choose a target that you may write to"
        ]

    as_ordinary_user(restore_as_user)


@pytest.mark.parametrize("path", ["", "d"])
def test_a_list_that_is_damaged_in_the_middle(
    many: Sessions, tmp_path: Path, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    (of_files,) = many.data.glob("mirror_metadata.*")
    os.truncate(of_files, of_files.stat().st_size // 2)
    assert main(["restore", str(many.repository / path), str(tmp_path / "target")]) == 4
    said = capfd.readouterr()
    names = sorted(os.listdir(tmp_path / "target" / ("" if path else "d")))
    assert 0 < len(names) < 2000
    missing = "" if path else f": {2000 - len(names) + 1} files"
    assert said.err.count("\n") == 1
    assert (
        f"is truncated; what it should name after d/{names[-1]}, the last path that could be read, is missing{missing};"
        in said.err
    )


def test_a_damaged_record_that_looks_like_many_is_reported_once(
    many: Sessions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import gzip

    (of_files,) = many.data.glob("mirror_metadata.*")
    text = gzip.decompress(of_files.read_bytes())
    record = text[text.index(b"File d/0007\n") : text.index(b"File d/0008\n")]
    of_files.write_bytes(gzip.compress(text.replace(record, record.replace(b"Type reg", b"Tipe\xff") * 5)))
    assert main(["restore", str(many.repository), str(tmp_path / "target")]) == 4
    assert capfd.readouterr().err.count("d/0007") == 1
