"""The way to the background, in processes of their own since they fork; and where the log goes."""

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from histfs.errors import MountError
from histfs.mount import background

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


# The log


@pytest.fixture
def log():
    return logging.getLogger("histfs.test")


def test_a_log_file_is_private_and_grows(tmp_path, log):
    for message in ("one", "two"):
        with background.logging_to(tmp_path / "log", foreground=False, debug=False):
            log.info("%s", message)
            log.debug("not this")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["one", "two"]
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_debugging_is_logged_when_asked_for(tmp_path, log):
    with background.logging_to(tmp_path / "log", foreground=False, debug=True):
        log.debug("this")
    assert "DEBUG this" in (tmp_path / "log").read_text()


def test_a_log_file_that_cannot_be(tmp_path):
    with (
        pytest.raises(MountError, match="log cannot be written"),
        background.logging_to(tmp_path, foreground=True, debug=False),
    ):
        pass


def test_the_foreground_logs_to_the_screen(log, capfd):
    with background.logging_to(None, foreground=True, debug=False):
        log.warning("seen")
    assert capfd.readouterr() == ("", "histfs: seen\n")


def test_the_background_logs_to_the_system(tmp_path, log, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(os.fspath(tmp_path / "log"))
        monkeypatch.setattr(background, "_SYSTEM_LOG", tmp_path / "log")
        with background.logging_to(None, foreground=False, debug=False):
            log.warning("seen")
        assert system.recv(1000) == b"<28>histfs[%d]: seen\0" % os.getpid()


def test_without_a_system_log_the_background_is_silent(tmp_path, log, monkeypatch, capfd):
    monkeypatch.setattr(background, "_SYSTEM_LOG", tmp_path / "missing")
    with background.logging_to(None, foreground=False, debug=False):
        log.warning("not seen")
    assert capfd.readouterr() == ("", "")


def test_the_log_of_others_is_left_as_it_was(tmp_path):
    before = logging.getLogger().handlers[:], logging.getLogger().level
    with background.logging_to(tmp_path / "log", foreground=False, debug=True):
        assert logging.getLogger().handlers != before[0]
    assert (logging.getLogger().handlers[:], logging.getLogger().level) == before
