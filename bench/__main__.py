"""python -m bench: the speed of histfs beside other programs, on the same data in one run; `make bench`.

It prints a table for each scenario, writes all numbers as JSON, draws plots, and fills in the tables of a page. What
is cold and what is warm is said in each table. Bytes are checked: what came out wrong is told, has no figure, and makes
the exit code 1. It mounts, fills disks and, as root, empties the kernel's caches; what it made is removed at its end.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from bench import machine, plots, tables
from bench.commands import TroubleError
from bench.peers import PEERS, Peer, Plain
from bench.results import Results
from bench.scenarios import SCENARIOS
from bench.scenarios.base import QUICK, Scenario, Setting, Sizes

ORIGINS = (Path("/usr/share"), Path("/usr/include"), Path("/usr/lib"))
_INTERRUPTED = 130


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"which: {', '.join(SCENARIOS)} (default: all)"
    )
    names = ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=_words, help=f"programs, of: {names} (default: those that suit the scenario)")
    parser.add_argument("--quick", action="store_true", help="small data: some minutes for all of it")
    parser.add_argument("--tree", type=Path, nargs="+", default=ORIGINS, help="directories that the tree is taken from")
    for name, default in Sizes()._asdict().items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=int, metavar="N", help=f"default: {default:,}; quick: {getattr(QUICK, name):,}"
        )
    parser.add_argument("--limit", type=float, default=600, metavar="S", help="seconds a step may take (%(default)g)")
    parser.add_argument(
        "--patience",
        type=float,
        default=1200,
        metavar="S",
        help="seconds of writing after which others stop (%(default)g)",
    )
    parser.add_argument("--place", type=Path, help="work in this directory (default: below TMPDIR)")
    parser.add_argument(
        "--keep", action="store_true", help="keep repositories in --place, and use those that are there"
    )
    parser.add_argument(
        "--spare-caches", action="store_true", help="drop cached pages of the repositories alone, also as root"
    )
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="add the numbers to (%(default)s)")
    parser.add_argument("--plots", type=Path, default=Path("build/bench"), help="draw to this directory (%(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="fill in the tables of this page")
    parser.add_argument(
        "--show", action="store_true", help="run nothing: tables, plots, page from the numbers of --json"
    )
    arguments = parser.parse_args(words)
    if unknown := set(arguments.scenarios) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if unknown := set(arguments.peers or []) - {peer.name for peer in PEERS}:
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    if arguments.keep and arguments.place is None:
        parser.error("--keep needs --place")
    return arguments


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else Sizes()
    given = {name: getattr(arguments, name) for name in sizes._fields if getattr(arguments, name) is not None}
    return sizes._replace(**given)


def installed() -> dict[str, str]:
    """The versions of the programs that are there; says which are not."""
    versions = {peer.name: peer.version() for peer in PEERS}
    for name in [name for name, version in versions.items() if version is None]:
        print(f"{name} is not installed: left out")
    return {name: version for name, version in versions.items() if version is not None}


def programs_for(scenario: type[Scenario], wanted: Sequence[str] | None, versions: dict[str, str]) -> list[type[Peer]]:
    """Those that are wanted and there; always the plain copy, which the others are checked against."""
    return [
        peer
        for peer in PEERS
        if peer is Plain
        or (peer.name in versions and (scenario.takes_part(peer) if wanted is None else peer.name in wanted))
    ]


def make_scenarios(arguments: argparse.Namespace, place: Path, versions: dict[str, str]) -> list[Scenario]:
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {what}", flush=True)

    return [
        scenario(
            Setting(
                sizes_of(arguments),
                place,
                programs_for(scenario, arguments.peers, versions),
                [Path(origin) for origin in arguments.tree],
                arguments.limit,
                arguments.patience,
                arguments.keep,
                arguments.spare_caches,
                say,
            )
        )
        for name, scenario in SCENARIOS.items()
        if not arguments.scenarios or name in arguments.scenarios
    ]


def read_results(path: Path) -> dict[str, Results]:
    if not path.exists():
        return {}
    return {name: Results.from_json(found) for name, found in json.loads(path.read_text()).items()}


def write_results(path: Path, found: dict[str, Results]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: results.to_json() for name, results in found.items()}, indent=1) + "\n")


def run_all(arguments: argparse.Namespace, place: Path) -> list[Results]:
    """Run, print and save one scenario after the other, so that an interruption loses one."""
    versions = installed()
    scenarios = make_scenarios(arguments, place, versions)
    for scenario in scenarios:
        names = ", ".join(peer.name for peer in scenario.setting.programs)
        print(f"{scenario.name}: about {max(scenario.estimate_s() / 60, 0.1):.1f} minutes ({names})")
    for scenario in scenarios:
        scenario.place.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        results = scenario.results
        try:
            scenario.run()
        except TroubleError as exc:
            results.add_trouble("all", str(exc))
        took = {"minutes": round((time.monotonic() - started) / 60, 1), "sizes": scenario.sizes._asdict()}
        named = {peer.name: versions[peer.name] for peer in scenario.setting.programs if peer.name in versions}
        results.facts = {"machine": machine.facts(scenario.place), "versions": named, **took}
        print("", tables.text_table(results), "", sep="\n", flush=True)
        write_results(arguments.json, {**read_results(arguments.json), results.scenario: results})
        if not arguments.keep:
            subprocess.run(["rm", "-rf", str(scenario.place)], check=True)
    return [scenario.results for scenario in scenarios]


def show(arguments: argparse.Namespace, found: Sequence[Results]) -> None:
    """Plots and page."""
    if plots.is_available():
        for results in found:
            for path in plots.draw(results, arguments.plots):
                print(f"plot: {path}")
    else:
        print("no plots, as matplotlib is not installed (pip install 'histfs[bench]')")
    if arguments.markdown:
        arguments.markdown.write_text(tables.fill_page(arguments.markdown.read_text(), found))


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(words: Sequence[str]) -> int:
    arguments = parse_arguments(words)
    if arguments.show:
        known = read_results(arguments.json)
        found = [results for name, results in known.items() if not arguments.scenarios or name in arguments.scenarios]
        print("\n\n".join(tables.text_table(results) for results in found))
    else:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)  # so that mounts and directories are removed
        if arguments.place is not None:
            arguments.place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if arguments.keep:
                place = arguments.place
            else:
                place = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="histfs-bench-", dir=arguments.place))
                )
            found = run_all(arguments, place.resolve())
        print(f"all numbers are in {arguments.json}")
    show(arguments, found)
    return 1 if any(results.trouble for results in found) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
