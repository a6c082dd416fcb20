"""Runs the targets: guided by what code is reached where atheris is installed (`make fuzz` sees to it), else blindly.

What leads to new code is kept in --corpus (default: build/fuzz), the input of a failure beside it; `--keep` adds the
first to what each search begins with. `--replay FILE` runs one input, to look at a failure.
"""

import argparse
import itertools
import multiprocessing
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.fuzz import kept

KEPT = Path(__file__).parent / "corpus"
MOST_INPUT_BYTES = 4096
A_HANG_S = 10
MEMORY_MIB = 1024
ONE = "one"  # how a target is run in a process of its own
GUIDED, BLIND = "guided by coverage", "blindly"


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A few changes, as fuzzers make them."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(6)
        if kind == 0 and made:
            made[at % len(made)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del made[at : at + chance.randrange(1, 33)]
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            made[at:at] = other[start : start + chance.randrange(65)]
        elif kind == 4 and made:
            made[at % len(made)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 10, 32))
        else:
            end = at + chance.randrange(1, 33)
            made[at:at] = made[at:end]
    return bytes(made[:MOST_INPUT_BYTES])


def blind(seeds: Sequence[bytes], seed: str) -> Iterator[bytes]:
    """Mutations of the seeds, and of the mutations."""
    chance = random.Random(seed)
    pool = list(seeds)
    while True:
        made = mutated(chance.choice(pool), pool, chance)
        yield made
        if len(pool) < 200 or chance.random() < 0.01:
            pool.append(made)
            del pool[:-1000]


def guide(name: str, runs: int, corpus: Path, seed: int) -> None:
    """Run one target by atheris, which ends the process."""
    import atheris  # not there for every Python

    with atheris.instrument_imports(include=["histfs"]):
        from tests.fuzz.targets import SEEDS, TARGETS

    place = corpus / name
    place.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate([*SEEDS[name], *kept.found().get(name, ())]):
        (place / f"seed-{number}").write_bytes(data)
    options = [
        *(f"-runs={runs}", f"-seed={seed}", f"-max_len={MOST_INPUT_BYTES}", f"-timeout={A_HANG_S}"),
        *(f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={corpus}/{name}-", "-print_final_stats=1", "-verbosity=1"),
    ]
    atheris.Setup(
        [sys.argv[0], *options, str(place), *([str(KEPT / name)] if (KEPT / name).is_dir() else [])], TARGETS[name]
    )
    atheris.Fuzz()


def run_blindly(name: str, runs: int, corpus: Path, seed: int) -> None:
    """Mutate what there is; many times as fast, as nobody watches."""
    from tests.fuzz.targets import SEEDS, TARGETS

    known = [path.read_bytes() for place in (KEPT / name, corpus / name) if place.is_dir() for path in place.iterdir()]
    known += kept.found().get(name, ())
    for data in itertools.islice(blind([*SEEDS[name], *known], f"{name} {seed}"), runs):
        try:
            TARGETS[name](data)
        except BaseException:
            corpus.mkdir(parents=True, exist_ok=True)
            (corpus / f"{name}-crash").write_bytes(data)
            raise


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def has_guide() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    if sys.argv[1:2] == [ONE]:  # nothing is imported yet that is to be watched
        name, runs, corpus, seed, way = sys.argv[2:]
        (guide if way == GUIDED else run_blindly)(name, int(runs), Path(corpus), int(seed))
        return 0
    from tests.fuzz.targets import SLOW, TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--runs", type=int, default=20_000, help="of each target; of slow ones a part of that (20000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--blind", action="store_true", help="mutate what is in the corpus, not guided by coverage")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input of one target")
    parser.add_argument("--keep", action="store_true", help="keep what is in the corpus, and run nothing")
    args = parser.parse_args()
    if args.keep:
        say(f"{kept.keep(args.corpus)} inputs are kept")
        return 0
    names = args.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if args.replay is not None:
        for name in names:
            TARGETS[name](args.replay.read_bytes())
        return 0
    return run_all({name: max(1, args.runs // SLOW.get(name, 1)) for name in names}, args)


def run_all(wanted: Mapping[str, int], args: argparse.Namespace) -> int:
    """Each target in a process of its own, so many runs; as many at once as --jobs says, and a line for each."""
    waiting, running, failed = list(wanted), {}, 0
    args.corpus.mkdir(parents=True, exist_ok=True)
    way = GUIDED if has_guide() and not args.blind else BLIND
    say(way)
    total = 0
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name = waiting.pop(0)
            log = (args.corpus / f"{name}.log").open("w")
            options = [ONE, name, str(wanted[name]), str(args.corpus), str(args.seed), way]
            process = subprocess.Popen([sys.executable, "-m", "tests.fuzz", *options], stdout=log, stderr=log)
            running[name] = process, time.monotonic()
        for name, (process, began) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            text = (args.corpus / f"{name}.log").read_text(errors="replace")
            done = re.search(r"stat::number_of_executed_units: (\d+)", text)
            runs = int(done[1]) if done else 0 if process.returncode else wanted[name]
            total += runs
            failed += bool(process.returncode)
            verdict = f"FAILED, see {args.corpus / name}.log" if process.returncode else "no failure"
            say(f"{name:22} {runs:>12,} runs {time.monotonic() - began:8.0f} s   {verdict}")
        time.sleep(0.05)
    say(f"{'all':22} {total:>12,} runs              {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
