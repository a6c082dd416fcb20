"""Undoing a session by what it has noted: nothing else is looked at, and what is left is what it is when all is.

Each broken repository is undone twice: where it is, by the notes; and in a copy, in which they are not believed, as the
marker there is another file.
"""

import gzip
import os
import stat
import subprocess
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histfs.errors import HistfsError
from histfs.store import batch, files, touched
from histfs.store.backup import backup
from histfs.store.files import WritableTree
from histfs.store.format.touched import HEADER_BYTES, NAME, TREE, Header, Note, format_header, format_note, parse_notes
from histfs.store.layout import INCREMENTS, Layout
from histfs.store.listing import Listing
from histfs.store.regress import regress
from histfs.store.touched import TOUCHED, Touched
from tests.comparison import Attributes, difference, read
from tests.store import rich
from tests.store.killing import Killer
from tests.store.sessions import DAY, Sessions, quote_names, stamp
from tests.trees import MTIME, Dir, File, Link, build

_DATA = b"rdiff-backup-data/"
# What says nothing: times of directories that no list has, and who was there last.
_OWN_FILES = (b"lock.yml", b"histfs/ledger.new", b"long_filename_data/next_free")


class Ways:
    """Counts how sessions were undone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.short = 0
        self.records = 0
        resume, build = touched.Notes.resume, Listing.build.__func__  # type: ignore[attr-defined]

        def count(notes: touched.Notes, found: Touched) -> None:
            self.short += 1
            resume(notes, found)

        def counted(cls: type[Listing], entries: object) -> Listing:
            listing: Listing = build(cls, entries)
            self.records = sum(1 for _ in listing.nodes())
            return listing

        monkeypatch.setattr(touched.Notes, "resume", count)
        monkeypatch.setattr(Listing, "build", classmethod(counted))


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def fail(error: HistfsError) -> None:
    raise AssertionError from error


def prepare(sessions: Sessions, *, links: bool) -> None:
    """Three sessions, and a source for the fourth. Without `links`, nothing that takes the long way for sure."""
    source = sessions.source if links else sessions.source.parent / "rich"
    for number, step in enumerate((rich.first, rich.second, rich.third, rich.fourth)):
        step(source)
        if not links:
            copy_without_links(source, sessions.source)
        if number < 3:
            sessions.backup()


def copy_without_links(origin: Path, source: Path) -> None:
    """All hard links become files of their own, and names that are too long for increments are left out."""
    subprocess.run(["rm", "-rf", source], check=True)
    subprocess.run(["cp", "-a", "--no-preserve=links", origin, source], check=True)
    for name in os.listdir(source):
        if len(name) > 200:
            subprocess.run(["rm", "-rf", source / name], check=True)
    os.utime(source, (MTIME, MTIME))


def break_off(original: Sessions, killer: Killer, at: int | None) -> Sessions:
    """The next session in a copy of the repository, killed."""
    place = original.repository.parent / "broken"  # in the one that was broken before, if this is one
    subprocess.run(["rm", "-rf", place], check=True)
    place.mkdir()
    subprocess.run(["cp", "-a", original.repository, place], check=True)
    broken = Sessions(place)
    broken.source = original.source
    broken.states = dict(original.states)
    broken.now = original.now + DAY
    killer.run(at, lambda: backup(broken.source, broken.repository, now=broken.now, report=fail))
    return broken


def copied(broken: Sessions, name: str) -> Path:
    place = broken.repository.parent.parent / name
    subprocess.run(["rm", "-rf", place], check=True)
    subprocess.run(["cp", "-a", broken.repository, place], check=True)
    return place


def found(repository: Path) -> dict[bytes, object]:
    """All of a repository that means something, directories of increments without increments left out.

    Lists are written by each way at a time of its own, and directories change with what is in them.
    """
    manifest = read(repository)
    kept = {os.path.dirname(path) for path, what in manifest.items() if what.type != "directory"}
    kept |= {above for path in kept for above in _above(path)}
    return {
        path: what._replace(mtime=0) if _time_says_nothing(path, what) else what
        for path, what in manifest.items()
        if path not in {_DATA + name for name in _OWN_FILES}
        and (not path.startswith(_DATA) or what.type != "directory" or path in kept)
    }


def _time_says_nothing(path: bytes, what: Attributes) -> bool:
    if what.type == "directory":
        return path.startswith(_DATA[:-1])
    return path.startswith(_DATA) and not path.startswith(_DATA + b"increments")


def _above(path: bytes) -> list[bytes]:
    above = []
    while path:
        path = os.path.dirname(path)
        above.append(path)
    return above


def assert_both_ways_are_one(original: Sessions, killer: Killer, ways: Ways, points: range) -> int:
    """At each point; how often the notes were believed."""
    ways.short = 0
    for at in points:
        broken = break_off(original, killer, at)
        other = copied(broken, "other")
        was = ways.short
        regress(other, report=fail)
        assert ways.short == was, "the notes of another repository were believed"
        was_broken = regress(broken.repository, report=fail) is not None
        assert difference(found(other), found(broken.repository)) == [], at  # type: ignore[arg-type]
        assert not was_broken or not (broken.data / "histfs/touched").exists()
    return ways.short


def all_points(original: Sessions, killer: Killer) -> range:
    break_off(original, killer, None)
    return range(1, killer.changes + 1)


# --- both ways are one ----------------------------------------------------------------------------------------------


def test_both_ways_leave_the_same(sessions: Sessions, killer: Killer, ways: Ways) -> None:
    prepare(sessions, links=False)
    points = all_points(sessions, killer)[5::43]
    assert assert_both_ways_are_one(sessions, killer, ways, points) > len(points) // 2


def test_both_ways_leave_the_same_also_of_links(sessions: Sessions, killer: Killer, ways: Ways) -> None:
    prepare(sessions, links=True)
    assert_both_ways_are_one(sessions, killer, ways, all_points(sessions, killer)[9::83])


@pytest.mark.long
@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_both_ways_leave_the_same_at_every_point(
    sessions: Sessions, killer: Killer, ways: Ways, monkeypatch: pytest.MonkeyPatch, part: int, links: bool
) -> None:
    monkeypatch.setattr(batch, "MAX_CHANGES", (1000, 5, 1, 30)[part])
    prepare(sessions, links=links)
    assert_both_ways_are_one(sessions, killer, ways, all_points(sessions, killer)[part::4])


def test_a_short_recovery_that_is_killed_is_repeated(sessions: Sessions, killer: Killer, ways: Ways) -> None:
    prepare(sessions, links=False)
    points = all_points(sessions, killer)
    for at in points[len(points) // 2 :: len(points) // 5]:
        broken = break_off(sessions, killer, at)
        expected = copied(broken, "other")
        regress(expected, report=fail)
        ways.short, step = 0, 0
        while killer.run(step := step + 7, lambda broken=broken: regress(broken.repository, report=fail)):  # type: ignore[misc]
            pass
        assert difference(found(expected), found(broken.repository)) == [], at  # type: ignore[arg-type]
        broken.now -= DAY
        broken.assert_all_readable()


_NAMES = st.sampled_from(["a", "b", "d/c", "d/e", "d/f/g", "h/i"])
_STEPS = st.lists(st.tuples(_NAMES, st.sampled_from(["write", "remove", "touch", "turn", "move"])), max_size=8)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_STEPS, min_size=2, max_size=3), share=st.floats(0, 1), changes=st.integers(1, 10))
def test_both_ways_leave_the_same_of_random_sessions(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[str, str]]], share: float, changes: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(batch, "MAX_CHANGES", changes)
        killer, ways = Killer(monkeypatch), Ways(monkeypatch)
        sessions = Sessions(tmp_path_factory.mktemp("random"))
        build(sessions.source, Dir({"a": File(b"a" * 20_000), "d": Dir({"c": File(b"c"), "f": Dir()}), "h": Dir()}))
        sessions.backup()
        for number, some in enumerate(steps):
            for name, what in some:
                change(sessions.source, name, what, number)
            if number < len(steps) - 1:
                sessions.backup()
        points = all_points(sessions, killer)
        at = points[min(len(points) - 1, int(share * len(points)))]
        assert_both_ways_are_one(sessions, killer, ways, range(at, at + 1))


def change(source: Path, name: str, what: str, number: int) -> None:
    path = source / name
    if what == "remove" or (what == "turn" and path.exists()):
        subprocess.run(["rm", "-rf", path], check=True)
    for above in reversed(path.relative_to(source).parents[:-1]):
        if (source / above).is_file():
            (source / above).unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "touch" and path.exists():
        os.utime(path, (MTIME + number, MTIME + number))
    elif what == "move" and path.exists() and not (source / "moved").exists():
        path.rename(source / "moved")
    elif what == "turn":
        build(path, Dir({"in": File(name.encode()), "below": Dir()}))
    elif what == "write" and not path.is_dir():
        path.write_bytes(name.encode() * 4000 + b"%d" % number)
        os.utime(path, (MTIME + number, MTIME + number))


# --- everything is noted --------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    inode: int
    mode: int
    times: tuple[int, int]


def seen(repository: Path) -> dict[bytes, Seen]:
    """Of the mirror and of increments; of directories what does not change with what is in them."""
    result = {}
    for place, directories, names in os.walk(os.fsencode(repository)):
        below = os.path.relpath(place, os.fsencode(repository))
        for name in [*directories, *names]:
            path = os.path.normpath(os.path.join(below, name))
            status = os.lstat(os.path.join(place, name))
            is_directory = stat.S_ISDIR(status.st_mode)
            if path.startswith(_DATA[:-1]) and (is_directory or not path.startswith(_DATA + b"increments/")):
                continue
            times = (0, 0) if is_directory else (status.st_mtime_ns, status.st_ctime_ns)
            result[path] = Seen(status.st_ino, status.st_mode, times)
    return result


def noted(sessions: Sessions) -> tuple[set[bytes], set[bytes]] | None:
    """The names and the trees that the notes have, whoever believes them."""
    try:
        data = (sessions.data / "histfs/touched").read_bytes()
    except FileNotFoundError:
        return None
    names: set[bytes] = set()
    trees: set[bytes] = set()
    at = HEADER_BYTES
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "little"), data[at + 4 : at + 5]
        path = data[at + 9 : at + 9 + size]
        (trees if kind == TREE else names).add(path)
        at += 9 + size
    return names, trees


def test_whatever_changes_was_noted(sessions: Sessions, killer: Killer) -> None:
    """Also what is copied in C: what has changed at any moment has its note."""
    prepare(sessions, links=False)
    checked = 0
    for at in all_points(sessions, killer)[::17]:
        place = break_off(sessions, killer, 1)  # before anything
        before = seen(place.repository)
        killer.run(at, lambda place=place: backup(place.source, place.repository, now=place.now, report=fail))  # type: ignore[misc]
        after = seen(place.repository)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        notes = noted(place)
        if notes is None:
            with place.open() as repository:
                is_over = repository.unfinished() is None
            assert is_over or not changed, at
            continue
        names, trees = notes
        assert {path for path in changed - names if not touched.is_in(path, trees)} == set(), at
        checked += len(changed)
    assert checked > 500


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: os.close(tree.create_file(b"d/new")),
        lambda tree: tree.make_directory(b"d/new"),
        lambda tree: tree.make_symlink(b"d/new", b"x"),
        lambda tree: tree.link(b"d/file", b"d/new"),
        lambda tree: tree.rename(b"d/file", b"d/new"),
        lambda tree: tree.unlink(b"d/file"),
        lambda tree: tree.remove_directory(b"d/empty"),
        lambda tree: tree.remove_tree(b"d"),
        lambda tree: os.close(tree.open_to_change(b"d/file")),
        lambda tree: os.close(tree.open_to_append(b"d/file")),
    ],
)
def test_every_change_is_announced_before_it_is_made(tmp_path: Path, change: Callable[[WritableTree], None]) -> None:
    build(tmp_path / "t", Dir({"d": Dir({"file": File(b"x"), "empty": Dir()})}))
    before = read(tmp_path / "t")
    announced = []

    def announce(path: bytes, _is_tree: bool) -> None:
        assert difference(before, read(tmp_path / "t")) == []
        announced.append(path)
        if len(announced) == 2:
            raise InterruptedError

    with WritableTree.open(tmp_path / "t") as tree:
        tree.before_change = lambda path, _: announced.append(path)
        change(tree)
    assert announced
    build(tmp_path / "u", Dir({"d": Dir({"file": File(b"x"), "empty": Dir()})}))
    before = read(tmp_path / "u")

    def refuse(_path: bytes, _is_tree: bool) -> None:
        raise InterruptedError

    with WritableTree.open(tmp_path / "u") as tree:
        tree.before_change = refuse
        with pytest.raises(InterruptedError):
            change(tree)
    assert difference(before, read(tmp_path / "u")) == []


# --- what is not believed -------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeros(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def _flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut, _empty, _zeros, _flip, _flip_header, _directory, Path.unlink])
def test_notes_that_are_damaged_are_not_believed(
    sessions: Sessions, killer: Killer, ways: Ways, damage: Callable[[Path], None]
) -> None:
    broken = small_broken(sessions, killer)
    damage(broken.data / "histfs/touched")
    regress(broken.repository, report=fail)
    assert ways.short == 0
    broken.now -= DAY
    broken.assert_all_readable()
    broken.assert_mirror_is(broken.now)
    assert not (broken.data / "histfs/touched").exists()


@pytest.mark.parametrize("what", ["boot", "mount", "no mount", "marker", "list", "time", "quoting"])
def test_notes_of_another_time_or_place_are_not_believed(
    sessions: Sessions, killer: Killer, ways: Ways, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    if what == "quoting":
        quote_names(monkeypatch, b"A-Z")
    broken = small_broken(sessions, killer)
    match what:
        case "boot":
            (tmp_path / "boot").write_text("00000000-0000-0000-0000-000000000000\n")
            monkeypatch.setattr(touched, "_BOOT", str(tmp_path / "boot"))
        case "mount":
            monkeypatch.setattr(WritableTree, "mount_number", lambda _tree: 7)
        case "no mount":
            monkeypatch.setattr(WritableTree, "mount_number", lambda _tree: None)
        case "marker":
            marker = next(path for path in broken.data.glob("current_mirror*") if _is_newer(path))
            os.utime(marker)
        case "list":
            path = broken.data / f"mirror_metadata.{stamp(broken.now - DAY)}.snapshot.gz"
            path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 0))
        case "time":
            notes = (broken.data / "histfs/touched").read_bytes()
            broken.backup()
            (broken.source / "b").write_bytes(b"again")
            broken = break_off(broken, killer, last_point(broken, killer))
            (broken.data / "histfs/touched").write_bytes(notes)
            ways.short = 0
    regress(broken.repository, report=fail)
    assert ways.short == 0
    broken.now = max(broken.states)
    broken.assert_all_readable()


def _is_newer(path: Path) -> bool:
    return path.name == max(other.name for other in path.parent.glob("current_mirror*"))


def small_broken(sessions: Sessions, killer: Killer) -> Sessions:
    """A session that was killed when it had changed almost everything that it would change."""
    build(
        sessions.source,
        Dir({"a": File(b"a"), "b": File(b"b"), "d": Dir({"c": File(b"c")}), "e": Dir({"f": File(b"f")})}),
    )
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    (sessions.source / "d/c").write_bytes(b"changed, too")
    (sessions.source / "new").write_bytes(b"new")
    return break_off(sessions, killer, last_point(sessions, killer))


def last_point(sessions: Sessions, killer: Killer) -> int:
    """The one before the list of the last session goes."""
    before = sorted(sessions.data.glob("mirror_metadata*snapshot*"))[-1].name
    points = all_points(sessions, killer)
    return bisect_left(points, True, key=lambda at: not (break_off(sessions, killer, at).data / before).exists())


def test_only_what_was_touched_is_looked_at(sessions: Sessions, killer: Killer, ways: Ways) -> None:
    broken = small_broken(sessions, killer)
    regress(broken.repository, report=fail)
    assert (ways.short, ways.records) == (1, 4)  # the root, a, d and d/c


def test_links_that_lead_elsewhere_take_the_long_way(sessions: Sessions, killer: Killer, ways: Ways) -> None:
    build(sessions.source, Dir({"a": File(b"a"), "d": Dir({"b": Link("a")})}))
    sessions.backup()
    (sessions.source / "a").chmod(0o600)
    points = all_points(sessions, killer)
    for at in points[::5]:
        broken = break_off(sessions, killer, at)
        other = copied(broken, "other")
        regress(other, report=fail)
        regress(broken.repository, report=fail)
        assert difference(found(other), found(broken.repository)) == []  # type: ignore[arg-type]


def test_too_many_notes_are_none(
    sessions: Sessions, killer: Killer, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touched, "MOST_NOTES", 3)
    broken = small_broken(sessions, killer)
    assert not (broken.data / "histfs/touched").exists()
    regress(broken.repository, report=fail)
    assert ways.short == 0
    broken.now -= DAY
    broken.assert_all_readable()
    broken.assert_mirror_is(broken.now)


def test_notes_that_cannot_be_written_do_not_stop_a_session(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_blocks

    def refuse(fd: int, blocks: list[bytes]) -> int:
        if len(blocks[0]) < HEADER_BYTES:
            write(fd, [blocks[0][:5]])
            raise OSError(28, "No space left on device")
        return write(fd, blocks)

    monkeypatch.setattr(touched, "write_blocks", refuse)
    build(sessions.source, Dir({"a": File(b"a")}))
    sessions.backup()
    (sessions.source / "a").write_bytes(b"changed")
    sessions.backup()
    sessions.assert_all_readable()
    assert not (sessions.data / "histfs/touched").exists()


def test_a_finished_session_has_no_notes(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"a")}))
    for content in (b"b", b"c"):
        sessions.backup()
        (sessions.source / "a").write_bytes(content)
    assert not (sessions.repository / os.fsdecode(TOUCHED)).exists()


# --- what is written ------------------------------------------------------------------------------------------------

_HEADER = Header(1, 2, b"0" * 36, 3, 4, 5, 6)
_NOTES = st.lists(st.builds(Note, st.binary(min_size=1, max_size=30), st.sampled_from([NAME, TREE])), max_size=5)


@given(_NOTES)
def test_notes_are_read_as_they_were_written(notes: list[Note]) -> None:
    data = format_header(_HEADER) + b"".join(map(format_note, notes))
    assert parse_notes(data, _HEADER) == notes
    for header in (_HEADER._replace(mount=9), _HEADER._replace(boot=b"1" * 36), _HEADER._replace(marker_inode=9)):
        assert parse_notes(data, header) is None


@given(_NOTES.filter(bool), st.data())
def test_notes_that_are_cut_or_garbled_are_none_or_fewer(notes: list[Note], data: st.DataObject) -> None:
    text = format_header(_HEADER) + b"".join(map(format_note, notes))
    ends = [len(format_header(_HEADER)) + sum(len(format_note(note)) for note in notes[:count]) for count in range(6)]
    at = data.draw(st.integers(0, len(text) - 1))
    read_notes = parse_notes(text[:at], _HEADER)
    assert read_notes == (notes[: ends.index(at)] if at in ends[: len(notes) + 1] else None)
    garbled = bytearray(text)
    garbled[at] ^= data.draw(st.integers(1, 255))
    assert parse_notes(bytes(garbled), _HEADER) is None


def test_a_layout_that_is_plain_reads_names_as_they_are(tmp_path: Path) -> None:
    """A record is wanted by its path, however that is written."""
    notes = [Note(b"a\nb", NAME), Note(b"c\\d", NAME), Note(b"t", TREE), Note(b"x/y", NAME)]
    notes.append(Note(INCREMENTS + b"/i/j.2024-01-01T00:00:00Z.missing", NAME))
    wanted = Touched(notes, Layout(), 0)
    assert Layout().quoted(b"a\nb") == b"a\nb"
    for text, is_wanted in {
        b"File .\n": True,
        b"File a\\nb\n": True,
        b"File c\\\\d\n": True,
        b"File c\\d\n": True,  # as others may write it
        b"File t\n": True,
        b"File t/u/v\n": True,
        b"File tt\n": False,
        b"File x\n": True,
        b"File x/y\n": True,
        b"File x/z\n": False,
        b"File x/y/z\n": False,
        b"File i\n": True,
        b"File i/j\n": True,
    }.items():
        assert wanted.wants(text) == is_wanted, text
