"""rdiff-backup as the judge: the original program writes and reads the repositories of the tests.

It is run, never read. Starting it takes most of the time of a small call, so one server process imports it
once and forks for each call; the child sets its arguments and runs the entry point that the package
declares, exactly as its console script does. What the server must import to be of use it learns by itself:
a first child makes a backup and reports the modules that are then loaded.
"""

import base64
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

TIMEOUT_S = 120.0
VERSION = "2.2.7"


class Run(NamedTuple):
    """One finished call: the exit code (minus the signal, if one ended it), and all that it printed."""

    code: int
    output: str

    def check(self) -> str:
        """The output of a call that must have worked without a word of complaint."""
        good = self.code == 0 and not self.complaints
        assert good, f"rdiff-backup ended with {self.code}:\n{self.output}"
        return self.output

    @property
    def complaints(self) -> list[str]:
        """The warnings and errors, but for those about an old API version, about times before 1970, and about sessions
        without extended attributes.
        """
        lines = self.output.splitlines()
        return [line for line in lines if line.startswith(_TROUBLE) and not line.startswith(_NO_TROUBLE)]


_TROUBLE = ("WARNING", "ERROR", "FATAL", "CRITICAL", "Traceback", "Exception")
_NO_TROUBLE = (
    "WARNING: Server will be called with deprecated",
    "WARNING: Modification time -",
    "WARNING: POSIX ACLs file not found",
    "WARNING: Extended Attributes file not found",
)


def missing() -> str | None:
    """Why rdiff-backup cannot be asked; None if it can."""
    try:
        found = importlib.metadata.version("rdiff-backup")
    except importlib.metadata.PackageNotFoundError:
        return f"needs rdiff-backup {VERSION}"
    return None if found == VERSION else f"needs rdiff-backup {VERSION}, found {found}"


class Oracle:
    """Calls of rdiff-backup. Times are seconds since the epoch. A context manager: it owns a process.

    Every call returns a Run and does not judge it, but for those that return something else.
    """

    def __init__(self, user: int | None = None) -> None:
        """`user`: as whom rdiff-backup runs, by number; None: as whoever runs the tests."""
        self._user = user
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None

    def backup(
        self,
        source: Path,
        repository: Path,
        *,
        at: int,
        api: int = 200,
        zone: str = "UTC",
        general: Sequence[str] = (),
        special: Sequence[str] = (),
    ) -> Run:
        """`general` are options for every action, `special` those of `backup`."""
        arguments = self.backup_arguments(source, repository, at=at, api=api, general=general, special=special)
        return self.run(arguments, zone=zone)

    @staticmethod
    def backup_arguments(
        source: Path,
        repository: Path,
        *,
        at: int,
        api: int = 200,
        general: Sequence[str] = (),
        special: Sequence[str] = (),
    ) -> list[str]:
        arguments = [f"--api-version={api}", f"--current-time={at}", "--no-fsync", *general]
        return [*arguments, "backup", *special, str(source), str(repository)]

    def restore(self, repository: Path, target: Path, *, at: int, api: int = 200) -> Run:
        return self.run([f"--api-version={api}", "restore", f"--at={at}", str(repository), str(target)])

    def verify(self, repository: Path, *, at: int, api: int = 200) -> Run:
        return self.run([f"--api-version={api}", "verify", f"--at={at}", str(repository)])

    def regress(self, repository: Path, *, api: int = 200) -> Run:
        return self.run([f"--api-version={api}", "--no-fsync", "regress", str(repository)])

    def compare(self, source: Path, repository: Path, *, at: int) -> Run:
        """Exit code 0: the source is what it was, by attributes and digests."""
        return self.run(["compare", "--method=hash", f"--at={at}", str(source), str(repository)])

    def remove_older_than(self, repository: Path, *, at: int) -> Run:
        return self.run(["--force", "remove", "increments", f"--older-than={at}", str(repository)])

    def increments(self, repository: Path) -> list[int]:
        """The times of the sessions that `list increments` shows, ascending."""
        output = self.run(["--parsable-output", "list", "increments", str(repository)]).check()
        return sorted(int(line.split()[0]) for line in output.splitlines() if line.split()[0].isdigit())

    @staticmethod
    def command(arguments: Sequence[str]) -> list[str]:
        """A command line for a process of its own, for those who want to trace or kill one."""
        return [sys.executable, "-c", _SCRIPT, *arguments]

    def run(self, arguments: Sequence[str], *, zone: str = "UTC", timeout: float = TIMEOUT_S) -> Run:
        """Call rdiff-backup; a call that takes longer than `timeout` seconds is killed."""
        if self._server is None:
            self._server = _start_server(self._user)
        request = {"arguments": list(arguments), "zone": zone, "timeout": timeout}
        try:
            answer = _ask(self._server, request)
        except BaseException:  # a late answer must not be taken for that of the next call
            self._server.kill()
            self.__exit__()
            raise
        return Run(answer["code"], base64.b64decode(answer["output"]).decode(errors="backslashreplace"))


def _ask(server: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(request).encode() + b"\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    assert reply, f"the server of rdiff-backup ended with {server.wait()}"
    answer: dict[str, Any] = json.loads(reply)
    return answer


_SCRIPT = """\
import sys
from importlib.metadata import entry_points
[script] = entry_points(group="console_scripts", name="rdiff-backup")
sys.argv[0] = "rdiff-backup"
sys.exit(script.load()())
"""


def _start_server(user: int | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, LC_ALL="C.UTF-8"),
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else (),
    )


# Below: the server process.


def serve() -> None:
    """Answer requests, one JSON object a line, until the end of the input."""
    for name in _modules_of_a_backup():
        try:
            importlib.import_module(name)
        except ImportError:  # a module that imports itself under another name
            continue
    for line in sys.stdin.buffer:
        request = json.loads(line)
        code, output = _call(request["arguments"], request["zone"], request["timeout"])
        answer = {"code": code, "output": base64.b64encode(output).decode()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _modules_of_a_backup() -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "modules"
        (Path(scratch) / "source").mkdir()
        arguments = ["backup", f"{scratch}/source", f"{scratch}/repository"]
        _call(arguments, "UTC", TIMEOUT_S, report)
        return report.read_text().split()


def _call(arguments: list[str], zone: str, timeout: float, report: Path | None = None) -> tuple[int, bytes]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ["TZ"] = zone
            time.tzset()
            _become_rdiff_backup(arguments, report)
        code = _wait(child, timeout)
        output.seek(0)
        return code, output.read()


def _become_rdiff_backup(arguments: list[str], report: Path | None) -> NoReturn:
    """Run the entry point and end the process; nothing of the server's own stack may be unwound here."""
    code = 1
    try:
        [script] = importlib.metadata.entry_points(group="console_scripts", name="rdiff-backup")
        sys.argv = ["rdiff-backup", *arguments]
        code = script.load()()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if report is not None:
            report.write_text("\n".join(name for name in sys.modules if name != "__main__"))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _wait(child: int, timeout: float) -> int:
    pidfd = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([pidfd], [], [], timeout)
        if not ended:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    serve()
