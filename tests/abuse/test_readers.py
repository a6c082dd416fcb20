"""Many who read at the same time, some of whom are killed, and a mount that is stopped, killed and taken away."""

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from tests.abuse.daemon import contents_of, end, in_threads, mounted, wait_until
from tests.mount.test_mount_process import histfs, is_mounted

READERS = 100
log = logging.getLogger(__name__)
_AT_REST_AFTER_S = 70.0  # what was read stays open for a minute
_AS_BEFORE_S = 90.0
_MOST_THREADS = 40


def as_before(daemon, descriptors, threads):
    """Whether there are no more descriptors and threads than there were."""
    return daemon.descriptors() <= descriptors and daemon.threads() <= threads


@pytest.mark.parametrize("path", [None, "image", "document"], ids=["many", "one", "compressed"])
def test_a_hundred_readers_get_the_right_bytes(past, mountpoint, path):
    with mounted(past.repository, mountpoint) as daemon:
        in_threads([partial(past.check_some, mountpoint, seed, 3, path) for seed in range(READERS)])
        assert daemon.threads() <= _MOST_THREADS + (os.cpu_count() or 1)
        assert daemon.descriptors() < 500


@pytest.mark.long
def test_a_hundred_readers_for_long_leave_nothing_behind(past, mountpoint):
    at_rest = []
    with mounted(past.repository, mountpoint, limit_s=900) as daemon:
        for repetition in range(3):
            for seed in range(repetition * 1000, repetition * 1000 + 200, READERS):
                in_threads([partial(past.check_some, mountpoint, seed + number, 100) for number in range(READERS)])
                if os.geteuid() == 0:
                    daemon.forget()
            time.sleep(_AT_REST_AFTER_S)
            at_rest.append((daemon.descriptors(), daemon.threads(), daemon.memory("VmRSS")))
        log.info("at rest: %s; at most %.0f MiB", at_rest, daemon.memory())
        assert daemon.memory() <= 150
    first, last = at_rest[0], at_rest[-1]
    assert last[:2] <= first[:2], at_rest
    assert last[1] <= first[1], at_rest
    assert last[2] <= first[2] + 10, at_rest


def test_readers_that_are_interrupted_all_the_time_get_all_bytes(past, mountpoint):
    """Signals every millisecond: the kernel tells the mount of each request that was interrupted."""
    interrupted = 0

    def on_alarm(*_):
        nonlocal interrupted
        interrupted += 1

    with mounted(past.repository, mountpoint):
        before = signal.signal(signal.SIGALRM, on_alarm)  # without SA_RESTART
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for name in past.names:
                for path in ("image", "document", "log", "small/0001"):
                    past.check(mountpoint, name, path)
                assert sorted(os.listdir(mountpoint / name / "small"))[0] == "0000"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert interrupted > 10


_READ_PAST_ALL_CACHES = """
import mmap, os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
size, page, until = os.fstat(fd).st_size, mmap.mmap(-1, 4096), time.monotonic() + 15
try:
    while time.monotonic() < until:
        os.preadv(fd, [page], random.randrange(size // 4096) * 4096)
except OSError:
    sys.exit(3)
"""


def test_readers_that_never_pause_leave_time_for_all_else(past, mountpoint):
    """Who asks for the root is answered, and a signal is heeded, while they go on."""
    with mounted(past.repository, mountpoint) as daemon:
        image = mountpoint / past.names[0] / "image"
        image.read_bytes()
        command = [sys.executable, "-c", _READ_PAST_ALL_CACHES, image]
        readers = [subprocess.Popen(command) for _ in range(3)]
        try:
            time.sleep(1)
            for _ in range(10):
                began = time.monotonic()
                os.statvfs(mountpoint)
                assert time.monotonic() - began < 2
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(5)
            assert [reader.wait(5) for reader in readers] == [3] * 3  # none had come to its end
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()


# Readers that are killed

_READS_FOR_EVER = """
import mmap, os, sys
buffer = mmap.mmap(-1, 1 << 20)
files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in sys.argv[1:]]
sizes = [os.fstat(fd).st_size for fd in files]
first = True
while True:  # O_DIRECT: each asks the mount
    for fd, size in zip(files, sizes):
        for at in range(0, size, len(buffer)):
            if os.preadv(fd, [buffer], at) != min(len(buffer), size - at):
                sys.exit("short")
        if first:
            print("reads", flush=True)
            first = False
"""


