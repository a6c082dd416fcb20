"""The image of a disk: random access to an old version of a large file that changes a little every day."""

import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import checks
from bench.peers import HistfsOnForeign, Peer, Plain, RdiffBackup
from bench.results import Curves, Measure, distribution, percentile
from bench.scenarios.base import FIRST, LISTED, MEMORY, NEXT, SIZE, USABLE, WRITTEN, Scenario
from bench.trees import BLOCK, MIB, Image

OPEN = Measure("open and first byte, cold", "s", "of the oldest version, caches dropped, fresh mount")
COLD_MEDIAN = Measure(
    "random reads, cold: median", "s", "preads of 4 KiB of the oldest version, caches dropped, fresh mount"
)
COLD_P99 = Measure("random reads, cold: 99 %", "s", "99 of 100 of these take no longer")
WARM_MEDIAN = Measure("random reads, warm: median", "s", "the same reads again")
WARM_P99 = Measure("random reads, warm: 99 %", "s", "99 of 100 of these take no longer")
SEQUENTIAL = Measure(
    "sequential read, cold", "MB/s", "from open to end of the oldest version, 1 MiB a read, caches dropped, fresh mount"
)
RESTORE = Measure(
    "restore oldest", "s", "the restore command, caches dropped; the plain copy: cp -a of the copy, without FUSE"
)
INFLATE = Measure("inflate all increments", "s", "gzip -dc of all increments to /dev/null, caches dropped: a yardstick")
DISTRIBUTION = "random 4 KiB reads of the oldest version, cold"
OPEN_BY_AGE = "open and first byte, by age, cold"
READ_BY_AGE = "random 4 KiB reads, by age, cold: median"
_READS_BY_AGE = 100
_AGES = 5


