"""`list files --changed-since` of both programs about the same repositories."""

from pathlib import Path

import pytest

from histfs.cli import main
from tests.compat.test_removal import written_in_turns
from tests.oracle import Oracle


@pytest.mark.parametrize("seed", [40, 41])
def test_the_same_paths_have_changed(
    scratch: Path, rdiff_backup: Oracle, seed: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    states = written_in_turns(scratch, rdiff_backup, seed)
    for state in states:
        arguments = ["list", "files", "--changed-since", str(state.time), str(scratch / "repository")]
        capfdbinary.readouterr()
        assert main(arguments) == 0
        ours = capfdbinary.readouterr().out.decode(errors="replace")
        theirs = rdiff_backup.run(["--api-version=201", *arguments]).check()
        assert ours.splitlines() == theirs.splitlines(), state.time
