"""The same rules, given to both programs, select the same files."""

import os
import random
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from histfs.cli import main
from tests import histories
from tests.oracle import Oracle
from tests.selections import random_rules
from tests.trees import Dir, Fifo, File, Socket, Symlink, build

AT = 1_700_000_000
TREE = Dir(
    {
        "1": File(b"1"),
        "A": Dir({"X": File(b"x")}),
        "a": Dir(
            {
                "b": Dir({"w.tmp": File(b"w" * 50), "z": File(b"z" * 10)}),
                "link": Symlink("../top"),
                "x": File(b"x"),
                "y.tmp": File(b"y" * 1000),
            }
        ),
        "a b": File(b"."),
        "ab": Dir({"c": File(b"..")}),
        "back\\slash": File(b"..."),
        "c": Dir({"d": Dir({"e": Dir({"f": File(b"f")})}), "dangling": Symlink("nowhere")}),
        "empty": Dir(),
        "fifo": Fifo(),
        "link": Symlink("a"),
        "socket": Socket(),
        "star*": File(b"*"),
        "top": File(b"top"),
        "top.tmp": File(b"top.tmp"),
        "z": File(b"z"),
        b"\xff[": File(b"?"),
        "new\nline": File(b"\n"),
    }
)

# SRC stands for the source as it is typed.
RULES = """
--exclude **
--exclude SRC
--exclude SRC/a
--exclude SRC/a/
--exclude SRC//a
--exclude SRC/a/b --exclude SRC/c/d/e
--exclude **.tmp
--exclude **/*.tmp
--exclude **/a
--exclude **[!a]z
--exclude SRC/?
--exclude SRC/a?b
--exclude SRC/[ac]/*
--exclude SRC/[!a]
--exclude SRC/[^a]
--exclude SRC/[]a]
--exclude SRC/[!]a]
--exclude SRC/[a
--exclude SRC/[!]
--exclude SRC/[a-b]*
--exclude SRC/[a-]
--exclude SRC/[\\\\a]
--exclude SRC/back[\\\\]slash
--exclude SRC/back\\\\\\\\slash
--exclude SRC/star\\\\*
--exclude SRC/t\\\\op
--exclude SRC/a/*/
--exclude SRC/*/
--exclude ***
--exclude SRC*
--exclude SRC/**/f
--exclude SRC/a**z
--exclude SRC/*b/**
--exclude ignorecase:SRC/a
--exclude IgnoreCase:**/x
--exclude ignorecase:SRC/[A-B]
--exclude ignorecase:SRC/[!a]
--include SRC/a/b --exclude **
--include SRC/a/b/z --exclude **
--include SRC/a/b/z --exclude SRC/a
--include SRC/a/b/no --exclude SRC/a
--include SRC/a/b/no* --exclude SRC/a
--include SRC/a/b/no* --exclude **
--include SRC/top/no --exclude **
--include SRC/to*/no --exclude **
--include SRC/a/*/ --exclude **
--include SRC/empty/* --include SRC/empty --exclude **
--include **/z --exclude **
--include **.tmp --exclude **
--include **.tmp --exclude SRC/a
--include **.tmp --exclude-regexp /[acA]
--include **.tmp --exclude-if-present z
--include **/no --include-regexp empty$ --exclude **
--include SRC/c/**/g --exclude SRC/a
--include SRC/c/**/g --exclude SRC/c/d/e
--include SRC/a --exclude SRC
--include SRC --exclude **
--include ignorecase:SRC/A/x --exclude **
--exclude SRC/a/b --include SRC/a --exclude **
--exclude SRC/a/x --include **/b/* --exclude SRC/[b-z]*
--exclude-regexp /a
--exclude-regexp tmp$
--exclude-regexp ^SRC$
--exclude-regexp (?i)/x
--include-regexp b/z --exclude **
--include-regexp /a --exclude **
--exclude-if-present z
--exclude-if-present w.tmp
--exclude-if-present dangling
--exclude-if-present b/z
--include-if-present z --exclude **
--include-if-present link --exclude **
--include-if-present d --exclude **
--include-if-present e --exclude SRC/c
--exclude-symbolic-links
--exclude-fifos
--exclude-sockets
--exclude-device-files
--exclude-special-files
--include-special-files --exclude **
--include-symbolic-links --exclude SRC/a
--include SRC/a --exclude-special-files
--max-file-size 10
--min-file-size 10
--min-file-size 2 --max-file-size 9
--include SRC/a --max-file-size 1
--exclude-other-filesystems
--exclude SRC/[a --exclude SRC/top --exclude-fifos --exclude **z
""".strip().splitlines()

