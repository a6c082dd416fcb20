"""The rim of the program: arguments, help, interruptions, bugs, and output that nobody takes."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from histfs import __version__
from histfs.cli import main
from histfs.cli.options import path
from histfs.errors import DamagedError
from tests.cli.test_manual import VERBS


def histfs(*argv, **options):
    """Runs the program itself."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | options
    return subprocess.run([sys.executable, "-m", "histfs", *map(str, argv)], check=False, **options)


class TestArguments:
    @pytest.mark.parametrize(
        "argv",
        [
            (),
            ("list",),
            ("backup", "src"),
            ("backup", "src", "repo", "more"),
            ("backup", "--quiet", "src", "repo"),
            ("backup", "", "repo"),
            ("backup", "src", "host::repo"),
            ("--current-time", "1.5", "backup", "src", "repo"),
            ("--current-time", "-5", "backup", "src", "repo"),
            ("--current-time", "4102444800", "backup", "src", "repo"),
            ("restore", "--at", "repo", "target"),
            ("list", "files", "--nul=1", "repo"),
            ("restore", "--", "repo", "--"),
            ("restore", "--at=--", "repo", "target"),
        ],
    )
    def test_wrong_ones_are_a_sentence_and_exit_with_1(self, cli, argv):
        ran = cli(*argv)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("histfs: ")
        assert "--help`" in ran.err or ran.err.endswith("?\n")
        assert ran.err.count("\n") == 1
        assert cli.calls == {}

    def test_who_gives_paths_alone_is_told_the_verb(self, cli):
        """As the command line of old versions of rdiff-backup was."""
        ran = cli("/home\x1b", "/mnt/disk/home")
        assert (ran.code, cli.calls) == (1, {})
        assert ran.err == "histfs: '/home\\x1b' is no verb; to back it up, write backup before it\n"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (("bogus",), "'bogus' is no verb; `histfs --help` shows them"),
            (("--", "--version"), "'--version' is no verb; `histfs --help` shows them"),
            (("list", "decrements", "r"), "'decrements' is no verb; did you mean `histfs list increments`?\n"),
            (("session", "repo"), "'session' is no verb; did you mean `histfs list sessions`?\n"),
            (("unmount", "mnt"), "'unmount' is no verb; did you mean `histfs umount`?\n"),
            (("increments", "repo"), "'increments' is no verb; did you mean `histfs list increments`?\n"),
            (("list", "version", "repo"), "'version' is no verb; did you mean `histfs list versions`?\n"),
            (("server", "--restrict-path", "/"), "server answers another computer, which histfs does not do; "),
            (("server",), "server answers another computer, which histfs does not do; run histfs there, or mount "),
        ],
    )
    def test_what_is_no_verb_is_a_sentence(self, cli, argv, message):
        ran = cli(*argv)
        assert (ran.code, ran.out, cli.calls) == (1, "", {})
        assert ran.err.startswith(f"histfs: {message}")
        assert ran.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (("backup", "--b\x1b", "src", "repo"), "backup has no option --b\\x1b"),
            (("list", "increments", "--at", "1B", "repo"), "list increments has no option --at"),
            (("--json", "status", "repo"), "--json belongs behind the verb: histfs status --json"),
            (("--js", "list", "files", "repo"), "--js belongs behind the verb: histfs list files --js"),
            (("backup", "-v5", "src", "repo"), "-v5 belongs before the verb: histfs -v5 backup"),
            (("backup", "--current-time=5", "s", "r"), "--current-time belongs before the verb: histfs --current-time"),
            (("--forse", "restore", "r", "t"), "histfs has no option --forse; did you mean --force?\n"),
            (("--zzz=restore", "restore", "r", "t"), "histfs has no option --zzz; see `histfs --help`\n"),
            (("restore", "--marge", "r", "t"), "restore has no option --marge; did you mean --merge?\n"),
            (("restore", "--forse", "r", "t"), "restore has no option --forse; did you mean histfs --force restore?\n"),
            (("backup", "src", "repo", "more"), "backup does not take so many names: more"),
        ],
    )
    def test_words_that_are_left_over(self, cli, argv, message):
        ran = cli(*argv)
        assert (ran.code, ran.out, cli.calls) == (1, "", {})
        assert ran.err.startswith(f"histfs: {message}")
        assert ran.err.count("\n") == 1

    @pytest.mark.parametrize(
        "argv",
        [
            ("--curr=7", "verify", "--at=3D", "repo/sub"),
            ("--current-t=7", "verify", "--at", "3D", "repo/sub"),
            ("--", "verify", "--at", "3D", "--", "repo/sub"),
            ("--curr", "7", "verify", "repo/sub", "--at", "3D"),
        ],
    )
    def test_spellings(self, cli, monkeypatch, argv):
        monkeypatch.setattr("time.time", lambda: 7.5)
        cli.outcomes["verify"] = DamagedError("called")
        assert "called" in cli(*argv).err
        assert cli.calls["when"] == ("3D", 7, None)

    def test_names_that_look_like_options(self, cli):
        cli.outcomes["restore"] = DamagedError("called")
        cli("restore", "--", "-repo/--sub", "--at")
        assert cli.calls["restore"][1] == b"--sub"
        assert str(cli.calls["restore"][3]) == "--at"

    def test_names_that_are_not_utf8(self, cli):
        cli.outcomes["restore"] = DamagedError("called")
        cli("restore", "repo/sub", "\udcff")
        assert os.fsencode(cli.calls["restore"][3]) == b"\xff"

    @pytest.mark.parametrize("name", ["./host::repo", "/a::b", "a:b"])
    def test_colons_in_local_names(self, name):
        assert str(path(name)) == name.removeprefix("./")


