"""The bench: every scenario once with tiny data, its arithmetic, and that it leaves nothing behind.

No figure is looked at for being fast: only that it is there, and that wrong bytes would not have one.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import changing, checks, commands, mounts, plots, repositories, tables, trees
from bench.__main__ import parse_arguments, programs_for, sizes_of
from bench.peers import PEERS, Plain, RdiffBackup, find_program, session_time
from bench.results import Curves, Measure, Results, distribution, percentile
from bench.scenarios import SCENARIOS
from bench.scenarios.base import QUICK
from bench.scenarios.tree import count_entries, some_directory

PROJECT = Path(__file__).parents[1]
TINY = {
    "tree": ("--tree-files", "60", "--tree-sessions", "2"),
    "image": ("--image-mib", "2", "--image-sessions", "2", "--random-reads", "20"),
    "log": ("--log-sessions", "3"),
    "million": ("--million-records", "500", "--million-sessions", "2"),
    "sessions": ("--sessions-files", "30", "--sessions-large-mib", "1", "--sessions-changed", "1"),
    "everyday": (
        *("--everyday-files", "60", "--everyday-image-mib", "2", "--everyday-many", "300"),
        *("--everyday-killed", "400", "--everyday-changed", "1", "--settled-s", "0"),
    ),
    "removal": ("--removal-files", "250", "--removal-sessions", "6"),
}

needs_fuse = pytest.mark.skipif(
    not (os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3")), reason="cannot mount here"
)


# The scenarios


@needs_fuse
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_has_right_bytes_and_all_its_figures(name: str, tmp_path: Path) -> None:
    numbers, source = tmp_path / "numbers.json", tmp_path / "files"
    trees.SmallFiles(source, 60, 1).advance(0)
    options = ["--peers", "histfs", "--repeats", "1", "--spare-caches", "--tree", source, *TINY[name]]
    places = ["--place", tmp_path, "--json", numbers, "--plots", tmp_path / "plots"]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", name, *map(str, options + places)], cwd=PROJECT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = Results.from_json(json.loads(numbers.read_text())[name])
    assert [measure.name for measure, figures in results.rows() if "histfs" in figures] == [
        measure.name for measure in SCENARIOS[name].measures
    ]
    assert all(figure >= 0 for _, figures in results.rows() for figure in figures.values())
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("histfs-bench-")]


@needs_fuse
def test_it_cleans_up_when_it_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "log", "--peers", "histfs", "--place", tmp_path, "--log-sessions", "1"]
    quiet = ["--repeats", "1000", "--spare-caches", "--json", tmp_path / "numbers.json"]
    process = subprocess.Popen([*map(str, command + quiet)], cwd=PROJECT, stdout=subprocess.DEVNULL)
    while str(tmp_path) not in Path("/proc/self/mounts").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list(tmp_path.iterdir()) == []


def read_until_it_dies(plain: Plain, mount: mounts.Mount) -> None:
    assert mount.usable_s > 0
    assert mount.peak_memory_mib() > 1
    assert mount.answers() > 0
    mount.kill()  # as its guard does
    while True:
        os.listdir(plain.mountpoint)


@needs_fuse
def test_a_mount_that_takes_too_long_dies(tmp_path: Path) -> None:
    plain = Plain(tmp_path, tmp_path / "source")
    with pytest.raises(commands.TooSlowError), mounts.mounted(plain, limit_s=60) as mount:
        read_until_it_dies(plain, mount)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@needs_fuse
def test_the_pass_through_shows_what_is_there(tmp_path: Path) -> None:
    plain = Plain(tmp_path, tmp_path / "source")
    trees.SmallFiles(plain.source, 30, 1).advance(0)
    (plain.source / "link").symlink_to("large")
    subprocess.run(plain.backup(0), check=True)
    with mounts.mounted(plain, limit_s=60):
        checks.same_trees(plain.mounted_snapshot(0), plain.source)
        checks.same_listings(plain.mounted_snapshot(0), plain.source)
        assert not (plain.mountpoint / "nothing").exists()


# Commands


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(commands.TooSlowError, match="more than 1 s"):
        commands.timed(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], limit_s=1)
    assert ends(int(child.read_text()))


def ends(process: int) -> bool:
    """Wait until it does; false after a while."""
    for _ in range(1000):
        if not Path(f"/proc/{process}").exists() or "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return True
        time.sleep(0.01)
    return False


def test_a_command_that_fails_says_why() -> None:
    assert commands.timed(["sh", "-c", "exit 3"], limit_s=10, codes=(0, 3)) > 0
    with pytest.raises(commands.CommandError, match=r"exit code 3.*/ oh no$"):
        commands.timed(["sh", "-c", "echo well >&2; echo oh no >&2; exit 3"], limit_s=10)


# What is checked


def test_differences_are_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        trees.SmallFiles(root, 30, 1).advance(0)
    names = checks.sample(one, 100)
    checks.same_trees(one, other)
    checks.same_listings(one, other)
    checks.same_files(one, other, names)
    content = (one / names[0]).read_bytes()
    (one / names[0]).write_bytes(content[:-1] + b"?")
    with pytest.raises(checks.WrongBytesError):
        checks.same_trees(one, other)
    with pytest.raises(checks.WrongBytesError):
        checks.same_files(one, other, names)
    with pytest.raises(checks.WrongBytesError):
        checks.same_pieces({7: b"?"}, {7: b"!"})
    checks.same_listings(one, other)
    (one / names[0]).write_bytes(content[:-1])
    with pytest.raises(checks.WrongBytesError):
        checks.same_listings(one, other)


# Data


@pytest.mark.parametrize("kind", ["small files", "real tree", "image", "log"])
def test_the_same_history_is_made_again(kind: str, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    trees.SmallFiles(origin, 120, 1).advance(0)
    (origin / "link").symlink_to("large")

    def make(root: Path) -> trees.History:
        makers = {
            "small files": lambda: trees.SmallFiles(root, 120, 1),
            "real tree": lambda: trees.RealTree(root, [origin], 110),
            "image": lambda: trees.Image(root, 2),
            "log": lambda: trees.Log(root),
        }
        return makers[kind]()

    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    assert str(first) == str(second)
    for session in range(4):
        before = checks.differing(first.root, second.root) if session else []
        assert before == []
        first.advance(session)
        if session > 1:
            assert checks.differing(first.root, second.root) != []
        second.advance(session)
    checks.same_trees(first.root, second.root)


def test_the_image_changes_by_one_percent_and_knows_its_past(tmp_path: Path) -> None:
    image = trees.Image(tmp_path / "root", 4)
    offsets = range(0, 4 << 20, trees.BLOCK)
    versions = []
    for session in range(3):
        image.advance(session)
        content = image.path.read_bytes()
        versions.append({offset: content[offset : offset + trees.BLOCK] for offset in offsets})
    assert sum(versions[0][offset] != versions[1][offset] for offset in offsets) == len(offsets) // 100
    assert image.pieces({0, 2}, offsets) == {0: versions[0], 2: versions[2]}


def test_a_directory_is_chosen_that_is_not_too_large(tmp_path: Path) -> None:
    trees.SmallFiles(tmp_path / "root", 2000, 1).advance(0)
    entries = count_entries(tmp_path / "root")
    chosen = some_directory(tmp_path / "root")
    assert 40 <= count_entries(tmp_path / "root" / chosen) <= entries // 20


def test_the_number_of_records_is_known(tmp_path: Path) -> None:
    shape = repositories.Shape(1234, 3)
    repositories.write(tmp_path / "repository", shape)
    lists = list((tmp_path / "repository" / "rdiff-backup-data").glob("mirror_metadata.*"))
    texts = [subprocess.run(["gzip", "-dc", path], capture_output=True, check=True).stdout for path in lists]
    assert sum(text.count(b"\nFile ") + text.startswith(b"File ") for text in texts) == shape.records()
    assert len(lists) == 4


@pytest.mark.skipif(find_program("rdiff-backup") is None, reason="rdiff-backup is not installed")
def test_what_is_written_directly_is_a_repository_for_rdiff_backup(tmp_path: Path) -> None:
    shape = changing.Shape(250, 7)
    changing.write(tmp_path / "repository", shape)
    for session in range(8):
        target = tmp_path / str(session)
        restoring = ["restore", "--at", session_time(session), tmp_path / "repository", target]
        commands.timed(RdiffBackup.command("--api-version", 201, *restoring), limit_s=60)
        versions = [shape.version(directory, session) for directory in range(shape.directories)]
        for directory, version in enumerate(versions):
            for number in shape.files_in(directory):
                path = target / changing.directory_name(directory) / changing.file_name(number)
                assert path.read_bytes() == changing.content(number, version)
    assert len({tuple(shape.changed(session)) for session in range(1, 8)}) == 3


# Arithmetic and tables


def test_percentiles() -> None:
    samples = random.Random(1).sample(range(1, 1001), 1000)
    assert percentile(samples, 50) == 500
    assert percentile(samples, 99) == 990
    assert percentile(samples, 100) == 1000
    assert percentile([7.5], 1) == percentile([7.5], 99) == 7.5
    assert distribution(samples)[0] == [10, 1]
    assert distribution(samples) == sorted(distribution(samples))
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("figure", "unit", "shown"),
    [
        (0.00000251, "s", "2.51 µs"),
        (0.0123, "s", "12.3 ms"),
        (1.5, "s", "1.50 s"),
        (1234.5, "s", "1,234 s"),
        (61234.4, "entries/s", "61,234 entries/s"),
        (9.999, "MiB", "10.0 MiB"),
        (101, "", "101"),
    ],
)
def test_figures_are_shown_with_three_digits(figure: float, unit: str, shown: str) -> None:
    assert tables.format_figure(figure, unit) == shown


def example() -> Results:
    measures = (Measure("time", "s", "with a <clock>"), Measure("rate", "MB/s", "so"), Measure("never", "s", "-"))
    results = Results("tree", "a tree", "some data", measures, columns=["histfs", "other"])
    results.add("rate", "other", 50)
    results.add("time", "other", 2.0, 4.0, 9.0)
    results.add("time", "histfs", 2.0)
    results.add_trouble("other", "wrong <bytes>")
    return results


def test_a_table_has_medians_ratios_and_trouble() -> None:
    text = tables.text_table(example())
    lines = [line.split() for line in text.splitlines()]
    assert ["time", "2.00", "s", "4.00", "s", "(2x)"] in lines
    assert ["rate", "-", "50.0", "MB/s"] in lines
    assert "other: wrong <bytes>" in text
    assert "never" not in text


def test_results_survive_json() -> None:
    results = example()
    results.curves["reads"] = Curves("s", "%", "x", {"histfs": [[1.0, 2.0]]})
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_a_page_gets_its_tables_and_keeps_the_rest() -> None:
    page = "before\n<!-- bench: tree -->\nold\n<!-- end -->\nbetween\n<!-- bench: log -->\nkept\n<!-- end -->\nafter\n"
    filled = tables.fill_page(page, [example()])
    assert filled.startswith("before\n<!-- bench: tree -->\n")
    assert "| time | 2.00 s | 4.00 s (2x) |" in filled
    assert "old" not in filled
    assert r"wrong \<bytes\>" in filled
    assert filled.endswith("<!-- end -->\nbetween\n<!-- bench: log -->\nkept\n<!-- end -->\nafter\n")
    assert tables.fill_page(filled, [example()]) == filled


def test_plots_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    if not plots.is_available():
        pytest.skip("matplotlib is not installed")
    results = example()
    results.curves["reads"] = Curves("s", "%", "x", {"histfs": distribution([1.0, 2.0])})
    results.add("rate", "histfs", 70)
    results.add("rate", "third", 0)
    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["tree-bars.svg", "tree-curves.svg"]
    first = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.draw(results, tmp_path)] == first


# The command line


def test_sizes_can_be_told() -> None:
    assert sizes_of(parse_arguments(["--quick", "--repeats", "9"])) == QUICK._replace(repeats=9)
    assert sizes_of(parse_arguments([])).image_mib == 1024


@pytest.mark.parametrize("words", [["nonsense"], ["--peers", "histfs,nobody"], ["--keep"]])
def test_what_is_not_known_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(words)


def test_the_plain_copy_always_takes_part_and_others_if_they_suit() -> None:
    versions = {peer.name: "1" for peer in PEERS if peer.name != "borg"}
    found = [peer.name for peer in programs_for(SCENARIOS["tree"], None, versions)]
    assert found == ["histfs", "rdiff-backup", "restic", "bup", "plain copy"]
    assert [peer.name for peer in programs_for(SCENARIOS["log"], None, versions)] == ["histfs", "plain copy"]
    assert [peer.name for peer in programs_for(SCENARIOS["log"], ["bup"], versions)] == ["bup", "plain copy"]


def test_sessions_are_an_hour_apart() -> None:
    assert session_time(3) - session_time(2) == 3600
