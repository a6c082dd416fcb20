"""Writing, as it is every day: a first session, one in which nothing has changed, some in which a little has."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import commands
from bench.commands import Cost, TroubleError
from bench.peers import Histfs, Peer, Plain, RdiffBackup, session_time
from bench.results import Measure
from bench.scenarios.base import Scenario
from bench.trees import Image, RealTree

FIRST = Measure("first session", "s", "the backup command, into an empty repository; the plain copy: cp -a, then sync")
UNCHANGED = Measure("nothing changed", "s", "the same command again; median of all of them")
EXCLUDING = Measure(
    "nothing changed, with excludes", "s", "the same, without what ends in .h and each directory doc; median of all"
)
CHANGED = Measure("1 % changed", "s", "the same command after each change; median of all of them")
FIRST_MEMORY = Measure("first session: memory at most", "MiB", "of its largest process")
FIRST_WRITTEN = Measure("first session: written", "MiB", "what the kernel counts as written to disk for it")
UNCHANGED_MEMORY = Measure("nothing changed: memory at most", "MiB", "of its largest process")
IMAGE = Measure("image, 1 % scattered", "s", "one large file, of whose 4 KiB blocks 1 % are written anew; median")
IMAGE_INCREMENT = Measure(
    "image, 1 % scattered: increment", "MiB", "the file that leads back; of programs with such files"
)
INSERTED = Measure("image, 1 MiB inserted", "s", "the same file with a MiB more near its front; one sample")
INSERTED_INCREMENT = Measure("image, 1 MiB inserted: increment", "MiB", "the file that leads back")
MANY = Measure("many tiny files, nothing changed: each", "s", "time by number of files")
FEWER = Measure("a twentieth of them, nothing changed: each", "s", "time by number of files")
MANY_MEMORY = Measure("many tiny files, nothing changed: memory at most", "MiB", "of its largest process")
RECOVERY = Measure(
    "recovery after a kill", "s", "regress, of a session that was killed when it had replaced some files"
)
MOVED = Measure(
    "a directory moved", "s", "it holds half of the image's size in files of 1 MiB, as of a camera; one sample"
)
MOVED_WRITTEN = Measure("a directory moved: written", "MiB", "what the kernel counts as written to disk for it")
RESUMED = Measure("first session, gone on with", "s", "of tiny files; the one before was killed at about 80 % of them")
RESUMABLE = Measure("first session, not cut off", "s", "of the same files")

RSYNC = "rsync --link-dest"
_FILES_A_DIRECTORY = 100
_MOST_CHANGED = 1000


class EverydayScenario(Scenario):
    """Nothing is removed before the end: ext4 gives no inode again that was removed less than five minutes ago.

    It looks at each of these whenever a file is made; after 50,000 that takes ten times as long.
    """

    name = "everyday"
    title = "everyday sessions"
    measures = (
        FIRST, UNCHANGED, EXCLUDING, CHANGED, FIRST_MEMORY, FIRST_WRITTEN, UNCHANGED_MEMORY, IMAGE, IMAGE_INCREMENT,
        INSERTED, INSERTED_INCREMENT, MOVED, MOVED_WRITTEN, MANY, FEWER, MANY_MEMORY, RECOVERY, RESUMED, RESUMABLE
    )  # fmt: skip

    def estimate_s(self) -> float:
        of_files = len(self.setting.programs) * self.sizes.everyday_files * 0.002
        return of_files + self.sizes.everyday_image_mib * 0.3 + self.sizes.everyday_many * 0.001

    def run(self) -> None:
        self.results.columns = [program.name for program in self.setting.programs] + [RSYNC]
        self._tree()
        self._image()
        self._moved()
        histfs = [program for program in self.setting.programs if program is Histfs]
        if histfs:
            for number, measure in ((self.sizes.everyday_many // 20, FEWER), (self.sizes.everyday_many, MANY)):
                self._many(number, measure)
            self._resumed()
        for program in self.setting.programs:
            if program in (Histfs, RdiffBackup):
                self._killed(program)

    # A tree of real files

    def _tree(self) -> None:
        place = self._new_place("tree")
        history = RealTree(place / "source", self.setting.origins, self.sizes.everyday_files)
        self.results.data = str(history)
        history.advance(0)
        self._let_settle()
        peers = [program(place, history.root) for program in self.setting.programs]
        for peer in peers:
            with self.trouble_of(peer):
                self._first(peer)
        self._rsync(history.root, place / "rsync", 0, FIRST)
        for session in range(1, 2 * self.sizes.everyday_changed + 1):
            measure = UNCHANGED if session % 2 else CHANGED
            if measure is CHANGED:
                history.advance(session)
                self._let_settle()
            for peer in peers:
                if not isinstance(peer, Plain):
                    with self.trouble_of(peer):
                        self._next(peer, session, measure)
            self._rsync(history.root, place / "rsync", session, measure)
            self.say(f"{self.name}: session {session} of {2 * self.sizes.everyday_changed}")
        for peer in peers:
            if peer.excluding:
                with self.trouble_of(peer):
                    self._excluding(peer, 2 * self.sizes.everyday_changed + 1)

    def _excluding(self, peer: Peer, first: int) -> None:
        """Sessions with excludes, of which the first removes what the ones before had, and is not counted."""
        for session in range(first, first + self.sizes.everyday_changed + 1):
            command = peer.backup(session, *peer.excluding)
            took_s = commands.timed(command, environment=peer.environment(), limit_s=self.limit_s)
            if session > first:
                self.results.add(EXCLUDING.name, peer.name, took_s)

    def _first(self, peer: Peer) -> None:
        self._prepare(peer)
        command = peer.backup(0)
        if isinstance(peer, Plain):
            command = ["sh", "-c", '"$@" && sync', "sh", *command]
        cost = self._measured(command, peer.environment())
        self.results.add(FIRST.name, peer.name, cost.took_s)
        self.results.add(FIRST_MEMORY.name, peer.name, cost.memory_mib)
        self.results.add(FIRST_WRITTEN.name, peer.name, cost.written_mib)

    def _measured(self, command: Sequence[object], environment: Mapping[str, str] | None = None) -> Cost:
        """After all that was written before is on the disk: nobody waits for what others have to write."""
        os.sync()
        return commands.measured(command, environment=environment, limit_s=self.limit_s)

    def _prepare(self, peer: Peer) -> None:
        if command := peer.prepare():
            commands.timed(command, environment=peer.environment(), limit_s=self.limit_s)

    def _next(self, peer: Peer, session: int, measure: Measure) -> None:
        cost = self._measured(peer.backup(session), peer.environment())
        self.results.add(measure.name, peer.name, cost.took_s)
        if measure is UNCHANGED:
            self.results.add(UNCHANGED_MEMORY.name, peer.name, cost.memory_mib)

    def _rsync(self, source: Path, place: Path, session: int, measure: Measure) -> None:
        """A whole tree of links a session: what is done where there is no backup program."""
        if shutil.which("rsync") is None:
            return
        place.mkdir(exist_ok=True)
        before = [f"--link-dest={place / str(session - 1)}"] if session else []
        command = ["rsync", "-a", *before, f"{source}/", f"{place / str(session)}/"]
        self.results.add(measure.name, RSYNC, self._measured(command).took_s)

    # One large file

    def _image(self) -> None:
        place = self._new_place("image")
        history = Image(place / "source", self.sizes.everyday_image_mib)
        history.advance(0)
        peers = [program(place, history.root) for program in self.setting.programs if program is not Plain]
        for peer in peers:
            with self.trouble_of(peer):
                self._prepare(peer)
                commands.timed(peer.backup(0), environment=peer.environment(), limit_s=self.limit_s)
        last = self.sizes.everyday_changed + 1
        for session in range(1, last + 1):
            if session < last:
                history.advance(session)
            else:
                _insert(history.path)
            measure, size = (IMAGE, IMAGE_INCREMENT) if session < last else (INSERTED, INSERTED_INCREMENT)
            for peer in peers:
                with self.trouble_of(peer):
                    took_s = self._measured(peer.backup(session), peer.environment()).took_s
                    self.results.add(measure.name, peer.name, took_s)
                    increments = sorted((peer.repository / "rdiff-backup-data/increments").glob("image.*"))
                    self.results.add(
                        size.name, peer.name, *(path.stat().st_size / (1 << 20) for path in increments[-1:])
                    )

    def _moved(self) -> None:
        place = self._new_place("moved")
        source = place / "source"
        _write_photos(source / "camera", self.sizes.everyday_image_mib // 2)
        peers = [program(place, source) for program in self.setting.programs if program is not Plain]
        for peer in peers:
            with self.trouble_of(peer):
                self._prepare(peer)
                commands.timed(peer.backup(0), environment=peer.environment(), limit_s=self.limit_s)
        (source / "camera").rename(source / "2024")
        for peer in peers:
            with self.trouble_of(peer):
                cost = self._measured(peer.backup(1), peer.environment())
                self.results.add(MOVED.name, peer.name, cost.took_s)
                self.results.add(MOVED_WRITTEN.name, peer.name, cost.written_mib)

    # Very many files, and a session that is killed

    def _many(self, files: int, measure: Measure) -> None:
        place = self._new_place(f"many-{files}")
        peer = Histfs(place, place / "source")
        with self.trouble_of(peer):
            _write_tiny_files(peer.source, files)
            self._let_settle()
            for session in range(4):
                cost = self._measured(peer.backup(session), peer.environment())
                if session > 1:  # of the first two the ledger may say that much has just changed
                    self.results.add(measure.name, peer.name, cost.took_s / files)
                    if measure is MANY:
                        self.results.add(MANY_MEMORY.name, peer.name, cost.memory_mib)
        self.say(f"{self.name}: {files:,} tiny files")

    def _killed(self, program: type[Peer]) -> None:
        place = self._new_place(f"killed-{program.name}")
        peer = program(place, place / "source")
        with self.trouble_of(peer):
            _write_tiny_files(peer.source, self.sizes.everyday_killed)
            commands.timed(peer.backup(0), environment=peer.environment(), limit_s=self.limit_s)
            changed = min(_MOST_CHANGED, self.sizes.everyday_killed // 4)
            files = sorted(peer.source.rglob("f*"))
            for path in random.Random("killed").sample(files, changed):
                path.write_bytes(b"changed " + os.urandom(8))
            increments = peer.repository / "rdiff-backup-data/increments"
            _kill_when(peer.backup(1), peer.environment(), lambda: _count(increments) >= changed // 2)
            command = [*peer.command(), "regress", str(peer.repository)]
            took_s = commands.timed(command, environment=peer.environment(), limit_s=self.limit_s, codes=(0, 2))
            self.results.add(RECOVERY.name, peer.name, took_s)

    def _resumed(self) -> None:
        place = self._new_place("resumed")
        peer = Histfs(place, place / "source")
        with self.trouble_of(peer):
            _write_tiny_files(peer.source, self.sizes.everyday_killed)
            self._let_settle()
            (place / "other").mkdir()
            other = Histfs(place / "other", peer.source)
            whole_s = self._measured(other.backup(0), other.environment()).took_s
            reached = peer.repository / _place_of(self.sizes.everyday_killed * 8 // 10)
            _kill_when(peer.backup(0), peer.environment(), reached.exists)
            codes = (0, 2)  # the second: with the warning that one was cut off
            took_s = commands.timed(peer.backup(1), environment=peer.environment(), limit_s=self.limit_s, codes=codes)
            self.results.add(RESUMED.name, peer.name, took_s)
            self.results.add(RESUMABLE.name, peer.name, whole_s)

    def _let_settle(self) -> None:
        """What changed a moment before a session is not taken on trust by the next one: nor is it the everyday case."""
        time.sleep(self.sizes.settled_s)

    def _new_place(self, name: str) -> Path:
        place = self.place / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place


def _insert(path: Path) -> None:
    """A MiB near the front of the file."""
    with path.open("r+b") as file:
        head = file.read(4097)
        new = path.with_name("new")
        with new.open("wb") as target:
            target.write(head + random.Random("inserted").randbytes(1 << 20))
            shutil.copyfileobj(file, target, 1 << 20)
    new.rename(path)


def _write_tiny_files(top: Path, files: int) -> None:
    for number in range(files):
        directory = top / _place_of(number)
        if number % _FILES_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"f{number:07}").write_bytes(b"%d" % number)
    old = session_time(0) - 86_400
    for path in (top, *top.rglob("*")):
        os.utime(path, (old, old))


def _place_of(number: int) -> Path:
    """The directory of a tiny file."""
    return Path(f"d{number // _FILES_A_DIRECTORY // 100:04}", f"e{number // _FILES_A_DIRECTORY % 100:02}")


def _write_photos(top: Path, files: int) -> None:
    """Files of 1 MiB that cannot be compressed, some while ago."""
    chance = random.Random("photos")
    top.mkdir(parents=True)
    for number in range(files):
        path = top / f"IMG_{number:05}.JPG"
        path.write_bytes(chance.randbytes(1 << 20))
        os.utime(path, (session_time(0) - 86_400,) * 2)


def _count(place: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(place))


def _kill_when(command: list[str], environment: dict[str, str], is_time: Callable[[], bool]) -> None:
    """Run `command`, and kill it as soon as `is_time`. TroubleError if it was faster."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and not is_time():
            time.sleep(0.001)
        if process.poll() is not None:
            raise TroubleError("the session ended before it could be killed")
        os.killpg(process.pid, signal.SIGKILL)
