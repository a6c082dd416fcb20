"""What all scenarios share: a place, programs, the way from a history to repositories, and trouble that stays local.

A scenario writes its history with all programs session by session, then reads what each wrote, and checks the bytes.
With `keep` the repositories stay, and are taken again if program, data and number of sessions are the same; then there
are no figures about writing.
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from bench import commands, mounts
from bench.commands import TooSlowError, TroubleError
from bench.peers import Histfs, Peer, Plain
from bench.results import Measure, Results
from bench.trees import History

FIRST = Measure("first session", "s", "the backup command, into an empty repository")
NEXT = Measure("a session with 1 % changed", "s", "the backup command; median of all of them")
WRITTEN = Measure("sessions", "", "how many the repository has; fewer than the others where the time for writing ended")
USABLE = Measure(
    "mount: usable",
    "s",
    "from the start of the program until the mount point is listed; programs cached, repository not",
)
LISTED = Measure("mount: oldest snapshot listed", "s", "the same, until the top directory of the oldest snapshot is")
SIZE = Measure("repository", "MiB", "what it occupies on disk")
MEMORY = Measure("mount: memory at most", "MiB", "VmHWM of the program that mounts, after all of this")


_STEPS_A_MOUNT = 4  # commands and checks: a mount lives no longer than so many limits


class Sizes(NamedTuple):
    """How much data; the defaults are the full run."""

    tree_files: int = 50_000
    tree_sessions: int = 20
    image_mib: int = 1024
    image_sessions: int = 100
    log_sessions: int = 1000
    million_records: int = 1_000_000
    million_sessions: int = 10
    sessions_files: int = 5000
    sessions_large_mib: int = 64
    sessions_changed: int = 5
    everyday_files: int = 50_000
    everyday_image_mib: int = 1024
    everyday_many: int = 1_000_000
    everyday_killed: int = 200_000
    everyday_changed: int = 3
    removal_files: int = 100_000
    removal_sessions: int = 100
    random_reads: int = 1000
    repeats: int = 3
    settled_s: int = 60


QUICK = Sizes(1000, 2, 32, 6, 50, 50_000, 5, 500, 8, 2, 1000, 32, 20_000, 4000, 1, 5000, 20, 500, 2, 0)


class Setting(NamedTuple):
    """What a run is told. `origins` are directories of real files; `patience_s` ends the writing of all but histfs."""

    sizes: Sizes
    place: Path
    programs: list[type[Peer]]
    origins: list[Path]
    limit_s: float
    patience_s: float
    keep: bool
    spare_caches: bool
    say: Callable[[str], None]


class Scenario(ABC):
    """One question, with its own data. `measures` are the rows of its table."""

    name: ClassVar[str]
    title: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.sizes = setting.sizes
        self.say = setting.say
        self.limit_s = setting.limit_s
        self.place = setting.place / self.name
        self.results = Results(self.name, self.title, "", self.measures)

    @abstractmethod
    def estimate_s(self) -> float:
        """About how long it takes, on two cores."""

    @abstractmethod
    def run(self) -> None:
        """Fill `results`."""

    @classmethod
    def takes_part(cls, program: type[Peer]) -> bool:
        """Whether a program takes part if nobody says which."""
        return True

    # Writing

    def peers(self, source: Path) -> list[Peer]:
        return [program(self.place, source) for program in self.setting.programs]

    def write(self, history: History, sessions: int, peers: list[Peer]) -> list[Peer]:
        """Back up the history with all of `peers`, and one that keeps the truth; those that did so without trouble."""
        self.results.data = f"{history}; {sessions:,} sessions after the first"
        kept = [peer for peer in peers if self._take_kept(peer, history, sessions)]
        writers = {peer: _Writing(peer) for peer in peers if peer not in kept}
        if not writers:
            return peers
        shutil.rmtree(history.root, ignore_errors=True)
        for peer in writers:
            _record(peer).unlink(missing_ok=True)
            peer.forget()
        for session in range(sessions + 1):
            history.advance(session)
            for peer, writing in writers.items():
                if writing.goes_on and peer.wants(session, sessions):
                    self._write_session(writing, session)
            if session < 2 or session % max(sessions // 10, 1) == 0:
                self.say(f"{self.name}: session {session:,} of {sessions:,} is written")
        for peer, writing in writers.items():
            if not writing.failed:
                self._keep(peer, writing, history, sessions)
        return [peer for peer in peers if peer in kept or not writers[peer].failed]

    def plain_of(self, peers: list[Peer]) -> Plain:
        """The one that keeps the truth; TroubleError if it could not."""
        for peer in peers:
            if isinstance(peer, Plain):
                return peer
        raise TroubleError("without plain copies there is nothing to check against")

    def _write_session(self, writing: "_Writing", session: int) -> None:
        peer = writing.peer
        try:
            if session == 0 and (command := peer.prepare()):
                commands.timed(command, environment=peer.environment(), limit_s=self.limit_s)
            took_s = commands.timed(peer.backup(session), environment=peer.environment(), limit_s=self.limit_s)
        except TroubleError as exc:
            self.results.add_trouble(peer.name, f"session {session}: {exc}")
            writing.failed, writing.goes_on = True, False
            return
        writing.took_s.append(took_s)
        peer.newest = session
        if sum(writing.took_s) > self.setting.patience_s and not isinstance(peer, Histfs | Plain):
            writing.goes_on = False

    def _keep(self, peer: Peer, writing: "_Writing", history: History, sessions: int) -> None:
        record = {"key": self._key(peer, history, sessions), "newest": peer.newest}
        _record(peer).write_text(json.dumps(record))
        self.add_writing(peer, writing.took_s)

    def _take_kept(self, peer: Peer, history: History, sessions: int) -> bool:
        try:
            record = json.loads(_record(peer).read_text())
        except OSError:
            return False
        if record["key"] != self._key(peer, history, sessions):
            return False
        peer.newest = record["newest"]
        if not isinstance(peer, Plain):
            self.results.notes.append(f"{peer.name}: the repository is of an earlier run")
            self._add_written(peer)
        return True

    def _key(self, peer: Peer, history: History, sessions: int) -> list[str]:
        return [str(peer.version()), history.fingerprint(), str(sessions)]

    def add_writing(self, peer: Peer, took_s: list[float]) -> None:
        """The rows about writing."""
        if not isinstance(peer, Plain) and took_s:
            self.results.add(FIRST.name, peer.name, *took_s[:1])
            self.results.add(NEXT.name, peer.name, *took_s[1:])
            self._add_written(peer)

    def _add_written(self, peer: Peer) -> None:
        if WRITTEN in self.measures:
            self.results.add(WRITTEN.name, peer.name, peer.newest + 1)

    # Reading

    def read_each(self, peers: list[Peer], read: Callable[[Peer], None]) -> None:
        """`read` each; trouble of one is told, and then it is the next one's turn."""
        self.results.columns = [peer.name for peer in peers]
        for peer in peers:
            self.say(f"{self.name}: reading {peer.name}")
            with self.trouble_of(peer):
                read(peer)

    @contextmanager
    def trouble_of(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except TooSlowError as exc:
            self.results.notes.append(f"{peer.name}: {exc}")
            self.say(f"{self.name}: {peer.name}: {exc}")
        except TroubleError as exc:
            self.results.add_trouble(peer.name, str(exc))
            self.say(f"{self.name}: {peer.name}: {exc}")

    @contextmanager
    def cold_mount(self, peer: Peer) -> Iterator[mounts.Mount]:
        """Caches dropped, then mounted; its peak of memory is recorded at the end."""
        self.drop_caches(peer)
        with mounts.mounted(peer, limit_s=_STEPS_A_MOUNT * self.limit_s) as mount:
            yield mount
            self._note_memory(peer, mount.peak_memory_mib())

    def drop_caches(self, peer: Peer) -> None:
        """Everything, or what can be of the repository; the table says so then."""
        if self.setting.spare_caches or not commands.drop_all_caches():
            commands.forget_pages(peer.repository)
            note = "'caches dropped': only cached contents of the repository, not names and inodes"
            if note not in self.results.notes:
                self.results.notes.append(note)

    def _note_memory(self, peer: Peer, mib: float) -> None:
        if MEMORY in self.measures:
            known = self.results.samples.setdefault(MEMORY.name, {})
            known[peer.name] = [max([mib, *known.get(peer.name, [])])]

    def measure_mounting(self, peer: Peer) -> None:
        """USABLE and LISTED, with cached programs: so once before, uncounted."""
        for repeat in range(self.sizes.repeats + 1):
            commands.forget_pages(peer.repository)
            with mounts.mounted(peer, limit_s=self.limit_s) as mount:
                peer.mounted_snapshot(0).stat()
                next(peer.mounted_snapshot(0).iterdir(), None)
                listed_s = time.perf_counter() - mount.started
                if repeat:
                    self.results.add(USABLE.name, peer.name, mount.usable_s)
                    self.results.add(LISTED.name, peer.name, listed_s)

    def timed(
        self,
        measure: Measure,
        *command: object,
        codes: tuple[int, ...] = (0,),
        output: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> float:
        """Seconds that `command` takes; what is too slow names the `measure`."""
        try:
            return commands.timed(command, limit_s=self.limit_s, environment=environment, codes=codes, output=output)
        except TooSlowError:
            raise TooSlowError(f"{measure.name}: more than {self.limit_s:g} s") from None

    def measure_size(self, peer: Peer) -> None:
        usage = commands.output_of(["du", "-s", "-B1", peer.repository], limit_s=self.limit_s)
        self.results.add(SIZE.name, peer.name, int(usage.split()[0]) / (1 << 20))

    def measure_restore(self, measure: Measure, peer: Peer, session: int, check: Callable[[Path], None]) -> None:
        """Restore to a new place, and `check` it there. It stays, see `EverydayScenario`."""
        target = self.place / f"{measure.name.replace(' ', '-')}-{peer.word}"
        shutil.rmtree(target, ignore_errors=True)
        command, environment = peer.restore(session, target), peer.environment()
        self.drop_caches(peer)
        took_s = self.timed(measure, *command, environment=environment)
        check(peer.restored(target))
        self.results.add(measure.name, peer.name, took_s)


class _Writing:
    """How far one program has come."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.took_s: list[float] = []
        self.goes_on = True
        self.failed = False


def _record(peer: Peer) -> Path:
    return peer.repository.with_name(f"{peer.repository.name}.json")
