"""Sessions: what they change, record and count, and what makes them stop (docs/format.md 6.2, 7, 8)."""

import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import DamagedError, NotARepositoryError, StorageError, UsageError
from histfs.store import batch, files
from histfs.store.backup import backup
from histfs.store.delta import block_len
from histfs.store.entry import Entry
from histfs.store.files import WritableTree
from histfs.store.format.stats import SessionStatistics, parse_session_statistics
from histfs.store.format.times import format_time
from histfs.store.naming import Naming
from histfs.store.source import Source
from histfs.store.unreadable import source_error
from tests.comparison import read
from tests.store.places import is_root, make_deep, open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions, quote_names, stamp
from tests.trees import MTIME, Device, Dir, Fifo, File, Node, Socket, Symlink, build

TEXT = b"".join(b"line %d\n" % number for number in range(300))


def write(path: Path, content: bytes, number: int = 1) -> None:
    path.write_bytes(content)
    os.utime(path, (MTIME + number, MTIME + number))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch, one_by_one: None) -> list[bytes]:
    """The paths of the source that sessions read."""
    found: list[bytes] = []
    real = Source.open_file

    def open_file(source: Source, item):
        found.append(item.path)
        return real(source, item)

    monkeypatch.setattr(Source, "open_file", open_file)
    return found


# --- what is written ------------------------------------------------------------------------------------------------


def test_what_a_repository_is_made_of(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}, mode=0o755))
    sessions.backup()
    assert sorted(map(sessions.numbered, os.listdir(sessions.data))) == [
        "access_control_lists.T1.snapshot",
        "chars_to_quote",
        "current_mirror.T1.data",
        "error_log.T1.data",
        "extended_attributes.T1.snapshot",
        "file_statistics.T1.data.gz",
        "histfs",
        "increments",
        "lock.yml",
        "mirror_metadata.T1.snapshot.gz",
        "session_statistics.T1.data",
        "special_escapes",
    ]
    assert os.listdir(sessions.data / "increments") == [".keep"]
    (marker,) = sessions.data.glob("current_mirror.*")
    assert marker.read_bytes() == b"PID %d\n" % os.getpid()
    assert {path.stat().st_mode & 0o777 for path in sessions.data.rglob("*") if path.is_file()} == {0o600}
    assert sessions.data.stat().st_mode & 0o777 == 0o700
    assert sessions.repository.stat().st_mode & 0o777 == 0o755  # the root is the source's


def test_what_a_second_session_adds(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    sessions.backup()
    assert sessions.of("mirror_metadata") == ["mirror_metadata.T1.diff", "mirror_metadata.T2.snapshot.gz"]
    assert sessions.of("increments.") == ["increments.T1.dir"]  # also without a change: tools find sessions by it
    assert sessions.of("current_mirror") == ["current_mirror.T2.data"]
    assert len(sessions.of("session_statistics")) == len(sessions.of("error_log")) == 2


def test_full_lists_among_differences(sessions: Sessions) -> None:
    """docs/format.md 5.2: at most eight differences in a row."""
    build(sessions.source, Dir({"a": File(b"a")}))
    for number in range(20):
        write(sessions.source / "a", b"%d" % number, number)
        sessions.backup()
    types = "".join(name.split(".")[2][0] for name in sorted(os.listdir(sessions.data)) if name.startswith("mirror_m"))
    assert types == "dddddddd" + "s" + "dddddddd" + "s" + "d" + "s"
    sessions.assert_all_readable()


@pytest.mark.parametrize("step", [0, -1, -DAY])
def test_time_moves_forward(sessions: Sessions, step: int) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"b")
    sessions.now += step - DAY
    with pytest.raises(UsageError, match="not before now"):
        sessions.backup()
    assert sessions.of("current_mirror") == ["current_mirror.T1.data"] or step
    assert len(sessions.of("current_mirror")) == 1
    sessions.now = FIRST
    sessions.backup()
    sessions.assert_all_readable()


