"""What has the name of a data directory and is none makes no repository."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import NotARepositoryError
from histfs.store.regress import regress
from histfs.store.repository import Repository


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_the_data_directory_is_something_else(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "rdiff-backup-data")
    with pytest.raises(NotARepositoryError):
        Repository.open(tmp_path)
    with pytest.raises(NotARepositoryError):
        regress(tmp_path, report=lambda error: None)
