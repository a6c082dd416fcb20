"""Times that do not fit 64 bits of nanoseconds: before 1677-09-21 and after 2262-04-11, on file systems with them."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs._rsync_small import Link as SmallLink
from histfs._rsync_small import SmallVersion, make_small
from histfs.store.compare import Method
from histfs.store.restore import restore
from tests.comparison import difference, read
from tests.store.sessions import Sessions
from tests.trees import Dir, Fifo, File, Link, Node, Socket, Symlink, build

YEAR_1600, YEAR_2300 = -11_676_096_000, 10_413_792_000
DEEP = "/".join(f"d{level}" for level in range(1, 41))


def set_time(path: Path, seconds: int, ns: int = 0) -> None:
    """Also of what is gone again the next moment; a test is skipped where the file system has no such times."""
    os.utime(path, ns=(seconds * 10**9 + ns,) * 2, follow_symlinks=False)
    if os.lstat(path).st_mtime_ns // 10**9 != seconds:
        pytest.skip("the file system has no such times")


def tree(seconds: int) -> Dir:
    files: dict[str | bytes, Node] = {
        "empty": File(mtime=seconds),
        "large": File(random.Random(1).randbytes(17 << 20), mtime=seconds),
        "link": Link("small"),
        "middle": File(b"M" * 100_000, mtime=seconds),
        "small": File(b"S", mtime=seconds),
        "with": File(b"W", mtime=seconds, xattrs={"user.test": b"x"}),
    }
    others: dict[str | bytes, Node] = {
        "fifo": Fifo(),
        "socket": Socket(),
        "symlink": Symlink(b"somewhere"),
        "z": File(b"Z"),
    }
    return Dir({**files, "d": Dir({"x": File(b"X", mtime=seconds)}), "e": Dir({"y": File(b"Y")}), **others})


@pytest.fixture(params=[YEAR_1600, YEAR_2300])
def seconds(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def far(scratch: Path, seconds: int) -> Sessions:
    """Files of every kind, and the root itself, with such a time; one that no walk keeps open lies deep."""
    sessions = Sessions(scratch)
    build(sessions.source, tree(seconds))
    deep = sessions.source / DEEP
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"F")
    for path in (deep / "f", deep, *(sessions.source / name for name in ("d", "fifo", "socket")), sessions.source):
        set_time(path, seconds)
    set_time(sessions.source / "small", seconds, 123_456_789)
    set_time(sessions.source, seconds)
    return sessions


def check(sessions: Sessions) -> None:
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
    for session_time in sessions.states:
        assert sessions.verify(session_time).mismatched == 0
    for method in Method:
        assert sessions.compare(method=method) == []
    assert sessions.reported == []


def test_they_are_recorded_and_what_is_as_it_was_is_unchanged(far: Sessions, seconds: int) -> None:
    for number in range(3):
        outcome = far.backup()
        assert outcome.statistics.changed_files == 0 or not number
        for path in (
            b"",
            b"small",
            b"link",
            b"large",
            b"d",
            b"d/x",
            b"fifo",
            os.fsencode(DEEP),
            os.fsencode(DEEP) + b"/f",
        ):
            assert far.entry(path).mtime_s == seconds
        check(far)
    target = far.source.with_name("restored")
    with far.open() as repository:
        assert restore(repository, b"", far.now, target, report=far.reported.append).errors == 0
    assert difference(far.states[far.now], read(target)) == []
    assert far.reported == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: [(top / path).write_bytes(b"new") for path in ("small", "d/x", f"{DEEP}/f", "with")],
    "large": lambda top: (top / "large").write_bytes(b"L" * (18 << 20)),
    "mode": lambda top: [(top / path).chmod(0o700) for path in ("small", "d", "d/x", "fifo", "large", DEEP)],
    "new": lambda top: [(top / path).write_bytes(b"new") for path in ("new", "d/new", f"{DEEP}/new")],
    "moved": lambda top: (top / "middle").rename(top / "a-moved"),
    "gone": lambda top: [shutil.rmtree(top / "d"), (top / "small").unlink()],
    "near": lambda top: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stays_far", [True, False])
def test_what_changes_is_noticed(far: Sessions, seconds: int, change: str, stays_far: bool) -> None:
    far.backup()
    CHANGES[change](far.source)
    for number, place in enumerate(sorted(os.walk(far.source)), 1):
        for path in (place[0], *(os.path.join(place[0], name) for name in place[2])):
            if stays_far and change != "near":
                set_time(Path(path), seconds + number)
            elif change == "near":
                os.utime(path, (number, number), follow_symlinks=False)
    for _ in range(2):
        far.backup()
        check(far)


def test_a_time_may_become_a_far_one(scratch: Path, seconds: int) -> None:
    sessions = Sessions(scratch)
    build(sessions.source, tree(1_600_000_000))
    sessions.backup()
    sessions.backup()
    for path in ("small", "d/x", "d", "fifo", "large"):
        set_time(sessions.source / path, seconds)
    for changed in (6, 0):
        assert sessions.backup().statistics.changed_files == changed
        check(sessions)


def test_small_versions_are_left_to_who_knows_the_time(scratch: Path, seconds: int) -> None:
    (scratch / "f").write_bytes(b"F")
    version = SmallVersion(1, hashlib.sha1(b"F").digest(), [SmallLink(b"f", in_mirror=True)])
    fd = os.open(scratch, os.O_RDONLY)
    try:
        assert make_small(fd, -1, [version]) != [None]
        set_time(scratch / "f", seconds)
        assert make_small(fd, -1, [version]) == [None]
    finally:
        os.close(fd)
