"""What is said of places that are not what a verb needs: no repository, not readable, no FUSE, not looked at."""

import sys
from pathlib import Path

import pytest

from histfs.cli import main
from histfs.errors import MountError
from histfs.mount import place
from tests.store.places import is_root
from tests.store.sessions import Sessions
from tests.trees import Dir, File, build
from tests.users import as_ordinary_user, give_away


@pytest.fixture
def repository(scratch: Path) -> Path:
    scratch.chmod(0o755)
    sessions = Sessions(scratch)
    build(sessions.source, Dir({"letters": Dir({"may": File(b"may")})}))
    sessions.backup()
    return sessions.repository


def said_by_user(scratch: Path, *argv: str) -> tuple[int, str]:
    """The exit code and what is said to an ordinary user."""
    said = scratch / "said"
    said.touch()
    said.chmod(0o666)

    def run() -> None:
        with open(said, "w") as sys.stderr:
            sys.stderr.write(str(main(argv)))

    as_ordinary_user(run)
    text = said.read_text()
    said.unlink()
    return int(text.rpartition("\n")[2]), text.rpartition("\n")[0]


@pytest.mark.parametrize("name", ["letters", "letters/may", "never"])
def test_what_lies_in_a_repository(
    repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["status", f"{repository}/{name}"]) == 1
    lies = f"histfs: {repository}/{name}: lies in the repository {repository}"
    assert capfd.readouterr().err == f"{lies}; name that\n"
    assert main(["mount", f"{repository}/{name}", str(tmp_path)]) == 1
    assert capfd.readouterr().err == f"{lies}; mount that\n"


def test_what_lies_in_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 1
    assert "make one with `histfs backup SOURCE REPOSITORY`" in capfd.readouterr().err
    assert main(["status", str(tmp_path / "no")]) == 1
    assert "there is no such directory" in capfd.readouterr().err


def test_without_fuse_there_is_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(MountError, match="no such device") as raised:
        place.check_fuse(allow_other=False)
    assert raised.value.advice.endswith("; `histfs restore` works without FUSE")


@pytest.mark.skipif(not is_root(), reason="somebody else's repository is needed")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_repository_that_cannot_be_read(scratch: Path, repository: Path, mode: int) -> None:
    """By its directory, or by the lists in it."""
    repository.chmod(0o755)
    (repository / "rdiff-backup-data").chmod(mode)
    code, said = said_by_user(scratch, "test", str(repository))
    assert code == 1
    assert said.startswith(f"histfs: {repository}: is a repository that this user cannot read; run histfs as the user")
    give_away(repository)
    assert said_by_user(scratch, "test", str(repository)) == (0, "")


@pytest.mark.skipif(not is_root(), reason="somebody else's source is needed")
def test_why_of_what_cannot_be_looked_at(scratch: Path, repository: Path) -> None:
    give_away(repository)
    source = scratch / "source"
    (source / "letters").chmod(0o700)
    source.chmod(0o755)
    arguments = ("explain", "--why", str(repository), str(source), "letters/may", "never")
    assert said_by_user(scratch, *arguments) == (
        4,
        "histfs: letters/may: cannot be looked at (Permission denied)\n"
        "histfs: never: is not there, and was not in the last session",
    )
    assert said_by_user(scratch, "explain", str(source), "letters/may", "never") == (
        4,
        "histfs: letters/may: cannot be looked at (Permission denied)\nhistfs: never: is not there",
    )