def test_a_second_is_enough(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    for number in range(3):
        write(sessions.source / "a", b"%d" % number, number)
        sessions.backup()
        sessions.now += 1 - DAY
    sessions.assert_all_readable()


# --- statistics -----------------------------------------------------------------------------------------------------


def test_statistics(sessions: Sessions) -> None:
    """Counted by hand."""
    build(
        sessions.source,
        Dir({"same": File(b"1"), "changed": File(b"22"), "gone": File(b"333"), "d": Dir({"x": File(b"4444")})}),
    )
    first = sessions.backup().statistics
    expected = SessionStatistics(FIRST, source_files=6, source_file_bytes=10, new_files=6, new_file_bytes=10)
    assert _counts(first) == _counts(expected._replace(total_destination_change_bytes=10))
    write(sessions.source / "changed", b"55555")
    (sessions.source / "gone").unlink()
    write(sessions.source / "new", b"666666")
    (sessions.source / "d/x").chmod(0o600)
    os.utime(sessions.source, (MTIME, MTIME))
    outcome = sessions.backup()
    sizes = [path.stat().st_size for path in (sessions.data / "increments").glob("*.*.*") if path.name != ".keep"]
    assert len(sizes) == 4  # the marker of d is not counted
    expected = SessionStatistics(
        FIRST + DAY,
        source_files=6,  # with the root
        source_file_bytes=1 + 5 + 6 + 4,
        mirror_files=6,
        mirror_file_bytes=10,
        new_files=1,
        new_file_bytes=6,
        deleted_files=1,
        deleted_file_bytes=3,
        changed_files=2,
        changed_source_bytes=5 + 4,
        changed_mirror_bytes=2 + 4,
        increment_files=3,
        increment_file_bytes=sum(sizes),
        total_destination_change_bytes=6 + 9 + sum(sizes) - 3 - 6,
    )
    assert _counts(outcome.statistics) == _counts(expected)
    assert outcome[1:] == (0, 0, False, 0, False)
    text = (sessions.data / f"session_statistics.{stamp(sessions.now)}.data").read_bytes()
    assert _counts(parse_session_statistics(text)) == _counts(expected)
    lines = gzip.decompress((sessions.data / f"file_statistics.{stamp(sessions.now)}.data.gz").read_bytes()).split(
        b"\n"
    )
    by_name = {line.split(b" ")[0]: line.split(b" ")[1:] for line in lines[2:] if line}
    assert by_name[b"same"] == [b"0", b"1", b"1", b"NA"]
    assert by_name[b"gone"][:3] == [b"1", b"NA", b"3"]
    assert by_name[b"new"] == [b"1", b"6", b"NA", b"0"]
    assert by_name[b"changed"][:3] == [b"1", b"5", b"2"]
    assert by_name[b"d/x"] == [b"1", b"4", b"4", b"NA"]


def _counts(statistics: SessionStatistics) -> SessionStatistics:
    return statistics._replace(end_time_s=0, elapsed_s=0)


def test_errors_are_recorded(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, Dir({"a\nb": File(b"a"), "b": File(b"b")}))
    sessions.backup()
    for name in ("a\nb", "b"):
        write(sessions.source / name, b"changed")

    def refuse(_source: Source, found) -> int:
        raise source_error(PermissionError(errno.EACCES, "Permission denied"), found.path, "cannot be read")

    monkeypatch.setattr(Source, "open_file", refuse)
    outcome = sessions.backup(may_report=True)
    assert outcome.source_errors == outcome.statistics.errors == 2
    log = gzip.decompress((sessions.data / f"error_log.{stamp(sessions.now)}.data.gz").read_bytes())
    assert log.count(b"\n") == 2
    assert b"UpdateError: 'b' cannot be read" in log


# --- what has changed -----------------------------------------------------------------------------------------------


def test_what_did_not_change_is_not_read(sessions: Sessions, copies: list[bytes]) -> None:
    entries: dict[str | bytes, Node] = {"a": File(b"a"), "d": Dir({"x": File(b"x")}), "l": Symlink("a"), "f": Fifo()}
    build(sessions.source, Dir(entries))
    sessions.backup()
    assert copies == [b"a", b"d/x"]
    before = read(sessions.repository)
    inodes = {path.name: path.lstat().st_ino for path in sessions.repository.iterdir()}
    sessions.backup()
    assert copies == [b"a", b"d/x"]
    assert inodes == {path.name: path.lstat().st_ino for path in sessions.repository.iterdir()}
    after = read(sessions.repository)
    assert {path: found for path, found in after.items() if b"rdiff-backup-data" not in path} == {
        path: found for path, found in before.items() if b"rdiff-backup-data" not in path
    }


def test_a_change_within_a_second_that_keeps_the_size_is_seen(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"old")}))
    os.utime(sessions.source / "a", ns=(MTIME * 10**9 + 1, MTIME * 10**9 + 1))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"new")
    os.utime(sessions.source / "a", ns=(MTIME * 10**9 + 2, MTIME * 10**9 + 2))
    sessions.backup()
    assert sessions.content(b"a", sessions.now) == b"new"
    sessions.assert_all_readable()


