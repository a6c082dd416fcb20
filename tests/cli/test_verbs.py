"""What each verb passes on, says, and makes of the outcome."""

import json
import os
import re
import sys
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace

import pytest

from histfs.cli.output import moment
from histfs.errors import DamagedError, LockedError, MountError, SourceError, StorageError
from histfs.store.accounts import BY_NAME
from histfs.store.compare import Difference, Method
from histfs.store.entry import ALL_EXTRAS, NO_EXTRAS, Entry, Extras, Kind
from histfs.store.format.stats import SessionStatistics, format_session_statistics
from histfs.store.increments import DEFAULT_COMPRESSION
from histfs.store.kept_progress import Counts, Finding
from histfs.store.naming import DEFAULT_NAMING, Naming
from histfs.store.plan import ALL_LINKS, Links
from histfs.store.records import DEFAULT_STYLE, RecordStyle
from histfs.store.repair import Repair, RepairOutcome
from histfs.store.target import Manner, Step
from histfs.store.verify import VerifyOutcome
from histfs.store.verify_all import AllOutcome

FIRST, SECOND, NEWEST = 1_714_550_400, 1_714_636_800, 1_714_723_200

STATISTICS = SessionStatistics(
    1_714_550_400, source_files=7, new_files=3, changed_files=2, deleted_files=1, source_file_bytes=4096
)
PLAIN = {
    "extras": ALL_EXTRAS,
    "on_block": None,
    "checksum": False,
    "force": False,
    "with_parents": False,
    "fsync": True,
    "naming": DEFAULT_NAMING,
    "links": ALL_LINKS,
    "style": DEFAULT_STYLE,
    "owners": BY_NAME,
    "selection": None,
}
EXTRAS = [
    ((), ALL_EXTRAS),
    (("--no-acls",), Extras(acls=False)),
    (("--no-eas",), Extras(xattrs=False)),
    (("--no-acls", "--no-eas"), NO_EXTRAS),
    (("--no-acls", "--acls", "--eas"), ALL_EXTRAS),
]
RESTORED = {
    "manner": Manner(),
    "extras": ALL_EXTRAS,
    "never_drop_acls": False,
    "untrusted": False,
    "owners": BY_NAME,
    "selection": None,
}


def backed_up(**changes):
    outcome = {"statistics": STATISTICS, "source_errors": 0, "source_warnings": 0, "regressed": False, "kept_files": 0}
    return SimpleNamespace(**{"emptied": False} | outcome | changes)


