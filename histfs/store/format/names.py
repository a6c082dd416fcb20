"""Names that carry a session time: increments, and most files of the data directory (docs/format.md 1.1).

The name alone decides. Where quoting is active a whole name is unquoted before it comes here.
"""

from typing import NamedTuple

from histfs.errors import FormatError
from histfs.store.format.times import format_time, parse_time

TYPES = frozenset({b"snapshot", b"diff", b"dir", b"missing", b"data"})


class IncrementName(NamedTuple):
    """`base.time.type[.gz]`. The base may be empty, hold dots, and itself look like such a name."""

    base: bytes
    time: int  # seconds since the epoch
    type: bytes  # one of TYPES
    compressed: bool  # whether the name says so; what is in the file may differ (docs/format.md, trap 9)


def parse_increment_name(name: bytes) -> IncrementName | None:
    """The parts of `name`, read from the right; None when it is simply not such a name (docs/format.md 1.1)."""
    stem = name.removesuffix(b".gz")
    base_and_time, _, increment_type = stem.rpartition(b".")
    if increment_type not in TYPES:
        return None
    base, dot, time = base_and_time.rpartition(b".")
    if not dot:
        return None
    try:
        return IncrementName(base, parse_time(time), increment_type, len(stem) < len(name))
    except FormatError:
        return None


def format_increment_name(
    base: bytes, session_time: int, increment_type: bytes, *, compressed: bool, without_colons: bool = False
) -> bytes:
    """The name of the increment of `base` that keeps its state at `session_time` (seconds since the epoch).

    Raises FormatError when the format cannot hold the time.
    """
    assert increment_type in TYPES, increment_type
    return b".".join((base, format_time(session_time, without_colons=without_colons), increment_type)) + (
        b".gz" if compressed else b""
    )