def test_the_mirror_has_the_nanoseconds_of_the_source(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")}), "f": Fifo()}))
    ns = MTIME * 10**9 + 123_456_789
    for name in ("a", "d/x", "f", "d", "."):
        os.utime(sessions.source / name, ns=(ns, ns))
    sessions.backup()
    assert {(sessions.repository / name).stat().st_mtime_ns for name in ("a", "d/x", "d", "f", ".")} == {ns}
    os.utime(sessions.source / "a", ns=(ns + 1, ns + 1))
    sessions.backup()
    assert (sessions.repository / "a").stat().st_mtime_ns == ns + 1


@pytest.mark.parametrize("granularity", [100, 1000, 10**6, 10**7, 10**9])
def test_a_mirror_with_coarser_times_is_not_copied_again_and_again(
    sessions: Sessions, copies: list[bytes], granularity: int
) -> None:
    """File systems cut times off after a microsecond, a hundredth of a second, ..."""
    build(sessions.source, Dir({"a": File(b"a")}))
    ns = MTIME * 10**9 + 123_456_789
    os.utime(sessions.source / "a", ns=(ns, ns))
    sessions.backup()
    coarse = ns // granularity * granularity
    os.utime(sessions.repository / "a", ns=(coarse, coarse))
    (sessions.data / "histfs/ledger").unlink()
    sessions.backup()
    assert copies == [b"a"]


def test_new_time_and_same_content_needs_no_increment(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "d": Dir({"x": File(TEXT)})}))
    sessions.backup()
    inode = (sessions.repository / "a").stat().st_ino
    os.utime(sessions.source / "a", (MTIME + 5, MTIME + 5))
    (sessions.source / "d/x").chmod(0o600)
    sessions.backup()
    assert sessions.increments() == {"d.T1.dir"}
    assert (sessions.repository / "a").stat().st_ino == inode
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
def test_owners(sessions: Sessions) -> None:
    entries: dict[str | bytes, Node] = {
        "a": File(b"a", owner=(1, 2), mode=0o4755),
        "d": Dir({"x": File(owner=(3, 4_000_000_000))}, owner=(5, 6)),
        "l": Symlink("a", owner=(7, 8)),
        "f": Fifo(owner=(9, 10)),
        "c": Device("c", 1, 3, owner=(11, 12)),
    }
    build(sessions.source, Dir(entries))
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    for name in ("a", "d", "l", "f", "c", "."):
        os.chown(sessions.source / name, 77, 78, follow_symlinks=False)
    (sessions.source / "a").chmod(0o2755)
    sessions.backup()
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


SOME: dict[str, Node] = {
    "file": File(b"some file"),
    "empty": File(),
    "directory": Dir({"in": File(b"in"), "below": Dir({"deep": File(b"deep")})}),
    "symlink": Symlink("somewhere"),
    "fifo": Fifo(),
    "socket": Socket(),
}
if is_root():
    SOME |= {"device": Device("b", 7, 300)}


@pytest.mark.parametrize("old", [None, *SOME])
@pytest.mark.parametrize("new", [None, *SOME])
def test_every_type_becomes_every_other(sessions: Sessions, old: str | None, new: str | None) -> None:
    """docs/format.md 6.2, and back again."""
    for step, kind in enumerate((old, new, old)):
        shutil.rmtree(sessions.source, ignore_errors=True)
        entries: dict[str | bytes, Node] = {"before": File(b"1"), "q": Dir(), "z": File(b"2")}
        if kind is not None:
            entries["p"] = SOME[kind]
        build(sessions.source, Dir(entries, mtime=MTIME + step))
        sessions.backup()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_changes_of_one_kind(sessions: Sessions) -> None:
    """Other targets, other devices, other attributes of what has no content."""
    entries: dict[str | bytes, Node] = {"l": Symlink("a"), "f": Fifo(), "s": Socket(), "d": Dir()}
    changed: dict[str | bytes, Node] = {
        "l": Symlink("b"),
        "f": Fifo(mode=0o600),
        "s": Socket(mtime=5),
        "d": Dir(mtime=7),
    }
    if is_root():
        entries |= {"c": Device("c", 1, 3), "b": Device("b", 7, 1)}
        changed |= {"c": Device("c", 1, 5), "b": Device("b", 7, 1, mode=0o666)}
    for literal in (entries, changed):
        shutil.rmtree(sessions.source, ignore_errors=True)
        build(sessions.source, Dir(literal))
        sessions.backup()
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()
    snapshots = {"c.T1.snapshot", "l.T1.snapshot"} if is_root() else {"l.T1.snapshot"}
    assert {name for name in sessions.increments() if "snapshot" in name} == snapshots


# --- names ----------------------------------------------------------------------------------------------------------


