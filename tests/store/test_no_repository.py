"""What has the name of a data directory and is none makes no repository."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import NotARepositoryError, StorageError
from histfs.store.regress import regress
from histfs.store.repository import Repository, find_repository
from tests.users import as_ordinary_user, give_away


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_the_data_directory_is_something_else(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "rdiff-backup-data")
    with pytest.raises(NotARepositoryError):
        Repository.open(tmp_path)
    with pytest.raises(NotARepositoryError):
        regress(tmp_path, report=lambda error: None)


@pytest.mark.parametrize("place", ["", "sub/path"])
def test_a_directory_that_may_not_be_entered(scratch: Path, place: str) -> None:
    """Whether it is a repository nobody can tell."""
    (scratch / "shut/sub").mkdir(parents=True)
    (scratch / "shut").chmod(0o600)
    give_away(scratch / "shut")
    scratch.chmod(0o755)

    def look() -> None:
        with pytest.raises(StorageError, match="Permission denied") as caught:
            find_repository(scratch / "shut" / place)
        assert str(scratch / "shut") in str(caught.value)

    as_ordinary_user(look)
    (scratch / "shut").chmod(0o700)


def test_a_link_to_a_repository(tmp_path: Path) -> None:
    """It is the repository, unless it was backed up itself: then it is a path in it, also if it leads to its root."""
    repository = tmp_path / "repository"
    (repository / "rdiff-backup-data").mkdir(parents=True)
    (repository / "d").mkdir()
    (repository / "d/up").symlink_to("..")
    (tmp_path / "link").symlink_to("repository")
    assert find_repository(tmp_path / "link") == (tmp_path / "link", b"")
    assert find_repository(tmp_path / "link/d") == (tmp_path / "link", b"d")
    assert find_repository(repository / "d/up") == (repository, b"d/up")
    assert find_repository(repository / "d/up/x") == (repository, b"d/up/x")