class TestBackup:
    def test_passes_on_its_arguments_and_sums_up_in_one_line(self, cli):
        cli.outcomes["backup"] = backed_up()
        ran = cli("--current-time", 1234, "backup", "src", "repo")
        assert cli.calls["backup"] == (Path("src"), Path("repo"), PLAIN | {"now": 1234})
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == "7 files: 3 new, 2 changed, 1 deleted; 4096 bytes\n"

    def test_takes_the_present_from_the_clock(self, cli, monkeypatch):
        monkeypatch.setattr("time.time", lambda: 99.9)
        cli.outcomes["backup"] = backed_up()
        cli("backup", "src", "repo")
        assert cli.calls["backup"][2] == PLAIN | {"now": 99}

    @pytest.mark.parametrize(
        ("arguments", "name", "value"),
        [
            ("--no-fsync backup", "fsync", False),
            ("--chars-to-quote A-Z backup", "naming", Naming(b"A-Z")),
            ("--override-chars-to-quote= backup", "naming", Naming(b"")),
            ("--use-compatible-timestamps backup", "naming", Naming(None, True)),
            ("--null-separator backup", "style", RecordStyle(line_end=b"\0")),
            ("backup --no-file-statistics", "style", RecordStyle(file_statistics=False)),
            ("backup --no-compression", "style", RecordStyle(compression=DEFAULT_COMPRESSION._replace(is_on=False))),
            ("backup --create-full-path", "with_parents", True),
            ("backup --no-hard-links --compare-inode", "links", Links(are_kept=False)),
            ("backup --no-compare-inode", "links", Links(inodes_count=False)),
            ("backup --no-carbonfile --resource-forks", "links", ALL_LINKS),
        ],
    )
    def test_says_what_each_option_is_for(self, cli, arguments, name, value):
        cli.outcomes["backup"] = backed_up()
        assert cli(*arguments.split(), "src", "repo").code == 0
        assert cli.calls["backup"][2] == PLAIN | {"now": cli.calls["backup"][2]["now"], name: value}

    def test_which_files_are_not_compressed(self, cli):
        cli.outcomes["backup"] = backed_up()
        cli("backup", "--not-compressed-regexp", "a/re.*x$", "src", "a/repo")
        compression = cli.calls["backup"][2]["style"].compression
        assert [compression.is_for(path) for path in (b"x", b"d/x", b"d/y", b"a/rex")] == [False, False, True, False]

    def test_quiet(self, cli):
        cli.outcomes["backup"] = backed_up()
        assert cli("--quiet", "backup", "src", "repo").out == ""

    def test_force(self, cli):
        cli.outcomes["backup"] = backed_up()
        cli("--force", "backup", "src", "repo")
        assert cli.calls["backup"][2]["force"] is True

    @pytest.mark.parametrize(("options", "extras"), EXTRAS)
    def test_what_is_recorded_beyond_the_mode(self, cli, options, extras):
        cli.outcomes["backup"] = backed_up()
        cli("backup", *options, "src", "repo")
        assert cli.calls["backup"][2]["extras"] == extras

    @pytest.mark.parametrize("quiet", [(), ("-q",)])
    def test_statistics_are_printed_as_stored_and_alone(self, cli, quiet):
        cli.outcomes["backup"] = backed_up()
        out = cli(*quiet, "backup", "--print-statistics", "src", "repo").out
        assert out.encode() == format_session_statistics(STATISTICS)

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"regressed": True}, 2),
            ({"regressed": True, "kept_files": 2}, 2),
            ({"emptied": True}, 2),
            ({"source_errors": 3}, 4),
            ({"source_warnings": 1}, 8),
            ({"regressed": True, "source_errors": 1, "source_warnings": 2}, 14),
        ],
    )
    def test_what_went_wrong_adds_up(self, cli, changes, code):
        cli.outcomes["backup"] = backed_up(**changes)
        ran = cli("-q", "backup", "src", "repo")
        assert ran.code == code
        assert ("cut off" in ran.err) == ("regressed" in changes)
        assert ("gone on with (2 files" in ran.err) == ("kept_files" in changes)

    def test_trouble_with_the_source_is_named_and_counted(self, cli):
        cli.reports.append(SourceError("permission denied", path=b"etc/sha\x1bdow"))
        cli.outcomes["backup"] = backed_up()
        ran = cli("-q", "backup", "src", "repo")
        assert ran.code == 4
        assert ran.err == "histfs: etc/sha\\x1bdow: permission denied\n"

    def test_what_was_survived_is_no_error_but_a_warning(self, cli):
        cli.reports.append(StorageError("cannot set the owner"))
        cli.outcomes["backup"] = backed_up()
        assert cli("-q", "backup", "src", "repo").code == 2

    def test_what_stops_a_session_is_an_error(self, cli):
        cli.reports.append(SourceError("gone"))
        cli.outcomes["backup"] = DamagedError("the metadata is damaged", path="repo")
        ran = cli("backup", "src", "repo")
        assert ran.code == 1 | 4
        assert ran.out == ""

    def test_a_locked_repository(self, cli):
        cli.outcomes["backup"] = LockedError("another backup is running", path="repo", advice="try again later")
        ran = cli("backup", "src", "repo")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == "histfs: repo: another backup is running; try again later\n"


