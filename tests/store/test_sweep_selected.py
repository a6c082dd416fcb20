"""Passing over what is as it was where rules leave something out, and where names are quoted on disk."""

import contextlib
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from histfs.errors import UsageError
from histfs.store import naming
from histfs.store import walk as walk_module
from histfs.store.format.ledger import SCANNED, VALID
from histfs.store.selection import CACHE_SIGNATURE, CACHE_TAG, Option, Selection, split_lines
from histfs.store.tree import Tree
from histfs.store.walk import Passed
from tests.selections import random_rules
from tests.store.comparing import comparing_walk
from tests.store.passing import NAMES, disturb, grow, ledger, of_session
from tests.store.sessions import Sessions, quote_names
from tests.trees import Dir, File, Link, Node, Symlink, build

TAG = CACHE_TAG.decode()
NO_TAGS = [b"", b"something else", CACHE_SIGNATURE[:-1]]
JUST_COPIES = ["--include=**.jpg", "--exclude=**"]


def selection(options: Sequence[str], source: Path) -> Selection:
    """That of options as the command line has them."""
    parsed = []
    for option in options:
        name, _, argument = option.removeprefix("--").partition("=")
        lines = split_lines(Path(argument).read_bytes(), null_separated=False) if name.endswith("filelist") else ()
        parsed.append(Option(name, os.fsencode(argument), lines))
    return Selection.parse(parsed, os.fsencode(source))


def more_rules(random_: random.Random) -> list[str]:
    """Of the kinds that ask for more than a path, or keep directories for what is in them."""
    name = random_.choice(NAMES).decode(errors="surrogateescape")
    choices = ["--exclude-caches"] * 3 + [f"--exclude-if-present={name}", f"--exclude-if-present={name}/a"]
    choices += ["--include-if-present=a", "--max-file-size=30", "--min-file-size=10", "--exclude-other-filesystems"]
    choices += [f"--include=**/{name}", f"--include=**/{name}", "--include=**a", "--exclude=**/d/**"]
    return random_.sample(choices, random_.randrange(3))


def some_rules(random_: random.Random, source: Path, lists: Path) -> list[str]:
    shutil.rmtree(lists, ignore_errors=True)
    lists.mkdir()
    paths = [os.path.relpath(place, source) for place, _, _ in os.walk(source) if place != str(source)]
    paths += [name.decode(errors="surrogateescape") for name in NAMES]
    encoded = [os.fsencode(path) for path in paths]
    while True:
        rules = more_rules(random_)
        if random_.random() < 0.4:  # directories that stay for what is in them
            rules += [f"--include=**/{os.fsdecode(name)}" for name in random_.sample(NAMES, random_.randrange(2))]
            rules += JUST_COPIES
        else:
            rules += random_rules(random_, source, encoded, lists)
        with contextlib.suppress(UsageError):
            selection(rules, source)
            return rules


def tag_some(random_: random.Random, top: Path) -> None:
    """Marks of caches that come and go, in place as well, and so do pictures."""
    for place, _, _ in os.walk(top):
        tag, picture = Path(place, TAG), Path(place, "a.jpg")
        what = random_.randrange(8)
        if what < 3 and (tag.exists() or what == 0):
            tag.write_bytes(random_.choice([CACHE_SIGNATURE, CACHE_SIGNATURE + b"\n", *NO_TAGS]))
        elif what == 3:
            tag.unlink(missing_ok=True)
        elif what == 4:
            picture.write_bytes(random_.randbytes(20))
        elif what < 7:
            picture.unlink(missing_ok=True)


