"""The content of a file at a session: chains, sessions that run or died meanwhile, damage (docs/format.md 6.4, 7.3)."""

import gzip
import hashlib
import os
import random
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from histfs.errors import DamagedError, StorageError
from histfs.store import backup as backup_module
from histfs.store.backup import backup
from histfs.store.batch import Batch
from histfs.store.content import Content, chain, opening, sources
from histfs.store.content.shared import Listings
from histfs.store.regress import regress
from histfs.store.repository import Repository
from histfs.store.tree import Tree
from tests.store.killing import Killed
from tests.store.places import open_descriptors
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import MTIME, Dir, File, Link, build

TEXT = b"".join(b"line %d\n" % number for number in range(500))


def write(path: Path, content: bytes, number: int) -> None:
    path.write_bytes(content)
    os.utime(path, (MTIME + number, MTIME + number))


def increment(sessions: Sessions, base: str, session_time: int) -> Path:
    (path,) = (sessions.data / "increments").glob(f"{base}.{stamp(session_time)}.*")
    return path


@pytest.fixture
def edited(sessions: Sessions) -> Sessions:
    """Four versions of a file, one a session; another file comes and goes."""
    build(sessions.source, Dir({"f": File(TEXT), "same": File(b"same"), "gone": File(b"gone 1")}))
    sessions.backup()
    for number in (1, 2, 3):
        write(sessions.source / "f", TEXT[100 * number :] + b"end %d" % number, number)
        if number == 1:
            (sessions.source / "gone").unlink()
        if number == 2:
            write(sessions.source / "gone", b"back", 2)
        sessions.backup()
    return sessions


# --- chains ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_chain(rich_sessions: Sessions) -> None:
    sessions = rich_sessions
    sessions.backup()  # nothing changed
    sessions.assert_all_readable()
    kinds = {name.removesuffix(".gz").rpartition(".")[2] for name in sessions.increments()}
    assert kinds == {"diff", "snapshot", "missing", "dir"}


def test_increments_as_other_programs_write_them(edited: Sessions) -> None:
    """Not compressed; plain under a name in .gz; a whole copy in place of a difference (docs/format.md 1.5, 8.3)."""
    first, second, third = (increment(edited, "f", FIRST + number * DAY) for number in range(3))
    text = gzip.decompress(first.read_bytes())
    first.unlink()
    first.with_suffix("").write_bytes(text)
    second.write_bytes(gzip.decompress(second.read_bytes()))
    third.rename(third.with_name(third.name.replace(".diff.", ".snapshot.")))
    increment(edited, "f", FIRST + 2 * DAY).write_bytes(gzip.compress(TEXT[200:] + b"end 2"))
    edited.assert_all_readable()


@pytest.mark.parametrize("name", ["a.gz", "a.jpg", "a"])
def test_files_that_are_gzip_themselves(sessions: Sessions, name: str) -> None:
    build(sessions.source, Dir({name: File(gzip.compress(TEXT))}))
    sessions.backup()
    write(sessions.source / name, gzip.compress(TEXT[50:]), 1)
    sessions.backup()
    (sessions.source / name).unlink()
    sessions.backup()
    sessions.assert_all_readable()


def test_a_directory_with_the_name_of_an_increment_is_none(edited: Sessions) -> None:
    """docs/format.md, trap 20."""
    (edited.data / f"increments/f.{stamp(FIRST)}.missing").mkdir()
    (edited.data / f"increments/same.{stamp(FIRST)}.snapshot").mkdir()
    edited.assert_all_readable()


def test_a_version_has_the_nanoseconds_of_the_source(sessions: Sessions) -> None:
    build(sessions.source, Dir({"f": File(TEXT), "g": File(TEXT)}))
    times = []
    for number in range(3):
        ns = (MTIME + number) * 10**9 + 123_456_000 + number
        (sessions.source / "f").write_bytes(TEXT[number:])
        os.utime(sessions.source / "f", ns=(ns, ns))
        if number == 2:
            os.utime(sessions.source / "g", ns=(ns, ns))  # its old time is in the record alone
        sessions.backup()
        times.append(ns)
    with sessions.open() as repository:
        for time, ns in zip(sessions.states, times, strict=True):
            entry = sessions.entry(b"f", time)
            with repository.snapshot(time).open(entry, entry.sha1) as content:
                assert content.mtime_ns == ns
        entry = sessions.entry(b"g", FIRST)
        with repository.snapshot(FIRST).open(entry, entry.sha1) as content:
            assert content.mtime_ns is None