LENGTHS = (1, 205, 206, 221, 255)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_names_of_all_lengths(sessions: Sessions, kind: str) -> None:
    build(sessions.source, Dir({"x" * length: SOME[kind] for length in LENGTHS}))
    sessions.backup()
    for length in LENGTHS:
        path = sessions.source / ("x" * length)
        if kind == "directory":
            write(path / "in", b"changed")
            write(path / ("y" * length), b"long below long")
        else:
            path.unlink()
    sessions.backup()
    shutil.rmtree(sessions.source)
    build(sessions.source, Dir({"x" * length: File(b"a file") for length in LENGTHS}))
    sessions.backup()
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)
    numbers = {name.partition(".")[0] for name in os.listdir(sessions.data / "long_filename_data")}
    assert "next_free" in numbers


def test_a_name_keeps_its_number_while_it_lives(sessions: Sessions) -> None:
    name = "x" * 220
    build(sessions.source, Dir({name: File(TEXT)}))
    sessions.backup()
    numbers = [sessions.entry(name.encode()).alternate_increment]
    for number, content in enumerate((b"changed", None, b"again"), 1):
        if content is None:
            (sessions.source / name).unlink()
        else:
            write(sessions.source / name, content, number)
        sessions.backup()
        if content is not None:
            numbers.append(sessions.entry(name.encode()).alternate_increment)
    assert numbers == [1, 1, 2]
    sessions.assert_all_readable()


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_directory_of_long_names_is_quoted_unless_it_is_there_unquoted(sessions: Sessions, is_plain: bool) -> None:
    quoted, plain = sessions.data / "long_filen;097me_d;097t;097", sessions.data / "long_filename_data"
    build(sessions.source, Dir({"x" * 220: File(TEXT), "y" * 60: File(TEXT), "a" * 100: File(TEXT)}))
    sessions.backup(naming=Naming(b"a"))
    if is_plain:
        quoted.rename(plain)
    for number, content in enumerate((b"changed", b"again"), 1):
        for name in os.listdir(sessions.source):
            write(sessions.source / name, content, number)
        write(sessions.source / ("z" * (60 + number)), content)
        sessions.backup()
    sessions.assert_all_readable()
    assert (quoted.exists(), plain.exists()) == (not is_plain, is_plain)
    assert len({name.partition(".")[0] for name in os.listdir(plain if is_plain else quoted)}) == 6  # and the counter


def test_the_counter_of_numbers_survives_its_file(sessions: Sessions) -> None:
    build(sessions.source, Dir({"x" * 220: File(b"x")}))
    sessions.backup()
    write(sessions.source / ("x" * 220), b"new")
    sessions.backup()
    counter = sessions.data / "long_filename_data/next_free"
    assert counter.read_bytes() == b"2"
    for number, content in enumerate((None, b"", b"what?", b"1"), 1):
        counter.unlink()
        if content is not None:
            counter.write_bytes(content)
        for foreign in ("7x", "1a.b", "x1", "\u0663"):
            (counter.parent / foreign).touch()
        write(sessions.source / (f"{number}" * 220), b"new")
        sessions.backup()
        assert sessions.entry(f"{number}".encode() * 220).alternate_increment == number + 1
        write(sessions.source / (f"{number}" * 220), b"newer", number + 10)
        sessions.backup()
    sessions.assert_all_readable()


ODD = (b"\n", b"\\", b"\\n", b" ", b"\xff\xfe", b"a\rb", b"File x", b"-", b"...", b"rdiff-backup.tmp.1", b"q")
LIKE_INCREMENTS = tuple(b"q.%b.%b" % (stamp(FIRST).encode(), type_) for type_ in (b"dir", b"diff.gz", b"snapshot"))


def test_odd_names(sessions: Sessions) -> None:
    build(sessions.source, Dir({name: File(name) for name in (*ODD, *LIKE_INCREMENTS)}))
    sessions.backup()
    for name in (*ODD, *LIKE_INCREMENTS):
        write(Path(os.fsdecode(os.fsencode(sessions.source) + b"/" + name)), b"changed")
    sessions.backup()
    shutil.rmtree(sessions.source)
    build(sessions.source, Dir())
    sessions.backup()
    sessions.assert_all_readable()