class TestAnswers:
    @pytest.mark.parametrize(
        "verb",
        ["", "list", "remove", "calculate", *VERBS],
    )
    def test_help(self, cli, monkeypatch, verb):
        monkeypatch.setenv("COLUMNS", "80")
        ran = cli(*verb.split(), "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"usage: histfs {verb}".rstrip())
        assert "\nexamples:\n" in ran.out or not verb
        assert "\nexit codes" in ran.out or verb in ("list", "remove", "calculate")
        assert max(map(len, ran.out.splitlines())) <= 80

    @pytest.mark.parametrize("verb", ["", "backup", "list", "list files"])
    def test_help_is_a_verb_too(self, cli, verb):
        ran = cli("help", *verb.split())
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == cli(*verb.split(), "--help").out

    @pytest.mark.parametrize("option", ["-V", "--version", "--vers"])
    def test_version(self, cli, option):
        ran = cli(option)
        assert (ran.code, ran.out, ran.err) == (0, f"histfs {__version__}\n", "")

    def test_help_does_not_wait_for_what_only_the_verbs_need(self):
        heavy = "{'trio', 'pyfuse3', 'histfs._rsync', 'histfs.mount', 'histfs.store.repository', 'sqlite3', 'logging'}"
        program = f"import sys, histfs.cli; histfs.cli.main(['--help']); sys.exit(str({heavy} & set(sys.modules)))"
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert ran.stderr == b"set()\n"

    def test_a_backup_does_not_wait_for_what_writes_code(self, tmp_path):
        """It takes Python longer to import than it takes a session to look at a thousand files."""
        (tmp_path / "source").mkdir()
        program = "import sys, histfs.cli; histfs.cli.main(sys.argv[1:])"
        program += "; print({'dataclasses', 'inspect'} & set(sys.modules))"
        arguments = ["backup", tmp_path / "source", tmp_path / "repository"]
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        assert ran.stdout.splitlines()[-1] == "set()"


class TestBugs:
    @pytest.fixture(autouse=True)
    def bug(self, cli, monkeypatch):
        monkeypatch.delenv("HISTFS_DEBUG", raising=False)
        cli.outcomes["verify"] = ZeroDivisionError("two\nlines")

    def test_a_sentence(self, cli):
        ran = cli("verify", "repo/sub")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("histfs: this is a bug in histfs: ZeroDivisionError: two\\nlines; ")
        assert ran.err.count("\n") == 1

    def test_the_traceback_for_who_asks(self, cli, monkeypatch):
        monkeypatch.setenv("HISTFS_DEBUG", "1")
        ran = cli("verify", "repo/sub")
        assert ran.code == 1
        assert ran.err.startswith("histfs: this is a bug in histfs: ZeroDivisionError")
        assert "Traceback (most recent call last)" in ran.err

    def test_never_for_an_expected_error(self, cli, monkeypatch):
        monkeypatch.setenv("HISTFS_DEBUG", "1")
        cli.outcomes["verify"] = DamagedError("damaged")
        assert cli("verify", "repo/sub").err == "histfs: damaged\n"


class TestInterruptions:
    def test_from_the_keyboard(self, cli):
        cli.outcomes["backup"] = KeyboardInterrupt()
        ran = cli("backup", "src", "repo")
        assert ran.code == 1
        assert ran.err.startswith("histfs: stopped by SIGINT; every finished session is intact")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_by_a_signal(self, cli, monkeypatch, number):
        def wait(*_args, **_options):
            os.kill(os.getpid(), number)
            time.sleep(30)

        monkeypatch.setattr(sys.modules["histfs.store.verify"], "verify", wait)
        previous = signal.signal(number, signal.SIG_DFL)  # with nohup it is ignored
        try:
            ran = cli("verify", "repo/sub")
            assert ran.code == 1
            assert ran.err == f"histfs: stopped by {number.name}; not every file has been checked\n"
            assert signal.getsignal(number) is signal.SIG_DFL
        finally:
            signal.signal(number, previous)

    def test_a_signal_that_our_parent_ignores_stays_ignored(self, cli, monkeypatch):
        def hang_up(*_args, **_options):
            os.kill(os.getpid(), signal.SIGHUP)
            raise DamagedError("went on")

        monkeypatch.setattr(sys.modules["histfs.store.verify"], "verify", hang_up)
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert cli("verify", "repo/sub").err == "histfs: went on\n"
        finally:
            signal.signal(signal.SIGHUP, previous)


WITH_A_LONG_LIST = """
import sys
from types import ModuleType, SimpleNamespace
from contextlib import nullcontext
from pathlib import Path

from histfs.cli import main
from histfs.store.format.stats import SessionStatistics

paths = [b"", *(b"dir/%d \\x1b[31m\\n" % number for number in range(int(sys.argv.pop(1))))]
snapshot = SimpleNamespace(entries=lambda *_: (SimpleNamespace(path=path) for path in paths))
repository = SimpleNamespace(sessions=lambda: (1, 2), snapshot=lambda _: snapshot, statistics=lambda _: None)
fake = ModuleType("histfs.store.repository")
fake.find_repository = lambda path: (path, b"")
fake.Repository = SimpleNamespace(open=lambda _: nullcontext(repository))
sys.modules["histfs.store.repository"] = fake

fake = ModuleType("histfs.store.backup")
statistics = SessionStatistics(1_714_550_400)
fake.backup = lambda *_, **__: SimpleNamespace(
    statistics=statistics, source_errors=0, source_warnings=0, regressed=False, emptied=False
)
sys.modules["histfs.store.backup"] = fake
sys.exit(main())
"""


def faked(length, *argv, **options):
    """Runs the program with a repository of `length` + 1 files, whatever its name, and a session that succeeds."""
    options = {"stderr": subprocess.PIPE, "timeout": 60} | options
    return subprocess.run([sys.executable, "-c", WITH_A_LONG_LIST, str(length), *argv], check=False, **options)


class TestOutput:
    @pytest.mark.parametrize("length", [3, 100_000])  # less, and more, than fits into a pipe
    def test_a_listing_that_nobody_reads_any_more_ends_in_silence(self, length):
        reading, writing = os.pipe()
        os.close(reading)
        ran = faked(length, "list", "files", "repo", stdout=writing)
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (0, b"")

    @pytest.mark.parametrize("length", [3, 100_000])
    def test_a_listing_that_does_not_fit_is_an_error(self, length):
        with open("/dev/full", "wb") as full:
            ran = faked(length, "list", "files", "repo", stdout=full)
        assert ran.returncode == 1
        assert ran.stderr == b"histfs: the results cannot be written: No space left on device\n"

    def test_a_listing_without_a_standard_output_is_an_error(self):
        ran = faked(3, "list", "files", "repo", preexec_fn=lambda: os.close(1))
        assert ran.returncode == 1
        assert ran.stderr == b"histfs: the results cannot be written: standard output is closed\n"

    def test_a_session_is_not_hurt(self):
        reading, writing = os.pipe()
        os.close(reading)
        with open("/dev/full", "wb") as full:
            assert faked(0, "backup", "src", "repo", stdout=full, stderr=full).returncode == 0
            assert faked(0, "backup", "src", "repo", stdout=writing, stderr=writing).returncode == 0
            assert faked(0, "backup", "src", "repo", preexec_fn=lambda: os.closerange(0, 3)).returncode == 0
        os.close(writing)

    def test_help_that_nobody_reads(self):
        reading, writing = os.pipe()
        os.close(reading)
        ran = histfs("--help", stdout=writing)
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (0, b"")

    def test_closed_descriptors_are_not_left_to_the_repository(self):
        program = (
            "import os, sys; from histfs.cli.output import occupy_standard_descriptors as occupy;"
            "os.close(0); os.close(2); occupy(); os.write(1, os.readlink('/proc/self/fd/2').encode());"
            "assert os.open('/', os.O_RDONLY) == 3"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert (ran.returncode, ran.stdout) == (0, b"/dev/null")

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ((), b".\r\ndir/0 \\x1b[31m\\n\r\n"),
            (("--null",), b".\0dir/0 \x1b[31m\r\n\0"),  # the terminal makes \r\n of \n
        ],
    )
    def test_no_name_reaches_a_terminal_raw(self, argv, expected):
        ours, theirs = pty.openpty()
        ran = faked(1, "list", "files", *argv, "repo", stdout=theirs)
        os.close(theirs)
        assert os.read(ours, 1000) == expected
        os.close(ours)
        assert (ran.returncode, ran.stderr) == (0, b"")


