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
