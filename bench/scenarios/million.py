"""A repository of a million files, of metadata alone: what the index of all versions costs, and what it gives.

The repository is written directly (bench.repositories), as a backup of that many files would only measure the disk.
The first mount finds no catalog; it is where XDG_CACHE_HOME points to, and kept for the mounts that follow.
"""

import shutil
import time
from pathlib import Path

from bench import checks, commands, mounts, repositories
from bench.peers import Histfs, Peer
from bench.results import Measure
from bench.scenarios.base import LISTED, MEMORY, USABLE, Scenario

FIRST_ROOT = Measure(
    "first mount: usable",
    "s",
    "without a catalog, programs cached, repository not: from the start of the program to a listing of its root",
)
INDEXED = Measure(
    "first mount: records indexed",
    "records/s",
    "all records of all lists, by the time until the oldest snapshot is listed",
)
DEEP = Measure(
    "ls -l of a deep directory, cold", "s", "100 files, 20 directories down, in the oldest snapshot, caches dropped"
)
CRAWL = Measure("find -ls, cold", "entries/s", "of the oldest snapshot, caches dropped, fresh mount")
CRAWL_AGAIN = Measure("find -ls, again", "entries/s", "the same command once more in the same mount")


class MillionScenario(Scenario):
    name = "million"
    title = "a million files"
    measures = (FIRST_ROOT, INDEXED, USABLE, LISTED, DEEP, CRAWL, CRAWL_AGAIN, MEMORY)

    @classmethod
    def takes_part(cls, program: type[Peer]) -> bool:
        """Who mounts a repository that was written directly."""
        return program is Histfs

    def estimate_s(self) -> float:
        return 20 + self.sizes.million_records * 0.0003

    def run(self) -> None:
        peer = Histfs(self.place, self.place / "source")
        self.shape = repositories.Shape(self.sizes.million_records, self.sizes.million_sessions)
        self.results.data = str(self.shape)
        if not peer.repository.exists():
            repositories.write(peer.repository, self.shape)
        self.read_each([peer], self._read)

    def _read(self, peer: Peer) -> None:
        self._first_mount(peer)
        self.measure_mounting(peer)
        self._list_deep_directory(peer)
        self._crawl(peer)

    def _first_mount(self, peer: Peer) -> None:
        with mounts.mounted(peer, limit_s=self.limit_s):
            pass  # so that the program is cached
        shutil.rmtree(peer.cache, ignore_errors=True)
        commands.forget_pages(peer.repository)
        with mounts.mounted(peer, limit_s=self.limit_s) as mount:
            next(peer.mounted_snapshot(0).iterdir())
            listed_s = time.perf_counter() - mount.started
        self.results.add(FIRST_ROOT.name, peer.name, mount.usable_s)
        self.results.add(INDEXED.name, peer.name, self.shape.records() / listed_s)

    def _list_deep_directory(self, peer: Peer) -> None:
        for _ in range(self.sizes.repeats):
            with self.cold_mount(peer):
                deep = peer.mounted_snapshot(0) / repositories.DEEP
                self.results.add(DEEP.name, peer.name, self.timed(DEEP, "ls", "-l", deep))
                self._check_names(deep)

    def _check_names(self, deep: Path) -> None:
        if sorted(path.name for path in deep.iterdir()) != repositories.names_in_deep_directory():
            raise checks.WrongBytesError(f"the names in {deep} are not those that were written")

    def _crawl(self, peer: Peer) -> None:
        with self.cold_mount(peer):
            oldest = peer.mounted_snapshot(0)
            for measure in (CRAWL, CRAWL_AGAIN):
                took_s = self.timed(measure, "find", oldest, "-ls")
                self.results.add(measure.name, peer.name, self.shape.entries() / took_s)
            found = commands.output_of(["find", oldest, "-printf", "x"], limit_s=self.limit_s)
            if len(found) != self.shape.entries():
                raise checks.WrongBytesError(f"{len(found):,} entries, not {self.shape.entries():,}")
