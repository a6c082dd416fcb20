"""Times that do not fit 64 bits of nanoseconds: both programs record the same, and all readers show it."""

import gzip
from pathlib import Path

from tests import comparison
from tests.compat import agreement
from tests.histories import State
from tests.oracle import Oracle
from tests.store.test_far_times import YEAR_2300, set_time
from tests.trees import Dir, File, build

FIRST, DAY = 1_700_000_000, 86_400


def grow(scratch: Path) -> Path:
    source = scratch / "source"
    files = {f"f{number}": File(b"%d" % number, mtime=YEAR_2300 + number) for number in range(3)}
    build(source, Dir({"d": Dir(files), "large": File(b"L" * (17 << 20), mtime=YEAR_2300), "z": File(b"Z")}))
    set_time(source / "d", YEAR_2300)
    set_time(source, YEAR_2300)
    return source


def records(repository: Path) -> bytes:
    [path] = (repository / "rdiff-backup-data").glob("mirror_metadata.*.snapshot.gz")
    return gzip.decompress(path.read_bytes())


def test_everybody_shows_them(scratch: Path, rdiff_backup: Oracle) -> None:
    source = grow(scratch)
    states = []
    for number in range(3):
        if number == 2:
            (source / "d/f1").write_bytes(b"new")
            set_time(source / "d/f1", YEAR_2300 + 10)
        states.append(State(FIRST + number * DAY, comparison.read(source)))
        agreement.histfs_backup(source, scratch / "repository", at=states[-1].time)
    agreement.check_all(scratch / "repository", states, rdiff_backup, scratch)


def test_both_record_the_same(scratch: Path, rdiff_backup: Oracle) -> None:
    source = grow(scratch)
    ours, theirs = scratch / "ours", scratch / "theirs"
    agreement.histfs_backup(source, ours, at=FIRST)
    rdiff_backup.backup(source, theirs, at=FIRST).check()
    assert records(ours) == records(theirs)
    agreement.histfs_backup(source, theirs, at=FIRST + DAY)
    assert records(ours) == records(theirs)
    rdiff_backup.backup(source, theirs, at=FIRST + 2 * DAY).check()
    assert records(ours) == records(theirs)
    rdiff_backup.compare(source, ours, at=FIRST).check()