@pytest.mark.parametrize("seed", range(12))
def test_sessions_are_those_that_look_at_everything(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, looks: list[bytes]
) -> None:
    check_sessions(tmp_path, seed, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_many_sessions(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sessions(tmp_path, seed, monkeypatch)


def check_sessions(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_ = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(walk_module, "_LINES_BYTES", 700)
    if seed % 3 == 0:
        words = random_.choice([[], [b"escape_dos_devices"], [b"escape_trailing_spaces", b"escape_dos_devices"]])
        monkeypatch.setattr(naming, "_needs", lambda _tree: (b"A-Z\xff b;", words))
    passing, looking = Sessions(tmp_path / "passing"), Sessions(tmp_path / "looking")
    for sessions in (passing, looking):
        sessions.repository.parent.mkdir(exist_ok=True)
    build(passing.source, grow(random_))
    tag_some(random_, passing.source)
    looking.source = passing.source
    rules: list[str] = []
    for number in range(6):
        if number == 0 or random_.random() < 0.25:
            rules = some_rules(random_, passing.source, tmp_path / "lists") if random_.random() < 0.9 else []
        outcomes = []
        for sessions in (passing, looking):
            chosen = selection(rules, passing.source) if rules else None
            outcome = sessions.backup(selection=chosen, may_report=True)
            statistics = outcome.statistics._replace(start_time_s=0, end_time_s=0, elapsed_s=0)
            outcomes.append((outcome._replace(statistics=statistics), list(map(str, sessions.reported))))
        ledger(looking).unlink()
        assert outcomes[0] == outcomes[1], (number, rules)
        assert of_session(passing) == of_session(looking), (number, rules)
        if random_.random() < 0.8:
            disturb(random_, passing.source, number)
            tag_some(random_, passing.source)


def test_what_is_left_out_is_neither_compared_nor_looked_at(sessions: Sessions, looks: list[bytes]) -> None:
    some: dict[str | bytes, Node] = {f"f{number}": File(b"%d" % number) for number in range(300)}
    more: dict[str | bytes, Node] = {f"f{number}.tmp": File(b"%d" % number) for number in range(0, 300, 7)}
    cache = Dir({"x": File(b"X")})
    build(sessions.source, Dir({"d": Dir({"e": Dir(some | more), "cache": cache}), "l": Symlink("d"), "z": Dir()}))
    rules = ["--exclude=**.tmp", "--exclude=**/cache", "--exclude-regexp=/y$"]
    back_up(sessions, rules)
    looks.clear()
    back_up(sessions, rules)
    assert looks == []
    (sessions.source / "d/e/f7.tmp").write_bytes(b"changed")
    (sessions.source / "d/cache/x").write_bytes(b"changed")
    back_up(sessions, rules)
    assert looks == []
    (sessions.source / "d/e/new.tmp").write_bytes(b"new")
    (sessions.source / "d/e/new").write_bytes(b"new")
    back_up(sessions, rules)
    assert looks == [b"d/e", b"d/e/new"]
    looks.clear()
    back_up(sessions, rules)
    assert looks == []


def back_up(sessions: Sessions, rules: Sequence[str]) -> None:
    sessions.backup(selection=selection(rules, sessions.source))


@pytest.mark.parametrize(
    ("rules", "looked_at"),
    [
        (["--max-file-size=3"], [b"d/large"]),
        (["--exclude-symbolic-links"], [b"d/link"]),
        (["--exclude-other-filesystems"], []),
        (["--exclude-if-present=large"], [b"d"]),
        (["--exclude-if-present=nothing"], []),
        (["--exclude-caches"], []),
        (["--exclude=SRC/a", "--include=SRC/d/e", "--exclude=SRC/d"], []),
    ],
)
def test_what_is_left_out_by_more_than_its_name(
    sessions: Sessions, rules: list[str], looked_at: list[bytes], looks: list[bytes]
) -> None:
    """It is looked at each time, and nothing else is."""
    inner = Dir({"e": File(b"E"), "large": File(b"large"), "link": Symlink("e"), "same": Link("d/e")})
    build(sessions.source, Dir({"a": File(b"A"), "d": inner, "z": Dir({"y": File(b"Y")})}))
    rules = [rule.replace("SRC", str(sessions.source)) for rule in rules]
    back_up(sessions, rules)
    looks.clear()
    back_up(sessions, rules)
    assert looks == looked_at


@pytest.mark.parametrize(
    "rules", [["--include-if-present=e", "--exclude=**/x"], ["--exclude-if-present=e/f"], ["--exclude-regexp=(?L)^q"]]
)
def test_rules_that_ask_for_what_no_time_tells(sessions: Sessions, rules: list[str], looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "d": Dir({"e": File(b"E")})}))
    back_up(sessions, rules)
    looks.clear()
    back_up(sessions, rules)
    assert looks == [b"a", b"d", b"d/e"]


def test_a_mark_of_a_cache_that_is_made_in_place(sessions: Sessions, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "c": Dir({TAG: File(b"?"), "x": File(b"X")}), "d": Dir()}))
    rules = ["--exclude-caches"]
    back_up(sessions, rules)
    assert (sessions.repository / "c/x").exists()
    looks.clear()
    back_up(sessions, rules)
    assert looks == [b"c"]
    (sessions.source / "c" / TAG).write_bytes(CACHE_SIGNATURE)
    back_up(sessions, rules)
    assert not (sessions.repository / "c").exists()


