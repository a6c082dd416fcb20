"""Options before the verb, and arguments in files."""

import os
import sys
import tempfile

import pytest

from histfs.cli.general import expanded
from histfs.cli.output import Output
from histfs.errors import DamagedError, StorageError, UsageError

PROBLEM = DamagedError("is damaged", path=b"etc")


class TestVerbosity:
    """Of four kinds of messages each level says more than the one below."""

    @pytest.fixture
    def said(self, cli, monkeypatch):
        monkeypatch.delenv("RDIFF_BACKUP_VERBOSITY", raising=False)
        monkeypatch.delenv("HISTFS_DEBUG", raising=False)

        def said(*argv):
            cli.outcomes["regress"] = None
            summary = cli(*argv, "regress", "repo").out
            cli.reports, cli.outcomes["verify"] = [PROBLEM], DamagedError("stopped")
            problem, _, error = cli(*argv, "verify", "repo/sub").err.rpartition("histfs: stopped")
            cli.outcomes["verify"] = ZeroDivisionError("a bug")
            traceback = cli(*argv, "verify", "repo/sub").err
            return sum(map(bool, (error, problem, summary, "Traceback" in traceback)))

        return said

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ((), 3),
            (("-v0",), 0),
            (("-v1",), 1),
            (("-v", "2"), 2),
            (("--verbosity=3",), 3),
            (("-v5",), 3),
            (("-v8",), 4),
            (("-v9",), 4),
            (("-q",), 2),
            (("-q", "-v5"), 2),
            (("--terminal-verbosity=1", "-v5"), 1),
            (("-v1", "--terminal-verb=3"), 3),
        ],
    )
    def test_levels(self, said, argv, expected):
        assert said(*argv) == expected

    @pytest.mark.parametrize(("level", "expected"), [("0", 0), ("1", 1), ("9", 4), ("10", 3), ("", 3), ("high", 3)])
    def test_of_the_environment(self, said, monkeypatch, level, expected):
        monkeypatch.setenv("RDIFF_BACKUP_VERBOSITY", level)
        assert said() == expected
        assert said("-v2") == 2

    def test_results_and_exit_codes_are_the_same_at_every_level(self, cli):
        cli.repository.damage = [PROBLEM]
        for argv in ("-v0", "-v3", "-v9"):
            ran = cli(argv, "list", "files", "repo/etc")
            assert (ran.out, ran.code) == ("etc\netc/passwd\n", 4)

    @pytest.mark.parametrize("level", ["10", "-1", "x", "", "٣", "12"])
    def test_what_is_no_level(self, cli, level):
        ran = cli(f"--verbosity={level}", "regress", "repo")
        assert (ran.code, cli.calls) == (1, {})
        assert "a digit from 0 to 9 is needed" in ran.err


def test_what_a_person_reads_does_not_go_between_results(capsys):
    output = Output()
    output.results_only = True
    output.tell("all is well")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "histfs: all is well\n")


class TestTemporaryFiles:
    def test_are_made_there_and_nowhere_else_afterwards(self, cli, monkeypatch, tmp_path):
        monkeypatch.setenv("TMPDIR", "/somewhere")
        before = tempfile.tempdir
        seen = []

        def look(*_args, **_options):
            seen.extend([tempfile.gettempdir(), os.environ["TMPDIR"]])

        monkeypatch.setattr(sys.modules["histfs.store.regress"], "regress", look)
        assert cli("--tempdir", tmp_path, "regress", "repo").code == 0
        assert seen == [str(tmp_path)] * 2
        assert (tempfile.tempdir, os.environ["TMPDIR"]) == (before, "/somewhere")

    def test_without_a_variable(self, cli, monkeypatch, tmp_path):
        monkeypatch.delenv("TMPDIR", raising=False)
        cli.outcomes["regress"] = None
        assert cli("--tempdir", tmp_path, "regress", "repo").code == 0
        assert "TMPDIR" not in os.environ

    def test_need_a_directory(self, cli, tmp_path):
        ran = cli("--tempdir", tmp_path / "nothing", "regress", "repo")
        assert (ran.code, cli.calls) == (1, {})
        assert "is no directory for temporary files" in ran.err


class TestWhatMattersBetweenTwoComputers:
    @pytest.mark.parametrize(
        ("argv", "warned"),
        [
            (("--api-version", "200"), ""),
            (("--api-version=201", "--new"), ""),
            (("--remote-schema", "ssh {h}"), "--remote-schema"),
            (("--remote-tempdir", "/tmp"), "--remote-tempdir"),
            (("--ssh-compression",), "--ssh-compression"),
            (("--no-ssh-compression",), "--ssh-compression"),
        ],
    )
    def test_is_accepted(self, cli, argv, warned):
        cli.outcomes["regress"] = None
        ran = cli(*argv, "regress", "repo")
        assert ran.code == 0
        assert ran.err == (f"histfs: {warned} does nothing, as no other computer takes part\n" if warned else "")
        assert cli(*argv, "-v1", "regress", "repo").err == ""

    @pytest.mark.parametrize("argv", [("--api-version=300",), ("--api-version", "x"), ("--no-new",)])
    def test_what_cannot_be(self, cli, argv):
        assert cli(*argv, "regress", "repo").code == 1
        assert cli.calls == {}


class TestArgumentsInFiles:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def write(self, name, text):
        with open(name, "wb") as file:
            file.write(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (b"", []),
            (b"a b\n", ["a b"]),
            (b"a\nb", ["a", "b"]),
            (b"a\r\n\r\nb\n\n", ["a", "", "b", ""]),
            (b"\n", [""]),
            (b"# 'a\\n'\x0b\n\xff\x85\n", ["# 'a\\n'\x0b", "\udcff\udc85"]),
            (b"@2024-05-03T10:00\n", ["@2024-05-03T10:00"]),
        ],
    )
    def test_are_lines(self, text, expected):
        self.write("args", text)
        assert expanded(["1", "@args", "2"]) == ["1", *expected, "2"]

    def test_may_be_in_files_that_files_name(self):
        self.write("outer", b"-v\n@inner\nregress\n")
        self.write("inner", b"5\n")
        assert expanded(["@outer", "@inner"]) == ["-v", "5", "regress", "5"]

    def test_after_two_dashes_names_are_names(self):
        self.write("args", b"--\n@args\n")
        assert expanded(["@args", "--", "@args"]) == ["--", "@args", "--", "@args"]

    @pytest.mark.parametrize("name", ["@2024-05-03T10:00", "@2024-05-03T10:00:30+02:00"])
    def test_names_of_snapshots_are_none(self, name):
        assert expanded(["--at", name]) == ["--at", name]

    def test_without_end(self):
        self.write("args", b"@args\n")
        with pytest.raises(UsageError, match="without end"):
            expanded(["@args"])

    @pytest.mark.parametrize("name", ["@nothing", "@.", "@", "@\0"])
    def test_that_cannot_be_read(self, cli, name):
        with pytest.raises(StorageError, match="cannot be read for arguments"):
            expanded([name])
        ran = cli("list", "files", name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert "for a name that begins with an @, write ./@" in ran.err

    def test_are_arguments_of_the_program(self, cli):
        self.write("args", b"--force\nregress\nrepo\n")
        cli.outcomes["regress"] = None
        assert cli("@args").code == 2  # there was nothing to undo
        assert cli.calls["regress"][1]["force"]
