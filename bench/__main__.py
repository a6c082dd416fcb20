"""python -m bench: run every peer through the same sessions, print the table, write the numbers as JSON.

All caches are warm, and what earlier steps left to be written is on the disk (sync) before the clock starts. A restored
tree and a mounted snapshot that are not the source of that session end the run: a wrong result has no speed.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import trees
from bench.peers import PEERS, Peer

DAY_S = 86400
MOUNT_TIMEOUT_S = 60


class Sample(NamedTuple):
    """Seconds on the wall, and of processors in the command itself (of a mount: not in the file system)."""

    wall_s: float
    cpu_s: float


class Run:
    """One peer, once through all steps. `samples` maps the name of a step to what it took, each time."""

    def __init__(self, peer: Peer, place: Path) -> None:
        self.peer = peer
        self.place = place
        self.samples: dict[str, list[Sample]] = {}

    def time(self, step: str, command: list[str]) -> None:
        """Run `command` and record it; exits if it fails."""
        os.sync()
        with open(self.place / "log", "w+b") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, env=self.peer.environment(), stdout=subprocess.DEVNULL, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                sys.exit(f"{self.peer.name}: {' '.join(command)} failed:\n{log.read().decode(errors='replace')}")
        self.samples.setdefault(step, []).append(Sample(wall_s, usage.ru_utime + usage.ru_stime))

    @contextmanager
    def mounted(self) -> Iterator[bool]:
        """The peer's mount, with "mount" recorded as the time until it is there; False if it has none."""
        try:
            command = self.peer.mount()
        except NotImplementedError:
            yield False
            return
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=self.peer.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not (os.path.ismount(self.peer.mountpoint) or command == ["true"]):
            if process.poll() or time.perf_counter() > started + MOUNT_TIMEOUT_S:
                sys.exit(f"{self.peer.name}: {' '.join(command)} does not mount")
            time.sleep(0.005)
        os.listdir(self.peer.mounted_snapshot(0))
        self.samples.setdefault("mount", []).append(Sample(time.perf_counter() - started, 0))
        try:
            yield True
        finally:
            subprocess.run(self.peer.unmount(), check=True, env=self.peer.environment())
            process.wait()


def run_sessions(run: Run, shape: trees.Shape, sessions: int) -> None:
    """Build the source, back it up `sessions` times; the oldest state stays as the directory `oldest`."""
    peer, source = run.peer, run.place / "source"
    trees.build(source, shape)
    trees.copy(source, run.place / "oldest")
    if command := peer.prepare():
        run.time("(prepare)", command)
    now = int(time.time())
    # The first is followed by one without a change and by one for each day with 1 % of changes.
    for session in range(sessions + 1):
        if session > 1:
            trees.change(source, shape, session)
        peer.times.append(now - (sessions + 1 - session) * DAY_S)
        step = ("first session", "session without changes", "session, 1 % changed")[min(session, 2)]
        run.time(step, peer.backup(source, peer.times[-1]))


def run_reading(run: Run) -> None:
    """Restore the oldest and the newest, then read the oldest in the mount, and check what came out."""
    peer, place = run.peer, run.place
    newest = len(peer.times) - 1
    for step, session, truth in (("restore newest", newest, "source"), ("restore oldest", 0, "oldest")):
        target = place / "restored"
        run.time(step, peer.restore(session, target))
        check_equal(run, peer.restored(target), place / truth)
        shutil.rmtree(target)
    with run.mounted() as is_mounted:
        if is_mounted:
            oldest = peer.mounted_snapshot(0)
            run.time("find in oldest", ["find", str(oldest), "-size", "+1000000G"])
            for step in ("read all of oldest", "read all of oldest again"):
                run.time(step, ["sh", "-c", 'find "$1" -type f -exec cat {} + | wc -c', "sh", str(oldest)])
            run.time("diff -rq oldest newest", differ(oldest, peer.mounted_snapshot(newest)))
            check_equal(run, oldest, place / "oldest")