# Wrong in both.
MISTAKES = """
--include SRC/a
--exclude SRC/b --include SRC/a
--exclude SRC/b --include-regexp a
--exclude SRC/b --include-special-files
--include-if-present x
--exclude /nowhere/*
--exclude /nowhere
--exclude ../no
--exclude SRC/a//*
--exclude SRC/[z-a]
--exclude-regexp (
--max-file-size 0
--min-file-size -1
--min-file-size x
--exclude-filelist /nowhere
--exclude-globbing-filelist /nowhere
""".strip().splitlines()

LISTS = {
    "filelist": [
        "SRC/a",
        "SRC/a/x",
        "SRC/a/x\nSRC/a/b",
        "- SRC/a\n+ SRC/a/x",
        "+ SRC/a/x\n- SRC/a",
        "+ SRC/a\n- SRC/a",
        "- SRC/a\n+ SRC/a",
        "+ SRC/a/x\nSRC",
        "SRC/a/no",
        "SRC/a/x/no",
        "SRC/a*\nSRC/star*",
        "SRC/a/\nSRC//c",
        "\n\nSRC/a\r\n\n",
        "SRC/ab\nSRC/a b\nSRC/a/b",
        "SRC",
        "",
    ],
    "globbing-filelist": [
        "SRC/a\n**z",
        "+ SRC/a/x\n- SRC/a",
        "SRC/a/x\n- **",
        "- SRC/a/x\n+ SRC/a\n- **",
        "\n\n**x\r\n\n",
        "**x  ",
        "ignorecase:**x",
        "+ ignorecase:**x\n- **",
        "- SRC/a/no",
    ],
}


def selected_by_both(
    scratch: Path,
    rdiff_backup: Oracle,
    options: Sequence[str],
    *,
    general: Sequence[str] = (),
    typed: str | None = None,
    source: Path | None = None,
) -> tuple[list[bytes], list[bytes]]:
    """What each of the programs copies of the tree; both must have worked."""
    if source is None:
        source = scratch / "source"
        build(source, TREE)
    typed = typed or str(source)
    options = [option.replace("SRC", str(source)) for option in options]
    ours, theirs = scratch / "ours", scratch / "theirs"
    ran = rdiff_backup.backup(Path(typed), theirs, at=AT, general=general, special=options)
    assert ran.code == 0, ran.output
    assert main([*general, f"--current-time={AT}", "backup", *options, typed, str(ours)]) == 0
    return names(ours), names(theirs)


def names(repository: Path) -> list[bytes]:
    top = os.fsencode(repository)
    return sorted(path for path in paths_below(top, b"") if not path.startswith(b"rdiff-backup-data"))


def paths_below(top: bytes, path: bytes) -> Iterable[bytes]:
    for name in os.listdir(os.path.join(top, path)):
        below = os.path.join(path, name)
        yield below
        if stat.S_ISDIR(os.lstat(os.path.join(top, below)).st_mode):
            yield from paths_below(top, below)


@pytest.mark.parametrize("rules", RULES)
def test_rules(scratch: Path, rdiff_backup: Oracle, rules: str) -> None:
    ours, theirs = selected_by_both(scratch, rdiff_backup, rules.replace("\\\\", "\\").split())
    assert ours == theirs


