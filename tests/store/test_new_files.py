"""How files are made, seen by strace: nobody else gets at what is not complete, whatever the umask is."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trees import Dir, Fifo, File, Symlink, build

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

CALLS = "openat,open,creat,mkdir,mkdirat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown"
NOT_OURS = re.compile(r'"(/dev/|/proc/(?!self/fd)|/sys/)')  # what is there already, and what nobody else has
PATIENCE_S = 120
SECRET_NAME = "very-private"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    inner = {"x": File(b"x" * 100_000, 0o640), SECRET_NAME: File(b"y", 0o600), "p": Fifo()}
    tree = {"d": Dir(inner, 0o700), "setuid": File(b"s", 0o6755), "large": File(os.urandom(1 << 20), 0o444)}
    build(path, Dir({**tree, "l": Symlink("d")}))
    return path


def traced(tmp_path: Path, *arguments: object) -> list[str]:
    """The calls that make something, or change whose it is, of a run without a umask."""
    log = tmp_path / "strace.log"
    command = ["strace", "-f", "-qq", "-y", "-s", "300", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log]
    command += [sys.executable, "-m", "histfs", *map(str, arguments)]
    old = os.umask(0)
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    return [line for line in lines if " = -1 " not in line]


def check_made_for_us_alone(lines: list[str]) -> int:
    """No file is made that others can open, or in the place of something; how many were made."""
    made = 0
    for line in lines:
        if "__pycache__" in line or NOT_OURS.search(line):
            continue
        mode = re.search(r"(?:O_CREAT[^,]*, |mkdir(?:at)?\(.*, |S_IF(?:REG|IFO|SOCK)\|)(0[0-7]{3})\b", line)
        if mode is None:
            continue
        made += 1
        assert not int(mode[1], 8) & 0o077, line
        # Without O_EXCL: the lock, logs that are appended to, the system's own databases. Links are not followed.
        if "O_CREAT" in line and "O_EXCL" not in line:
            assert "O_NOFOLLOW" in line, line
            assert re.search(r"lock|\.log|\.sqlite-journal", line), line
    return made


def check_owner_before_mode(lines: list[str]) -> None:
    """Who gets a file gets it before its mode: a setuid program is nobody else's for a moment."""
    finished: set[str] = set()
    for line in lines:
        call = re.search(
            r"\b(f?chmod(?:at)?|f?chown(?:at)?|lchown)\((?:AT_FDCWD<[^>]*>, |\d+<[^>]*>, )?\"?([^\",)]*)", line
        )
        where = re.search(r"<(/[^>]*)>", line)
        if call is None or where is None:
            continue
        if "chmod" in call[1]:
            finished.add(where[1] + call[2])
        else:
            assert where[1] + call[2] not in finished, line


def test_of_sessions_restores_and_what_undoes_them(source: Path, tmp_path: Path) -> None:
    repository, target = tmp_path / "repository", tmp_path / "target"
    lines = traced(tmp_path, "--current-time=1700000000", "backup", source, repository)
    assert check_made_for_us_alone(lines) >= 10
    (source / "large").chmod(0o644)
    (source / "large").write_bytes(os.urandom(1 << 20))
    (source / "d" / "x").unlink()
    lines = traced(tmp_path, "--current-time=1700000100", "backup", source, repository)
    assert check_made_for_us_alone(lines) >= 10
    for options in ([], ["--merge"]):
        lines = traced(tmp_path, "restore", "--at=1B", *options, repository, target)
        check_owner_before_mode(lines)
        assert options or check_made_for_us_alone(lines) >= 5
        (target / "d" / "x").unlink()
    check_made_for_us_alone(traced(tmp_path, "verify", repository))
    check_made_for_us_alone(traced(tmp_path, "--force", "regress", repository))
    check_kept_from_others(repository / "rdiff-backup-data")


def check_kept_from_others(data: Path) -> None:
    """What tells names, errors and numbers is for the owner alone; increments have the modes of what they keep."""
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for path in data.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and not path.name.startswith("increments"):
            assert not stat.S_IMODE(mode) & 0o077, path