class TestRestore:
    def test_of_the_newest_session(self, cli):
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=0)
        ran = cli("restore", "repo/sub", "target")
        assert cli.calls["restore"] == (cli.repository, b"sub", NEWEST, Path("target"), RESTORED)
        assert cli.repository.path == Path("repo")
        assert "when" not in cli.calls
        assert cli.repository.asked == ["closed"]
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith("2 files as of 2024-05-0")
        assert ran.out.endswith(" restored to target\n")

    def test_of_another_time(self, cli):
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=0)
        cli("--current-time", 5, "restore", "--at", "3D", "repo/sub", "target")
        assert cli.calls["when"] == ("3D", 5, None)
        assert cli.calls["restore"][2] == SECOND

    @pytest.mark.parametrize(("options", "extras"), EXTRAS)
    def test_what_is_restored_beyond_the_mode(self, cli, options, extras):
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=0)
        cli("restore", "--never-drop-acls", *options, "repo/sub", "target")
        assert cli.calls["restore"][4] == RESTORED | {"extras": extras, "never_drop_acls": True}

    def test_damaged_files(self, cli):
        cli.reports.append(DamagedError("wrong digest", path=b"sub/a", at=FIRST))
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=1)
        ran = cli("-q", "restore", "repo/sub", "target")
        assert (ran.code, ran.out) == (4, "")
        assert ran.err.startswith("histfs: repo/sub/a at 2024-")

    def test_what_is_there_already(self, cli):
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=0)
        cli.told += [(Step.NEW, b"a"), (Step.DELETED, b"b\n"), (Step.NEW, b"")]
        arguments = (
            "--merge",
            "--delete",
            "--backup-dir",
            "kept",
            "--checksum",
            "--create-full-path",
            "repo/sub",
            "target",
        )
        ran = cli("--force", "restore", *arguments)
        manner = cli.calls["restore"][4]["manner"]
        assert manner == Manner(
            merge=True, delete=True, force=True, backup_dir=Path("kept"), checksum=True, create_full_path=True
        )
        assert ran.out.endswith(" are in target: 2 new, 0 replaced, 0 with other attributes, 1 deleted\n")

    def test_a_dry_run_is_a_list(self, cli):
        cli.outcomes["restore"] = SimpleNamespace(files=2, errors=1)
        cli.told += [(Step.NEW, b""), (Step.CHANGED, b"\xff\n")]
        ran = cli("-q", "restore", "--dry-run", "repo/sub", "target")
        assert (ran.code, ran.out) == (4, "new: .\nchanged: \udcff\n\n")
        ran = cli("restore", "--dry-run", "--json", "repo/sub", "target")
        assert json.loads(ran.out) == {
            **moment(NEWEST),
            "target": "target",
            "dry_run": True,
            "files": 2,
            "errors": 1,
            "steps": [{"step": "new", "path": "."}, {"step": "changed", "path": "\udcff\n"}],
        }

    def test_an_increment(self, cli, monkeypatch):
        def lies_in(path):
            return Path("repo"), b"rdiff-backup-data/increments/d/x.2024-05-02T08:00:00Z.diff.gz"

        monkeypatch.setattr(sys.modules["histfs.store.repository"], "find_repository", lies_in)
        cli.outcomes["restore"] = SimpleNamespace(files=1, errors=0)
        assert cli("restore", "increment", "target").code == 0
        assert cli.calls["restore"][1:3] == (b"d/x", SECOND)
        assert cli("restore", "--at=3D", "increment", "target").code == 1
        assert cli("restore", "--at=3D", "--increment", "increment", "target").code == 1
        monkeypatch.undo()

    def test_what_is_no_increment(self, cli):
        assert cli("restore", "--increment", "repo/sub", "target").code == 1
        assert "restore" not in cli.calls


class TestCompare:
    def test_each_difference_is_a_line(self, cli):
        cli.outcomes["compare"] = SimpleNamespace(compared=9, errors=0)
        cli.told += [(Difference(b"", "changed"),), (Difference(b"a b", "metadata changed, data the same"),)]
        ran = cli("compare", "--method", "hash", "src", "repo/sub")
        assert cli.calls["compare"] == (
            Path("src"),
            cli.repository,
            b"sub",
            NEWEST,
            {"method": Method.HASH, "selection": None, "extras": ALL_EXTRAS},
        )
        assert (ran.code, ran.out, ran.err) == (8, "changed: .\nmetadata changed, data the same: a b\n", "")
        for arguments in (("compare", "--json"), ("--parsable-output", "compare")):
            assert json.loads(cli(*arguments, "src", "repo/sub").out) == [
                {"path": ".", "reason": "changed"},
                {"path": "a b", "reason": "metadata changed, data the same"},
            ]

    def test_nothing_differs(self, cli):
        cli.outcomes["compare"] = SimpleNamespace(compared=9, errors=0)
        ran = cli("compare", "src", "repo/sub")
        assert (ran.code, ran.out) == (0, "")
        cli.reports.append(DamagedError("is damaged", path=b"a"))
        assert cli("compare", "src", "repo/sub").code == 4

    def test_a_summary_for_a_person(self, cli, monkeypatch):
        monkeypatch.setattr("histfs.cli.compare.is_terminal", lambda: True)
        cli.outcomes["compare"] = SimpleNamespace(compared=9, errors=0)
        assert cli("compare", "src", "repo/sub").out.endswith(": 0 differ\n")


