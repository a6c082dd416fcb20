"""The way to the background. Each test runs in a process of its own, since it forks."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from histfs.errors import DamagedError, MountError
from histfs.mount import background

def task(ready):
{task}

try:
    background.run(task)
    print("it is ready", flush=True)
except MountError as exc:
    print("MountError:", exc)
except KeyboardInterrupt:
    print("interrupted")
"""


def start(task, *arguments):
    lines = "\n".join(f"    {line}" for line in task)
    command = [sys.executable, "-c", PROGRAM.format(task=lines), *map(os.fspath, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (["ready()"], "it is ready"),
        (["ready()", "raise DamagedError('too late to be told')"], "it is ready"),
        (["ready()", "ready()"], "it is ready"),
        (["raise DamagedError('is damaged', path=b'a')"], "MountError: a: is damaged"),
        (["raise MountError('ready')"], "MountError: ready"),
        (["raise MountError('\\udcff')"], "MountError: \\udcff"),
        (["raise MountError('x' * 100_000)"], "MountError: " + "x" * 100_000),
        (["pass"], "MountError: the process in the background ended with exit code 0 before it was ready"),
        (["os._exit(3)"], "MountError: the process in the background ended with exit code 3 before it was ready"),
        (["1 / 0"], "MountError: the process in the background ended with exit code 1 before it was ready"),
        (
            ["os.kill(os.getpid(), signal.SIGKILL)"],
            "MountError: the process in the background was killed by signal 9 before it was ready",
        ),
    ],
)
def test_the_parent_says_what_happened(task, said):
    out, err = start(task).communicate(timeout=20)
    assert (out, err) == (said + "\n", "")


def test_the_parent_does_not_wait_for_the_end(tmp_path):
    os.mkfifo(tmp_path / "go")
    task = ["ready()", "Path(sys.argv[1]).read_text()", "Path(sys.argv[2]).touch()"]
    started = start(task, tmp_path / "go", tmp_path / "done")
    assert started.communicate(timeout=20)[0] == "it is ready\n"
    (tmp_path / "go").write_text("")
    deadline = time.monotonic() + 10
    while not (tmp_path / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_interrupted_leaves_no_process(tmp_path):
    task = ["Path(sys.argv[1]).write_text(str(os.getpid()))", "os.rename(sys.argv[1], sys.argv[2])", "time.sleep(60)"]
    started = start(task, tmp_path / "new", tmp_path / "pid")
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=20)[0] == "interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