class ImageScenario(Scenario):
    name = "image"
    title = "an image that changes a little every day"
    measures = (
        FIRST, NEXT, WRITTEN, SIZE, USABLE, LISTED, OPEN, COLD_MEDIAN, COLD_P99, WARM_MEDIAN, WARM_P99, SEQUENTIAL,
        RESTORE, INFLATE, MEMORY
    )  # fmt: skip

    def estimate_s(self) -> float:
        gib, sessions = self.sizes.image_mib / 1024, self.sizes.image_sessions
        programs = len(self.setting.programs)
        return programs * (30 + 80 * gib + min(14 * gib * sessions, self.setting.patience_s))

    def run(self) -> None:
        history = Image(self.place / "source", self.sizes.image_mib)
        peers = self.write(history, self.sizes.image_sessions, self.peers(history.root))
        plain = self.plain_of(peers)
        self.truth = plain.copy_of(0) / history.path.name
        self.offsets = some_offsets(self.sizes.image_mib * MIB, self.sizes.random_reads)
        self.pieces = history.pieces(self._sessions_by_age(), {0, *self.offsets})
        self.read_each([reader for peer in peers for reader in self._readers(peer)], self._read)

    def _readers(self, peer: Peer) -> list[Peer]:
        """Who reads what `peer` has written."""
        return [peer, HistfsOnForeign(peer, self.place)] if isinstance(peer, RdiffBackup) else [peer]

    def _read(self, peer: Peer) -> None:
        if not isinstance(peer, HistfsOnForeign | Plain):
            self.measure_size(peer)
        if peer.can_mount:
            self.measure_mounting(peer)
            for step in (self._open, self._random_reads, self._sequential_read, self._read_by_age):
                with self.trouble_of(peer):
                    step(peer)
            self._inflate(peer)
        check = checks.same_file
        self.measure_restore(RESTORE, peer, 0, lambda target: check(target / self.truth.name, self.truth))

    def _image(self, peer: Peer, session: int = 0) -> Path:
        return peer.mounted_snapshot(session) / self.truth.name

    def _open(self, peer: Peer) -> None:
        for _ in range(self.sizes.repeats):
            with self.cold_mount(peer), opened(self._image(peer)) as (_, took_s, first):
                checks.same_pieces({0: first}, {0: self.pieces[0][0][:1]})
                self.results.add(OPEN.name, peer.name, took_s)

    def _random_reads(self, peer: Peer) -> None:
        with self.cold_mount(peer), opened(self._image(peer)) as (descriptor, _, _):
            for median, high in ((COLD_MEDIAN, COLD_P99), (WARM_MEDIAN, WARM_P99)):
                took_s, pieces = timed_reads(descriptor, self.offsets)
                checks.same_pieces(pieces, self.pieces[0])
                self.results.add(median.name, peer.name, percentile(took_s, 50))
                self.results.add(high.name, peer.name, percentile(took_s, 99))
                if median is COLD_MEDIAN:
                    self._plot(
                        DISTRIBUTION, "seconds", "% of reads that take no longer", "x", peer, distribution(took_s)
                    )

    def _sequential_read(self, peer: Peer) -> None:
        with self.cold_mount(peer):
            path = self._image(peer)
            took_s, size_bytes = read_through(path)
            checks.same_file(path, self.truth)
            self.results.add(SEQUENTIAL.name, peer.name, size_bytes / took_s / 1e6)

    def _read_by_age(self, peer: Peer) -> None:
        """Some versions from the newest to the oldest, each in a fresh mount."""
        opens, reads = [], []
        for session in self._sessions_by_age():
            if peer.has(session):
                with self.cold_mount(peer), opened(self._image(peer, session)) as (descriptor, open_s, _):
                    took_s, pieces = timed_reads(descriptor, self.offsets[:_READS_BY_AGE])
                    checks.same_pieces(pieces, self.pieces[session])
                opens.append([peer.newest - session, open_s])
                reads.append([peer.newest - session, percentile(took_s, 50)])
        for title, points in ((OPEN_BY_AGE, opens), (READ_BY_AGE, reads)):
            self._plot(title, "sessions back", "seconds", "y", peer, points)

    def _sessions_by_age(self) -> list[int]:
        newest = self.sizes.image_sessions
        return sorted({newest * part // _AGES for part in range(_AGES + 1)} | {1}, reverse=True)

    def _plot(self, title: str, x: str, y: str, logarithmic: str, peer: Peer, points: list[list[float]]) -> None:
        self.results.curves.setdefault(title, Curves(x, y, logarithmic)).lines[peer.name] = points

    def _inflate(self, peer: Peer) -> None:
        if increments := peer.increments():
            self.drop_caches(peer)
            took_s = self.timed(INFLATE, "gzip", "-dc", *increments)
            self.results.add(INFLATE.name, peer.name, took_s)


def some_offsets(size_bytes: int, count: int) -> list[int]:
    """Of blocks of a file, in any order, the same in every run."""
    blocks = range(size_bytes // BLOCK)
    return [place * BLOCK for place in random.Random("offsets").sample(blocks, min(count, len(blocks)))]


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, float, bytes]]:
    """An open file: its descriptor, how many seconds it took to open it and to read the first byte, and that byte."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        first = os.pread(descriptor, 1, 0)
        yield descriptor, time.perf_counter() - started, first
    finally:
        os.close(descriptor)


def timed_reads(descriptor: int, offsets: Iterable[int]) -> tuple[list[float], dict[int, bytes]]:
    """Seconds of each read of a block, and what was read."""
    took_s, pieces = [], {}
    for offset in offsets:
        started = time.perf_counter()
        piece = os.pread(descriptor, BLOCK, offset)
        took_s.append(time.perf_counter() - started)
        pieces[offset] = piece
    return took_s, pieces


def read_through(path: Path) -> tuple[float, int]:
    """Seconds and bytes of reading a file from its open to its end."""
    buffer, size_bytes = bytearray(MIB), 0
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            size_bytes += count
    return time.perf_counter() - started, size_bytes
