"""`histfs test`: whether directories can be used."""

import json
import os
from pathlib import Path

import pytest

from histfs.cli import main
from histfs.store.usable import usable
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build
from tests.users import as_ordinary_user, give_away


def test_directories_and_repositories(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sessions = Sessions(tmp_path)
    build(sessions.source, Dir({"f": File(b"f")}))
    sessions.backup()
    before = {path: path.stat().st_ctime_ns for path in tmp_path.rglob("*")}
    assert main(["test", str(sessions.source), str(sessions.repository)]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith(f"{sessions.source}: a directory that can be written to, ")
    assert second.startswith(f"{sessions.repository}: a repository with 1 session that can be written to, ")
    sessions.backup()
    assert main(["--quiet", "test", str(sessions.repository)]) == 0
    assert capfd.readouterr() == ("", "")
    assert usable(sessions.repository).sessions == 2
    found = usable(sessions.source)
    assert found.sessions is None
    assert found.can_be_written
    assert {path: path.stat().st_ctime_ns for path in before if path.is_relative_to(sessions.source)} == {
        path: time for path, time in before.items() if path.is_relative_to(sessions.source)
    }


def test_what_cannot_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    names = [str(tmp_path), f"{tmp_path}/nothing", f"{tmp_path}/file"]
    assert main(["test", *names]) == 1
    said = capfd.readouterr()
    assert said.out.count("\n") == 1
    assert said.err.splitlines() == [
        f"histfs: {tmp_path}/nothing: there is no such directory",
        f"histfs: {tmp_path}/file: is not a directory",
    ]
    assert main(["test", "--json", *names]) == 1
    told = json.loads(capfd.readouterr().out)
    assert [(each["path"], each["usable"]) for each in told] == list(zip(names, (True, False, False), strict=True))
    assert told[0]["sessions"] is None
    assert told[0]["free_bytes"] > 0


def test_other_computers_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "host::/place"]) == 1
    assert "names another computer" in capfd.readouterr().err


def test_what_somebody_may_do(scratch: Path) -> None:
    for name, mode in (("mine", 0o700), ("read", 0o500), ("shut", 0o000)):
        (scratch / name).mkdir()
        (scratch / name).chmod(mode)
    give_away(*scratch.iterdir())
    scratch.chmod(0o755)
    codes = scratch / "mine" / "codes"

    def look() -> None:
        assert usable(scratch / "mine").can_be_written
        assert not usable(scratch / "read").can_be_written
        codes.write_text(str(main(["test", os.fspath(scratch / "shut")])))

    as_ordinary_user(look)
    assert codes.read_text() == "1"
