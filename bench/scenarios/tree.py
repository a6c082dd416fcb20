"""A tree of real files: listing, searching, archiving and comparing an old snapshot in the mount."""

import os
import shutil
from pathlib import Path

from bench import checks
from bench.peers import Bup, Peer, Plain
from bench.results import Measure
from bench.scenarios.base import FIRST, LISTED, MEMORY, NEXT, SIZE, USABLE, WRITTEN, Scenario
from bench.trees import RealTree

FIND = Measure("find -ls, cold", "entries/s", "find -ls of the oldest snapshot, caches dropped, fresh mount")
FIND_AGAIN = Measure("find -ls, again", "entries/s", "the same command once more in the same mount")
ANSWERS = Measure(
    "find -ls, again: answers", "", "write system calls of the mounting program meanwhile; each request needs one"
)
TAR = Measure("tar, cold", "s", "tar of the oldest snapshot to cat > /dev/null, caches dropped, fresh mount")
FIND_BOTH = Measure("find -ls of two snapshots, cold", "s", "of the two oldest, caches dropped, fresh mount")
DIFF = Measure("diff -rq of two snapshots, cold", "s", "of the two oldest, caches dropped, fresh mount")
COPY = Measure("cp -a of a directory, cold", "s", "from the oldest snapshot to disk, caches dropped, fresh mount")
RESTORE = Measure(
    "restore oldest", "s", "the restore command, caches dropped; the plain copy: cp -a of the copy, without FUSE"
)

_TAR = 'set -o pipefail; tar -C "$0" -cf - . | cat > /dev/null'
_CHECKED_FILES = 2000


class TreeScenario(Scenario):
    name = "tree"
    title = "a tree of files"
    measures = (
        FIRST, NEXT, WRITTEN, SIZE, USABLE, LISTED, FIND, FIND_AGAIN, ANSWERS, TAR, FIND_BOTH, DIFF, COPY,
        RESTORE, MEMORY
    )  # fmt: skip

    def estimate_s(self) -> float:
        files, sessions = self.sizes.tree_files, self.sizes.tree_sessions
        slow = 4 * min(0.007 * files, self.limit_s) if Bup in self.setting.programs else 0
        return slow + len(self.setting.programs) * (30 + 0.005 * files + sessions * (1 + 0.0001 * files))

    def run(self) -> None:
        source = self.place / "source"
        history = RealTree(source, self.setting.origins, self.sizes.tree_files)
        peers = self.write(history, self.sizes.tree_sessions, self.peers(source))
        plain = self.plain_of(peers)
        self.oldest, self.second = plain.copy_of(0), plain.copy_of(1)
        self.entries = count_entries(self.oldest)
        self.results.data += f"; {self.entries:,} entries, {size_mib(self.oldest):,} MiB in the oldest snapshot"
        self.checked = checks.sample(self.oldest, _CHECKED_FILES)
        self.changed = checks.differing(self.oldest, self.second)
        self.read_each(peers, self._read)

    def _read(self, peer: Peer) -> None:
        if not isinstance(peer, Plain):
            self.measure_size(peer)
        if peer.can_mount:
            self.measure_mounting(peer)
            for step in (self._find, self._tar, self._find_both, self._compare, self._copy):
                with self.trouble_of(peer):
                    step(peer)
        self.measure_restore(RESTORE, peer, 0, lambda target: checks.same_trees(target, self.oldest))

    def _find(self, peer: Peer) -> None:
        with self.cold_mount(peer) as mount:
            oldest = peer.mounted_snapshot(0)
            self.results.add(FIND.name, peer.name, self.entries / self.timed(FIND, "find", oldest, "-ls"))
            answers = mount.answers()
            self.results.add(FIND_AGAIN.name, peer.name, self.entries / self.timed(FIND_AGAIN, "find", oldest, "-ls"))
            self.results.add(ANSWERS.name, peer.name, mount.answers() - answers)
            checks.same_listings(oldest, self.oldest)

    def _tar(self, peer: Peer) -> None:
        with self.cold_mount(peer):
            oldest = peer.mounted_snapshot(0)
            self.results.add(TAR.name, peer.name, self.timed(TAR, "bash", "-c", _TAR, oldest))
            checks.same_files(oldest, self.oldest, self.checked)

    def _find_both(self, peer: Peer) -> None:
        with self.cold_mount(peer):
            both = peer.mounted_snapshot(0), peer.mounted_snapshot(1)
            self.results.add(FIND_BOTH.name, peer.name, self.timed(FIND_BOTH, "find", *both, "-ls"))

    def _compare(self, peer: Peer) -> None:
        with self.cold_mount(peer):
            both = peer.mounted_snapshot(0), peer.mounted_snapshot(1)
            output = self.place / "differences"
            took_s = self.timed(DIFF, *checks.diff_command(*both), codes=(0, 1), output=output)
            self.results.add(DIFF.name, peer.name, took_s)
            if checks.differences(output.read_bytes(), *both) != self.changed:
                raise checks.WrongBytesError("diff -rq of two snapshots finds other differences than there are")

    def _copy(self, peer: Peer) -> None:
        directory = some_directory(self.oldest)
        target = self.place / f"copied-{peer.word}"
        shutil.rmtree(target, ignore_errors=True)
        with self.cold_mount(peer):
            self.results.add(
                COPY.name, peer.name, self.timed(COPY, "cp", "-a", peer.mounted_snapshot(0) / directory, target)
            )
        checks.same_trees(target, self.oldest / directory)


def count_entries(root: Path) -> int:
    """Names below `root`, and itself."""
    return 1 + sum(len(directories) + len(files) for _, directories, files in os.walk(root))


def size_mib(root: Path) -> int:
    """Bytes of all regular files."""
    paths = (os.path.join(directory, name) for directory, _, files in os.walk(root) for name in files)
    return sum(os.lstat(path).st_size for path in paths) >> 20


def some_directory(root: Path) -> str:
    """The directory with most entries of those that have at most a twentieth of all, or the first one."""
    counts: dict[str, int] = {}
    for directory, directories, files in os.walk(root, topdown=False):
        below = sum(counts.get(os.path.join(directory, name), 0) for name in directories)
        counts[directory] = below + len(directories) + len(files)
    most = max(counts[str(root)] // 20, min(counts.values()))
    found = max((count, name) for name, count in counts.items() if count <= most)
    return os.path.relpath(found[1], root)