def start_readers(past, mountpoint, count):
    """Programs that read large files for ever, all of which have begun."""
    paths = [mountpoint / name / path for name in past.names for path in ("image", "document")]
    command = [sys.executable, "-c", _READS_FOR_EVER]
    readers = [
        subprocess.Popen(
            [*command, *paths[number % 3 :]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in range(count)
    ]
    for reader in readers:
        assert reader.stdout.readline() == "reads\n"
    return readers


def kill_readers(past, mountpoint, rounds, count):
    draw = random.Random(rounds)
    for _ in range(rounds):
        readers = start_readers(past, mountpoint, count)
        try:
            for reader in readers:
                time.sleep(draw.random() * 0.01)
                reader.kill()
                assert reader.wait(20) == -signal.SIGKILL
        finally:
            end(readers)
            for reader in readers:
                reader.communicate()


def test_readers_that_are_killed_in_large_reads_leave_nothing_behind(past, mountpoint):
    with mounted(past.repository, mountpoint) as daemon:
        past.check_large(mountpoint)
        before = daemon.descriptors()
        kill_readers(past, mountpoint, 2, 10)
        wait_until(lambda: daemon.descriptors() <= before)
        past.check_some(mountpoint, 1, 20)


@pytest.mark.long
def test_many_readers_that_are_killed(past, mountpoint):
    with mounted(past.repository, mountpoint, limit_s=400) as daemon:
        past.check_large(mountpoint)
        kill_readers(past, mountpoint, 8, 20)
        before, memory = (daemon.descriptors(), daemon.threads()), daemon.memory("VmRSS")
        kill_readers(past, mountpoint, 8, 20)
        past.check_large(mountpoint)
        assert daemon.memory("VmRSS") <= memory + 10
        wait_until(partial(as_before, daemon, *before), _AS_BEFORE_S)


# A mount that is killed, stopped, taken away


def test_readers_of_a_mount_that_is_killed_get_an_error_and_a_new_one_takes_its_place(own_past, mountpoint):
    before = contents_of(own_past.repository)
    with mounted(own_past.repository, mountpoint) as daemon:
        readers = start_readers(own_past, mountpoint, 10)
        held = os.open(mountpoint / own_past.names[0] / "image", os.O_RDONLY | os.O_DIRECT)
        try:
            daemon.kill()
            for reader in readers:
                _, said = reader.communicate(timeout=20)
                assert reader.returncode == 1
                assert any(os.strerror(number) in said for number in (errno.ENOTCONN, errno.ECONNABORTED)), said
            for call in (
                partial(os.stat, mountpoint / "what the kernel has not seen"),
                partial(os.statvfs, mountpoint),
            ):
                with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                    call()
            for call in (partial(os.read, held, 4096), partial(os.close, held)):
                with pytest.raises(OSError, match=f"{os.strerror(errno.ENOTCONN)}|{os.strerror(errno.ECONNABORTED)}"):
                    call()
        finally:
            end(readers)
    with mounted(own_past.repository, mountpoint):
        for name in own_past.names:
            own_past.check(mountpoint, name, "image")
    assert not is_mounted(mountpoint)  # no dead one below
    assert contents_of(own_past.repository) == before


def test_readers_of_a_mount_that_is_stopped_wait_and_go_on(past, mountpoint):
    with mounted(past.repository, mountpoint) as daemon:
        past.check(mountpoint, past.names[-1], "small/0001")
        os.kill(daemon.pid, signal.SIGSTOP)
        done = []

        def read(seed):
            past.check_some(mountpoint, seed, 5, "document")
            done.append(seed)

        readers = [threading.Thread(target=read, args=[seed], daemon=True) for seed in range(20)]
        try:
            for reader in readers:
                reader.start()
            time.sleep(0.5)
            assert done == []
            # What waits in the queue of the kernel can be killed, as long as it waits for no lock of a directory.
            unread = mountpoint / past.names[-1] / "small" / "0002"
            killed = subprocess.Popen(["cat", unread], stdout=subprocess.DEVNULL)
            time.sleep(0.2)
            killed.kill()
            assert killed.wait(10) == -signal.SIGKILL
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        for reader in readers:
            reader.join(60)
        assert sorted(done) == list(range(20))


_SITS_IN_IT = """
import os, sys
os.chdir(sys.argv[1])
held = open("image", "rb", buffering=0)
print("sits", flush=True)
sys.stdin.readline()
sys.stdout.buffer.write(held.read()[:100_000])
sys.stdout.buffer.write(open("document", "rb").read())
sys.stdout.buffer.write(open("../%s/log" % sys.argv[2], "rb").read())
"""


def test_what_somebody_sits_in_is_busy_and_serves_until_he_leaves(past, mountpoint):
    first, last = past.names[0], past.names[-1]
    with mounted(past.repository, mountpoint) as daemon:
        sitting = subprocess.Popen(
            [sys.executable, "-c", _SITS_IN_IT, mountpoint / first, last],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert sitting.stdout.readline() == b"sits\n"
        refused = subprocess.run(["fusermount3", "-u", mountpoint], capture_output=True)
        assert refused.returncode != 0
        refused = histfs("umount", mountpoint)
        assert refused.returncode == 1
        assert "busy" in refused.stderr
        past.check(mountpoint, first, "document")  # nothing has changed by that
        assert histfs("umount", "--lazy", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
        assert os.listdir(mountpoint) == []
        told, _ = sitting.communicate(b"\n", timeout=30)
        files = past.files
        assert told == files[first]["image"][:100_000] + files[first]["document"] + files[last]["log"]
        assert daemon.process.wait(20) == 0
