"""Running commands and timing them, with caches as they are wanted.

Every command has a limit: one that takes longer is ended, and the table says so. Commands get process groups of their
own, so that Ctrl-C ends the bench, which then ends them, in order.
"""

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_BLOCK_BYTES = 512  # in which ru_oublock counts
_TOOLS = ("find", "tar", "cat", "diff", "cp", "sh", "env", "setpriv", "fusermount3")


class TroubleError(Exception):
    """What keeps one program from a figure; the others go on."""


class CommandError(TroubleError):
    """A command ended with an error. Its text has the last lines that the command said."""


class TooSlowError(TroubleError):
    """A command was ended because it took longer than its limit."""


class Cost(NamedTuple):
    """What a command took, with all that it started and waited for."""

    took_s: float
    memory_mib: float  # of its largest process, at most
    written_mib: float  # to disks, as far as the kernel counts that for it


def timed(
    command: Sequence[object],
    *,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    codes: Iterable[int] = (0,),
    output: Path | None = None,
) -> float:
    """Run `command`; how many seconds it took. What it writes goes to `output`, or nowhere.

    CommandError if its exit code is not in `codes`, TooSlowError.
    """
    return measured(command, limit_s=limit_s, environment=environment, codes=codes, output=output).took_s


def measured(
    command: Sequence[object],
    *,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    codes: Iterable[int] = (0,),
    output: Path | None = None,
) -> Cost:
    """The same, and what else it took.

    The kernel counts the memory of a process from before it became another program, so it must not be started by us,
    who may be larger: by GNU time, where that is installed.
    """
    words = [str(word) for word in command]
    with (
        tempfile.TemporaryFile() as said,
        tempfile.NamedTemporaryFile() as counted,
        open(output or os.devnull, "wb") as written,
    ):
        has_ended = False
        program = shutil.which("time")
        started_by = [] if program is None else [program, "--quiet", "--format=%M", f"--output={counted.name}"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*started_by, *words], env=environment, stdout=written, stderr=said, start_new_session=True
        )
        try:
            has_ended = _has_ended(process, limit_s)
            took_s = time.perf_counter() - started
            if not has_ended:
                raise TooSlowError(f"more than {limit_s:g} s: {_short(words)}")
        finally:
            _, status, usage = _ended(process, has_ended=has_ended)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in set(codes):
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()[-3:]
            raise CommandError(f"exit code {process.returncode}: {_short(words)}: {' / '.join(lines)}")
        memory_kib = int(counted.read()) if started_by else usage.ru_maxrss
    return Cost(took_s, memory_kib / 1024, usage.ru_oublock * _BLOCK_BYTES / (1 << 20))


def _ended(process: "subprocess.Popen[bytes]", *, has_ended: bool) -> tuple[int, int, "resource.struct_rusage"]:
    """What os.wait4 says; a process that has not ended is ended first."""
    if not has_ended:
        os.killpg(process.pid, signal.SIGKILL)
    return os.wait4(process.pid, 0)


def _has_ended(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Wait for its end, for so long at most; Popen.wait with a limit would look at it every 50 ms."""
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], limit_s)[0])
    finally:
        os.close(descriptor)


def _short(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) < 200 else f"{text[:197]}..."


def output_of(command: Sequence[object], *, limit_s: float, environment: Mapping[str, str] | None = None) -> bytes:
    """What `command` writes. CommandError, TooSlowError."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, env=environment, capture_output=True, check=True, timeout=limit_s).stdout
    except subprocess.TimeoutExpired:
        raise TooSlowError(f"more than {limit_s:g} s: {_short(words)}") from None
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip()
        raise CommandError(f"exit code {exc.returncode}: {_short(words)}: {said[-300:]}") from None


def program_beside_python(name: str) -> list[str]:
    """How to start a script of this environment: its first line may name an interpreter with a blank in its path."""
    return [sys.executable, str(Path(sys.executable).with_name(name))]


def drop_all_caches() -> bool:
    """Empty all caches of the kernel, also of names and inodes; False if we may not.

    The tools of the bench are read once again, so that their start is not part of what is measured.
    """
    os.sync()
    try:
        _DROP_CACHES.write_text("3")
    except OSError:
        return False
    for tool in _TOOLS:
        subprocess.run([tool, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return True


def forget_pages(place: Path) -> None:
    """Drop the cached pages of all files below `place`; what nobody else keeps goes."""
    for directory, _, names in os.walk(place):
        for name in names:
            try:
                descriptor = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
