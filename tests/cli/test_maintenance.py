"""`remove` and `list increments` on real repositories: words, tables, documents and exit codes."""

import json

import pytest

from histfs.cli import main
from histfs.store.backup import backup
from histfs.store.repository import Repository
from tests.cli import four_sessions
from tests.cli.four_sessions import DAY, TIMES


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    four_sessions.use_utc(tmp_path, monkeypatch)


@pytest.fixture
def repository(tmp_path):
    return four_sessions.make(tmp_path)


def sessions(repository):
    with Repository.open(repository) as opened:
        return list(opened.sessions())


def run(capfd, *argv):
    code = main(list(map(str, argv)))
    out, err = capfd.readouterr()
    return code, out, err


def test_one_session_goes_without_force(repository, capfd):
    code, out, err = run(capfd, "remove", "increments", "--older-than", TIMES[1], repository)
    assert (code, out, err) == (0, "removed @2023-11-14T22:13\n", "")
    assert sessions(repository) == TIMES[1:]


def test_several_are_listed_and_stay_without_force(repository, capfd):
    code, out, err = run(capfd, "remove", "increments", "--older-than", "1B", repository)
    assert (code, out) == (1, "")
    assert "2 sessions are older: @2023-11-14T22:13, @2023-11-15T22:13; " in err
    assert "--force" in err
    assert sessions(repository) == TIMES
    assert run(capfd, "--force", "remove", "increments", "--older-than", "1B", repository)[0] == 0
    assert sessions(repository) == TIMES[2:]


def test_sizes_of_what_goes(repository, capfd):
    code, out, _ = run(capfd, "remove", "increments", "--size", "--older-than", TIMES[1], repository)
    assert code == 0
    assert out.startswith("removed @2023-11-14T22:13 (")
    assert out.endswith(" bytes)\n")


@pytest.mark.parametrize("time", ["1", "99Y", TIMES[0]])
def test_nothing_is_old_enough(repository, capfd, time):
    code, out, err = run(capfd, "remove", "increments", "--older-than", time, repository)
    assert (code, out) == (2, "")
    assert err.startswith("histfs: note: no session is older")
    assert sessions(repository) == TIMES


@pytest.mark.parametrize("time", ["foo", "", "@2001-01-01T00:00"])
def test_what_is_no_time(repository, capfd, time):
    assert run(capfd, "--force", "remove", "increments", "--older-than", time, repository)[0] == 1
    assert sessions(repository) == TIMES


def test_the_newest_stays(repository, capfd):
    assert run(capfd, "--force", "remove", "increments", "--older-than", "now", repository)[0] == 0
    assert sessions(repository) == TIMES[-1:]
    assert run(capfd, "--force", "remove", "increments", "--older-than", "now", repository)[0] == 2


def test_only_whole_repositories(repository, capfd):
    assert run(capfd, "remove", "increments", "--older-than", "1B", repository / "d")[0] == 1
    assert run(capfd, "remove", "increments", "--older-than", "1B", repository.parent / "nowhere")[0] == 1


def test_increments_of_all(repository, capfd):
    code, out, _ = run(capfd, "list", "increments", repository)
    assert code == 0
    assert out.splitlines() == [
        "Found 3 increments:",
        "    increments.2023-11-14T22:13:20Z.dir   Tue Nov 14 22:13:20 2023",
        "    increments.2023-11-15T22:13:20Z.dir   Wed Nov 15 22:13:20 2023",
        "    increments.2023-11-16T22:13:20Z.dir   Thu Nov 16 22:13:20 2023",
        "Current mirror: Fri Nov 17 22:13:20 2023",
    ]


@pytest.mark.parametrize("arguments", [("list", "increments", "--json"), ("--parsable-output", "list", "increments")])
def test_increments_of_a_path_as_a_document(repository, capfd, arguments):
    code, out, _ = run(capfd, *arguments, repository / "a")
    assert code == 0
    found = json.loads(out)
    assert [(item["time"], item["type"]) for item in found] == [(time, "regular") for time in TIMES]
    assert found[0]["base"].startswith("a.2023-11-14T22:13:20Z.")
    assert found[-1]["base"] == "a"


def test_sizes_with_and_without_statistics(repository, capfd):
    def sizes(path):
        code, out, _ = run(capfd, "list", "increments", "--size", "--json", path)
        assert code == 0
        return json.loads(out)

    found = sizes(repository)
    assert [item["time"] for item in found] == TIMES
    assert found[-1] == {"size": 3003, "time": TIMES[-1], "total_size": 3003}
    assert found[0]["total_size"] == sum(item["size"] for item in found)
    assert sizes(repository / "a")[:-1] == [item | {"total_size": item["total_size"] - 1000} for item in found[:-1]]
    for path in (repository / "rdiff-backup-data").glob("session_statistics.*"):
        path.unlink()
    assert sizes(repository) == found