@pytest.mark.parametrize("with_file", [True, False])
def test_a_directory_with_the_name_of_an_increment_that_is_needed(sessions: Sessions, with_file: bool) -> None:
    """Whoever may write in the source knows the times of sessions, and must not be able to stop them."""
    build(sessions.source, Dir({"q": Dir({"x": File(b"x")})}))
    sessions.backup()
    name = f"q.{stamp(FIRST)}.dir"
    write(sessions.source / "q/x", b"changed")
    if with_file:
        (sessions.source / name).mkdir()
        write(sessions.source / name / "y", b"y")
    sessions.backup()
    (sessions.source / name).mkdir(exist_ok=True)
    write(sessions.source / name / "y", b"yy", 2)
    (sessions.source / name / "z").mkdir()
    write(sessions.source / name / "z/zz", b"z", 2)
    sessions.backup()
    write(sessions.source / name / "z/zz", b"zz", 3)
    write(sessions.source / "q/x", b"changed again", 3)
    sessions.backup()
    shutil.rmtree(sessions.source / name)
    sessions.backup()
    sessions.assert_all_readable()


def test_quoted_names(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository whose file system has no capital letters; long names below long names."""
    quote_names(monkeypatch, b"A-Z")
    long = "L" * 100
    build(sessions.source, Dir({"Upper": File(b"1"), long: Dir({"In": File(TEXT), "D": Dir({long: File(b"2")})})}))
    sessions.backup()
    write(sessions.source / "Upper", b"changed")
    write(sessions.source / long / "In", TEXT[100:])
    write(sessions.source / long / "D" / long, b"changed")
    write(sessions.source / long / "New", b"new")
    sessions.backup()
    shutil.rmtree(sessions.source / long)
    (sessions.source / long).symlink_to("now a link")
    sessions.backup()
    (sessions.source / long).unlink()
    sessions.backup()
    sessions.assert_all_readable()
    assert not any(char.isupper() for name in os.listdir(sessions.repository) for char in name)


def test_a_deep_tree(deep: Path) -> None:
    """Deeper than a path can say, in the source, the mirror and the increments."""
    sessions = Sessions(deep)
    sessions.source.mkdir()
    path = make_deep(sessions.source, 1050, b"deep")
    before = open_descriptors()
    for number in range(3):
        with WritableTree.open(sessions.source) as tree:
            if number:
                tree.unlink(path + b"/file")
            tree.write_file(path + b"/file", [b"%d" % number * (number + 1)])
        sessions.now += DAY
        backup(sessions.source, sessions.repository, now=sessions.now, report=_fail)
    for number in range(3):
        assert sessions.content(path + b"/file", FIRST + number * DAY) == b"%d" % number * (number + 1)
    assert open_descriptors() == before


def _fail(error: Exception) -> None:
    raise AssertionError from error


# --- increments -----------------------------------------------------------------------------------------------------


def test_increments_are_packed_unless_their_content_is(sessions: Sessions) -> None:
    names = ("a", "a.JPG", "a.tar.gz", "gz", "a.gz.txt", "odd\n.gz")
    build(sessions.source, Dir({name: File(TEXT) for name in names}))
    sessions.backup()
    for name in names:
        write(sessions.source / name, TEXT[10:])
    sessions.backup()
    assert sessions.increments() == {
        "a.T1.diff.gz",
        "a.JPG.T1.diff",
        "a.tar.gz.T1.diff",
        "gz.T1.diff.gz",
        "a.gz.txt.T1.diff.gz",
        "odd\n.gz.T1.diff",
    }
    sessions.assert_all_readable()


def test_an_increment_that_an_undone_session_left_makes_way(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"old"), "link": Symlink("old")}))
    sessions.backup()
    left = [
        sessions.data / "increments" / name.format(time=format_time(sessions.now).decode())
        for name in ("new.{time}.missing", "a.{time}.diff.gz", "link.{time}.snapshot")
    ]
    for path in left:
        path.write_bytes(b"left behind")
    (sessions.source / "new").write_bytes(b"new")
    (sessions.source / "a").write_bytes(b"changed")
    (sessions.source / "link").unlink()
    sessions.backup()
    sessions.backup()
    sessions.assert_all_readable()
    assert [path.is_file() and path.read_bytes() == b"left behind" for path in left] == [False] * 3


def test_an_increment_carries_the_time_of_its_version(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(TEXT, mode=0o4755), "gone": File(b"gone")}))
    ns = MTIME * 10**9 + 42
    os.utime(sessions.source / "a", ns=(ns, ns))
    sessions.backup()
    write(sessions.source / "a", b"changed")
    (sessions.source / "gone").unlink()
    sessions.backup()
    (path,) = (sessions.data / "increments").glob("a.*")
    assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o7777) == (ns, 0o755)
    (path,) = (sessions.data / "increments").glob("gone.*")
    assert path.stat().st_mtime_ns == MTIME * 10**9


def test_a_small_change_of_a_large_file_is_a_small_increment(sessions: Sessions) -> None:
    data = os.urandom(1_000_000)
    build(sessions.source, Dir({"a": File(data)}))
    sessions.backup()
    write(sessions.source / "a", data[:500_000] + b"inserted" + data[500_000:])
    outcome = sessions.backup()
    assert outcome.statistics.increment_file_bytes < 3000
    sessions.assert_all_readable()


@pytest.mark.parametrize("size", [0, 1, 10_239, 10_240, 10**6, 10**9, 10**15])
def test_blocks_of_signatures(size: int) -> None:
    length = block_len(size)
    assert length >= 64
    assert length % 16 == 0
    assert size / length <= 2 * max(160, length)


def test_holes_stay_holes(sessions: Sessions) -> None:
    build(sessions.source, Dir())
    with (sessions.source / "sparse").open("wb") as file:
        file.truncate(50 << 20)
    sessions.backup()
    status = (sessions.repository / "sparse").stat()
    assert status.st_size == 50 << 20
    assert status.st_blocks * 512 < 1 << 20


# --- damage in the mirror -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["lost", "cut", "directory", "link"])
@pytest.mark.parametrize("then", ["same", "changed", "gone", "retyped"])
def test_a_damaged_mirror_file_is_told_and_healed(sessions: Sessions, damage: str, then: str) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "b": File(b"b")}))
    sessions.backup()
    write(sessions.source / "a", TEXT[100:])
    sessions.backup()
    path = sessions.repository / "a"
    path.unlink()
    if damage == "cut":
        path.write_bytes(b"cut")
    elif damage == "directory":
        path.mkdir()
    elif damage == "link":
        path.symlink_to("b")
    if then == "changed":
        write(sessions.source / "a", TEXT[:100], 2)
    elif then in ("gone", "retyped"):
        (sessions.source / "a").unlink()
        if then == "retyped":
            (sessions.source / "a").mkdir()
    sessions.backup(may_report=True)
    assert {(error.path, type(error)) for error in sessions.reported} == {(b"a", DamagedError)}
    sessions.assert_readable(sessions.now)
    sessions.assert_mirror_is(sessions.now)
    for time in sorted(sessions.states)[:2]:
        if then == "same":  # what the source still has is history again
            sessions.assert_readable(time)
        else:
            with pytest.raises(DamagedError):
                sessions.content(b"a", time)
        assert sessions.content(b"b", time) == b"b"


def test_a_lost_mirror_directory_is_made_again(sessions: Sessions) -> None:
    build(sessions.source, Dir({"d": Dir({"x": File(b"x"), "e": Dir({"y": File(b"y")})})}))
    sessions.backup()
    shutil.rmtree(sessions.repository / "d")
    sessions.backup(may_report=True)
    assert {error.path for error in sessions.reported} == {b"d", b"d/e", b"d/x", b"d/e/y"}
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


def test_foreign_files_in_the_way_are_replaced(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    build(sessions.repository / "new", Dir({"foreign": File()}))
    (sessions.repository / "new2").write_bytes(b"foreign")
    (sessions.repository / "link").symlink_to("../../outside")
    for name in ("new", "link"):
        write(sessions.source / name, b"mine")
    (sessions.source / "new2").mkdir()
    (sessions.source / "new3").mkdir()
    build(sessions.repository / "new3", Dir({"foreign": File()}))
    os.mkfifo(sessions.source / "fifo")
    (sessions.repository / "fifo").mkdir()
    sessions.backup()
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


@pytest.mark.parametrize("damage", ["name", "end", "record", "order"])
def test_nothing_changes_if_the_last_list_is_damaged(sessions: Sessions, damage: str) -> None:
    """Its files would look new, and what the mirror holds of them like a stranger's."""
    build(sessions.source, Dir({name: File(name.encode()) for name in ("photo_a", "photo_c", "photo_e")}))
    sessions.backup()
    sessions.backup()
    (path,) = sessions.data.glob("mirror_metadata.*.snapshot.gz")
    packed = path.read_bytes()
    text = gzip.decompress(packed)
    if damage == "name":  # a flipped bit: only the sum tells
        path.write_bytes(gzip.compress(text.replace(b"photo_c", b"photo_b"))[:-8] + packed[-8:])
    elif damage == "end":
        path.write_bytes(packed[:-9])
    elif damage == "record":
        path.write_bytes(gzip.compress(text.replace(b"File photo_c", b"Fil_ photo_c")))
    else:
        path.write_bytes(gzip.compress(text.replace(b"photo_c", b"photo_f")))
    for name in ("photo_a", "photo_c", "photo_e"):
        write(sessions.source / name, b"changed")
    before = read(sessions.repository)
    for _ in range(2):
        with pytest.raises(DamagedError, match="nothing was changed"):
            sessions.backup()
    assert read(sessions.repository).keys() == before.keys()
    assert [(sessions.repository / f"photo_{name}").read_text() for name in "ace"] == ["photo_a", "photo_c", "photo_e"]
    path.write_bytes(packed)
    sessions.backup()
    sessions.now -= 2 * DAY  # of the refused ones
    sessions.assert_all_readable()


@pytest.mark.parametrize("name", ["x", "l", "new"])
def test_an_increments_directory_that_is_no_directory_stops_the_session(sessions: Sessions, name: str) -> None:
    """The last version must not be taken for lost only because it cannot be kept."""
    build(sessions.source, Dir({"d": Dir({"x": File(TEXT), "y": File(b"y"), "l": Symlink("x")})}))
    sessions.backup()
    (sessions.data / "increments/d").write_bytes(b"foreign")
    if name == "new":
        (sessions.source / "d/new").touch()
    else:
        (sessions.source / "d" / name).unlink()
    for _ in range(2):
        with pytest.raises(StorageError):
            sessions.backup()
        assert (sessions.repository / "d/x").read_bytes() == TEXT
        assert (sessions.repository / "d/l").is_symlink()
        sessions.assert_all_readable()


@pytest.mark.parametrize(
    "pair",
    [{"A": File(b"1"), "a": File(b"2")}, {"D": Dir({"x": File()}), "d": Dir()}, {"L": Symlink("x"), "l": Symlink("y")}],
    ids=["files", "directories", "links"],
)
def test_a_file_system_that_takes_two_names_for_one_is_refused(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, pair: dict[str | bytes, Node], one_by_one: None
) -> None:
    """Upper and lower case, say: one file would replace the other, and be taken for it."""

    def on_disk(path: bytes) -> bytes:
        for name in os.listdir(os.fsencode(sessions.repository)):
            if name.lower() == path.lower():
                return name
        return path

    def fold(method):
        return lambda tree, path, *arguments: method(tree, on_disk(path), *arguments)

    for name in ("create_file", "stat", "make_directory", "make_symlink", "set_attributes"):
        monkeypatch.setattr(WritableTree, name, fold(getattr(WritableTree, name)))
    build(sessions.source, Dir(pair))
    with pytest.raises(StorageError, match="two names"):
        sessions.backup(naming=Naming(b""))


# --- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("nth", [2, 4, 9])
def test_trouble_with_the_disk_stops_and_the_next_session_recovers(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, problem: int, nth: int
) -> None:
    build(sessions.source, Dir({name: File(TEXT) for name in "abcdef"}))
    sessions.backup()
    for name in "abc":
        write(sessions.source / name, TEXT[50:])
    count = 0  # the first file is the marker
    real = files.write_blocks

    def full(*arguments, **options) -> int:
        nonlocal count
        count += 1
        if count >= nth:
            raise OSError(problem, os.strerror(problem))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        for module in ("copying", "files", "records"):
            patch.setattr(f"histfs.store.{module}.write_blocks", full)
        with pytest.raises(StorageError) as caught:
            sessions.backup()
    assert caught.value.path is not None or nth == 9
    assert len(sessions.of("current_mirror")) == 2
    sessions.assert_all_readable()
    assert sessions.backup().regressed
    sessions.assert_all_readable()


def test_a_failed_barrier_stops_before_anything_old_is_changed(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "b": File(b"b")}))
    sessions.backup()
    write(sessions.source / "a", b"new")
    (sessions.source / "b").unlink()

    def fail(_tree: WritableTree) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(WritableTree, "sync", fail)
        with pytest.raises(StorageError):
            sessions.backup()
    assert (sessions.repository / "a").read_bytes() == TEXT
    assert (sessions.repository / "b").read_bytes() == b"b"


