"""Files of extended attributes and of POSIX access control lists (docs/format.md 4.6, 4.7).

Both hold records of lines behind a line `# file: <path>`, only for paths that have something to say, in the order of
the metadata. One damaged record costs itself, as in metadata files; whoever restores has to treat a path whose list
is damaged as one that nobody but its owner may read.

Limits: what Linux can hold. A record beyond them is a FormatError.
"""

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from histfs.errors import FormatError, printable
from histfs.store.entry import Acl, AclEntry, Kind, sort_key
from histfs.store.format.metadata import beginning, check_path, split_records

MAX_RECORD_BYTES = 16 << 20
MAX_VALUE_BYTES = 1 << 16
MAX_NAME_BYTES = 255
MAX_ACL_ENTRIES = 10_000

_START = b"# file: "
_MAX_LINE_BYTES = 1 << 17  # a value of MAX_VALUE_BYTES in base64, behind a quoted name
_MAX_ID = 2**32 - 1
_TO_QUOTE = re.compile(rb"[^!-~]|[\\=]")
_QUOTED = re.compile(rb"\\([0-3][0-7]{2})")
_ACL_LINE = re.compile(rb"(default:)?(user|group|mask|other):(.*):([r-][w-][x-])")


class ExtendedAttributes(NamedTuple):
    """The extended attributes of one path: values by name, in the order of the file."""

    path: bytes
    values: Mapping[bytes, bytes]


class AccessControlList(NamedTuple):
    """The access control list of one path, in the order of the file."""

    path: bytes
    entries: Acl


def is_recorded(name: bytes, kind: Kind) -> bool:
    """Whether the extended attribute `name` of a file of this kind is recorded (docs/format.md 4.6)."""
    return not name.startswith(b"system.") and kind not in (Kind.FIFO, Kind.SOCKET)


_Record = TypeVar("_Record", ExtendedAttributes, AccessControlList)


def quote_octal(text: bytes) -> bytes:
    r"""What is not printable ASCII, blanks, `\` and `=` become `\ooo` (docs/format.md 4.6)."""
    return _TO_QUOTE.sub(lambda match: b"\\%03o" % match[0][0], text)


def unquote_octal(text: bytes) -> bytes:
    """Any bytes are accepted; a backslash that no three octal digits of a byte follow stands for itself."""
    return _QUOTED.sub(lambda match: bytes([int(match[1], 8)]), text)


def parse_extended_attributes(record: bytes) -> ExtendedAttributes:
    """One raw record, with its newlines (docs/format.md 4.6). Raises FormatError.

    A name is unquoted where it has a value, as that is how names are written (docs/format.md, trap 11).
    """
    path, lines = _lines_of(record)
    values: dict[bytes, bytes] = {}
    for line in lines:
        name, equals, text = line.partition(b"=")
        if equals:
            name = unquote_octal(name)
        if not name or len(name) > MAX_NAME_BYTES or b"\0" in name:
            raise FormatError(f"a bad name of an extended attribute: {printable(line[:80])}", path=path)
        if name in values:
            raise FormatError(f"the extended attribute {printable(name)} is there twice", path=path)
        values[name] = _parse_value(text, name, path) if equals else b""
    return ExtendedAttributes(path, values)


def format_extended_attributes(attributes: ExtendedAttributes) -> bytes:
    """The raw record of `attributes`, byte for byte as rdiff-backup writes it (docs/format.md 4.6).

    But for one case: an empty attribute whose name would be read as name and value gets an empty value.
    """
    record = [_START, quote_octal(attributes.path) or b".", b"\n"]
    for name, value in attributes.values.items():
        if value or b"=" in name or b"\n" in name or name.startswith(_START):
            record += (quote_octal(name), b"=0s", binascii.b2a_base64(value, newline=False), b"\n")
        else:
            record += (name, b"\n")
    return b"".join(record)


def read_extended_attributes(
    chunks: Iterable[bytes], on_damage: Callable[[FormatError], None]
) -> Iterator[ExtendedAttributes]:
    """The records of a file extended_attributes, paths strictly ascending; `on_damage` as in metadata.read_entries."""
    return _read(chunks, parse_extended_attributes, on_damage)


def parse_access_control_list(record: bytes) -> AccessControlList:
    """One raw record, with its newlines (docs/format.md 4.7).

    Raises FormatError, also when the access or the default part is one that POSIX.1e does not know, as what it grants
    would be a guess.
    """
    path, lines = _lines_of(record)
    if len(lines) > MAX_ACL_ENTRIES:
        raise FormatError("an access control list with too many entries", path=path)
    rules = (line.partition(b"#")[0].rstrip() for line in lines)  # behind `#` stands what is effective
    entries = tuple(_parse_acl_line(rule, path) for rule in rules if rule)
    for is_default in (False, True):
        part = [entry for entry in entries if entry.is_default is is_default]
        if part and not _is_complete(part):
            raise FormatError("an access control list that is not complete", path=path)
    return AccessControlList(path, entries)


