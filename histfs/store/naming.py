"""How a repository's file system wants names to be spelled (docs/format.md 2.1, 3.2, 3.3).

That is settled when the first session begins, by trying, and holds for the life of the repository: what is quoted
already could not be found any more. Whether names are told apart by case is looked at again in every session, as a
repository may have been copied to another file system; this takes one look and writes nothing.
"""

import errno
import os
import secrets
from typing import NamedTuple

from histfs.errors import FormatError, StorageError, UsageError, printable
from histfs.store.entry import join
from histfs.store.files import WritableTree
from histfs.store.format.quoting import Quoting
from histfs.store.layout import CHARS_TO_QUOTE, DATA, SPECIAL_ESCAPES, TEMPORARY, Layout, read_layout, read_state

_UPPER = b"A-Z"
_BEYOND_ASCII = rb"\x80-\xff"
_RESERVED = rb'\x00-\x1f"*/:<>?\\|\x7f'
_RESERVED_NAME = bytes(range(1, 32)) + b'"*:<>?\\|\x7f'
_NAMES_BEYOND_ASCII = (b"\xff", b"\xc3\xa9", b"e\xcc\x81")  # no UTF-8; one letter in two ways: one may become the other
_REFUSALS = (errno.EINVAL, errno.EILSEQ, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENXIO)
_NEEDED = b"current_mirror"
_LONGEST = 1000  # bytes of chars_to_quote; readers take four times as many


class Naming(NamedTuple):
    """What a person wants of the names in a repository."""

    chars_to_quote: bytes | None = None  # the body of a class of a regular expression; None: what is needed
    times_without_colons: bool = False


DEFAULT_NAMING = Naming()


def check_naming(naming: Naming) -> None:
    """UsageError for what no repository can begin with."""
    if naming.chars_to_quote is None:
        return
    quoting = _parse(naming.chars_to_quote)
    if any(quoting.quotes(bytes([char])) for char in _NEEDED):
        raise UsageError(
            f"{printable(naming.chars_to_quote)} cannot be quoted: other programs look for a file current_mirror,"
            " and take a repository without it for a broken one"
        )


def settle_layout(tree: WritableTree, naming: Naming) -> Layout:
    """The layout for a session, which is recorded where it is the first one. The lock is held, nothing is unfinished.

    Raises UsageError if names are quoted in another way already, or the file system needs another one.
    """
    layout = read_layout(tree)
    if read_state(tree, layout).mirror_time is None:
        check_naming(naming)
        layout = _begin(tree, naming.chars_to_quote)
    elif naming.chars_to_quote is not None:
        _check_unchanged(layout, naming.chars_to_quote)
    elif _ignores_case(tree) and not layout.quoting.quotes(b"AZ"):
        raise UsageError(
            "the file system of the repository takes upper and lower case for the same, and names in it are not"
            " quoted for that, which cannot change any more",
            advice="move the repository to a file system that tells them apart, or begin a new one here; or say that no"
            " two names differ in case alone, with --chars-to-quote ''",
        )
    return layout._replace(times_without_colons=layout.times_without_colons or naming.times_without_colons)


def _begin(tree: WritableTree, wanted: bytes | None) -> Layout:
    if wanted is None:
        chars, words = _needs(tree)
    else:
        chars, words = wanted, []
    for path, content in (CHARS_TO_QUOTE, chars), (SPECIAL_ESCAPES, b"\n".join(words)):
        tree.unlink(path, missing_ok=True)
        tree.write_file(path, [content] if content else [])
    return read_layout(tree)


def _check_unchanged(layout: Layout, wanted: bytes) -> None:
    asked = _parse(wanted)
    if asked.spellings != layout.quoting.spellings:
        raise UsageError(
            f"names in the repository are not quoted by {printable(wanted) if wanted else 'nothing'},"
            " and what is quoted cannot change",
            advice="leave --chars-to-quote away, or begin a new repository",
        )


def _parse(chars: bytes) -> Quoting:
    if len(chars) > _LONGEST:
        raise UsageError(f"--chars-to-quote takes up to {_LONGEST} bytes")
    try:
        return Quoting.parse(chars, b"")
    except FormatError as exc:
        raise UsageError(f"{printable(chars)} cannot be quoted: {exc.problem}") from None


def _ignores_case(tree: WritableTree) -> bool:
    try:
        return os.path.samestat(tree.stat(DATA.upper()), tree.stat(DATA))
    except FileNotFoundError:
        return False


def _needs(tree: WritableTree) -> tuple[bytes, list[bytes]]:
    """What the file system needs: `chars_to_quote`, and the words of `special_escapes`."""
    chars, words = b"", []
    place = join(DATA, b"%b%d" % (TEMPORARY, secrets.randbits(62)))
    tree.make_directory(place)
    try:
        if _ignores_case(tree):
            chars += _UPPER
        if not all(_takes(tree, place, name) for name in _NAMES_BEYOND_ASCII):
            chars += _BEYOND_ASCII
        if not _takes(tree, place, _RESERVED_NAME):
            chars += _RESERVED
        if not (_takes(tree, place, b"blank ") and _takes(tree, place, b"dot.")):
            words.append(b"escape_trailing_spaces")
        if not (_takes(tree, place, b"con") and _takes(tree, place, b"aux.txt")):
            words.append(b"escape_dos_devices")
    finally:
        tree.remove_tree(place)
    # The words mean nothing without a set, and `;` is part of any.
    return (chars + b";" if chars or words else b""), words


def _takes(tree: WritableTree, place: bytes, name: bytes) -> bool:
    """Whether a file can have this `name` in the directory `place`, and is listed under it."""
    try:
        os.close(tree.create_file(join(place, name)))
    except FileExistsError:
        return False  # as it is taken for another name
    except OSError as exc:
        if exc.errno not in _REFUSALS:
            raise StorageError(exc.strerror or str(exc), path=DATA) from exc
        return False
    return name in tree.names(place)
