"""Rules, patterns and verdicts: against a reference made of regular expressions, and where those would hang."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histfs.errors import UsageError
from histfs.store.entry import Entry, Kind, sort_key
from histfs.store.selection import Option, Outcome, Selection, Subject, Verdict, globs, selected, split_lines

DIRECTORY, FILE = Subject(True, Kind.DIRECTORY), Subject(False, Kind.REGULAR)


def place_of(selection, path):
    place = selection.root
    for name in path.split(b"/"):
        place = selection.enter(place, name)
    return place


def verdict(path, *options, base=b"/s", subject=FILE):
    selection = Selection.parse([Option(*option) for option in options], base)
    return selection.verdict(place_of(selection, path), subject)


def excludes(pattern, path, *, base=b"/s", subject=FILE):
    return verdict(path, ("exclude", pattern), base=base, subject=subject).outcome is Outcome.EXCLUDED


# --- patterns ---------------------------------------------------------------------------------------------------------


def reference(pattern):
    """The pattern as a regular expression."""
    pieces = re.findall(rb"\*\*+|\*|\?|\[[!^]?\]?[^\]]*\]|\\.|.", pattern, re.DOTALL)
    return re.compile(b"^" + b"".join(map(reference_piece, pieces)) + b"($|/)", re.DOTALL)


def reference_piece(piece):
    if piece.startswith(b"*"):
        return b".*" if len(piece) > 1 else b"[^/]*"
    if piece == b"?":
        return b"[^/]"
    if piece.startswith(b"[") and len(piece) > 1:
        negated = piece[1:2] in (b"!", b"^")
        inner = piece[1 + negated : -1].replace(b"\\", b"\\\\").replace(b"[", b"\\[").replace(b"]", b"\\]")
        return b"[" + b"^" * negated + re.sub(rb"([&~|])", rb"\\\1", inner).replace(b"^", b"\\^") + b"]"
    return re.escape(piece[1:] if len(piece) > 1 else piece)


alphabets = st.sampled_from(
    [b"*", b"**", b"?", b"/", b"a", b"b", b".", b"[ab]", b"[!a]", b"[^b-c]", b"[]a]", b"\\a", b"A"]
)
patterns = st.lists(alphabets, min_size=1, max_size=9).map(b"".join).filter(lambda pattern: b"//" not in pattern)
some_names = st.text("ab.A", min_size=1, max_size=4).map(str.encode).filter(lambda name: name not in (b".", b".."))
some_paths = st.lists(some_names, min_size=1, max_size=4).map(b"/".join)


@given(patterns, some_paths, st.booleans())
def test_a_whole_pattern_matches_what_the_regular_expression_does(pattern, path, ignore_case):
    glob = b"/s/" + pattern.lstrip(b"/")
    if b"//" in glob or not any(byte in globs.SPECIAL for byte in glob):
        return
    compiled = reference(glob)
    if ignore_case:
        glob = b"IGNOREcase:" + glob
        compiled = re.compile(compiled.pattern, re.DOTALL | re.IGNORECASE)
    assert excludes(glob, path) == bool(compiled.search(b"/s/" + path))


@given(patterns, some_paths)
def test_a_directory_that_may_hold_a_match_is_scanned(pattern, path):
    glob = b"/s/" + pattern.lstrip(b"/")
    if b"//" in glob or not any(byte in globs.SPECIAL for byte in glob):
        return
    if verdict(path, ("include", glob), ("exclude", b"**")).outcome is Outcome.INCLUDED:
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            assert (
                verdict(path, ("include", glob), ("exclude", b"**"), subject=DIRECTORY).outcome is not Outcome.EXCLUDED
            )


@given(st.lists(st.tuples(st.booleans(), patterns), min_size=1, max_size=6), st.lists(some_paths, max_size=5))
def test_many_patterns_are_the_first_that_matches(rules, found):
    options = [("include" if is_include else "exclude", b"**" + pattern) for is_include, pattern in rules]
    if any(b"//" in pattern for _, pattern in options):
        return
    options.append(("exclude", b"/s/none"))
    selection = Selection.parse([Option(*option) for option in options], b"/s")
    for path in found:
        first = next((option for option in options if reference(option[1]).search(b"/s/" + path)), None)
        outcome, rule = selection.verdict(place_of(selection, path), FILE)
        assert outcome is (Outcome.EXCLUDED if first and first[0] == "exclude" else Outcome.INCLUDED)
        assert (rule.option[2:], rule.argument) == first if first else rule is None


@given(patterns, some_paths)
def test_states_that_were_forgotten_are_made_again(pattern, path):
    glob = b"**" + pattern
    if b"//" in glob:
        return
    with pytest.MonkeyPatch.context() as patch:
        expected = excludes(glob, path)
        patch.setattr(globs, "_MAX_STATE_BYTES", 0)
        patch.setattr(globs, "_FEWEST_STATES", 2)
        assert excludes(glob, path) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        b"**" + b"*a" * 2_000 + b"b",
        b"**" * 5_000 + b"b",
        b"**/" + b"*a*/" * 500 + b"b",
        b"**" + b"[!b]*" * 2_000 + b"c",
        b"**a" * 1_000 + b"b",
        b"**" + b"?*" * 2_000 + b"/b",
        b"ignorecase:**" + b"*a?" * 2_000 + b"b",
    ],
)
def test_absurd_patterns_do_not_hang(pattern):
    assert not excludes(pattern, b"/".join([b"a" * 255] * 15))


def test_many_absurd_patterns_at_once_do_not_hang():
    options = [Option("exclude", b"**" + b"*%c?" % byte * 20 + b"!") for byte in b"abcdefghij" * 10]
    selection = Selection.parse(options, b"/s")
    assert selection.verdict(place_of(selection, b"abcdefghij" * 25), FILE).outcome is Outcome.INCLUDED


@pytest.mark.parametrize(
    "pattern",
    [
        b"",
        b"ignorecase:",
        b"/",
        b"//",
        b"/x",
        b"/x*",
        b"/sx",
        b"..",
        b"../x",
        b"x/../y",
        b"a/./b",
        b"../*",
        b"./",
        b".",
    ],
)
def test_what_can_match_nothing(pattern):
    with pytest.raises(UsageError):
        excludes(pattern, b"x")


@pytest.mark.parametrize("pattern", [b"**[z-a]", b"/s/*//x", b"[b-a]"])
def test_what_makes_no_sense(pattern):
    with pytest.raises(UsageError):
        excludes(pattern, b"x")


@pytest.mark.parametrize("base", [b"/s", b"s", b".", b"..", b"/", b"a/b", b"../x"])
@given(st.binary(max_size=12).filter(lambda pattern: b"\0" not in pattern))
def test_any_bytes_are_a_pattern_or_a_mistake(base, pattern):
    with contextlib.suppress(UsageError):
        excludes(pattern, b"a/b", base=base)


@pytest.mark.parametrize(
    ("base", "pattern", "path"),
    [
        (b"/", b"/etc/*", b"etc/passwd"),
        (b"/", b"/etc", b"etc/passwd"),
        (b"/", b"**/passwd", b"etc/passwd"),
        (b".", b"./etc", b"etc/passwd"),
        (b"./", b"./etc/*", b"etc/passwd"),
        (b"./x//", b"x/etc", b"etc/passwd"),
        (b"//x/./y", b"/x/y/etc", b"etc/passwd"),
        (b"..", b"../etc", b"etc/passwd"),
        (b"x", b"x", b"etc"),
        (b"x", b"*", b"etc"),
    ],
)
def test_roots(base, pattern, path):
    assert excludes(pattern, path, base=base)
    assert not excludes(pattern + b"x", path, base=base)


# --- rules ------------------------------------------------------------------------------------------------------------


class Surroundings:
    device = 1

    def __init__(self, *present):
        self.present = present
        self.asked = 0

    def holds(self, directory, name):
        self.asked += 1
        return directory + b"/" + name in self.present

    def is_cache(self, directory):
        return directory + b"/CACHEDIR.TAG" in self.present


def test_the_verdict_names_the_rule():
    options = (
        ("exclude", b"*.o"),
        ("include-regexp", b"x"),
        ("exclude-globbing-filelist", b"list", (b"", b"+ a*", b"**")),
    )
    assert str(verdict(b"d/x.o", *options).rule) == "--exclude *.o"
    assert str(verdict(b"d/x", *options).rule) == "--include-regexp x"
    assert str(verdict(b"d/a", *options).rule) == "line 2 of --exclude-globbing-filelist list: + a*"
    assert verdict(b"d", *options, subject=DIRECTORY) == Verdict(Outcome.SCANNED, verdict(b"d/a", *options).rule)
    assert verdict(b"q", ("exclude", b"*.o")) == Verdict(Outcome.INCLUDED, None)
    assert (
        str(verdict(b"c", ("exclude-caches",), subject=with_device(1, Surroundings(b"c/CACHEDIR.TAG"))).rule)
        == "--exclude-caches"
    )


def with_device(device, surroundings):
    return Subject(True, Kind.DIRECTORY, 0, device, surroundings)


def test_other_filesystems():
    for device, outcome in ((1, Outcome.INCLUDED), (2, Outcome.EXCLUDED)):
        subject = with_device(device, Surroundings())
        assert verdict(b"x", ("exclude-other-filesystems",), subject=subject).outcome is outcome
    assert verdict(b"x", ("exclude-other-filesystems",)).outcome is Outcome.INCLUDED


def test_what_is_in_a_directory_is_asked_once():
    selection = Selection.parse([Option("include-if-present", b"keep"), Option("exclude", b"**")], b"/s")
    surroundings = Surroundings(b"d/keep")
    directory = selection.enter(selection.root, b"d")
    for name in (b"keep", b"x", b"y"):
        subject = Subject(False, Kind.REGULAR, surroundings=surroundings)
        assert selection.verdict(selection.enter(directory, name), subject).outcome is Outcome.INCLUDED
    assert surroundings.asked == 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/../b", b"/a"])
def test_what_is_no_name_in_a_directory(name):
    with pytest.raises(UsageError):
        verdict(b"x", ("exclude-if-present", name))


@pytest.mark.parametrize(
    "option", [("include", b"x"), ("include-fifos",), ("include-globbing-filelist", b"l", (b"- y", b"x"))]
)
def test_a_last_rule_that_includes(option):
    with pytest.raises(UsageError, match="only includes"):
        verdict(b"x", ("exclude", b"y"), option)
    verdict(b"x", option, ("exclude", b"y"))


def test_a_list_without_lines_is_no_last_rule():
    with pytest.raises(UsageError, match="--include x, only includes"):
        verdict(b"x", ("include", b"x"), ("exclude-globbing-filelist", b"list", (b"", b"")))


def test_lines_of_lists_count_from_the_root_on_or_are_ignored():
    lines = (b"/s/a", b"./b/c", b"d//e/", b"/elsewhere", b"../x", b"# f")
    selection = Selection.parse([Option("exclude-filelist", b"list", lines)], b"/s")
    assert [rule.line for rule in selection.ignored] == [4, 5]
    paths = [b"a/x", b"b/c", b"b/d", b"d/e/f", b"f"]
    outcomes = [selection.verdict(place_of(selection, path), FILE).outcome for path in paths]
    assert [outcome is Outcome.EXCLUDED for outcome in outcomes] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("content", "null", "lines"),
    [
        (b"a\r\nb\n", False, (b"a", b"b", b"")),
        (b"a\r\nb\0c", True, (b"a\r\nb", b"c")),
        (b"a\r\r\n", False, (b"a\r", b"")),
        (b"", False, (b"",)),
    ],
)
def test_lines(content, null, lines):
    assert split_lines(content, null_separated=null) == lines


# --- before anything is looked at -------------------------------------------------------------------------------------

KINDS_OF_RULES = [
    ("exclude", b"**a"),
    ("include", b"**b"),
    ("exclude", b"a*"),
    ("include", b"/s/a/b"),
    ("exclude", b"/s/b"),
    ("exclude-fifos",),
    ("include-special-files",),
    ("max-file-size", b"5"),
    ("include-regexp", b"b$"),
    ("exclude-regexp", b"a/b"),
    ("exclude-filelist", b"l", (b"a/a", b"+ a/b/b")),
    ("exclude-if-present", b"a"),
    ("include-if-present", b"b"),
    ("exclude-other-filesystems",),
]
subjects = st.builds(
    Subject,
    st.just(False),
    st.sampled_from([Kind.REGULAR, Kind.FIFO]),
    st.integers(0, 9),
    st.integers(1, 2),
    st.just(Surroundings(b"a/b", b"b/a", b"/a")),
) | st.just(with_device(1, Surroundings(b"a/b", b"/b")))


@given(st.lists(st.sampled_from(KINDS_OF_RULES), max_size=5), some_paths, subjects)
def test_what_is_excluded_by_name_is_excluded_whatever_it_is(options, path, subject):
    selection = Selection.parse([Option(*option) for option in [*options, ("exclude", b"/s/none")]], b"/s")
    place = place_of(selection, path)
    if selection.excludes_by_name(place, is_directory=subject.is_directory):
        assert selection.verdict(place, subject).outcome is Outcome.EXCLUDED


# --- streams ----------------------------------------------------------------------------------------------------------


def entries_of(paths):
    """Entries for paths and all that leads to them; what ends in a slash, and what leads somewhere, is a directory."""
    kinds = {b"": Kind.DIRECTORY}
    for path in paths:
        names = path.rstrip(b"/").split(b"/")
        kinds |= {b"/".join(names[:depth]): Kind.DIRECTORY for depth in range(1, len(names))}
        if path.endswith(b"/"):
            kinds[path.rstrip(b"/")] = Kind.DIRECTORY
        else:
            kinds.setdefault(path, Kind.REGULAR)
    return [Entry(path, kinds[path]) for path in sorted(kinds, key=sort_key)]


def kept(paths, *options, root=b""):
    entries = [entry._replace(path=root + b"/" + entry.path if entry.path else root) for entry in entries_of(paths)]
    selection = Selection.parse([Option(*option) for option in options], b"/s")
    return [entry.path for entry in selected(entries if root else entries_of(paths), selection, root=root)]


def test_a_stream():
    paths = [b"a/b/x.c", b"a/b/x.o", b"a/c/y.o", b"d/", b"x.c", b"x/y/z/x.c"]
    assert kept(paths, ("include", b"*.c"), ("exclude", b"*")) == [
        *(b"", b"a", b"a/b", b"a/b/x.c", b"x", b"x/y", b"x/y/z", b"x/y/z/x.c", b"x.c")
    ]
    assert kept(paths, ("exclude", b"./a"), ("exclude", b"y/")) == [b"", b"d", b"x", b"x.c"]


def test_a_stream_of_what_is_in_a_directory():
    assert kept([b"a/x", b"b"], ("exclude", b"./a"), root=b"r/a") == [b"r/a", b"r/a/b"]


@given(st.lists(some_paths | some_paths.map(lambda path: path + b"/"), max_size=8), st.data())
def test_what_is_kept_is_a_tree_without_empty_scanned_directories(paths, data):
    options = data.draw(st.lists(st.sampled_from([*KINDS_OF_RULES, ("include", b"**/a/b")]), max_size=4))
    entries = entries_of(paths)
    result = kept(
        [entry.path + b"/" * (entry.kind is Kind.DIRECTORY) for entry in entries[1:]], *options, ("exclude", b"**a")
    )
    assert result == sorted(result, key=sort_key)
    assert {path.rpartition(b"/")[0] for path in result} <= set(result)
    everything = kept([entry.path + b"/" * (entry.kind is Kind.DIRECTORY) for entry in entries[1:]])
    assert set(result) <= set(everything) == {entry.path for entry in entries}


# --- what would exclude everything by mistake -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exclude-filelist", "include-filelist", "exclude-globbing-filelist-stdin"])
@pytest.mark.parametrize("line", [b"- ", b"+ "])
def test_a_line_that_names_nothing(name: str, line: bytes) -> None:
    with pytest.raises(UsageError, match=r"line 3 .*names nothing"):
        Selection.parse([Option(name, b"list", (b"- a", b"", line, b""))], b"/s")


@pytest.mark.parametrize("line", [b"/s", b"/s/", b".", b"- .", b"- /s"])
def test_a_list_that_excludes_the_root(line: bytes) -> None:
    lists = Option("exclude-filelist", b"list", (b"a", line))
    with pytest.raises(UsageError, match=r"line 2 .*whole tree"):
        Selection.parse([lists], b"/s")
    Selection.parse([Option("include", b"x"), lists], b"/s")  # the usual way to say "nothing else"


@pytest.mark.parametrize("name", ["include-regexp", "exclude-regexp"])
def test_an_empty_regular_expression(name: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        Selection.parse([Option(name), Option("exclude", b"x")], b"/s")


@pytest.mark.parametrize("text", [b"[[a]x", b"[--a]", b"[a||b]"])
def test_a_regular_expression_that_python_warns_of(text: bytes) -> None:
    """It is read as it is today, and nothing is said: warnings are errors here."""
    assert Selection.parse([Option("include-regexp", text), Option("exclude", b"x")], b"/s")


@pytest.mark.parametrize("size", [b"9" * 5000, b"9" * 20, b"0" * 5000, b"", b"-1", b"1k"])
def test_what_is_no_size(size: bytes) -> None:
    with pytest.raises(UsageError, match="a size is") as raised:
        Selection.parse([Option("max-file-size", size)], b"/s")
    assert len(str(raised.value)) < 200


def test_zeros_before_a_size() -> None:
    assert verdict(b"x", ("max-file-size", b"0" * 5000 + b"5")).outcome is Outcome.INCLUDED