@pytest.mark.parametrize("target", ["file", "foreign", "no/where", "dangling"])
def test_what_is_no_place_for_a_repository(sessions: Sessions, target: str) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    place = sessions.source.parent
    (place / "file").touch()
    build(place / "foreign", Dir({"precious": File(b"precious")}))
    (place / "dangling").symlink_to("nothing")
    sessions.repository = place / target
    before = open_descriptors()
    with pytest.raises(NotARepositoryError):
        sessions.backup()
    assert (place / "foreign/precious").read_bytes() == b"precious"
    assert os.listdir(place / "foreign") == ["precious"]
    assert open_descriptors() == before


def test_an_empty_directory_becomes_a_repository(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.repository.mkdir()
    sessions.backup()
    sessions.assert_all_readable()


@pytest.mark.parametrize("what", ["nothing", "file"])
def test_what_is_no_source(sessions: Sessions, what: str) -> None:
    if what == "file":
        sessions.source.touch()
    with pytest.raises(UsageError):
        backup(sessions.source, sessions.repository, now=FIRST, report=_fail)
    assert not sessions.repository.exists()


def test_a_session_leaves_no_descriptor_open(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"x": File(b"x")})}))
    before = open_descriptors()
    for number in range(3):
        write(sessions.source / "a", b"%d" % number, number)
        sessions.backup()
    assert open_descriptors() == before


