"""Names on file systems that cannot hold every name (docs/format.md 3.2, 3.3)."""

import re
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from histfs.errors import FormatError
from histfs.store.format.quoting import NO_QUOTING, Quoting
from tests.strategies import special_escapes, tricky_bytes, usual_chars_to_quote

NTFS = b'\x00-\x1f"*/:<>?\\\\|\x7f;'
BOTH = b"escape_dos_devices\nescape_trailing_spaces"

NAMES = [  # both ways: chars_to_quote, special_escapes, name, name on disk
    (b"A-Z;", b"", b"UPPER", b";085;080;080;069;082"),
    (b"A-Z;", b"", b"x;065y", b"x;059065y"),
    (b"A-Z", b"", b";", b";059"),
    (b"A-Z;", b"", b"f.2023-11-14T22-13-20Z.diff.gz", b"f.2023-11-14;08422-13-20;090.diff.gz"),
    (b"A-Z;", b"", b"plain-name.txt", b"plain-name.txt"),
    (b"\\x80-\\xff;", b"", b"\xc3\xa9\xff", b";195;169;255"),
    (b"\x80-\xff;", b"", b"\xc3\xa9\xff", b";195;169;255"),
    (NTFS, b"", b'a:b\\c|"\x01\x7f', b"a;058b;092c;124;034;001;127"),
    (NTFS, BOTH, b"con", b";099on"),
    (NTFS, BOTH, b"CON.txt", b";067ON.txt"),
    (NTFS, BOTH, b"lpt9.2023-11-14T22-13-20Z.missing", b";108pt9.2023-11-14T22-13-20Z.missing"),
    (NTFS, BOTH, b"console", b"console"),
    (NTFS, BOTH, b"com", b"com"),
    (NTFS, BOTH, b"tr.", b"tr;046"),
    (NTFS, BOTH, b"tr ", b"tr;032"),
    (NTFS, BOTH, b"tr. .", b"tr. ;046"),
    (NTFS, BOTH, b"tr..2023-11-14T22-13-20Z.missing", b"tr..2023-11-14T22-13-20Z.missing"),
    (NTFS, BOTH, b"aux.", b"aux;046"),  # the last byte first: then this is no device any more
    (NTFS, BOTH, b"aux. ", b";097ux.;032"),
    (NTFS, BOTH, b"nul ", b"nul;032"),
    (NTFS, b"escape_dos_devices", b"tr.", b"tr."),
    (NTFS, b"escape_trailing_spaces", b"nul", b"nul"),
    (b"A-Z", BOTH, b"CON", b";067;079;078"),
    (b"", b"", b"A;065", b"A;065"),
    (b"", BOTH, b"con", b"con"),  # the second file means nothing without the first
    (b"^a-z", b"", b"aB.c", b"a;066;046c"),
]


@pytest.mark.parametrize(("chars", "escapes", "name", "stored"), NAMES)
def test_name_both_ways(chars, escapes, name, stored):
    quoting = Quoting.parse(chars, escapes)
    assert quoting.quote(name) == stored
    assert quoting.unquote(stored) == name


def test_no_quoting():
    assert Quoting.parse(b"", b"") is NO_QUOTING
    assert Quoting.parse(b"", b"what is this") is NO_QUOTING
    assert not NO_QUOTING.is_active
    assert Quoting.parse(b";", b"").is_active


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (b";256", b";256"),
        (b";999", b";999"),
        (b";06", b";06"),
        (b";06x;", b";06x;"),
        (b";;065", b";A"),
        (b"a;047b;000", b"a;047b;000"),  # never a way into another directory
        (b"rdiff-backup-data", b"rdiff-backup-data"),
    ],
)
def test_names_that_no_writer_made(stored, name):
    assert Quoting.parse(b"A-Z/\0;", b"").unquote(stored) == name


@given(usual_chars_to_quote, special_escapes, st.one_of(st.binary(), tricky_bytes))
def test_round_trip_of_names(chars, escapes, name):
    quoting = Quoting.parse(chars, escapes)
    assert quoting.unquote(quoting.quote(name)) == name


@given(usual_chars_to_quote, special_escapes, tricky_bytes)
def test_what_is_stored_needs_no_quoting(chars, escapes, name):
    stored = Quoting.parse(chars, escapes).quote(name)
    allowed = rb"[^%b]|;|/|\0|\d" % chars if chars[:1] != b"^" else rb"[%b]|;|/|\0|\d" % chars[1:]
    assert re.fullmatch(b"(?:%b)*" % allowed, stored, re.DOTALL)


CLASS_PIECES = [
    b"a",
    b"z",
    b"-",
    b"^",
    b"]",
    b"[",
    b"\\",
    b"\\x41",
    b"\\x",
    b"\\101",
    b"\\0",
    b"\\d",
    b"\\S",
    b"\\-",
    b"\\]",
]
CLASS_PIECES += [b"\\n", b"\\b", b"\\q", b"\\A", b"|", b"&", b"~", b" ", b"\n", b";", b"\xff", b"\\777", b"(", b")+"]


@given(st.lists(st.sampled_from(CLASS_PIECES), min_size=1, max_size=6).map(b"".join))
def test_a_class_means_what_it_means_in_a_regular_expression(body):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            members = re.compile(b"[%b]" % body)
    except re.error:
        members = None
    try:
        quoting = Quoting.parse(body, b"")
    except FormatError:
        # Some bodies end the class and go on with an expression: no writer makes them.
        assert members is None or b"]" in body
        return
    assume(members is not None)
    for value in set(range(256)) - set(b";/\0"):
        char = bytes([value])
        assert (quoting.quote(char) != char) == bool(members.fullmatch(char)), char


@given(st.binary(max_size=8), st.binary(max_size=8), st.binary())
def test_any_bytes_are_a_quoting_or_a_format_error(chars, escapes, name):
    try:
        quoting = Quoting.parse(chars, escapes)
    except FormatError:
        return
    assert quoting.unquote(quoting.quote(name)) == name
    quoting.unquote(name)


@pytest.mark.parametrize(
    "chars", [b"z-a", b"a]", b"a](x+x+)+y[", b"\\", b"a-\\", b"\\d-z", b"a-\\d", b"\\q", b"\\xg0", b"\\400"]
)
def test_what_is_no_class(chars):
    with pytest.raises(FormatError):
        Quoting.parse(chars, b"")


def test_unknown_special_escapes():
    with pytest.raises(FormatError, match="escape_unicode"):
        Quoting.parse(b"A-Z;", b"escape_dos_devices\nescape_unicode")