def test_the_program_ends_with_the_code():
    assert histfs("backup").returncode == 1
    assert histfs("--version").returncode == 0


def test_main_takes_the_command_line_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["histfs", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"histfs {__version__}\n"


class TestClosedPipes:
    """`histfs -v5 backup ... | head -n 1`, with a real pipe that is closed in the middle of a session."""

    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "source").mkdir()
        for number in range(3000):  # more names than fit into a pipe
            (tmp_path / "source" / f"{number} {'x' * 60}").touch()
        return tmp_path

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_never_hurt_a_session(self, place, stream):
        options = ["-v5", "--json"] if stream == "stderr" else ["-v5"]
        argv = [*options[:1], "backup", *options[1:], place / "source", place / "repo"]
        command = [sys.executable, "-m", "histfs", *map(str, argv)]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: subprocess.PIPE}
        with subprocess.Popen(command, **streams) as process:
            pipe = getattr(process, stream)
            assert pipe.readline() == b"new: .\n"
            pipe.close()
            assert process.wait(timeout=60) == 0
        assert histfs("verify", place / "repo").returncode == 0
        assert len(histfs("list", "files", place / "repo").stdout.splitlines()) == 3001


def test_help_imports_little():
    """How many modules it takes beside those of an interpreter that does nothing, as time depends on the machine."""
    program = "import sys; before = set(sys.modules); from histfs.cli import main; main(['--help'])"
    program += "; print(len(set(sys.modules) - before), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert int(ran.stderr) < 90
