"""What verbs say where a list of files is damaged: which sessions that costs, and what to do."""

import json

import pytest

from histfs.cli import main
from tests.cli import four_sessions
from tests.cli.four_sessions import TIMES


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    four_sessions.use_utc(tmp_path, monkeypatch)


@pytest.fixture
def repository(tmp_path):
    return four_sessions.make(tmp_path)


def lists(repository):
    return sorted((repository / "rdiff-backup-data").glob("mirror_metadata.*.gz"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def run(capfd, *argv):
    code = main(list(map(str, argv)))
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize("verb", ["versions", "increments"])
def test_history_without_the_newest_list(repository, capfd, verb):
    newest = lists(repository)[-1]
    cut(newest)
    code, out, err = run(capfd, "list", verb, repository / "a")
    assert (code, out) == (5, "")
    first, second = err.splitlines()
    assert first.startswith(f"histfs: {newest}: ")
    assert first.endswith(
        "; versions of 4 sessions, of 2023-11-14T22:13:20+00:00 to 2023-11-17T22:13:20+00:00, are missing here"
    )
    assert second == f"histfs: {repository}/a: nothing of this name was in any session that can be read"


def test_versions_without_an_older_list(repository, capfd):
    cut(lists(repository)[1])
    code, out, err = run(capfd, "list", "versions", "--json", repository / "a")
    assert code == 4
    assert [(version["seconds"], version["changed"][0]) for version in json.loads(out)] == [
        (TIMES[2], "new"),
        (TIMES[3], "content"),
    ]
    [line] = err.splitlines()
    assert "versions of 2 sessions, of 2023-11-14T22:13:20+00:00 to 2023-11-15T22:13:20+00:00, are missing" in line


def test_a_session_that_cannot_be_read_is_no_deletion(repository, capfd):
    """Of the newest session nothing is known; all others have a list that is whole."""
    import gzip

    older, newest = lists(repository)[-2:]
    whole = gzip.decompress(newest.read_bytes())
    older.unlink()
    older.with_name(older.name.replace(".diff.", ".snapshot.")).write_bytes(gzip.compress(whole))
    cut(newest)
    code, out, _ = run(capfd, "list", "versions", repository / "d/b")
    assert code == 4
    assert "deleted" not in out
    assert len(out.splitlines()) == 1


REPAIR = "histfs repair '{}'` makes it anew (`--dry-run` shows what it would do), and the newest files lie in"


@pytest.fixture
def blank(repository):
    """With a blank in its name, so that a command needs quotes."""
    return repository.rename(repository.with_name("my repository"))


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "command",
    ["backup {source} {}", "restore {}/a {target}", "list files {}", "verify {}", "compare {source} {}"],
)
def test_the_newest_list_can_be_repaired(blank, tmp_path, capfd, command, damage):
    damage(lists(blank)[-1])
    places = {"source": tmp_path / "source", "target": tmp_path / "target"}
    words = [word.format(blank, **places) for word in command.split(" ")]
    code, _, err = run(capfd, *words)
    assert code & 1
    assert REPAIR.format(blank) in err
    assert run(capfd, "repair", blank)[0] == 0
    assert run(capfd, *words)[0] & 5 == 0


def test_an_older_list_cannot(blank, capfd):
    cut(lists(blank)[1])
    code, _, err = run(capfd, "list", "files", "--at", TIMES[1], blank)
    assert (code, "sessions that do not need this list can still be read" in err, "repair" in err) == (5, True, False)


def test_a_lost_marker_can_be_repaired(blank, tmp_path, capfd):
    next((blank / "rdiff-backup-data").glob("current_mirror.*")).unlink()
    code, _, err = run(capfd, "backup", tmp_path / "source", blank)
    assert code & 1
    assert f"`histfs repair '{blank}'` writes it" in err
    assert run(capfd, "repair", blank)[0] == 0
    assert run(capfd, "backup", tmp_path / "source", blank)[0] == 0


def test_status_tells_that_backup_will_refuse(blank, capfd):
    cut(lists(blank)[-1])
    code, out, err = run(capfd, "status", blank)
    assert code == 4
    assert "refuses, because of the damage" in out
    assert "`histfs repair` makes it anew" in err
