"""Verifying every session in one pass: each version once, and nothing is missed."""

from pathlib import Path

import pytest

from histfs.errors import HistfsError, NotFoundError
from histfs.store.verify import VerifyOutcome, verify_all
from tests.store.sessions import DAY, FIRST, Sessions
from tests.trees import Dir, File, build


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


def run(sessions: Sessions, path: bytes = b"") -> tuple[list[tuple[int, VerifyOutcome]], list[HistfsError]]:
    reported: list[HistfsError] = []
    with sessions.open() as repository:
        return list(verify_all(repository, path, report=reported.append)), reported


def test_each_version_is_read_once(history: Sessions) -> None:
    outcomes, reported = run(history)
    assert reported == []
    assert [(time, outcome.files) for time, outcome in outcomes] == [
        (FIRST + 3 * DAY, 4),
        (FIRST + 2 * DAY, 4),  # a, d/x, and both links
        (FIRST + DAY, 0),
        (FIRST, 2),
    ]
    assert [outcome.files for _, outcome in run(history, b"d")[0]] == [0, 1, 0, 1]


def test_what_is_damaged_is_told_once(history: Sessions) -> None:
    [increment] = (history.data / "increments/d").glob("x.*.snapshot.gz")
    increment.write_bytes(b"?")
    outcomes, reported = run(history)
    assert [outcome.mismatched for _, outcome in outcomes] == [0, 1, 0, 0]  # the first version needs none of it
    assert [(error.path, error.at) for error in reported] == [(b"d/x", FIRST + 2 * DAY)]


def test_a_list_that_cannot_be_read_costs_its_session(history: Sessions) -> None:
    lists = sorted(history.data.glob("mirror_metadata.*"))
    lists[1].write_bytes(b"?")
    outcomes, reported = run(history)
    assert [outcome.mismatched for _, outcome in outcomes] == [0, 0, 1, 1]
    assert len(reported) == 2


def test_what_was_never_there(history: Sessions, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        run(history, b"nowhere")
