"""Verifying all: every version once, in one pass; nothing is missed; what is interrupted goes on."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from histfs.errors import WHO_MAY, HistfsError, NotFoundError
from histfs.store import kept_progress
from histfs.store import verify_all as operation
from histfs.store.content import backwards
from histfs.store.kept_progress import Counts, Finding, KeptProgress, Position
from histfs.store.tree import Tree
from histfs.store.verify_all import AllOutcome, sentence, verify_all
from histfs.store.versions import versions
from tests.store.sessions import DAY, FIRST, Sessions, stamp
from tests.trees import Dir, File, build
from tests.users import as_ordinary_user, give_away

TIMES = [FIRST + number * DAY for number in range(4)]


@pytest.fixture
def history(sessions: Sessions) -> Sessions:
    """`a` has three versions, `b` one, `d/x` two and then goes; two links are one file that changes."""
    build(sessions.source, Dir({"a": File(b"1"), "b": File(b"b"), "d": Dir({"x": File(b"x")}), "l": File(b"l")}))
    (sessions.source / "m").hardlink_to(sessions.source / "l")
    sessions.backup()
    (sessions.source / "a").write_bytes(b"22")
    (sessions.source / "d/x").write_bytes(b"xx")
    sessions.backup()
    sessions.backup()
    (sessions.source / "a").write_bytes(b"333")
    (sessions.source / "d/x").unlink()
    (sessions.source / "l").write_bytes(b"changed")
    sessions.backup()
    return sessions


def run(
    sessions: Sessions, path: bytes = b"", cache: Path | None = None, **options: object
) -> tuple[AllOutcome, list[str]]:
    reported: list[HistfsError] = []
    with sessions.open() as repository:
        outcome = verify_all(repository, path, report=reported.append, cache=cache, **options)  # type: ignore[arg-type]
    return outcome, list(map(str, reported))


def test_each_version_is_read_once(history: Sessions) -> None:
    told: list[int] = []
    outcome, reported = run(history, tell=told.append)
    assert outcome == AllOutcome(TIMES[3], 4, Counts(10, 1 + 2 + 3 + 1 + 1 + 2 + 2 + 14, 0), (), (), was_resumed=False)
    assert (sum(told), reported) == (26, [])
    assert run(history, b"d")[0].counts == Counts(2, 3, 0)
    assert run(history, b"d/x", threads=1)[0].counts == Counts(2, 3, 0)


def test_what_is_damaged_is_told_with_what_is_left(history: Sessions) -> None:
    [increment] = (history.data / "increments/d").glob("x.*.snapshot.gz")
    increment.write_bytes(b"?")
    [first] = (history.data / "increments").glob(f"a.{stamp(FIRST)}.diff.gz")
    first.unlink()
    outcome, reported = run(history)
    assert [finding[:2] + finding[3:4] for finding in outcome.findings] == [
        (b"a", (TIMES[0],), (TIMES[3], TIMES[2], TIMES[1])),
        (b"d/x", (TIMES[2], TIMES[1]), (TIMES[0],)),
    ]
    assert reported == [str(sentence(finding)) for finding in outcome.findings]
    assert [line.partition("; `histfs restore` can read it as of ")[2] for line in reported] == [
        f"{_iso(TIMES[1])}, and of 2 other sessions",
        _iso(TIMES[0]),
    ]
    (history.repository / "b").unlink()
    assert run(history, b"b")[1] == [
        f"b at {_iso(TIMES[3])}: its file in the mirror is missing; the same back to {_iso(TIMES[0])} (4 sessions);"
        " no other version of it can be read"
    ]


def test_what_the_user_may_not_read_is_no_damage(history: Sessions) -> None:
    give_away(history.repository)
    (history.repository / "b").chmod(0)
    with history.open() as repository:

        def check() -> None:
            reported: list[HistfsError] = []
            outcome = verify_all(repository, b"b", report=reported.append)
            assert [(finding.path, finding.is_damage) for finding in outcome.findings] == [(b"b", False)]
            [error] = reported
            assert error.problem.startswith("Permission denied; the same back to ")
            assert error.advice == WHO_MAY

        as_ordinary_user(check)


def _iso(session_time: int) -> str:
    return str(HistfsError("", at=session_time)).removeprefix("at ").removesuffix(": ")


def test_a_damaged_mirror_costs_only_what_needs_it(history: Sessions) -> None:
    """An old version that takes nothing from it is intact."""
    (history.repository / "a").write_bytes(b"???")
    outcome, _ = run(history)
    assert [(finding.path, finding.sessions) for finding in outcome.findings] == [(b"a", (TIMES[3],))]


def test_a_list_that_cannot_be_read_costs_the_sessions_that_need_it(history: Sessions) -> None:
    lists = sorted(history.data.glob("mirror_metadata.*"))
    lists[1].write_bytes(b"\x1f\x8b?")
    outcome, reported = run(history)
    assert outcome.findings == ()
    assert [(error.path, error.at) for error in outcome.problems] == [
        (os.fsencode(lists[1].relative_to(history.repository)), None),
        (None, TIMES[1]),
        (None, TIMES[0]),
    ]
    assert len(reported) == 3
    assert outcome.counts.versions == 8  # the newest two sessions' and no more


def test_damage_in_what_belongs_to_files_beside_their_records(rich_sessions: Sessions) -> None:
    files = sorted(rich_sessions.data.glob("extended_attributes.*.gz"))
    if not files:
        pytest.skip("this file system has no extended attributes")
    files[1].write_bytes(files[1].read_bytes()[:30])
    outcome, _ = run(rich_sessions)
    assert [error.at for error in outcome.problems] == [sorted(rich_sessions.states)[1]]


def test_what_was_never_there(history: Sessions) -> None:
    with pytest.raises(NotFoundError):
        run(history, b"nowhere")
    with pytest.raises(NotFoundError):
        run(history, b"a/below")


def test_versions_are_those_of_the_snapshots(rich_sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one part or in several; with the digests that hard links share."""
    rich_sessions.backup()
    rich_sessions.backup()
    with rich_sessions.open() as repository:
        sessions = repository.sessions()[::-1]
        expected = {
            (node.entry, node.sha1, time) for time in sessions for node in repository.snapshot(time).listing().nodes()
        }
        for size in (1, 2, 100):
            found = set()
            for start in range(0, len(sessions), size):
                part = sessions[start : start + size]
                for each in versions(repository.tree, repository.state(), part, b"", pytest.fail):
                    assert {version.entry.path for version in each.of} == {each.path}
                    found |= {(v.entry, v.sha1, time) for v in each.of for time in v.sessions}
            assert found == expected
        monkeypatch.setattr(operation, "windows", lambda all_: (all_[i : i + 2] for i in range(0, len(all_), 2)))
    assert run(rich_sessions)[0].findings == ()


