r"""Names of files in a repository whose file system cannot hold every name (docs/format.md 3.2, 3.3).

Where `chars_to_quote` is not empty, a byte that cannot be stored becomes `;NNN`, its value in three decimal digits,
and so does `;` itself. The file holds the body of a class of a regular expression, and comes from an untrusted
repository: it is read here token by token into a set of bytes and is never compiled as a whole.

Rules. NUL and `/` cannot be part of a name, so they are neither quoted nor unquoted: an unquoted name never leads
elsewhere. `;` followed by anything but a number up to 255 stays as it is: such a name is a foreign file, and one
foreign name must not spoil a directory. Bytes are bytes: `;195` is one byte (docs/format.md, trap 12).
"""

import re
from typing import NamedTuple

from histfs.errors import FormatError, printable

_TOKEN = re.compile(rb"\\x[0-9A-Fa-f]{2}|\\[0-7]{1,3}|\\.|.", re.DOTALL)
_QUOTED = re.compile(rb";(\d{3})")
_DOS_DEVICE = re.compile(rb"(?:aux|prn|con|nul|com\d|lpt\d)(?:\.|\Z)", re.IGNORECASE)
_NEVER_QUOTED = b"\0/"
_ALL_BYTES = [bytes([value]) for value in range(256)]


class Quoting(NamedTuple):
    """How names are spelled in one repository; fixed names like `increments` never are (docs/format.md 3.2)."""

    spellings: tuple[bytes, ...] = ()  # of each byte value; empty: names are stored as they are
    escapes_dos_devices: bool = False
    escapes_trailing_spaces: bool = False

    @classmethod
    def parse(cls, chars_to_quote: bytes, special_escapes: bytes) -> "Quoting":
        """The contents of the two files of these names. Raises FormatError.

        Without `chars_to_quote` the other one means nothing (docs/format.md 3.3).
        """
        if not chars_to_quote:
            return NO_QUOTING
        words = set(special_escapes.split())
        unknown = words - {b"escape_dos_devices", b"escape_trailing_spaces"}
        if unknown:
            raise FormatError(f"special_escapes holds an unknown word: {printable(min(unknown)[:80])}")
        quoted = (_class_members(chars_to_quote) | {ord(";")}) - set(_NEVER_QUOTED)
        return cls(
            tuple(_escape(value) if value in quoted else char for value, char in enumerate(_ALL_BYTES)),
            b"escape_dos_devices" in words,
            b"escape_trailing_spaces" in words,
        )

    @property
    def is_active(self) -> bool:
        return bool(self.spellings)

    def quotes(self, characters: bytes) -> bool:
        """Whether each of the `characters` is stored as something else."""
        return self.is_active and all(len(self.spellings[value]) > 1 for value in characters)

    def quote(self, component: bytes) -> bytes:
        """The name on disk of `component`, which is one complete file name (an increment's with time and type)."""
        if not self.spellings:
            return component
        name = b"".join([self.spellings[value] for value in component])
        # In this order: `aux.` becomes `aux;046`, which is no name of a device any more.
        if self.escapes_trailing_spaces and name.endswith((b" ", b".")):
            name = name[:-1] + _escape(name[-1])
        if self.escapes_dos_devices and _DOS_DEVICE.match(name):
            name = _escape(name[0]) + name[1:]
        return name

    def unquote(self, component: bytes) -> bytes:
        """The name that is stored as `component`. Any bytes are accepted, see the rules above."""
        if not self.spellings or b";" not in component:
            return component
        return _QUOTED.sub(_unescape, component)


NO_QUOTING = Quoting()


def _escape(value: int) -> bytes:
    return b";%03d" % value


def _unescape(match: re.Match[bytes]) -> bytes:
    value = int(match[1])
    return match[0] if value > 255 or value in _NEVER_QUOTED else _ALL_BYTES[value]


def _class_members(body: bytes) -> frozenset[int]:
    """The byte values that the class `[body]` of a regular expression matches. Raises FormatError."""
    is_negated = body.startswith(b"^")
    tokens = _TOKEN.findall(body[is_negated:])
    members: set[int] = set()
    place = 0
    while place < len(tokens):
        low = _token_members(tokens[place], is_first=place == 0)
        if place + 2 < len(tokens) and tokens[place + 1] == b"-":
            high = _token_members(tokens[place + 2])
            if len(low) != 1 or len(high) != 1 or low > high:
                raise FormatError(f"chars_to_quote holds a bad range: {printable(b''.join(tokens[place : place + 3]))}")
            members.update(range(low[0], high[0] + 1))
            place += 3
        else:
            members.update(low)
            place += 1
    return frozenset(range(256)) - members if is_negated else frozenset(members)


def _token_members(token: bytes, *, is_first: bool = False) -> list[int]:
    """The byte values that one token matches: one, or several for the likes of `\\d`."""
    if token == b"\\" or (token == b"]" and not is_first):
        raise FormatError(f"chars_to_quote is not the body of a class: {printable(token)}")
    if not token.startswith(b"\\"):
        return [token[0]]
    try:
        matches = re.compile(b"[%b]" % token, re.DOTALL).fullmatch
    except re.error as exc:
        raise FormatError(f"chars_to_quote holds an unknown escape: {printable(token)}") from exc
    return [value for value, char in enumerate(_ALL_BYTES) if matches(char)]
