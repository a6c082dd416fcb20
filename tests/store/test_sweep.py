"""Passing over what is as it was: the same sessions as with a look at everything, and what is noticed all the same."""

import gzip
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.store import accounts
from histfs.store import ledger as ledger_module
from histfs.store import look as look_module
from histfs.store import walk as walk_module
from histfs.store.format import posix_acl
from histfs.store.format.ledger import HEADER_BYTES, SCANNED, SEEN_BYTES, Header, Seen, format_header, parse_header
from histfs.store.source import Source
from histfs.store.walk import Passed
from tests.store.comparing import comparing_walk
from tests.store.passing import disturb, grow, ledger, of_session, set_list
from tests.store.sessions import DAY, Sessions
from tests.trees import MTIME, Dir, File, Link, Node, Symlink, build


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    found: list[bytes] = []
    real = Source.open_file
    monkeypatch.setattr(Source, "open_file", lambda source, item: (found.append(item.path), real(source, item))[1])
    return found


@pytest.mark.parametrize("seed", range(16))
def test_sessions_are_those_that_look_at_everything(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(walk_module, "_LINES_BYTES", 1000)
    passing, looking = Sessions(tmp_path / "passing"), Sessions(tmp_path / "looking")
    for sessions in (passing, looking):
        sessions.repository.parent.mkdir(exist_ok=True)
    build(passing.source, grow(random_))
    looking.source = passing.source
    for number in range(5):
        for sessions in (passing, looking):
            sessions.backup()
        ledger(looking).unlink()
        assert of_session(passing) == of_session(looking), number
        passing.assert_mirror_is(passing.now)
        disturb(random_, passing.source, number)
    passing.assert_all_readable()


def test_what_is_as_it_was_is_passed_over(sessions: Sessions, looks: list[bytes]) -> None:
    below: dict[str | bytes, Node] = {f"f{number}": File(b"%d" % number) for number in range(300)}
    build(sessions.source, Dir({"a": File(), "d": Dir({"e": Dir(below), "l": Symlink("x")}), "z": Dir()}))
    sessions.backup()
    for _ in range(2):
        looks.clear()
        sessions.backup()
        assert looks == []
    (sessions.source / "d/e/f7").write_bytes(b"changed")
    sessions.backup()
    assert looks == [b"d/e/f7"]
    looks.clear()
    sessions.backup()
    assert looks == []
    sessions.assert_all_readable()


def test_other_links_are_passed_over_until_one_is_met_that_changed(sessions: Sessions, looks: list[bytes]) -> None:
    """A directory with another name changes nothing of the files in it, but what is their first link."""
    first = {"a": File(b"a"), "b": File(b"b"), "c": File(b"c")}
    others: dict[str | bytes, Node] = {"b": Link("d/b"), "c": Link("d/c"), "x": File(b"x"), "y": Link("z/x")}
    build(sessions.source, Dir({"a": Link("d/a"), "d": Dir(first), "z": Dir(others)}))
    sessions.backup()
    looks.clear()
    sessions.backup()
    assert looks == []
    (sessions.source / "d").rename(sessions.source / "e")
    sessions.backup()
    assert looks == [b"e", b"e/a", b"e/b", b"e/c", b"z/b", b"z/c", b"z/x", b"z/y"]
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_attributes_and_lists_are_passed_over(sessions: Sessions, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"d": Dir({"x": File(b"X"), "y": File(b"Y")}), "e": File(b"E"), "f": File(b"F")}))
    for name in ("d", "d/x", "e"):
        os.setxattr(sessions.source / name, "user.test", b"value of " + name.encode())
    set_list(sessions.source / "d/x", 1)
    set_list(sessions.source / "f", os.getuid())
    sessions.backup()
    looks.clear()
    sessions.backup()
    assert looks == []
    for change in (
        lambda: os.setxattr(sessions.source / "d/x", "user.test", b"another"),
        lambda: os.removexattr(sessions.source / "e", "user.test"),
        lambda: set_list(sessions.source / "f", 2),
        lambda: os.removexattr(sessions.source / "d/x", posix_acl.ACCESS),
        lambda: set_list(sessions.source / "d/y", 3),
    ):
        change()
        looks.clear()
        outcome = sessions.backup()
        assert len(looks) == 1
        assert outcome.statistics.changed_files == 1
        sessions.assert_mirror_is(sessions.now)
    sessions.assert_all_readable()


def test_another_name_for_somebody_in_a_list_is_recorded(
    sessions: Sessions, looks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "b": File(b"B")}))
    set_list(sessions.source / "a", 54_321)
    sessions.backup()
    for module in (look_module, ledger_module):
        monkeypatch.setattr(module, "user_name", lambda uid: b"somebody" if uid == 54_321 else accounts.user_name(uid))
    looks.clear()
    sessions.backup()
    assert looks == [b"a", b"b"]
    path = max(sessions.data.glob("access_control_lists.*.snapshot.gz"))
    assert b"user:somebody:" in gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damage_beside_the_list_is_no_news(sessions: Sessions, damage: str, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "b": File(b"B")}))
    os.setxattr(sessions.source / "a", "user.test", os.urandom(3000))
    sessions.backup()
    (path,) = sessions.data.glob("extended_attributes.*.snapshot.gz")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-30] if damage == "cut" else data[:500] + bytes([data[500] ^ 1]) + data[501:])
    looks.clear()
    sessions.backup(may_report=True)
    assert looks == [b"a", b"b"]
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_readable(sessions.now)


