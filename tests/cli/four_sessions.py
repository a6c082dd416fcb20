"""A real repository with four sessions, a day apart: in each the file `a` is another one."""

import time

import pytest

from histfs.store.backup import backup
from tests.trees import MTIME, Dir, File, build

DAY = 86_400
TIMES = [1_700_000_000 + day * DAY for day in range(4)]


def use_utc(place, monkeypatch):
    """Times are told in UTC, and caches lie in `place`."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    time.tzset()


def make(place):
    """The repository of `place / "source"`."""
    source, repository = place / "source", place / "repository"
    build(source, Dir({"a": File(b"1" * 2000, mtime=MTIME), "d": Dir({"b": File(b"b" * 1000, mtime=MTIME)})}))
    for number, at in enumerate(TIMES):
        (source / "a").write_bytes(b"%d" % number * (2000 + number))
        backup(source, repository, now=at, report=pytest.fail)
    return repository