def format_access_control_list(acl: AccessControlList) -> bytes:
    """The raw record of `acl`, lines in the order of its entries (docs/format.md 4.7)."""
    return b"%b%b\n" % (_START, quote_octal(acl.path) or b".") + b"".join(map(_format_acl_line, acl.entries))


def read_access_control_lists(
    chunks: Iterable[bytes], on_damage: Callable[[FormatError], None]
) -> Iterator[AccessControlList]:
    """The records of a file access_control_lists, paths strictly ascending; `on_damage` as in metadata.read_entries."""
    return _read(chunks, parse_access_control_list, on_damage)


def _read(
    chunks: Iterable[bytes], parse: Callable[[bytes], _Record], on_damage: Callable[[FormatError], None]
) -> Iterator[_Record]:
    last: bytes | None = None
    for raw in split_records(chunks, _START, MAX_RECORD_BYTES):
        try:
            record = parse(raw)
            key = sort_key(record.path)
            if last is not None and key <= last:
                raise FormatError("the attributes are out of order or there twice", path=record.path)
        except FormatError as error:
            on_damage(error)
            continue
        last = key
        yield record


def _lines_of(record: bytes) -> tuple[bytes, list[bytes]]:
    """The path of a raw record, and its other lines. Raises FormatError."""
    if len(record) > MAX_RECORD_BYTES:
        raise FormatError(f"attributes of more than {MAX_RECORD_BYTES} bytes{beginning(record, _START)}")
    if not record.startswith(_START) or not record.endswith(b"\n"):
        raise FormatError(f"a record of attributes is cut off or is none{beginning(record, _START)}")
    head, *lines = record[len(_START) : -1].split(b"\n")
    lines = list(filter(None, lines))  # getfattr and getfacl end a record with an empty line
    path = b"" if head == b"." else unquote_octal(head)
    if head != b".":
        check_path(path)
    if any(len(line) > _MAX_LINE_BYTES for line in lines):
        raise FormatError("a line of attributes is too long", path=path)
    return path, lines


def _parse_value(text: bytes, name: bytes, path: bytes) -> bytes:
    try:
        if not text.startswith(b"0s"):
            raise ValueError("no value in base64")
        value = binascii.a2b_base64(text[2:], strict_mode=True)
    except ValueError as exc:
        raise FormatError(f"the extended attribute {printable(name)} has a bad value: {exc}", path=path) from exc
    if len(value) > MAX_VALUE_BYTES:
        raise FormatError(f"the extended attribute {printable(name)} is too large", path=path)
    return value


def _parse_acl_line(line: bytes, path: bytes) -> AclEntry:
    match = _ACL_LINE.fullmatch(line)
    if match is None:
        raise FormatError(f"not a line of an access control list: {printable(line[:80])}", path=path)
    default, tag, text, permissions = match.groups()
    qualifier: bytes | int | None = text or None
    if text.isdigit():
        qualifier = int(text) if len(text) <= 10 else _MAX_ID + 1
        if qualifier > _MAX_ID:
            raise FormatError(f"an id of an access control list is too large: {printable(text[:80])}", path=path)
    bits = sum(bit for bit, letter in zip((4, 2, 1), permissions, strict=True) if letter != ord("-"))
    return AclEntry(tag, qualifier, bits, default is not None)


def _is_complete(part: list[AclEntry]) -> bool:
    """Whether this is a valid list: each base entry once, no one named twice, a mask when someone is named."""
    named = {(entry.tag, entry.qualifier) for entry in part}
    base = {(tag, None) for tag in (b"user", b"group", b"other")}
    others = named - base - {(b"mask", None)}
    return (
        len(named) == len(part)
        and base <= named
        and all(tag in (b"user", b"group") for tag, _qualifier in others)
        and (not others or (b"mask", None) in named)
    )


def _format_acl_line(entry: AclEntry) -> bytes:
    qualifier = b"%d" % entry.qualifier if isinstance(entry.qualifier, int) else entry.qualifier or b""
    letters = bytes(
        letter if entry.permissions & bit else ord("-") for bit, letter in zip((4, 2, 1), b"rwx", strict=True)
    )
    return b"%b%b:%b:%b\n" % (b"default:" if entry.is_default else b"", entry.tag, qualifier, letters)