def differ(one: Path, other: Path) -> list[str]:
    """A command that compares two trees which may differ (exit code 1), but must be readable (2)."""
    return ["sh", "-c", 'diff -rq "$1" "$2" || [ $? = 1 ]', "sh", str(one), str(other)]


def check_equal(run: Run, found: Path, truth: Path) -> None:
    if subprocess.run(["diff", "-rq", str(found), str(truth)], check=False).returncode:
        sys.exit(f"{run.peer.name}: {found} is not what was backed up")


def size_bytes(root: Path) -> int:
    """What `root` occupies on disk."""
    usage = subprocess.run(["du", "-s", "-B1", str(root)], capture_output=True, text=True, check=True)
    return int(usage.stdout.split()[0])


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """`results` as lines: a row a step, a column a peer, with the ratio to the first peer."""
    peers = list(results)
    steps = list(dict.fromkeys(step for steps in results.values() for step in steps if not step.startswith("(")))
    width = max(map(len, steps), default=0)
    lines = [" " * width + "".join(f"{name:>22}" for name in peers)]
    for step in steps:
        first = results[peers[0]].get(step)
        cells = ""
        for name in peers:
            value = results[name].get(step)
            cell = "-" if value is None else f"{value:.2f}"
            ratio = f"({value / first:.2g}x)" if value is not None and first and name != peers[0] else ""
            cells += f"{cell:>13}{ratio:>9}"
        lines.append(f"{step:<{width}}{cells}")
    return lines


def about_machine(place: Path) -> dict[str, str | int | None]:
    file_system = subprocess.run(["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=True)
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "file system": file_system.stdout.strip(),
        "date": time.strftime("%F"),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=5000, help="small files in the tree (default: %(default)s)")
    parser.add_argument("--large", type=int, default=64, metavar="MIB", help="size of the large file (%(default)s)")
    parser.add_argument("--sessions", type=int, default=5, help="sessions after the first (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="run all this often, take medians (%(default)s)")
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="which (%(default)s)")
    parser.add_argument("--place", type=Path, help="work in this directory (default: below TMPDIR)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    shape = trees.Shape(arguments.files, arguments.large << 20)
    versions = {peer.name: peer.version() for peer in PEERS if peer.name in arguments.peers.split(",")}
    for name in [name for name, version in versions.items() if version is None]:
        print(f"{name} is not installed: skipped")
    peers = [peer for peer in PEERS if versions.get(peer.name)]
    samples: dict[str, dict[str, list[Sample]]] = {peer.name: {} for peer in peers}
    sizes: dict[str, float] = {}
    print(f"{shape}; {arguments.sessions} sessions after the first", flush=True)
    for number in range(arguments.repeat):
        for peer in peers:
            print(f"round {number + 1}: {peer.name} ...", flush=True)
            with tempfile.TemporaryDirectory(prefix="histfs-bench-", dir=arguments.place) as place:
                run = Run(peer(Path(place)), Path(place))
                run_sessions(run, shape, arguments.sessions)
                run_reading(run)
                sizes[peer.name] = size_bytes(run.peer.repository) / (1 << 20)
                machine = about_machine(run.place)
            for step, found in run.samples.items():
                samples[peer.name].setdefault(step, []).extend(found)
    results = {
        name: {
            **{f"{step}, s": statistics.median(sample.wall_s for sample in found) for step, found in steps.items()},
            "repository, MiB": sizes[name],
        }
        for name, steps in samples.items()
    }
    print("", *table(results), sep="\n")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"tree": str(shape), "sessions": arguments.sessions, "machine": machine, "versions": versions}
    arguments.json.write_text(json.dumps({**result, "samples": samples, "sizes_mib": sizes}, indent=1) + "\n")
    print(f"\nall numbers are in {arguments.json}")


if __name__ == "__main__":
    main()
