"""Faults at the calls that change something: a sample of the points here, all of them in the long tests.

`python -m tests.faults` is run in a process of its own, as it forks and mounts. It fails where a finished snapshot was
unreadable, lost or corrupt, an exit code was wrong, the next session failed or found the mirror other than it should
be, `verify` said anything, or something was left behind.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.agreement import skip_unless_mountable
from tests.compat.killing import skip_unless_traceable
from tests.faults import places

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 7200
_OTHER_ERRORS = [
    *(f"{name} once" for name in ("ENOSPC", "EDQUOT", "EMFILE", "ENOMEM")),
    *(f"{name} from then on" for name in ("EIO", "EDQUOT", "EMFILE", "ENOMEM")),
]


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
    try_points("--faults=SIGKILL", "--operations=^session$", "--step=131", "--first=31", at_least=4)
    try_points("--faults=^EIO once", "--step=353", "--first=77", at_least=8)


def test_a_campaign_is_gone_on_with(tmp_path: Path) -> None:
    record = tmp_path / "record"
    some = ("--faults=SIGKILL", "--operations=^catalog", f"--record={record}")
    try_points(*some, "--step=40", "--first=3", at_least=2)
    lines = record.read_text().splitlines()
    try_points(*some, "--step=20", "--first=3", at_least=4)
    more = record.read_text().splitlines()
    assert more[: len(lines)] == lines
    points = [json.loads(line)[1][0] for line in more[1:] if isinstance(json.loads(line)[1], list)]
    assert len(points) == len(set(points)) >= 4
    shown = _run(f"--record={record}", "--show")
    assert shown.stdout.splitlines()[0] == "| | SIGKILL |"
    assert re.search(rf"^\| catalog update \| ({len(points)}|{len(points)} of \d+) \|$", shown.stdout, re.MULTILINE)
    assert record.read_text().splitlines() == more
    record.write_text("\n".join(["of another histfs", *more[1:]]) + "\n")
    assert _run(*some).returncode == 1


@pytest.mark.usefixtures("disks")
def test_a_sample_of_power_cuts() -> None:
    session = ("--operations=^session$", "--places=^XFS")
    try_points("--faults=power cut, metadata", *session, "--step=149", "--first=111", at_least=3)
    try_points("--faults=^the same, unflushed|^full", *session, "--step=47", "--first=12", at_least=2)


@pytest.mark.usefixtures("disks")
def test_a_missing_barrier_is_noticed() -> None:
    """The tests of power cuts can fail."""
    arguments = ("--faults=metadata ahead", "--places=XFS", "--operations=^session$", "--step=500", "--first=300")
    ran = _run("--without-barriers", "--jobs=1", *arguments)
    assert ran.returncode == 1
    assert re.search(r"^unreadable: a finished snapshot could not be read", ran.stdout, re.MULTILINE), ran


def test_every_call_is_supervised() -> None:
    """What another tracer sees is seen; and the barriers as well, and what is changed through descriptors."""
    skip_unless_traceable()
    ran = _run("--compare-calls")
    assert ran.returncode == 0, ran
    counts = {name: (int(ours), int(others)) for name, ours, others in map(str.split, ran.stdout.splitlines())}
    assert {"write", "pwrite64", "openat", "renameat", "unlinkat", "mkdirat", "ftruncate"} <= set(counts)
    through_descriptors = {"chmod", "chown", "setxattr", "removexattr", "utimensat", "ioctl"}
    barriers = {"syncfs", "fsync", "fdatasync"}
    for name, (ours, others) in counts.items():
        assert ours == others or name in through_descriptors | barriers, ran.stdout
    assert counts["syncfs"][0] > 2
    assert counts["setxattr"][0] > 2


# --- long -----------------------------------------------------------------------------------------------------------


def _recorded() -> list[str]:
    """Points that a campaign has tried need not be tried again, if the variable FAULTS_RECORD names its record."""
    return [f"--record={os.environ['FAULTS_RECORD']}"] if "FAULTS_RECORD" in os.environ else []


@pytest.mark.long
def test_the_judge_notices_what_is_cut() -> None:
    ran = _run("--sensitivity")
    assert ran.returncode == 0, ran.stdout


@pytest.mark.long
def test_real_mounts_show_what_was_finished() -> None:
    skip_unless_mountable()
    try_points("--mounts", "--faults=^SIGKILL", "--step=23", "--first=11", jobs=2, at_least=60)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGTERM", "EIO once", "ENOSPC from then on", "short reads and writes"])
def test_every_point_in_memory(fault: str) -> None:
    try_points(f"--faults=^{fault}", *_recorded(), jobs=2, at_least=400)


@pytest.mark.long
@pytest.mark.parametrize(("number", "fault"), [*enumerate(_OTHER_ERRORS)])
def test_other_errors_in_turns(number: int, fault: str) -> None:
    """Together they meet every point; `python -m tests.faults` tries all of them at each."""
    arguments = (f"--faults=^{fault}", f"--step={len(_OTHER_ERRORS)}", f"--first={number + 1}")
    try_points(*arguments, *_recorded(), jobs=2, at_least=200)


@pytest.mark.long
@pytest.mark.usefixtures("disks")
@pytest.mark.parametrize("place", [kind.name for kind in places.FILE_SYSTEMS])
@pytest.mark.parametrize("fault", ["power cut, com", "power cut, met", "power cut after|the same", "full disk"])
def test_every_point_on_a_disk(fault: str, place: str) -> None:
    try_points(f"--faults=^({fault})", f"--places=^{place}$", *_recorded(), jobs=2, at_least=100)
