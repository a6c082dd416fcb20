"""Programs that walk through everything, and directories read in pieces, while sessions come and go."""

import ctypes
import errno
import hashlib
import logging
import os
import random
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from histfs.store.backup import backup
from histfs.store.remove import remove_sessions
from tests.abuse.daemon import in_threads, mounted, wait_until
from tests.abuse.past import DAY, FIRST, name_of

log = logging.getLogger(__name__)

GONE = (errno.ENOENT, errno.ESTALE)
_GONE_WORDS = tuple(os.strerror(number) for number in GONE)

# Crawlers

CRAWLERS = {
    "find": ["find", ".", "-ls"],
    "du": ["du", "-a", "."],
    "grep": ["grep", "-r", "-c", "line 3 of many", "."],
    "md5sum": ["find", ".", "-type", "f", "-exec", "md5sum", "{}", "+"],
    "tar": ["tar", "-cf", "/dev/null", "."],
    "stat": ["find", ".", "-newermt", "2100-01-01"],
}


class Crawl:
    """What all crawlers say about all snapshots, again and again, until told to stop; and the sums of all there was."""

    def __init__(self, mountpoint):
        self.mountpoint = mountpoint
        self.stop = threading.Event()
        self.rounds = dict.fromkeys(CRAWLERS, 0)
        self.sums: list[tuple[str, str, str]] = []  # snapshot, path, sum
        self.complaints: list[str] = []

    def run(self, tool):
        while not self.stop.is_set():
            done = subprocess.run(
                CRAWLERS[tool], cwd=self.mountpoint, capture_output=True, text=True, errors="replace", timeout=100
            )
            lines = done.stderr.replace("\\:", ":").splitlines()  # tar quotes colons
            self.complaints += [line for line in lines if line and "Exiting with failure" not in line]
            if tool == "md5sum":
                for digest, path in re.findall(r"^([0-9a-f]{32})  \./(.*)$", done.stdout, re.MULTILINE):
                    name, _, rest = path.partition("/")
                    self.sums.append((name, rest, digest))
            self.rounds[tool] += 1


def check_crawl(past, mountpoint, *, sessions, kept, limit_s):
    """Crawlers while `sessions` come and all but `kept` go, one after the other."""
    truth = dict(past.files)
    gone = set()
    with mounted(past.repository, mountpoint, limit_s=limit_s) as daemon:
        crawl = Crawl(mountpoint)
        threads = [threading.Thread(target=crawl.run, args=[tool], daemon=True) for tool in CRAWLERS]
        for thread in threads:
            thread.start()
        try:
            for _ in range(sessions):
                done = dict(crawl.rounds)
                name = past.session()
                truth[name] = past.files[name]
                if len(past.names) > kept:
                    gone.update(past.remove_oldest(kept))
                # Each goes through all of it at least once between two sessions, however slow the machine is.
                wait_until(lambda done=done: all(crawl.rounds[tool] > done[tool] for tool in CRAWLERS), limit_s)
        finally:
            crawl.stop.set()
            for thread in threads:
                thread.join(100)
        assert not any(thread.is_alive() for thread in threads)
        wait_until(lambda: os.listdir(mountpoint) == past.names)
        for name in past.names:
            past.check(mountpoint, name, "image")
        memory = daemon.memory()
    digests = {}
    for name, path, digest in crawl.sums:
        content = truth[name][path]
        if content not in digests:
            digests[content] = hashlib.md5(content).hexdigest()
        assert digests[content] == digest, (name, path)
    assert crawl.sums
    log.info("rounds: %s; %d sums; at most %.0f MiB", crawl.rounds, len(crawl.sums), memory)
    for complaint in crawl.complaints:
        if complaint == "tar: .: file changed as we read it":  # a session has come
            continue
        assert any(name in complaint for name in gone), complaint
        assert any(words in complaint for words in (*_GONE_WORDS, "file changed", "removed before")), complaint
    return memory


def test_crawlers_see_what_was_while_sessions_come_and_go(own_past, mountpoint):
    own_past.session()
    assert check_crawl(own_past, mountpoint, sessions=3, kept=3, limit_s=100) <= 150


@pytest.mark.long
def test_crawlers_for_long(own_past, mountpoint):
    for _ in range(8):
        own_past.session()
    assert check_crawl(own_past, mountpoint, sessions=20, kept=8, limit_s=900) <= 150


# Large directories