class TestListSessions:
    def test_a_line_each_and_the_newest_is_marked(self, cli):
        ran = cli("list", "sessions", "--utc", "repo")
        assert ran.out == (
            "@1714550400Z  2024-05-01T08:00:00+00:00  1714550400\n"
            "@1714636800Z  2024-05-02T08:00:00+00:00  1714636800\n"
            "@1714723200Z  2024-05-03T08:00:00+00:00  1714723200  newest\n"
        )
        assert (ran.code, ran.err) == (0, "")

    def test_in_local_time(self, cli, monkeypatch):
        monkeypatch.setenv("TZ", "UTC-05:30")
        __import__("time").tzset()
        try:
            assert "@1714550400  2024-05-01T13:30:00+05:30  1714550400\n" in cli("list", "sessions", "repo").out
        finally:
            monkeypatch.undo()
            __import__("time").tzset()

    def test_an_unfinished_session_is_a_note(self, cli):
        cli.repository.unfinished_time = NEWEST + 60
        ran = cli("list", "sessions", "--utc", "repo")
        assert ran.code == 0
        assert ran.err.startswith("histfs: note: the session of 2024-05-03T08:01:00+00:00 has not finished")
        assert str(NEWEST + 60) not in ran.out
        assert cli("-q", "list", "sessions", "repo").err == ""

    def test_json(self, cli):
        cli.repository.unfinished_time = NEWEST + 60
        listed = json.loads(cli("list", "sessions", "--utc", "--json", "repo").out)
        assert listed["unfinished"]["seconds"] == NEWEST + 60
        assert [session["seconds"] for session in listed["sessions"]] == [FIRST, SECOND, NEWEST]
        assert listed["sessions"][0]["name"] == f"@{FIRST}Z"
        assert listed["sessions"][0]["time"] == "2024-05-01T08:00:00+00:00"

    def test_of_nothing(self, cli):
        cli.repository.times = ()
        assert cli("list", "sessions", "repo").out == ""


class TestListFiles:
    def test_paths_from_the_root(self, cli):
        cli.repository.paths = [b"", b"sub", b"sub/x y", b"sub/\xff"]
        ran = cli("list", "files", "repo/sub")
        assert ran.code == 0
        assert cli.repository.asked == [NEWEST, "closed"]
        assert ran.out == "sub\nsub/x y\nsub/\udcff\n"  # raw bytes: this is no terminal

    def test_the_root_is_a_dot(self, cli, monkeypatch):
        monkeypatch.setattr(sys.modules["histfs.store.repository"], "find_repository", lambda path: (path, b""))
        assert cli("list", "files", "repo").out == ".\netc\netc/passwd\n"

    def test_raw_names_for_xargs(self, cli):
        cli.repository.paths = [b"sub/a\nb", b"sub/\x1b"]
        assert cli("list", "files", "--null", "repo/sub").out == "sub/a\nb\0sub/\x1b\0"

    def test_json(self, cli):
        cli.repository.paths = [b"sub", b"sub/\xff\n"]
        listed = json.loads(cli("list", "files", "--json", "repo/sub").out)
        assert [os.fsencode(file["path"]) for file in listed] == [b"sub", b"sub/\xff\n"]
        assert listed[0] == {"path": "sub", "type": "reg", "mode": "0000", "size": 0, "mtime": 0, "uid": 0, "gid": 0}

    def test_a_path_that_was_not_there(self, cli):
        ran = cli("list", "files", "--at", "1B", "repo/sub")
        assert (ran.code, ran.out) == (1, "")
        assert "sub at 2024-05-02" in ran.err

    def test_damaged_records_are_left_out_and_named(self, cli):
        cli.repository.damage = [DamagedError("a record is damaged", path=b"sub/x", at=NEWEST)]
        cli.repository.paths = [b"sub"]
        ran = cli("list", "files", "repo/sub")
        assert (ran.code, ran.out) == (4, "sub\n")
        assert ran.err.startswith("histfs: repo/sub/x at 2024-05-0")

    def test_damage_that_ends_the_list(self, cli, monkeypatch):
        def entries(_below, _on_damage):
            yield Entry(b"sub", Kind.DIRECTORY)
            raise DamagedError("the list is cut off", at=NEWEST)

        monkeypatch.setattr(cli.repository, "entries", entries, raising=False)
        ran = cli("list", "files", "repo/sub")
        assert (ran.code, ran.out) == (1 | 4, "sub\n")


