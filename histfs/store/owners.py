"""Who owns a file here, if somebody owned it there: pure decisions about users and groups.

A record names an owner twice, by name and by number. The name counts, as the same person has another number on another
computer; the number does where the name is not known here, or was not recorded. A mapping, given by the person who
restores or backs up, says otherwise for single users or groups. What is recorded is never changed by any of this.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from histfs.errors import FormatError, printable
from histfs.store.entry import Entry

LARGEST_NUMBER = 2**32 - 2  # the one above it means "no change" to chown(2)

_MOST_DIGITS = 10


def parse_mapping(text: bytes) -> dict[bytes, bytes]:
    """The mapping in the lines `old:new` of `text`, each a name or a number; empty lines mean nothing.

    Raises FormatError.
    """
    mapping = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        old, _, new = line.strip().partition(b":")
        if not old or b":" not in line or b":" in new:
            raise FormatError(f"line {number} is not of the form old:new: {printable(line)}")
        mapping[old] = new
    return mapping


class Accounts(NamedTuple):
    """The users, or the groups, of this computer. `number_of`: the number of a name; None if it is not known here."""

    number_of: Callable[[bytes], int | None]
    mapping: Mapping[bytes, bytes] = {}

    def number(self, name: bytes | None, number: int) -> int:
        """The number here of who has, or had, this `name` and `number` there.

        What the mapping says of the name comes first, then the name itself, then what the mapping says of the number.
        A mapping to a name that is not known here leaves the number as it is.
        """
        known = None
        if name is not None and name in self.mapping:
            known = self._mapped(name)
        elif name is None or (known := self.number_of(name)) is None:
            known = self._mapped(b"%d" % number)
        return number if known is None else known

    def find(self, whom: bytes | int) -> int | None:
        """The number here of somebody whom an access control list names or, nameless there, numbers.

        None for a name that is not known here: then nothing tells who it was.
        """
        if isinstance(whom, int):
            return self.number(None, whom)
        return self._mapped(whom) if whom in self.mapping else self.number_of(whom)

    def _mapped(self, old: bytes) -> int | None:
        new = self.mapping.get(old)
        if new is None:
            return None
        if new.isdigit() and len(digits := new.lstrip(b"0")) <= _MOST_DIGITS and int(digits or b"0") <= LARGEST_NUMBER:
            return int(digits or b"0")
        return self.number_of(new)


class Owners(NamedTuple):
    """How owners are carried over. Without accounts (`NUMERICAL`) the recorded numbers are taken as they are."""

    users: Accounts | None = None
    groups: Accounts | None = None

    def of(self, entry: Entry) -> tuple[int, int]:
        """The numbers of the user and the group that own `entry` here."""
        uid = entry.uid if self.users is None else self.users.number(entry.uname, entry.uid)
        gid = entry.gid if self.groups is None else self.groups.number(entry.gname, entry.gid)
        return uid, gid


NUMERICAL = Owners()
