"""Deltas as librsync reads them: how they begin and end, and the commands in between (docs/librsync.md)."""

import struct

DELTA_MAGIC = b"rs\x026"
DELTA_END = b"\0"
_WIDTHS = ">B", ">H", ">I", ">Q"
_LITERAL, _COPY = 0x41, 0x45  # the first commands of each kind


def format_copy(start: int, size: int) -> bytes:
    """The command for `size` bytes of the basis, from `start` on; nothing for none."""
    if not size:
        return b""
    i, place = _number(start)
    j, length = _number(size)
    return bytes([_COPY + 4 * i + j]) + place + length


def format_literal(data: bytes) -> bytes:
    """The command for `data`, with it; nothing for none."""
    if not data:
        return b""
    width, length = _number(len(data))
    return b"".join([bytes([_LITERAL + width]), length, data])


def _number(number: int) -> tuple[int, bytes]:
    """It in the fewest bytes that a command has for it; how many these are, as a power of two."""
    width = next(width for width in range(4) if number < 1 << (8 << width))
    return width, struct.pack(_WIDTHS[width], number)