def pictures(sessions: Sessions) -> None:
    there = {"p.jpg": File(b"P"), "text": File(b"text")}
    first = {"a": File(b"A"), "p.jpg": File(b"P"), "q.jpg": File(b"Q")}
    inner = Dir({"e": Dir({"f": Dir(there)}), "q.jpg": File(b"Q"), "z": Dir({"text": File(b"text")})})
    build(sessions.source, Dir({"c": Dir({"text": File(b"")}), "d": inner, "g": Dir(first), "h": Dir(there)}))


def test_directories_that_stay_for_what_is_in_them(sessions: Sessions, looks: list[bytes]) -> None:
    pictures(sessions)
    back_up(sessions, JUST_COPIES)
    looks.clear()
    back_up(sessions, JUST_COPIES)
    empty, first_is_not_recorded = [b"c", b"d/z"], [b"g", b"g/p.jpg"]
    assert looks == [*empty, *first_is_not_recorded]
    looks.clear()
    (sessions.source / "d/e/f/p.jpg").write_bytes(b"changed")
    back_up(sessions, JUST_COPIES)
    assert looks == [b"c", b"d", b"d/e", b"d/e/f", b"d/e/f/p.jpg", b"d/z", *first_is_not_recorded]


@pytest.mark.parametrize("gone", ["d/e/f/p.jpg", "h/p.jpg", "d/q.jpg", "d/e"])
def test_a_directory_goes_with_all_that_was_included_in_it(sessions: Sessions, gone: str) -> None:
    pictures(sessions)
    back_up(sessions, JUST_COPIES)
    path = sessions.source / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    back_up(sessions, JUST_COPIES)
    kept = {path.relative_to(sessions.source) for path in sessions.source.rglob("*.jpg")}
    kept |= {above for path in kept for above in path.parents}
    found = {path.relative_to(sessions.repository) for path in sessions.repository.rglob("*")}
    assert {path for path in found if path.parts[:1] != ("rdiff-backup-data",)} | {Path()} == kept


def test_other_rules_are_other_sessions(sessions: Sessions, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "b": File(b"B")}))
    for rules, expected in (
        ([], [b"a", b"b"]),
        (["--exclude=**/b"], [b"a"]),
        (["--exclude=**/a"], [b"b"]),
        (["--exclude=**/a"], []),
        ([], [b"a", b"b"]),
        ([], []),
    ):
        looks.clear()
        sessions.backup(selection=selection(rules, sessions.source) if rules else None)
        assert [path for path in looks if path] == expected
        assert {path for path in (b"a", b"b") if (sessions.repository / os.fsdecode(path)).exists()} == (
            {b"a", b"b"} - {rule[-1:].encode() for rule in rules}
        )


def test_a_list_counts_for_what_is_in_it(sessions: Sessions, tmp_path: Path, looks: list[bytes]) -> None:
    build(sessions.source, Dir({"a": File(b"A"), "b": File(b"B")}))
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text(f"{sessions.source}/b\n")
    back_up(sessions, [f"--exclude-filelist={one}"])
    looks.clear()
    back_up(sessions, [f"--exclude-filelist={other}"])
    assert looks == []
    other.write_text(f"{sessions.source}/a\n")
    back_up(sessions, [f"--exclude-filelist={other}"])
    assert looks == [b"b"]


