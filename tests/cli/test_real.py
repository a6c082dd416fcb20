"""The command line over the real store, with small trees: what a person sees from the first backup to the rescue."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from histfs.cli import main
from tests.trees import Dir, File, Link, Symlink, build, compare

FIRST, SECOND, THIRD = 1_714_550_400, 1_714_636_800, 1_714_723_200
AWKWARD = b"esc\x1b[31m\n\xff -x"

MONDAY = Dir({"a": File(b"one\n"), "gone": File(b"soon"), "d": Dir({"b": File(b"b" * 5000), "l": Link("d/b")})})
TUESDAY = Dir(
    {"a": File(b"two\n", mtime=1_700_000_000), "d": Dir({"b": File(b"b" * 5000)}), AWKWARD: Symlink("../a")},
)


@pytest.fixture
def run(capfdbinary):
    def run(*argv):
        code = main([os.fsdecode(os.fspath(arg)) if not isinstance(arg, int) else str(arg) for arg in argv])
        out, err = (text.decode("utf-8", "surrogateescape") for text in capfdbinary.readouterr())
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def repo(tmp_path, run):
    """A repository of two sessions."""
    for number, (tree, time) in enumerate([(MONDAY, FIRST), (TUESDAY, SECOND)]):
        source = tmp_path / f"source{number}"
        build(source, tree)
        ran = run("--current-time", time, "backup", source, tmp_path / "repo")
        assert (ran.code, ran.err) == (0, "")
    return tmp_path / "repo"


def test_backup_sums_up(tmp_path, run):
    build(tmp_path / "source", MONDAY)
    ran = run("--current-time", FIRST, "backup", tmp_path / "source", tmp_path / "repo")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("6 files: ")
    assert ran.out.endswith(" bytes\n")
    ran = run("--current-time", SECOND, "backup", "--print-statistics", tmp_path / "source", tmp_path / "repo")
    stored = tmp_path / "repo" / "rdiff-backup-data" / "session_statistics.2024-05-02T08:00:00Z.data"
    assert ran.out == stored.read_text()


def test_backup_into_the_past_is_refused(tmp_path, run, repo):
    ran = run("--current-time", FIRST, "backup", tmp_path / "source1", repo)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("histfs: ")
    assert ran.err.count("\n") == 1


def test_backup_of_what_is_not_there(tmp_path, run):
    ran = run("backup", tmp_path / "nothing", tmp_path / "repo")
    assert ran.code & 1
    assert "nothing" in ran.err
    assert not (tmp_path / "repo").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_that_cannot_be_read(tmp_path, run):
    build(tmp_path / "source", MONDAY)
    (tmp_path / "source" / "a").chmod(0)
    ran = run("backup", tmp_path / "source", tmp_path / "repo")
    assert ran.code == 4
    assert ran.err.startswith("histfs: a: ")


@pytest.mark.parametrize(
    ("at", "tree"), [((), TUESDAY), (("--at", "1B"), MONDAY), (("--at=2024-05-02T08:00Z",), TUESDAY)]
)
def test_restore(tmp_path, run, repo, at, tree):
    ran = run("restore", *at, repo, tmp_path / "target")
    assert (ran.code, ran.err) == (0, "")
    assert compare(tmp_path / "target", tree) == []
    assert " restored to " in ran.out


def test_restore_of_a_part(tmp_path, run, repo):
    ran = run("restore", "--at", "1B", repo / "gone", tmp_path / "back")
    assert ran.out.startswith("1 file as of 2024-05-0")
    assert (tmp_path / "back").read_bytes() == b"soon"


def test_restore_overwrites_nothing(tmp_path, run, repo):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").touch()
    ran = run("restore", repo, tmp_path / "target")
    assert (ran.code, ran.out) == (1, "")
    assert os.listdir(tmp_path / "target") == ["precious"]


def test_restore_before_the_first_session(tmp_path, run, repo):
    ran = run("restore", "--at", "2024-04-01", repo, tmp_path / "target")
    assert (ran.code, ran.out) == (1, "")
    assert "2024-05-01" in ran.err
    assert not (tmp_path / "target").exists()


def test_list_sessions(run, repo):
    assert run("list", "sessions", "--utc", repo).out == (
        "@2024-05-01T08:00  2024-05-01T08:00:00+00:00  1714550400\n"
        "@2024-05-02T08:00  2024-05-02T08:00:00+00:00  1714636800  newest\n"
    )


def test_list_files(run, repo):
    assert run("list", "files", "--at", "1B", repo).out == ".\na\nd\nd/b\nd/l\ngone\n"
    assert run("list", "files", "--at", "1B", repo / "d").out == "d\nd/b\nd/l\n"
    assert run("list", "files", "--null", repo).out == f".\0a\0d\0d/b\0{os.fsdecode(AWKWARD)}\0"
    assert run("list", "files", repo / "gone").code == 1


def test_verify(run, repo):
    for at in ("0B", "1B"):
        ran = run("verify", "--at", at, repo)
        assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_verify_finds_what_is_not_what_it_was(run, repo):
    status = os.stat(repo / "a")
    (repo / "a").write_bytes(b"TWO\n")
    os.utime(repo / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    ran = run("verify", repo)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith(f"histfs: {repo}/a at 2024-05-0")
    assert ran.err.count("\n") == 1
    assert run("verify", repo / "d").code == 0


def test_restore_goes_on_after_damage(tmp_path, run, repo):
    (repo / "a").write_bytes(b"TWO\n")
    ran = run("restore", repo, tmp_path / "target")
    assert ran.code == 4
    assert f"histfs: {tmp_path}/repo/a at 2024-05-0" in ran.err
    assert (tmp_path / "target" / "d" / "b").read_bytes() == b"b" * 5000


def cut_off_a_session(repo, pid):
    """What a session of process `pid` leaves that died right after its first step, and the name of its marker."""
    data = repo / "rdiff-backup-data"
    marker = data / "current_mirror.2024-05-03T08:00:00Z.data"
    marker.write_text(f"PID {pid}\n")
    return marker


def test_regress(run, repo):
    ran = run("regress", repo)
    assert (ran.code, ran.err) == (0, "")
    marker = cut_off_a_session(repo, 2**22 + 1)
    assert "note: the session of 2024-05-03" in run("list", "sessions", "--utc", repo).err
    assert run("--quiet", "list", "files", repo).err == ""
    assert run("regress", repo).code == 2
    assert not marker.exists()
    assert run("regress", repo).code == 0


def test_backup_undoes_what_was_cut_off(tmp_path, run, repo):
    cut_off_a_session(repo, 2**22 + 1)
    ran = run("--current-time", THIRD + 1, "backup", tmp_path / "source0", repo)
    assert ran.code == 2
    assert "cut off" in ran.err
    assert run("restore", repo, tmp_path / "target").code == 0
    assert compare(tmp_path / "target", MONDAY) == []


def test_regress_of_a_session_that_may_still_run(run, repo):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        marker = cut_off_a_session(repo, process.pid)
        ran = run("regress", repo)
        assert (ran.code, ran.out) == (1, "")
        assert str(process.pid) in ran.err
        assert marker.exists()
        assert run("--force", "regress", repo).code == 2
        assert not marker.exists()
        process.communicate(b"\n")


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_mount_in_the_background_and_umount(tmp_path, repo):
    def histfs(*argv):
        # In a process of its own: it forks, and keeps nothing of ours open but what we gave it.
        ran = subprocess.run([sys.executable, "-m", "histfs", *argv], capture_output=True, timeout=60, check=False)
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    mountpoint = tmp_path / "history"
    mountpoint.mkdir()
    code, out, err = histfs("mount", "--utc", "--log-file", tmp_path / "log", repo, mountpoint)
    assert (code, err) == (0, "")
    assert f"`histfs umount {mountpoint}`" in out
    try:
        shown = compare(mountpoint / "@2024-05-01T08:00", MONDAY)
        assert [line for line in shown if not line.startswith("b'' ")] == []  # its root has the session's own time
        assert histfs("mount", repo, mountpoint)[0] == 1
    finally:
        assert histfs("umount", mountpoint) == (0, "", "")
    assert os.listdir(mountpoint) == []
    assert histfs("umount", mountpoint)[0] == 1


class TestSelection:
    @pytest.fixture
    def source(self, tmp_path):
        build(tmp_path / "source", Dir({"a": File(b"a"), "b": Dir({"c": File(b"c")}), "d": File(b"d")}))
        return tmp_path / "source"

    def test_rules_in_their_order(self, tmp_path, run, source):
        ran = run("backup", "--exclude", "./b/c", "--include", "b", "--exclude", "*", source, tmp_path / "repo")
        assert (ran.code, ran.err) == (0, "")
        assert sorted(os.listdir(tmp_path / "repo")) == ["b", "rdiff-backup-data"]
        assert os.listdir(tmp_path / "repo" / "b") == []

    @pytest.mark.parametrize("name", ["filelist", "globbing-filelist"])
    def test_a_list_from_standard_input(self, tmp_path, run, source, name, monkeypatch):
        (tmp_path / "list").write_bytes(b"a\0" + os.fsencode(source) + b"/b\0")
        with open(tmp_path / "list") as standard_input:
            monkeypatch.setattr("sys.stdin", standard_input)
            ran = run("--null-separator", "backup", f"--exclude-{name}-stdin", source, tmp_path / "repo")
        assert (ran.code, ran.err) == (0, "")
        assert sorted(os.listdir(tmp_path / "repo")) == ["d", "rdiff-backup-data"]

    def test_a_standard_input_that_cannot_be_read(self, tmp_path, run, source, monkeypatch):
        monkeypatch.setattr("sys.stdin", None)
        ran = run("backup", "--exclude-filelist-stdin", source, tmp_path / "repo")
        assert (ran.code, ran.out) == (1, "")
        assert "standard input is closed" in ran.err

    def test_lines_that_name_nothing_are_named(self, tmp_path, run, source):
        (tmp_path / "list").write_text("".join(f"/elsewhere/\x1b{number}\n" for number in range(8)))
        ran = run("-q", "backup", "--exclude-filelist", tmp_path / "list", source, tmp_path / "repo")
        assert ran.code == 0
        assert len(ran.err.splitlines()) == 6
        assert "line 1 of --exclude-filelist" in ran.err
        assert "/elsewhere/\\x1b0 is not in the tree" in ran.err
        assert "3 more lines" in ran.err

    def test_what_cannot_be_done(self, tmp_path, run, source):
        for options, problem in (
            (["--exclude-filelist-stdin", "--include-filelist-stdin"], "only once"),
            (["--exclude-filelist", tmp_path / "missing"], "missing: cannot be read (No such file or directory)"),
            (["--exclude-filelist", tmp_path], "Is a directory"),
            (["--exclude", "/elsewhere"], "cannot match"),
            (["--include", "a"], "only includes"),
        ):
            ran = run("backup", *options, source, tmp_path / "repo")
            assert (ran.code, ran.out) == (1, "")
            assert problem in ran.err
            assert not (tmp_path / "repo").exists()


class TestExplain:
    @pytest.fixture
    def source(self, tmp_path):
        build(
            tmp_path / "source",
            Dir({"a": File(b"a"), "b": Dir({"c.x": File(b"c"), "d": Dir({"e": File()})}), "q": Dir()}),
        )
        return tmp_path / "source"

    def test_which_rule_decides(self, tmp_path, run, source):
        (tmp_path / "list").write_text("\nb/d\n")
        rules = ["--exclude-filelist", tmp_path / "list", "--include", "*.x", "--exclude", "[bq]", "--exclude-fifos"]
        ran = run("explain", *rules, source, ".", "a", source / "b", "./b/c.x", "b/d/e", "q")
        assert (ran.code, ran.err) == (0, "")
        scanned = "included if something in it is, as it may hold what is wanted by --include *.x"
        assert ran.out.splitlines() == [
            ".: included, as no rule is about it",
            "a: included, as no rule is about it",
            f"b: {scanned}",
            "b/c.x: included by --include *.x",
            f"b/d/e: excluded, as its directory b/d is, by line 2 of --exclude-filelist {tmp_path / 'list'}: b/d",
            f"q: {scanned}",
        ]
        ran = run("backup", *rules, source, tmp_path / "repo")
        assert sorted(os.listdir(tmp_path / "repo")) == ["a", "b", "rdiff-backup-data"]
        assert os.listdir(tmp_path / "repo" / "b") == ["c.x"]

    def test_json(self, run, source):
        ran = run("explain", source, "--exclude", "./b", "--json", "b/c.x", ".")
        rule = {"option": "--exclude", "argument": "./b", "line": 0, "text": ""}
        assert json.loads(ran.out) == [
            {"path": "b/c.x", "outcome": "excluded", "decided": "b", "rule": rule},
            {"path": ".", "outcome": "included", "decided": ".", "rule": None},
        ]

    def test_what_is_not_there(self, tmp_path, run, source):
        ran = run("explain", source, "a", "b/no", "a/b")
        assert ran.code == 4
        assert ran.out == "a: included, as no rule is about it\n"
        assert ran.err.splitlines() == [f"histfs: {path}: is not there" for path in ("b/no", "a/b")]
        for path in ("../x", "/elsewhere"):
            ran = run("explain", source, path)
            assert (ran.code, ran.out) == (1, "")
            assert "does not lie in SRC" in ran.err
        assert run("explain", tmp_path / "no", "x").code == 1

    def test_what_was_moved(self, tmp_path, run, source, monkeypatch):
        monkeypatch.setattr("histfs.store.ledger._SETTLED_AFTER_NS", -(10**12))
        (source / "photos").mkdir()
        for name in ("photos/one", "two", "three"):
            (source / name).write_bytes(os.urandom(20_000))
        assert run("backup", source, tmp_path / "repo").code == 0
        (source / "photos").rename(source / "2024")
        (source / "two").rename(source / "2")
        shutil.copy2(source / "three", source / "3")
        ran = run("explain", "--why", tmp_path / "repo", source, "2024/one", "2", "3")
        assert ran.out.splitlines() == [
            "2: it is new, and was two before, if it has the same content",
            "2024/one: it is new, and was photos/one before",
            "3: it is new",
        ]

    def test_what_has_changed(self, tmp_path, run, source, monkeypatch):
        monkeypatch.setattr("histfs.store.ledger._SETTLED_AFTER_NS", -(10**12))  # as if it were made long before
        for name in ("same", "moved", "longer", "touched", "gone", "mode"):
            (source / name).write_bytes(b"12345")
            os.utime(source / name, ns=(10**18, 10**18))
        assert run("backup", source, tmp_path / "repo").code == 0
        (source / "new").touch()
        (source / "longer").write_bytes(b"123456")
        (source / "touched").write_bytes(b"54321")
        os.utime(source / "touched", ns=(10**18, 10**18))
        (source / "moved").rename(tmp_path / "elsewhere")
        (source / "moved").write_bytes(b"54321")
        os.utime(source / "moved", ns=(10**18, 10**18))
        (source / "mode").chmod(0o600)
        (source / "gone").unlink()
        names = ("same", "moved", "longer", "touched", "gone", "mode", "new", "never")
        ran = run("explain", "--why", tmp_path / "repo", source, *names)
        assert ran.code == 4
        assert ran.err == "histfs: never: is not there, and was not in the last session\n"
        assert ran.out.splitlines() == [
            "gone: it is not there any more",
            "longer: its content is another; its time is another",
            "mode: its mode is another",
            "moved: it is another file of the same size and time (its inode number is another)",
            "new: it is new",
            "same: it is as it was",
            "touched: something of it was changed since (the change time of its inode)",
        ]
        ran = run("explain", "--why", tmp_path / "repo", "--json", source, "same", "new")
        assert json.loads(ran.out) == [{"path": "new", "why": ["it is new"]}, {"path": "same", "why": []}]
        assert run("explain", "--why", tmp_path / "no", source, "same").code == 1


def test_results_for_programs_by_either_option(run, tmp_path):
    build(tmp_path / "source", Dir({"a": File(b"a")}))
    repository, target = tmp_path / "repository", tmp_path / "target"
    run("backup", tmp_path / "source", repository)
    for verb in (
        ("verify", repository),
        ("list", "sessions", repository),
        ("list", "files", repository),
        ("explain", tmp_path / "source", "a"),
        ("restore", "--dry-run", repository, target),
    ):
        assert json.loads(run("--parsable-output", *verb).out) == json.loads(run(*verb, "--json").out), verb


@pytest.mark.parametrize("expression", ["a{99999999999}", "(" * 5000 + ")" * 5000, "("])
def test_what_is_no_regular_expression(run, tmp_path, expression):
    (tmp_path / "source").mkdir()
    ran = run("backup", "--not-compressed-regexp", expression, tmp_path / "source", tmp_path / "repository")
    assert ran.code == 1
    assert "not a regular expression" in ran.err
    assert "bug" not in ran.err