def test_only_files_have_content(edited: Sessions) -> None:
    with edited.open() as repository, pytest.raises(DamagedError):
        repository.snapshot(FIRST).open(edited.entry(b"", FIRST), None)


# --- reading parts --------------------------------------------------------------------------------------------------


def have_nothing_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on treat more than 100 bytes as large."""
    for module in (chain, opening):
        monkeypatch.setattr(module, "IN_MEMORY", 100)
    monkeypatch.setattr(chain, "ON_THE_WAY_IN_MEMORY", 100)
    monkeypatch.setattr(opening, "CHECKED_AT_ONCE", 100)


def have_no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on make versions link by link."""
    monkeypatch.setattr(chain, "MAX_EXTENTS", 1)


@pytest.fixture(params=["mirror", "memory", "map", "temporary file"])
def part(request: pytest.FixtureRequest, edited: Sessions, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """An open version and what it must be."""
    if request.param in ("map", "temporary file"):
        have_nothing_small(monkeypatch)
    if request.param == "temporary file":
        have_no_maps(monkeypatch)
    time = edited.now if request.param == "mirror" else FIRST
    expected = TEXT[300:] + b"end 3" if request.param == "mirror" else TEXT
    with edited.open() as repository:
        entry = edited.entry(b"f", time)
        with repository.snapshot(time).open(entry, entry.sha1) as content:
            yield content, expected


def test_any_part_can_be_read(part: tuple[Content, bytes]) -> None:
    content, expected = part
    size = len(expected)
    assert content.size_bytes == size
    for offset in (0, 1, 1000, size - 1, size, size + 1, 10**15):
        for length in (0, 1, 100, size, 10**9):
            wanted = expected[offset : offset + length]
            assert content.pread(length, offset) == wanted
            assert content.pread_nowait(length, offset) in (wanted, None)
    assert b"".join(content.blocks()) == expected


def test_what_is_in_memory_needs_no_waiting(part: tuple[Content, bytes]) -> None:
    content, expected = part
    content.pread(len(expected), 0)
    assert content.pread_nowait(10, 5) == expected[5:15]


def test_closing_twice(part: tuple[Content, bytes]) -> None:
    part[0].close()
    part[0].close()


def test_an_open_version_stays_what_it_was(edited: Sessions) -> None:
    with edited.open() as repository:
        entry = edited.entry(b"f")
        with repository.snapshot(edited.now).open(entry, entry.sha1) as content:
            write(edited.source / "f", b"new" * 1000, 9)
            edited.backup()
            assert b"".join(content.blocks()) == TEXT[300:] + b"end 3"


def test_a_mirror_file_that_is_cut_while_it_is_open(edited: Sessions) -> None:
    write(edited.source / "f", b"0123456789" * 10_000, 7)  # more than is kept in memory
    edited.backup()
    with edited.open() as repository:
        entry = edited.entry(b"f")
        with repository.snapshot(edited.now).open(entry, entry.sha1) as content:
            os.truncate(edited.repository / "f", 10)
            assert content.pread(10, 0) == b"0123456789"
            with pytest.raises(DamagedError):
                content.pread(10, 5)
            assert content.pread_nowait(10, 5) is None


# --- long chains and large versions ---------------------------------------------------------------------------------


def test_a_long_chain_needs_few_descriptors_and_little_room(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes every day for years: each version in a temporary file, two of them at a time."""
    have_nothing_small(monkeypatch)
    have_no_maps(monkeypatch)
    build(sessions.source, Dir({"f": File(TEXT)}))
    sessions.backup()
    for number in range(1, 40):
        write(sessions.source / "f", b"%d\n" % number + TEXT, number)
        sessions.backup()
    most = 0
    before = _deleted_files()
    real = tempfile.TemporaryFile

    def temporary_file(*arguments: object, **options: object) -> object:
        nonlocal most
        file = real(*arguments, **options)  # type: ignore[call-overload]  # whatever they were
        most = max(most, _deleted_files() - before)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, _descriptors())) + 15, limits[1]))
    try:
        assert sessions.content(b"f", FIRST) == TEXT
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert most <= 3  # two versions, one of them twice, as the patch job has a descriptor of its own


def _deleted_files() -> int:
    return sum("(deleted)" in os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors())


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


def test_temporary_files_are_private_and_gone(
    edited: Sessions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    have_nothing_small(monkeypatch)
    have_no_maps(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    (tmp_path / "repository").exists()
    names = os.listdir(tmp_path)
    before = open_descriptors()
    with edited.open() as repository:
        entry = edited.entry(b"f", FIRST)
        with repository.snapshot(FIRST).open(entry, entry.sha1) as content:
            assert os.listdir(tmp_path) == names
            assert len(open_descriptors() - before) == 2  # the repository's root, and the version
            assert content.pread(4, 0) == TEXT[:4]
    assert open_descriptors() == before


def test_without_room_for_temporary_files_small_versions_can_be_read(
    edited: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "free_for_temporary_files", lambda: 0)
    assert edited.content(b"f", FIRST) == TEXT


def test_without_room_for_temporary_files_nothing_is_called_damaged(
    edited: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_nothing_small(monkeypatch)
    have_no_maps(monkeypatch)
    monkeypatch.setattr(sources, "free_for_temporary_files", lambda: 0)
    with pytest.raises(StorageError) as caught:
        edited.content(b"f", FIRST)
    assert caught.value.path == b"f"


# --- a session that runs, or died -----------------------------------------------------------------------------------


def _die(*_: object) -> None:
    raise Killed


def begin(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, until: str) -> None:
    """A session that stops before its first change to what was there ("early"), or before its commit ("late")."""
    with monkeypatch.context() as patch:
        if until == "early":
            patch.setattr(Batch, "apply", _die)
        else:
            patch.setattr(backup_module._Session, "_commit", _die)
        with pytest.raises(Killed):
            backup(sessions.source, sessions.repository, now=sessions.now + DAY, report=sessions.reported.append)


def _next_state(sessions: Sessions) -> None:
    write(sessions.source / "f", b"all new", 9)
    write(sessions.source / "gone", b"back and longer", 9)
    (sessions.source / "same").unlink()


@pytest.mark.parametrize("until", ["early", "late"])
def test_an_unfinished_session_changes_nothing(edited: Sessions, monkeypatch: pytest.MonkeyPatch, until: str) -> None:
    _next_state(edited)
    begin(edited, monkeypatch, until)
    assert increment(edited, "f", edited.now).exists()
    edited.assert_all_readable()


@pytest.mark.parametrize("keep", [0, 1, 9, 20])
def test_a_half_written_increment_is_not_used(edited: Sessions, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    _next_state(edited)
    begin(edited, monkeypatch, "early")
    for base in ("f", "gone", "same"):
        path = increment(edited, base, edited.now)
        path.write_bytes(path.read_bytes()[:keep])
    edited.assert_all_readable()


def test_lists_without_digests_are_believed_by_size_and_time(edited: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/format.md, trap 37."""
    _next_state(edited)
    begin(edited, monkeypatch, "early")
    for path in edited.data.glob("mirror_metadata.*"):
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        path.write_bytes(gzip.compress(b"".join(line for line in lines if b"SHA1Digest" not in line)))
    for number, time in enumerate(edited.states):
        assert edited.content(b"f", time) == (TEXT[100 * number :] + b"end %d" % number if number else TEXT)
        assert edited.node(b"f", time).sha1 is None
    with edited.open() as repository:
        assert [repository.snapshot(FIRST).listing().find(b"f").sha1] == [None]


class Interleaved:
    """Runs an action before the n-th look of readers at the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.at: int | None = None
        self.action: Callable[[], object] = lambda: None
        for name in ("stat", "names_of_files", "open_file"):
            monkeypatch.setattr(Tree, name, self._counted(getattr(Tree, name)))

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def look(tree: Tree, *arguments: object, **options: object) -> object:
            if type(tree) is Tree and self.at is not None:  # not what the session itself looks at
                self.looks += 1
                if self.looks == self.at:
                    self.action()
            return real(tree, *arguments, **options)

        return look


@pytest.mark.parametrize("what", ["early", "late", "session", "two sessions", "undone"])
@pytest.mark.parametrize("path", [b"f", b"gone", b"same"])
@pytest.mark.parametrize("number", [0, 3])
def test_a_session_that_comes_between_any_two_looks(
    edited: Sessions, monkeypatch: pytest.MonkeyPatch, what: str, path: bytes, number: int
) -> None:
    time = FIRST + number * DAY
    expected = edited.content(path, time)
    node = edited.node(path, time)
    _next_state(edited)
    original = edited.repository.rename(edited.repository.with_name("original"))

    def act() -> None:
        attempt = Sessions(edited.repository.parent)
        attempt.now = edited.now
        if what in ("early", "late"):
            begin(attempt, monkeypatch, what)
        elif what == "undone":
            regress(edited.repository, report=edited.reported.append)
        else:
            attempt.backup()
            if what == "two sessions":
                write(edited.source / "f", b"newer than new", 10)
                attempt.backup()
                write(edited.source / "f", b"all new", 9)

    interleaved = Interleaved(monkeypatch)
    interleaved.action = act
    for at in range(1, 100):
        shutil.rmtree(edited.repository, ignore_errors=True)
        shutil.copytree(original, edited.repository)
        if what == "undone":
            begin(edited, monkeypatch, "late")
        with Repository.open(edited.repository) as repository:
            snapshot = repository.snapshot(time)
            interleaved.looks, interleaved.at = 0, at
            with snapshot.open(node.entry, node.sha1) as content:
                interleaved.at = None
                assert b"".join(content.blocks()) == expected, at
        if interleaved.looks < at:
            break
    assert at > (1 if number == 3 or path == b"same" else 4)  # what is in the mirror is looked at there alone
    assert edited.reported == []


def test_a_file_that_changes_at_every_look_is_given_up(edited: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Listings.find

    def find(*arguments: object) -> object:
        path = edited.repository / "f"
        shutil.copy2(path, path.with_name("copy"))
        path.with_name("copy").rename(path)
        return real(*arguments)  # type: ignore[arg-type]  # whatever they were

    monkeypatch.setattr(Listings, "find", find)
    before = open_descriptors()
    with pytest.raises(DamagedError, match="changed at every attempt"):
        edited.content(b"f", FIRST)
    assert open_descriptors() == before


def test_readers_of_two_times_do_not_disturb_each_other(edited: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers compare the mirror with the newest finished session, each with what was that when it began."""
    wrong: list[BaseException] = []
    with edited.open() as repository:

        def look(time: int) -> None:
            try:
                for _ in range(30):
                    repository.recorded(time, b"f")
            except BaseException as exc:
                wrong.append(exc)

        threads = [threading.Thread(target=look, args=[time]) for time in edited.states]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# --- damage ---------------------------------------------------------------------------------------------------------


def check_damaged(sessions: Sessions, path: bytes, *times: int) -> None:
    """The version cannot be read at these sessions, and at all others."""
    before = open_descriptors()
    for time in sessions.states:
        node = None if time not in times and path not in sessions.states[time] else sessions.node(path, time)
        if node is None:
            continue
        if time in times:
            with pytest.raises(DamagedError) as caught:
                sessions.content(path, time)
            assert os.fsencode(caught.value.path) == path
        else:
            assert hashlib.sha1(sessions.content(path, time)).hexdigest() == sessions.states[time][path].sha1
    assert open_descriptors() == before


ALL = [FIRST + number * DAY for number in range(4)]


def test_a_mirror_file_is_lost(edited: Sessions) -> None:
    (edited.repository / "f").unlink()
    check_damaged(edited, b"f", *ALL)
    (edited.repository / "gone").unlink()
    check_damaged(edited, b"gone", *ALL[2:])


@pytest.mark.parametrize("what", ["directory", "fifo", "link"])
def test_something_else_is_in_the_place_of_a_mirror_file(edited: Sessions, what: str) -> None:
    path = edited.repository / "f"
    path.rename(edited.repository.with_name("f"))
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("../f")
    check_damaged(edited, b"f", *ALL)


@pytest.mark.parametrize("content", [b"", TEXT, b"x" * (len(TEXT) - 300 + 5)], ids=["empty", "another", "same size"])
def test_a_mirror_file_has_another_content(edited: Sessions, content: bytes) -> None:
    path = edited.repository / "f"
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    check_damaged(edited, b"f", *ALL)


def test_a_mirror_file_of_another_time_is_checked_before_a_byte_of_it_is_given_out(edited: Sessions) -> None:
    """Somebody, or a session after the file was lost, put another one in its place."""
    path = edited.repository / "same"
    path.write_bytes(b"SAME")
    entry = edited.entry(b"same")
    with edited.open() as repository, pytest.raises(DamagedError):
        repository.snapshot(edited.now).open(entry, entry.sha1)


def test_after_a_file_was_lost_old_versions_are_not_the_new_one(edited: Sessions) -> None:
    (edited.repository / "same").unlink()
    write(edited.source / "same", b"SAME", 20)
    edited.backup(may_report=True)
    with edited.open() as repository:
        entry = edited.entry(b"same", FIRST)
        with pytest.raises(DamagedError):
            repository.snapshot(FIRST).open(entry, entry.sha1)
    assert edited.content(b"same", edited.now) == b"SAME"


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "empty", "fifo", "link", "other delta"])
def test_an_increment_is_damaged(edited: Sessions, damage: str) -> None:
    path = increment(edited, "f", FIRST + DAY)
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-5])
    elif damage == "altered":
        path.write_bytes(data[:30] + bytes([data[30] ^ 255]) + data[31:])
    elif damage == "empty":
        path.touch()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to(increment(edited, "f", FIRST).name)
    elif damage == "other delta":
        shutil.copy(increment(edited, "f", FIRST), path)
    check_damaged(edited, b"f", *ALL[:2])


