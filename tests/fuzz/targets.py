"""What is fuzzed: functions of bytes that raise where something is wrong.

Each gives its bytes to a parser or another reader of what cannot be trusted. What is refused must be refused by an
error of ours; what is taken must be what another way to read it says: the format written again, librsync, gzip, or the
same done step by step. Beginnings worth mutating are in `SEEDS`; what was found on the way is kept in corpus/.
"""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, timedelta, timezone

from histfs import rsync
from histfs.errors import DamagedError, FormatError, HistfsError, UsageError
from histfs.store.compression import Seekable, compress_seekable, read_decompressed
from histfs.store.entry import name_of
from histfs.store.format import attributes, columns, metadata, posix_acl, stats
from histfs.store.format.ledger import SEEN_BYTES, Seen, format_header, parse_header
from histfs.store.format.names import format_increment_name, parse_increment_name
from histfs.store.format.quoting import Quoting
from histfs.store.format.times import format_time, parse_time
from histfs.store.selection import Selection
from histfs.store.selection.parsing import Option
from histfs.store.when import choose_session, parse_when
from tests.fuzz import repositories
from tests.fuzz.repositories import check_repository
from tests.rsync_reference import Copy, Literal, encode

MOST_BYTES = 1 << 16  # that something may become
TIMES = (0, 1_700_000_000, 1_700_000_001, 1_714_550_400, 1_750_000_000)
ZONES = (UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=9, minutes=30)))
STEP = 7  # of chunks: a record is cut anywhere


def chunks(data: bytes) -> Iterator[bytes]:
    return (data[at : at + STEP] for at in range(0, len(data), STEP))


def parts(data: bytes, count: int) -> list[bytes]:
    """`data` cut in so many: the first ones have their lengths before them, in a byte and a half."""
    made = []
    for _ in range(count - 1):
        length = int.from_bytes(data[:2], "big") & 0xFFF
        made.append(data[2 : 2 + length])
        data = data[2 + length :]
    return [*made, data]


def joined(*pieces: bytes) -> bytes:
    """What `parts` cuts into these."""
    return b"".join(len(piece).to_bytes(2, "big") + piece for piece in pieces[:-1]) + pieces[-1]


