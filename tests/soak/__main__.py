"""Soaks a repository: random sessions, kills, removals, mounts and readers, against a model.

The same seed makes the same trees and the same steps, and `--steps` as many of them; but where exactly a command is
killed depends on the machine, and what follows on that. When something is wrong it is printed with the last command
lines, and the place is left as it is.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.compat.agreement import can_mount
from tests.soak.soak import run

_MEMORY = Path("/dev/shm")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=1800.0, help="how long (default: 30 minutes)")
    length.add_argument("--steps", type=int, help="how many steps, in place of a time")
    parser.add_argument("--seed", type=int, help="any number (default: another one each time)")
    parser.add_argument("--place", type=Path, help="where to make a directory for all of it (default: /dev/shm)")
    return parser.parse_args()


def _limit(arguments: argparse.Namespace) -> Callable[[int], bool]:
    if arguments.steps is not None:
        return lambda steps: steps < arguments.steps
    end = time.monotonic() + arguments.seconds
    return lambda _: time.monotonic() < end


def main() -> int:
    arguments = parsed()
    if not can_mount():
        sys.stderr.write("needs /dev/fuse and fusermount3\n")
        return 2
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    place = Path(
        tempfile.mkdtemp(prefix=f"histfs-soak-{seed}-", dir=arguments.place or (_MEMORY if _MEMORY.is_dir() else None))
    )
    figures, failure = run(place, seed, _limit(arguments))
    sys.stdout.write(json.dumps(asdict(figures), indent=1) + "\n")
    subprocess.run(["umount", "-l", place / "mnt"], stderr=subprocess.DEVNULL, check=False)
    if failure is None:
        shutil.rmtree(place)
        return 0
    sys.stdout.write(f"{failure}\n\nIt is all in {place}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
