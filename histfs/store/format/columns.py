"""Records of metadata files as columns of the catalog, without an Entry in between: for lists of a million records.

Strategy. One regular expression knows the records of the usual kinds in exactly the form in which they are written;
what it matches is its own canonical text. Any other record goes through `metadata.parse_record`, so that it means the
same as everywhere, and gets the text that `format_record` gives it. The number of a version is a hash of that text,
which begins with the path: equal numbers are equal records, in every repository.

Rules. What is damaged, out of order or there twice is left out and told, exactly as `metadata.read_entries` does it.
"""

import re
from binascii import unhexlify
from collections.abc import Callable, Container, Iterable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from histfs.errors import FormatError
from histfs.store.entry import Entry, Kind, join, sort_key
from histfs.store.format.metadata import MAX_RECORD_BYTES, check_path, format_record, parse_record, split_records

NUMBER_BITS = 62

# st_mode has the type in these bits; the numbers are those of Linux, stat(2).
TYPE_BITS = {
    Kind.SOCKET: 0o140000,
    Kind.SYMLINK: 0o120000,
    Kind.REGULAR: 0o100000,
    Kind.BLOCK_DEVICE: 0o060000,
    Kind.DIRECTORY: 0o040000,
    Kind.CHARACTER_DEVICE: 0o020000,
    Kind.FIFO: 0o010000,
}
TYPE_MASK = 0o170000
IS_DIRECTORY = TYPE_BITS[Kind.DIRECTORY]
_IS_REGULAR = TYPE_BITS[Kind.REGULAR]
_IS_SYMLINK = TYPE_BITS[Kind.SYMLINK]
_OTHERS = {b"dir": IS_DIRECTORY, b"fifo": TYPE_BITS[Kind.FIFO], b"sock": TYPE_BITS[Kind.SOCKET]}
_MAX_MODE = 0o7777

_NUMBER = rb"(0|[1-9]\d{0,17})"  # as they are written, and as many digits as surely fit 63 bits
_TIME = rb"(0|-?[1-9]\d{0,17})"
_CANONICAL = re.compile(
    rb"File (?:([^\n\\\0]+)/)?(?!\.\.?\n)([^/\n\\\0]+)\n"
    rb"  Type (?:"
    rb"reg\n  Size " + _NUMBER + rb"\n"
    rb"(?:  NumHardLinks ([2-9]|[1-9]\d{1,17})\n  Inode " + _NUMBER + rb"\n  DeviceLoc " + _NUMBER + rb"\n)?"
    rb"(?:  SHA1Digest ([0-9a-f]{40})\n)?"
    rb"  ModTime " + _TIME + rb"\n"
    rb"|(dir|fifo|sock)\n  ModTime " + _TIME + rb"\n"
    rb"|sym\n  SymData ([^\n\\\0]+)\n)"
    rb"(  Uid [^\0]+)"
)
# The end of a record. Few different ones are in a list, so each is looked at once.
_OWNERSHIP = re.compile(
    rb"  Uid (0|[1-9]\d{0,8})\n  Uname (?!None\n)[^\n]+\n  Gid (0|[1-9]\d{0,8})\n  Gname (?!None\n)[^\n]+\n"
    rb"  Permissions (0|[1-9]\d{0,3})\n"
)
_MOST_KNOWN_ENDS = 10_000


class Columns(NamedTuple):
    """The attributes of a version as the catalog keeps them.

    Numbers of 64 bits without a sign are kept as SQLite's signed ones, see `signed`. Only the first COMMON columns of
    most records are not None: the iterators here leave the others out then.
    """

    mode: int  # st_mode, with the type
    uid: int
    gid: int
    mtime_s: int
    size_bytes: int
    sha1: bytes | None  # 20 bytes
    target: bytes | None
    device_number: int | None  # major << 32 | minor
    link_inode: int | None
    link_device: int | None
    link_count: int | None
    alternate_mirror: int | None
    alternate_increment: int | None
    extras: int | None = None  # what stands for its extended attributes and access control list, if it has any


COMMON = 6
WITHOUT_EXTRAS = len(Columns._fields) - 1
MAX_NUMBER = (1 << NUMBER_BITS) - 1

# What a list says of a name: its parent, the name, the number and the columns of the version; these two are None for
# what is absent. SAME_RECORD in the place of the number: all that is said is its extras, in the place of columns. The
# root has no parent and no name. (A plain tuple, as they are made by the million.)
Record = tuple[bytes, bytes, int | None, tuple[Any, ...] | None]


SAME_RECORD = -1


