"""Faults at the calls that change something: a sample of the points here, all of them in the long tests.

`python -m tests.faults` is run in a process of its own, as it forks and mounts. It fails where a finished snapshot was
unreadable, lost or corrupt, an exit code was wrong, the next session failed or found the mirror other than it should
be, `verify` said anything, or something was left behind.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import places

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 3600


def try_points(*arguments: str, jobs: int = 1, at_least: int) -> None:
    """Run the harness; it must have tried so many points, and have found nothing."""
    ran = _run(*arguments, f"--jobs={jobs}")
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-20_000:]
    counted = re.search(r"^(\d+) points in", ran.stdout, re.MULTILINE)
    assert counted, ran
    assert int(counted[1]) >= at_least, ran.stdout


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ran.returncode == 2:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(ran.stderr)
    return ran


@pytest.fixture(scope="session")
def disks() -> None:
    """Asking for it skips the test where no file system can be mounted."""
    if reason := places.obstacle():
        pytest.skip(reason)


# --- fast -----------------------------------------------------------------------------------------------------------


def test_a_sample_of_faults_in_memory() -> None:
    try_points("--faults=SIGKILL", "--operations=^session$", "--step=97", "--first=31", at_least=5)
    try_points("--faults=^(EIO once|SIGTERM)", "--step=353", "--first=77", at_least=15)


@pytest.mark.usefixtures("disks")
def test_a_sample_of_power_cuts() -> None:
    try_points("--faults=power", "--places=XFS", "--operations=^session$", "--step=149", "--first=111", at_least=6)


# --- long -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "fault", ["SIGKILL", "SIGTERM", "EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM", "short reads and writes"]
)
def test_every_point_in_memory(fault: str) -> None:
    try_points(f"--faults=^{fault}", at_least=400, jobs=2)


@pytest.mark.long
@pytest.mark.usefixtures("disks")
@pytest.mark.parametrize("place", [kind.name for kind in places.FILE_SYSTEMS])
def test_the_power_is_cut_at_every_point(place: str) -> None:
    try_points("--faults=power", f"--places=^{place}$", jobs=2, at_least=1000)
