"""Writing: a first session, one without changes, some with a few, and restoring. Caches are warm."""

from functools import partial
from pathlib import Path

from bench import checks
from bench.peers import Peer, Plain
from bench.results import Measure
from bench.scenarios.base import FIRST, NEXT, SIZE, Scenario
from bench.trees import SmallFiles

UNCHANGED = Measure("a session without changes", "s", "the backup command")
RESTORE_NEWEST = Measure("restore newest", "s", "the restore command, caches dropped; the plain copy: cp -a")
RESTORE_OLDEST = Measure("restore oldest", "s", "the restore command, caches dropped; the plain copy: cp -a")


class SessionsScenario(Scenario):
    name = "sessions"
    title = "writing and restoring"
    measures = (FIRST, UNCHANGED, NEXT, RESTORE_NEWEST, RESTORE_OLDEST, SIZE)

    def estimate_s(self) -> float:
        programs, sessions = len(self.setting.programs), 3 + self.sizes.sessions_changed
        return programs * sessions * (1.5 + self.sizes.sessions_files * 0.0005 + self.sizes.sessions_large_mib * 0.02)

    def peers(self, source: Path) -> list[Peer]:
        return [
            Plain(self.place, source, keeps_all=True) if program is Plain else program(self.place, source)
            for program in self.setting.programs
        ]

    def run(self) -> None:
        history = SmallFiles(self.place / "source", self.sizes.sessions_files, self.sizes.sessions_large_mib)
        self.newest = 1 + self.sizes.sessions_changed
        peers = self.write(history, self.newest, self.peers(history.root))
        self.plain = self.plain_of(peers)
        self.read_each(peers, self._read)

    def add_writing(self, peer: Peer, took_s: list[float]) -> None:
        for measure, figures in ((FIRST, took_s[:1]), (UNCHANGED, took_s[1:2]), (NEXT, took_s[2:])):
            self.results.add(measure.name, peer.name, *figures)

    def _read(self, peer: Peer) -> None:
        for measure, session in ((RESTORE_NEWEST, self.newest), (RESTORE_OLDEST, 0)):
            check = partial(checks.same_trees, truth=self.plain.copy_of(session))
            self.measure_restore(measure, peer, session, check)
        self.measure_size(peer)
