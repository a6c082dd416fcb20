"""`--force regress`: both programs undo the newest good session, of repositories that both have written."""

from pathlib import Path

import pytest

from histfs.store.regress import regress
from tests.compat import agreement
from tests.compat.test_removal import copy_of, files, written_in_turns
from tests.oracle import Oracle


@pytest.mark.parametrize("seed", [20, 21])
def test_both_step_back_alike(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    states = written_in_turns(scratch, rdiff_backup, seed)
    theirs = copy_of(scratch / "repository", "theirs")
    for left in (6, 5):
        run = rdiff_backup.run(["--api-version=201", "--no-fsync", "--force", "regress", str(theirs)])
        assert run.code == 0, run.output
        outcome = regress(scratch / "repository", report=agreement.complain, force=True)
        assert outcome == (states[left].time, states[left - 1].time, True)
        different = files(scratch / "repository") ^ files(theirs)
        assert [path for path in different if "long_filename_data" not in path] == []
        agreement.check_histfs(scratch / "repository", states[:left], scratch)
        agreement.check_rdiff_backup_restores(scratch / "repository", states[:left], rdiff_backup, scratch)
        agreement.check_mirror(scratch / "repository", states[left - 1], links=False)


def test_nothing_is_left_to_undo(scratch: Path, rdiff_backup: Oracle) -> None:
    states = written_in_turns(scratch, rdiff_backup, 22)
    for _ in states[1:]:
        assert regress(scratch / "repository", report=agreement.complain, force=True)
    assert regress(scratch / "repository", report=agreement.complain, force=True) is None
    run = rdiff_backup.run(["--api-version=201", "--force", "regress", str(scratch / "repository")])
    assert run.code == 2
    agreement.check_histfs(scratch / "repository", states[:1], scratch)