class TestVerify:
    @pytest.mark.parametrize(("mismatched", "without_digest", "code"), [(0, 0, 0), (2, 0, 4), (0, 5, 8), (1, 1, 12)])
    def test_codes(self, cli, mismatched, without_digest, code):
        cli.outcomes["verify"] = VerifyOutcome(files=9, mismatched=mismatched, without_digest=without_digest)
        ran = cli("verify", "--at", "3D", "repo/sub")
        assert cli.calls["verify"] == (cli.repository, b"sub", SECOND)
        assert (ran.code, ran.out, ran.err) == (code, "", "")

    def test_each_bad_file_is_a_line(self, cli):
        cli.reports += [DamagedError("wrong digest", path=name) for name in (b"a", b"b\n")]
        cli.outcomes["verify"] = VerifyOutcome(files=9, mismatched=2, without_digest=0)
        ran = cli("-q", "verify", "repo/sub")
        assert ran.err == "histfs: repo/a: wrong digest\nhistfs: repo/b\\n: wrong digest\n"

    def test_a_summary_for_a_person(self, cli, monkeypatch):
        monkeypatch.setattr("histfs.cli.verify.is_terminal", lambda: True)
        cli.outcomes["verify"] = VerifyOutcome(files=9, mismatched=0, without_digest=1)
        assert cli("verify", "repo/sub").out.endswith("checked: 0 damaged, 1 without a digest\n")
        assert cli("-q", "verify", "repo/sub").out == ""

    @pytest.mark.parametrize(
        ("findings", "problems", "without_digest", "code"),
        [((), (), 0, 0), ((), (), 1, 8), (("finding",), (), 0, 1), ((), ("problem",), 0, 1), (("finding",), (), 2, 9)],
    )
    def test_all_versions(self, cli, findings, problems, without_digest, code):
        findings = tuple(Finding(b"sub/x", (SECOND, FIRST), "is damaged", (NEWEST,)) for _ in findings)
        problems = tuple(DamagedError("is damaged", path=b"rdiff-backup-data/x") for _ in problems)
        counts = Counts(7, 4096, without_digest)
        cli.outcomes["verify_all"] = AllOutcome(NEWEST, 3, counts, findings, problems, was_resumed=True)
        ran = cli("verify", "--all", "--json", "repo/sub")
        repository, path, options = cli.calls["verify_all"]
        assert (repository, path, options["restart"]) == (cli.repository, b"sub", False)
        assert options["cache"].name == "histfs"
        assert ran.code == code
        assert json.loads(ran.out) == {
            "newest": moment(NEWEST),
            "sessions": 3,
            "versions": 7,
            "bytes": 4096,
            "without_digest": without_digest,
            "was_resumed": True,
            "damaged": [
                {
                    "path": "sub/x",
                    "problem": "is damaged",
                    "sessions": [moment(SECOND), moment(FIRST)],
                    "readable": [moment(NEWEST)],
                }
            ]
            * len(findings),
            "unread": [],
            "problems": ["rdiff-backup-data/x: is damaged"] * len(problems),
        }

    def test_what_this_user_may_not_read_is_no_damage(self, cli):
        findings = (Finding(b"sub/x", (NEWEST,), "Permission denied", (), is_damage=False),)
        cli.outcomes["verify_all"] = AllOutcome(NEWEST, 3, Counts(7, 4096, 0), findings, (), was_resumed=False)
        ran = cli("verify", "--all", "--json", "repo/sub")
        assert ran.code == 4
        document = json.loads(ran.out)
        assert (document["damaged"], document["unread"]) == ([], ["sub/x"])

    def test_a_check_of_all_that_was_interrupted(self, cli):
        cli.outcomes["verify_all"] = AllOutcome(SECOND, 2, Counts(), (), (), was_resumed=True)
        ran = cli("verify", "--all", "--restart", "repo/sub")
        assert cli.calls["verify_all"][2]["restart"]
        assert ran.code == 0
        assert "it was begun before the session of " in ran.err
        cli.outcomes["verify_all"] = KeyboardInterrupt()
        ran = cli("verify", "--all", "repo/sub")
        assert (ran.code, ran.err.endswith("; the same command goes on from there\n")) == (1, True)

    def test_restart_without_all(self, cli):
        cli.outcomes["verify"] = VerifyOutcome(files=9, mismatched=0, without_digest=0)
        assert cli("verify", "--restart", "repo/sub").err.startswith("histfs: note: --restart has no meaning")


