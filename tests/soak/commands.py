"""Command lines of histfs, as processes of their own that are run to their end, or killed somewhere."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from pathlib import Path

_TIMEOUT_S = 300
_LINES_KEPT = 12
_STARTED_AFTER = 0.3  # of the time that a command takes, about so much is its start
_TOO_LATE = 1.05
_A_COMMAND_S = 0.5
_LOOK_EVERY_S = 0.002


class Wrong(Exception):
    """What should not be."""


class Commands:
    """Runs them. `killed` counts kills by verb, `recent` has the last command lines with what became of them.

    `changed` is the directory in which a command that writes makes its first change.
    """

    def __init__(self, cache: Path, changed: Path) -> None:
        self._changed = changed
        self.environment = dict(os.environ, TZ="UTC", XDG_CACHE_HOME=os.fspath(cache), LC_ALL="C.UTF-8")
        self.recent: deque[str] = deque(maxlen=_LINES_KEPT)
        self.runs: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    @staticmethod
    def line(*arguments: str | Path | bytes) -> list[str]:
        return [sys.executable, "-m", "histfs", *map(os.fsdecode, arguments)]

    def run(self, *arguments: str | Path | bytes, codes: Collection[int] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run one to its end; it must end with one of `codes`."""
        verb = _verb(arguments)
        began = time.monotonic()
        try:
            ran = subprocess.run(
                self.line(*arguments),
                capture_output=True,
                text=True,
                errors="surrogateescape",
                env=self.environment,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            self._note(arguments, "did not end")
            raise Wrong(f"histfs {verb} did not end in {_TIMEOUT_S} s: {exc.stderr!r}") from exc
        self._seconds[verb] = time.monotonic() - began
        self.runs[verb] += 1
        self._note(arguments, f"code {ran.returncode}")
        if ran.returncode not in codes:
            raise Wrong(f"histfs {verb} ended with {ran.returncode}, not with one of {codes}: {ran.stdout}{ran.stderr}")
        if "Traceback" in ran.stderr:
            raise Wrong(f"histfs {verb}: {ran.stderr}")
        return ran

    def run_and_kill(
        self, chance: random.Random, *arguments: str | Path | bytes, codes: Collection[int] = (0,)
    ) -> bool:
        """Kill one somewhere; whether it was killed, and did not end with one of `codes` before."""
        verb = _verb(arguments)
        return self.kill(
            chance, verb, self.line(*arguments), codes, f"histfs {shlex.join(map(os.fsdecode, arguments))}"
        )

    def kill(
        self, chance: random.Random, name: str, command: Sequence[str], codes: Collection[int], shown: str
    ) -> bool:
        """The same with any command line, which is `shown` as one."""
        seconds = self._seconds.get(name, _A_COMMAND_S)
        from_first_change, share = chance.random() < 0.6, chance.random()
        before = self._last_change()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.environment
        ) as process:
            first, last = _STARTED_AFTER, _TOO_LATE
            if from_first_change:
                first, last = 0.0, _TOO_LATE - _STARTED_AFTER
                while process.poll() is None and self._last_change() == before:
                    time.sleep(_LOOK_EVERY_S)
            try:
                _, said = process.communicate(timeout=seconds * (first + (last - first) * share))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                _, said = process.communicate()
        code = process.returncode
        self.recent.append(f"{shown}  # {'killed' if code == -signal.SIGKILL else f'code {code}'}")
        if code == -signal.SIGKILL:
            self.killed[name] += 1
            return True
        self.runs[name] += 1
        if code not in codes:
            raise Wrong(f"{name} ended with {code}, not with one of {codes}: {said.decode(errors='backslashreplace')}")
        return False

    def _last_change(self) -> int:
        return self._changed.stat().st_mtime_ns if self._changed.exists() else 0

    def took(self, name: str, seconds: float) -> None:
        """How long something else takes that will be killed."""
        self._seconds[name] = seconds

    def _note(self, arguments: Sequence[str | Path | bytes], became: str) -> None:
        self.recent.append(f"histfs {shlex.join(map(os.fsdecode, arguments))}  # {became}")


def _verb(arguments: Sequence[str | Path | bytes]) -> str:
    """The verb of a command line, with what of its options makes it another one."""
    words = [word for word in map(os.fsdecode, arguments) if not word.startswith("--")]
    verb = f"{words[0]} {words[1]}" if words[0] in ("remove", "list") else words[0]
    return "--force regress" if verb == "regress" and "--force" in arguments else verb
