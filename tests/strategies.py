"""Hypothesis strategies for the values of the on-disk format."""

from hypothesis import strategies as st

from histfs.store.entry import Entry, Kind, LinkGroup, sort_key
from histfs.store.format.attributes import AccessControlList, AclEntry, ExtendedAttributes
from histfs.store.format.stats import FileStatistic, LoggedError, SessionStatistics

_ID = st.integers(0, 2**32 - 1)
_SIGNED = st.integers(0, 2**63 - 1)
_UNSIGNED = st.integers(0, 2**64 - 1)

# Bytes that mean something in one of the codecs come often.
tricky_bytes = st.lists(
    st.one_of(
        st.sampled_from([b"\\", b"\n", b"\\n", b" ", b".", b";", b"=", b":", b"#", b"File ", b"\nFile ", b"\r"]),
        st.sampled_from([b"None", b"\xff", b"\xc3\xa9", b"\x1b[", b".2023-11-14T22:13:20Z.diff.gz", b"con", b";065"]),
        st.binary(min_size=1, max_size=3),
    ),
    max_size=6,
).map(b"".join)

# Names of files: any bytes but NUL and the slash, and not the two that mean directories.
names = tricky_bytes.map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"|")).filter(
    lambda name: name not in (b"", b".", b"..")
)
inner_paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
paths = st.one_of(st.just(b""), inner_paths)

session_times = st.one_of(
    st.integers(-2177452800, 4102444799),  # the years 1901 to 2099
    st.integers(1_700_000_000, 1_700_000_200),  # close together
)

digests = st.binary(min_size=20, max_size=20).map(lambda digest: digest.hex().encode())
_owner_names = st.one_of(
    st.none(),
    st.sampled_from([b"root", b"www-data", "jürgen".encode(), b"a b ", b" x"]),
)
_values = tricky_bytes.map(lambda value: value.replace(b"\n", b"_").replace(b"\0", b"_")).filter(bool)


@st.composite
def entries(draw, path=paths, kinds=tuple(Kind)):
    """Entries as parse_record makes them: fields that a kind does not have keep their defaults."""
    kind = draw(st.sampled_from(kinds))
    entry = Entry(draw(path), kind)
    if kind is Kind.ABSENT:
        return entry
    entry = entry._replace(
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(_ID),
        gid=draw(_ID),
        uname=draw(_owner_names),
        gname=draw(_owner_names),
        mtime_s=draw(st.integers(-(2**63), 2**63 - 1)) if kind.has_mtime else 0,
    )
    number = draw(
        st.one_of(st.none(), st.tuples(st.sampled_from(["alternate_mirror", "alternate_increment"]), _SIGNED))
    )
    if number:
        entry = entry._replace(**{number[0]: number[1]})
    if kind is Kind.REGULAR:
        group = st.builds(LinkGroup, st.integers(2, 2**64 - 1), _UNSIGNED, _UNSIGNED)
        return entry._replace(
            size_bytes=draw(_SIGNED),
            sha1=draw(st.none() | digests),
            link_group=draw(st.none() | group),
            resource_fork=draw(st.none() | _values),
            carbon_file=draw(st.none() | _values),
        )
    if kind is Kind.SYMLINK:
        return entry._replace(target=draw(tricky_bytes.map(lambda text: text.replace(b"\0", b"/")).filter(bool)))
    if kind.is_device:
        return entry._replace(device_number=draw(st.tuples(_ID, _ID)))
    return entry


def listings(names_of_paths=inner_paths, kinds=tuple(set(Kind) - {Kind.ABSENT}), max_size=12):
    """Full lists: entries in the order of metadata, each path once, the root first."""
    others = st.lists(names_of_paths, unique=True, max_size=max_size).map(lambda some: sorted(some, key=sort_key))
    return others.flatmap(lambda some: st.tuples(*(entries(st.just(path), kinds) for path in [b"", *some]))).map(list)


@st.composite
def chunkings(draw, data):
    """`data` (bytes, or a strategy for them) cut into chunks, some of them empty."""
    if not isinstance(data, bytes):
        data = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# The contents of the two files of quoting.
usual_chars_to_quote = st.sampled_from(
    [b"A-Z;", b'\x00-\x1f"*/:<>?\\\\|\x7f;', b"\\x80-\\xff;", b"^a-z0-9", b"A-Z:;", b" ;", b";", b"T:-;"]
)
special_escapes = st.sampled_from(
    [b"", b"escape_dos_devices", b"escape_trailing_spaces", b"escape_trailing_spaces\nescape_dos_devices\n"]
)

_attribute_names = st.one_of(
    st.sampled_from([b"user.comment", b"security.capability", b"trusted.overlay.opaque"]),
    tricky_bytes.map(lambda name: b"user." + name.replace(b"\0", b"0")).filter(lambda name: len(name) < 256),
)
extended_attributes = st.builds(
    ExtendedAttributes,
    paths,
    st.dictionaries(_attribute_names, st.one_of(st.just(b""), tricky_bytes, st.binary(max_size=400))),
)

_qualifiers = st.one_of(_ID, st.sampled_from([b"www-data", b"DOMAIN\\user", b"a b", b"x:y", "jürgen".encode(), b"7up"]))
_permissions = st.integers(0, 7)


@st.composite
def _acl_parts(draw, is_default):
    named = draw(st.lists(st.tuples(st.sampled_from([b"user", b"group"]), _qualifiers), unique=True, max_size=4))
    base = [(b"user", None), (b"group", None), (b"other", None)]
    mask = [(b"mask", None)] if named or draw(st.booleans()) else []
    return [AclEntry(tag, qualifier, draw(_permissions), is_default) for tag, qualifier in base + named + mask]


access_control_lists = st.builds(
    lambda path, access, default: AccessControlList(path, tuple(access + default)),
    paths,
    _acl_parts(is_default=False),
    st.one_of(st.just([]), _acl_parts(is_default=True)),
)

_centiseconds = st.integers(0, 4102444799_00).map(lambda count: count / 100)
_counts = st.integers(0, 10**15)
session_statistics = st.builds(
    SessionStatistics,
    _centiseconds,
    _centiseconds,
    st.integers(-(10**9), 10**9).map(lambda count: count / 100),
    *[_counts] * 13,
    st.integers(-(10**15), 10**15),
    _counts,
)
_sizes = st.none() | _SIGNED
file_statistics = st.builds(FileStatistic, paths, st.booleans(), _sizes, _sizes, _sizes)
_words = st.text("abc/: []é", max_size=12).map(str.encode)
logged_errors = st.builds(
    LoggedError,
    st.sampled_from([b"ListError", b"UpdateError", b"SpecialFileError"]),
    _words.filter(lambda path: b"' " not in path),
    _words,
)