def _content_alone(path: Path) -> None:
    """Another content with the size and time of before."""
    status = path.stat()
    path.write_bytes(b"B")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _another_file(path: Path) -> None:
    """A file in its place with the same size and time."""
    status = path.stat()
    path.rename(path.with_name("old"))
    path.write_bytes(b"B")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    path.with_name("old").unlink()


@pytest.mark.parametrize("change", [_content_alone, _another_file])
def test_a_change_that_keeps_size_and_time_is_seen(sessions: Sessions, change: Callable[[Path], None]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "d": Dir({"x": File(b"A")})}))
    os.utime(sessions.source, ns=(MTIME, MTIME))
    sessions.backup()
    change(sessions.source / "d/x")
    sessions.backup()
    assert sessions.content(b"d/x", sessions.now) == b"B"
    sessions.assert_all_readable()


def test_a_change_within_the_tick_of_the_last_look_is_seen(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, racy: None
) -> None:
    build(sessions.source, Dir({"a": File(b"A")}))
    sessions.backup()
    before = (sessions.source / "a").stat()
    _content_alone(sessions.source / "a")
    monkeypatch.setattr(Seen, "may_have_changed", _with_ctime(Seen.may_have_changed, before.st_ctime_ns))
    sessions.backup()
    assert sessions.content(b"a", sessions.now) == b"B"


def _with_ctime(real: Callable[..., bool], ctime_ns: int) -> Callable[..., bool]:
    return lambda seen, inode, device, _ctime_ns: real(seen, inode, device, ctime_ns)


def test_checksums_find_what_no_time_tells(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A content that changed behind the back of the file system, say on a disk that was written to directly."""
    build(sessions.source, Dir({"a": File(b"A"), "b": File(b"B")}))
    sessions.backup()
    monkeypatch.setattr(Seen, "may_have_changed", lambda *_: False)
    _content_alone(sessions.source / "a")
    ledger(sessions).unlink()
    sessions.backup()
    assert sessions.content(b"a", sessions.now) == b"A"
    outcome = sessions.backup(checksum=True)
    assert sessions.content(b"a", sessions.now) == b"B"
    assert outcome.statistics.changed_files == 1


def test_another_mode_is_seen_and_costs_no_copy(sessions: Sessions) -> None:
    build(sessions.source, Dir({"a": File(b"A", mode=0o644)}))
    sessions.backup()
    inode = (sessions.repository / "a").stat().st_ino
    (sessions.source / "a").chmod(0o600)
    sessions.backup()
    assert (sessions.repository / "a").stat().st_ino == inode
    sessions.assert_all_readable()


def test_a_source_on_another_disk_is_not_read(
    sessions: Sessions, opened: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have other numbers and change times: size and time are what counts then."""
    build(sessions.source, Dir({"a": File(b"A"), "d": Dir({"x": File(b"X")})}))
    sessions.backup()
    shutil.copytree(sessions.source, sessions.source.with_name("copy"), copy_function=shutil.copy2)
    for path in (b"", b"d"):
        shutil.copystat(sessions.source / os.fsdecode(path), sessions.source.with_name("copy") / os.fsdecode(path))
    shutil.rmtree(sessions.source)
    sessions.source.with_name("copy").rename(sessions.source)
    with (sessions.data / "histfs/ledger").open("r+b") as file:
        header = parse_header(file.read(HEADER_BYTES))
        assert header is not None
        records = [Seen.parse(file.read(SEEN_BYTES)) for _ in range(header.records)]
    rewrite(sessions, header, [seen._replace(device=seen.device + 1) for seen in records])
    opened.clear()
    outcome = sessions.backup()
    assert opened == []
    assert outcome.statistics.changed_files == 0


def rewrite(sessions: Sessions, header: Header, records: list[Seen]) -> None:
    import zlib

    data = b"".join(seen.format() for seen in records)
    header = header._replace(records=len(records), crc=zlib.crc32(data))
    ledger(sessions).write_bytes(format_header(header) + data)


@pytest.mark.parametrize("path", ["a", "d/x", "d"])
def test_what_went_from_the_mirror_is_noticed(sessions: Sessions, path: str) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "d": Dir({"x": File(b"X"), "y": File(b"Y")}), "e": File(b"E")}))
    sessions.backup()
    gone = sessions.repository / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    sessions.backup(may_report=True)
    assert any("missing" in str(error) for error in sessions.reported)
    sessions.assert_mirror_is(sessions.now)
    sessions.assert_readable(sessions.now)


