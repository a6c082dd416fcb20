"""A log with very many sessions: how long the chain of increments behind its oldest version is felt."""

import time

from bench import checks
from bench.peers import Histfs, Peer, Plain
from bench.results import Measure
from bench.scenarios.base import FIRST, LISTED, MEMORY, NEXT, SIZE, USABLE, WRITTEN, Scenario
from bench.trees import Log

READ = Measure("open and read oldest, cold", "s", "from open to end, caches dropped, fresh mount")
READ_NEWEST = Measure("open and read newest, cold", "s", "from open to end, caches dropped, fresh mount")
RESTORE = Measure("restore oldest", "s", "the restore command, caches dropped; the plain copy: cp -a of the copy")


class LogScenario(Scenario):
    name = "log"
    title = "a log that grows"
    measures = (FIRST, NEXT, WRITTEN, SIZE, USABLE, LISTED, READ, READ_NEWEST, RESTORE, MEMORY)

    @classmethod
    def takes_part(cls, program: type[Peer]) -> bool:
        """Few programs start fast enough for a thousand sessions."""
        return program in (Histfs, Plain)

    def estimate_s(self) -> float:
        return 30 + len(self.setting.programs) * self.sizes.log_sessions * 0.5

    def run(self) -> None:
        history = Log(self.place / "source")
        newest = self.sizes.log_sessions
        peers = self.write(history, newest, self.peers(history.root))
        self.plain = self.plain_of(peers)
        self.read_each(peers, self._read)

    def _read(self, peer: Peer) -> None:
        truth = self.plain.copy_of(0)
        if not isinstance(peer, Plain):
            self.measure_size(peer)
        if peer.can_mount:
            self.measure_mounting(peer)
            self._read_in_mount(READ, peer, 0)
            if peer.has(self.sizes.log_sessions):
                self._read_in_mount(READ_NEWEST, peer, self.sizes.log_sessions)
        self.measure_restore(RESTORE, peer, 0, lambda target: checks.same_trees(target, truth))

    def _read_in_mount(self, measure: Measure, peer: Peer, session: int) -> None:
        truth = self.plain.copy_of(session) / "log"
        for _ in range(self.sizes.repeats):
            with self.cold_mount(peer):
                path = peer.mounted_snapshot(session) / truth.name
                started = time.perf_counter()
                content = path.read_bytes()
                took_s = time.perf_counter() - started
                checks.same_pieces({0: content}, {0: truth.read_bytes()})
                self.results.add(measure.name, peer.name, took_s)