@contextmanager
def in_file(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


# --- the format -----------------------------------------------------------------------------------------------------


def check_metadata(data: bytes) -> None:
    damaged: list[FormatError] = []
    entries = list(metadata.read_entries(chunks(data), damaged.append))
    assert entries == list(metadata.read_entries([data], lambda error: None))
    texts = [metadata.format_record(entry) for entry in entries]
    assert [metadata.parse_record(text) for text in texts] == entries
    records = list(columns.read_records([data], lambda error: None))
    assert [record[1] for record in records] == [name_of(entry.path) for entry in entries]
    assert list(map(_padded, records)) == list(map(_padded, map(columns.parse_any, texts)))


def _padded(record: columns.Record) -> tuple[object, ...]:
    """With all columns: what a record of some kinds cannot have may be left out at its end."""
    parent, name, number, found = record
    return (
        parent,
        name,
        number,
        None if found is None else (*found, *[None] * (len(columns.Columns._fields) - len(found))),
    )


def check_extended_attributes(data: bytes) -> None:
    for found in attributes.read_extended_attributes(chunks(data), lambda error: None):
        again = attributes.parse_extended_attributes(attributes.format_extended_attributes(found))
        assert again == found


def check_access_control_lists(data: bytes) -> None:
    for found in attributes.read_access_control_lists(chunks(data), lambda error: None):
        again = attributes.parse_access_control_list(attributes.format_access_control_list(found))
        assert again == found
        posix_acl.shown(posix_acl.resolve(found.entries, lambda name: 1, lambda name: 2).acl)


def check_posix_acl(data: bytes) -> None:
    for is_default in (False, True):
        with suppress(FormatError):
            acl = posix_acl.parse_posix_acl(data, is_default=is_default)
            again = posix_acl.parse_posix_acl(posix_acl.format_posix_acl(acl), is_default=is_default)
            assert Counter(again) == Counter(acl)  # it is written in the order that the kernel wants


def check_times(data: bytes) -> None:
    with suppress(FormatError):
        found = parse_time(data)
        assert parse_time(format_time(found)) == found
        assert parse_time(format_time(found, without_colons=True)) == found


def check_names(data: bytes) -> None:
    found = parse_increment_name(data)
    if found is not None:
        again = format_increment_name(found.base, found.time, found.type, compressed=found.compressed)
        assert parse_increment_name(again) == found


def check_quoting(data: bytes) -> None:
    characters, escapes, name = parts(data, 3)
    with suppress(FormatError):
        quoting = Quoting.parse(characters, escapes)
        quoting.unquote(name)
        plain = name.replace(b"\0", b"").replace(b"/", b"")
        assert quoting.unquote(quoting.quote(plain)) == plain or not quoting.is_active


def check_statistics(data: bytes) -> None:
    for parse in (
        stats.parse_session_statistics,
        stats.parse_statistics_fields,
        stats.parse_file_statistic,
        stats.parse_logged_error,
    ):
        with suppress(FormatError):
            parse(data)
    with suppress(FormatError):
        stats.format_average(stats.average_statistics([stats.parse_statistics_fields(data)]))


def check_ledger(data: bytes) -> None:
    header = parse_header(data)
    assert header is None or parse_header(format_header(header)) == header
    for at in range(0, len(data) - SEEN_BYTES + 1, SEEN_BYTES):
        seen = Seen.parse(data, at)
        assert len(seen.format()) == SEEN_BYTES


# --- deltas and increments ------------------------------------------------------------------------------------------


def read_map(extents: rsync.ExtentMap, sources: Mapping[int, bytes]) -> bytes:
    members = rsync.Members(MOST_BYTES)
    places = {number: rsync.MapSource(members, memory=content) for number, content in sources.items()}
    buffer = bytearray(extents.size_bytes)
    rsync.MapReader(extents, places, members).read(buffer, 0, lambda number: None)
    return bytes(buffer)


def patched(basis: bytes, delta: bytes) -> bytes | None:
    try:
        return b"".join(rsync.patch(basis, delta, MOST_BYTES))
    except rsync.RsyncError:
        return None


def parsed(delta: bytes, source: int) -> tuple[rsync.ExtentMap, bytes] | None:
    parser = rsync.DeltaParser(source, max_extents=MOST_BYTES)
    try:
        literals = b"".join(map(parser.feed, chunks(delta)))
        return parser.finish(), literals
    except rsync.RsyncError:
        return None


def check_delta(data: bytes) -> None:
    basis, delta = parts(data, 2)
    made, found = patched(basis, delta), parsed(delta, 1)
    if found is None or found[0].size_bytes > MOST_BYTES:
        assert made is None
        return
    try:
        assert read_map(found[0], {0: basis, 1: found[1]}) == made
    except rsync.InputEndedError:
        assert made is None


def check_composition(data: bytes) -> None:
    basis, newer, older = parts(data, 3)
    middle = patched(basis, newer)
    made = None if middle is None else patched(middle, older)
    of_newer, of_older = parsed(newer, 1), parsed(older, 2)
    if middle is None or of_newer is None or of_older is None or of_older[0].size_bytes > MOST_BYTES:
        assert made is None
        return
    try:
        composed = of_older[0].compose(of_newer[0], MOST_BYTES)
        read = read_map(composed, {0: basis, 1: of_newer[1], 2: of_older[1]})
    except rsync.InputEndedError:
        assert made is None
    else:
        assert read == made


def check_commands(data: bytes) -> None:
    """Commands without their literals, as an index of ours keeps them."""
    with suppress(rsync.RsyncError):
        found = rsync.ExtentMap.of_commands(data, 1, MOST_BYTES)
        assert sum(length for _, _, length in found.extents()) == found.size_bytes
    filtered = rsync.CommandFilter()
    with suppress(rsync.RsyncError):
        commands = filtered.feed(data)
        filtered.finish()
        extents = rsync.ExtentMap.of_commands(commands, 1, MOST_BYTES)
        whole = parsed(data, 1)
        assert whole is not None
        assert extents.size_bytes == whole[0].size_bytes


def inflated(data: bytes) -> bytes | None:
    """What gzip says; None where it finds something wrong."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None


def check_gzip(data: bytes) -> None:
    with in_file(data) as fd:
        try:
            read = b"".join(read_decompressed(fd))
        except DamagedError:
            read = None
    if data[:2] != b"\x1f\x8b":
        assert read == data
    elif read is not None:
        assert read == inflated(data)


def check_index(data: bytes) -> None:
    with in_file(data) as fd:
        index = Seekable.open(fd)
        if index is None or index.raw_bytes > MOST_BYTES:
            return
        commands = index.commands
        if commands is not None:
            with suppress(rsync.RsyncError):
                rsync.ExtentMap.of_commands(commands, 1, MOST_BYTES)
        members = rsync.Members(MOST_BYTES)
        place = rsync.MapSource.of_members(members, index.offsets, index.raw_offsets)
        whole = rsync.ExtentMap.of_commands(encode([Copy(0, index.raw_bytes)] if index.raw_bytes else []), 1)
        buffer = bytearray(index.raw_bytes)
        with suppress(rsync.RsyncError, OSError):
            rsync.MapReader(whole, {0: place}, members).read(buffer, 0, lambda number: _lend(place, fd))
            read = inflated(data)
            assert read is None or read[: len(buffer)] == buffer or not _is_ours(data)
        place.close_idle()


def _lend(place: rsync.MapSource, fd: int) -> None:
    place.lend(os.dup(fd))


def _is_ours(data: bytes) -> bool:
    """An index may be anyone's: that it belongs to the members before it, the SHA1 of a version says in the end."""
    whole = inflated(data)
    return whole is not None and b"".join(compress_seekable([whole])) == data


# --- what is typed --------------------------------------------------------------------------------------------------

SELECTING = (
    *("include", "exclude", "include-regexp", "exclude-regexp", "exclude-filelist", "include-globbing-filelist"),
    *(
        "exclude-if-present",
        "max-file-size",
        "min-file-size",
        "exclude-caches",
        "exclude-fifos",
        "include-symbolic-links",
    ),
)


def check_selection(data: bytes) -> None:
    kinds, argument, path = parts(data, 3)
    lines = tuple(argument.split(b"\n"))
    options = [Option(SELECTING[kind % len(SELECTING)], argument, lines) for kind in kinds[:4]]
    try:
        selection = Selection.parse(options, b"/base")
    except UsageError:
        return
    place = selection.root
    for name in path.split(b"/")[:20]:
        if name in (b"", b".", b"..") or b"\0" in name:
            break
        place = selection.enter(place, name[:255])
        selection.excludes_by_name(place, is_directory=True)


def check_moments(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for zone in ZONES:
        with suppress(HistfsError):
            choose_session(parse_when(text, now=TIMES[-1], times=TIMES, zone=zone), TIMES)


# --- all of it ------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], None]] = {
    "metadata": check_metadata,
    "extended-attributes": check_extended_attributes,
    "access-control-lists": check_access_control_lists,
    "posix-acl": check_posix_acl,
    "times": check_times,
    "names": check_names,
    "quoting": check_quoting,
    "statistics": check_statistics,
    "ledger": check_ledger,
    "delta": check_delta,
    "composition": check_composition,
    "commands": check_commands,
    "gzip": check_gzip,
    "index": check_index,
    "selection": check_selection,
    "moments": check_moments,
    "repository": check_repository,
}
# How many times as long as that of others a run of these takes.
SLOW = {"repository": 100}

_RECORDS = b"""File .
  Type dir
  ModTime 1700000000
  Uid 0
  Uname root
  Gid 0
  Gname root
  Permissions 493
File a
  Type reg
  Size 5
  NumHardLinks 2
  Inode 12
  DeviceLoc 2049
  SHA1Digest aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d
  ModTime 1700000000
  Uid 0
  Uname :
  Gid 0
  Gname :
  Permissions 420
File a\\nb
  Type sym
  SymData x
  Uid 0
  Uname root
  Gid 0
  Gname root
  Permissions 511
File dev
  Type dev
  DeviceNum c 1 3
  ModTime 1700000000
  Uid 0
  Uname root
  Gid 0
  Gname root
  Permissions 438
  AlternateMirrorName 12
File gone
  Type None
"""
_ATTRIBUTES = b"# file: .\nuser.a=0sAAEC\nuser.b\n# file: a\\040b\ntrusted.c=0sZm9v\n"
_ACLS = b"""# file: a
user::rw-
user:bob:r--
group::r--
mask::r--
other::---
default:user::rwx
default:group::r-x
default:other::---
"""
_DELTA = encode([Copy(0, 3), Literal(b"literal"), Copy(5, 4), Literal(bytes(300)), Copy(1, 1)])
_PACKED = b"".join(compress_seekable([bytes(range(256)) * 1500]))
_SEEN = Seen(12, 34, 5, 6, 7, 0o100644, 0, 0, 1, 99, 1).format()

SEEDS: dict[str, list[bytes]] = {
    "metadata": [_RECORDS],
    "extended-attributes": [_ATTRIBUTES],
    "access-control-lists": [_ACLS],
    "posix-acl": [bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000000ffffffff")],
    "times": [b"2024-05-01T10:00:00Z", b"2024-05-01T10-00-00+05-45", b"1999-12-31T23:59:59-09:30"],
    "names": [
        b"a.2024-05-01T10:00:00Z.diff.gz",
        b"b.2024-05-01T10:00:00+02:00.snapshot",
        b"c.2024-05-01T10:00:00Z.dir",
    ],
    "quoting": [joined(b"A-Z:", b"escape_dos_devices", b"Con.a;065b"), joined(b"^a-z0-9_ -.", b"", b"x")],
    "statistics": [
        b"StartTime 1.00 (Thu Jan  1 00:00:01 1970)\nSourceFiles 3\nErrors 0\n",
        b"a 1 12 NA 0",
        b"UpdateError a b c",
    ],
    "ledger": [_SEEN * 3, bytes(256)],
    "delta": [joined(b"0123456789", _DELTA), joined(b"", encode([Literal(b"x")]))],
    "composition": [joined(b"0123456789", _DELTA, encode([Copy(2, 20), Literal(b"y"), Copy(0, 100)]))],
    "commands": [_DELTA],
    "gzip": [gzip.compress(b"one") + gzip.compress(b"two") + bytes(9), _PACKED[:2000], b"plain"],
    "index": [_PACKED, b"".join(compress_seekable([_DELTA, bytes(300_000)]))],
    "selection": [
        joined(b"\0\1", b"**/*.[a-c]?", b"a/b.c"),
        joined(b"\3", b"(a|b)+$", b"x/y"),
        joined(b"\5", b"+ a\n- **", b"a"),
    ],
    "moments": [
        b"2024-05",
        b"@2024-05-01T10:00",
        b"3 days ago",
        b"1B",
        b"now",
        b"2h30m",
        b"20240501",
        b"Wed May  1 10:00:00 2024",
    ],
    "repository": repositories.seeds(),
}