class TestRegress:
    def test_nothing_to_undo(self, cli):
        ran = cli("regress", "repo")
        assert cli.calls["regress"] == (
            Path("repo"),
            {"force": False, "fsync": True, "owners": BY_NAME, "on_block": None},
        )
        assert (ran.code, ran.err) == (0, "")

    def test_undone(self, cli):
        cli.outcomes["regress"] = SimpleNamespace(undone=NEWEST, newest=SECOND, had_finished=False)
        ran = cli("--force", "regress", "repo")
        assert ran.code == 2
        assert re.fullmatch(
            r"the session of 2024-05-03T\S+ had not finished .*newest is that of 2024-05-02T\S+\n", ran.out
        )
        assert cli.calls["regress"][1]["force"] is True

    def test_a_good_session_undone(self, cli):
        cli.outcomes["regress"] = SimpleNamespace(undone=NEWEST, newest=SECOND, had_finished=True)
        ran = cli("--force", "regress", "--allow-duplicate-timestamps", "repo")
        assert ran.code == 0
        assert re.fullmatch(r"the session of 2024-05-03T\S+ was undone; .*newest is that of 2024-05-02T\S+\n", ran.out)

    def test_only_one_is_left(self, cli):
        cli.outcomes["regress"] = None
        ran = cli("--force", "regress", "repo")
        assert (ran.code, ran.out) == (2, "")
        assert "nothing to undo" in ran.err

    def test_a_first_session_undone(self, cli):
        cli.outcomes["regress"] = SimpleNamespace(undone=None, newest=None, had_finished=False)
        ran = cli("regress", "repo")
        assert (ran.code, ran.out) == (2, "the first session had not finished and was undone; none is left\n")