@pytest.mark.parametrize("rules", MISTAKES)
def test_mistakes(scratch: Path, rdiff_backup: Oracle, rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = scratch / "source"
    build(source, TREE)
    options = rules.replace("SRC", str(source)).split()
    assert rdiff_backup.backup(source, scratch / "theirs", at=AT, special=options).code == 1
    assert main(["backup", *options, str(source), str(scratch / "ours")]) == 1
    assert "bug" not in capsys.readouterr().err
    assert not (scratch / "ours").exists()


def check_list(scratch: Path, rdiff_backup: Oracle, option: str, content: str, general: Sequence[str] = ()) -> None:
    path = scratch / "list"
    path.write_text(content.replace("SRC", str(scratch / "source")))
    options = [f"--{option}", str(path), "--exclude", "**/a"]
    ours, theirs = selected_by_both(scratch, rdiff_backup, options, general=general)
    assert ours == theirs


# Deliberately, an error of histfs is that the whole tree is excluded by a list (tests/pure/test_selection.py).
EXCLUDING_ALL = ("+ SRC/a/x\nSRC", "SRC")


@pytest.mark.parametrize("kind", ["include", "exclude"])
@pytest.mark.parametrize(("name", "content"), [(name, content) for name in LISTS for content in LISTS[name]])
def test_lists(scratch: Path, rdiff_backup: Oracle, kind: str, name: str, content: str) -> None:
    if (kind, name) == ("exclude", "filelist") and content in EXCLUDING_ALL:
        return
    check_list(scratch, rdiff_backup, f"{kind}-{name}", content)


@pytest.mark.parametrize("option", ["exclude-filelist", "exclude-globbing-filelist"])
def test_lists_of_names_that_end_in_a_nul(scratch: Path, rdiff_backup: Oracle, option: str) -> None:
    content = "SRC/new\nline\0\0- SRC/a b\0+ SRC/a/x\0- SRC/1"
    check_list(scratch, rdiff_backup, option, content, ["--null-separator"])


@pytest.mark.parametrize(
    ("typed", "root"), [("{}", "{}"), ("{}//", "{}"), ("./{}/.", "{}"), (".//{}", "{}"), ("{top}/../{}", "{top}/../{}")]
)
@pytest.mark.parametrize("rules", ["--exclude SRC/a", "--exclude TOP/**/a", "--exclude-regexp ^SRC/a"])
def test_relative_sources(
    scratch: Path, rdiff_backup: Oracle, typed: str, root: str, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # where the oracle is
    relative = str(scratch / "source").lstrip("/")
    top = relative.partition("/")[0]
    options = rules.replace("SRC", root.format(relative, top=top)).replace("TOP", top).split()
    ours, theirs = selected_by_both(scratch, rdiff_backup, options, typed=typed.format(relative, top=top))
    assert ours == theirs
    assert b"a" not in ours


def compare_random_rules(scratch: Path, rdiff_backup: Oracle, seed: int, rounds: int) -> None:
    """Random trees, and for each a few lists of random rules."""
    chance = random.Random(f"selection {seed}")
    source = scratch / "source"
    for _state in histories.random_history(source, seed, 1, histories.RDIFF_BACKUP_WRITES):
        paths = sorted(paths_below(os.fsencode(source), b""))
    for path in paths:
        if os.path.isdir(full := os.path.join(os.fsencode(source), path)) and not os.path.islink(full):
            os.chmod(full, 0o755)  # what is in a directory that nobody may read is seen by one of the programs only
    for number in range(rounds):
        place = scratch / str(number)
        place.mkdir()
        options = random_rules(chance, source, paths, place)
        ours, theirs = selected_by_both(place, rdiff_backup, options, source=source)
        assert ours == theirs, options


@pytest.mark.parametrize("seed", range(12))
def test_random_rules(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    compare_random_rules(scratch, rdiff_backup, seed, 2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_random_rules(scratch: Path, rdiff_backup: Oracle, seed: int) -> None:
    compare_random_rules(scratch, rdiff_backup, seed, 10)
