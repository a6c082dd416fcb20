"""Runs the command line where it can do no harm, and tells what it tried: many calls in a second.

A server process imports histfs once and forks for each call. The child has little memory, may write no large files, and
must end in time; what it would run, or load, is told. `Outside` tells of everything that is opened in a directory.
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Self

SERVER = """
import json, os, resource, select, signal, sys, time, traceback
MEMORY, FILE, WITHIN_S, FORBIDDEN = %r
def forbid(event, arguments):
    if event in FORBIDDEN:
        os.write(2, f"FORBIDDEN {event} {arguments!r}\\n".encode())
        os._exit(99)
def call(request):
    os.chdir(request["directory"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    if request["walk"]:
        from histfs.store import tree
        tree._OPENAT2 = -1
    histfs.cli.output.is_terminal = lambda: True
    sys.addaudithook(forbid)
    os._exit(main(request["arguments"]))
sys.argv = ["histfs"]
from histfs.cli import main
import histfs.cli.output, histfs.cli.backup, histfs.cli.compare, histfs.cli.verify, histfs.cli.restore, histfs.mount
import histfs.cli.status
import histfs.store.backup, histfs.store.compare, histfs.store.verify, histfs.store.restore, histfs.store.inventory
import histfs.store.status, encodings.idna
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        try:
            call(request)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(98)
    began = time.monotonic()
    watch = os.pidfd_open(child)
    is_late = not select.select([watch], [], [], WITHIN_S)[0]
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    os.close(watch)
    took_s = time.monotonic() - began
    print(json.dumps([os.waitstatus_to_exitcode(status), is_late, used.ru_maxrss, took_s]), flush=True)
"""
MEMORY_BYTES = 500 << 20
FILE_BYTES = 64 << 20
WITHIN_S = 60.0
# Whatever would run something that is not ours.
FORBIDDEN = (
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "subprocess.Popen",
    "pickle.find_class",
    "sqlite3.load_extension",
)


class Ran(NamedTuple):
    code: int
    is_late: bool
    most_kib: int
    seconds: float
    out: bytes
    err: bytes


class Sandbox:
    """A context manager. `walk`: as where there is no openat2(2)."""

    def __init__(self, scratch: Path, *, walk: bool = False) -> None:
        settings = (MEMORY_BYTES, FILE_BYTES, WITHIN_S, FORBIDDEN)
        self._scratch = scratch
        self._walk = walk
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER % (settings,)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def run(self, *arguments: object, directory: Path) -> Ran:
        out, err = self._scratch / "out", self._scratch / "err"
        request: dict[str, Any] = {"arguments": [os.fsdecode(str(each)) for each in arguments]}
        request |= {"directory": str(directory), "out": str(out), "err": str(err), "walk": self._walk}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ran(*json.loads(self._server.stdout.readline()), out.read_bytes(), err.read_bytes())


_OPEN, _ACCESS, _EVERYTHING_BUT_CLOSING = 0x20, 0x1, 0xFE7
_EVENT = struct.Struct("iIII")


class Outside:
    """Tells of whatever is opened, read, written, made or removed in a directory and below. A context manager."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names: dict[int, str] = {}
        for above, _, _ in os.walk(directory):
            number = libc.inotify_add_watch(self._fd, os.fsencode(above), _EVERYTHING_BUT_CLOSING)
            assert number >= 0
            self._names[number] = above

    def __enter__(self) -> Self:
        self.events()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def events(self) -> list[str]:
        """Since this was last asked."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return []
        found = []
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
            found.append(f"{mask:#x} {self._names.get(number)}/{name}")
            data = data[_EVENT.size + length :]
        return found
