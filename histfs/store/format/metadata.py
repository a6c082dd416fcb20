"""Metadata files: who, when, mode, size of every path at one session. Bytes to entries and back.

Strategy. A file is cut into raw records wherever a line starts with `File `; a record is parsed on its own, so
that damage costs one record. One regular expression, made from the table of fields, reads a record whose fields
are in the order that writers use; any other record is taken apart field by field, into the same values. What
the values mean is said once, in `_entry`.

Rules. Numbers that do not fit, paths that could lead out of the tree and lacking fields are a FormatError, never
a guess. Unknown fields are ignored, as docs/format.md 4.1 allows. Memory is bounded by MAX_RECORD_BYTES and the
size of a chunk.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from histfs.errors import FormatError, printable
from histfs.store.entry import Entry, Kind, LinkGroup, sort_key

MAX_RECORD_BYTES = 1 << 20

_MAX_ID = 2**32 - 1  # uid_t, gid_t and the halves of dev_t
_MAX_SIGNED = 2**63 - 1  # off_t and time_t
_MAX_UNSIGNED = 2**64 - 1  # ino_t and dev_t
_MAX_MODE = 0o7777
_MAX_LINES = 100
_MAX_PATH_IN_MESSAGE = 4096

# The fields in the order in which they are written (docs/format.md 4.1), with the syntax of their values.
_FIELDS = {
    b"Type": rb"\w+",
    b"Size": rb"\d{1,19}",
    b"ResourceFork": rb".+",
    b"CarbonFile": rb".+",
    b"NumHardLinks": rb"\d{1,20}",
    b"Inode": rb"\d{1,20}",
    b"DeviceLoc": rb"\d{1,20}",
    b"SHA1Digest": rb"[0-9a-f]{40}",
    b"SymData": rb".+",
    b"DeviceNum": rb"[cb] \d{1,10} \d{1,10}",
    b"ModTime": rb"-?\d{1,19}",
    b"Uid": rb"\d{1,10}",
    b"Uname": rb".+",
    b"Gid": rb"\d{1,10}",
    b"Gname": rb".+",
    b"Permissions": rb"\d{1,4}",
    b"AlternateMirrorName": rb"\d{1,19}",
    b"AlternateIncrementName": rb"\d{1,19}",
}
_IN_ORDER = re.compile(
    rb"File (.+)\n" + b"".join(rb"(?:  %b (%b)\n)?+" % (name, syntax) for name, syntax in _FIELDS.items())
)
_FIELD = re.compile(rb"^ *([A-Za-z0-9]+) (.+)$", re.MULTILINE)
_ESCAPE = re.compile(rb"\\[n\\]")
_R = TypeVar("_R")

_KINDS = {kind.value.encode(): kind for kind in Kind if not kind.is_device}
_DEVICE_KINDS = {b"c": Kind.CHARACTER_DEVICE, b"b": Kind.BLOCK_DEVICE}
_UNKNOWN_NAMES = (None, b":", b"None")  # `None` in very old files
_WORDS = {kind: kind.value.split()[0].encode() for kind in Kind}


def quote_path(path: bytes) -> bytes:
    """How `path` is written in metadata and statistics files: b"" as b".", newline and backslash escaped."""
    return _quote(path) if path else b"."


def unquote_path(text: bytes) -> bytes:
    """The path that `quote_path` wrote. Any bytes are accepted; whether the path is safe is not checked."""
    return b"" if text == b"." else _unquote(text)


def check_path(path: bytes) -> None:
    """Raises FormatError if `path`, not the root, could lead out of the tree or is not in its one normal form."""
    padded = b"/%b/" % path
    if b"//" in padded or b"/./" in padded or b"/../" in padded or b"\0" in padded:
        raise _bad("the path of a record leaves the tree", path)


def _quote(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def _unquote(text: bytes) -> bytes:
    """Only the two escapes mean something, any other backslash stands for itself (docs/format.md 4.1)."""
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: b"\n" if match[0] == b"\\n" else b"\\", text)


def parse_record(record: bytes) -> Entry:
    """The entry of one raw record, from `File` up to and including its last newline (docs/format.md 4.1).

    A field of hard links without its two companions is ignored. Raises FormatError.
    """
    match = _IN_ORDER.fullmatch(record) if len(record) <= MAX_RECORD_BYTES else None
    values = match.groups() if match else _values_in_any_order(record)
    path = values[0]
    assert path is not None
    if path == b".":
        path = b""
    else:
        path = _unquote(path)
        check_path(path)
    if b"\0" in record:
        raise _bad("a NUL byte in the record", path)
    try:
        return _entry(path, *values[1:])
    except FormatError as error:
        error.path = path[:_MAX_PATH_IN_MESSAGE]
        raise


def beginning(record: bytes, start: bytes) -> str:
    """The beginning of a bad record, for a message; nothing where it is none at all: no one could read it."""
    return f": {printable(record[:80])}" if record.startswith(start) else ""


def _bad(problem: str, path: bytes | None = None) -> FormatError:
    return FormatError(problem, path=path if path is None else path[:_MAX_PATH_IN_MESSAGE])


def _values_in_any_order(record: bytes) -> tuple[bytes | None, ...]:
    """The path and the values of _FIELDS (None: not there) of a record with any order and unknown fields."""
    if len(record) > MAX_RECORD_BYTES:
        raise _bad(f"a record is longer than {MAX_RECORD_BYTES} bytes" + beginning(record, b"File "))
    if not record.startswith(b"File ") or not record.endswith(b"\n"):
        raise _bad("a record is cut off or is none" + beginning(record, b"File "))
    if record.count(b"\n") > _MAX_LINES:
        raise _bad(f"a record has more than {_MAX_LINES} lines: {printable(record[:80])}")
    pairs = _FIELD.findall(record)
    fields: dict[bytes, bytes] = dict(pairs)
    path = fields.get(b"File", b"")
    if not path or len(pairs) != record.count(b"\n"):
        raise _bad("a line of the record is not a field", path)
    if len(fields) != len(pairs):
        raise _bad("the record has a field twice", path)
    for name, syntax in _FIELDS.items():
        if name in fields and not re.fullmatch(syntax, fields[name]):
            raise _bad(f"the field {name.decode()} is not valid: {printable(fields[name][:80])}", path)
    return path, *map(fields.get, _FIELDS)


def _entry(
    path: bytes,
    word: bytes | None,
    size: bytes | None,
    resource_fork: bytes | None,
    carbon_file: bytes | None,
    nlink: bytes | None,
    inode: bytes | None,
    device: bytes | None,
    sha1: bytes | None,
    target: bytes | None,
    device_number: bytes | None,
    mtime: bytes | None,
    uid: bytes | None,
    uname: bytes | None,
    gid: bytes | None,
    gname: bytes | None,
    mode: bytes | None,
    alternate_mirror: bytes | None,
    alternate_increment: bytes | None,
) -> Entry:
    """What the values of a record mean; each follows the syntax that _FIELDS gives."""
    kind = _kind(_needed(word, "Type"), device_number)
    if kind is Kind.ABSENT:
        return Entry(path, kind)
    regular = kind is Kind.REGULAR
    return Entry(
        path,
        kind,
        _number(mode, _MAX_MODE) if mode else 0,  # lacking permissions are none, docs/format.md 4.1
        _number(_needed(uid, "Uid"), _MAX_ID),
        _number(_needed(gid, "Gid"), _MAX_ID),
        None if uname in _UNKNOWN_NAMES else uname,
        None if gname in _UNKNOWN_NAMES else gname,
        _number(_needed(mtime, "ModTime"), _MAX_SIGNED) if kind.has_mtime else 0,
        _number(_needed(size, "Size"), _MAX_SIGNED) if regular else 0,
        sha1 if regular else None,
        _link_group(nlink, inode, device) if nlink and regular else None,
        _unquote(_needed(target, "SymData")) if kind is Kind.SYMLINK else b"",
        _device_number(device_number) if device_number and kind.is_device else (0, 0),
        _number(alternate_mirror, _MAX_SIGNED) if alternate_mirror else None,
        _number(alternate_increment, _MAX_SIGNED) if alternate_increment else None,
        resource_fork if regular else None,
        carbon_file if regular else None,
    )


def _kind(word: bytes, device_number: bytes | None) -> Kind:
    kind = _KINDS.get(word)
    if kind is not None:
        return kind
    if word != b"dev":
        raise _bad(f"the record has an unknown type: {printable(word[:80])}")
    return _DEVICE_KINDS[_needed(device_number, "DeviceNum")[:1]]


def _needed(value: bytes | None, name: str) -> bytes:
    if value is None:
        raise _bad(f"the record has no field {name}")
    return value


def _number(digits: bytes, largest: int) -> int:
    number = int(digits)
    if not -largest - 1 <= number <= largest:
        raise _bad(f"a number of the record is too large: {number}")
    return number


def _link_group(nlink: bytes, inode: bytes | None, device: bytes | None) -> LinkGroup | None:
    """None when a companion is lacking, or when the count says that there is no other link."""
    if not inode or not device:
        return None
    group = LinkGroup(*(_number(digits, _MAX_UNSIGNED) for digits in (nlink, inode, device)))
    return group if group.nlink > 1 else None


def _device_number(text: bytes) -> tuple[int, int]:
    _letter, major, minor = text.split(b" ")
    return _number(major, _MAX_ID), _number(minor, _MAX_ID)


def format_record(entry: Entry) -> bytes:
    """The raw record of `entry`, byte for byte as rdiff-backup writes it (docs/format.md 4.1).

    User and group names are written as they are: rdiff-backup 2.2 drops a whole record with a name that is not ASCII,
    so whoever makes new entries leaves such names out (docs/format.md 8.3).
    """
    kind = entry.kind
    head = b"File %b\n  Type %b\n" % (quote_path(entry.path), _WORDS[kind])
    if kind is Kind.ABSENT:
        return head
    middle = b""
    if kind is Kind.REGULAR:
        middle = _format_regular(entry)
    elif kind is Kind.SYMLINK:
        middle = b"  SymData %b\n" % _quote(entry.target)
    elif kind.is_device:
        middle = b"  DeviceNum %b %d %d\n" % (kind.value[-1:].encode(), *entry.device_number)
    if kind.has_mtime:
        middle += b"  ModTime %d\n" % entry.mtime_s
    record = b"%b%b  Uid %d\n  Uname %b\n  Gid %d\n  Gname %b\n  Permissions %d\n" % (
        head,
        middle,
        entry.uid,
        entry.uname or b":",
        entry.gid,
        entry.gname or b":",
        entry.mode,
    )
    if entry.alternate_mirror is not None:
        record += b"  AlternateMirrorName %d\n" % entry.alternate_mirror
    if entry.alternate_increment is not None:
        record += b"  AlternateIncrementName %d\n" % entry.alternate_increment
    return record


def _format_regular(entry: Entry) -> bytes:
    lines = b"  Size %d\n" % entry.size_bytes
    if entry.resource_fork is not None:
        lines += b"  ResourceFork %b\n" % entry.resource_fork
    if entry.carbon_file is not None:
        lines += b"  CarbonFile %b\n" % entry.carbon_file
    if entry.link_group is not None:
        lines += b"  NumHardLinks %d\n  Inode %d\n  DeviceLoc %d\n" % entry.link_group
    if entry.sha1 is not None:
        lines += b"  SHA1Digest %b\n" % entry.sha1
    return lines


def split_records(
    chunks: Iterable[bytes], start: bytes = b"File ", max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[bytes]:
    """The raw records of a file that comes in chunks of any size; each record begins with a line that has `start`.

    Nothing is checked: what stands before the first record and a cut-off end come out as records that parse_record
    refuses. So does a record that is too long: its start comes out, the rest is dropped. Memory is bounded by
    `max_record_bytes` and the size of a chunk; time is linear also in the number of chunks.
    """
    boundary = b"\n" + start
    held: list[bytes] = []  # pieces of the record that is not complete yet
    held_bytes = 0
    data = b""  # what follows them: as much as a boundary that lies across two chunks may have
    for chunk in chunks:
        data += chunk
        first, *others = data.split(boundary)
        if others:
            yield b"".join((*held, first, b"\n"))
            data = start + others.pop()
            for record in others:
                yield b"%b%b\n" % (start, record)
            held, held_bytes = [], 0
        if held_bytes <= max_record_bytes:
            held.append(data[: -len(start)])
            held_bytes += len(held[-1])
        data = data[-len(start) :]
    if held_bytes or data:
        yield b"".join((*held, data))


def read_entries(
    chunks: Iterable[bytes], on_damage: Callable[[FormatError], None], wants: Callable[[bytes], bool] | None = None
) -> Iterator[Entry]:
    """The entries of a metadata file, in strictly ascending order of `sort_key(entry.path)`.

    `wants`: which of the raw records are read at all.

    A record that is damaged, out of order or there twice is given to `on_damage` and left out. What the iteration
    of `chunks` raises goes through; the records that were complete until then have come out.
    """
    last: bytes | None = None
    records = split_records(chunks)
    for record in records if wants is None else filter(wants, records):
        try:
            entry = parse_record(record)
            key = sort_key(entry.path)
            if last is not None and key <= last:
                raise _bad("the record is there twice" if key == last else "the record is out of order", entry.path)
        except FormatError as error:
            on_damage(error)
            continue
        last = key
        yield entry


def with_lost(
    records: Iterator[_R], errors: list[FormatError], key_of: Callable[[_R], bytes], absent: Callable[[bytes], _R]
) -> Iterator[_R]:
    """The records of a difference, and `absent` ones for those that are damaged, which `errors` gets from `records`.

    A path that is just left out of a difference would be what it is at the next newer session. Raises FormatError where
    nothing tells whose a damaged record is: then it may be anybody's.
    """
    last: bytes | None = None
    before: _R | None = None
    while True:
        record = next(records, None)
        if errors and before is not None:
            last = key_of(before)
        for error in errors:
            path = _whose(error)
            key = sort_key(path)
            if last is not None and key < last:
                raise _bad("a record is out of order, so that nothing tells what it is about")
            if key != last:  # else it is there twice
                last = key
                yield absent(path)
        if errors and record is not None and last is not None and key_of(record) <= last:
            raise _bad("a damaged record is out of order, so that nothing tells what it is about")
        errors.clear()
        if record is None:
            return
        before = record
        yield record


def _whose(error: FormatError) -> bytes:
    path = error.path
    if not isinstance(path, bytes) or not path or len(path) >= _MAX_PATH_IN_MESSAGE:
        raise _bad(f"a record is damaged, and nothing tells whose it is: {error.problem}")
    check_path(path)
    return path