def number_of(text: bytes) -> int:
    """62 bits that stand for `text`."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 64 - NUMBER_BITS


def with_extras(record: Record, extras: int, *, is_safe: bool) -> Record:
    """`record`, of something that is there, with what `number_of` has made of its extras.

    Not `is_safe`: its access control list is damaged, and the mode must not grant what depends on it.
    """
    parent, name, number, columns = record
    assert number is not None
    assert columns is not None
    mode = columns[0] if is_safe else columns[0] & ~0o7077
    missing = (None,) * (WITHOUT_EXTRAS - len(columns))
    return parent, name, number + extras & MAX_NUMBER, (mode, *columns[1:WITHOUT_EXTRAS], *missing, extras)


def signed(number: int) -> int:
    """`number`, which has 64 bits without a sign, as SQLite keeps it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    """What `signed` was given."""
    return number & (1 << 64) - 1


def key_of(record: Record) -> bytes:
    """Sorts records as the lists are sorted."""
    return sort_key(join(record[0], record[1]))


def absent_record(path: bytes) -> Record:
    """A difference says that there is nothing at `path`."""
    parent, _, name = path.rpartition(b"/")
    return parent, name, None, None


def read_records(
    chunks: Iterable[bytes], on_damage: Callable[[FormatError], None], wanted: Container[bytes] | None = None
) -> Iterator[Record]:
    """The records of a metadata file, strictly ascending, as `metadata.read_entries` gives them.

    `wanted`: only those of these paths, given as `metadata.quote_path` writes them; others are not even looked at.
    """
    canonical = _Canonical()
    last_parent, last_name = b"", None
    for text in split_records(chunks):
        if wanted is not None and text[5 : text.find(b"\n")] not in wanted:
            continue
        try:
            record = canonical.parse(text) or parse_any(text)
            parent, name = record[0], record[1]
            if parent == last_parent:
                if last_name is not None and name <= last_name:
                    raise _misplaced(join(parent, name), is_twice=name == last_name)
            else:
                if parent:
                    check_path(join(parent, name))
                if last_name is not None and key_of(record) <= sort_key(join(last_parent, last_name)):
                    raise _misplaced(join(parent, name), is_twice=False)
        except FormatError as error:
            on_damage(error)
            continue
        last_parent, last_name = parent, name
        yield record


def _misplaced(path: bytes, *, is_twice: bool) -> FormatError:
    return FormatError("the record is there twice" if is_twice else "the record is out of order", path=path[:4096])


class _Canonical:
    """Parses what is in canonical form; whether the path of the parent is safe is not checked."""

    def __init__(self) -> None:
        self._fullmatch = _CANONICAL.fullmatch
        self._ends: dict[bytes, tuple[int, int, int]] = {}  # user, group and permissions

    def parse(self, text: bytes) -> Record | None:
        """The record that `text` is, if it is in canonical form."""
        match = self._fullmatch(text)
        if match is None or len(text) > MAX_RECORD_BYTES:
            return None
        parent, name, size, nlink, inode, device, sha1, mtime, word, other_mtime, target, end = match.groups()
        known = self._ends.get(end) or self._parse_end(end)
        if known is None:
            return None
        uid, gid, mode = known
        columns: tuple[Any, ...]
        if size is not None:
            digest = None if sha1 is None else unhexlify(sha1)
            columns = _IS_REGULAR | mode, uid, gid, int(mtime), int(size), digest
            if nlink is not None:
                columns = *columns, None, None, int(inode), int(device), int(nlink), None, None
        elif word is not None:
            columns = _OTHERS[word] | mode, uid, gid, int(other_mtime), 0, None
        else:
            columns = _IS_SYMLINK | mode, uid, gid, 0, 0, None, target, *_NOTHING
        # `number_of`, but for the call
        return parent or b"", name, int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 2, columns

    def _parse_end(self, end: bytes) -> tuple[int, int, int] | None:
        match = _OWNERSHIP.fullmatch(end)
        if match is None or int(match[3]) > _MAX_MODE:
            return None
        if len(self._ends) >= _MOST_KNOWN_ENDS:
            self._ends.clear()
        known = self._ends[end] = int(match[1]), int(match[2]), int(match[3])
        return known


_NOTHING = (None,) * (WITHOUT_EXTRAS - COMMON - 1)


def parse_any(text: bytes) -> Record:
    """A raw record of any form. Raises FormatError."""
    entry = parse_record(text)
    parent, _, name = entry.path.rpartition(b"/")
    if entry.kind is Kind.ABSENT:
        return parent, name, None, None
    return parent, name, number_of(format_record(entry)), columns_of(entry)


def columns_of(entry: Entry) -> Columns:
    """The attributes of an entry that is not ABSENT."""
    group = entry.link_group
    major, minor = entry.device_number
    return Columns(
        TYPE_BITS[entry.kind] | entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_s,
        entry.size_bytes,
        None if entry.sha1 is None else unhexlify(entry.sha1),
        entry.target if entry.kind is Kind.SYMLINK else None,
        signed(major << 32 | minor) if entry.kind.is_device else None,
        None if group is None else signed(group.inode),
        None if group is None else signed(group.device),
        None if group is None else signed(group.nlink),
        entry.alternate_mirror,
        entry.alternate_increment,
    )