class TestMount:
    def test_says_where_and_how_to_end_it(self, cli, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/c")
        defaults = {"cache": Path("/c/histfs"), "memory_bytes": 64 << 20}
        options = {"zone": None, "foreground": False, "allow_other": False, "log_file": None, "debug": False}
        options |= {"old_modes": None, "all_attributes": False}
        ran = cli("mount", "repo", "m\x1b")
        del cli.calls["mount"][2]["on_progress"]
        assert cli.calls["mount"] == (Path("repo"), Path("m\x1b"), {**options, **defaults})
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == "the past is in m\\x1b; `histfs umount $'m\\x1b'` unmounts it\n"
        assert cli("-q", "mount", "repo", "mnt").out == ""

    def test_options(self, cli):
        cli("mount", "--fore", "--utc", "--allow-other", "--log-file=l", "--debug", "--cache-size=7", "repo", "mnt")
        options = {"zone": UTC, "foreground": True, "allow_other": True, "log_file": Path("l"), "debug": True}
        options["memory_bytes"] = 7 << 20
        assert cli.calls["mount"][2].items() >= options.items()

    @pytest.mark.parametrize("size", ["0", "-1", "1.5", "1M", "", "9" * 20])
    def test_sizes_that_cannot_be(self, cli, size):
        assert cli("mount", f"--cache-size={size}", "repo", "mnt").code == 1
        assert "mount" not in cli.calls

    def test_without_a_place_for_a_cache(self, cli, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        cli("mount", "repo", "mnt")
        assert cli.calls["mount"][2]["cache"] is None

    def test_a_bug_shows_its_traceback_with_debug(self, cli, monkeypatch):
        monkeypatch.delenv("HISTFS_DEBUG", raising=False)
        cli.outcomes["mount"] = ZeroDivisionError()
        assert "Traceback" in cli("mount", "--debug", "repo", "mnt").err
        assert "Traceback" not in cli("mount", "repo", "mnt").err

    def test_not_mounted(self, cli):
        cli.outcomes["mount"] = MountError("there is no such device", path="/dev/fuse")
        assert cli("mount", "repo", "mnt").err == "histfs: /dev/fuse: there is no such device\n"


class TestUmount:
    @pytest.mark.parametrize(("argv", "lazy"), [((), False), (("--lazy",), True)])
    def test_is_silent(self, cli, argv, lazy):
        ran = cli("umount", *argv, "mnt")
        assert cli.calls["unmount"] == (Path("mnt"), {"lazy": lazy})
        assert (ran.code, ran.out, ran.err) == (0, "", "")

    def test_busy(self, cli):
        cli.outcomes["unmount"] = MountError("is busy", path="mnt", advice="use --lazy")
        ran = cli("umount", "mnt")
        assert (ran.code, ran.err) == (1, "histfs: mnt: is busy; use --lazy\n")


@pytest.mark.parametrize("verb", [("verify", "r"), ("list", "sessions", "r"), ("umount", "m")])
def test_force_is_ignored_where_it_means_nothing(cli, verb):
    cli.outcomes["verify"] = VerifyOutcome(0, 0, 0)
    ran, without = cli("--force", *verb), cli(*verb)
    assert (ran.code, ran.out) == (0, without.out)
    assert ran.err == "histfs: note: --force has no meaning here, and is ignored\n" + without.err


def test_no_repository(cli):
    ran = cli("verify", "/nowhere")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "histfs: /nowhere: there is no repository here; check the path\n"


class TestRepair:
    PLAN = RepairOutcome(
        (Repair("make the list anew", "it is missing", b"rdiff-backup-data/x", lambda _: None),), (), None
    )
    LOST = RepairOutcome((), (DamagedError("is damaged", path=b"rdiff-backup-data/y", advice="a copy"),), None)

    def run(self, cli, outcome, *argv):
        cli.outcomes["plan_repair"] = outcome
        cli.outcomes["repair"] = outcome._replace(aside=b"aside") if outcome.repairs else outcome
        return cli("repair", *argv, "repo")

    def test_only_the_plan(self, cli):
        ran = self.run(cli, self.PLAN, "--dry-run")
        assert "repair" not in cli.calls
        assert (ran.code, ran.out, ran.err) == (
            2,
            "would make the list anew (it is missing) [rdiff-backup-data/x]\n",
            "",
        )

    def test_nothing_to_repair(self, cli):
        assert self.run(cli, self.PLAN._replace(repairs=()), "--dry-run").out == "there is nothing to repair\n"

    def test_a_first_session_is_left_to_the_next_backup(self, cli):
        ran = self.run(cli, RepairOutcome((), (), None, goes_on=True), "--dry-run")
        assert ran.code == 0
        assert ran.out.startswith("there is nothing to repair: the first session was cut off, and the next")

    def test_what_is_lost(self, cli):
        ran = self.run(cli, self.LOST, "--dry-run")
        assert (ran.code, ran.out) == (4, "nothing of this can be repaired\n")
        assert ran.err == "histfs: rdiff-backup-data/y: is damaged; a copy\n"

    def test_it_is_done(self, cli):
        ran = self.run(cli, self.PLAN)
        path, options = cli.calls["repair"]
        assert (str(path), options["force"]) == ("repo", False)
        assert ran.code == 0
        assert ran.out.startswith("repaired; what was replaced is in aside")

    def test_for_programs(self, cli):
        ran = self.run(cli, self.PLAN, "--json")
        assert json.loads(ran.out) == {
            "repairs": [{"what": "make the list anew", "why": "it is missing", "path": "rdiff-backup-data/x"}],
            "lost": [],
            "aside": "aside",
            "digested": 0,
        }

    def test_digests_that_may_be_of_damage(self, cli):
        lost = (DamagedError("the digests"),)
        ran = self.run(cli, self.PLAN._replace(lost=lost, digested=3))
        assert ran.code == 4
        assert "in the newest list the digests of 3 files are those of what is there now: damage" in ran.out