def test_many_changes_are_many_batches(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", 3)
    build(sessions.source, Dir({f"d{n}": Dir({f"f{m}": File(b"%d" % m) for m in range(4)}) for n in range(4)}))
    sessions.backup()
    for path in sessions.source.rglob("f*"):
        write(path, b"changed", 1)
    shutil.rmtree(sessions.source / "d2")
    (sessions.source / "d2").symlink_to("d1")
    barriers = []
    monkeypatch.setattr(WritableTree, "sync", lambda tree: barriers.append(tree))
    sessions.backup()
    assert len(barriers) > 5
    sessions.assert_all_readable()
    sessions.assert_mirror_is(sessions.now)


def test_an_entry_of_a_mac_is_carried_until_it_changes(sessions: Sessions) -> None:
    """Fields that this program does not write do not make a file look changed for ever."""
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    (path,) = sessions.data.glob("mirror_metadata.*.snapshot.gz")
    text = gzip.decompress(path.read_bytes()).replace(b"  Size 1\n", b"  Size 1\n  ResourceFork 00\n")
    path.write_bytes(gzip.compress(text))
    outcome = sessions.backup()
    assert outcome.statistics.changed_files == 0
    with sessions.open() as repository:
        found: list[Entry] = list(repository.snapshot(FIRST).entries())
    assert found[1].resource_fork == b"00"


def test_the_outcome_says_that_a_session_was_undone(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    assert not sessions.backup().regressed
    (sessions.data / f"current_mirror.{stamp(sessions.now + DAY)}.data").touch()
    sessions.now += DAY
    assert sessions.backup().regressed
    assert not sessions.backup().regressed


def test_callers_may_report_what_they_like(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the callback passes through, and the session is undone by the next."""
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    write(sessions.source / "a", b"bb")
    reports: list[Callable[..., None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(Source, "open_file", lambda _source, found: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sessions.backup()
    assert reports == []
    assert sessions.backup().regressed
    sessions.assert_all_readable()


@pytest.mark.parametrize("which", ["source", "repository"])
def test_links_in_a_circle(sessions: Sessions, which: str) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    loop = sessions.source.with_name("loop")
    loop.symlink_to("loop")
    source, repository = (loop, sessions.repository) if which == "source" else (sessions.source, loop)
    with pytest.raises((StorageError, UsageError, NotARepositoryError)):
        backup(source, repository, now=FIRST, report=_fail)


@pytest.mark.skipif(is_root(), reason="root may read everything")
def test_a_repository_in_a_directory_that_cannot_be_listed(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    place = sessions.source.with_name("place")
    place.mkdir()
    place.chmod(0o300)
    sessions.repository = place / "repository"
    sessions.backup()
    sessions.assert_all_readable()
    place.chmod(0o700)


@pytest.mark.parametrize("problem", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_empty_files_stand_for_what_cannot_be_made(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    """Devices for an ordinary user, links on some file systems: the list has the truth (docs/format.md 4.5)."""

    def refuse(_tree: WritableTree, path: bytes, _what: object) -> None:
        raise OSError(problem, os.strerror(problem), path)

    monkeypatch.setattr(WritableTree, "make_special", refuse)
    monkeypatch.setattr(WritableTree, "make_symlink", refuse)
    some: dict[str | bytes, Node] = {"f": Fifo(), "l": Symlink("a"), "s": Socket(), "d": Dir({"l": Symlink("b")})}
    others: dict[str | bytes, Node] = {"f": Fifo(mode=0o600), "l": Symlink("b"), "s": File(b"file"), "d": Symlink("x")}
    for entries in (some, others, {}, some):
        shutil.rmtree(sessions.source, ignore_errors=True)
        build(sessions.source, Dir(entries))
        sessions.backup()
        for name in entries:
            assert isinstance(entries[name], Dir | File) or (sessions.repository / str(name)).stat().st_size == 0
    sessions.assert_all_readable()
    (sessions.data / f"current_mirror.{stamp(sessions.now + DAY)}.data").touch()
    sessions.now += DAY
    assert sessions.backup().regressed
    sessions.assert_all_readable()
