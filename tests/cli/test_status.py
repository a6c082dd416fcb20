"""`histfs status`: words, JSON and exit codes."""

import json
import sys
import time

import pytest

from histfs.errors import DamagedError, NotARepositoryError
from histfs.store.format.stats import SessionStatistics
from histfs.store.lock import Writer
from histfs.store.status import Status

FIRST, SECOND, NEWEST = 1_714_550_400, 1_714_636_800, 1_714_723_200
STATISTICS = SessionStatistics(NEWEST, elapsed_s=125, source_files=7, source_file_bytes=4096)
GOOD = Status(
    sessions=(FIRST, SECOND, NEWEST),
    unfinished=None,
    is_first=False,
    writer=None,
    statistics=STATISTICS,
    damage=(),
    can_go_on=True,
)
WRITER = Writer(1234, NEWEST + 60.5, "cmd: histfs backup\x1b")
DAMAGE = (DamagedError("is bad", path=b"rdiff-backup-data/x"),)


@pytest.fixture
def asked(cli, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def asked(status, *argv, now=NEWEST + 14 * 3600):
        cli.outcomes["status"] = status
        return cli("--current-time", now, *argv, "repo")

    yield asked
    monkeypatch.undo()
    time.tzset()


def test_all_is_well(asked):
    ran = asked(GOOD, "status")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "last session:  2024-05-03T08:00:00+00:00, 14 hours ago",
        "  its files:   7 files, 4.00 KB, in 2 minutes",
        "sessions:      3, the first of 2024-05-01T08:00:00+00:00",
        "running:       nothing",
        "next backup:   adds a session",
        "damage:        none to be seen from outside",
    ]


@pytest.mark.parametrize(
    ("changes", "code", "said", "next_backup"),
    [
        ({"unfinished": NEWEST + 60}, 2, "cut off:       the session of 2024-05-03T08:01:00+00:00\n", "undoes"),
        ({"unfinished": NEWEST + 60, "writer": WRITER}, 0, "1234, since 2024-05-03T08:01:00+00:00 (cmd: ", "waits"),
        ({"writer": WRITER}, 0, "backup\\x1b)\n", "waits"),
        ({"statistics": STATISTICS._replace(errors=2)}, 8, "; 2 could not be read, or changed meanwhile\n", "adds"),
        ({"statistics": None}, 0, "", "adds"),
        ({"damage": DAMAGE}, 4, "damage:        1 to be seen from outside\n", "adds"),
        ({"damage": DAMAGE, "can_go_on": False}, 4, "refuses, because of the damage", "refuses"),
        ({"sessions": (), "is_first": True, "statistics": None}, 3, "cut off:       the first session\n", "resumes"),
        ({"sessions": (), "statistics": None}, 1, "last session:  none has finished\n", "adds"),
    ],
)
def test_what_is_not_well(asked, changes, code, said, next_backup):
    ran = asked(GOOD._replace(**changes), "status")
    assert ran.code == code
    assert said in ran.out
    assert ran.err.startswith(
        "histfs: rdiff-backup-data/x: is bad\nhistfs: note: `histfs verify --all`" if "damage" in changes else ""
    )
    assert bool(ran.err) == ("damage" in changes)
    ran = asked(GOOD._replace(**changes), "status", "--json")
    assert (ran.code, ran.err) == (code, "")
    told = json.loads(ran.out)
    assert told["next_backup"] == next_backup
    assert told["damage"] == [str(error) for error in changes.get("damage", ())]


def test_a_session_of_a_time_that_is_still_to_come(asked):
    """The clock was wrong: no session can follow, and monitoring must not take that for a very new one."""
    found = GOOD._replace(sessions=(*GOOD.sessions, NEWEST + 10**9))
    ran = asked(found, "status", "--since", "26h")
    assert ran.code == 2
    assert "T09:46:40+00:00, still to come\n" in ran.out
    assert "next backup:   refuses, as long as" in ran.out
    assert "`histfs --force regress` undoes that session" in ran.err
    assert json.loads(asked(found, "status", "--json").out)["next_backup"] == "is_early"


def test_a_session_must_have_finished_since(asked, cli, monkeypatch):
    """Sharply: one of that very second is enough."""
    for since, code in ((NEWEST, 0), (NEWEST + 1, 2)):
        monkeypatch.setattr(sys.modules["histfs.store.when"], "parse_when", lambda *_, since=since, **__: since)
        ran = asked(GOOD, "status", "--since", "26h")
        assert ran.code == code
        assert ("no session has finished since 2024-05-03T08:00:01+00:00" in ran.err) == bool(code)
        assert json.loads(asked(GOOD, "status", "--since", "26h", "--json").out)["is_late"] == bool(code)
    assert asked(GOOD._replace(sessions=(), statistics=None), "status", "--since", "26h").code == 3


def test_the_document(asked):
    told = json.loads(asked(GOOD._replace(unfinished=NEWEST + 60, writer=WRITER), "--parsable-output", "status").out)
    assert told == {
        "last": {
            "time": "2024-05-03T08:00:00+00:00",
            "seconds": NEWEST,
            "age_seconds": 14 * 3600,
            "files": 7,
            "bytes": 4096,
            "elapsed_seconds": 125,
            "errors": 0,
        },
        "is_late": False,
        "sessions": 3,
        "first": {"time": "2024-05-01T08:00:00+00:00", "seconds": FIRST},
        "running": {
            "pid": 1234,
            "says": "cmd: histfs backup\x1b",
            "time": "2024-05-03T08:01:00+00:00",
            "seconds": NEWEST + 60,
        },
        "is_broken": False,
        "unfinished": {"time": "2024-05-03T08:01:00+00:00", "seconds": NEWEST + 60},
        "next_backup": "waits",
        "damage": [],
    }


def test_no_repository(asked):
    ran = asked(NotARepositoryError("is none", path="repo"), "status")
    assert (ran.code, ran.out, ran.err) == (1, "", "histfs: repo: is none\n")