def test_a_table_of_sizes(repository, capfd):
    code, out, _ = run(capfd, "list", "increments", "--size", repository)
    lines = out.splitlines()
    assert code == 0
    assert lines[1] == "------------------------ ----------------- -----------------"
    assert lines[-1] == "Fri Nov 17 22:13:20 2023           2.93 KB           2.93 KB  (current mirror)"


def test_a_path_that_never_was(repository, capfd):
    code, out, err = run(capfd, "list", "increments", repository / "nope")
    assert (code, out) == (1, "")
    assert "nope: nothing of this name was ever in the repository" in err


def test_changed_since(repository, capfd):
    code, out, _ = run(capfd, "list", "files", "--changed-since", TIMES[1], repository)
    assert (code, out) == (0, "changed a\n")
    assert run(capfd, "list", "files", "--changed-since", TIMES[1], repository / "d")[:2] == (0, "")
    code, out, _ = run(capfd, "list", "files", "--json", "--changed-since", TIMES[1], repository)
    assert json.loads(out) == [{"path": "a", "change": "changed"}]
    assert run(capfd, "list", "files", "--changed-since", TIMES[1], repository / "nope")[0] == 1
    assert run(capfd, "list", "files", "--changed-since", "1B", "--at", "1B", repository)[0] == 1


def test_versions_of_a_path(repository, tmp_path, capfd):
    source = tmp_path / "source"
    (source / "a").chmod(0o600)
    backup(source, repository, now=TIMES[-1] + DAY, report=pytest.fail)
    (source / "a").unlink()
    backup(source, repository, now=TIMES[-1] + 2 * DAY, report=pytest.fail)
    code, out, _ = run(capfd, "list", "versions", repository / "a")
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    assert code == 0
    assert [line[0] for line in lines] == [f"@2023-11-{day}T22:13" for day in range(14, 20)]
    assert [line[1] for line in lines] == ["2000", "2001", "2002", "2003", "2003", "-"]
    assert lines[0][3] == "new"
    assert "content" in lines[1][3]
    assert [line[3] for line in lines[4:]] == ["mode", "deleted"]
    code, out, _ = run(capfd, "list", "versions", "--json", repository / "a")
    found = json.loads(out)
    assert code == 0
    assert [item["seconds"] for item in found] == [*TIMES, TIMES[-1] + DAY, TIMES[-1] + 2 * DAY]
    assert found[0]["time"] == "2023-11-14T22:13:20+00:00"
    assert found[0]["last"] == {"time": "2023-11-14T22:13:20+00:00", "seconds": TIMES[0]}
    assert found[4]["mode"] == "0600"
    assert "size" not in found[5]


def test_versions_of_what_never_was(repository, capfd):
    code, out, err = run(capfd, "list", "versions", repository / "nope")
    assert (code, out) == (1, "")
    assert "nope: nothing of this name was ever in the repository" in err


def test_a_path_goes_from_all_sessions(repository, capfd):
    before = sorted(repository.rglob("*"))
    code, out, err = run(capfd, "remove", "file", "--dry-run", repository / "d", repository / "nope")
    assert code == 2
    assert f"would remove {repository}/d\n" in out
    assert f"would rewrite {repository}/rdiff-backup-data/mirror_metadata." in out
    assert "nope: was never in the repository" in err
    assert sorted(repository.rglob("*")) == before
    code, out, err = run(capfd, "remove", "file", repository / "d")
    assert (code, out, err) == (0, f"removed {repository}/d from all sessions\n", "")
    assert not (repository / "d").exists()
    for time in TIMES:
        assert run(capfd, "list", "files", "--at", time, repository)[1] == ".\na\n"
    assert run(capfd, "remove", "file", repository / "d")[0] == 2


@pytest.mark.parametrize("path", ["", "rdiff-backup-data", "rdiff-backup-data/increments", "../elsewhere"])
def test_what_cannot_be_removed(repository, capfd, path):
    before = sorted(repository.rglob("*"))
    assert run(capfd, "remove", "file", repository / "d", repository / path)[0] == 1
    assert sorted(repository.rglob("*")) == before


NAMING = ("list files {}", "verify {}", "compare {source} {}", "restore {} {target}")


@pytest.mark.parametrize("command", NAMING)
def test_what_was_not_there_then_and_when_it_was(repository, tmp_path, capfd, command):
    places = {"source": tmp_path / "source", "target": tmp_path / "target"}
    code, out, err = run(capfd, *command.format(repository / "d/c\n", **places).split(" "))
    assert (code, out) == (1, "")
    assert err == (
        f"histfs: {repository}/d/c\\n at 2023-11-17T22:13:20+00:00: was not there at this time; "
        "it was never in the repository: check how it is spelt\n"
    )
    (repository / "rdiff-backup-data/histfs/catalog.sqlite").unlink()
    _, _, err = run(capfd, *command.format(repository / "d/c\n", **places).split(" "))
    assert err.endswith(f"; `histfs list versions $'{repository}/d/c\\n'` shows when it was\n")


