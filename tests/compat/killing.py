"""Kill a command at any system call that changes something below a directory.

strace(1) counts and kills: a first run lists the calls, later ones are killed at the entry of one of them, so that this
call has no effect and all before it have. Signals at random times would hit the interesting moments hardly ever.
"""

import functools
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

_TIMEOUT_S = 120
_CREATING = ("O_CREAT", "O_TRUNC")
_OPENING = frozenset({"open", "openat", "openat2"})
_CHANGING = frozenset(
    {
        "write",
        "pwrite64",
        "writev",
        "pwritev",
        "ftruncate",
        "truncate",
        "fallocate",
        "sendfile",
        "copy_file_range",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "unlink",
        "unlinkat",
        "mkdir",
        "mkdirat",
        "rmdir",
        "mknod",
        "mknodat",
        "chmod",
        "fchmod",
        "fchmodat",
        "chown",
        "fchown",
        "lchown",
        "fchownat",
        "utime",
        "utimes",
        "utimensat",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "removexattr",
        "lremovexattr",
        "fremovexattr",
    }
)
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")


class Point(NamedTuple):
    """The `nth` call of `syscall` by a thread of the command; `text` is how it looked, for messages."""

    syscall: str
    nth: int
    text: str


def skip_unless_traceable() -> None:
    """Skip the calling test where strace is missing or may not trace."""
    if reason := _obstacle():
        pytest.skip(reason)


@functools.cache
def _obstacle() -> str | None:
    if shutil.which("strace") is None:
        return "needs strace"
    ran = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {ran.stderr.strip()}" if ran.returncode else None


def points(command: Sequence[str], watched: Path) -> list[Point]:
    """Run `command` to its end, and list the calls that changed something below `watched`."""
    log = watched.parent / "strace.log"
    traced = ",".join(sorted(_CHANGING | _OPENING))
    ran = _strace(["-y", "-s", "200", "-e", f"trace={traced}", "-o", os.fspath(log)], command)
    assert ran.returncode & 1 == 0, ran
    found = []
    seen: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(errors="surrogateescape").splitlines():
        if not (call := _CALL.match(line)):
            continue
        thread, syscall, arguments = call.groups()
        seen[thread, syscall] += 1
        is_change = syscall in _CHANGING or any(flag in arguments for flag in _CREATING)
        if is_change and os.fspath(watched) in arguments:
            found.append(Point(syscall, seen[thread, syscall], line))
    log.unlink()
    return found


def kill_at(command: Sequence[str], point: Point) -> bool:
    """Run `command` and kill it at `point`; whether that happened, and it did not end by itself."""
    options = ["-o", os.devnull, "-e", f"trace={point.syscall}"]
    options += ["-e", f"inject={point.syscall}:signal=SIGKILL:when={point.nth}"]
    ran = _strace(options, command)
    assert ran.returncode & 1 == 0 or ran.returncode in (-9, 137), ran
    return ran.returncode in (-9, 137)


def _strace(options: Sequence[str], command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ, PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1", LC_ALL="C.UTF-8")
    return subprocess.run(
        ["strace", "-f", "-q", "-e", "signal=none", *options, *command],
        capture_output=True,
        timeout=_TIMEOUT_S,
        env=environment,
        check=False,
    )