@pytest.mark.parametrize("type_", ["missing", "dir"])
def test_the_increments_say_that_a_content_is_lost(edited: Sessions, type_: str) -> None:
    increment(edited, "f", FIRST + DAY).unlink()
    (edited.data / f"increments/f.{stamp(FIRST + DAY)}.{type_}").touch()
    check_damaged(edited, b"f", *ALL[:2])


def test_a_bomb_ends_at_the_recorded_size(edited: Sessions) -> None:
    path = increment(edited, "gone", FIRST)
    path.write_bytes(gzip.compress(bytes(50 << 20)))
    check_damaged(edited, b"gone", FIRST)


def test_a_link_is_checked_by_the_digest_of_the_first(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(TEXT), "b": Link("a")}))
    sessions.backup()
    path = sessions.repository / "b"
    path.unlink()
    write(path, bytes(len(TEXT)), 0)
    check_damaged(sessions, b"b", FIRST)


def test_damage_that_lasts_a_moment_is_not_reported(edited: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session or a recovery may be at work on this very file."""
    real = opening.Opening.open
    attempts = []

    def open_(attempt: opening.Opening) -> opening.Version:
        attempts.append(attempt)
        if len(attempts) == 1:
            raise DamagedError("for a moment")
        return real(attempt)

    monkeypatch.setattr(opening.Opening, "open", open_)
    assert edited.content(b"f", FIRST) == TEXT


def test_random_damage_is_never_another_content(edited: Sessions) -> None:
    """Whatever byte of whatever file is altered: a version is right, or it is an error."""
    chance = random.Random(5)
    places = [increment(edited, "f", time) for time in ALL[:3]] + [edited.repository / "f"]
    for _ in range(40):
        path = chance.choice(places)
        data = path.read_bytes()
        status = path.stat()
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :])
        for time in ALL:
            try:
                found = edited.content(b"f", time)
            except DamagedError:
                continue
            assert hashlib.sha1(found).hexdigest() == edited.states[time][b"f"].sha1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