@pytest.mark.parametrize("damage", ["cut", "longer", "bit", "empty", "gone", "of another session", "directory"])
def test_a_ledger_that_is_not_as_it_was_is_not_used(sessions: Sessions, damage: str, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "d": Dir({"x": File(b"X")})}))
    sessions.backup()
    path = ledger(sessions)
    data = path.read_bytes()
    if damage == "of another session":
        header = parse_header(data[:HEADER_BYTES])
        assert header is not None
        path.write_bytes(format_header(header._replace(session_time=header.session_time - 1)) + data[HEADER_BYTES:])
    elif damage in ("gone", "directory"):
        path.unlink()
        if damage == "directory":
            (path / "x").mkdir(parents=True)
    else:
        at = HEADER_BYTES + SEEN_BYTES + 3
        bit = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        path.write_bytes(
            {"cut": data[:-SEEN_BYTES], "longer": data + data[-SEEN_BYTES:], "bit": bit, "empty": b""}[damage]
        )
    looks.clear()
    sessions.backup()
    assert looks == [b"a", b"d", b"d/x"]
    looks.clear()
    sessions.backup()
    assert looks == []
    sessions.assert_all_readable()


@pytest.mark.parametrize("seed", range(30))
def test_a_ledger_that_lies_does_no_harm_to_memory(sessions: Sessions, seed: int) -> None:
    """Lengths that do not fit the list, and flags of all kinds: with right sums, as nobody writes them by accident."""
    random_ = random.Random(seed)
    build(sessions.source, Dir({name: File(b"A") for name in "abcdefgh"} | {"i": Dir({"x": File(b"X")})}))
    sessions.backup()
    with ledger(sessions).open("rb") as file:
        header = parse_header(file.read(HEADER_BYTES))
        assert header is not None
        records = [Seen.parse(file.read(SEEN_BYTES)) for _ in range(header.records)]
    number = random_.randrange(1, len(records))
    lie = random_.choice([0, 1, 4, 5, 6, 10_000, 2**31, 2**32 - 1, records[number].record_bytes + 1])
    records[number] = records[number]._replace(record_bytes=lie)
    if seed % 2:
        records = [seen._replace(flags=seen.flags | random_.choice([0, SCANNED])) for seen in records]
    if seed % 3 == 0:
        records = records[: random_.randrange(1, len(records))]
    rewrite(sessions, header, records)
    try:
        sessions.backup(may_report=True)
    except Exception:
        return
    assert sessions.verify(sessions.now).mismatched == 0


_SESSION = """
import sys
from pathlib import Path
from histfs.store import ledger, sweep, walk
from histfs.store.backup import backup

def in_pieces(*arguments):
    text = b"".join(real(*arguments))
    return (text[at : at + 300] for at in range(0, len(text), 300))

real, sweep.text_of = sweep.text_of, in_pieces
import histfs.store.backup as module
module.text_of = in_pieces
ledger._SETTLED_AFTER_NS = -10**12
walk._TEXT_AHEAD_BYTES = 0
backup(Path(sys.argv[1]), Path(sys.argv[2]), now=int(sys.argv[3]), report=print)
"""


@pytest.mark.parametrize("record_bytes", [2**32 - 1, 2**32 - 5, 2**32 - 6])
def test_a_record_of_4_gib_is_not_looked_for_in_less_text(sessions: Sessions, record_bytes: int) -> None:
    """In a process of its own, which it might take along."""
    build(sessions.source, Dir({name: File(b"A") for name in "abcdefgh"}))
    sessions.backup()
    data = ledger(sessions).read_bytes()
    header = parse_header(data[:HEADER_BYTES])
    assert header is not None
    records = [Seen.parse(data, at) for at in range(HEADER_BYTES, len(data), SEEN_BYTES)]
    records[1] = records[1]._replace(record_bytes=record_bytes)
    rewrite(sessions, header, records)
    command = [sys.executable, "-c", _SESSION, sessions.source, sessions.repository, str(sessions.now + DAY)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode >= 0, ran
    assert "FormatError" in ran.stderr, ran


def test_a_list_that_ends_in_the_middle_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is cut anywhere stops a comparison in front of the cut, and nothing is read behind it."""
    monkeypatch.setattr(walk_module, "_TEXT_AHEAD_BYTES", 0)
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").write_bytes(b"B")
    record = b"File %b\n  Type reg\n"
    text = record % b"a" + record % b"b"
    seen = b""
    for name in ("a", "b"):
        seen += walk_module.seen_of((tmp_path / name).stat())._replace(record_bytes=len(text) // 2, flags=1).format()
    for end in range(len(text) + 1):
        for is_last in (False, True):
            passed = compare(tmp_path, text[:end], seen, is_last=is_last)
            if is_last and end in (len(text) // 2, len(text)):
                expected = 2 * end // len(text)
            else:  # so much of the next record tells that it is one
                expected = int(end >= len(text) // 2 + 5)
            assert passed.files == expected, (end, is_last)


def compare(top: Path, text: bytes, seen: bytes, *, is_last: bool) -> Passed:
    with comparing_walk(top) as walk:
        return walk.compare(text, 0, seen, 0, is_last=is_last, number=0, first_number=0, line_end=b"\n")
