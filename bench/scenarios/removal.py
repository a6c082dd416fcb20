"""Letting old sessions go, and saying what all of them take: what the length of a history and the size of a tree cost.

The repository is written directly (bench.changing), the same for each program, with what a program would have left.
"""

from pathlib import Path

from bench import changing, checks, commands
from bench.peers import Histfs, Peer, RdiffBackup, session_time
from bench.results import Measure
from bench.scenarios.base import Scenario

LISTED = Measure(
    "list increments --size",
    "s",
    "the sizes of all sessions; the program is cached, the repository not; histfs has its catalog, as after every "
    "backup with it",
)
ONE_REMOVED = Measure(
    "remove the oldest session", "s", "remove increments --older-than; the program is cached, the repository not"
)
HALF_REMOVED = Measure("remove half of the sessions", "s", "the same, after that; the other half stays")


class RemovalScenario(Scenario):
    name = "removal"
    title = "removing old sessions"
    measures = (LISTED, ONE_REMOVED, HALF_REMOVED)

    @classmethod
    def takes_part(cls, program: type[Peer]) -> bool:
        """Who knows the format."""
        return program in (Histfs, RdiffBackup)

    def estimate_s(self) -> float:
        return 20 + len(self.setting.programs) * (self.sizes.removal_files * 0.0005 + self.sizes.removal_sessions * 0.2)

    def run(self) -> None:
        self.shape = changing.Shape(self.sizes.removal_files, self.sizes.removal_sessions)
        self.results.data = str(self.shape)
        peers = [
            program(self.place, self.place / "source") for program in self.setting.programs if self.takes_part(program)
        ]
        for peer in peers:
            peer.forget()  # what was kept has lost its sessions
            changing.write(peer.repository, self.shape)
        self.read_each(peers, self._measure)

    def _measure(self, peer: Peer) -> None:
        listing = ("list", "increments", "--size")
        self._run(LISTED, peer, *listing)  # so that there is a catalog
        for _ in range(self.sizes.repeats):
            self.results.add(LISTED.name, peer.name, self._cold(LISTED, peer, *listing))
        for measure, oldest in ((ONE_REMOVED, 1), (HALF_REMOVED, self.shape.sessions // 2)):
            took_s = self._cold(measure, peer, "remove", "increments", "--older-than", session_time(oldest))
            self._check(peer, oldest)
            self.results.add(measure.name, peer.name, took_s)

    def _cold(self, measure: Measure, peer: Peer, *words: object) -> float:
        """Caches dropped, but that the program is in memory."""
        self.drop_caches(peer)
        self._run(measure, peer, *words, repository=self.place / "nothing", codes=(1,))
        return self._run(measure, peer, *words)

    def _run(
        self,
        measure: Measure,
        peer: Peer,
        *words: object,
        repository: Path | None = None,
        codes: tuple[int, ...] = (0,),
    ) -> float:
        api = ("--api-version", 201) if isinstance(peer, RdiffBackup) else ()
        command = peer.command(*api, "--force", *words, repository or peer.repository)
        return self.timed(measure, *command, codes=codes, environment=peer.environment())

    def _check(self, peer: Peer, oldest: int) -> None:
        """The increments of `oldest` and the sessions after it are there, and no others; files of it are right."""
        data = peer.repository / "rdiff-backup-data"
        found = sum(1 for path in data.rglob("*.snapshot")) + sum(1 for path in data.rglob("*.dir"))
        expected = sum(self.shape.increments(session) for session in range(oldest, self.shape.sessions))
        if found != expected:
            raise checks.WrongBytesError(f"{found:,} increments are left, not {expected:,}")
        changed = peer.repository / changing.directory_name(self.shape.changed(oldest + 1)[0])
        checker = Histfs.command("verify", "--at", session_time(oldest), changed)
        commands.timed(checker, environment=peer.environment(), limit_s=self.limit_s)