def test_a_chain_is_read_once(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fourteen versions of a file that changes here and there take fourteen increments, and nobody asks twice."""
    chance = random.Random(4)
    content = bytearray(chance.randbytes(300_000))
    for _ in range(14):
        content[chance.randrange(290_000)] ^= 1
        build(sessions.source, Dir({"f": File(bytes(content))}))
        os.utime(sessions.source / "f")
        sessions.backup()
        (sessions.source / "f").unlink()
    opened: list[bytes] = []
    real = backwards.open_increment
    monkeypatch.setattr(backwards, "open_increment", lambda tree, one: (opened.append(one.path), real(tree, one))[1])
    monkeypatch.setattr(operation._Check, "_trouble", pytest.fail)
    outcome, _ = run(sessions)
    assert (outcome.counts.versions, outcome.findings) == (14, ())
    assert len(opened) == len(set(opened)) == 13


class _Enough(BaseException):
    """As if somebody pressed Ctrl-C."""


def _after(count: int) -> Callable[[int], None]:
    left = [count]

    def tell(_size_bytes: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _Enough

    return tell


def test_what_was_interrupted_goes_on(history: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (history.repository / "a").write_bytes(b"???")
    (history.repository / "m").unlink()
    whole, reported = run(history)
    checked: list[bytes] = []
    real = operation._Check._check
    monkeypatch.setattr(operation._Check, "_check", lambda self, each: (checked.append(each.path), real(self, each))[1])
    cache = tmp_path / "cache"
    for count in range(7):
        with pytest.raises(_Enough):
            run(history, cache=cache, tell=_after(count), restart=True)
        checked.clear()
        again, reported_again = run(history, cache=cache)
        assert again == whole._replace(was_resumed=True), count
        assert reported_again == reported
        assert len(checked) == 7 - count - 1  # the one of which it was told was done
        assert not run(history, cache=cache)[0].was_resumed  # that one came to its end


def test_sessions_that_come_meanwhile_wait_for_the_next_one(history: Sessions, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(_Enough):
        run(history, cache=cache, tell=_after(1))
    (history.source / "a").write_bytes(b"4444")
    (history.source / "b").unlink()
    history.backup()
    outcome, _ = run(history, cache=cache)
    assert (outcome.newest, outcome.sessions, outcome.findings) == (TIMES[3], 4, ())
    assert outcome.counts == Counts(10, 26, 0)
    assert run(history, cache=cache)[0].counts == Counts(11, 30, 0)


def test_parts_go_on_too(rich_sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "windows", lambda all_: (all_[i : i + 2] for i in range(0, len(all_), 2)))
    (rich_sessions.repository / "kept/same").unlink()
    whole, _ = run(rich_sessions)
    for count in (3, 40, 70):
        with pytest.raises(_Enough):
            run(rich_sessions, cache=tmp_path / "cache", tell=_after(count))
        assert run(rich_sessions, cache=tmp_path / "cache")[0] == whole._replace(was_resumed=True)


def test_what_is_kept_may_be_anything(history: Sessions, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(_Enough):
        run(history, cache=cache, tell=_after(3))
    [kept] = cache.glob("*/verify-*")
    assert kept.stat().st_mode & 0o777 == 0o600
    good = kept.read_bytes()
    for bad in (b"", b"{}", b"[1,2]", good[:-9], good.replace(b"[1,", b"[2,", 1), b"\xff", good.replace(b"==", b"!!")):
        kept.write_bytes(bad)
        outcome, _ = run(history, cache=cache)
        assert outcome.counts == Counts(10, 26, 0)
    (tmp_path / "file").touch()
    assert run(history, cache=tmp_path / "file/cache")[0].counts.versions == 10  # nothing can be kept there


def test_nothing_is_written_to_the_repository(history: Sessions, tmp_path: Path) -> None:
    def names() -> set[tuple[str, int]]:
        found = set()
        for place, directories, files in os.walk(history.repository):
            found |= {(os.path.join(place, name), os.lstat(os.path.join(place, name)).st_ctime_ns) for name in files}
            found |= {(os.path.join(place, name), 0) for name in directories}
        return found

    before = names()
    run(history, cache=tmp_path / "cache")
    assert names() == before
    assert not (tmp_path / "cache").exists()  # nor elsewhere, if nothing is to be kept


def test_a_position_is_kept_as_it_is(history: Sessions, tmp_path: Path) -> None:
    finding = Finding(b"\xff\n", (3, 2), "is bad", (1,), is_damage=False)
    for position in (Position(5, 3, None), Position(5, 3, b"a\xfe/b", Counts(1, 2, 3), (finding, finding))):
        with history.open() as repository:
            kept = KeptProgress(repository, b"", tmp_path / "cache")
            assert kept.read() is None
            kept.write(position)
            assert kept.read() == position
            kept.forget()
            assert kept.read() is None
    assert kept_progress._parse(kept_progress._format(position)) == position


def test_while_a_session_is_unfinished(history: Sessions) -> None:
    """Its increments count only where the mirror is not still what they preserve."""
    marker = history.data / f"current_mirror.{stamp(TIMES[3] + DAY)}.data"
    marker.write_bytes(b"PID 999999\n")
    (history.data / f"increments/b.{stamp(TIMES[3])}.diff.gz").write_bytes(b"half")
    outcome, _ = run(history)
    assert (outcome.newest, outcome.findings, outcome.counts.versions) == (TIMES[3], (), 10)


def test_a_disk_that_cannot_be_read_is_told(history: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tree.open_file

    def open_file(tree: Tree, path: bytes) -> int:
        if path == b"b":
            raise OSError(5, "Input/output error", path)
        return real(tree, path)

    monkeypatch.setattr(Tree, "open_file", open_file)
    outcome, _ = run(history)
    assert [(finding.path, finding.problem) for finding in outcome.findings] == [(b"b", "Input/output error")]


def test_lists_that_cannot_be_read(history: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    [newest] = history.data.glob(f"mirror_metadata.{stamp(TIMES[3])}.*")
    real = Tree.open_file

    def open_file(tree: Tree, path: bytes) -> int:
        if path == os.fsencode(newest.relative_to(history.repository)):
            raise OSError(5, "Input/output error", path)
        return real(tree, path)

    with monkeypatch.context() as patch:
        patch.setattr(Tree, "open_file", open_file)
        outcome, _ = run(history)
    assert outcome.problems[0].problem == "cannot be read (Input/output error)"
    newest.unlink()
    os.mkfifo(newest)
    assert run(history)[0].problems[0].problem == "is not a regular file"