@contextmanager
def listing(path):
    """A directory stream of the C library: what a program does that goes back and forth in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.readdir64.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [
        ctypes.c_void_p
    ]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.opendir(os.fsencode(path))
    if not stream:
        raise OSError(ctypes.get_errno(), "opendir", os.fspath(path))

    def read():
        """The next name; None at the end. OSError."""
        ctypes.set_errno(0)
        entry = libc.readdir64(stream)
        if entry:
            return ctypes.string_at(entry + 19)
        if ctypes.get_errno():
            raise OSError(ctypes.get_errno(), "readdir", os.fspath(path))
        return None

    try:
        yield read, partial(libc.telldir, stream), partial(libc.seekdir, stream), partial(libc.rewinddir, stream)
    finally:
        libc.closedir(stream)


def read_back_and_forth(path, expected, seed, jumps):
    """Read all names, then from anywhere, from behind and from the start; each time exactly those that come there."""
    draw = random.Random(seed)
    with listing(path) as (read, tell, seek, rewind):
        names, places = [], [tell()]
        while (name := read()) is not None:
            names.append(name)
            places.append(tell())
        assert len(names) == len(set(names))
        assert set(names) - {b".", b".."} == expected
        for _ in range(jumps):
            at = draw.randrange(len(names) + 1)
            seek(places[at])
            for following in names[at : at + draw.randrange(1, 700)]:
                assert read() == following
        rewind()
        assert [read() for _ in names[:1000]] == names[:1000]
        seek(places[-1])
        assert read() is None


def read_until_gone(path, expected, is_reading):
    """Read names again and again, until the snapshot is gone: until then none is missing or doubled."""
    while True:
        names = []
        try:
            with listing(path) as (read, _, _, _):
                while (name := read()) is not None:
                    names.append(name)
                    if len(names) == 1000:
                        is_reading.set()
        except OSError as exc:
            if exc.errno not in GONE:
                raise
            assert len(names) == len(set(names))
            assert set(names) - {b".", b".."} <= expected
            return
        assert len(names) == len(set(names))
        assert set(names) - {b".", b".."} == expected


def large_history(place: Path, count):
    """Three sessions of a directory with `count` files, of which the second has one more and the third one less."""
    source, repository = place / "source", place / "repository"
    (source / "many").mkdir(parents=True)
    expected, names = {}, {b"%07d of many" % number for number in range(count)}
    for name in names:
        os.close(os.open(os.fsencode(source / "many") + b"/" + name, os.O_CREAT | os.O_WRONLY))
    for number in range(3):
        if number == 1:
            (source / "many" / "one more").write_bytes(b"1")
            names = names | {b"one more"}
        elif number == 2:
            os.unlink(os.fsencode(source / "many") + b"/%07d of many" % (count // 2))
            names = names - {b"%07d of many" % (count // 2)}
        now = FIRST + number * DAY
        backup(source, repository, now=now, report=lambda error: pytest.fail(str(error)))
        expected[name_of(now)] = names
    shutil.rmtree(source)
    return repository, expected


def check_large_directory(place, mountpoint, count, jumps, limit_s):
    repository, expected = large_history(place, count)
    first, second, third = expected
    with mounted(repository, mountpoint, limit_s=limit_s) as daemon:
        in_threads(
            [partial(read_back_and_forth, mountpoint / name / "many", expected[name], 1, jumps) for name in expected],
            limit_s,
        )
        is_reading = [threading.Event(), threading.Event()]
        others = [
            partial(read_until_gone, mountpoint / name / "many", expected[name], event)
            for name, event in zip((first, second), is_reading, strict=True)
        ]

        def remove():
            for event in is_reading:
                assert event.wait(limit_s)
            for before in (FIRST + DAY, FIRST + 2 * DAY):
                remove_sessions(repository, before)

        stays = partial(read_back_and_forth, mountpoint / third / "many", expected[third], 2, jumps)
        in_threads([*others, remove, stays], limit_s)
        for name in (first, second):
            for look in (os.listdir, os.stat):
                with pytest.raises(OSError) as raised:
                    look(mountpoint / name / "many")
                assert raised.value.errno in GONE
        assert os.listdir(mountpoint) == [third]
        assert len(os.listdir(mountpoint / third / "many")) == count
        log.info("%d names: at most %.0f MiB", count, daemon.memory())
        return daemon.memory()


def test_a_large_directory_is_whole_back_and_forth_while_sessions_go(scratch, mountpoint):
    assert check_large_directory(scratch, mountpoint, 4_000, 20, 100) <= 100


@pytest.mark.long
def test_a_directory_of_200_000_is_whole_back_and_forth_while_sessions_go(scratch, mountpoint):
    assert check_large_directory(scratch, mountpoint, 200_000, 200, 600) <= 150