def test_somebody_else_may_see_less(sessions: Sessions, looks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    build(sessions.source, Dir({"a": File(b"A")}))
    rules = ["--exclude-if-present=x"]
    back_up(sessions, rules)
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    looks.clear()
    back_up(sessions, rules)
    assert looks == [b"a"]


def test_what_cannot_be_asked_is_asked_again(
    sessions: Sessions, looks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose mark cannot be seen now may show it later, without a change of its times."""
    build(sessions.source, Dir({"a": Dir({"mark": File()}), "b": Dir(), "c": Dir()}))
    rules = ["--exclude-if-present=mark"]
    real = Tree.exists

    def exists(tree: Tree, path: bytes) -> bool:
        if path == b"a/mark":
            raise PermissionError
        return real(tree, path)

    with monkeypatch.context() as patched:
        patched.setattr(Tree, "exists", exists)
        back_up(sessions, rules)
    assert (sessions.repository / "a/mark").exists()
    looks.clear()
    back_up(sessions, rules)
    assert looks == [b"a", b"b"]  # the second, as the list has something else next
    assert not (sessions.repository / "a").exists()


# Names that are quoted on disk


def test_quoted_names_are_passed_over(sessions: Sessions, looks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    quote_names(monkeypatch, b"A-Z\xff;")
    some: dict[str | bytes, Node] = {name: File(b"x") for name in ("Aa", "b", "C;", b"\xff")}
    build(sessions.source, Dir({"D": Dir({"e": Dir(some)}), b"f\xff": Dir(some), "g": File(b"G")}))
    sessions.backup()
    assert (sessions.repository / ";068/e/;067;059").exists()
    looks.clear()
    sessions.backup()
    assert looks == []
    (sessions.source / "D/e/Aa").write_bytes(b"changed")
    (sessions.repository / os.fsdecode(b"f;255/b")).unlink()  # of which the directory in the mirror tells
    sessions.backup(may_report=True)
    assert looks == [b"D/e/Aa", *sorted(b"f\xff/" + os.fsencode(name) for name in some)]
    sessions.assert_all_readable()


def test_below_names_with_special_escapes_all_is_looked_at(
    sessions: Sessions, looks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [b"escape_dos_devices", b"escape_trailing_spaces"]
    monkeypatch.setattr(naming, "_needs", lambda _tree: (b"A-Z;", words))
    below = Dir({"x": File(b"X")})
    escaped = ["con", "AUX", "lpt1.txt", "a.", "a "]
    names = [*escaped, "config", "Console", "com", "comx", "lpt10", ".a", "b.c", "xcon"]
    build(sessions.source, Dir(dict.fromkeys(names, below)))
    sessions.backup()
    looks.clear()
    sessions.backup()
    assert {path for path in looks if path.endswith(b"/x")} <= {f"{name}/x".encode() for name in [*escaped, "com"]}
    assert {f"{name}/x".encode() for name in ("con", "lpt1.txt", "a.", "a ")} <= set(looks)
    sessions.assert_all_readable()


# The comparison alone


def test_a_list_that_ends_in_a_directory_that_stays_for_what_is_in_it(tmp_path: Path) -> None:
    """Wherever its text is cut, the directory is passed over with something in it, or not at all."""
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/x").write_bytes(b"X")
    paths = [b"a", b"d", b"d/e", b"d/e/x"]
    records = [b"File %b\n  Type reg\n" % path for path in paths]
    text = b"".join(records)
    for end in range(len(text) + 1):
        for is_last in (False, True):
            for count in range(len(paths) + 1):
                passed, following = compare(tmp_path, paths[:count], records, text[:end], is_last=is_last)
                assert passed.files in (0, 1, 4), (end, is_last, count)
                assert passed.text_bytes == sum(map(len, records[: passed.files]))
                assert passed.lines.count(b"\n") == passed.files
                assert following == {0: b"a", 1: b"d", 4: None}[passed.files]
                assert (passed.files == 4) == (count == 4 and is_last and end == len(text)) or not is_last


def compare(
    top: Path, paths: list[bytes], records: list[bytes], text: bytes, *, is_last: bool
) -> tuple[Passed, bytes | None]:
    """What is passed over, and the path that comes next."""
    seen = b""
    for path, record in zip(paths, records, strict=False):
        status = (top / os.fsdecode(path)).lstat()
        is_directory = (top / os.fsdecode(path)).is_dir()
        flags = VALID | SCANNED if is_directory else VALID
        now = walk_module.seen_of(status)._replace(record_bytes=len(record), flags=flags)
        seen += (now._replace(size=status.st_ctime_ns) if is_directory else now).format()
    with comparing_walk(top) as walk:
        passed = walk.compare(text, 0, seen, 0, is_last=is_last, number=0, first_number=0, line_end=b"\n")
        return passed, walk.path if walk.next() else None
