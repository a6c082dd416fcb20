"""Mirrors on a file system without links, fifos, sockets and devices: empty files stand for them."""

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from histfs.store import backup as backup_module
from histfs.store.files import WritableTree
from tests import histories
from tests.compat import agreement
from tests.oracle import Oracle


class PoorTree(WritableTree):
    """As VFAT: what is no file and no directory cannot be made, and no file has two names."""

    def make_symlink(self, path, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    def make_special(self, path, entry):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    def link(self, existing, path):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)


def is_plain(repository: Path) -> bool:
    modes = [path.lstat().st_mode for path in repository.rglob("*")]
    return all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes)


def write_and_check(
    scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int, *, always: bool
) -> None:
    """`always`: else some sessions are written by both programs where everything can be made."""
    source, repository = scratch / "source", scratch / "repository"
    chance = random.Random(f"placeholders {seed}")
    states: list[histories.State] = []
    for state in histories.random_history(source, seed, 10, histories.RDIFF_BACKUP_WRITES):
        if not always and states and chance.random() < 0.3:
            rdiff_backup.backup(source, repository, at=state.time, api=200 + seed % 2).check()
        else:
            with monkeypatch.context() as patch:
                if always or chance.random() < 0.7:
                    patch.setattr(backup_module, "WritableTree", PoorTree)
                agreement.histfs_backup(source, repository, at=state.time)
        states.append(state)
    assert is_plain(repository) or not always
    agreement.check_histfs(repository, states, scratch)
    agreement.check_rdiff_backup(repository, states, rdiff_backup, scratch)
    agreement.check_mount(repository, states, scratch)


@pytest.mark.parametrize("always", [True, False])
def test_nothing_is_lost(scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, always: bool) -> None:
    write_and_check(scratch, rdiff_backup, monkeypatch, 70_000, always=always)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_in_many_histories(
    scratch: Path, rdiff_backup: Oracle, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    write_and_check(scratch, rdiff_backup, monkeypatch, 71_000 + seed, always=seed % 2 == 0)
