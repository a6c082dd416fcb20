"""The soak itself: steps in an order that a seed decides, readers beside them, and what it all came to."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import comparison, histories, oracle
from tests.mirrors import DATA
from tests.oracle import Oracle
from tests.soak.commands import Commands, Wrong
from tests.soak.looking import Looker
from tests.soak.model import Model
from tests.soak.mounting import Mount
from tests.soak.source import SoakChanges
from tests.soak.writing import Writer

_ROOT = Path(__file__).parents[2]
_READERS = 2
_HUNG_S = 400.0
_FIRST_SESSIONS = 3


@dataclass
class Figures:
    """What a soak has done. Of the mount: the most that one daemon had."""

    seed: int
    steps: int = 0
    seconds: float = 0.0
    sessions: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    killed: dict[str, int] = field(default_factory=dict)
    cut_off: int = 0  # how often a kill left something to recover from
    removed_sessions: int = 0
    removed_paths: int = 0
    restored: int = 0
    mounts: int = 0
    daemon_kib: int = 0
    daemon_descriptors: int = 0
    read: dict[str, int] = field(default_factory=dict)  # by the readers beside


class Readers:
    """Processes that read all the time."""

    def __init__(self, mountpoint: Path, model: Path, seed: int) -> None:
        command = [sys.executable, "-m", "tests.soak.reader", mountpoint, model]
        self._processes = [
            subprocess.Popen([*command, f"{seed} {number}"], cwd=_ROOT, stdout=subprocess.PIPE, text=True)
            for number in range(_READERS)
        ]

    def check(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                said, _ = process.communicate()
                raise Wrong(f"a reader ended with {process.returncode}: {said}")

    def stop(self) -> dict[str, int]:
        """End them; the sums of what they have counted. Wrong if one of them has seen something wrong."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        sums: dict[str, int] = {}
        for process in self._processes:
            said, _ = process.communicate(timeout=_HUNG_S)
            if process.returncode:
                raise Wrong(f"a reader ended with {process.returncode}: {said}")
            counts: dict[str, int] = json.loads(said)
            sums = {name: sums.get(name, 0) + count for name, count in counts.items()}
        return sums

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class Soak:
    """`place` is an empty directory, which is left as it is."""

    def __init__(self, place: Path, seed: int, rdiff_backup: Oracle | None) -> None:
        self._place = place
        self._seed = seed
        self._limits = histories.RDIFF_BACKUP_WRITES if rdiff_backup else histories.ANYTHING
        (place / "source").mkdir()
        self.figures = Figures(seed)
        self.commands = Commands(place / "cache", place / "repository" / DATA)
        self._model = Model(place / "model")
        self._changes = SoakChanges(place / "source", random.Random(f"tree {seed}"), self._limits)
        self._writer = Writer(place, self.commands, self._model, self._changes, rdiff_backup)
        self._mount = Mount(self.commands, place / "repository", place / "mnt", place / "logs")
        self._looker = Looker(place, self.commands, self._model, self._mount)
        self._readers: Readers | None = None
        self._step_began: float | None = None
        self._has_hung = False

    def _kinds(self) -> list[Callable[[random.Random], None]]:
        weights: list[tuple[Callable[[random.Random], None], int]] = [
            (self._writer.back_up, 26),
            (self._writer.killed_session, 20),
            (self._writer.step_back, 6),
            (self._writer.remove_sessions, 6),
            (self._remove_path, 5),
            (self._writer.other_program, 8),
            (self._looker.verify, 7),
            (self._looker.restore, 9),
            (self._looker.mount_anew, 6),
            (self._looker.lose_catalog, 5),
            (self._looker.look_at_all, 2),
        ]
        return [kind for kind, weight in weights for _ in range(weight)]

    def _remove_path(self, chance: random.Random) -> None:
        """A path goes, and the mount with it, as it may show what the kernel keeps of the path."""
        if self._writer.remove_path(chance):
            self._mount.excuse()
            self._looker.mount_anew(chance)
            self._model.path_is_gone()

    def run(self, goes_on: Callable[[int], bool]) -> None:
        """Steps as long as `goes_on` says so of how many there were. Wrong and AssertionError are failures."""
        began = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._begin()
            while goes_on(self.figures.steps):
                self.figures.steps += 1
                with self._one_step():
                    self._step(self.figures.steps)
            with self._one_step():
                self._end()
        except OSError as exc:
            raise Wrong(f"{'a step took too long, and the mount was killed: ' * self._has_hung}{exc!r}") from exc
        finally:
            self._count(time.monotonic() - began)
            if self._readers is not None:
                self._readers.kill()
            self._mount.kill()

    def _begin(self) -> None:
        """A first session, killed once or not; a few more; the mount and the readers."""
        chance = random.Random(f"begin {self._seed}")
        self._changes.begin()
        if chance.random() < 0.5:
            self._writer.killed_session(chance)
        while len(self._model.times) < _FIRST_SESSIONS:
            self._writer.back_up(chance)
        self._mount.up()
        self._model.mounted(self._mount.number)
        self._readers = Readers(self._place / "mnt", self._place / "model", self._seed)

    def _step(self, number: int) -> None:
        """The kind of step, and all that it draws, depend on seed and number alone."""
        chance = random.Random(f"step {self._seed} {number}")
        step = chance.choice(self._kinds())
        self.commands.recent.append(f"# step {number}: {step.__name__}")
        step(chance)
        self._looker.check(is_tidy=self._writer.is_tidy)
        if not self._writer.is_unfinished and chance.random() < 0.3:
            self._looker.check_mirror()
        assert self._readers is not None
        self._readers.check()

    def _end(self) -> None:
        """All is looked at once more, at rest."""
        assert self._readers is not None
        self._writer.now += 60
        self._writer.finish(comparison.read(self._writer.source))
        self._looker.check(is_tidy=True)
        self._looker.check_mirror()
        self._looker.look_at_all(random.Random())
        self.commands.run("--quiet", "verify", "--all", "--restart", self._writer.repository)
        self.figures.read = self._readers.stop()
        self._readers = None
        self._mount.close()

    def _count(self, seconds: float) -> None:
        figures, writer = self.figures, self._writer
        figures.seconds = round(seconds, 1)
        figures.sessions, figures.removed_sessions = writer.sessions, writer.removed
        figures.cut_off = writer.cut_off
        figures.removed_paths, figures.restored = writer.paths_removed, self._looker.restored
        figures.runs, figures.killed = dict(self.commands.runs), dict(self.commands.killed)
        figures.mounts = self._mount.number
        figures.daemon_kib, figures.daemon_descriptors = self._mount.most_kib, self._mount.most_descriptors

    @contextmanager
    def _one_step(self) -> Iterator[None]:
        self._step_began = time.monotonic()
        yield
        self._step_began = None

    def _watch(self) -> None:
        """Free a step that hangs on the mount, by killing the mount."""
        while True:
            time.sleep(1)
            if self._step_began is not None and time.monotonic() - self._step_began > _HUNG_S:
                self._has_hung = True
                self._mount.kill()
                return


def run(place: Path, seed: int, goes_on: Callable[[int], bool]) -> tuple[Figures, str | None]:
    """A soak; what it did, and what was wrong if anything was, with what led to it.

    Seeds that are even have rdiff-backup write, too, where it is installed, and leave out what it cannot.
    """
    if seed % 2 or oracle.missing():
        soak = Soak(place, seed, None)
        return soak.figures, _failure(soak, goes_on)
    with Oracle() as rdiff_backup:
        soak = Soak(place, seed, rdiff_backup)
        return soak.figures, _failure(soak, goes_on)


def _failure(soak: Soak, goes_on: Callable[[int], bool]) -> str | None:
    try:
        soak.run(goes_on)
    except (Wrong, AssertionError) as exc:
        lines = [f"seed {soak.figures.seed}, step {soak.figures.steps}: {exc}", "", "The last steps were:"]
        return "\n".join([*lines, *soak.commands.recent])
    return None
