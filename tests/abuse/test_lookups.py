"""A million names looked up and forgotten, and names that nobody has: what the mount remembers of them is nothing."""

import errno
import logging
import os
import random
from functools import partial

import pytest

from tests.abuse.daemon import in_threads, mounted, wait_until
from tests.abuse.past import Past
from tests.abuse.tap import Tap
from tests.mount.system_calls import fails

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
READERS = 4
log = logging.getLogger(__name__)


def look_up(mountpoint, names, files):
    """lstat(2) of each file in each snapshot, without listing anything."""
    for name in names:
        for path in files:
            os.lstat(mountpoint / name / path)


def check_lookups(past, mountpoint, tmp_path, *, times, limit_s):
    """Look up all files of all snapshots `times`, each time forgotten by the kernel; the memory after each, in MiB."""
    tap, grown = Tap(tmp_path), []
    files = sorted(past.current)
    with mounted(past.repository, mountpoint, environment=tap.environment, limit_s=limit_s) as daemon:
        held = os.open(mountpoint / past.names[0] / "image", os.O_RDONLY)
        inside = os.open(mountpoint / past.names[-1] / "d", os.O_RDONLY)
        try:
            for _ in range(times):
                before = tap.read().lookups
                parts = [partial(look_up, mountpoint, past.names[at::READERS], files) for at in range(READERS)]
                in_threads(parts, limit_s)
                assert tap.read().lookups - before >= len(past.names) * len(files)
                daemon.forget()
                live = live_inodes(mountpoint, [held, inside], [past.names[0], past.names[-1]])
                # What is open, and the directories that lead there, and nothing else. (Some forgets come a bit later.)
                wait_until(lambda live=live: set(tap.read().live) <= live)
                counts = tap.read()
                assert counts.lookups + counts.listed == counts.forgotten + sum(counts.live.values())
                assert {os.fstat(held).st_ino, os.fstat(inside).st_ino} <= set(counts.live)
                grown.append(daemon.memory("VmRSS"))
            return tap.read(), daemon.memory(), grown
        finally:
            os.close(held)
            os.close(inside)


def live_inodes(mountpoint, descriptors, names):
    return {os.fstat(fd).st_ino for fd in descriptors} | {os.stat(mountpoint / name).st_ino for name in names}


@root_only
def test_what_was_looked_up_is_what_was_forgotten_and_what_is_open(past, mountpoint, tmp_path):
    counts, memory, grown = check_lookups(past, mountpoint, tmp_path, times=3, limit_s=60)
    assert counts.lookups > 3 * 12 * 100
    assert memory <= 100
    assert grown[-1] <= grown[0] + 3, grown


@root_only
@pytest.mark.long
def test_a_million_lookups_over_a_hundred_snapshots(scratch, mountpoint, tmp_path):
    past = Past(scratch, image_bytes=1 << 16, small=5_000)
    for _ in range(100):
        past.session()
    counts, memory, grown = check_lookups(past, mountpoint, tmp_path, times=2, limit_s=900)
    live = sum(counts.live.values())
    log.info("%d lookups, %d listed, %d forgotten, %d live", counts.lookups, counts.listed, counts.forgotten, live)
    log.info("at most %.0f MiB, after each half %s", memory, grown)
    assert counts.lookups >= 1_000_000
    assert memory <= 100
    assert grown[-1] <= grown[0] + 5, grown


@root_only
def test_what_was_listed_is_forgotten_as_well(past, mountpoint, tmp_path):
    """Whole snapshots, by readers at the same time, also where the answer is one that was made before."""
    tap = Tap(tmp_path)
    with mounted(past.repository, mountpoint, environment=tap.environment) as daemon:

        def walk(names):
            for name in names:
                for above, _, files in os.walk(mountpoint / name):
                    for each in files:
                        os.lstat(os.path.join(above, each))

        in_threads([partial(walk, past.names[at:]) for at in range(6)])
        daemon.forget()
        wait_until(lambda: not tap.read().live)
        counts = tap.read()
        assert counts.listed > 1000
        assert counts.lookups + counts.listed == counts.forgotten


# Names that nobody has


def test_strange_names_are_not_there_and_do_no_harm(past, mountpoint):
    first = past.names[0]
    almost = [first[1:], first + ":", first + ":00:00", first[:-1], first.replace("T", " "), first.lower(), first + " "]
    almost += [
        "@" + "9" * 50,
        "@2024-13-01T10:00",
        "@2024-05-01T25:00",
        "@-1",
        "@1714557600",
    ]
    strange = [b"@", b"@garbage", b"@@", b"\xff\xfe", b"@\xff", b"\n", b" ", b"*", b"%s%n", b"n" * 255, b"\xff" * 255]
    places = [os.fsencode(mountpoint), os.fsencode(mountpoint / first), os.fsencode(mountpoint / first / "d" / "e")]
    with mounted(past.repository, mountpoint):
        for place in places:
            for name in strange + [os.fsencode(name) for name in almost]:
                fails(errno.ENOENT, os.stat, place + b"/" + name)
            fails(errno.ENAMETOOLONG, os.stat, place + b"/" + b"n" * 256)
            fails(errno.ENAMETOOLONG, os.stat, place + b"/" + b"n" * 1000)
            assert os.stat(place + b"/.").st_ino == os.stat(place).st_ino
            assert os.stat(place + b"/./../" + os.path.basename(place)).st_ino == os.stat(place).st_ino
        assert os.stat(places[2] + b"/../..").st_ino == os.stat(places[1]).st_ino
        assert os.stat(places[1] + b"/..").st_ino == os.stat(places[0]).st_ino
        fails(errno.ENOTDIR, os.stat, places[1] + b"/image/x")
        fails(errno.ENOTDIR, os.stat, places[1] + b"/image/.")
        assert os.listdir(mountpoint) == past.names


def check_missing(past, mountpoint, count, limit_s):
    """Look for `count` names in the root and as many in snapshots, none of which is there."""
    draw = random.Random(count)
    with mounted(past.repository, mountpoint, limit_s=limit_s) as daemon:

        def look(start, number):
            for each in range(start, start + number):
                place = mountpoint if each % 10 == 0 else mountpoint / draw.choice(past.names) / "small"
                assert not os.path.lexists(place / f"{each:x} {'n' * (each % 200)}")

        look(0, count // 10)
        before = daemon.memory("VmRSS"), daemon.descriptors()
        look(count // 10, count - count // 10)
        assert daemon.memory("VmRSS") <= before[0] + 4
        assert daemon.descriptors() <= before[1]
        past.check_some(mountpoint, 1, 5)
        return daemon.memory()


def test_names_that_are_missing_cost_no_memory(past, mountpoint):
    assert check_missing(past, mountpoint, 3_000, 60) <= 100


@pytest.mark.long
def test_a_hundred_thousand_names_that_are_missing_cost_no_memory(past, mountpoint):
    assert check_missing(past, mountpoint, 100_000, 400) <= 100