@pytest.mark.parametrize("command", NAMING)
def test_what_was_there_at_other_times(repository, tmp_path, capfd, command):
    source = tmp_path / "source"
    (source / "d/b").rename(source / "d/it's new")
    backup(source, repository, now=TIMES[-1] + DAY, report=pytest.fail)
    places = {"source": source, "target": tmp_path / "target"}
    _, _, err = run(capfd, *command.format(repository / "d/b", **places).split(" "))
    assert err.endswith(
        f"was not there at this time; it was last there at 2023-11-17T22:13:20+00:00; `histfs list versions"
        f" {repository}/d/b` shows all that became of it\n"
    )
    if "compare" in command:
        return
    words = command.format("REPO", **places).split(" ")
    words[words.index("REPO")] = str(repository / "d/it's new")
    verb = 2 if words[0] == "list" else 1
    _, _, err = run(capfd, *words[:verb], "--at", "1B", *words[verb:])
    assert err.endswith(
        f"it was there first at 2023-11-18T22:13:20+00:00; `histfs list versions '{repository}/d/it'\"'\"'s new'`"
        " shows all that became of it\n"
    )


@pytest.mark.parametrize("command", [*NAMING, "list versions {}", "list increments {}"])
@pytest.mark.parametrize("name", ["", "/mirror_metadata"])
def test_the_history_itself_is_no_file_of_the_backup(repository, tmp_path, capfd, command, name):
    places = {"source": tmp_path / "source", "target": tmp_path / "target"}
    path = f"{repository}/rdiff-backup-data{name}"
    code, out, err = run(capfd, *command.format(path, **places).split(" "))
    assert (code, out) == (1, "")
    assert err == f"histfs: {path}: is the history itself, not a file of the backup\n"


def test_removed_sessions_as_a_document(repository, capfd):
    command = ("--force", "remove", "increments", "--json", "--older-than", "1B", repository)
    code, out, err = run(capfd, *command)
    told = json.loads(out)
    assert (code, err) == (0, "histfs: removed @2023-11-14T22:13; @2023-11-15T22:13\n")
    assert told["removed"] == [
        {"time": "2023-11-14T22:13:20+00:00", "seconds": TIMES[0]},
        {"time": "2023-11-15T22:13:20+00:00", "seconds": TIMES[1]},
    ]
    assert told["files"] > 2
    code, out, _ = run(capfd, *command)
    assert (code, json.loads(out)) == (2, {"removed": [], "files": 0})


def test_removed_paths_as_a_document(repository, capfd):
    paths = (f"{repository}/d", f"{repository}/nope")
    code, out, _ = run(capfd, "remove", "file", "--json", "--dry-run", *paths)
    would = json.loads(out)
    assert (code, would["dry_run"]) == (2, True)
    assert (would["removed"], would["not_found"]) == ([paths[0]], [paths[1]])
    assert paths[0] in would["files_removed"]
    assert any("mirror_metadata" in name for name in would["files_rewritten"])
    code, out, _ = run(capfd, "remove", "file", "--json", *paths)
    assert (code, json.loads(out)) == (2, would | {"dry_run": False})


def test_removed_paths_are_in_the_log(repository, capfd):
    log = repository / "rdiff-backup-data" / "remove.log"
    run(capfd, "remove", "file", "--dry-run", repository / "d")
    run(capfd, "remove", "file", repository / "nope")
    assert not log.exists()
    assert run(capfd, "--quiet", "remove", "file", repository / "d")[0] == 0
    heading, line = log.read_text().splitlines()
    assert heading.endswith(f" remove file {repository}/d")
    assert line == f"NOTE: removed {repository}/d from all sessions"


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is an empty file"), (b"\xfe\x00\x1b[31m" * 20, "is no list of files")]
)
def test_a_list_that_is_none_is_named_and_not_shown(repository, capfd, content, problem):
    [path] = (repository / "rdiff-backup-data").glob("mirror_metadata.*.snapshot.gz")
    path.write_bytes(content)
    code, out, err = run(capfd, "list", "files", repository)
    assert (code, out) == (5, "")
    assert f"histfs: {path} at 2023-11-17T22:13:20+00:00: {problem}; " in err
    assert "31m" not in err
    code, out, _ = run(capfd, "status", repository)
    assert code == 4
    assert "next backup:   refuses, because of the damage\n" in out


def test_who_verifies_is_not_told_to_verify(repository, tmp_path, capfd):
    (repository / "a").write_bytes(b"x" * 2003)
    code, _, err = run(capfd, "verify", repository)
    assert code == 4
    assert err.endswith("; versions at other sessions may be intact\n")
    code, _, err = run(capfd, "restore", repository, tmp_path / "target")
    assert "; `histfs verify` lists what is damaged; versions at other sessions may be intact\n" in err
    assert code == 4
